use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::HeaderMap;
use hyper::server::conn::http2::Builder;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::*;
use crate::model::GrpcProbe;

/// What the server answers: status, headers, body and trailers.
#[derive(Clone, Default)]
struct Script {
    status: u16,
    headers: Vec<(&'static str, &'static str)>,
    body: Bytes,
    trailers: Vec<(&'static str, &'static str)>,
}

impl Script {
    fn grpc(body: impl AsRef<[u8]>, trailers: &[(&'static str, &'static str)]) -> Self {
        let body = Bytes::copy_from_slice(body.as_ref());
        let headers = vec![("content-type", "application/grpc+proto")];
        Self { status: 200, headers, body, trailers: trailers.to_vec() }
    }

    fn headers_only(headers: &[(&'static str, &'static str)]) -> Self {
        let mut script = Self::grpc("", &[]);
        script.headers.extend(headers);
        script
    }
}

fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
}

async fn server(script: Script) -> (SocketAddr, mpsc::Receiver<(String, Bytes)>) {
    let (sender, requests) = mpsc::channel(8);
    let address = serve(move |stream| {
        let (script, sender) = (script.clone(), sender.clone());
        async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let (script, sender) = (script.clone(), sender.clone());
                async move { Ok::<_, Infallible>(play(request, script, sender).await) }
            });
            let stream = TokioIo::new(stream);
            let _ = Builder::new(TokioExecutor::new()).serve_connection(stream, service).await;
        }
    })
    .await;
    (address, requests)
}

async fn play(
    request: Request<Incoming>,
    script: Script,
    sender: mpsc::Sender<(String, Bytes)>,
) -> Response<BoxBody<Bytes, Infallible>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let _ = sender.try_send((format!("{} {} {:?}", head.method, head.uri, head.headers), body));
    let trailers = map(&script.trailers);
    let body = Full::new(script.body);
    let body = if trailers.is_empty() {
        body.boxed()
    } else {
        body.with_trailers(async move { Some(Ok(trailers)) }).boxed()
    };
    let mut response = Response::new(body);
    *response.status_mut() = script.status.try_into().unwrap();
    *response.headers_mut() = map(&script.headers);
    response
}

fn grpc() -> Probe {
    Probe::Grpc(GrpcProbe::default())
}

const OK: &[(&str, &str)] = &[("grpc-status", "0")];
const SERVING: &[u8] = b"\0\0\0\0\x02\x08\x01";

#[tokio::test]
async fn the_request() {
    let (address, mut requests) = server(Script::grpc(SERVING, OK)).await;
    assert_eq!(ask(&grpc(), address).await, Ok(()));
    let (head, body) = requests.recv().await.unwrap();
    assert!(head.starts_with(&format!("POST http://{address}/grpc.health.v1.Health/Check ")), "{head}");
    for header in ["\"content-type\": \"application/grpc\"", "\"te\": \"trailers\"", "\"Headgate/"] {
        assert!(head.contains(header), "{head}");
    }
    assert_eq!(&*body, b"\0\0\0\0\0");
    let probe = GrpcProbe {
        service: "shop.Cart".into(),
        authority: Some("gw.example".into()),
        metadata: vec![("x-a".into(), "b".into())],
        tls: None,
    };
    assert_eq!(ask(&Probe::Grpc(probe), address).await, Ok(()));
    let (head, body) = requests.recv().await.unwrap();
    assert!(head.starts_with("POST http://gw.example/grpc.health.v1.Health/Check "), "{head}");
    assert!(head.contains("\"x-a\": \"b\""), "{head}");
    assert_eq!(&*body, b"\0\0\0\0\x0b\x0a\x09shop.Cart");
}

#[tokio::test]
async fn refusals() {
    let message = |bytes: &[u8]| [b"\0\0\0\0", &[bytes.len() as u8][..], bytes].concat();
    let cases = [
        (Script::grpc(message(b"\x08\x02"), OK), "serving status NOT_SERVING"),
        (Script::grpc(message(b"\x08\x03"), OK), "serving status SERVICE_UNKNOWN"),
        (Script::grpc(message(b""), OK), "serving status UNKNOWN"),
        (Script::grpc(message(b"\x08\x63"), OK), "serving status 99"),
        (Script::grpc(message(b"\x08"), OK), "the message is no answer to a health check"),
        (Script::grpc("", OK), "no message in the answer"),
        (Script::headers_only(OK), "no message in the answer"),
        (Script::grpc(b"\0\0\0\0\x02\x08", OK), "only a part of a message in the answer"),
        (Script::grpc([SERVING, SERVING].concat(), OK), "more than one message"),
        (Script::grpc(b"\x01\0\0\0\x02\x08\x01", OK), "the message is compressed"),
        (Script::grpc(b"\0\xff\xff\xff\xff\x08\x01", OK), "the message has 4294967295 bytes"),
        (Script::grpc(SERVING, &[]), "the answer has no gRPC status"),
        (Script::grpc(SERVING, &[("x", "y")]), "the answer has no gRPC status"),
        (Script::grpc(SERVING, &[("grpc-status", "14")]), "gRPC status UNAVAILABLE"),
        (Script::grpc(SERVING, &[("grpc-status", "77")]), "gRPC status 77"),
        (Script::grpc(SERVING, &[("grpc-status", "x")]), "gRPC status that is no number"),
        (
            Script::headers_only(&[("grpc-status", "12"), ("grpc-message", "unknown service\t%C3%A4")]),
            "gRPC status UNIMPLEMENTED: unknown service%C3%A4",
        ),
        (
            Script::headers_only(&[("grpc-status", "5"), ("grpc-message", "unknown service")]),
            "gRPC status NOT_FOUND: unknown service",
        ),
        (Script { status: 503, ..Default::default() }, "status 503"),
        (
            Script { status: 200, headers: vec![("content-type", "text/html")], ..Default::default() },
            "the answer is not gRPC",
        ),
    ];
    for (script, reason) in cases {
        let (address, _requests) = server(script).await;
        assert_eq!(failure(&grpc(), address).await, (FailureKind::Answer, reason.to_owned(), true));
    }
}

#[tokio::test]
async fn a_long_answer() {
    let (address, _requests) = server(Script::grpc([0; 1 << 20], OK)).await;
    assert_eq!(reason(&grpc(), address).await, "more than one message");
}

#[tokio::test]
async fn no_grpc() {
    let address = answer("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    assert_eq!(reason(&grpc(), address).await, "the answer is HTTP/1.1, not HTTP/2");
    closes_when_dropped(grpc()).await;
}
