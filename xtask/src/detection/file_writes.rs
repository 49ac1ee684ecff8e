//! The case of a mapped file that is written by write(2).

use std::fs::{File, OpenOptions, remove_file};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::cases::{Scene, pages, wait_for};
use super::said::Detection;
use super::scenes::{FILE_PAGES, path_of_mapped_file};
use crate::suite::daemon::Daemon;
use crate::workload::proc::PAGE;

const CAUSE: &str = "file-write";

/// How often one page is written in a loop: a record of each would fill the ring buffer many times over.
const LOOP: u64 = 100_000;

/// Each write is told, with the exact pages where it is mapped shared, and nowhere else; a loop of writes fills nothing.
///
/// # Errors
/// What sdtrace says instead.
pub fn play(daemon: &Daemon) -> Result<()> {
    let mut scene = Scene::start("mapped-file")?;
    let path = path_of_mapped_file(scene.pid());
    let file = OpenOptions::new()
        .write(true)
        .open(&path)
        .with_context(|| path.display().to_string())?;
    remove_file(&path)?;
    let start = scene.told.ranges.first().context("no range was told")?.start;
    let says = |pid, what: &str, wanted: &[(usize, usize)]| said(daemon, pid, start, what, wanted);
    wait_for(daemon, scene.pid(), |detection| detection.verdict == "trusted")
        .context("before anything is written")?;
    // Behind what is mapped: the next write's record comes after it.
    write(&file, FILE_PAGES..FILE_PAGES + 8)?;
    write(&file, 20..24)?;
    says(scene.pid(), "by another process", &[(20, 24)])?;
    // While nobody reads the ring buffer.
    let sdtrace = i32::try_from(daemon.pid()).ok().and_then(Pid::from_raw);
    let sdtrace = sdtrace.context("sdtrace has a process id")?;
    kill_process(sdtrace, Signal::STOP)?;
    let written = (0..LOOP).try_for_each(|round| {
        file.write_all_at(b"again", (20 * PAGE) as u64 + round % (4 * PAGE as u64 - 8))
    });
    kill_process(sdtrace, Signal::CONT)?;
    written?;
    says(scene.pid(), "in a loop", &[(20, 24)])?;
    scene.go_on()?;
    says(scene.pid(), "by its own process", &[(8, 12), (20, 24)])?;
    // A stream: what is told of it becomes coarser, but this one begins and ends where a coarse piece does.
    for page in 1024..3072 {
        write(&file, page..page + 1)?;
    }
    let stream = says(scene.pid(), "in a stream", &[(8, 12), (20, 24), (1024, 3072)])?;
    let lost = stream.reasons.iter().find(|reason| reason.kind == "unknown");
    ensure!(lost.is_none(), "something was lost: {lost:?}");
    ensure!(stream.verdict == "suspect", "the verdict is {}", stream.verdict);
    Ok(())
}

/// Waits until sdtrace tells of as many pages as are `wanted`, and holds it against them: each first page and the one
/// behind the last, by their numbers in the mapping at `start`.
fn said(daemon: &Daemon, pid: u32, start: u64, what: &str, wanted: &[(usize, usize)]) -> Result<Detection> {
    let sum = wanted
        .iter()
        .map(|(first, end)| (end - first) as u64)
        .sum::<u64>();
    let enough = |detection: &Detection| pages(detection, "hazard", CAUSE) >= sum;
    let detection = wait_for(daemon, pid, enough).with_context(|| what.to_owned())?;
    let ranges = detection.causes.iter().flat_map(|found| &found.ranges);
    let told: Vec<_> = ranges.map(|range| range.start.0..range.end.0).collect();
    let address = |page: usize| start + (page * PAGE) as u64;
    let wanted: Vec<_> = wanted
        .iter()
        .map(|&(first, end)| address(first)..address(end))
        .collect();
    ensure!(told == wanted, "{what}: told {told:x?}, written {wanted:x?}");
    ensure!(
        detection.causes.iter().all(|found| found.cause == CAUSE),
        "{what}: {:?}",
        detection.causes
    );
    println!("file-writes: {what}: {sum} pages");
    Ok(detection)
}

/// Writes whole pages.
fn write(file: &File, pages: Range<usize>) -> Result<()> {
    Ok(file.write_all_at(&vec![2; pages.len() * PAGE], (pages.start * PAGE) as u64)?)
}
