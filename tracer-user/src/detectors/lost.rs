//! Class B: a write was seen, and its bit is gone. Destroyed by what? Or did the target drop the page itself?

use tracer_common::pages::PageCause;

use super::cause::{Cause, Dropped};
use super::ranges::Range;
use super::worked::{DROPPING, Work, Worked, dropping};

/// What stands in the page table where the written page was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// Nothing.
    None,
    /// The zero page.
    Zero,
    /// A page.
    Page,
}

/// What a page without its bit means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lost {
    /// A missed write.
    Missed(Cause),
    /// The target threw the content away.
    Dropped(Dropped),
    /// For a moment a migration leaves nothing where it will put an entry (`ptep_clear_flush` in `try_to_migrate_one`),
    /// and so do reclaim and KSM. The programs look without the lock of the page table, which the walk takes later.
    OnTheMove,
}

/// What is known about the page.
#[derive(Clone, Copy, Debug)]
pub(super) struct Around<'a> {
    /// `VM_SHARED`.
    pub(super) shared: bool,
    pub(super) entry: Entry,
    /// Which mechanism touched the page last in this epoch.
    pub(super) mark: Option<PageCause>,
    /// What worked on ranges in this epoch.
    pub(super) worked: &'a Worked,
    /// A hole in the mapped file lies here.
    pub(super) hole: bool,
    /// Migrations are at work in its page table; the mark of one that began before the clear is gone.
    pub(super) migrating: bool,
    /// The page.
    pub(super) page: Range,
}

impl Around<'_> {
    fn worked(&self, work: Work) -> bool {
        self.worked.on(work, self.page)
    }

    /// Whether the page is out of its page table only until a migration has put an entry there.
    fn migrates(&self) -> bool {
        match self.mark {
            Some(mark) => mark.is_migration() || mark == PageCause::HugeMigration,
            None => self.migrating,
        }
    }

    fn dropped(&self) -> Option<Dropped> {
        if self.hole {
            return Some(Dropped::FileHole);
        }
        DROPPING
            .into_iter()
            .filter(|&work| self.worked(work))
            .find_map(|work| dropping(work, self.shared))
    }
}

/// Decides what a written page without its bit means.
pub(super) fn judge(around: &Around<'_>) -> Lost {
    if around.shared {
        shared(around)
    } else {
        private(around)
    }
}

/// A private page that has no entry has no content either: swap leaves an entry, which carries the bit. What
/// reads as the zero page is told apart by what put it there.
fn private(around: &Around<'_>) -> Lost {
    match around.entry {
        Entry::None => match (around.dropped(), around.mark) {
            (Some(reason), _) => Lost::Dropped(reason),
            (None, _) if around.worked(Work::Free) => Lost::Dropped(Dropped::Free),
            (None, Some(PageCause::Reclaim | PageCause::Ksm)) => Lost::OnTheMove,
            (None, _) if around.migrates() => Lost::OnTheMove,
            (None, _) => Lost::Dropped(Dropped::Unknown),
        },
        Entry::Zero => match around.mark {
            Some(PageCause::Ksm) => Lost::Missed(Cause::KsmMerge),
            // A split goes by migration entries, and what puts the pages back puts the zero page there
            // (`try_to_map_unused_to_zeropage`). Nothing else that migrates does.
            Some(PageCause::Split | PageCause::Migration) if around.dropped().is_none() => {
                Lost::Missed(Cause::ThpZeroSubpages)
            }
            _ if around.worked(Work::UserfaultZero) => Lost::Missed(Cause::UserfaultfdZeropage),
            _ if around.worked(Work::UserfaultMovedHere) => Lost::Missed(Cause::UserfaultfdMove),
            _ => Lost::Dropped(around.dropped().unwrap_or(if around.worked(Work::Free) {
                Dropped::Free
            } else {
                Dropped::Unknown
            })),
        },
        Entry::Page => Lost::Missed(match around.mark {
            Some(PageCause::Ksm) => Cause::KsmMerge,
            Some(PageCause::Uprobe) => Cause::Uprobe,
            Some(PageCause::Collapse) => Cause::SharedCollapse,
            Some(mark) if mark.is_migration() => Cause::MigrationRace,
            Some(PageCause::HugeMigration) => Cause::MigrationRaceThp,
            _ if around.worked(Work::UserfaultMovedHere) => Cause::UserfaultfdMove,
            _ if around.worked(Work::MovedHere) => Cause::MremapTableMove,
            // Of a file: read again after its copy was thrown away. A write would have brought the bit.
            _ => match around.dropped() {
                Some(reason) => return Lost::Dropped(reason),
                None => Cause::Unknown,
            },
        }),
    }
}

