//! The dashboards and the rules on a real Prometheus that scrapes a real sdtrace: in a guest, beside a battery that makes
//! the kernel miss writes by several causes. Then the same metrics from 500 nodes.

mod live;
mod many;
mod server;

use super::battery::modules;
use super::output::Shared;
use super::transport::free_port;
use crate::guest::{Guest, Outcome, Running};
use crate::kernels::fetch::Kernels;
use crate::kernels::{Series, Wanted};
use crate::provision::say;
use crate::suite::daemon::fetch;
use crate::workspace::{build_static, root, target_dir};
use anyhow::{Context as _, Result, bail, ensure};
use server::Prometheus;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

/// The kernel that most users of Debian run, on which all kinds of causes can be had.
const KERNEL: Wanted = Wanted::Series(Series { major: 6, minor: 12 });
/// Port inside the guest.
const INSIDE: u16 = 9955;
/// What is played again and again: something trusted, three causes of missed writes, exposed pages, hazards, blind memory,
/// dropped pages, epochs that no clear opened, NUMA nodes, a second tracker.
const SCENARIOS: &str = "control-private-anon,shmem-collapse,mremap-table-move,uprobe-insert,merge-shared-mprotect-a,\
                         mremap-grow-read,hugetlb-private,shared-second-mapping,fork-then-write,punch-hole,\
                         foreign-clear,migrate-after-write";
/// The guest's part; ends when it is interrupted.
const SCRIPT: &str = "sdtrace run --listen 0.0.0.0:9955 --top-workloads 3 --incident-log /out/incidents.jsonl \
                      --verify-pages 64 --audit-period 200ms \
                      >/out/sdtrace.log 2>&1 & daemon=$!; trap 'ended=yes' INT; \
                      while [ -z \"$ended\" ]; do \
                          kill -0 $daemon || { cat /out/sdtrace.log; exit 1; }; \
                          if sdtrace battery --disruptive --only $SCENARIOS >/out/battery 2>&1; then :; \
                          elif [ -z \"$ended\" ]; then cat /out/battery; exit 1; fi; \
                      done; \
                      kill -TERM $daemon 2>/dev/null; wait $daemon; exit 0";
/// How long everything may take until each query has given data; two minutes where nothing else runs.
const PATIENCE: Duration = Duration::from_mins(12);
/// For the end of the guest.
const ENDING: Duration = Duration::from_mins(3);

/// Runs both.
pub fn run() -> Result<()> {
    let metrics = watched_guest()?;
    many::run(&metrics)
}

/// The guest under Prometheus. Returns one scrape of it.
fn watched_guest() -> Result<String> {
    let sdtrace = build_static("tracer-user", "sdtrace")?;
    let kernel = Kernels::open()?.provide(KERNEL, false)?;
    let port = free_port()?;
    let said = Shared::default();
    let mut guest = Guest::new(kernel.clone(), ["sh", "-c", SCRIPT])
        .cpus(2)
        .two_nodes(true)
        .disk(true)
        .memory_mib(1536)
        .environment("SCENARIOS", SCENARIOS)
        .file(sdtrace, "/usr/bin/sdtrace")
        .forward(port, INSIDE)
        .out(target_dir().join("prometheus"))
        .timeout(PATIENCE + ENDING);
    for module in modules(&kernel)? {
        guest = guest.module(module);
    }
    let mut running = guest.start(said.clone())?;
    let watched = watch(&mut running, port);
    // Whatever was found, the guest's own end is waited for; if it was lost, that is what went wrong.
    if watched.is_ok() {
        running.interrupt_command()?;
    } else {
        // The command may have ended already.
        let _ = running.interrupt_command();
    }
    let report = running.wait()?;
    if report.outcome != Outcome::Exited(0) {
        let why = watched
            .err()
            .map_or_else(String::new, |error| format!("; {error:#}"));
        bail!(
            "the guest ended with {:?}: {}{why}",
            report.outcome,
            said.text().trim()
        );
    }
    watched
}

fn watch(running: &mut Running, port: u16) -> Result<String> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let start = Instant::now();
    let step = |running: &mut Running| -> Result<()> {
        ensure!(running.step(Duration::from_millis(200))?, "the guest has ended");
        ensure!(start.elapsed() < PATIENCE, "out of time");
        Ok(())
    };
    while !running.command_started() || fetch(address, "/readyz").is_err() {
        step(running).context("sdtrace does not become ready")?;
    }
    say(&format!(
        "sdtrace is ready after {:.0} s",
        start.elapsed().as_secs_f64()
    ));
    let rules = root().join("dashboards/rules.yml");
    // A short interval, so that rates are there soon. Prometheus gives up on a scrape after the interval.
    let configuration = format!(
        "global: {{scrape_interval: 3s, scrape_timeout: 3s, evaluation_interval: 3s}}\n\
         rule_files: [{}]\n\
         scrape_configs:\n  - job_name: sdtrace\n    static_configs: [{{targets: ['{address}'], labels: {{cluster: test}}}}]\n",
        rules.display()
    );
    let since = SystemTime::now();
    let prometheus = Prometheus::start(&configuration, free_port()?)?;
    let questions = live::questions(&address.to_string())?;
    let mut asked = Instant::now();
    loop {
        step(running)?;
        if asked.elapsed() < Duration::from_secs(3) {
            continue;
        }
        asked = Instant::now();
        let unanswered = live::unanswered(&prometheus, &questions, since)?;
        if unanswered.is_empty() {
            break;
        }
        if start.elapsed() + Duration::from_secs(10) > PATIENCE {
            bail!("no data for:\n  {}", unanswered.join("\n  "));
        }
    }
    say(&format!(
        "every query has data after {:.0} s",
        start.elapsed().as_secs_f64()
    ));
    println!("{}", live::check(&prometheus, &questions, since)?);
    fetch(address, "/metrics")
}
