//! The soak itself, inside the guest: stressors, oracle, tracker and sdtrace, and what became of them.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;

use super::features::{Counters, Features, Set};
use super::judge::disagreements;
use super::stress::Stress;
use super::summary::{Sdtrace, Summary};
use super::tracker::Tracker;
use super::verdicts::Examined;
use crate::detection::said::Dump;
use crate::oracle::{Oracle, Settings};
use crate::suite::daemon::Daemon;
use crate::suite::ledger::Ledger;

/// The tracker's period.
const PERIOD: Duration = Duration::from_millis(100);
/// How often sdtrace is scraped.
const SCRAPE: Duration = Duration::from_secs(1);
/// How often the ledger is held against the oracle and a line of news is printed.
const LEDGER: Duration = Duration::from_secs(20);
/// Longer than epochs wait to be finished after their end.
const SETTLED: Duration = Duration::from_secs(3);
/// Ticks of the processor times in /proc/PID/stat, in a second (`USER_HZ` of the kernel's x86).
const TICKS: f64 = 100.0;

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// For how long.
    pub time: Duration,
    /// How sdtrace attaches.
    pub attach: String,
    /// The kernel's features.
    pub features: Features,
}

/// sdtrace's ledger, and what its detectors say.
fn dump(daemon: &Daemon) -> Result<(Ledger, Dump)> {
    let text = daemon.get("/debug/ledger")?;
    let ledger = serde_json::from_str(&text).context("the ledger cannot be read")?;
    let dump = serde_json::from_str(&text).context("the detectors' words cannot be read")?;
    Ok((ledger, dump))
}

/// Runs it, leaves `soak.json` in `out`, prints a table, and returns whether all is as it must be.
///
/// # Errors
/// If something does not work at all.
pub fn run(plan: &Plan, out: &Path) -> Result<bool> {
    fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    let log = out.join("sdtrace.log");
    let listen = SocketAddr::from(([127, 0, 0, 1], 9955));
    let incidents = out.join("incidents.jsonl");
    let incidents = incidents.to_string_lossy();
    // The oracle is judged from its first epoch on.
    let arguments = [
        "--attach",
        &plan.attach,
        "--incident-log",
        &incidents,
        "--watch-writes",
        "always",
    ];
    let daemon = Daemon::start(listen, &arguments, &log.to_string_lossy())?;
    // Not before: compaction in a loop leaves little time to load and verify programs in.
    let _features = Set::new(plan.features)?;
    let mut summary = Summary {
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?
            .trim()
            .to_owned(),
        attach: plan.attach.clone(),
        features: Some(plan.features),
        ..Summary::default()
    };
    soak(plan, out, &daemon, &mut summary)?;
    let words = daemon.said();
    let status = daemon.end(Signal::TERM)?;
    ensure!(
        status.success(),
        "sdtrace ended with {status}; it had said: {words}"
    );
    summary.judge();
    let text = serde_json::to_vec_pretty(&summary)?;
    fs::write(out.join("soak.json"), text).context("cannot write soak.json")?;
    print!("{}", summary.table());
    Ok(summary.failures.is_empty())
}

