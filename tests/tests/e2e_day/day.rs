//! What a phase works with, and what it may ask of the agent.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use lb_tests::agent::Agent;
use lb_tests::cmd::wait_for;
use lb_tests::discovery::{Cluster, backend, events, wait_endpoints};
use lb_tests::dnsmasq::Unknown;
use lb_tests::http::Kept;
use lb_tests::load::{Clients, Ended, Load};
use lb_tests::pod::Pod;
use lb_tests::rung::{BackendTotals, Totals};
use lb_tests::scenario::Setup;
use lb_tests::timeline::{INDENT, Printout};
use lb_tests::topology::{Family, HTTP};
use serde_json::Value;

const CLIENTS: Clients = Clients { held: 4, keep_alive: 4, one_shot: 2 };
/// Ends a test that hangs; far above what anything takes, also an ejection that has grown.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
pub(crate) const DRAIN_TIMEOUT: Duration = Duration::from_secs(4);
/// States in which an endpoint takes no new connections.
pub(crate) const OUT: [&str; 3] = ["unhealthy", "ejected", "draining"];
/// By then connections that were under way when an endpoint was taken out have arrived.
const UNDER_WAY: Duration = Duration::from_millis(200);
/// For so long it is watched that none comes after them; less than an ejection.
const LEFT_OUT: Duration = Duration::from_secs(1);

/// The parts, in the order in which they must go.
pub(crate) struct Day<'a> {
    pub(crate) load: Load,
    pub(crate) agent: Agent,
    pods: Vec<Pod<'a>>,
    log: PathBuf,
    pub(crate) cluster: &'a Cluster,
    setup: Setup,
    printout: Printout,
    /// What the backends' counters said before the load.
    before: BackendTotals,
    /// Events that were there when the phase began.
    pub(crate) known: usize,
}

impl<'a> Day<'a> {
    /// All is well, and the load is on.
    pub(crate) fn begin(setup: Setup, cluster: &'a Cluster, pods: Vec<Pod<'a>>) -> Self {
        cluster.publish(&[1, 2, 3], Unknown::Absent).unwrap();
        let log = cluster.directory.join("access.log");
        let agent = cluster.start_agent(&config(setup, &log)).unwrap();
        wait_endpoints(&agent, &[1, 2, 3]).unwrap();
        let before = agent.totals().unwrap();
        let load =
            Load::start_with(&cluster.topology.client, Family::V4.vip(), CLIENTS, Ended::IsRetried).unwrap();
        let printout = Printout::default();
        let mut day = Self { load, agent, pods, log, cluster, setup, printout, before, known: 0 };
        day.phase("load begins: b1, b2 and b3 are healthy", |day| {
            (1..=3).for_each(|number| day.wait_used(number));
        });
        day
    }

    /// A phase, in which no request fails.
    pub(crate) fn phase(&mut self, what: &str, change: impl FnOnce(&mut Self)) {
        self.known = events(&self.agent).unwrap().len();
        self.printout.begin(what);
        change(self);
        self.printout.events(&self.agent).unwrap();
        self.printout.load(&self.load);
        println!("{INDENT}connections by rung: {:?}", self.carried());
        self.load.record().require_no_failure(self.printout.began).unwrap();
    }

    /// A phase in which a fault of a gateway is undone, and it is used again.
    pub(crate) fn mended(&mut self, what: &str, number: usize, mend: impl FnOnce(&mut Pod<'a>)) {
        self.phase(what, |day| {
            mend(day.pod(number));
            day.wait_used(number);
        });
    }

    pub(crate) fn end(self) {
        let carried = self.carried();
        let without_port = self.agent.reason("no_port").unwrap();
        let Self { load, printout, setup, .. } = self;
        let record = load.stop().unwrap();
        println!(
            "on {}: {} requests on {} connections in {:.1} s, {} retried",
            setup.rung(),
            record.requests(),
            record.connections,
            printout.began.elapsed().as_secs_f64(),
            record.retried
        );
        record.require_no_failure(printout.began).unwrap();
        // The proxy takes SYNs that find no SNAT port, come again while a backend does not answer, or come while the
        // tables change.
        let own = carried.by(setup.carrier());
        assert!(carried.sum() - own <= without_port + own / 10, "not on {}: {carried:?}", setup.carrier());
    }

    pub(crate) fn pod(&mut self, number: usize) -> &mut Pod<'a> {
        &mut self.pods[number - 1]
    }

    /// Until the agent has taken it to one of these states in this phase, and said one of these words.
    pub(crate) fn require_decided(&self, number: usize, states: &[&str], words: &[&str]) {
        let what = format!("b{number} becomes one of {states:?} because of one of {words:?}");
        wait_for(&what, PATIENCE, || {
            let events = self.events_of(number)?;
            let decided = events.iter().any(|event| {
                let why = event["why"].as_str().unwrap_or_default().to_lowercase();
                is_one_of(&event["to"], states) && words.iter().any(|word| why.contains(word))
            });
            ensure!(decided, "{events:#?}");
            Ok(())
        })
        .unwrap();
    }

