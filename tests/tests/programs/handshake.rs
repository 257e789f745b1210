//! Flows from their SYN to their end, and handshakes that go another way.

use lb_common::Reason;
use lb_common::host_packets::{PacketBuilder, packet, verify_checksums};
use lb_common::tcp::flags::{ACK, FIN, RST, SYN};
use lb_tests::sample::{self, network, port, vip};

use crate::lockstep::{Agreed, Lockstep, on_each_rung};

const CLIENT_ISN: u32 = 0xffff_fff0;
const BACKEND_ISN: u32 = 7_000_000;
const CLIENT_MAC: [u8; 6] = [0x02, 0, 0, 0, 0x30, 1];

/// A bare segment of a client to the VIP, with the tags of the client's network.
pub(crate) fn client(v6: bool, network: u8, number: u16, port: u16) -> PacketBuilder {
    let source = (sample::host(v6, network, number as u8), 40_000 + number).into();
    let segment = packet(source, vip(v6, port)).macs(CLIENT_MAC, [0; 6]);
    match network {
        network::VLAN => segment.tag(5),
        network::QINQ | network::ROUTER_QINQ => segment.service_tag(7).tag(8),
        _ => segment,
    }
}

pub(crate) fn syn(segment: &PacketBuilder) -> PacketBuilder {
    segment.clone().flags(SYN).seq(CLIENT_ISN).tcp_options(&[2, 4, 0xff, 0xff, 1, 3, 3, 7])
}

/// The backend's answer to a forwarded SYN.
pub(crate) fn syn_ack(forwarded: &Agreed) -> PacketBuilder {
    forwarded.answer().flags(SYN).seq(BACKEND_ISN).ack(CLIENT_ISN.wrapping_add(1)).mss(9000)
}

pub(crate) fn client_ack(segment: &PacketBuilder) -> PacketBuilder {
    segment.clone().seq(CLIENT_ISN.wrapping_add(1)).ack(BACKEND_ISN + 1)
}

fn backend_ack(forwarded: &Agreed) -> PacketBuilder {
    forwarded.answer().seq(BACKEND_ISN + 1).ack(CLIENT_ISN.wrapping_add(1))
}

/// A forwarded frame has right checksums; the reason is as told.
#[track_caller]
fn forwarded(agreed: Agreed, reason: Reason) -> Agreed {
    assert_eq!(agreed.reason, reason);
    assert!(agreed.sent.is_some());
    verify_checksums(&agreed.frame).expect("right checksums");
    agreed
}

/// Opens a flow; gives the forwarded SYN.
#[track_caller]
pub(crate) fn establish(world: &mut Lockstep, segment: &PacketBuilder) -> Agreed {
    let opened = forwarded(world.client_sends(&syn(segment)), Reason::NEW_FLOW);
    forwarded(world.backend_sends(&syn_ack(&opened)), Reason::SYN_ACK);
    forwarded(world.client_sends(&client_ack(segment)), Reason::ESTABLISHED);
    opened
}

/// Ends a flow, the client first.
#[track_caller]
fn close(world: &mut Lockstep, segment: &PacketBuilder, opened: &Agreed) {
    forwarded(world.client_sends(&client_ack(segment).flags(FIN | ACK)), Reason::FORWARD);
    forwarded(world.backend_sends(&backend_ack(opened).flags(FIN | ACK)), Reason::REVERSE);
}

/// The clients and services whose flows XDP and TC carry alike.
fn paths() -> impl Iterator<Item = (bool, u8, u16)> {
    let networks = [network::LINK, network::ROUTER, network::VLAN, network::QINQ, network::ROUTER_QINQ];
    let ports = [
        port::ROUND_ROBIN,
        port::MAGLEV,
        port::SOURCE_IP,
        port::RANDOM,
        port::HAIRPIN,
        port::VLAN,
        port::QINQ,
        port::SERVICE_TAG,
    ];
    [false, true].into_iter().flat_map(move |v6| {
        networks.into_iter().flat_map(move |network| ports.into_iter().map(move |port| (v6, network, port)))
    })
}

