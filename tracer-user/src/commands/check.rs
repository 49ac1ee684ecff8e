//! `sdtrace check`.

use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;

use super::preflight::{self, Problem};
use super::round_trip::{self, RoundTrip};
use crate::cli::CheckArgs;
use crate::kernel::config::State;
use crate::kernel::preemption::Preemption;
use crate::kernel::survey::Survey;
use crate::probes::verdict::{AttachMode, ProbeVerdict, Verdict};
use crate::probes::{ProbeOptions, Probes, StartError};

/// Everything that `check` found out.
#[derive(Debug, Serialize)]
struct Report {
    /// Whether `run` would work.
    works: bool,
    /// What keeps it from working.
    problems: Vec<Problem>,
    /// The machine.
    #[serde(flatten)]
    survey: Survey,
    /// The proof.
    round_trip: Vec<RoundTrip>,
    /// Why the proof could not be had.
    round_trip_error: Option<String>,
    /// What became of each probe; `null` if nothing was attached because of the problems above.
    probes: Option<Vec<ProbeVerdict>>,
}

/// Finds out whether `run` would work; it attaches for real where it can, and detaches again.
pub(super) fn check(arguments: &CheckArgs) -> Result<ExitCode> {
    let report = find_out(arguments.attach);
    if arguments.json {
        super::print(&(serde_json::to_string_pretty(&report)? + "\n"))?;
    } else {
        super::print(&table(&report))?;
    }
    Ok(if report.works {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn find_out(attach: AttachMode) -> Report {
    let survey = Survey::of_this_machine(attach != AttachMode::Fentry);
    let round_trip = round_trip::round_trips().map_err(|error| format!("{error:#}"));
    let mut problems = preflight::problems(&survey, attach, &round_trip);
    let mut probes = None;
    if problems.is_empty() {
        let options = ProbeOptions {
            attach,
            ..ProbeOptions::default()
        };
        match Probes::start(&options) {
            Ok(started) => probes = Some(started.verdicts().to_vec()),
            Err(error) => {
                problems.push(start_problem(&error));
                if let StartError::Probes(verdicts) = error {
                    probes = Some(verdicts);
                }
            }
        }
    }
    Report {
        works: problems.is_empty(),
        problems,
        survey,
        round_trip_error: round_trip.as_ref().err().cloned(),
        round_trip: round_trip.unwrap_or_default(),
        probes,
    }
}

/// What an error at the start means to the user.
fn start_problem(error: &StartError) -> Problem {
    let remedy = match error {
        StartError::NoBtf(_) => "boot a kernel with CONFIG_DEBUG_INFO_BTF=y",
        StartError::Probes(_) => "see the verdicts; another --attach may work",
        _ => "run `sdtrace run --log-level debug` to see more",
    };
    Problem {
        what: error.to_string(),
        remedy: remedy.to_owned(),
    }
}

fn table(report: &Report) -> String {
    let mut text = String::new();
    let mut line = |state: &str, name: &str, about: &str| {
        let _ = writeln!(text, "{state:<12} {name:<40} {about}");
    };
    line(
        "",
        "kernel",
        report.survey.release.as_deref().unwrap_or("unknown"),
    );
    for option in &report.survey.options {
        let state = match option.state {
            State::Present => "yes",
            State::Absent => "NO",
            State::Unknown => "unknown",
        };
        line(
            state,
            option.name,
            &format!("{} ({})", option.gives, option.learned_from),
        );
    }
    let (state, about) = match report.survey.preemption {
        Preemption::Never => ("no", "programs run to their end: auto attaches by fentry"),
        Preemption::Possible => ("yes", "fentry programs would be skipped: auto attaches by kprobe"),
        Preemption::Unknown => (
            "unknown",
            "taken for yes: auto attaches by kprobe (mount debugfs to know)",
        ),
    };
    line(state, "the kernel preempts programs", about);
    for missing in &report.survey.missing_capabilities {
        line("MISSING", &missing.capability.to_string(), missing.needed_for);
    }
    if report.survey.missing_capabilities.is_empty() {
        line("yes", "capabilities", "all that are needed");
    }
    for trip in &report.round_trip {
        let state = if trip.works { "proved" } else { "NO" };
        line(state, &format!("soft-dirty in {}", trip.memory), &trip.seen);
    }
    if let Some(error) = &report.round_trip_error {
        line("NO", "soft-dirty round trip", error);
    }
    match &report.probes {
        Some(verdicts) => {
            for verdict in verdicts {
                let (state, about) = match &verdict.verdict {
                    Verdict::Attached { mechanism } => ("attached", mechanism.label().to_owned()),
                    Verdict::Unsupported { why } => ("unsupported", why.clone()),
                    Verdict::Broken { why } => ("BROKEN", why.clone()),
                };
                let because = verdict.fell_back_because.as_ref();
                let because = because.map_or_else(String::new, |why| format!(" (instead of {why})"));
                line(
                    state,
                    &format!("probe {}", verdict.probe),
                    &format!("{about}{because}"),
                );
            }
        }
        None => line("not tried", "probes", "because of the problems below"),
    }
    for note in &report.survey.unreadable {
        line("unreadable", note, "");
    }
    text.push('\n');
    if report.works {
        text.push_str("sdtrace run would work here.\n");
    } else {
        text.push_str("sdtrace run would not work here:\n");
        for problem in &report.problems {
            let _ = writeln!(text, "- {}\n  What to do: {}", problem.what, problem.remedy);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probes::verdict::Mechanism;

    #[test]
    fn the_table_says_what_is_wrong_and_what_to_do() {
        let report = Report {
            works: false,
            problems: vec![Problem {
                what: "something is missing".to_owned(),
                remedy: "get it".to_owned(),
            }],
            survey: Survey::of_this_machine(true),
            round_trip: Vec::new(),
            round_trip_error: Some("refused".to_owned()),
            probes: Some(vec![ProbeVerdict {
                probe: "do_wp_page".to_owned(),
                required: true,
                verdict: Verdict::Attached {
                    mechanism: Mechanism::Kprobe,
                },
                fell_back_because: Some("fentry: refused".to_owned()),
            }]),
        };
        let text = table(&report);
        for part in [
            "CONFIG_MEM_SOFT_DIRTY",
            "- something is missing\n  What to do: get it\n",
            "kprobe (instead of fentry: refused)",
            "soft-dirty round trip",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(
            (&json["works"], &json["problems"][0]["remedy"]),
            (&false.into(), &"get it".into())
        );
        assert!(json["options"].is_array());
    }
}
