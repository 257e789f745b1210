//! The two address families behind one trait, so that one body of code serves both.

use crate::checksum;
use crate::packet::Wire;

/// An IP address as it stands in the packet.
pub trait Address: Copy + Eq + Wire + 'static {
    /// Whether this is IPv6.
    const V6: bool;
    /// Bytes that a TCP segment's headers take at the least: 40 or 60 (RFC 9293 section 3.7.1, RFC 8200).
    const MIN_HEADERS: u16;

    /// Ones' complement sum of the address's 16-bit words, not folded.
    fn sum(self) -> u32;
    /// The address in 64 bits, for hashing.
    fn mixed(self) -> u64;
    /// Whether two pairs of addresses are the same.
    fn same(a: Self, b: Self, other_a: Self, other_b: Self) -> bool;
    /// Two addresses and a seed in 64 bits, half-way to a hash.
    fn pair(self, other: Self, seed: u64) -> u64;
    /// Whether it may be the source of a packet that is answered (RFC 1122 section 3.2.2, RFC 4443 section 2.4 e): that
    /// of one host, neither unspecified nor loopback.
    fn is_unicast(self) -> bool;
    /// From words in network byte order. IPv4: the first; IPv6: all four.
    fn from_words(words: [u32; 4]) -> Self;
    /// [`Address::from_words`] of a map's value: word by word, or the compiler makes it a call of memmove, which on
    /// the BPF target goes byte by byte.
    #[inline(always)]
    fn load(words: &[u32; 4]) -> Self {
        let at = words.as_ptr();
        // SAFETY: four words.
        Self::from_words([0, 1, 2, 3].map(|n| unsafe { at.add(n).read_volatile() }))
    }
    /// The inverse of [`Address::from_words`]; unused words are zero.
    fn to_words(self) -> [u32; 4];
}

/// An IPv4 address, network byte order in memory.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct V4(pub u32);

/// An IPv6 address, network byte order in memory.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct V6(pub [u32; 4]);

// SAFETY: transparent over u32.
unsafe impl Wire for V4 {}
// SAFETY: transparent over [u32; 4].
unsafe impl Wire for V6 {}

impl Address for V4 {
    const V6: bool = false;
    const MIN_HEADERS: u16 = 40;

    #[inline(always)]
    fn sum(self) -> u32 {
        checksum::words(self.0)
    }

    #[inline(always)]
    fn mixed(self) -> u64 {
        self.0 as u64
    }

    #[inline(always)]
    fn same(a: Self, b: Self, other_a: Self, other_b: Self) -> bool {
        let word = |low: Self, high: Self| low.0 as u64 | (high.0 as u64) << 32;
        word(a, b) == word(other_a, other_b)
    }

    #[inline(always)]
    fn pair(self, other: Self, seed: u64) -> u64 {
        stir(seed ^ (self.0 as u64 | (other.0 as u64) << 32))
    }

    #[inline(always)]
    fn is_unicast(self) -> bool {
        let first = self.0.to_ne_bytes()[0];
        first != 0 && first != 127 && first < 224
    }

    #[inline(always)]
    fn from_words(words: [u32; 4]) -> Self {
        Self(words[0])
    }

    #[inline(always)]
    fn to_words(self) -> [u32; 4] {
        [self.0, 0, 0, 0]
    }
}

impl Address for V6 {
    const V6: bool = true;
    const MIN_HEADERS: u16 = 60;

    #[inline(always)]
    fn sum(self) -> u32 {
        let [a, b, c, d] = self.0;
        checksum::words(a) + checksum::words(b) + checksum::words(c) + checksum::words(d)
    }

    #[inline(always)]
    fn mixed(self) -> u64 {
        let [a, b, c, d] = self.0;
        let high = (a as u64) << 32 | b as u64;
        let low = (c as u64) << 32 | d as u64;
        high.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ low
    }

    #[inline(always)]
    fn same(a: Self, b: Self, other_a: Self, other_b: Self) -> bool {
        a == other_a && b == other_b
    }

    #[inline(always)]
    fn pair(self, other: Self, seed: u64) -> u64 {
        let word = |low: u32, high: u32| low as u64 | (high as u64) << 32;
        let ([a, b, c, d], [e, f, g, h]) = (self.0, other.0);
        let stirred = stir(stir(seed ^ word(a, b)) ^ word(c, d));
        stir(stir(stirred ^ word(e, f)) ^ word(g, h))
    }

    #[inline(always)]
    fn is_unicast(self) -> bool {
        let [a, b, c, d] = self.0;
        let low = a | b | c == 0 && u32::from_be(d) <= 1;
        a.to_ne_bytes()[0] != 0xff && !low
    }

    #[inline(always)]
    fn from_words(words: [u32; 4]) -> Self {
        Self(words)
    }

    #[inline(always)]
    fn to_words(self) -> [u32; 4] {
        self.0
    }
}

/// Multiply and fold: every bit of the upper half depends on every one that went in, and the lower half on the upper.
#[inline(always)]
pub(crate) const fn stir(value: u64) -> u64 {
    stir_by(value, 0x9e37_79b9_7f4a_7c15)
}

/// [`stir`] with another odd factor.
#[inline(always)]
pub(crate) const fn stir_by(value: u64, factor: u64) -> u64 {
    let value = value.wrapping_mul(factor);
    value ^ value >> 32
}

#[cfg(feature = "user")]
mod user {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use super::{V4, V6};

    /// An address of either family as [`super::Address::to_words`] gives it.
    pub fn words(address: IpAddr) -> [u32; 4] {
        match address {
            IpAddr::V4(address) => [V4::from(address).0, 0, 0, 0],
            IpAddr::V6(address) => V6::from(address).0,
        }
    }

    impl From<Ipv4Addr> for V4 {
        fn from(address: Ipv4Addr) -> Self {
            Self(u32::from_ne_bytes(address.octets()))
        }
    }

    impl From<Ipv6Addr> for V6 {
        fn from(address: Ipv6Addr) -> Self {
            let o = address.octets();
            Self([0, 4, 8, 12].map(|at| u32::from_ne_bytes([o[at], o[at + 1], o[at + 2], o[at + 3]])))
        }
    }

    impl From<V4> for IpAddr {
        fn from(address: V4) -> Self {
            Self::V4(address.0.to_ne_bytes().into())
        }
    }

    impl From<V6> for IpAddr {
        fn from(address: V6) -> Self {
            let mut octets = [0; 16];
            for (to, word) in octets.chunks_mut(4).zip(address.0) {
                to.copy_from_slice(&word.to_ne_bytes());
            }
            Self::V6(octets.into())
        }
    }
}

#[cfg(feature = "user")]
pub use user::words;
