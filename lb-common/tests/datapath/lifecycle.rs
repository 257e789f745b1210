//! A flow from its SYN to the next one on its tuple, on both rungs and in both families. Every packet that is sent on
//! is compared with one built from scratch, full checksums included.

use crate::world::{BOTH, Connection, FlowFacts, RUNGS, World, client_packet};
use lb_common::balance::policy::ROUND_ROBIN;
use lb_common::host_packets::PacketBuilder;
use lb_common::host_scenario::{
    BACKEND_SIDE, CLIENT_SIDE, backend_address, backend_index, client, neighbour, next_hop, vip,
};
use lb_common::tables::{HOP_CONFIRMATION, hop};
use lb_common::tcp::flags::{ACK, FIN, RST, SYN};
use lb_common::tcp::{self, state};
use lb_common::{Reason, Rung};

/// Both worlds of both families.
fn worlds(backends: u32) -> impl Iterator<Item = (World, bool)> {
    RUNGS.into_iter().flat_map(move |rung| BOTH.map(|v6| (World::new(rung, ROUND_ROBIN, backends), v6)))
}

#[test]
fn whole_life() {
    for (world, v6) in worlds(3) {
        let connection = world.connect(client(v6, 1), 1_000);
        assert_eq!((world.established(v6), world.half_open(v6), world.live(v6)), (2, 0, 1));

        let request = connection.of_client().payload(b"GET / HTTP/1.1\r\n\r\n");
        world.client_sends(&connection, request, Reason::FORWARD);
        let response = connection.of_backend().ack(1_019).payload(&[7; 1399]);
        world.backend_sends(&connection, response, Reason::REVERSE);
        let fin = connection.of_client().seq(1_019).ack(connection.backend_isn + 1_400).flags(FIN | ACK);
        world.client_sends(&connection, fin, Reason::FORWARD);
        assert!(!tcp::is_closing(forward(&world, &connection).state));
        let fin = connection.of_backend().seq(connection.backend_isn + 1_400).ack(1_020).flags(FIN | ACK);
        world.backend_sends(&connection, fin, Reason::REVERSE);
        let last = connection.of_client().seq(1_020).ack(connection.backend_isn + 1_401);
        world.client_sends(&connection, last, Reason::FORWARD);

        let (forward, reverse) = (forward(&world, &connection), reverse(&world, &connection));
        let both = state::CLIENT_FIN | state::BACKEND_FIN;
        assert_eq!((forward.state, reverse.state), (both, both));
        assert_eq!(forward.generation, reverse.generation);
        // SYN, ACK, request, FIN, ACK; SYN-ACK, response, FIN.
        assert_eq!((forward.packets, reverse.packets), (5, 3));
        assert_eq!((forward.payload, reverse.payload), (18, 1_399));
        let opened =
            *world.tables.opened.lock().unwrap().get(&backend_index(v6, 3, connection.backend)).unwrap();
        assert_eq!((opened.xdp, opened.tc), if world.rung == Rung::Xdp { (1, 0) } else { (0, 1) });
    }
}

fn forward(world: &World, connection: &Connection) -> FlowFacts {
    world.flow_of(connection.client, vip(connection.v6())).expect("a forward entry")
}

fn reverse(world: &World, connection: &Connection) -> FlowFacts {
    world.flow_of(connection.backend_address(), connection.snat).expect("a reverse entry")
}

/// Both ends send a FIN, the client first.
fn close(world: &World, connection: &Connection) {
    world.client_sends(connection, connection.of_client().flags(FIN | ACK), Reason::FORWARD);
    world.backend_sends(connection, connection.of_backend().flags(FIN | ACK), Reason::REVERSE);
}

#[test]
fn it_leaves_by_the_right_interface() {
    for (world, v6) in worlds(1) {
        let connection = world.connect(client(v6, 1), 5);
        let outcome = world.on_client_side(&connection.of_client());
        assert_eq!(outcome.sent, Some((BACKEND_SIDE, false)));
        let outcome = world.on_backend_side(&connection.of_backend());
        assert_eq!(outcome.sent, Some((CLIENT_SIDE, false)));
    }
}

