//! What the guest's memory file system holds: busybox, the init script, modules, the command and the caller's files.

use super::cpio::Archive;
use crate::failure::Usage;
use crate::kernels::modules::Module;
use anyhow::{Context as _, Result};
use std::ffi::OsString;
use std::fs;
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

const INIT: &str = include_str!("init.sh");

/// A file or folder of the host that goes into the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestFile {
    /// Path on the host. Permissions are kept; a folder goes in with all that it holds.
    pub local: PathBuf,
    /// Absolute path in the guest.
    pub guest: String,
}

/// Everything that one guest's memory file system is made of.
#[derive(Debug)]
pub struct Content<'a> {
    /// The static busybox binary.
    pub busybox: &'a Path,
    /// Modules, in the order in which to insert them.
    pub modules: &'a [Module],
    /// Environment of the command.
    pub environment: &'a [(String, String)],
    /// The command and its arguments.
    pub command: &'a [OsString],
    /// The caller's files.
    pub files: &'a [GuestFile],
    /// Static binary that carries connections over the fourth serial line, for guests without a network card.
    pub forward_agent: Option<&'a Path>,
    /// Whether to mount the disk.
    pub disk: bool,
}

/// Writes the archive to `destination`.
pub fn write(destination: &Path, content: &Content<'_>) -> Result<()> {
    let file =
        fs::File::create(destination).with_context(|| format!("cannot create {}", destination.display()))?;
    let mut archive = Archive::new(BufWriter::new(file));
    // The kernel opens it as init's standard output before anything is mounted.
    archive.character_device("dev/console", 5, 1)?;
    archive.file("init", 0o755, INIT.as_bytes())?;
    archive.file("bin/busybox", 0o755, &read(content.busybox)?)?;
    archive.symlink("bin/sh", "busybox")?;
    archive.file(
        "etc/passwd",
        0o644,
        b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    )?;
    archive.file("etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n")?;
    archive.file("etc/hosts", 0o644, b"127.0.0.1 localhost guest\n")?;
    let names: String = content
        .modules
        .iter()
        .flat_map(|module| [module.name.as_str(), "\n"])
        .collect();
    archive.file("etc/modules", 0o644, names.as_bytes())?;
    for module in content.modules {
        archive.file(&format!("lib/modules/{}.ko", module.name), 0o644, &module.object)?;
    }
    archive.file(
        "etc/command",
        0o755,
        &command_script(content.environment, content.command),
    )?;
    if let Some(agent) = content.forward_agent {
        archive.file("bin/forward-agent", 0o755, &read(agent)?)?;
        archive.file("etc/forward-agent", 0o644, b"")?;
    }
    if content.disk {
        archive.file("etc/disk", 0o644, b"")?;
    }
    for file in content.files {
        add(&mut archive, &file.local, &file.guest)?;
    }
    archive
        .finish()
        .with_context(|| format!("cannot write {}", destination.display()))?;
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Adds a file, or a folder with all that it holds.
fn add<W: Write>(archive: &mut Archive<W>, local: &Path, guest: &str) -> Result<()> {
    let unreadable = |error: std::io::Error| Usage(format!("cannot read {}: {error}", local.display()));
    let metadata = fs::metadata(local).map_err(unreadable)?;
    if metadata.is_dir() {
        archive.folder(guest)?;
        for entry in fs::read_dir(local).map_err(unreadable)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name
                .to_str()
                .with_context(|| format!("{} is not UTF-8", entry.path().display()))?;
            add(
                archive,
                &entry.path(),
                &format!("{}/{name}", guest.trim_end_matches('/')),
            )?;
        }
        return Ok(());
    }
    let bytes = fs::read(local).map_err(unreadable)?;
    archive.file(guest, metadata.permissions().mode() & 0o777, &bytes)?;
    Ok(())
}

/// A script that becomes the command: its process id is the one that an interrupt goes to.
fn command_script(environment: &[(String, String)], command: &[OsString]) -> Vec<u8> {
    let mut script = b"#!/bin/sh\necho $$ >/run/command.pid\n".to_vec();
    for (name, value) in environment {
        script.extend_from_slice(format!("export {name}=").as_bytes());
        script.extend(quoted(value.as_bytes()));
        script.push(b'\n');
    }
    script.extend_from_slice(b"exec");
    for word in command {
        script.push(b' ');
        script.extend(quoted(word.as_encoded_bytes()));
    }
    script.push(b'\n');
    script
}

/// A word that the shell takes as it is.
fn quoted(word: &[u8]) -> Vec<u8> {
    let mut quoted = vec![b'\''];
    for byte in word {
        match byte {
            b'\'' => quoted.extend_from_slice(b"'\\''"),
            other => quoted.push(*other),
        }
    }
    quoted.push(b'\'');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_shell_gets_every_word_as_it_was() {
        let words = [
            "printf",
            "%s|",
            "plain",
            "two words",
            "it's",
            "$HOME `id` \\ \"",
            "",
            "line\nbreak",
        ];
        let command: Vec<OsString> = words.iter().map(OsString::from).collect();
        let script = command_script(&[("ATTACH".into(), "f'e".into())], &command);
        let script = String::from_utf8(script)
            .unwrap()
            .replace("/run/command.pid", "/dev/null");
        let output = Command::new("sh").arg("-c").arg(&script).output().unwrap();
        assert!(output.status.success());
        assert_eq!(
            String::from_utf8(output.stdout).unwrap(),
            words[2..].join("|") + "|"
        );
    }

    #[test]
    fn a_missing_file_is_a_usage_error_that_names_it() {
        let mut archive = Archive::new(Vec::new());
        let error = add(&mut archive, Path::new("/nowhere/tool"), "/bin/tool").unwrap_err();
        assert!(error.to_string().starts_with("cannot read /nowhere/tool: "));
        assert_eq!(crate::failure::exit_code(&error), 2);
    }
}
