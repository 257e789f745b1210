use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http2::Builder;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::*;

fn http2() -> Probe {
    Probe::Http(http2_probe())
}

fn network(reason: &str) -> (FailureKind, String, bool) {
    (FailureKind::Network, reason.to_owned(), false)
}

/// A frame: its length, type, flags and stream before its payload.
fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
}

fn settings() -> Vec<u8> {
    frame(4, 0, 0, &[])
}

const HEADERS: u8 = 1;
const PING: u8 = 6;
const GO_AWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

async fn echo(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, _) = request.into_parts();
    Ok(Response::new(format!("{} {} {:?}", head.method, head.uri, head.headers).into()))
}

#[tokio::test]
async fn the_request() {
    let address = serve(|stream| async move {
        let service = service_fn(echo);
        let _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
    })
    .await;
    let expecting = |receive: &str, host: Option<&str>| {
        let host = host.map(str::to_owned);
        Probe::Http(HttpProbe { receive: vec![receive.into()], host, ..http2_probe() })
    };
    assert_eq!(ask(&expecting(&format!("GET http://{address}/healthz"), None), address).await, Ok(()));
    assert_eq!(ask(&expecting("GET http://gw.example/healthz", Some("gw.example")), address).await, Ok(()));
    let reason = reason(&expecting("connection", None), address).await;
    assert_eq!(reason, "the expected text is not in the body");
}

#[tokio::test]
async fn no_http2() {
    for answer_of in ["HTTP/1.1 400 Bad Request\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"] {
        let address = answer(answer_of).await;
        assert_eq!(failure(&http2(), address).await, network("the answer is HTTP/1.1, not HTTP/2"));
    }
    let address = answer("SSH-2.0-OpenSSH_9.6\r\n").await;
    assert_eq!(failure(&http2(), address).await, network("the answer is not HTTP/2"));
    let alert = [21, 3, 1, 0, 2, 2, 70];
    assert_eq!(failure(&http2(), answer_and_close(alert).await).await, network("the answer is TLS"));
}

#[tokio::test]
async fn closed() {
    for begin in [Vec::new(), settings()] {
        let address = answer_and_close(begin).await;
        assert_eq!(failure(&http2(), address).await, network("closed before the end of the answer"));
    }
    let calm = frame(GO_AWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 11]);
    let address = answer_and_close([settings(), calm].concat()).await;
    assert_eq!(failure(&http2(), address).await, network("the endpoint ends it with ENHANCE_YOUR_CALM"));
}

#[tokio::test]
async fn floods() {
    let early = frame(HEADERS, END_HEADERS, 1, b"\x08\x03103");
    let floods = [
        ("settings", settings(), settings()),
        ("pings", settings(), frame(PING, 0, 0, &[0; 8])),
        ("a frame of an unknown type", settings(), frame(99, 0, 0, &[0; 100])),
        ("1xx answers", settings(), early),
        (
            "continuations",
            [settings(), frame(HEADERS, 0, 1, b"\x88")].concat(),
            frame(CONTINUATION, 0, 1, b"\x00\x01a\x01b"),
        ),
        (
            "empty continuations",
            [settings(), frame(HEADERS, 0, 1, b"\x88")].concat(),
            frame(CONTINUATION, 0, 1, b""),
        ),
    ];
    for (what, begin, again) in floods {
        let (address, mut sent) = flood(begin, again).await;
        let (kind, reason, _) = failure(&http2(), address).await;
        println!("{what}: {reason}");
        assert_eq!(kind, FailureKind::Network, "{what}: {reason}");
        assert!(sent.recv().await.unwrap() < 16 << 20, "{what}");
    }
}

#[tokio::test]
async fn too_long_a_frame() {
    let address = answer([settings(), b"\xff\xff\xff\x00\0\0\0\0\x01".to_vec()].concat()).await;
    assert_eq!(failure(&http2(), address).await, network("the answer breaks HTTP/2: FRAME_SIZE_ERROR"));
}

#[tokio::test]
async fn no_answer() {
    closes_when_dropped(http2()).await;
}
