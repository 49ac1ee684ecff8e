//! Runs each scenario in a process of its own, with a time limit, and a guard beside it if it changes the host.

use std::collections::VecDeque;
use std::io::{IsTerminal as _, Read};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::Args;
use super::outcome::{Outcome, Tally, Verdict};
use super::restore::Guard;
use super::scenarios::Scenario;
use super::sys;

/// How long one scenario may take. Under an emulator the slowest takes a few seconds.
const TIME_LIMIT: Duration = Duration::from_mins(2);

/// How often the end of a scenario is looked for.
const POLL: Duration = Duration::from_millis(2);

/// The result of one scenario.
#[derive(Debug)]
pub struct ScenarioResult {
    /// What was run.
    pub scenario: &'static Scenario,
    /// What it found.
    pub outcome: Outcome,
    /// How long it took.
    pub took: Duration,
}

/// All results.
#[derive(Debug)]
pub struct Report {
    /// In the order of the table of scenarios.
    pub results: Vec<ScenarioResult>,
    /// SIGINT or SIGTERM came before the end.
    pub interrupted: bool,
    /// What could not be put back on the host.
    pub not_restored: Vec<String>,
}

impl Report {
    /// Whether the battery itself failed somewhere.
    pub fn failed(&self) -> bool {
        !self.not_restored.is_empty()
            || self
                .results
                .iter()
                .any(|result| matches!(result.outcome.verdict, Verdict::Failed { .. }))
    }
}

/// Runs `scenarios` one after the other.
///
/// # Errors
/// The battery's own program or its signal handlers could not be set up.
pub fn run(scenarios: &[&'static Scenario], args: &Args) -> Result<Report, String> {
    let program =
        std::env::current_exe().map_err(|error| format!("finding the battery's own program: {error}"))?;
    sys::note_interrupts().map_err(|error| format!("installing signal handlers: {error}"))?;
    let mut report = Report {
        results: Vec::new(),
        interrupted: false,
        not_restored: Vec::new(),
    };
    let progress = progress_bar(scenarios.len());
    for scenario in scenarios {
        progress.set_message(scenario.name);
        let started = Instant::now();
        let guard = if scenario.disruptive {
            Some(Guard::start(&program).map_err(|error| format!("starting the guard: {error}"))?)
        } else {
            None
        };
        let verdict = run_one(&program, scenario, args, guard.as_ref());
        if let Some(Err(error)) = guard.map(Guard::finish) {
            report.not_restored.push(format!("{}: {error}", scenario.name));
        }
        if sys::interrupted() {
            report.interrupted = true;
            break;
        }
        report.results.push(ScenarioResult {
            scenario,
            outcome: verdict,
            took: started.elapsed(),
        });
        progress.inc(1);
    }
    progress.finish_and_clear();
    Ok(report)
}

/// A bar on a terminal, nothing elsewhere.
fn progress_bar(length: usize) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(length as u64).with_style(style)
}

fn failed(why: String) -> Outcome {
    Outcome {
        verdict: Verdict::Failed { why },
        pages: Tally::default(),
    }
}

fn run_one(program: &Path, scenario: &Scenario, args: &Args, guard: Option<&Guard>) -> Outcome {
    let mut command = Command::new(program);
    command.args(["battery", "--child", scenario.name]);
    if let Some(rounds) = args.rounds {
        command.args(["--rounds", &rounds.to_string()]);
    }
    if args.disruptive {
        command.arg("--disruptive");
    }
    if let Some(directory) = &args.directory {
        command.arg("--directory").arg(directory);
    }
    match guard.map(Guard::pipe).transpose() {
        Ok(pipe) => command.stdin(pipe.map_or_else(Stdio::null, Stdio::from)),
        Err(error) => return failed(format!("giving the scenario the guard's pipe: {error}")),
    };
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    // The command still holds the guard's pipe, which must close with the scenario.
    drop(command);
    match child {
        Ok(child) => wait(child),
        Err(error) => failed(format!("starting the scenario's process: {error}")),
    }
}

/// Reads a pipe to its end beside the main thread, so that a full pipe never blocks the scenario.
fn drain(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // A broken pipe ends the text: what was said before it still counts.
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn wait(mut child: Child) -> Outcome {
    let output = drain(child.stdout.take());
    let errors = drain(child.stderr.take());
    let deadline = Instant::now() + TIME_LIMIT;
    let mut timed_out = false;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < deadline && !sys::interrupted() => thread::sleep(POLL),
            Ok(None) => {
                timed_out = !sys::interrupted();
                // It may have ended in between; waiting then finds that.
                let _ = child.kill();
                match child.wait() {
                    Ok(status) => break status,
                    Err(error) => return failed(format!("waiting for the scenario: {error}")),
                }
            }
            Err(error) => return failed(format!("waiting for the scenario: {error}")),
        }
    };
    let output = output.join().unwrap_or_default();
    let errors = errors.join().unwrap_or_default();
    if timed_out {
        return failed(format!("no end after {} s", TIME_LIMIT.as_secs()));
    }
    read_outcome(status, &output, &errors)
}

/// The outcome is the last line of the scenario's output; anything else is a failure of the battery.
fn read_outcome(status: ExitStatus, output: &str, errors: &str) -> Outcome {
    let said = last_lines(errors, 3);
    if let Some(signal) = status.signal() {
        return failed(format!(
            "the scenario's process was ended by signal {signal}: {said}"
        ));
    }
    match output.lines().last().map(serde_json::from_str) {
        Some(Ok(outcome)) if status.success() => outcome,
        _ => failed(format!(
            "the scenario's process gave no outcome ({status}): {said}"
        )),
    }
}

fn last_lines(text: &str, count: usize) -> String {
    let mut lines = VecDeque::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        if lines.len() == count {
            lines.pop_front();
        }
        lines.push_back(line.trim());
    }
    Vec::from(lines).join(" / ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTCOME: &str = r#"{"result":"tracked","pages":{"changed":1,"missed":0,"dropped":0,"unstable":0,"over_reported":0,"rounds":1}}"#;

    #[test]
    fn an_outcome_is_read() {
        let outcome = read_outcome(ExitStatus::from_raw(0), OUTCOME, "");
        assert_eq!(outcome.verdict, Verdict::Tracked);
    }

    #[test]
    fn a_crash_is_a_failure_of_the_battery() {
        let killed = ExitStatus::from_raw(11);
        assert!(matches!(
            read_outcome(killed, OUTCOME, "").verdict,
            Verdict::Failed { .. }
        ));
        let exited = ExitStatus::from_raw(101 << 8);
        let verdict = read_outcome(exited, "", "thread panicked\n\nat x\n").verdict;
        assert_eq!(
            verdict.why().map(|why| why.contains("thread panicked / at x")),
            Some(true)
        );
    }

    #[test]
    fn an_outcome_before_a_failed_exit_does_not_count() {
        let verdict = read_outcome(ExitStatus::from_raw(1 << 8), OUTCOME, "").verdict;
        assert!(matches!(verdict, Verdict::Failed { .. }));
    }
}
