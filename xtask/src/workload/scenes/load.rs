//! Many writes at once.

use std::thread;

use anyhow::Result;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::{Several, simple};
use crate::workload::Scene;
use crate::workload::area::Area;
use crate::workload::report::Report;

/// Eight threads, each with pages of its own in one VMA.
pub fn threads() -> Result<Box<dyn Scene>> {
    const THREADS: usize = 8;
    const EACH: usize = 128;
    let area = Area::private("threads", THREADS * EACH)?;
    let _ = area.poke(0..THREADS * EACH);
    Ok(simple(area, |area| {
        let faults = thread::scope(|scope| {
            let writers: Vec<_> = (0..THREADS)
                .map(|index| {
                    let area = &*area;
                    scope.spawn(move || area.poke(index * EACH..(index + 1) * EACH))
                })
                .collect();
            writers
                .into_iter()
                .map(|writer| writer.join().map_err(|_| anyhow::anyhow!("a writer panicked")))
                .sum::<Result<u64>>()
        })?;
        area.count_written(faults);
        area.expect(area.armed(faults));
        Ok(Vec::new())
    }))
}

/// Pages that each thread of [`hammer`] writes in one act.
pub const HAMMER_PAGES: usize = 25_000;

/// A thread on each of two CPUs, each writing an area of its own as fast as it can.
struct Hammer(Several);

impl Scene for Hammer {
    fn areas(&mut self) -> Vec<&mut Area> {
        self.0.areas()
    }

    fn act(&mut self) -> Result<Vec<Report>> {
        let allowed = sched_getaffinity(None)?;
        thread::scope(|scope| {
            let writers: Vec<_> = self
                .areas()
                .into_iter()
                .enumerate()
                .map(|(index, area)| {
                    let mut cpus = CpuSet::new();
                    let chosen = (0..CpuSet::MAX_CPU)
                        .filter(|&cpu| allowed.is_set(cpu))
                        .cycle()
                        .nth(index);
                    cpus.set(chosen.unwrap_or(0));
                    scope.spawn(move || -> Result<()> {
                        sched_setaffinity(None, &cpus)?;
                        let faults = area.write(0..HAMMER_PAGES);
                        area.expect(area.armed(faults));
                        Ok(())
                    })
                })
                .collect();
            writers.into_iter().try_for_each(|writer| {
                writer
                    .join()
                    .unwrap_or_else(|_| Err(anyhow::anyhow!("a writer panicked")))
            })
        })?;
        Ok(Vec::new())
    }
}

pub fn hammer() -> Result<Box<dyn Scene>> {
    let mut scenes = Vec::new();
    for name in ["hammer left", "hammer right"] {
        let area = Area::private(name, HAMMER_PAGES)?;
        let _ = area.poke(0..HAMMER_PAGES);
        scenes.push(simple(area, |_| Ok(Vec::new())));
    }
    Ok(Box::new(Hammer(Several(scenes))))
}
