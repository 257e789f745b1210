//! Several CPUs at once: packets that are worked on by threads as a schedule says. Small cases run under every schedule
//! with few switches, larger ones under random schedules.

use std::cell::Cell;
use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use lb_common::balance::policy::ROUND_ROBIN;
use lb_common::flow::mark;
use lb_common::host::{Frame, run};
use lb_common::host_packets::PacketBuilder;
use lb_common::host_scenario::{BACKEND_SIDE, CLIENT_SIDE, client, vip};
use lb_common::reason::Fate;
use lb_common::table;
use lb_common::tcp::flags::{ACK, FIN, RST, SYN};
use lb_common::{Flow, Reason, Rung, V4};
use proptest::prelude::*;

use crate::schedule::{self, Interleaved, Plan, Told, each_plan};
use crate::world::{BOTH, Connection, World, client_packet};

/// What became of one of several packets.
#[derive(Debug)]
struct Outcome {
    reason: Reason,
    frame: Frame,
}

impl Outcome {
    fn fate(&self) -> Fate {
        self.reason.fate()
    }

    fn is(&self, reason: Reason) -> bool {
        self.reason == reason
    }
}

/// Handles a packet, with `before` each operation.
fn handle(world: &World, ingress: u32, packet: &PacketBuilder, before: &dyn Fn()) -> Outcome {
    let arrived = packet.build();
    let mut frame = arrived.clone();
    let result = run(&world.env(ingress), &mut frame, &Interleaved { tables: &world.tables, before });
    assert_eq!(result.sent.is_some(), result.reason.fate() == Fate::Forwarded);
    assert!(result.sent.is_some() || frame == arrived);
    Outcome { reason: result.reason, frame }
}

/// Handles the packets at once; also says how many operations they took.
fn at_once(world: &World, packets: &[(u32, PacketBuilder)], plan: Plan) -> (Vec<Outcome>, usize) {
    schedule::at_once(packets.len(), plan, &|thread, before| {
        let (ingress, packet) = &packets[thread];
        handle(world, *ingress, packet, before)
    })
}

/// One case: a world and the packets to handle in it at once, and what must hold afterwards.
struct Case<'c> {
    world: &'c dyn Fn() -> World,
    packets: &'c dyn Fn(&World) -> Vec<(u32, PacketBuilder)>,
    check: &'c dyn Fn(&World, &[Outcome]),
}

impl Case<'_> {
    fn run(&self, plan: Plan) -> usize {
        let world = (self.world)();
        let packets = (self.packets)(&world);
        let (outcomes, steps) = at_once(&world, &packets, plan.clone());
        let reasons: Vec<_> = outcomes.iter().map(|outcome| outcome.reason.name()).collect();
        let told = Told(format!("under {plan:?}: {reasons:?}"));
        (self.check)(&world, &outcomes);
        check_pairs(&world);
        std::mem::forget(told);
        steps
    }

    /// Every schedule with up to two switches between the threads, besides those at their ends.
    fn run_all(&self) {
        each_plan((self.packets)(&(self.world)()).len(), |plan| self.run(plan));
    }
}

/// What holds whatever happened: a forward entry has the reverse entry of its generation, and that one leads back.
fn check_pairs(world: &World) {
    let established = world.tables.v4.established_entries();
    let half_open = world.tables.v4.half_open_entries();
    let peer = |entries: &[Flow<V4>], flow: &Flow<V4>| {
        *entries.iter().find(|peer| peer.key == flow.out.reversed()).expect("a reverse entry")
    };
    for flow in established.iter().filter(|flow| flow.is_forward()) {
        let peer = peer(&established, flow);
        assert_eq!(peer.generation(), flow.generation());
        assert_eq!(peer.out.reversed(), flow.key);
    }
    for flow in half_open.iter().filter(|flow| flow.is_forward() && !flow.is_tombstone()) {
        let peer = peer(&half_open, flow);
        assert_eq!(peer.generation(), flow.generation());
        assert_eq!(peer.out.reversed(), flow.key);
    }
    let keys: HashSet<_> = established.iter().chain(&half_open).map(|flow| flow.key).collect();
    assert_eq!(keys.len(), established.len() + half_open.len(), "two entries with one key");
    assert_eq!(world.live(false), established.iter().filter(|flow| !flow.is_forward()).count() as u64);
}

fn world(backends: u32) -> World {
    World::new(Rung::Tc, ROUND_ROBIN, backends)
}

