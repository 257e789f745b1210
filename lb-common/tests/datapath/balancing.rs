//! Which backends connections are spread over.

use std::collections::{HashMap, HashSet};

use lb_common::balance::policy::{LEAST_REQUEST, MAGLEV, RANDOM, ROUND_ROBIN, SOURCE_IP};
use lb_common::host_scenario::{backend_address, backend_index, client, set_slots};
use lb_common::maglev::{self, Candidate};
use lb_common::tables::backend;
use lb_common::{Reason, Rung};

use crate::world::{BOTH, RUNGS, World};

/// The backends of a family with these weights.
fn candidates(v6: bool, weights: &[u32]) -> Vec<Candidate> {
    let count = weights.len() as u32;
    (0..count)
        .map(|n| {
            let address = backend_address(v6, n);
            Candidate {
                index: backend_index(v6, count, n),
                identity: maglev::identity(lb_common::address::words(address.ip()), address.port()),
                weight: weights[n as usize],
            }
        })
        .collect()
}

/// The backend of each of `count` connections, of different ports and addresses.
fn drawn(world: &World, v6: bool, count: u16) -> Vec<u32> {
    (0..count).map(|n| world.open(client(v6, n), 1, Reason::NEW_FLOW).backend).collect()
}

#[test]
fn round_robin_keeps_the_smooth_order() {
    for rung in RUNGS {
        for v6 in BOTH {
            let mut world = World::new(rung, ROUND_ROBIN, 3);
            set_slots(&mut world.tables, v6 as u32, ROUND_ROBIN, &candidates(v6, &[5, 1, 1]));
            let round = [0, 1, 0, 0, 0, 2, 0];
            assert_eq!(drawn(&world, v6, 21), round.repeat(3));
        }
    }
}

/// The window shrinks under the cursor: it starts over.
#[test]
fn round_robin_survives_a_smaller_window() {
    let mut world = World::new(Rung::Tc, ROUND_ROBIN, 4);
    assert_eq!(drawn(&world, false, 3), [0, 1, 2]);
    world.tables.windows[0].count = 2;
    let rest: Vec<u32> =
        (10..14).map(|n| world.open(client(false, n), 1, Reason::NEW_FLOW).backend).collect();
    assert_eq!(rest, [0, 1, 0, 1]);
}

/// A heavy backend that does not answer: the repeated SYN finds the light one, however long the heavy one's run.
#[test]
fn a_retry_gets_out_of_a_long_run() {
    for v6 in BOTH {
        let mut world = World::new(Rung::Tc, ROUND_ROBIN, 2);
        world.tables.v4.services.values_mut().for_each(|service| service.attempts = 20);
        world.tables.v6.services.values_mut().for_each(|service| service.attempts = 20);
        set_slots(&mut world.tables, v6 as u32, ROUND_ROBIN, &candidates(v6, &[19, 1]));
        let first = world.open(client(v6, 1), 1, Reason::NEW_FLOW);
        assert_eq!(first.backend, 0);
        let syn = crate::world::client_packet(client(v6, 1)).flags(lb_common::tcp::flags::SYN).seq(1);
        let tries = (0..10).position(|_| world.on_client_side(&syn).reason == Reason::SYN_RETRIED);
        assert!(tries.is_some_and(|tries| tries < 5), "{tries:?}");
    }
}

#[test]
fn random_is_roughly_even() {
    for v6 in BOTH {
        let world = World::new(Rung::Xdp, RANDOM, 4);
        let mut shares = HashMap::new();
        for backend in drawn(&world, v6, 2_000) {
            *shares.entry(backend).or_insert(0) += 1;
        }
        // Five standard deviations (19.4) around 500; the host's random numbers are the same in each run.
        assert!((0..4).all(|backend| (400..=600).contains(&shares[&backend])), "{shares:?}");
    }
}

#[test]
fn maglev_goes_by_the_tuple_and_source_ip_by_the_address() {
    for policy in [MAGLEV, SOURCE_IP] {
        for v6 in BOTH {
            let (one, other) = (World::new(Rung::Xdp, policy, 10), World::new(Rung::Tc, policy, 10));
            let drawn_here = drawn(&one, v6, 1_000);
            assert_eq!(drawn_here, drawn(&other, v6, 1_000), "the same on every node and rung");
            assert_eq!(drawn_here.iter().collect::<HashSet<_>>().len(), 10, "all of them have a share");
            // Clients n and n + 100 have one address.
            let alike = (0..900).filter(|n| drawn_here[*n] == drawn_here[n + 100]).count();
            match policy {
                SOURCE_IP => assert_eq!(alike, 900),
                // A tenth by chance.
                _ => assert!(alike < 200, "{alike}"),
            }
        }
    }
}

/// A backend less: the connections of the others stay where they are, but for a few.
#[test]
fn maglev_is_stable() {
    for v6 in BOTH {
        let mut world = World::new(Rung::Tc, MAGLEV, 10);
        let before = drawn(&world, v6, 1_000);
        let mut rest = candidates(v6, &[1; 10]);
        rest.remove(3);
        world = World::new(Rung::Tc, MAGLEV, 10);
        set_slots(&mut world.tables, v6 as u32, MAGLEV, &rest);
        let after = drawn(&world, v6, 1_000);
        let moved =
            before.iter().zip(&after).filter(|(before, after)| **before != 3 && before != after).count();
        assert!(after.iter().all(|backend| *backend != 3));
        assert!(moved < 100, "{moved}");
    }
}

/// One store takes a backend out, also of slots that still name it.
#[test]
fn a_backend_that_is_out_gets_no_new_flow() {
    for policy in [ROUND_ROBIN, RANDOM, MAGLEV, SOURCE_IP, LEAST_REQUEST] {
        for v6 in BOTH {
            let mut world = World::new(Rung::Tc, policy, 4);
            world.tables.backends[backend_index(v6, 4, 2) as usize].flags |= backend::OUT;
            for n in 0..400 {
                let syn = crate::world::client_packet(client(v6, n)).flags(lb_common::tcp::flags::SYN).seq(1);
                let outcome = world.on_client_side(&syn);
                // Some find it each time that they draw, and are the proxy's.
                assert!(
                    [Reason::NEW_FLOW, Reason::NO_BACKEND].contains(&outcome.reason),
                    "{:?}",
                    outcome.reason
                );
            }
            let opened: Vec<u32> = if v6 {
                world.tables.v6.half_open_entries().iter().map(|flow| flow.backend.into()).collect()
            } else {
                world.tables.v4.half_open_entries().iter().map(|flow| flow.backend.into()).collect()
            };
            assert!(opened.len() > 2 * 380 && !opened.contains(&backend_index(v6, 4, 2)), "{}", opened.len());
        }
    }
}

#[test]
fn attempts_that_fail_count_until_one_does_not() {
    let world = World::new(Rung::Tc, ROUND_ROBIN, 1);
    let failing = || world.tables.active_at(backend_index(false, 1, 0)).failing;
    for n in 1..=3 {
        let connection = world.open(client(false, n), 1, Reason::NEW_FLOW);
        let refusal = connection.of_backend().seq(0).flags(lb_common::tcp::flags::RST);
        world.on_backend_side(&refusal).left(Reason::REFUSED_RETRY);
        assert_eq!(failing(), u64::from(n));
    }
    world.connect(client(false, 9), 1);
    assert_eq!(failing(), 0);
}
