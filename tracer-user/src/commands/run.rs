//! `sdtrace run`.

use std::process;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context as _, Result, anyhow};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use super::agent::Agent;
use super::incident_log::IncidentLog;
use super::own_audit::Schedule;
use super::summary::Summary;
use super::verify::Settings;
use super::{preflight, round_trip, service};
use crate::cli::{LogFormat, RunArgs, UsageError};
use crate::export::http::{self, Exporter};
use crate::export::metrics::reading::Reading;
use crate::export::metrics::{Facts, Metrics};
use crate::export::source::{self, Owner};
use crate::kernel::survey::Survey;
use crate::ledger::{Limits, Surroundings};
use crate::probes::demand::WriteDemand;
use crate::probes::verdict::{AttachMode, ProbeVerdict, Verdict};
use crate::probes::{self, Filters, ProbeOptions, Probes};
use crate::processes;

/// Traces until it is told to end.
pub(super) fn run(arguments: &RunArgs) -> Result<()> {
    let limits = arguments.checked_limits().map_err(UsageError::from)?;
    log_to_stderr(arguments);
    log_configuration(arguments);
    let options = ProbeOptions {
        attach: arguments.attach,
        fault_return: arguments.fault_return,
        trace_faults: arguments.trace_faults,
        watch_writes: arguments.watch_writes,
        filters: filters(arguments)?,
        limits: probes::Limits {
            address_spaces: arguments.keep.max_address_spaces,
            rows: arguments.keep.max_vmas,
            page_records: arguments.keep.max_page_records,
        },
        probe_log_level: probe_log_level(arguments.log_level),
    };
    let runtime = super::runtime()?;
    let reading = runtime.block_on(trace(arguments, options, limits));
    // A start that a signal interrupted may still be under way on another thread; the kernel detaches what it
    // has attached when the process ends.
    runtime.shutdown_background();
    if let (Some(reading), Some(_)) = (reading?, arguments.duration) {
        let summary = Summary::of(&reading);
        match arguments.log_format {
            LogFormat::Text => super::print(&summary.table())?,
            LogFormat::Json => super::print(&(serde_json::to_string(&summary)? + "\n"))?,
        }
    }
    Ok(())
}

/// The programs speak at debug level only, on rare occasions; at other levels they are loaded without a voice.
fn probe_log_level(level: tracing::Level) -> u8 {
    if level >= tracing::Level::DEBUG {
        aya_log::Level::Debug as u8
    } else {
        0
    }
}

