//! What packets look like: tags, options, extension headers, fragments, MSS, and what is too short.

use lb_common::balance::policy::ROUND_ROBIN;
use lb_common::host::{Frame, run};
use lb_common::host_packets::{PacketBuilder, extension, verify_checksums};
use lb_common::host_scenario::{BACKEND_SIDE, CLIENT_SIDE, client, next_hop};
use lb_common::parse::{Tags, ethertype};
use lb_common::reason::Fate;
use lb_common::tcp::flags::{FIN, RST, SYN};
use lb_common::{Reason, Rung};

use crate::world::{BOTH, Connection, RUNGS, World, clamp, client_packet};

fn worlds() -> impl Iterator<Item = (World, bool)> {
    RUNGS.into_iter().flat_map(|rung| BOTH.map(|v6| (World::new(rung, ROUND_ROBIN, 1), v6)))
}

#[test]
fn tags_are_taken_off_and_put_on() {
    let tagged = [
        Tags::default(),
        Tags { tci: [0x6007, 0], count: 1, in_frame: 1, outer: ethertype::VLAN },
        Tags { tci: [0x0fff, 0], count: 1, in_frame: 1, outer: ethertype::QINQ },
        Tags { tci: [100, 0x3008], count: 2, in_frame: 2, outer: ethertype::QINQ },
        Tags { tci: [100, 200], count: 2, in_frame: 2, outer: ethertype::VLAN },
    ];
    let with = |packet: PacketBuilder, tags: Tags| {
        let packet = packet.untagged();
        let packet = match (tags.count, tags.outer) {
            (0, _) => return packet,
            (_, ethertype::QINQ) => packet.service_tag(tags.tci[0]),
            _ => packet.tag(tags.tci[0]),
        };
        if tags.count == 2 { packet.tag(tags.tci[1]) } else { packet }
    };
    for (mut world, v6) in worlds() {
        let connection = world.connect(client(v6, 1), 1);
        for arrives in tagged {
            for leaves in tagged {
                world.tables.next_hops[next_hop::backend(0) as usize].tags = leaves;
                world.tables.next_hops[next_hop::ROUTER as usize].tags = leaves;
                let packet = with(connection.of_client().payload(b"up"), arrives);
                let frame = world.on_client_side(&packet).forwarded(Reason::FORWARD);
                assert_eq!(frame, with(connection.at_backend(&packet), leaves).build());
                let packet = with(connection.of_backend().payload(b"down"), arrives);
                let frame = world.on_backend_side(&packet).forwarded(Reason::REVERSE);
                assert_eq!(frame, with(connection.at_client(&packet), leaves).build());
            }
        }
        let third = connection.of_client().service_tag(1).tag(2).tag(3);
        world.on_client_side(&third).left(Reason::NOT_IP);
    }
}

/// The flow is the same whatever a packet wears besides, and it keeps it.
#[test]
fn options_and_extension_headers_go_along() {
    for (world, v6) in worlds() {
        let connection = world.connect(client(v6, 1), 1);
        let check = |packet: PacketBuilder| {
            world.client_sends(&connection, packet.clone().seq(2), Reason::FORWARD);
            let back = connection.of_backend();
            let frame = world.on_client_side(&packet.payload(b"odd")).forwarded(Reason::FORWARD);
            verify_checksums(&frame.0).unwrap();
            world.backend_sends(&connection, back, Reason::REVERSE);
        };
        let packet = connection.of_client();
        if v6 {
            check(packet.clone().extension(extension::HOP_BY_HOP, &[5, 2, 0, 0]));
            check(packet.clone().extension(extension::DESTINATION, &[0; 62]));
            check(packet.clone().extension(extension::ROUTING, &[4, 0]));
            check(packet.clone().fragment(0, false));
            check(
                packet
                    .clone()
                    .extension(extension::HOP_BY_HOP, &[1, 4])
                    .extension(extension::DESTINATION, &[1, 4])
                    .extension(extension::ROUTING, &[0; 14])
                    .fragment(0, false),
            );
            for unfollowed in [
                packet.clone().extension(extension::AUTHENTICATION, &[0; 22]),
                packet.clone().extension(extension::DESTINATION, &[0; 70]),
                packet.clone().extension(extension::ROUTING, &[4, 1]),
                (0..5).fold(packet.clone(), |packet, _| packet.extension(extension::DESTINATION, &[1, 4])),
            ] {
                world.on_client_side(&unfollowed).left(Reason::NOT_TCP);
            }
        } else {
            for length in [1, 4, 20, 40] {
                check(packet.clone().ip_options(&vec![1; length]));
            }
        }
    }
}

