//! The compiler that makes the eBPF object, pinned to the byte: the object is committed and compared, so every part
//! that can change a byte of it has a fixed version.

use super::apt::PrivateApt;
use super::{CacheLock, cache_dir, find_on_path, place_atomically, run_quietly, say};
use crate::failure::Usage;
use crate::workspace::clean_command;
use anyhow::{Context as _, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The compiler. A newer one gives other bytes, and its LLVM may be one that the pinned bpf-linker cannot load.
pub const RUSTC_VERSION: &str = "1.95.0";
/// The last version that links against rustc's own libLLVM, so that no LLVM has to be installed.
pub const BPF_LINKER_VERSION: &str = "0.10.3";

/// Library sources of exactly [`RUSTC_VERSION`]: rustup carries them too, but the machine may reach Debian only.
const RUST_SRC_PACKAGE: &str = "rust-src";
const RUST_SRC_VERSION: &str = "1.95.0+dfsg1-2~bpo13+1";
const RUST_SRC_SHA256: &str = "7b76db5b880a77f9e52975d2baa6209d2f76d2c9c2789515c3088cb960e2c83b";
const RUST_SRC_LIBRARY: &str = "usr/src/rustc-1.95.0/library";

/// Everything that `build-ebpf` runs, by absolute path.
#[derive(Debug)]
pub struct BpfToolchain {
    /// A private copy (hard links) of the pinned toolchain with the library sources inside.
    pub sysroot: PathBuf,
    /// Folder of the bpf-linker binary.
    pub linker_dir: PathBuf,
}

impl BpfToolchain {
    /// Finds or provisions the toolchain.
    pub fn provision() -> Result<Self> {
        let base = cache_dir()?.join("bpf-toolchain");
        let _lock = CacheLock::acquire("bpf-toolchain")?;
        let sysroot = base.join(format!("sysroot-{RUSTC_VERSION}"));
        if !library_of(&sysroot).join("core/Cargo.toml").is_file() {
            let pinned = pinned_sysroot()?;
            say(&format!(
                "making a private copy of rustc {RUSTC_VERSION} with its library sources (core for the BPF target is \
                 built from them)"
            ));
            place_atomically(&sysroot, |copy| {
                copy_linked(&pinned, copy)?;
                fetch_library(&pinned, copy)
            })?;
        }
        let linker_root = base.join(format!("bpf-linker-{BPF_LINKER_VERSION}"));
        if !linker_is_pinned(&linker_root) {
            say(&format!(
                "installing bpf-linker {BPF_LINKER_VERSION} into the cache (links the eBPF object; 3 minutes)"
            ));
            install_linker(&linker_root)?;
        }
        Ok(Self {
            sysroot,
            linker_dir: linker_root.join("bin"),
        })
    }

    /// A program of the private toolchain.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.sysroot.join("bin").join(name)
    }

    /// Where the library sources lie.
    #[must_use]
    pub fn library(&self) -> PathBuf {
        library_of(&self.sysroot)
    }

    /// The toolchain's own objcopy, of the same LLVM as the compiler.
    #[must_use]
    pub fn objcopy(&self) -> PathBuf {
        self.sysroot
            .join("lib/rustlib/x86_64-unknown-linux-gnu/bin/rust-objcopy")
    }
}

fn library_of(sysroot: &Path) -> PathBuf {
    sysroot.join("lib/rustlib/src/rust/library")
}

/// The sysroot of an installed rustc of exactly the pinned version.
fn pinned_sysroot() -> Result<PathBuf> {
    let mut candidates = Vec::new();
    if find_on_path("rustup").is_some() {
        let mut which = clean_command("rustup");
        which.args(["which", "--toolchain", RUSTC_VERSION, "rustc"]);
        if let Ok(path) = run_quietly(&mut which) {
            candidates.push(PathBuf::from(String::from_utf8_lossy(&path).trim()));
        }
    }
    candidates.push(PathBuf::from("rustc"));
    for rustc in candidates {
        let Ok(version) = run_quietly(clean_command(&rustc).arg("--version")) else {
            continue;
        };
        if !is_pinned(&String::from_utf8_lossy(&version), "rustc", RUSTC_VERSION) {
            continue;
        }
        let sysroot = run_quietly(clean_command(&rustc).args(["--print", "sysroot"]))?;
        let sysroot = PathBuf::from(String::from_utf8_lossy(&sysroot).trim());
        return sysroot
            .canonicalize()
            .with_context(|| format!("cannot resolve {}", sysroot.display()));
    }
    let command = format!("rustup toolchain install {RUSTC_VERSION} --profile minimal --component clippy");
    Err(Usage(format!(
        "the eBPF object is built by rustc {RUSTC_VERSION} exactly; type: {command}"
    ))
    .into())
}

