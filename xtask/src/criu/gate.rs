//! Inside the guest: packaging/examples/predump-gate.sh, as users get it, checkpoints an oracle by CRIU and asks sdtrace
//! after each step. With nothing wrong it must come to an incremental checkpoint, or refuse for [`KNOWN`] reasons alone; with
//! KSM it must refuse and name it. Either way a restore must bring back what the oracle had.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use super::guest::{Ksm, PRE_DUMPS, THREADS, WRITING};
use super::images::{Image, restored};
use crate::oracle::{Oracle, Settings};
use crate::workload::proc::PAGE;

/// The script, as it is installed in the guest.
pub const SCRIPT: &str = "/usr/bin/predump-gate.sh";
/// How long it may take, by the guest's clock, which was seen to run several times too fast.
const PATIENCE: Duration = Duration::from_mins(30);
const INCREMENTAL: i32 = 0;
const IN_FULL: i32 = 10;

/// What came of one run of the script.
#[derive(Clone, Debug, Serialize)]
pub struct Gated {
    /// Whether KSM ran.
    pub ksm: bool,
    /// How the script ended.
    pub exit: Option<i32>,
    /// What it said, the verdicts included.
    pub said: Vec<String>,
    /// Times that the oracle wrote in between.
    pub rounds: usize,
    /// Pages whose restored content was compared.
    pub restored: u64,
    /// Pages that a restore would bring back with an old content, by area.
    pub stale: BTreeMap<String, usize>,
    /// What is not as it must be.
    pub failures: Vec<String>,
}

/// Runs the script once.
///
/// # Errors
/// If something does not work at all.
pub fn run(ksm: bool, out: &Path) -> Result<Gated> {
    let _ksm = ksm.then(Ksm::start).transpose()?;
    let folder = PathBuf::from(if ksm { "/tmp/gate-ksm" } else { "/tmp/gate" });
    fs::create_dir_all(&folder)?;
    let pause = Pause::new(&folder)?;
    let log = out.join(if ksm { "gate-ksm.log" } else { "gate.log" });
    let mut oracle = Oracle::start(
        std::env::current_exe()?,
        Settings {
            threads: THREADS,
            pages: 256,
            pace: 5,
            mergeable: true,
        },
    )?;
    let file = File::create(&log).with_context(|| log.display().to_string())?;
    let mut script = Command::new(SCRIPT)
        .arg(oracle.pid().to_string())
        .arg(&folder)
        .args(["--network-lock", "skip"])
        .env("ROUNDS", PRE_DUMPS.to_string())
        .env("BETWEEN", &pause.program)
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .spawn()
        .with_context(|| format!("cannot start {SCRIPT}"))?;
    let (mut content, mut rounds, start) = (Vec::new(), 0, Instant::now());
    let status = loop {
        if let Some(status) = script.try_wait()? {
            break status;
        }
        if pause.is_asked_for()? {
            oracle.go()?;
            thread::sleep(WRITING);
            oracle.pause()?;
            if ksm {
                Ksm::wait()?;
            }
            content = oracle.content()?;
            rounds += 1;
            pause.end()?;
        }
        if start.elapsed() > PATIENCE {
            script.kill()?;
        }
        thread::sleep(Duration::from_millis(5));
    };
    let said = fs::read_to_string(&log)?.lines().map(str::to_owned).collect();
    let mut gated = Gated {
        ksm,
        exit: status.code(),
        said,
        rounds,
        restored: 0,
        stale: BTreeMap::new(),
        failures: Vec::new(),
    };
    if matches!(gated.exit, Some(INCREMENTAL | IN_FULL)) {
        restore(&mut gated, &oracle, &content, &folder)?;
    } else {
        // What CRIU said last is for the host to see.
        let logs = (1..=PRE_DUMPS + 2)
            .rev()
            .map(|number| folder.join(format!("{number}/criu.log")));
        if let Some(last) = logs.into_iter().find(|log| log.exists()) {
            fs::copy(last, out.join("gate-criu.log"))?;
        }
    }
    gated.failures = failures(&gated);
    Ok(gated)
}

/// Compares what a restore would bring back with what the oracle had.
fn restore(gated: &mut Gated, oracle: &Oracle, content: &[Vec<u64>], folder: &Path) -> Result<()> {
    let newest = (1..=PRE_DUMPS + 2)
        .rev()
        .map(|number| folder.join(number.to_string()))
        .find(|images| images.exists())
        .context("the script made no images")?;
    let mut chain = Vec::new();
    let mut images = Some(newest);
    while let Some(folder) = images {
        chain.push(Image::read(&folder, &oracle.pid().to_string())?);
        // CRIU links to what it was given as --prev-images-dir.
        images = fs::canonicalize(folder.join("parent")).ok();
    }
    for (info, content) in oracle.areas.iter().zip(content).filter(|(info, _)| !info.shared) {
        for (number, expected) in content.iter().enumerate() {
            gated.restored += 1;
            let address = info.start + (number * PAGE) as u64;
            if restored(&chain, address)? != Some(*expected) {
                *gated.stale.entry(info.name.clone()).or_default() += 1;
            }
        }
    }
    Ok(())
}

