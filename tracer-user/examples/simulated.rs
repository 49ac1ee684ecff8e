//! What the daemon serves, from a simulated kernel.
//!
//!     cargo run --release --features simulation --example simulated -- serve 127.0.0.1:9955 50
//!     cargo run --release --features simulation --example simulated -- measure 5000
//!
//! `serve` is for looking at the API and the page where no kernel can be traced. `measure` tells how long answers take with
//! that many tracked address spaces, over HTTP on the loopback; `cargo xtask test --only api` holds it to its bounds.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use sdtrace::export::client;
use sdtrace::export::http::{self, Exporter};
use sdtrace::export::metrics::{Facts, Metrics};
use sdtrace::export::simulation::{Simulation, Size};
use sdtrace::export::source;
use tokio::net::TcpListener;

/// Times that each path is asked for.
const ROUNDS: usize = 31;
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve", address, spaces] => serve(address.parse()?, spaces.parse()?).await,
        ["measure", spaces] => measure(spaces.parse()?).await,
        _ => bail!("usage: simulated serve ADDRESS:PORT COUNT | simulated measure COUNT"),
    }
}

/// A server whose processes are cleared one after the other, one each second.
async fn server(listener: TcpListener, address_spaces: usize) -> Result<()> {
    let (source, owner) = source::channel();
    let size = Size {
        address_spaces,
        vmas: 20,
        epochs: 6,
    };
    let mut turns = 0;
    Simulation::own_on_a_thread(size, owner, move |simulation| {
        simulation.clear(turns);
        turns += 1;
    });
    let metrics = Arc::new(Metrics::new(&Facts {
        kernel: "simulated".to_owned(),
        started: UNIX_EPOCH,
    })?);
    http::serve(listener, Exporter { source, metrics }, std::future::pending()).await?;
    Ok(())
}

async fn serve(address: SocketAddr, address_spaces: usize) -> Result<()> {
    let listener = http::bind(address).await?;
    println!("simulated: http://{}", listener.local_addr()?);
    server(listener, address_spaces).await
}

async fn measure(address_spaces: usize) -> Result<()> {
    let listener = http::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    let url = format!("http://{}", listener.local_addr()?);
    tokio::spawn(server(listener, address_spaces));
    let middle = address_spaces / 2;
    let paths = [
        "/metrics".to_owned(),
        "/api/v1/processes?limit=100".to_owned(),
        format!("/api/v1/processes?limit=100&cursor={middle}"),
        "/api/v1/processes?limit=1000".to_owned(),
        "/api/v1/processes?verdict=broken".to_owned(),
        "/api/v1/incidents?limit=100".to_owned(),
        format!("/api/v1/processes/{middle}/epochs/last"),
    ];
    println!("path,quickest_ms,median_ms,bytes,lines");
    for path in paths {
        let url = format!("{url}{path}");
        let mut times = Vec::new();
        let mut body = Vec::new();
        for _ in 0..ROUNDS {
            let start = Instant::now();
            // The first one waits until the simulation is built.
            let answer = client::get(&url, PATIENCE).await?;
            times.push(start.elapsed());
            ensure!(answer.status == 200, "{url} answers {}", answer.status);
            body = answer.body;
        }
        times.sort_unstable();
        let text = String::from_utf8(body).context("the answer is text")?;
        let series = text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .count();
        let ms = |at: usize| times[at].as_secs_f64() * 1000.0;
        println!(
            "{path},{:.2},{:.2},{},{series}",
            ms(0),
            ms(ROUNDS / 2),
            text.len()
        );
    }
    Ok(())
}
