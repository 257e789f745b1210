//! A flow: one TCP connection through the kernel, as two entries, one for each direction.
//!
//! Each entry is keyed by the 5-tuple *as that direction arrives* and holds everything that is needed to send the
//! packet on, so a packet of an established flow costs one look-up. The forward entry (client to VIP) becomes
//! SNAT address to backend; the reverse entry (backend to SNAT address) becomes VIP to client, and owns the SNAT
//! port. An entry begins as half-open and is marked as established in place.

use core::marker::PhantomData;
use core::ptr::{NonNull, addr_of_mut};

use crate::address::Address;
use crate::atomic;
use crate::checksum;
use crate::decide::Rung;
use crate::parse::Tags;
use crate::tcp;

/// The tuple of a TCP segment: 12 bytes for IPv4, 36 for IPv6. Network byte order.
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
}

impl<A: Address> Key<A> {
    /// The key of a TCP segment.
    #[inline(always)]
    pub fn new(source: A, destination: A, source_port: u16, destination_port: u16) -> Self {
        Self { source, destination, source_port, destination_port }
    }

    /// Whether they are equal. By words: for IPv4 two comparisons instead of four.
    #[inline(always)]
    pub(crate) fn is(&self, other: &Self) -> bool {
        let ports = |key: &Self| key.source_port as u32 | (key.destination_port as u32) << 16;
        ports(self) == ports(other) && A::same(self.source, self.destination, other.source, other.destination)
    }

