//! Loads and stores of packet data, in a form that the verifier takes and that costs no more than it must.
//!
//! In assembly, for two reasons. The context shows packet pointers as 32-bit fields, but the kernel makes loads of
//! them give whole pointers; the compiler would take the upper halves for zero and compare the lower ones alone,
//! which the verifier does not take for a bounds check. And headers lie at odd places (IP 14 bytes into a frame):
//! the kernel allows misaligned access to packets, though not to the stack, but the compiler knows only one rule
//! for both and would go byte by byte.

use core::arch::asm;
use core::mem::{MaybeUninit, offset_of};

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use lb_common::packet::{Head, Wire};

/// A context whose `data` and `data_end` delimit a packet.
pub(crate) trait Bounds {
    /// Offset of the field `data`, bytes.
    const DATA: usize;
    /// Offset of the field `data_end`, bytes.
    const DATA_END: usize;
}

impl Bounds for xdp_md {
    const DATA: usize = offset_of!(Self, data);
    const DATA_END: usize = offset_of!(Self, data_end);
}

impl Bounds for __sk_buff {
    const DATA: usize = offset_of!(Self, data);
    const DATA_END: usize = offset_of!(Self, data_end);
}

/// The largest `T` that is read or written at once, bytes: two IPv6 addresses.
const LARGEST: usize = 32;

/// The `T` at `offset` of the packet of `context`; `None` where it is not wholly inside.
///
/// # Safety
/// `context` is the one that the kernel passed to the program.
#[inline(always)]
pub(crate) unsafe fn read<C: Bounds, T: Wire>(context: *const C, offset: usize) -> Option<T> {
    const { assert!(size_of::<T>() <= LARGEST) };
    // SAFETY: the caller's.
    let at = unsafe { within::<C, T>(context, offset) }?;
    let mut value = MaybeUninit::<T>::uninit();
    let to = value.as_mut_ptr().cast::<u8>();
    macro_rules! words {
        ($($byte:literal)+) => {$(
            if $byte + 4 <= size_of::<T>() {
                let word: u64;
                // SAFETY: a load from inside the packet, a store inside `value`.
                unsafe {
                    asm!("{0} = *(u32 *)({1} + {2})", out(reg) word, in(reg) at, const $byte,
                        options(pure, readonly, nostack, preserves_flags));
                    to.add($byte).cast::<u32>().write_unaligned(word as u32);
                }
            } else if $byte + 2 <= size_of::<T>() {
                let half: u64;
                // SAFETY: as above.
                unsafe {
                    asm!("{0} = *(u16 *)({1} + {2})", out(reg) half, in(reg) at, const $byte,
                        options(pure, readonly, nostack, preserves_flags));
                    to.add($byte).cast::<u16>().write_unaligned(half as u16);
                }
            } else if $byte < size_of::<T>() {
                let byte: u64;
                // SAFETY: as above.
                unsafe {
                    asm!("{0} = *(u8 *)({1} + {2})", out(reg) byte, in(reg) at, const $byte,
                        options(pure, readonly, nostack, preserves_flags));
                    to.add($byte).write(byte as u8);
                }
            }
        )+};
    }
    words!(0 4 8 12 16 20 24 28);
    // SAFETY: all bytes were written (a `T` has no size of 4n + 3), and any content is a `T`.
    Some(unsafe { value.assume_init() })
}

/// Writes `value` at `offset` of the packet of `context`; `None` where it is not wholly inside.
///
/// # Safety
/// `context` is the one that the kernel passed to the program.
#[inline(always)]
pub(crate) unsafe fn write<C: Bounds, T: Wire>(context: *const C, offset: usize, value: T) -> Option<()> {
    const { assert!(size_of::<T>() <= LARGEST) };
    // SAFETY: the caller's.
    let at = unsafe { within::<C, T>(context, offset) }?;
    let from = (&raw const value).cast::<u8>();
    macro_rules! words {
        ($($byte:literal)+) => {$(
            if $byte + 4 <= size_of::<T>() {
                // SAFETY: a load from inside `value`, a store inside the packet.
                unsafe {
                    let word = from.add($byte).cast::<u32>().read_unaligned() as u64;
                    asm!("*(u32 *)({1} + {2}) = {0}", in(reg) word, in(reg) at, const $byte,
                        options(nostack, preserves_flags));
                }
            } else if $byte + 2 <= size_of::<T>() {
                // SAFETY: as above.
                unsafe {
                    let half = from.add($byte).cast::<u16>().read_unaligned() as u64;
                    asm!("*(u16 *)({1} + {2}) = {0}", in(reg) half, in(reg) at, const $byte,
                        options(nostack, preserves_flags));
                }
            } else if $byte < size_of::<T>() {
                // SAFETY: as above.
                unsafe {
                    let byte = from.add($byte).read() as u64;
                    asm!("*(u8 *)({1} + {2}) = {0}", in(reg) byte, in(reg) at, const $byte,
                        options(nostack, preserves_flags));
                }
            }
        )+};
    }
    words!(0 4 8 12 16 20 24 28);
    Some(())
}

/// The first `length` bytes of the packet of `context`; `None` where they are not wholly inside.
///
/// # Safety
/// `context` is the one that the kernel passed to the program, and no helper moves the packet while the head is used.
#[inline(always)]
pub(crate) unsafe fn head<'p, C: Bounds>(context: *const C, length: usize) -> Option<Head<'p>> {
    let (start, end): (usize, usize);
    // SAFETY: two loads from the context.
    unsafe {
        asm!("{0} = *(u32 *)({1} + {2})", out(reg) start, in(reg) context, const C::DATA,
            options(readonly, nostack, preserves_flags));
        asm!("{0} = *(u32 *)({1} + {2})", out(reg) end, in(reg) context, const C::DATA_END,
            options(readonly, nostack, preserves_flags));
        if start + length > end { None } else { Some(Head::new(start as *mut u8, length)) }
    }
}

/// Where a `T` at `offset` lies, if it lies wholly inside the packet.
///
/// # Safety
/// `context` is the one that the kernel passed to the program.
#[inline(always)]
unsafe fn within<C: Bounds, T>(context: *const C, offset: usize) -> Option<usize> {
    let (start, end): (usize, usize);
    // SAFETY: two loads from the context.
    unsafe {
        asm!("{0} = *(u32 *)({1} + {2})", out(reg) start, in(reg) context, const C::DATA,
            options(pure, readonly, nostack, preserves_flags));
        asm!("{0} = *(u32 *)({1} + {2})", out(reg) end, in(reg) context, const C::DATA_END,
            options(pure, readonly, nostack, preserves_flags));
    }
    let at = start + offset;
    if at + size_of::<T>() > end { None } else { Some(at) }
}