/// Everything between the first scrape and the last.
fn soak(plan: &Plan, out: &Path, daemon: &Daemon, summary: &mut Summary) -> Result<()> {
    let settings = Settings {
        threads: 8,
        pages: 512,
        pace: 5,
        mergeable: true,
    };
    let mut oracle = Oracle::start(std::env::current_exe()?, settings)?;
    let before = daemon.scrape()?;
    let counters = Counters::now()?;
    // What loading and attaching took is no part of it.
    let (cpu, threads_before) = processor_times(daemon)?;
    let mut stress = Stress::start(plan.time, plan.features, out)?;
    let mut tracker = Tracker::default();
    let mut told = Sdtrace::default();
    let mut examined = Examined::default();
    let mut judged = 1;
    let start = Instant::now();
    let (mut scraped, mut looked) = (start, start);
    while start.elapsed() < plan.time && !stress.has_ended()? {
        let round = Instant::now();
        tracker.stressors(&mut stress)?;
        tracker.oracle(&mut oracle, start.elapsed().as_secs_f64())?;
        if scraped.elapsed() >= SCRAPE {
            scraped = Instant::now();
            watch(daemon, summary, start)?;
            summary.host.counters.peak(&Counters::now()?.since(&counters));
        }
        if looked.elapsed() >= LEDGER {
            looked = Instant::now();
            // sdtrace keeps 503 ready for a machine that gives it no processor; here it is asked what it knows.
            stress.freeze()?;
            let (before, _) = processor_times(daemon)?;
            let ledger = dump(daemon);
            // Nothing else needed sdtrace meanwhile.
            summary.host.dump_seconds += processor_times(daemon)?.0 - before;
            summary.host.dumps += 1;
            stress.thaw()?;
            match ledger {
                Ok((ledger, dump)) => {
                    judged = told.hold_against(&ledger, oracle.pid(), &tracker.recent, judged);
                    examined.take_in(&dump);
                }
                Err(_) => summary.host.unanswered += 1,
            }
            eprintln!(
                "{:>5.0} s: {} clears, oracle: {} epochs, {} pages changed, {} missed",
                start.elapsed().as_secs_f64(),
                tracker.tracked.clears,
                tracker.oracle.epochs,
                tracker.oracle.changed_pages,
                tracker.oracle.missed()
            );
        }
        thread::sleep(PERIOD.saturating_sub(round.elapsed()));
    }
    oracle.pause()?;
    summary.stressors = stress.end()?.into_iter().collect();
    summary.seconds = start.elapsed().as_secs_f64();
    watch(daemon, summary, start)?;
    summary.host.counters.peak(&Counters::now()?.since(&counters));
    summary.host.cpu_seconds -= cpu;
    for (name, seconds) in threads_before {
        *summary.host.thread_seconds.entry(name).or_default() -= seconds;
    }
    // Nothing that is tracked does anything any more, and what has ended is finished after half a second.
    thread::sleep(SETTLED);
    let after = daemon.scrape()?;
    let (ledger, said) = dump(daemon)?;
    examined.take_in(&said);
    told.hold_against(&ledger, oracle.pid(), &tracker.recent, judged);
    summary.failures.extend(disagreements(&ledger, &after));
    summary.sdtrace = Sdtrace {
        oracle_epochs_found: told.oracle_epochs_found,
        oracle_changed_pages: told.oracle_changed_pages,
        oracle_faults: told.oracle_faults,
        oracle_differences: told.oracle_differences,
        examined,
        ..Sdtrace::new(&before, &after, &ledger)
    };
    summary.tracker = tracker.tracked;
    summary.oracle = tracker.oracle;
    Ok(())
}

/// Looks at sdtrace from outside, and scrapes it as Prometheus would.
fn watch(daemon: &Daemon, summary: &mut Summary, start: Instant) -> Result<()> {
    let scrape = Instant::now();
    let answer = daemon.scrape();
    let host = &mut summary.host;
    host.scrapes += 1;
    host.unanswered += u64::from(answer.is_err());
    if let Ok(scrape) = answer {
        for (map, peak) in [
            ("rows", &mut host.rows_peak),
            ("address_spaces", &mut host.address_spaces_peak),
        ] {
            *peak = (*peak).max(scrape.count("sdtrace_map_entries", &[("map", map)])?);
        }
    }
    host.slowest_scrape_seconds = host.slowest_scrape_seconds.max(scrape.elapsed().as_secs_f64());
    let path = format!("/proc/{}/status", daemon.pid());
    let status = fs::read_to_string(&path).with_context(|| path)?;
    let kib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok())
            .with_context(|| format!("/proc/PID/status has no {name}"))
    };
    host.rss.push((start.elapsed().as_secs_f64(), kib("VmRSS:")?));
    host.rss_peak_kib = kib("VmHWM:")?;
    let (cpu, threads) = processor_times(daemon)?;
    host.cpu_seconds = cpu;
    // A thread that has ended keeps what it was last seen with.
    for (name, time) in threads {
        let known = host.thread_seconds.entry(name).or_default();
        *known = known.max(time);
    }
    Ok(())
}

/// Processor time of sdtrace in all, and by the names of its threads.
fn processor_times(daemon: &Daemon) -> Result<(f64, BTreeMap<String, f64>)> {
    let path = format!("/proc/{}/stat", daemon.pid());
    let fields = fs::read_to_string(&path).with_context(|| path.clone())?;
    let all = processor_time(&fields).with_context(|| path)?;
    let mut threads = BTreeMap::<String, f64>::new();
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid()))
        .into_iter()
        .flatten();
    for stat in tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("stat")).ok()) {
        let name = stat
            .split_once('(')
            .and_then(|(_, rest)| rest.rsplit_once(')'))
            .map(|(name, _)| name.to_owned());
        if let (Some(name), Some(time)) = (name, processor_time(&stat)) {
            *threads.entry(name).or_default() += time;
        }
    }
    Ok((all, threads))
}

/// User and system time, from /proc/PID/stat.
fn processor_time(stat: &str) -> Option<f64> {
    // The name may hold anything but ends with the last parenthesis; the times are fields 14 and 15, the state is 3.
    let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<f64>().ok();
    Some((ticks(11)? + ticks(12)?) / TICKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_found_behind_any_name() {
        let stat = "42 (a) b) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20";
        assert_eq!(processor_time(stat), Some(2.0));
        assert_eq!(processor_time("42 (a"), None);
        assert!(processor_time(&fs::read_to_string("/proc/self/stat").unwrap()).is_some());
    }
}
