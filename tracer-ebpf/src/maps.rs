//! The maps, and counting in them.

use core::arch::asm;

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::helpers::bpf_get_smp_processor_id;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf, Stack};
use tracer_common::audit::Moved;
use tracer_common::counters::{Counter, STRIP, Stage};
use tracer_common::interest::Interest;
use tracer_common::pages::{ChunkKey, PageChunk};
use tracer_common::settings::{Own, Settings};
use tracer_common::table::{VmaKey, VmaRow};
use tracer_common::writes::{WRITE_SLOTS, WriteUnderWay};

use crate::audit::{BENCHES, Scratch};
use crate::calls::CallUnderWay;
use crate::causes::Arrival;
use crate::clears::ClearUnderWay;
use crate::direct::{DirectRead, DirectReads};
use crate::faults::TaskSlot;
use crate::files::{FileRange, FileWriteUnderWay};
use crate::mprotects::MprotectUnderWay;

/// Finds the number of a row by its key.
#[map]
pub static ROW_INDEX: HashMap<VmaKey, u32> = HashMap::with_max_entries(1, 0);

/// The rows. The daemon maps them into its memory.
#[map]
pub static ROWS: Array<VmaRow> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Numbers of the free rows; the daemon fills it. A stack, because before 5.12 a program cannot fetch and add.
#[map]
pub static FREE_ROWS: Stack<u32> = Stack::with_max_entries(1, 0);

/// Finds the number of a record of pages by its key.
#[map]
pub static CHUNK_INDEX: HashMap<ChunkKey, u32> = HashMap::with_max_entries(1, 0);

/// The records of pages. The daemon maps them into its memory.
#[map]
pub static CHUNKS: Array<PageChunk> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Numbers of the free records of pages; the daemon fills it.
#[map]
pub static FREE_CHUNKS: Stack<u32> = Stack::with_max_entries(1, 0);

/// Room for the page table that a program tests, one for each program that may be interrupted by another.
#[map]
pub static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(BENCHES, 0);

/// VMAs that the clear under way found fresh, with the time of its entry. An entry goes when the walk reaches
/// its VMA.
#[map]
pub static FRESH: HashMap<u64, u64> = HashMap::with_max_entries(16384, 0);

/// Where pages were moved to, by birth.
#[map]
pub static MOVED: HashMap<u64, Moved> = HashMap::with_max_entries(1024, 0);

/// Calls under way whose end tells what they did to a range, by thread.
#[map]
pub static CALLS: HashMap<u64, CallUnderWay> = HashMap::with_max_entries(4096, 0);

/// Pages that a migration is about to put back, by the thread that does it.
#[map]
pub static ARRIVALS: HashMap<u64, Arrival> = HashMap::with_max_entries(1024, 0);

/// Writes under way to files that somebody maps shared, by thread.
#[map]
pub static FILE_WRITES: HashMap<u64, FileWriteUnderWay> = HashMap::with_max_entries(4096, 0);

/// Ranges of files whose writes were told since a tracked address space was cleared last that maps them. What is pushed
/// out of it is told again.
#[map]
pub static FILES_TOLD: LruHashMap<FileRange, u64> = LruHashMap::with_max_entries(4096, 0);

/// Direct reads under way, by the address of the `struct bio`, or by thread where a task waits for its own.
#[map]
pub static DIRECT_READS: HashMap<u64, DirectRead> = HashMap::with_max_entries(16384, 0);

/// What direct reads deliver to an address space, by the address of its `mm_struct`.
#[map]
pub static DIRECT_READS_OF: HashMap<u64, DirectReads> = HashMap::with_max_entries(16384, 0);

/// One strip of cells for each CPU. The daemon maps them into its memory.
#[map]
pub static COUNTERS: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Rare records on their way to the daemon.
#[map]
pub static RECORDS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// Clears under way, by thread.
#[map]
pub static CLEARS: HashMap<u64, ClearUnderWay> = HashMap::with_max_entries(1024, 0);

/// Mprotect calls under way in tracked address spaces, by thread.
#[map]
pub static MPROTECTS: HashMap<u64, MprotectUnderWay> = HashMap::with_max_entries(4096, 0);

/// Number of [`TASK_SLOTS`], a power of two.
pub const TASK_SLOT_COUNT: u32 = 4096;

/// The fault that a thread is in, or was in last; direct mapped by thread id. Two threads of tracked address
/// spaces that fault at the same time and share a slot are counted as [`Stage::SlotTaken`].
#[map]
pub static TASK_SLOTS: Array<TaskSlot> = Array::with_max_entries(TASK_SLOT_COUNT, 0);

/// The write fault that a thread is in, where its return does not know the arguments; direct mapped like
/// [`TASK_SLOTS`]. The daemon maps them into its memory.
#[map]
pub static UNDER_WAY: Array<WriteUnderWay> = Array::with_max_entries(WRITE_SLOTS, BPF_F_MMAPABLE);

/// What the daemon wants.
#[map]
pub static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);

/// Who reads pagemap files. The daemon maps it into its memory.
#[map]
pub static INTEREST: Array<Interest> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Who the daemon is.
#[map]
pub static OWN: Array<Own> = Array::with_max_entries(1, 0);

/// What the bare counting programs count.
#[map]
pub static BARE: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Adds to one cell that other programs may add to at the same time.
///
/// Written as the instruction itself: `core` has no atomic addition for this target, and the form that returns
/// the old value (`BPF_FETCH`) came with 5.12 only.
#[inline(always)]
pub fn add(cell: *mut u64, amount: u64) {
    // SAFETY: `cell` points into a map value, which the verifier proves, and is aligned.
    unsafe { asm!("lock *(u64 *)({cell} + 0) += {amount}", cell = in(reg) cell, amount = in(reg) amount) }
}

/// Adds to a counter of this CPU.
#[inline(always)]
pub fn count_by(counter_cell: u32, amount: u64) {
    // SAFETY: the helper has no preconditions.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    if let Some(cell) = COUNTERS.get_ptr_mut(cpu * STRIP + counter_cell) {
        add(cell, amount);
    }
}

/// Counts one event.
#[inline(always)]
pub fn count(counter: Counter) {
    count_by(counter.cell(), 1);
}

/// Counts one event of a stage.
#[inline(always)]
pub fn stage(stage: Stage) {
    count(Counter::Stage(stage));
}

/// Sends a record, or counts that there was no room.
#[inline(always)]
pub fn send<T: Copy + 'static>(record: &T) {
    if RECORDS.output::<T>(record, 0).is_err() {
        stage(Stage::RingFull);
    }
}
