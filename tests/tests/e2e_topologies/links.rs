//! More than one link to the clients, and no more than one to everybody.

use lb_tests::lan::{LB, Lan, Site, backends, vip};
use lb_tests::netns::Namespace;
use lb_tests::payload::Payload;
use lb_tests::scenario::Setup;
use lb_tests::topology::Family;

/// Of each transfer.
const MIB: u64 = 8;

#[test]
fn several_client_links_on_xdp() {
    several_client_links(Setup::Xdp);
}

#[test]
fn several_client_links_on_tc() {
    several_client_links(Setup::Tc);
}

/// Two clients on links of their own, and a third whose SYN comes in by one link and whose replies the route sends
/// out by another, by a balancer that is strict about the stack's own packets.
fn several_client_links(setup: Setup) {
    let payload = Payload::random(MIB).unwrap();
    let lan = Lan::new(&["east", "west", "both", LB, "b1"]).unwrap();
    lan.network(1, (LB, "lb1"), ("b1", "e0")).unwrap();
    lan.network(20, (LB, "lc0"), ("east", "c0")).unwrap();
    lan.network(21, (LB, "lc1"), ("west", "c0")).unwrap();
    lan.network(22, (LB, "lc2"), ("both", "c0")).unwrap();
    lan.network(23, (LB, "lc3"), ("both", "c1")).unwrap();
    lan[LB].sysctl("net.ipv4.conf.all.rp_filter", "1").unwrap();
    // It asks for the balancer's MAC address from an address of that link, as a router would.
    lan["both"].sysctl("net.ipv4.conf.all.arp_announce", "2").unwrap();
    // Its address is on neither link; it sends by the one, and the balancer's route goes by the other.
    for family in Family::ALL {
        let own = family.address(30, 9);
        let host = if family == Family::V4 { format!("{own}/32") } else { format!("{own}/128") };
        lan["both"].ip(&["addr", "add", &host, "dev", "lo", "nodad"]).unwrap();
        let via = family.address(22, 1).to_string();
        lan["both"].ip(&["route", "add", "default", "via", &via, "src", &own.to_string()]).unwrap();
        lan[LB].ip(&["route", "add", &host, "via", &family.address(23, 2).to_string()]).unwrap();
    }
    let far_ends = [("b1", "e0"), ("east", "c0"), ("west", "c0"), ("both", "c0"), ("both", "c1")];
    lan.face_xdp(setup, &far_ends).unwrap();

    let site = Site::start(lan, setup, &["b1"], &backends(&[(1, 2)]), &payload).unwrap();
    site.require_rung(&["lb1", "lc0", "lc1", "lc2", "lc3"], setup.rung()).unwrap();
    for family in Family::ALL {
        site.job("east", vip(family, 20), &["b1"], setup.rung(), &payload).unwrap();
        site.job("west", vip(family, 21), &["b1"], setup.rung(), &payload).unwrap();
        // Any address of the node is a VIP; this one is far from either link.
        let counted = || ["c0", "c1"].map(|device| received(&site.lan["both"], device));
        let before = counted();
        site.job("both", vip(family, 20), &["b1"], setup.rung(), &payload).unwrap();
        let after = counted();
        assert!(after[1] - before[1] > payload.bytes, "{family}: replies come by c1: {before:?} {after:?}");
        assert!(after[0] - before[0] < 16 << 10, "{family}: and none by c0: {before:?} {after:?}");
    }
}

/// Bytes that came in by a device.
fn received(host: &Namespace, device: &str) -> u64 {
    let text = host.ip(&["-j", "-s", "link", "show", "dev", device]).unwrap();
    let links: serde_json::Value = serde_json::from_str(&text).unwrap();
    links[0]["stats64"]["rx"]["bytes"].as_u64().unwrap()
}

#[test]
fn hairpin_on_xdp() {
    hairpin(Setup::Xdp);
}

#[test]
fn hairpin_on_tc() {
    hairpin(Setup::Tc);
}

/// A backend calls the VIP, and the backend chosen is itself or another one.
fn hairpin(setup: Setup) {
    let payload = Payload::random(MIB).unwrap();
    let lan = Lan::new(&[LB, "b1", "b2"]).unwrap();
    for (network, near, host) in [(1, "lb1", "b1"), (2, "lb2", "b2")] {
        lan.network(network, (LB, near), (host, "e0")).unwrap();
    }
    lan.face_xdp(setup, &[("b1", "e0"), ("b2", "e0")]).unwrap();

    let backends = backends(&[(1, 2), (2, 2)]);
    let site = Site::start(lan, setup, &["b1", "b2"], &backends, &payload).unwrap();
    site.require_rung(&["lb1", "lb2"], setup.rung()).unwrap();
    let before = site.agent.totals().unwrap();
    for family in Family::ALL {
        site.job("b1", vip(family, 1), &["b1", "b2"], setup.rung(), &payload).unwrap();
        site.job("b2", vip(family, 2), &["b1", "b2"], setup.rung(), &payload).unwrap();
    }
    site.require_shared(&before, &backends).unwrap();
    assert_eq!(site.agent.reason("to_tc").unwrap(), 0);
}

#[test]
fn one_armed_on_xdp() {
    one_armed(Setup::Xdp);
}

#[test]
fn one_armed_on_tc() {
    one_armed(Setup::Tc);
}

/// Client, balancer and backends are on one switch, the balancer by its only interface: every packet leaves the way
/// it came.
fn one_armed(setup: Setup) {
    let payload = Payload::random(MIB).unwrap();
    let lan = Lan::new(&["switch", LB, "client", "b1", "b2"]).unwrap();
    lan["switch"].ip(&["link", "add", "br0", "type", "bridge"]).unwrap();
    lan["switch"].ip(&["link", "set", "br0", "up"]).unwrap();
    for (number, host) in [(1, LB), (2, "b1"), (3, "b2"), (9, "client")] {
        let port = format!("p-{host}");
        lan.cable(("switch", &port), (host, "e0")).unwrap();
        lan["switch"].ip(&["link", "set", &port, "master", "br0"]).unwrap();
        lan.address((host, "e0"), 1, number).unwrap();
    }
    // The port finishes the checksums of everybody's frames to the balancer.
    lan.face_xdp(setup, &[("switch", "p-lb")]).unwrap();

    let backends = backends(&[(1, 2), (1, 3)]);
    let site = Site::start(lan, setup, &["b1", "b2"], &backends, &payload).unwrap();
    site.require_rung(&["e0"], setup.rung()).unwrap();
    let before = site.agent.totals().unwrap();
    for family in Family::ALL {
        site.job("client", vip(family, 1), &["b1", "b2"], setup.rung(), &payload).unwrap();
    }
    site.require_shared(&before, &backends).unwrap();
    assert_eq!(site.agent.reason("to_tc").unwrap(), 0);
}
