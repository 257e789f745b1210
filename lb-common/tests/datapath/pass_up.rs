//! SYNs that go up to the proxy, and what keeps their connections there; limits of the tables.

use crate::table::{Family, flow, insert};
use crate::world::{BOTH, RUNGS, World, client_packet};
use lb_common::balance::policy::ROUND_ROBIN;
use lb_common::flow::mark;
use lb_common::host::HostTables;
use lb_common::host_packets::PacketBuilder;
use lb_common::host_scenario::vip;
use lb_common::host_scenario::{backend_index, client, next_hop};
use lb_common::table::Place;
use lb_common::tables::{backend, service};
use lb_common::tcp::flags::{ACK, FIN, SYN};
use lb_common::{Key, Reason, Rung, Tables, V4, V6};
use std::net::IpAddr;

fn syn(v6: bool, n: u16, isn: u32) -> PacketBuilder {
    client_packet(client(v6, n)).flags(SYN).seq(isn)
}

/// Makes the world refuse SYNs, and gives the reason that is to be expected.
type Obstacle = (fn(&mut World, bool), Reason);

const OBSTACLES: [Obstacle; 11] = [
    (
        |world, _| {
            world.tables.v4.services.values_mut().for_each(|service| service.flags |= service::DRAINING);
            world.tables.v6.services.values_mut().for_each(|service| service.flags |= service::DRAINING);
        },
        Reason::DRAINING,
    ),
    (|world, _| world.tables.settings.max_flows = 0, Reason::TABLE_FULL),
    (|world, v6| world.tables.windows[v6 as usize].count = 0, Reason::NO_BACKEND),
    (|world, _| world.tables.slots.fill(0), Reason::NO_BACKEND),
    (|world, _| each_backend(world, |backend| backend.flags = 0), Reason::NO_BACKEND),
    (|world, _| each_backend(world, |backend| backend.flags |= backend::PROXY_ONLY), Reason::PROXY_BACKEND),
    (|world, _| each_backend(world, |backend| backend.flags ^= backend::V6), Reason::PROXY_BACKEND),
    (|world, _| each_backend(world, |backend| backend.hop = 0), Reason::NO_NEXT_HOP),
    (|world, _| world.tables.next_hops[next_hop::ROUTER as usize].flags = 0, Reason::NO_ROUTE),
    (
        |world, _| {
            world.tables.v4.routes.clear();
            world.tables.v6.routes.clear();
        },
        Reason::NO_ROUTE,
    ),
    (|world, _| world.tables.settings.snat_ports = 0, Reason::NO_PORT),
];

fn each_backend(world: &mut World, change: fn(&mut lb_common::tables::Backend)) {
    world.tables.backends.iter_mut().skip(1).for_each(change);
}

/// All of them on both rungs and in both families.
fn obstacles() -> impl Iterator<Item = (Rung, bool, Obstacle)> {
    RUNGS.into_iter().flat_map(|rung| {
        BOTH.into_iter().flat_map(move |v6| OBSTACLES.into_iter().map(move |obstacle| (rung, v6, obstacle)))
    })
}

#[test]
fn a_syn_that_went_up_is_followed_by_its_repetitions() {
    for (rung, v6, (obstruct, reason)) in obstacles() {
        let mut world = World::new(rung, ROUND_ROBIN, 2);
        let open = World::new(rung, ROUND_ROBIN, 2);
        obstruct(&mut world, v6);
        world.on_client_side(&syn(v6, 1, 7)).left(reason);
        assert_eq!((world.half_open(v6), world.established(v6)), (1, 0));
        // The way is free again, but this connection is the proxy's.
        world.tables.settings = open.tables.settings;
        world.tables.windows = open.tables.windows.clone();
        world.tables.slots = open.tables.slots.clone();
        world.tables.backends = open.tables.backends.clone();
        world.tables.next_hops = open.tables.next_hops.clone();
        world.tables.v4.routes = open.tables.v4.routes.clone();
        world.tables.v6.routes = open.tables.v6.routes.clone();
        world.tables.v4.services = open.tables.v4.services.clone();
        world.tables.v6.services = open.tables.v6.services.clone();
        for second in 0..3 {
            world.wait(20);
            world.on_client_side(&syn(v6, 1, 7 + second)).left(Reason::TOMBSTONE);
        }
        world.on_client_side(&client_packet(client(v6, 1)).seq(8).ack(1)).left(Reason::TOMBSTONE);
        // Others are not affected; and in the end the tuple is free for a new connection.
        world.connect(client(v6, 2), 1);
        world.wait(41);
        world.connect(client(v6, 1), 1);
    }
}