    /// It is out for a while, in which no new connection comes to it. An ejection may end meanwhile, and then there is
    /// another one.
    pub(crate) fn require_left_out(&self, number: usize) {
        let came = wait_for(&format!("b{number} is out for a while"), PATIENCE, || {
            sleep(UNDER_WAY);
            let known = self.events_of(number)?.len();
            let row = backend(&self.agent, number)?.context("it is gone")?;
            ensure!(is_one_of(&row["state"], &OUT), "{row}");
            let before = self.agent.totals()?;
            sleep(LEFT_OUT);
            let came = self.agent.totals()?.of_since(Family::V4.backend(number), &before).sum();
            let events = self.events_of(number)?;
            ensure!(events[known..].iter().all(|event| is_one_of(&event["to"], &OUT)), "{events:#?}");
            Ok(came)
        });
        assert_eq!(came.unwrap(), 0, "new connections to b{number}");
    }

    /// Until it is healthy and new connections come to it.
    pub(crate) fn wait_used(&self, number: usize) {
        wait_for(&format!("b{number} is used"), PATIENCE, || {
            let row = backend(&self.agent, number)?.context("it is not there")?;
            ensure!(row["state"] == "healthy", "{row}");
            let before = self.agent.totals()?;
            sleep(UNDER_WAY);
            let came = self.agent.totals()?.of_since(Family::V4.backend(number), &before).sum();
            ensure!(came > 0, "no new connection: {row}");
            Ok(())
        })
        .unwrap();
    }

    /// One that stays open.
    pub(crate) fn connection_to(&self, number: usize) -> Kept {
        let name = format!("b{number}");
        wait_for(&format!("a connection to {name}"), PATIENCE, || {
            let kept = Kept::open_in(&self.cluster.topology.client, Family::V4.vip())?;
            ensure!(kept.name == name, "{} answers", kept.name);
            Ok(kept)
        })
        .unwrap()
    }

    /// Bytes of the access log so far.
    pub(crate) fn log_length(&self) -> usize {
        fs::read(&self.log).unwrap().len()
    }

    /// The next connection of this client that the access log has, from there on, was to that backend.
    pub(crate) fn require_was_on(&self, number: usize, client: SocketAddr, from: usize) {
        let line = wait_for(&format!("the access log tells of {client}"), PATIENCE, || {
            let text = fs::read_to_string(&self.log)?;
            let prefix = format!("{client} ");
            text[from..].lines().find(|line| line.starts_with(&prefix)).map(str::to_owned).context("not yet")
        });
        assert_eq!(line.unwrap(), format!("{client} {}", Family::V4.backend(number)));
    }

    /// A command; whether it was successful, and what it said.
    pub(crate) fn headgate(&self, arguments: &[&str]) -> (bool, String) {
        let output = self.agent.command(arguments).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8(said).unwrap();
        println!("{INDENT}headgate {}: {}", arguments.join(" "), said.trim_end().replace('\n', "; "));
        (output.status.success(), said)
    }

    /// What was said of it in this phase, the oldest first.
    fn events_of(&self, number: usize) -> anyhow::Result<Vec<Value>> {
        let endpoint = Family::V4.backend(number).to_string();
        let events = events(&self.agent)?.into_iter().skip(self.known);
        Ok(events.filter(|event| event["endpoint"] == *endpoint).collect())
    }

    /// Connections by rung so far, without those of endpoints that were gone in between.
    fn carried(&self) -> Totals {
        self.agent.totals().unwrap().sum().since(self.before.sum())
    }
}

fn is_one_of(state: &Value, states: &[&str]) -> bool {
    state.as_str().is_some_and(|state| states.contains(&state))
}

/// Readiness knows nothing of a gateway that refuses, so a probe that succeeds must not take it back at once.
fn config(setup: Setup, log: &Path) -> String {
    format!(
        r#"datapath: {{ mode: {mode}, interfaces: auto, max_flows: 65536 }}
admin: {{}}
access_log: {{ path: {log}, format: '%DOWNSTREAM_REMOTE_ADDRESS% %UPSTREAM_HOST%' }}
listeners:
  - {{ name: http, address: "0.0.0.0:{HTTP}", cluster: web }}
clusters:
  - name: web
    discovery: {{ type: strict_dns, hosts: ["web.test:8080"], refresh_rate: 500ms, hold_nx: 20s }}
    lb_policy: round_robin
    connect_timeout: 1s
    connect_attempts: 3
    health_check: {{ type: istio, interval: 500ms, timeout: 500ms, unhealthy: 2, healthy: 2 }}
    outlier: {{ consecutive_failures: 3, ejection: 2s, max_ejection_percent: 50, uneject_by_probe: false }}
    panic_threshold: 30
    on_unhealthy: keep
    on_removed: drain
    drain_timeout: {drain}s
"#,
        mode = setup.rung().name(),
        log = log.display(),
        drain = DRAIN_TIMEOUT.as_secs(),
    )
}
