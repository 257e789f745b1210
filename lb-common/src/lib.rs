//! The datapath of Headgate: what happens to a packet, and nothing else.
//!
//! Everything here is `no_std`, does no I/O and reads no clock. The code is generic over two small traits,
//! [`Packet`] (bounds-checked access to a frame) and [`Tables`] (the maps), so that the very same lines run in
//! the XDP program, in the TC program, in host tests and in `headgate explain`:
//!
//! ```text
//! frame -> parse -> Segment -> decide(tables) -> Verdict -> rewrite -> frame, and where it leaves
//! ```
//!
//! Byte order: fields named `*_port` and the [`Address`] types hold the bytes as they stand in the packet
//! (network order in memory); everything else is in the host's order. Checksum deltas are ones' complement sums
//! of 16-bit words as loaded from memory, which RFC 1071 section 2 (B) shows to be byte-order independent.

#![cfg_attr(not(any(test, feature = "user")), no_std)]
#![cfg_attr(target_arch = "bpf", expect(internal_features, reason = "the BPF target has no stable atomics"))]
#![cfg_attr(target_arch = "bpf", feature(core_intrinsics, asm_experimental_arch))]
#![warn(missing_docs)]

pub mod address;
pub mod answer;
mod atomic;
pub mod balance;
pub mod checksum;
pub mod decide;
mod established;
pub mod event;
pub mod fast;
pub mod flow;
mod half_open;
pub mod icmp;
pub mod off_path;
pub mod open;
pub mod packet;
pub mod parse;
pub mod reason;
pub mod rewrite;
pub mod table;
pub mod tables;
pub mod tcp;
pub mod work;

#[cfg(feature = "user")]
pub mod host;
#[cfg(feature = "user")]
pub mod host_icmp;
#[cfg(feature = "user")]
pub mod host_packets;
#[cfg(feature = "user")]
pub mod host_scenario;
#[cfg(feature = "user")]
pub mod maglev;
#[cfg(feature = "user")]
mod pod;

pub use address::{Address, V4, V6};
pub use decide::{Action, Env, Rung, Verdict};
pub use flow::{Flow, FlowRef, Key};
pub use off_path::decide;
pub use packet::Packet;
pub use parse::{Segment, parse};
pub use reason::Reason;
pub use tables::Tables;

/// Version of the layout of everything in [`tables`] and [`flow`]: part of the pins' path, so that an agent never
/// reads maps of another layout.
pub const SCHEMA_VERSION: u32 = 4;
