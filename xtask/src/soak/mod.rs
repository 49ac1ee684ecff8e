//! `cargo xtask soak`: memory stress for minutes or hours, a tracker, and sdtrace, beside a process that knows the truth.
//!
//! [`guest`] runs inside: [`stress`] starts stress-ng in a cgroup, [`tracker`] freezes, reads and clears its processes every
//! 100 ms and holds the kernel's bits against an [`crate::oracle`], [`features`] switches what makes soft-dirty lose writes,
//! [`summary`] holds the result and [`judge`] says what must hold. This module boots the guest.

pub mod features;
pub mod guest;
pub mod judge;
pub mod pagemap;
pub mod stress;
pub mod summary;
pub mod tracker;
pub mod verdicts;

use crate::guest::{Guest, Outcome};
use crate::kernels::Wanted;
use crate::kernels::fetch::Kernels;
use crate::provision::programs::{STRESS_NG, provide};
use crate::provision::say;
use crate::workspace::{build_static, target_dir};
use anyhow::{Context as _, Result, bail, ensure};
use features::Features;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;
use summary::Summary;

/// Boot, attaching, and what stress-ng takes longer than it was told.
const BESIDE: Duration = Duration::from_mins(3);

/// What the user asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// For how long.
    pub time: Duration,
    /// On which kernel.
    pub kernel: Wanted,
    /// How sdtrace attaches.
    pub attach: String,
    /// The kernel's features.
    pub features: Features,
}

/// What came of it, and where the summary lies.
#[derive(Debug)]
pub struct Soaked {
    /// The summary.
    pub summary: Summary,
    /// Its file.
    pub path: PathBuf,
}

/// Boots a guest and runs it there. A failed check is in the summary, not an error.
pub fn run(options: &Options) -> Result<Soaked> {
    let sdtrace = build_static("tracer-user", "sdtrace")?;
    let soak = build_static("xtask", "soak")?;
    let stress = provide(&STRESS_NG)?;
    let kernel = Kernels::open()?.provide(options.kernel, false)?;
    let features = match options.features {
        Features::Off => "off",
        Features::On => "on",
    };
    let out = target_dir()
        .join("soak")
        .join(format!("{}-{}-{features}", kernel.source.series, options.attach));
    // A summary of an earlier run must not be taken for this one's.
    let path = out.join("soak.json");
    if path.exists() {
        fs::remove_file(&path).with_context(|| path.display().to_string())?;
    }
    say(&format!(
        "soaking kernel {} for {} s, features {features}",
        kernel.source.series,
        options.time.as_secs()
    ));
    let seconds = options.time.as_secs().to_string();
    let command = ["soak", "run", "--seconds", &seconds, "--attach", &options.attach];
    let mut guest = Guest::new(kernel, [&command[..], &["--features", features]].concat());
    if options.features == Features::Off {
        // From the first moment on: pages that were chosen before it is switched off are still moved afterwards.
        guest = guest.append("numa_balancing=disable");
    }
    let report = guest
        .cpus(2)
        .two_nodes(true)
        .memory_mib(1536)
        .file(sdtrace, "/usr/bin/sdtrace")
        .file(soak, "/usr/bin/soak")
        .file(stress, "/")
        .out(&out)
        .timeout(options.time + BESIDE)
        .run(std::io::stderr())?;
    match report.outcome {
        Outcome::Exited(0 | 1) => {}
        lost => {
            let log = out.join("console.log");
            fs::create_dir_all(&out)?;
            fs::write(&log, &report.console)?;
            bail!(
                "the guest was lost: {lost:?} (its console is in {})",
                log.display()
            );
        }
    }
    let text = fs::read_to_string(&path).context("the guest left no summary; what it said is above")?;
    let mut summary: Summary = serde_json::from_str(&text).context("the guest's summary cannot be read")?;
    if !report.warnings.is_empty() {
        summary
            .failures
            .push(format!("the kernel warned: {}", report.warnings.join("; ")));
        fs::write(&path, serde_json::to_vec_pretty(&summary)?)?;
    }
    Ok(Soaked { summary, path })
}

/// The test step: some minutes with everything off, and all must be well.
pub fn test(kernel: Wanted, time: Duration) -> Result<()> {
    let soaked = run(&Options {
        time,
        kernel,
        attach: "fentry".to_owned(),
        features: Features::Off,
    })?;
    let failures = &soaked.summary.failures;
    ensure!(failures.is_empty(), "{}", failures.join("; "));
    Ok(())
}
