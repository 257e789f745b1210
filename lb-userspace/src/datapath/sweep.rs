//! Flows that have ended are taken out of the maps here; the programs only mark them. So are those that have reached a
//! limit, which is for the agent to know: idle or open for too long, a backend that does not answer. The same pass over the
//! maps tells what the flows refer to, so that what nobody wants any more is kept for as long as one of them needs it, and
//! what they have carried so far.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Result;
use lb_common::flow::mark;
use lb_common::table::HALF_OPEN_LIMIT;
use lb_common::tcp::{is_closing, lifetime, state};
use lb_common::{Address, Flow, Rung};

use crate::datapath::connection::KernelConnection;
use crate::datapath::flow_table::FlowTable;
use crate::datapath::kernel::{Kernel, monotonic_now};

/// How long a half-open entry or a tombstone is kept after its last SYN; the programs stop heeding it before.
const HALF_OPEN: u64 = 60_000_000_000;

/// Entries that are taken out in one sweep, at the most, so that the agent comes to other things; the rest is left to the
/// next ones.
const ENDS: usize = 65_536;

/// The limits of connections.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// By service id.
    pub services: HashMap<u32, ServiceLimits>,
    /// By backend index: how long it has to answer a SYN.
    pub connect_timeouts: HashMap<u32, Duration>,
    /// By backend index: its connections that were opened before that are over. Nanoseconds of `CLOCK_MONOTONIC`.
    pub cuts: HashMap<u32, u64>,
    /// Since when there was no sweep: lines of the access log in between are due if their time has come since then.
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub last: u64,
}

/// The limits of the connections of a listener.
#[derive(Clone, Debug)]
pub struct ServiceLimits {
    /// `None`: never.
    pub idle: Option<Duration>,
    /// Since the SYN; `None`: any.
    pub age: Option<Duration>,
    /// Backends tried for one connection.
    pub attempts: u32,
    /// How often each connection is to be told of while it is open.
    pub told_every: Vec<Duration>,
}

/// What has become of a connection, as the sweep found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// No packet for as long as may be; taken out.
    Idle,
    /// Open for as long as may be; taken out.
    TooOld,
    /// Its backend is not to have it any more; taken out.
    Cut,
    /// The last backend that could be tried has not answered in time; taken out.
    Unanswered,
    /// The client has stopped trying before all backends were tried that could be; taken out.
    GivenUp {
        /// The last one has refused, which was counted then; else it has not answered.
        refused: bool,
    },
    /// It has ended without anybody telling: by a RST that its receiver might not have accepted, and silence; taken out.
    Ended,
    /// It is open, and to be told of.
    Open,
}

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
    /// By backend index: reverse entries, which have an SNAT port each.
    ports: HashMap<u32, u64>,
    /// By backend index: connections that count as open.
    counted: HashMap<u32, u64>,
    /// Next hops of [`Moved`] that a flow cannot go by as it is.
    astray: BTreeSet<u32>,
    /// Of open flows, by service id, by backend index, and by rung.
    carried: [HashMap<u32, Carried>; 3],
    /// There was more to take out than one sweep does.
    pub is_behind: bool,
    /// Open connections that were to be told of, but for their number.
    pub untold: u64,
}

