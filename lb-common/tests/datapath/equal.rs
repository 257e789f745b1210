//! The short way of the common packet and the long way of all packets come to the same.

use std::net::SocketAddr;

use lb_common::balance::policy::{MAGLEV, RANDOM, ROUND_ROBIN};
use lb_common::host::{Frame, Result as Fate, run, run_slow};
use lb_common::host_packets::{PacketBuilder, extension};
use lb_common::host_scenario::{BACKEND_SIDE, CLIENT_SIDE, NEIGHBOURS_VLAN, client, neighbour, next_hop};
use lb_common::parse::{Tags, ethertype};
use lb_common::tables::hop;
use lb_common::tcp::flags::{ACK, FIN, RST, SYN};
use lb_common::{Env, Rung};
use proptest::prelude::*;
use proptest::sample::select;

use crate::world::{Connection, World, client_packet};

const BACKENDS: u32 = 2;
/// Clients of each kind.
const CLIENTS: u16 = 4;

/// How far a connection has come before the packets that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
enum Stage {
    Unknown,
    Opened,
    Answered,
    Established,
    HalfClosed,
    Closed,
    Reset,
}

/// What the worlds are.
#[derive(Clone, Debug)]
struct Past {
    rung: Rung,
    v6: bool,
    policy: u32,
    /// Whether the clients that are neighbours have a VLAN.
    vlan: bool,
    /// First those behind the router, then the neighbours.
    stages: Vec<Stage>,
    /// What has become of next hops: flags that changed, and one of a few other changes.
    hops: Vec<(u32, u32, u8)>,
}

fn past() -> impl Strategy<Value = Past> {
    let stage = select(vec![
        Stage::Unknown,
        Stage::Opened,
        Stage::Answered,
        Stage::Established,
        Stage::Established,
        Stage::Established,
        Stage::HalfClosed,
        Stage::Closed,
        Stage::Reset,
    ]);
    let flags =
        select(vec![0, 0, hop::USED, hop::RESOLVED, hop::ON_LINK, hop::XDP, hop::XDP_SG, hop::RELOOKUP]);
    let hop = (1..3 + BACKENDS, flags, 0u8..7);
    (
        select(vec![Rung::Xdp, Rung::Tc]),
        any::<bool>(),
        select(vec![ROUND_ROBIN, RANDOM, MAGLEV]),
        any::<bool>(),
        proptest::collection::vec(stage, 2 * CLIENTS as usize),
        proptest::collection::vec(hop, 0..3),
    )
        .prop_map(|(rung, v6, policy, vlan, stages, hops)| Past { rung, v6, policy, vlan, stages, hops })
}

/// A connection, how its client's packets are tagged, and the next packet of each side.
struct Talker {
    client: PacketBuilder,
    backend: Option<PacketBuilder>,
}

impl Past {
    fn address(&self, n: u16) -> SocketAddr {
        if n < CLIENTS { client(self.v6, n) } else { neighbour(self.v6, n - CLIENTS) }
    }

    /// A world with this past, and who talks in it.
    fn world(&self) -> (World, Vec<Talker>) {
        let mut world = World::new(self.rung, self.policy, BACKENDS);
        if !self.vlan {
            world.tables.next_hops[next_hop::NEIGHBOURS as usize].tags = Tags::default();
        }
        let talkers = self.stages.iter().zip(0..).map(|(stage, n)| self.talk(&world, n, *stage)).collect();
        for (index, flags, kind) in &self.hops {
            let hop = &mut world.tables.next_hops[*index as usize];
            hop.flags ^= flags;
            match kind {
                0 => hop.confirmed = 0,
                1 => hop.mtu = 600,
                2 => hop.mtu = 70_000,
                3 => hop.tags = Tags { tci: [7, 0], count: 1, in_frame: 1, outer: ethertype::VLAN },
                4 => hop.ifindex = CLIENT_SIDE + BACKEND_SIDE - hop.ifindex,
                _ => {}
            }
        }
        (world, talkers)
    }

