//! Proof at every start that the programs read this kernel rightly.
//!
//! A child of ours does known things to known memory, clears its own soft-dirty bits and says what it did and
//! what `/proc/self/smaps` shows. What the programs recorded about it must be equal, in every number. A wrong
//! offset or argument position cannot pass, so sdtrace refuses to start instead of reporting nonsense.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use tracer_common::classify::{MprotectChange, Outcome, VmaKind};
use tracer_common::counters::{Counter, Stage};
use tracer_common::flags::{PTE_PRESENT, PTE_USER, PTE_WRITE, smaps_names};
use tracer_common::records::{Blind, ClearRecord, Record};
use tracer_common::table::{VmaRow, epoch_cell};

use super::{Probes, mechanism_of};

/// Name of the hidden subcommand that plays the child.
pub const SUBCOMMAND: &str = "self-test-child";

/// The epoch that the child's second clear opens, in which it does everything else.
const EPOCH: u32 = 2;

/// What the child found about one of its mappings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    /// What it is for.
    pub name: String,
    /// First byte.
    pub start: u64,
    /// First byte after it.
    pub end: u64,
    /// Device and inode number of the mapped file, as `/proc/self/smaps` prints them; of shared memory too.
    pub file: String,
    /// `VmFlags` of `/proc/self/smaps` after everything.
    pub flags: Vec<String>,
    /// Kind that the kernel should find.
    pub kind: String,
    /// Pages written since the clear, one write each, all of them present and write-protected before.
    pub writes: u64,
    /// Writes to pages that were soft-dirty already and write-protected again by a fork.
    pub rewrites: u64,
    /// Pages of those that pagemap shows soft-dirty.
    pub soft_dirty: u64,
    /// Pages that pagemap shows soft-dirty right after the clear.
    pub soft_dirty_after_clear: u64,
    /// Successful mprotect calls since the clear.
    pub mprotects: u64,
}

/// What the child says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Its name, as `/proc/self/comm` shows it.
    pub comm: String,
    /// Its mappings.
    pub mappings: Vec<Mapping>,
    /// Bytes of shared memory that were pinned at the second clear and still are.
    pub pinned: u64,
}

/// The child, waiting for the word to begin.
struct Playmate {
    child: Child,
}

impl Playmate {
    fn spawn() -> Result<Self> {
        let program = std::env::current_exe().context("sdtrace cannot find its own executable")?;
        let child = Command::new(program)
            .arg(SUBCOMMAND)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("the self-test's child cannot be started")?;
        Ok(Self { child })
    }

    fn play(&mut self) -> Result<Report> {
        let stdin = self
            .child
            .stdin
            .as_mut()
            .context("the self-test's child has no input")?;
        stdin
            .write_all(b"go\n")
            .context("the self-test's child went away")?;
        let stdout = self
            .child
            .stdout
            .as_mut()
            .context("the self-test's child has no output")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("the self-test's child said: {line:?}"))
    }

    fn end(mut self) -> Result<()> {
        drop(self.child.stdin.take());
        let status = self.child.wait()?;
        ensure!(status.success(), "the self-test's child ended with {status}");
        Ok(())
    }
}

