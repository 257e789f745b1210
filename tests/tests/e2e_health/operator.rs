//! What the operator drains stays drained, also over a restart of the agent, until he takes that back.

use std::time::{Duration, Instant};

use anyhow::ensure;
use lb_tests::cmd::wait_for;
use lb_tests::scenario::Setup;
use lb_tests::world::{PATIENCE, Seen, World, end, exchange};

use crate::{Cluster, ECHO, LISTENER, RUNGS, health_flags, row, start, wait_state};

const LEAVE: &str = "--leave-datapath";
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// Much longer than anything that ends connections takes after the drain timeout.
const LATER: Duration = Duration::from_secs(3);

#[test]
fn a_backend_and_the_node() {
    for (setup, family) in RUNGS {
        let cluster = Cluster::new("web", family, &[1, 2], ECHO, "drain_timeout: 1s");
        let mut world = start(setup, family, &[cluster], &[LEAVE]);
        a_backend(&mut world);
        the_node(&mut world);
    }
}

fn a_backend(world: &mut World) {
    let drained = world.backend(1, ECHO);
    let mut open = world.open_to(1, LISTENER);
    let mut other = world.open_to(2, LISTENER);
    let began = Instant::now();
    world.agent.headgate(&["drain", &drained.to_string()]).unwrap();
    assert_eq!(world.used(LISTENER), [2]);
    assert_eq!(health_flags(&world.page("/clusters"), "web", drained).unwrap(), "/eds_status_draining");
    assert_eq!(end(&mut open), Seen::Reset);
    assert!(began.elapsed() >= DRAIN_TIMEOUT, "after {:?}", began.elapsed());
    world.wait_reset_at(1, ECHO, 1);
    assert_eq!(world.line_of(LISTENER, open.local_addr().unwrap())["why"], "drained");
    exchange(&mut other, b"still there");

    restart(world);
    if world.setup != Setup::Proxy {
        exchange(&mut other, b"still there");
    }
    let row = row(world, "web", 1).unwrap();
    assert_eq!((&row["state"], &row["why"]), (&"draining".into(), &"drained by the operator".into()));
    assert_eq!(world.used(LISTENER), [2]);
    world.agent.headgate(&["undrain", &drained.to_string()]).unwrap();
    wait_state(world, "web", 1, "healthy");
    assert_eq!(world.used(LISTENER), [1, 2]);
}

fn the_node(world: &mut World) {
    wait_ready(world, "LIVE 200");
    let mut open = world.open_to(1, LISTENER);
    let began = Instant::now();
    world.agent.headgate(&["drain", "--all"]).unwrap();
    wait_ready(world, "DRAINING 503");
    let mut later = vec![open_to_the_proxy(world)];
    assert_eq!(end(&mut open), Seen::Reset);
    assert!(began.elapsed() >= DRAIN_TIMEOUT, "after {:?}", began.elapsed());
    world.wait_reset_at(1, ECHO, 1);
    assert_eq!(world.line_of(LISTENER, open.local_addr().unwrap())["why"], "drained");
    // What has come since is served, be it before or after the drain timeout.
    later.push(open_to_the_proxy(world));
    std::thread::sleep(LATER);
    later.iter_mut().for_each(|stream| exchange(stream, b"still there"));
    drop(later);

    restart(world);
    wait_ready(world, "DRAINING 503");
    drop(open_to_the_proxy(world));
    assert_eq!(world.used(LISTENER), [1, 2], "what was taken back stays so");
    world.agent.headgate(&["undrain", "--all"]).unwrap();
    wait_ready(world, "LIVE 200");
    let rung = world.rows_of(&[&world.open(LISTENER)]).remove(0)["rung"].clone();
    assert_eq!(rung == "proxy", world.setup == Setup::Proxy, "{rung}");
}

fn open_to_the_proxy(world: &World) -> std::net::TcpStream {
    let stream = world.open(LISTENER);
    assert_eq!(world.rows_of(&[&stream])[0]["rung"], "proxy");
    stream
}

/// Without a word to the kernel's connections.
fn restart(world: &mut World) {
    world.agent.terminate().unwrap();
    world.agent.require_exit(PATIENCE).unwrap();
    world.agent.restart(&[LEAVE]).unwrap();
}

fn wait_ready(world: &World, wanted: &str) {
    wait_for(&format!("/ready says {wanted}"), PATIENCE, || {
        let url = "http://127.0.0.1:8001/ready";
        let answer = world.topology.lb.run("curl", &["-s", "-m", "5", "-w", " %{http_code}", url])?;
        let answer = answer.split_whitespace().collect::<Vec<_>>().join(" ");
        ensure!(answer == wanted, "{answer}");
        Ok(())
    })
    .unwrap();
}
