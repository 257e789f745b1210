//! Endpoints that refuse connections are left out for a while.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use anyhow::ensure;
use lb_tests::cmd::wait_for;
use lb_tests::scenario::Setup;
use lb_tests::world::{PATIENCE, Seen, World, number};

use crate::{Cluster, ECHO, LISTENER, RUNGS, health_flags, history, row, start, wait_state};

const ONE_ATTEMPT: u16 = LISTENER;
const ATTEMPTS: u16 = LISTENER + 1;
const ALONE: u16 = LISTENER + 2;

#[test]
fn endpoints_that_refuse() {
    for (setup, family) in RUNGS {
        let keys = |attempts: u32, ejection: &str| {
            format!(
                "connect_attempts: {attempts}, connect_timeout: 10s, outlier: {{ consecutive_failures: 3, \
                 ejection: {ejection}, max_ejection_percent: 50 }}"
            )
        };
        let clusters = [
            Cluster::new("one", family, &[1, 2], ECHO, &keys(1, "1s")),
            Cluster::new("more", family, &[1, 2], ECHO + 1, &keys(3, "5m")),
            Cluster::new("alone", family, &[3], ECHO + 2, &keys(1, "1s")),
        ];
        let mut world = start(setup, family, &clusters, &[]);
        world.close(1, ECHO);
        world.close(1, ECHO + 1);
        world.close(3, ECHO + 2);
        with_one_attempt(&mut world);
        with_more_attempts(&world);
        alone(&world);
    }
}

/// Clients feel it until it is ejected. The second ejection in a row is longer.
fn with_one_attempt(world: &mut World) {
    let ejections = [(1, "left out for 1s"), (2, "left out for 2s, its ejection 2 in a row")];
    let mut known = history(world, "one", 1).len();
    for (count, said) in ejections {
        let ejected = wait_for("backend 1 is ejected", PATIENCE, || {
            // Every second one would be its.
            (0..6).for_each(|_| {
                works(world, ONE_ATTEMPT);
            });
            let history = history(world, "one", 1);
            ensure!(history.len() > known, "{history:?}");
            Ok(history[known].clone())
        });
        let (to, why) = ejected.unwrap();
        let is_said =
            why.contains(" attempts to connect to it in a row have failed: ") && why.ends_with(said);
        assert!(to == "ejected" && is_said, "{to}: {why}");
        let stats = world.stats_now();
        let of = |name: &str| number(&stats, &format!("cluster.one.outlier_detection.ejections_{name}"));
        assert_eq!((of("enforced_total"), of("enforced_consecutive_5xx")), (count, count));
        if count == 2 {
            world.listen(1, ECHO);
        }
        wait_state(world, "one", 1, "healthy");
        let (to, why) = history(world, "one", 1)[known + 1].clone();
        assert_eq!((to.as_str(), why.as_str()), ("healthy", "its ejection is over"));
        known += 2;
    }
    assert_eq!(world.used(ONE_ATTEMPT), [1, 2]);
    assert_eq!(number(&world.stats_now(), "cluster.one.outlier_detection.ejections_active"), 0);
}

/// Nobody feels it.
fn with_more_attempts(world: &World) {
    wait_for("backend 1 is ejected", PATIENCE, || {
        let all_work = std::thread::scope(|scope| {
            let clients: Vec<_> = (0..8).map(|_| scope.spawn(|| works(world, ATTEMPTS))).collect();
            clients.into_iter().all(|client| client.join().unwrap())
        });
        assert!(all_work);
        let row = row(world, "more", 1)?;
        ensure!(row["state"] == "ejected", "{row}");
        Ok(())
    })
    .unwrap();
    assert_eq!(world.used(ATTEMPTS), [2]);
    let flags =
        |number| health_flags(&world.page("/clusters"), "more", world.backend(number, ECHO + 1)).unwrap();
    assert_eq!((flags(1).as_str(), flags(2).as_str()), ("/failed_outlier_check", "healthy"));
    let stats = world.stats_now();
    let of = |name: &str| number(&stats, &format!("cluster.more.outlier_detection.ejections_{name}"));
    assert_eq!((of("active"), of("enforced_total"), of("overflow")), (1, 1, 0));
}

/// One of one would be more than half: it stays, and that is told once.
fn alone(world: &World) {
    world.stats(|stats| {
        assert!(!works(world, ALONE));
        number(stats, "cluster.alone.outlier_detection.ejections_overflow") >= 2
    });
    let mut history = history(world, "alone", 3);
    assert!(history.iter().all(|(to, _)| to == "healthy"), "{history:?}");
    history.retain(|(_, why)| why.contains("not left out"));
    assert_eq!(history.len(), 1, "{history:?}");
    assert_eq!(row(world, "alone", 3).unwrap()["state"], "healthy");
    let enforced = "cluster.alone.outlier_detection.ejections_enforced_total";
    assert_eq!(number(&world.stats_now(), enforced), 0);
}

/// Whether a connection attempt comes to something; a refusal is all else that it may come to.
fn works(world: &World, port: u16) -> bool {
    let exchange = |mut stream: TcpStream| {
        let mut back = [0; 5];
        stream.write_all(b"hello").and_then(|()| stream.read_exact(&mut back)).is_ok()
    };
    // The handshake of a kernel flow is the backend's own.
    let refused = if world.setup == Setup::Proxy { Seen::Reset } else { Seen::Refused };
    world.connect(port).map_or_else(
        |seen| {
            assert_eq!(seen, refused);
            false
        },
        exchange,
    )
}
