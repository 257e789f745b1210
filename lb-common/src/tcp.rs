//! TCP as a middlebox sees it (RFC 9293): flags, sequence arithmetic, and what a segment says of a flow's end.

use crate::packet::Packet;

/// Flags of the TCP header's 14th byte.
pub mod flags {
    /// The sender has finished.
    pub const FIN: u8 = 0x01;
    /// Sequence numbers are being synchronised.
    pub const SYN: u8 = 0x02;
    /// The connection is reset.
    pub const RST: u8 = 0x04;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 0x10;
}

/// The lowest bits of [`crate::Flow::word`].
pub mod state {
    /// The client sent a FIN.
    pub const CLIENT_FIN: u64 = 1;
    /// The backend sent a FIN.
    pub const BACKEND_FIN: u64 = 1 << 1;
    /// The backend's FIN came before the client's: the backend holds TIME_WAIT, and its port must rest.
    pub const BACKEND_FIN_FIRST: u64 = 1 << 2;
    /// A RST that the other end accepts went by.
    pub const RESET: u64 = 1 << 3;
    /// Half-open: the backend answered the SYN with something other than its SYN-ACK (RFC 9293 section 3.5.2, a
    /// TIME_WAIT socket's ACK); the acknowledgement number it sent is kept in `peer_isn`.
    pub const CHALLENGED: u64 = 1 << 4;
    /// All of these.
    pub const ALL: u64 = (1 << 5) - 1;
}

/// How far from the highest byte seen a RST may lie to count as the end of the flow. Endpoints want an exact match
/// (RFC 5961 section 3); one that is missed costs an entry until the idle timeout, one that is believed wrongly is
/// undone by the next data, unless it was an exact match.
const RESET_WINDOW: u32 = 0xffff;

/// Whether `a` is behind `b` in sequence space.
#[inline(always)]
pub fn is_before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

/// Whether a flow in `state` has ended or is about to: both ends finished, or one reset it.
#[inline(always)]
pub fn is_closing(state: u64) -> bool {
    const BOTH: u64 = state::CLIENT_FIN | state::BACKEND_FIN;
    state & BOTH == BOTH || state & state::RESET != 0
}

/// Whether the backend holds TIME_WAIT: it finished first, and was not reset.
#[inline(always)]
pub fn must_rest(state: u64) -> bool {
    state & (state::BACKEND_FIN_FIRST | state::RESET) == state::BACKEND_FIN_FIRST
}

/// Whether a RST with this number is one that its receiver accepts, if all got there that was sent before: it has the next
/// number, or the one after a FIN.
#[inline(always)]
pub fn is_next(seq: u32, seq_end: u32) -> bool {
    seq.wrapping_sub(seq_end) <= 1
}

/// What a segment changes in the state of an established flow: the bits to set and those to clear.
///
/// `seq_end`: just behind the highest byte seen in this direction so far.
#[inline(always)]
pub fn transition(
    state: u64,
    from_client: bool,
    flags: u8,
    seq: u32,
    seq_end: u32,
    payload: u32,
) -> (u64, u64) {
    if flags & flags::RST != 0 {
        let distance = seq.wrapping_sub(seq_end).wrapping_add(RESET_WINDOW);
        return (if distance <= 2 * RESET_WINDOW { state::RESET } else { 0 }, 0);
    }
    let mut set = 0;
    if flags & flags::FIN != 0 {
        if from_client {
            set = state::CLIENT_FIN;
        } else {
            set = state::BACKEND_FIN;
            if state & state::CLIENT_FIN == 0 {
                set |= state::BACKEND_FIN_FIRST;
            }
        }
    }
    // Data after a reset: the reset was not accepted.
    (set, if payload > 0 { state & state::RESET } else { 0 })
}

/// TCP options that are looked at before the MSS option; it is the first of every stack in use.
const MAX_OPTIONS: usize = 10;

/// Offset of the value of the MSS option (RFC 9293 section 3.7.1) among `length` bytes of options at `start` of the
/// frame; 0: there is none.
#[inline(always)]
pub fn find_mss<P: Packet>(packet: &P, start: usize, length: usize) -> u32 {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const MSS: u8 = 2;

    let start = start & 0x3ff;
    let mut at = 0;
    let mut looked = 0;
    while looked < MAX_OPTIONS && at + 4 <= length {
        looked += 1;
        let option = start + (at & 0x3f);
        let Some([kind, size]) = packet.read::<[u8; 2]>(option) else { return 0 };
        if kind == END {
            return 0;
        }
        if kind == NO_OPERATION {
            at += 1;
            continue;
        }
        if kind == MSS && size == 4 {
            return option as u32 + 2;
        }
        if size < 2 {
            return 0;
        }
        at += size as usize;
    }
    0
}

/// How long after its last packet an entry is kept, nanoseconds; past that the flow has ended.
#[inline(always)]
pub fn lifetime(state: u64, idle_timeout: u64) -> u64 {
    const SECOND: u64 = 1_000_000_000;
    /// TIME_WAIT as Linux has it; the backend would answer a SYN on the same port with an ACK.
    const TIME_WAIT: u64 = 60 * SECOND;
    /// For the last ACK to be repeated if it was lost.
    const LAST_ACK: u64 = 10 * SECOND;
    if state & state::RESET != 0 {
        LAST_ACK
    } else if !is_closing(state) {
        idle_timeout
    } else if state & state::BACKEND_FIN_FIRST != 0 {
        TIME_WAIT
    } else {
        LAST_ACK
    }
}
