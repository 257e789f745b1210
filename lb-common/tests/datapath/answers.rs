//! Packets that are too big for their next hop, or whose TTL is used up: who is told what.

use lb_common::balance::policy::ROUND_ROBIN;
use lb_common::host::run;
use lb_common::host_icmp::{Complaint, IcmpBuilder, icmp_error};
use lb_common::host_packets::{PacketBuilder, extension, packet, verify_checksums};
use lb_common::host_scenario::{BACKEND_MTU, CLIENT_MTU, CLIENT_SIDE, client, mac, snat, vip};
use lb_common::parse::ethertype;
use lb_common::tcp::flags::SYN;
use lb_common::{Reason, Rung};

use crate::world::{BOTH, Connection, World, client_packet};

const HEADERS: [usize; 2] = [40, 60];

/// What the client is to be told of its packet.
fn to_client(connection: &Connection, packet: &PacketBuilder, complaint: Complaint) -> IcmpBuilder {
    let v6 = connection.v6();
    icmp_error(vip(v6).ip(), connection.client.ip(), complaint, packet.quote(20))
        .macs(mac::CLIENT_SIDE, mac::ROUTER)
}

/// What the backend is to be told of its packet.
fn to_backend(connection: &Connection, packet: &PacketBuilder, complaint: Complaint) -> IcmpBuilder {
    let v6 = connection.v6();
    icmp_error(snat(v6), connection.backend_address().ip(), complaint, packet.quote(20))
        .macs(mac::BACKEND_SIDE, mac::backend(0))
}

#[test]
fn the_next_hops_mtu_is_the_limit() {
    for v6 in BOTH {
        let world = World::new(Rung::Tc, ROUND_ROBIN, 1);
        let connection = world.connect(client(v6, 1), 1);
        let up = |extra: usize| {
            connection.of_client().payload(&vec![0x5a; BACKEND_MTU as usize - HEADERS[v6 as usize] + extra])
        };
        world.client_sends(&connection, up(0), Reason::FORWARD);
        let before = world.state();
        for extra in [1, 2, 50, 8000] {
            let frame = world.on_client_side(&up(extra)).answered(Reason::TOO_BIG);
            verify_checksums(&frame.0).unwrap();
            let complaint = Complaint::TooBig(BACKEND_MTU as u16);
            assert_eq!(frame, to_client(&connection, &up(extra), complaint).build());
        }
        let down = |extra: usize| {
            connection.of_backend().payload(&vec![0xa5; CLIENT_MTU as usize - HEADERS[v6 as usize] + extra])
        };
        let frame = world.on_backend_side(&down(1)).answered(Reason::TOO_BIG);
        let complaint = Complaint::TooBig(CLIENT_MTU as u16);
        assert_eq!(frame, to_backend(&connection, &down(1), complaint).build());
        assert_eq!(world.state(), before, "what was not carried was not counted");
        world.backend_sends(&connection, down(0), Reason::REVERSE);
    }
}

/// What the kernel will cut into segments that fit is not too big.
#[test]
fn super_packets_are_measured_by_their_segments() {
    for v6 in BOTH {
        let world = World::new(Rung::Tc, ROUND_ROBIN, 1);
        let connection = world.connect(client(v6, 1), 1);
        let up = connection.of_client().payload(&[0x5a; 20_000]);
        let fits = BACKEND_MTU - HEADERS[v6 as usize] as u32;
        for (gso_size, reason) in [
            (fits, Reason::FORWARD),
            (fits + 1, Reason::TOO_BIG),
            (536, Reason::FORWARD),
            (0, Reason::TOO_BIG),
        ] {
            let mut env = world.env(CLIENT_SIDE);
            env.gso_size = gso_size;
            let mut frame = up.build();
            assert_eq!(run(&env, &mut frame, &world.tables).reason, reason, "{gso_size}");
        }
    }
}

