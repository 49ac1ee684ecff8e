//! What pagemap says of a page (Documentation/admin-guide/mm/pagemap.rst).

const SOFT_DIRTY: u64 = 1 << 55;
/// The page belongs to a file or to shared memory (`!PageAnon`).
const FILE: u64 = 1 << 61;
const PRESENT: u64 = 1 << 63;

/// Whether a page can be verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Present, clean and of the kind that its mapping must have.
    Clean,
    /// The bit is set.
    Written,
    /// Not present, swapped out or on the move: reading it would fault it in.
    Absent,
    /// Present and clean, but of the other kind. In a private mapping it is the file's page, whose content is the file's
    /// matter; in a shared one it is a page frame without a page, which may be a device's.
    OtherPage,
}

/// What an entry of pagemap says of a page in a private or shared mapping.
pub(super) fn state(entry: u64, shared: bool) -> State {
    if entry & SOFT_DIRTY != 0 {
        State::Written
    } else if entry & PRESENT == 0 {
        State::Absent
    } else if (entry & FILE != 0) == shared {
        State::Clean
    } else {
        State::OtherPage
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clean_present_page_of_its_kind_is_clean() {
        assert_eq!(state(PRESENT, false), State::Clean);
        assert_eq!(state(PRESENT | FILE, true), State::Clean);
        assert_eq!(state(PRESENT | FILE, false), State::OtherPage);
        assert_eq!(state(PRESENT, true), State::OtherPage);
        assert_eq!(state(PRESENT | SOFT_DIRTY, false), State::Written);
        // A mapping that is newer than the clear carries the bit on all its pages, present or not.
        assert_eq!(state(SOFT_DIRTY, true), State::Written);
        assert_eq!(state(0, false), State::Absent);
        // Swapped out.
        assert_eq!(state(1 << 62, false), State::Absent);
    }
}
