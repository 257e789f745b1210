//! Which of the healthy endpoints get new connections: by priority, by node, and with what share after a return.

use std::time::{Duration, Instant};

use anyhow::ensure;
use lb_tests::cmd::wait_for;
use lb_tests::topology::Family;
use lb_tests::world::{PATIENCE, World};

use crate::{CHECKED, Cluster, ECHO, LISTENER, PROBE, RUNGS, address, start, wait_state};

const PRIORITIES: u16 = LISTENER;
const LOCAL: u16 = LISTENER + 1;
const SLOW: u16 = LISTENER;
const WINDOW: Duration = Duration::from_secs(5);

#[test]
fn priorities_and_the_own_node() {
    for (setup, family) in RUNGS {
        let clusters = [
            Cluster {
                hosts: with(family, ECHO, ["priority: 0", "priority: 1", "priority: 1"]),
                ..of("levels", "")
            },
            Cluster {
                hosts: with(family, ECHO + 1, ["node: here", "node: there", "weight: 1"]),
                ..of("nodes", "prefer_local: node, ")
            },
        ];
        let mut world = start(setup, family, &clusters, &["--node-name", "here"]);
        for listener in [PRIORITIES, LOCAL] {
            assert_eq!(world.used(listener), [1]);
        }
        world.close(1, PROBE);
        both_wait_state(&world, "unhealthy");
        for listener in [PRIORITIES, LOCAL] {
            assert_eq!(world.used(listener), [2, 3]);
        }
        world.listen(1, PROBE);
        both_wait_state(&world, "healthy");
        for listener in [PRIORITIES, LOCAL] {
            assert_eq!(world.used(listener), [1]);
        }
    }
}

fn both_wait_state(world: &World, state: &str) {
    for cluster in ["levels", "nodes"] {
        wait_state(world, cluster, 1, state);
    }
}

fn of(name: &'static str, keys: &str) -> Cluster {
    Cluster { name, hosts: Vec::new(), keys: format!("{keys}{CHECKED}") }
}

/// Each backend with a key of its own.
fn with(family: Family, port: u16, keys: [&str; 3]) -> Vec<String> {
    let host = |(key, number)| format!("{{ address: \"{}\", {key} }}", address(family, number, port));
    keys.into_iter().zip(1..).map(host).collect()
}

#[test]
fn a_share_grows_after_a_return() {
    for (setup, family) in RUNGS {
        let keys = format!("slow_start: {}s, {CHECKED}", WINDOW.as_secs());
        let mut world = start(setup, family, &[Cluster::new("slow", family, &[1, 2], ECHO, &keys)], &[]);
        assert_eq!(share(&world), 1.0, "those of the start are there at once");
        world.close(1, PROBE);
        wait_state(&world, "slow", 1, "unhealthy");
        let began = Instant::now();
        world.listen(1, PROBE);
        wait_state(&world, "slow", 1, "healthy");
        let mut shares = vec![share(&world)];
        let spread = world.spread(SLOW, 20);
        shares.push(share(&world));
        let count = |number| spread.get(&number).copied().unwrap_or(0);
        if shares[1] < 0.5 {
            assert!(count(1) < count(2), "{spread:?} with {shares:?}");
        }
        wait_for("the share is whole", PATIENCE, || {
            shares.push(share(&world));
            ensure!(shares.ends_with(&[1.0]), "{shares:?}");
            Ok(())
        })
        .unwrap();
        assert!(began.elapsed() >= WINDOW * 9 / 10, "after {:?}: {shares:?}", began.elapsed());
        assert!(shares.is_sorted() && shares[0] < 0.5, "{shares:?}");
        let spread = world.spread(SLOW, 20);
        // Each CPU takes them in turn.
        assert!(spread[&1].abs_diff(spread[&2]) <= 4, "{spread:?}");
    }
}

/// Of backend 1, in those of backend 2.
fn share(world: &World) -> f64 {
    let backends = world.agent.backends().unwrap();
    let [one, other] = [1, 2].map(|number| {
        let address = world.backend(number, ECHO).to_string();
        let row = backends.as_array().unwrap().iter().find(|row| row["address"] == *address);
        row.unwrap()["share"].as_f64().unwrap()
    });
    one / other
}