#[test]
fn data_completes_the_handshake_where_the_ack_was_lost() {
    for (world, v6) in worlds(1) {
        let connection = world.open(client(v6, 1), 77, Reason::NEW_FLOW);
        world.answer(&connection);
        // The second segment of the first flight.
        let data = connection.of_client().seq(77 + 1 + 1_400).payload(b"second");
        world.client_sends(&connection, data, Reason::ESTABLISHED);
        assert_eq!(world.established(v6), 2);
    }
}

#[test]
fn sequence_numbers_wrap() {
    for (world, v6) in worlds(1) {
        let isn = u32::MAX - 3;
        let connection = world.open(client(v6, 1), isn, Reason::NEW_FLOW);
        let connection = Connection { backend_isn: u32::MAX, ..connection };
        let syn_ack = connection.of_backend().flags(SYN).seq(u32::MAX).ack(isn.wrapping_add(1));
        world.backend_sends(&connection, syn_ack, Reason::SYN_ACK);
        world.client_sends(&connection, connection.of_client().payload(&[1; 100]), Reason::ESTABLISHED);
        world.backend_sends(&connection, connection.of_backend().payload(&[1; 200]), Reason::REVERSE);
        assert_eq!(forward(&world, &connection).payload, 100);
        assert_eq!(reverse(&world, &connection).payload, 200);
        let reset = connection.of_backend().seq(200).flags(RST);
        world.backend_sends(&connection, reset, Reason::REVERSE);
        assert!(tcp::is_closing(forward(&world, &connection).state));
    }
}

#[test]
fn a_new_syn_reuses_the_tuple_of_an_ended_flow() {
    for (world, v6) in worlds(2) {
        let old = world.connect(client(v6, 1), 1_000);
        close(&world, &old);
        let new = world.connect(client(v6, 1), 900_000);
        // The port of the old flow rests: its reverse entry is still there.
        assert_ne!((new.backend, new.snat), (old.backend, old.snat));
        assert_eq!(world.established(v6), 3);
        world.backend_sends(&old, old.of_backend().flags(FIN | ACK), Reason::REVERSE);
        world.client_sends(&new, new.of_client().payload(b"new"), Reason::FORWARD);
        assert_eq!(forward(&world, &new).generation, reverse(&world, &new).generation);
        assert_ne!(reverse(&world, &old).generation, reverse(&world, &new).generation);
    }
}

#[test]
fn a_new_syn_to_the_same_backend_takes_another_port() {
    for (world, v6) in worlds(1) {
        let old = world.connect(client(v6, 1), 1_000);
        close(&world, &old);
        let new = world.connect(client(v6, 1), 900_000);
        assert_eq!(new.backend, old.backend);
        assert_ne!(new.snat, old.snat);
    }
}

#[test]
fn a_syn_on_a_living_flow_goes_to_its_backend() {
    for (world, v6) in worlds(3) {
        let connection = world.connect(client(v6, 1), 1_000);
        let before = world.established(v6);
        for isn in [1_000, 77_777] {
            let syn = client_packet(connection.client).flags(SYN).seq(isn);
            world.client_sends(&connection, syn, Reason::FORWARD);
        }
        // Half closed is alive.
        world.backend_sends(&connection, connection.of_backend().flags(FIN | ACK), Reason::REVERSE);
        world.client_sends(&connection, client_packet(connection.client).flags(SYN).seq(9), Reason::FORWARD);
        assert_eq!((world.established(v6), world.half_open(v6)), (before, 0));
    }
}