    /// Brings a connection to its stage, as far as the world lets it.
    fn talk(&self, world: &World, n: u16, stage: Stage) -> Talker {
        let tagged = |packet: PacketBuilder| {
            if self.vlan && n >= CLIENTS { packet.tag(NEIGHBOURS_VLAN) } else { packet }
        };
        let bare = tagged(client_packet(self.address(n)).seq(10));
        if stage == Stage::Unknown {
            return Talker { client: bare, backend: None };
        }
        let syn = world.on_client_side(&bare.clone().flags(SYN).mss(9000));
        if syn.sent.is_none() {
            return Talker { client: bare, backend: None };
        }
        let connection = Connection::of_syn(self.address(n), 10, &syn.frame);
        let (of_client, of_backend) = (tagged(connection.of_client()), connection.of_backend());
        if stage >= Stage::Answered {
            world.on_backend_side(&of_backend.clone().flags(SYN).seq(connection.backend_isn));
        }
        if stage >= Stage::Established {
            world.on_client_side(&of_client);
        }
        match stage {
            Stage::HalfClosed => _ = world.on_client_side(&of_client.clone().flags(FIN)),
            Stage::Closed => {
                world.on_backend_side(&of_backend.clone().flags(FIN));
                world.on_client_side(&of_client.clone().flags(FIN));
            }
            Stage::Reset => _ = world.on_backend_side(&of_backend.clone().flags(RST)),
            _ => {}
        }
        Talker { client: of_client, backend: Some(of_backend) }
    }
}

/// A packet to be: whose, and what is special about it.
#[derive(Clone, Debug)]
struct Plan {
    who: usize,
    of_backend: bool,
    payload: usize,
    flags: u8,
    shape: u8,
    /// Bytes that are overwritten, and where the frame is cut off.
    errors: Vec<(usize, u8)>,
    cut: Option<usize>,
    rung: Rung,
    wrong_side: bool,
    gso_size: u32,
    scattered: bool,
    /// Seconds that pass before it.
    wait: u64,
}

fn plan() -> impl Strategy<Value = Plan> {
    let flags = prop_oneof![
        8 => Just(0),
        2 => Just(SYN),
        1 => Just(FIN),
        1 => Just(RST),
        1 => any::<u8>(),
    ];
    // Often what the short way looks at: MAC address, EtherType, version, length, fragment, TTL, protocol, offset and
    // flags.
    let at = prop_oneof![
        select(vec![0usize, 12, 13, 14, 16, 17, 18, 19, 20, 21, 22, 23, 46, 47, 66, 67]),
        0usize..90,
    ];
    let value = prop_oneof![select(vec![0u8, 1, 2, 6, 17, 58, 0x45, 0x46, 0x60, 0x81, 0xff]), any::<u8>()];
    let few = |often: u32| prop_oneof![often => Just(false), 1 => Just(true)];
    let packet = (
        0..2 * CLIENTS as usize,
        any::<bool>(),
        prop_oneof![3 => 0usize..20, 1 => 500usize..600, 1 => 1350usize..1500, 1 => 3000usize..3010],
        flags,
        0u8..24,
    );
    let errors = prop_oneof![
        3 => Just(Vec::new()),
        1 => proptest::collection::vec((at, value), 1..3),
    ];
    let env = (
        select(vec![Rung::Xdp, Rung::Tc]),
        few(7),
        select(vec![0u32, 0, 1, 500, 1398, 1400, 1448]),
        few(3),
        prop_oneof![12 => Just(0u64), 1 => 1u64..50],
    );
    (packet, errors, prop::option::weighted(0.05, 0usize..120), env).prop_map(
        |((who, of_backend, payload, flags, shape), errors, cut, env)| {
            let (rung, wrong_side, gso_size, scattered, wait) = env;
            let (gso_size, scattered) = if rung == Rung::Tc { (gso_size, false) } else { (0, scattered) };
            Plan {
                who,
                of_backend,
                payload,
                flags,
                shape,
                errors,
                cut,
                rung,
                wrong_side,
                gso_size,
                scattered,
                wait,
            }
        },
    )
}

