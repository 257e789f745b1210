//! Flows that have ended are taken out of the maps here; the programs only mark them.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Result;
use aya::Pod;
use aya::maps::{HashMap as BpfHashMap, MapData};
use lb_common::tcp::lifetime;
use lb_common::{Address, Flow, Key};

use crate::datapath::batch;
use crate::datapath::kernel::{FamilyMaps, Kernel, monotonic_now};

/// How long a half-open entry or a tombstone is kept after its last SYN; the programs stop heeding it before.
const HALF_OPEN: u64 = 60_000_000_000;

/// Idle timeouts by service id; `None`: never.
pub type IdleTimeouts = HashMap<u32, Option<Duration>>;

impl Kernel {
    /// Takes out what has ended; flows that remain, of both families.
    pub fn sweep(&self, idle: &IdleTimeouts) -> Result<u64> {
        let now = monotonic_now();
        let closed4 = sweep_flows(&self.v4, idle, now)?;
        let closed6 = sweep_flows(&self.v6, idle, now)?;
        for (index, closed) in [(self.v4.index, closed4), (self.v6.index, closed6)] {
            // The second word of `Live`; the agent alone writes it.
            self.live.word(index, 1).fetch_add(closed, Ordering::Relaxed);
        }
        sweep_half_open(&self.v4, now)?;
        sweep_half_open(&self.v6, now)?;
        Ok(self.live_flows(self.v4.index) + self.live_flows(self.v6.index))
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
fn sweep_flows<A: Address + Pod>(maps: &FamilyMaps<A>, idle: &IdleTimeouts, now: u64) -> Result<u64>
where
    Key<A>: Pod,
    Flow<A>: Pod,
{
    let mut candidates = Vec::new();
    batch::for_each::<Key<A>, Flow<A>>(&maps.flows, |key, flow| {
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

fn sweep_half_open<A: Address + Pod>(maps: &FamilyMaps<A>, now: u64) -> Result<()>
where
    Key<A>: Pod,
    Flow<A>: Pod,
{
    let mut candidates = Vec::new();
    batch::for_each::<Key<A>, Flow<A>>(&maps.half_open, |key, flow| {
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
