//! The set of listening sockets, and what a change of it leaves alone.

use std::io::ErrorKind;

use super::*;
use crate::proxy::{BindReason, Counter};

async fn round_trip(client: &mut TcpStream) {
    let mut answer = [0; 4];
    within(client.write_all(b"ping")).await.unwrap();
    within(client.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"ping");
}

async fn is_refused(address: SocketAddr) -> bool {
    TcpStream::connect(address).await.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

/// An address that was free a moment ago.
fn free_address(ip: IpAddr) -> SocketAddr {
    let (_socket, address) = refusing(ip);
    address
}

#[tokio::test]
async fn a_change_moves_the_sockets_and_keeps_the_connections() {
    let echoes = backends(&[server(V4, echo).await]);
    let [kept, removed, added] = [V4, V4, V6].map(free_address);
    let proxy = Proxy::new(Arc::new(()));
    proxy.apply(vec![listener(kept, echoes.clone()), listener(removed, echoes.clone())]).unwrap();
    let mut on_kept = TcpStream::connect(kept).await.unwrap();
    let mut on_removed = TcpStream::connect(removed).await.unwrap();
    round_trip(&mut on_kept).await;
    round_trip(&mut on_removed).await;

    // What stays has no backend any more.
    proxy.apply(vec![listener(added, echoes.clone()), listener(kept, Vec::new())]).unwrap();
    round_trip(&mut on_kept).await;
    round_trip(&mut on_removed).await;
    round_trip(&mut TcpStream::connect(added).await.unwrap()).await;
    assert!(is_refused(removed).await);
    assert!(is_reset(kept).await);
    let accepted = proxy.listener_stats().into_iter().map(|l| (l.address, l.counts.get(Counter::Accepted)));
    assert_eq!(accepted.collect::<Vec<_>>(), [(kept, 2), (added, 1)]);
    assert_eq!(proxy.counts().get(Counter::Accepted), 4);
}

#[tokio::test]
async fn a_port_in_use_names_its_owner_and_changes_nothing() {
    let echoes = backends(&[server(V4, echo).await]);
    let other = std::net::TcpListener::bind((V4, 0)).unwrap();
    let taken = other.local_addr().unwrap();
    let [old, new] = [V4, V4].map(free_address);
    let proxy = Proxy::new(Arc::new(()));
    proxy.apply(vec![listener(old, echoes.clone())]).unwrap();

    let error = proxy.apply(vec![listener(new, echoes.clone()), listener(taken, echoes)]).unwrap_err();
    assert_eq!((error.listener.as_str(), error.address), ("test", taken));
    let BindReason::InUse(Some(owner)) = &error.reason else { panic!("{error:?}") };
    assert_eq!(owner.pid, std::process::id().cast_signed());
    let message = format!("listener \"test\": cannot listen on {taken}: already in use by {owner}");
    assert_eq!(error.to_string(), message);
    round_trip(&mut TcpStream::connect(old).await.unwrap()).await;
    assert!(is_refused(new).await);
}

#[tokio::test]
async fn an_address_listed_twice_is_refused() {
    let error = Proxy::new(Arc::new(())).apply(vec![listener((V4, 1).into(), Vec::new()); 2]).unwrap_err();
    assert!(matches!(error.reason, BindReason::Duplicate(_)), "{error:?}");
}

#[tokio::test]
async fn a_second_proxy_does_not_listen_beside_the_first() {
    let address = free_address(V4);
    let wildcard = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
    let (first, second) = (Proxy::new(Arc::new(())), Proxy::new(Arc::new(())));
    first.apply(vec![listener(wildcard, Vec::new()), listener(address, Vec::new())]).unwrap();
    for address in [wildcard, address] {
        let error = second.apply(vec![listener(address, Vec::new())]).unwrap_err();
        assert!(matches!(error.reason, BindReason::InUse(Some(_))), "{error:?}");
    }
}

#[tokio::test]
async fn a_wildcard_takes_each_address_of_its_family_and_reports_it() {
    let echoes = backends(&[server(V4, echo).await]);
    let port = free_address(V4).port();
    let both = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    let proxy = Proxy::new(Arc::new(()));
    proxy.apply(both.map(|ip| listener((ip, port).into(), echoes.clone())).to_vec()).unwrap();
    for ip in [V4, V6, IpAddr::V4(Ipv4Addr::new(127, 1, 2, 3))] {
        let mut client = TcpStream::connect((ip, port)).await.unwrap();
        round_trip(&mut client).await;
        let flow = proxy.flows().into_iter().find(|flow| flow.client == client.local_addr().unwrap());
        assert_eq!(flow.unwrap().vip, SocketAddr::from((ip, port)));
    }
}

#[tokio::test]
async fn a_wildcard_and_an_address_replace_each_other_and_stand_side_by_side() {
    let echoes = backends(&[server(V4, echo).await]);
    let address = free_address(V4);
    let wildcard = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
    let beside = SocketAddr::from(([127, 1, 2, 3], address.port()));
    let proxy = Proxy::new(Arc::new(()));
    for _ in 0..2 {
        proxy.apply(vec![listener(wildcard, echoes.clone())]).unwrap();
        round_trip(&mut TcpStream::connect(beside).await.unwrap()).await;
        proxy.apply(vec![listener(address, echoes.clone())]).unwrap();
        round_trip(&mut TcpStream::connect(address).await.unwrap()).await;
        assert!(is_refused(beside).await);
    }
    proxy.apply(vec![listener(wildcard, Vec::new()), listener(address, echoes.clone())]).unwrap();
    round_trip(&mut TcpStream::connect(address).await.unwrap()).await;
    assert!(is_reset(beside).await);
}

#[tokio::test]
async fn an_address_that_is_not_there_yet() {
    for address in ["192.0.2.77:4711", "[2001:db8::77]:4711"] {
        let proxy = Proxy::new(Arc::new(()));
        proxy.apply(vec![listener(address.parse().unwrap(), Vec::new())]).unwrap();
        assert_eq!(proxy.listener_stats()[0].address, address.parse().unwrap());
    }
}

#[tokio::test]
async fn after_the_stop_connections_live_on_until_drained() {
    let (proxy, address) = proxy(V4, &backends(&[server(V4, echo).await]));
    let mut client = TcpStream::connect(address).await.unwrap();
    round_trip(&mut client).await;
    proxy.stop_listening();
    assert!(is_refused(address).await);
    round_trip(&mut client).await;

    let mut drained = std::pin::pin!(proxy.drained());
    tokio::select! {
        biased;
        () = &mut drained => panic!("a connection is open"),
        () = std::future::ready(()) => {}
    }
    drop(client);
    within(drained).await;
    assert_eq!(proxy.connections(), 0);
}

/// On this one thread the proxy accepts nothing before the stop.
#[tokio::test(flavor = "current_thread")]
async fn connections_that_wait_to_be_accepted_survive_the_stop() {
    let (proxy, address) = proxy(V4, &backends(&[server(V4, echo).await]));
    let clients = [(); 5].map(|()| std::net::TcpStream::connect(address).unwrap());
    proxy.stop_listening();
    assert_eq!(proxy.connections(), clients.len() as u64);
    for client in clients {
        client.set_nonblocking(true).unwrap();
        round_trip(&mut TcpStream::from_std(client).unwrap()).await;
    }
}

/// As at the start, when nobody knows of the backends yet.
#[tokio::test]
async fn connections_wait_until_they_are_accepted() {
    let echoes = backends(&[server(V4, echo).await]);
    let address = free_address(V4);
    let proxy = Proxy::new(Arc::new(()));
    proxy.accept(false);
    proxy.apply(vec![listener(address, echoes)]).unwrap();
    let mut early = TcpStream::connect(address).await.unwrap();
    tokio::task::yield_now().await;
    assert_eq!(proxy.connections(), 0);
    proxy.accept(true);
    round_trip(&mut early).await;
    round_trip(&mut TcpStream::connect(address).await.unwrap()).await;
}
