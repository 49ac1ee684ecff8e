//! A process that writes to its memory without pause: what a tracker follows on a quiet day.

use std::io::Read as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::workload::area::Area;

/// Between two rounds of writes.
const PAUSE: Duration = Duration::from_millis(200);

/// Writes every few pages of some memory again and again until the input ends. `name` is what the kernel shall call it.
///
/// # Errors
/// If memory cannot be had.
pub fn run(name: &str, pages: usize) -> Result<()> {
    let word = std::ffi::CString::new(name)?;
    rustix::thread::set_name(&word).context("prctl(PR_SET_NAME)")?;
    let heap = Area::private("heap", pages)?;
    let _ = heap.poke(0..pages);
    let over = Arc::new(AtomicBool::new(false));
    let ended = Arc::clone(&over);
    thread::spawn(move || {
        // Whoever started us keeps the other end; an error is an end, too.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        ended.store(true, Ordering::Relaxed);
    });
    println!("ready");
    for round in 0.. {
        if over.load(Ordering::Relaxed) {
            break;
        }
        // A patch that wanders, so that each epoch has another picture.
        let first = round * 7 % (pages - pages / 8);
        let _ = heap.poke(first..first + pages / 8);
        thread::sleep(PAUSE);
    }
    Ok(())
}