#[test]
fn other_protocols_are_not_ours() {
    for (world, v6) in worlds() {
        let packet = client_packet(client(v6, 1)).flags(SYN);
        let with = |at: usize, value: u8| {
            let mut frame = packet.build();
            frame.0[at] = value;
            frame
        };
        let cases = [
            (0, 0x01, Reason::NOT_UNICAST),
            (0, 0xff, Reason::NOT_UNICAST),
            (12, 0x86, if v6 { Reason::NEW_FLOW } else { Reason::NOT_IP }),
            (13, 0x06, Reason::NOT_IP),
            (14, if v6 { 0x40 } else { 0x65 }, Reason::MALFORMED),
            (if v6 { 20 } else { 23 }, 17, Reason::NOT_TCP),
            (if v6 { 14 + 40 + 12 } else { 14 + 20 + 12 }, 0x40, Reason::MALFORMED),
            (if v6 { 14 + 40 + 12 } else { 14 + 20 + 12 }, 0x60, Reason::MALFORMED),
        ];
        for (at, value, reason) in cases.into_iter().filter(|(.., reason)| *reason != Reason::NEW_FLOW) {
            world.receive(CLIENT_SIDE, with(at, value)).left(reason);
        }
        if !v6 {
            world.receive(CLIENT_SIDE, with(14, 0x44)).left(Reason::MALFORMED);
            // Shorter than its own header.
            world.receive(CLIENT_SIDE, with(17, 19)).left(Reason::MALFORMED);
        }
        assert_eq!(world.half_open(v6), 0);
    }
}

#[test]
fn fragments() {
    for (world, v6) in worlds() {
        let new = client_packet(client(v6, 2)).flags(SYN);
        // To a served address the first fragment is dropped, so the later ones, which show no port, end nowhere.
        world.on_client_side(&new.clone().fragment(0, true)).left(Reason::FRAGMENT);
        world.on_client_side(&new.clone().payload(&[1; 64]).fragment(8, true)).left(Reason::LATER_FRAGMENT);
        world.on_client_side(&new.clone().payload(&[1; 64]).fragment(8, false)).left(Reason::LATER_FRAGMENT);
        world.on_client_side(&client_packet(client(v6, 2)).ack(9).fragment(0, true)).left(Reason::FRAGMENT);
        let elsewhere = client_packet(client(v6, 2)).between(client(v6, 2), client(v6, 3));
        world.on_client_side(&elsewhere.ack(9).fragment(0, true)).left(Reason::NO_FLOW);
        assert_eq!((world.half_open(v6), world.established(v6)), (0, 0));

        let connection = world.connect(client(v6, 1), 1);
        let before = world.state();
        world
            .on_client_side(&connection.of_client().payload(&[1; 64]).fragment(0, true))
            .left(Reason::FRAGMENT);
        world.on_backend_side(&connection.of_backend().fragment(0, true)).left(Reason::FRAGMENT);
        world.on_backend_side(&connection.of_backend().flags(RST).fragment(0, true)).left(Reason::FRAGMENT);
        assert_eq!(world.state(), before);
        // A whole packet in a fragment header (RFC 6946), or with IPv4's "don't fragment" as ever.
        world.client_sends(&connection, connection.of_client().fragment(0, false), Reason::FORWARD);

        // What went up to the proxy is reassembled there.
        let mut world = world;
        world.tables.settings.snat_ports = 0;
        world.on_client_side(&client_packet(client(v6, 5)).flags(SYN)).left(Reason::NO_PORT);
        let proxied = client_packet(client(v6, 5)).ack(5).payload(&[1; 64]);
        world.on_client_side(&proxied.fragment(0, true)).left(Reason::TOMBSTONE);
    }
}