#[test]
fn a_reset_counts_in_window_only_and_is_undone_by_data() {
    for (world, v6) in worlds(1) {
        let connection = world.connect(client(v6, 1), 1_000);
        let reset = |seq: u32| connection.of_client().seq(seq).flags(RST);
        for outside in [1_001u32.wrapping_sub(0x10000), 1_001 + 0x10000, 0x8000_0000] {
            world.client_sends(&connection, reset(outside), Reason::FORWARD);
            assert_eq!(forward(&world, &connection).state, 0, "{outside:x}");
        }
        for inside in [1_001u32.wrapping_sub(0xffff), 1_000, 1_003, 1_001 + 0xffff] {
            world.client_sends(&connection, reset(inside), Reason::FORWARD);
            assert_eq!(forward(&world, &connection).state, state::RESET);
            assert_eq!(reverse(&world, &connection).state, state::RESET);
            // An acknowledgement alone proves nothing, data does.
            world.client_sends(&connection, connection.of_client(), Reason::FORWARD);
            assert_eq!(forward(&world, &connection).state, state::RESET);
            world.backend_sends(&connection, connection.of_backend().payload(b"on"), Reason::REVERSE);
            assert_eq!((forward(&world, &connection).state, reverse(&world, &connection).state), (0, 0));
        }
        // What the backend accepts is the end: data that follows was on its way.
        world.client_sends(&connection, reset(1_001), Reason::FORWARD);
        world.backend_sends(&connection, connection.of_backend().payload(b"on"), Reason::REVERSE);
        let states = (forward(&world, &connection).state, reverse(&world, &connection).state);
        assert_eq!(states, (state::RESET, state::RESET));
        let next = world.open(connection.client, 500_000, Reason::NEW_FLOW);
        assert_ne!(next.snat, connection.snat);
    }
}

#[test]
fn a_backend_that_closes_first_is_remembered() {
    for (world, v6) in worlds(1) {
        let connection = world.connect(client(v6, 1), 1_000);
        world.backend_sends(&connection, connection.of_backend().flags(FIN | ACK), Reason::REVERSE);
        world.client_sends(&connection, connection.of_client().flags(FIN | ACK), Reason::FORWARD);
        let closed = reverse(&world, &connection).state;
        assert_eq!(closed, state::BACKEND_FIN | state::BACKEND_FIN_FIRST | state::CLIENT_FIN);
        assert_eq!(tcp::lifetime(closed, 1), 60 * crate::world::SECOND);
    }
}

#[test]
fn payload_of_a_syn_is_counted_once() {
    for (world, v6) in worlds(1) {
        let client = client(v6, 1);
        let syn = client_packet(client).flags(SYN).seq(100).payload(b"early");
        let frame = world.on_client_side(&syn).forwarded(Reason::NEW_FLOW);
        let connection = Connection::of_syn(client, 100, &frame);
        assert_eq!(frame, connection.at_backend(&syn).build());
        let syn_ack = connection.of_backend().flags(SYN).seq(connection.backend_isn).ack(106);
        world.backend_sends(&connection, syn_ack, Reason::SYN_ACK);
        world.client_sends(
            &connection,
            connection.of_client().seq(106).payload(b"late"),
            Reason::ESTABLISHED,
        );
        assert_eq!(forward(&world, &connection).payload, 9);
    }
}

#[test]
fn the_last_hop_is_not_ours() {
    for (world, v6) in worlds(1) {
        let syn = client_packet(client(v6, 1)).flags(SYN).seq(1).ttl(1);
        let before = world.state();
        world.on_client_side(&syn).expired(world.rung);
        assert_eq!(world.state(), before);
        let connection = world.connect(client(v6, 1), 1_000);
        let before = world.state();
        for ttl in [0, 1] {
            world.on_client_side(&connection.of_client().ttl(ttl)).expired(world.rung);
            world.on_backend_side(&connection.of_backend().ttl(ttl)).expired(world.rung);
        }
        assert_eq!(world.state(), before);
        let two = connection.of_client().ttl(2);
        let frame = world.on_client_side(&two).forwarded(Reason::FORWARD);
        assert_eq!(frame, connection.at_backend(&two).ttl(1).build());
    }
}

