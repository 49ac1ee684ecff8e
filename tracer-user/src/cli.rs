//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::error::ErrorKind;
use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use tracer_common::settings::{MAX_CGROUPS, MAX_COMMS, MAX_PIDS};

use crate::ledger::Limits;
use crate::probes::verdict::AttachMode;
use crate::probes::{self, self_test};

/// Where `/metrics` is by default: on this machine only.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:9955";

/// Finds, while it happens, every write that Linux's soft-dirty tracking misses.
#[derive(Debug, Parser)]
#[command(name = "sdtrace", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Trace, and serve /metrics until SIGTERM or SIGINT.
    ///
    /// Without --pid, --comm and --cgroup every address space is tracked from its first clear on. With more than one
    /// of them, a process must pass each kind; one value of each kind is enough.
    Run(Box<RunArgs>),
    /// Tell what this kernel offers and whether `run` would work; exit 0 only if it would.
    Check(CheckArgs),
    /// Print the ledger of a running sdtrace as JSON.
    Dump(DumpArgs),
    /// Do each known thing that makes soft-dirty miss a write, and say what happened.
    Battery(crate::battery::Args),
    /// Print docs/metrics.md.
    #[command(hide = true)]
    MetricsDocs,
    /// Play the child of the self-test.
    #[command(hide = true, name = self_test::SUBCOMMAND)]
    SelfTestChild,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Arguments of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Address and port for /metrics, /healthz, /readyz and /debug/ledger.
    #[arg(long, env = "SDTRACE_LISTEN", value_name = "ADDRESS:PORT", default_value = DEFAULT_LISTEN)]
    pub listen: SocketAddr,
    /// How to attach: auto takes fentry where it can be had and kprobe elsewhere.
    #[arg(long, env = "SDTRACE_ATTACH", value_enum, default_value_t)]
    pub attach: AttachMode,
    /// In kprobe mode, attach a return probe to `do_wp_page` too: faults are then counted when they end, and
    /// their handling time is measured. It costs every such fault of the machine.
    #[arg(long)]
    pub fault_return: bool,
    /// Log every fault of a tracked address space, for debugging.
    #[arg(long)]
    pub trace_faults: bool,
    /// Track only this process (its forks are not followed); may be given up to 32 times.
    #[arg(long = "pid", value_name = "PID", value_parser = clap::value_parser!(u32).range(1..=4_194_304))]
    pub pids: Vec<u32>,
    /// Track only processes of this name, as /proc/PID/comm shows it; may be given up to 8 times.
    #[arg(long = "comm", value_name = "NAME", value_parser = parse_comm)]
    pub comms: Vec<String>,
    /// Track only processes in this cgroup (version 2) and below it; may be given up to 8 times.
    #[arg(long = "cgroup", value_name = "PATH")]
    pub cgroups: Vec<PathBuf>,
    /// End after this time, with a summary; for example 30s or 5m.
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration)]
    pub duration: Option<Duration>,
    /// How log lines look.
    #[arg(long, value_enum, default_value_t)]
    pub log_format: LogFormat,
    /// Least important level that is logged: error, warn, info, debug, trace.
    #[arg(long, env = "SDTRACE_LOG", value_name = "LEVEL", default_value = "info")]
    pub log_level: tracing::Level,
    /// What the ledger keeps.
    #[command(flatten)]
    pub keep: Keep,
}

/// Bounds of memory.
#[derive(Clone, Copy, Debug, Args)]
pub struct Keep {
    /// Ended address spaces that the ledger keeps, 0 to 65536.
    #[arg(long, value_name = "COUNT", default_value_t = Limits::default().ended_address_spaces)]
    pub keep_ended: usize,
    /// Closed epochs that the ledger keeps of each address space, 2 to 4096.
    #[arg(long, value_name = "COUNT", default_value_t = Limits::default().closed_epochs)]
    pub keep_epochs: usize,
    /// VMA states that the ledger keeps over all epochs, 1024 to 4194304; about 200 bytes each.
    #[arg(long, value_name = "COUNT", default_value_t = Limits::default().vmas)]
    pub keep_vmas: usize,
    /// Address spaces that can be tracked at the same time; about 100 bytes of kernel memory each.
    #[arg(
        long,
        value_name = "COUNT",
        default_value_t = probes::Limits::default().address_spaces,
        value_parser = clap::value_parser!(u32).range(16..=1_048_576)
    )]
    pub max_address_spaces: u32,
    /// VMA states that the programs can count at the same time; about 420 bytes of kernel memory each.
    #[arg(
        long,
        value_name = "COUNT",
        default_value_t = probes::Limits::default().rows,
        value_parser = clap::value_parser!(u32).range(256..=1_048_576)
    )]
    pub max_vmas: u32,
}

/// Arguments of `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Print JSON instead of a table.
    #[arg(long)]
    pub json: bool,
    /// How `run` would attach.
    #[arg(long, env = "SDTRACE_ATTACH", value_enum, default_value_t)]
    pub attach: AttachMode,
}

/// Arguments of `dump`.
#[derive(Debug, Args)]
pub struct DumpArgs {
    /// Where the running sdtrace listens.
    #[arg(
        long,
        env = "SDTRACE_URL",
        default_value_t = format!("http://{DEFAULT_LISTEN}"),
        value_parser = NonEmptyStringValueParser::new()
    )]
    pub url: String,
    /// Seconds to wait for the answer.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub timeout: u64,
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("it must be longer than 0".to_owned()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(format!("{error}; write it as 30s, 5m or 1h30m")),
    }
}

