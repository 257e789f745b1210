//! What is told of connections, and how many are counted as open, with the limit that a cluster may have.

use crate::world::{BOTH, Connection, RUNGS, World, client_packet};
use lb_common::balance::policy::{LEAST_REQUEST, ROUND_ROBIN};
use lb_common::event::{Event, by, kind};
use lb_common::host_packets::PacketBuilder;
use lb_common::host_scenario::client;
use lb_common::tables::{Active, Failed, active_of_cluster, settings};
use lb_common::tcp::flags::{ACK, FIN, RST, SYN};
use lb_common::{Address, Reason};

fn worlds(backends: u32) -> impl Iterator<Item = (World, bool)> {
    RUNGS.into_iter().flat_map(move |rung| BOTH.map(|v6| (World::new(rung, ROUND_ROBIN, backends), v6)))
}

/// An event, of whatever family.
#[derive(Debug, PartialEq)]
struct Told {
    kind: u32,
    by: u32,
    bytes_in: u64,
    bytes_out: u64,
}

fn tell<A: Address>(event: &Event<A>) -> Told {
    Told {
        kind: event.kind,
        by: event.by,
        bytes_in: event.forward.payload_bytes(),
        bytes_out: event.reverse.payload_bytes(),
    }
}

/// What was told since the last call.
fn told(world: &World) -> Vec<Told> {
    let v4 = std::mem::take(&mut *world.tables.v4.events.lock().expect("no panic while locked"));
    let v6 = std::mem::take(&mut *world.tables.v6.events.lock().expect("no panic while locked"));
    v4.iter().map(tell).chain(v6.iter().map(tell)).collect()
}

/// Connections that are open: of all backends together, and of their clusters.
fn open(world: &World) -> (u64, u64) {
    let active = world.tables.active.lock().expect("no panic while locked");
    let sum = |clusters: bool| {
        let of = active.iter().filter(|(index, _)| (**index >= active_of_cluster(0)) == clusters);
        of.map(|(_, active)| Active::sum(active.both)).sum()
    };
    (sum(false), sum(true))
}

/// Sets how many connections each cluster may have.
fn limit(world: &World, limit: u64) {
    let mut active = world.tables.active.lock().expect("no panic while locked");
    for backend in &world.tables.backends {
        active.entry(active_of_cluster(backend.cluster)).or_default().limit = limit;
    }
}

fn syn(v6: bool, n: u16) -> PacketBuilder {
    client_packet(client(v6, n)).flags(SYN).seq(1_000)
}

fn fin(world: &World, connection: &Connection, from_client: bool, sent: u32) {
    if from_client {
        let fin = connection.of_client().seq(1_001 + sent).flags(FIN | ACK);
        world.client_sends(connection, fin, Reason::FORWARD);
    } else {
        let fin = connection.of_backend().seq(connection.backend_isn + 1 + sent).flags(FIN | ACK);
        world.backend_sends(connection, fin, Reason::REVERSE);
    }
}

#[test]
fn an_end_by_two_fins_is_told_once_with_all_bytes() {
    for client_first in [true, false] {
        for (world, v6) in worlds(3) {
            let connection = world.connect(client(v6, 1), 1_000);
            assert_eq!((told(&world), open(&world)), (vec![], (1, 1)));
            let request = connection.of_client().payload(&[1; 18]);
            world.client_sends(&connection, request, Reason::FORWARD);
            let response = connection.of_backend().payload(&[7; 1_399]);
            world.backend_sends(&connection, response, Reason::REVERSE);
            let sent = |by_client| if by_client { 18 } else { 1_399 };
            fin(&world, &connection, client_first, sent(client_first));
            assert_eq!((told(&world), open(&world)), (vec![], (1, 1)), "half closed");
            fin(&world, &connection, !client_first, sent(!client_first));
            let by = if client_first { 0 } else { by::CLIENT };
            let end = Told { kind: kind::ENDED, by, bytes_in: 18, bytes_out: 1_399 };
            assert_eq!((told(&world), open(&world)), (vec![end], (0, 0)));
            // Repeated, since its acknowledgement was lost.
            fin(&world, &connection, !client_first, sent(!client_first));
            assert_eq!((told(&world), open(&world)), (vec![], (0, 0)));
        }
    }
}

