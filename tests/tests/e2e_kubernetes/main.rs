//! Endpoints from the Kubernetes API: EndpointSlices as they come and go, an API server that fails in every way that the real
//! ones do, and kubectl reading the same server.
#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

mod in_cluster;
mod troubles;

use std::time::Duration;

use anyhow::{Result, ensure};
use lb_tests::agent::{Agent, headgate};
use lb_tests::cmd::wait_for;
use lb_tests::discovery::events;
use lb_tests::http::sequential;
use lb_tests::kube_api::{Access, Endpoint, KubeApi, Kubeconfig, Resource, Slice};
use lb_tests::kubectl::Kubectl;
use lb_tests::nginx::Nginx;
use lb_tests::rung::Rung;
use lb_tests::scenario::{Setup, start_nginx};
use lb_tests::topology::{Family, HTTP, Topology};
use serde_json::Value;

const NAMESPACE: &str = "istio-system";
const SERVICE: &str = "istio-ingressgateway";
/// Where the API server is for the agent: in its own network.
const API: &str = "127.0.0.1:6443";
/// Far more than anything here takes, waits between two tries of the agent included.
const SOON: Duration = Duration::from_secs(60);

/// An API server beside the agent, and gateways on the backends.
struct Cluster {
    api: KubeApi,
    kubeconfig: Kubeconfig,
    topology: Topology,
    _nginx: Vec<Nginx>,
}

impl Cluster {
    fn start(setup: Setup) -> Self {
        let topology = Topology::new(&setup.options()).unwrap();
        let nginx = start_nginx(&topology, None).unwrap();
        let api = KubeApi::start(&topology.lb, API.parse().unwrap()).unwrap();
        api.put_service(NAMESPACE, SERVICE, &[("http2", 80)]).unwrap();
        let kubeconfig = api.access(NAMESPACE).unwrap().kubeconfig().unwrap();
        Self { api, kubeconfig, topology, _nginx: nginx }
    }

    fn config(&self, setup: Setup) -> String {
        format!(
            r#"datapath: {{ mode: {}, interfaces: auto, max_flows: 65536 }}
listeners:
  - {{ name: http4, address: "0.0.0.0:{HTTP}", cluster: gateways }}
  - {{ name: http6, address: "[::]:{HTTP}", cluster: gateways }}
clusters:
  - name: gateways
    discovery: {{ type: kubernetes, namespace: {NAMESPACE}, service: {SERVICE}, port: http2, kubeconfig: {} }}
    drain_timeout: 5m
"#,
            setup.rung().name(),
            self.kubeconfig.path().display(),
        )
    }

    fn start_agent(&self, setup: Setup) -> Agent {
        self.start_agent_with(setup, &[])
    }

    fn start_agent_with(&self, setup: Setup, arguments: &[&str]) -> Agent {
        Agent::start_with(&headgate().unwrap(), &self.topology, &self.config(setup), arguments).unwrap()
    }

    /// The access that is right now.
    fn access(&self) -> Access {
        self.api.access(NAMESPACE).unwrap()
    }

    fn put(&self, slice: &Slice) {
        self.api.put_slice(slice).unwrap();
    }

    fn kubectl(&self) -> Kubectl<'_> {
        Kubectl::new(self.kubeconfig.path(), Some(&self.topology.lb)).unwrap()
    }
}

/// The address of a backend.
fn ip(number: usize) -> String {
    Family::V4.backend(number).ip().to_string()
}

/// A slice of these endpoints.
fn slice(name: &str, endpoints: impl IntoIterator<Item = Endpoint>) -> Slice {
    let slice = Slice::new(NAMESPACE, name, SERVICE).port("http2", Family::V4.backend(1).port());
    endpoints.into_iter().fold(slice, Slice::endpoint)
}

/// One of ready endpoints.
fn ready(name: &str, numbers: &[usize]) -> Slice {
    slice(name, numbers.iter().map(|number| Endpoint::ready(&ip(*number))))
}

/// Numbers and states of the IPv4 backends, as the agent has them.
fn states(agent: &Agent) -> Result<Vec<(usize, String)>> {
    let backends = agent.backends()?;
    let state = |number: usize| {
        let address = Family::V4.backend(number).to_string();
        let row = backends.as_array()?.iter().find(|row| row["address"] == *address)?;
        Some((number, row["state"].as_str()?.to_owned()))
    };
    Ok((1..=3).filter_map(state).collect())
}

/// Until the backends are in these states, and no others are there.
fn wait_states(agent: &Agent, wanted: &[(usize, &str)]) {
    wait_for(&format!("backends become {wanted:?}"), SOON, || {
        let now = states(agent)?;
        let as_wanted = now.len() == wanted.len()
            && now.iter().zip(wanted).all(|((number, state), of)| (*number, state.as_str()) == *of);
        ensure!(as_wanted, "they are {now:?}; events: {:#?}", events(agent)?);
        Ok(())
    })
    .unwrap();
}

fn wait_healthy(agent: &Agent, numbers: &[usize]) {
    let wanted: Vec<(usize, &str)> = numbers.iter().map(|number| (*number, "healthy")).collect();
    wait_states(agent, &wanted);
}

fn row(agent: &Agent, number: usize) -> Value {
    let address = Family::V4.backend(number).to_string();
    let backends = agent.backends().unwrap();
    backends.as_array().unwrap().iter().find(|row| row["address"] == *address).cloned().unwrap()
}

