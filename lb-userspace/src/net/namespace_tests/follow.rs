//! What `watch` reports while the node changes, and what a snapshot then shows.

use super::*;

#[test]
#[ignore = "needs root: makes network namespaces"]
fn a_moved_address_is_reported_both_ways() {
    let pair = Pair::new();
    pair.run(|| async {
        let mut watch = watch().await.unwrap();
        for (add, remove, vip) in [
            ("address add 192.0.2.50/32 dev node0", "address del 192.0.2.50/32 dev node0", "192.0.2.50"),
            (
                "address add 2001:db8::50/128 dev node0 nodad",
                "address del 2001:db8::50/128 dev node0",
                "2001:db8::50",
            ),
        ] {
            let vip = addr(vip);
            pair.ip(add);
            expect_change(&mut watch, |changes| changes.addresses).await;
            assert!(snapshot().await.unwrap().serving_addresses(vip.is_ipv6()).contains(&vip), "{vip}");
            pair.ip(remove);
            expect_change(&mut watch, |changes| changes.addresses).await;
            assert!(!snapshot().await.unwrap().serving_addresses(vip.is_ipv6()).contains(&vip), "{vip}");
        }
    });
}

#[test]
#[ignore = "needs root: makes network namespaces"]
fn a_link_made_again_has_another_index() {
    let pair = Pair::new();
    pair.ip("link add again type veth peer name far");
    pair.run(|| async {
        let before = index("again").await;
        let mut watch = watch().await.unwrap();
        pair.ip("link delete again");
        expect_change(&mut watch, |changes| changes.links).await;
        assert_eq!(snapshot().await.unwrap().link_by_name("again"), None);
        pair.ip("link add again type veth peer name far");
        expect_change(&mut watch, |changes| changes.links).await;
        assert_ne!(index("again").await, before);
        // A new name for the same device.
        pair.ip("link set again name anew");
        expect_change(&mut watch, |changes| changes.links).await;
        assert_ne!(index("anew").await, before);
    });
}

#[test]
#[ignore = "needs root: makes network namespaces"]
fn a_replaced_default_route_is_reported() {
    let pair = Pair::new();
    pair.ip("route add default via 192.0.2.2");
    pair.ip("route add default via 2001:db8::2");
    pair.run(|| async {
        let mut watch = watch().await.unwrap();
        for (replace, default, gateway) in [
            ("route replace default via 192.0.2.3", "0.0.0.0/0", "192.0.2.3"),
            ("route replace default via 2001:db8::3", "::/0", "2001:db8::3"),
        ] {
            pair.ip(replace);
            expect_change(&mut watch, |changes| changes.routes).await;
            let node = snapshot().await.unwrap();
            let gateways: Vec<_> = node
                .routes
                .iter()
                .filter(|route| route.destination == default.parse().unwrap())
                .map(|route| route.gateway)
                .collect();
            assert_eq!(gateways, [Some(addr(gateway))]);
        }
    });
}

/// The gateway of the snapshot's route to a prefix.
async fn gateway_to(destination: &str) -> Option<IpAddr> {
    let destination = destination.parse().unwrap();
    snapshot().await.unwrap().routes.iter().find(|route| route.destination == destination)?.gateway
}

#[test]
#[ignore = "needs root: makes network namespaces"]
fn of_several_next_hops_a_live_one_is_taken() {
    let pair = Pair::new();
    pair.ip("link add v0 type veth peer name v1");
    pair.ip("link set v0 up");
    pair.ip("link set v1 up");
    pair.ip("address add 198.51.100.1/24 dev v0");
    pair.ip("address add 2001:db8:51::1/64 dev v0 nodad");
    pair.ip("route add 10.1.0.0/16 nexthop via 198.51.100.2 nexthop via 192.0.2.2");
    pair.ip("nexthop add id 1 via 198.51.100.2 dev v0");
    pair.ip("nexthop add id 2 via 192.0.2.2 dev node0");
    pair.ip("nexthop add id 3 group 1/2");
    pair.ip("nexthop add id 4 blackhole");
    pair.ip("route add 10.2.0.0/16 nhid 3");
    pair.ip("route add 10.3.0.0/16 nhid 1");
    pair.ip("route add 10.4.0.0/16 nhid 4");
    pair.ip("route add 2001:db8:9::/48 nexthop via 2001:db8:51::2 nexthop via 2001:db8::2");
    let first = |destination| async move { gateway_to(destination).await };
    pair.run(|| async {
        for both in ["10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16"] {
            assert_eq!(first(both).await, Some(addr("198.51.100.2")), "{both}");
        }
        assert_eq!(first("2001:db8:9::/48").await, Some(addr("2001:db8:51::2")));
        assert_eq!(first("10.4.0.0/16").await, None);
    });
    // The far end down takes the carrier away; what the kernel calls dead beyond that depends on a sysctl.
    pair.run(|| async {
        let mut watch = watch().await.unwrap();
        pair.ip("link set v1 down");
        expect_change(&mut watch, |changes| changes.links).await;
        for both in ["10.1.0.0/16", "10.2.0.0/16"] {
            assert_eq!(first(both).await, Some(addr("192.0.2.2")), "{both}");
        }
        assert_eq!(first("2001:db8:9::/48").await, Some(addr("2001:db8::2")));
        assert_eq!(first("10.3.0.0/16").await, None);
    });
}

