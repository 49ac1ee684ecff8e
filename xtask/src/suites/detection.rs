//! What the battery makes each kernel miss, sdtrace must say; what the kernel tracks must raise no word. See
//! [`crate::detection`].

use super::output::Shared;
use super::{Extent, battery, two_at_a_time};
use crate::detection::expected::{Expected, Row, series};
use crate::detection::{Played, Run, rules};
use crate::guest::{Guest, Outcome};
use crate::kernels::fetch::{Kernel, Kernels};
use crate::kernels::{Series, Wanted};
use crate::provision::say;
use crate::workspace::{build_static, target_dir};
use anyhow::{Context as _, Result, bail, ensure};
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// A run takes two minutes under emulation; more when the host is busy.
const TIMEOUT: Duration = Duration::from_mins(12);

/// On a busy host the verifier was seen to keep a CPU of the guest from scheduling for more than a minute by the guest's
/// clock, which is no lockup: two minutes are.
const PATIENCE: &str = "watchdog_thresh=60";

/// Names the only guests to run, for work on one of them.
const ONLY: &str = "SDTRACE_TEST_GUESTS";

/// Falsifies one entry of the layout that sdtrace resolves at its start; see `probes/object.rs`.
const LAYOUT_OVERRIDE: &str = "SDTRACE_TEST_LAYOUT_OVERRIDE";

/// What goes into every guest.
struct Programs {
    sdtrace: PathBuf,
    cross_check: PathBuf,
}

impl Programs {
    fn build() -> Result<Self> {
        Ok(Self {
            sdtrace: build_static("tracer-user", "sdtrace")?,
            cross_check: build_static("xtask", "cross-check")?,
        })
    }
}

/// The oldest and the newest of the kernels on which sdtrace takes fentry if it may choose. On newer ones it takes kprobes
/// in any case, because they preempt programs.
const OTHER_MODE: [Series; 2] = [Series { major: 5, minor: 10 }, Series { major: 6, minor: 12 }];

/// The guests: every kernel as sdtrace attaches by itself, and two of them by kprobes or, if everything is asked for, all.
fn guests(kernels: &[Kernel], extent: Extent) -> Vec<(Kernel, &'static str)> {
    let auto = kernels.iter().map(|kernel| (kernel.clone(), "auto"));
    let kprobe: Vec<_> = kernels
        .iter()
        .filter(|kernel| extent == Extent::Full || OTHER_MODE.contains(&kernel.source.series))
        .collect();
    auto.chain(kprobe.into_iter().map(|kernel| (kernel.clone(), "kprobe")))
        .collect()
}

