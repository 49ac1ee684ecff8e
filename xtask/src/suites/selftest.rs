//! The kernel's own test of soft-dirty beside the battery: where both look at the same thing, both must say the same.
//!
//! It is soft-dirty.c of the newest linux-source package, built here and never committed.

use super::output::Shared;
use super::two_at_a_time;
use crate::guest::{Guest, Outcome};
use crate::kernels::Wanted;
use crate::kernels::fetch::{Kernel, Kernels};
use crate::provision::apt::PrivateApt;
use crate::provision::{
    CacheLock, HostProgram, cache_dir, ensure_programs, place_atomically, run_quietly, say,
};
use crate::workspace::build_static;
use anyhow::{Context as _, Result, bail, ensure};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

const PROGRAMS: [HostProgram; 2] = [
    HostProgram {
        name: "gcc",
        package: "gcc",
        why: "builds the kernel's selftest",
    },
    HostProgram {
        name: "xz",
        package: "xz-utils",
        why: "unpacks the kernel's source",
    },
];

/// What the selftest needs of the source tree.
const FOLDER: &str = "tools/testing/selftests";

/// The selftest's checks that a scenario of the battery makes too. All others must pass on every kernel.
const ALIKE: [(&str, &str); 3] = [
    ("test_mprotect-file soft-dirty after rewritten", "mprotect-ramfs"),
    (
        "test_merge-anon soft-dirty after remap merge 2nd pg",
        "merge-untouched-mremap-b",
    ),
    (
        "test_merge-anon soft-dirty after mprotect merge 2nd pg",
        "merge-untouched-mprotect-a",
    ),
];

/// Checks that look at the other side of the same merges.
const ASIDE: [&str; 2] = [
    "test_merge-anon soft-dirty after remap merge 1st pg",
    "test_merge-anon soft-dirty after mprotect merge 1st pg",
];

/// The selftest's `mprotect-file` needs a file system with `page_mkwrite`, which it takes its current folder to be.
const SCRIPT: &str = "mkdir /ramfs && mount -t ramfs none /ramfs && cd /ramfs && { soft-dirty; true; } && \
                      sdtrace battery --only mprotect-ramfs merge-untouched-mremap-b merge-untouched-mprotect-a";

