//! Checksums that change with the words that they are of (RFC 1624).

/// A checksum when a sum of its words has grown by `delta`.
#[inline(always)]
pub(crate) fn apply(checksum: u16, delta: u32) -> u16 {
    let sum = u32::from(!checksum) + delta;
    let sum = (sum & 0xffff) + (sum >> 16);
    !(((sum & 0xffff) + (sum >> 16)) as u16)
}
