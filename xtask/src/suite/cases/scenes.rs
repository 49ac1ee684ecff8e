//! Writes to memory of each kind: the ledger must show each, and nothing else.

use anyhow::Result;

use crate::suite::Suite;
use crate::suite::scene::Clear;

macro_rules! scenes {
    ($($name:ident $scene:literal)*) => {$(
        pub fn $name(suite: &mut Suite) -> Result<()> {
            suite.check_scene($scene, Clear::Itself)?.actor.end()
        }
    )*};
}

scenes! {
    seed "seed"
    private "private"
    shared "shared"
    zero_pages "zero-pages"
    huge "huge"
    shared_file "shared-file"
    private_file "private-file"
    memfd "memfd"
    mprotect "mprotect"
    mprotect_shared "mprotect-shared"
    mprotect_split "mprotect-split"
    fork "fork"
    huge_fork "huge-fork"
    unshare "unshare"
    vfork "vfork"
    threads "threads"
}
