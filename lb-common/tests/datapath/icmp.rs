//! ICMP errors of routers about packets of a flow, from either side, against messages built from scratch.

use std::net::{IpAddr, SocketAddr};

use lb_common::balance::policy::ROUND_ROBIN;
use lb_common::host_icmp::{Complaint, IcmpBuilder, icmp_error};
use lb_common::host_packets::{PacketBuilder, extension, verify_checksums};
use lb_common::host_scenario::{BACKEND_SIDE, CLIENT_SIDE, backend_index, client, mac, next_hop, snat, vip};
use lb_common::tables::hop;
use lb_common::tcp::flags::{FIN, SYN};
use lb_common::{Reason, Rung};

use crate::world::{BOTH, Connection, World, client_packet};

const COMPLAINTS: [Complaint; 3] = [Complaint::TooBig(1400), Complaint::Expired, Complaint::Unreachable];

/// A router that is neither client nor backend.
fn router(v6: bool) -> IpAddr {
    let address = if v6 { "2001:db8:ffff::1" } else { "203.0.113.1" };
    address.parse().expect("an address")
}

fn tc(v6: bool) -> (World, Connection) {
    let world = World::new(Rung::Tc, ROUND_ROBIN, 1);
    let connection = world.connect(client(v6, 1), 1);
    (world, connection)
}

/// What a router behind the balancer says of `packet` of the client, and what the client has to get of it. `quoted`:
/// bytes of TCP.
fn about_client(
    connection: &Connection,
    packet: &PacketBuilder,
    complaint: Complaint,
    quoted: usize,
) -> [IcmpBuilder; 2] {
    let v6 = connection.v6();
    let [sent, got] =
        [connection.at_backend(packet), packet.clone()].map(|packet| packet.ttl(9).quote(quoted));
    [
        icmp_error(router(v6), snat(v6), complaint, sent).macs([2; 6], mac::BACKEND_SIDE),
        icmp_error(vip(v6).ip(), connection.client.ip(), complaint, got)
            .macs(mac::CLIENT_SIDE, mac::ROUTER)
            .ttl(63),
    ]
}

/// What a router in front of the balancer says of `packet` of the backend, and what the backend has to get of it.
fn about_backend(
    connection: &Connection,
    packet: &PacketBuilder,
    complaint: Complaint,
    quoted: usize,
) -> [IcmpBuilder; 2] {
    let v6 = connection.v6();
    let [sent, got] =
        [connection.at_client(packet), packet.clone()].map(|packet| packet.ttl(9).quote(quoted));
    [
        icmp_error(router(v6), vip(v6).ip(), complaint, sent).macs(mac::ROUTER, mac::CLIENT_SIDE),
        icmp_error(snat(v6), connection.backend_address().ip(), complaint, got)
            .macs(mac::BACKEND_SIDE, mac::backend(0))
            .ttl(63),
    ]
}

#[test]
fn errors_are_translated_both_ways() {
    for v6 in BOTH {
        let (world, connection) = tc(v6);
        let before = world.state();
        for complaint in COMPLAINTS {
            // As little as there may be, up to where the TCP checksum is, and all of it.
            for quoted in [8, 16, 18, 20, 100] {
                let up = connection.of_client().payload(&[0x5a; 80]);
                let [error, expected] = about_client(&connection, &up, complaint, quoted);
                let frame = world.receive(BACKEND_SIDE, error.build()).forwarded(Reason::ICMP_TRANSLATED);
                verify_checksums(&frame.0).unwrap();
                assert_eq!(frame, expected.build(), "{complaint:?}, {quoted} bytes of TCP");

                let down = connection.of_backend().payload(&[0xa5; 80]);
                let [error, expected] = about_backend(&connection, &down, complaint, quoted);
                let frame = world.receive(CLIENT_SIDE, error.build()).forwarded(Reason::ICMP_TRANSLATED);
                verify_checksums(&frame.0).unwrap();
                assert_eq!(frame, expected.build(), "{complaint:?}, {quoted} bytes of TCP");
            }
        }
        // Half of the checksum is left as it is.
        let [error, _] = about_client(&connection, &connection.of_client(), Complaint::Expired, 17);
        let frame = world.receive(BACKEND_SIDE, error.build()).forwarded(Reason::ICMP_TRANSLATED);
        verify_checksums(&frame.0).unwrap();
        assert_eq!(world.state(), before, "an ICMP error is no packet of the flow");
    }
}

