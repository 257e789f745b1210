//! Envoy's own files in Headgate's hands: the real Envoy is the judge of the samples, and the same traffic through both is
//! logged and counted alike but for what `docs/envoy-differences.md` lists.
#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lb_tests::agent::Agent;
use lb_tests::agent::headgate;
use lb_tests::cmd::{output, wait_for};
use lb_tests::dnsmasq::{Dnsmasq, Unknown};
use lb_tests::echo::Echo;
use lb_tests::envoy;
use lb_tests::envoy_pages::{Pages, Run, compare, judge};
use lb_tests::rung::Rung;
use lb_tests::scenario::Setup;
use lb_tests::topology::{Family, Topology};

fn samples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("envoy")
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = entries.filter(|path| path.is_file()).collect();
    files.sort();
    files
}

/// Whether a program that looks at a file ends well.
fn takes(command: &mut Command) -> bool {
    let result = command.stdin(Stdio::null()).output().unwrap();
    assert!(result.status.code().is_some(), "{command:?} ended by {}", result.status);
    result.status.success()
}

fn envoy_takes(file: &Path) -> bool {
    let quiet = ["--mode", "validate", "--concurrency", "1", "--disable-hot-restart", "-l", "error"];
    // Relative paths of logs are made while it looks.
    let directory = std::env::temp_dir();
    takes(Command::new(envoy::binary().unwrap()).current_dir(directory).args(quiet).arg("-c").arg(file))
}

fn headgate_takes(file: &Path) -> bool {
    takes(Command::new(headgate().unwrap()).arg("check").arg(file))
}

#[test]
fn samples_are_what_envoy_takes_and_mean_the_same_in_both_versions() {
    let mut twins = 0;
    for file in files(&samples()) {
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        assert!(headgate_takes(&file), "{name}");
        let converted = output(Command::new(headgate().unwrap()).arg("convert").arg(&file)).unwrap();
        if name.contains("-v3.") {
            assert!(envoy_takes(&file), "{name}");
            let twin = file.with_file_name(name.replace("-v3.", "-v2."));
            let of_twin = output(Command::new(headgate().unwrap()).arg("convert").arg(&twin)).unwrap();
            assert_eq!(converted, of_twin, "{name} and its twin");
            twins += 1;
        }
    }
    assert!(twins >= 5, "{twins}");
}

#[test]
fn what_envoy_rejects_is_rejected() {
    let rejected = files(&samples().join("rejected"));
    assert!(rejected.len() >= 25, "{rejected:?}");
    for file in rejected {
        assert!(!envoy_takes(&file), "Envoy takes {}", file.display());
        assert!(!headgate_takes(&file), "Headgate takes {}", file.display());
    }
}

/// The file of 2018 as it is: its name is found by a search domain, on every rung.
#[test]
fn the_old_file_serves_a_name_of_a_search_domain() {
    const NAME: &str = "istio-ingressgateway.istio-system.svc.cluster.test";
    for setup in [Setup::Xdp, Setup::Tc, Setup::Proxy] {
        let topology = Topology::new(&setup.options()).unwrap();
        let dns = Dnsmasq::start(&topology.lb, Ipv4Addr::LOCALHOST.into()).unwrap();
        let addresses: Vec<IpAddr> = (1..=3).map(|number| Family::V4.backend(number).ip()).collect();
        let records: Vec<(&str, IpAddr)> = addresses.iter().map(|address| (NAME, *address)).collect();
        dns.set(&records, Unknown::Absent).unwrap();
        let mut echoes = Vec::new();
        for (backend, address) in topology.backends.iter().zip(&addresses) {
            for port in [80, 443] {
                echoes.push(Echo::start(backend, SocketAddr::new(*address, port)).unwrap());
            }
        }
        let directory = Runs(std::env::temp_dir().join(format!("{}-resolv", topology.name)));
        fs::create_dir_all(&directory.0).unwrap();
        let resolv_conf = directory.0.join("resolv.conf");
        let text = "nameserver 127.0.0.1\nsearch ns.svc.cluster.test svc.cluster.test cluster.test\noptions ndots:5\n";
        fs::write(&resolv_conf, text).unwrap();
        let sample = fs::read_to_string(samples().join("front-v2.yaml")).unwrap();
        let rung = setup.rung().name();
        let options = ["--resolv-conf", resolv_conf.to_str().unwrap(), "--datapath", rung];
        let agent = Agent::start_with(&headgate().unwrap(), &topology, &sample, &options).unwrap();
        let before = agent.totals().unwrap();
        assert_eq!(before.0.len(), 6, "{before:?}");
        for port in [80, 443] {
            for _ in 0..6 {
                let vip = SocketAddr::new(Family::V4.vip().ip(), port);
                let stream = topology.client.within(|| TcpStream::connect(vip)).unwrap();
                let mut stream: TcpStream = stream.unwrap();
                stream.write_all(b"hello").unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
                let mut back = String::new();
                stream.read_to_string(&mut back).unwrap();
                assert_eq!(back, "hello");
            }
        }
        agent.require_carried(&before, setup.rung(), 12).unwrap();
        // Its access log is stdout, in Envoy's format.
        wait_for("12 lines", Duration::from_secs(10), || {
            let log = agent.log();
            let is_line = |line: &&str| line.contains("] \"- - -\" 0 - 5 5 ");
            let lines: Vec<&str> = log.lines().filter(is_line).collect();
            ensure!(lines.len() == 12, "{log}");
            ensure!(
                lines.iter().all(|line| line.contains(" - \"-\" \"-\" \"-\" \"-\" \"10.200.")),
                "{lines:#?}"
            );
            Ok(())
        })
        .unwrap();
        let ready = topology.lb.run("curl", &["-s", "http://127.0.0.1:8001/ready"]).unwrap();
        assert_eq!(ready, "LIVE\n");
    }
}

