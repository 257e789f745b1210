//! One test for each class of bad input: its line, column, field and what the message says.

use super::{MINIMAL, cluster_with, datapath_with, listener_with, minimal_with, ok, refused};

#[test]
fn unknown_keys() {
    refused(&format!("{MINIMAL}datapaths: {{}}\n"), 8, 1, "datapaths", "did you mean `datapath`?");
    refused(
        &listener_with("idle_timeuot: 5s"),
        5,
        5,
        "listeners[0].idle_timeuot",
        "unknown key, did you mean `idle_timeout`?",
    );
    refused(&cluster_with("colour: red"), 8, 5, "clusters[0].colour", "unknown key; the keys here: name,");
    refused(&datapath_with("maxflows: 5"), 9, 3, "datapath.maxflows", "did you mean `max_flows`?");
    refused(
        &minimal_with(7, "    discovery: { type: static, host: [], hosts: [\"10.0.0.7:80\"] }"),
        7,
        32,
        "clusters[0].discovery.host",
        "did you mean `hosts`?",
    );
}

#[test]
fn duplicate_keys() {
    refused(
        &listener_with("name: other"),
        5,
        5,
        "listeners[0].name",
        "written twice, first on line 2: keep one",
    );
}

#[test]
fn missing_keys() {
    let text = MINIMAL.replace("    cluster: gateway\n", "");
    refused(&text, 2, 5, "listeners[0].cluster", "missing: the name of the cluster");
    refused(&MINIMAL.replace("    address: 0.0.0.0:80\n", ""), 2, 5, "listeners[0].address", "missing");
    refused(MINIMAL.split("clusters:").next().unwrap(), 1, 1, "clusters", "missing");
    refused(
        &format!("clusters:{}", MINIMAL.split("clusters:").nth(1).unwrap()),
        1,
        1,
        "listeners",
        "missing",
    );
    refused(&minimal_with(3, "    address:"), 3, 5, "listeners[0].address", "found nothing");
}

#[test]
fn empty_lists() {
    let no_listeners = format!("listeners: []\nclusters:{}", MINIMAL.split("clusters:").nth(1).unwrap());
    refused(&no_listeners, 1, 12, "listeners", "give at least one listener");
    let no_clusters = format!("{}clusters: []\n", MINIMAL.split("clusters:").next().unwrap());
    refused(&no_clusters, 5, 11, "clusters", "give at least one cluster");
    refused(
        &minimal_with(7, "    discovery: { type: strict_dns, hosts: [] }"),
        7,
        43,
        "clusters[0].discovery.hosts",
        "give at least one host",
    );
    refused(&datapath_with("interfaces: []"), 9, 15, "datapath.interfaces", "give at least one interface");
    refused(&datapath_with("snat_addresses: []"), 9, 19, "datapath.snat_addresses", "at least one address");
}

#[test]
fn wrong_types() {
    refused(
        &minimal_with(2, "  - name: 80"),
        2,
        11,
        "listeners[0].name",
        "as text (in quotes); found a number",
    );
    refused(&datapath_with("interfaces: eth0"), 9, 15, "datapath.interfaces", "auto, or a list");
    refused(&datapath_with("max_flows: many"), 9, 14, "datapath.max_flows", "auto, or a whole number");
    refused(&minimal_with(2, "  - name: \"two words\""), 2, 11, "listeners[0].name", "none of them space");
    refused(
        "listeners: 5\nclusters: [{ name: c, discovery: { type: static, hosts: [\"10.0.0.7:80\"] } }]\n",
        1,
        12,
        "listeners",
        "needs a list with at least one listener; found a number",
    );
}

