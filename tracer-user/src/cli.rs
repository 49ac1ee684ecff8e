//! The command line.

mod values;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::error::ErrorKind;
use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};
use tracer_common::settings::{MAX_CGROUPS, MAX_COMMS, MAX_PIDS};

use self::values::{parse_comm, parse_duration, parse_epoch, parse_linger, parse_period};
use crate::config::{self, Here, Outside};
use crate::export::api::query::EpochName;
use crate::export::metrics::labels::{self, Label};
use crate::ledger::Limits;
use crate::probes::demand::WatchWrites;
use crate::probes::verdict::AttachMode;
use crate::probes::{self, self_test};
use crate::workload::IdPrefix;

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
    /// Without --pid, --comm, --cgroup and --container every address space is tracked from its first clear on. With
    /// more than one of them, a process must pass each kind; one value of each kind is enough. A container is a cgroup.
    ///
    /// Each flag is also a key of the configuration file (`log-level`) and a variable of the environment
    /// (`SDTRACE_LOG_LEVEL`, lists with commas between the values); flags win over variables, those over the file.
    Run(Box<RunArgs>),
    /// Tell what this kernel offers and whether `run` would work; exit 0 only if it would.
    Check(CheckArgs),
    /// Print the ledger of a running sdtrace as JSON.
    Dump(DumpArgs),
    /// Ask a running sdtrace whether the soft-dirty bits of a process can be relied on; for checkpoint scripts.
    ///
    /// Exit 0: trusted. 3: suspect, a write could have been missed or a check is incomplete. 4: broken, a write was
    /// missed. 5: unknown, because the process is not tracked, no sdtrace answers, or the epoch is not final yet. 2 is a
    /// mistake on the command line, 1 any other failure. Unless it is 0, what must be dumped in full is printed.
    Verdict(VerdictArgs),
    /// Do each known thing that makes soft-dirty miss a write, and say what happened.
    Battery(crate::battery::Args),
    /// Check and explain the configuration file.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print docs/metrics.md.
    #[command(hide = true)]
    MetricsDocs,
    /// Print docs/openapi.json.
    #[command(hide = true, name = "openapi")]
    OpenApi,
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
    /// Configuration file in TOML; without it /etc/sdtrace/sdtrace.toml, if there is one. Also `SDTRACE_CONFIG`.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Variables of the environment that look like settings and are none.
    #[arg(skip)]
    pub ignored_variables: Vec<String>,
    /// Address and port for /metrics, /healthz, /readyz and /debug/ledger.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = DEFAULT_LISTEN)]
    pub listen: SocketAddr,
    /// How to attach: auto takes fentry, or kprobe where the kernel preempts programs, and the other where that fails.
    #[arg(long, value_enum, default_value_t)]
    pub attach: AttachMode,
    /// In kprobe mode, attach a return probe to `do_wp_page` too: faults are then counted when they end, and
    /// their handling time is measured. It costs every such fault of the machine.
    #[arg(long)]
    pub fault_return: bool,
    /// When page faults are watched for writes, which costs every fault of the machine: while something is tracked, and
    /// from a read of a pagemap file on, as trackers do before their first clear; or always. With tracked, an epoch that a
    /// clear opens out of the blue is not trusted (`watch_started_late`); if the very first one must be, take always.
    #[arg(long, value_enum, default_value_t)]
    pub watch_writes: WatchWrites,
    /// With --watch-writes tracked: for how long after the last tracked process has gone, and the last read of a pagemap
    /// file, at least 1s.
    #[arg(long, value_name = "DURATION", value_parser = parse_linger, default_value = "1m")]
    pub watch_writes_for: Duration,
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
    /// Track only processes in this container, by its id or the beginning of it; it must run when sdtrace starts. Up to
    /// 8 times, those of --cgroup included.
    #[arg(long = "container", value_name = "ID")]
    pub containers: Vec<IdPrefix>,
    /// End after this time, with a summary; for example 30s or 5m.
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration)]
    pub duration: Option<Duration>,
    /// How log lines look.
    #[arg(long, value_enum, default_value_t)]
    pub log_format: LogFormat,
    /// Least important level that is logged: error, warn, info, debug, trace.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: tracing::Level,
    /// Put this label on every metric, cluster=berlin for instance; may be given up to 32 times.
    #[arg(long = "label", value_name = "NAME=VALUE")]
    pub labels: Vec<Label>,
    /// Metrics by workload (container or systemd unit) for the COUNT with the most faults, the rest as one; up to 200.
    /// Without it, none.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=200))]
    pub top_workloads: Option<u16>,
    /// Append each incident to this file as a line of JSON, when it is found and when its epoch is over; - is
    /// standard output. docs/incidents.md explains the lines.
    #[arg(long, value_name = "FILE")]
    pub incident_log: Option<PathBuf>,
    /// How often sdtrace reads the pagemap of tracked processes itself, so that their page tables are audited
    /// between the tracker's own reads; 0s: never.
    #[arg(long, value_name = "DURATION", value_parser = parse_period, default_value = "1s")]
    pub audit_period: Duration,
    /// How many MiB of address space it reads each time, over all processes; the rest waits for its turn.
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u64).range(1..=16_777_216))]
    pub audit_budget: u64,
    /// How many clean pages of each tracked address space are drawn by chance after a clear, and whose content is compared
    /// later: another content without the soft-dirty bit proves a missed write, whatever made it. 0: none. It reads the
    /// memory of tracked processes, and keeps a digest of each page only.
    #[arg(long, value_name = "COUNT", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=65_536))]
    pub verify_pages: u32,
    /// How many MiB of memory may be read for that in a second, over all processes.
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=4096))]
    pub verify_budget: u64,
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
    /// Pieces of 2 MiB in which writes of the present epochs can be noted; about 1170 bytes of kernel memory each, so
    /// 585 KiB for each GiB that is written all over. An epoch in which they run out is not trusted.
    #[arg(
        long,
        value_name = "COUNT",
        default_value_t = probes::Limits::default().page_records,
        value_parser = clap::value_parser!(u32).range(64..=1_048_576)
    )]
    pub max_page_records: u32,
}

