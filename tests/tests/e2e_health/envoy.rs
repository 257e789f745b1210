//! An Envoy bootstrap as it is, with the real Envoy beside: both find the same endpoints healthy.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::ensure;
use lb_tests::agent::{Agent, headgate};
use lb_tests::cmd::wait_for;
use lb_tests::envoy::Envoy;
use lb_tests::http::{Connection, sequential};
use lb_tests::pod::{Fault, Pod, READINESS};
use lb_tests::topology::{BACKEND_HTTP, Family, Topology};
use lb_tests::world::PATIENCE;

use crate::{RUNGS, health_flags};

const CLUSTER: &str = "gateways";

/// Where one of the two listens.
#[derive(Clone, Copy)]
struct Ports {
    listener: u16,
    admin: u16,
}

const HEADGATE: Ports = Ports { listener: 8100, admin: 8001 };
const ENVOY: Ports = Ports { listener: 8200, admin: 8201 };

/// The parts, in the order in which they must go.
struct Both<'a> {
    agent: Agent,
    _envoy: Envoy,
    pods: Vec<Pod<'a>>,
    topology: &'a Topology,
}

#[test]
fn a_bootstrap_beside_envoy() {
    for (setup, _) in RUNGS {
        eprintln!("{setup:?}");
        let topology = Topology::new(&setup.options()).unwrap();
        let pods = topology.backends.iter().zip(1..);
        let pods =
            pods.map(|(namespace, number)| Pod::start(namespace, &format!("b{number}")).unwrap()).collect();
        let options = ["--datapath", setup.rung().name()];
        let agent =
            Agent::start_with(&headgate().unwrap(), &topology, &bootstrap(HEADGATE), &options).unwrap();
        let at = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), ENVOY.admin);
        let envoy = Envoy::start_with(&topology.lb, &bootstrap(ENVOY), &[at]).unwrap();
        let both = Both { agent, _envoy: envoy, pods, topology: &topology };

        both.wait_flags(["healthy"; 3], ["healthy"; 3]);
        both.require_served_by(&["b1"]);
        both.pods[0].set_ready(false).unwrap();
        both.wait_flags(["/failed_active_hc", "healthy", "healthy"], ["unhealthy", "healthy", "healthy"]);
        both.require_served_by(&["b2", "b3"]);
        assert_eq!(both.stats(["health_check.healthy"]), [2]);
        both.pods[0].set_ready(true).unwrap();
        both.wait_flags(["healthy"; 3], ["healthy"; 3]);
        both.require_served_by(&["b1"]);

        both.pods[0].break_by(Fault::Refuses).unwrap();
        both.wait_flags(["/failed_outlier_check", "healthy", "healthy"], ["ejected", "healthy", "healthy"]);
        both.require_served_by(&["b2", "b3"]);
        let names = ["attempt", "success", "failure", "network_failure", "healthy"];
        let [attempt, success, failure, network_failure, healthy] =
            both.stats(names.map(|name| format!("health_check.{name}")).each_ref().map(String::as_str));
        assert!(
            failure >= 1 && success >= 4 && attempt >= failure + success,
            "{attempt}, {success}, {failure}"
        );
        assert_eq!((network_failure, healthy), (0, 3));
        assert_eq!(both.stats(["outlier_detection.ejections_enforced_consecutive_5xx"]), [1]);
    }
}

impl Both<'_> {
    /// Until both say so of the three, and Headgate names their states so. Clients come all the time.
    fn wait_flags(&self, flags: [&str; 3], states: [&str; 3]) {
        wait_for(&format!("{flags:?}"), PATIENCE, || {
            for ports in [HEADGATE, ENVOY] {
                let _ = Connection::open_in(&self.topology.client, vip(ports)).and_then(Connection::get_last);
            }
            for (name, ports) in [("Headgate", HEADGATE), ("Envoy", ENVOY)] {
                let page = self.page(ports, "/clusters")?;
                for (number, wanted) in (1..).zip(flags) {
                    let found = health_flags(&page, CLUSTER, Family::V4.backend(number))?;
                    ensure!(found == wanted, "{name} says {found} of b{number}");
                }
            }
            Ok(())
        })
        .unwrap();
        let backends = self.agent.backends().unwrap();
        let rows = backends.as_array().unwrap();
        let found: Vec<&str> = rows.iter().map(|row| row["state"].as_str().unwrap()).collect();
        assert_eq!(found, states, "{backends:#}");
    }

    fn require_served_by(&self, names: &[&str]) {
        let served_by = |ports| {
            let outcome = sequential(&self.topology.client, vip(ports), 8)?;
            outcome.require(8)?;
            let served: Vec<&String> = outcome.served.keys().collect();
            ensure!(served == names, "{served:?} instead of {names:?}");
            Ok(())
        };
        served_by(HEADGATE).unwrap();
        // Its workers learn of a change after the page shows it.
        wait_for("Envoy serves so", PATIENCE, || served_by(ENVOY)).unwrap();
    }

    /// Statistics of Headgate's cluster, as of one moment. Envoy has them, too.
    fn stats<const N: usize>(&self, names: [&str; N]) -> [u64; N] {
        let [ours, envoys] = [HEADGATE, ENVOY].map(|ports| self.page(ports, "/stats").unwrap());
        names.map(|name| {
            let prefix = format!("cluster.{CLUSTER}.{name}: ");
            let of = |page: &str| page.lines().find_map(|line| line.strip_prefix(&prefix)?.parse().ok());
            assert!(of(&envoys).is_some(), "Envoy has no {name}");
            of(&ours).unwrap_or_else(|| panic!("no {name} in {ours}"))
        })
    }

    fn page(&self, ports: Ports, path: &str) -> anyhow::Result<String> {
        self.topology.lb.run("curl", &["-s", "-m", "5", &format!("http://127.0.0.1:{}{path}", ports.admin)])
    }
}

fn vip(ports: Ports) -> SocketAddr {
    SocketAddr::new(Family::V4.vip().ip(), ports.listener)
}

fn bootstrap(ports: Ports) -> String {
    let endpoint = |number: usize| {
        let ip = Family::V4.backend(number).ip();
        format!(
            "{{ endpoint: {{ address: {{ socket_address: {{ address: {ip}, port_value: {BACKEND_HTTP} }} }}, \
             health_check_config: {{ port_value: {READINESS} }} }} }}"
        )
    };
    format!(
        r#"admin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {admin} }} }} }}
static_resources:
  listeners:
  - name: http
    address: {{ socket_address: {{ address: 0.0.0.0, port_value: {listener} }} }}
    filter_chains:
    - filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: http
          cluster: {CLUSTER}
  clusters:
  - name: {CLUSTER}
    connect_timeout: 5s
    type: STATIC
    health_checks:
    - timeout: 5s
      interval: 0.2s
      no_traffic_interval: 0.2s
      unhealthy_threshold: 2
      healthy_threshold: 1
      http_health_check: {{ path: /healthz/ready }}
    outlier_detection:
      consecutive_5xx: 3
      base_ejection_time: 300s
      max_ejection_percent: 50
      successful_active_health_check_uneject_host: false
    load_assignment:
      cluster_name: {CLUSTER}
      endpoints:
      - priority: 0
        lb_endpoints: [{first}]
      - priority: 1
        lb_endpoints: [{second}, {third}]
"#,
        admin = ports.admin,
        listener = ports.listener,
        first = endpoint(1),
        second = endpoint(2),
        third = endpoint(3),
    )
}
