//! A flow: one TCP connection through the kernel, as two entries, one for each direction.
//!
//! Each entry is keyed by the 5-tuple *as that direction arrives* and holds everything that is needed to send the
//! packet on, so a packet of an established flow costs one look-up. The forward entry (client to VIP) becomes
//! SNAT address to backend; the reverse entry (backend to SNAT address) becomes VIP to client, and owns the SNAT
//! port. Half-open flows live in maps of their own with the same layout.

use core::marker::PhantomData;
use core::ptr::{NonNull, addr_of_mut};

use crate::address::Address;
use crate::atomic;
use crate::checksum;
use crate::decide::Rung;
use crate::parse::{TCP, Tags};
use crate::tcp;

/// The 5-tuple of a packet: 16 bytes for IPv4, 40 for IPv6. Network byte order.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Key<A> {
    /// Source address.
    pub source: A,
    /// Destination address.
    pub destination: A,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// IP protocol number; the rest is zero, so that the key has no padding of unknown content.
    pub protocol: [u8; 4],
}

impl<A: Address> Key<A> {
    /// The key of a TCP segment.
    #[inline(always)]
    pub fn new(source: A, destination: A, source_port: u16, destination_port: u16) -> Self {
        Self { source, destination, source_port, destination_port, protocol: [TCP, 0, 0, 0] }
    }

    /// The key under which an answer to this packet arrives.
    #[inline(always)]
    pub fn reversed(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol: self.protocol,
        }
    }

    /// Ones' complement sum of both addresses.
    #[inline(always)]
    fn address_sum(&self) -> u32 {
        self.source.sum() + self.destination.sum()
    }

    /// Ones' complement sum of both ports.
    #[inline(always)]
    fn port_sum(&self) -> u32 {
        self.source_port as u32 + self.destination_port as u32
    }
}

/// Bits of [`Flow::flags`]; they never change once the entry is published.
pub mod flags {
    /// From the backend to the client.
    pub const REVERSE: u32 = 1;
    /// No flow: a SYN of this tuple went up to the proxy, and so do the ones that follow.
    pub const TOMBSTONE: u32 = 1 << 1;
    /// `mac` and `tags` say where the packet leaves to, the next hop only by which device: a neighbour on the link,
    /// learned from its SYN.
    pub const LEARNED: u32 = 1 << 2;
    /// Where the rung that carried the SYN begins ([`crate::Rung`] as a number).
    pub const RUNG_SHIFT: u32 = 8;
}

/// One direction of a flow, as a map value: 120 bytes for IPv4, 144 for IPv6.
///
/// The fields up to `generation` are written before the entry is published and stay. The counters behind them are
/// updated without atomics: packets of one direction meet on one CPU, and where they do not, a count may be lost
/// but nothing else.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Flow<A> {
    /// The 5-tuple that the packet leaves with.
    pub out: Key<A>,
    /// Delta of the IPv4 header checksum: addresses and the lowered TTL.
    pub delta_l3: u16,
    /// Delta of the TCP checksum for the addresses of the pseudo-header.
    pub delta_addresses: u16,
    /// Delta of the TCP checksum for the ports.
    pub delta_ports: u16,
    /// Upper bound for the MSS option of a SYN in this direction, bytes.
    pub mss: u16,
    /// Index into the next hops.
    pub hop: u32,
    /// See [`flags`].
    pub flags: u32,
    /// Destination MAC address, where `LEARNED`.
    pub mac: [u8; 6],
    /// Which attempt for this connection this entry is, 1 for the first.
    pub attempts: u16,
    /// VLAN tags to leave with, where `LEARNED`.
    pub tags: Tags,
    /// Index into the backends.
    pub backend: u32,
    /// [`crate::tables::Service::id`] of the listener's address.
    pub service: u32,
    /// Names this attempt: the same in both entries, different from any other's. The time of the SYN,
    /// nanoseconds of `CLOCK_MONOTONIC`.
    pub generation: u64,

    /// See [`tcp::state`].
    pub state: u64,
    /// Half-open, forward: 0, or the generation of the attempt whose backend answered first, or [`MOVED`].
    pub pin: u64,
    /// Time of the last packet, nanoseconds of `CLOCK_MONOTONIC`.
    pub last_seen: u64,
    /// Packets in this direction (GSO super-packets count once).
    pub packets: u64,
    /// Payload bytes in this direction, retransmitted ones counted again.
    pub bytes: u64,
    /// Initial sequence number of this direction's sender.
    pub isn: u32,
    /// Half-open, forward: the backend's initial sequence number once pinned.
    pub peer_isn: u32,
    /// Just behind the highest payload byte seen.
    pub seq_end: u32,
    /// Payload bytes that came with the SYN (TCP Fast Open).
    pub syn_payload: u32,
}

