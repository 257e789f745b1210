//! Probes by gRPC's health checking protocol, `grpc.health.v1.Health/Check`.

use anyhow::Result;
use hyper::Method;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue, TE};
use hyper::http::uri::{PathAndQuery, Scheme};
use tokio::net::TcpStream;

use super::failure::one_line;
use super::health_message::{Answer, request};
use super::http::Client;
use super::request::{Template, authority, headers};
use super::tls::Tls;
use super::{Failure, Target};
use crate::model::GrpcProbe;

const PATH: &str = "/grpc.health.v1.Health/Check";
const GRPC: &str = "application/grpc";
/// Characters of the endpoint's own words.
const MAX_MESSAGE: usize = 200;
const SERVING: u64 = 1;
const NO_STATUS: &str = "the answer has no gRPC status";

pub(super) struct GrpcProber {
    client: Client,
}

impl GrpcProber {
    pub(super) fn new(probe: &GrpcProbe) -> Result<Self> {
        let GrpcProbe { service, authority: host, metadata, tls } = probe;
        if let Some(host) = host {
            authority(host)?;
        }
        let mut headers = headers(metadata)?;
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(GRPC));
        headers.insert(TE, HeaderValue::from_static("trailers"));
        let template = Template {
            method: Method::POST,
            path: PathAndQuery::from_static(PATH),
            host: host.clone(),
            headers,
            body: request(service).into(),
            http2: true,
            scheme: if tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP },
        };
        let tls = tls.as_ref().map(|tls| Tls::new(tls, "h2")).transpose()?;
        Ok(Self { client: Client { template, tls } })
    }

    /// Asks over a new connection. As in Envoy, a valid answer other than `SERVING` makes the endpoint unhealthy at
    /// once.
    pub(super) async fn exchange(&self, target: &Target, tcp: TcpStream) -> Result<(), Failure> {
        let (mut connection, mut response, meter) = self.client.send(target, tcp, 0).await?;
        // The headers alone may tell the end.
        let told = rpc_status(response.headers()).transpose()?.is_some();
        let status = response.status();
        if status != 200 {
            return Err(refused(format!("status {}", status.as_u16())));
        }
        let kind = response.headers().get(CONTENT_TYPE);
        if !kind.is_some_and(|kind| kind.as_bytes().starts_with(GRPC.as_bytes())) {
            return Err(refused("the answer is not gRPC"));
        }
        let mut answer = Answer::default();
        loop {
            let frame = connection.frame(response.body_mut()).await;
            let frame = frame.map_err(|error| Failure::http(&error, true, meter.seen()))?;
            let Some(frame) = frame else {
                return if told { serving(&answer) } else { Err(refused(NO_STATUS)) };
            };
            if let Some(data) = frame.data_ref() {
                answer.add(data).map_err(refused)?;
            } else if let Some(trailers) = frame.trailers_ref() {
                rpc_status(trailers).unwrap_or_else(|| Err(refused(NO_STATUS)))?;
                return serving(&answer);
            }
        }
    }
}

fn serving(answer: &Answer) -> Result<(), Failure> {
    let name = match answer.status().map_err(refused)? {
        SERVING => return Ok(()),
        0 => "UNKNOWN",
        2 => "NOT_SERVING",
        3 => "SERVICE_UNKNOWN",
        other => return Err(refused(format!("serving status {other}"))),
    };
    Err(refused(format!("serving status {name}")))
}

fn refused(reason: impl AsRef<str>) -> Failure {
    Failure::answer(reason).at_once()
}

/// How the call ended, if the headers or trailers tell.
fn rpc_status(headers: &HeaderMap) -> Option<Result<(), Failure>> {
    let code = headers.get("grpc-status")?.as_bytes();
    if code == b"0" {
        return Some(Ok(()));
    }
    let number = std::str::from_utf8(code).ok().and_then(|code| code.parse::<usize>().ok());
    let mut reason = match number.map(|number| (number, CODES.get(number))) {
        Some((_, Some(name))) => format!("gRPC status {name}"),
        Some((number, None)) => format!("gRPC status {number}"),
        None => "gRPC status that is no number".into(),
    };
    let message = headers.get("grpc-message").map(HeaderValue::as_bytes).map(String::from_utf8_lossy);
    if let Some(message) = message.filter(|message| !message.is_empty()) {
        reason = format!("{reason}: {}", one_line(&message, MAX_MESSAGE));
    }
    Some(Err(refused(reason)))
}

/// Names of the status codes, by number.
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];
