//! What arrives at one end when the other sends, half-closes, resets or falls silent.

use std::sync::Arc;
use std::sync::Mutex;

use tokio::sync::{Barrier, oneshot};

use super::*;
use crate::proxy::{Counter, FlowState};

const MIB: usize = 1 << 20;

async fn carries_both_ways(ip: IpAddr) {
    let backends = backends(&[server(ip, echo).await]);
    let (proxy, address) = proxy(ip, &backends);
    let sent = Arc::new(random_bytes(16 * MIB));

    let (from, mut to) = TcpStream::connect(address).await.unwrap().into_split();
    let data = Arc::clone(&sent);
    let sender = tokio::spawn(async move {
        to.write_all(&data).await.unwrap();
        to
    });
    let mut received = vec![0; sent.len()];
    let mut from = from;
    within(from.read_exact(&mut received)).await.unwrap();
    assert!(received == *sent, "the bytes differ");

    let [flow] = proxy.flows()[..] else { panic!("one flow") };
    assert_eq!((flow.vip, flow.state), (address, FlowState::Established));
    assert_eq!(flow.upstream.unwrap().backend, backends[0].address);
    assert_eq!((flow.bytes_in, flow.bytes_out), (sent.len() as u64, sent.len() as u64));
    assert_eq!((backends[0].open.proxied(), backends[0].stats.connections()), (1, 1));

    let mut to = within(sender).await.unwrap();
    to.shutdown().await.unwrap();
    assert_eq!(read_all(from).await, b"");
    within(proxy.drained()).await;
    assert_eq!(proxy.counts().get(Counter::Accepted), 1);
    assert_eq!(proxy.counts().get(Counter::Closed), 1);
    assert_eq!(backends[0].open.proxied(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn carries_both_ways_over_ipv4() {
    carries_both_ways(V4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn carries_both_ways_over_ipv6() {
    carries_both_ways(V6).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_does_not_read_holds_the_client_back_and_loses_nothing() {
    let (go, wait) = oneshot::channel();
    let (result, received) = oneshot::channel();
    let once = Mutex::new(Some((wait, result)));
    let backend = server(V4, move |stream| {
        let (wait, result) = once.lock().unwrap().take().unwrap();
        async move {
            wait.await.unwrap();
            result.send(read_all(stream).await).unwrap();
        }
    })
    .await;
    let (proxy, address) = proxy(V4, &backends(&[backend]));
    let sent = Arc::new(random_bytes(64 * MIB));
    let data = Arc::clone(&sent);
    let mut client = TcpStream::connect(address).await.unwrap();
    let sender = tokio::spawn(async move {
        client.write_all(&data).await.unwrap();
        client.shutdown().await.unwrap();
        client
    });

    // Nothing moves any more: all buffers on the way are full.
    let stalled = Duration::from_millis(200);
    until(|| proxy.flows().first().is_some_and(|flow| flow.bytes_in > 0 && flow.idle >= stalled)).await;
    assert!(proxy.flows()[0].bytes_in < sent.len() as u64);
    go.send(()).unwrap();
    assert!(within(received).await.unwrap() == *sent, "the bytes differ");
    assert_eq!(read_all(within(sender).await.unwrap()).await, b"");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_has_half_closed_gets_the_whole_answer() {
    let answer = Arc::new(random_bytes(4 * MIB));
    let data = Arc::clone(&answer);
    let backend = server(V4, move |mut stream| {
        let data = Arc::clone(&data);
        async move {
            let mut request = Vec::new();
            stream.read_to_end(&mut request).await.unwrap();
            assert_eq!(request, b"request");
            stream.write_all(&data).await.unwrap();
        }
    })
    .await;
    let (proxy, address) = proxy(V4, &backends(&[backend]));
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"request").await.unwrap();
    client.shutdown().await.unwrap();
    assert!(read_all(client).await == *answer, "the bytes differ");
    within(proxy.drained()).await;
    assert_eq!(proxy.counts().get(Counter::Closed), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_has_half_closed_gets_the_whole_request() {
    let (result, received) = oneshot::channel();
    let once = Mutex::new(Some(result));
    let backend = server(V4, move |mut stream| {
        let result = once.lock().unwrap().take().unwrap();
        async move {
            stream.write_all(b"greeting").await.unwrap();
            stream.shutdown().await.unwrap();
            result.send(read_all(stream).await).unwrap();
        }
    })
    .await;
    let (proxy, address) = proxy(V4, &backends(&[backend]));
    let (from, mut to) = TcpStream::connect(address).await.unwrap().into_split();
    assert_eq!(read_all(from).await, b"greeting");
    until(|| proxy.flows()[0].state == FlowState::Closing).await;

    let sent = random_bytes(4 * MIB);
    within(to.write_all(&sent)).await.unwrap();
    within(to.shutdown()).await.unwrap();
    assert!(within(received).await.unwrap() == sent, "the bytes differ");
    within(proxy.drained()).await;
    assert_eq!(proxy.counts().get(Counter::Closed), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_connections_at_once() {
    const COUNT: usize = 500;
    // Each takes four descriptors here, and more for its pipes; the usual soft limit is 1,024.
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum;
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();

    let backends = backends(&[server(V4, echo).await]);
    let (proxy, address) = proxy(V4, &backends);
    let all_open = Arc::new(Barrier::new(COUNT + 1));
    let all_seen = Arc::new(Barrier::new(COUNT + 1));
    let clients: Vec<_> = (0..COUNT)
        .map(|number| {
            let (all_open, all_seen) = (Arc::clone(&all_open), Arc::clone(&all_seen));
            tokio::spawn(async move {
                let mut sent = random_bytes(32 * 1024);
                sent[..8].copy_from_slice(&number.to_le_bytes());
                let mut received = vec![0; sent.len()];
                let mut client = TcpStream::connect(address).await.unwrap();
                client.write_all(&sent).await.unwrap();
                client.read_exact(&mut received).await.unwrap();
                all_open.wait().await;
                all_seen.wait().await;
                client.shutdown().await.unwrap();
                received == sent && read_all(client).await.is_empty()
            })
        })
        .collect();
    within(all_open.wait()).await;
    assert_eq!(proxy.connections(), COUNT as u64);
    assert_eq!(backends[0].open.proxied(), COUNT as u64);
    within(all_seen.wait()).await;
    for client in clients {
        assert!(within(client).await.unwrap());
    }
    within(proxy.drained()).await;
    assert_eq!(proxy.counts().get(Counter::Closed), COUNT as u64);
}

/// A backend that hands over how its connection ended.
async fn watched() -> (SocketAddr, oneshot::Receiver<std::io::ErrorKind>) {
    let (result, ended) = oneshot::channel();
    let once = Mutex::new(Some(result));
    let backend = server(V4, move |mut stream| {
        let result = once.lock().unwrap().take().unwrap();
        async move {
            let error = stream.read_to_end(&mut Vec::new()).await;
            // A reset after the FIN shows as an error of the socket.
            let error = match error {
                Ok(_) => {
                    drop(stream.ready(tokio::io::Interest::ERROR).await);
                    stream.take_error().unwrap().expect("an error")
                }
                Err(error) => error,
            };
            result.send(error.kind()).unwrap();
        }
    })
    .await;
    (backend, ended)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_by_the_client_resets_the_backend() {
    let (backend, ended) = watched().await;
    let (proxy, address) = proxy(V4, &backends(&[backend]));
    let client = TcpStream::connect(address).await.unwrap();
    until(|| proxy.flows().first().is_some_and(|flow| flow.state == FlowState::Established)).await;
    reset(client);
    assert_eq!(within(ended).await.unwrap(), std::io::ErrorKind::ConnectionReset);
    within(proxy.drained()).await;
    assert_eq!(proxy.counts().get(Counter::ClientReset), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_by_a_half_closed_client_resets_the_backend() {
    let (backend, ended) = watched().await;
    let (proxy, address) = proxy(V4, &backends(&[backend]));
    let mut client = TcpStream::connect(address).await.unwrap();
    client.shutdown().await.unwrap();
    until(|| proxy.flows().first().is_some_and(|flow| flow.state == FlowState::Closing)).await;
    reset(client);
    // In CLOSE_WAIT a RST is reported as EPIPE.
    assert_eq!(within(ended).await.unwrap(), std::io::ErrorKind::BrokenPipe);
    within(proxy.drained()).await;
    assert_eq!(proxy.counts().get(Counter::ClientReset), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_by_the_backend_resets_the_client_after_what_it_had_sent() {
    let backend = server(V4, |mut stream| async move {
        stream.read_exact(&mut [0; 4]).await.unwrap();
        stream.write_all(b"last words").await.unwrap();
        reset(stream);
    })
    .await;
    let (proxy, address) = proxy(V4, &backends(&[backend]));
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"quit").await.unwrap();
    assert_eq!(read_to_reset(&mut client).await, b"last words");
    within(proxy.drained()).await;
    assert_eq!(proxy.counts().get(Counter::BackendReset), 1);
}

/// As a web server does that refuses an upload: the unread rest makes the kernel reset the connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_before_the_end_of_the_upload_arrives() {
    let backend = server(V4, |mut stream| async move {
        stream.read_exact(&mut [0; 1000]).await.unwrap();
        stream.write_all(b"413 Content Too Large").await.unwrap();
    })
    .await;
    let (proxy, address) = proxy(V4, &backends(&[backend]));
    let (mut from, mut to) = TcpStream::connect(address).await.unwrap().into_split();
    let sender = tokio::spawn(async move {
        let upload = vec![0; MIB];
        while to.write_all(&upload).await.is_ok() {}
    });
    let mut answer = Vec::new();
    // The writer may be the one to take note of the reset: then this ends as if by a FIN.
    drop(within(from.read_to_end(&mut answer)).await);
    assert_eq!(answer, b"413 Content Too Large");
    within(sender).await.unwrap();
    within(proxy.drained()).await;
    assert_eq!(proxy.counts().get(Counter::BackendReset), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_is_reset_also_a_half_closed_one() {
    let backend = server(V4, |mut stream| async move {
        stream.read_to_end(&mut Vec::new()).await.unwrap();
        // Says nothing until the proxy closes.
        drop(stream.ready(tokio::io::Interest::ERROR).await);
    })
    .await;
    let mut listener = listener((V4, 0).into(), backends(&[backend]));
    listener.idle_timeout = Some(Duration::from_millis(100));
    let (proxy, address) = start(listener);
    let mut open = TcpStream::connect(address).await.unwrap();
    let mut half_closed = TcpStream::connect(address).await.unwrap();
    half_closed.shutdown().await.unwrap();
    assert_eq!(read_to_reset(&mut open).await, b"");
    assert_eq!(read_to_reset(&mut half_closed).await, b"");
    within(proxy.drained()).await;
    assert_eq!(proxy.counts().get(Counter::IdleTimeout), 2);
}
