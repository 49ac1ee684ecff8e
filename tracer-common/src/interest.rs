//! Who reads pagemap files: a tracker does before it clears for the first time, so it is known that one is about to.

use bytemuck::{Pod, Zeroable};

/// [`Interest::wish`]: nothing is noted.
pub const WISH_NOTHING: u64 = 0;
/// [`Interest::wish`]: the time of each read is noted.
pub const WISH_TIME: u64 = 1;
/// [`Interest::wish`]: besides, a record is sent. The program that sends it turns this into [`WISH_TIME`]; two that read
/// at the same time may both send one.
pub const WISH_RECORD: u64 = 2;

/// The word [`Interest::wish`], for whoever maps the array.
pub const WISH_WORD: usize = 0;
/// The word [`Interest::last_ns`].
pub const LAST_WORD: usize = 1;

/// The one entry of an array that the daemon maps: it writes the wish, the programs what they see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Interest {
    /// One of the `WISH_` constants.
    pub wish: u64,
    /// When a process other than the daemon read a pagemap file last, monotonic nanoseconds; 0: none has.
    pub last_ns: u64,
}