/// Those of the guests that [`ONLY`] names, or all.
fn chosen(mut guests: Vec<(Kernel, &'static str)>) -> Result<Vec<(Kernel, &'static str)>> {
    if let Some(only) = env::var_os(ONLY) {
        let only = only.to_string_lossy().into_owned();
        guests.retain(|(kernel, mode)| {
            only.split(',')
                .any(|name| name == format!("{} {mode}", kernel.source.series))
        });
        ensure!(
            !guests.is_empty(),
            "{ONLY} names no guest; write it as 6.12 auto,7.3 kprobe"
        );
        say(&format!("only the guests {only}, because {ONLY} says so"));
    }
    Ok(guests)
}

/// Checks each kernel; fails if sdtrace says something else than the rules and the committed file ask for.
pub fn run(kernels: &[Wanted], extent: Extent) -> Result<()> {
    let programs = Programs::build()?;
    let cache = Kernels::open()?;
    let mut ready = Vec::new();
    for wanted in kernels {
        ready.push(cache.provide(*wanted, false)?);
    }
    let expected = Expected::committed()?;
    let guests = chosen(guests(&ready, extent))?;
    let results = two_at_a_time(&guests, |(kernel, mode)| {
        let name = format!("{} {mode}", kernel.source.series);
        let report = play(kernel, mode, &name, &programs)
            .and_then(|run| judge(&run, &expected, &kernel.source.series.to_string(), mode));
        match &report {
            Ok(report) => say(&format!("guest {name}: {}", report.sum)),
            Err(error) => say(&format!("guest {name}: {error:#}")),
        }
        report
    });
    let mut failures = Vec::new();
    for ((kernel, mode), result) in guests.iter().zip(results) {
        let name = format!("{} {mode}", kernel.source.series);
        match result {
            Ok(report) => {
                println!("\n{name}: what sdtrace said\n{}{}", report.said, report.gaps);
                if !report.problems.is_empty() {
                    println!("{name}: what was expected of these\n{}", report.expected);
                    println!("{name}: problems\n{}", report.problems.join("\n"));
                    failures.push(format!("{name}: {} problems", report.problems.len()));
                }
            }
            Err(error) => failures.push(format!("{name}: {error:#}")),
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("; "));
    Ok(())
}

/// Plays the cases that the battery does not have in a guest of this kernel.
pub fn cases(kernel: Wanted) -> Result<()> {
    let programs = Programs::build()?;
    let kernel = Kernels::open()?.provide(kernel, false)?;
    let script = "cross-check case causes && cross-check case file-writes && cross-check case unknowns";
    print!("{}", case(&kernel, script, "cases", &programs)?);
    Ok(())
}

/// Plays the case of content verification: on the oldest and the newest kernel that takes fentry, or on every one.
pub fn verify(kernels: &[Wanted], extent: Extent) -> Result<()> {
    let programs = Programs::build()?;
    let cache = Kernels::open()?;
    let mut guests = Vec::new();
    for wanted in kernels {
        let kernel = cache.provide(*wanted, false)?;
        if extent == Extent::Full || OTHER_MODE.contains(&kernel.source.series) {
            guests.push((kernel, "auto"));
        }
    }
    let guests = chosen(guests)?;
    let results = two_at_a_time(&guests, |(kernel, _)| {
        let folder = format!("verify-{}", kernel.source.series);
        case(kernel, "cross-check case verify", &folder, &programs)
    });
    let mut failures = Vec::new();
    for ((kernel, _), result) in guests.iter().zip(results) {
        let series = kernel.source.series;
        match result {
            Ok(said) => println!("{series}:\n{said}"),
            Err(error) => failures.push(format!("{series}: {error:#}")),
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("; "));
    Ok(())
}

/// Runs a script in a guest of this kernel, and returns what it said.
fn case(kernel: &Kernel, script: &str, folder: &str, programs: &Programs) -> Result<String> {
    let said = Shared::default();
    let report = Guest::new(kernel.clone(), ["sh", "-c", script])
        .cpus(2)
        .append(PATIENCE)
        .file(&programs.sdtrace, "/usr/bin/sdtrace")
        .file(&programs.cross_check, "/usr/bin/cross-check")
        .out(target_dir().join("detection").join(folder))
        .timeout(TIMEOUT)
        .run(said.clone())?;
    let text = said.text();
    ensure!(
        report.outcome == Outcome::Exited(0),
        "{:?}: {}",
        report.outcome,
        text.trim()
    );
    Ok(text)
}

/// Runs one guest, and once more if the emulator lost it.
fn play(kernel: &Kernel, mode: &str, name: &str, programs: &Programs) -> Result<Run> {
    match attempt(kernel, mode, name, programs)? {
        Ok(run) => Ok(run),
        Err(lost) => {
            say(&format!("guest {name} is run again: {lost}"));
            attempt(kernel, mode, name, programs)?.map_err(|lost| anyhow::anyhow!("lost twice: {lost}"))
        }
    }
}

/// Runs one guest. The inner error says how the guest itself was lost.
fn attempt(kernel: &Kernel, mode: &str, name: &str, programs: &Programs) -> Result<Result<Run, String>> {
    let said = Shared::default();
    // Kept, because a difference is explained by the incidents.
    let out = target_dir().join("detection").join(name.replace(' ', "-"));
    let mut guest = Guest::new(kernel.clone(), ["cross-check", "battery", "--attach", mode])
        .cpus(2)
        .two_nodes(true)
        .append(PATIENCE)
        .disk(true)
        .memory_mib(1536)
        .file(&programs.sdtrace, "/usr/bin/sdtrace")
        .file(&programs.cross_check, "/usr/bin/cross-check")
        .out(&out)
        .timeout(TIMEOUT);
    for module in battery::modules(kernel)? {
        guest = guest.module(module);
    }
    // With a falsified layout some hook sees nothing, and this step must fail.
    if let Some(falsified) = env::var_os(LAYOUT_OVERRIDE) {
        guest = guest.environment(LAYOUT_OVERRIDE, &falsified.to_string_lossy());
    }
    let report = guest.run(said.clone())?;
    match report.outcome {
        Outcome::Exited(0) => {
            let path = out.join("cross-check.json");
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            Ok(Ok(
                serde_json::from_str(&text).with_context(|| path.display().to_string())?
            ))
        }
        Outcome::Exited(status) => bail!("cross-check ended with {status}: {}", said.text().trim()),
        Outcome::Interrupted => bail!("interrupted"),
        lost => Ok(Err(format!("{lost:?}"))),
    }
}

/// What is told of a guest.
struct Report {
    /// One line.
    sum: String,
    /// The table of what sdtrace said.
    said: String,
    /// The rows of the committed file that differ.
    expected: String,
    /// The gaps that were met, one a line.
    gaps: String,
    problems: Vec<String>,
}

/// Holds a run against the rules and against the committed file.
fn judge(run: &Run, expected: &Expected, on: &str, mode: &str) -> Result<Report> {
    let series = series(on)?;
    let (mut said, mut table, mut gaps) = (String::new(), String::new(), String::new());
    let mut problems: Vec<String> = run.contradictions.clone();
    let everywhere = expected.everywhere(series, mode);
    let mut known_gaps = 0;
    for played in &run.played {
        let scenario = played.battery.scenario.as_str();
        let row = expected.row(scenario, series, mode);
        let broken = rules::broken(played);
        let mut wrong = Vec::new();
        match &row {
            Ok(row) => {
                match &row.gap {
                    None => wrong.extend(broken),
                    Some(_) if broken.is_empty() => {
                        wrong.push("the gap is closed: take it out of detection.txt".to_owned());
                    }
                    Some(why) => {
                        known_gaps += 1;
                        let _ = writeln!(gaps, "  gap in {scenario}: {why} ({})", broken.join("; "));
                    }
                }
                // On a kernel that cannot do it the scenario ends half way.
                if played.battery.result != "not supported" {
                    wrong.extend(
                        row.differences(&played.said)
                            .into_iter()
                            .map(|word| format!("unexpected: {word}")),
                    );
                }
            }
            Err(error) => {
                wrong.extend(broken);
                wrong.push(error.to_string());
            }
        }
        let of_battery = everywhere.differences(&played.said_of_battery);
        wrong.extend(
            of_battery
                .into_iter()
                .map(|word| format!("unexpected of the battery's own process: {word}")),
        );
        let mark = if wrong.is_empty() { ' ' } else { '!' };
        line(&mut said, mark, played, &played.said.to_string());
        if !wrong.is_empty() {
            let text = row.map_or_else(|_| "no row".to_owned(), |row: Row| row.text());
            line(&mut table, mark, played, &text);
        }
        problems.extend(
            wrong
                .into_iter()
                .map(|problem| format!("  {scenario}: {problem}")),
        );
    }
    let names: Vec<_> = run
        .played
        .iter()
        .map(|played| played.battery.scenario.as_str())
        .collect();
    problems.extend(
        expected
            .strangers(&names)
            .map(|name| format!("  {name}: has a row and was not played")),
    );
    Ok(Report {
        sum: format!(
            "{} scenarios, {known_gaps} known gaps, {} problems",
            run.played.len(),
            problems.len()
        ),
        said,
        expected: table,
        gaps,
        problems,
    })
}

fn line(table: &mut String, mark: char, played: &Played, words: &str) {
    let Played { battery, .. } = played;
    let _ = writeln!(
        table,
        "{mark} {:<27} {:<7} {:<20} {:<13} {words}",
        battery.scenario,
        battery.class,
        battery.cause,
        battery.cell()
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(missed: u64) -> Run {
        let text = format!(
            r#"{{"contradictions": [], "played": [{{"race": false, "said_of_battery": {{}},
                "said": {{"missed:ksm-merge": {missed}}},
                "battery": {{"scenario": "ksm-merge", "class": "B", "cause": "ksm-merge", "result": "missed",
                "why": null, "pages": {{"missed": 63, "dropped": 0}}}}}}]}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn one_page_too_few_is_told_by_the_rule_and_by_the_file() {
        let expected = Expected::committed().unwrap();
        let mine = |report: Report| {
            let of_row: Vec<_> = report
                .problems
                .into_iter()
                .filter(|problem| problem.contains("ksm-merge:"))
                .collect();
            of_row
        };
        assert!(mine(judge(&run(63), &expected, "6.1", "auto").unwrap()).is_empty());
        assert_eq!(mine(judge(&run(62), &expected, "6.1", "auto").unwrap()).len(), 2);
    }
}
