//! Files of endpoints.

use crate::config::{Assigned, ConfigErrors, parse_endpoints};
use crate::model::{Endpoint, ProbePlace};

const FILE: &str = r#"
version_info: "7"
resources:
- "@type": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment
  cluster_name: other
  endpoints: [{ lb_endpoints: [{ endpoint: { address: { pipe: { path: /run/other } } } }] }]
- "@type": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment
  cluster_name: gateway
  policy: { overprovisioning_factor: 140 }
  endpoints:
  - locality: { region: eu, zone: eu-1 }
    lb_endpoints:
    - endpoint:
        hostname: gw-1
        address: { socket_address: { address: 192.0.2.1, port_value: 8080 } }
        health_check_config: { port_value: 15021 }
      health_status: HEALTHY
      load_balancing_weight: 1000
    - endpoint: { address: { socket_address: { address: 192.0.2.2, port_value: 8080 } } }
      health_status: UNHEALTHY
      load_balancing_weight: 500
    - endpoint: { address: { socket_address: { address: 192.0.2.3, port_value: 8080 } } }
      health_status: DRAINING
  - priority: 5
    lb_endpoints:
    - endpoint: { address: { socket_address: { address: "2001:db8::4", port_value: 8080 } } }
      health_status: TIMEOUT
      load_balancing_weight: 500
    - endpoint: { address: { socket_address: { address: 192.0.2.5, port_value: 8080 } } }
      health_status: DEGRADED
      load_balancing_weight: 500
  - priority: 3
    lb_endpoints:
    - endpoint: { address: { socket_address: { address: 192.0.2.6, port_value: 8080 } } }
      health_status: DRAINING
"#;

fn read(text: &str) -> Result<Assigned, ConfigErrors> {
    parse_endpoints(text, "eds.yaml", "gateway")
}

#[track_caller]
fn broken(text: &str, expected: &str) {
    let errors = read(text).expect_err("errors").to_string();
    assert_eq!(errors, expected);
}

fn endpoint(address: &str, weight: u32) -> Endpoint {
    Endpoint::new(address.parse().unwrap(), weight)
}

#[test]
fn every_endpoint_of_the_cluster_is_read() {
    let Assigned { endpoints, draining } = read(FILE).unwrap();
    let zone = Some("eu-1".into());
    let probe = ProbePlace { port: Some(15021), ..ProbePlace::default() };
    let expected = [
        Endpoint { zone: zone.clone(), probe, ..endpoint("192.0.2.1:8080", 2) },
        Endpoint { zone, ready: false, ..endpoint("192.0.2.2:8080", 1) },
        Endpoint { priority: 1, ready: false, ..endpoint("[2001:db8::4]:8080", 1) },
        Endpoint { priority: 1, ..endpoint("192.0.2.5:8080", 1) },
    ];
    assert_eq!(endpoints, expected);
    let draining: Vec<String> = draining.iter().map(ToString::to_string).collect();
    assert_eq!(draining, ["192.0.2.3:8080", "192.0.2.6:8080"]);
}

#[test]
fn v2_json_and_a_bare_assignment_are_read_too() {
    let expected = read(FILE).unwrap();
    let v2 = FILE.replace("envoy.config.endpoint.v3", "envoy.api.v2");
    assert_eq!(read(&v2).unwrap(), expected);
    let json = r#"{
\t"clusterName": "gateway",
\t"endpoints": [ { "lbEndpoints": [ { "endpoint": { "address": { "socketAddress": {
\t\t"address": "192.0.2.1", "portValue": 80 } } } } ] } ]
}"#;
    let json = json.replace("\\t", "\t");
    assert_eq!(read(&json).unwrap().endpoints, [endpoint("192.0.2.1:80", 1)]);
}

#[test]
fn a_cluster_may_have_no_endpoints() {
    for text in ["cluster_name: gateway", "{ cluster_name: gateway, endpoints: [] }"] {
        assert_eq!(read(text).unwrap().endpoints, []);
    }
}

#[test]
fn an_endpoint_that_is_there_twice_is_one() {
    let two = |statuses: [&str; 2]| {
        let one = |status: &str| {
            let address = "{ socket_address: { address: 192.0.2.1, port_value: 80 } }";
            format!("{{ endpoint: {{ address: {address} }}, health_status: {status} }}")
        };
        let members = statuses.map(one).join(", ");
        read(&format!("{{ cluster_name: gateway, endpoints: [{{ lb_endpoints: [{members}] }}] }}")).unwrap()
    };
    let Assigned { endpoints, draining } = two(["DRAINING", "HEALTHY"]);
    assert_eq!((endpoints.len(), draining.len()), (1, 0));
    let Assigned { endpoints, draining } = two(["DRAINING", "DRAINING"]);
    assert_eq!((endpoints.len(), draining.len()), (0, 1));
}

#[test]
fn what_is_broken_is_told_with_its_place() {
    broken(
        "",
        "eds.yaml:1:1: needs a mapping with resources, or with cluster_name and endpoints; found nothing",
    );
    broken("resources: []", "eds.yaml:1:1: no cluster `gateway`; the clusters here: none");
    let other = FILE.replace("cluster_name: gateway", "cluster_name: gatevay");
    broken(
        &other,
        "eds.yaml:2:1: no cluster `gateway`, did you mean `gatevay`?; the clusters here: gatevay, other",
    );
    let twice = FILE.replace("cluster_name: other", "cluster_name: gateway");
    let errors = read(&twice).unwrap_err().to_string();
    assert!(
        errors.contains("eds.yaml:7:3: resources[1]: the cluster gateway is there already: keep one"),
        "{errors}"
    );
    broken(
        "resources: [{}]",
        "eds.yaml:1:13: resources[0]: no `@type`: write it, as in type.googleapis.com/envoy.extensions....",
    );
    broken(
        "resources: [{ \"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster, cluster_name: gateway }]",
        "eds.yaml:1:24: resources[0].@type: envoy.config.cluster.v3.Cluster is no ClusterLoadAssignment",
    );
    let name = FILE.replace("192.0.2.2", "gw-2.example");
    let errors = read(&name).unwrap_err().to_string();
    let place =
        "eds.yaml:19:57: resources[1].endpoints[0].lb_endpoints[1].endpoint.address.socket_address.address: ";
    assert!(errors.starts_with(place) && errors.contains("`gw-2.example` is no IP address"), "{errors}");
    let key = FILE.replace("health_status: HEALTHY", "health_statsu: HEALTHY");
    let errors = read(&key).unwrap_err().to_string();
    assert!(errors.contains("unknown key, did you mean `health_status`?"), "{errors}");
    let errors = read("resources: [").unwrap_err().to_string();
    assert!(errors.starts_with("eds.yaml:1:12: not YAML: "), "{errors}");
    let dropped = FILE.replace("overprovisioning_factor: 140", "drop_overloads: [{ category: a }]");
    let errors = read(&dropped).unwrap_err().to_string();
    assert!(errors.contains("policy.drop_overloads: refused: "), "{errors}");
}
