//! Finding out what the node translates: nft rules as kube-proxy's, with the gateway in the peer's namespace.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::Stdio;

use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use super::*;

const RULES: &str = "
table inet services {
    chain output {
        type nat hook output priority -100
        ip daddr 10.96.0.1 tcp dport 80 dnat ip to 192.0.2.2:8080
        ip daddr 10.96.0.2 tcp dport 80 dnat ip to 192.0.2.3:8080
        ip6 daddr 2001:db8:96::1 tcp dport 80 dnat ip6 to [2001:db8::2]:8080
    }
}
";

/// A pair whose node reaches the service addresses by its default routes, with or without rules for them.
fn pair_with(rules: &str) -> Pair {
    let pair = Pair::new();
    pair.ip("route add default via 192.0.2.2");
    pair.ip("route add default via 2001:db8::2");
    inside(&pair.node, || {
        let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
        nft.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
        assert!(nft.wait().unwrap().success());
    });
    pair
}

/// A listening socket of the peer; a socket stays in the namespace it was made in.
fn peer_listener(pair: &Pair, address: &str) -> TcpListener {
    inside(&pair.peer, || TcpListener::bind(address).unwrap())
}

fn socket(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// What the gateway saw of the next connection: its bytes, up to a FIN. A RST is an error.
fn seen_by(gateway: &TcpListener) -> std::io::Result<Vec<u8>> {
    let (mut connection, _) = gateway.accept()?;
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.write_all(b"a server that speaks first")?;
    let mut bytes = Vec::new();
    connection.read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[test]
#[ignore = "needs root: makes network namespaces"]
fn a_translated_address_is_found_and_the_gateway_sees_a_clean_connection() {
    let pair = pair_with(RULES);
    for (service, backend) in
        [("10.96.0.1:80", "192.0.2.2:8080"), ("[2001:db8:96::1]:80", "[2001:db8::2]:8080")]
    {
        let gateway = peer_listener(&pair, backend);
        let seen = thread::spawn(move || seen_by(&gateway));
        pair.run(|| async {
            assert_eq!(
                translated(socket(service)).await.unwrap(),
                Translation::Elsewhere(socket(backend)),
                "{service}"
            );
        });
        assert_eq!(seen.join().unwrap().unwrap(), b"", "{service}");
    }
    // Nobody is there to answer: the rule shows all the same.
    pair.run(|| async {
        let elsewhere = Translation::Elsewhere(socket("192.0.2.3:8080"));
        assert_eq!(translated(socket("10.96.0.2:80")).await.unwrap(), elsewhere);
    });
}

#[test]
#[ignore = "needs root: makes network namespaces"]
fn an_address_without_a_rule_is_not_translated() {
    // With rules the node tracks every connection, without any none.
    for rules in [RULES, ""] {
        let pair = pair_with(rules);
        for backend in ["192.0.2.2:8080", "[2001:db8::2]:8080"] {
            let gateway = peer_listener(&pair, backend);
            let seen = thread::spawn(move || seen_by(&gateway));
            pair.run(|| async {
                assert_eq!(translated(socket(backend)).await.unwrap(), Translation::Direct, "{backend}");
            });
            assert_eq!(seen.join().unwrap().unwrap(), b"", "{backend}");
        }
        pair.run(|| async {
            // Nobody there: the entry, if connections are tracked, is all there is to see.
            let untracked = rules.is_empty();
            let expected = if untracked { Translation::Unknown } else { Translation::Direct };
            assert_eq!(translated(socket("192.0.2.3:80")).await.unwrap(), expected);
            // Refused, of the node itself; no route.
            pair.ip("route add unreachable 10.97.0.0/16");
            for address in ["127.0.0.1:9", "10.97.0.1:80"] {
                assert_eq!(translated(socket(address)).await.unwrap(), Translation::Unknown, "{address}");
            }
            // Refused, one of them mapped: the entry may be seen before the RST takes it away.
            for address in ["[::ffff:192.0.2.2]:8080", "192.0.2.2:9"] {
                let translation = translated(socket(address)).await.unwrap();
                let entry_seen = !untracked && translation == Translation::Direct;
                assert!(entry_seen || translation == Translation::Unknown, "{address}: {translation:?}");
            }
        });
    }
}

#[test]
#[ignore = "needs root: makes network namespaces"]
fn the_kernel_tells_the_peer_of_a_socket() {
    let pair = Pair::new();
    for backend in ["192.0.2.2:8080", "[2001:db8::2]:8080"] {
        let _gateway = peer_listener(&pair, backend);
        pair.run(|| async {
            let mine = std::net::TcpStream::connect(backend).unwrap();
            let local = mine.local_addr().unwrap();
            let peer = socket(backend);
            // Whether it is where it was to go, or elsewhere.
            for wanted in [peer, SocketAddr::new(peer.ip(), 81)] {
                assert_eq!(sock_diag::peer(&mine, local, wanted).await.unwrap(), Some(peer));
            }
            // A socket with the same port that is another one.
            let other = TcpListener::bind(SocketAddr::new(local.ip(), 0)).unwrap();
            assert_eq!(sock_diag::peer(&other, local, peer).await.unwrap(), None);
        });
    }
}

#[test]
#[ignore = "needs root: makes network namespaces"]
fn without_the_right_to_read_conntrack_it_says_so() {
    let pair = pair_with(RULES);
    pair.run(|| async {
        // Of this thread alone, which ends with the test.
        let mut sets = capabilities(None).unwrap();
        sets.effective.remove(CapabilitySet::NET_ADMIN);
        set_capabilities(None, sets).unwrap();
        let error = translated(socket("10.96.0.2:80")).await.unwrap_err();
        assert!(format!("{error:#}").contains("CAP_NET_ADMIN"), "{error:#}");
    });
}

#[test]
#[ignore = "needs root: makes network namespaces"]
fn a_cluster_ip_of_ipvs_is_local_and_known() {
    let pair = Pair::new();
    // A veth, since not every kernel has dummy devices; the name is what counts.
    pair.ip("link add kube-ipvs0 type veth peer name other");
    pair.ip("link set kube-ipvs0 up");
    pair.ip("address add 10.96.0.1/32 dev kube-ipvs0");
    pair.run(|| async {
        let node = snapshot().await.unwrap();
        let service = addr("10.96.0.1");
        assert!(node.is_cluster_ip(service) && !node.is_cluster_ip(addr("192.0.2.1")));
        assert_eq!(route_to(service).await.unwrap(), RouteTo::Local);
        assert_eq!(node.serving_addresses(false), [addr("192.0.2.1")]);
    });
}
