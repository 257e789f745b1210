//! What the tests of the datapath share: a world of tables and a clock, and one connection through it, whose packets
//! are checked byte by byte against ones built from scratch.

use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;

use lb_common::host::{Frame, HostTables, run};
use lb_common::host_packets::{PacketBuilder, packet, verify_checksums};
use lb_common::host_scenario::{
    BACKEND_MTU, BACKEND_SIDE, CLIENT_SIDE, backend_address, mac, scenario, snat, vip,
};
use lb_common::reason::Fate;
use lb_common::table;
use lb_common::tcp::flags::{ACK, SYN};
use lb_common::tcp::state;
use lb_common::{Env, Flow, FlowRef, Key, Reason, Rung, Tables, V4, V6};
use proptest::prelude::*;

pub(crate) const SECOND: u64 = 1_000_000_000;
pub(crate) const BOTH: [bool; 2] = [false, true];
pub(crate) const RUNGS: [Rung; 2] = [Rung::Xdp, Rung::Tc];

/// The largest segment that the world's MTUs allow.
pub(crate) fn clamp(v6: bool) -> u16 {
    BACKEND_MTU as u16 - if v6 { 60 } else { 40 }
}

pub(crate) struct World {
    pub(crate) tables: HostTables,
    pub(crate) rung: Rung,
    pub(crate) now: u64,
}

/// What became of a packet.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) reason: Reason,
    pub(crate) sent: Option<(u32, bool)>,
    ingress: u32,
    before: Frame,
    pub(crate) frame: Frame,
}

impl Outcome {
    /// The packet as it left, if it was sent on for `reason`.
    #[track_caller]
    pub(crate) fn forwarded(self, reason: Reason) -> Frame {
        assert_eq!(self.reason.name(), reason.name());
        assert_eq!(reason.fate(), Fate::Forwarded);
        assert!(self.sent.is_some(), "{} was not sent", reason.name());
        self.frame
    }

    /// The message to the sender that it became, if it was answered for `reason`.
    #[track_caller]
    pub(crate) fn answered(self, reason: Reason) -> Frame {
        assert_eq!(self.reason.name(), reason.name());
        assert_eq!(reason.fate(), Fate::Answered);
        assert_eq!(self.sent, Some((self.ingress, false)));
        self.frame
    }

    /// Its TTL is used up: TC answers, XDP hands over.
    #[track_caller]
    pub(crate) fn expired(self, rung: Rung) {
        match rung {
            Rung::Xdp => self.left(Reason::TO_TC),
            Rung::Tc => {
                let frame = self.answered(Reason::TTL_ANSWERED);
                verify_checksums(&frame.0).expect("right checksums");
            }
        }
    }

    /// It was left as it came, for `reason`.
    #[track_caller]
    pub(crate) fn left(self, reason: Reason) {
        assert_eq!(self.reason.name(), reason.name());
        assert_ne!(reason.fate(), Fate::Forwarded);
        assert_eq!(self.sent, None);
        assert_eq!(self.frame, self.before, "it was changed");
    }

    /// The same for a property test, whatever the reason; or it was answered.
    pub(crate) fn left_any(self) -> Result<(), TestCaseError> {
        if self.reason.fate() == Fate::Answered {
            prop_assert_eq!(self.sent, Some((self.ingress, false)));
            return verify_checksums(&self.frame.0).map_err(TestCaseError::fail);
        }
        prop_assert_eq!(self.sent, None);
        prop_assert_eq!(self.frame, self.before, "it was changed");
        Ok(())
    }
}

impl World {
    pub(crate) fn new(rung: Rung, policy: u32, backends: u32) -> Self {
        let tables = scenario(rung, policy, backends);
        tables.set_clock(1_000 * SECOND);
        Self { tables, rung, now: 1_000 * SECOND }
    }

    pub(crate) fn wait(&mut self, seconds: u64) {
        self.now += seconds * SECOND;
        self.tables.set_clock(self.now);
    }

    pub(crate) fn env(&self, ingress: u32) -> Env {
        Env::new(self.rung, ingress, self.now)
    }

    pub(crate) fn receive(&self, ingress: u32, frame: Frame) -> Outcome {
        let before = frame.clone();
        let mut frame = frame;
        let result = run(&self.env(ingress), &mut frame, &self.tables);
        Outcome { reason: result.reason, sent: result.sent, ingress, before, frame }
    }

