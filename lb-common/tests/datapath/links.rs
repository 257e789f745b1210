//! Links of other kinds, and routes that move: devices without an Ethernet header, frames of several buffers, open flows
//! whose way back changes.

use lb_common::balance::policy::ROUND_ROBIN;
use lb_common::host::{Frame, run, run_bare};
use lb_common::host_icmp::{Complaint, icmp_error};
use lb_common::host_packets::verify_checksums;
use lb_common::host_scenario::{
    BACKEND_SIDE, CLIENT_SIDE, backend_address, client, mac, neighbour, next_hop, snat, vip,
};
use lb_common::parse::{Tags, ethertype};
use lb_common::tables::hop;
use lb_common::tcp::flags::{ACK, SYN};
use lb_common::{Reason, Rung};

use crate::world::{BOTH, World, client_packet};

/// A tunnel to the clients.
const TUNNEL: u32 = 9;

/// The world with the clients behind a device without an Ethernet header.
fn tunnelled(rung: Rung) -> World {
    let mut world = World::new(rung, ROUND_ROBIN, 1);
    let router = &mut world.tables.next_hops[next_hop::ROUTER as usize];
    (router.ifindex, router.device) = (TUNNEL, TUNNEL);
    router.flags = hop::USED | hop::L3;
    (router.mac, router.source_mac) = ([0; 6], [0; 6]);
    world
}

/// The frame without its Ethernet header.
fn bare(frame: Frame) -> Frame {
    Frame(frame.0[14..].to_vec())
}

fn ethertype_of(v6: bool) -> u16 {
    if v6 { ethertype::IPV6 } else { ethertype::IPV4 }
}

#[test]
fn a_flow_through_a_device_without_an_ethernet_header() {
    for v6 in BOTH {
        let mut world = tunnelled(Rung::Tc);
        let from_tunnel = |world: &World, frame: Frame| {
            let mut frame = bare(frame);
            let result = run_bare(&world.env(TUNNEL), ethertype_of(v6), &mut frame, &world.tables);
            (result, frame)
        };
        let client = client(v6, 1);
        let syn = client_packet(client).flags(SYN).seq(1).mss(1200);
        let (result, frame) = from_tunnel(&world, syn.build());
        assert_eq!((result.reason, result.sent), (Reason::NEW_FLOW, Some((BACKEND_SIDE, false))));
        let connection = crate::world::Connection::of_syn(client, 1, &frame);
        assert_eq!(frame, connection.at_backend(&syn).build(), "with an Ethernet header now");

        // Towards the tunnel the header does not matter: the kernel takes it off.
        let syn_ack = connection.of_backend().flags(SYN).seq(connection.backend_isn).ack(2).mss(1200);
        let outcome = world.on_backend_side(&syn_ack);
        assert_eq!(outcome.sent, Some((TUNNEL, false)), "never by neighbour");
        let frame = outcome.forwarded(Reason::SYN_ACK);
        assert_eq!(bare(frame), bare(connection.at_client(&syn_ack).build()));

        let ack = connection.of_client().flags(ACK);
        let (result, frame) = from_tunnel(&world, ack.build());
        assert_eq!(result.reason, Reason::ESTABLISHED);
        assert_eq!(frame, connection.at_backend(&ack).build());

        // Onto a VLAN, and by the kernel's neighbour code.
        let tags = Tags { tci: [5, 6], count: 2, in_frame: 2, outer: ethertype::QINQ };
        let backend = next_hop::backend(0) as usize;
        world.tables.next_hops[backend].tags = tags;
        let data = connection.of_client().payload(b"up");
        let (_, frame) = from_tunnel(&world, data.build());
        assert_eq!(frame, connection.at_backend(&data).service_tag(5).tag(6).build());
        world.tables.next_hops[backend].flags &= !hop::RESOLVED;
        let (result, frame) = from_tunnel(&world, data.build());
        assert_eq!((result.reason, result.sent), (Reason::FORWARD, Some((BACKEND_SIDE, true))));
        assert_eq!(frame, connection.at_backend(&data).build());

        // Nobody has to vouch for a neighbour that there is not.
        world.wait(1000);
        world.tables.next_hops[next_hop::ROUTER as usize].confirmed = 0;
        let outcome = world.on_backend_side(&connection.of_backend());
        assert_eq!(outcome.sent, Some((TUNNEL, false)));
    }
}