/// Directories of the runs, removed in the end.
struct Runs(PathBuf);

impl Drop for Runs {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Runs {
    /// What the traffic came to through one of the two.
    fn run(&self, name: &str, arguments: &[&str]) -> Result<Pages> {
        let directory = self.0.join(name);
        let mut script = Command::new(samples().join("compare/by-hand.sh"));
        script.args(arguments).env("OUT", &directory).stdin(Stdio::null());
        let result = script.output().context("running by-hand.sh")?;
        let said = || {
            let log = fs::read_to_string(directory.join("balancer.log")).unwrap_or_default();
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            format!("{}\n{}\nits log:\n{log}", text(&result.stdout), text(&result.stderr))
        };
        ensure!(result.status.success(), "{name}: {}: {}", result.status, said());
        Pages::read(&directory)
    }
}

#[test]
fn the_same_traffic_through_both_is_logged_and_counted_alike() {
    let runs = Runs(std::env::temp_dir().join(format!("headgate-compare-{}", std::process::id())));
    fs::create_dir_all(&runs.0).unwrap();
    let envoy = envoy::binary().unwrap();
    let envoy = runs.run("envoy", &["envoy", envoy.to_str().unwrap()]).unwrap();
    let binary = headgate().unwrap();
    let rungs = [Rung::Xdp, Rung::Tc, Rung::Proxy].map(|rung| {
        let arguments = ["headgate", binary.to_str().unwrap(), "--datapath", rung.name()];
        let headgate = runs.run(rung.name(), &arguments).unwrap();
        let differences = compare(&envoy, &headgate).unwrap();
        println!("{rung}: {} differences", differences.len());
        Run { rung, differences }
    });
    let report = judge(&rungs);
    assert!(report.is_clean(), "{report}");

    // What promtool finds about Envoy's names it finds on Envoy's page, too, and about ours nothing.
    let of_envoy = lint(&runs.0.join("envoy/prometheus.txt"));
    for rung in ["xdp", "tc", "proxy"] {
        let found = lint(&runs.0.join(rung).join("prometheus.txt"));
        let ours: Vec<&String> = found.difference(&of_envoy).collect();
        assert!(ours.is_empty(), "{rung}: {ours:#?}");
        assert!(!found.iter().any(|finding| finding.starts_with("headgate_")), "{found:#?}");
    }
}

/// What `promtool check metrics` finds on a page that it can read.
fn lint(page: &Path) -> BTreeSet<String> {
    let mut promtool = Command::new(promtool());
    promtool.args(["check", "metrics"]).stdin(File::open(page).unwrap());
    let result = promtool.output().unwrap();
    let text = String::from_utf8([result.stdout, result.stderr].concat()).unwrap();
    // 3: there are findings.
    assert!(matches!(result.status.code(), Some(0 | 3)), "{}: {text}", page.display());
    text.lines().map(str::to_owned).collect()
}

/// `$PROMTOOL`, or the one that `cargo xtask setup` unpacks for this clone.
fn promtool() -> PathBuf {
    std::env::var_os("PROMTOOL").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/prometheus/usr/bin/promtool"),
        PathBuf::from,
    )
}