impl Plan {
    /// Where it arrives, and its bytes.
    fn build(&self, talkers: &[Talker]) -> (u32, Frame) {
        let talker = &talkers[self.who];
        let backend = talker.backend.as_ref().filter(|_| self.of_backend);
        let side = if backend.is_some() != self.wrong_side { BACKEND_SIDE } else { CLIENT_SIDE };
        let mut packet = backend.unwrap_or(&talker.client).clone();
        packet = packet.payload(&vec![0x5a; self.payload]).flags(self.flags);
        packet = match self.shape {
            0 => packet.ip_options(&[1, 1, 1, 1]).extension(extension::HOP_BY_HOP, &[1, 4]),
            1 => packet.tag(9),
            2 => packet.untagged(),
            3 => packet.fragment(0, true),
            4 => packet.fragment(2, false),
            5 => packet.trailer(6),
            6 => packet.tcp_options(&[1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8]),
            7 => packet.ttl(0),
            8 => packet.ttl(1),
            9 => packet.ttl(2),
            10 => packet.seq(0x7fff_ffff),
            11 => packet.seq(11 + 2000),
            12 => packet.macs([1; 6], [3; 6]),
            _ => packet,
        };
        let mut frame = packet.build();
        for (at, value) in &self.errors {
            if let Some(byte) = frame.0.get_mut(*at) {
                *byte = *value;
            }
        }
        if let Some(cut) = self.cut {
            frame.0.truncate(cut);
        }
        (side, frame)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// In worlds alike one packet after the other, each the short way here and the long way there: what becomes of it, its
    /// bytes, and what it leaves behind.
    #[test]
    fn both_ways_of_a_packet(past in past(), plans in proptest::collection::vec(plan(), 1..16)) {
        let [(mut one, talkers), (mut other, _)] = [past.world(), past.world()];
        prop_assert_eq!(one.state(), other.state());
        for plan in plans {
            one.wait(plan.wait);
            other.wait(plan.wait);
            let (side, mut frame) = plan.build(&talkers);
            let mut env = Env::new(plan.rung, side, one.now);
            (env.gso_size, env.scattered) = (plan.gso_size, plan.scattered);
            let mut twin = frame.clone();
            let result: Fate = run(&env, &mut frame, &one.tables);
            prop_assert_eq!(&result, &run_slow(&env, &mut twin, &other.tables), "{:?}", &plan);
            prop_assert_eq!(frame, twin, "{} {:?}", result.reason.name(), &plan);
            prop_assert_eq!(one.state(), other.state(), "{} {:?}", result.reason.name(), &plan);
        }
    }
}

/// The short way is taken, or the comparison would be of the long way with itself: packets that it handles to the end leave
/// no trace in the work room.
#[test]
fn the_common_packet_goes_the_short_way() {
    use lb_common::Tables;
    for v6 in [false, true] {
        let world = World::new(Rung::Xdp, ROUND_ROBIN, 1);
        let connection = world.connect(client(v6, 1), 1);
        let last = || {
            let (v4, v6) =
                (Tables::<lb_common::V4>::work(&world.tables), Tables::<lb_common::V6>::work(&world.tables));
            (v4.expect("the host has one").packet().seq, v6.expect("the host has one").packet().seq)
        };
        let before = last();
        world.client_sends(
            &connection,
            connection.of_client().payload(b"up").seq(700),
            lb_common::Reason::FORWARD,
        );
        world.backend_sends(
            &connection,
            connection.of_backend().payload(b"down").seq(800),
            lb_common::Reason::REVERSE,
        );
        assert_eq!(last(), before);
        let fin = connection.of_client().seq(900).flags(FIN | ACK);
        world.client_sends(&connection, fin, lb_common::Reason::FORWARD);
        assert_ne!(last(), before);
    }
}
