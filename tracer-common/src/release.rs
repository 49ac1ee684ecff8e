//! What the daemon has the program `release` do, as its first argument.

/// Takes the row with this key out of the index.
pub const RETIRE_ROW: u64 = 1;
/// Takes the record of pages with this key out of the index.
pub const RETIRE_CHUNK: u64 = 2;
/// Puts the number of a row back onto the stack of free ones.
pub const RETURN_ROW: u64 = 3;
/// Puts the number of a record of pages back onto the stack of free ones.
pub const RETURN_CHUNK: u64 = 4;
