//! ICMP: errors of routers that are translated, and our own about packets that are too big or out of hops.

use std::net::IpAddr;

use lb_common::host_icmp::{Complaint, IcmpBuilder, icmp_error};
use lb_common::host_packets::{PacketBuilder, extension, verify_checksums};
use lb_common::{Reason, Rung};
use lb_tests::prog::{Device, is_runnable};
use lb_tests::sample::{self, network, port, vip};

use crate::handshake::{client, client_ack, establish};
use crate::lockstep::{Agreed, Lockstep, on_each_rung};

/// A message about a packet that left as `forwarded`, from a router to that packet's source. `bytes`: how much of its TCP
/// segment is quoted.
fn about(forwarded: &[u8], v6: bool, complaint: Complaint, bytes: usize) -> IcmpBuilder {
    let tags =
        forwarded[12..].chunks(4).take_while(|tag| matches!(tag[..2], [0x81, 0] | [0x88, 0xa8])).count();
    let packet = &forwarded[14 + 4 * tags..];
    let (headers, source) = if v6 {
        (40, IpAddr::from(<[u8; 16]>::try_from(&packet[8..24]).expect("16 bytes")))
    } else {
        ((packet[0] & 0xf) as usize * 4, IpAddr::from(<[u8; 4]>::try_from(&packet[12..16]).expect("4 bytes")))
    };
    let router = sample::host(v6, network::ROUTER, 200);
    icmp_error(router, source, complaint, packet[..packet.len().min(headers + bytes)].to_vec())
}

/// What became of an ICMP message: TC translates it, XDP leaves it.
#[track_caller]
fn translated(world: &mut Lockstep, ingress: Device, message: &IcmpBuilder) {
    let Agreed { reason, frame, .. } = world.frame(ingress, &message.build().0);
    if world.rung == Rung::Xdp {
        assert_eq!(reason, Reason::NOT_TCP);
    } else {
        assert_eq!(reason, Reason::ICMP_TRANSLATED);
        verify_checksums(&frame).expect("right checksums");
    }
}

#[test]
fn errors_from_either_side() {
    on_each_rung(|world| {
        let devices = world.devices();
        let complaints = [Complaint::TooBig(1300), Complaint::Expired, Complaint::Unreachable];
        for v6 in [false, true] {
            let ways = [
                (network::LINK, port::MAGLEV),
                (network::ROUTER, port::QINQ),
                (network::VLAN, port::VLAN),
                (network::QINQ, port::HAIRPIN),
            ];
            for (number, (network, port)) in (1..).zip(ways) {
                let segment = client(v6, network, number, port);
                let opened = establish(world, &segment);
                let up = world.client_sends(&client_ack(&segment).payload(&[3; 40]));
                let down = world.backend_sends(&opened.answer().seq(7_000_001).ack(0).payload(&[4; 41]));
                for (complaint, bytes) in complaints.into_iter().zip([8, 20, 60]) {
                    let message = about(&up.frame, v6, complaint, bytes);
                    translated(world, devices.backend, &message);
                    translated(world, devices.backend, &message.clone().tag(0x8100, 12));
                    let message = about(&down.frame, v6, complaint, bytes);
                    translated(world, devices.client, &message);
                    if !v6 {
                        translated(world, devices.client, &message.ip_options(&[1; 40]));
                    }
                }
            }
        }
    });
}

