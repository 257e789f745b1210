use super::*;

fn link(index: u32, name: &str) -> Link {
    Link {
        index,
        name: name.to_owned(),
        mac: Some([2, 0, 0, 0, 0, index as u8]),
        mtu: 1500,
        up: true,
        ethernet: true,
        loopback: false,
        kind: None,
        vlan: None,
        master: None,
        peer: None,
    }
}

fn kind(index: u32, name: &str, kind: &str) -> Link {
    Link { kind: Some(kind.to_owned()), ..link(index, name) }
}

fn address(link: u32, cidr: &str) -> Address {
    let net: IpNet = cidr.parse().unwrap();
    Address {
        link,
        address: net.addr(),
        prefix_len: net.prefix_len(),
        tentative: false,
        deprecated: false,
        temporary: false,
        secondary: false,
    }
}

fn route(link: u32, destination: &str) -> Route {
    Route {
        destination: destination.parse().unwrap(),
        gateway: None,
        link,
        preferred_source: None,
        metric: 0,
        mtu: None,
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn node() -> Snapshot {
    let loopback = Link { ethernet: false, loopback: true, mac: Some([0; 6]), ..link(1, "lo") };
    Snapshot {
        links: vec![
            loopback,
            link(2, "eth0"),
            kind(3, "kube-ipvs0", "dummy"),
            Link { up: false, ..link(4, "eth1") },
        ],
        addresses: vec![
            address(1, "127.0.0.1/8"),
            address(1, "::1/128"),
            address(1, "203.0.113.9/32"),
            address(2, "192.0.2.10/24"),
            address(2, "2001:db8::10/64"),
            address(2, "fe80::10/64"),
            address(2, "169.254.3.4/16"),
            address(3, "10.96.0.1/32"),
            address(4, "198.51.100.1/24"),
        ],
        ..Snapshot::default()
    }
}

#[test]
fn a_wildcard_means_the_usable_addresses_of_its_family() {
    let mut node = node();
    assert_eq!(node.serving_addresses(false), [ip("203.0.113.9"), ip("192.0.2.10")]);
    assert_eq!(node.serving_addresses(true), [ip("2001:db8::10")]);

    node.addresses.push(Address { tentative: true, ..address(2, "2001:db8::11/64") });
    // A VIP that keepalived adds to IPv6 is deprecated, so that the node does not send from it.
    node.addresses.push(Address { deprecated: true, ..address(2, "2001:db8::12/128") });
    assert_eq!(node.serving_addresses(true), [ip("2001:db8::10"), ip("2001:db8::12")]);
}

#[test]
fn an_address_on_two_links_is_served_once() {
    let mut node = node();
    node.addresses.push(address(1, "192.0.2.10/32"));
    assert_eq!(node.serving_addresses(false), [ip("203.0.113.9"), ip("192.0.2.10")]);
}

#[test]
fn the_address_of_an_unknown_link_is_not_served() {
    let mut node = node();
    node.links.retain(|link| link.name != "eth0");
    assert_eq!(node.serving_addresses(false), [ip("203.0.113.9")]);
}

#[test]
fn candidates_are_where_packets_enter() {
    let mut node = node();
    node.links.extend([
        kind(10, "br0", "bridge"),
        Link { master: Some(10), ..kind(11, "veth-port", "veth") },
        kind(12, "bond0", "bond"),
        Link { master: Some(12), ..link(13, "eth2") },
        Link {
            vlan: Some(Vlan { parent: Some(12), id: 100, protocol: 0x8100 }),
            ..kind(14, "bond0.100", "vlan")
        },
        kind(15, "blue", "vrf"),
        Link { master: Some(15), ..link(16, "eth3") },
        kind(17, "cali1", "veth"),
        link(18, "bare"),
        Link { ethernet: false, mac: None, ..kind(19, "wg0", "wireguard") },
        link(20, "unnumbered"),
    ]);
    for (link, cidr) in [
        (10, "10.1.0.1/24"),
        (11, "fe80::11/64"),
        (12, "fe80::12/64"),
        (13, "fe80::13/64"),
        (14, "10.2.0.1/24"),
        (15, "127.0.0.1/8"),
        (16, "10.3.0.1/24"),
        (19, "10.4.0.1/24"),
        (20, "fe80::20/64"),
    ] {
        node.addresses.push(address(link, cidr));
    }
    node.routes.push(route(17, "10.244.1.7/32"));
    let names: Vec<_> = node.candidate_interfaces().into_iter().map(|link| link.name.as_str()).collect();
    assert_eq!(names, ["eth0", "br0", "bond0", "bond0.100", "eth3", "cali1", "wg0", "unnumbered"]);
}

#[test]
fn a_port_of_a_master_that_is_not_listed_is_no_candidate() {
    let mut node = node();
    node.links[1].master = Some(99);
    assert!(node.candidate_interfaces().is_empty());
}

#[test]
fn local_addresses() {
    let node = node();
    for local in ["127.3.2.1", "::1", "192.0.2.10", "fe80::10", "10.96.0.1"] {
        assert!(node.is_local(ip(local)), "{local}");
    }
    for other in ["192.0.2.11", "2001:db8::11", "0.0.0.0"] {
        assert!(!node.is_local(ip(other)), "{other}");
    }
}

#[test]
fn cluster_ips_are_those_of_the_ipvs_device() {
    let node = node();
    assert!(node.is_cluster_ip(ip("10.96.0.1")));
    for other in ["192.0.2.10", "10.96.0.2", "127.0.0.1"] {
        assert!(!node.is_cluster_ip(ip(other)), "{other}");
    }
}

#[test]
fn look_ups() {
    let mut node = node();
    let entry = Neighbour {
        link: 2,
        address: ip("192.0.2.1"),
        mac: Some([2, 0, 0, 0, 0, 1]),
        state: NeighbourState::Resolved,
        managed: false,
        ours: false,
    };
    node.neighbours.push(entry);
    assert_eq!(node.neighbour(2, ip("192.0.2.1")), Some(&entry));
    assert_eq!(node.neighbour(1, ip("192.0.2.1")), None);
    assert_eq!(node.link_by_name("eth0").unwrap().index, 2);
    assert_eq!(node.link_by_index(2).unwrap().name, "eth0");
    assert_eq!(node.link_by_name("eth9"), None);
    assert_eq!(node.link_by_index(99), None);
}

#[test]
fn a_temporary_source_gives_way_to_the_lasting_one_of_its_prefix() {
    let mut node = node();
    node.addresses.push(address(2, "2001:db8:1::aaaa/64"));
    node.addresses.push(Address { temporary: true, ..address(2, "2001:db8:1::bbbb/64") });
    node.addresses.push(Address { temporary: true, ..address(2, "2001:db8:2::cccc/64") });
    assert_eq!(node.stable_source(ip("2001:db8:1::bbbb")), ip("2001:db8:1::aaaa"));
    assert_eq!(node.stable_source(ip("2001:db8:1::aaaa")), ip("2001:db8:1::aaaa"));
    // No lasting address in that prefix, and an address that is not listed: nothing better is known.
    assert_eq!(node.stable_source(ip("2001:db8:2::cccc")), ip("2001:db8:2::cccc"));
    assert_eq!(node.stable_source(ip("2001:db8:9::9")), ip("2001:db8:9::9"));
}