fn log_to_stderr(arguments: &RunArgs) {
    let builder = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(arguments.log_level);
    let result = match arguments.log_format {
        LogFormat::Text => builder
            .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    // Only a second subscriber fails, and then the first one logs.
    drop(result);
}

fn log_configuration(arguments: &RunArgs) {
    if let Some(file) = &arguments.config {
        tracing::info!("settings from {}", file.display());
    }
    for variable in &arguments.ignored_variables {
        tracing::warn!("{variable} is no setting and is ignored; `sdtrace config example` lists them");
    }
}

fn filters(arguments: &RunArgs) -> Result<Filters> {
    let cgroups = arguments.cgroups.iter().map(|path| processes::cgroup_id(path));
    let containers = arguments.containers.iter().map(processes::container_cgroup_id);
    Ok(Filters {
        pids: arguments.pids.clone(),
        comms: arguments.comms.clone(),
        cgroups: cgroups.chain(containers).collect::<Result<_>>()?,
    })
}

/// Everything that keeps sdtrace from working, in one line.
fn preflight(attach: AttachMode) -> Result<()> {
    let survey = Survey::of_this_machine(attach != AttachMode::Fentry);
    let round_trips = round_trip::round_trips().map_err(|error| format!("{error:#}"));
    let problems = preflight::problems(&survey, attach, &round_trips);
    if problems.is_empty() {
        return Ok(());
    }
    let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
    Err(anyhow!("{} (`sdtrace check` tells more)", lines.join(". ")))
}

async fn trace(arguments: &RunArgs, options: ProbeOptions, limits: Limits) -> Result<Option<Reading>> {
    let mut ending = Ending::new()?;
    let listener = http::bind(arguments.listen).await?;
    preflight(options.attach)?;
    let listen = listener.local_addr()?;
    let incidents = match &arguments.incident_log {
        Some(path) => IncidentLog::open(path)?,
        None => IncidentLog::default(),
    };
    let surroundings = Surroundings {
        kernel: processes::kernel_release(),
        pid_namespace: processes::pid_namespace().context("/proc/self/ns/pid")?,
    };
    let facts = Facts {
        kernel: surroundings.kernel.clone(),
        started: SystemTime::now(),
    };
    let metrics = Arc::new(Metrics::labelled(&facts, &arguments.labels)?);
    let (source, owner) = source::channel();
    tokio::spawn(service::report(source.clone(), format!("http://{listen}")));
    let exporter = Exporter {
        source,
        metrics: Arc::clone(&metrics),
    };
    let (end_server, mut server_ends) = watch::channel(());
    let server = tokio::spawn(http::serve(listener, exporter, async move {
        // An error means that the sender is gone: that is the end, too.
        drop(server_ends.changed().await);
    }));
    tracing::info!(
        kernel = surroundings.kernel,
        pid_namespace = surroundings.pid_namespace,
        own_pid = process::id(),
        "pids are those of sdtrace's own pid namespace pid:[{}]",
        surroundings.pid_namespace
    );

    let fault_return = options.fault_return;
    let starting = tokio::task::spawn_blocking(move || Probes::start(&options));
    let started = tokio::select! {
        started = starting => started.context("the start-up broke off")??,
        () = ending.wait() => return Ok(None),
    };
    for verdict in started.verdicts() {
        log_verdict(verdict);
    }
    if started.unreadable_at_start > 0 {
        tracing::warn!(
            processes = started.unreadable_at_start,
            "processes could not be read; one of them may be armed and is not tracked before its next clear"
        );
    }
    let agent = Agent::new(started, limits, fault_return, metrics, surroundings)
        .with_top_workloads(arguments.top_workloads)
        .with_incident_log(incidents)
        .with_demand(WriteDemand::new(
            arguments.watch_writes,
            arguments.watch_writes_for,
        ))
        .with_own_audit(
            Schedule {
                period: arguments.audit_period,
                budget: arguments.audit_budget << 20,
            },
            Settings {
                pages: arguments.verify_pages,
                bytes_per_second: arguments.verify_budget << 20,
            },
        );
    let reading = Box::pin(work(
        agent,
        owner,
        arguments,
        &mut ending,
        &format!("http://{listen}"),
    ))
    .await?;
    service::ending();
    tracing::info!("detached");
    drop(end_server);
    // A scrape that is under way gets its answer, unless it takes too long.
    if tokio::time::timeout(std::time::Duration::from_secs(2), server)
        .await
        .is_err()
    {
        tracing::debug!("a client did not end in time");
    }
    Ok(Some(reading))
}

async fn work(
    agent: Agent,
    owner: Owner,
    arguments: &RunArgs,
    ending: &mut Ending,
    url: &str,
) -> Result<Reading> {
    tracing::info!("tracing; metrics at {url}/metrics");
    let end = async {
        match arguments.duration {
            Some(duration) => drop(tokio::time::timeout(duration, ending.wait()).await),
            None => ending.wait().await,
        }
    };
    agent.work(owner, end).await
}

/// SIGTERM and SIGINT.
struct Ending {
    terminate: Signal,
    interrupt: Signal,
}

impl Ending {
    fn new() -> Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("SIGINT")?,
        })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => tracing::info!("SIGTERM"),
            _ = self.interrupt.recv() => tracing::info!("SIGINT"),
        }
    }
}

fn log_verdict(verdict: &ProbeVerdict) {
    let probe = &verdict.probe;
    match (&verdict.verdict, &verdict.fell_back_because) {
        (Verdict::Attached { mechanism }, None) => {
            tracing::info!(probe, mode = mechanism.label(), "probe attached");
        }
        (Verdict::Attached { mechanism }, Some(because)) => {
            tracing::info!(
                probe,
                mode = mechanism.label(),
                because,
                "probe attached by the second choice"
            );
        }
        (Verdict::Unsupported { why }, _) => tracing::warn!(probe, why, "probe unsupported by this kernel"),
        (Verdict::Broken { why }, _) => tracing::error!(probe, why, "probe broken"),
    }
}
