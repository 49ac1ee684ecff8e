//! Calls that work on a range of addresses: madvise, mremap, userfaultfd. What they were asked for is kept from
//! their entry to their return, when it is known whether they did it.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::bpf_probe_read_user;
use tracer_common::audit::{Moved, RangeCause};
use tracer_common::counters::Stage;
use tracer_common::pages::{CHUNK_SIZE, PageCause, tag};

use crate::identity::current;
use crate::layout::*;
use crate::maps::{CALLS, MOVED, stage};
use crate::memory::{Memory, Probed};
use crate::ranges::{self, Range};
use crate::{pages, tracking};

/// A call between its entry and its return.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct CallUnderWay {
    mm: u64,
    start: u64,
    length: u64,
    from: u64,
    from_length: u64,
    cause: u32,
    detail: u32,
}

#[inline(always)]
fn begin(call: &CallUnderWay) {
    let thread = bpf_get_current_pid_tgid();
    if let Some(before) = CALLS.get_ptr(thread) {
        // SAFETY: the verifier proves that `before` is a map value.
        let before = unsafe { &*before };
        // `do_madvise` within the system call madvise is the same call. Any other has returned, and the kernel had no
        // instance of the return probe left for it.
        if before.start != call.start || before.length != call.length || before.cause != call.cause {
            stage(Stage::CallsFull);
        }
    }
    if CALLS.insert(thread, call, 0).is_err() {
        stage(Stage::CallsFull);
    }
}

/// The entry of `do_madvise(mm, start, len_in, behavior)`.
#[inline(always)]
pub fn madvise(mm: u64, start: u64, length: u64, advice: u32) {
    if !tracking::anything() || !tracking::perhaps::<Probed>(mm) {
        return;
    }
    begin(&CallUnderWay {
        mm,
        start,
        length,
        cause: RangeCause::Advice as u32,
        detail: advice,
        ..CallUnderWay::default()
    });
}

/// Where `pt_regs` of x86-64 keeps the arguments of a system call: the first four.
const RDI: u32 = 112;
const RSI: u32 = 104;
const RDX: u32 = 96;
const R10: u32 = 56;

/// The entry of the system call madvise; `registers` is the caller's `pt_regs`. 5.10 has `do_madvise` inlined in it;
/// where it calls it, the inner call takes over what is noted here.
#[inline(always)]
pub fn sys_madvise(registers: u64) {
    if tracking::anything() {
        madvise(
            Probed::u64(current(), TASK_MM.load()),
            Probed::u64(registers, RDI),
            Probed::u64(registers, RSI),
            Probed::u32(registers, RDX),
        );
    }
}

/// The entry of the system call mremap; `registers` is the caller's `pt_regs` (x86-64).
#[inline(always)]
pub fn mremap(registers: u64) {
    if !tracking::anything() {
        return;
    }
    let mm = Probed::u64(current(), TASK_MM.load());
    if !tracking::perhaps::<Probed>(mm) {
        return;
    }
    begin(&CallUnderWay {
        mm,
        start: 0,
        length: Probed::u64(registers, RDX),
        from: Probed::u64(registers, RDI),
        from_length: Probed::u64(registers, RSI),
        cause: RangeCause::Remap as u32,
        detail: Probed::u32(registers, R10),
    });
}

/// The entry of `userfaultfd_ioctl(file, cmd, arg)`. The numbers of the commands are part of the kernel's
/// interface (`include/uapi/linux/userfaultfd.h`); only their lowest byte tells them apart.
#[inline(always)]
pub fn userfault(file: u64, command: u32, argument: u64) {
    const UFFDIO_ZEROPAGE: u32 = 0x04;
    const UFFDIO_MOVE: u32 = 0x05;
    if !tracking::anything() {
        return;
    }
    let mm = Probed::u64(Probed::u64(file, FILE_PRIVATE_DATA.load()), USERFAULTFD_MM.load());
    if !tracking::perhaps::<Probed>(mm) {
        return;
    }
    let mut words = [0u64; 3];
    // SAFETY: the helper checks the address and writes as many bytes as `words` has.
    let error = unsafe { bpf_probe_read_user(words.as_mut_ptr().cast(), 24, argument as *const _) };
    if error != 0 {
        return;
    }
    let call = match command & 0xff {
        // struct uffdio_zeropage: start, len
        UFFDIO_ZEROPAGE => CallUnderWay {
            mm,
            start: words[0],
            length: words[1],
            cause: RangeCause::UserfaultZero as u32,
            ..CallUnderWay::default()
        },
        // struct uffdio_move: dst, src, len
        UFFDIO_MOVE => CallUnderWay {
            mm,
            start: words[0],
            length: words[2],
            from: words[1],
            from_length: words[2],
            cause: RangeCause::UserfaultMove as u32,
            ..CallUnderWay::default()
        },
        _ => return,
    };
    begin(&call);
}

/// [`CallUnderWay::cause`]: a breakpoint is written; no [`RangeCause`] has this number.
const BREAKPOINT: u32 = 100;

/// The entry of `uprobe_write_opcode(auprobe, mm or vma, address, …)`.
#[inline(always)]
pub fn breakpoint(mm_or_vma: u64, is_vma: bool, address: u64) {
    if !tracking::anything() {
        return;
    }
    let mm = if is_vma {
        Probed::u64(mm_or_vma, VMA_MM.load())
    } else {
        mm_or_vma
    };
    if tracking::perhaps::<Probed>(mm) {
        begin(&CallUnderWay {
            mm,
            start: address,
            cause: BREAKPOINT,
            ..CallUnderWay::default()
        });
    }
}

