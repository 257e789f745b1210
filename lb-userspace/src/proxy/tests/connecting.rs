//! Which backend a connection gets, and what the client sees if it gets none.

use super::*;
use crate::proxy::{Counter, FlowState};

async fn answers(address: SocketAddr) {
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"hello").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read_all(client).await, b"hello");
}

#[tokio::test]
async fn the_next_backend_after_a_refusal() {
    let (_socket, refusing) = refusing(V4);
    // The backend's family need not be the client's.
    let backends = backends(&[refusing, server(V6, echo).await]);
    let (proxy, address) = proxy(V4, &backends);
    answers(address).await;
    within(proxy.drained()).await;
    let counts = proxy.counts();
    assert_eq!((counts.get(Counter::ConnectRefused), counts.get(Counter::Closed)), (1, 1));
    assert_eq!((backends[0].stats.connect_failures(), backends[0].stats.connections()), (1, 0));
    assert_eq!((backends[1].stats.connect_failures(), backends[1].stats.connections()), (0, 1));
}

#[tokio::test]
async fn the_next_backend_after_a_timeout() {
    let (_sockets, silent) = silent();
    let backends = backends(&[silent, server(V4, echo).await]);
    let open = ActiveCount::default();
    let balancer = InOrder { open, backends: backends.clone(), connect_timeout: Duration::from_millis(500) };
    let mut listener = listener((V4, 0).into(), Vec::new());
    listener.clusters = vec![(Arc::new(balancer), 1)];
    let (proxy, address) = start(listener);
    answers(address).await;
    within(proxy.drained()).await;
    assert_eq!(proxy.counts().get(Counter::ConnectTimeout), 1);
    assert_eq!(backends[0].stats.connect_failures(), 1);
    assert_eq!(backends[1].stats.connections(), 1);
}

#[tokio::test]
async fn no_backend_resets_the_client() {
    let (proxy, address) = proxy(V4, &[]);
    assert!(is_reset(address).await);
    within(proxy.drained()).await;
    assert_eq!(proxy.counts().get(Counter::NoBackend), 1);
}

#[tokio::test]
async fn no_more_backends_than_attempts_then_the_client_is_reset() {
    let (_socket, refusing) = refusing(V6);
    let backends = backends(&[refusing, refusing, refusing, server(V6, echo).await]);
    let (proxy, address) = proxy(V6, &backends);
    assert!(is_reset(address).await);
    within(proxy.drained()).await;
    let counts = proxy.counts();
    assert_eq!((counts.get(Counter::ConnectRefused), counts.get(Counter::ConnectFailed)), (3, 1));
    assert_eq!(backends[3].stats.connections(), 0);
}

#[tokio::test]
async fn a_client_that_resets_ends_the_attempt() {
    let (_sockets, silent) = silent();
    let backends = backends(&[silent]);
    let (proxy, address) = proxy(V4, &backends);
    let client = TcpStream::connect(address).await.unwrap();
    until(|| proxy.connections() == 1).await;
    assert_eq!(proxy.flows()[0].state, FlowState::HalfOpen);
    reset(client);
    within(proxy.drained()).await;
    assert_eq!(proxy.counts().get(Counter::ClientGone), 1);
    assert_eq!(backends[0].stats.connect_failures(), 0);
}

/// It may have said all it has to say; the server's answer is still wanted.
#[tokio::test]
async fn a_client_that_half_closes_at_once_is_served() {
    let backend = server(V4, |mut stream| async move {
        assert_eq!(stream.read_to_end(&mut Vec::new()).await.unwrap(), 0);
        stream.write_all(b"the time").await.unwrap();
    })
    .await;
    let (_proxy, address) = proxy(V4, &backends(&[backend]));
    let mut client = TcpStream::connect(address).await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read_all(client).await, b"the time");
}
