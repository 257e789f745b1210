//! Access to a frame: in XDP a pair of pointers, in TC an skb, on the host a vector of bytes.

#[cfg(target_arch = "bpf")]
use core::arch::asm;
use core::marker::PhantomData;

use crate::parse::{Link, Tags};

/// Plain data that may be read from and written to a packet at any alignment.
///
/// # Safety
/// Every bit pattern is a value, and there is no padding.
pub unsafe trait Wire: Copy {}

// SAFETY: integers and arrays of integers.
unsafe impl Wire for u8 {}
// SAFETY: as above.
unsafe impl Wire for u16 {}
// SAFETY: as above.
unsafe impl Wire for u32 {}
// SAFETY: as above.
unsafe impl<T: Wire, const N: usize> Wire for [T; N] {}

/// The first bytes of a frame, all of them in reach, for access without further checks.
pub struct Head<'p> {
    at: *mut u8,
    length: usize,
    packet: PhantomData<&'p mut u8>,
}

impl Head<'_> {
    /// # Safety
    /// `at` is valid for reads and writes of `length` bytes for as long as this lives.
    #[inline(always)]
    pub unsafe fn new(at: *mut u8, length: usize) -> Self {
        Self { at, length, packet: PhantomData }
    }

    /// The `T` at offset `AT`.
    #[inline(always)]
    pub fn get<T: Wire, const AT: usize>(&self) -> T {
        assert!(AT + size_of::<T>() <= self.length);
        // SAFETY: inside, as was just checked; at compile time, since all of it is constant there.
        unsafe { load::<T, AT>(self.at) }
    }

    /// Writes the `T` at offset `AT`.
    #[inline(always)]
    pub fn set<T: Wire, const AT: usize>(&mut self, value: T) {
        assert!(AT + size_of::<T>() <= self.length);
        // SAFETY: as above.
        unsafe { store::<T, AT>(self.at, value) };
    }
}

/// # Safety
/// `AT` and the `T` behind it are inside what `from` points to.
#[cfg(not(target_arch = "bpf"))]
#[inline(always)]
unsafe fn load<T: Wire, const AT: usize>(from: *const u8) -> T {
    // SAFETY: the caller's; plain data of any alignment.
    unsafe { from.add(AT).cast::<T>().read_unaligned() }
}

/// # Safety
/// As [`load`].
#[cfg(not(target_arch = "bpf"))]
#[inline(always)]
unsafe fn store<T: Wire, const AT: usize>(to: *mut u8, value: T) {
    // SAFETY: the caller's; plain data of any alignment.
    unsafe { to.add(AT).cast::<T>().write_unaligned(value) };
}

/// One load; the compiler would go byte by byte, since it does not know that packets may be read at any alignment.
///
/// # Safety
/// As above. `T` has 1, 2 or 4 bytes.
#[cfg(target_arch = "bpf")]
#[inline(always)]
unsafe fn load<T: Wire, const AT: usize>(from: *const u8) -> T {
    const { assert!(matches!(size_of::<T>(), 1 | 2 | 4)) };
    let word: u64;
    // SAFETY: the caller's; the low bytes of the word are the value (BPF here is little-endian).
    unsafe {
        match size_of::<T>() {
            1 => asm!("{0} = *(u8 *)({1} + {2})", out(reg) word, in(reg) from, const AT,
                options(readonly, nostack, preserves_flags)),
            2 => asm!("{0} = *(u16 *)({1} + {2})", out(reg) word, in(reg) from, const AT,
                options(readonly, nostack, preserves_flags)),
            _ => asm!("{0} = *(u32 *)({1} + {2})", out(reg) word, in(reg) from, const AT,
                options(readonly, nostack, preserves_flags)),
        }
        core::mem::transmute_copy(&word)
    }
}

