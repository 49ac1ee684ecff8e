//! The probes of sdtrace: filter first, aggregate in maps, ring buffer for rare records only.
//!
//! Every probed function has two pairs of entry points, fentry with fexit and kprobe with kretprobe; both are
//! thin wrappers over one body. The daemon attaches one pair of each, see `probes` there.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![allow(
    clippy::inline_always,
    reason = "kernels before 5.16 limit BPF calls between functions; one body per program"
)]
#![allow(
    clippy::needless_pass_by_value,
    reason = "the macros of aya-ebpf call the entry points with the context by value"
)]
#![allow(
    clippy::wildcard_imports,
    reason = "the layout is one table of constants, used all over"
)]
#![allow(
    clippy::cast_possible_truncation,
    reason = "BPF is 64 bit; what is narrowed here is narrow in the kernel"
)]
#![allow(
    clippy::cast_ptr_alignment,
    reason = "arrays of bytes are gone over word by word; they lie at multiples of eight in their records"
)]
#![allow(
    clippy::explicit_counter_loop,
    reason = "older verifiers want a loop bounded by a constant, whatever its own counter says"
)]
#![allow(
    clippy::cast_possible_wrap,
    reason = "return values of the kernel are signed, registers are not"
)]

mod audit;
mod calls;
mod causes;
mod clears;
mod direct;
mod faults;
mod files;
mod hooks;
mod identity;
mod interest;
mod layout;
mod lifetimes;
mod maps;
mod memory;
mod migration;
mod mprotects;
mod openers;
mod pages;
mod paging;
mod ranges;
mod release;
mod rows;
mod tracking;
mod writes;

use aya_ebpf::EbpfContext;
use aya_ebpf::macros::{btf_tracepoint, fentry, fexit, kprobe, kretprobe, raw_tracepoint};
use aya_ebpf::programs::{
    BtfTracePointContext, FEntryContext, FExitContext, ProbeContext, RawTracePointContext, RetProbeContext,
};

use crate::faults::Level;
use crate::layout::*;
use crate::memory::{Arguments, Direct, Probed, bit, trampoline_value};

// clear_refs_write(file, buf, count, ppos)

#[fentry]
fn clear_refs_write_fentry(context: FEntryContext) -> u32 {
    let wanted = bit(ARG_CLEAR_REFS_WRITE_FILE.load()) | bit(ARG_CLEAR_REFS_WRITE_BUF.load());
    clear_entry(&Arguments::<8>::of_trampoline(context.as_ptr(), wanted))
}

#[kprobe]
fn clear_refs_write_kprobe(context: ProbeContext) -> u32 {
    clear_entry(&Arguments::<8>::of_registers(
        context.regs,
        ARGS_CLEAR_REFS_WRITE.load(),
    ))
}

#[inline(always)]
fn clear_entry(arguments: &Arguments<8>) -> u32 {
    clears::entry(
        arguments.at(ARG_CLEAR_REFS_WRITE_FILE.load()),
        arguments.at(ARG_CLEAR_REFS_WRITE_BUF.load()),
    );
    0
}

#[fexit]
fn clear_refs_write_fexit(context: FExitContext) -> u32 {
    let count = ARGS_CLEAR_REFS_WRITE.load();
    clears::returned(Arguments::<8>::of_trampoline(context.as_ptr(), bit(count)).at(count) as i64);
    0
}

#[kretprobe]
fn clear_refs_write_kretprobe(context: RetProbeContext) -> u32 {
    clears::returned(context.ret::<i64>());
    0
}

// clear_refs_test_walk(start, end, walk)

#[fentry]
fn clear_refs_test_walk_fentry(context: FEntryContext) -> u32 {
    let walk = ARG_CLEAR_REFS_TEST_WALK_WALK.load();
    clears::reached_vma(Arguments::<8>::of_trampoline(context.as_ptr(), bit(walk)).at(walk));
    0
}

#[kprobe]
fn clear_refs_test_walk_kprobe(context: ProbeContext) -> u32 {
    let arguments = Arguments::<8>::of_registers(context.regs, ARGS_CLEAR_REFS_TEST_WALK.load());
    clears::reached_vma(arguments.at(ARG_CLEAR_REFS_TEST_WALK_WALK.load()));
    0
}