    /// The key under which an answer to this packet arrives.
    #[inline(always)]
    pub fn reversed(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
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

/// Bits of [`Flow::word`] below the generation; the lowest ones are those of [`tcp::state`].
pub mod mark {
    /// The handshake is complete.
    pub const ESTABLISHED: u64 = 1 << 5;
    /// Half-open, forward: the backend's SYN-ACK has come, so the client's SYN goes nowhere else any more.
    pub const ANSWERED: u64 = 1 << 6;
    /// From the backend to the client.
    pub const REVERSE: u64 = 1 << 7;
    /// No flow: a SYN of this tuple went up to the proxy, and so do the ones that follow.
    pub const TOMBSTONE: u64 = 1 << 8;
    /// `mac` and `tags` say where the packet leaves to, the next hop only by which device: a neighbour on the link,
    /// learned from its SYN.
    pub const LEARNED: u64 = 1 << 9;
    /// The rung that carried the SYN: TC, not XDP.
    pub const BY_TC: u64 = 1 << 10;
    /// Forward: the connection has ended and is no longer counted as open; half-open, that this attempt has failed and is
    /// counted as that.
    pub const ENDED: u64 = 1 << 11;
    /// Where the generation begins.
    pub const GENERATION_SHIFT: u32 = 12;
    /// The bits of the generation.
    pub const GENERATION: u64 = u64::MAX << GENERATION_SHIFT;
}

/// Nanoseconds, as a power of two, that generations count: 64.
const GENERATION_UNIT: u32 = 6;

/// The generation, in its place in [`Flow::word`], of a SYN that came at `now`, nanoseconds of `CLOCK_MONOTONIC`. Two
/// SYNs on one CPU are further apart than its unit. Wraps after nine years.
#[inline(always)]
pub const fn generation_at(now: u64) -> u64 {
    let generation = (now >> GENERATION_UNIT) << mark::GENERATION_SHIFT;
    if generation == 0 { 1 << mark::GENERATION_SHIFT } else { generation }
}

/// One direction of a flow, as it lies in the table: 96 bytes for IPv4, 144 for IPv6.
///
/// The fields from `key` to `tags` are written before the entry is published and stay. The counters behind them are
/// updated without atomics: packets of one direction meet on one CPU, and where they do not, a count may be lost
/// but nothing else.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Flow<A> {
    /// 0: no entry. Else, from the lowest bit: 12 bits of [`mark`], and 52 of a generation that names the attempt, the
    /// same in both entries and different from any other's: the time of the SYN in units of 64 ns of
    /// `CLOCK_MONOTONIC`. One word, so that no change of state can hit an entry that has come in the place of another.
    pub word: u64,
    /// The tuple that the packet arrives with.
    pub key: Key<A>,
    /// The tuple that the packet leaves with.
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
    pub hop: u16,
    /// Index into the backends.
    pub backend: u16,
    /// [`crate::tables::Service::id`] of the listener's address.
    pub service: u16,
    /// Which attempt for this connection this entry is, 1 for the first.
    pub attempts: u16,
    /// Destination MAC address, where `LEARNED`.
    pub mac: [u8; 6],
    /// Payload bytes that came with the SYN (TCP Fast Open).
    pub syn_payload: u16,
    /// VLAN tags to leave with, where `LEARNED`.
    pub tags: Tags,

    /// Time of the last packet, nanoseconds of `CLOCK_MONOTONIC`.
    pub last_seen: u64,
    /// Just behind the highest payload byte seen. The low half is the sequence number (RFC 9293), the upper half counts
    /// how often that went around.
    pub end: u64,
    /// Packets in this direction (GSO super-packets count once).
    pub packets: u64,
    /// Initial sequence number of this direction's sender.
    pub isn: u32,
    /// Half-open, forward: the backend's initial sequence number once it has answered. Reverse: microseconds from the SYN to
    /// the backend's answer.
    pub peer_isn: u32,
}

impl<A: Address> Flow<A> {
    /// Makes `self`, whose old content does not matter, an entry without addresses or deltas. In place: an entry is too
    /// large to pass around on the 512 bytes of a BPF stack.
    #[inline(always)]
    pub fn init(&mut self, word: u64, now: u64, backend: u32, service: u32, hop: u32) {
        let words = (&raw mut *self).cast::<u64>();
        for at in 0..size_of::<Self>() / 8 {
            // SAFETY: inside `self`, whose alignment is 8 and for which zeroes are a value. Volatile, or the
            // compiler makes it a call of memset, which on the BPF target goes byte by byte.
            unsafe { words.add(at).write_volatile(0) };
        }
        self.word = word;
        self.hop = hop as u16;
        self.backend = backend as u16;
        self.service = service as u16;
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

    /// The checksum deltas of packets that arrive with `self.key` and leave with `self.out`.
    #[inline(always)]
    pub fn set_deltas(&mut self) {
        let addresses = checksum::delta(self.key.address_sum(), self.out.address_sum());
        self.delta_l3 = checksum::fold(addresses as u32 + checksum::TTL_DELTA as u32);
        self.delta_addresses = addresses;
        self.delta_ports = checksum::delta(self.key.port_sum(), self.out.port_sum());
    }

    /// Names the attempt: the same in both entries, different from any other's.
    #[inline(always)]
    pub fn generation(&self) -> u64 {
        self.word >> mark::GENERATION_SHIFT
    }

    /// The time of the SYN, nanoseconds of `CLOCK_MONOTONIC`.
    pub fn opened_at(&self) -> u64 {
        self.generation() << GENERATION_UNIT
    }

    /// Whether this is the direction from the client.
    #[inline(always)]
    pub fn is_forward(&self) -> bool {
        self.word & mark::REVERSE == 0
    }

    /// Whether this is no flow but the trace of a SYN that went up.
    #[inline(always)]
    pub fn is_tombstone(&self) -> bool {
        self.word & mark::TOMBSTONE != 0
    }

    /// Whether the handshake is complete.
    #[inline(always)]
    pub fn is_established(&self) -> bool {
        self.word & mark::ESTABLISHED != 0
    }

    /// Whether the packets leave to a MAC address of the entry's own.
    #[inline(always)]
    pub fn is_learned(&self) -> bool {
        self.word & mark::LEARNED != 0
    }

    /// The rung that carried the SYN.
    pub fn rung(&self) -> Rung {
        if self.word & mark::BY_TC == 0 { Rung::Xdp } else { Rung::Tc }
    }

    /// Payload bytes of this direction, retransmissions not counted: exact by the sequence numbers, also across their
    /// wrap.
    pub fn payload_bytes(&self) -> u64 {
        self.end.saturating_sub(self.isn as u64 + 1)
    }

    /// SYNs sent to backends for this connection, by this half-open entry and those that it replaced.
    #[inline(always)]
    pub fn attempts_made(&self) -> u64 {
        // The first packet is the SYN of the attempt itself.
        (self.attempts as u64 + self.packets).wrapping_sub(1)
    }
}

/// How often a change of an entry's word is tried, when another CPU changes it too.
const WORD_TRIES: u32 = 8;

/// An entry in place, as it was when it was found: it may be shared with other CPUs, so it is only reached through this.
pub struct FlowRef<'t, A> {
    at: NonNull<Flow<A>>,
    /// [`Flow::word`] when it was found.
    seen: u64,
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
    /// through `FlowRef`s or are this thread's exclusive use.
    #[inline(always)]
    pub unsafe fn new(at: NonNull<Flow<A>>) -> Self {
        // SAFETY: the caller's.
        let seen = unsafe { addr_of_mut!((*at.as_ptr()).word).read_volatile() };
        Self { at, seen, table: PhantomData }
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

    #[inline(always)]
    fn word_at(self) -> *mut u64 {
        // SAFETY: valid by the contract of `new`.
        unsafe { addr_of_mut!((*self.at.as_ptr()).word) }
    }

    /// The fields that stay, and a snapshot of the others.
    #[inline(always)]
    pub fn get(self) -> &'t Flow<A> {
        // SAFETY: valid by the contract of `new`. Fields that others change meanwhile are integers which the
        // datapath re-reads where it matters.
        unsafe { self.at.as_ref() }
    }