#[test]
fn bad_durations() {
    let field = "listeners[0].idle_timeout";
    refused(&listener_with("idle_timeout: 30"), 5, 19, field, "30 has no unit, write 30s");
    for bad in ["5 parsecs", "1M", "-5s", "soon", "\"30\"", "\"\"", "500ns"] {
        refused(&listener_with(&format!("idle_timeout: {bad}")), 5, 19, field, "as in 250ms, 5s, 1h");
    }
    refused(&listener_with("idle_timeout: 400d"), 5, 19, field, "at most 365d");
    refused(&cluster_with("connect_timeout: 0s"), 8, 22, "clusters[0].connect_timeout", "no time to connect");
    refused(&cluster_with("drain_timeout: [5s]"), 8, 20, "clusters[0].drain_timeout", "needs a duration");
}

#[test]
fn bad_listener_addresses() {
    let cases = [
        ("gateway.example:80", "a host name: a listener needs IP:PORT"),
        ("localhost", "a host name"),
        ("10.0.0.1", "the port is missing: write IP:PORT, as in 10.0.0.1:80"),
        ("\"2001:db8::1\"", "as in [2001:db8::1]:80"),
        ("10.0.0.1:0", "port 0: give a port from 1 to 65535"),
        ("10.0.0.1:70000", "`70000` is no port"),
        ("10.0.0.1:http", "`http` is no port"),
        ("\":80\"", "not an address"),
        ("10.0.0.300:80", "not an address"),
        ("224.0.0.1:80", "multicast"),
        ("\"[::ffff:10.0.0.1]:80\"", "IPv4 in IPv6: write 10.0.0.1"),
        ("\"[fe80::1%2]:80\"", "a zone"),
        ("80", "as text (in quotes); found a number"),
    ];
    for (bad, phrase) in cases {
        refused(&minimal_with(3, &format!("    address: {bad}")), 3, 14, "listeners[0].address", phrase);
    }
}

#[test]
fn bad_hosts() {
    let field = "clusters[0].discovery.hosts[0]";
    let host = |bad: &str| minimal_with(7, &format!("    discovery: {{ type: static, hosts: [{bad}] }}"));
    refused(&host("\"gateway.istio-system:80\""), 7, 40, field, "names need type: strict_dns");
    refused(&host("\"0.0.0.0:80\""), 7, 40, field, "unspecified address");
    refused(&host("\"10.0.0.7:0\""), 7, 40, field, "port 0");
    let weight = "clusters[0].discovery.hosts[0].weight";
    for bad in ["0", "257", "-1", "1.5"] {
        let text = host(&format!("{{ address: \"10.0.0.7:80\", weight: {bad} }}"));
        refused(&text, 7, 74, weight, "a whole number from 1 to 256");
    }
    refused(&host("{ weight: 2 }"), 7, 40, "clusters[0].discovery.hosts[0].address", "missing");
    let twice = host("\"10.0.0.7:80\", { address: \"10.0.0.7:80\" }");
    refused(
        &twice,
        7,
        55,
        "clusters[0].discovery.hosts[1]",
        "10.0.0.7:80 is clusters[0].discovery.hosts[0] already",
    );
}

#[test]
fn duplicate_names() {
    let text = MINIMAL
        .replace("clusters:", "  - { name: http, address: \"0.0.0.0:81\", cluster: gateway }\nclusters:");
    refused(&text, 5, 13, "listeners[1].name", "a listener `http` stands on line 2 already");
    let text = format!(
        "{MINIMAL}  - {{ name: gateway, discovery: {{ type: static, hosts: [\"10.0.0.8:80\"] }} }}\n"
    );
    refused(&text, 8, 13, "clusters[1].name", "a cluster `gateway` stands on line 6 already");
}

#[test]
fn listeners_that_overlap() {
    let second = |address: &str| {
        let line = format!("  - {{ name: other, address: \"{address}\", cluster: gateway }}\nclusters:");
        MINIMAL.replace("clusters:", &line)
    };
    refused(
        &second("0.0.0.0:80"),
        5,
        29,
        "listeners[1].address",
        "another listener has 0.0.0.0:80 on line 3",
    );
    refused(
        &second("10.0.0.1:80"),
        5,
        29,
        "listeners[1].address",
        "10.0.0.1:80 overlaps with 0.0.0.0:80 on line 3",
    );
    ok(&second("10.0.0.1:81"));
}