/// Runs both in a guest of each kernel and compares.
pub fn run(kernels: &[Wanted]) -> Result<()> {
    ensure_programs(&PROGRAMS)?;
    let cache = Kernels::open()?;
    let newest = cache.provide(Wanted::Newest, false)?;
    let folder = tempfile::tempdir()?;
    let selftest = build(&newest, &folder.path().join("soft-dirty"))?;
    let program = build_static("tracer-user", "sdtrace")?;
    let mut ready = Vec::new();
    for wanted in kernels {
        ready.push(cache.provide(*wanted, false)?);
    }
    let results = two_at_a_time(&ready, |kernel| test(kernel, &selftest, &program));
    let mut failures = Vec::new();
    for (kernel, result) in ready.iter().zip(results) {
        match result {
            Ok(failing) => println!("{}: {failing} checks of soft-dirty.c fail", kernel.source.series),
            Err(error) => failures.push(format!("{}: {error:#}", kernel.source.series)),
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("; "));
    Ok(())
}

/// Builds soft-dirty.c of this kernel's source.
fn build(kernel: &Kernel, program: &Path) -> Result<PathBuf> {
    let source = provide_source(kernel)?;
    let tests = source.join(FOLDER);
    let headers = source.join("libc-dev/usr/include");
    let mut compiler = Command::new("gcc");
    compiler
        .args(["-O2", "-static", "-D_GNU_SOURCE=", "-o"])
        .arg(program);
    for folder in [&headers, &headers.join("x86_64-linux-gnu")] {
        compiler.arg("-isystem").arg(folder);
    }
    compiler.arg("-I").arg(&tests);
    for file in ["soft-dirty.c", "vm_util.c", "hugepage_settings.c"] {
        compiler.arg(tests.join("mm").join(file));
    }
    run_quietly(&mut compiler).context("the kernel's soft-dirty.c does not build")?;
    Ok(program.to_owned())
}

/// The selftests of this kernel's source and the headers that go with them, in the cache folder.
fn provide_source(kernel: &Kernel) -> Result<PathBuf> {
    let version = &kernel.source.version;
    let root = cache_dir()?.join("selftests").join(version);
    let _lock = CacheLock::acquire("selftests")?;
    if root.is_dir() {
        return Ok(root);
    }
    let name = format!("linux-source-{}", kernel.source.series);
    say(&format!("unpacking the selftests of {name} {version}"));
    let apt = PrivateApt::open()?;
    if !apt.has_lists() {
        apt.update()?;
    }
    place_atomically(&root, |into| {
        apt.unpack("linux-libc-dev", version, &make(into, "libc-dev")?)?;
        let package = make(into, "package")?;
        apt.unpack(&name, version, &package)?;
        let archive = package.join("usr/src").join(format!("{name}.tar.xz"));
        let mut tar = Command::new("tar");
        tar.arg("-xJf").arg(&archive).arg("-C").arg(into);
        tar.args(["--strip-components=1", "--wildcards"])
            .arg(format!("*/{FOLDER}/mm/*"))
            .arg(format!("*/{FOLDER}/*.h"));
        run_quietly(&mut tar)?;
        // A hundred times as large as what was taken from it.
        std::fs::remove_dir_all(&package)?;
        Ok(())
    })?;
    Ok(root)
}

fn make(parent: &Path, name: &str) -> Result<PathBuf> {
    let folder = parent.join(name);
    std::fs::create_dir(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    Ok(folder)
}

fn test(kernel: &Kernel, selftest: &Path, program: &Path) -> Result<usize> {
    let said = Shared::default();
    let report = Guest::new(kernel.clone(), ["sh", "-c", SCRIPT])
        .file(selftest, "/bin/soft-dirty")
        .file(program, "/bin/sdtrace")
        .run(said.clone())?;
    let text = said.text();
    ensure!(
        report.outcome == Outcome::Exited(0),
        "{:?}\n{text}",
        report.outcome
    );
    agree(&text).with_context(|| text.clone())
}

/// Compares what the two said; gives the number of failing checks.
fn agree(text: &str) -> Result<usize> {
    let checks = checks(text);
    ensure!(
        text.contains(&format!("1..{}\n", checks.len())),
        "the selftest was cut short"
    );
    let results = scenarios(text);
    for (check, passed) in &checks {
        let scenario = ALIKE.iter().find(|(name, _)| name == check).map(|(_, name)| name);
        match scenario {
            Some(scenario) => {
                let result = results
                    .get(scenario)
                    .with_context(|| format!("{scenario} has no result"))?;
                let tracked = match *result {
                    "tracked" => true,
                    "missed" => false,
                    other => bail!("{scenario} is {other}"),
                };
                ensure!(
                    tracked == *passed,
                    "the selftest says '{check}' {}, and the battery says {scenario} is {result}",
                    if *passed { "passes" } else { "fails" }
                );
            }
            None if *passed || ASIDE.contains(check) => {}
            None => bail!("'{check}' fails, which no scenario of the battery is alike to"),
        }
    }
    for (check, _) in ALIKE {
        ensure!(checks.contains_key(check), "the selftest has no check '{check}'");
    }
    Ok(checks.values().filter(|passed| !**passed).count())
}

/// `ok 1 Test NAME` and `not ok 2 Test NAME`.
fn checks(text: &str) -> BTreeMap<&str, bool> {
    text.lines()
        .filter_map(|line| {
            let (passed, rest) = match line.strip_prefix("not ok ") {
                Some(rest) => (false, rest),
                None => (true, line.strip_prefix("ok ")?),
            };
            Some((rest.split_once(" Test ")?.1.trim(), passed))
        })
        .collect()
}

/// Lines of the battery's table: the scenario first, the result last.
fn scenarios(text: &str) -> BTreeMap<&str, &str> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            Some((words.next()?, words.next_back()?))
        })
        .filter(|(name, _)| ALIKE.iter().any(|(_, scenario)| scenario == name))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEALTHY: &str = "TAP version 13\n1..5\n\
        ok 1 Test test_simple\n\
        ok 2 Test test_mprotect-file soft-dirty after rewritten\n\
        ok 3 Test test_merge-anon soft-dirty after remap merge 2nd pg\n\
        ok 4 Test test_merge-anon soft-dirty after mprotect merge 1st pg\n\
        ok 5 Test test_merge-anon soft-dirty after mprotect merge 2nd pg\n\
        mprotect-ramfs A mprotect-upgrade 64 0 0 tracked\n\
        merge-untouched-mremap-b A vma-merge 64 0 0 tracked\n\
        merge-untouched-mprotect-a A vma-merge 64 0 0 tracked\n";

    #[test]
    fn agreement_is_both_ways() {
        assert_eq!(agree(HEALTHY).unwrap(), 0);
        let only_selftest = HEALTHY.replace("ok 2", "not ok 2");
        assert!(agree(&only_selftest).is_err());
        let both = only_selftest.replace(
            "64 0 0 tracked\nmerge-untouched-mr",
            "64 64 0 missed\nmerge-untouched-mr",
        );
        assert_eq!(agree(&both).unwrap(), 1);
        let only_battery = both.replace("not ok 2", "ok 2");
        assert!(agree(&only_battery).is_err());
    }

    #[test]
    fn an_unknown_failure_and_a_cut_run_do_not_pass() {
        assert!(agree(&HEALTHY.replace("ok 1 ", "not ok 1 ")).is_err());
        assert!(agree(&HEALTHY.replace("1..5", "1..19")).is_err());
        assert!(agree(&HEALTHY.replace("mprotect-ramfs A", "mprotect-other A")).is_err());
    }
}
