//! What Envoy takes and Headgate refuses, with the reason.

use super::Bootstrap;

#[track_caller]
fn refused(bootstrap: Bootstrap<'_>, path: &str, reason: &str) {
    let error = bootstrap.error();
    assert!(error.contains(path) && error.contains(reason), "{error}");
    assert!(error.contains(": refused: "), "{error}");
}

const NONE: Bootstrap<'_> =
    Bootstrap { top: "", listener: "", chain: "", proxy: "", cluster: "", discovery: None, more: "" };

#[test]
fn at_the_top() {
    let top = |top| Bootstrap { top, ..NONE };
    refused(top("dynamic_resources: { cds_config: { ads: {} } }"), "dynamic_resources.cds_config", "xDS");
    refused(top("admin: { address: { pipe: { path: /a } } }"), "admin.address.pipe", "socket_address");
}

#[test]
fn of_a_listener() {
    let listener = |listener| Bootstrap { listener, ..NONE };
    let proxy_protocol = "listener_filters: [{ name: x, typed_config: { \"@type\": \
                          type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol } }]";
    refused(listener(proxy_protocol), "listener_filters[0].typed_config.@type", "PROXY protocol");
    refused(listener("transparent: true"), "listeners[0].transparent", "not supported yet");
    refused(listener("bind_to_port: false"), "listeners[0].bind_to_port", "redirected connections");
    refused(listener("additional_addresses: [{}]"), "additional_addresses", "a listener of its own");
    refused(listener("use_original_dst: true"), "use_original_dst", "redirected");
    let inspector = "listener_filters: [{ name: x, typed_config: { \"@type\": \
                     type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector } }]";
    listener(inspector).ok();
}

#[test]
fn of_a_filter_chain() {
    let chain = |chain| Bootstrap { chain, ..NONE };
    let sni = "filter_chain_match: { server_names: [a.example] }";
    refused(chain(sni), "filter_chain_match.server_names", "SNI");
    let tls = "transport_socket: { name: x, typed_config: { \"@type\": \
               type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext } }";
    refused(chain(tls), "transport_socket.typed_config.@type", "passes TLS through");
    refused(chain("use_proxy_proto: true"), "use_proxy_proto", "PROXY protocol");
    refused(chain("name: a\n    - filters: []"), "filter_chains[1]", "a second filter chain");
    let http =
        NONE.text().replace("tcp_proxy.v3.TcpProxy", "http_connection_manager.v3.HttpConnectionManager");
    let errors = crate::config::parse(&http, "x").unwrap_err().to_string();
    assert!(errors.contains("HTTP filters are not supported"), "{errors}");
    let rbac = NONE.text().replace("tcp_proxy.v3.TcpProxy", "rbac.v3.RBAC");
    let errors = crate::config::parse(&rbac, "x").unwrap_err().to_string();
    assert!(errors.contains("access rules (RBAC) are not supported"), "{errors}");
}

#[test]
fn of_tcp_proxy() {
    let proxy = |proxy| Bootstrap { proxy, ..NONE };
    refused(proxy("hash_policy: [{ filter_state: { key: a } }]"), "filter_state", "only source_ip");
    refused(proxy("tunneling_config: { hostname: a }"), "tunneling_config", "HTTP");
    refused(proxy("metadata_match: {}"), "metadata_match", "subsets");
    refused(proxy("upstream_connect_mode: ON_DOWNSTREAM_DATA"), "upstream_connect_mode", "connects at once");
    let grpc = "access_log: [{ name: x, typed_config: { \"@type\": \
                type.googleapis.com/envoy.extensions.access_loggers.grpc.v3.TcpGrpcAccessLogConfig } }]";
    refused(proxy(grpc), "access_log[0].typed_config.@type", "file, stdout and stderr are");
    let filter = "access_log: [{ name: x, filter: { not_health_check_filter: {} }, typed_config: { \"@type\": \
                  type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog } }]";
    refused(proxy(filter), "access_log[0].filter", "log filters are not supported yet");
}

#[test]
fn of_a_cluster() {
    let cluster = |cluster| Bootstrap { cluster, ..NONE };
    refused(cluster("outlier_detection: { monitors: [{}] }"), "outlier_detection.monitors", "not supported");
    let panic = "common_lb_config: { zone_aware_lb_config: { fail_traffic_on_panic: true } }";
    refused(cluster(panic), "zone_aware_lb_config.fail_traffic_on_panic", "all backends are used");
    let change = "common_lb_config: { close_connections_on_host_set_change: true }";
    refused(cluster(change), "close_connections_on_host_set_change", "of all backends");
    for source in ["ads: {}", "api_config_source: { api_type: GRPC }"] {
        let eds = format!("type: EDS\n    eds_cluster_config: {{ eds_config: {{ {source} }} }}");
        let key = source.split(':').next().unwrap();
        let eds = Bootstrap { discovery: Some(&eds), ..NONE };
        refused(eds, &format!("eds_cluster_config.eds_config.{key}"), "only those of a file");
    }
    refused(cluster("type: ORIGINAL_DST"), "clusters[0].type", "ORIGINAL_DST");
    refused(cluster("upstream_bind_config: {}"), "upstream_bind_config", "datapath.snat_addresses");
    refused(cluster("lb_subset_config: {}"), "lb_subset_config", "subsets");
    refused(
        cluster("common_lb_config: { locality_weighted_lb_config: {} }"),
        "locality_weighted",
        "not supported yet",
    );
    let zero = "circuit_breakers: { thresholds: [{ max_connections: 0 }] }";
    refused(cluster(zero), "max_connections", "lets no connection through");
    let none = Bootstrap { discovery: Some("type: STRICT_DNS"), ..NONE };
    refused(none, "clusters[0]", "no name to ask for");
    let weighted = super::STATIC.replace("c, end", "c, policy: { weighted_priority_health: true }, end");
    let weighted = Bootstrap { discovery: Some(&weighted), ..NONE };
    refused(weighted, "load_assignment.policy.weighted_priority_health", "share of its backends");
}

#[test]
fn listeners_that_disagree_on_a_cluster() {
    let text = Bootstrap { cluster: "lb_policy: MAGLEV", ..NONE }.text();
    let (before, rest) = text.split_once("  - name: l\n").unwrap();
    let (listener, clusters) = rest.split_once("  clusters:").unwrap();
    let other = listener
        .replace("port_value: 80", "port_value: 81")
        .replace("stat_prefix: p", "stat_prefix: p\n          hash_policy: [{ source_ip: {} }]");
    let text = format!("{before}  - name: l\n{listener}  - name: m\n{other}  clusters:{clusters}");
    let errors = crate::config::parse(&text, "x").unwrap_err().to_string();
    assert!(
        errors.contains("clusters[0].lb_policy: refused: a listener with hash_policy.source_ip"),
        "{errors}"
    );
}

#[test]
fn unknown_clusters_and_nothing_to_serve() {
    let text = NONE.text().replace("cluster: c\n", "cluster: d\n");
    let errors = crate::config::parse(&text, "x").unwrap_err().to_string();
    assert!(errors.contains("typed_config.cluster: no cluster `d`"), "{errors}");
    let errors = crate::config::parse("static_resources: {}\n", "x").unwrap_err().to_string();
    assert!(errors.contains("there are no listeners"), "{errors}");
    let errors = crate::config::parse("dynamic_resources: {}\n", "x").unwrap_err().to_string();
    assert!(errors.contains("needs static_resources"), "{errors}");
}