fn parse_comm(text: &str) -> Result<String, String> {
    if (1..=15).contains(&text.len()) {
        Ok(text.to_owned())
    } else {
        Err("the kernel keeps names of 1 to 15 bytes; give it as /proc/PID/comm shows it".to_owned())
    }
}

/// A mistake on the command line, in one line; exit with 2.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

impl RunArgs {
    /// The ledger's limits.
    ///
    /// # Errors
    /// If one is out of its range, or if there are more filters than the programs have room for.
    pub fn checked_limits(&self) -> Result<Limits, UsageError> {
        let given = [
            ("--pid", self.pids.len(), MAX_PIDS),
            ("--comm", self.comms.len(), MAX_COMMS),
            ("--cgroup", self.cgroups.len(), MAX_CGROUPS),
        ];
        for (flag, count, most) in given {
            if count > most {
                return Err(UsageError(format!(
                    "{flag} can be given at most {most} times, not {count}; filter by --cgroup instead"
                )));
            }
        }
        let limits = Limits {
            ended_address_spaces: self.keep.keep_ended,
            closed_epochs: self.keep.keep_epochs,
            vmas: self.keep.keep_vmas,
        };
        limits.checked().map_err(|error| UsageError(error.to_string()))
    }
}

/// What the command line says.
#[derive(Debug)]
pub enum Parsed {
    /// A command.
    Command(Command),
    /// Text that was asked for: help or version.
    Text(String),
}

/// Reads the command line.
///
/// # Errors
/// If it cannot be understood.
pub fn parse(arguments: impl IntoIterator<Item = std::ffi::OsString>) -> Result<Parsed, UsageError> {
    match Cli::try_parse_from(arguments) {
        Ok(cli) => Ok(Parsed::Command(cli.command)),
        Err(error) => match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
                Ok(Parsed::Text(error.render().to_string()))
            }
            ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
                let names: Vec<_> = Cli::command()
                    .get_subcommands()
                    .filter(|command| !command.is_hide_set())
                    .map(|command| command.get_name().to_owned())
                    .collect();
                Err(UsageError(format!(
                    "say what to do: {}; try `sdtrace --help`",
                    names.join(", ")
                )))
            }
            _ => Err(UsageError(one_line(&error.render().to_string()))),
        },
    }
}

/// The message of clap in one line: what is wrong, the tips, and where to look.
fn one_line(rendered: &str) -> String {
    let message: Vec<_> = rendered
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .filter(|line| !line.is_empty())
        .map(|line| line.trim_start_matches("error: ").trim_start_matches("tip: "))
        .collect();
    format!("{}; try --help", message.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Parsed, UsageError> {
        parse(line.split(' ').map(Into::into))
    }

    fn run(line: &str) -> RunArgs {
        match read(line) {
            Ok(Parsed::Command(Command::Run(arguments))) => *arguments,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn run_has_defaults_and_takes_filters() {
        let defaults = run("sdtrace run");
        assert_eq!(defaults.listen.to_string(), DEFAULT_LISTEN);
        assert_eq!(defaults.checked_limits(), Ok(Limits::default()));
        let filtered = run("sdtrace run --pid 7 --pid 8 --comm redis --for 1m30s --attach kprobe");
        assert_eq!(
            (filtered.pids, filtered.comms),
            (vec![7, 8], vec!["redis".to_owned()])
        );
        assert_eq!(filtered.duration, Some(Duration::from_secs(90)));
        assert_eq!(filtered.attach, AttachMode::Kprobe);
    }

    #[test]
    fn every_mistake_is_one_line() {
        for (line, expected) in [
            (
                "sdtrace run --nonsense",
                "unexpected argument '--nonsense' found; try --help",
            ),
            ("sdtrace run --for 0s", "it must be longer than 0"),
            ("sdtrace run --for soon", "write it as 30s"),
            ("sdtrace run --comm aaaaaaaaaaaaaaaa", "1 to 15 bytes"),
            ("sdtrace run --listen 9955", "--listen"),
            (
                "sdtrace run --attach magic",
                "possible values: auto, fentry, kprobe",
            ),
            ("sdtrace run --pid 0", "--pid"),
            ("sdtrace run --max-vmas 1", "1 is not in 256..=1048576"),
            ("sdtrace", "say what to do: run, check, dump"),
            ("sdtrace rum", "unrecognized subcommand 'rum'"),
        ] {
            let error = read(line).unwrap_err().0;
            assert!(error.contains(expected), "{line}: {error}");
            assert!(!error.contains('\n'), "{line}: {error}");
        }
    }

    #[test]
    fn limits_are_checked() {
        let error = run("sdtrace run --keep-epochs 1").checked_limits().unwrap_err();
        assert_eq!(error.0, "closed epochs must lie between 2 and 4096, not 1");
        let many = format!("sdtrace run{}", " --comm a".repeat(9));
        let error = run(&many).checked_limits().unwrap_err().0;
        assert!(
            error.starts_with("--comm can be given at most 8 times, not 9"),
            "{error}"
        );
    }
}