#[test]
fn errors_and_answers_on_a_device_without_an_ethernet_header() {
    for v6 in BOTH {
        let mut world = World::new(Rung::Tc, ROUND_ROBIN, 1);
        let connection = world.connect(client(v6, 1), 1);
        let from_tunnel = |world: &World, frame: Frame| {
            let mut frame = bare(frame);
            let result = run_bare(&world.env(TUNNEL), ethertype_of(v6), &mut frame, &world.tables);
            (result, frame)
        };
        // Expired, from the tunnel: back into it.
        let expired = connection.of_client().ttl(1);
        let (result, frame) = from_tunnel(&world, expired.build());
        assert_eq!((result.reason, result.sent), (Reason::TTL_ANSWERED, Some((TUNNEL, false))));
        let vip = vip(v6).ip();
        let answer = icmp_error(vip, connection.client.ip(), Complaint::Expired, expired.quote(20));
        assert_eq!(frame, bare(answer.build()));
        // An error from the tunnel, to the backend.
        let down = connection.of_backend();
        let error = icmp_error(
            connection.client.ip(),
            vip,
            Complaint::TooBig(1300),
            connection.at_client(&down).quote(8),
        );
        let (result, frame) = from_tunnel(&world, error.build());
        assert_eq!((result.reason, result.sent), (Reason::ICMP_TRANSLATED, Some((BACKEND_SIDE, false))));
        verify_checksums(&frame.0).unwrap();
        let quote = down.clone().ttl(63).quote(8);
        let translated = icmp_error(snat(v6), backend_address(v6, 0).ip(), Complaint::TooBig(1300), quote)
            .macs(mac::BACKEND_SIDE, mac::backend(0))
            .ttl(63);
        assert_eq!(frame, translated.build());
        // From one such device to another nothing is put in front.
        let backend = &mut world.tables.next_hops[next_hop::backend(0) as usize];
        backend.flags = hop::USED | hop::L3;
        let data = connection.of_client().payload(b"up");
        let (result, frame) = from_tunnel(&world, data.build());
        assert_eq!(result.sent, Some((BACKEND_SIDE, false)));
        assert_eq!(frame, bare(connection.at_backend(&data).build()));
    }
}

/// A client whose address is on the link of such a device has no MAC address to learn.
#[test]
fn nothing_is_learned_from_a_device_without_an_ethernet_header() {
    for v6 in BOTH {
        let mut world = World::new(Rung::Tc, ROUND_ROBIN, 1);
        let neighbours = &mut world.tables.next_hops[next_hop::NEIGHBOURS as usize];
        (neighbours.ifindex, neighbours.device, neighbours.tags) = (TUNNEL, TUNNEL, Tags::default());
        neighbours.flags = hop::USED | hop::ON_LINK | hop::L3;
        let syn = client_packet(neighbour(v6, 1)).flags(SYN).seq(1);
        let mut frame = bare(syn.build());
        let result = run_bare(&world.env(TUNNEL), ethertype_of(v6), &mut frame, &world.tables);
        assert_eq!(result.reason, Reason::NEW_FLOW);
        let connection = crate::world::Connection::of_syn(neighbour(v6, 1), 1, &frame);
        let syn_ack = connection.of_backend().flags(SYN).seq(connection.backend_isn).ack(2);
        assert_eq!(world.on_backend_side(&syn_ack).sent, Some((TUNNEL, false)));
    }
}

#[test]
fn xdp_does_not_send_to_a_device_without_an_ethernet_header() {
    for v6 in BOTH {
        let world = tunnelled(Rung::Xdp);
        let frame = world.open(client(v6, 1), 1, Reason::NEW_FLOW);
        let syn_ack = frame.of_backend().flags(SYN).seq(frame.backend_isn).ack(2);
        world.on_backend_side(&syn_ack).left(Reason::TO_TC);
    }
}

/// A driver that does not send frames of several buffers drops them without a word.
#[test]
fn frames_of_several_buffers_need_a_driver_that_sends_them() {
    for v6 in BOTH {
        let mut world = World::new(Rung::Xdp, ROUND_ROBIN, 1);
        let connection = world.connect(client(v6, 1), 1);
        let packet = connection.of_client().payload(b"most of it lies elsewhere");
        let send = |world: &World, scattered: bool| {
            let mut env = world.env(CLIENT_SIDE);
            env.scattered = scattered;
            run(&env, &mut packet.build(), &world.tables).reason
        };
        let before = world.state();
        assert_eq!(send(&world, true), Reason::TO_TC);
        assert_eq!(world.state(), before);
        assert_eq!(send(&world, false), Reason::FORWARD);
        world.tables.next_hops[next_hop::backend(0) as usize].flags |= hop::XDP_SG;
        assert_eq!(send(&world, true), Reason::FORWARD);
    }
}

