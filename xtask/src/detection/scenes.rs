//! Processes of the cross-check's own: each does one thing step by step, and knows what it did.

use std::fs;
use std::io::{BufRead as _, stdin};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::mm::{Advice, MremapFlags, madvise, mremap_fixed};
use serde::{Deserialize, Serialize};

use super::verify_scenes;
use crate::workload::area::{Area, HUGE_PAGES};
use crate::workload::proc::{PAGE, clear_own, soft_dirty_pages};

const KSM: &str = "/sys/kernel/mm/ksm";

/// What a scene tells after each step.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Told {
    /// Ranges of addresses.
    pub ranges: Vec<Range<u64>>,
    /// Pages in each of them that were written since the clear and that pagemap shows as clean.
    pub missed: Vec<u64>,
}

/// The scenes by name.
///
/// # Errors
/// If there is none of this name, or if it fails.
pub fn play(name: &str) -> Result<()> {
    match name {
        "two-causes" => two_causes(),
        "read-then-write" => read_then_write(),
        "armed" => armed(),
        "chunks" => chunks(),
        "mappings" => mappings(),
        "many-clears" => many_clears(),
        "mapped-file" => mapped_file(),
        "past-the-tables" => verify_scenes::past_the_tables(),
        "late-mapper" => verify_scenes::late_mapper(),
        "nothing-missed" => verify_scenes::nothing_missed(),
        "write-and-clear" => verify_scenes::write_and_clear(),
        _ => bail!("no scene is called {name}"),
    }
}

/// Tells what has been done, and waits for the word to go on.
pub(super) fn step(told: &Told) -> Result<()> {
    println!("{}", serde_json::to_string(told)?);
    let mut line = String::new();
    stdin().lock().read_line(&mut line)?;
    // Whoever asked has gone: there is nobody to go on for.
    ensure!(!line.is_empty(), "the input has ended");
    Ok(())
}

fn range(area: &Area) -> Range<u64> {
    area.start()..area.page(area.pages())
}

pub(super) fn told(areas: &[(&Area, u64)]) -> Result<Told> {
    let missed: Result<Vec<u64>> = areas
        .iter()
        .map(|(area, written)| Ok(written - soft_dirty_pages(area.start(), area.pages())?.min(*written)))
        .collect();
    Ok(Told {
        ranges: areas.iter().map(|(area, _)| range(area)).collect(),
        missed: missed?,
    })
}

pub(super) fn advise(area: &Area, advice: Advice) -> Result<()> {
    // SAFETY: a mapping of our own, to whose content nothing refers.
    unsafe { madvise(area.pointer(0).cast(), area.pages() * PAGE, advice)? };
    Ok(())
}

/// In one epoch KSM takes the bits of one range, a zap those of another, and a third is moved as a whole page table.
fn two_causes() -> Result<()> {
    const PAGES: usize = 64;
    let merged = Area::private("merged", PAGES)?;
    let zapped = Area::shared("zapped", PAGES)?;
    let _ = merged.poke(0..PAGES);
    let _ = zapped.poke(0..PAGES);
    let (source, target) = (Area::huge("source")?, Area::huge("target")?);
    for area in [&source, &target] {
        // Pages of 4 KiB: what moves a huge page marks it.
        advise(area, Advice::LinuxNoHugepage)?;
        let _ = area.poke(0..HUGE_PAGES);
    }
    clear_own()?;
    for page in 0..PAGES {
        // SAFETY: a page of our own mapping; the same content in every page is what KSM looks for.
        unsafe { merged.pointer(page).write_bytes(0x5a, PAGE) };
    }
    advise(&merged, Advice::LinuxMergeable)?;
    let _ = zapped.poke(0..PAGES);
    advise(&zapped, Advice::LinuxDontNeed)?;
    // SAFETY: both mappings are our own; the target's content is given up.
    let moved = unsafe {
        mremap_fixed(
            source.pointer(0).cast(),
            HUGE_PAGES * PAGE,
            HUGE_PAGES * PAGE,
            MremapFlags::MAYMOVE,
            target.pointer(0).cast(),
        )?
    };
    ensure!(moved.cast() == target.pointer(0), "mremap moved elsewhere");
    until_merged()?;
    let all = PAGES as u64;
    step(&told(&[
        (&merged, all),
        (&zapped, all),
        (&target, HUGE_PAGES as u64),
    ])?)
}

