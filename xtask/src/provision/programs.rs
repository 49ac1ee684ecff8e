//! Programs of Debian that run inside guests: unpacked into the cache together with the shared libraries that they load.

use super::apt::PrivateApt;
use super::{CacheLock, cache_dir, place_atomically, run_quietly, say};
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A program that is taken from one suite.
#[derive(Clone, Copy, Debug)]
pub struct GuestProgram {
    /// Debian package.
    pub package: &'static str,
    /// Where the package has the program, without the leading slash.
    pub path: &'static str,
    /// Suite to take it and its libraries from.
    pub suite: &'static str,
    /// What it is needed for, in the words shown to the user.
    pub why: &'static str,
}

/// Checkpoints processes by soft-dirty; 4.1 is the first that reads it by `PAGEMAP_SCAN`.
pub const CRIU: GuestProgram = GuestProgram {
    package: "criu",
    path: "usr/sbin/criu",
    suite: "trixie",
    why: "checkpoints processes by soft-dirty",
};

/// Stresses memory. Of the older suite: the newer package pulls in the 45 MB of Mesa's compiler.
pub const STRESS_NG: GuestProgram = GuestProgram {
    package: "stress-ng",
    path: "usr/bin/stress-ng",
    suite: "bookworm",
    why: "stresses the guest's memory",
};

/// Where Debian's loader looks for libraries without being told.
const LIBRARIES: &str = "lib/x86_64-linux-gnu";
/// The path of the loader that every dynamic program of this architecture names.
const LOADER: &str = "lib64/ld-linux-x86-64.so.2";
/// Where packages put libraries: newer ones below /usr only.
const LIBRARY_PLACES: [&str; 2] = ["usr/lib/x86_64-linux-gnu", LIBRARIES];

/// Returns a folder to be laid over a guest's root: the program, its loader, its libraries, and nothing else.
///
/// apt resolves the dependencies against an empty system and checks what it downloads by the hashes of the signed index;
/// the suite's own loader then tells which libraries the program really loads.
pub fn provide(program: &GuestProgram) -> Result<PathBuf> {
    let root = cache_dir()?
        .join("programs")
        .join(format!("{}-{}", program.package, program.suite));
    if root.join(program.path).is_file() {
        return Ok(root);
    }
    let _lock = CacheLock::acquire("programs")?;
    if root.join(program.path).is_file() {
        return Ok(root);
    }
    say(&format!(
        "downloading {} of {} with its libraries ({})",
        program.package, program.suite, program.why
    ));
    let apt = PrivateApt::open()?;
    if !apt.has_lists() {
        apt.update()?;
    }
    let unpacked = tempfile::tempdir().context("cannot create a temporary folder (set TMPDIR)")?;
    apt.unpack_with_dependencies(program.package, program.suite, unpacked.path())?;
    place_atomically(&root, |into| select(program, unpacked.path(), into))?;
    Ok(root)
}

/// Copies what the program needs out of the unpacked packages.
fn select(program: &GuestProgram, unpacked: &Path, into: &Path) -> Result<()> {
    let binary = unpacked.join(program.path);
    ensure!(
        binary.is_file(),
        "the package {} holds no {}",
        program.package,
        program.path
    );
    let loader = LIBRARY_PLACES
        .iter()
        .map(|place| unpacked.join(place).join("ld-linux-x86-64.so.2"))
        .find(|path| path.is_file())
        .with_context(|| format!("the dependencies of {} hold no loader", program.package))?;
    let places = LIBRARY_PLACES.map(|place| unpacked.join(place).display().to_string());
    let said = run_quietly(
        Command::new(&loader)
            .args(["--library-path", &places.join(":"), "--list"])
            .arg(&binary),
    )?;
    let libraries = libraries(&String::from_utf8_lossy(&said), unpacked)
        .with_context(|| format!("{} of {}", program.package, program.suite))?;
    copy(&binary, &into.join(program.path))?;
    copy(&loader, &into.join(LOADER))?;
    for library in libraries {
        let name = library.file_name().context("a library has a name")?;
        copy(&library, &into.join(LIBRARIES).join(name))?;
    }
    Ok(())
}

/// Copies a file, not a link to it, with its permissions.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let folder = to.parent().context("a file lies in a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}

/// The libraries in what `ld.so --list` said. One that is not found, or found outside `unpacked`, is an error: it would be
/// missing in the guest.
fn libraries(said: &str, unpacked: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for (name, place) in said.lines().filter_map(|line| line.trim().split_once(" => ")) {
        let path = place.split(" (").next().unwrap_or(place);
        ensure!(
            Path::new(path).starts_with(unpacked),
            "the library {name} is not among the dependencies: {place}"
        );
        // The loader lists itself; it has a place of its own.
        if !name.contains("ld-linux") {
            found.push(PathBuf::from(path));
        }
    }
    ensure!(!found.is_empty(), "the loader lists no library: {said:?}");
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_library_must_come_from_the_packages() {
        let unpacked = Path::new("/u");
        let said = "\tlinux-vdso.so.1 (0x1)\n\tlibnet.so.1 => /u/usr/lib/libnet.so.1 (0x2)\n\
                    \t/lib64/ld-linux-x86-64.so.2 => /u/lib/ld-linux-x86-64.so.2 (0x3)\n";
        assert_eq!(
            libraries(said, unpacked).unwrap(),
            [PathBuf::from("/u/usr/lib/libnet.so.1")]
        );
        for line in [
            "\tlibmd.so.0 => not found\n",
            "\tlibmd.so.0 => /usr/lib/libmd.so.0 (0x4)\n",
        ] {
            let error = libraries(&format!("{said}{line}"), unpacked).unwrap_err();
            assert!(error.to_string().contains("libmd.so.0"), "{error}");
        }
        assert!(libraries("\tstatically linked\n", unpacked).is_err());
    }
}