fn with_attempts(mut world: World, attempts: u16) -> World {
    world.tables.v4.services.values_mut().for_each(|service| service.attempts = attempts);
    world.tables.v6.services.values_mut().for_each(|service| service.attempts = attempts);
    world
}

fn with_ports(mut world: World, ports: u32) -> World {
    world.tables.settings.snat_ports = ports;
    world
}

fn syn(n: u16, isn: u32) -> (u32, PacketBuilder) {
    (CLIENT_SIDE, client_packet(client(false, n)).flags(SYN).seq(isn).mss(1000))
}

fn syn_ack(connection: &Connection) -> (u32, PacketBuilder) {
    (BACKEND_SIDE, connection.of_backend().flags(SYN).seq(connection.backend_isn))
}

fn opened(outcome: &Outcome, n: u16, isn: u32) -> Connection {
    Connection::of_syn(client(false, n), isn, &outcome.frame)
}

/// The connection that the client's half-open entry stands for.
fn current(world: &World, n: u16, isn: u32) -> Connection {
    let entries = world.tables.v4.half_open_entries();
    let SocketAddr::V4(address) = client(false, n) else { unreachable!("an IPv4 client") };
    let client_port = address.port().to_be();
    let flow = entries
        .iter()
        .find(|flow| {
            let key = flow.key;
            flow.is_forward() && key.source == V4::from(*address.ip()) && key.source_port == client_port
        })
        .expect("a half-open entry");
    let ip = |address: V4| std::net::IpAddr::from(address);
    let std::net::IpAddr::V4(backend) = ip(flow.out.destination) else { unreachable!("an IPv4 backend") };
    let [.., low] = backend.octets();
    let backend = low as u32 - 1;
    let snat = SocketAddr::new(ip(flow.out.source), u16::from_be(flow.out.source_port));
    Connection {
        client: client(false, n),
        backend,
        snat,
        isn,
        backend_isn: isn.wrapping_mul(0x9e37_79b1) ^ backend,
    }
}

/// The rest of a handshake, in order.
fn finish(world: &World, connection: &Connection) {
    world.answer(connection);
    world.client_sends(connection, connection.of_client(), Reason::ESTABLISHED);
    works(world, connection);
}

fn works(world: &World, connection: &Connection) {
    world.client_sends(connection, connection.of_client().payload(b"up"), Reason::FORWARD);
    world.backend_sends(connection, connection.of_backend().payload(b"down"), Reason::REVERSE);
}

/// After copies of one SYN, whatever became of each: one connection, and nobody else is let through.
fn one_connection(world: &World, outcomes: &[Outcome], isn: u32) {
    let sent: Vec<_> = outcomes.iter().filter(|outcome| outcome.fate() == Fate::Forwarded).collect();
    assert!(!sent.is_empty());
    assert!(
        outcomes.iter().all(|outcome| outcome.fate() == Fate::Forwarded || outcome.is(Reason::SYN_RACED))
    );
    let winner = current(world, 1, isn);
    assert!(sent.iter().any(|outcome| opened(outcome, 1, isn) == winner));
    for other in sent.iter().map(|outcome| opened(outcome, 1, isn)).filter(|other| *other != winner) {
        let (ingress, late) = syn_ack(&other);
        world.receive(ingress, late.build()).left(Reason::ABANDONED);
    }
    finish(world, &winner);
    assert_eq!(world.live(false), 1);
}

#[test]
fn copies_of_a_first_syn() {
    Case {
        world: &|| world(3),
        packets: &|_| vec![syn(1, 7), syn(1, 7)],
        check: &|world, outcomes| one_connection(world, outcomes, 7),
    }
    .run_all();
}

/// With one attempt allowed no second backend hears of it.
#[test]
fn copies_of_a_first_syn_count_as_one_attempt() {
    Case {
        world: &|| with_attempts(world(3), 1),
        packets: &|_| vec![syn(1, 7), syn(1, 7)],
        check: &|world, outcomes| {
            let sent = outcomes.iter().filter(|outcome| outcome.fate() == Fate::Forwarded);
            let backends: HashSet<_> = sent.map(|outcome| opened(outcome, 1, 7).backend).collect();
            assert_eq!(backends.len(), 1);
            one_connection(world, outcomes, 7);
        },
    }
    .run_all();
}

