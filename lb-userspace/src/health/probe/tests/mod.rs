//! Probes against scripted servers on the loopback. Where a probe is to end by itself, its timeout is far away.

mod grpc;
mod http;
mod http2;
mod tcp;
mod tls;

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::*;
use crate::model::HttpProbe;

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(200);

/// A server that plays the script with each connection.
async fn serve<F>(script: impl Fn(TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(script(stream));
        }
    });
    address
}

/// One that sends the bytes after the first bytes of a request, then waits for the end.
async fn answer(bytes: impl Into<Vec<u8>>) -> SocketAddr {
    let bytes = bytes.into();
    serve(move |mut stream| {
        let bytes = bytes.clone();
        async move {
            request(&mut stream).await;
            let _ = stream.write_all(&bytes).await;
            drain(&mut stream).await;
        }
    })
    .await
}

/// The same, but it closes behind the bytes.
async fn answer_and_close(bytes: impl Into<Vec<u8>>) -> SocketAddr {
    let bytes = bytes.into();
    serve(move |mut stream| {
        let bytes = bytes.clone();
        async move {
            request(&mut stream).await;
            let _ = stream.write_all(&bytes).await;
            let _ = stream.shutdown().await;
            drain(&mut stream).await;
        }
    })
    .await
}

/// One that sends `begin` after the first bytes of a request, then `again` for ever; bytes sent when that ends.
async fn flood(begin: impl Into<Vec<u8>>, again: impl Into<Vec<u8>>) -> (SocketAddr, mpsc::Receiver<usize>) {
    let (begin, again) = (begin.into(), again.into().repeat(64));
    let (sender, receiver) = mpsc::channel(1);
    let address = serve(move |mut stream| {
        let (begin, again, sender) = (begin.clone(), again.clone(), sender.clone());
        async move {
            request(&mut stream).await;
            let mut sent = 0;
            let _ = stream.write_all(&begin).await;
            while let Ok(bytes) = stream.write(&again).await {
                sent += bytes;
            }
            let _ = sender.send(sent).await;
        }
    })
    .await;
    (address, receiver)
}

/// The first bytes of a request.
async fn request(stream: &mut TcpStream) {
    assert!(stream.read(&mut [0; 4096]).await.is_ok_and(|bytes| bytes > 0), "a request");
}

/// Reads up to the end, be it a reset.
async fn drain(stream: &mut (impl AsyncReadExt + Unpin)) {
    while stream.read(&mut [0; 4096]).await.is_ok_and(|bytes| bytes > 0) {}
}

fn target(address: SocketAddr) -> Target {
    Target { address, source: None, host: None }
}

async fn ask(probe: &Probe, address: SocketAddr) -> Result<(), Failure> {
    Prober::new(probe).unwrap().ask(&target(address), LONG).await
}

/// The kind, the reason and whether at once.
async fn failure(probe: &Probe, address: SocketAddr) -> (FailureKind, String, bool) {
    let Failure { kind, reason, immediate } = ask(probe, address).await.unwrap_err();
    (kind, reason, immediate)
}

async fn reason(probe: &Probe, address: SocketAddr) -> String {
    ask(probe, address).await.unwrap_err().reason
}

fn http_probe() -> HttpProbe {
    HttpProbe {
        method: "GET".into(),
        path: "/healthz".into(),
        host: None,
        headers: Vec::new(),
        send: Vec::new(),
        expected: vec![200..=200],
        retriable: Vec::new(),
        receive: Vec::new(),
        body_limit: 0,
        http2: false,
        tls: None,
    }
}

fn http2_probe() -> HttpProbe {
    HttpProbe { http2: true, ..http_probe() }
}

/// Whoever does not wait for an answer any more has closed the connection.
async fn closes_when_dropped(probe: Probe) {
    let (sender, mut closed) = mpsc::channel(1);
    let address = serve(move |mut stream| {
        let sender = sender.clone();
        async move {
            drain(&mut stream).await;
            sender.send(()).await.unwrap();
        }
    })
    .await;
    let failure = Prober::new(&probe).unwrap().ask(&target(address), SHORT).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Timeout);
    assert_eq!(failure.reason, "no answer within 200ms");
    tokio::time::timeout(LONG, closed.recv()).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_probe_takes_little_room() {
    let prober = Prober::new(&Probe::Http(http_probe())).unwrap();
    let target = target("127.0.0.1:1".parse().unwrap());
    let size = size_of_val(&prober.ask(&target, LONG));
    println!(
        "a probe's future has {size} bytes, the part on the heap {}",
        size_of_val(&prober.exchange(&target))
    );
    assert!(size < 1024);
    fn shared<T: Send + Sync>(_: &T) {}
    shared(&prober);
    fn sent<T: Send>(_: &T) {}
    sent(&prober.ask(&target, LONG));
}
