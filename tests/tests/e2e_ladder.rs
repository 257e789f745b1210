//! Falling down a rung: each time the traffic is served, by the next one, and the reason is said.
#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

use std::process::Command;
use std::time::Duration;

use lb_tests::agent::{Agent, config, headgate};
use lb_tests::http::sequential;
use lb_tests::rung::Rung;
use lb_tests::scenario::{Scenario, Setup, start_nginx};
use lb_tests::topology::{Family, Options, Topology};

/// `mode: auto` takes TC on veth, and says why not XDP.
#[test]
fn auto_takes_tc_on_veth() {
    let topology = Topology::new(&Options::default()).unwrap();
    let _nginx = start_nginx(&topology, None).unwrap();
    let agent = Agent::start(&topology, &config("auto", &topology)).unwrap();
    let status = agent.status().unwrap();
    for interface in status["interfaces"].as_array().unwrap() {
        assert_eq!(interface["rung"], "tc");
        assert!(interface["why"].as_str().unwrap().contains("veth"), "{interface}");
    }
    let before = agent.totals().unwrap();
    sequential(&topology.client, Family::V4.vip(), 30).unwrap().require(30).unwrap();
    agent.require_carried(&before, Rung::Tc, 30).unwrap();
}

/// Backends' links that no XDP frame can be sent to: XDP leaves their packets to TC, and nothing is lost.
#[test]
fn xdp_leaves_to_tc_what_it_cannot_send() {
    let topology = Topology::new(&Options::default()).unwrap();
    let _nginx = start_nginx(&topology, None).unwrap();
    // Without an XDP program at the far end a veth takes no redirected frame. Where the configuration leaves the choice, it
    // is not used then.
    let devices = format!("interfaces: [{}]", topology.lb_devices().join(", "));
    let text = config("xdp", &topology).replace("interfaces: auto", &devices);
    let agent = Agent::start(&topology, &text).unwrap();
    assert!(topology.lb_xdp_modes().unwrap().values().all(|&mode| mode == 1));
    for family in Family::ALL {
        let before = agent.totals().unwrap();
        sequential(&topology.client, family.vip(), 30).unwrap().require(30).unwrap();
        agent.require_carried(&before, Rung::Tc, 30).unwrap();
    }
    assert!(agent.reason("to_tc").unwrap() > 0);
}

/// Without the capability to load programs the proxy carries everything, and one line says why.
#[test]
fn without_cap_bpf_the_proxy_carries_everything() {
    let topology = Topology::new(&Options::default()).unwrap();
    let _nginx = start_nginx(&topology, None).unwrap();
    let directory = tempdir("nocap");
    let wrapper = directory.join("headgate");
    let headgate = headgate().unwrap();
    let script = format!(
        "#!/bin/sh\nexec setpriv --bounding-set -bpf,-sys_admin,-perfmon --inh-caps -bpf,-sys_admin,-perfmon {} \"$@\"\n",
        headgate.display()
    );
    std::fs::write(&wrapper, script).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&wrapper, mode).unwrap();

    let agent = Agent::start_with(&wrapper, &topology, &config("auto", &topology), &[]).unwrap();
    for family in Family::ALL {
        let before = agent.totals().unwrap();
        sequential(&topology.client, family.vip(), 30).unwrap().require(30).unwrap();
        agent.require_carried(&before, Rung::Proxy, 30).unwrap();
    }
    let status = agent.status().unwrap();
    assert_eq!(status["mode"], "proxy");
    assert!(status["why"].as_str().unwrap().len() > 10, "{status}");
    let log = agent.log();
    assert_eq!(log.matches("no kernel datapath").count(), 1, "{log}");
    drop(agent);

    // Forced, it is an error instead.
    let error = Agent::start_with(&wrapper, &topology, &config("tc", &topology), &[]).unwrap_err();
    assert!(format!("{error:#}").contains("is not to be had"), "{error:#}");
    std::fs::remove_dir_all(directory).unwrap();
}

/// The fast path has no port left: the SYN goes up, the proxy serves.
#[test]
fn without_snat_ports_the_proxy_serves() {
    let topology = Topology::new(&Options::default()).unwrap();
    let _nginx = start_nginx(&topology, None).unwrap();
    // Two ports for each backend, and each rests for a minute after its connection.
    let text =
        config("tc", &topology).replace("interfaces: auto", "interfaces: auto, snat_ports: 20000-20001");
    let agent = Agent::start(&topology, &text).unwrap();
    let before = agent.totals().unwrap().sum();
    sequential(&topology.client, Family::V4.vip(), 100).unwrap().require(100).unwrap();
    let carried = agent.totals().unwrap().sum().since(before);
    assert!(carried.tc <= 6 && carried.tc > 0 && carried.proxy == 100 - carried.tc, "{carried:?}");
    assert!(agent.reason("no_port").unwrap() > 0);
}