/// [`Flow::pin`] of an entry that a newer attempt is about to replace.
pub const MOVED: u64 = u64::MAX;

impl<A: Address> Flow<A> {
    /// Makes `self`, whose old content does not matter, an entry without flags, addresses or deltas. In place: an
    /// entry is too large to pass around on the 512 bytes of a BPF stack.
    #[inline(always)]
    pub fn init(&mut self, now: u64, backend: u32, service: u32, hop: u32) {
        let words = (&raw mut *self).cast::<u64>();
        for at in 0..size_of::<Self>() / 8 {
            // SAFETY: inside `self`, whose alignment is 8 and for which zeroes are a value. Volatile, or the
            // compiler makes it a call of memset, which on the BPF target goes byte by byte.
            unsafe { words.add(at).write_volatile(0) };
        }
        self.hop = hop;
        self.backend = backend;
        self.service = service;
        self.last_seen = now;
    }

    /// Makes `self` a copy of `other`.
    #[inline(always)]
    pub fn copy_from(&mut self, other: FlowRef<'_, A>) {
        let to = (&raw mut *self).cast::<u64>();
        let from = other.as_ptr().cast::<u64>();
        for at in 0..size_of::<Self>() / 8 {
            // SAFETY: inside both, whose alignment is 8. Volatile for the reason given in `init`.
            unsafe { to.add(at).write_volatile(from.add(at).read_volatile()) };
        }
    }

    /// The checksum deltas of packets that arrive with the 5-tuple `arrives` and leave with `self.out`.
    #[inline(always)]
    pub fn set_deltas(&mut self, arrives: &Key<A>) {
        let addresses = checksum::delta(arrives.address_sum(), self.out.address_sum());
        self.delta_l3 = checksum::fold(addresses as u32 + checksum::TTL_DELTA as u32);
        self.delta_addresses = addresses;
        self.delta_ports = checksum::delta(arrives.port_sum(), self.out.port_sum());
    }

    /// Whether this is the direction from the client.
    #[inline(always)]
    pub fn is_forward(&self) -> bool {
        self.flags & flags::REVERSE == 0
    }

    /// Whether this is no flow but the trace of a SYN that went up.
    #[inline(always)]
    pub fn is_tombstone(&self) -> bool {
        self.flags & flags::TOMBSTONE != 0
    }

    /// The rung that carried the SYN.
    pub fn rung(&self) -> Rung {
        Rung::from_number(self.flags >> flags::RUNG_SHIFT & 0xff)
    }

    /// Payload bytes of this direction, retransmissions not counted: exact modulo 2^32 by the sequence numbers,
    /// the counted bytes give the rest. Right while fewer than 2^31 bytes more were retransmitted than went
    /// uncounted, or the reverse.
    pub fn payload_bytes(&self) -> u64 {
        let low = self.seq_end.wrapping_sub(self.isn.wrapping_add(1));
        let correction = low.wrapping_sub(self.bytes as u32) as i32;
        self.bytes.saturating_add_signed(correction as i64)
    }

    /// SYNs sent to backends for this connection, by this half-open entry and those that it replaced.
    #[inline(always)]
    pub(crate) fn attempts_made(&self) -> u64 {
        // The first packet is the SYN of the attempt itself.
        (self.attempts as u64 + self.packets).wrapping_sub(1)
    }
}

/// A map's value in place: the entry may be shared with other CPUs, so it is only reached through this.
pub struct FlowRef<'t, A> {
    at: NonNull<Flow<A>>,
    table: PhantomData<&'t Flow<A>>,
}

impl<A> Clone for FlowRef<'_, A> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<A> Copy for FlowRef<'_, A> {}

impl<'t, A: Address> FlowRef<'t, A> {
    /// # Safety
    /// `at` is valid for reads and writes of an initialised entry for `'t`, and all accesses to it meanwhile go
    /// through `FlowRef`s, the kernel's map operations or this thread's exclusive use.
    #[inline(always)]
    pub unsafe fn new(at: NonNull<Flow<A>>) -> Self {
        Self { at, table: PhantomData }
    }

    /// An entry that nobody else sees.
    #[inline(always)]
    pub fn from_mut(flow: &'t mut Flow<A>) -> Self {
        // SAFETY: a mutable reference is valid and exclusive for its lifetime.
        unsafe { Self::new(NonNull::from(flow)) }
    }