/// A new SYN on the tuple of an ended flow goes up: the old entry must not take the packets that follow.
#[test]
fn an_ended_flow_does_not_capture_a_proxied_connection() {
    for (rung, v6, (obstruct, reason)) in obstacles() {
        let mut world = World::new(rung, ROUND_ROBIN, 2);
        let old = world.connect(client(v6, 1), 1_000);
        world.client_sends(&old, old.of_client().flags(FIN | ACK), Reason::FORWARD);
        world.backend_sends(&old, old.of_backend().flags(FIN | ACK), Reason::REVERSE);
        obstruct(&mut world, v6);
        world.on_client_side(&syn(v6, 1, 900_000)).left(reason);
        world.on_client_side(&client_packet(client(v6, 1)).seq(900_001).ack(5)).left(Reason::TOMBSTONE);
        world
            .on_client_side(&client_packet(client(v6, 1)).seq(900_001).ack(5).payload(b"x"))
            .left(Reason::TOMBSTONE);
    }
}

/// A repeated SYN whose first copy went to a backend stays with it, whatever stands in the way of a second attempt.
#[test]
fn a_syn_that_was_sent_on_does_not_go_up() {
    for (rung, v6, (obstruct, reason)) in obstacles() {
        // These stand in the way of the first backend as well.
        if reason == Reason::NO_ROUTE {
            continue;
        }
        let mut world = World::new(rung, ROUND_ROBIN, 2);
        let connection = world.open(client(v6, 1), 7, Reason::NEW_FLOW);
        obstruct(&mut world, v6);
        for _ in 0..4 {
            world.client_sends(&connection, syn(v6, 1, 7), Reason::SYN_REPEATED);
        }
        world.answer(&connection);
        world.client_sends(&connection, connection.of_client(), Reason::ESTABLISHED);
    }
}

/// Obstacles that lie behind the established flows leave them alone.
#[test]
fn established_flows_do_not_mind() {
    for (rung, v6, (obstruct, reason)) in obstacles() {
        if reason == Reason::NO_ROUTE {
            continue;
        }
        let mut world = World::new(rung, ROUND_ROBIN, 2);
        let connection = world.connect(client(v6, 1), 7);
        obstruct(&mut world, v6);
        world.client_sends(&connection, connection.of_client().payload(b"up"), Reason::FORWARD);
        world.backend_sends(&connection, connection.of_backend().payload(b"down"), Reason::REVERSE);
    }
}

/// A backend that only the proxy can reach has its turn, and then the next one has: 2 of 3 connections stay.
#[test]
fn round_robin_goes_on_behind_a_proxied_turn() {
    for rung in RUNGS {
        for v6 in BOTH {
            let mut world = World::new(rung, ROUND_ROBIN, 3);
            let index = backend_index(v6, 3, 1) as usize;
            world.tables.backends[index].flags |= backend::PROXY_ONLY;
            for round in 0..4 {
                assert_eq!(world.open(client(v6, round * 3), 1, Reason::NEW_FLOW).backend, 0);
                world.on_client_side(&syn(v6, round * 3 + 1, 1)).left(Reason::PROXY_BACKEND);
                assert_eq!(world.open(client(v6, round * 3 + 2), 1, Reason::NEW_FLOW).backend, 2);
            }
        }
    }
}

