use std::net::IpAddr;

use socket2::{Domain, SockRef, Socket, Type};

use super::*;
use crate::model::TcpProbe;

fn tcp(send: &str, receive: &[&str]) -> Probe {
    let receive = receive.iter().map(|text| text.as_bytes().to_vec()).collect();
    Probe::Tcp(TcpProbe { send: send.into(), receive })
}

fn closed_port() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn a_connection_is_enough() {
    let (sender, mut ended) = mpsc::channel(1);
    let address = serve(move |mut stream| {
        let sender = sender.clone();
        async move {
            // By a FIN, not by a reset.
            sender.send(stream.read(&mut [0; 1]).await.unwrap()).await.unwrap();
        }
    })
    .await;
    assert_eq!(ask(&tcp("", &[]), address).await, Ok(()));
    assert_eq!(ended.recv().await, Some(0));
}

#[tokio::test]
async fn no_connection() {
    let refused = (FailureKind::Network, "connection refused".into(), false);
    assert_eq!(failure(&tcp("", &[]), closed_port()).await, refused);
    assert_eq!(failure(&Probe::Http(http_probe()), closed_port()).await, refused);
}

#[tokio::test]
async fn an_answer() {
    let address = answer("+OK redis\r\n+PONG\r\n").await;
    assert_eq!(ask(&tcp("PING\r\n", &["+PONG"]), address).await, Ok(()));
    assert_eq!(ask(&tcp("PING\r\n", &["OK", "PONG"]), address).await, Ok(()));
    let address = answer_and_close("+OK redis\r\n+PONG\r\n").await;
    assert_eq!(
        failure(&tcp("PING\r\n", &["PONG", "OK"]), address).await,
        (FailureKind::Network, "closed after 18 bytes without the expected answer".into(), false)
    );
}

#[tokio::test]
async fn an_endless_answer() {
    let (address, mut sent) = flood("", "garbage").await;
    assert_eq!(
        reason(&tcp("PING", &["PONG"]), address).await,
        "the expected answer is not in the first 64 KiB"
    );
    assert!(sent.recv().await.unwrap() < 16 << 20, "the kernel's buffers at the most");
}

#[tokio::test]
async fn a_reset() {
    let address = serve(|stream| async move {
        SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    })
    .await;
    for probe in [tcp("", &["x"]), Probe::Http(http_probe()), Probe::Http(http2_probe())] {
        let (kind, reason, _) = failure(&probe, address).await;
        assert_eq!(kind, FailureKind::Network);
        // With luck the reset comes while the request is being sent.
        assert!(reason.starts_with("connection reset") || reason.starts_with("closed"), "{reason}");
    }
}

/// An accept queue that is full: the kernel drops further SYNs.
#[tokio::test]
async fn a_black_hole() {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    let _queued: Vec<_> = std::iter::repeat_with(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None).unwrap();
        let _ = socket.connect(&address.into());
        socket
    })
    .take(8)
    .collect();
    let failure = Prober::new(&tcp("", &[])).unwrap().ask(&target(address), SHORT).await.unwrap_err();
    assert_eq!((failure.kind, &*failure.reason), (FailureKind::Timeout, "no answer within 200ms"));
}

#[tokio::test]
async fn no_answer() {
    closes_when_dropped(tcp("PING", &["PONG"])).await;
}

#[tokio::test]
async fn from_a_source() {
    let address = serve(|mut stream| async move {
        let peer = stream.peer_addr().unwrap().ip().to_string();
        let _ = stream.write_all(peer.as_bytes()).await;
    })
    .await;
    let prober = Prober::new(&tcp("", &["127.0.0.9"])).unwrap();
    let from = |source: &str| Target { source: Some(source.parse::<IpAddr>().unwrap()), ..target(address) };
    assert_eq!(prober.ask(&from("127.0.0.9"), LONG).await, Ok(()));
    for source in ["192.0.2.1", "::1"] {
        let failure = prober.ask(&from(source), LONG).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Network);
        let begin = format!("no connection can be made from {source}: ");
        assert!(failure.reason.starts_with(&begin), "{}", failure.reason);
    }
}
