//! The Debian package under Debian's own systemd in a guest, with every protection of the unit in force: it becomes
//! ready, it is restarted when it hangs, it stops, and it is not started again after a mistake in the settings.

use super::output::Shared;
use crate::guest::{Guest, Outcome};
use crate::kernels::Wanted;
use crate::kernels::fetch::Kernels;
use crate::packaging;
use crate::provision::apt::PrivateApt;
use crate::provision::{CacheLock, cache_dir, place_atomically, run_quietly, say};
use crate::suite::service::{UNIT, ambient_capabilities};
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// The release whose systemd is taken.
const SUITE: &str = "bookworm";
/// Forty seconds on an idle host.
const TIMEOUT: Duration = Duration::from_mins(5);

/// What the guest asks and what the answers must be, in this order.
fn expected() -> Result<Vec<(&'static str, String)>> {
    let capabilities = format!("{:016x}", ambient_capabilities(UNIT)?.bits());
    let plain = |question, answer: &str| (question, answer.to_owned());
    Ok(vec![
        plain("start", "0"),
        plain("started", "active"),
        plain("status", "tracing; metrics at http://127.0.0.1:9955/metrics"),
        ("CapEff", capabilities.clone()),
        ("CapBnd", capabilities.clone()),
        ("CapAmb", capabilities),
        plain("NoNewPrivs", "1"),
        // Filters are in force.
        plain("Seccomp", "2"),
        plain("readyz", r#"{"ready":true,"reasons":[]}"#),
        plain("unreadable", "sdtrace_unreadable_processes_at_start 0"),
        plain("restarted", "active"),
        plain("restarts", "1"),
        plain("stop", "0"),
        plain("stopped", "inactive"),
        plain("result", "success"),
        plain("start with a mistake", "1"),
        plain("misconfigured", "failed"),
        plain("exit", "2"),
        plain("tries", "0"),
    ])
}

/// Runs the package in a guest of this kernel.
pub fn run(kernel: Wanted) -> Result<()> {
    let packages = packaging::make()?;
    let root = provide_root()?;
    let folder = tempfile::tempdir()?;
    let unpacked = folder.path().join("package");
    run_quietly(
        Command::new("dpkg-deb")
            .arg("--extract")
            .arg(&packages.deb)
            .arg(&unpacked),
    )?;
    let archive = folder.path().join("debian.tar");
    run_quietly(
        Command::new("tar")
            .arg("-cf")
            .arg(&archive)
            .arg("-C")
            .arg(&root)
            .arg(".")
            .arg("-C")
            .arg(&unpacked)
            .arg("."),
    )?;
    let mut guest = Guest::new(
        Kernels::open()?.provide(kernel, false)?,
        ["sh", "/service-guest.sh"],
    )
    .cpus(2)
    .memory_mib(2048)
    .timeout(TIMEOUT)
    .file(&archive, "/debian.tar");
    for (name, text) in [
        ("service-guest.sh", include_str!("guest.sh")),
        ("service-asked.sh", include_str!("asked.sh")),
        ("service-asked.service", include_str!("asked.service")),
    ] {
        let file = folder.path().join(name);
        fs::write(&file, text)?;
        guest = guest.file(file, &format!("/{name}"));
    }
    let out = tempfile::tempdir()?;
    let said = Shared::default();
    let report = guest.out(out.path()).run(said.clone())?;
    let read = |name: &str| fs::read_to_string(out.path().join(name)).unwrap_or_default();
    let answers = read("answers");
    judge(&answers).with_context(|| {
        format!(
            "{:?}\n{}\nanswers:\n{answers}\nlog of sdtrace:\n{}",
            report.outcome,
            said.text(),
            read("sdtrace.log")
        )
    })?;
    ensure!(report.outcome == Outcome::Exited(0), "{:?}", report.outcome);
    Ok(())
}

/// Holds the answers against the expected ones.
fn judge(answers: &str) -> Result<()> {
    let found = |question: &str| {
        answers
            .lines()
            .filter_map(|line| line.split_once(": "))
            .find(|(key, _)| *key == question)
            .map(|(_, answer)| answer.trim())
    };
    for (question, expected) in expected()? {
        let answer = found(question).with_context(|| format!("'{question}' was not answered"))?;
        ensure!(
            answer == expected,
            "'{question}' is answered {answer:?}, not {expected:?}"
        );
    }
    let user: u32 = found("Uid")
        .and_then(|user| user.parse().ok())
        .context("it runs as no user")?;
    // The range of transient users (systemd's UIDS-GIDS document).
    ensure!((61_184..=65_519).contains(&user), "it runs as user {user}");
    Ok(())
}

/// systemd and what it needs, without documentation.
fn provide_root() -> Result<PathBuf> {
    let root = cache_dir()?.join(format!("systemd-{SUITE}"));
    let _lock = CacheLock::acquire("systemd-root")?;
    if !root.is_dir() {
        say(&format!(
            "downloading systemd of {SUITE} and its libraries (runs the package in a guest)"
        ));
        let apt = PrivateApt::open()?;
        if !apt.has_lists() {
            apt.update()?;
        }
        place_atomically(&root, |content| {
            apt.unpack_with_dependencies("systemd", SUITE, content)?;
            for folder in ["doc", "man", "locale", "info", "lintian"] {
                let folder = content.join("usr/share").join(folder);
                if folder.is_dir() {
                    fs::remove_dir_all(&folder)?;
                }
            }
            ensure!(
                content.join("lib/systemd/systemd").is_file(),
                "there is no systemd"
            );
            Ok(())
        })?;
    }
    Ok(root)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers() -> String {
        let lines: Vec<_> = expected()
            .unwrap()
            .into_iter()
            .map(|(question, answer)| format!("{question}: {answer}\n"))
            .collect();
        lines.concat() + "Uid: 64451\n"
    }

    #[test]
    fn every_answer_counts() {
        judge(&answers()).unwrap();
        for (question, answer) in expected().unwrap() {
            let line = format!("{question}: {answer}\n");
            assert!(judge(&answers().replacen(&line, "", 1)).is_err(), "{question}");
            let wrong = format!("{question}: {answer}x\n");
            assert!(
                judge(&answers().replacen(&line, &wrong, 1)).is_err(),
                "{question}"
            );
        }
        assert!(judge(&answers().replace("64451", "0")).is_err());
    }
}