#[test]
#[ignore = "needs root: makes network namespaces"]
fn an_announced_change_of_mac_is_reported() {
    const ANNOUNCED: [u8; 6] = [2, 0, 0, 0, 0, 0x77];
    let pair = Pair::new();
    inside(&pair.peer, || {
        std::fs::write("/proc/sys/net/ipv4/conf/peer0/arp_notify", "1").unwrap();
        std::fs::write("/proc/sys/net/ipv6/conf/peer0/ndisc_notify", "1").unwrap();
    });
    pair.run(|| async {
        let link = index("node0").await;
        let hops = ["192.0.2.2", "2001:db8::2"].map(addr);
        for hop in hops {
            assert_eq!(resolve(link, hop).await.unwrap(), Resolution::Managed);
            expect_neighbour(link, hop, |entry| entry.state == NeighbourState::Resolved).await;
        }
        let mut watch = watch().await.unwrap();
        ip(&format!("-n {} link set peer0 address 02:00:00:00:00:77", pair.peer));
        // Read only after a notice: a watch that kept quiet would fail the test.
        for hop in hops {
            let found = async {
                loop {
                    let entries = neighbours().await.unwrap();
                    let entry = entries.iter().find(|entry| entry.link == link && entry.address == hop);
                    if entry.is_some_and(|entry| entry.mac == Some(ANNOUNCED) && entry.managed && entry.ours)
                    {
                        break;
                    }
                    while !watch.changed().await.unwrap().neighbours {}
                }
            };
            tokio::time::timeout(PATIENCE, found).await.expect("the announced address");
        }
    });
}

#[test]
#[ignore = "needs root: makes network namespaces"]
fn an_unannounced_change_of_mac_is_found_by_probing() {
    const UNANNOUNCED: [u8; 6] = [2, 0, 0, 0, 0, 0x78];
    let pair = Pair::new();
    pair.run(|| async {
        let link = index("node0").await;
        let hops = ["192.0.2.2", "2001:db8::2"].map(addr);
        for hop in hops {
            assert_eq!(resolve(link, hop).await.unwrap(), Resolution::Managed);
            let before = expect_neighbour(link, hop, |entry| entry.state == NeighbourState::Resolved).await;
            // One that is still there answers and stays.
            probe(link, hop).await.unwrap();
            let after = expect_neighbour(link, hop, |entry| entry.state == NeighbourState::Resolved).await;
            assert_eq!(after, before);
        }
        ip(&format!("-n {} link set peer0 address 02:00:00:00:00:78", pair.peer));
        for hop in hops {
            probe(link, hop).await.unwrap();
        }
        for hop in hops {
            let found = async {
                loop {
                    let entry = expect_neighbour(link, hop, |entry| entry.managed && entry.ours).await;
                    match entry.state {
                        NeighbourState::Resolved if entry.mac == Some(UNANNOUNCED) => break,
                        NeighbourState::Failed => {
                            resolve(link, hop).await.unwrap();
                        }
                        _ => {}
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            tokio::time::timeout(PATIENCE, found).await.expect("the new address");
        }
    });
}

#[test]
#[ignore = "needs root: makes network namespaces"]
fn probing_leaves_entries_of_others_alone() {
    let pair = Pair::new();
    pair.ip("neighbour add 192.0.2.9 lladdr 02:00:00:00:00:09 dev node0 nud permanent");
    pair.ip("neighbour add 192.0.2.10 lladdr 02:00:00:00:00:0a dev node0 nud reachable extern_learn");
    pair.ip("neighbour add 192.0.2.11 lladdr 02:00:00:00:00:0b dev node0 nud reachable");
    pair.run(|| async {
        let link = index("node0").await;
        let before = neighbours().await.unwrap();
        for last in [9, 10, 11, 12] {
            probe(link, addr(&format!("192.0.2.{last}"))).await.unwrap();
        }
        let after = neighbours().await.unwrap();
        for entry in before.iter().filter(|entry| entry.address.is_ipv4()) {
            assert!(after.contains(entry), "{entry:?}");
        }
        assert!(after.iter().all(|entry| entry.address != addr("192.0.2.12")));
    });
}
