//! The tests that run inside a guest, against the real sdtrace on a real kernel: one boot runs them all.
//!
//! `guest-suite --attach MODE` prints one line for each test, `test NAME ... ok` or `test NAME ... FAILED: why`, and
//! one that counts them; it exits with 1 if one failed.

pub mod actor;
pub mod attached;
mod cases;
pub mod compare;
pub mod daemon;
pub mod exposition;
pub mod kept;
pub mod ledger;
mod scene;
pub mod service;
pub mod verdicts;

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use actor::Actor;
use attached::Attached;
use daemon::Daemon;
use exposition::Scrape;

/// What to run, and where.
#[derive(Clone, Debug)]
pub struct Options {
    /// `fentry` or `kprobe`.
    pub attach: String,
    /// Only tests whose name contains one of these; all when empty.
    pub only: Vec<String>,
    /// Where files go that the host shall have.
    pub out: PathBuf,
}

/// What the tests share.
struct Suite {
    options: Options,
    /// The kernel's series, such as `6.12`.
    series: String,
    /// What was attached before sdtrace was.
    before: Attached,
    /// A process that cleared itself before sdtrace started.
    adopted: Option<Actor>,
    daemon: Option<Daemon>,
    /// Probe runs that the kernel had skipped when the present test began.
    skipped_before: u64,
}

/// A test: what it is called and what it does. Each leaves things as the next expects them, or fails that one too.
struct Test {
    name: &'static str,
    run: fn(&mut Suite) -> Result<()>,
}

impl Suite {
    /// Where sdtrace listens.
    fn address() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 9955))
    }

    fn daemon(&self) -> Result<&Daemon> {
        self.daemon.as_ref().context("sdtrace is not running")
    }

    /// Probe runs that the kernel skipped during the present test.
    fn skipped(&self, scrape: &Scrape) -> Result<u64> {
        Ok(compare::skipped(scrape)? - self.skipped_before)
    }

    /// Takes note of what was skipped up to now.
    fn note_skipped(&mut self) -> Result<()> {
        self.skipped_before = match &self.daemon {
            Some(daemon) => compare::skipped(&daemon.scrape()?)?,
            None => 0,
        };
        Ok(())
    }

    fn start(&mut self, arguments: &[&str]) -> Result<()> {
        if self.daemon.is_some() {
            bail!("sdtrace is running already");
        }
        let log = self.options.out.join("sdtrace.log");
        let attach = self.options.attach.clone();
        let arguments = [&["--attach", &attach], arguments].concat();
        self.daemon = Some(Daemon::start(
            Self::address(),
            &arguments,
            &log.to_string_lossy(),
        )?);
        Ok(())
    }
}

/// The names of the tests that run when sdtrace attaches by `attach`.
#[must_use]
pub fn test_names(attach: &str) -> Vec<&'static str> {
    cases::all()
        .iter()
        .map(|test| test.name)
        .filter(|name| of_mode(name, attach))
        .collect()
}

/// Whether the test `name` runs, unasked, when sdtrace attaches by `attach`.
fn of_mode(name: &str, attach: &str) -> bool {
    !cases::IN_ONE_MODE
        .iter()
        .any(|(one, mode)| *one == name && *mode != attach)
}

/// Runs the tests. Returns whether all passed.
///
/// # Errors
/// If the machine cannot be looked at, before the first test.
pub fn run(options: Options) -> Result<bool> {
    fs::create_dir_all(&options.out).with_context(|| options.out.display().to_string())?;
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").context("/proc/sys/kernel/osrelease")?;
    let mut suite = Suite {
        series: series(&release).with_context(|| format!("kernel release {release:?}"))?,
        before: Attached::now()?,
        adopted: None,
        daemon: None,
        skipped_before: 0,
        options,
    };
    let (mut passed, mut failed) = (0, 0);
    for test in cases::all() {
        let asked = &suite.options.only;
        // Those that start and end sdtrace are always needed.
        let wanted = asked.is_empty() && of_mode(test.name, &suite.options.attach)
            || asked.iter().any(|part| test.name.contains(part))
            || cases::ALWAYS.contains(&test.name);
        if !wanted {
            continue;
        }
        let start = Instant::now();
        let result = suite.note_skipped().and_then(|()| (test.run)(&mut suite));
        let seconds = start.elapsed().as_secs_f64();
        match result {
            Ok(()) => {
                passed += 1;
                println!("test {} ... ok ({seconds:.1} s)", test.name);
            }
            Err(error) => {
                failed += 1;
                let why = format!("{error:#}").replace('\n', " ");
                println!("test {} ... FAILED: {why} ({seconds:.1} s)", test.name);
            }
        }
    }
    println!("{passed} passed, {failed} failed");
    Ok(failed == 0)
}

/// `6.12` from `6.12.95+deb13-cloud-amd64`.
fn series(release: &str) -> Option<String> {
    let mut numbers = release.trim().split(|letter: char| !letter.is_ascii_digit());
    let (major, minor) = (numbers.next()?, numbers.next()?);
    (!major.is_empty() && !minor.is_empty()).then(|| format!("{major}.{minor}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_series_is_the_first_two_numbers() {
        assert_eq!(series("6.12.95+deb13-cloud-amd64\n").as_deref(), Some("6.12"));
        assert_eq!(series("7.3~rc1-amd64").as_deref(), Some("7.3"));
        assert_eq!(series("linux"), None);
    }

    #[test]
    fn tests_have_names_of_their_own() {
        let mut names: Vec<_> = cases::all().iter().map(|test| test.name).collect();
        let in_one_mode = cases::IN_ONE_MODE.iter().map(|(name, _)| *name);
        for name in cases::ALWAYS.into_iter().chain(in_one_mode) {
            assert!(names.contains(&name), "{name}");
        }
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn every_test_runs_in_some_mode() {
        let (fentry, kprobe) = (test_names("fentry"), test_names("kprobe"));
        for test in cases::all() {
            assert!(
                fentry.contains(&test.name) || kprobe.contains(&test.name),
                "{}",
                test.name
            );
        }
        for (name, mode) in cases::IN_ONE_MODE {
            assert_eq!(test_names(mode).iter().filter(|test| **test == name).count(), 1);
            assert!(!(fentry.contains(&name) && kprobe.contains(&name)), "{name}");
        }
    }
}