/// Whether `NAME --version` printed that name and exactly that version.
fn is_pinned(output: &str, name: &str, version: &str) -> bool {
    let mut words = output.split_whitespace();
    words.next() == Some(name) && words.next() == Some(version)
}

/// Copies the compiler's part of a sysroot by hard links, or in full where the cache lies on another file system.
/// Documentation and foreign targets are left out.
fn copy_linked(from: &Path, to: &Path) -> Result<()> {
    for part in ["bin", "lib", "libexec"] {
        let source = from.join(part);
        if !source.is_dir() {
            continue;
        }
        let target = to.join(part);
        let linked = run_quietly(Command::new("cp").arg("-al").arg(&source).arg(&target));
        if linked.is_err() {
            let _ = fs::remove_dir_all(&target);
            run_quietly(Command::new("cp").arg("-a").arg(&source).arg(&target))?;
        }
    }
    Ok(())
}

/// Puts the library sources into the private sysroot: Debian's package, whose checksum is pinned, or rustup's component.
fn fetch_library(pinned: &Path, copy: &Path) -> Result<()> {
    let library = library_of(copy);
    // Never through a hard link into rustup's own files.
    if library.exists() {
        fs::remove_dir_all(&library)?;
    }
    let Err(debian) = library_from_debian(&library) else {
        return Ok(());
    };
    say(&format!("{debian:#}"));
    say("taking the library sources from rustup instead");
    let mut add = clean_command("rustup");
    add.args(["component", "add", "rust-src", "--toolchain", RUSTC_VERSION]);
    let source = library_of(pinned);
    if !source.join("core/Cargo.toml").is_file() {
        run_quietly(&mut add).with_context(|| {
            format!("the library sources of rustc {RUSTC_VERSION} are neither in Debian's index nor to be had by rustup")
        })?;
    }
    if let Some(parent) = library.parent() {
        fs::create_dir_all(parent)?;
    }
    run_quietly(Command::new("cp").arg("-a").arg(&source).arg(&library))?;
    Ok(())
}

fn library_from_debian(library: &Path) -> Result<()> {
    let apt = PrivateApt::open()?;
    if !apt.has_lists() {
        apt.update()?;
    }
    say(&format!(
        "downloading {RUST_SRC_PACKAGE} {RUST_SRC_VERSION} (45 MB: library sources of rustc {RUSTC_VERSION})"
    ));
    let unpacked = tempfile::tempdir_in(cache_dir()?)?;
    let get = |apt: &PrivateApt| {
        apt.with_download(&format!("{RUST_SRC_PACKAGE}={RUST_SRC_VERSION}"), |deb| {
            let sum = run_quietly(Command::new("sha256sum").arg(deb))?;
            let sum = String::from_utf8_lossy(&sum);
            let sum = sum.split_whitespace().next().unwrap_or_default();
            if sum != RUST_SRC_SHA256 {
                bail!("{RUST_SRC_PACKAGE} {RUST_SRC_VERSION} has sha256 {sum}, expected {RUST_SRC_SHA256}");
            }
            super::apt::unpack_deb(deb, unpacked.path(), &[&format!("./{RUST_SRC_LIBRARY}")])
        })
    };
    if get(&apt).is_err() {
        // The lists may be older than the package.
        apt.update()?;
        get(&apt)?;
    }
    if let Some(parent) = library.parent() {
        fs::create_dir_all(parent)?;
    }
    let source = unpacked.path().join(RUST_SRC_LIBRARY);
    fs::rename(&source, library).with_context(|| format!("cannot move {}", source.display()))
}

fn linker_is_pinned(root: &Path) -> bool {
    run_quietly(Command::new(root.join("bin/bpf-linker")).arg("--version")).is_ok_and(|output| {
        is_pinned(
            &String::from_utf8_lossy(&output),
            "bpf-linker",
            BPF_LINKER_VERSION,
        )
    })
}

fn install_linker(root: &Path) -> Result<()> {
    let mut install = clean_command("cargo");
    install.args(["install", "bpf-linker", "--locked", "--force"]);
    install
        .arg("--version")
        .arg(format!("={BPF_LINKER_VERSION}"))
        .arg("--root")
        .arg(root);
    run_quietly(&mut install)?;
    if !linker_is_pinned(root) {
        bail!(
            "bpf-linker was installed into {}, but does not answer as {BPF_LINKER_VERSION}",
            root.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_version_is_pinned() {
        assert!(is_pinned(
            "rustc 1.95.0 (59807616e 2026-04-14)\n",
            "rustc",
            RUSTC_VERSION
        ));
        assert!(!is_pinned(
            "rustc 1.95.0-nightly (59807616e 2026-04-14)\n",
            "rustc",
            RUSTC_VERSION
        ));
        assert!(!is_pinned(
            "rustc 1.95.1 (59807616e 2026-04-14)\n",
            "rustc",
            RUSTC_VERSION
        ));
        assert!(!is_pinned("", "rustc", RUSTC_VERSION));
    }
}
