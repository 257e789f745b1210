//! Backends that only the node's own stack can reach: they stay on the proxy rung, and `backends` says why.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context as _;
use lb_tests::cmd::wait_for;
use lb_tests::lan::{LB, Lan, Site, backends, vip};
use lb_tests::payload::Payload;
use lb_tests::rung::Rung;
use lb_tests::scenario::Setup;
use lb_tests::topology::{BACKEND_HTTP, Family};

/// Of each transfer.
const MIB: u64 = 8;

#[test]
fn a_backend_on_the_node_itself_beside_xdp() {
    a_backend_on_the_node_itself(Setup::Xdp);
}

#[test]
fn a_backend_on_the_node_itself_beside_tc() {
    a_backend_on_the_node_itself(Setup::Tc);
}

/// A gateway on the node's network (`hostNetwork`), on an address of the node.
fn a_backend_on_the_node_itself(setup: Setup) {
    let payload = Payload::random(MIB).unwrap();
    let lan = Lan::new(&["client", LB]).unwrap();
    lan.network(0, (LB, "lc0"), ("client", "c0")).unwrap();
    lan.face_xdp(setup, &[("client", "c0")]).unwrap();
    let backends = backends(&[(0, 1)]);
    let site = Site::start(lan, setup, &[LB], &backends, &payload).unwrap();
    site.require_rung(&["lc0"], setup.rung()).unwrap();
    require_explained(&site, &backends, "address of this node");
    for family in Family::ALL {
        site.job("client", vip(family, 0), &[LB], Rung::Proxy, &payload).unwrap();
    }
    assert!(site.agent.reason("proxy_backend").unwrap() >= 2 * lb_tests::lan::JOB);
}

#[test]
fn a_cluster_ip_beside_xdp() {
    a_cluster_ip(Setup::Xdp);
}

#[test]
fn a_cluster_ip_beside_tc() {
    a_cluster_ip(Setup::Tc);
}

/// An address that is on no wire: the node's own netfilter sends connections to it elsewhere, as kube-proxy's rules
/// for the ClusterIP of a Service do.
fn a_cluster_ip(setup: Setup) {
    let payload = Payload::random(MIB).unwrap();
    let lan = Lan::new(&["client", LB, "b1"]).unwrap();
    lan.network(0, (LB, "lc0"), ("client", "c0")).unwrap();
    lan.network(1, (LB, "lb1"), ("b1", "e0")).unwrap();
    lan.face_xdp(setup, &[("client", "c0"), ("b1", "e0")]).unwrap();
    // The route that lets such a packet begin its way at all.
    lan.default_route(LB, (1, 2)).unwrap();
    let addresses: [IpAddr; 2] =
        [Ipv4Addr::new(10, 96, 0, 10).into(), Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0x10).into()];
    for (family, address) in Family::ALL.into_iter().zip(addresses) {
        let table = if family == Family::V4 { "ip" } else { "ip6" };
        let pod = family.address(1, 2);
        let to = SocketAddr::new(pod, BACKEND_HTTP);
        let rules = format!(
            "table {table} kube {{\nchain services {{\ntype nat hook output priority -100;\n\
             {table} daddr {address} tcp dport {BACKEND_HTTP} dnat to {to};\n}}\n}}"
        );
        lan[LB].run("nft", &[&rules]).unwrap();
    }

    let backends = addresses.map(|address| SocketAddr::new(address, BACKEND_HTTP));
    let site = Site::start(lan, setup, &["b1"], &backends, &payload).unwrap();
    site.require_rung(&["lc0", "lb1"], setup.rung()).unwrap();
    // Where it goes in truth is part of the explanation.
    require_explained(&site, &backends, &format!(":{BACKEND_HTTP}"));
    for family in Family::ALL {
        site.job("client", vip(family, 0), &["b1"], Rung::Proxy, &payload).unwrap();
    }
    assert!(site.agent.reason("proxy_backend").unwrap() >= 2 * lb_tests::lan::JOB);
}

/// Waits until `backends` says of each why it is the proxy's.
fn require_explained(site: &Site, backends: &[SocketAddr], part: &str) {
    for backend in backends {
        let why = wait_for("the reason why the proxy alone has it", Duration::from_secs(10), || {
            let rows = site.agent.backends()?;
            let mut rows = rows.as_array().context("a list")?.iter();
            let row = rows.find(|row| row["address"] == backend.to_string()).context("its row")?;
            row["proxy_only"].as_str().map(str::to_owned).with_context(|| format!("{row}"))
        });
        let why = why.unwrap();
        assert!(why.contains(part), "{backend}: {why}");
    }
}