/// A first fragment that ends within the TCP header.
#[test]
fn tiny_fragments_are_not_ours() {
    for (world, v6) in worlds() {
        let connection = world.connect(client(v6, 1), 1);
        let whole = connection.of_client().fragment(0, true).build().0;
        let before = world.state();
        let tcp = whole.len() - 20;
        for length in [0, 8, 16] {
            let mut frame = whole[..tcp + length].to_vec();
            if v6 {
                frame[18..20].copy_from_slice(&(8 + length as u16).to_be_bytes());
            } else {
                frame[16..18].copy_from_slice(&(20 + length as u16).to_be_bytes());
            }
            let outcome = world.receive(CLIENT_SIDE, Frame(frame));
            outcome.left(Reason::TRUNCATED);
        }
        assert_eq!(world.state(), before);
    }
}

/// Cut anywhere, a packet is never read beyond its end, never rewritten, and the reason says that it is short.
#[test]
fn truncated_at_every_length() {
    for (world, v6) in worlds() {
        let connection = world.connect(client(v6, 1), 1);
        let packets = [
            connection.of_client().payload(b"payload"),
            connection.of_client().tag(1).ip_options(&[1; 40]).payload(b"payload"),
            connection
                .of_client()
                .tag(1)
                .tag(2)
                .extension(extension::HOP_BY_HOP, &[1, 4])
                .payload(b"payload"),
            connection.of_client().fragment(0, false).payload(b"payload"),
            client_packet(client(v6, 2)).flags(SYN).mss(9000),
        ];
        for packet in &packets {
            let whole = packet.build().0;
            let before = world.state();
            for length in 0..whole.len() {
                world.receive(CLIENT_SIDE, Frame(whole[..length].to_vec())).left(Reason::TRUNCATED);
            }
            assert_eq!(world.state(), before);
            let outcome = world.receive(CLIENT_SIDE, Frame(whole));
            assert_eq!(outcome.reason.fate(), Fate::Forwarded);
        }
    }
}

/// Lengths in the headers that lie.
#[test]
fn lengths_beyond_the_frame() {
    for (world, v6) in worlds() {
        let connection = world.connect(client(v6, 1), 1);
        let whole = connection.of_client().payload(b"payload").build().0;
        let at = if v6 { 18 } else { 16 };
        let right = u16::from_be_bytes([whole[at], whole[at + 1]]);
        for length in [right + 1, right + 1000, u16::MAX] {
            let mut frame = whole.clone();
            frame[at..at + 2].copy_from_slice(&length.to_be_bytes());
            world.receive(CLIENT_SIDE, Frame(frame)).left(Reason::TRUNCATED);
        }
        // Shorter than the TCP header.
        let mut frame = whole.clone();
        frame[at..at + 2].copy_from_slice(&(right - 8).to_be_bytes());
        world.receive(CLIENT_SIDE, Frame(frame)).left(Reason::MALFORMED);
        // Bytes behind the packet are not payload.
        let before = world.flow_of(connection.client, lb_common::host_scenario::vip(v6)).unwrap().payload;
        world.client_sends(&connection, connection.of_client().payload(b"xy").trailer(9), Reason::FORWARD);
        let after = world.flow_of(connection.client, lb_common::host_scenario::vip(v6)).unwrap().payload;
        assert_eq!((before, after), (0, 2));
    }
}

