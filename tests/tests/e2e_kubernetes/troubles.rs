//! A living cluster and its API server in trouble, under load without a pause, on xdp: no request fails, the last good endpoints
//! are kept through every failure, and every transition is an event.

use std::time::Duration;

use lb_tests::agent::Agent;
use lb_tests::discovery::events;
use lb_tests::http::Connection;
use lb_tests::kube_api::{Endpoint, Failure, Resource, Slice, Verb};
use lb_tests::load::{Clients, Load};
use lb_tests::scenario::Setup;
use lb_tests::timeline::Printout;
use lb_tests::topology::Family;

use super::{
    Cluster, NAMESPACE, SERVICE, discovery, ip, ready, slice, states, wait_discovery, wait_healthy,
    wait_states,
};

const CLIENTS: Clients = Clients { held: 2, keep_alive: 3, one_shot: 1 };
const A_WHILE: Duration = Duration::from_secs(1);

#[test]
fn no_request_fails_whatever_the_api_server_does() {
    let mut cluster = Cluster::start(Setup::Xdp);
    cluster.put(&ready("gateways-a", &[1, 2]));
    let mut agent = cluster.start_agent_with(Setup::Xdp, &["--leave-datapath"]);
    wait_healthy(&agent, &[1, 2]);
    let load = Load::start(&cluster.topology.client, Family::V4.vip(), CLIENTS).unwrap();
    let mut printout = Printout::default();
    let began = printout.began;
    let mut phase = |agent: &Agent, what: &str| {
        // Of the phase before.
        std::thread::sleep(A_WHILE);
        printout.events(agent).unwrap();
        printout.load(&load);
        printout.begin(what);
    };

    phase(&agent, "a second slice with b3");
    cluster.put(&ready("gateways-b", &[3]));
    wait_healthy(&agent, &[1, 2, 3]);

    phase(&agent, "b1 is not ready, and is again");
    cluster.put(&slice("gateways-a", [Endpoint::not_ready(&ip(1)), Endpoint::ready(&ip(2))]));
    wait_states(&agent, &[(1, "unhealthy"), (2, "healthy"), (3, "healthy")]);
    cluster.put(&ready("gateways-a", &[1, 2]));
    wait_healthy(&agent, &[1, 2, 3]);

    phase(&agent, "b2 terminates with a connection open");
    let mut open = Connection::open_in(&cluster.topology.client, Family::V4.vip()).unwrap();
    while open.get().unwrap() != "b2" {
        open = Connection::open_in(&cluster.topology.client, Family::V4.vip()).unwrap();
    }
    cluster.put(&slice("gateways-a", [Endpoint::ready(&ip(1)), Endpoint::terminating(&ip(2), true)]));
    wait_states(&agent, &[(1, "healthy"), (2, "draining"), (3, "healthy")]);
    assert_eq!(open.get().unwrap(), "b2");

    phase(&agent, "b2 is gone from the slice, and comes again");
    cluster.put(&ready("gateways-a", &[1]));
    std::thread::sleep(A_WHILE);
    assert_eq!(open.get().unwrap(), "b2", "it still drains");
    cluster.put(&ready("gateways-a", &[1, 2]));
    wait_healthy(&agent, &[1, 2, 3]);

    phase(&agent, "b1 moves from one slice to the other");
    cluster.put(&ready("gateways-b", &[1, 3]));
    cluster.put(&ready("gateways-a", &[2]));
    std::thread::sleep(A_WHILE);
    wait_healthy(&agent, &[1, 2, 3]);

    // How a watch can end. Whatever it is, the next change is seen.
    type End = fn(&Cluster);
    let ends: [(&str, End); 7] = [
        ("the watch ends in peace", |cluster| cluster.api.end_watches()),
        ("the watch breaks off", |cluster| cluster.api.cut_watches()),
        ("the watch breaks off within a line", |cluster| cluster.api.truncate_watches()),
        ("the watch says something that is no JSON", |cluster| cluster.api.garble_watches()),
        ("410 Gone within the watch", |cluster| cluster.api.expire_watches()),
        ("410 Gone for the next watch", |cluster| {
            cluster.api.change_others(100);
            cluster.api.forget_history();
            cluster.api.end_watches();
        }),
        ("a bookmark, then the end of the watch and of all history before the bookmark", |cluster| {
            cluster.api.change_others(100);
            cluster.api.bookmark();
            cluster.api.end_watches();
        }),
    ];
    for (what, end) in ends {
        phase(&agent, what);
        cluster.api.wait_watches(Resource::EndpointSlices, 1).unwrap();
        end(&cluster);
        cluster.put(&slice("gateways-a", [Endpoint::not_ready(&ip(2))]));
        wait_states(&agent, &[(1, "healthy"), (2, "unhealthy"), (3, "healthy")]);
        cluster.put(&ready("gateways-a", &[2]));
        wait_healthy(&agent, &[1, 2, 3]);
        wait_discovery(&agent, "resolved", "3 endpoints");
    }

    phase(&agent, "the API server is away; b2 goes meanwhile");
    cluster.api.stop().unwrap();
    wait_discovery(&agent, "stale", "no connection to");
    cluster.put(&ready("gateways-a", &[]));
    std::thread::sleep(2 * A_WHILE);
    wait_healthy(&agent, &[1, 2, 3]);
    cluster.api.restart().unwrap();
    wait_discovery(&agent, "resolved", "2 endpoints");
    cluster.put(&ready("gateways-a", &[2]));
    wait_healthy(&agent, &[1, 2, 3]);

    phase(&agent, "500, then 429, for all that is asked");
    cluster.api.fail(Failure::Internal);
    cluster.api.cut_watches();
    wait_discovery(&agent, "stale", "answered 500");
    cluster.api.fail(Failure::TooManyRequests { retry_after: 1 });
    wait_discovery(&agent, "stale", "answered 429");
    cluster.api.heal();
    wait_discovery(&agent, "resolved", "3 endpoints");

    phase(&agent, "the token is not good any more, and then there is another");
    cluster.api.set_token("token-of-tomorrow");
    wait_discovery(&agent, "stale", "401");
    cluster.kubeconfig.write(&cluster.access()).unwrap();
    wait_discovery(&agent, "resolved", "3 endpoints");

    phase(&agent, "RBAC is missing, and is there again");
    cluster.api.forbid(Verb::List, Resource::EndpointSlices);
    cluster.api.expire_watches();
    wait_discovery(&agent, "stale", "not allowed to list endpointslices in istio-system");
    cluster.api.allow(Verb::List, Resource::EndpointSlices);
    wait_discovery(&agent, "resolved", "3 endpoints");

    phase(&agent, "the Service and its slices are deleted, and made anew");
    cluster.api.delete_service(NAMESPACE, SERVICE).unwrap();
    for name in ["gateways-a", "gateways-b"] {
        cluster.api.delete_slice(NAMESPACE, name).unwrap();
    }
    wait_discovery(&agent, "stale", "not found");
    wait_healthy(&agent, &[1, 2, 3]);
    cluster.api.put_service(NAMESPACE, SERVICE, &[("http2", 80)]).unwrap();
    cluster.put(&ready("gateways-a", &[1, 2, 3]));
    wait_discovery(&agent, "resolved", "3 endpoints");

    phase(&agent, "the port has another name");
    let renamed = Slice::new(NAMESPACE, "gateways-a", SERVICE).port("web", 8080).ready(&[ip(1)]);
    cluster.put(&renamed);
    wait_discovery(&agent, "stale", "port `http2` not found");
    assert!(discovery(&agent).unwrap().1.contains("web (8080)"), "{:?}", discovery(&agent));
    wait_healthy(&agent, &[1, 2, 3]);
    cluster.put(&ready("gateways-a", &[1, 2, 3]));
    wait_discovery(&agent, "resolved", "3 endpoints");

    phase(&agent, "the agent is another one, and the API server is away");
    cluster.api.stop().unwrap();
    agent.terminate().unwrap();
    agent.require_exit(Duration::from_secs(10)).unwrap();
    agent.restart(&["--leave-datapath"]).unwrap();
    wait_discovery(&agent, "saved", "no connection to");
    assert_eq!(states(&agent).unwrap().len(), 3);
    cluster.api.restart().unwrap();
    wait_discovery(&agent, "resolved", "3 endpoints");

    phase(&agent, "the end");
    assert_eq!(open.get().unwrap(), "b2", "a connection from before all that");
    let transitions = events(&agent).unwrap().len();
    let record = load.stop().unwrap();
    println!(
        "in {:.1} s {} requests on {} connections: {} failed; {} requests to the API server; {transitions} events of the last agent",
        began.elapsed().as_secs_f64(),
        record.requests(),
        record.connections,
        record.failures.len(),
        cluster.api.requests().len()
    );
    record.require_no_failure(began).unwrap();
}
