//! VLANs: tagged frames of clients, and a backend behind a VLAN device. Needs a kernel with 802.1Q devices (module
//! `8021q`), which `cargo xtask test --kernel` boots.
#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

use lb_tests::agent::config_of;
use lb_tests::lan::{LB, Lan, Site, backends, vip};
use lb_tests::payload::Payload;
use lb_tests::rung::Rung;
use lb_tests::scenario::Setup;
use lb_tests::topology::Family;

/// Of each transfer; small, since the guest's CPU is emulated.
const MIB: u64 = 4;
/// The clients' VLAN and the backends'.
const CLIENTS: u16 = 100;
const BACKENDS: u16 = 200;

#[test]
fn tagged_clients_on_xdp() {
    tagged(Setup::Xdp, Some(CLIENTS), None);
}

#[test]
fn tagged_clients_on_tc() {
    tagged(Setup::Tc, Some(CLIENTS), None);
}

#[test]
fn tagged_backends_on_xdp() {
    tagged(Setup::Xdp, None, Some(BACKENDS));
}

#[test]
fn tagged_backends_on_tc() {
    tagged(Setup::Tc, None, Some(BACKENDS));
}

#[test]
fn tagged_clients_and_backends_on_xdp() {
    tagged(Setup::Xdp, Some(CLIENTS), Some(BACKENDS));
}

#[test]
fn tagged_clients_and_backends_on_tc() {
    tagged(Setup::Tc, Some(CLIENTS), Some(BACKENDS));
}

#[test]
fn the_vlan_devices_themselves_on_tc() {
    let (site, payload) = site(Setup::Tc, Some(CLIENTS), Some(BACKENDS), "auto");
    site.require_rung(&["lc0.100", "lb1.200"], Rung::Tc).unwrap();
    for family in Family::ALL {
        site.job("client", vip(family, 0), &["b1"], Rung::Tc, &payload).unwrap();
    }
}

/// The programs are on the links below, and match and set the tags themselves.
fn tagged(setup: Setup, clients: Option<u16>, backend: Option<u16>) {
    let (site, payload) = site(setup, clients, backend, "[lc0, lb1]");
    site.require_rung(&["lc0", "lb1"], setup.rung()).unwrap();
    for family in Family::ALL {
        site.job("client", vip(family, 0), &["b1"], setup.carrier(), &payload).unwrap();
    }
    // On a kernel that does not tell XDP which veth sends, everything is handed over.
    if setup.carrier() == setup.rung() {
        assert_eq!(site.agent.reason("to_tc").unwrap(), 0);
    }
}

/// The links with a VLAN carry the addresses on VLAN devices at both ends.
fn site(setup: Setup, clients: Option<u16>, backend: Option<u16>, interfaces: &str) -> (Site, Payload) {
    let payload = Payload::random(MIB).unwrap();
    let lan = Lan::new(&["client", LB, "b1"]).unwrap();
    let links = [(0, "lc0", ("client", "c0"), clients), (1, "lb1", ("b1", "e0"), backend)];
    for (network, near, (host, far), vlan) in links {
        lan.cable((LB, near), (host, far)).unwrap();
        // Tags in the frame, where XDP looks for them: a veth else passes them beside it, as a NIC does that takes
        // them off. The balancer's sender may do as it likes.
        if setup == Setup::Xdp {
            lan[host].run("ethtool", &["-K", far, "txvlan", "off"]).unwrap();
        }
        for (end, device, number) in [(LB, near, 1), (host, far, 2)] {
            let mut device = device.to_owned();
            if let Some(id) = vlan {
                let name = format!("{device}.{id}");
                #[rustfmt::skip]
                lan[end].ip(&[
                    "link", "add", "link", &device, "name", &name, "type", "vlan", "id", &id.to_string(),
                ]).unwrap();
                lan[end].ip(&["link", "set", &name, "up"]).unwrap();
                device = name;
            }
            lan.address((end, &device), network, number).unwrap();
        }
    }
    lan.face_xdp(setup, &[("client", "c0"), ("b1", "e0")]).unwrap();

    let config = config_of(setup.rung().name(), interfaces, &backends(&[(1, 2)]));
    (Site::start_with(lan, &config, &["b1"], &payload).unwrap(), payload)
}
