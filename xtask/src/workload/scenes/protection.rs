//! mprotect.

use anyhow::Result;

use super::simple;
use crate::workload::Scene;
use crate::workload::area::Area;
use crate::workload::report::State;

const PAGES: usize = 64;

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Read-only at the clear, then writable, written, and read-only again.
fn up_and_down(area: Area) -> Result<Box<dyn Scene>> {
    let _ = area.poke(0..PAGES);
    area.protect(0..PAGES, false)?;
    Ok(simple(area, |area| {
        let all = 0..PAGES;
        area.protect(all.clone(), true)?;
        let faults = area.write(all.clone());
        area.protect(all.clone(), false)?;
        let writable = State {
            faults,
            mprotects: 1,
            mprotect_changes: names(&["gained_write"]),
            ..area.state(&all, true)
        };
        let read_only = State {
            armed_at_clear: true,
            mprotects: 1,
            mprotect_changes: names(&["lost_write"]),
            ..area.state(&all, false)
        };
        area.expect(writable);
        area.expect(read_only);
        Ok(Vec::new())
    }))
}

pub fn upgrade() -> Result<Box<dyn Scene>> {
    up_and_down(Area::private("mprotect", PAGES)?)
}

pub fn upgrade_shared() -> Result<Box<dyn Scene>> {
    up_and_down(Area::shared("mprotect shared", PAGES)?)
}

/// The middle of an armed VMA is cut out by mprotect and joined again: three VMAs, then one. Nothing in it is
/// fresh, so nothing is lost.
pub fn split_and_merge() -> Result<Box<dyn Scene>> {
    let area = Area::private("mprotect split", PAGES)?;
    let _ = area.poke(0..PAGES);
    Ok(simple(area, |area| {
        let middle = 16..32;
        area.protect(middle.clone(), false)?;
        let below = area.write(0..4);
        let above = area.write(40..48);
        area.protect(middle.clone(), true)?;
        let inside = area.write(20..21);
        let joined = State {
            mprotects: 1,
            mprotect_changes: names(&["gained_write", "merged"]),
            ..area.armed(below + inside)
        };
        let cut = State {
            mprotects: 1,
            mprotect_changes: names(&["lost_write"]),
            ..area.state(&middle, false)
        };
        let rest = State {
            faults: above,
            ..area.state(&(32..PAGES), true)
        };
        area.expect(joined);
        area.expect(cut);
        area.expect(rest);
        Ok(Vec::new())
    }))
}
