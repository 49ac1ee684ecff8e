//! What sdtrace says when it cannot do what it is asked: one line, the right exit code, nothing left behind.

use std::net::TcpListener;

use anyhow::{Context as _, Result, ensure};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::suite::Suite;
use crate::suite::attached::Attached;
use crate::suite::daemon::{Ended, run_to_the_end};

/// Holds how sdtrace ended against what it should have done.
fn expect(ended: &Ended, code: i32, words: &[&str]) -> Result<()> {
    ensure!(
        ended.code == Some(code),
        "exit code {:?}, not {code}: {ended:?}",
        ended.code
    );
    ensure!(
        ended.errors.len() == 1,
        "{} lines instead of one: {ended:?}",
        ended.errors.len()
    );
    let line = &ended.errors[0];
    for word in words {
        ensure!(line.contains(word), "the line does not say `{word}`: {line}");
    }
    Ok(())
}

fn run(arguments: &[&str]) -> Result<Ended> {
    run_to_the_end(&[&["run"], arguments].concat(), &[], None)
}

pub fn unknown_flag_is_a_usage_error(_: &mut Suite) -> Result<()> {
    expect(&run(&["--nonsense"])?, 2, &["--nonsense", "--help"])
}

pub fn not_root_is_named(_: &mut Suite) -> Result<()> {
    let nobody = 65534;
    let ended = run_to_the_end(&["run"], &[], Some(nobody))?;
    expect(&ended, 1, &["root"])
}

pub fn port_in_use_is_named(suite: &mut Suite) -> Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let address = listener.local_addr()?.to_string();
    expect(&run(&["--listen", &address])?, 1, &[&address, "--listen"])?;
    Attached::wait_until_gone(&suite.before).map(|_| ())
}

/// Hides the kernel's type information behind an empty file system.
pub fn no_btf_is_named(suite: &mut Suite) -> Result<()> {
    let place = "/sys/kernel/btf";
    mount("none", place, "tmpfs", MountFlags::empty(), None).context("cannot mount over /sys/kernel/btf")?;
    let ended = run(&[]);
    unmount(place, UnmountFlags::empty())?;
    expect(&ended?, 1, &["CONFIG_DEBUG_INFO_BTF"])?;
    Attached::wait_until_gone(&suite.before).map(|_| ())
}

pub fn check_says_that_run_would_work(suite: &mut Suite) -> Result<()> {
    let attach = suite.options.attach.clone();
    let ended = run_to_the_end(&["check", "--json", "--attach", &attach], &[], None)?;
    ensure!(ended.code == Some(0), "exit code {:?}: {ended:?}", ended.code);
    let _: serde_json::Value = serde_json::from_str(&ended.output).context("check --json")?;
    Attached::wait_until_gone(&suite.before).map(|_| ())
}

/// Values that are wrong on every kernel: an offset within each structure that faults and clears are read from, and
/// positions of arguments. With any of them sdtrace must refuse to start.
const WRONG: [&str; 6] = [
    "VMA_FLAGS=48",
    "VMA_PAGE_PROT=48",
    "ARG_MPROTECT_FIXUP_NEWFLAGS=1",
    "VM_FAULT_ORIG_PTE=56",
    "MM_WALK_VMA=32",
    "INODE_NUMBER=72",
];

pub fn wrong_layouts_are_refused(suite: &mut Suite) -> Result<()> {
    let attach = suite.options.attach.clone();
    for wrong in WRONG {
        let ended = run_to_the_end(
            &["run", "--attach", &attach, "--for", "1s", "--log-level", "error"],
            &[("SDTRACE_TEST_LAYOUT_OVERRIDE", wrong)],
            None,
        )?;
        expect(&ended, 1, &["self-test"]).with_context(|| wrong.to_owned())?;
    }
    Attached::wait_until_gone(&suite.before).map(|_| ())
}