    /// [`Flow::word`] when the entry was found.
    #[inline(always)]
    pub fn seen(self) -> u64 {
        self.seen
    }

    /// [`Flow::generation`] when the entry was found.
    #[inline(always)]
    pub fn generation(self) -> u64 {
        self.seen >> mark::GENERATION_SHIFT
    }

    /// [`Flow::word`] now.
    #[inline(always)]
    pub(crate) fn word(self) -> u64 {
        // SAFETY: valid by the contract of `new`.
        unsafe { self.word_at().read_volatile() }
    }

    /// Whether this is still the entry that was found: what was read of it meanwhile belongs together.
    #[inline(always)]
    pub fn is_current(self) -> bool {
        (self.word() ^ self.seen) >> mark::GENERATION_SHIFT == 0
    }

    /// Whether this has that key, or nobody knows yet: it is being written or taken out.
    #[inline(always)]
    pub(crate) fn may_have(self, key: &Key<A>) -> bool {
        self.seen == 0 || self.get().key.is(key)
    }

    /// The key under which the other direction arrives.
    #[inline(always)]
    pub fn peer_key(self) -> Key<A> {
        self.get().out.reversed()
    }

    /// Sets and clears marks; the word as it was before. `None`: the entry is not there any more.
    #[inline(always)]
    pub(crate) fn update(self, set: u64, clear: u64) -> Option<u64> {
        let mut tries = 0;
        while tries < WORD_TRIES {
            let word = self.word();
            if (word ^ self.seen) >> mark::GENERATION_SHIFT != 0 {
                return None;
            }
            // SAFETY: valid by the contract of `new`; `word` is only changed by compare-and-set.
            if unsafe { atomic::compare_exchange(self.word_at(), word, (word | set) & !clear) } {
                return Some(word);
            }
            tries += 1;
        }
        None
    }

    /// Makes the entry, if it is just as it was seen, nobody's but the caller's, who writes over it or frees its way.
    #[inline(always)]
    pub(crate) fn claim(self) -> bool {
        // SAFETY: as in `update`.
        self.seen != 0 && unsafe { atomic::compare_exchange(self.word_at(), self.seen, 0) }
    }

    /// An entry that is the caller's to write over: what is in it is not looked at, since that would wait for memory.
    ///
    /// # Safety
    /// As [`FlowRef::new`].
    #[inline(always)]
    pub(crate) unsafe fn blank(at: NonNull<Flow<A>>) -> Self {
        Self { at, seen: 0, table: PhantomData }
    }

    /// Writes a copy of `flow` over an entry that is the caller's, its word last.
    #[inline(always)]
    pub(crate) fn publish(self, flow: FlowRef<'_, A>, ordered_stores: bool) {
        let to = self.at.as_ptr().cast::<u64>();
        let from = flow.as_ptr().cast::<u64>();
        for at in 1..size_of::<Flow<A>>() / 8 {
            // SAFETY: inside both, whose alignment is 8. Volatile for the reason given in `init`.
            unsafe { to.add(at).write_volatile(from.add(at).read_volatile()) };
        }
        // SAFETY: the caller owns the entry; the word comes after all else.
        unsafe {
            if ordered_stores {
                self.word_at().write_volatile(flow.seen);
            } else {
                atomic::exchange(self.word_at(), flow.seen);
            }
        }
    }

