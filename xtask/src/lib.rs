//! What the project's own tasks are made of, for `cargo xtask` and for the programs that boot guests.
//!
//! The way of the data: `provision` brings what the machine lacks into the cache folder, `kernels` finds and unpacks
//! Debian kernels there, `headers` builds modules against them, `guest` boots them, `build_ebpf` makes the committed eBPF object.
#![warn(missing_docs)]
#![allow(
    clippy::missing_errors_doc,
    reason = "errors here are read by people on a terminal: each message names what failed and the remedy"
)]

pub mod bench;
pub mod build_ebpf;
pub mod cli;
pub mod criu;
pub mod dashboards;
pub mod demo;
pub mod detection;
pub mod failure;
pub mod fixtures;
pub mod guest;
pub mod headers;
pub mod kernels;
pub mod oracle;
pub mod packaging;
pub mod page;
pub mod provision;
pub mod soak;
pub mod suite;
pub mod suites;
pub mod workload;
pub mod workspace;
