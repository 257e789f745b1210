//! Headers in front of TCP, frames cut short, and checksums.

use lb_common::host_packets::{PacketBuilder, extension, verify_checksums};
use lb_common::tcp::flags::{ACK, SYN};
use lb_common::{Reason, Rung};
use lb_tests::prog::is_runnable;
use lb_tests::sample::{network, port};

use crate::handshake::{client, client_ack, establish, syn, syn_ack};
use crate::lockstep::{Lockstep, on_each_rung};

/// What a client may send on a flow and for a new one, by name, and what has to come of it.
fn variants(v6: bool) -> Vec<(&'static str, Change, Outcome)> {
    use Outcome::{Carried, Expired, Is};
    let mut variants: Vec<(&'static str, Change, Outcome)> = vec![
        ("as it is", |packet| packet, Carried),
        ("trailing bytes", |packet| packet.trailer(6), Carried),
        ("TTL 2", |packet| packet.ttl(2), Carried),
        ("TTL 1", |packet| packet.ttl(1), Expired),
        ("TTL 0", |packet| packet.ttl(0), Expired),
        ("a tag", |packet| packet.tag(9), Carried),
        ("an outer tag", |packet| packet.service_tag(9), Carried),
        ("two tags", |packet| packet.service_tag(9).tag(10), Carried),
        ("two inner tags", |packet| packet.tag(9).tag(10), Carried),
        ("three tags", |packet| packet.service_tag(9).tag(10).tag(11), Is(Reason::NOT_IP)),
        ("all TCP options", |packet| packet.tcp_options(&[1; 40]), Carried),
        ("an MSS at an odd place", |packet| packet.tcp_options(&[1, 2, 4, 0xff, 0xff, 0]), Carried),
        ("an MSS without its value", |packet| packet.tcp_options(&[1, 1, 2, 4]), Carried),
        ("an option of length 0", |packet| packet.tcp_options(&[30, 0, 2, 4, 5, 6]), Carried),
        ("an option longer than all", |packet| packet.tcp_options(&[30, 200, 2, 4, 5, 6]), Carried),
        ("first fragment", |packet| packet.fragment(0, true), Is(Reason::FRAGMENT)),
        ("later fragment", |packet| packet.payload(&[7; 64]).fragment(3, true), Is(Reason::LATER_FRAGMENT)),
        ("last fragment", |packet| packet.payload(&[7; 64]).fragment(3, false), Is(Reason::LATER_FRAGMENT)),
    ];
    if v6 {
        variants.extend::<[(&'static str, Change, Outcome); 10]>([
            ("hop-by-hop", |packet| packet.extension(extension::HOP_BY_HOP, &[1, 4]), Carried),
            ("destination options", |packet| packet.extension(extension::DESTINATION, &[1, 30, 0]), Carried),
            ("spent routing header", |packet| packet.extension(extension::ROUTING, &[4, 0]), Carried),
            ("routing header", |packet| packet.extension(extension::ROUTING, &[4, 1]), Is(Reason::NOT_TCP)),
            ("atomic fragment", |packet| packet.fragment(0, false), Carried),
            (
                "four extensions",
                |packet| {
                    let packet = packet
                        .extension(extension::HOP_BY_HOP, &[0; 14])
                        .extension(extension::DESTINATION, &[]);
                    packet.extension(extension::ROUTING, &[4, 0]).extension(extension::DESTINATION, &[0; 62])
                },
                Carried,
            ),
            (
                "five extensions",
                |packet| (0..5).fold(packet, |packet, _| packet.extension(extension::DESTINATION, &[])),
                Is(Reason::NOT_TCP),
            ),
            (
                "a long extension",
                |packet| packet.extension(extension::DESTINATION, &[0; 70]),
                Is(Reason::NOT_TCP),
            ),
            (
                "authentication",
                |packet| packet.extension(extension::AUTHENTICATION, &[0; 22]),
                Is(Reason::NOT_TCP),
            ),
            (
                "a fragment behind an extension",
                |packet| packet.extension(extension::HOP_BY_HOP, &[]).fragment(0, true),
                Is(Reason::FRAGMENT),
            ),
        ]);
    } else {
        variants.extend::<[(&'static str, Change, Outcome); 3]>([
            ("an IP option", |packet| packet.ip_options(&[1, 1, 1, 0]), Carried),
            ("all IP options", |packet| packet.ip_options(&[1; 40]), Carried),
            (
                "IP options and a fragment",
                |packet| packet.ip_options(&[1; 8]).fragment(0, true),
                Is(Reason::FRAGMENT),
            ),
        ]);
    }
    variants
}

