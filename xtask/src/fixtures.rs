//! Makes the fixtures that the layout tests read: boots each kernel, takes its BTF and its symbols from the running
//! system, and has them cut down to what sdtrace looks at.
//!
//! The kernel image alone would give the BTF, but not the symbols: Debian's System.map is an empty stub.

use crate::guest::{Guest, Outcome};
use crate::kernels::fetch::Kernels;
use crate::kernels::{Series, Wanted};
use crate::provision::say;
use crate::workspace::{clean_command, root, target_dir};
use anyhow::{Context as _, Result, bail};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What a guest leaves in /out.
const COLLECT: &str = "cat /sys/kernel/btf/vmlinux >/out/vmlinux.btf && cat /proc/kallsyms >/out/kallsyms \
    && uname -r >/out/release";

/// Makes the fixtures of these series anew; without any, of every series that has one.
pub fn make(asked: &[Series]) -> Result<()> {
    let folder = root().join("tracer-user/tests/fixtures/kernels");
    let series = if asked.is_empty() {
        existing(&folder)?
    } else {
        asked.to_vec()
    };
    let cutter = build_cutter()?;
    let kernels = Kernels::open()?;
    for series in series {
        let kernel = kernels.provide(Wanted::Series(series), false)?;
        let out = tempfile::tempdir().context("cannot create a temporary folder (set TMPDIR)")?;
        // Addresses that are the same at every boot keep the fixture the same.
        let guest = Guest::new(kernel, ["sh", "-c", COLLECT])
            .append("nokaslr")
            .out(out.path());
        let report = guest.run(io::stderr())?;
        if report.outcome != Outcome::Exited(0) {
            bail!(
                "guest {series} did not give its BTF and symbols: {:?}",
                report.outcome
            );
        }
        let fixture = folder.join(series.to_string());
        let status = clean_command(&cutter)
            .args([out.path(), &fixture])
            .status()
            .context("cannot start the cutter")?;
        if !status.success() {
            bail!(
                "the fixture of {series} could not be made (the reason is above); {} is unchanged",
                fixture.display()
            );
        }
        let release = fs::read_to_string(fixture.join("release"))?;
        say(&format!("fixture {series}: {}", release.trim()));
    }
    Ok(())
}

/// The series that have a fixture, oldest first.
fn existing(folder: &Path) -> Result<Vec<Series>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let name = entry?.file_name();
        let series = name.to_string_lossy().parse().map_err(anyhow::Error::msg);
        found.push(series.with_context(|| format!("in {}", folder.display()))?);
    }
    found.sort();
    Ok(found)
}

fn build_cutter() -> Result<PathBuf> {
    let mut cargo = clean_command("cargo");
    cargo
        .args(["build", "--quiet", "--locked", "--package", "tracer-user"])
        .args(["--features", "fixtures", "--example", "cut-btf"])
        .env("CARGO_TARGET_DIR", target_dir());
    if !cargo.status().context("cannot start cargo")?.success() {
        bail!("the example cut-btf does not build (the compiler's messages are above)");
    }
    Ok(target_dir().join("debug/examples/cut-btf"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_series_that_have_fixtures_are_found_in_order() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["6.12", "5.10", "6.1"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let found: Vec<_> = existing(folder.path())
            .unwrap()
            .iter()
            .map(Series::to_string)
            .collect();
        assert_eq!(found, ["5.10", "6.1", "6.12"]);
        fs::create_dir(folder.path().join("stray")).unwrap();
        assert!(existing(folder.path()).unwrap_err().to_string().contains("in "));
        assert!(existing(Path::new("/nonexistent")).is_err());
    }
}
