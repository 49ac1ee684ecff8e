//! The live page under test: what runs in the guest while a browser on the host looks at it.
//!
//! [`stage`] starts sdtrace and does what the host's script asks for, one act after the other; [`steady`] is a process that
//! writes without pause. The browser's side is `suites/page.rs` with `suites/page.mjs`.

pub mod stage;
pub mod steady;
