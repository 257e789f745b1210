//! The module against a real kernel, in network namespaces of its own: two, joined by a veth pair.

use std::fs::File;
use std::future::Future;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::process::{self, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::*;

mod findings;
mod follow;
mod translated;

/// How long something the kernel does by itself may take before a test gives up; none waits for it to pass.
const PATIENCE: Duration = Duration::from_secs(20);

/// A node and its neighbour: `node0` (192.0.2.1/24, 2001:db8::1/64) in one namespace, `peer0` (.2, ::2) in the other.
struct Pair {
    node: String,
    peer: String,
}

impl Pair {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = |role| format!("hg-net-{}-{number}-{role}", process::id());
        let pair = Self { node: name("node"), peer: name("peer") };
        ip(&format!("netns add {}", pair.node));
        ip(&format!("netns add {}", pair.peer));
        ip(&format!("-n {} link add node0 type veth peer name peer0 netns {}", pair.node, pair.peer));
        for (namespace, link, last) in [(&pair.node, "node0", 1), (&pair.peer, "peer0", 2)] {
            ip(&format!("-n {namespace} link set lo up"));
            ip(&format!("-n {namespace} link set {link} up"));
            ip(&format!("-n {namespace} address add 192.0.2.{last}/24 dev {link}"));
            ip(&format!("-n {namespace} address add 2001:db8::{last}/64 dev {link} nodad"));
        }
        pair
    }

    /// `ip` inside the node's namespace.
    fn ip(&self, arguments: &str) {
        ip(&format!("-n {} {arguments}", self.node));
    }

    /// Runs a future on a thread of its own inside the node's namespace.
    fn run<F: Future<Output = ()>>(&self, test: impl FnOnce() -> F + Send) {
        inside(&self.node, || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(test());
        });
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for namespace in [&self.node, &self.peer] {
            // A failed test may not have made both.
            let _ = Command::new("ip").args(["netns", "delete", namespace]).output();
        }
    }
}

/// Runs a function on a thread of its own inside a namespace.
fn inside<T: Send>(namespace: &str, function: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let namespace = File::open(format!("/run/netns/{namespace}")).unwrap();
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            function()
        });
        thread.join().unwrap()
    })
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

fn addr(text: &str) -> IpAddr {
    text.parse().unwrap()
}

async fn index(name: &str) -> u32 {
    snapshot().await.unwrap().link_by_name(name).unwrap().index
}

/// The next change that `wanted` accepts.
async fn expect_change(watch: &mut Watch, wanted: impl Fn(&Changes) -> bool) {
    let found = async { while !wanted(&watch.changed().await.unwrap()) {} };
    tokio::time::timeout(PATIENCE, found).await.expect("a notice of the change");
}