#[test]
fn ports_run_out_one_by_one() {
    for rung in RUNGS {
        for v6 in BOTH {
            let mut world = World::new(rung, ROUND_ROBIN, 1);
            world.tables.settings.snat_ports = 16;
            let mut ports = std::collections::HashSet::new();
            let mut refused = 0;
            for n in 0..300 {
                let outcome = world.on_client_side(&syn(v6, n, 1));
                if outcome.reason == Reason::NEW_FLOW {
                    let connection = crate::world::Connection::of_syn(client(v6, n), 1, &outcome.frame);
                    assert!(ports.insert(connection.snat), "{} twice", connection.snat);
                } else {
                    outcome.left(Reason::NO_PORT);
                    refused += 1;
                }
            }
            assert_eq!((ports.len(), refused), (16, 284));
            // A tombstone for each of the refused, two entries for each of the others, nothing else.
            assert_eq!(world.half_open(v6), 284 + 2 * 16);
        }
    }
}

/// Handshakes under way when the limit is reached all find room: the map is larger than the limit by as many.
#[test]
fn promotion_finds_room_at_the_limit() {
    for rung in RUNGS {
        for v6 in BOTH {
            let mut world = World::new(rung, ROUND_ROBIN, 2);
            world.tables.settings.max_flows = 3;
            let connections: Vec<_> =
                (0..300).map(|n| world.open(client(v6, n), 5, Reason::NEW_FLOW)).collect();
            for connection in &connections {
                world.answer(connection);
                world.client_sends(connection, connection.of_client(), Reason::ESTABLISHED);
            }
            assert_eq!((world.live(v6), world.established(v6), world.half_open(v6)), (300, 600, 0));
            world.on_client_side(&syn(v6, 301, 1)).left(Reason::TABLE_FULL);
        }
    }
}

/// Fills both sets of a key with active flows.
fn crowd<A: Family>(world: &mut World, key: &Key<A>)
where
    HostTables: Tables<A>,
{
    const FLOWS: u32 = 256;
    A::of_mut(&mut world.tables).resize(FLOWS);
    let (sets, now) = (Tables::<A>::flow_sets(&world.tables), world.now);
    let of = |key: &Key<A>| {
        let place = Place::of(key, 0, sets);
        [place.first, place.second(sets)]
    };
    for number in 0..100_000 {
        let flow = flow::<A>(number, now, mark::ESTABLISHED);
        if of(&flow.key).iter().all(|set| of(key).contains(set)) {
            insert(&world.tables, &flow, now);
        }
    }
    let used = of(key).map(|set| {
        A::of(&world.tables).sets()[set as usize].flows.iter().filter(|flow| flow.word != 0).count()
    });
    assert_eq!(used, [lb_common::table::WAYS; 2]);
}

/// A SYN whose own entry finds no room is not dropped as if another copy of it had been faster: the proxy can have it, each
/// time it comes. The port that it had got is free again.
#[test]
fn a_flow_whose_place_is_crowded_goes_up() {
    for rung in RUNGS {
        for v6 in BOTH {
            let mut world = World::new(rung, ROUND_ROBIN, 2);
            let (client, server) = (client(v6, 1), vip(v6));
            let ports = (client.port().to_be(), server.port().to_be());
            match (client.ip(), server.ip()) {
                (IpAddr::V4(c), IpAddr::V4(s)) => {
                    crowd(&mut world, &Key::new(V4::from(c), V4::from(s), ports.0, ports.1))
                }
                (IpAddr::V6(c), IpAddr::V6(s)) => {
                    crowd(&mut world, &Key::new(V6::from(c), V6::from(s), ports.0, ports.1))
                }
                _ => unreachable!("of one family"),
            }
            let before = world.state();
            for _ in 0..2 {
                world.on_client_side(&syn(v6, 1, 5)).left(Reason::TABLE_FULL);
            }
            let without_cursors = |state: Vec<String>| -> Vec<String> {
                state.into_iter().filter(|line| !line.starts_with("cursor")).collect()
            };
            assert_eq!(without_cursors(world.state()), without_cursors(before));
        }
    }
}