/// Runs KSM until it has been through everything twice.
fn until_merged() -> Result<()> {
    let put = |name: &str, value: &str| {
        let path = format!("{KSM}/{name}");
        fs::write(&path, value).with_context(|| path)
    };
    let scans = || -> Result<u64> {
        let path = format!("{KSM}/full_scans");
        Ok(fs::read_to_string(&path).with_context(|| path)?.trim().parse()?)
    };
    put("pages_to_scan", "10000")?;
    put("sleep_millisecs", "10")?;
    put("run", "1")?;
    let (before, start) = (scans()?, Instant::now());
    while scans()? < before + 3 {
        ensure!(start.elapsed() < Duration::from_secs(20), "KSM does not go round");
        thread::sleep(Duration::from_millis(20));
    }
    put("run", "0")
}

/// The snippet of 2014: shared memory is armed, read, and then written.
fn read_then_write() -> Result<()> {
    const PAGES: usize = 512;
    let area = Area::shared("shared", PAGES)?;
    clear_own()?;
    area.read(0..PAGES);
    step(&told(&[(&area, 0)])?)?;
    let _ = area.poke(0..PAGES / 2);
    step(&told(&[(&area, PAGES as u64 / 2)])?)
}

/// Clears itself and writes, and nothing else.
fn armed() -> Result<()> {
    const PAGES: usize = 16;
    let area = Area::private("armed", PAGES)?;
    let _ = area.poke(0..PAGES);
    clear_own()?;
    let _ = area.poke(0..PAGES);
    step(&told(&[(&area, PAGES as u64)])?)
}

/// Writes one page in each of more pieces of 2 MiB than the smallest table of page records has places for.
fn chunks() -> Result<()> {
    const PIECES: usize = 160;
    let area = Area::private("pieces", PIECES * HUGE_PAGES)?;
    for piece in 0..PIECES {
        let _ = area.poke(piece * HUGE_PAGES..piece * HUGE_PAGES + 1);
    }
    clear_own()?;
    for piece in 0..PIECES {
        let _ = area.poke(piece * HUGE_PAGES..piece * HUGE_PAGES + 1);
    }
    step(&told(&[(&area, PIECES as u64)])?)
}

/// More mappings than the smallest table of VMA states has rows.
fn mappings() -> Result<()> {
    let areas: Result<Vec<_>> = (0..320).map(|_| Area::private("one of many", 1)).collect();
    let areas = areas?;
    clear_own()?;
    let told_areas: Vec<_> = areas.iter().map(|area| (area, area.poke(0..1).min(1))).collect();
    step(&told(&told_areas[..1])?)
}

/// Clears so often that the records of it fill the ring buffer while nobody reads it.
fn many_clears() -> Result<()> {
    let area = Area::private("cleared", 1)?;
    clear_own()?;
    step(&told(&[(&area, 0)])?)?;
    for _ in 0..6_000 {
        clear_own()?;
    }
    step(&told(&[(&area, 0)])?)
}

/// Pages of [`mapped_file`] that are mapped; the file is twice as long.
pub const FILE_PAGES: usize = 4096;

/// The file of [`mapped_file`], for others to write.
#[must_use]
pub fn path_of_mapped_file(pid: u32) -> PathBuf {
    format!("/tmp/mapped-file-{pid}").into()
}

/// Maps the first half of a file shared, and a piece of it private; writes four pages of it by write(2) when asked.
fn mapped_file() -> Result<()> {
    let path = path_of_mapped_file(std::process::id());
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .with_context(|| path.display().to_string())?;
    let private = Area::file("private", "private_file", &file, 64)?;
    let shared = Area::file("mapped", "shared_file", &file, FILE_PAGES)?;
    file.set_len(2 * (FILE_PAGES * PAGE) as u64)?;
    private.read(0..64);
    let _ = shared.poke(0..FILE_PAGES);
    clear_own()?;
    step(&told(&[(&shared, 0)])?)?;
    file.write_all_at(&[1; 4 * PAGE], 8 * PAGE as u64)?;
    step(&told(&[(&shared, 4)])?)
}
