//! The XDP program for frames of several buffers.

use lb_common::host::{Frame, run};
use lb_common::tables::hop;
use lb_common::{Env, Reason, Rung};
use lb_tests::prog::{Bed, coarse_now};
use lb_tests::sample::{self, network, port};

use crate::handshake::{client, client_ack, establish};
use crate::lockstep::{Lockstep, hex};

const XDP_PASS: u32 = 2;
const XDP_REDIRECT: u32 = 4;

#[test]
fn frames_of_several_buffers_go_where_the_driver_takes_them() {
    Bed::run(sample::MAX_FLOWS, |bed| {
        let mut world = Lockstep::new(bed);
        let ingress = world.devices().client;
        for (takes, action, reason) in
            [(0, XDP_PASS, Reason::TO_TC), (hop::XDP_SG, XDP_REDIRECT, Reason::FORWARD)]
        {
            let mut tables = sample::tables(&world.devices());
            for hop in tables.next_hops.iter_mut().skip(1) {
                (hop.mtu, hop.flags) = (9_000, hop.flags | takes);
            }
            world.start_with(Rung::Xdp, tables);
            for v6 in [false, true] {
                let segment = client(v6, network::LINK, 1, port::VLAN);
                establish(&mut world, &segment);
                // What lies in one buffer goes in any case.
                for (length, scattered) in [(100, false), (8_800, true)] {
                    let mut frame = client_ack(&segment).payload(&vec![0x5a; length]).build();
                    frame.0[..6].copy_from_slice(&ingress.mac);
                    let kernel = world.bed.scattered_packet(ingress.ifindex, &frame.0).unwrap();
                    let mut env = Env::new(Rung::Xdp, ingress.ifindex, coarse_now());
                    env.scattered = scattered;
                    let mut wanted = Frame(frame.0);
                    let agreed = run(&env, &mut wanted, &world.host);
                    let expected = if scattered { (action, reason) } else { (XDP_REDIRECT, Reason::FORWARD) };
                    assert_eq!((kernel.action, agreed.reason), expected, "{length} bytes, v6 {v6}");
                    assert_eq!(kernel.reasons, [(Rung::Xdp, agreed.reason, 1)]);
                    assert_eq!(hex(&kernel.frame), hex(&wanted.0));
                }
            }
            world.compare_tables();
        }
    });
}
