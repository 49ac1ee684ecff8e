//! `cargo xtask test`: named steps, each with its time, and one closing line that counts them.

mod api;
pub mod battery;
mod compose;
mod dashboards;
pub mod detection;
pub mod faults;
pub(crate) mod output;
mod packaging;
mod page;
mod prometheus;
pub mod reproducers;
pub mod selftest;
mod service;
pub mod tracing;
pub mod transport;

use crate::build_ebpf;
use crate::criu;
use crate::failure::Usage;
use crate::guest::interrupt;
use crate::kernels::fetch::Kernels;
use crate::kernels::{Series, Wanted};
use crate::provision::{promtool, say};
use crate::soak;
use crate::workspace::{clean_command, target_dir};
use anyhow::{Context as _, Result, bail};
use std::env;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How much is tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// What fits into one run of continuous integration.
    Usual,
    /// Everything.
    Full,
}

/// One step: a name to ask for it by, what it shows, and the work.
pub struct Step {
    /// Name, unique among the steps.
    pub name: &'static str,
    /// What passing means.
    pub shows: &'static str,
    run: Box<dyn Fn() -> Result<()>>,
}

impl Step {
    /// A step that passes when `run` returns without an error.
    pub fn new(name: &'static str, shows: &'static str, run: impl Fn() -> Result<()> + 'static) -> Self {
        Self {
            name,
            shows,
            run: Box::new(run),
        }
    }
}

/// All steps, the quickest to fail first. Suites that boot guests are appended here.
#[must_use]
#[allow(clippy::too_many_lines, reason = "a list, one entry a step")]
pub fn steps(extent: Extent) -> Vec<Step> {
    vec![
        Step::new("fmt", "every file is formatted", || {
            cargo(&["fmt", "--all", "--check"])
        }),
        Step::new("clippy-user", "no lint on the user side", || {
            cargo(&[
                "clippy",
                "--locked",
                "--workspace",
                "--exclude",
                "tracer-ebpf",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ])
        }),
        Step::new("clippy-ebpf", "no lint in the eBPF crate", build_ebpf::clippy),
        Step::new(
            "object",
            "the committed eBPF object is what its source builds",
            build_ebpf::check,
        ),
        Step::new(
            "dashboards",
            "dashboards and alerts name what exists, Grafana's types fit, each alert fires when it should and only then",
            dashboards::run,
        ),
        Step::new(
            "packaging",
            "systemd, Debian, Kubernetes and container tools accept what users install",
            packaging::run,
        ),
        Step::new("unit", "unit and property tests pass", unit),
        Step::new(
            "guest-transport",
            "static programs and HTTP work in a guest of every kernel",
            move || transport::run(&series(extent)?),
        ),
        Step::new(
            "prometheus",
            "every query of the dashboards and alerts gives data on a real run, and 500 nodes are no burden",
            prometheus::run,
        ),
        Step::new(
            "tracing",
            "sdtrace counts exactly what a workload did, on every kernel in both attach modes",
            move || tracing::run(&series(extent)?),
        ),
        Step::new(
            "api",
            "the JSON API of the real daemon answers as docs/openapi.json says, and refuses all else",
            || api::run(Wanted::Series(Series { major: 6, minor: 12 })),
        ),
        Step::new(
            "criu",
            "CRIU's clears are sdtrace's epochs, and CRIU writes what its target changed",
            move || criu::run(&criu_kernels(extent), "fentry"),
        ),
        Step::new(
            "soak",
            "nothing is lost, missed or miscounted under two minutes of memory stress",
            || {
                soak::test(
                    Wanted::Series(Series { major: 6, minor: 12 }),
                    Duration::from_mins(2),
                )
            },
        ),
        Step::new(
            "service",
            "the Debian package runs under Debian's systemd, and is restarted when it hangs",
            || service::run(Wanted::Series(Series { major: 6, minor: 1 })),
        ),
        Step::new(
            "page",
            "the live page shows in a real browser what a guest's kernel misses, as it happens",
            || page::run(Wanted::Series(Series { major: 6, minor: 12 })),
        ),
        Step::new(
            "battery",
            "soft-dirty behaves on every kernel as recorded, and the battery leaves nothing behind",
            move || battery::run(&series(extent)?, if extent == Extent::Full { 3 } else { 1 }),
        ),
        Step::new(
            "faults",
            "soft-dirty broken on purpose is found broken, on 6.1 and on the newest kernel",
            || {
                let bookworm = Series { major: 6, minor: 1 };
                faults::run(&[Wanted::Series(bookworm), Wanted::Newest])
            },
        ),
        Step::new(
            "reproducers",
            "each reproducer of docs/reproducers misses writes on the newest kernel",
            || reproducers::run(Wanted::Newest),
        ),
        Step::new(
            "selftest",
            "the kernel's own test of soft-dirty and the battery agree on every kernel",
            move || selftest::run(&series(extent)?),
        ),
        Step::new(
            "detection",
            "what the battery makes a kernel miss sdtrace says, with its cause and count, and nothing else",
            move || detection::run(&series(extent)?, extent),
        ),
        Step::new(
            "detection-cases",
            "several causes in one epoch keep their names, and everything that cannot be checked forbids trust",
            || detection::cases(Wanted::Series(Series { major: 6, minor: 12 })),
        ),
        Step::new(
            "detection-verify",
            "changed contents are proved page by page, and what is tracked, thrown away or cleared meanwhile proves nothing",
            move || detection::verify(&series(extent)?, extent),
        ),
    ]
}

