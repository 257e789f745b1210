//! The packet of a context. In assembly: the compiler takes packet pointers for 32 bits wide, and would access headers,
//! which lie at odd places, byte by byte.

use core::arch::asm;
use core::mem::offset_of;

use aya_ebpf::bindings::{__sk_buff, xdp_md};

/// A context whose `data` and `data_end` delimit a packet.
pub(crate) trait Context {
    /// Offset of the field `data`, bytes.
    const DATA: usize;
    /// Offset of the field `data_end`, bytes.
    const DATA_END: usize;
}

impl Context for xdp_md {
    const DATA: usize = offset_of!(Self, data);
    const DATA_END: usize = offset_of!(Self, data_end);
}

impl Context for __sk_buff {
    const DATA: usize = offset_of!(Self, data);
    const DATA_END: usize = offset_of!(Self, data_end);
}

/// Where a packet begins and where it ends.
#[derive(Clone, Copy)]
pub(crate) struct Frame {
    start: usize,
    end: usize,
}

impl Frame {
    /// # Safety
    /// `context` is the one that the kernel passed to the program.
    #[inline(always)]
    pub(crate) unsafe fn of<C: Context>(context: *const C) -> Self {
        let (start, end): (usize, usize);
        // SAFETY: two loads from the context.
        unsafe {
            asm!("{0} = *(u32 *)({1} + {2})", out(reg) start, in(reg) context, const C::DATA,
                options(pure, readonly, nostack, preserves_flags));
            asm!("{0} = *(u32 *)({1} + {2})", out(reg) end, in(reg) context, const C::DATA_END,
                options(pure, readonly, nostack, preserves_flags));
        }
        Self { start, end }
    }

    #[inline(always)]
    pub(crate) fn len(self) -> u64 {
        (self.end - self.start) as u64
    }

    /// The first `N` bytes, if there are so many.
    #[inline(always)]
    pub(crate) fn head<const N: usize>(self) -> Option<Head<N>> {
        (self.start + N <= self.end).then_some(Head(self.start))
    }
}

/// The first `N` bytes of a packet, which are there.
#[derive(Clone, Copy)]
pub(crate) struct Head<const N: usize>(usize);

macro_rules! access {
    ($get:ident, $set:ident, $type:ty, $name:literal) => {
        #[inline(always)]
        pub(crate) fn $get<const AT: usize>(self) -> $type {
            const { assert!(AT + size_of::<$type>() <= N) };
            let value: u64;
            // SAFETY: a load from inside the packet.
            unsafe {
                asm!(concat!("{0} = *(", $name, " *)({1} + {2})"), out(reg) value, in(reg) self.0, const AT,
                    options(readonly, nostack, preserves_flags));
            }
            value as $type
        }

        #[inline(always)]
        pub(crate) fn $set<const AT: usize>(self, value: $type) {
            const { assert!(AT + size_of::<$type>() <= N) };
            // SAFETY: a store inside the packet.
            unsafe {
                asm!(concat!("*(", $name, " *)({1} + {2}) = {0}"), in(reg) value as u64, in(reg) self.0, const AT,
                    options(nostack, preserves_flags));
            }
        }
    };
}

#[expect(dead_code, reason = "not every width is read and written")]
impl<const N: usize> Head<N> {
    access!(get8, set8, u8, "u8");
    access!(get16, set16, u16, "u16");
    access!(get32, set32, u32, "u32");
    access!(get64, set64, u64, "u64");
}