impl Drop for Playmate {
    fn drop(&mut self) {
        // Only after an error; a child that has ended already is no matter.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs the self-test.
///
/// # Errors
/// Says what the programs saw and what is true.
pub fn run(probes: &mut Probes) -> Result<()> {
    check_own(probes)?;
    let mut playmate = Playmate::spawn()?;
    probes.set_self_test(playmate.child.id())?;
    let report = playmate.play()?;
    let clears = wait_for_clears(probes, playmate.child.id())?;
    check_pins(probes, &report, &clears)?;
    let [_, clear] = clears;
    compare(probes, &report, &clear)?;
    end_of(playmate, probes, clear.birth)
}

fn check_own(probes: &mut Probes) -> Result<()> {
    probes.handshake(std::path::Path::new("/proc/self/pagemap"))?;
    let own = probes.own()?;
    ensure!(
        own.namespace != 0,
        "the probe on pagemap_read did not see sdtrace's own read"
    );
    ensure!(
        own.mm_of_file == own.mm_of_task && own.mm_of_file != 0,
        "the file of sdtrace's own pagemap leads to mm {:#x}, its task to {:#x}",
        own.mm_of_file,
        own.mm_of_task
    );
    if own.level == 0 {
        let pid = std::process::id();
        ensure!(
            own.initial_pid == pid,
            "the programs read pid {} for sdtrace, it is {pid}",
            own.initial_pid
        );
    }
    Ok(())
}

/// The two clears of the child, in order.
fn wait_for_clears(probes: &mut Probes, pid: u32) -> Result<[ClearRecord; 2]> {
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut records = Vec::new();
    let mut first = None;
    while Instant::now() < deadline {
        probes.drain(&mut records);
        for record in records.drain(..) {
            let Record::Clear(clear) = record else { continue };
            if clear.tracker.pid != pid {
                continue;
            }
            match first {
                None => first = Some(clear),
                Some(first) => return Ok([first, clear]),
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let seen = u32::from(first.is_some());
    bail!("the child cleared its soft-dirty bits twice, {seen} records of it came")
}

/// Whether the programs know what was ever pinned, and what is.
fn check_pins(probes: &Probes, report: &Report, [before, after]: &[ClearRecord; 2]) -> Result<()> {
    ensure!(
        before.ever_pinned == 0 && after.ever_pinned == 1,
        "the child had never pinned pages before its first clear and had before its second; the programs read {} and \
         {} (MMF_HAS_PINNED of mm_struct.flags, or mm_struct.has_pinned)",
        before.ever_pinned,
        after.ever_pinned
    );
    if mechanism_of(probes.verdicts(), "clear_refs_pte_range").is_none() {
        // Nobody looks at pages then, and no epoch is trusted.
        return Ok(());
    }
    let unread = probes.counters().sums().get(Counter::Stage(Stage::PinsUnread));
    ensure!(
        unread == 0,
        "the programs could not read {unread} times whether pages of the child are pinned (vmemmap_base, struct page)"
    );
    let pinned = [before, after].map(|clear| clear.blind_bytes[Blind::Pinned as usize]);
    ensure!(
        pinned == [0, report.pinned],
        "the child had no shared memory pinned and then {} bytes, the programs saw {pinned:?} (struct page, struct folio)",
        report.pinned
    );
    Ok(())
}

fn compare(probes: &Probes, report: &Report, clear: &ClearRecord) -> Result<()> {
    ensure!(
        clear.birth != 0 && clear.epoch == EPOCH,
        "the second clear opened no second epoch: {clear:?}"
    );
    ensure!(
        clear.tracker.pid == clear.target.pid && clear.tracker.comm == clear.target.comm,
        "the child cleared itself, but tracker and target differ: {clear:?}"
    );
    let comm: Vec<u8> = clear
        .tracker
        .comm
        .iter()
        .copied()
        .take_while(|&byte| byte != 0)
        .collect();
    ensure!(
        comm == report.comm.as_bytes(),
        "the child is called {:?}, the programs read {:?}",
        report.comm,
        String::from_utf8_lossy(&comm)
    );
    ensure!(
        clear.result == 1
            && clear.entry_ns < clear.first_walk_ns
            && clear.first_walk_ns < clear.header.time_ns,
        "result or times of the clear are impossible: {clear:?}"
    );
    let rows: Vec<VmaRow> = probes
        .rows()
        .used()
        .map(|(_, row)| row)
        .filter(|row| row.key.birth == clear.birth)
        .collect();
    for mapping in &report.mappings {
        ensure!(
            mapping.soft_dirty_after_clear == 0 && mapping.soft_dirty == mapping.writes,
            "this kernel does not track soft-dirty pages: after a clear {} pages of {} are soft-dirty, after {} \
             writes {}",
            mapping.soft_dirty_after_clear,
            mapping.name,
            mapping.writes,
            mapping.soft_dirty
        );
        check_mapping(&rows, mapping)?;
    }
    let sums = probes.counters().sums();
    // Nothing lies beside the child's mappings that they could have merged with: a merge means a misread range.
    for (change, expected) in [
        (MprotectChange::LostWrite, 1),
        (MprotectChange::GainedWrite, 1),
        (MprotectChange::Merged, 0),
        (MprotectChange::SoftDirtyLost, 0),
    ] {
        let counted = sums.get(Counter::Mprotect(change));
        ensure!(
            counted == expected,
            "{} mprotect calls {}, not {expected}",
            counted,
            change.label()
        );
    }
    let differ = sums.get(Counter::Stage(Stage::MprotectFlagsDiffer));
    ensure!(
        differ == 0,
        "{differ} mprotect calls gave other flags than newflags says"
    );
    Ok(())
}

fn check_mapping(rows: &[VmaRow], mapping: &Mapping) -> Result<()> {
    let name = &mapping.name;
    let of_mapping: Vec<&VmaRow> = rows.iter().filter(|row| row.key.start == mapping.start).collect();
    let shown: Vec<&str> = mapping.flags.iter().map(String::as_str).collect();
    let Some(last) = of_mapping
        .iter()
        .find(|row| smaps_names(row.key.flags).eq(shown.iter().copied()))
    else {
        let read: Vec<String> = of_mapping
            .iter()
            .map(|row| format!("{:#x}", row.key.flags))
            .collect();
        bail!(
            "smaps shows flags {shown:?} for {name} at {:#x}, the programs read {read:?}",
            mapping.start
        );
    };
    ensure!(
        last.end == mapping.end,
        "{name} ends at {:#x}, the programs read {:#x}",
        mapping.end,
        last.end
    );
    let (major, minor) = (last.device >> 20, last.device & 0xf_ffff);
    let file = format!("{major:02x}:{minor:02x} {}", last.inode);
    ensure!(
        file == mapping.file,
        "smaps shows file {} for {name}, the programs read {file}",
        mapping.file
    );
    ensure!(
        last.armed_epoch == EPOCH,
        "the clear met {name}, the programs did not see it there"
    );
    let kind = VmaKind::from_raw(u8::try_from(last.kind)?).map(VmaKind::label);
    ensure!(
        kind == Some(mapping.kind.as_str()),
        "{name} is {}, the programs say {kind:?}",
        mapping.kind
    );
    // Every protection that lets user space read has these two bits. Another word of the VMA would hardly: pointers
    // are multiples of eight.
    let readable = PTE_PRESENT | PTE_USER;
    ensure!(
        last.key.page_prot & readable == readable,
        "vm_page_prot of {name} is {:#x}, which lets nobody read",
        last.key.page_prot
    );
    let writable = last.key.page_prot & PTE_WRITE != 0;
    ensure!(
        !writable,
        "vm_page_prot of armed {name} is {:#x}, which has write",
        last.key.page_prot
    );
    let faults: u64 = of_mapping.iter().map(|row| row.faults[epoch_cell(EPOCH)]).sum();
    ensure!(
        faults == mapping.writes,
        "{} writes to {name} made {faults} write-notify faults in the table",
        mapping.writes
    );
    let already = of_mapping
        .iter()
        .map(|row| row.outcomes[Outcome::AlreadySoftDirty as usize]);
    let already: u64 = already.sum();
    ensure!(
        already == mapping.rewrites,
        "{} writes to soft-dirty pages of {name}, the programs saw {already}",
        mapping.rewrites
    );
    let mprotects: u64 = of_mapping.iter().map(|row| row.mprotects).sum();
    ensure!(
        mprotects == mapping.mprotects,
        "{} mprotect calls on {name}, the programs saw {mprotects}",
        mapping.mprotects
    );
    Ok(())
}

/// Ends the child, sees that its exit was noticed, and gives its rows back.
fn end_of(playmate: Playmate, probes: &mut Probes, birth: u64) -> Result<()> {
    playmate.end()?;
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut records = Vec::new();
    let mut seen = false;
    while !seen {
        ensure!(
            Instant::now() < deadline,
            "the child exited, but no record of it came"
        );
        probes.drain(&mut records);
        seen = records
            .drain(..)
            .any(|record| matches!(record, Record::Exit(exit) if exit.birth == birth));
        std::thread::sleep(Duration::from_millis(2));
    }
    probes.forget(birth)
}