/// The kernels that guests are booted with: the ones that users run, or all that the suites offer.
fn series(extent: Extent) -> Result<Vec<Wanted>> {
    const USUAL: [Series; 4] = [
        Series { major: 5, minor: 10 },
        Series { major: 6, minor: 1 },
        Series { major: 6, minor: 12 },
        Series { major: 6, minor: 18 },
    ];
    if extent == Extent::Usual {
        return Ok(USUAL
            .into_iter()
            .map(Wanted::Series)
            .chain([Wanted::Newest])
            .collect());
    }
    let offers = Kernels::open()?.list(false)?;
    Ok(offers
        .into_iter()
        .map(|offer| Wanted::Series(offer.candidate.series))
        .collect())
}

/// CRIU reads soft-dirty in the same way on all of these; one of them is enough in continuous integration. One that loses
/// writes to KSM, which 6.12 does not do any more from 6.12.118 on.
fn criu_kernels(extent: Extent) -> Vec<Wanted> {
    let stable = Wanted::Series(Series { major: 6, minor: 1 });
    match extent {
        Extent::Usual => vec![stable],
        Extent::Full => vec![stable, Wanted::Newest],
    }
}

/// Runs the steps named in `only` (all when empty) to the end, whatever fails, and tells the count.
pub fn run(steps: &[Step], only: &[String]) -> Result<()> {
    if let Some(unknown) = only
        .iter()
        .find(|name| !steps.iter().any(|step| step.name == **name))
    {
        let names: Vec<_> = steps.iter().map(|step| step.name).collect();
        return Err(Usage(format!(
            "no step is called {unknown}; there are: {}",
            names.join(", ")
        ))
        .into());
    }
    let mut results: Vec<(&str, Duration, Option<String>)> = Vec::new();
    for step in steps
        .iter()
        .filter(|step| only.is_empty() || only.iter().any(|name| name == step.name))
    {
        say(&format!("step {}: {}", step.name, step.shows));
        let started = Instant::now();
        let failure = (step.run)().err().map(|error| format!("{error:#}"));
        if let Some(failure) = &failure {
            say(&format!("step {} failed: {failure}", step.name));
        }
        if interrupt::count() > 0 {
            bail!("interrupted during step {}", step.name);
        }
        results.push((step.name, started.elapsed(), failure));
    }
    println!();
    for (name, time, failure) in &results {
        let verdict = if failure.is_some() { "FAILED" } else { "ok" };
        println!("{name:<24}{verdict:<8}{:>7.1} s", time.as_secs_f64());
    }
    // Again, where whoever sees only the end of a long output finds it.
    for (name, _, failure) in &results {
        if let Some(failure) = failure {
            println!("{name}: {}", shortened(failure));
        }
    }
    let failed = results.iter().filter(|(_, _, failure)| failure.is_some()).count();
    // Alone on its line: continuous integration reads it.
    println!("{} passed, {failed} failed", results.len() - failed);
    if failed > 0 {
        bail!("{failed} of {} steps failed", results.len());
    }
    Ok(())
}