/// The next hop of a flow stands for a route's prefix. When that has moved, each packet asks where it goes now.
#[test]
fn a_route_that_moves_under_an_open_flow() {
    for rung in [Rung::Xdp, Rung::Tc] {
        for v6 in BOTH {
            let mut world = World::new(rung, ROUND_ROBIN, 1);
            let connection = world.connect(client(v6, 1), 1);
            let half = world.open(client(v6, 2), 9, Reason::NEW_FLOW);
            // A new router on the backends' side.
            let mut new = world.tables.next_hops[next_hop::ROUTER as usize];
            (new.ifindex, new.device, new.mac) = (BACKEND_SIDE, BACKEND_SIDE, [2, 9, 9, 9, 9, 9]);
            new.source_mac = mac::BACKEND_SIDE;
            let index = world.tables.next_hops.len() as u32;
            world.tables.next_hops.push(new);
            world.tables.next_hops[next_hop::ROUTER as usize].flags |= hop::RELOOKUP;
            world.tables.v4.routes.iter_mut().for_each(|(.., hop)| *hop = index);
            world.tables.v6.routes.iter_mut().for_each(|(.., hop)| *hop = index);

            let data = connection.of_backend().payload(b"down");
            let outcome = world.on_backend_side(&data);
            assert_eq!(outcome.sent, Some((BACKEND_SIDE, false)));
            let frame = outcome.forwarded(Reason::REVERSE);
            let moved = connection.at_client(&data).macs(mac::BACKEND_SIDE, [2, 9, 9, 9, 9, 9]);
            assert_eq!(frame, moved.build());
            assert_eq!(world.flow_of(connection.backend_address(), connection.snat).unwrap().payload, 4);
            let syn_ack = half.of_backend().flags(SYN).seq(half.backend_isn).ack(10);
            assert_eq!(world.on_backend_side(&syn_ack).sent, Some((BACKEND_SIDE, false)));
            // The way to the backend has nothing to do with it.
            world.client_sends(&connection, connection.of_client().payload(b"up"), Reason::FORWARD);
            world.client_sends(&half, half.of_client(), Reason::ESTABLISHED);

            // No route at all.
            world.tables.v4.routes.clear();
            world.tables.v6.routes.clear();
            world.on_backend_side(&data).left(Reason::HOP_GONE);
        }
    }
}

/// What a neighbour's SYN said of its MAC address holds for its link only.
#[test]
fn a_learned_address_does_not_move_along() {
    for rung in [Rung::Xdp, Rung::Tc] {
        for v6 in BOTH {
            let mut world = World::new(rung, ROUND_ROBIN, 1);
            let client = neighbour(v6, 1);
            let syn = client_packet(client).flags(SYN).seq(1).tag(42);
            let frame = world.on_client_side(&syn).forwarded(Reason::NEW_FLOW);
            let connection = crate::world::Connection::of_syn(client, 1, &frame);
            let syn_ack = connection.of_backend().flags(SYN).seq(connection.backend_isn).ack(2);
            assert_eq!(world.on_backend_side(&syn_ack).sent, Some((CLIENT_SIDE, false)), "learned");
            // The network of the neighbours is another one's now, on the same device without a VLAN.
            let mut new = world.tables.next_hops[next_hop::NEIGHBOURS as usize];
            new.tags = Tags::default();
            let index = world.tables.next_hops.len() as u32;
            world.tables.next_hops.push(new);
            world.tables.next_hops[next_hop::NEIGHBOURS as usize].flags |= hop::RELOOKUP;
            world.tables.v4.routes.iter_mut().for_each(|(.., hop)| *hop = index);
            world.tables.v6.routes.iter_mut().for_each(|(.., hop)| *hop = index);
            let outcome = world.on_backend_side(&syn_ack);
            match rung {
                Rung::Xdp => outcome.left(Reason::TO_TC),
                Rung::Tc => {
                    assert_eq!(outcome.sent, Some((CLIENT_SIDE, true)));
                    outcome.forwarded(Reason::SYN_ACK);
                }
            }
        }
    }
}
