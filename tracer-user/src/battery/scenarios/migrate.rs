//! Page migration beside the clear, and NUMA balancing.

use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::prelude::*;

const RACE: &str = "migration-race";

pub(super) const ALL: &[Scenario] = &[
    Scenario::new(
        "migration-race",
        Class::A,
        RACE,
        |bench| race(bench, private(RACE_PAGES)?, Then::Nothing),
        "Clears while another thread moves the pages between NUMA nodes, then writes them all.",
    )
    .race(40),
    Scenario::new(
        "migration-race-shared",
        Class::A,
        RACE,
        |bench| race(bench, shared(RACE_PAGES)?, Then::Nothing),
        "The same with shared anonymous pages.",
    )
    .race(20),
    Scenario::new(
        "migration-race-protected",
        Class::A,
        RACE,
        |bench| race(bench, private(RACE_PAGES)?, Then::Protect),
        "The same with private pages that mprotect makes read-only before anybody looks at them.",
    )
    .race(40),
    Scenario::new(
        "migration-race-large-folio",
        Class::A,
        RACE,
        large_folio_race,
        "The same with private pages in folios of 64 KiB.",
    )
    .race(40)
    .disruptive(),
    Scenario::new(
        "migration-race-thp",
        Class::A,
        "migration-race-thp",
        |bench| race(bench, huge_private()?, Then::Nothing),
        "The same with a transparent huge page.",
    )
    .race(40),
    Scenario::new(
        "compaction-race",
        Class::A,
        RACE,
        compaction_race,
        "Clears while memory compaction moves the pages within their node, then writes them all.",
    )
    .race(8)
    .disruptive(),
    Scenario::control(
        "migrate-after-write",
        |_| around_the_write(Moved::After),
        "Writes, then moves the pages to another NUMA node.",
    ),
    Scenario::control(
        "migrate-before-write",
        |_| around_the_write(Moved::Before),
        "Moves the pages to another NUMA node after the clear, then writes.",
    ),
    Scenario::control(
        "numa-balancing",
        numa_balancing,
        "Lets NUMA balancing mark pages for hinting faults after the clear, then writes.",
    )
    .disruptive(),
];

const RACE_PAGES: usize = 512;

const SCATTERED_PAGES: usize = 4096;

/// How often a round is begun anew.
const TRIES: u32 = 4;

/// How long the compaction race is tried where the rounds asked for met nothing: how many epochs fall into a compaction is
/// a matter of the machine's speed.
const UNTIL_MET: Duration = Duration::from_secs(12);

/// Two NUMA nodes that have memory.
fn nodes() -> Result<[i32; 2], Stop> {
    let path = "/sys/devices/system/node/has_memory";
    let list = fs::read_to_string(path).needs("this kernel has no NUMA")?;
    match parse_list(list.trim()).as_slice() {
        [first, second, ..] => Ok([*first, *second]),
        _ => Err(Stop::NotSupported(
            "moving pages needs two NUMA nodes with memory".into(),
        )),
    }
}

/// The first numbers of a list such as `0-1,4`.
fn parse_list(list: &str) -> Vec<i32> {
    let range = |part: &str| {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        Some(from.parse().ok()?..=to.parse().ok()?)
    };
    list.split(',').filter_map(range).flatten().collect()
}

/// What happens between the writes and the look for them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    Nothing,
    /// The entries lose their write bits, as they do by fork and by hints of NUMA balancing too.
    Protect,
}

/// Clears and writes while the pages are on the move.
///
/// A migration entry stands in the page table for a moment; a clear that meets a writable one may leave it writable
/// without soft-dirty, and then the page comes back so.
fn race(bench: &Bench, area: Area, then: Then) -> Found {
    let nodes = nodes()?;
    let stop = AtomicBool::new(false);
    area.fill(OLD);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for node in nodes {
                    // Pages that are busy stay where they are, which is no failure of a race.
                    let _ = area.to_node(node);
                }
            }
        });
        let found = bench.rounds(|round| {
            // Every round starts from pages that are dirty and writable.
            let old = u8::try_from(round % 100).expect("below 100") + 1;
            area.fill(old);
            let before = Before::known(area, old);
            let epoch = Epoch::open()?;
            area.write_each(old + 100);
            if then == Then::Nothing {
                return epoch.judge(&before, area.pages());
            }
            area.protect(libc::PROT_READ).works("mprotect")?;
            let found = epoch.judge(&before, area.pages());
            area.protect(libc::PROT_READ | libc::PROT_WRITE)
                .works("mprotect")?;
            found
        });
        stop.store(true, Ordering::Relaxed);
        found
    })
}

