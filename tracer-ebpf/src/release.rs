//! Giving rows and records of pages back, for the daemon.
//!
//! The daemon could do it by bpf(2). But while a CPU is in a map operation of bpf(2) the kernel runs no kprobe program on it
//! (`bpf_disable_instrumentation`), and where the kernel preempts itself, other threads come by the probes there meanwhile. A
//! program that the daemon runs (`BPF_PROG_TEST_RUN` of a raw tracepoint, 5.10) keeps nobody out.

use tracer_common::pages::ChunkKey;
use tracer_common::release::{RETIRE_CHUNK, RETIRE_ROW, RETURN_CHUNK, RETURN_ROW};
use tracer_common::table::VmaKey;

use crate::maps::{CHUNK_INDEX, FREE_CHUNKS, FREE_ROWS, ROW_INDEX};

/// Does what the daemon asks for; 0, or what the kernel's helper answered. `words` are the key of what leaves its index,
/// the first of them the number of what goes back onto its stack.
#[inline(always)]
pub fn run(task: u64, words: [u64; 4]) -> i32 {
    let done = match task {
        RETIRE_ROW => ROW_INDEX.remove(VmaKey {
            birth: words[0],
            start: words[1],
            flags: words[2],
            page_prot: words[3],
        }),
        RETIRE_CHUNK => CHUNK_INDEX.remove(ChunkKey {
            birth: words[0],
            number: words[1],
        }),
        RETURN_ROW => FREE_ROWS.push(words[0] as u32, 0),
        RETURN_CHUNK => FREE_CHUNKS.push(words[0] as u32, 0),
        _ => return 1,
    };
    match done {
        Ok(()) => 0,
        Err(error) => error,
    }
}
