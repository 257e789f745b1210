//! What the programs tell the agent of connections, one by one: a ring buffer of copies of their entries.
//!
//! A connection ends once: whoever sets [`mark::ENDED`] in its forward entry, by compare-and-set, takes it off the counts of
//! open connections and tells of it. The ring may be full, which the counts do not depend on.

use crate::address::Address;
use crate::flow::{Flow, FlowRef, mark};
use crate::open;
use crate::table;
use crate::tables::Tables;
use crate::tcp::flags;
use crate::work::Work;

/// What has happened: values of [`Event::kind`].
pub mod kind {
    /// The handshake is complete.
    pub const CONNECTED: u32 = 1;
    /// Both ends have finished, or one has reset the connection.
    pub const ENDED: u32 = 2;
    /// The last backend that could be tried has refused the connection, and the client was told.
    pub const REFUSED: u32 = 3;
    /// The cluster has as many connections as it may have: both ends are reset by the stack.
    pub const OVERFLOW: u32 = 4;
}

/// Bits of [`Event::by`]: the packet by which it happened.
pub mod by {
    /// From the client, else from the backend.
    pub const CLIENT: u32 = 1;
    /// A RST.
    pub const RESET: u32 = 1 << 1;
}

/// A record of the ring: 208 bytes for IPv4, 304 for IPv6, which is how they are told apart.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Event<A> {
    /// When, nanoseconds of `CLOCK_MONOTONIC`.
    pub at: u64,
    /// See [`kind`].
    pub kind: u32,
    /// See [`by`].
    pub by: u32,
    /// The entry from the client, with what the packet has changed in it.
    pub forward: Flow<A>,
    /// The entry from the backend; its word is 0 if there is none any more.
    pub reverse: Flow<A>,
}

/// What [`Tables::record`] does: tells of the connection of the packet in the work room what `kind` says. 1 if that was to
/// be told: it was not before.
#[inline(always)]
pub fn record<A: Address, T: Tables<A>>(tables: &T, kind: u32) -> u32 {
    let Some(work) = tables.work() else { return 0 };
    let (segment, event) = (work.segment.get(), work.event.get_mut());
    let Some(entry) = table::look_up(tables, &segment.key) else { return 0 };
    let peer_key = entry.peer_key();
    let generation = entry.generation();
    let from_client = entry.seen() & mark::REVERSE == 0;
    if from_client {
        event.forward.copy_from(entry);
        if !begin(tables, work, entry, kind) {
            return 0;
        }
    } else {
        event.reverse.copy_from(entry);
    }
    let peer = table::look_up(tables, &peer_key).filter(|peer| peer.generation() == generation);
    match peer {
        Some(peer) if from_client => event.reverse.copy_from(peer),
        Some(peer) => {
            event.forward.copy_from(peer);
            if !begin(tables, work, peer, kind) {
                return 0;
            }
        }
        None if from_client => event.reverse.word = 0,
        None => return 0,
    }
    event.at = tables.precise_now();
    event.kind = kind;
    event.by = if from_client { by::CLIENT } else { 0 } | if segment.has(flags::RST) { by::RESET } else { 0 };
    tables.emit(event);
    1
}

/// Whether this is to be told of the connection of a forward entry. An end is one once, and is counted here.
#[inline(always)]
fn begin<A: Address, T: Tables<A>>(tables: &T, work: &Work<A>, forward: FlowRef<'_, A>, kind: u32) -> bool {
    let backend = forward.get().backend as u32;
    // Another one may have come in its place, or another CPU has just completed the handshake.
    if (forward.seen() & mark::ESTABLISHED != 0) != (kind == kind::ENDED || kind == kind::CONNECTED) {
        return false;
    }
    if kind == kind::OVERFLOW {
        // What the client sends from here on is the stack's, which resets it, and so is what the backend sends.
        return table::replace(tables, forward, open::tombstone(tables, work));
    }
    if kind != kind::CONNECTED {
        match forward.update(mark::ENDED, 0) {
            Some(before) if before & mark::ENDED == 0 => {}
            _ => return false,
        }
        if kind == kind::ENDED {
            tables.leave(backend);
        } else {
            tables.count_failed(backend, false);
        }
    }
    true
}