#[test]
fn options_of_the_message_and_of_the_packet() {
    let (world, connection) = tc(false);
    for options in [1, 4, 40] {
        let up = connection.of_client().ip_options(&vec![1; options]);
        let [error, expected] = about_client(&connection, &up, Complaint::TooBig(1300), 8);
        for outer in [0, 4, 40] {
            let [error, expected] =
                [&error, &expected].map(|message| message.clone().ip_options(&vec![1; outer]).build());
            let frame = world.receive(BACKEND_SIDE, error).forwarded(Reason::ICMP_TRANSLATED);
            assert_eq!(frame, expected);
        }
    }
    // Behind extension headers nobody looks.
    let (world, connection) = tc(true);
    let up = connection.of_client().extension(extension::DESTINATION, &[1, 4]);
    let [error, _] = about_client(&connection, &up, Complaint::TooBig(1300), 20);
    world.receive(BACKEND_SIDE, error.build()).left(Reason::ICMP_OTHER);
}

#[test]
fn wrong_checksums_stay_wrong() {
    for v6 in BOTH {
        let (world, connection) = tc(v6);
        let up = connection.of_client();
        let [error, _] = about_client(&connection, &up, Complaint::TooBig(1300), 20);
        for fault in [1, 0x80, 0x5500, 0xfffe] {
            let mut frame = error.build();
            let at = 14 + if v6 { 40 } else { 20 } + 2;
            let right = u16::from_be_bytes([frame.0[at], frame.0[at + 1]]);
            frame.0[at..at + 2].copy_from_slice(&(right ^ fault).to_be_bytes());
            let frame = world.receive(BACKEND_SIDE, frame).forwarded(Reason::ICMP_TRANSLATED);
            verify_checksums(&frame.0).unwrap_err();
        }
    }
}

#[test]
fn what_is_no_error_of_an_established_flow_passes() {
    for v6 in BOTH {
        let (world, connection) = tc(v6);
        let up = connection.of_client();
        let about = |packet: &PacketBuilder, complaint, quoted| {
            about_client(&connection, packet, complaint, quoted)[0].build()
        };
        world.receive(BACKEND_SIDE, about(&up, Complaint::Echo, 20)).left(Reason::ICMP_OTHER);
        // The ports alone do not do.
        for quoted in 0..8 {
            world.receive(BACKEND_SIDE, about(&up, Complaint::TooBig(1300), quoted)).left(Reason::ICMP_OTHER);
        }
        // Of a fragment that is not the first there are no ports.
        let later = up.clone().payload(&[7; 64]).fragment(3, false);
        let frame = about(&later, Complaint::TooBig(1300), 64);
        world.receive(BACKEND_SIDE, frame).left(Reason::ICMP_OTHER);
        // Another connection, one whose SYN is on its way, and one that is the proxy's.
        let other = SocketAddr::new(connection.client.ip(), 9);
        let stranger = Connection { snat: SocketAddr::new(connection.snat.ip(), 9), ..connection };
        let frame = about_client(&stranger, &up, Complaint::TooBig(1300), 8)[0].build();
        world.receive(BACKEND_SIDE, frame).left(Reason::ICMP_OTHER);
        let half = world.open(client(v6, 2), 7, Reason::NEW_FLOW);
        let syn = client_packet(half.client).flags(SYN).seq(7);
        let frame = about_client(&half, &syn, Complaint::Expired, 20)[0].build();
        world.receive(BACKEND_SIDE, frame).left(Reason::ICMP_OTHER);
        // To somebody else than the source of what it quotes.
        let quote = connection.at_backend(&up).quote(20);
        let frame = icmp_error(router(v6), other.ip(), Complaint::Expired, quote).build();
        world.receive(BACKEND_SIDE, frame).left(Reason::ICMP_OTHER);
        assert_eq!(world.established(v6), 2);
    }
}