    /// The entry's address.
    #[inline(always)]
    fn as_ptr(self) -> *const Flow<A> {
        self.at.as_ptr()
    }

    /// The fields that stay, and a snapshot of the others.
    #[inline(always)]
    pub fn get(self) -> &'t Flow<A> {
        // SAFETY: valid by the contract of `new`. Fields that others change meanwhile are integers which the
        // datapath re-reads where it matters.
        unsafe { self.at.as_ref() }
    }

    /// The key under which the other direction arrives.
    #[inline(always)]
    pub fn peer_key(self) -> Key<A> {
        self.get().out.reversed()
    }

    #[inline(always)]
    pub(crate) fn state(self) -> u64 {
        // SAFETY: valid by the contract of `new`.
        unsafe { addr_of_mut!((*self.at.as_ptr()).state).read_volatile() }
    }

    #[inline(always)]
    pub(crate) fn update_state(self, set: u64, clear: u64) {
        // SAFETY: valid by the contract of `new`; `state` is only changed here.
        unsafe { atomic::update_bits(addr_of_mut!((*self.at.as_ptr()).state), set, clear) }
    }

    #[inline(always)]
    pub(crate) fn pin(self) -> u64 {
        // SAFETY: valid by the contract of `new`.
        unsafe { addr_of_mut!((*self.at.as_ptr()).pin).read_volatile() }
    }

    #[inline(always)]
    pub(crate) fn set_pin(self, old: u64, new: u64) -> bool {
        // SAFETY: valid by the contract of `new`; `pin` is only changed here.
        unsafe { atomic::compare_exchange(addr_of_mut!((*self.at.as_ptr()).pin), old, new) }
    }

    #[inline(always)]
    pub(crate) fn set_peer_isn(self, isn: u32) {
        // SAFETY: valid by the contract of `new`; a plain integer.
        unsafe { addr_of_mut!((*self.at.as_ptr()).peer_isn).write_volatile(isn) }
    }

    /// The sender's initial sequence number is known from here on.
    #[inline(always)]
    pub(crate) fn set_isn(self, isn: u32) {
        // SAFETY: valid by the contract of `new`; plain integers.
        unsafe {
            addr_of_mut!((*self.at.as_ptr()).isn).write_volatile(isn);
            addr_of_mut!((*self.at.as_ptr()).seq_end).write_volatile(isn.wrapping_add(1));
        }
    }

    /// Counts a packet whose payload ends before `seq_end`.
    #[inline(always)]
    pub(crate) fn count(self, now: u64, payload: u32, seq_end: u32) {
        let flow = self.at.as_ptr();
        // SAFETY: valid by the contract of `new`; plain integers whose lost updates are tolerated.
        unsafe {
            (*flow).last_seen = now;
            (*flow).packets += 1;
            if payload > 0 {
                (*flow).bytes += payload as u64;
                if tcp::is_before((*flow).seq_end, seq_end) {
                    (*flow).seq_end = seq_end;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::V4;
    use core::mem::{align_of, offset_of, size_of};

    #[test]
    fn layout_has_no_hidden_padding() {
        assert_eq!(size_of::<Key<V4>>(), 16);
        assert_eq!(size_of::<Key<crate::V6>>(), 40);
        assert_eq!(size_of::<Flow<V4>>(), 120);
        assert_eq!(size_of::<Flow<crate::V6>>(), 144);
        assert_eq!(align_of::<Flow<V4>>(), 8);
        assert_eq!(offset_of!(Flow<V4>, generation) % 8, 0);
        assert_eq!(offset_of!(Flow<V4>, generation), offset_of!(Flow<V4>, service) + 4);
    }

    #[test]
    fn payload_bytes_take_the_low_bits_from_the_sequence_numbers() {
        let mut flow = crate::host::empty_flow::<V4>();
        flow.isn = u32::MAX - 10;
        flow.seq_end = flow.isn.wrapping_add(1).wrapping_add(5_000);
        flow.bytes = 5_000;
        assert_eq!(flow.payload_bytes(), 5_000);
        // 100 bytes sent twice.
        flow.bytes = 5_100;
        assert_eq!(flow.payload_bytes(), 5_000);
        // 100 bytes that two CPUs counted at once.
        flow.bytes = 4_900;
        assert_eq!(flow.payload_bytes(), 5_000);
        // Once around.
        flow.bytes = (1 << 32) + 5_100;
        assert_eq!(flow.payload_bytes(), (1 << 32) + 5_000);
    }
}
