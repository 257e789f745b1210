//! Endpoints of SRV records of a real DNS server, and of a file.
#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::Path;

use lb_tests::agent::Agent;
use lb_tests::discovery::{
    Cluster, SILENCE, backend, events, require_endpoints, wait_becomes, wait_carried_by, wait_endpoints,
    wait_why,
};
use lb_tests::dnsmasq::Unknown;
use lb_tests::http::{Connection, sequential};
use lb_tests::rung::Rung;
use lb_tests::scenario::Setup;
use lb_tests::topology::{Family, HTTP};

const SERVICE: &str = "_http._tcp.web.test";

fn start_agent(cluster: &Cluster, setup: Setup, discovery: &str) -> Agent {
    let text = format!(
        r#"datapath: {{ mode: {}, interfaces: auto, max_flows: 65536 }}
admin: {{}}
listeners:
  - {{ name: http4, address: "0.0.0.0:{HTTP}", cluster: web }}
clusters:
  - name: web
    discovery: {{ {discovery} }}
    lb_policy: round_robin
"#,
        setup.rung().name(),
    );
    cluster.start_agent(&text).unwrap()
}

/// Forty connections; how many each backend served.
fn shares(cluster: &Cluster, agent: &Agent, rung: Rung) -> Vec<(String, u64)> {
    let before = agent.totals().unwrap();
    let outcome = sequential(&cluster.topology.client, Family::V4.vip(), 40).unwrap();
    outcome.require(40).unwrap();
    agent.require_carried(&before, rung, 40).unwrap();
    outcome.served.into_iter().collect()
}

/// The records of the service, each a backend with its priority and weight.
fn publish(cluster: &mut Cluster, backends: &[(usize, u16, u16)]) {
    let record = |(number, priority, weight): &(usize, u16, u16)| {
        let port = Family::V4.backend(*number).port();
        format!("{SERVICE},b{number}.test,{port},{priority},{weight}")
    };
    let services: Vec<String> = backends.iter().map(record).collect();
    let services: Vec<&str> = services.iter().map(String::as_str).collect();
    let Cluster { dns, topology, .. } = cluster;
    dns.set_services(&topology.lb, &services).unwrap();
}

#[test]
fn srv_gives_ports_weights_and_priorities() {
    let setup = Setup::Tc;
    let mut cluster = Cluster::start(setup).unwrap();
    let addresses: Vec<(String, IpAddr)> =
        (1..=3).map(|number| (format!("b{number}.test"), Family::V4.backend(number).ip())).collect();
    let records: Vec<(&str, IpAddr)> =
        addresses.iter().map(|(name, address)| (name.as_str(), *address)).collect();
    cluster.dns.set(&records, Unknown::Absent).unwrap();
    publish(&mut cluster, &[(1, 10, 3000), (2, 10, 1000), (3, 20, 1)]);
    let agent = start_agent(&cluster, setup, &format!("type: srv, name: {SERVICE}, refresh_rate: 200ms"));
    wait_endpoints(&agent, &[1, 2, 3]).unwrap();
    wait_carried_by(&cluster, &agent, setup.rung()).unwrap();
    // The third is for when the others fail.
    let served = shares(&cluster, &agent, setup.rung());
    let names: Vec<&str> = served.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["b1", "b2"], "{served:?}");
    assert!(served[0].1 >= 2 * served[1].1, "{served:?}");
    for (number, weight) in [(1, 3), (2, 1), (3, 1)] {
        assert_eq!(backend(&agent, number).unwrap().unwrap()["weight"], weight);
    }

    // The one that is left is of the first level, whatever its priority.
    publish(&mut cluster, &[(3, 20, 1)]);
    wait_endpoints(&agent, &[3]).unwrap();
    wait_carried_by(&cluster, &agent, setup.rung()).unwrap();
    let served = shares(&cluster, &agent, setup.rung());
    assert_eq!(served, [("b3".to_owned(), 40)]);

    // A server that is silent takes nothing away, a name that is gone does.
    let known = events(&agent).unwrap().len();
    cluster.dns.freeze().unwrap();
    wait_why(&agent, known, &SILENCE).unwrap();
    require_endpoints(&agent, &[3]).unwrap();
    cluster.dns.wake().unwrap();
    let known = events(&agent).unwrap().len();
    publish(&mut cluster, &[]);
    wait_endpoints(&agent, &[]).unwrap();
    wait_why(&agent, known, &["nxdomain", "no srv records"]).unwrap();
    publish(&mut cluster, &[(1, 1, 0)]);
    wait_endpoints(&agent, &[1]).unwrap();
    wait_carried_by(&cluster, &agent, setup.rung()).unwrap();
}

