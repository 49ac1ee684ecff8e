//! Writes to files that a tracked address space maps shared: write(2) and its kin change its memory through the page
//! cache, and no page-table entry tells.
//!
//! A write is told at its entry, with what it was asked to write: it may go on for long, and the pages change meanwhile.
//! If an address space that maps the file was cleared before its return, it is told again, because some of it may have
//! come after the clear.
//!
//! A file may be written in a tight loop. What was told since the last clear that met the file is not told again; and the
//! more ranges of it were told, the coarser the next ones are, up to the whole file.

use core::cell::UnsafeCell;

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use tracer_common::audit::RangeCause;
use tracer_common::counters::Stage;
use tracer_common::flags::VM_SHARED;
use tracer_common::table::VmaKey;

use crate::calls;
use crate::layout::*;
use crate::maps::{FILE_WRITES, FILES_TOLD, add, stage};
use crate::memory::{Memory, Probed};
use crate::tracking;

/// A write between its entry and its return.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct FileWriteUnderWay {
    mapping: u64,
    inode: u64,
    start: u64,
    length: u64,
    /// The last clear that had met the file at the entry, see [`newest_clear`].
    clear: u64,
}

/// A range of a file that was told since a clear. From 0 to 0: how many ranges were.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct FileRange {
    mapping: u64,
    clear: u64,
    start: u64,
    end: u64,
}

const CELLS: usize = 4096;

#[repr(C)]
struct Files {
    /// Noted writes that have not returned: while it is 0 the return of a write costs one load.
    under_way: UnsafeCell<u64>,
    /// By a few bits of the address of a file's `address_space`: when the last clear began that met a shared mapping of
    /// such a file. 0 proves that no tracked address space maps it.
    cells: [UnsafeCell<u64>; CELLS],
}

// SAFETY: words are read and stored whole by volatile accesses, and the first is changed by atomic additions.
unsafe impl Sync for Files {}

static FILES: Files = Files {
    under_way: UnsafeCell::new(0),
    cells: [const { UnsafeCell::new(0) }; CELLS],
};

#[inline(always)]
fn cell(mapping: u64) -> *mut u64 {
    // Any odd constant will do; this one is 2 to the 64 over the golden ratio.
    let index = (mapping.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as usize & (CELLS - 1);
    // SAFETY: the index is masked.
    unsafe { FILES.cells.as_ptr().add(index).cast_mut().cast() }
}

/// When the last clear began that met a shared mapping of the file, or of one that shares the cell; 0: none did.
#[inline(always)]
fn newest_clear(mapping: u64) -> u64 {
    // SAFETY: a plain load of a word of ours.
    unsafe { core::ptr::read_volatile(cell(mapping)) }
}

/// A clear that began to walk at `clear_ns` meets a VMA, before it takes any bit of it.
#[inline(always)]
pub fn mapped(key: &VmaKey, vma: u64, clear_ns: u64) {
    if key.flags & VM_SHARED == 0 {
        return;
    }
    let file = Probed::u64(vma, VMA_FILE.load());
    if file == 0 {
        return;
    }
    let cell = cell(Probed::u64(file, FILE_MAPPING.load()));
    // Never back: what was told after the other clear was not told after this one.
    // SAFETY: plain accesses to a word of ours.
    unsafe {
        if core::ptr::read_volatile(cell) < clear_ns {
            core::ptr::write_volatile(cell, clear_ns);
        }
    }
}

/// Where a write takes its place in the file from.
pub enum Place {
    /// `kiocb::ki_pos` at this address.
    Of(u64),
    /// The place itself.
    At(u64),
}

/// The entry of `generic_perform_write` or `iomap_file_buffered_write`. Noted even while nothing is tracked: the first
/// clear may come before the return.
#[inline(always)]
pub fn write_begins<M: Memory>(file: u64, place: Place, iter: u64) {
    let mapping = M::u64(file, FILE_MAPPING.load());
    // Mappings that are shared and may be written; negative for a memory file that must not have any.
    if (M::u32(mapping, MAPPING_WRITABLE.load()) as i32) <= 0 {
        return;
    }
    let start = match place {
        Place::Of(iocb) => Probed::u64(iocb, KIOCB_POS.load()),
        Place::At(start) => start,
    };
    noted(
        M::distance(mapping).wrapping_add(tracking::noted_filter_address()),
        Probed::u64(file, FILE_INODE.load()),
        start,
        Probed::u64(iter, ITER_COUNT.load()),
    );
}

#[inline(always)]
fn noted(mapping: u64, inode: u64, start: u64, length: u64) {
    if length == 0 {
        return;
    }
    let thread = bpf_get_current_pid_tgid();
    let write = FileWriteUnderWay {
        mapping,
        inode,
        start,
        length,
        clear: newest_clear(mapping),
    };
    let left_over = FILE_WRITES.get_ptr(thread).is_some();
    if left_over {
        // The kernel had no instance of the return probe left for it.
        stage(Stage::FileWritesFull);
    }
    if FILE_WRITES.insert(thread, write, 0).is_err() {
        stage(Stage::FileWritesFull);
    } else if !left_over {
        add(FILES.under_way.get(), 1);
    }
    tell(&write);
}

/// The return of either, with what it wrote.
#[inline(always)]
pub fn write_ends(answer: i64) {
    // SAFETY: a plain load of a word of ours.
    if unsafe { core::ptr::read_volatile(FILES.under_way.get()) } == 0 {
        return;
    }
    let thread = bpf_get_current_pid_tgid();
    let Some(found) = FILE_WRITES.get_ptr(thread) else {
        return;
    };
    // SAFETY: the verifier proves that `found` is a map value.
    let mut write = unsafe { *found };
    let _ = FILE_WRITES.remove(thread);
    add(FILES.under_way.get(), 1u64.wrapping_neg());
    let clear = newest_clear(write.mapping);
    if answer <= 0 || clear == write.clear {
        return;
    }
    let written = answer.cast_unsigned();
    if written < write.length {
        write.length = written;
    }
    write.clear = clear;
    tell(&write);
}

/// Ranges of one file that are told at each level of coarseness.
const RANGES: u64 = 128;

/// Tells of a write unless that was told already.
#[inline(never)]
fn tell(write: &FileWriteUnderWay) {
    if write.clear == 0 || !tracking::anything() {
        return;
    }
    let mut range = FileRange {
        mapping: write.mapping,
        clear: write.clear,
        start: 0,
        end: 0,
    };
    let told = FILES_TOLD.get_ptr(range).map_or(0, |told| {
        // SAFETY: the verifier proves that `told` is a map value.
        unsafe { core::ptr::read_volatile(told) }
    });
    // Whole pages, then pieces of 2 MiB, then of 1 GiB.
    let piece = if told < RANGES {
        0xfff
    } else if told < 2 * RANGES {
        0x1f_ffff
    } else {
        0x3fff_ffff
    };
    let count = range;
    range.start = write.start & !piece;
    range.end = write.start.wrapping_add(write.length).wrapping_add(piece) & !piece;
    if told >= 3 * RANGES || range.end <= range.start {
        range.start = 0;
        range.end = u64::MAX;
    }
    if FILES_TOLD.get_ptr(range).is_some() {
        return;
    }
    calls::file_changed(
        RangeCause::FileWrite,
        write.inode,
        range.start,
        range.end - range.start,
    );
    // After it was sent, or counted as lost.
    let _ = FILES_TOLD.insert(range, 0, 0);
    if let Some(told) = FILES_TOLD.get_ptr_mut(count) {
        add(told, 1);
    } else {
        let _ = FILES_TOLD.insert(count, 1, 0);
    }
}