/// `ENOMEM` of `include/uapi/asm-generic/errno-base.h`.
const ENOMEM: i64 = 12;

/// The return of any of them.
#[inline(always)]
pub fn returned(answer: i64) {
    if !tracking::anything() {
        return;
    }
    let thread = bpf_get_current_pid_tgid();
    let Some(found) = CALLS.get_ptr(thread) else {
        return;
    };
    // SAFETY: the verifier proves that `found` is a map value.
    let mut call = unsafe { *found };
    let _ = CALLS.remove(thread);
    let Some(tracked) = tracking::get(call.mm) else {
        return;
    };
    // SAFETY: the verifier proves that `tracked` is a map value.
    let (birth, epoch) = unsafe { ((*tracked).birth, (*tracked).epoch) };
    if call.cause == BREAKPOINT {
        if answer as i32 == 0 {
            // The kernel wrote the page without a fault of the process.
            pages::mark_cause(call.mm, call.start, false, PageCause::Uprobe as u32);
            pages::mark_written(birth, call.start, false, epoch, tag(epoch));
        }
        return;
    }
    // madvise goes on behind a hole and says so afterwards; every other failure did nothing, or stopped early.
    let failed = (-4095..0).contains(&answer);
    let in_part = call.cause == RangeCause::Advice as u32 && answer == -ENOMEM;
    if failed && !in_part {
        return;
    }
    if call.cause == RangeCause::Remap as u32 {
        call.start = answer.cast_unsigned();
        if call.start != call.from {
            moved(birth, epoch, &call);
        }
    }
    if call.cause == RangeCause::UserfaultMove as u32 {
        moved(birth, epoch, &call);
    }
    send_range(birth, epoch, &call);
}

#[inline(always)]
fn send_range(birth: u64, epoch: u32, call: &CallUnderWay) {
    ranges::tell(Range {
        birth,
        epoch,
        start: call.start,
        length: call.length,
        from: call.from,
        from_length: call.from_length,
        cause: call.cause,
        detail: call.detail,
        initial_tid: bpf_get_current_pid_tgid() as u32,
    });
}

/// A successful mprotect of an armed VMA.
#[inline(always)]
pub fn protected(birth: u64, epoch: u32, start: u64, end: u64, newflags: u64) {
    let call = CallUnderWay {
        start,
        length: end.wrapping_sub(start),
        cause: RangeCause::Protect as u32,
        detail: newflags as u32,
        ..CallUnderWay::default()
    };
    send_range(birth, epoch, &call);
}

/// `unmap_mapping_range(mapping, holebegin, holelen, even_cows)`: a range of a file loses its pages. Nothing is
/// said of a file that nobody maps.
#[inline(always)]
pub fn file_hole(mapping: u64, start: u64, length: u64) {
    of_file(mapping, start, length, RangeCause::FileHole);
}

/// `collapse_file(…, file, start, …)`: 2 MiB of a file, from page `start` on, are unmapped everywhere and collapsed.
#[inline(always)]
pub fn file_collapse(file: u64, start: u64) {
    of_file(
        Probed::u64(file, FILE_MAPPING.load()),
        start << 12,
        CHUNK_SIZE,
        RangeCause::FileCollapse,
    );
}

#[inline(always)]
fn of_file(mapping: u64, start: u64, length: u64, cause: RangeCause) {
    if !tracking::anything() || Probed::u64(mapping, MAPPING_VMAS.load()) == 0 {
        return;
    }
    let inode = Probed::u64(mapping, MAPPING_HOST.load());
    file_changed(cause, inode, start, length);
}

/// A range of a file is not what it was.
#[inline(always)]
pub fn file_changed(cause: RangeCause, inode: u64, start: u64, length: u64) {
    let superblock = Probed::u64(inode, INODE_SB.load());
    let call = CallUnderWay {
        start,
        length,
        from: Probed::u64(inode, INODE_NUMBER.load()),
        from_length: u64::from(Probed::u32(superblock, SUPER_DEV.load())),
        cause: cause as u32,
        ..CallUnderWay::default()
    };
    send_range(0, 0, &call);
}

/// Remembers where pages were moved to. `mmap_lock` was held for writing, so two moves of one address space do
/// not come here at the same time but for the time between its release and the return of the call.
#[inline(always)]
fn moved(birth: u64, epoch: u32, call: &CallUnderWay) {
    if MOVED.get_ptr(birth).is_none() && MOVED.insert(birth, Moved::default(), 0).is_err() {
        stage(Stage::MovedFull);
        return;
    }
    let Some(moved) = MOVED.get_ptr_mut(birth) else {
        return;
    };
    let (from_length, new_length) = (whole_pages(call.from_length), whole_pages(call.length));
    let length = if new_length < from_length {
        new_length
    } else {
        from_length
    };
    let from = [call.from, call.from.wrapping_add(from_length)];
    let to = [call.start, call.start.wrapping_add(length)];
    // SAFETY: the verifier proves that `moved` is a map value.
    unsafe { (*moved).note(epoch, from, to) };
    tracking::note_move();
}

/// The kernel rounds the lengths that it is given up (`PAGE_ALIGN`).
#[inline(always)]
const fn whole_pages(length: u64) -> u64 {
    length.wrapping_add(0xfff) & !0xfff
}