    /// Brings the entry up to `old`, the entry of the same key in a table that this one takes the place of, while packets
    /// may change either: what the later attempt is counts, and of one attempt what either says. `revived`: `old` was
    /// marked as reset when it was copied here, and is not any more.
    #[cfg(feature = "user")]
    pub fn follow(self, old: &Flow<A>, revived: bool) {
        if old.generation() > self.generation() {
            if self.claim() {
                self.publish(FlowRef::from_mut(&mut { *old }), false);
            }
            return;
        }
        if old.generation() < self.generation() {
            return;
        }
        let at = self.at.as_ptr();
        // SAFETY: valid by the contract of `new`; plain integers whose lost updates are tolerated.
        unsafe {
            if (*at).isn == 0 {
                (*at).isn = old.isn;
            }
            if old.word & mark::ANSWERED != 0 && old.peer_isn != 0 {
                (*at).peer_isn = old.peer_isn;
            }
            (*at).end = (*at).end.max(old.end);
            (*at).packets = (*at).packets.max(old.packets);
            (*at).last_seen = (*at).last_seen.max(old.last_seen);
        }
        // Half-open it is a failed attempt, which may have succeeded since.
        let ended = if old.word & mark::ESTABLISHED == 0 { mark::ENDED } else { 0 };
        let set = old.word & !mark::GENERATION & !ended;
        // Last: who sees that the backend has answered goes by its sequence number.
        let _ = self.update(set, if revived { tcp::state::RESET } else { 0 });
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
            addr_of_mut!((*self.at.as_ptr()).end).write_volatile(isn as u64 + 1);
        }
    }