/// The MSS option is lowered to what both links carry, wherever it stands, and never raised.
#[test]
fn mss_is_clamped() {
    for (world, v6) in worlds() {
        let limit = clamp(v6);
        let [high, low] = limit.to_be_bytes();
        let (above_high, above_low) = (0xff, 0xff);
        let clamped: [(&[u8], &[u8]); 6] = [
            (&[2, 4, above_high, above_low], &[2, 4, high, low]),
            // At an odd offset the option's bytes belong to two words of the sum.
            (&[1, 2, 4, above_high, above_low], &[1, 2, 4, high, low]),
            (&[1, 1, 2, 4, above_high, above_low], &[1, 1, 2, 4, high, low]),
            (&[3, 3, 7, 2, 4, above_high, above_low, 1], &[3, 3, 7, 2, 4, high, low, 1]),
            (
                &[4, 2, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8, 3, 3, 7, 2, 4, above_high, above_low],
                &[4, 2, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8, 3, 3, 7, 2, 4, high, low],
            ),
            // The last that fits.
            (
                &[
                    254, 36, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                    0, 0, 0, 0, 0, 0, 0, 2, 4, above_high, above_low,
                ],
                &[
                    254, 36, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                    0, 0, 0, 0, 0, 0, 0, 2, 4, high, low,
                ],
            ),
        ];
        for (n, (arrives, leaves)) in clamped.into_iter().enumerate() {
            let syn = client_packet(client(v6, n as u16)).flags(SYN).tcp_options(arrives);
            let frame = world.on_client_side(&syn).forwarded(Reason::NEW_FLOW);
            let connection = Connection::of_syn(client(v6, n as u16), 0, &frame);
            assert_eq!(frame, connection.at_backend(&syn).tcp_options(leaves).build(), "option {n}");
            let syn_ack = connection.of_backend().flags(SYN).tcp_options(arrives);
            let frame = world.on_backend_side(&syn_ack).forwarded(Reason::SYN_ACK);
            assert_eq!(frame, connection.at_client(&syn_ack).tcp_options(leaves).build(), "option {n}");
        }
        let [equal, below] = [limit, limit - 1].map(u16::to_be_bytes);
        let kept: [&[u8]; 10] = [
            &[],
            &[2, 4, equal[0], equal[1]],
            &[2, 4, below[0], below[1]],
            &[2, 4, 0, 0],
            // Behind the end of the options.
            &[0, 2, 4, 0xff, 0xff],
            // Of a wrong length.
            &[2, 3, 0xff, 0xff],
            &[2, 6, 0xff, 0xff, 0xff, 0xff],
            // Options of length 0 and 1 would never end.
            &[5, 0, 2, 4, 0xff, 0xff],
            &[5, 1, 2, 4, 0xff, 0xff],
            // Cut off by the end of the header.
            &[3, 200, 0xff, 2, 4, 0xff, 0xff, 2],
        ];
        for (n, options) in kept.into_iter().enumerate() {
            let n = 100 + n as u16;
            let syn =
                client_packet(client(v6, n)).flags(SYN).tcp_options(options).payload(&[2, 4, 0xff, 0xff]);
            let frame = world.on_client_side(&syn).forwarded(Reason::NEW_FLOW);
            let connection = Connection::of_syn(client(v6, n), 0, &frame);
            assert_eq!(frame, connection.at_backend(&syn).build(), "options {options:?}");
        }
        // No SYN, no MSS.
        let connection = world.connect(client(v6, 99), 1);
        world.client_sends(&connection, connection.of_client().mss(9000).flags(FIN), Reason::FORWARD);
    }
}

/// A wrong checksum stays wrong: the receiver is to notice, not to be deceived.
#[test]
fn a_wrong_checksum_stays_wrong() {
    for (world, v6) in worlds() {
        let connection = world.connect(client(v6, 1), 1);
        let whole = connection.of_client().payload(b"payload").build().0;
        let spots = if v6 { vec![70, 80] } else { vec![24, 50, 60] };
        for at in spots {
            let mut frame = Frame(whole.clone());
            frame.0[at] ^= 0x10;
            let result = run(&world.env(CLIENT_SIDE), &mut frame, &world.tables);
            assert_eq!((result.reason, result.sent), (Reason::FORWARD, Some((BACKEND_SIDE, false))));
            verify_checksums(&frame.0).unwrap_err();
        }
    }
}

/// Towards the kernel's neighbour table a packet leaves without tags, which the device below would put on.
#[test]
fn no_tags_towards_the_neighbour_table() {
    for v6 in BOTH {
        let mut world = World::new(Rung::Tc, ROUND_ROBIN, 1);
        let connection = world.connect(client(v6, 1), 1);
        for hop in &mut world.tables.next_hops {
            hop.confirmed = 0;
            hop.tags = Tags { tci: [7, 0], count: 1, in_frame: 1, outer: ethertype::VLAN };
        }
        let packet = connection.of_client().tag(9);
        let outcome = world.on_client_side(&packet);
        assert_eq!(outcome.sent, Some((BACKEND_SIDE, true)));
        assert_eq!(outcome.frame, connection.at_backend(&packet).untagged().build());
    }
}
