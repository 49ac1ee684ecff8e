use proptest::prelude::*;
use tracer_common::flags::VM_SOFTDIRTY;
use tracer_common::pages::PageSet;

use super::*;
use crate::ledger::Newest;
use crate::probes::Written;

const ALL: Range = Range {
    start: 0,
    end: u64::MAX,
};
const RW: u64 = VM_READ | VM_WRITE | VM_MAYWRITE;

fn known(vmas: Vec<KnownVma>, chunks: Vec<(u64, PageSet)>) -> Known {
    Known {
        newest: Newest {
            birth: 1,
            process: None,
            live: true,
            epoch: 3,
            complete: true,
            vmas,
        },
        more_vmas: false,
        written: Written {
            chunks,
            ..Written::default()
        },
        detection: None,
    }
}

fn vma(start: u64, pages: u64, flags: u64) -> KnownVma {
    KnownVma {
        start,
        end: start + pages * PAGE_SIZE,
        flags,
        page_prot: 0,
        inode: 0,
        device: 0,
        offset: 0,
        shared_mappings: 0,
        kind: VmaKind::PrivateAnon,
        met_by_clear: true,
    }
}

fn mapped(start: u64, pages: u64, permissions: &str, name: Option<&str>) -> Mapped {
    Mapped {
        range: Range::of(start, pages * PAGE_SIZE),
        permissions: permissions.to_owned(),
        name: name.map(str::to_owned),
        file: false,
    }
}

#[test]
fn each_vma_is_what_the_epoch_made_of_it() {
    let shared = KnownVma {
        page_prot: PTE_WRITE,
        ..vma(0x30_0000, 4, RW | VM_SHARED)
    };
    let alias = KnownVma {
        inode: 5,
        shared_mappings: 2,
        ..vma(0x40_0000, 4, RW | VM_SHARED)
    };
    let known = known(
        vec![
            vma(0x10_0000, 4, RW),
            vma(0x20_0000, 4, RW | VM_HUGETLB),
            shared,
            alias,
            vma(0x50_0000, 4, RW | VM_SOFTDIRTY),
            vma(0x60_0000, 4, RW | VM_PFNMAP),
        ],
        Vec::new(),
    );
    let now = vec![
        mapped(0x10_0000, 4, "rw-p", Some("[heap]")),
        mapped(0x20_0000, 4, "rw-p", None),
        mapped(0x30_0000, 4, "rw-s", None),
        mapped(0x40_0000, 4, "rw-s", Some("/memfd:a (deleted)")),
        mapped(0x50_0000, 4, "rw-p", None),
        mapped(0x60_0000, 4, "rw-p", None),
        // Mapped since the clear, or made read-only: no state of the epoch fits.
        mapped(0x70_0000, 4, "rw-p", None),
        mapped(0x80_0000, 4, "r-xp", Some("/bin/true")),
        mapped(0x90_0000, 4, "r-xp", Some("[vdso]")),
    ];
    let map = map(9, &known, Some(now), ALL);
    let told: Vec<_> = map.vmas.iter().map(|vma| (vma.state, vma.blind)).collect();
    assert_eq!(
        told,
        [
            ("armed", None),
            ("blind", Some("hugetlb")),
            ("blind", Some("page_protection")),
            ("blind", Some("writable_alias")),
            ("fresh", None),
            ("blind", Some("pfnmap")),
            ("fresh", None),
            ("read_only", None),
            ("special", None),
        ]
    );
    assert_eq!(
        (map.layout, map.truncated, map.mapped_bytes),
        ("proc", false, 9 * 4 * PAGE_SIZE)
    );
    assert_eq!(map.vmas[0].name.as_deref(), Some("[heap]"));
    assert_eq!(map.vmas[3].kind, "private_anon", "what the ledger says is taken");
}

#[test]
fn what_the_ledger_does_not_tell_is_not_known() {
    let mut known = known(Vec::new(), Vec::new());
    known.newest.complete = false;
    let map = map(
        9,
        &known,
        Some(vec![mapped(0x10_0000, 1, "rw-s", Some("/SYSV00000000"))]),
        ALL,
    );
    assert_eq!(
        (map.vmas[0].state, map.vmas[0].kind.as_str()),
        ("unknown", "shared_anon")
    );
}

#[test]
fn without_proc_the_states_of_the_epoch_are_drawn_once() {
    let known = known(
        vec![
            vma(0x10_0000, 8, RW),
            vma(0x10_0000, 4, VM_READ),
            vma(0x20_0000, 1, RW),
        ],
        vec![(0, PageSet::range(0x102, 3))],
    );
    let map = map(9, &known, None, ALL);
    let told: Vec<_> = map
        .vmas
        .iter()
        .map(|vma| (vma.start.0, vma.end.0, vma.written_pages))
        .collect();
    assert_eq!(told, [(0x10_0000, 0x10_8000, 3), (0x20_0000, 0x20_1000, 0)]);
    assert_eq!(map.layout, "ledger");
}

#[test]
fn a_window_shows_only_what_lies_in_it() {
    let known = known(
        vec![vma(0x10_0000, 8, RW), vma(0x20_0000, 8, RW)],
        vec![(0, PageSet::range(0x100, 8)), (0x20_0000, PageSet::range(0, 8))],
    );
    let window = Range {
        start: 0x20_0000,
        end: 0x20_2000,
    };
    let map = map(9, &known, None, window);
    assert_eq!(map.vmas.len(), 1);
    assert_eq!((map.written.pages, map.written.ranges.len()), (2, 1));
}

#[test]
fn too_many_vmas_are_cut_and_it_says_so() {
    let many = (0..=VMAS as u64).map(|at| mapped(at * 2 * PAGE_SIZE, 1, "rw-p", None));
    let map = map(9, &known(Vec::new(), Vec::new()), Some(many.collect()), ALL);
    assert_eq!((map.vmas.len(), map.truncated), (VMAS, true));
    assert_eq!(map.mapped_bytes, (VMAS as u64 + 1) * PAGE_SIZE);
}

proptest! {
    /// Joining leaves nothing out, keeps the order, and says by how much it is too wide.
    #[test]
    fn shortened_ranges_cover_what_they_were_made_of(
        starts in prop::collection::btree_set(0u64..100_000, 1..300), most in 1usize..40,
    ) {
        let ranges: Vec<_> = starts.iter().map(|start| Range::of(start * 2 * PAGE_SIZE, PAGE_SIZE)).collect();
        let (short, gap) = shortened(ranges.clone(), most);
        prop_assert!(short.len() <= most.max(1));
        prop_assert!(short.windows(2).all(|pair| pair[0].end < pair[1].start));
        for range in &ranges {
            prop_assert!(short.iter().any(|wide| wide.start <= range.start && range.end <= wide.end));
        }
        prop_assert_eq!(gap == 0, ranges.len() <= most);
        prop_assert_eq!(pages_in(&ranges, ALL), ranges.len() as u64);
    }
}