    /// Counts a packet whose payload ends before `seq_end`. A FIN is as good as payload here: it says where that ends.
    #[inline(always)]
    pub(crate) fn count(self, now: u64, payload: u32, seq_end: u32) {
        let flow = self.at.as_ptr();
        // SAFETY: valid by the contract of `new`; plain integers whose lost updates are tolerated.
        unsafe {
            (*flow).last_seen = now;
            (*flow).packets += 1;
            if payload > 0 {
                let end = (*flow).end;
                if tcp::is_before(end as u32, seq_end) {
                    (*flow).end = end + seq_end.wrapping_sub(end as u32) as u64;
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
        assert_eq!(size_of::<Key<V4>>(), 12);
        assert_eq!(size_of::<Key<crate::V6>>(), 36);
        assert_eq!(size_of::<Flow<V4>>(), 96);
        assert_eq!(size_of::<Flow<crate::V6>>(), 144);
        assert_eq!(align_of::<Flow<V4>>(), 8);
        assert_eq!(offset_of!(Flow<V4>, tags), 56);
        assert_eq!(offset_of!(Flow<V4>, last_seen), 64);
        assert_eq!(offset_of!(Flow<crate::V6>, last_seen), 112);
    }

    #[test]
    fn payload_bytes_are_those_between_the_sequence_numbers() {
        let mut flow = crate::host::empty_flow::<V4>();
        let isn = u32::MAX - 10;
        FlowRef::from_mut(&mut flow).set_isn(isn);
        let mut next = isn.wrapping_add(1);
        let mut sent = 0u64;
        // Across the wrap, and once around.
        for _ in 0..5 {
            next = next.wrapping_add(1 << 30);
            sent += 1 << 30;
            FlowRef::from_mut(&mut flow).count(1, 1_000, next);
            // Sent again.
            FlowRef::from_mut(&mut flow).count(2, 1_000, next.wrapping_sub(500));
            assert_eq!(flow.payload_bytes(), sent);
        }
        assert_eq!(flow.packets, 10);
    }

    proptest::proptest! {
        /// Segments of up to a window's length, lost, repeated and out of order, from any sequence number on: all bytes up
        /// to the highest one count, once.
        #[test]
        fn payload_bytes_of_any_order(
            isn in proptest::prelude::any::<u32>(),
            syn_payload in 0u32..1400,
            segments in proptest::collection::vec((-100_000i64..1_000_000_000, 0u32..70_000), 0..60),
        ) {
            let mut flow = crate::host::empty_flow::<V4>();
            FlowRef::from_mut(&mut flow).set_isn(isn);
            FlowRef::from_mut(&mut flow).count(1, syn_payload, isn.wrapping_add(1).wrapping_add(syn_payload));
            // Offsets from the first byte.
            let mut highest = u64::from(syn_payload);
            let count = segments.len() as u64;
            for (distance, payload) in segments {
                let start = highest.saturating_add_signed(distance);
                let end = start + u64::from(payload);
                let seq_end = isn.wrapping_add(1).wrapping_add(end as u32);
                FlowRef::from_mut(&mut flow).count(2, payload, seq_end);
                // A segment without payload says nothing: it may be a probe from anywhere.
                highest = if payload > 0 { highest.max(end) } else { highest };
                proptest::prop_assert_eq!(flow.payload_bytes(), highest);
            }
            proptest::prop_assert_eq!(flow.packets, 1 + count);
        }
    }

    /// An entry of the attempt `number`, with these marks and as many packets.
    fn entry(number: u64, marks: u64, packets: u64) -> Flow<V4> {
        let mut flow = crate::host::empty_flow::<V4>();
        flow.word = generation_at(number << 10) | marks;
        (flow.packets, flow.last_seen, flow.end) = (packets, 100 + packets, 1_000 + packets);
        flow
    }

    fn follow(new: &mut Flow<V4>, old: &Flow<V4>, revived: bool) {
        FlowRef::from_mut(new).follow(old, revived);
    }

    #[test]
    fn a_copy_takes_over_what_the_original_saw_meanwhile() {
        let mut new = entry(1, mark::ESTABLISHED | tcp::state::BACKEND_FIN, 5);
        follow(&mut new, &entry(1, mark::ESTABLISHED | tcp::state::CLIENT_FIN, 9), false);
        assert_eq!(new.word, entry(1, mark::ESTABLISHED | 3, 0).word);
        assert_eq!((new.packets, new.last_seen, new.end), (9, 109, 1_009));
        // What it saw itself stays.
        follow(&mut new, &entry(1, mark::ESTABLISHED, 2), false);
        assert_eq!(new.word, entry(1, mark::ESTABLISHED | 3, 0).word);
        assert_eq!((new.packets, new.last_seen, new.end), (9, 109, 1_009));
    }

    #[test]
    fn a_copy_of_a_handshake_goes_on_where_the_original_is() {
        let (mut new, mut old) = (entry(1, 0, 1), entry(1, mark::ANSWERED, 1));
        (new.isn, old.isn, old.peer_isn) = (7, 7, 8);
        follow(&mut new, &old, false);
        assert_eq!((new.word, new.isn, new.peer_isn), (old.word, 7, 8));
        let (mut new, mut old) = (entry(1, mark::REVERSE, 0), entry(1, mark::REVERSE | mark::ESTABLISHED, 1));
        old.isn = 8;
        follow(&mut new, &old, false);
        assert_eq!((new.word, new.isn), (old.word, 8));
    }

    #[test]
    fn data_after_a_reset_counts_in_the_copy_too() {
        let reset = mark::ESTABLISHED | tcp::state::RESET;
        let mut new = entry(1, reset, 1);
        follow(&mut new, &entry(1, mark::ESTABLISHED, 2), true);
        assert_eq!(new.word, entry(1, mark::ESTABLISHED, 0).word);
        // A reset that the copy alone saw.
        let mut new = entry(1, reset, 1);
        follow(&mut new, &entry(1, mark::ESTABLISHED, 2), false);
        assert_eq!(new.word, entry(1, reset, 0).word);
    }

    #[test]
    fn a_failed_attempt_does_not_end_the_connection_that_came_of_it() {
        let mut new = entry(1, mark::ESTABLISHED, 1);
        follow(&mut new, &entry(1, mark::ENDED, 1), false);
        assert_eq!(new.word, entry(1, mark::ESTABLISHED, 0).word);
        follow(&mut new, &entry(1, mark::ESTABLISHED | mark::ENDED, 1), false);
        assert_eq!(new.word, entry(1, mark::ESTABLISHED | mark::ENDED, 0).word);
    }

    #[test]
    fn the_later_attempt_counts() {
        let closing = mark::ESTABLISHED | tcp::state::RESET;
        let mut new = entry(1, closing, 9);
        follow(&mut new, &entry(2, mark::TOMBSTONE, 1), false);
        assert_eq!((new.word, new.packets), (entry(2, mark::TOMBSTONE, 1).word, 1));
        follow(&mut new, &entry(1, closing, 9), false);
        assert_eq!((new.word, new.packets), (entry(2, mark::TOMBSTONE, 1).word, 1));
    }

    #[test]
    fn a_change_does_not_hit_another_entry_in_the_same_place() {
        let mut flow = crate::host::empty_flow::<V4>();
        flow.word = generation_at(1 << 10);
        let at = NonNull::from(&mut flow);
        // SAFETY: `flow` is reached through these alone.
        let (old, new) = unsafe {
            let old = FlowRef::new(at);
            assert!(old.is_current() && old.claim() && !old.is_current());
            let mut other = crate::host::empty_flow::<V4>();
            other.word = generation_at(1 << 11);
            old.publish(FlowRef::from_mut(&mut other), false);
            (old, FlowRef::new(at))
        };
        assert_eq!(old.update(mark::ESTABLISHED, 0), None);
        assert!(!old.is_current() && !old.claim());
        assert_eq!(new.update(mark::ESTABLISHED, 0), Some(generation_at(1 << 11)));
        assert_eq!(new.word(), generation_at(1 << 11) | mark::ESTABLISHED);
    }
}
