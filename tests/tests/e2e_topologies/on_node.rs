//! Backends on the balancer's own node.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lb_tests::agent::config_of;
use lb_tests::lan::{LB, Lan, Site, backends, vip};
use lb_tests::payload::Payload;
use lb_tests::rung::Rung;
use lb_tests::scenario::Setup;
use lb_tests::topology::{BACKEND_HTTP, Family};

/// Of each transfer.
const MIB: u64 = 8;

#[test]
fn a_pod_on_xdp() {
    a_pod(Setup::Xdp);
}

#[test]
fn a_pod_on_tc() {
    a_pod(Setup::Tc);
}

/// As Calico wires one: a host route to the pod, no address on the node's end, and the pod's default route by a
/// link-local gateway that the node's end answers for. The far end of the pod's veth has no XDP program and
/// finishes no checksums: no XDP there, in neither direction.
fn a_pod(setup: Setup) {
    let payload = Payload::random(MIB).unwrap();
    let lan = Lan::new(&["client", LB, "pod"]).unwrap();
    lan.network(0, (LB, "lc0"), ("client", "c0")).unwrap();
    lan.face_xdp(setup, &[("client", "c0")]).unwrap();
    lan.cable((LB, "cali1"), ("pod", "eth0")).unwrap();
    // The node answers for the gateway, as it does for everything that it could forward to.
    lan.default_route(LB, (0, 2)).unwrap();
    lan[LB].sysctl("net.ipv4.conf.cali1.proxy_arp", "1").unwrap();
    lan[LB].sysctl("net.ipv4.conf.cali1.forwarding", "1").unwrap();
    let addresses: [IpAddr; 2] =
        [Ipv4Addr::new(10, 244, 7, 3).into(), Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 7, 3).into()];
    let gateways = ["169.254.1.1".to_owned(), link_local(&lan, "cali1")];
    for ((family, address), gateway) in Family::ALL.into_iter().zip(addresses).zip(gateways) {
        let length = if family == Family::V4 { 32 } else { 128 };
        let host = format!("{address}/{length}");
        lan["pod"].ip(&["addr", "add", &host, "dev", "eth0", "nodad"]).unwrap();
        lan["pod"].ip(&[family.flag(), "route", "add", &gateway, "dev", "eth0"]).unwrap();
        lan["pod"].ip(&[family.flag(), "route", "add", "default", "via", &gateway, "dev", "eth0"]).unwrap();
        lan[LB].ip(&["route", "add", &host, "dev", "cali1"]).unwrap();
    }

    let backends = addresses.map(|address| SocketAddr::new(address, BACKEND_HTTP));
    let site = Site::start(lan, setup, &["pod"], &backends, &payload).unwrap();
    site.require_rung(&["lc0"], setup.rung()).unwrap();
    site.require_rung(&["cali1"], Rung::Tc).unwrap();
    for family in Family::ALL {
        site.job("client", vip(family, 0), &["pod"], Rung::Tc, &payload).unwrap();
    }
    let handed_over = site.agent.reason("to_tc").unwrap();
    assert_eq!(handed_over > 0, setup == Setup::Xdp, "{handed_over} packets");
}

/// The IPv6 link-local address of one of the balancer's devices.
fn link_local(lan: &Lan, device: &str) -> String {
    let text = lan[LB].ip(&["-6", "-o", "addr", "show", "dev", device, "scope", "link"]).unwrap();
    let mut words = text.split_whitespace().skip_while(|word| *word != "inet6").skip(1);
    words.next().unwrap().split('/').next().unwrap().to_owned()
}

#[test]
fn behind_a_bridge_on_xdp() {
    behind_a_bridge(Setup::Xdp);
}

#[test]
fn behind_a_bridge_on_tc() {
    behind_a_bridge(Setup::Tc);
}

fn behind_a_bridge(setup: Setup) {
    let (site, payload) = bridged_site(setup, setup.rung().name());
    site.require_rung(&["lc0"], setup.rung()).unwrap();
    site.require_rung(&["br0"], Rung::Tc).unwrap();
    assert!(site.interface("p1").is_err(), "a port is its bridge's affair");
    let before = site.agent.totals().unwrap();
    for family in Family::ALL {
        site.job("client", vip(family, 0), &["b1", "b2"], Rung::Tc, &payload).unwrap();
    }
    site.require_shared(&before, &backends(&BRIDGED)).unwrap();
    let handed_over = site.agent.reason("to_tc").unwrap();
    assert_eq!(handed_over > 0, setup == Setup::Xdp, "{handed_over} packets");
}

/// Which rung an interface is left with, and why it is not a faster one.
#[test]
fn the_rung_of_each_interface_is_explained() {
    for (setup, mode, lc0) in [(Setup::Tc, "auto", "veth"), (Setup::Xdp, "xdp", "native XDP")] {
        let (site, payload) = bridged_site(setup, mode);
        for (name, rung, part) in [("lc0", setup.rung(), lc0), ("br0", Rung::Tc, "bridge")] {
            let (found, why) = site.interface(name).unwrap();
            assert!(found == rung.name() && why.contains(part), "mode {mode}, {name}: {found}, {why}");
        }
        site.job("client", vip(Family::V4, 0), &["b1", "b2"], Rung::Tc, &payload).unwrap();
    }
}

/// The hosts behind the bridge.
const BRIDGED: [(usize, u8); 2] = [(1, 2), (1, 3)];

/// Two backends on the ports of a bridge that has the node's address.
fn bridged_site(setup: Setup, mode: &str) -> (Site, Payload) {
    let payload = Payload::random(MIB).unwrap();
    let lan = Lan::new(&["client", LB, "b1", "b2"]).unwrap();
    lan.network(0, (LB, "lc0"), ("client", "c0")).unwrap();
    lan.face_xdp(setup, &[("client", "c0")]).unwrap();
    lan[LB].ip(&["link", "add", "br0", "type", "bridge"]).unwrap();
    lan[LB].ip(&["link", "set", "br0", "up"]).unwrap();
    lan.address((LB, "br0"), 1, 1).unwrap();
    for ((network, number), (port, host)) in BRIDGED.into_iter().zip([("p1", "b1"), ("p2", "b2")]) {
        lan.cable((LB, port), (host, "e0")).unwrap();
        lan[LB].ip(&["link", "set", port, "master", "br0"]).unwrap();
        lan.address((host, "e0"), network, number).unwrap();
    }
    let config = config_of(mode, "auto", &backends(&BRIDGED));
    (Site::start_with(lan, &config, &["b1", "b2"], &payload).unwrap(), payload)
}