/// As `race`, with memory in folios of 16 pages: a migration moves all pages of one at once.
fn large_folio_race(bench: &Bench) -> Found {
    /// Linux 6.8; its counters 6.10.
    const FOLDER: &str = "/sys/kernel/mm/transparent_hugepage/hugepages-64kB";
    const FOLIO: usize = 16;
    nodes()?;
    let count = || -> Result<usize, Stop> {
        let text = fs::read_to_string(format!("{FOLDER}/stats/anon_fault_alloc"))
            .needs("this kernel has no folios of 64 KiB")?;
        text.trim()
            .parse()
            .map_err(|_| Stop::Failed(format!("anon_fault_alloc is {text:?}")))
    };
    let before = count()?;
    bench.host()?.set(&format!("{FOLDER}/enabled"), "always")?;
    // Never the whole of an aligned 2 MiB: a huge page would come first.
    let room = Area::reserve(RACE_PAGES + FOLIO, RACE_PAGES * page_size())?;
    let area = place(room.part(FOLIO, RACE_PAGES), MAP_PRIVATE | MAP_ANONYMOUS)?;
    area.fill(OLD);
    if count()? < before + RACE_PAGES / FOLIO {
        return Err(Stop::Inconclusive("there is no room for folios of 64 KiB".into()));
    }
    race(bench, area, Then::Protect)
}

/// Pages whose frames have free ones between them, for compaction to move.
fn scattered() -> Result<Before, Stop> {
    let kept = private(SCATTERED_PAGES)?;
    let freed = private(SCATTERED_PAGES)?;
    for area in [kept, freed] {
        area.advise(libc::MADV_NOHUGEPAGE).needs("MADV_NOHUGEPAGE")?;
    }
    for page in 0..SCATTERED_PAGES {
        kept.part(page, 1).fill(OLD);
        freed.write(page, OLD);
    }
    freed.unmap()?;
    Ok(Before::known(kept, OLD))
}

/// Clears and writes, again and again, while the kernel compacts all memory.
fn compaction_race(bench: &Bench) -> Found {
    let host = bench.host()?;
    // Freed pages must reach the free lists, where compaction looks, and not wait in a CPU's own list. Until 5.14 the
    // setting had another name.
    for name in ["percpu_pagelist_high_fraction", "percpu_pagelist_fraction"] {
        let path = format!("/proc/sys/vm/{name}");
        if fs::metadata(&path).is_ok() {
            host.set(&path, "10000")?;
        }
    }
    let compact = fs::OpenOptions::new()
        .write(true)
        .open("/proc/sys/vm/compact_memory")
        .needs("/proc/sys/vm/compact_memory")?;
    vmstat("pgmigrate_success")?;
    // Both threads on one CPU: the compacting one gives it up between two pages, while migration entries stand
    // (cond_resched() in migrate_pages(), mm/migrate.c).
    sys::stay_on_this_cpu().works("sched_setaffinity")?;
    let (start, started) = mpsc::channel();
    let running = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for () in started {
                // What cannot be moved stays where it is, which is no failure of a race.
                let _ = (&compact).write_all(b"1");
                running.store(false, Ordering::Release);
            }
        });
        let one = || {
            let before = scattered()?;
            running.store(true, Ordering::Release);
            start
                .send(())
                .map_err(|_| Stop::Failed("the compacting thread ended".into()))?;
            let found = while_compacting(&before, &running);
            before.area().unmap()?;
            found
        };
        let found = bench.rounds_until_missed(UNTIL_MET, |_| {
            // A compaction may be over before anything was seen of it.
            let mut found = one();
            for _ in 1..TRIES {
                let Err(Stop::Inconclusive(_)) = found else { break };
                found = one();
            }
            found
        });
        drop(start);
        found
    })
}

