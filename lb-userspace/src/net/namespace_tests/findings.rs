//! Findings that the kernel's own settings cause.

use super::*;

#[test]
#[ignore = "needs root: makes network namespaces"]
fn settings_of_the_namespace_are_judged() {
    let pair = Pair::new();
    pair.ip("link add v0.7 type veth peer name v1");
    pair.ip("nexthop add id 1 via 192.0.2.2 dev node0");
    pair.ip("route add 10.2.0.0/16 nhid 1");
    pair.run(|| async {
        let set = |name: &str, value: &str| std::fs::write(format!("/proc/sys/net/{name}"), value).unwrap();
        for device in ["all", "node0", "v0.7"] {
            set(&format!("ipv4/conf/{device}/rp_filter"), "0");
        }
        let links = || async {
            let mut links = snapshot().await.unwrap().links;
            links.retain(|link| ["node0", "v0.7"].contains(&link.name.as_str()));
            links
        };
        assert_eq!(findings(&links().await), []);

        set("ipv4/conf/v0.7/rp_filter", "1");
        let found = findings(&links().await);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].interface.as_deref(), Some("v0.7"));
        set("ipv4/conf/v0.7/rp_filter", "2");
        set("ipv4/conf/all/rp_filter", "1");
        let found = findings(&links().await);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].interface.as_deref(), Some("node0"));
        set("ipv4/conf/all/rp_filter", "0");

        // What the finding says of next hop objects is so.
        let is_seen = || async {
            let routes = snapshot().await.unwrap().routes;
            routes.iter().any(|route| route.destination == "10.2.0.0/16".parse().unwrap())
        };
        assert!(is_seen().await);
        set("ipv4/nexthop_compat_mode", "0");
        assert!(!is_seen().await);
        let found = findings(&links().await);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].remedy.contains("nexthop_compat_mode=1"), "{found:?}");
    });
}
