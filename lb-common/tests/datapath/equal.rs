//! The short way of the common packet and the long way of all packets come to the same.

use lb_common::balance::policy::ROUND_ROBIN;
use lb_common::host::{Frame, run, run_slow};
use lb_common::host_packets::PacketBuilder;
use lb_common::host_scenario::{BACKEND_SIDE, CLIENT_SIDE, client};
use lb_common::tcp::flags::{ACK, FIN, RST, SYN};
use lb_common::{Env, Reason, Rung};
use proptest::prelude::*;

use crate::world::{World, client_packet};

/// Two worlds with the same history: three flows, one of which the client has finished.
fn worlds(rung: Rung, v6: bool) -> [(World, Vec<PacketBuilder>); 2] {
    [(); 2].map(|()| {
        let world = World::new(rung, ROUND_ROBIN, 2);
        let mut packets = Vec::new();
        for number in 1..=3 {
            let connection = world.connect(client(v6, number), 10);
            packets.push(connection.of_client());
            packets.push(connection.of_backend());
        }
        let half_open = world.open(client(v6, 4), 10, Reason::NEW_FLOW);
        packets.push(half_open.of_client());
        packets.push(half_open.of_backend());
        packets.push(client_packet(client(v6, 5)));
        (world, packets)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn both_ways_of_a_packet(
        tc in any::<bool>(),
        v6 in any::<bool>(),
        steps in proptest::collection::vec((0usize..9, 0u8..5, 0usize..1600, any::<u8>(), any::<bool>(), 0usize..80), 1..12),
    ) {
        let rung = if tc { Rung::Tc } else { Rung::Xdp };
        let [(fast, packets), (slow, _)] = worlds(rung, v6);
        for (number, kind, payload, odd, wrong_side, at) in steps {
            let packet = packets[number].clone().payload(&vec![odd; payload]);
            let packet = match kind {
                0 => packet,
                1 => packet.flags(ACK | FIN),
                2 => packet.flags(SYN),
                3 => packet.flags(RST),
                _ => packet.ttl(odd % 4),
            };
            let from_backend = number < 8 && number % 2 == 1;
            let ingress = if from_backend == wrong_side { CLIENT_SIDE } else { BACKEND_SIDE };
            let mut frame = packet.build();
            // Now and then something else in the headers.
            if odd > 200 && let Some(byte) = frame.0.get_mut(at) {
                *byte ^= odd;
            }
            let mut env = Env::new(rung, ingress, fast.now);
            env.gso_size = if tc && odd & 1 == 0 { 1000 } else { 0 };
            let mut other = Frame(frame.0.clone());
            let one = run(&env, &mut frame, &fast.tables);
            let two = run_slow(&env, &mut other, &slow.tables);
            prop_assert_eq!(one, two);
            prop_assert_eq!(frame, other);
            prop_assert_eq!(fast.state(), slow.state());
        }
    }
}