#[test]
fn a_flow_from_syn_to_fin() {
    on_each_rung(|world| {
        for (n, (v6, network, port)) in (0u16..).zip(paths()) {
            let segment = client(v6, network, n, port);
            let opened = establish(world, &segment);
            for length in [0, 1, 333, 1336] {
                let payload = vec![0xa5; length];
                forwarded(world.client_sends(&client_ack(&segment).payload(&payload)), Reason::FORWARD);
                forwarded(world.backend_sends(&backend_ack(&opened).payload(&payload)), Reason::REVERSE);
            }
            close(world, &segment, &opened);
            forwarded(world.client_sends(&client_ack(&segment)), Reason::FORWARD);
        }
    });
}

#[test]
fn a_syn_on_an_ended_flow_opens_another() {
    on_each_rung(|world| {
        for v6 in [false, true] {
            let segment = client(v6, network::LINK, 1, port::ROUND_ROBIN);
            let opened = establish(world, &segment);
            // A SYN on a flow that lives goes to its backend as it is.
            forwarded(world.client_sends(&syn(&segment)), Reason::FORWARD);
            close(world, &segment, &opened);
            let again = establish(world, &segment);
            let reset = again.answer().seq(BACKEND_ISN + 1).flags(RST);
            forwarded(world.backend_sends(&reset), Reason::REVERSE);
            establish(world, &segment);
        }
    });
}

#[test]
fn a_reset_outside_the_window_ends_nothing() {
    on_each_rung(|world| {
        for v6 in [false, true] {
            let segment = client(v6, network::LINK, 1, port::MAGLEV);
            let opened = establish(world, &segment);
            forwarded(
                world.client_sends(&segment.clone().seq(CLIENT_ISN.wrapping_sub(1 << 30)).flags(RST)),
                Reason::FORWARD,
            );
            forwarded(world.client_sends(&syn(&segment)), Reason::FORWARD);
            // And one that the backend need not believe, until data says that it did not.
            let near = client_ack(&segment).seq(CLIENT_ISN.wrapping_add(501)).flags(RST);
            forwarded(world.client_sends(&near), Reason::FORWARD);
            forwarded(world.backend_sends(&backend_ack(&opened).payload(b"still here")), Reason::REVERSE);
            forwarded(world.client_sends(&syn(&segment)), Reason::FORWARD);
        }
    });
}

#[test]
fn a_repeated_syn_goes_elsewhere_while_attempts_remain() {
    on_each_rung(|world| {
        for v6 in [false, true] {
            let segment = client(v6, network::LINK, 1, port::ROUND_ROBIN);
            let first = forwarded(world.client_sends(&syn(&segment)), Reason::NEW_FLOW);
            let second = forwarded(world.client_sends(&syn(&segment)), Reason::SYN_RETRIED);
            assert_ne!(first.frame, second.frame, "another backend");
            let late = world.backend_sends(&syn_ack(&first));
            assert_eq!(late.reason, Reason::ABANDONED);
            let third = forwarded(world.client_sends(&syn(&segment)), Reason::SYN_RETRIED);
            let fourth = forwarded(world.client_sends(&syn(&segment)), Reason::SYN_REPEATED);
            assert_eq!(third.frame, fourth.frame, "no attempt is left");
            forwarded(world.backend_sends(&syn_ack(&third)), Reason::SYN_ACK);
            forwarded(world.client_sends(&syn(&segment)), Reason::SYN_REPEATED);
            forwarded(world.client_sends(&client_ack(&segment)), Reason::ESTABLISHED);
        }
    });
}

