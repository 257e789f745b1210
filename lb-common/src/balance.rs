//! Which slot of a cluster's window a new connection draws.

use crate::address::Address;
use crate::flow::Key;

/// Values of [`crate::tables::Service::policy`].
pub mod policy {
    /// The next slot of a smooth weighted order, per CPU.
    pub const ROUND_ROBIN: u32 = 0;
    /// A random slot.
    pub const RANDOM: u32 = 1;
    /// A slot of a Maglev table, by the hash of the 5-tuple.
    pub const MAGLEV: u32 = 2;
    /// A slot of a Maglev table, by the hash of the client's address.
    pub const SOURCE_IP: u32 = 3;
    /// Of two random slots the one whose backend has fewer open connections.
    pub const LEAST_REQUEST: u32 = 4;
}

/// The finaliser of MurmurHash3 (64 bits): every input bit moves every output bit.
#[inline(always)]
pub const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let value = (value ^ (value >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    value ^ (value >> 33)
}

/// Hash of a client's address and port and what it connects to. The same on every node.
#[inline(always)]
pub fn flow_hash<A: Address>(key: &Key<A>) -> u32 {
    let ports = (u16::from_be(key.source_port) as u64) << 16 | u16::from_be(key.destination_port) as u64;
    let addresses = mix(key.source.mixed()).wrapping_add(key.destination.mixed());
    mix(mix(addresses) ^ ports) as u32
}

/// Hash of a client's address. The same on every node.
#[inline(always)]
pub fn source_hash<A: Address>(key: &Key<A>) -> u32 {
    mix(key.source.mixed()) as u32
}

/// A number below `count`, in proportion to `hash` (multiply and shift: no division, no bias worth the name).
#[inline(always)]
pub const fn scale(hash: u32, count: u32) -> u32 {
    ((hash as u64 * count as u64) >> 32) as u32
}

/// The position in a window of `count` slots (not 0) that `policy` draws for attempt `attempt` (0 for the first).
///
/// `cursor` is round_robin's position, `random` a random number; neither is used by the hashing policies.
#[inline(always)]
pub fn draw<A: Address>(
    policy: u32,
    key: &Key<A>,
    count: u32,
    attempt: u32,
    cursor: u32,
    random: u32,
) -> u32 {
    match policy {
        policy::ROUND_ROBIN => {
            if cursor < count {
                cursor
            } else {
                0
            }
        }
        policy::MAGLEV => scale(again(flow_hash(key), attempt), count),
        policy::SOURCE_IP => scale(again(source_hash(key), attempt), count),
        _ => scale(random, count),
    }
}

/// The hash for a further attempt: another place in the table, the same on every node.
#[inline(always)]
const fn again(hash: u32, attempt: u32) -> u32 {
    if attempt == 0 { hash } else { mix((hash as u64) << 32 | attempt as u64) as u32 }
}

/// Round_robin's position after one draw at `position`.
#[inline(always)]
pub const fn advance(position: u32, count: u32) -> u32 {
    if position + 1 < count { position + 1 } else { 0 }
}