/// The same client address always gets the same backend, whatever its port; by the whole tuple it spreads.
#[test]
fn hashing_policies_choose_alike_in_kernel_and_proxy() {
    let topology = Topology::new(&Options::default()).unwrap();
    let _nginx = start_nginx(&topology, None).unwrap();
    let mut answers = Vec::new();
    for mode in ["tc", "proxy"] {
        let text = config(mode, &topology).replace("round_robin", "source_ip");
        let agent = Agent::start(&topology, &text).unwrap();
        let outcome = sequential(&topology.client, Family::V4.vip(), 30).unwrap();
        outcome.require(30).unwrap();
        assert_eq!(outcome.served.len(), 1, "{:?}", outcome.served);
        answers.push(outcome.served);
        drop(agent);
    }
    assert_eq!(answers[0], answers[1]);

    for policy in ["maglev", "random"] {
        let text = config("tc", &topology).replace("round_robin", policy);
        let agent = Agent::start(&topology, &text).unwrap();
        let before = agent.totals().unwrap();
        let outcome = sequential(&topology.client, Family::V6.vip(), 300).unwrap();
        outcome.require(300).unwrap();
        agent.require_carried(&before, Rung::Tc, 300).unwrap();
        // A third each, within six standard deviations.
        assert!(outcome.served.values().all(|&n| (51..=149).contains(&n)), "{policy}: {:?}", outcome.served);
    }
}

/// What the user gets wrong is refused with exit code 1, the place, and what to do.
#[test]
fn bad_input_is_refused() {
    let scenario = Scenario::start(Setup::Tc, None).unwrap();
    let directory = tempdir("bad");
    let good = config("tc", &scenario.topology);
    let refused = |name: &str, text: &str, wanted: &[&str]| {
        let file = directory.join(name);
        std::fs::write(&file, text).unwrap();
        let run_dir = directory.join("run");
        let bpffs = scenario.agent.bpffs().with_extension(name);
        let mut command = lb_tests::netns::command(scenario.topology.lb.name(), headgate().unwrap());
        command.arg("run").arg("-c").arg(&file).arg("--run-dir").arg(&run_dir).arg("--bpffs").arg(&bpffs);
        let output = finish(&mut command);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{name}: {message}");
        for part in wanted {
            assert!(message.contains(part), "{name}: no `{part}` in: {message}");
        }
    };
    refused("bound", &good, &["0.0.0.0:80", "headgate"]);
    refused(
        "interface",
        &good.replace("interfaces: auto", "interfaces: [lc0, eth77]"),
        &["interface:1:", "eth77", "lc0"],
    );
    refused(
        "ports",
        &good.replace("interfaces: auto", "interfaces: auto, snat_ports: 40000-41000"),
        &["ports:1:", "datapath.snat_ports", "ip_local_port_range"],
    );
    refused("key", &good.replace("lb_policy", "lb_polcy"), &["key:8:", "lb_polcy", "lb_policy"]);
    refused("cluster", &good.replace("cluster: web4", "cluster: web5"), &["cluster:3:", "web5", "web4"]);
    // The running agent is none the worse.
    let before = scenario.agent.totals().unwrap();
    sequential(&scenario.topology.client, Family::V4.vip(), 30).unwrap().require(30).unwrap();
    scenario.agent.require_carried(&before, Rung::Tc, 30).unwrap();

    let unknown = finish(&mut scenario.agent.command(&["maps", "dump", "NOPE"]));
    assert_eq!(unknown.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("flows4"));
    std::fs::remove_dir_all(directory).unwrap();
}

/// The output of a command that ends by itself within ten seconds.
fn finish(command: &mut Command) -> std::process::Output {
    use std::process::Stdio;
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    lb_tests::cmd::wait_for("the command ends", Duration::from_secs(10), || {
        use anyhow::Context as _;
        child.try_wait()?.context("it runs")
    })
    .unwrap();
    child.wait_with_output().unwrap()
}

fn tempdir(name: &str) -> std::path::PathBuf {
    let directory = std::env::temp_dir().join(format!("hgt-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    directory
}