    pub(crate) fn on_client_side(&self, packet: &PacketBuilder) -> Outcome {
        self.receive(CLIENT_SIDE, packet.build())
    }

    pub(crate) fn on_backend_side(&self, packet: &PacketBuilder) -> Outcome {
        self.receive(BACKEND_SIDE, packet.build())
    }

    /// A SYN that is sent on.
    #[track_caller]
    pub(crate) fn open(&self, client: SocketAddr, isn: u32, reason: Reason) -> Connection {
        let syn = client_packet(client).flags(SYN).seq(isn).mss(9000);
        let frame = self.on_client_side(&syn).forwarded(reason);
        let connection = Connection::of_syn(client, isn, &frame);
        assert_eq!(frame, connection.at_backend(&syn).mss(clamp(client.is_ipv6())).build());
        connection
    }

    /// The backend's answer, sent on.
    #[track_caller]
    pub(crate) fn answer(&self, connection: &Connection) {
        let syn_ack =
            connection.of_backend().flags(SYN).seq(connection.backend_isn).ack(connection.isn + 1).mss(9000);
        let frame = self.on_backend_side(&syn_ack).forwarded(Reason::SYN_ACK);
        assert_eq!(frame, connection.at_client(&syn_ack).mss(clamp(connection.v6())).build());
    }

    /// A whole handshake.
    #[track_caller]
    pub(crate) fn connect(&self, client: SocketAddr, isn: u32) -> Connection {
        let connection = self.open(client, isn, Reason::NEW_FLOW);
        self.answer(&connection);
        self.client_sends(&connection, connection.of_client().flags(ACK), Reason::ESTABLISHED);
        connection
    }

    /// A packet of the client that arrives at the backend as it should.
    #[track_caller]
    pub(crate) fn client_sends(&self, connection: &Connection, packet: PacketBuilder, reason: Reason) {
        let frame = self.on_client_side(&packet).forwarded(reason);
        verify_checksums(&frame.0).expect("right checksums");
        assert_eq!(frame, connection.at_backend(&packet).build());
    }

    /// A packet of the backend that arrives at the client as it should.
    #[track_caller]
    pub(crate) fn backend_sends(&self, connection: &Connection, packet: PacketBuilder, reason: Reason) {
        let frame = self.on_backend_side(&packet).forwarded(reason);
        verify_checksums(&frame.0).expect("right checksums");
        assert_eq!(frame, connection.at_client(&packet).build());
    }

    pub(crate) fn established(&self, v6: bool) -> usize {
        if v6 {
            self.tables.v6.established_entries().len()
        } else {
            self.tables.v4.established_entries().len()
        }
    }

    pub(crate) fn half_open(&self, v6: bool) -> usize {
        if v6 { self.tables.v6.half_open_entries().len() } else { self.tables.v4.half_open_entries().len() }
    }

    pub(crate) fn live(&self, v6: bool) -> u64 {
        if v6 { Tables::<V6>::live(&self.tables) } else { Tables::<V4>::live(&self.tables) }
    }

    /// Everything that a packet can change, in a form to compare.
    pub(crate) fn state(&self) -> Vec<String> {
        fn lines<A: std::fmt::Debug>(name: &str, entries: Vec<Flow<A>>) -> Vec<String> {
            entries.iter().map(|entry| format!("{name} {entry:?}")).collect()
        }
        let mut state = lines("flow", self.tables.v4.established_entries());
        state.extend(lines("flow", self.tables.v6.established_entries()));
        state.extend(lines("half-open", self.tables.v4.half_open_entries()));
        state.extend(lines("half-open", self.tables.v6.half_open_entries()));
        state.extend(self.tables.cursors.iter().map(|cursor| format!("cursor {}", cursor.load(Relaxed))));
        state.extend(
            self.tables
                .opened
                .lock()
                .expect("no panic while locked")
                .iter()
                .map(|opened| format!("opened {opened:?}")),
        );
        state.push(format!("live {} {}", self.live(false), self.live(true)));
        state.sort();
        state
    }