/// The FIN says how much was sent, also where the last segments before it were lost so far.
#[test]
fn bytes_are_those_before_the_fin() {
    for (world, v6) in worlds(3) {
        let connection = world.connect(client(v6, 1), 1_000);
        fin(&world, &connection, true, 5_000);
        fin(&world, &connection, false, 70_000);
        let end = Told { kind: kind::ENDED, by: 0, bytes_in: 5_000, bytes_out: 70_000 };
        assert_eq!(told(&world), [end]);
    }
}

#[test]
fn a_reset_is_told_with_its_sender() {
    for from_client in [true, false] {
        for (world, v6) in worlds(3) {
            let connection = world.connect(client(v6, 1), 1_000);
            for _ in 0..2 {
                if from_client {
                    world.client_sends(&connection, connection.of_client().flags(RST), Reason::FORWARD);
                } else {
                    world.backend_sends(&connection, connection.of_backend().flags(RST), Reason::REVERSE);
                }
            }
            let by = by::RESET | if from_client { by::CLIENT } else { 0 };
            let end = Told { kind: kind::ENDED, by, bytes_in: 0, bytes_out: 0 };
            assert_eq!((told(&world), open(&world)), (vec![end], (0, 0)));
        }
    }
}

/// What is near enough to end the flow, but not what the backend expects next, may be ignored there.
#[test]
fn a_reset_that_need_not_be_accepted_ends_nothing_by_itself() {
    for (world, v6) in worlds(3) {
        let connection = world.connect(client(v6, 1), 1_000);
        let reset = connection.of_client().seq(1_001 + 500).flags(RST);
        world.client_sends(&connection, reset, Reason::FORWARD);
        assert_eq!((told(&world), open(&world)), (vec![], (1, 1)));
        let more = connection.of_client().payload(b"more");
        world.client_sends(&connection, more, Reason::FORWARD);
        world.client_sends(&connection, connection.of_client().seq(1_005).flags(RST), Reason::FORWARD);
        assert_eq!((told(&world).len(), open(&world)), (1, (0, 0)));
    }
}

/// The backend answers each segment that was on its way with another RST.
#[test]
fn data_that_was_on_its_way_before_a_reset_opens_nothing_again() {
    for (world, v6) in worlds(3) {
        let connection = world.connect(client(v6, 1), 1_000);
        for at in 0..5 {
            world.backend_sends(&connection, connection.of_backend().flags(RST), Reason::REVERSE);
            assert_eq!(open(&world), (0, 0));
            let data = connection.of_client().seq(1_001 + 7 * at).payload(b"more of");
            world.client_sends(&connection, data, Reason::FORWARD);
            assert_eq!(open(&world), (0, 0));
        }
        assert_eq!(told(&world).len(), 1);
    }
}

#[test]
fn connected_is_told_where_it_is_wanted() {
    for (mut world, v6) in worlds(3) {
        world.tables.settings.flags = settings::TELL_CONNECTED;
        world.connect(client(v6, 1), 1_000);
        let connected = Told { kind: kind::CONNECTED, by: by::CLIENT, bytes_in: 0, bytes_out: 0 };
        assert_eq!(told(&world), [connected]);
    }
}

#[test]
fn only_the_last_refusal_is_told_and_each_attempt_is_counted() {
    for (world, v6) in worlds(5) {
        let refusal = |connection: &Connection| connection.of_backend().seq(0).flags(RST);
        let first = world.open(client(v6, 1), 1_000, Reason::NEW_FLOW);
        for _ in 0..2 {
            world.on_backend_side(&refusal(&first)).left(Reason::REFUSED_RETRY);
        }
        // No answer at all.
        world.open(client(v6, 1), 1_000, Reason::SYN_RETRIED);
        let third = world.open(client(v6, 1), 1_000, Reason::SYN_RETRIED);
        assert_eq!(told(&world), []);
        for _ in 0..2 {
            world.backend_sends(&third, refusal(&third), Reason::HALF_OPEN_RESET);
        }
        let refused = Told { kind: kind::REFUSED, by: by::RESET, bytes_in: 0, bytes_out: 0 };
        assert_eq!((told(&world), open(&world)), (vec![refused], (0, 0)));
        let failed = world.tables.failed.lock().unwrap();
        let sum = failed.values().fold(Failed::default(), |sum, one| Failed {
            refused: sum.refused + one.refused,
            unanswered: sum.unanswered + one.unanswered,
        });
        assert_eq!(sum, Failed { refused: 2, unanswered: 1 });
    }
}

