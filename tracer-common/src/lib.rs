//! What both sides of sdtrace share, and every piece of logic that can be pure.
//!
//! The eBPF programs write these structures, the daemon reads them. Nothing here does I/O; everything is
//! tested on the host.
#![no_std]
#![allow(
    clippy::inline_always,
    reason = "kernels before 5.16 limit BPF calls between functions; one body per program"
)]
#![allow(
    clippy::cast_possible_truncation,
    reason = "const fn has no try_from; every cast here narrows a value that its mask or enum bounds"
)]

pub mod audit;
pub mod classify;
pub mod counters;
pub mod descriptors;
pub mod flags;
pub mod histogram;
pub mod interest;
pub mod pages;
pub mod records;
pub mod release;
pub mod settings;
pub mod table;
pub mod tracked;
pub mod writes;

/// Size of a base page in bytes on every architecture that has soft-dirty tracking and that we build for.
pub const PAGE_SIZE: u64 = 4096;

#[cfg(feature = "user")]
mod pod {
    // SAFETY: every type below is `repr(C)` or transparent and `bytemuck::Pod`, which proves that any bit
    // pattern is valid and that there is no padding.
    unsafe impl aya::Pod for crate::settings::Settings {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::settings::Own {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::table::VmaKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::tracked::Tracked {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::pages::ChunkKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::pages::PageChunk {}
}
