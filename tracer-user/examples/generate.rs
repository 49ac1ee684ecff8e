//! Writes what a package holds besides the program and is made from its command line: manual pages, completions, the
//! configuration file to begin with. Called by `cargo xtask package`; the argument is the folder.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;
use sdtrace::{cli, config};

const CHANGELOG: &str = include_str!("../../packaging/debian/changelog");

/// What every manual page of a command ends with, in the man macros.
const COMMON: &str = r#".SH "SEE ALSO"
The operations manual in
.I /usr/share/doc/sdtrace/operations.md
and the description of every metric in
.IR /usr/share/doc/sdtrace/metrics.md .
"#;

/// How a command ends, in the man macros.
const EXIT_STATUS: &str = r#".SH "EXIT STATUS"
0 on success, 1 on a failure, 2 on a mistake in the command line or in the settings.
"#;

/// The same for `verdict`.
const EXIT_STATUS_OF_VERDICT: &str = r#".SH "EXIT STATUS"
0 if the epoch is trusted, 3 if it is suspect, 4 if it is broken, 5 if that is not known, 2 on a mistake in the command line,
1 on any other failure.
"#;

/// What the page of `run` says besides.
const FILES: &str = r".SH FILES
.TP
.I /etc/sdtrace/sdtrace.toml
Settings, if \fB\-\-config\fR names no other file. Each key is a flag without its dashes.
.SH ENVIRONMENT
Each flag is a variable, too: \fBSDTRACE_LOG_LEVEL\fR is \fB\-\-log\-level\fR. Values of a list are separated by commas.
A flag wins over a variable, a variable over the file.
.TP
.B NOTIFY_SOCKET
Where systemd is told that sdtrace is ready, how it fares, and that it is alive; see
.BR sd_notify (3).
";

fn main() -> Result<()> {
    let folder = PathBuf::from(
        std::env::args_os()
            .nth(1)
            .context("name the folder to write to")?,
    );
    let command = cli::command();
    for (part, write) in [
        ("man", manual_pages as fn(&Command, &Path) -> Result<()>),
        ("completions", completions),
        ("etc", configuration),
    ] {
        let folder = folder.join(part);
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        write(&command, &folder)?;
    }
    Ok(())
}

/// The day of the newest entry of the package's changelog, as 2026-11-22: pages made twice shall be the same.
fn date_of_the_release() -> Result<String> {
    const MONTHS: &str = "JanFebMarAprMayJunJulAugSepOctNovDec";
    let trailer = CHANGELOG.lines().find(|line| line.starts_with(" -- "));
    let date = trailer
        .and_then(|line| line.split(", ").nth(1))
        .unwrap_or_default();
    let [day, month, year, ..] = date.split(' ').collect::<Vec<_>>()[..] else {
        bail!("the changelog of the package has no date");
    };
    let month = MONTHS
        .find(month)
        .context("the changelog of the package has no month")?
        / 3
        + 1;
    Ok(format!("{year}-{month:02}-{day:0>2}"))
}

/// One page for each command that is shown.
fn manual_pages(command: &Command, folder: &Path) -> Result<()> {
    let mut command = command.clone();
    command.build();
    let mut pages = vec![command];
    while let Some(command) = pages.pop() {
        page(&command, folder)?;
        pages.extend(
            command
                .get_subcommands()
                .filter(|command| !command.is_hide_set() && command.get_name() != "help")
                .cloned(),
        );
    }
    Ok(())
}

fn page(command: &Command, folder: &Path) -> Result<()> {
    let name = command
        .get_display_name()
        .unwrap_or(command.get_name())
        .to_owned();
    let man = Man::new(command.clone())
        .title(name.to_uppercase())
        .date(date_of_the_release()?)
        .manual("sdtrace")
        .source(concat!("sdtrace ", env!("CARGO_PKG_VERSION")));
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    if command.get_arguments().next().is_some() {
        man.render_options_section(&mut text)?;
    }
    if command.has_subcommands() {
        man.render_subcommands_section(&mut text)?;
    }
    if name == "sdtrace-run" {
        text.write_all(FILES.as_bytes())?;
    }
    let status = if name == "sdtrace-verdict" {
        EXIT_STATUS_OF_VERDICT
    } else {
        EXIT_STATUS
    };
    text.write_all(status.as_bytes())?;
    text.write_all(COMMON.as_bytes())?;
    fs::write(folder.join(format!("{name}.1")), text)?;
    Ok(())
}

fn completions(command: &Command, folder: &Path) -> Result<()> {
    for (shell, file) in [
        (Shell::Bash, "sdtrace.bash"),
        (Shell::Zsh, "_sdtrace"),
        (Shell::Fish, "sdtrace.fish"),
    ] {
        let mut text = io::Cursor::new(Vec::new());
        clap_complete::generate(shell, &mut command.clone(), "sdtrace", &mut text);
        fs::write(folder.join(file), text.into_inner())?;
    }
    Ok(())
}

fn configuration(command: &Command, folder: &Path) -> Result<()> {
    fs::write(folder.join("sdtrace.toml"), config::example(command))?;
    Ok(())
}
