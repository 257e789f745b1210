//! Internet checksums by difference (RFC 1071, RFC 1624): what has to be added for a change of fields.
//!
//! All sums are of 16-bit words as loaded from memory, so a delta can be added to a checksum field that was
//! loaded the same way. A packet that arrives with a wrong checksum leaves with a wrong one.

use crate::packet::Packet;
use crate::parse::MAX_L4_OFFSET;

/// The two 16-bit words of `word`, added.
#[inline(always)]
pub const fn words(word: u32) -> u32 {
    (word & 0xffff) + (word >> 16)
}

/// Folds a sum to 16 bits, carries added back in.
#[inline(always)]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// 32-bit words that [`sum`] adds up at the most: an IPv6 header with its extensions and a TCP header.
const MAX_WORDS: u64 = 80;

/// The folded sum of `words` 32-bit words at `start` of the packet; as far as they reach.
#[inline(always)]
pub fn sum<P: Packet>(packet: &P, start: usize, words: usize) -> u32 {
    let start = start & MAX_L4_OFFSET;
    let mut total = 0u64;
    // In 64 bits: see `open::PORT_PROBES`.
    let mut at = 0u64;
    while at < MAX_WORDS && at < words as u64 {
        let Some(word) = packet.read::<u32>(start + at as usize * 4) else { break };
        total += word as u64;
        at += 1;
    }
    fold(self::words(total as u32) + self::words((total >> 32) as u32)) as u32
}

/// What to add to a ones' complement *sum* when words that sum to `old` become words that sum to `new`.
#[inline(always)]
pub const fn delta(old: u32, new: u32) -> u16 {
    fold((!fold(old)) as u32 + fold(new) as u32)
}

/// The delta of a lowered TTL: the word `[ttl, protocol]` loses 1 in its first byte.
pub const TTL_DELTA: u16 = u16::from_be(0xfeff);

/// The checksum field after `delta` was added to the sum that it complements (RFC 1624 equation 3).
#[inline(always)]
pub const fn apply(check: u16, delta: u32) -> u16 {
    !fold((!check) as u32 + delta)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 section 4.1, word by word.
    fn full(bytes: &[u8]) -> u16 {
        let mut sum = 0u64;
        for pair in bytes.chunks(2) {
            sum += u16::from_ne_bytes([pair[0], *pair.get(1).unwrap_or(&0)]) as u64;
        }
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    /// 0 and 0xffff are the same number in ones' complement.
    fn same(a: u16, b: u16) -> bool {
        a == b || (a == 0 && b == 0xffff) || (a == 0xffff && b == 0)
    }

    proptest! {
        #[test]
        fn delta_equals_full_recomputation(
            mut bytes in proptest::collection::vec(any::<u8>(), 40),
            new in any::<[u32; 2]>(),
            at in 0usize..8,
        ) {
            let at = at * 4;
            let before = full(&bytes);
            let load = |bytes: &[u8], at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
            let old = words(load(&bytes, at)) + words(load(&bytes, at + 4));
            bytes[at..at + 4].copy_from_slice(&new[0].to_ne_bytes());
            bytes[at + 4..at + 8].copy_from_slice(&new[1].to_ne_bytes());
            let after = apply(before, delta(old, words(new[0]) + words(new[1])) as u32);
            prop_assert!(same(after, full(&bytes)), "{after:04x} {:04x}", full(&bytes));
        }

        #[test]
        fn ttl_delta_is_one_hop(ttl in 1u8..=255, protocol in any::<u8>(), rest in any::<[u8; 18]>()) {
            let mut bytes = vec![ttl, protocol];
            bytes.extend(rest);
            let before = full(&bytes);
            bytes[0] -= 1;
            prop_assert!(same(apply(before, TTL_DELTA as u32), full(&bytes)));
        }

        #[test]
        fn a_wrong_checksum_stays_wrong(check in any::<u16>(), off in 1u16..0xffff, delta in any::<u16>()) {
            // Adding the same delta to two different sums keeps them different.
            let right = apply(check, delta as u32);
            let wrong = apply(!fold((!check) as u32 + off as u32), delta as u32);
            prop_assert!(!same(right, wrong));
        }
    }
}