/// What to do with the configuration file.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check the file and tell what `run` would use, and where each setting comes from; exit 2 if it would not start.
    ///
    /// Variables of the environment count, as they would for `run`.
    Check {
        /// The file; without it the one that `run` would read.
        file: Option<PathBuf>,
    },
    /// Print a file with every setting, its meaning and its default.
    Example,
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

/// Arguments of `verdict`.
#[derive(Debug, Args)]
pub struct VerdictArgs {
    /// The process, as it is called in the pid namespace of whoever asks.
    #[arg(value_name = "PID", value_parser = clap::value_parser!(u32).range(1..=4_194_304))]
    pub pid: u32,
    /// Which epoch: its number; `last`, between the two newest clears (after a pre-dump: what it was to read); `open`,
    /// since the newest clear, as far as is known now.
    #[arg(long, value_name = "EPOCH", default_value = "last", value_parser = parse_epoch)]
    pub epoch: EpochName,
    /// Wait until the epoch is final: about a second after its end.
    #[arg(long)]
    pub wait: bool,
    /// Seconds that --wait waits at most.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub timeout: u64,
    /// When the process started, as field 22 of /proc/PID/stat shows it; needed for a process that has ended.
    #[arg(long, value_name = "TICKS")]
    pub start_time: Option<u64>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Where the running sdtrace listens.
    #[arg(
        long,
        env = "SDTRACE_URL",
        default_value_t = format!("http://{DEFAULT_LISTEN}"),
        value_parser = NonEmptyStringValueParser::new()
    )]
    pub url: String,
}

/// A mistake on the command line, in one line; exit with 2.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// A setting that its parser takes and that cannot be used all the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Name of the flag, without dashes.
    pub flag: &'static str,
    /// What is wrong, and what to do.
    pub why: String,
}

impl From<Refused> for UsageError {
    fn from(refused: Refused) -> Self {
        Self(refused.why)
    }
}

