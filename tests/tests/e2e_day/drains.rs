//! An operator takes out backends, and the node.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::ensure;
use lb_tests::cmd::wait_for;
use lb_tests::timeline::{INDENT, ms};
use lb_tests::topology::{BACKEND_HTTP, Family};

use crate::A_WHILE;
use crate::day::{DRAIN_TIMEOUT, Day, PATIENCE};

/// A connection that is drained may end a little early: its time is looked at now and then.
const TOO_EARLY: Duration = Duration::from_millis(500);

pub(crate) fn backend(day: &mut Day<'_>) {
    day.phase("b1 is drained by the operator", |day| {
        let mut kept = day.connection_to(1);
        let began = Instant::now();
        accepted(day, &["drain", &address(1)]);
        day.require_decided(1, &["draining"], &["drained by the operator"]);
        kept.check().unwrap();
        day.require_left_out(1);
        wait_for("the drain timeout ends its connections", PATIENCE, || {
            ensure!(kept.check().is_err(), "one goes on");
            Ok(())
        })
        .unwrap();
        println!("{INDENT}a connection that was open at b1 lived on for {}", ms(began.elapsed()));
        assert!(began.elapsed() + TOO_EARLY >= DRAIN_TIMEOUT);
    });
    day.phase("the operator mistakes backends, drains them twice, and all but one", |day| {
        let unknown = refused(day, &["drain", &format!("10.200.9.9:{BACKEND_HTTP}")]);
        (1..=3).for_each(|number| assert!(unknown.contains(&address(number)), "{unknown}"));
        let (_, twice) = day.headgate(&["drain", &address(1)]);
        assert!(twice.contains("already"), "{twice}");
        accepted(day, &["drain", &address(2)]);
        let last = refused(day, &["drain", &address(3)]);
        assert!(last.contains("--force"), "{last}");
        accepted(day, &["undrain", &address(2)]);
        day.wait_used(2);
    });
    day.phase("b1 is drained no more", |day| {
        accepted(day, &["undrain", &address(1)]);
        day.wait_used(1);
    });
}

/// Readiness says so; what comes all the same is served.
pub(crate) fn node(day: &mut Day<'_>) {
    day.phase("the node is drained by the operator", |day| {
        accepted(day, &["drain", "--all"]);
        wait_ready_says(day, "DRAINING 503");
        let before = day.load.record().connections;
        sleep(A_WHILE);
        assert!(day.load.record().connections > before, "new connections are served");
    });
    day.phase("the node is drained no more", |day| {
        accepted(day, &["undrain", "--all"]);
        wait_ready_says(day, "LIVE 200");
        (1..=3).for_each(|number| day.wait_used(number));
    });
}

fn wait_ready_says(day: &Day<'_>, wanted: &str) {
    let began = Instant::now();
    wait_for(&format!("/ready says {wanted}"), PATIENCE, || {
        let url = "http://127.0.0.1:8001/ready";
        let answer = day.cluster.topology.lb.run("curl", &["-s", "-m", "1", "-w", " %{http_code}", url])?;
        let answer = answer.split_whitespace().collect::<Vec<_>>().join(" ");
        ensure!(answer == wanted, "{answer}");
        Ok(())
    })
    .unwrap();
    println!("{INDENT}/ready says {wanted} after {}", ms(began.elapsed()));
}

fn accepted(day: &Day<'_>, arguments: &[&str]) {
    let (success, said) = day.headgate(arguments);
    assert!(success, "{said}");
}

/// What it said.
fn refused(day: &Day<'_>, arguments: &[&str]) -> String {
    let (success, said) = day.headgate(arguments);
    assert!(!success, "headgate {arguments:?} is obeyed: {said}");
    said
}

fn address(number: usize) -> String {
    Family::V4.backend(number).to_string()
}