/// What is not as it must be.
fn failures(gated: &Gated) -> Vec<String> {
    let mut failures = Vec::new();
    let mut must = |holds: bool, what: &str| {
        if !holds {
            failures.push(format!("{what}; it said: {}", gated.said.join(" | ")));
        }
    };
    must(
        gated.rounds == PRE_DUMPS,
        &format!("the oracle wrote {} times, not after each pre-dump", gated.rounds),
    );
    let refused = gated
        .said
        .iter()
        .any(|line| line.ends_with("not to be relied on"));
    if gated.ksm {
        let named = gated.said.iter().any(|line| line.contains("missed: ksm-merge"));
        must(
            gated.exit == Some(IN_FULL) && refused && named,
            &format!(
                "the gate must refuse what KSM has cost and name it, it ended with {:?}",
                gated.exit
            ),
        );
    } else {
        must(
            gated.exit == Some(INCREMENTAL) && !refused,
            &format!(
                "the gate must pass what nothing has touched, it ended with {:?}",
                gated.exit
            ),
        );
    }
    must(
        gated.restored > 0 && gated.stale.is_empty(),
        &format!(
            "of {} pages a restore would bring back old ones: {:?}",
            gated.restored, gated.stale
        ),
    );
    failures
}

/// The part of the table that is printed.
#[must_use]
pub fn table(gated: &Gated) -> String {
    let mut text = format!(
        "gate {} KSM: exit {:?}, {} pages restored, {:?} with an old content\n",
        if gated.ksm { "with" } else { "without" },
        gated.exit,
        gated.restored,
        gated.stale
    );
    for line in &gated.said {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {line}");
    }
    for failure in &gated.failures {
        let _ = writeln!(text, "  FAILED: {failure}");
    }
    text
}

/// What the script does between two checkpoints: it waits until the oracle has written.
struct Pause {
    program: PathBuf,
    asked: PathBuf,
    go: PathBuf,
}

impl Pause {
    fn new(folder: &Path) -> Result<Self> {
        let pause = Self {
            program: folder.join("between"),
            asked: folder.join("asked"),
            go: folder.join("go"),
        };
        let text = format!(
            "#!/bin/sh\n: >{}\nuntil rm {} 2>/dev/null; do usleep 10000; done\n",
            pause.asked.display(),
            pause.go.display()
        );
        fs::write(&pause.program, text)?;
        fs::set_permissions(&pause.program, Permissions::from_mode(0o755))?;
        Ok(pause)
    }

    fn is_asked_for(&self) -> Result<bool> {
        let asked = self.asked.exists();
        if asked {
            fs::remove_file(&self.asked)?;
        }
        Ok(asked)
    }

    fn end(&self) -> Result<()> {
        ensure!(!self.go.exists(), "the script does not go on");
        File::create(&self.go)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gated(ksm: bool, exit: i32, said: &[&str]) -> Gated {
        Gated {
            ksm,
            exit: Some(exit),
            said: said.iter().map(|&line| line.to_owned()).collect(),
            rounds: PRE_DUMPS,
            restored: 9,
            stale: BTreeMap::new(),
            failures: Vec::new(),
        }
    }

    const REFUSED: [&str; 3] = [
        "broken: process 7 (oracle), epoch 1",
        "  missed: ksm-merge, 3 pages",
        "x/2: not to be relied on",
    ];

    #[test]
    fn the_gate_must_pass_without_ksm_and_refuse_with_it() {
        assert_eq!(
            failures(&gated(false, INCREMENTAL, &["checkpoint: x/4"])),
            Vec::<String>::new()
        );
        assert_eq!(failures(&gated(true, IN_FULL, &REFUSED)), Vec::<String>::new());
        assert_eq!(failures(&gated(true, INCREMENTAL, &[])).len(), 1);
        assert_eq!(failures(&gated(false, IN_FULL, &REFUSED)).len(), 1);
        // Refused, but not for what it was.
        assert_eq!(failures(&gated(true, IN_FULL, &REFUSED[2..])).len(), 1);
        let mut stale = gated(true, IN_FULL, &REFUSED);
        stale.stale.insert("mergeable".to_owned(), 3);
        assert_eq!(failures(&stale).len(), 1);
        let mut nothing = gated(true, IN_FULL, &REFUSED);
        nothing.restored = 0;
        assert_eq!(failures(&nothing).len(), 1);
    }
}
