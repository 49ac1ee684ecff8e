//! What the running kernel looks like: struct layouts, argument positions, symbols, options, and what this
//! process may do to it. Pure over bytes and text that the caller has read; only `survey` reads files itself.

pub mod btf;
pub mod capabilities;
pub mod config;
pub mod kallsyms;
pub mod layout;
pub mod preemption;
pub mod survey;
