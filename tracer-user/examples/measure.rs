//! Measures inside a guest; `cargo xtask bench` boots it, reads what this prints and writes the tables.
//!
//! `measure cost`: nanoseconds for write-notify faults, first touches and clears under each set of probes. Under the emulator's
//! instruction clock a nanosecond is an instruction. `measure loss READER`: what bare counting probes miss of
//! 200,000 faults while maps are read on the same CPU.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
use sdtrace::probes::verdict::AttachMode;
use sdtrace::probes::{Bare, Filters, ProbeOptions, Probes, self_test, self_test_child};
use serde::Serialize;

const PAGE: usize = 4096;
const PAGES: usize = 4096;
const PAGES_IN_A_SUM: f64 = 4096.0;
/// Of what is cleared: 128 MiB, so that the VMAs of the program itself do not count for much.
const CLEARED_PAGES: usize = 32_768;
const CLEARED_PAGES_IN_A_SUM: f64 = 32_768.0;
const ROUNDS: usize = 9;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .as_slice()
    {
        [self_test::SUBCOMMAND] => self_test_child::play(),
        ["be-tracked"] => be_tracked(),
        ["cost"] => cost(),
        ["rounds", setup] => rounds_here(setup),
        ["loss", reader] => loss(reader),
        _ => bail!("usage: measure cost | measure loss none|lookup|mapped"),
    }
}

/// A mapping of so many pages, with a page without access on each side: nothing may merge with it, because what was
/// mapped since the last clear is not audited.
struct Memory {
    start: *mut u8,
    pages: usize,
}

impl Memory {
    fn new(flags: MapFlags, pages: usize) -> Result<Self> {
        let memory = Self::untouched(flags, pages)?;
        memory.write();
        Ok(memory)
    }

    fn untouched(flags: MapFlags, pages: usize) -> Result<Self> {
        let length = pages * PAGE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let reserved =
            unsafe { mmap_anonymous(std::ptr::null_mut(), length + 2 * PAGE, ProtFlags::empty(), flags)? };
        // SAFETY: within the reservation.
        let address = unsafe { reserved.byte_add(PAGE) };
        // SAFETY: a part of our own mapping, which nothing uses yet.
        unsafe {
            mmap_anonymous(
                address,
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                flags | MapFlags::FIXED,
            )?;
            rustix::mm::madvise(address, length, rustix::mm::Advice::LinuxNoHugepage)?;
        }
        Ok(Self {
            start: address.cast(),
            pages,
        })
    }

    fn unmap(self) -> Result<()> {
        // SAFETY: our own mapping, which nobody uses after this.
        unsafe { rustix::mm::munmap(self.start.byte_sub(PAGE).cast(), (self.pages + 2) * PAGE)? };
        Ok(())
    }

    /// Writes one byte into each page.
    fn write(&self) {
        for page in 0..self.pages {
            // SAFETY: within the mapping.
            unsafe { self.start.add(page * PAGE).write_volatile(1) };
        }
    }
}

fn clear() -> Result<()> {
    fs::write("/proc/self/clear_refs", "4").context("/proc/self/clear_refs")
}

#[derive(Serialize)]
struct Cost {
    setup: String,
    write_ns_per_page: Vec<f64>,
    touch_ns_per_page: Vec<f64>,
    clear_ns_per_page: Vec<f64>,
    idle_clear_ns_per_page: Vec<f64>,
    file_write_ns_per_page: Vec<f64>,
}

/// Measures in a process of its own, whose memory is the same whatever the probes took.
fn rounds(setup: &str) -> Result<()> {
    let status = Command::new(std::env::current_exe()?)
        .args(["rounds", setup])
        .status()?;
    anyhow::ensure!(status.success(), "measuring {setup} ended with {status}");
    Ok(())
}

fn rounds_here(setup: &str) -> Result<()> {
    let memory = Memory::new(MapFlags::PRIVATE, PAGES)?;
    let large = Memory::new(MapFlags::PRIVATE, CLEARED_PAGES)?;
    let mut cost = Cost {
        setup: setup.to_owned(),
        write_ns_per_page: Vec::new(),
        touch_ns_per_page: Vec::new(),
        clear_ns_per_page: Vec::new(),
        idle_clear_ns_per_page: Vec::new(),
        file_write_ns_per_page: Vec::new(),
    };
    let path = std::env::temp_dir().join(format!("measure-{}", std::process::id()));
    let file = fs::File::create(&path).with_context(|| path.display().to_string())?;
    fs::remove_file(&path)?;
    for round in 0..=ROUNDS {
        let start = Instant::now();
        clear()?;
        let cleared = start.elapsed();
        // The clear has taken the bits of this program's own stack and heap, too. Their faults are no part of the next.
        fs::write("/dev/null", "4")?;
        let start = Instant::now();
        clear()?;
        let cleared_again = start.elapsed();
        let start = Instant::now();
        memory.write();
        let written = start.elapsed();
        large.write();
        let fresh = Memory::untouched(MapFlags::PRIVATE, PAGES)?;
        let start = Instant::now();
        fresh.write();
        let touched = start.elapsed();
        fresh.unmap()?;
        let start = Instant::now();
        for page in 0..PAGES as u64 {
            file.write_all_at(&[1; PAGE], page * PAGE as u64)?;
        }
        let file_written = start.elapsed();
        // The first round warms up.
        if round > 0 {
            let per_page = |time: Duration| time.as_secs_f64() * 1e9 / PAGES_IN_A_SUM;
            let per_cleared_page =
                |time: Duration| time.as_secs_f64() * 1e9 / (PAGES_IN_A_SUM + CLEARED_PAGES_IN_A_SUM);
            cost.write_ns_per_page.push(per_page(written));
            cost.touch_ns_per_page.push(per_page(touched));
            cost.clear_ns_per_page.push(per_cleared_page(cleared));
            cost.idle_clear_ns_per_page.push(per_cleared_page(cleared_again));
            cost.file_write_ns_per_page.push(per_page(file_written));
        }
    }
    println!("{}", serde_json::to_string(&cost)?);
    Ok(())
}

