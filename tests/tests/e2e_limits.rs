//! The limits of connections, on every rung: backends that do not answer or refuse, idle and old connections, more
//! connections than a cluster may have, no backend at all. What the client and the backend see, what is logged, and what the
//! statistics say.
#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use lb_tests::echo::End;
use lb_tests::scenario::Setup;
use lb_tests::topology::Family;
use lb_tests::world::{PATIENCE, Seen, World, end, exchange, number, sections};
use serde_json::Value;

const ECHO: u16 = 7000;
/// Nobody listens there.
const CLOSED: u16 = 7001;
/// SYNs to there are dropped.
const DEAD: u16 = 7002;

fn start(setup: Setup, family: Family) -> World {
    let world = World::start(setup, family, &[ECHO], |log| config(setup, family, log));
    for backend in &world.topology.backends {
        let rules = format!(
            "add table inet limits; add chain inet limits in {{ type filter hook input priority 0; }}; \
             add rule inet limits in tcp dport {DEAD} drop"
        );
        backend.run("nft", &[&rules]).unwrap();
    }
    world
}

const LISTENERS: [&str; 7] = ["dead", "dead2", "refused", "idle", "old", "few", "none"];

fn port_of(listener: &str) -> u16 {
    8100 + LISTENERS.iter().position(|name| *name == listener).unwrap() as u16
}

fn config(setup: Setup, family: Family, log: &Path) -> String {
    let any = if family == Family::V4 { "0.0.0.0" } else { "[::]" };
    let hosts = |port: u16| {
        let hosts =
            (1..=3).map(|number| format!("\"{}\"", SocketAddr::new(family.backend(number).ip(), port)));
        hosts.collect::<Vec<_>>().join(", ")
    };
    let listener = |name: &str, rest: &str| {
        let port = port_of(name);
        format!("  - {{ name: {name}, address: \"{any}:{port}\", cluster: {name}{rest} }}\n")
    };
    let cluster = |name: &str, port: u16, rest: &str| {
        format!("  - {{ name: {name}, discovery: {{ type: static, hosts: [{}] }}{rest} }}\n", hosts(port))
    };
    [
        sections(setup, log, "  on_connect: true\n  flush_interval: 500ms\n"),
        "listeners:\n".to_owned(),
        listener("dead", ", connect_attempts: 1"),
        listener("dead2", ", connect_attempts: 2"),
        listener("refused", ", connect_attempts: 1"),
        listener("idle", ", idle_timeout: 1s"),
        listener("old", ", max_connection_duration: 2s"),
        listener("few", ""),
        listener("none", ""),
        "clusters:\n".to_owned(),
        cluster("dead", DEAD, ", connect_timeout: 600ms"),
        cluster("dead2", DEAD, ", connect_timeout: 600ms"),
        cluster("refused", CLOSED, ""),
        cluster("idle", ECHO, ""),
        cluster("old", ECHO, ", lb_policy: least_request"),
        cluster("few", ECHO, ", max_connections: 2"),
        "  - { name: none, discovery: { type: static, hosts: [] } }\n".to_owned(),
    ]
    .concat()
}

fn every_setup(test: impl Fn(&World)) {
    for setup in [Setup::Xdp, Setup::Tc, Setup::TcEgressTxOff, Setup::Proxy] {
        for family in Family::ALL {
            eprintln!("{setup:?}, {family}");
            test(&start(setup, family));
        }
    }
}

#[test]
fn backends_that_do_not_answer_or_refuse() {
    every_setup(|world| {
        // The handshake of a kernel flow is the backend's own.
        let refused = if world.setup != Setup::Proxy { Seen::Refused } else { Seen::Reset };
        for (listener, attempts) in [("dead", 1), ("dead2", 2), ("refused", 1)] {
            let began = Instant::now();
            assert_eq!(world.attempt(port_of(listener)), refused, "{listener}");
            if attempts > 1 {
                assert!(began.elapsed() >= Duration::from_secs(1), "the second attempt had its time");
            }
            let line = world.last_line(port_of(listener), 1);
            assert_eq!(
                (&line["flags"], &line["in"], &line["out"]),
                (&"UF,URX".into(), &0.into(), &0.into()),
                "{line}"
            );
            assert_eq!(line["why"], "tcp_initializion_failure:0", "{line}");
            assert_eq!(line["cluster"], listener);
            assert!(line["host"].is_string(), "{line}");
        }
        let stats = world.stats(|stats| number(stats, "cluster.refused.upstream_cx_connect_fail") > 0);
        let of = |cluster: &str, name: &str| number(&stats, &format!("cluster.{cluster}.upstream_cx_{name}"));
        for (cluster, attempts, timeouts) in [("dead", 1, 1), ("dead2", 2, 2), ("refused", 1, 0)] {
            assert_eq!(of(cluster, "total"), attempts, "{cluster}");
            assert_eq!(of(cluster, "connect_fail"), attempts, "{cluster}");
            assert_eq!(of(cluster, "connect_timeout"), timeouts, "{cluster}");
            assert_eq!(of(cluster, "connect_attempts_exceeded"), 1, "{cluster}");
            assert_eq!(of(cluster, "active"), 0, "{cluster}");
            assert_eq!(number(&stats, &format!("tcp.{cluster}.downstream_cx_total")), 1);
        }
    });
}