/// An expired TTL promotes nothing: the next packet of the handshake does.
#[test]
fn an_expired_ttl_in_the_handshake_changes_nothing() {
    for (world, v6) in worlds(1) {
        let connection = world.open(client(v6, 1), 7, Reason::NEW_FLOW);
        let syn_ack = connection.of_backend().flags(SYN).seq(connection.backend_isn);
        let before = world.state();
        world.on_backend_side(&syn_ack.ttl(1)).expired(world.rung);
        assert_eq!(world.state(), before);
        world.answer(&connection);
        let before = world.state();
        world.on_client_side(&connection.of_client().ttl(1)).expired(world.rung);
        assert_eq!(world.state(), before);
        world.client_sends(&connection, connection.of_client(), Reason::ESTABLISHED);
    }
}

/// What XDP sees first changes nothing: TC gets the packet, the tables and the choice as they were.
#[test]
fn xdp_hands_over_without_a_trace() {
    for v6 in BOTH {
        // In this world XDP may send nowhere.
        let mut world = World::new(Rung::Tc, ROUND_ROBIN, 2);
        let step = |world: &mut World, packet: &PacketBuilder, ingress: u32, reason: Reason| {
            let before = world.state();
            world.rung = Rung::Xdp;
            world.receive(ingress, packet.build()).left(Reason::TO_TC);
            assert_eq!(world.state(), before, "XDP changed something before {}", reason.name());
            world.rung = Rung::Tc;
            world.receive(ingress, packet.build()).forwarded(reason)
        };
        let client = client(v6, 1);
        let syn = client_packet(client).flags(SYN).seq(1_000);
        let frame = step(&mut world, &syn, CLIENT_SIDE, Reason::NEW_FLOW);
        let retried = step(&mut world, &syn, CLIENT_SIDE, Reason::SYN_RETRIED);
        assert_ne!(
            Connection::of_syn(client, 1, &frame).backend,
            Connection::of_syn(client, 1, &retried).backend
        );
        let connection = Connection::of_syn(client, 1_000, &retried);
        let syn_ack = connection.of_backend().flags(SYN).seq(connection.backend_isn);
        step(&mut world, &syn_ack, BACKEND_SIDE, Reason::SYN_ACK);
        step(&mut world, &syn, CLIENT_SIDE, Reason::SYN_REPEATED);
        step(&mut world, &connection.of_client(), CLIENT_SIDE, Reason::ESTABLISHED);
        step(&mut world, &connection.of_client().flags(FIN | ACK), CLIENT_SIDE, Reason::FORWARD);
        step(&mut world, &connection.of_backend().flags(FIN | ACK), BACKEND_SIDE, Reason::REVERSE);
        step(&mut world, &syn.seq(9_000), CLIENT_SIDE, Reason::NEW_FLOW);
    }
}

/// A packet that goes back out of its own interface needs no redirect: XDP sends it in any case.
#[test]
fn xdp_sends_back_by_the_interface_of_arrival() {
    for v6 in BOTH {
        let mut world = World::new(Rung::Tc, ROUND_ROBIN, 1);
        let backend = next_hop::backend(0) as usize;
        world.tables.next_hops[backend].ifindex = CLIENT_SIDE;
        world.rung = Rung::Xdp;
        let outcome = world.on_client_side(&client_packet(client(v6, 1)).flags(SYN));
        assert_eq!((outcome.reason, outcome.sent), (Reason::NEW_FLOW, Some((CLIENT_SIDE, false))));
    }
}