type Change = fn(PacketBuilder) -> PacketBuilder;

#[derive(Clone, Copy, Debug)]
enum Outcome {
    /// On its way, as `NEW_FLOW` or `FORWARD`.
    Carried,
    /// Answered by TC, to which XDP leaves it.
    Expired,
    Is(Reason),
}

impl Outcome {
    fn reason(self, rung: Rung, carried: Reason) -> Reason {
        match self {
            Self::Carried => carried,
            Self::Expired if rung == Rung::Xdp => Reason::TO_TC,
            Self::Expired => Reason::TTL_ANSWERED,
            Self::Is(reason) => reason,
        }
    }
}

#[test]
fn every_variant_of_the_headers_on_a_flow_and_for_a_new_one() {
    on_each_rung(|world| {
        for v6 in [false, true] {
            for (number, (name, change, outcome)) in (2..).zip(variants(v6)) {
                // By a router, whose clients may come with whatever tags.
                let segment = client(v6, network::ROUTER, number, port::MAGLEV);
                let agreed = world.client_sends(&change(syn(&segment)));
                assert_eq!(
                    agreed.reason,
                    outcome.reason(world.rung, Reason::NEW_FLOW),
                    "SYN, {name}, v6 {v6}"
                );
                if agreed.sent.is_some() {
                    verify_checksums(&agreed.frame).unwrap_or_else(|error| panic!("SYN, {name}: {error}"));
                }

                let segment = client(v6, network::ROUTER, 100 + number, port::ROUND_ROBIN);
                let opened = establish(world, &segment);
                let agreed = world.client_sends(&change(client_ack(&segment).payload(b"question")));
                assert_eq!(
                    agreed.reason,
                    outcome.reason(world.rung, Reason::FORWARD),
                    "data, {name}, v6 {v6}"
                );
                if agreed.sent.is_some() {
                    verify_checksums(&agreed.frame).unwrap_or_else(|error| panic!("data, {name}: {error}"));
                }
                let answer = opened.answer().seq(7_000_001).ack(0).flags(ACK).payload(b"odd answer");
                let agreed = world.backend_sends(&change(answer));
                assert_eq!(
                    agreed.reason,
                    outcome.reason(world.rung, Reason::REVERSE),
                    "answer, {name}, v6 {v6}"
                );
            }
        }
    });
}

#[test]
fn frames_cut_at_every_length() {
    on_each_rung(|world| {
        for v6 in [false, true] {
            let segment = client(v6, network::QINQ, 1, port::QINQ);
            establish(world, &segment);
            let data = client_ack(&segment).payload(b"some bytes");
            let mut whole = vec![data.clone(), syn(&client(v6, network::LINK, 2, port::MAGLEV))];
            if v6 {
                whole.push(
                    data.extension(extension::HOP_BY_HOP, &[0; 14]).extension(extension::DESTINATION, &[]),
                );
            } else {
                whole.push(data.ip_options(&[1; 12]));
            }
            for builder in whole {
                let frame = builder.build().0;
                let rung = world.rung;
                let lengths = (0..frame.len()).filter(|&length| is_runnable(rung, &frame[..length]));
                for length in lengths {
                    let agreed = world.frame(world.devices().client, &frame[..length]);
                    assert!(agreed.sent.is_none(), "{length} of {} bytes went on", frame.len());
                }
                assert!(world.frame(world.devices().client, &frame).sent.is_some());
            }
        }
    });
}