/// A process that is tracked and does nothing: it keeps the programs from their shortest way.
struct Tracked(Child);

impl Tracked {
    fn start() -> Result<Self> {
        let child = Command::new(std::env::current_exe()?)
            .arg("be-tracked")
            .stdin(Stdio::piped())
            .spawn()?;
        Ok(Self(child))
    }

    fn track(&mut self, probes: &mut Probes) -> Result<()> {
        fs::write(format!("/proc/{}/clear_refs", self.0.id()), "4")?;
        let mut records = Vec::new();
        probes.drain(&mut records);
        anyhow::ensure!(
            !probes.live_births()?.is_empty(),
            "the other process is not tracked"
        );
        Ok(())
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn be_tracked() -> Result<()> {
    std::io::stdin().read_line(&mut String::new())?;
    Ok(())
}

fn cost() -> Result<()> {
    // Just after boot a fault costs 2,000 instructions more.
    std::thread::sleep(Duration::from_secs(5));
    rounds("nothing")?;
    {
        let _bare = Bare::attach("bare_kprobe", "do_wp_page")?;
        rounds("bare kprobe")?;
    }
    {
        let _bare = Bare::attach("bare_fexit", "do_wp_page")?;
        rounds("bare fexit")?;
    }
    let setups = [
        (
            AttachMode::Fentry,
            false,
            ["fentry, nothing tracked", "fentry, untracked", "fentry, tracked"],
        ),
        (
            AttachMode::Kprobe,
            false,
            ["kprobe, nothing tracked", "kprobe, untracked", "kprobe, tracked"],
        ),
        (
            AttachMode::Kprobe,
            true,
            [
                "kprobe with return, nothing tracked",
                "kprobe with return, untracked",
                "kprobe with return, tracked",
            ],
        ),
    ];
    for (attach, fault_return, [nothing, untracked, tracked]) in setups {
        let mut other = Tracked::start()?;
        let filters = Filters {
            pids: vec![other.0.id()],
            ..Filters::default()
        };
        let mut probes = Probes::start(&ProbeOptions {
            attach,
            fault_return,
            filters,
            ..ProbeOptions::default()
        })?;
        anyhow::ensure!(probes.live_births()?.is_empty(), "something is tracked already");
        // As the daemon has it while nothing is tracked.
        probes.stop_watching_writes()?;
        rounds(nothing)?;
        probes.watch_writes()?;
        other.track(&mut probes)?;
        rounds(untracked)?;
        drop(other);
        drop(probes);
        let probes = Probes::start(&ProbeOptions {
            attach,
            fault_return,
            ..ProbeOptions::default()
        })?;
        rounds(tracked)?;
        drop(probes);
    }
    rounds("nothing again")
}

const FAULTS: usize = 200_000;

/// Counts faults by both bare probes while a reader runs on the CPU of the writer.
fn loss(reader: &str) -> Result<()> {
    let kprobe = Bare::attach("bare_kprobe", "do_wp_page")?;
    let fexit = Bare::attach("bare_fexit", "do_wp_page")?;
    let memory = Memory::new(MapFlags::PRIVATE, PAGES)?;
    let stop = AtomicBool::new(false);
    let reads = AtomicU64::new(0);
    let before = (kprobe.count()?, fexit.count()?);
    let mut faults = 0;
    std::thread::scope(|scope| -> Result<()> {
        let (stop, reads, kprobe) = (&stop, &reads, &kprobe);
        let handle = scope.spawn(move || -> Result<()> {
            pin_to_first_cpu()?;
            let mapped = fs::File::open("/proc/self/stat")?;
            while !stop.load(Ordering::Relaxed) {
                match reader {
                    "lookup" => drop(kprobe.count()?),
                    // The same load without bpf(2).
                    "mapped" => drop(mapped.read_at(&mut [0; 64], 0)?),
                    _ => std::thread::sleep(Duration::from_millis(1)),
                }
                reads.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        pin_to_first_cpu()?;
        while faults < FAULTS {
            clear()?;
            memory.write();
            faults += PAGES;
        }
        stop.store(true, Ordering::Relaxed);
        handle
            .join()
            .map_err(|_| anyhow::anyhow!("the reader panicked"))?
    })?;
    println!(
        "{}",
        serde_json::json!({
            "reader": reader, "writes": faults, "reads": reads.into_inner(),
            "kprobe": kprobe.count()? - before.0, "fexit": fexit.count()? - before.1,
            "kprobe_misses": kprobe.misses(), "fexit_misses": fexit.misses(),
        })
    );
    Ok(())
}

fn pin_to_first_cpu() -> Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    set.set(0);
    rustix::thread::sched_setaffinity(None, &set).context("sched_setaffinity")
}