#[test]
fn messages_cut_at_every_length_or_damaged() {
    on_each_rung(|world| {
        let ingress = world.devices().backend;
        for v6 in [false, true] {
            let segment = client(v6, network::LINK, 1, port::MAGLEV);
            establish(world, &segment);
            let up = world.client_sends(&client_ack(&segment).payload(&[3; 40]));
            let frame = about(&up.frame, v6, Complaint::TooBig(1300), 20).build().0;
            let rung = world.rung;
            for length in (0..frame.len()).filter(|&length| is_runnable(rung, &frame[..length])) {
                assert_eq!(world.frame(ingress, &frame[..length]).sent, None, "{length} bytes");
            }
            // Every value of each byte that says what and how long something is.
            let fields: &[usize] = if v6 {
                &[18, 19, 20, 21, 54, 62, 66, 67, 68]
            } else {
                &[14, 16, 17, 20, 21, 22, 34, 42, 48, 49, 51]
            };
            for &field in fields {
                for value in 0..=255 {
                    let mut frame = frame.clone();
                    frame[field] = value;
                    world.frame(ingress, &frame);
                }
            }
        }
    });
}

/// What becomes of a packet that TC answers: XDP leaves it to TC.
#[track_caller]
fn answered(world: &mut Lockstep, packet: &PacketBuilder, reason: Reason) {
    let Agreed { reason: seen, frame, sent } = world.client_sends(packet);
    if world.rung == Rung::Xdp {
        assert_eq!(seen, Reason::TO_TC);
    } else {
        assert_eq!((seen, sent), (reason, Some(world.devices().client.ifindex)));
        verify_checksums(&frame).expect("right checksums");
    }
}

#[test]
fn packets_that_are_too_big_or_out_of_hops() {
    on_each_rung(|world| {
        for v6 in [false, true] {
            for (number, network) in (1..).zip([network::LINK, network::VLAN, network::QINQ]) {
                let segment = client(v6, network, number, port::VLAN);
                establish(world, &segment);
                let data = client_ack(&segment);
                answered(world, &data.clone().ttl(1), Reason::TTL_ANSWERED);
                answered(world, &data.clone().ttl(0).payload(&[1; 400]), Reason::TTL_ANSWERED);
                // Less than the smallest Ethernet frame, filled up.
                answered(world, &data.clone().ttl(1).trailer(6), Reason::TTL_ANSWERED);
                for length in [1401, 1403, 1900] {
                    answered(world, &data.clone().payload(&vec![2; length]), Reason::TOO_BIG);
                }
                let extended = if v6 {
                    data.clone()
                        .extension(extension::HOP_BY_HOP, &[0; 62])
                        .extension(extension::DESTINATION, &[])
                } else {
                    data.clone().ip_options(&[1; 40])
                };
                answered(world, &extended.clone().payload(&[2; 1350]), Reason::TOO_BIG);
                answered(world, &extended.ttl(1), Reason::TTL_ANSWERED);
                let fits = data.payload(&vec![2; if v6 { 1340 } else { 1360 }]);
                assert_eq!(world.client_sends(&fits).reason, Reason::FORWARD);
            }
            let nobody: IpAddr =
                if v6 { "ff02::1".parse().unwrap() } else { std::net::Ipv4Addr::new(224, 0, 0, 1).into() };
            let stray = client(v6, network::LINK, 9, port::MAGLEV)
                .between((nobody, 9).into(), vip(v6, port::MAGLEV))
                .flags(lb_common::tcp::flags::SYN)
                .ttl(1);
            let reason = if world.rung == Rung::Xdp { Reason::TO_TC } else { Reason::TTL_EXPIRED };
            assert_eq!(world.client_sends(&stray).reason, reason);
        }
    });
}

#[test]
fn super_packets_count_by_their_segments() {
    on_each_rung(|world| {
        if world.rung == Rung::Xdp {
            return;
        }
        for v6 in [false, true] {
            let segment = client(v6, network::LINK, 1, port::VLAN);
            establish(world, &segment);
            let data = client_ack(&segment).payload(&[6; 3_000]);
            let room = if v6 { 1340 } else { 1360 };
            for (gso_size, reason) in
                [(room, Reason::FORWARD), (room + 1, Reason::TOO_BIG), (0, Reason::TOO_BIG)]
            {
                world.gso_size = gso_size;
                assert_eq!(world.client_sends(&data).reason, reason, "{gso_size}");
            }
            world.gso_size = 0;
        }
    });
}
