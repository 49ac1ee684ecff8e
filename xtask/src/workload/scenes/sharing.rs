//! Pages shared between a parent and its child after a fork.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use super::simple;
use crate::workload::area::{Area, HUGE_PAGES};
use crate::workload::proc::{PAGE, huge_kib, kernel_knows};
use crate::workload::process::{Child, forked};
use crate::workload::report::{Report, State};
use crate::workload::{Scene, report_of};

const PAGES: usize = 64;
const DIRTY: usize = 16;

fn outcome(name: &str, count: u64) -> BTreeMap<String, u64> {
    BTreeMap::from([(name.to_owned(), count)])
}

/// A scene whose children stay until it ends, so that their address spaces can be looked at.
fn with_child(area: Area, mut act: impl FnMut(&mut Area) -> Result<Child> + 'static) -> Box<dyn Scene> {
    let mut children = Vec::new();
    simple(area, move |area| {
        let child = act(area)?;
        let report = child.report.clone();
        children.push(child);
        Ok(vec![report])
    })
}

/// Some pages are written before the fork and are soft-dirty then; parent and child write all of them after it.
pub fn fork() -> Result<Box<dyn Scene>> {
    let area = Area::private("fork", PAGES)?;
    let _ = area.poke(0..PAGES);
    Ok(with_child(area, |area| {
        let before = area.write(0..DIRTY);
        let child = forked(|| write_all(area))?;
        let dirty = area.poke(0..DIRTY);
        let after = area.write(DIRTY..PAGES);
        let state = State {
            outcomes: outcome("already_soft_dirty", dirty),
            ..area.armed(before + after)
        };
        area.expect(state);
        Ok(child)
    }))
}

/// A child that writes to pages of which its parent had written some, and exits.
pub fn brief_fork() -> Result<Box<dyn Scene>> {
    let area = Area::private("brief fork", PAGES)?;
    let _ = area.poke(0..PAGES);
    Ok(simple(area, |area| {
        let faults = area.write(0..DIRTY);
        let child = forked(|| write_all(area))?;
        let report = child.report.clone();
        child.end()?;
        area.expect(area.armed(faults));
        Ok(vec![report])
    }))
}

/// In a child: writes to all pages, of which the parent had written the first.
fn write_all(area: &Area) -> Result<Report> {
    let mut area = area.clone();
    let dirty = area.poke(0..DIRTY);
    let faults = area.write(DIRTY..PAGES);
    let state = State {
        outcomes: outcome("already_soft_dirty", dirty),
        armed_at_clear: false,
        ..area.armed(faults)
    };
    area.expect(state);
    report_of(vec![&mut area], Vec::new())
}

/// The child writes to three small pages of a huge page that it shares with its parent: the first write splits
/// the huge page (`VM_FAULT_FALLBACK`), then each copies a small one.
///
/// Newer kernels keep the huge page's dirty bit in the small ones, and on x86 that makes them all soft-dirty
/// (`__split_huge_pmd_locked`): then the three writes find soft-dirty pages.
pub fn huge_fork() -> Result<Box<dyn Scene>> {
    let area = Area::huge("huge fork")?;
    let _ = area.poke(0..1);
    ensure!(huge_kib(area.start())? == 2048, "the kernel gave no huge page");
    Ok(with_child(area, |area| {
        let child = forked(|| {
            let mut area = area.clone();
            let writes = area.write(0..3);
            let soft_dirty = area.soft_dirty()?;
            let mut outcomes = outcome("fallback", 1);
            let mut faults = writes;
            if soft_dirty == HUGE_PAGES as u64 {
                area.count_written(soft_dirty - writes);
                outcomes.insert("already_soft_dirty".to_owned(), writes);
                faults = 0;
            }
            let state = State {
                outcomes,
                armed_at_clear: false,
                ..area.armed(faults)
            };
            area.expect(state);
            report_of(vec![&mut area], Vec::new())
        })?;
        area.expect(area.armed(0));
        Ok(child)
    }))
}

/// A pin for reading of pages that a child shares: kernels that know `FAULT_FLAG_UNSHARE` copy them without a
/// write. Then they are written: each fault is handled.
pub fn unshare() -> Result<Box<dyn Scene>> {
    let area = Area::private("unshare", PAGES)?;
    let _ = area.poke(0..PAGES);
    let unshares = kernel_knows("FAULT_FLAG_UNSHARE")?;
    Ok(with_child(area, move |area| {
        let child = forked(|| {
            Ok(Report {
                pid: std::process::id(),
                areas: Vec::new(),
                children: Vec::new(),
            })
        })?;
        pin_for_reading(area, 4)?;
        let faults = area.write(0..8);
        let mut state = area.armed(faults);
        if unshares {
            state.outcomes = outcome("unshare", 4);
        }
        area.expect(state);
        Ok(child)
    }))
}

/// `process_vm_readv` of ourselves: it pins the pages (`FOLL_PIN`) without asking for write access.
fn pin_for_reading(area: &Area, pages: usize) -> Result<()> {
    let mut buffer = vec![0u8; pages * PAGE];
    let local = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    let remote = libc::iovec {
        iov_base: area.pointer(0).cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: both ranges are ours; the call writes to `buffer` alone.
    let read =
        unsafe { libc::process_vm_readv(libc::getpid(), &raw const local, 1, &raw const remote, 1, 0) };
    ensure!(
        usize::try_from(read).ok() == Some(buffer.len()),
        "process_vm_readv: {}",
        std::io::Error::last_os_error()
    );
    Ok(())
}