#[test]
fn unknown_cluster() {
    let text = minimal_with(4, "    cluster: gatewya");
    refused(
        &text,
        4,
        14,
        "listeners[0].cluster",
        "no cluster `gatewya`, did you mean `gateway`?; the clusters: gateway",
    );
}

#[test]
fn bad_words() {
    refused(
        &datapath_with("mode: xpd"),
        9,
        9,
        "datapath.mode",
        "did you mean `xdp`?; accepted: auto, xdp, tc, proxy",
    );
    refused(
        &cluster_with("lb_policy: fastest"),
        8,
        16,
        "clusters[0].lb_policy",
        "round_robin, random, maglev, source_ip",
    );
    refused(
        &minimal_with(7, "    discovery: { type: eds, hosts: [x] }"),
        7,
        24,
        "clusters[0].discovery.type",
        "`eds` is not accepted; accepted: static, strict_dns, logical_dns",
    );
}

#[test]
fn bad_datapath_values() {
    let ports = "datapath.snat_ports";
    refused(&datapath_with("snat_ports: 80-2000"), 9, 15, ports, "holds ports below 1024");
    refused(&datapath_with("snat_ports: 40-20"), 9, 15, ports, "holds ports below 1024");
    refused(&datapath_with("snat_ports: 3000-2000"), 9, 15, ports, "3000 is above 2000: write 2000-3000");
    refused(&datapath_with("snat_ports: 20000-70000"), 9, 15, ports, "as in 20000-29999");
    refused(&datapath_with("snat_ports: 20000"), 9, 15, ports, "as in 20000-29999");
    let text = minimal_with(3, "    address: 0.0.0.0:8080") + "\ndatapath: { snat_ports: 8000-9000 }\n";
    refused(&text, 8, 25, ports, "contains port 8080 of the listener on line 3");

    let flows = "datapath.max_flows";
    for bad in ["1023", "4194305", "1.5", "99999999999999999999999"] {
        refused(&datapath_with(&format!("max_flows: {bad}")), 9, 14, flows, "from 1024 to 4194304");
    }
    let source = "datapath.snat_addresses[0]";
    for (bad, phrase) in [
        ("0.0.0.0", "unspecified"),
        ("\"::\"", "unspecified"),
        ("127.0.0.1", "loopback"),
        ("224.0.0.1", "multicast"),
        ("255.255.255.255", "broadcast"),
        ("node1", "no IP address"),
    ] {
        refused(&datapath_with(&format!("snat_addresses: [{bad}]")), 9, 20, source, phrase);
    }
    let twice = datapath_with("snat_addresses: [192.0.2.1, 192.0.2.1]");
    refused(&twice, 9, 31, "datapath.snat_addresses[1]", "the same address as datapath.snat_addresses[0]");
    let name = datapath_with("interfaces: [a-name-of-too-many-bytes]");
    refused(&name, 9, 16, "datapath.interfaces[0]", "no interface name");
    refused(&cluster_with("connect_attempts: 17"), 8, 23, "clusters[0].connect_attempts", "from 1 to 16");
    refused(&cluster_with("connect_attempts: 0"), 8, 23, "clusters[0].connect_attempts", "from 1 to 16");
}

#[test]
fn what_is_not_supported_yet() {
    refused(
        &listener_with("max_connections: 10"),
        5,
        22,
        "listeners[0].max_connections",
        "not supported yet",
    );
    for word in ["proxy_v1", "proxy_v2", "transparent"] {
        let text = listener_with(&format!("client_address: {word}"));
        refused(&text, 5, 21, "listeners[0].client_address", "not supported yet; accepted: none");
    }
}
