//! `sdtrace battery`: the conformance battery of soft-dirty.
//!
//! On the running kernel it does, one by one, each known thing that can make soft-dirty miss a write, looks at the
//! content and at the bit, and says what happened. It needs neither BPF nor kprobes, only `/proc`. Each scenario runs in
//! a process of its own with a time limit. `docs/causes.md` describes the causes that it names.
//!
//! The way of the data: [`scenarios`] (what is done) → [`oracle`] (what is seen) → [`outcome`] (what it means) →
//! [`runner`] (processes, time limits) → [`report`] (table, JSON) and [`expected`] (comparison).

mod expected;
mod oracle;
mod outcome;
#[cfg(test)]
mod proofs;
mod report;
mod restore;
mod runner;
mod scenarios;
mod sys;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use expected::Expected;
use outcome::Outcome;
use scenarios::{Bench, Scenario};

/// The battery's options.
#[derive(Debug, Clone, clap::Args)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub struct Args {
    /// Run only these scenarios (names as in --list)
    #[arg(long, value_name = "NAME", num_args = 1.., value_delimiter = ',')]
    only: Vec<String>,

    /// Rounds of each scenario that is a race (default: as --list shows)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rounds: Option<u32>,

    /// Also run scenarios that change the host for as long as they run: KSM, khugepaged, huge page pool, swap, page frames,
    /// compaction, /dev/mem, sysctls. What they change is put back, also when interrupted
    #[arg(long)]
    disruptive: bool,

    /// Where to make files for the scenarios that need a disk's file system; they have no name and leave nothing behind
    /// (default: the first of $TMPDIR, /tmp, /var/tmp that lies on one)
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,

    /// Print one JSON document instead of the table
    #[arg(long)]
    json: bool,

    /// List the scenarios and run nothing
    #[arg(long)]
    list: bool,

    /// Compare with the results expected of this kernel series: the built-in table, or FILE. Exit 1 on a difference
    #[arg(long, value_name = "FILE", num_args = 0..=1)]
    #[allow(
        clippy::option_option,
        reason = "clap's form of an option whose value may be left out"
    )]
    expect: Option<Option<PathBuf>>,

    /// Run the scenarios although the kernel was found to have no soft-dirty tracking
    #[arg(long, hide = true)]
    without_support: bool,

    /// Run one scenario in this process and print its outcome (used by the battery itself)
    #[arg(long, hide = true, value_name = "NAME")]
    child: Option<String>,

    /// Put back what a scenario changed once the pipe on standard input closes (used by the battery itself)
    #[arg(long, hide = true)]
    guard: bool,
}

/// Exit status for an unusable command line.
const USAGE: u8 = 2;

/// Runs the battery and gives the exit status: 0 whatever the kernel does, 1 if the battery itself failed or `--expect`
/// found a difference, 2 for an unusable command line, 130 if interrupted.
///
/// The program's command line must have this as its `battery` subcommand, because each scenario runs as
/// `/proc/self/exe battery --child NAME`. Call it before the process starts threads.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    if args.guard {
        return restore::guard();
    }
    if let Some(name) = &args.child {
        return child(name, args);
    }
    match battery(args) {
        Ok(code) => code,
        Err(Refusal { code, message }) => {
            eprintln!("sdtrace battery: {message}");
            ExitCode::from(code)
        }
    }
}

/// A reason to end before any result.
struct Refusal {
    code: u8,
    message: String,
}

impl Refusal {
    fn usage(message: String) -> Self {
        Self { code: USAGE, message }
    }

    fn failure(message: String) -> Self {
        Self { code: 1, message }
    }
}