/// One store, for the same reason.
///
/// # Safety
/// As [`load`].
#[cfg(target_arch = "bpf")]
#[inline(always)]
unsafe fn store<T: Wire, const AT: usize>(to: *mut u8, value: T) {
    const { assert!(matches!(size_of::<T>(), 1 | 2 | 4)) };
    // SAFETY: as above.
    unsafe {
        match size_of::<T>() {
            1 => {
                let word = core::mem::transmute_copy::<T, u8>(&value) as u64;
                asm!("*(u8 *)({1} + {2}) = {0}", in(reg) word, in(reg) to, const AT,
                    options(nostack, preserves_flags));
            }
            2 => {
                let word = core::mem::transmute_copy::<T, u16>(&value) as u64;
                asm!("*(u16 *)({1} + {2}) = {0}", in(reg) word, in(reg) to, const AT,
                    options(nostack, preserves_flags));
            }
            _ => {
                let word = core::mem::transmute_copy::<T, u32>(&value) as u64;
                asm!("*(u32 *)({1} + {2}) = {0}", in(reg) word, in(reg) to, const AT,
                    options(nostack, preserves_flags));
            }
        }
    }
}

/// A frame, from its destination MAC address on; from its IP header on where the device has no Ethernet header.
///
/// Offsets are in bytes from there. Reading outside the frame gives `None`, never a fault.
#[expect(clippy::len_without_is_empty, reason = "no frame is empty, and nobody asks")]
pub trait Packet {
    /// Bytes of the whole frame, including what [`Packet::read`] cannot reach (the pages of an skb).
    fn len(&self) -> u32;

    /// EtherType and tag control information (host order) of a VLAN tag that the device took out of the frame.
    fn stripped_tag(&self) -> Option<(u16, u16)>;

    /// The `T` at `offset`; `None` where it is not wholly within reach.
    fn read<T: Wire>(&self, offset: usize) -> Option<T>;

    /// Writes `value` at `offset`; `None` where it is not wholly within reach.
    #[must_use]
    fn write<T: Wire>(&mut self, offset: usize, value: T) -> Option<()>;

    /// The first `length` bytes; `None` where they are not wholly within reach.
    fn head(&mut self, length: usize) -> Option<Head<'_>>;

    /// Adds to the sum behind the TCP checksum at `offset`: `addresses` for what changed in the pseudo-header,
    /// `rest` for what changed in the segment. A checksum that the device will complete (`CHECKSUM_PARTIAL`)
    /// takes the first alone.
    #[must_use]
    fn add_to_l4_checksum(&mut self, offset: usize, addresses: u16, rest: u16, v6: bool) -> Option<()>;

    /// [`crate::parse::skip_extensions`]. In the kernel a function that is verified on its own, so that its paths do not
    /// multiply with those that follow.
    fn skip_extensions(&self, l3: usize, next: u8) -> u32;

    /// [`crate::tcp::find_mss`]. In the kernel a function, for the same reason.
    fn find_mss(&self, start: usize, length: usize) -> u32;

    /// Replaces the Ethernet header and its tags, `from` as parsed, by `to`.
    #[must_use]
    fn set_link_header(&mut self, from: &Link, to: &LinkHeader) -> Option<()>;

    /// Whether the TCP checksum at `offset` is one that the device will complete (`CHECKSUM_PARTIAL`).
    fn has_partial_checksum(&mut self, offset: usize) -> Option<bool>;

    /// Cuts the frame, its link layer `from` as parsed, after `keep` bytes, takes its tags off, and makes `room` bytes
    /// between the link layer and the IP header: it then begins at 14, or at 0 without an Ethernet header. What is in the
    /// room is undefined.
    #[must_use]
    fn make_room(&mut self, from: &Link, keep: u32, room: u32) -> Option<()>;
}

/// The Ethernet header that a packet leaves with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkHeader {
    /// Where it goes.
    pub destination: [u8; 6],
    /// The egress device's own address.
    pub source: [u8; 6],
    /// IEEE 802.1Q tags, outer first.
    pub tags: Tags,
    /// The EtherType behind the tags, host order.
    pub ethertype: u16,
    /// The egress device takes no Ethernet header: there need not be one, and one that is there does not matter.
    pub bare: bool,
}