#[test]
fn a_refusal_is_kept_from_the_client_while_attempts_remain() {
    on_each_rung(|world| {
        for v6 in [false, true] {
            let segment = client(v6, network::LINK, 1, port::MAGLEV);
            let refusal = |to: &Agreed| to.answer().ack(CLIENT_ISN.wrapping_add(1)).flags(RST | ACK);
            let first = forwarded(world.client_sends(&syn(&segment)), Reason::NEW_FLOW);
            assert_eq!(world.backend_sends(&refusal(&first)).reason, Reason::REFUSED_RETRY);
            let next = world.client_sends(&syn(&segment));
            assert!([Reason::SYN_RETRIED, Reason::SYN_REPEATED].contains(&next.reason), "{:?}", next.reason);
            forwarded(world.backend_sends(&refusal(&next)), Reason::HALF_OPEN_RESET);
        }
    });
}

#[test]
fn a_syn_with_another_number_is_another_connection() {
    on_each_rung(|world| {
        for v6 in [false, true] {
            let segment = client(v6, network::ROUTER, 1, port::SOURCE_IP);
            let first = forwarded(world.client_sends(&syn(&segment)), Reason::NEW_FLOW);
            let other = syn(&segment).seq(12_345);
            let second = forwarded(world.client_sends(&other), Reason::NEW_FLOW);
            // By the hash of the address to the same backend, so an answer to the first is one to the second too,
            // unless the port is another.
            let answer = second.answer().flags(SYN).seq(BACKEND_ISN).ack(12_346);
            forwarded(world.backend_sends(&answer), Reason::SYN_ACK);
            drop(first);
            forwarded(
                world.client_sends(&segment.clone().seq(12_346).ack(BACKEND_ISN + 1)),
                Reason::ESTABLISHED,
            );
        }
    });
}

#[test]
fn a_backend_in_time_wait_is_answered_by_the_client() {
    on_each_rung(|world| {
        for v6 in [false, true] {
            let segment = client(v6, network::LINK, 1, port::RANDOM);
            let opened = forwarded(world.client_sends(&syn(&segment)), Reason::NEW_FLOW);
            let challenge = opened.answer().seq(99).ack(5_555);
            forwarded(world.backend_sends(&challenge), Reason::CHALLENGE);
            forwarded(world.client_sends(&segment.clone().seq(5_555).flags(RST)), Reason::HALF_OPEN_RESET);
            let again = forwarded(world.client_sends(&syn(&segment)), Reason::SYN_REPEATED);
            forwarded(world.backend_sends(&syn_ack(&again)), Reason::SYN_ACK);
            forwarded(world.client_sends(&client_ack(&segment)), Reason::ESTABLISHED);
        }
    });
}

#[test]
fn strays_pass() {
    on_each_rung(|world| {
        for v6 in [false, true] {
            let segment = client(v6, network::LINK, 1, port::ROUND_ROBIN);
            for flags in [SYN | ACK, RST, RST | ACK, ACK, FIN, FIN | ACK, 0, SYN | FIN, SYN | RST, 0xff] {
                let stray = segment.clone().flags(flags).seq(1);
                assert_eq!(world.client_sends(&stray).reason, Reason::NO_FLOW, "{flags:02x}");
                let backend = (sample::host(v6, network::BACKENDS, 1), 8080).into();
                let snat = (sample::host(v6, network::BACKENDS, 250), 20_001).into();
                let stray = stray.between(backend, snat);
                assert_eq!(world.backend_sends(&stray).reason, Reason::NO_FLOW, "{flags:02x}");
            }
            // In a half-open flow: a SYN-ACK for another SYN, and a client that acknowledges what nobody sent.
            let opened = forwarded(world.client_sends(&syn(&segment)), Reason::NEW_FLOW);
            let wrong = opened.answer().flags(SYN).seq(1).ack(CLIENT_ISN.wrapping_add(100));
            world.backend_sends(&wrong);
            assert_eq!(world.client_sends(&client_ack(&segment)).reason, Reason::NO_FLOW);
            let reset = opened.answer().seq(3).flags(RST);
            assert_eq!(world.backend_sends(&reset).reason, Reason::NO_FLOW);
        }
    });
}