#[test]
fn truncated_messages_pass() {
    for v6 in BOTH {
        let (world, connection) = tc(v6);
        let up = connection.of_client();
        let frame = about_client(&connection, &up, Complaint::TooBig(1300), 20)[0].build();
        for length in 0..frame.0.len() {
            let mut cut = frame.clone();
            cut.0.truncate(length);
            let outcome = world.receive(BACKEND_SIDE, cut);
            assert_eq!(outcome.sent, None, "{length} of {} bytes", frame.0.len());
        }
    }
}

#[test]
fn xdp_leaves_them_to_tc() {
    for v6 in BOTH {
        let world = World::new(Rung::Xdp, ROUND_ROBIN, 1);
        let connection = world.connect(client(v6, 1), 1);
        let frame =
            about_client(&connection, &connection.of_client(), Complaint::TooBig(1300), 20)[0].build();
        world.receive(BACKEND_SIDE, frame).left(Reason::NOT_TCP);
    }
}

#[test]
fn the_last_hop_is_not_ours() {
    for v6 in BOTH {
        let (world, connection) = tc(v6);
        for ttl in [0, 1] {
            let [error, _] = about_client(&connection, &connection.of_client(), Complaint::Expired, 20);
            world.receive(BACKEND_SIDE, error.ttl(ttl).build()).left(Reason::TTL_EXPIRED);
        }
    }
}

/// They leave the way that packets of the flow do.
#[test]
fn next_hops_that_change() {
    for v6 in BOTH {
        let (mut world, connection) = tc(v6);
        let [error, expected] =
            about_client(&connection, &connection.of_client().flags(FIN), Complaint::TooBig(1300), 8);
        let router = next_hop::ROUTER as usize;
        world.tables.next_hops[router].flags = hop::USED;
        let outcome = world.receive(BACKEND_SIDE, error.build());
        assert_eq!(outcome.sent, Some((CLIENT_SIDE, true)), "by the kernel's neighbour table");
        assert_eq!(outcome.forwarded(Reason::ICMP_TRANSLATED), expected.build());
        world.tables.next_hops[router].flags = 0;
        world.receive(BACKEND_SIDE, error.build()).left(Reason::HOP_GONE);
        world.tables.next_hops[router].flags = hop::USED | hop::RELOOKUP;
        world.tables.v4.routes.iter_mut().for_each(|(.., hop)| *hop = next_hop::NEIGHBOURS);
        world.tables.v6.routes.iter_mut().for_each(|(.., hop)| *hop = next_hop::NEIGHBOURS);
        let outcome = world.receive(BACKEND_SIDE, error.build());
        assert_eq!(outcome.sent, Some((CLIENT_SIDE, true)), "the new route's");
    }
}

/// A router that does not get the SYN to its backend: as if that had refused it.
#[test]
fn a_backend_that_cannot_be_reached_has_failed() {
    for v6 in BOTH {
        let world = World::new(Rung::Tc, ROUND_ROBIN, 2);
        let half = world.open(client(v6, 2), 7, Reason::NEW_FLOW);
        let syn = |seq| client_packet(half.client).flags(SYN).seq(seq);
        let message = |seq| about_client(&half, &syn(seq), Complaint::Unreachable, 8)[0].build();
        let index = backend_index(v6, 2, half.backend);
        world.receive(BACKEND_SIDE, message(8)).left(Reason::ICMP_OTHER);
        assert_eq!(world.tables.active_at(index).failing, 0, "who does not know the number is not believed");
        for _ in 0..2 {
            world.receive(BACKEND_SIDE, message(7)).left(Reason::REFUSED_RETRY);
            assert_eq!(world.tables.active_at(index).failing, 1, "once for each attempt");
        }
        let again = world.open(client(v6, 2), 7, Reason::SYN_RETRIED);
        assert_ne!(again.backend, half.backend);
        world.answer(&again);
        let message = about_client(&again, &syn(7), Complaint::Unreachable, 8)[0].build();
        world.receive(BACKEND_SIDE, message).left(Reason::ICMP_OTHER);
    }
}