/// How the cluster's discovery stands.
fn discovery(agent: &Agent) -> Result<(String, String)> {
    let status = agent.status()?;
    let of = &status["clusters"][0]["discovery"];
    let word = |key: &str| of[key].as_str().unwrap_or_default().to_owned();
    Ok((word("state"), word("why")))
}

/// Until it stands so, and says this.
fn wait_discovery(agent: &Agent, state: &str, says: &str) {
    wait_for(&format!("discovery is {state}: {says}"), SOON, || {
        let now = discovery(agent)?;
        ensure!(now.0 == state && now.1.contains(says), "{now:?}");
        Ok(())
    })
    .unwrap();
}

/// Thirty connections, carried by this rung: the backends that served.
fn served(cluster: &Cluster, agent: &Agent, rung: Rung, family: Family) -> Vec<String> {
    let before = agent.totals().unwrap();
    let outcome = sequential(&cluster.topology.client, family.vip(), 30).unwrap();
    outcome.require(30).unwrap();
    agent.require_carried(&before, rung, 30).unwrap();
    outcome.served.into_keys().collect()
}

/// Slices of both families, what they say of nodes and zones, and what this node prefers.
#[test]
fn slices_are_merged_and_say_where_endpoints_are() {
    let setup = Setup::Tc;
    let cluster = Cluster::start(setup);
    let on = |number: usize, zone: &str| Endpoint::ready(&ip(number)).on(&format!("node-{number}"), zone);
    cluster.put(&slice("gateways-a", [on(1, "east"), on(2, "west")]));
    cluster.put(&slice("gateways-b", [on(3, "west")]));
    let v6 = |number: usize| Endpoint::ready(&Family::V6.backend(number).ip());
    let of_v6 =
        Slice::new(NAMESPACE, "gateways-6", SERVICE).ipv6().port("http2", Family::V6.backend(1).port());
    cluster.put(&of_v6.endpoint(v6(2)));
    let agent = cluster.start_agent_with(setup, &["--node-name", "node-9", "--node-zone", "west"]);
    wait_healthy(&agent, &[1, 2, 3]);
    let first = row(&agent, 1);
    assert_eq!((&first["node"], &first["zone"]), (&"node-1".into(), &"east".into()), "{first}");
    assert_eq!(served(&cluster, &agent, setup.rung(), Family::V4), ["b1", "b2", "b3"]);
    assert_eq!(served(&cluster, &agent, setup.rung(), Family::V6), ["b2"]);

    let near = cluster.config(setup).replace("drain_timeout", "prefer_local: zone\n    drain_timeout");
    agent.reload(&near).unwrap().unwrap();
    assert_eq!(served(&cluster, &agent, setup.rung(), Family::V4), ["b2", "b3"], "in the zone");
    cluster.put(&slice("gateways-b", [Endpoint::not_ready(&ip(3)).on("node-3", "west")]));
    cluster.put(&slice("gateways-a", [on(1, "east"), Endpoint::not_ready(&ip(2)).on("node-2", "west")]));
    wait_states(&agent, &[(1, "healthy"), (2, "unhealthy"), (3, "unhealthy")]);
    let only = cluster.config(setup).replace("drain_timeout", "panic_threshold: 0\n    drain_timeout");
    agent.reload(&only).unwrap().unwrap();
    assert_eq!(served(&cluster, &agent, setup.rung(), Family::V4), ["b1"], "nobody else is ready");
}

/// What kubectl sees is what the agent has.
#[test]
fn kubectl_and_the_agent_read_the_same() {
    let setup = Setup::Tc;
    let cluster = Cluster::start(setup);
    cluster.put(&ready("gateways-a", &[1, 3]));
    let agent = cluster.start_agent(setup);
    wait_healthy(&agent, &[1, 3]);
    let text = cluster.kubectl().run(&["get", "endpointslices", "-n", NAMESPACE, "-o", "json"]).unwrap();
    let list: Value = serde_json::from_str(&text).unwrap();
    let addresses: Vec<&str> = list["items"][0]["endpoints"]
        .as_array()
        .unwrap()
        .iter()
        .map(|endpoint| endpoint["addresses"][0].as_str().unwrap())
        .collect();
    assert_eq!(addresses, [ip(1), ip(3)]);

    // A list, then a watch from where it was, with bookmarks; for the slices of one Service alone.
    cluster.api.wait_watches(Resource::EndpointSlices, 1).unwrap();
    let requests = cluster.api.requests();
    let own: Vec<_> = requests.iter().filter(|request| !request.user_agent.starts_with("kubectl")).collect();
    assert!(own.iter().all(|request| request.method == "GET" && request.is_for_slices()), "{own:#?}");
    assert_eq!((own[0].is_watch(), own[1].is_watch(), own.len()), (false, true, 2), "{own:#?}");
    for request in &own {
        assert_eq!(request.path, format!("/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices"));
        assert_eq!(request.parameter("labelSelector"), format!("kubernetes.io/service-name={SERVICE}"));
    }
    assert_eq!(own[1].parameter("allowWatchBookmarks"), "true");
    // Nothing has changed since the list.
    assert_eq!(own[1].parameter("resourceVersion"), cluster.api.version().to_string());
}