/// What open flows have carried so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    pub flows: u64,
    /// Payload from clients.
    pub bytes_in: u64,
    /// Payload to clients.
    pub bytes_out: u64,
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

    /// Connections to a backend that count as open.
    pub fn counted(&self, backend: u32) -> u64 {
        self.counted.get(&backend).copied().unwrap_or(0)
    }

    /// SNAT ports in use towards a backend, also those at rest.
    pub fn ports(&self, backend: u32) -> u64 {
        self.ports.get(&backend).copied().unwrap_or(0)
    }

    /// What the open flows of a service have carried.
    pub fn of_service(&self, id: u32) -> Carried {
        self.carried[0].get(&id).copied().unwrap_or_default()
    }

    /// What the open flows to a backend have carried.
    pub fn of_backend(&self, index: u32) -> Carried {
        self.carried[1].get(&index).copied().unwrap_or_default()
    }

    /// The same of all backends that have open flows.
    pub fn by_backend(&self) -> impl Iterator<Item = (u32, Carried)> {
        self.carried[1].iter().map(|(&index, &carried)| (index, carried))
    }

    /// What the open flows of a rung have carried.
    pub fn of_rung(&self, rung: Rung) -> Carried {
        self.carried[2].get(&(rung as u32)).copied().unwrap_or_default()
    }

    fn carry<A: Address>(&mut self, flow: &Flow<A>) {
        let keys = [flow.service.into(), flow.backend.into(), flow.rung() as u32];
        for (carried, key) in self.carried.iter_mut().zip(keys) {
            let carried = carried.entry(key).or_default();
            if flow.is_forward() {
                carried.flows += 1;
                carried.bytes_in += flow.payload_bytes();
            } else {
                carried.bytes_out += flow.payload_bytes();
            }
        }
    }

    fn add<A: Address + Into<IpAddr>>(&mut self, flow: &Flow<A>, moved: &Moved<'_>) {
        // A tombstone refers to nothing.
        if flow.is_tombstone() {
            return;
        }
        mark(&mut self.backends, flow.backend.into());
        if !is_closing(flow.word) {
            mark(&mut self.open, flow.backend.into());
            if flow.is_established() {
                self.carry(flow);
            }
        }
        mark(&mut self.hops, flow.hop.into());
        mark(&mut self.services, flow.service.into());
        if flow.is_forward() {
            if flow.word & (mark::ESTABLISHED | mark::ENDED) == mark::ESTABLISHED {
                *self.counted.entry(flow.backend.into()).or_default() += 1;
            }
            return;
        }
        *self.ports.entry(flow.backend.into()).or_default() += 1;
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
    /// Takes out what has ended, and tells what the flow maps referred to, and `tell` of connections.
    pub fn sweep(
        &self,
        limits: &Limits,
        moved: &Moved<'_>,
        tell: &mut dyn FnMut(Found, KernelConnection),
    ) -> Result<Usage> {
        let now = monotonic_now();
        let mut usage = Usage::default();
        let (mut closed4, mut closed6) = (0, 0);
        let result = sweep(&self.v4.flows, limits, now, moved, &mut usage, tell, &mut closed4)
            .and_then(|()| sweep(&self.v6.flows, limits, now, moved, &mut usage, tell, &mut closed6));
        for (index, closed) in [(self.v4.index, closed4), (self.v6.index, closed6)] {
            // The second word of `Live`; the agent alone writes it.
            self.live.word(index, 1).fetch_add(closed, Ordering::Relaxed);
        }
        result.map(|()| usage)
    }
}

impl Kernel {
    /// The connections that are established and have not ended.
    pub fn connections(&self) -> Result<Vec<KernelConnection>> {
        let mut all = Vec::new();
        connections(&self.v4.flows, &mut all)?;
        connections(&self.v6.flows, &mut all)?;
        Ok(all)
    }
}

fn connections<A: Address + Into<IpAddr>>(
    table: &FlowTable<A>,
    all: &mut Vec<KernelConnection>,
) -> Result<()> {
    let mut open = Vec::new();
    table.for_each(|flow| {
        if is_open(flow) {
            open.push(*flow);
        }
    })?;
    let look = table.look_everywhere();
    for flow in open {
        let peer = look.find(&flow.out.reversed())?.filter(|peer| peer.generation() == flow.generation());
        all.push(KernelConnection::of(&flow, peer.as_ref()));
    }
    Ok(())
}

impl Limits {
    fn idle_timeout(&self, service: u32) -> u64 {
        match self.services.get(&service) {
            Some(ServiceLimits { idle: Some(timeout), .. }) => timeout.as_nanos() as u64,
            Some(ServiceLimits { idle: None, .. }) => u64::MAX,
            // A listener that is gone: what it accepted lives as long as by default.
            None => 3_600_000_000_000,
        }
    }

