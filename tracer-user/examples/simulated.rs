//! Serves what the daemon serves, from a simulated kernel: to look at the API and the page where no kernel can be traced.
//!
//!     cargo run --release --features simulation --example simulated -- 127.0.0.1:9955 50

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use anyhow::{Context as _, Result};
use sdtrace::export::http::{self, Exporter};
use sdtrace::export::metrics::{Facts, Metrics};
use sdtrace::export::simulation::{Simulation, Size};
use sdtrace::export::source;

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:9955".to_owned());
    let address: SocketAddr = address.parse().context("give ADDRESS:PORT first")?;
    let address_spaces = arguments.next().unwrap_or_else(|| "50".to_owned());
    let address_spaces: usize = address_spaces
        .parse()
        .context("give the number of address spaces second")?;
    let listener = http::bind(address).await?;
    let (source, owner) = source::channel();
    let size = Size {
        address_spaces,
        vmas: 20,
        epochs: 6,
    };
    let mut turns = 0;
    // One process after the other is cleared, one each second.
    Simulation::own_on_a_thread(size, owner, move |simulation| {
        simulation.clear(turns);
        turns += 1;
    });
    let metrics = Arc::new(Metrics::new(&Facts {
        kernel: "simulated".to_owned(),
        started: UNIX_EPOCH,
    })?);
    println!("simulated: http://{}", listener.local_addr()?);
    http::serve(listener, Exporter { source, metrics }, async {
        // An error means that there is no way to be told; then only a kill ends it.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    })
    .await?;
    Ok(())
}