/// The begin and the end of a long reason: what failed, and what was said last.
fn shortened(reason: &str) -> String {
    const KEPT: usize = 1000;
    let letters: Vec<char> = reason.chars().collect();
    if letters.len() <= 2 * KEPT {
        return reason.to_owned();
    }
    let begin: String = letters[..KEPT].iter().collect();
    let end: String = letters[letters.len() - KEPT..].iter().collect();
    format!("{begin} [...] {end}")
}

/// Works on each item, two at a time: a guest keeps one core busy. The results come in the items' order.
///
/// Each piece of work stays on one thread, as a guest must: the emulator dies with the thread that started it.
pub fn two_at_a_time<Item: Sync, Output: Send>(
    items: &[Item],
    work: impl Fn(&Item) -> Result<Output> + Sync,
) -> Vec<Result<Output>> {
    let next = AtomicUsize::new(0);
    let results: Vec<Mutex<Option<Result<Output>>>> = items.iter().map(|_| Mutex::new(None)).collect();
    let worker = || {
        while let at = next.fetch_add(1, Ordering::SeqCst)
            && let (Some(item), Some(place)) = (items.get(at), results.get(at))
        {
            *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(work(item));
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(worker);
        scope.spawn(worker);
    });
    results
        .into_iter()
        .map(|place| {
            let result = place.into_inner().unwrap_or_else(PoisonError::into_inner);
            result.unwrap_or_else(|| bail!("the work was never begun"))
        })
        .collect()
}

/// A cargo run in the workspace, with its output shown.
/// One of the tests asks promtool, which this machine may lack.
fn unit() -> Result<()> {
    let promtool = promtool::provide()?;
    let mut path = promtool
        .parent()
        .map(PathBuf::from)
        .into_iter()
        .collect::<Vec<_>>();
    path.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    cargo_with(
        &["test", "--locked", "--workspace", "--exclude", "tracer-ebpf"],
        &env::join_paths(path).context("promtool's folder cannot be put on the PATH")?,
    )
}

fn cargo(arguments: &[&str]) -> Result<()> {
    cargo_with(arguments, &env::var_os("PATH").unwrap_or_default())
}

fn cargo_with(arguments: &[&str], path: &OsStr) -> Result<()> {
    let mut cargo = clean_command("cargo");
    let status = cargo
        .args(arguments)
        .env("PATH", path)
        .env("CARGO_TARGET_DIR", target_dir())
        .status()
        .context("cannot start cargo")?;
    if !status.success() {
        bail!("`cargo {}` failed", arguments.join(" "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failing_step_fails_the_run_and_the_others_still_run() {
        let ran = std::rc::Rc::new(std::cell::Cell::new(false));
        let seen = std::rc::Rc::clone(&ran);
        let steps = [
            Step::new("bad", "", || bail!("no")),
            Step::new("good", "", move || {
                seen.set(true);
                Ok(())
            }),
        ];
        assert_eq!(run(&steps, &[]).unwrap_err().to_string(), "1 of 2 steps failed");
        assert!(ran.get());
        assert!(run(&steps, &["good".into()]).is_ok());
        assert!(run(&steps, &["ugly".into()]).is_err());
    }

    #[test]
    fn long_reasons_keep_their_begin_and_their_end() {
        assert_eq!(shortened("no"), "no");
        let long = shortened(&format!("first{}last", "é".repeat(5000)));
        assert!(long.starts_with("first") && long.ends_with("last"));
        assert_eq!(long.chars().count(), 2000 + " [...] ".len());
    }

    #[test]
    fn results_keep_the_items_order_and_errors_their_place() {
        let results = two_at_a_time(&[3_u64, 0, 2, 1], |item| {
            std::thread::sleep(Duration::from_millis(item * 10));
            anyhow::ensure!(*item != 2, "two");
            Ok(item * 2)
        });
        let results: Vec<_> = results
            .into_iter()
            .map(|result| result.map_err(|error| error.to_string()))
            .collect();
        assert_eq!(results, [Ok(6), Ok(0), Err("two".to_owned()), Ok(2)]);
    }

    #[test]
    fn step_names_are_unique() {
        let steps = steps(Extent::Full);
        let mut names: Vec<_> = steps.iter().map(|step| step.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), steps.len());
    }
}