/// Copies of a repeated SYN, two attempts left.
#[test]
fn copies_of_a_repeated_syn() {
    Case {
        world: &|| {
            let world = world(4);
            world.open(client(false, 1), 7, Reason::NEW_FLOW);
            world
        },
        packets: &|_| vec![syn(1, 7), syn(1, 7)],
        check: &|world, outcomes| {
            assert!(outcomes.iter().all(|outcome| outcome.fate() != Fate::Passed));
            finish(world, &current(world, 1, 7));
        },
    }
    .run_all();
}

/// The backend's answer and the client's repeated SYN cross: either the backend is settled and the SYN follows it, or
/// the SYN moves on and the answer comes to nothing.
#[test]
fn an_answer_crosses_a_repeated_syn() {
    Case {
        world: &|| {
            let world = world(3);
            world.open(client(false, 1), 7, Reason::NEW_FLOW);
            world
        },
        packets: &|world| vec![syn_ack(&current(world, 1, 7)), syn(1, 7)],
        check: &|world, outcomes| {
            let (answer, repeated) = (&outcomes[0], &outcomes[1]);
            let now = current(world, 1, 7);
            if answer.is(Reason::SYN_ACK) {
                assert!(repeated.is(Reason::SYN_REPEATED) || repeated.is(Reason::SYN_RACED), "{repeated:?}");
                assert_eq!(now.backend, 0);
                world.client_sends(&now, now.of_client(), Reason::ESTABLISHED);
                works(world, &now);
            } else {
                assert!(answer.is(Reason::ABANDONED));
                assert!(repeated.is(Reason::SYN_RETRIED));
                assert_eq!(now.backend, 1);
                finish(world, &now);
            }
        },
    }
    .run_all();
}

fn answered() -> World {
    let world = world(3);
    let connection = world.open(client(false, 1), 7, Reason::NEW_FLOW);
    world.answer(&connection);
    world
}

/// The client's ACK and its first data on two CPUs: none may go up, where the stack would reset the connection.
#[test]
fn two_promotions() {
    Case {
        world: &answered,
        packets: &|world| {
            let connection = current(world, 1, 7);
            let data = connection.of_client().payload(b"first");
            vec![(CLIENT_SIDE, connection.of_client()), (CLIENT_SIDE, data)]
        },
        check: &|world, outcomes| {
            for outcome in outcomes {
                assert!(outcome.is(Reason::ESTABLISHED) || outcome.is(Reason::FORWARD), "{outcome:?}");
            }
            assert_eq!((world.established(false), world.half_open(false), world.live(false)), (2, 0, 1));
        },
    }
    .run_all();
}

/// The backend repeats its SYN-ACK, or the client its SYN, while another CPU promotes the flow.
#[test]
fn repetitions_cross_a_promotion() {
    Case {
        world: &answered,
        packets: &|world| {
            let connection = current(world, 1, 7);
            vec![(CLIENT_SIDE, connection.of_client()), syn_ack(&connection)]
        },
        check: &|world, outcomes| {
            assert!(outcomes[0].is(Reason::ESTABLISHED));
            assert!(outcomes[1].is(Reason::SYN_ACK) || outcomes[1].is(Reason::REVERSE), "{:?}", outcomes[1]);
            assert_eq!((world.established(false), world.half_open(false)), (2, 0));
        },
    }
    .run_all();
    Case {
        world: &answered,
        packets: &|world| vec![(CLIENT_SIDE, current(world, 1, 7).of_client()), syn(1, 7)],
        check: &|world, outcomes| {
            assert!(outcomes[0].is(Reason::ESTABLISHED), "{outcomes:?}");
            assert_ne!(outcomes[1].fate(), Fate::Passed);
            assert!(!outcomes[1].is(Reason::NEW_FLOW) && !outcomes[1].is(Reason::SYN_RETRIED));
            assert_eq!((world.established(false), world.live(false)), (2, 1));
        },
    }
    .run_all();
}

#[test]
fn two_clients_want_one_port() {
    Case {
        world: &|| with_ports(world(1), 1),
        packets: &|_| vec![syn(1, 7), syn(2, 7)],
        check: &|world, outcomes| {
            let won = |outcome: &Outcome| outcome.is(Reason::NEW_FLOW);
            assert_eq!(outcomes.iter().filter(|outcome| won(outcome)).count(), 1);
            assert_eq!(outcomes.iter().filter(|outcome| outcome.is(Reason::NO_PORT)).count(), 1);
            let n = if won(&outcomes[0]) { 1 } else { 2 };
            finish(world, &current(world, n, 7));
        },
    }
    .run_all();
}