/// Of shared memory the entry is only a cache. The data lives on, unless a hole was made in the file.
fn shared(around: &Around<'_>) -> Lost {
    if let Some(reason) = around.dropped() {
        return Lost::Dropped(reason);
    }
    let asked = if around.worked(Work::Dontneed) || around.worked(Work::DontunmapSource) {
        Some(Cause::SharedZap)
    } else {
        None
    };
    let zapped = asked.is_some() || around.worked(Work::Pageout) || around.worked(Work::Collapse);
    if around.entry == Entry::None && around.migrates() && !zapped {
        return Lost::OnTheMove;
    }
    Lost::Missed(match (around.mark, asked) {
        (Some(PageCause::Reclaim), _) => Cause::SharedZap,
        (Some(PageCause::Split), None) => Cause::SharedThpSplit,
        (Some(PageCause::Collapse), _) => Cause::SharedCollapse,
        (Some(PageCause::Uprobe), _) => Cause::Uprobe,
        (Some(PageCause::Ksm), _) => Cause::KsmMerge,
        // What the target asked for splits a huge page first, which leaves that mark on all 512 pages.
        (_, Some(asked)) => asked,
        (_, None) if around.worked(Work::Pageout) => Cause::SharedZap,
        (_, None) if around.worked(Work::Collapse) => Cause::SharedCollapse,
        (Some(mark), None) if mark.is_migration() => Cause::MigrationRace,
        (Some(PageCause::HugeMigration), None) => Cause::MigrationRaceThp,
        (_, None) if around.worked(Work::MovedHere) => Cause::MremapTableMove,
        (_, None) => Cause::Unknown,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: Range = Range {
        start: 0x1000,
        end: 0x2000,
    };

    fn with(works: &[Work]) -> Worked {
        let mut worked = Worked::default();
        for &work in works {
            worked.note(work, PAGE);
        }
        worked
    }

    fn judged(shared: bool, entry: Entry, mark: Option<PageCause>, works: &[Work]) -> Lost {
        judge(&Around {
            shared,
            entry,
            mark,
            worked: &with(works),
            hole: false,
            migrating: false,
            page: PAGE,
        })
    }

    #[test]
    fn private_memory() {
        use Entry::{None as Nothing, Page, Zero};
        let missed = |entry, mark, works: &[Work]| match judged(false, entry, mark, works) {
            Lost::Missed(cause) => cause,
            other => panic!("{other:?}"),
        };
        let dropped = |entry, mark, works: &[Work]| match judged(false, entry, mark, works) {
            Lost::Dropped(reason) => reason,
            other => panic!("{other:?}"),
        };
        assert_eq!(missed(Page, Some(PageCause::Ksm), &[]), Cause::KsmMerge);
        assert_eq!(missed(Page, Some(PageCause::Uprobe), &[]), Cause::Uprobe);
        assert_eq!(missed(Page, None, &[]), Cause::Unknown);
        assert_eq!(dropped(Page, None, &[Work::Dontneed]), Dropped::Dontneed);
        assert_eq!(
            missed(Page, Some(PageCause::Ksm), &[Work::Dontneed]),
            Cause::KsmMerge
        );
        assert_eq!(missed(Zero, Some(PageCause::Ksm), &[]), Cause::KsmMerge);
        assert_eq!(missed(Zero, Some(PageCause::Split), &[]), Cause::ThpZeroSubpages);
        assert_eq!(
            missed(Zero, Some(PageCause::Migration), &[]),
            Cause::ThpZeroSubpages
        );
        assert_eq!(
            missed(Zero, None, &[Work::UserfaultZero]),
            Cause::UserfaultfdZeropage
        );
        assert_eq!(dropped(Nothing, None, &[Work::Dontneed]), Dropped::Dontneed);
        assert_eq!(dropped(Zero, None, &[Work::Dontneed]), Dropped::Dontneed);
        // MADV_DONTNEED of a part of a huge page splits it first.
        assert_eq!(
            dropped(Zero, Some(PageCause::Split), &[Work::Dontneed]),
            Dropped::Dontneed
        );
        assert_eq!(dropped(Nothing, None, &[Work::Guard]), Dropped::Guard);
        assert_eq!(
            dropped(Nothing, Some(PageCause::Reclaim), &[Work::Free]),
            Dropped::Free
        );
        assert_eq!(
            dropped(Nothing, None, &[Work::DontunmapSource]),
            Dropped::MremapDontunmap
        );
        assert_eq!(dropped(Nothing, None, &[]), Dropped::Unknown);
    }

    #[test]
    fn shared_memory() {
        let missed = |mark, works: &[Work]| match judged(true, Entry::None, mark, works) {
            Lost::Missed(cause) => cause,
            other => panic!("{other:?}"),
        };
        for mark in [
            PageCause::Departure,
            PageCause::Migration,
            PageCause::HugeMigration,
        ] {
            assert_eq!(judged(true, Entry::None, Some(mark), &[]), Lost::OnTheMove);
            assert_eq!(missed(Some(mark), &[Work::Dontneed]), Cause::SharedZap);
        }
        assert_eq!(missed(Some(PageCause::Reclaim), &[]), Cause::SharedZap);
        assert_eq!(missed(None, &[Work::Pageout]), Cause::SharedZap);
        assert_eq!(missed(None, &[Work::Dontneed]), Cause::SharedZap);
        assert_eq!(missed(None, &[Work::DontunmapSource]), Cause::SharedZap);
        assert_eq!(missed(Some(PageCause::Split), &[]), Cause::SharedThpSplit);
        assert_eq!(
            missed(Some(PageCause::Split), &[Work::Protect]),
            Cause::SharedThpSplit
        );
        assert_eq!(
            missed(Some(PageCause::Split), &[Work::Dontneed]),
            Cause::SharedZap
        );
        assert_eq!(
            missed(Some(PageCause::Collapse), &[Work::Collapse]),
            Cause::SharedCollapse
        );
        assert_eq!(missed(None, &[Work::Collapse]), Cause::SharedCollapse);
        assert_eq!(missed(None, &[]), Cause::Unknown);
        assert_eq!(
            judged(true, Entry::None, None, &[Work::Remove]),
            Lost::Dropped(Dropped::Remove)
        );
    }

    #[test]
    fn what_worked_elsewhere_explains_nothing() {
        let mut worked = Worked::default();
        worked.note(Work::Dontneed, Range::of(0x2000, 0x1000));
        let around = Around {
            shared: true,
            entry: Entry::None,
            mark: None,
            worked: &worked,
            hole: false,
            migrating: false,
            page: PAGE,
        };
        assert_eq!(judge(&around), Lost::Missed(Cause::Unknown));
        let migrating = Around {
            migrating: true,
            ..around
        };
        assert_eq!(judge(&migrating), Lost::OnTheMove);
        let hole = Around { hole: true, ..around };
        assert_eq!(judge(&hole), Lost::Dropped(Dropped::FileHole));
    }
}
