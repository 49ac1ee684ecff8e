//! Builds the eBPF object byte for byte the same on every machine, so that it can be committed and checked.
//!
//! Users of the user side need no BPF toolchain: `cargo build` embeds the committed file. The object keeps its BTF and
//! loses its DWARF (only bpf-linker needs that, to make the BTF).

use crate::provision::toolchain::BpfToolchain;
use crate::provision::{run_quietly, say};
use crate::workspace::{clean_command, root, target_dir};
use anyhow::{Context as _, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// The committed object, from the workspace root.
pub const COMMITTED_OBJECT: &str = "tracer-user/ebpf/sdtrace-probes.bpf.o";
const TARGET: &str = "bpfel-unknown-none";
const BINARY: &str = "sdtrace-probes";

/// Rebuilds the object and writes it to [`COMMITTED_OBJECT`].
pub fn build() -> Result<()> {
    let toolchain = BpfToolchain::provision()?;
    let started = Instant::now();
    let object = make_object(&toolchain, &target_dir().join("ebpf"))?;
    let path = root().join(COMMITTED_OBJECT);
    let same = fs::read(&path).is_ok_and(|committed| committed == object);
    if !same {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, &object).with_context(|| format!("cannot write {}", path.display()))?;
    }
    say(&format!(
        "{COMMITTED_OBJECT}: {} bytes, {} ({:.1} s)",
        object.len(),
        if same {
            "unchanged"
        } else {
            "written: commit it with the source"
        },
        started.elapsed().as_secs_f64()
    ));
    Ok(())
}

/// Rebuilds the object from nothing in a folder of its own and compares it with the committed one, byte for byte.
pub fn check() -> Result<()> {
    let toolchain = BpfToolchain::provision()?;
    let started = Instant::now();
    let path = root().join(COMMITTED_OBJECT);
    let committed =
        fs::read(&path).with_context(|| format!("no {COMMITTED_OBJECT}; type: cargo xtask build-ebpf"))?;
    // A new name each time: the object must depend neither on the place nor on what an earlier build left there.
    fs::create_dir_all(target_dir())?;
    let scratch = tempfile::Builder::new()
        .prefix("ebpf-check-")
        .tempdir_in(target_dir())?;
    let rebuilt = make_object(&toolchain, scratch.path())?;
    if let Some(difference) = first_difference(&committed, &rebuilt) {
        bail!(
            "{COMMITTED_OBJECT} is not what tracer-ebpf builds: {difference}; type: cargo xtask build-ebpf, and commit \
             the file"
        );
    }
    say(&format!(
        "{COMMITTED_OBJECT}: {} bytes, the same byte for byte when rebuilt ({:.1} s)",
        committed.len(),
        started.elapsed().as_secs_f64()
    ));
    Ok(())
}

/// Lints the eBPF crate with the pinned compiler for the BPF target.
pub fn clippy() -> Result<()> {
    let toolchain = BpfToolchain::provision()?;
    let mut cargo = cargo(&toolchain, "clippy", &target_dir().join("ebpf-clippy"))?;
    cargo.args(["--", "-D", "warnings"]);
    let status = cargo
        .stdin(Stdio::null())
        .status()
        .context("cannot start cargo clippy")?;
    if !status.success() {
        bail!("clippy found faults in tracer-ebpf");
    }
    Ok(())
}

/// Where two byte strings differ first, in words; nothing if they are equal.
fn first_difference(committed: &[u8], rebuilt: &[u8]) -> Option<String> {
    if committed == rebuilt {
        return None;
    }
    let sizes = format!(
        "committed {} bytes, rebuilt {} bytes",
        committed.len(),
        rebuilt.len()
    );
    let place = committed
        .iter()
        .zip(rebuilt)
        .position(|(left, right)| left != right);
    Some(match place {
        Some(offset) => format!("{sizes}, first difference at offset {offset}"),
        None => format!("{sizes}, one is the beginning of the other"),
    })
}

/// Builds in `target` and returns the stripped object.
fn make_object(toolchain: &BpfToolchain, target: &Path) -> Result<Vec<u8>> {
    let status = cargo(toolchain, "build", target)?
        .stdin(Stdio::null())
        .status()
        .context("cannot start cargo")?;
    if !status.success() {
        bail!("tracer-ebpf does not build for {TARGET} (the compiler's messages are above)");
    }
    let linked = target.join(TARGET).join("release").join(BINARY);
    let stripped = target.join(format!("{BINARY}.bpf.o"));
    let mut objcopy = Command::new(toolchain.objcopy());
    // rust-objcopy's own search path does not lead to the LLVM that it was built with; rustup's proxies hide that.
    objcopy.env("LD_LIBRARY_PATH", toolchain.sysroot.join("lib"));
    run_quietly(objcopy.arg("--strip-debug").arg(&linked).arg(&stripped))?;
    fs::read(&stripped).with_context(|| format!("cannot read {}", stripped.display()))
}

/// A cargo command for the eBPF crate in which everything that can reach the object is pinned or remapped.
fn cargo(toolchain: &BpfToolchain, subcommand: &str, target: &Path) -> Result<Command> {
    let mut flags = vec![
        "--cfg=bpf_target_arch=\"x86_64\"".to_owned(),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
    ];
    for (from, to) in remapped_paths(toolchain, target)? {
        flags.push(format!("--remap-path-prefix={}={to}", from.display()));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = [toolchain.linker_dir.clone(), toolchain.sysroot.join("bin")]
        .into_iter()
        .chain(std::env::split_paths(&path));
    let mut cargo = clean_command(toolchain.program("cargo"));
    cargo
        .args([
            subcommand,
            "--quiet",
            "--locked",
            "--release",
            "--package",
            "tracer-ebpf",
            "--bins",
        ])
        .args(["-Z", "build-std=core", "--target", TARGET])
        .env("RUSTC", toolchain.program("rustc"))
        // build-std is unstable: this lets exactly the pinned stable compiler use it.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_DIR", target)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .env("CARGO_INCREMENTAL", "0")
        .env(
            "PATH",
            std::env::join_paths(path).context("PATH holds a folder with a colon in its name")?,
        );
    Ok(cargo)
}

/// Places of this machine that debug information and panic locations would name, and what they are called instead.
/// rustc takes the last match, so the widest comes first.
fn remapped_paths(toolchain: &BpfToolchain, target: &Path) -> Result<Vec<(PathBuf, &'static str)>> {
    let mut paths = vec![
        (root(), "/sdtrace"),
        (target.to_path_buf(), "/target"),
        (toolchain.library(), "/rust/library"),
    ];
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::home_dir().map(|home| home.join(".cargo")));
    let registries = home
        .context("no home folder: set CARGO_HOME")?
        .join("registry/src");
    if let Ok(entries) = fs::read_dir(&registries) {
        for entry in entries {
            // The folder's name is a hash of the registry's address, which a mirror changes.
            paths.push((entry?.path(), "/registry"));
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_named_by_its_place() {
        assert_eq!(first_difference(b"same", b"same"), None);
        assert!(first_difference(b"abcd", b"abXd").is_some_and(|text| text.ends_with("at offset 2")));
        assert!(first_difference(b"abcd", b"abc").is_some_and(|text| text.contains("rebuilt 3 bytes")));
    }
}