// do_wp_page(vmf): the hot path. Its only argument is at a constant place, which the loader checks.

#[fentry]
fn do_wp_page_fentry(context: FEntryContext) -> u32 {
    if tracking::anything() {
        let vmf = trampoline_value::<0>(context.as_ptr());
        faults::entry::<Direct>(vmf, Level::Pte, None, true);
    }
    0
}

#[fexit]
fn do_wp_page_fexit(context: FExitContext) -> u32 {
    if tracking::any_fault_under_way() {
        let answer = trampoline_value::<1>(context.as_ptr()) as u32;
        faults::returned(answer, Level::Pte);
    }
    0
}

#[kprobe]
fn do_wp_page_kprobe(context: ProbeContext) -> u32 {
    if tracking::anything() {
        let vmf = Arguments::<1>::of_registers(context.regs, 1).at(0);
        faults::entry::<Probed>(vmf, Level::Pte, None, FAULT_RETURN.load() != 0);
    }
    0
}

#[kretprobe]
fn do_wp_page_kretprobe(context: RetProbeContext) -> u32 {
    if tracking::any_fault_under_way() {
        faults::returned(context.ret::<u32>(), Level::Pte);
    }
    0
}

// do_huge_pmd_wp_page(vmf), up to 5.14 do_huge_pmd_wp_page(vmf, orig_pmd)

#[fentry]
fn do_huge_pmd_wp_page_fentry(context: FEntryContext) -> u32 {
    let vmf = ARG_DO_HUGE_PMD_WP_PAGE_VMF.load();
    let wanted = bit(vmf) | bit(ARG_DO_HUGE_PMD_WP_PAGE_ORIG_PMD.load());
    let arguments = Arguments::<2>::of_trampoline(context.as_ptr(), wanted);
    faults::entry::<Direct>(arguments.at(vmf), Level::Pmd, orig_pmd(&arguments), true);
    0
}

#[fexit]
fn do_huge_pmd_wp_page_fexit(context: FExitContext) -> u32 {
    let count = ARGS_DO_HUGE_PMD_WP_PAGE.load();
    let arguments = Arguments::<4>::of_trampoline(context.as_ptr(), bit(count));
    faults::returned(arguments.at(count) as u32, Level::Pmd);
    0
}

#[kprobe]
fn do_huge_pmd_wp_page_kprobe(context: ProbeContext) -> u32 {
    let arguments = Arguments::<2>::of_registers(context.regs, ARGS_DO_HUGE_PMD_WP_PAGE.load());
    let vmf = arguments.at(ARG_DO_HUGE_PMD_WP_PAGE_VMF.load());
    faults::entry::<Probed>(vmf, Level::Pmd, orig_pmd(&arguments), true);
    0
}

#[kretprobe]
fn do_huge_pmd_wp_page_kretprobe(context: RetProbeContext) -> u32 {
    faults::returned(context.ret::<u32>(), Level::Pmd);
    0
}

#[inline(always)]
fn orig_pmd(arguments: &Arguments<2>) -> Option<u64> {
    let position = ARG_DO_HUGE_PMD_WP_PAGE_ORIG_PMD.load();
    if position == ABSENT {
        None
    } else {
        Some(arguments.at(position))
    }
}

// mprotect_fixup(…, vma, pprev, start, end, newflags)

#[fentry]
fn mprotect_fixup_fentry(context: FEntryContext) -> u32 {
    let wanted = bit(ARG_MPROTECT_FIXUP_VMA.load())
        | bit(ARG_MPROTECT_FIXUP_PPREV.load())
        | bit(ARG_MPROTECT_FIXUP_START.load())
        | bit(ARG_MPROTECT_FIXUP_END.load())
        | bit(ARG_MPROTECT_FIXUP_NEWFLAGS.load());
    mprotect_entry(&Arguments::<8>::of_trampoline(context.as_ptr(), wanted))
}

#[kprobe]
fn mprotect_fixup_kprobe(context: ProbeContext) -> u32 {
    mprotect_entry(&Arguments::<8>::of_registers(
        context.regs,
        ARGS_MPROTECT_FIXUP.load(),
    ))
}