    /// Whether an entry's time is over, for a flow that had its last packet at `last_seen`; and what it then is.
    fn end<A: Address>(&self, flow: &Flow<A>, last_seen: u64, now: u64) -> Option<End> {
        let silent = now.saturating_sub(last_seen);
        let service = u32::from(flow.service);
        if !flow.is_established() {
            if self.is_unanswered(flow, now) {
                return Some(End::As(Found::Unanswered));
            }
            return (silent > HALF_OPEN).then(|| self.left(flow));
        }
        if is_closing(flow.word) {
            return (silent > lifetime(flow.word, 0)).then_some(End::Silently);
        }
        if silent > self.idle_timeout(service) {
            return Some(End::As(Found::Idle));
        }
        if self.cuts.get(&flow.backend.into()).is_some_and(|cut| flow.opened_at() < *cut) {
            return Some(End::As(Found::Cut));
        }
        let age = self.services.get(&service)?.age?;
        (now.saturating_sub(flow.opened_at()) > age.as_nanos() as u64).then_some(End::As(Found::TooOld))
    }

    /// Whether the last backend that could be tried was given its time to answer.
    fn is_unanswered<A: Address>(&self, flow: &Flow<A>, now: u64) -> bool {
        if !is_waiting(flow) || flow.word & mark::ENDED != 0 {
            return false;
        }
        let timeout = self.connect_timeouts.get(&flow.backend.into());
        // The programs heed no answer that comes later.
        let timeout = timeout.map(|timeout| (timeout.as_nanos() as u64).min(HALF_OPEN_LIMIT));
        timeout.is_some_and(|timeout| now.saturating_sub(flow.opened_at()) > timeout) && !self.may_retry(flow)
    }

    /// What a half-open entry is whose client has sent nothing for long.
    fn left<A: Address>(&self, flow: &Flow<A>) -> End {
        if is_waiting(flow) && self.may_retry(flow) {
            return End::As(Found::GivenUp { refused: flow.word & mark::ENDED != 0 });
        }
        // An answer that the client did not take, as after a SYN with a forged source; or it was told of before.
        End::Silently
    }

    /// As the programs decide it.
    fn may_retry<A: Address>(&self, flow: &Flow<A>) -> bool {
        if flow.syn_payload != 0 {
            return false;
        }
        let attempts = self.services.get(&flow.service.into()).map_or(1, |service| service.attempts);
        flow.attempts_made() < attempts.into()
    }

    /// Whether a line about an open connection is due.
    fn is_due<A: Address>(&self, flow: &Flow<A>, now: u64) -> bool {
        let Some(service) = self.services.get(&flow.service.into()) else { return false };
        service.told_every.iter().any(|every| {
            let turns = |at: u64| at.saturating_sub(flow.opened_at()) / (every.as_nanos() as u64).max(1);
            turns(now) > turns(self.last)
        })
    }
}

/// Whether this is the forward entry of an established connection that has not ended.
fn is_open<A: Address>(flow: &Flow<A>) -> bool {
    flow.word & (mark::ESTABLISHED | mark::REVERSE | mark::ENDED) == mark::ESTABLISHED
        && !is_closing(flow.word)
}

/// Whether no backend has answered what a half-open entry stands for, unless by a RST.
fn is_waiting<A: Address>(flow: &Flow<A>) -> bool {
    flow.word & (mark::REVERSE | mark::TOMBSTONE | mark::ANSWERED | state::CHALLENGED) == 0
}

/// How an entry ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// The connection had ended before.
    Silently,
    As(Found),
}