/// Headers in front of TCP count, and are quoted.
#[test]
fn options_count_and_are_quoted() {
    for v6 in BOTH {
        let world = World::new(Rung::Tc, ROUND_ROBIN, 1);
        let connection = world.connect(client(v6, 1), 1);
        let full = connection.of_client().payload(&vec![1; BACKEND_MTU as usize - HEADERS[v6 as usize]]);
        let longer = if v6 {
            vec![
                full.clone().extension(extension::HOP_BY_HOP, &[1, 4]),
                full.clone().extension(extension::DESTINATION, &[0; 62]).fragment(0, false),
                full.clone()
                    .extension(extension::HOP_BY_HOP, &[0; 62])
                    .extension(extension::DESTINATION, &[0; 62])
                    .extension(extension::ROUTING, &[4, 0])
                    .extension(extension::DESTINATION, &[0; 62]),
            ]
        } else {
            vec![full.clone().ip_options(&[1; 4]), full.clone().ip_options(&[1; 40])]
        };
        for packet in longer.into_iter().chain([full.clone().tcp_options(&[1; 4])]) {
            let frame = world.on_client_side(&packet).answered(Reason::TOO_BIG);
            verify_checksums(&frame.0).unwrap();
            let complaint = Complaint::TooBig(BACKEND_MTU as u16);
            assert_eq!(frame, to_client(&connection, &packet, complaint).build());
        }
    }
}

#[test]
fn an_expired_ttl_is_answered_with_the_tags_it_came_with() {
    for v6 in BOTH {
        let world = World::new(Rung::Tc, ROUND_ROBIN, 1);
        let connection = world.connect(client(v6, 1), 1);
        let plain = connection.of_client().ttl(1).trailer(6);
        let answer = to_client(&connection, &plain, Complaint::Expired);
        let cases = [
            (plain.clone(), answer.clone()),
            (plain.clone().tag(7), answer.clone().tag(ethertype::VLAN, 7)),
            (
                plain.clone().service_tag(7).tag(0x6008),
                answer.clone().tag(ethertype::QINQ, 7).tag(ethertype::VLAN, 0x6008),
            ),
        ];
        for (packet, answer) in cases {
            let frame = world.on_client_side(&packet).answered(Reason::TTL_ANSWERED);
            verify_checksums(&frame.0).unwrap();
            assert_eq!(frame, answer.build());
        }
        // A SYN that would open a flow.
        let syn = client_packet(client(v6, 2)).flags(SYN).ttl(1);
        let frame = world.on_client_side(&syn).answered(Reason::TTL_ANSWERED);
        let other = Connection { client: client(v6, 2), ..connection };
        assert_eq!(frame, to_client(&other, &syn, Complaint::Expired).build());
        assert_eq!(world.half_open(v6), 0);
    }
}

#[test]
fn fragments_and_senders_that_are_no_host_are_not_answered() {
    for v6 in BOTH {
        let world = World::new(Rung::Tc, ROUND_ROBIN, 1);
        let connection = world.connect(client(v6, 1), 1);
        world.on_client_side(&connection.of_client().fragment(0, true).ttl(1)).left(Reason::FRAGMENT);
        let nobody: &[&str] = if v6 {
            &["[ff02::1]:9", "[::]:9", "[::1]:9"]
        } else {
            &["224.0.0.1:9", "0.0.0.0:9", "127.0.0.1:9", "255.255.255.255:9"]
        };
        for sender in nobody {
            let syn = packet(sender.parse().unwrap(), vip(v6)).flags(SYN).ttl(1);
            world.on_client_side(&syn).left(Reason::TTL_EXPIRED);
        }
    }
}

/// XDP has no room to write in; it hands over before anything is changed.
#[test]
fn xdp_leaves_them_to_tc() {
    for v6 in BOTH {
        let world = World::new(Rung::Xdp, ROUND_ROBIN, 1);
        let connection = world.connect(client(v6, 1), 1);
        let before = world.state();
        let big = connection.of_client().payload(&vec![1; BACKEND_MTU as usize]);
        world.on_client_side(&big).left(Reason::TO_TC);
        world.on_client_side(&connection.of_client().ttl(1)).left(Reason::TO_TC);
        world.on_client_side(&client_packet(client(v6, 2)).flags(SYN).ttl(1)).left(Reason::TO_TC);
        assert_eq!(world.state(), before);
    }
}
