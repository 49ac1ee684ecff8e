//! Joins what is mapped now with what is known of the newest epoch. Pure.

use std::collections::BTreeMap;

use tracer_common::PAGE_SIZE;
use tracer_common::classify::VmaKind;
use tracer_common::flags::{
    PTE_WRITE, VM_EXEC, VM_HUGETLB, VM_MAYWRITE, VM_PFNMAP, VM_READ, VM_SHARED, VM_WRITE, is_armed,
};
use tracer_common::records::Blind;

use super::{Found, Known, Map, Mapped, Pages, VMAS, Vma, WRITTEN};
use crate::detectors::{Detection, Evidence, Hex, IncidentRange, Range};
use crate::ledger::KnownVma;

/// The kernel's own mappings, which are neither armed nor blind.
const SPECIAL: [&str; 5] = ["[vvar]", "[vvar_vclock]", "[vdso]", "[vsyscall]", "[sigpage]"];

/// The map of what lies in `window`; without `mapped`, as the newest epoch met it.
#[must_use]
pub fn map(id: u64, known: &Known, mapped: Option<Vec<Mapped>>, window: Range) -> Map {
    let aliases = aliases(&known.newest.vmas);
    let layout = if mapped.is_some() { "proc" } else { "ledger" };
    let all = mapped.unwrap_or_else(|| met(&known.newest.vmas));
    let mapped_bytes = all.iter().map(|map| map.range.len()).sum();
    let written = written_ranges(known, window);
    let found = known
        .detection
        .as_ref()
        .map_or_else(Vec::new, |detection| found(detection, window));
    let inside: Vec<_> = all.into_iter().filter(|map| map.range.overlaps(window)).collect();
    let truncated = known.more_vmas || known.written.more || inside.len() > VMAS;
    let (missed, exposed) = (of(&found, true), of(&found, false));
    let vmas = inside
        .into_iter()
        .take(VMAS)
        .map(|map| {
            let states = states(&map, &known.newest.vmas);
            let blind = states.iter().find_map(|state| blind(&map, state, &aliases));
            Vma {
                start: Hex(map.range.start),
                end: Hex(map.range.end),
                kind: kind(&map, &states).to_owned(),
                state: state(&map, &states, blind, known.newest.complete && !known.more_vmas),
                blind: blind.map(Blind::label),
                written_pages: pages_in(&written, map.range),
                missed_pages: pages_in(&missed, map.range),
                exposed_pages: pages_in(&exposed, map.range),
                permissions: map.permissions,
                name: map.name,
            }
        })
        .collect();
    let pages = written.iter().map(|range| range.len() / PAGE_SIZE).sum();
    let (ranges, joined_pages) = shortened(written, WRITTEN);
    Map {
        id,
        epoch: known.newest.epoch,
        verdict: known.detection.as_ref().map(|detection| detection.verdict),
        layout,
        mapped_bytes,
        vmas,
        written: Pages {
            pages,
            ranges: ranges.into_iter().map(told).collect(),
            joined_pages,
            doubtful: known.written.doubtful,
        },
        found,
        truncated,
    }
}

fn told(range: Range) -> IncidentRange {
    IncidentRange {
        start: Hex(range.start),
        end: Hex(range.end),
    }
}

/// What the ledger knows, as if /proc had said it. Of several states of one VMA the longest counts.
fn met(vmas: &[KnownVma]) -> Vec<Mapped> {
    let mut met: Vec<Mapped> = Vec::new();
    for vma in vmas {
        let range = Range {
            start: vma.start.max(met.last().map_or(0, |last| last.range.end)),
            end: vma.end,
        };
        if range.is_empty() {
            continue;
        }
        let letter = |bit, letter| if vma.flags & bit == 0 { '-' } else { letter };
        let sharing = if vma.flags & VM_SHARED == 0 { 'p' } else { 's' };
        met.push(Mapped {
            range,
            permissions: [
                letter(VM_READ, 'r'),
                letter(VM_WRITE, 'w'),
                letter(VM_EXEC, 'x'),
                sharing,
            ]
            .iter()
            .collect(),
            name: None,
            file: vma.inode != 0,
        });
    }
    met
}

/// The states of the ledger that belong to a mapping: same place, same permissions.
fn states<'a>(map: &Mapped, vmas: &'a [KnownVma]) -> Vec<&'a KnownVma> {
    let wanted = map.permissions.as_bytes();
    let has = |at: usize, letter: u8| wanted.get(at) == Some(&letter);
    // By address: nothing behind the mapping's end can overlap it.
    let end = vmas.partition_point(|vma| vma.start < map.range.end);
    vmas[..end]
        .iter()
        .filter(|vma| vma.end > map.range.start)
        .filter(|vma| {
            let flag = |bit| vma.flags & bit != 0;
            flag(VM_READ) == has(0, b'r')
                && flag(VM_WRITE) == has(1, b'w')
                && flag(VM_EXEC) == has(2, b'x')
                && flag(VM_SHARED) == has(3, b's')
        })
        .collect()
}

fn kind(map: &Mapped, states: &[&KnownVma]) -> &'static str {
    let name = map.name.as_deref().unwrap_or("");
    if SPECIAL.contains(&name) {
        return "special";
    }
    if let Some(state) = states.first() {
        return state.kind.label();
    }
    let shared = map.permissions.ends_with('s');
    // Shared memory without a path is a file of the kernel's own tmpfs.
    let nameless = ["/dev/zero (deleted)", "/memfd:", "/SYSV"]
        .iter()
        .any(|prefix| name.starts_with(prefix));
    match (shared, map.file) {
        (true, file) if nameless || !file => VmaKind::SharedAnon,
        (true, _) => VmaKind::SharedFile,
        (false, true) => VmaKind::PrivateFile,
        (false, false) => VmaKind::PrivateAnon,
    }
    .label()
}

