//! Every other end of a SYN, and frames that are not for the datapath.

use lb_common::{Reason, Rung};
use lb_tests::sample::{self, SNAT_PORTS, network, port};

use crate::handshake::{client, establish, syn};
use crate::lockstep::on_each_rung;

#[test]
fn syns_that_the_proxy_gets() {
    on_each_rung(|world| {
        let only_on_tc = |reason| if world.rung == Rung::Xdp { Reason::TO_TC } else { reason };
        let cases = [
            (port::DRAINING, Reason::DRAINING),
            (port::EMPTY, Reason::NO_BACKEND),
            (port::UNUSED, Reason::NO_BACKEND),
            (port::PROXY_ONLY, Reason::PROXY_BACKEND),
            (port::OTHER_FAMILY, Reason::PROXY_BACKEND),
            (port::GONE, Reason::NO_NEXT_HOP),
            (port::NO_SNAT, Reason::NO_PORT),
            (port::TC_ONLY, only_on_tc(Reason::NEW_FLOW)),
            (port::UNRESOLVED, only_on_tc(Reason::NEW_FLOW)),
            (port::STALE, only_on_tc(Reason::NEW_FLOW)),
            (*port::ALL.start() - 1, Reason::NO_FLOW),
            (*port::ALL.end() + 1, Reason::NO_FLOW),
        ];
        for v6 in [false, true] {
            for (port, reason) in cases {
                let segment = client(v6, network::LINK, port, port);
                assert_eq!(world.client_sends(&syn(&segment)).reason, reason, "port {port}, v6 {v6}");
                // What went up leaves a tombstone; what no service has does not.
                let again = match reason {
                    Reason::NO_FLOW | Reason::TO_TC => reason,
                    Reason::NEW_FLOW => Reason::SYN_REPEATED,
                    _ => Reason::TOMBSTONE,
                };
                assert_eq!(world.client_sends(&syn(&segment)).reason, again, "again, port {port}, v6 {v6}");
            }
            for network in [network::GONE, network::NOWHERE] {
                let segment = client(v6, network, 1, port::MAGLEV);
                assert_eq!(world.client_sends(&syn(&segment)).reason, Reason::NO_ROUTE);
                assert_eq!(world.client_sends(&syn(&segment).seq(1)).reason, Reason::TOMBSTONE);
            }
        }
    });
}

#[test]
fn a_redirect_to_a_device_that_is_not_there_is_a_drop() {
    on_each_rung(|world| {
        // The host has no device map: what the kernel has to do instead stands in `lockstep`.
        let agreed = world.client_sends(&syn(&client(false, network::LINK, 1, port::UNMAPPED)));
        let unmapped = world.devices().unmapped.ifindex;
        let reason = if world.rung == Rung::Xdp { Reason::HOP_GONE } else { Reason::NEW_FLOW };
        assert_eq!((agreed.reason, agreed.sent), (reason, Some(unmapped)));
    });
}

#[test]
fn a_full_table_and_ports_that_run_out() {
    on_each_rung(|world| {
        for v6 in [false, true] {
            let mut tables = sample::tables(&world.devices());
            tables.settings.max_flows = 3;
            world.start_with(world.rung, tables);
            for number in 0..3 {
                establish(world, &client(v6, network::LINK, number, port::ROUND_ROBIN));
            }
            let fourth = syn(&client(v6, network::LINK, 3, port::ROUND_ROBIN));
            assert_eq!(world.client_sends(&fourth).reason, Reason::TABLE_FULL);

            world.start(world.rung);
            let mut reasons = Vec::new();
            // One backend, two SNAT addresses: so many flows and no more.
            let room = 2 * SNAT_PORTS.len();
            for number in 0..room as u16 * 3 {
                let number = 1000 + number;
                reasons
                    .push(world.client_sends(&syn(&client(v6, network::LINK, number, port::RANDOM))).reason);
            }
            let opened = reasons.iter().filter(|reason| **reason == Reason::NEW_FLOW).count();
            assert!(opened <= room && opened > room / 2, "{opened} of {room}");
            assert!(reasons.iter().all(|reason| [Reason::NEW_FLOW, Reason::NO_PORT].contains(reason)));
        }
    });
}

#[test]
fn frames_of_others() {
    on_each_rung(|world| {
        let ingress = world.devices().client;
        let frame = syn(&client(false, network::LINK, 1, port::ROUND_ROBIN)).build().0;
        for (destination, reason) in
            [([0xff; 6], Reason::NOT_UNICAST), ([1, 0, 0x5e, 0, 0, 1], Reason::NOT_UNICAST)]
        {
            let mut frame = frame.clone();
            frame[..6].copy_from_slice(&destination);
            assert_eq!(world.frame_as_it_is(ingress, &frame).reason, reason);
        }
        let mut to_another = frame.clone();
        to_another[..6].copy_from_slice(&[2, 0, 0, 0, 0x99, 0x99]);
        let reason = if world.rung == Rung::Tc { Reason::NOT_UNICAST } else { Reason::NEW_FLOW };
        assert_eq!(world.frame_as_it_is(ingress, &to_another).reason, reason);

        for (ethertype, reason) in
            [(0x0806, Reason::NOT_IP), (0x86dd, Reason::MALFORMED), (0x88cc, Reason::NOT_IP)]
        {
            let mut frame = frame.clone();
            frame[12..14].copy_from_slice(&u16::to_be_bytes(ethertype));
            assert_eq!(world.frame(ingress, &frame).reason, reason);
        }
        for protocol in [1, 17, 132] {
            let mut frame = frame.clone();
            frame[23] = protocol;
            let icmp = protocol == 1 && world.rung == Rung::Tc;
            let reason = if icmp { Reason::ICMP_OTHER } else { Reason::NOT_TCP };
            assert_eq!(world.frame(ingress, &frame).reason, reason);
        }
    });
}