#[test]
fn lengths_that_contradict_each_other() {
    on_each_rung(|world| {
        for v6 in [false, true] {
            let segment = client(v6, network::LINK, 1, port::RANDOM);
            establish(world, &segment);
            let frame = client_ack(&segment).tcp_options(&[1; 12]).payload(&[0x77; 40]).build().0;
            let ingress = world.devices().client;
            // Every value of each byte that says how long something is, or what follows.
            let fields: &[usize] =
                if v6 { &[12, 13, 14, 18, 19, 20, 66] } else { &[12, 13, 14, 16, 17, 20, 21, 23, 46] };
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

#[test]
fn wrong_checksums_stay_wrong() {
    on_each_rung(|world| {
        for v6 in [false, true] {
            let segment = client(v6, network::LINK, 1, port::ROUND_ROBIN);
            let opened = establish(world, &segment);
            let (l4, l3_checksum) = if v6 { (54, None) } else { (34, Some(24)) };
            let from_client = (world.devices().client, client_ack(&segment).payload(b"x"));
            let from_backend =
                (world.devices().backend, opened.answer().seq(7_000_001).flags(ACK).payload(b"yz"));
            for (ingress, builder) in [from_client, from_backend] {
                for at in [Some(l4 + 16), l3_checksum].into_iter().flatten() {
                    for fault in [0x0001, 0x0100, 0x8000, 0x5555, 0xfffe] {
                        let mut frame = builder.build().0;
                        let right = u16::from_be_bytes([frame[at], frame[at + 1]]);
                        frame[at..at + 2].copy_from_slice(&(right ^ fault).to_be_bytes());
                        let agreed = world.frame(ingress, &frame);
                        assert!(agreed.sent.is_some(), "{:?}", agreed.reason);
                        verify_checksums(&agreed.frame).expect_err("a wrong checksum was made right");
                    }
                }
            }
        }
    });
}

/// All values of a checksum field, 0 and 0xffff among them: the kernel's arithmetic on TC is not our own.
#[test]
fn every_checksum_is_updated_alike() {
    on_each_rung(|world| {
        for v6 in [false, true] {
            let segment = client(v6, network::LINK, 1, port::ROUND_ROBIN);
            establish(world, &segment);
            let l4 = if v6 { 54 } else { 34 };
            let mut frame = client_ack(&segment).build().0;
            for check in (0..=0xffffu32).step_by(if v6 { 251 } else { 127 }).chain(0xfff0..=0xffff) {
                frame[l4 + 16..l4 + 18].copy_from_slice(&(check as u16).to_be_bytes());
                world.frame(world.devices().client, &frame);
            }
        }
    });
}

#[test]
fn a_syn_carries_data_and_congestion_bits() {
    const ECE_CWR: u8 = 0xc0;
    on_each_rung(|world: &mut Lockstep| {
        for v6 in [false, true] {
            let segment = client(v6, network::LINK, 1, port::VLAN);
            let opened = world.client_sends(&syn(&segment).flags(SYN | ECE_CWR).payload(b"early"));
            assert_eq!(opened.reason, Reason::NEW_FLOW);
            verify_checksums(&opened.frame).unwrap();
            let answer = world.backend_sends(&syn_ack(&opened).ack(0xffff_fff0u32.wrapping_add(6)));
            assert_eq!(answer.reason, Reason::SYN_ACK);
            let agreed = world
                .client_sends(&client_ack(&segment).seq(0xffff_fff0u32.wrapping_add(6)).payload(b"more"));
            assert_eq!(agreed.reason, Reason::ESTABLISHED);
        }
    });
}