/// A port that is just being promoted is taken all the time.
#[test]
fn a_client_wants_the_port_of_a_promotion() {
    Case {
        world: &|| {
            let world = with_ports(world(1), 1);
            let connection = world.open(client(false, 1), 7, Reason::NEW_FLOW);
            world.answer(&connection);
            world
        },
        packets: &|world| vec![(CLIENT_SIDE, current(world, 1, 7).of_client()), syn(2, 7)],
        check: &|world, outcomes| {
            assert!(outcomes[0].is(Reason::ESTABLISHED));
            assert!(outcomes[1].is(Reason::NO_PORT));
            assert_eq!((world.established(false), world.half_open(false)), (2, 1));
        },
    }
    .run_all();
}

/// One copy of a SYN finds a port, the other none: if one went up, so does what follows.
#[test]
fn copies_of_a_syn_with_one_port() {
    Case {
        world: &|| with_ports(world(1), 1),
        packets: &|_| vec![syn(1, 7), syn(1, 7)],
        check: &|world, outcomes| {
            if outcomes.iter().any(|outcome| outcome.fate() == Fate::Passed) {
                world.on_client_side(&client_packet(client(false, 1)).seq(8).ack(9)).left(Reason::TOMBSTONE);
                world.on_client_side(&syn(1, 7).1).left(Reason::TOMBSTONE);
                for sent in outcomes.iter().filter(|outcome| outcome.fate() == Fate::Forwarded) {
                    let (ingress, late) = syn_ack(&opened(sent, 1, 7));
                    world.receive(ingress, late.build()).left(Reason::ABANDONED);
                }
            } else {
                one_connection(world, outcomes, 7);
            }
        },
    }
    .run_all();
}

/// Copies of a SYN on the tuple of an ended flow, whose last ACK comes late.
#[test]
fn copies_of_a_syn_that_reuses_a_tuple() {
    Case {
        world: &|| {
            let world = world(3);
            let old = world.connect(client(false, 1), 7);
            world.client_sends(&old, old.of_client().flags(FIN | ACK), Reason::FORWARD);
            world.backend_sends(&old, old.of_backend().flags(FIN | ACK), Reason::REVERSE);
            world
        },
        packets: &|_| vec![syn(1, 500_000_000), syn(1, 500_000_000)],
        check: &|world, outcomes| {
            assert!(world.flow_of(client(false, 1), vip(false)).is_none(), "the old entry is gone");
            assert!(outcomes.iter().all(|outcome| outcome.fate() != Fate::Passed));
            finish(world, &current(world, 1, 500_000_000));
            assert_eq!((world.established(false), world.live(false)), (3, 2));
        },
    }
    .run_all();
}

/// Handles a packet once for each of its operations, before which the whole `story` takes place.
fn interrupted(
    world: &dyn Fn() -> World,
    (ingress, packet): (u32, PacketBuilder),
    story: &(dyn Fn(&World) + Sync),
    check: &dyn Fn(&World, &Outcome),
) {
    let check = |world: &World, outcome: Outcome| {
        check(world, &outcome);
        check_pairs(world);
    };
    schedule::interrupted(world, &|world, before| handle(world, ingress, &packet, before), story, &check);
}

/// A CPU dawdles over a copy of a SYN while the others carry the connection through its handshake.
#[test]
fn a_slow_copy_of_a_syn() {
    interrupted(
        &|| world(3),
        syn(1, 7),
        &|world| {
            let outcome = world.on_client_side(&syn(1, 7).1);
            // While the slow copy is putting its entry into the table, this one is dropped.
            if outcome.reason != Reason::SYN_RACED {
                assert_eq!(outcome.reason.fate(), Fate::Forwarded);
                finish(world, &current(world, 1, 7));
            }
        },
        &|world, outcome| {
            assert_ne!(outcome.fate(), Fate::Passed);
            if world.established(false) == 0 {
                assert_eq!(outcome.fate(), Fate::Forwarded, "one of the two goes on");
                finish(world, &current(world, 1, 7));
            }
            let flow = world.tables.v4.established_entries().pop().expect("the connection");
            let forward = world.flow_of(client(false, 1), vip(false)).expect("its forward entry");
            assert_eq!(forward.generation, flow.generation());
            assert_eq!((world.established(false), world.live(false)), (2, 1));
        },
    );
}

