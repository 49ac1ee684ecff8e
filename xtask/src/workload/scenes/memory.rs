//! Writes to memory of each kind.

use std::fs::{self, File};

use anyhow::{Result, ensure};
use rustix::fs::{MemfdFlags, memfd_create};

use super::simple;
use crate::workload::Scene;
use crate::workload::area::{Area, HUGE_PAGES};
use crate::workload::proc::huge_kib;
use crate::workload::report::State;

const PAGES: usize = 256;
const FEW_PAGES: usize = 64;

/// The snippet of the kernel thread of 2014: shared memory, cleared, read, then written. A kernel with that bug
/// maps the pages writable at the read, and sees none of the writes.
pub fn seed() -> Result<Box<dyn Scene>> {
    Ok(simple(Area::shared("seed", PAGES)?, |area| {
        area.read(0..PAGES);
        let faults = area.write(0..PAGES);
        area.expect(area.armed(faults));
        Ok(Vec::new())
    }))
}

/// An action that writes every page once.
fn write_all(area: Area) -> Box<dyn Scene> {
    simple(area, |area| {
        let faults = area.write(0..area.pages());
        area.expect(area.armed(faults));
        Ok(Vec::new())
    })
}

/// Present private pages.
pub fn private() -> Result<Box<dyn Scene>> {
    let area = Area::private("private", PAGES)?;
    let _ = area.poke(0..PAGES);
    Ok(write_all(area))
}

/// Present shared pages.
pub fn shared() -> Result<Box<dyn Scene>> {
    let area = Area::shared("shared", PAGES)?;
    let _ = area.poke(0..PAGES);
    Ok(write_all(area))
}

/// Private pages that were read only: the kernel's zero page is mapped, and each write copies it. Under the VMA's
/// own lock the first of them is asked to come again (no `anon_vma` yet).
pub fn zero_pages() -> Result<Box<dyn Scene>> {
    Ok(simple(Area::private("zero pages", PAGES)?, |area| {
        area.read(0..PAGES);
        let faults = area.write(0..PAGES);
        let state = State {
            retries_at_most: 1,
            ..area.armed(faults)
        };
        area.expect(state);
        Ok(Vec::new())
    }))
}

/// A huge page: one fault, whatever is written in it.
pub fn huge() -> Result<Box<dyn Scene>> {
    let area = Area::huge("huge")?;
    let _ = area.poke(0..1);
    ensure!(
        huge_kib(area.start())? == 2048,
        "the kernel gave no huge page; is /sys/kernel/mm/transparent_hugepage/enabled `never`?"
    );
    Ok(simple(area, |area| {
        area.write(0..HUGE_PAGES);
        let state = State {
            huge_faults: 1,
            ..area.armed(0)
        };
        area.expect(state);
        Ok(Vec::new())
    }))
}

/// A file on the tmpfs /dev/shm, which nobody else sees any more.
fn file(name: &str) -> Result<File> {
    let path = format!("/dev/shm/sdtrace-workload-{}-{name}", std::process::id());
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

/// A shared mapping of a file.
pub fn shared_file() -> Result<Box<dyn Scene>> {
    let area = Area::file("shared file", "shared_file", &file("shared")?, FEW_PAGES)?;
    let _ = area.poke(0..FEW_PAGES);
    Ok(write_all(area))
}

/// A private mapping of a file: half its pages were copied before the clear, half are still the file's own.
pub fn private_file() -> Result<Box<dyn Scene>> {
    let area = Area::file("private file", "private_file", &file("private")?, FEW_PAGES)?;
    area.read(0..FEW_PAGES);
    let _ = area.poke(0..FEW_PAGES / 2);
    Ok(write_all(area))
}

/// Shared memory without a path.
pub fn memfd() -> Result<Box<dyn Scene>> {
    let file = File::from(memfd_create("workload", MemfdFlags::CLOEXEC)?);
    let area = Area::file("memfd", "shared_anon", &file, FEW_PAGES)?;
    let _ = area.poke(0..FEW_PAGES);
    Ok(write_all(area))
}

/// One page more in every epoch than in the one before.
pub fn epochs() -> Result<Box<dyn Scene>> {
    let area = Area::private("epochs", PAGES)?;
    let _ = area.poke(0..PAGES);
    let mut round = 0;
    Ok(simple(area, move |area| {
        round += 1;
        let faults = area.write(0..round);
        area.expect(area.armed(faults));
        Ok(Vec::new())
    }))
}
