//! Backends and clients at the other end of a tunnel.

use lb_tests::lan::{LB, Lan, Site, backends, vip};
use lb_tests::payload::Payload;
use lb_tests::rung::Rung;
use lb_tests::scenario::Setup;
use lb_tests::topology::Family;
use lb_tests::tun::TunLink;

/// Of each transfer.
const MIB: u64 = 8;

#[test]
fn backends_behind_vxlan_on_xdp() {
    backends_behind_vxlan(Setup::Xdp);
}

#[test]
fn backends_behind_vxlan_on_tc() {
    backends_behind_vxlan(Setup::Tc);
}

/// Pods of another node, reached through an overlay whose MTU is 1,450 where everybody else believes in 1,500.
fn backends_behind_vxlan(setup: Setup) {
    let payload = Payload::random(MIB).unwrap();
    let lan = Lan::new(&["client", LB, "node2"]).unwrap();
    lan.network(0, (LB, "lc0"), ("client", "c0")).unwrap();
    lan.network(40, (LB, "under"), ("node2", "under")).unwrap();
    lan.face_xdp(setup, &[("client", "c0"), ("node2", "under")]).unwrap();
    for (host, own, other) in [(LB, 1, 2), ("node2", 2, 1)] {
        let address = |number| Family::V4.address(40, number).to_string();
        #[rustfmt::skip]
        lan[host].ip(&[
            "link", "add", "vxlan.calico", "type", "vxlan", "id", "4096", "dstport", "4789", "dev", "under",
            "local", &address(own), "remote", &address(other),
        ]).unwrap();
        lan[host].ip(&["link", "set", "vxlan.calico", "up"]).unwrap();
        lan.address((host, "vxlan.calico"), 1, own).unwrap();
        let shown = lan[host].ip(&["link", "show", "vxlan.calico"]).unwrap();
        assert!(shown.contains("mtu 1450"), "{shown}");
    }
    // The far end believes that it may send more, so that only the segment size agreed on holds it.
    lan.mtu(("node2", "under"), 1600).unwrap();
    lan.mtu(("node2", "vxlan.calico"), 1500).unwrap();

    let site = Site::start(lan, setup, &["node2"], &backends(&[(1, 2)]), &payload).unwrap();
    site.require_rung(&["lc0"], setup.rung()).unwrap();
    let (rung, why) = site.interface("vxlan.calico").unwrap();
    assert_eq!(rung, "tc", "{why}");
    assert!(why.contains("vxlan") || setup == Setup::Tc, "{why}");
    for family in Family::ALL {
        site.job("client", vip(family, 0), &["node2"], Rung::Tc, &payload).unwrap();
    }
    let handed_over = site.agent.reason("to_tc").unwrap();
    assert_eq!(handed_over > 0, setup == Setup::Xdp, "{handed_over} packets");
}

#[test]
fn clients_behind_tun_beside_xdp() {
    clients_behind_tun(Setup::Xdp);
}

#[test]
fn clients_behind_tun_beside_tc() {
    clients_behind_tun(Setup::Tc);
}

/// A VPN's clients: packets without Ethernet header, and an MTU of 1,400.
fn clients_behind_tun(setup: Setup) {
    let payload = Payload::random(MIB).unwrap();
    let lan = Lan::new(&["client", LB, "b1"]).unwrap();
    lan.network(1, (LB, "lb1"), ("b1", "e0")).unwrap();
    lan.face_xdp(setup, &[("b1", "e0")]).unwrap();
    let _tunnel = TunLink::join([(&lan[LB], "vpn0"), (&lan["client"], "vpn0")], 1400).unwrap();
    lan.address((LB, "vpn0"), 0, 1).unwrap();
    lan.address(("client", "vpn0"), 0, 2).unwrap();

    let site = Site::start(lan, setup, &["b1"], &backends(&[(1, 2)]), &payload).unwrap();
    site.require_rung(&["lb1"], setup.rung()).unwrap();
    let (rung, why) = site.interface("vpn0").unwrap();
    assert_eq!(rung, "tc", "{why}");
    for family in Family::ALL {
        site.job("client", vip(family, 0), &["b1"], Rung::Tc, &payload).unwrap();
    }
}