#[test]
fn idle_and_old_connections_are_reset_at_both_ends() {
    every_setup(|world| {
        for (listener, flags, why) in
            [("idle", "-", "tcp_session_idle_timeout"), ("old", "DT", "max_connection_duration_reached")]
        {
            let mut stream = world.open(port_of(listener));
            if listener == "old" {
                // It goes on all the time: what is on its way does not keep it alive.
                let began = Instant::now();
                stream.set_nodelay(true).unwrap();
                while began.elapsed() < PATIENCE {
                    let mut back = [0; 4];
                    if stream.write_all(b"more").and_then(|()| stream.read_exact(&mut back)).is_err() {
                        break;
                    }
                }
                assert!(began.elapsed() < PATIENCE, "it goes on");
            } else {
                assert_eq!(end(&mut stream), Seen::Reset);
            }
            let ends = world.end_at_a_backend();
            assert_eq!(ends, Some(End::Reset), "at the backend");
            let line = world.last_line(port_of(listener), 1);
            assert_eq!((&line["flags"], &line["why"]), (&flags.into(), &why.into()), "{line}");
            assert!(line["in"].as_u64().unwrap() >= 5 && line["out"].as_u64().unwrap() >= 5, "{line}");
            let connected = world.lines(port_of(listener), "TcpUpstreamConnected");
            assert_eq!(connected.len(), 1, "{connected:#?}");
            assert!(!world.lines(port_of(listener), "TcpPeriodic").is_empty());
        }
        let counted = |stats: &BTreeMap<String, String>| {
            number(stats, "tcp.idle.idle_timeout") == 1
                && number(stats, "tcp.old.max_downstream_connection_duration") == 1
        };
        let stats = world.stats(counted);
        for cluster in ["idle", "old"] {
            assert_eq!(number(&stats, &format!("cluster.{cluster}.upstream_cx_active")), 0);
            assert_eq!(number(&stats, &format!("cluster.{cluster}.upstream_cx_destroy_local")), 1);
        }
    });
}

#[test]
fn a_cluster_has_no_more_connections_than_it_may_have() {
    every_setup(|world| {
        let port = port_of("few");
        let mut held = [world.open(port), world.open(port)];
        let stats = world.stats_now();
        assert_eq!(number(&stats, "cluster.few.upstream_cx_active"), 2);
        assert_eq!(number(&stats, "cluster.few.circuit_breakers.default.cx_open"), 1);
        for count in 1..=3 {
            assert_eq!(world.attempt(port), Seen::Reset);
            let line = world.last_line(port_of("few"), count);
            assert_eq!((&line["flags"], &line["host"]), (&"UO".into(), &Value::Null), "{line}");
        }
        exchange(&mut held[0], b"still there");
        drop(held);
        world.stats(|stats| number(stats, "cluster.few.upstream_cx_active") == 0);
        let mut again = world.open(port);
        exchange(&mut again, b"and again");
        let stats = world.stats_now();
        assert_eq!(number(&stats, "cluster.few.upstream_cx_overflow"), 3);
        assert_eq!(number(&stats, "cluster.few.upstream_cx_total"), 3);
        // Without any backend.
        assert_eq!(world.attempt(port_of("none")), Seen::Reset);
        let line = world.last_line(port_of("none"), 1);
        assert_eq!(
            (&line["flags"], &line["why"]),
            (&"UH".into(), &"tcp_initializion_failure:1".into()),
            "{line}"
        );
        let stats = world.stats(|stats| number(stats, "cluster.none.upstream_cx_none_healthy") == 1);
        assert_eq!(number(&stats, "tcp.none.downstream_cx_total"), 1);
    });
}

#[test]
fn at_once_there_are_no_more_than_there_may_be() {
    for setup in [Setup::Xdp, Setup::Tc, Setup::Proxy] {
        let world = start(setup, Family::V4);
        let port = port_of("few");
        let streams: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..20).map(|_| scope.spawn(|| world.connect(port))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        // All are held to the end, so that none takes another's place.
        let mut streams: Vec<TcpStream> = streams.into_iter().flatten().collect();
        let works = |stream: &mut TcpStream| {
            let mut back = [0; 5];
            stream.write_all(b"hello").and_then(|()| stream.read_exact(&mut back)).is_ok()
        };
        let good = streams.iter_mut().map(works).filter(|works| *works).count();
        // The other CPU may complete a handshake at the same moment.
        assert!((2..=3).contains(&good), "{setup:?}: {good} connections at once");
    }
}
