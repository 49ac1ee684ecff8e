//! Manual pages and completions.

use crate::packaging::files_in;
use crate::provision::{HostProgram, ensure_programs, run_quietly};
use anyhow::{Context as _, Result, ensure};
use std::path::Path;
use std::process::Command;

/// mandoc reads every page, and shows what it is for.
pub fn check_pages(folder: &Path) -> Result<()> {
    ensure_programs(&[HostProgram {
        name: "mandoc",
        package: "mandoc",
        why: "reads the manual pages",
    }])?;
    let pages = files_in(folder)?;
    for name in ["sdtrace", "sdtrace-run", "sdtrace-config-check"] {
        let page = folder.join(format!("{name}.1.gz"));
        ensure!(pages.contains(&page), "there is no page {name}");
    }
    for page in &pages {
        run_quietly(
            Command::new("mandoc")
                .args(["-T", "lint", "-W", "error"])
                .arg(page),
        )?;
    }
    let shown = run_quietly(
        Command::new("mandoc")
            .args(["-T", "ascii"])
            .arg(folder.join("sdtrace-run.1.gz")),
    )?;
    let shown = without_overstriking(&String::from_utf8(shown)?);
    for part in [
        "--listen",
        "/etc/sdtrace/sdtrace.toml",
        "SDTRACE_LOG_LEVEL",
        "NOTIFY_SOCKET",
        "EXIT STATUS",
    ] {
        ensure!(shown.contains(part), "the page of run does not show {part}");
    }
    Ok(())
}

/// The text of a page: terminals print a letter, go back, and print it again to make it bold.
fn without_overstriking(text: &str) -> String {
    let mut plain = String::new();
    for letter in text.chars() {
        if letter == '\u{8}' {
            plain.pop();
        } else {
            plain.push(letter);
        }
    }
    plain
}

/// bash completes a flag and its values.
pub fn check_completions(bash: &Path) -> Result<()> {
    for (words, expected) in [
        ("sdtrace run --lis", "--listen"),
        ("sdtrace run --attach kp", "kprobe"),
        ("sdtrace config ch", "check"),
    ] {
        let script = format!(
            "source {}; COMP_WORDS=({words}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 )); \
             _sdtrace sdtrace \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD-1]}}\"; \
             printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            bash.display()
        );
        let said = run_quietly(Command::new("bash").args(["--norc", "-c", &script])).context("bash")?;
        let said = String::from_utf8(said)?;
        ensure!(
            said.lines().any(|line| line == expected),
            "`{words}` is completed to {said:?}, not to {expected}"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn overstriking_is_taken_out() {
        assert_eq!(super::without_overstriking("r\u{8}ru\u{8}un _\u{8}x"), "run x");
    }
}