/// The neighbour entry, once it is as `wanted`.
async fn expect_neighbour(link: u32, address: IpAddr, wanted: impl Fn(&Neighbour) -> bool) -> Neighbour {
    let found = async {
        loop {
            let entries = neighbours().await.unwrap();
            let entry = entries.into_iter().find(|entry| entry.link == link && entry.address == address);
            if let Some(entry) = entry.filter(&wanted) {
                return entry;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, found).await.expect("the neighbour in the wanted state")
}

#[test]
#[ignore = "needs root: makes network namespaces"]
fn snapshot_shows_the_namespace() {
    let pair = Pair::new();
    pair.ip("link add br0 type bridge");
    pair.ip("link add v0 mtu 1400 type veth peer name v1");
    pair.ip("link set v0 master br0");
    pair.ip("tuntap add mode tun name tun0");
    pair.ip("route add default via 192.0.2.2 metric 50");
    pair.ip("route add 198.51.100.0/24 via 192.0.2.2 src 192.0.2.1 mtu 1300");
    pair.ip("route add 203.0.113.0/24 via inet6 2001:db8::2 dev node0");
    pair.ip("route add blackhole 10.66.0.0/16");
    pair.ip("route add 10.77.0.0/16 via 192.0.2.2 table 77");
    pair.ip("route add 2001:db8:9::/48 nexthop via 2001:db8::2 nexthop via 2001:db8::3");
    pair.ip("neighbour add 192.0.2.9 lladdr 02:00:00:00:00:09 dev node0 nud permanent");
    pair.run(|| async {
        let node = snapshot().await.unwrap();
        let link = node.link_by_name("node0").unwrap();
        assert!(link.up && link.ethernet && !link.loopback && link.mac.is_some());
        assert_eq!((link.kind.as_deref(), link.mtu, link.peer), (Some("veth"), 1500, None));
        let lo = node.link_by_name("lo").unwrap();
        assert!(lo.up && lo.loopback && !lo.ethernet && lo.kind.is_none());
        let v0 = node.link_by_name("v0").unwrap();
        assert_eq!(v0.master, Some(node.link_by_name("br0").unwrap().index));
        assert_eq!(v0.peer, Some(node.link_by_name("v1").unwrap().index));
        assert_eq!((v0.mtu, v0.up), (1400, false));
        let tun = node.link_by_name("tun0").unwrap();
        assert_eq!((tun.kind.as_deref(), tun.ethernet, tun.mac), (Some("tun"), false, None));

        assert_eq!(node.serving_addresses(false), [addr("192.0.2.1")]);
        assert_eq!(node.serving_addresses(true), [addr("2001:db8::1")]);
        assert!(node.is_local(addr("192.0.2.1")) && !node.is_local(addr("192.0.2.2")));
        let candidates = node.candidate_interfaces();
        assert_eq!(candidates.iter().map(|link| &link.name).collect::<Vec<_>>(), ["node0"]);

        let route = |destination: &str| {
            let destination = destination.parse().unwrap();
            node.routes.iter().find(|route| route.destination == destination)
        };
        let default = route("0.0.0.0/0").unwrap();
        assert_eq!(
            (default.gateway, default.link, default.metric),
            (Some(addr("192.0.2.2")), link.index, 50)
        );
        assert_eq!(default.mtu, None);
        let narrow = route("198.51.100.0/24").unwrap();
        assert_eq!((narrow.preferred_source, narrow.mtu), (Some(addr("192.0.2.1")), Some(1300)));
        assert_eq!(route("203.0.113.0/24").unwrap().gateway, Some(addr("2001:db8::2")));
        assert_eq!(route("192.0.2.0/24").unwrap().gateway, None);
        assert_eq!(route("2001:db8:9::/48").unwrap().link, link.index);
        assert!(route("10.66.0.0/16").is_none() && route("10.77.0.0/16").is_none());

        let fixed = node.neighbour(link.index, addr("192.0.2.9")).unwrap();
        assert_eq!((fixed.state, fixed.mac), (NeighbourState::Fixed, Some([2, 0, 0, 0, 0, 9])));
    });
}

#[test]
#[ignore = "needs root: makes network namespaces"]
fn snapshot_of_an_empty_namespace() {
    let pair = Pair::new();
    pair.ip("link delete node0");
    pair.run(|| async {
        let node = snapshot().await.unwrap();
        assert_eq!(node.routes, []);
        assert!(node.candidate_interfaces().is_empty());
        assert!(node.serving_addresses(false).is_empty() && node.serving_addresses(true).is_empty());
    });
}

#[test]
#[ignore = "needs root: makes network namespaces"]
fn watch_notices_each_kind_of_change() {
    let pair = Pair::new();
    pair.run(|| async {
        let mut watch = watch().await.unwrap();
        pair.ip("address add 192.0.2.50/24 dev node0");
        expect_change(&mut watch, |changes| changes.addresses).await;
        assert!(snapshot().await.unwrap().serving_addresses(false).contains(&addr("192.0.2.50")));
        pair.ip("link set node0 mtu 1400");
        expect_change(&mut watch, |changes| changes.links).await;
        pair.ip("route add 198.51.100.0/24 via 192.0.2.2");
        expect_change(&mut watch, |changes| changes.routes).await;
        pair.ip("rule add to 198.51.100.0/24 table 77");
        expect_change(&mut watch, |changes| changes.routes).await;
        pair.ip("neighbour add 192.0.2.9 lladdr 02:00:00:00:00:09 dev node0 nud permanent");
        expect_change(&mut watch, |changes| changes.neighbours).await;
    });
}

#[test]
#[ignore = "needs root: makes network namespaces"]
fn an_overrun_is_a_change_of_everything() {
    let pair = Pair::new();
    pair.run(|| async {
        let mut watch = watch().await.unwrap();
        // More messages than the receive buffer holds: each takes about a kilobyte of it.
        let batch: String = (0..20_000)
            .map(|number| format!("route add 10.{}.{}.1/32 dev node0\n", number / 250, number % 250))
            .collect();
        let file = std::env::temp_dir().join(format!("{}.batch", pair.node));
        std::fs::write(&file, batch).unwrap();
        pair.ip(&format!("-batch {}", file.display()));
        std::fs::remove_file(&file).unwrap();
        expect_change(&mut watch, |changes| *changes == Changes::ALL).await;
        // The watch goes on, and a dump of many datagrams is complete.
        pair.ip("link set node0 mtu 1400");
        expect_change(&mut watch, |changes| changes.links).await;
        let hosts = snapshot()
            .await
            .unwrap()
            .routes
            .iter()
            .filter(|route| route.destination.prefix_len() == 32)
            .count();
        assert_eq!(hosts, 20_000);
    });
}

#[test]
#[ignore = "needs root: makes network namespaces"]
fn route_to_tells_the_cases_apart() {
    let pair = Pair::new();
    for family in ["", "-6 "] {
        let net = if family.is_empty() { "10.66.0." } else { "2001:db8:66::" };
        for (kind, last) in [("blackhole", 1), ("unreachable", 2), ("prohibit", 3)] {
            pair.ip(&format!("{family}route add {kind} {net}{last}"));
        }
    }
    pair.ip("route add 198.51.100.0/24 via 192.0.2.2 mtu 1300");
    pair.ip("route add 203.0.113.0/24 via inet6 2001:db8::2 dev node0");
    pair.ip("route add 2001:db8:5::/48 via 2001:db8::2");
    pair.ip("address add 192.0.2.77/24 dev node0");
    pair.ip("route add 10.88.0.0/16 via 192.0.2.2 src 192.0.2.77 table 77");
    pair.ip("rule add to 10.88.0.0/16 table 77");
    pair.run(|| async {
        let link = index("node0").await;
        let path = |gateway: Option<&str>, source: &str, mtu| {
            RouteTo::Via(Path {
                link,
                gateway: gateway.map(addr),
                source: addr(source),
                mtu,
                encapsulated: false,
            })
        };
        let way = |destination: &'static str| async move { route_to(addr(destination)).await.unwrap() };
        assert_eq!(way("192.0.2.2").await, path(None, "192.0.2.1", None));
        assert_eq!(way("198.51.100.9").await, path(Some("192.0.2.2"), "192.0.2.1", Some(1300)));
        assert_eq!(way("203.0.113.9").await, path(Some("2001:db8::2"), "192.0.2.1", None));
        assert_eq!(way("10.88.1.1").await, path(Some("192.0.2.2"), "192.0.2.77", None));
        assert_eq!(way("2001:db8::2").await, path(None, "2001:db8::1", None));
        assert_eq!(way("2001:db8:5::9").await, path(Some("2001:db8::2"), "2001:db8::1", None));
        for local in ["192.0.2.1", "127.0.0.1", "2001:db8::1", "::1"] {
            assert_eq!(way(local).await, RouteTo::Local, "{local}");
        }
        for (destination, why) in [
            ("10.99.0.1", Unreachable::NoRoute),
            ("2001:db8:99::1", Unreachable::NoRoute),
            ("10.66.0.1", Unreachable::Blackhole),
            ("10.66.0.2", Unreachable::NoRoute),
            ("10.66.0.3", Unreachable::Prohibited),
            ("2001:db8:66::1", Unreachable::Blackhole),
            ("2001:db8:66::2", Unreachable::NoRoute),
            ("2001:db8:66::3", Unreachable::Prohibited),
            ("192.0.2.255", Unreachable::NotUnicast),
        ] {
            assert_eq!(way(destination).await, RouteTo::Unreachable(why), "{destination}");
        }
    });
}

#[test]
#[ignore = "needs root: makes network namespaces"]
fn route_to_without_an_address_to_send_from() {
    let pair = Pair::new();
    pair.ip("address flush dev node0");
    pair.ip("route add 198.51.100.0/24 dev node0");
    pair.run(|| async {
        let answer = route_to(addr("198.51.100.9")).await.unwrap();
        assert_eq!(answer, RouteTo::Unreachable(Unreachable::NoSource));
    });
}

#[test]
#[ignore = "needs root: makes network namespaces"]
fn a_neighbour_is_resolved_and_kept() {
    let pair = Pair::new();
    pair.run(|| async {
        let link = index("node0").await;
        for address in ["192.0.2.2", "2001:db8::2"].map(addr) {
            assert_eq!(resolve(link, address).await.unwrap(), Resolution::Managed);
            let entry =
                expect_neighbour(link, address, |entry| entry.state == NeighbourState::Resolved).await;
            assert!(entry.mac.is_some() && entry.managed && entry.ours);
            assert_eq!(resolve(link, address).await.unwrap(), Resolution::Managed);

            unmanage(link, address).await.unwrap();
            let released = expect_neighbour(link, address, |entry| !entry.managed).await;
            assert_eq!((released.mac, released.state), (entry.mac, NeighbourState::Resolved));
            // Once more, from an entry that exists.
            assert_eq!(resolve(link, address).await.unwrap(), Resolution::Managed);
        }
        let nobody = addr("192.0.2.3");
        assert_eq!(resolve(link, nobody).await.unwrap(), Resolution::Managed);
        let entry = expect_neighbour(link, nobody, |entry| entry.state == NeighbourState::Failed).await;
        assert_eq!(entry.mac, None);
    });
}

#[test]
#[ignore = "needs root: makes network namespaces"]
fn entries_of_others_are_left_alone() {
    let pair = Pair::new();
    pair.ip("neighbour add 192.0.2.9 lladdr 02:00:00:00:00:09 dev node0 nud permanent");
    pair.ip("neighbour add 192.0.2.10 lladdr 02:00:00:00:00:0a dev node0 nud reachable extern_learn");
    pair.ip("neighbour add 192.0.2.2 dev node0 managed");
    pair.run(|| async {
        let link = index("node0").await;
        let before = neighbours().await.unwrap();
        let of = |entries: &[Neighbour], address: IpAddr| {
            *entries.iter().find(|entry| entry.link == link && entry.address == address).unwrap()
        };
        for address in ["192.0.2.9", "192.0.2.10", "192.0.2.2"].map(addr) {
            assert_eq!(resolve(link, address).await.unwrap(), Resolution::Foreign, "{address}");
            unmanage(link, address).await.unwrap();
            let now = of(&neighbours().await.unwrap(), address);
            assert!(!now.ours, "{address}");
            assert_eq!(now.managed, of(&before, address).managed, "{address}");
        }
        let permanent = of(&neighbours().await.unwrap(), addr("192.0.2.9"));
        assert_eq!((permanent.state, permanent.mac), (NeighbourState::Fixed, Some([2, 0, 0, 0, 0, 9])));
        unmanage(link, addr("192.0.2.200")).await.unwrap();
        assert!(resolve(9999, addr("192.0.2.200")).await.is_err());
    });
}

#[test]
#[ignore = "needs root: makes network namespaces"]
fn a_veth_tells_what_it_can() {
    let pair = Pair::new();
    pair.run(|| async {
        let link = index("node0").await;
        // The family exists from Linux 6.3.
        if let Some(features) = xdp_features(link).await.unwrap() {
            assert!(features.basic && features.redirect, "{features:?}");
        }
        assert!(xdp_features(9999).await.is_err());
        assert_eq!(driver("node0").unwrap().as_deref(), Some("veth"));
        assert!(!ethtool::large_receive_offload("node0").unwrap());
        assert!(rx_vlan_offload("node0").unwrap());
        assert!(!rx_vlan_offload("lo").unwrap());
    });
}

#[test]
#[ignore = "needs root: makes network namespaces"]
fn ports_are_those_of_the_namespace() {
    let pair = Pair::new();
    pair.run(|| async {
        std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40100").unwrap();
        std::fs::write("/proc/sys/net/ipv4/ip_local_reserved_ports", "8080,9148-9150").unwrap();
        assert_eq!(local_port_range().unwrap(), (40000, 40100));
        assert_eq!(reserved_ports().unwrap(), [8080..=8080, 9148..=9150]);
    });
    assert_ne!(local_port_range().unwrap(), (40000, 40100));
}