/// The epochs that fit into one compaction. Each begins when some pages have just been moved, so that others are likely
/// to be on the move.
fn while_compacting(before: &Before, running: &AtomicBool) -> Found {
    let area = before.area();
    let mut sum = Tally::default();
    let mut seen = vmstat("pgmigrate_success")?;
    while running.load(Ordering::Acquire) {
        let now = vmstat("pgmigrate_success")?;
        if now == seen {
            // Its end interrupts the compacting thread, as a busy loop would not: that thread needs other CPUs too.
            thread::sleep(Duration::from_micros(100));
            continue;
        }
        let epoch = Epoch::open()?;
        area.write_each(NEW);
        sum.add(epoch.judge(before, area.pages())?);
        // The next epoch starts from pages that are dirty and writable too.
        area.fill(OLD);
        seen = vmstat("pgmigrate_success")?;
    }
    if sum.rounds == 0 {
        return Err(Stop::Inconclusive("compaction moved no page meanwhile".into()));
    }
    Ok(sum)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Moved {
    Before,
    After,
}

fn around_the_write(moved: Moved) -> Found {
    let nodes = nodes()?;
    let before = populated(private(PAGES)?);
    let area = before.area();
    area.to_node(nodes[0]).needs("move_pages")?;
    let epoch = Epoch::open()?;
    epoch.armed(area)?;
    if moved == Moved::After {
        area.write_each(NEW);
    }
    let there = area.to_node(nodes[1]).works("move_pages")?;
    if there != PAGES {
        return Err(Stop::Inconclusive(format!("{there} of {PAGES} pages moved")));
    }
    if moved == Moved::Before {
        area.write_each(NEW);
    }
    epoch.judge(&before, PAGES)
}

/// A counter of /proc/vmstat.
fn vmstat(name: &str) -> Result<u64, Stop> {
    let text = fs::read_to_string("/proc/vmstat").works("/proc/vmstat")?;
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
        .ok_or_else(|| Stop::NotSupported(format!("/proc/vmstat has no {name}")))
}

fn numa_balancing(bench: &Bench) -> Found {
    /// A task is scanned for the first time after a second of its own run time.
    const PATIENCE: Duration = Duration::from_secs(25);
    nodes()?;
    let hints = vmstat("numa_hint_faults")?;
    bench.host()?.set("/proc/sys/kernel/numa_balancing", "1")?;
    let before = populated(private(PAGES)?);
    let (done, wait) = mpsc::channel::<()>();
    thread::scope(|scope| {
        // Of a process with one thread, pages on its own node are left alone (change_pte_range, mm_users == 1).
        scope.spawn(move || wait.recv());
        let found = marked_then_written(&before, hints, Instant::now() + PATIENCE);
        drop(done);
        found
    })
}

fn marked_then_written(before: &Before, hints: u64, deadline: Instant) -> Found {
    let area = before.area();
    let epoch = Epoch::open()?;
    epoch.armed(area)?;
    let updates = vmstat("numa_pte_updates")?;
    // Other memory of this process is marked too; this much means that the whole of it was gone through.
    while vmstat("numa_pte_updates")? < updates + 2 * PAGES as u64 {
        if Instant::now() > deadline {
            return Err(Stop::Inconclusive(
                "NUMA balancing marked no pages in time".into(),
            ));
        }
        std::hint::spin_loop();
    }
    area.write_each(NEW);
    if vmstat("numa_hint_faults")? == hints {
        return Err(Stop::Inconclusive("no hinting fault was taken".into()));
    }
    epoch.judge(before, PAGES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_lists_are_read() {
        assert_eq!(parse_list("0"), [0]);
        assert_eq!(parse_list("0-2,5"), [0, 1, 2, 5]);
        assert_eq!(parse_list(""), [] as [i32; 0]);
    }
}
