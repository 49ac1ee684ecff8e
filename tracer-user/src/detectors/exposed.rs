//! Class A: page-table entries that are writable without the soft-dirty bit. Why?

use tracer_common::pages::PageCause;

use super::cause::Cause;

/// What is known about an exposed page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "facts that do not depend on each other"
)]
pub(super) struct Around {
    /// Which mechanism touched the page in this epoch.
    pub(super) mark: Option<PageCause>,
    /// Entries of its VMA may be born writable.
    pub(super) born_writable: bool,
    /// A range that had just been mapped became part of its VMA and lost `VM_SOFTDIRTY`, in this epoch or before.
    pub(super) merged: bool,
    /// mprotect worked on the page in this epoch.
    pub(super) protected: bool,
    /// Migrations were at work in its page table: one that began before the clear has left its mark in the epoch before.
    pub(super) migrating: bool,
    /// Shared memory without a file of its own: mprotect alone gives no write bits there, for want of `page_mkwrite`.
    pub(super) shared_anon: bool,
}

/// Why a page is exposed.
///
/// Migration marks name single pages. A merge comes before mprotect because an mprotect is what merges often; a
/// page protection that is writable without either is the bug of 2014, or a driver that sets it.
pub(super) fn cause(around: Around) -> Cause {
    match around {
        Around { mark: Some(mark), .. } if mark.is_migration() => Cause::MigrationRace,
        Around {
            mark: Some(PageCause::HugeMigration),
            ..
        } => Cause::MigrationRaceThp,
        // On 5.10 the mprotect that merges gives the armed side its write bits, too.
        Around {
            born_writable: true,
            merged: true,
            ..
        }
        | Around {
            merged: true,
            shared_anon: true,
            ..
        } => Cause::VmaMerge,
        Around { protected: true, .. } => Cause::MprotectUpgrade,
        Around {
            born_writable: true, ..
        } => Cause::SharedReadFault,
        Around { merged: true, .. } => Cause::VmaMerge,
        Around { migrating: true, .. } => Cause::MigrationRace,
        _ => Cause::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_explanation_wins() {
        let around = Around {
            mark: Some(PageCause::Migration),
            born_writable: true,
            merged: true,
            protected: true,
            shared_anon: false,
            migrating: true,
        };
        assert_eq!(cause(around), Cause::MigrationRace);
        let around = Around {
            mark: Some(PageCause::Ksm),
            ..around
        };
        assert_eq!(cause(around), Cause::VmaMerge);
        let upgraded = Around {
            born_writable: false,
            ..around
        };
        assert_eq!(cause(upgraded), Cause::MprotectUpgrade);
        let around_anon = Around {
            shared_anon: true,
            ..upgraded
        };
        assert_eq!(cause(around_anon), Cause::VmaMerge);
        let around = Around {
            merged: false,
            ..around
        };
        assert_eq!(cause(around), Cause::MprotectUpgrade);
        let around = Around {
            protected: false,
            ..around
        };
        assert_eq!(cause(around), Cause::SharedReadFault);
        assert_eq!(cause(Around::default()), Cause::Unknown);
        let near = Around {
            migrating: true,
            ..Around::default()
        };
        assert_eq!(cause(near), Cause::MigrationRace);
        let thp = Around {
            mark: Some(PageCause::HugeMigration),
            ..Around::default()
        };
        assert_eq!(cause(thp), Cause::MigrationRaceThp);
    }
}
