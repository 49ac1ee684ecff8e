//! Reading the kernel's structures and the arguments of its functions.

use core::ffi::c_void;

use aya_ebpf::bindings::pt_regs;
use aya_ebpf::helpers::generated::bpf_probe_read_kernel;

use crate::tracking;

/// A way to read kernel memory: fentry programs may load from the pointers that BTF gave them, all others ask
/// a helper.
pub trait Memory {
    /// Reads eight bytes at `base + offset`; 0 where nothing can be read.
    fn u64(base: u64, offset: u32) -> u64;
    /// Reads four bytes at `base + offset`; 0 where nothing can be read.
    fn u32(base: u64, offset: u32) -> u32;
    /// How far a kernel pointer lies from the filter of [`crate::tracking`]: a plain number, the same in every
    /// program. The verifier allows no other arithmetic on a pointer that it knows the type of.
    fn distance(pointer: u64) -> u64;
}

/// Loads from pointers that the verifier knows the type of. A fault reads as 0 (the JIT's exception table).
pub struct Direct;

impl Memory for Direct {
    #[inline(always)]
    fn u64(base: u64, offset: u32) -> u64 {
        // SAFETY: the verifier proves that `base` points to a kernel structure with a member there.
        unsafe { core::ptr::read_volatile((base + u64::from(offset)) as *const u64) }
    }

    #[inline(always)]
    fn u32(base: u64, offset: u32) -> u32 {
        // SAFETY: as above.
        unsafe { core::ptr::read_volatile((base + u64::from(offset)) as *const u32) }
    }

    #[inline(always)]
    fn distance(pointer: u64) -> u64 {
        pointer.wrapping_sub(tracking::filter_address())
    }
}

impl Direct {
    /// The number that a pointer is, for functions that take addresses as numbers. The verifier allows no cast, but
    /// it allows a difference.
    #[inline(always)]
    pub fn number(pointer: u64) -> u64 {
        Self::distance(pointer).wrapping_add(tracking::noted_filter_address())
    }
}

/// Reads through `bpf_probe_read_kernel`, which checks the address.
pub struct Probed;

impl Probed {
    /// Reads a whole value; `None` where it cannot be read.
    #[inline(always)]
    pub fn read<T: Copy>(base: u64, offset: u32, value: &mut T) -> bool {
        // SAFETY: the helper writes `size_of::<T>()` bytes to `value` or zeroes them, for any address.
        let error = unsafe {
            bpf_probe_read_kernel(
                core::ptr::from_mut(value).cast::<c_void>(),
                size_of::<T>() as u32,
                (base + u64::from(offset)) as *const c_void,
            )
        };
        error == 0
    }
}

impl Memory for Probed {
    #[inline(always)]
    fn u64(base: u64, offset: u32) -> u64 {
        let mut value = 0;
        Self::read(base, offset, &mut value);
        value
    }

    #[inline(always)]
    fn u32(base: u64, offset: u32) -> u32 {
        let mut value = 0;
        Self::read(base, offset, &mut value);
        value
    }

    #[inline(always)]
    fn distance(pointer: u64) -> u64 {
        pointer.wrapping_sub(tracking::noted_filter_address())
    }
}

/// Room for the arguments of a probed function and its return value. A power of two, so that a position can be
/// masked: the verifier then sees an access within the array.
pub struct Arguments<const ROOM: usize>([u64; ROOM]);

impl<const ROOM: usize> Arguments<ROOM> {
    /// The argument at a position that came from BTF.
    #[inline(always)]
    pub fn at(&self, position: u32) -> u64 {
        self.0[position as usize & (ROOM - 1)]
    }

    /// Takes the values at the `wanted` positions (a set of bits) from the context of a fentry program: the
    /// arguments in order. A fexit program finds the return value behind them (`bpf_get_func_ret` came with
    /// 5.17 only). Nothing else is touched: `btf_ctx_access` refuses pointers to anything but structures, up to
    /// 6.18 even `struct vm_area_struct **`.
    #[inline(always)]
    pub fn of_trampoline(context: *mut c_void, wanted: u32) -> Self {
        let context = context.cast::<u64>().cast_const();
        let mut values = [0; ROOM];
        // One load for each position, at a constant offset: the verifier wants constants. It knows `wanted`, so
        // the branches that are not taken cost nothing.
        macro_rules! take {
            ($($index:literal)*) => {$(
                if $index < ROOM && wanted & (1 << $index) != 0 {
                    // SAFETY: the verifier checks the access against the prototype.
                    values[$index & (ROOM - 1)] = unsafe { core::ptr::read_volatile(context.add($index)) };
                }
            )*};
        }
        take!(0 1 2 3 4 5 6 7);
        Self(values)
    }

    /// Takes `count` arguments from the registers at the entry of a function, and those beyond the sixth from
    /// its stack, where they lie above the return address (System V calling convention of x86-64).
    #[inline(always)]
    pub fn of_registers(registers: *mut pt_regs, count: u32) -> Self {
        let mut values = [0; ROOM];
        macro_rules! take {
            ($($index:literal $register:ident)*) => {$(
                if $index < ROOM && count > $index {
                    // SAFETY: the context of a kprobe program is a `pt_regs`.
                    let value = unsafe { core::ptr::read_volatile(&raw const (*registers).$register) };
                    values[$index & (ROOM - 1)] = value;
                }
            )*};
        }
        take!(0 rdi 1 rsi 2 rdx 3 rcx 4 r8 5 r9);
        if ROOM > 6 && count > 6 {
            // SAFETY: as above.
            let stack = unsafe { core::ptr::read_volatile(&raw const (*registers).rsp) };
            values[6 & (ROOM - 1)] = Probed::u64(stack, 8);
        }
        Self(values)
    }
}

/// The value at a constant position of the context of a fentry program, for the hot path: the loader has checked
/// that this kernel has it there.
#[inline(always)]
pub fn trampoline_value<const POSITION: usize>(context: *mut c_void) -> u64 {
    // SAFETY: the verifier checks the access against the prototype.
    unsafe { core::ptr::read_volatile(context.cast::<u64>().add(POSITION)) }
}

/// The bit of a position, for [`Arguments::of_trampoline`]; nothing for a position that does not exist.
#[inline(always)]
pub fn bit(position: u32) -> u32 {
    if position < 32 { 1 << position } else { 0 }
}