impl RunArgs {
    /// The ledger's limits, after a look at everything that a parser of one value cannot check.
    ///
    /// # Errors
    /// If one is out of its range, or if there are more values of a flag than there is room for.
    pub fn checked_limits(&self) -> Result<Limits, Refused> {
        let by_cgroup = "filter by --cgroup instead";
        let given = [
            ("pid", self.pids.len(), MAX_PIDS, by_cgroup),
            ("comm", self.comms.len(), MAX_COMMS, by_cgroup),
            (
                "cgroup",
                self.cgroups.len(),
                MAX_CGROUPS,
                "give a cgroup that they lie in",
            ),
            (
                "container",
                self.cgroups.len() + self.containers.len(),
                MAX_CGROUPS,
                "give a --cgroup that they lie in",
            ),
            (
                "label",
                self.labels.len(),
                labels::MOST,
                "leave some to Prometheus' relabelling",
            ),
        ];
        for (flag, count, most, remedy) in given {
            if count > most {
                let why = format!("--{flag} can be given at most {most} times, not {count}; {remedy}");
                return Err(Refused { flag, why });
            }
        }
        labels::checked(&self.labels).map_err(|why| Refused { flag: "label", why })?;
        let given = Limits {
            ended_address_spaces: self.keep.keep_ended,
            closed_epochs: self.keep.keep_epochs,
            vmas: self.keep.keep_vmas,
        };
        let usual = Limits::default();
        // One at a time, to know which flag it was.
        for (flag, limits) in [
            (
                "keep-ended",
                Limits {
                    ended_address_spaces: given.ended_address_spaces,
                    ..usual
                },
            ),
            (
                "keep-epochs",
                Limits {
                    closed_epochs: given.closed_epochs,
                    ..usual
                },
            ),
            (
                "keep-vmas",
                Limits {
                    vmas: given.vmas,
                    ..usual
                },
            ),
        ] {
            limits.checked().map_err(|error| Refused {
                flag,
                why: error.to_string(),
            })?;
        }
        Ok(given)
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

/// The definition of the command line, as it is parsed.
#[must_use]
pub fn command() -> clap::Command {
    config::with_switches(Cli::command())
}

/// Reads the command line; for `run` also the environment and the configuration file.
///
/// # Errors
/// If it cannot be understood.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Parsed, UsageError> {
    parse_in(&arguments.into_iter().collect::<Vec<_>>(), &Here)
}

fn parse_in(arguments: &[OsString], outside: &impl Outside) -> Result<Parsed, UsageError> {
    let command = command();
    let matches = match command.clone().try_get_matches_from(arguments) {
        Ok(matches) => matches,
        Err(error) => return explain(&command, &error),
    };
    if matches.subcommand_name() == Some("run") {
        let (run, _) = settled_run(&command, arguments, outside)?;
        return Ok(Parsed::Command(Command::Run(Box::new(run))));
    }
    let cli = Cli::from_arg_matches(&matches).map_err(|error| UsageError(one_line(&error.to_string())))?;
    Ok(Parsed::Command(cli.command))
}

/// The arguments of `run` from all sources, checked.
///
/// # Errors
/// Names the place of the first mistake, and what to do.
///
/// # Panics
/// If the arguments are not those of `run`.
pub fn settled_run(
    command: &clap::Command,
    arguments: &[OsString],
    outside: &impl Outside,
) -> Result<(RunArgs, config::Settled), UsageError> {
    let settled = config::settle(command, arguments, outside)?;
    let run = settled
        .matches
        .subcommand_matches("run")
        .map(RunArgs::from_arg_matches);
    let mut run = run
        .expect("only a command line of run is settled")
        .map_err(|error| UsageError(one_line(&error.to_string())))?;
    run.checked_limits()
        .map_err(|refused| settled.mistake(refused.flag, &refused.why))?;
    run.config.clone_from(&settled.file);
    run.ignored_variables.clone_from(&settled.ignored);
    Ok((run, settled))
}

/// Help and version are text that was asked for; everything else is a mistake.
fn explain(command: &clap::Command, error: &clap::Error) -> Result<Parsed, UsageError> {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Ok(Parsed::Text(error.render().to_string())),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let names: Vec<_> = command
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
    }
}

/// The message of clap in one line: what is wrong, the tips, and where to look.
pub(crate) fn one_line(rendered: &str) -> String {
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
mod tests;