/// The file as a ConfigMap has it: a link, through a link that is swapped.
fn swap(directory: &Path, version: &str, text: &str) {
    fs::create_dir(directory.join(version)).unwrap();
    fs::write(directory.join(version).join("endpoints.yaml"), text).unwrap();
    symlink(version, directory.join("..data_tmp")).unwrap();
    fs::rename(directory.join("..data_tmp"), directory.join("..data")).unwrap();
}

/// The backends with their statuses.
fn endpoints_file(backends: &[(usize, &str)]) -> String {
    let endpoint = |(number, status): &(usize, &str)| {
        let address = Family::V4.backend(*number);
        format!(
            "    - endpoint: {{ address: {{ socket_address: {{ address: {}, port_value: {} }} }} }}\n      \
             health_status: {status}\n",
            address.ip(),
            address.port()
        )
    };
    let endpoints: String = backends.iter().map(endpoint).collect();
    format!(
        "resources:\n- \"@type\": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment\n  \
         cluster_name: web\n  endpoints:\n  - lb_endpoints:\n{endpoints}"
    )
}

#[test]
fn a_file_of_endpoints_is_followed() {
    let setup = Setup::Tc;
    let cluster = Cluster::start(setup).unwrap();
    let directory = cluster.directory.join("map");
    fs::create_dir(&directory).unwrap();
    swap(&directory, "..1", &endpoints_file(&[(1, "HEALTHY"), (2, "HEALTHY"), (3, "UNHEALTHY")]));
    let path = directory.join("endpoints.yaml");
    symlink("..data/endpoints.yaml", &path).unwrap();
    let agent = start_agent(&cluster, setup, &format!("type: file, path: {}", path.display()));
    wait_endpoints(&agent, &[1, 2]).unwrap();
    wait_carried_by(&cluster, &agent, setup.rung()).unwrap();
    let mut kept: Vec<(String, Connection)> = Vec::new();
    for _ in 0..2 {
        let mut connection = Connection::open_in(&cluster.topology.client, Family::V4.vip()).unwrap();
        kept.push((connection.get().unwrap(), connection));
    }

    swap(&directory, "..2", &endpoints_file(&[(1, "DRAINING"), (2, "HEALTHY"), (3, "HEALTHY")]));
    wait_endpoints(&agent, &[2, 3]).unwrap();
    wait_becomes(&agent, 1, "draining").unwrap();
    wait_why(&agent, 0, &[&format!("draining in {}", path.display())]).unwrap();
    kept.iter_mut().for_each(|(name, connection)| assert_eq!(connection.get().unwrap(), *name));

    // A broken file says where, and takes nothing away; neither does a missing one.
    let known = events(&agent).unwrap().len();
    swap(&directory, "..3", "resources: [\n");
    wait_why(&agent, known, &[&format!("{}:1:12: not yaml", path.display())]).unwrap();
    let known = events(&agent).unwrap().len();
    fs::remove_file(directory.join("..data")).unwrap();
    wait_why(&agent, known, &["no such file"]).unwrap();
    require_endpoints(&agent, &[2, 3]).unwrap();

    swap(&directory, "..4", &endpoints_file(&[(1, "UNKNOWN")]));
    wait_endpoints(&agent, &[1]).unwrap();
    wait_carried_by(&cluster, &agent, setup.rung()).unwrap();
    assert_eq!(shares(&cluster, &agent, setup.rung()), [("b1".to_owned(), 40)]);
}