/// Without the agent's word for a next hop TC asks the kernel's neighbour table, XDP leaves the packet to TC.
#[test]
fn an_unconfirmed_next_hop_falls_back_to_the_neighbour_table() {
    for (mut world, v6) in worlds(1) {
        let connection = world.connect(client(v6, 1), 1_000);
        for confirmed in
            [world.now - HOP_CONFIRMATION, world.now - HOP_CONFIRMATION + 1, world.now, world.now + 4_000_000]
        {
            for hop in &mut world.tables.next_hops {
                hop.confirmed = confirmed;
            }
            // The agent's clock is exact, the datapath's lags by up to a tick.
            let good = confirmed > world.now - HOP_CONFIRMATION;
            let outcome = world.on_client_side(&connection.of_client());
            match (good, world.rung) {
                (true, _) => assert_eq!(outcome.sent, Some((BACKEND_SIDE, false))),
                (false, Rung::Tc) => assert_eq!(outcome.sent, Some((BACKEND_SIDE, true))),
                (false, Rung::Xdp) => outcome.left(Reason::TO_TC),
            }
        }
        for hop in &mut world.tables.next_hops {
            (hop.confirmed, hop.flags) = (world.now, hop.flags & !hop::RESOLVED);
        }
        let outcome = world.on_client_side(&connection.of_client());
        match world.rung {
            Rung::Tc => assert_eq!(outcome.sent, Some((BACKEND_SIDE, true))),
            Rung::Xdp => outcome.left(Reason::TO_TC),
        }
        for hop in &mut world.tables.next_hops {
            hop.flags = 0;
        }
        world.on_client_side(&connection.of_client()).left(Reason::HOP_GONE);
    }
}

/// A neighbour is answered at the MAC address and on the VLAN that it wrote from, and only there.
#[test]
fn neighbours_are_learned_from_their_syn() {
    use lb_common::host_scenario::{NEIGHBOURS_VLAN, mac};
    const NEIGHBOUR: [u8; 6] = [2, 9, 9, 9, 9, 9];
    for (world, v6) in worlds(1) {
        let client = neighbour(v6, 1);
        // A priority of 5 besides the VLAN id.
        let from =
            |packet: PacketBuilder| packet.macs(NEIGHBOUR, mac::CLIENT_SIDE).tag(5 << 13 | NEIGHBOURS_VLAN);
        let syn = from(client_packet(client).flags(SYN).seq(4));
        let frame = world.on_client_side(&syn).forwarded(Reason::NEW_FLOW);
        let connection = Connection::of_syn(client, 4, &frame);
        assert_eq!(frame, connection.at_backend(&syn).untagged().build());
        let syn_ack = connection.of_backend().flags(SYN).seq(connection.backend_isn);
        let frame = world.on_backend_side(&syn_ack).forwarded(Reason::SYN_ACK);
        let expected =
            connection.at_client(&syn_ack).macs(mac::CLIENT_SIDE, NEIGHBOUR).tag(5 << 13 | NEIGHBOURS_VLAN);
        assert_eq!(frame, expected.build());
        world.on_client_side(&from(connection.of_client())).forwarded(Reason::ESTABLISHED);
        let response = connection.of_backend().payload(b"response");
        let frame = world.on_backend_side(&response).forwarded(Reason::REVERSE);
        let expected =
            connection.at_client(&response).macs(mac::CLIENT_SIDE, NEIGHBOUR).tag(5 << 13 | NEIGHBOURS_VLAN);
        assert_eq!(frame, expected.build());
    }
}

/// A neighbour's SYN on another VLAN than its route has is not learned: the kernel resolves it.
#[test]
fn a_neighbour_that_comes_another_way_is_resolved() {
    for (world, v6) in worlds(1) {
        let client = neighbour(v6, 1);
        let frame =
            world.on_client_side(&client_packet(client).tag(43).flags(SYN)).forwarded(Reason::NEW_FLOW);
        let connection = Connection::of_syn(client, 0, &frame);
        let outcome = world.on_backend_side(&connection.of_backend().flags(SYN).seq(connection.backend_isn));
        match world.rung {
            Rung::Tc => assert_eq!(outcome.sent, Some((CLIENT_SIDE, true))),
            Rung::Xdp => outcome.left(Reason::TO_TC),
        }
    }
}

#[test]
fn clients_do_not_share_ports() {
    for (world, v6) in worlds(1) {
        let mut ports = std::collections::HashSet::new();
        for n in 0..200 {
            let connection = world.connect(client(v6, n), n as u32);
            assert_eq!(connection.backend_address(), backend_address(v6, 0));
            assert!(ports.insert(connection.snat));
        }
        assert_eq!((world.established(v6), world.live(v6)), (400, 200));
    }
}
