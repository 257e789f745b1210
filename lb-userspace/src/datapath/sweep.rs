//! Flows that have ended are taken out of the maps here; the programs only mark them. The same pass over the maps
//! tells what the flows refer to, so that what nobody wants any more is kept for as long as one of them needs it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Result;
use lb_common::tcp::{is_closing, lifetime};
use lb_common::{Address, Flow};

use crate::datapath::flow_table::FlowTable;
use crate::datapath::kernel::{Kernel, monotonic_now};

/// How long a half-open entry or a tombstone is kept after its last SYN; the programs stop heeding it before.
const HALF_OPEN: u64 = 60_000_000_000;

/// Idle timeouts by service id; `None`: never.
pub type IdleTimeouts = HashMap<u32, Option<Duration>>;

/// What the entries of the flow maps referred to during one sweep.
#[derive(Clone, Debug, Default)]
pub struct Usage {
    /// By backend index: entries of any kind.
    backends: Vec<bool>,
    /// By backend index: entries of flows that are not closing.
    open: Vec<bool>,
    /// By next-hop index.
    hops: Vec<bool>,
    /// By service id.
    services: Vec<bool>,
    /// Next hops of [`Moved`] that a flow cannot go by as it is.
    astray: BTreeSet<u32>,
}

/// Next hops whose route has moved, and where clients are now.
pub struct Moved<'a> {
    /// The next hops, and since when, in nanoseconds of `CLOCK_MONOTONIC`.
    pub hops: &'a BTreeMap<u32, u64>,
    /// The next hop to a client.
    pub route: &'a dyn Fn(IpAddr) -> Option<u32>,
}

impl Usage {
    /// Whether an entry refers to this backend, be it only to let a port rest.
    pub fn has_backend(&self, index: u32) -> bool {
        is_marked(&self.backends, index)
    }

    /// Whether a connection to this backend is open, or about to be.
    pub fn has_open_flows(&self, backend: u32) -> bool {
        is_marked(&self.open, backend)
    }

    /// Whether an entry refers to this next hop.
    pub fn has_hop(&self, index: u32) -> bool {
        is_marked(&self.hops, index)
    }

    /// Whether an entry refers to this service id.
    pub fn has_service(&self, id: u32) -> bool {
        is_marked(&self.services, id)
    }

    /// Whether a flow of this moved next hop leaves by another one, or has learned a MAC address before it moved.
    pub fn is_astray(&self, hop: u32) -> bool {
        self.astray.contains(&hop)
    }

    fn add<A: Address + Into<IpAddr>>(&mut self, flow: &Flow<A>, moved: &Moved<'_>) {
        // A tombstone refers to nothing.
        if flow.is_tombstone() {
            return;
        }
        mark(&mut self.backends, flow.backend.into());
        if !is_closing(flow.word) {
            mark(&mut self.open, flow.backend.into());
        }
        mark(&mut self.hops, flow.hop.into());
        mark(&mut self.services, flow.service.into());
        if flow.is_forward() {
            return;
        }
        let hop = flow.hop.into();
        if let Some(&since) = moved.hops.get(&hop) {
            let learned_before = flow.is_learned() && flow.opened_at() < since;
            if learned_before || (moved.route)(flow.out.destination.into()) != Some(hop) {
                self.astray.insert(hop);
            }
        }
    }
}

fn is_marked(marks: &[bool], index: u32) -> bool {
    marks.get(index as usize).is_some_and(|&marked| marked)
}

fn mark(marks: &mut Vec<bool>, index: u32) {
    let index = index as usize;
    if marks.len() <= index {
        marks.resize(index + 1, false);
    }
    marks[index] = true;
}

impl Kernel {
    /// Takes out what has ended, and tells what the flow maps referred to.
    pub fn sweep(&self, idle: &IdleTimeouts, moved: &Moved<'_>) -> Result<Usage> {
        let now = monotonic_now();
        let mut usage = Usage::default();
        let closed4 = sweep(&self.v4.flows, idle, now, moved, &mut usage)?;
        let closed6 = sweep(&self.v6.flows, idle, now, moved, &mut usage)?;
        for (index, closed) in [(self.v4.index, closed4), (self.v6.index, closed6)] {
            // The second word of `Live`; the agent alone writes it.
            self.live.word(index, 1).fetch_add(closed, Ordering::Relaxed);
        }
        Ok(usage)
    }
}

/// Whether an entry whose flow had its last packet at `last_seen` has ended.
fn has_ended<A: Address>(flow: &Flow<A>, last_seen: u64, idle: &IdleTimeouts, now: u64) -> bool {
    let age = now.saturating_sub(last_seen);
    if !flow.is_established() {
        return age > HALF_OPEN;
    }
    let idle_timeout = match idle.get(&flow.service.into()) {
        Some(Some(timeout)) => timeout.as_nanos() as u64,
        Some(None) => u64::MAX,
        // A listener that is gone: what it accepted lives as long as by default.
        None => 3_600_000_000_000,
    };
    age > lifetime(flow.word, idle_timeout)
}

/// How many established flows ended. A flow counts by its reverse entry, which outlives the forward one.
fn sweep<A: Address + Into<IpAddr>>(
    table: &FlowTable<A>,
    idle: &IdleTimeouts,
    now: u64,
    moved: &Moved<'_>,
    usage: &mut Usage,
) -> Result<u64> {
    let mut candidates = Vec::new();
    table.for_each(|flow| {
        usage.add(flow, moved);
        if has_ended(flow, flow.last_seen, idle, now) {
            candidates.push(*flow);
        }
    })?;
    let look = table.look();
    let mut closed = 0;
    for flow in candidates {
        let peer = look.find(&flow.out.reversed())?.filter(|peer| peer.generation() == flow.generation());
        // One direction may be silent for long while the other is not; and a half-open reverse entry sees no repeated
        // SYN: it is as good as its forward one.
        let last_seen = peer.map_or(flow.last_seen, |peer| peer.last_seen.max(flow.last_seen));
        if !has_ended(&flow, last_seen, idle, now) {
            continue;
        }
        if flow.is_established() {
            match peer {
                // Left to its reverse entry.
                Some(_) if flow.is_forward() => continue,
                Some(forward) => _ = look.remove(&forward)?,
                None => {}
            }
        }
        // One that has gone on meanwhile stays.
        if look.remove(&flow)? && flow.is_established() && !flow.is_forward() {
            closed += 1;
        }
    }
    Ok(closed)
}