/// A CPU dawdles over a copy of a SYN while another one finds no port for it and sends it up.
#[test]
fn a_slow_copy_of_a_syn_that_goes_up() {
    let went_up = AtomicBool::new(false);
    interrupted(
        &|| with_ports(world(1), 1),
        syn(1, 7),
        &|world| {
            world.on_client_side(&syn(2, 7).1);
            let outcome = world.on_client_side(&syn(1, 7).1);
            went_up.store(outcome.reason.fate() == Fate::Passed, Relaxed);
            // The port is free again.
            for flow in world.tables.v4.half_open_entries() {
                if !flow.is_tombstone()
                    && !flow.is_forward()
                    && flow.out.destination_port == client(false, 2).port().to_be()
                {
                    world.tables.evict_half_open(&flow.key);
                    world.tables.evict_half_open(&flow.out.reversed());
                }
            }
        },
        &|world, outcome| {
            if went_up.load(Relaxed) {
                assert_ne!(outcome.fate(), Fate::Forwarded);
                world.on_client_side(&client_packet(client(false, 1)).seq(8).ack(9)).left(Reason::TOMBSTONE);
            } else {
                finish(world, &current(world, 1, 7));
            }
        },
    );
}

/// While a CPU works on a packet, its flow is taken out and others come in its place: the packet goes where it belongs or
/// nowhere.
#[test]
fn a_packet_whose_flow_is_taken_out() {
    let dropped = Cell::new(0);
    for flags in [ACK | FIN, RST] {
        let start = || {
            let mut world = world(1);
            // Two sets, so that the others find the same place.
            world.tables.v4.resize(8);
            let connection = world.connect(client(false, 1), 7);
            (world, connection)
        };
        let packet = |connection: &Connection| connection.of_client().flags(flags).payload(b"last");
        schedule::interrupted(
            &start,
            &|(world, connection), before| handle(world, CLIENT_SIDE, &packet(connection), before),
            &|(world, _)| {
                for flow in world.tables.v4.established_entries() {
                    assert!(table::remove(&world.tables, &flow.key, flow.word, mark::GENERATION));
                }
                for n in 2..8 {
                    world.on_client_side(&syn(n, 7).1).forwarded(Reason::NEW_FLOW);
                }
            },
            &|(_, connection), outcome: Outcome| {
                if outcome.fate() == Fate::Forwarded {
                    assert_eq!(outcome.frame, connection.at_backend(&packet(connection)).build());
                } else {
                    dropped.set(dropped.get() + outcome.is(Reason::FLOW_GONE) as usize);
                }
            },
        );
    }
    assert!(dropped.get() > 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Anything of one handshake at once, on four CPUs.
    #[test]
    fn a_crowd(
        draws in proptest::collection::vec(0usize..4, 0..120),
        kinds in proptest::collection::vec(0usize..7, 4),
        answered_before in any::<bool>(),
        ports in 1u32..4,
    ) {
        let world = with_ports(world(2), ports);
        let connection = world.open(client(false, 1), 7, Reason::NEW_FLOW);
        if answered_before {
            world.answer(&connection);
        }
        let packets: Vec<_> = kinds
            .iter()
            .map(|kind| match kind {
                0 => syn(1, 7),
                1 => syn(1, 70_000_000),
                2 => syn(2, 7),
                3 => syn_ack(&connection),
                4 => (CLIENT_SIDE, connection.of_client()),
                5 => (CLIENT_SIDE, connection.of_client().payload(b"data")),
                _ => (BACKEND_SIDE, connection.of_backend().seq(0).flags(RST)),
            })
            .collect();
        let (outcomes, _) = at_once(&world, &packets, Plan::Draws(draws));
        let reasons: Vec<_> = outcomes.iter().map(|outcome| outcome.reason.name()).collect();
        // A SYN with another number takes the tuple away from the connection, which may leave it in pieces.
        if !kinds.contains(&1) {
            check_pairs(&world);
            if answered_before {
                let of_client = outcomes.iter().zip(&kinds).filter(|(_, kind)| matches!(kind, 4 | 5));
                for (outcome, _) in of_client {
                    prop_assert_eq!(outcome.fate(), Fate::Forwarded, "{:?}", &reasons);
                }
            }
        }
        // Afterwards there is room for others as before: no port is lost to a loser of a race.
        let ended = world.live(false) as usize + world.half_open(false);
        prop_assert!(ended <= 1 + 2 * kinds.len() + 2, "{:?}", &reasons);
        for v6 in BOTH {
            let outcome = world.on_client_side(&client_packet(client(v6, 9)).flags(SYN));
            prop_assert!(outcome.reason == Reason::NEW_FLOW || outcome.reason == Reason::NO_PORT);
        }
    }
}
