//! `cargo xtask guest`.

use crate::failure::Usage;
use crate::guest::initramfs::GuestFile;
use crate::guest::qemu::Forward;
use crate::guest::running::Phase;
use crate::guest::{Guest, Outcome, Report, ensure_emulator};
use crate::kernels::Wanted;
use crate::kernels::fetch::Kernels;
use crate::provision::say;
use crate::workspace::{build_static, target_dir};
use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use std::ffi::OsString;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  cargo xtask guest --list
  cargo xtask guest --kernel 6.1 -- uname -a
  cargo xtask guest --kernel newest --attach fentry -- sdtrace check
  cargo xtask guest --kernel 6.12 --file ./tool:/bin/tool --out results -- sh -c 'tool >/out/log'
  cargo xtask guest --kernel 6.18 --forward 9955:9955 -- sdtrace run --listen 0.0.0.0:9955

Exit status: that of the command in the guest; 1 if the guest panicked, locked up or ran out of
time; 2 for usage; 130 if interrupted. Standard output is the command's, all else is on standard
error.";

/// Arguments of `cargo xtask guest`.
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// Kernel series (5.10, 6.1, 6.12, 6.18, …) or `newest`.
    #[arg(long, required_unless_present = "list")]
    kernel: Option<Wanted>,
    /// List the kernels that the suites offer or the cache holds, and end.
    #[arg(long, exclusive = true)]
    list: bool,
    /// Ask the suites for newer point releases first (without it, what lies in the cache is taken).
    #[arg(long)]
    refresh: bool,
    /// Virtual CPUs; they take turns, since the emulator crashes when probes are attached on truly parallel ones.
    #[arg(long, value_name = "N", default_value_t = 1)]
    smp: u32,
    /// Memory in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    memory: u32,
    /// How sdtrace shall attach: sets `SDTRACE_ATTACH` for the command.
    #[arg(long)]
    attach: Option<Attach>,
    /// Put a file or folder of this machine into the guest; may be repeated.
    #[arg(long, value_name = "LOCAL:GUEST", value_parser = parse_file)]
    file: Vec<GuestFile>,
    /// Insert a module of the kernel's package (with its dependencies) first; may be repeated.
    #[arg(long, value_name = "NAME")]
    module: Vec<String>,
    /// Copy the guest's /out into this folder at the end.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Make a port of the guest reachable on 127.0.0.1; may be repeated.
    #[arg(long, value_name = "HOSTPORT:GUESTPORT", value_parser = parse_forward)]
    forward: Vec<Forward>,
    /// Give up after this time, boot included: 90s, 5m.
    #[arg(long, value_name = "TIME", default_value = "120s", value_parser = parse_time)]
    timeout: Duration,
    /// One guest instruction is one virtual nanosecond, so that times repeat.
    #[arg(long)]
    icount: bool,
    /// Two memory nodes.
    #[arg(long)]
    numa: bool,
    /// An empty ext4 disk, mounted at /var/tmp.
    #[arg(long)]
    disk: bool,
    /// Add to the kernel's command line.
    #[arg(long, value_name = "KERNEL_CMDLINE", allow_hyphen_values = true)]
    append: Option<String>,
    /// Keep the kernel's console in this file (it is kept on failure anyway).
    #[arg(long, value_name = "FILE")]
    console: Option<PathBuf>,
    /// Do not build sdtrace first: the guest gets none.
    #[arg(long)]
    no_sdtrace: bool,
    /// The command to run in the guest.
    #[arg(last = true, value_name = "CMD", required_unless_present = "list")]
    command: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Attach {
    Kprobe,
    Fentry,
}

/// Boots, runs, and ends with the command's status.
pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let kernels = Kernels::open()?;
    let Some(wanted) = arguments.kernel.filter(|_| !arguments.list) else {
        return list(&kernels);
    };
    ensure_emulator()?;
    let sdtrace = if arguments.no_sdtrace {
        None
    } else {
        Some(build_static("tracer-user", "sdtrace")?)
    };
    let kernel = kernels.provide(wanted, arguments.refresh)?;
    let series = kernel.source.series;
    let mut guest = Guest::new(kernel, arguments.command)
        .cpus(arguments.smp)
        .memory_mib(arguments.memory)
        .instruction_clock(arguments.icount)
        .two_nodes(arguments.numa)
        .disk(arguments.disk)
        .timeout(arguments.timeout)
        .append(arguments.append.as_deref().unwrap_or_default());
    if let Some(attach) = arguments.attach {
        let mode = match attach {
            Attach::Kprobe => "kprobe",
            Attach::Fentry => "fentry",
        };
        guest = guest.environment("SDTRACE_ATTACH", mode);
    }
    if let Some(sdtrace) = sdtrace {
        guest = guest.file(sdtrace, "/usr/bin/sdtrace");
    }
    for file in arguments.file {
        guest = guest.file(file.local, &file.guest);
    }
    for module in &arguments.module {
        guest = guest.module(module);
    }
    for forward in arguments.forward {
        guest = guest.forward(forward.host, forward.guest);
    }
    if let Some(out) = arguments.out {
        guest = guest.out(out);
    }
    let report = guest.run(std::io::stdout())?;
    if let Some(path) = &arguments.console {
        fs::write(path, &report.console).with_context(|| format!("cannot write {}", path.display()))?;
    }
    for line in report.problems.iter().chain(&report.warnings) {
        say(&format!("guest {series}: {line}"));
    }
    let boot = report.boot.map_or("no boot".to_owned(), |boot| {
        format!("boot {:.1} s", boot.as_secs_f64())
    });
    say(&format!(
        "guest {series} ({}): {boot}, total {:.1} s",
        report.release.as_deref().unwrap_or("unknown"),
        report.total.as_secs_f64()
    ));
    end(&series.to_string(), &report)
}