/// A backend that refuses a second attempt at it, too, is refused by: its client learns of it.
#[test]
fn a_refusal_by_the_only_backend_is_told() {
    for (world, v6) in worlds(1) {
        let connection = world.open(client(v6, 1), 1_000, Reason::NEW_FLOW);
        let refusal = || connection.of_backend().seq(0).flags(RST);
        for _ in 0..2 {
            world.on_backend_side(&refusal()).left(Reason::REFUSED_RETRY);
            world.client_sends(&connection, syn(v6, 1), Reason::SYN_REPEATED);
        }
        world.backend_sends(&connection, refusal(), Reason::HALF_OPEN_RESET);
        assert_eq!(told(&world).iter().map(|told| told.kind).collect::<Vec<_>>(), [kind::REFUSED]);
    }
}

#[test]
fn beyond_the_limit_syns_go_to_the_proxy() {
    for (world, v6) in worlds(3) {
        limit(&world, 2);
        let first = world.connect(client(v6, 1), 1_000);
        world.connect(client(v6, 2), 1_000);
        world.on_client_side(&syn(v6, 3)).left(Reason::OVERFLOW);
        // And so do their repetitions.
        world.on_client_side(&syn(v6, 3)).left(Reason::TOMBSTONE);
        assert_eq!(open(&world), (2, 2));
        world.client_sends(&first, first.of_client().flags(RST), Reason::FORWARD);
        world.connect(client(v6, 4), 1_000);
        // One of the proxy's counts as well.
        limit(&world, 3);
        for backend in &world.tables.backends {
            let cluster = active_of_cluster(backend.cluster);
            world.tables.active.lock().unwrap().entry(cluster).or_default().both |= Active::PROXIED;
        }
        world.on_client_side(&syn(v6, 5)).left(Reason::OVERFLOW);
    }
}

#[test]
fn a_handshake_that_comes_too_late_is_left_to_the_stack_from_both_sides() {
    for (world, v6) in worlds(3) {
        limit(&world, 1);
        let connections = [1, 2].map(|n| world.open(client(v6, n), 1_000, Reason::NEW_FLOW));
        connections.iter().for_each(|connection| world.answer(connection));
        let [first, second] = &connections;
        world.client_sends(first, first.of_client(), Reason::ESTABLISHED);
        world.on_client_side(&second.of_client()).left(Reason::OVERFLOW);
        let overflow = Told { kind: kind::OVERFLOW, by: by::CLIENT, bytes_in: 0, bytes_out: 0 };
        assert_eq!((told(&world), open(&world)), (vec![overflow], (1, 1)));
        world.on_client_side(&second.of_client().payload(b"GET /")).left(Reason::TOMBSTONE);
        let again = second.of_backend().flags(SYN).seq(second.backend_isn);
        world.on_backend_side(&again).left(Reason::ABANDONED);
        assert_eq!(told(&world), []);
        world.client_sends(first, first.of_client(), Reason::FORWARD);
    }
}

#[test]
fn least_request_prefers_the_backend_with_fewer_connections() {
    for rung in RUNGS {
        for v6 in BOTH {
            let world = World::new(rung, LEAST_REQUEST, 2);
            for n in 1..=40 {
                world.connect(client(v6, n), 1_000);
            }
            let active = world.tables.active.lock().unwrap();
            let of_backends = active.iter().filter(|(index, _)| **index < active_of_cluster(0));
            let counts: Vec<u64> = of_backends.map(|(_, active)| active.both).collect();
            // Half of the draws have two choices, and those go to the one that is behind.
            assert_eq!(counts.iter().sum::<u64>(), 40);
            assert!(counts.len() == 2 && counts[0].abs_diff(counts[1]) <= 6, "{counts:?}");
        }
    }
}
