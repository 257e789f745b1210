//! FLOWS4, FLOWS6.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use lb_common::flow::mark;
use lb_common::parse::Tags;
use lb_common::table::HALF_OPEN_LIMIT;
use lb_common::tcp::{is_closing, state};
use lb_common::{Address, Flow};
use serde::Serialize;

use super::Context;
use super::read::Family;
use crate::flows::{Carrier, seconds_since, socket};
use crate::table::{bytes, duration, left, or_dash, right};

/// One direction of a flow, or a tombstone.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct FlowEntry {
    direction: Direction,
    client: SocketAddr,
    vip: SocketAddr,
    /// A tombstone has none.
    snat: Option<SocketAddr>,
    backend: Option<SocketAddr>,
    state: &'static str,
    /// What was seen of the flow's beginning and end.
    marks: Vec<&'static str>,
    rung: Carrier,
    /// Index of the next hop, and its device.
    next_hop: u32,
    device: Option<String>,
    /// Upper bound for the MSS option, bytes.
    mss: u16,
    packets: u64,
    /// Payload, retransmissions not counted.
    bytes: u64,
    /// Since the SYN; unknown of a tombstone.
    age_s: Option<f64>,
    idle_s: f64,
    /// 1 for the first backend that was tried.
    attempt: u16,
    generation: u64,
    /// MAC address that the packet leaves to, where it was learned from the SYN.
    learned_mac: Option<String>,
    vlans: Vec<u16>,
    service: u32,
    backend_index: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum Direction {
    Forward,
    Reverse,
    Tombstone,
}

impl Direction {
    fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Reverse => "reverse",
            Self::Tombstone => "tombstone",
        }
    }
}

/// The entries of one family, the two of a flow beside each other.
pub(super) fn read<A: Family>(context: &Context<'_>) -> Result<Vec<FlowEntry>> {
    let entries = context.maps.flows::<A>()?.entries()?;
    let device = |hop: u32| {
        let known = hop > 0 && hop < context.hops.len();
        known.then(|| context.devices.name(context.hops.get(hop).ifindex))
    };
    let mut rows: Vec<FlowEntry> = entries.iter().map(|flow| decode(flow, context.now, &device)).collect();
    rows.sort_by_key(|row| (row.client, row.vip, row.generation, row.direction));
    Ok(rows)
}

pub(super) fn decode<A: Address + Into<IpAddr>>(
    flow: &Flow<A>,
    now: u64,
    device: &dyn Fn(u32) -> Option<String>,
) -> FlowEntry {
    let (direction, arrives, leaves) = match (flow.is_tombstone(), flow.is_forward()) {
        (true, _) => (Direction::Tombstone, flow.key, None),
        (false, true) => (Direction::Forward, flow.key, Some(flow.out)),
        // Seen from the client, both directions of a flow look the same.
        (false, false) => (Direction::Reverse, flow.out.reversed(), Some(flow.key.reversed())),
    };
    let learned = flow.is_learned();
    FlowEntry {
        direction,
        client: socket(arrives.source, arrives.source_port),
        vip: socket(arrives.destination, arrives.destination_port),
        snat: leaves.map(|key| socket(key.source, key.source_port)),
        backend: leaves.map(|key| socket(key.destination, key.destination_port)),
        state: state_name(flow, now),
        marks: marks(flow),
        rung: flow.rung().into(),
        next_hop: flow.hop.into(),
        device: device(flow.hop.into()),
        mss: flow.mss,
        packets: flow.packets,
        bytes: flow.payload_bytes(),
        age_s: (!flow.is_tombstone()).then(|| seconds_since(flow.opened_at(), now)),
        idle_s: seconds_since(flow.last_seen, now),
        attempt: flow.attempts,
        generation: flow.generation(),
        learned_mac: learned.then(|| mac(flow.mac)),
        vlans: if learned { vlans(flow.tags) } else { Vec::new() },
        service: flow.service.into(),
        backend_index: flow.backend.into(),
    }
}

fn state_name<A: Address>(flow: &Flow<A>, now: u64) -> &'static str {
    let half_open = !flow.is_established();
    // Whether a reverse entry has expired is told by its forward one.
    let expired = half_open && flow.is_forward() && now.saturating_sub(flow.last_seen) > HALF_OPEN_LIMIT;
    match (expired, flow.is_tombstone(), half_open) {
        (true, ..) => "expired",
        (_, true, _) => "tombstone",
        (_, _, true) => "half_open",
        _ if is_closing(flow.word) => "closing",
        _ => "established",
    }
}

fn marks<A: Address>(flow: &Flow<A>) -> Vec<&'static str> {
    let names = [
        (state::CLIENT_FIN, "client_fin"),
        (state::BACKEND_FIN, "backend_fin"),
        (state::BACKEND_FIN_FIRST, "backend_fin_first"),
        (state::RESET, "reset"),
        (state::CHALLENGED, "challenged"),
        (mark::ANSWERED, "answered"),
    ];
    names.iter().filter(|(bit, _)| flow.word & bit != 0).map(|(_, name)| *name).collect()
}

/// A MAC address as people write it.
pub(crate) fn mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// VLAN ids, outer first.
pub(super) fn vlans(tags: Tags) -> Vec<u16> {
    tags.tci.iter().take(tags.count as usize).map(|tci| tci & 0xfff).collect()
}

pub(super) fn render_vlans(vlans: &[u16]) -> String {
    if vlans.is_empty() {
        return "-".to_owned();
    }
    vlans.iter().map(u16::to_string).collect::<Vec<_>>().join(".")
}

pub(super) fn render(rows: &[FlowEntry], json: bool) -> Result<String> {
    let columns = [
        left("DIRECTION"),
        left("CLIENT"),
        left("VIP"),
        left("SNAT"),
        left("BACKEND"),
        left("STATE"),
        left("RUNG"),
        left("NEXT HOP"),
        right("MSS"),
        right("PACKETS"),
        right("BYTES"),
        right("AGE"),
        right("IDLE"),
        right("ATTEMPT"),
        left("LEARNED MAC"),
        left("VLAN"),
        right("GENERATION"),
    ];
    super::render(rows, json, columns, |row| {
        let state = [row.state].into_iter().chain(row.marks.iter().copied()).collect::<Vec<_>>().join("+");
        let tombstone = row.direction == Direction::Tombstone;
        let unless_tombstone = |text: String| if tombstone { "-".to_owned() } else { text };
        [
            row.direction.name().into(),
            row.client.to_string(),
            row.vip.to_string(),
            or_dash(row.snat),
            or_dash(row.backend),
            state,
            row.rung.name().into(),
            unless_tombstone(format!("{} {}", row.next_hop, or_dash(row.device.as_ref()))),
            unless_tombstone(row.mss.to_string()),
            row.packets.to_string(),
            bytes(row.bytes),
            or_dash(row.age_s.map(duration)),
            duration(row.idle_s),
            unless_tombstone(row.attempt.to_string()),
            or_dash(row.learned_mac.as_ref()),
            render_vlans(&row.vlans),
            unless_tombstone(row.generation.to_string()),
        ]
    })
}