/// Tells how the guest ended.
fn end(series: &str, report: &Report) -> Result<ExitCode> {
    let reason = match &report.outcome {
        Outcome::Exited(status) => return Ok(ExitCode::from(*status)),
        Outcome::Interrupted => {
            say("interrupted, the guest is gone");
            return Ok(ExitCode::from(130));
        }
        Outcome::Panicked(line) => format!("the kernel panicked: {line}"),
        Outcome::LockedUp(line) => format!("the kernel locked up: {line}"),
        Outcome::TimedOut(phase) => format!(
            "timed out while {} (--timeout gives it more time)",
            match phase {
                Phase::Booting => "booting",
                Phase::Running => "the command ran",
                Phase::Finishing => "it carried /out over",
            }
        ),
        Outcome::Died(words) => format!("the emulator ended without a word from the guest: {words}"),
    };
    let folder = target_dir().join("guest");
    fs::create_dir_all(&folder)?;
    let log = folder.join(format!("console-{series}-{}.log", std::process::id()));
    fs::write(&log, &report.console).with_context(|| format!("cannot write {}", log.display()))?;
    let lines: Vec<_> = report.console.lines().collect();
    eprintln!("--- the end of the kernel's console ---");
    for line in &lines[lines.len().saturating_sub(60)..] {
        eprintln!("{line}");
    }
    eprintln!("--- all of it: {} ---", log.display());
    anyhow::bail!("guest {series}: {reason}")
}

fn list(kernels: &Kernels) -> Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{:<8}{:<26}{:<20}{:<10}{:<22}package",
        "series", "version", "suite", "modules", "cached"
    )?;
    for offer in kernels.list(true).or_else(|error| {
        say(&format!(
            "the suites cannot be asked ({error:#}); this is what they offered last"
        ));
        kernels.list(false)
    })? {
        let candidate = &offer.candidate;
        writeln!(
            out,
            "{:<8}{:<26}{:<20}{:<10}{:<22}{}",
            candidate.series.to_string(),
            candidate.version,
            candidate.suite,
            if candidate.modules.is_some() {
                "yes"
            } else {
                "gone"
            },
            offer.cached.as_deref().unwrap_or("-"),
            candidate.image
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

fn parse_file(text: &str) -> Result<GuestFile, Usage> {
    let refuse = || {
        Usage(format!(
            "`{text}` is not LOCAL:GUEST; write it like ./tool:/bin/tool"
        ))
    };
    let (local, guest) = text.rsplit_once(':').ok_or_else(refuse)?;
    if local.is_empty() || !guest.starts_with('/') {
        return Err(refuse());
    }
    Ok(GuestFile {
        local: local.into(),
        guest: guest.to_owned(),
    })
}

fn parse_forward(text: &str) -> Result<Forward, Usage> {
    let refuse = || {
        Usage(format!(
            "`{text}` is not HOSTPORT:GUESTPORT; write it like 9955:80"
        ))
    };
    let (host, guest) = text.split_once(':').ok_or_else(refuse)?;
    let port = |text: &str| {
        text.parse::<u16>()
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(refuse)
    };
    Ok(Forward {
        host: port(host)?,
        guest: port(guest)?,
    })
}

pub(super) fn parse_time(text: &str) -> Result<Duration, Usage> {
    let refuse = || Usage(format!("`{text}` is no time; write it like 90s or 5m"));
    let (number, unit) = text.split_at(
        text.find(|letter: char| !letter.is_ascii_digit())
            .unwrap_or(text.len()),
    );
    let number: u64 = number.parse().map_err(|_| refuse())?;
    let seconds = match unit {
        "" | "s" => Some(number),
        "m" => number.checked_mul(60),
        "h" => number.checked_mul(3600),
        _ => None,
    };
    seconds
        .filter(|seconds| *seconds > 0)
        .map(Duration::from_secs)
        .ok_or_else(refuse)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_their_units() {
        assert_eq!(parse_time("90").unwrap(), Duration::from_secs(90));
        assert_eq!(parse_time("90s").unwrap(), Duration::from_secs(90));
        assert_eq!(parse_time("5m").unwrap(), Duration::from_mins(5));
        for text in ["", "s", "0s", "-1s", "5 m", "1d", "99999999999999999999"] {
            assert!(parse_time(text).is_err(), "{text}");
        }
    }

    #[test]
    fn pairs_are_read_and_halves_refused() {
        let file = parse_file("/a:b:/bin/tool").unwrap();
        assert_eq!((file.local, file.guest.as_str()), ("/a:b".into(), "/bin/tool"));
        for text in ["tool", ":/bin/tool", "tool:bin/tool", "tool:"] {
            assert!(parse_file(text).is_err(), "{text}");
        }
        assert_eq!(
            parse_forward("9955:80").unwrap(),
            Forward {
                host: 9955,
                guest: 80
            }
        );
        for text in ["9955", "0:80", "80:0", "a:b", "70000:80"] {
            assert!(parse_forward(text).is_err(), "{text}");
        }
    }
}
