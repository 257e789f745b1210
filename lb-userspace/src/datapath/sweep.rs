//! Flows that have ended are taken out of the maps here; the programs only mark them. The same pass over the maps
//! tells what the flows refer to, so that what nobody wants any more is kept for as long as one of them needs it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Result;
use aya::Pod;
use aya::maps::{HashMap as BpfHashMap, MapData};
use lb_common::flow::flags;
use lb_common::tcp::{is_closing, lifetime};
use lb_common::{Address, Flow, Key, V4, V6};

use crate::datapath::batch;
use crate::datapath::kernel::{FamilyMaps, Kernel, monotonic_now};

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
    /// Service ids.
    services: BTreeSet<u32>,
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
        self.services.contains(&id)
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
        mark(&mut self.backends, flow.backend);
        if !is_closing(flow.state) {
            mark(&mut self.open, flow.backend);
        }
        mark(&mut self.hops, flow.hop);
        self.services.insert(flow.service);
        if flow.is_forward() {
            return;
        }
        if let Some(&since) = moved.hops.get(&flow.hop) {
            let learned_before = flow.flags & flags::LEARNED != 0 && flow.generation < since;
            if learned_before || (moved.route)(flow.out.destination.into()) != Some(flow.hop) {
                self.astray.insert(flow.hop);
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
        // Half-open flows first: one that is promoted meanwhile is then seen in one of the maps at least.
        sweep_half_open::<V4>(&self.v4, now, moved, &mut usage)?;
        sweep_half_open::<V6>(&self.v6, now, moved, &mut usage)?;
        let closed4 = sweep_flows::<V4>(&self.v4, idle, now, moved, &mut usage)?;
        let closed6 = sweep_flows::<V6>(&self.v6, idle, now, moved, &mut usage)?;
        for (index, closed) in [(self.v4.index, closed4), (self.v6.index, closed6)] {
            // The second word of `Live`; the agent alone writes it.
            self.live.word(index, 1).fetch_add(closed, Ordering::Relaxed);
        }
        Ok(usage)
    }
}

/// Whether an entry with this state and time of last packet has ended.
fn has_ended<A: Address>(flow: &Flow<A>, last_seen: u64, idle: &IdleTimeouts, now: u64) -> bool {
    let idle_timeout = match idle.get(&flow.service) {
        Some(Some(timeout)) => timeout.as_nanos() as u64,
        Some(None) => u64::MAX,
        // A listener that is gone: what it accepted lives as long as by default.
        None => 3_600_000_000_000,
    };
    now.saturating_sub(last_seen) > lifetime(flow.state, idle_timeout)
}

/// How many flows ended. A flow counts by its reverse entry, which outlives the forward one.
fn sweep_flows<A: Address + Pod + Into<IpAddr>>(
    maps: &FamilyMaps<A>,
    idle: &IdleTimeouts,
    now: u64,
    moved: &Moved<'_>,
    usage: &mut Usage,
) -> Result<u64>
where
    Key<A>: Pod,
    Flow<A>: Pod,
{
    let mut candidates = Vec::new();
    batch::for_each::<Key<A>, Flow<A>>(&maps.flows, |key, flow| {
        usage.add(flow, moved);
        if has_ended(flow, flow.last_seen, idle, now) {
            candidates.push((*key, *flow));
        }
    })?;
    let mut table = open::<A>(&maps.flows)?;
    let mut closed = 0;
    for (key, flow) in candidates {
        let peer_key = flow.out.reversed();
        let peer = table.get(&peer_key, 0).ok().filter(|peer| peer.generation == flow.generation);
        // One direction may be silent for long while the other is not.
        let last_seen = peer.map_or(flow.last_seen, |peer| peer.last_seen.max(flow.last_seen));
        if !has_ended(&flow, last_seen, idle, now) {
            continue;
        }
        if flow.is_forward() {
            // Left to its reverse entry, unless that is gone.
            if peer.is_none() {
                let _ = table.remove(&key);
            }
            continue;
        }
        if peer.is_some() {
            let _ = table.remove(&peer_key);
        }
        if table.remove(&key).is_ok() {
            closed += 1;
        }
    }
    Ok(closed)
}

fn sweep_half_open<A: Address + Pod + Into<IpAddr>>(
    maps: &FamilyMaps<A>,
    now: u64,
    moved: &Moved<'_>,
    usage: &mut Usage,
) -> Result<()>
where
    Key<A>: Pod,
    Flow<A>: Pod,
{
    let mut candidates = Vec::new();
    batch::for_each::<Key<A>, Flow<A>>(&maps.half_open, |key, flow| {
        usage.add(flow, moved);
        if now.saturating_sub(flow.last_seen) > HALF_OPEN {
            candidates.push((*key, flow.generation));
        }
    })?;
    let mut table = open::<A>(&maps.half_open)?;
    for (key, generation) in candidates {
        // Once more, for an entry that came in its place or was used meanwhile.
        let Ok(flow) = table.get(&key, 0) else { continue };
        if flow.generation != generation || now.saturating_sub(flow.last_seen) <= HALF_OPEN {
            continue;
        }
        // A reverse entry sees no repeated SYN: it is as good as its forward one.
        let peer = if flow.is_forward() { None } else { table.get(&flow.out.reversed(), 0).ok() };
        let lives = peer.is_some_and(|peer| {
            peer.generation == generation && now.saturating_sub(peer.last_seen) <= HALF_OPEN
        });
        if !lives {
            let _ = table.remove(&key);
        }
    }
    Ok(())
}

/// A typed view of a flow map, half-open or established.
fn open<A: Pod>(map: &MapData) -> Result<BpfHashMap<MapData, Key<A>, Flow<A>>>
where
    Key<A>: Pod,
    Flow<A>: Pod,
{
    let map = aya::maps::Map::from_map_data(MapData::from_id(map.info()?.id())?)?;
    Ok(BpfHashMap::try_from(map)?)
}
