//! What becomes of open connections when their endpoint leaves, is unhealthy, or the agent ends.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use lb_tests::scenario::Setup;
use lb_tests::topology::Family;
use lb_tests::world::{PATIENCE, Seen, World, end, exchange};

use crate::{ALL, CHECKED, Cluster, ECHO, LISTENER, PROBE, RUNGS, config, history, start, wait_state};

const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

const KEEP: u16 = LISTENER;
const DRAIN: u16 = LISTENER + 1;
const RESET: u16 = LISTENER + 2;

fn clusters(family: Family, numbers: &[usize], key: &str, more: &str) -> Vec<Cluster> {
    let rules = ["keep", "drain", "reset"].into_iter().zip(ECHO..);
    let cluster = |(rule, port)| {
        let keys = format!("{key}: {rule}, drain_timeout: 1s, {more}");
        Cluster::new(rule, family, numbers, port, &keys)
    };
    rules.map(cluster).collect()
}

/// Connections to one backend: one that has said little, one that has carried something both ways.
struct Open {
    listener: u16,
    number: usize,
    streams: [TcpStream; 2],
}

impl Open {
    fn at(world: &World, number: usize, listener: u16) -> Self {
        let mut streams = [world.open_to(number, listener), world.open_to(number, listener)];
        (0..100).for_each(|_| exchange(&mut streams[1], &[7; 4000]));
        Self { listener, number, streams }
    }

    fn go_on(&mut self) {
        self.streams.iter_mut().for_each(|stream| exchange(stream, b"still there"));
    }

    /// Both are reset at both ends, and so is `also` at the backend, and the log says why.
    fn require_reset(&mut self, world: &World, also: usize, why: &str) {
        for stream in &mut self.streams {
            assert_eq!(end(stream), Seen::Reset);
        }
        let port = self.listener - LISTENER + ECHO;
        world.wait_reset_at(self.number, port, self.streams.len() + also);
        for stream in &self.streams {
            let line = world.line_of(self.listener, stream.local_addr().unwrap());
            assert_eq!(line["why"], why, "{line}");
            assert_eq!(
                (&line["flags"], &line["down"], &line["up"]),
                (&"-".into(), &"Normal".into(), &"Normal".into())
            );
            assert_eq!(line["host"], world.backend(self.number, port).to_string());
            assert_eq!(line["rung"] == "proxy", world.setup == Setup::Proxy, "{line}");
        }
    }
}

/// No RST had a number that its receiver did not accept at once (RFC 5961, section 3.2).
fn require_unchallenged(world: &World) {
    for host in world.topology.hosts() {
        let challenges = host.counter("TcpExt", "TCPChallengeACK").unwrap();
        assert_eq!(challenges, 0, "in {}", host.name());
    }
}

/// Goes on all the time, until it ends: how that was.
fn go_on_until_the_end(stream: &mut TcpStream) -> Seen {
    let began = Instant::now();
    let error = loop {
        let mut back = [0; 4];
        if let Err(error) = stream.write_all(b"more").and_then(|()| stream.read_exact(&mut back)) {
            break error;
        }
        assert!(began.elapsed() < PATIENCE, "it goes on");
    };
    match error.kind() {
        ErrorKind::ConnectionReset => Seen::Reset,
        ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe => Seen::Closed,
        _ => panic!("{error}"),
    }
}

#[test]
fn an_endpoint_that_a_reload_takes_out() {
    for (setup, family) in ALL {
        let world = start(setup, family, &clusters(family, &[1, 2, 3], "on_removed", ""), &[]);
        let mut others = [KEEP, DRAIN, RESET].map(|listener| Open::at(&world, 1, listener));
        let [mut keep, mut drain, mut reset] =
            [KEEP, DRAIN, RESET].map(|listener| Open::at(&world, 3, listener));
        let mut busy = world.open_to(3, RESET);
        let began = std::thread::scope(|scope| {
            let busy = scope.spawn(|| go_on_until_the_end(&mut busy));
            let without = config(setup, family, &world.log, &clusters(family, &[1, 2], "on_removed", ""));
            let began = Instant::now();
            world.agent.reload(&without).unwrap().unwrap();
            assert_eq!(busy.join().unwrap(), Seen::Reset, "while it was at work");
            began
        });
        reset.require_reset(&world, 1, "drained");
        for listener in [KEEP, DRAIN, RESET] {
            assert_eq!(world.used(listener), [1, 2]);
        }
        drain.require_reset(&world, 0, "drained");
        assert!(began.elapsed() >= DRAIN_TIMEOUT, "after {:?}", began.elapsed());
        keep.go_on();
        others.iter_mut().for_each(Open::go_on);
    }
}

#[test]
fn an_endpoint_that_is_unhealthy() {
    for (setup, family) in RUNGS {
        let mut world = start(setup, family, &clusters(family, &[1, 2], "on_unhealthy", CHECKED), &[]);
        let mut others = [KEEP, DRAIN, RESET].map(|listener| Open::at(&world, 2, listener));
        let [mut keep, mut drain, mut reset] =
            [KEEP, DRAIN, RESET].map(|listener| Open::at(&world, 1, listener));
        let began = Instant::now();
        world.close(1, PROBE);
        reset.require_reset(&world, 0, "drained");
        for (cluster, listener) in [("keep", KEEP), ("drain", DRAIN), ("reset", RESET)] {
            wait_state(&world, cluster, 1, "unhealthy");
            let (to, why) = history(&world, cluster, 1).pop().unwrap();
            assert!(to == "unhealthy" && why.to_lowercase().contains("refused"), "{to}: {why}");
            assert_eq!(world.used(listener), [2]);
        }
        drain.require_reset(&world, 0, "drained");
        assert!(began.elapsed() >= DRAIN_TIMEOUT, "after {:?}", began.elapsed());
        world.listen(1, PROBE);
        for (cluster, listener) in [("keep", KEEP), ("drain", DRAIN), ("reset", RESET)] {
            wait_state(&world, cluster, 1, "healthy");
            assert_eq!(world.used(listener), [1, 2]);
        }
        keep.go_on();
        others.iter_mut().for_each(Open::go_on);
        require_unchallenged(&world);
    }
}

/// A connection of the client, and one of the node itself, which is the proxy's on every rung.
#[test]
fn what_is_open_when_the_agent_ends() {
    for (setup, family) in ALL {
        let cluster = Cluster::new("keep", family, &[1], ECHO, "drain_timeout: 1s");
        let mut world = start(setup, family, &[cluster], &[]);
        let mut open = Open::at(&world, 1, KEEP);
        let mut own = world.open_from(&world.topology.lb, KEEP);
        assert_eq!(world.rows_of(&[&own])[0]["rung"], "proxy");
        let began = Instant::now();
        world.agent.terminate().unwrap();
        open.require_reset(&world, 1, "shutdown");
        assert!(began.elapsed() >= DRAIN_TIMEOUT, "after {:?}", began.elapsed());
        assert_eq!(end(&mut own), Seen::Reset);
        let line = world.line_of(KEEP, own.local_addr().unwrap());
        assert_eq!(line["why"], "shutdown", "{line}");
        world.agent.require_exit(PATIENCE).unwrap();
        require_unchallenged(&world);
    }
}