#[inline(always)]
fn mprotect_entry(arguments: &Arguments<8>) -> u32 {
    mprotects::entry(
        arguments.at(ARG_MPROTECT_FIXUP_VMA.load()),
        arguments.at(ARG_MPROTECT_FIXUP_PPREV.load()),
        arguments.at(ARG_MPROTECT_FIXUP_START.load()),
        arguments.at(ARG_MPROTECT_FIXUP_END.load()),
        arguments.at(ARG_MPROTECT_FIXUP_NEWFLAGS.load()),
    );
    0
}

#[fexit]
fn mprotect_fixup_fexit(context: FExitContext) -> u32 {
    let count = ARGS_MPROTECT_FIXUP.load();
    mprotects::returned(Arguments::<8>::of_trampoline(context.as_ptr(), bit(count)).at(count) as i32);
    0
}

#[kretprobe]
fn mprotect_fixup_kretprobe(context: RetProbeContext) -> u32 {
    mprotects::returned(context.ret::<i32>());
    0
}

// begin_new_exec(bprm)

#[fentry]
fn begin_new_exec_fentry(_context: FEntryContext) -> u32 {
    lifetimes::execs();
    0
}

#[kprobe]
fn begin_new_exec_kprobe(_context: ProbeContext) -> u32 {
    lifetimes::execs();
    0
}

// exit_mmap(mm)

#[fentry]
fn exit_mmap_fentry(context: FEntryContext) -> u32 {
    let mm = ARG_EXIT_MMAP_MM.load();
    lifetimes::exits::<Direct>(Arguments::<2>::of_trampoline(context.as_ptr(), bit(mm)).at(mm));
    0
}

#[kprobe]
fn exit_mmap_kprobe(context: ProbeContext) -> u32 {
    let arguments = Arguments::<2>::of_registers(context.regs, ARGS_EXIT_MMAP.load());
    lifetimes::exits::<Probed>(arguments.at(ARG_EXIT_MMAP_MM.load()));
    0
}

// pagemap_read(file, buf, count, ppos)

#[fentry]
fn pagemap_read_fentry(context: FEntryContext) -> u32 {
    let wanted = bit(ARG_PAGEMAP_READ_FILE.load()) | bit(ARG_PAGEMAP_READ_BUF.load());
    pagemap_entry(&Arguments::<8>::of_trampoline(context.as_ptr(), wanted))
}

#[kprobe]
fn pagemap_read_kprobe(context: ProbeContext) -> u32 {
    pagemap_entry(&Arguments::<8>::of_registers(
        context.regs,
        ARGS_PAGEMAP_READ.load(),
    ))
}

#[inline(always)]
fn pagemap_entry(arguments: &Arguments<8>) -> u32 {
    lifetimes::reads_pagemap(
        arguments.at(ARG_PAGEMAP_READ_FILE.load()),
        arguments.at(ARG_PAGEMAP_READ_BUF.load()),
    );
    0
}

// tracepoint sched_process_fork(parent, child)

#[btf_tracepoint(function = "sched_process_fork")]
fn sched_process_fork_btf(context: BtfTracePointContext) -> u32 {
    lifetimes::forked(context.arg(0), context.arg(1));
    0
}

#[raw_tracepoint(tracepoint = "sched_process_fork")]
fn sched_process_fork_raw(context: RawTracePointContext) -> u32 {
    lifetimes::forked(context.arg(0), context.arg(1));
    0
}

// Attached nowhere: the daemon runs it. The context holds what it wants.

#[raw_tracepoint]
fn release(context: RawTracePointContext) -> u32 {
    let words = [context.arg(1), context.arg(2), context.arg(3), context.arg(4)];
    release::run(context.arg(0), words).cast_unsigned()
}

// Programs that do nothing but count. The start-up attaches the kprobe for a moment to find out whether this
// kernel counts the runs that it skips; the benches measure against both.

#[kprobe]
fn bare_kprobe(_context: ProbeContext) -> u32 {
    count_bare()
}

#[fexit]
fn bare_fexit(_context: FExitContext) -> u32 {
    count_bare()
}

#[inline(always)]
fn count_bare() -> u32 {
    if let Some(cell) = maps::BARE.get_ptr_mut(0) {
        // SAFETY: the verifier proves that `cell` is a map value; it belongs to this CPU.
        unsafe { *cell += 1 };
    }
    0
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// GPL helpers want a GPL-compatible licence; see `LICENSE-GPL-2.0`.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