/// One scenario, in the process that the runner made for it.
fn child(name: &str, args: &Args) -> ExitCode {
    sys::die_with_parent();
    let Some(scenario) = scenarios::all().find(|scenario| scenario.name == name) else {
        eprintln!("no scenario is called {name}");
        return ExitCode::from(USAGE);
    };
    let bench = Bench::new(
        args.rounds.unwrap_or(scenario.rounds),
        args.disruptive && scenario.disruptive,
        args.directory.clone(),
    );
    let outcome = Outcome::from((scenario.run)(&bench));
    match serde_json::to_string(&outcome).map(|line| writeln!(std::io::stdout(), "{line}")) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn battery(args: &Args) -> Result<ExitCode, Refusal> {
    let chosen = choose(&args.only)?;
    if let Some(directory) = args.directory.as_deref().filter(|directory| !directory.is_dir()) {
        return Err(Refusal::usage(format!(
            "--directory {}: there is no such directory",
            directory.display()
        )));
    }
    if args.list {
        print(&if args.json {
            report::list_json(&chosen)
        } else {
            report::list(&chosen)
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    let release = report::kernel_release()
        .map_err(|error| Refusal::failure(format!("reading the release: {error}")))?;
    let expected = match &args.expect {
        None => None,
        Some(None) => Some(Expected::built_in(&release)),
        Some(Some(file)) => Some(Expected::read(file, &release)),
    };
    let expected = expected.transpose().map_err(Refusal::usage)?;

    let support = oracle::round_trip().map_err(|error| {
        Refusal::failure(format!(
            "testing for soft-dirty by a round trip through /proc/self: {error}"
        ))
    })?;
    if let (Err(why), false) = (&support, args.without_support) {
        print(&if args.json {
            report::unsupported_json(&release, why)
        } else {
            format!("Linux {release}: {why}\n")
        })?;
        return match expected {
            None => Ok(ExitCode::SUCCESS),
            Some(_) => Err(Refusal::failure(
                "nothing was run, so nothing could be compared".into(),
            )),
        };
    }

    let (to_run, skipped): (Vec<_>, Vec<_>) = chosen
        .into_iter()
        .partition(|scenario| args.disruptive || !scenario.disruptive);
    let report = runner::run(&to_run, args).map_err(Refusal::failure)?;
    print(&if args.json {
        report::json(&release, &report, &skipped)
    } else {
        report::table(&release, &report, &skipped)
    })?;
    if report.interrupted {
        return Ok(ExitCode::from(130));
    }
    let mut sound = !report.failed();
    if let Some(expected) = expected {
        let differences = expected.differences(&report.results);
        for difference in &differences {
            eprintln!("{difference}");
        }
        eprintln!(
            "expected results of {}: {} of {} differ",
            expected.series(),
            differences.len(),
            report.results.len()
        );
        sound &= differences.is_empty();
    }
    Ok(if sound {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The scenarios of these names, or all.
fn choose(only: &[String]) -> Result<Vec<&'static Scenario>, Refusal> {
    for name in only {
        if !scenarios::all().any(|scenario| scenario.name == name) {
            return Err(Refusal::usage(format!(
                "no scenario is called '{name}'; --list shows the names"
            )));
        }
    }
    Ok(scenarios::all()
        .filter(|scenario| only.is_empty() || only.iter().any(|name| name == scenario.name))
        .collect())
}

/// Standard output that went away (a closed pipe) is a failure and no panic.
fn print(text: &str) -> Result<(), Refusal> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|error| Refusal::failure(format!("writing to standard output: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &[&str]) -> Result<Args, clap::Error> {
        use clap::Parser as _;
        Line::try_parse_from(std::iter::once(&"battery").chain(line)).map(|line| line.args)
    }

    #[test]
    fn expect_takes_a_file_or_nothing() {
        assert_eq!(parse(&[]).expect("parses").expect, None);
        assert_eq!(parse(&["--expect"]).expect("parses").expect, Some(None));
        assert_eq!(
            parse(&["--expect", "x"]).expect("parses").expect,
            Some(Some("x".into()))
        );
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_remedy() {
        let refusal = choose(&["no-such".into()]).expect_err("is refused");
        assert_eq!(refusal.code, USAGE);
        assert!(refusal.message.contains("--list"));
    }

    #[test]
    fn zero_rounds_are_refused() {
        assert!(parse(&["--rounds", "0"]).is_err());
    }
}