/// `closed`: how many established flows ended. A flow counts by its reverse entry, which outlives the forward one.
fn sweep<A: Address + Into<IpAddr>>(
    table: &FlowTable<A>,
    limits: &Limits,
    now: u64,
    moved: &Moved<'_>,
    usage: &mut Usage,
    tell: &mut dyn FnMut(Found, KernelConnection),
    closed: &mut u64,
) -> Result<()> {
    let (mut candidates, mut due) = (Vec::new(), Vec::new());
    table.for_each_tidying(|flow| {
        usage.add(flow, moved);
        if limits.end(flow, flow.last_seen, now).is_some() {
            if candidates.len() < ENDS {
                candidates.push(*flow);
            } else {
                usage.is_behind = true;
            }
        }
        if is_open(flow) && limits.is_due(flow, now) {
            if due.len() < ENDS {
                due.push(*flow);
            } else {
                usage.untold += 1;
            }
        }
    })?;
    let look = table.look();
    let peer = |flow: &Flow<A>| -> Result<Option<Flow<A>>> {
        Ok(look.find(&flow.out.reversed())?.filter(|peer| peer.generation() == flow.generation()))
    };
    for flow in due {
        tell(Found::Open, KernelConnection::of(&flow, peer(&flow)?.as_ref()));
    }
    for flow in candidates {
        let peer = peer(&flow)?;
        // One direction may be silent for long while the other is not; and a half-open reverse entry sees no repeated
        // SYN: it is as good as its forward one.
        let last_seen = peer.map_or(flow.last_seen, |peer| peer.last_seen.max(flow.last_seen));
        let Some(end) = limits.end(&flow, last_seen, now) else { continue };
        if flow.is_established() {
            match peer {
                // Left to its reverse entry.
                Some(_) if flow.is_forward() => continue,
                Some(forward) => {
                    // One that goes on meanwhile stays.
                    if !look.remove(&forward)? {
                        continue;
                    }
                    if forward.word & mark::ENDED == 0 {
                        let found = if let End::As(found) = end { found } else { Found::Ended };
                        tell(found, KernelConnection::of(&forward, Some(&flow)));
                    }
                }
                None => {}
            }
        }
        if !look.remove(&flow)? {
            continue;
        }
        *closed += u64::from(flow.is_established() && !flow.is_forward());
        // Half-open, or without the other direction.
        if flow.is_forward() {
            match end {
                // Told of before.
                _ if flow.is_established() && flow.word & mark::ENDED != 0 => {}
                End::As(found) => tell(found, KernelConnection::of(&flow, peer.as_ref())),
                End::Silently if flow.is_established() => {
                    tell(Found::Ended, KernelConnection::of(&flow, None));
                }
                End::Silently => {}
            }
            if let Some(peer) = peer {
                look.remove(&peer)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use lb_common::tcp::flags;
    use lb_common::{Reason, V4};

    use super::*;
    use crate::test_tables::{CLIENT, NOW, SECOND, VIP, half_open_flow, key, send, tables};

    fn limits() -> Limits {
        let service = ServiceLimits { idle: None, age: None, attempts: 2, told_every: Vec::new() };
        Limits {
            services: [(1, service)].into(),
            connect_timeouts: [(1, Duration::from_secs(5)), (2, Duration::from_secs(5))].into(),
            cuts: HashMap::new(),
            last: 0,
        }
    }

    fn end(flow: &Flow<V4>, now: u64) -> Option<Found> {
        match limits().end(flow, flow.last_seen, now)? {
            End::As(found) => Some(found),
            End::Silently => None,
        }
    }

    #[test]
    fn a_client_that_stops_trying_is_told_of() {
        let tables = tables();
        let back = half_open_flow(&tables, NOW);
        let forward = |at: u64| {
            let of_client = |flow: &Flow<V4>| flow.is_forward() && flow.last_seen >= at;
            tables.v4.half_open_entries().into_iter().find(of_client).unwrap()
        };
        let first = forward(NOW);
        assert_eq!(end(&first, NOW + 50 * SECOND), None, "it may still try");
        assert_eq!(end(&first, NOW + 61 * SECOND), Some(Found::GivenUp { refused: false }));
        assert_eq!(send(&tables, NOW, back, flags::RST | flags::ACK, 0, 101, 0), Reason::REFUSED_RETRY);
        assert_eq!(end(&forward(NOW), NOW + 61 * SECOND), Some(Found::GivenUp { refused: true }));

        let again = NOW + SECOND;
        assert_eq!(send(&tables, again, key(CLIENT, VIP), flags::SYN, 100, 0, 0), Reason::SYN_RETRIED);
        let second = forward(again);
        assert_eq!(end(&second, again + 4 * SECOND), None);
        assert_eq!(
            end(&second, again + 6 * SECOND),
            Some(Found::Unanswered),
            "the last one that could be tried"
        );
        let back = second.out.reversed();
        assert_eq!(send(&tables, again, back, flags::SYN | flags::ACK, 500, 101, 0), Reason::SYN_ACK);
        assert_eq!(end(&forward(again), again + 100 * SECOND), None, "a backend has answered");
    }

    #[test]
    fn payload_of_a_syn_is_sent_to_one_backend_only() {
        let tables = tables();
        half_open_flow(&tables, NOW);
        let mut flow = tables.v4.half_open_entries().into_iter().find(Flow::is_forward).unwrap();
        flow.syn_payload = 1;
        assert_eq!(end(&flow, NOW + 6 * SECOND), Some(Found::Unanswered));
    }
}