fn state(map: &Mapped, states: &[&KnownVma], blind: Option<Blind>, complete: bool) -> &'static str {
    let name = map.name.as_deref().unwrap_or("");
    if SPECIAL.contains(&name) {
        "special"
    } else if blind.is_some() {
        "blind"
    } else if states.iter().any(|state| is_armed(state.flags)) {
        "armed"
    } else if !states.is_empty() {
        "fresh"
    } else if map.permissions.as_bytes().get(1) != Some(&b'w') {
        "read_only"
    } else if complete {
        "fresh"
    } else {
        "unknown"
    }
}

/// For each mapped file the shared mappings of this process.
fn aliases(vmas: &[KnownVma]) -> BTreeMap<(u64, u32), u32> {
    let mut own = BTreeMap::new();
    for vma in vmas
        .iter()
        .filter(|vma| vma.flags & VM_SHARED != 0 && vma.inode != 0 && vma.met_by_clear)
    {
        *own.entry((vma.inode, vma.device)).or_default() += 1;
    }
    own
}

/// Why soft-dirty cannot track a VMA, in the order in which the probe of the clear asks. Pinned memory is known by bytes
/// only.
fn blind(map: &Mapped, vma: &KnownVma, aliases: &BTreeMap<(u64, u32), u32>) -> Option<Blind> {
    let flag = |bit| vma.flags & bit != 0;
    if !flag(VM_WRITE) && !flag(VM_MAYWRITE) {
        return None;
    }
    let alone = aliases.get(&(vma.inode, vma.device)).copied().unwrap_or(1);
    if flag(VM_HUGETLB) {
        Some(Blind::Hugetlb)
    } else if flag(VM_PFNMAP) {
        Some(Blind::Pfnmap)
    } else if map.name.as_deref().is_some_and(|name| name.starts_with("/[aio]")) {
        Some(Blind::AioRing)
    } else if is_armed(vma.flags) && flag(VM_SHARED) && flag(VM_WRITE) && vma.page_prot & PTE_WRITE != 0 {
        Some(Blind::PageProtection)
    } else if flag(VM_SHARED) && vma.met_by_clear && (vma.shared_mappings > alone || alone > 1) {
        Some(Blind::WritableAlias)
    } else {
        None
    }
}

/// Runs of written pages.
fn written_ranges(known: &Known, window: Range) -> Vec<Range> {
    let mut ranges: Vec<Range> = Vec::new();
    for (address, pages) in &known.written.chunks {
        for page in pages.iter() {
            let range = Range::of(address + page as u64 * PAGE_SIZE, PAGE_SIZE);
            if !range.overlaps(window) {
                continue;
            }
            match ranges.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => ranges.push(range),
            }
        }
    }
    ranges
}

/// Joins neighbours over ever wider gaps until there are at most `most`; also tells the widest gap in pages.
fn shortened(mut ranges: Vec<Range>, most: usize) -> (Vec<Range>, u64) {
    let mut gap = 0;
    while ranges.len() > most {
        gap = if gap == 0 { 1 } else { gap * 2 };
        let mut joined: Vec<Range> = Vec::with_capacity(ranges.len() / 2);
        for range in ranges {
            match joined.last_mut() {
                Some(last) if range.start - last.end <= gap * PAGE_SIZE => last.end = range.end,
                _ => joined.push(range),
            }
        }
        ranges = joined;
    }
    (ranges, gap)
}

fn found(detection: &Detection, window: Range) -> Vec<Found> {
    let cut = |range: &IncidentRange| {
        let range = Range {
            start: range.start.0,
            end: range.end.0,
        };
        let cut = range.and(window);
        (!cut.is_empty()).then_some(cut)
    };
    detection
        .causes
        .iter()
        .map(|found| Found {
            cause: found.cause.clone(),
            evidence: found.evidence.label(),
            pages: found.pages,
            ranges: found.ranges.iter().filter_map(cut).map(told).collect(),
        })
        .collect()
}

/// The ranges of missed writes, or those of exposed pages, by address.
fn of(found: &[Found], missed: bool) -> Vec<Range> {
    let wanted = |evidence: &str| {
        let kinds = Evidence::ALL.into_iter();
        let mut kinds = kinds.filter(|kind| {
            if missed {
                kind.is_miss()
            } else {
                *kind == Evidence::Exposed
            }
        });
        kinds.any(|kind| kind.label() == evidence)
    };
    let mut ranges: Vec<_> = found
        .iter()
        .filter(|found| wanted(found.evidence))
        .flat_map(|found| &found.ranges)
        .map(|range| Range {
            start: range.start.0,
            end: range.end.0,
        })
        .collect();
    ranges.sort_unstable();
    ranges
}

/// Pages of the sorted ranges that lie in `whole`.
fn pages_in(ranges: &[Range], whole: Range) -> u64 {
    let first = ranges.partition_point(|range| range.end <= whole.start);
    let inside = ranges[first..].iter().take_while(|range| range.start < whole.end);
    inside.map(|range| range.and(whole).len() / PAGE_SIZE).sum()
}

#[cfg(test)]
mod tests;