    /// The established entry that packets like `packet` find.
    pub(crate) fn flow_of(&self, source: SocketAddr, destination: SocketAddr) -> Option<FlowFacts> {
        match (source, destination) {
            (SocketAddr::V4(s), SocketAddr::V4(d)) => {
                let key = Key::new(V4::from(*s.ip()), V4::from(*d.ip()), s.port().to_be(), d.port().to_be());
                established(&self.tables, &key).map(|flow| FlowFacts::of(flow.get()))
            }
            (SocketAddr::V6(s), SocketAddr::V6(d)) => {
                let key = Key::new(V6::from(*s.ip()), V6::from(*d.ip()), s.port().to_be(), d.port().to_be());
                established(&self.tables, &key).map(|flow| FlowFacts::of(flow.get()))
            }
            _ => None,
        }
    }
}

/// The entry of an established flow.
fn established<'t, A: lb_common::Address>(tables: &'t HostTables, key: &Key<A>) -> Option<FlowRef<'t, A>>
where
    HostTables: Tables<A>,
{
    table::find(tables, key).filter(|flow| flow.get().is_established())
}

/// What tests ask of an entry of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FlowFacts {
    pub(crate) state: u64,
    pub(crate) generation: u64,
    pub(crate) packets: u64,
    pub(crate) payload: u64,
}

impl FlowFacts {
    fn of<A: lb_common::Address>(flow: &Flow<A>) -> Self {
        Self {
            state: flow.word & state::ALL,
            generation: flow.generation(),
            packets: flow.packets,
            payload: flow.payload_bytes(),
        }
    }
}

/// A packet of a client to the VIP, as it arrives.
pub(crate) fn client_packet(client: SocketAddr) -> PacketBuilder {
    packet(client, vip(client.is_ipv6())).macs(mac::ROUTER, mac::CLIENT_SIDE)
}

/// A connection as seen from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Connection {
    pub(crate) client: SocketAddr,
    /// Number of the backend in its family, from 0 on.
    pub(crate) backend: u32,
    pub(crate) snat: SocketAddr,
    pub(crate) isn: u32,
    pub(crate) backend_isn: u32,
}

impl Connection {
    /// From the SYN as it left for the backend.
    #[track_caller]
    pub(crate) fn of_syn(client: SocketAddr, isn: u32, frame: &Frame) -> Self {
        let v6 = client.is_ipv6();
        let l4 = 14 + if v6 { 40 } else { 20 };
        let last = u16::from_be_bytes([frame.0[l4 - 2], frame.0[l4 - 1]]) as u32;
        let backend = last - 1;
        let port = u16::from_be_bytes([frame.0[l4], frame.0[l4 + 1]]);
        Self {
            client,
            backend,
            snat: SocketAddr::new(snat(v6), port),
            isn,
            backend_isn: isn.wrapping_mul(0x9e37_79b1) ^ backend,
        }
    }

    pub(crate) fn v6(&self) -> bool {
        self.client.is_ipv6()
    }

    pub(crate) fn backend_address(&self) -> SocketAddr {
        backend_address(self.v6(), self.backend)
    }

    /// The client's first segment behind its SYN; flags to be added.
    pub(crate) fn of_client(&self) -> PacketBuilder {
        client_packet(self.client).seq(self.isn.wrapping_add(1)).ack(self.backend_isn.wrapping_add(1))
    }

    /// The backend's first segment behind its SYN-ACK.
    pub(crate) fn of_backend(&self) -> PacketBuilder {
        packet(self.backend_address(), self.snat)
            .macs(mac::backend(self.backend), mac::BACKEND_SIDE)
            .seq(self.backend_isn.wrapping_add(1))
            .ack(self.isn.wrapping_add(1))
    }

    /// How a packet of the client, which came with a TTL of 64, arrives at the backend.
    pub(crate) fn at_backend(&self, packet: &PacketBuilder) -> PacketBuilder {
        packet
            .clone()
            .between(self.snat, self.backend_address())
            .macs(mac::BACKEND_SIDE, mac::backend(self.backend))
            .ttl(63)
    }

    /// How a packet of the backend, which came with a TTL of 64, arrives at a client behind the router.
    pub(crate) fn at_client(&self, packet: &PacketBuilder) -> PacketBuilder {
        packet.clone().between(vip(self.v6()), self.client).macs(mac::CLIENT_SIDE, mac::ROUTER).ttl(63)
    }
}
