//! Probes by an HTTP request.

use std::ops::RangeInclusive;

use anyhow::{Context, Result, bail};
use hyper::body::Incoming;
use hyper::http::uri::Scheme;
use hyper::{Method, Response};
use tokio::net::TcpStream;

use super::connection::Connection;
use super::matching::Matching;
use super::request::{Template, authority, headers};
use super::stream::{Meter, Stream};
use super::tls::Tls;
use super::{Failure, Target};
use crate::model::HttpProbe;

/// Bytes of the body that are looked at if the probe does not say.
const BODY_LIMIT: usize = 64 << 10;

/// Of an endpoint that takes itself out.
const IMMEDIATE: &str = "x-envoy-immediate-health-check-fail";

pub(super) struct HttpProber {
    client: Client,
    expected: Vec<RangeInclusive<u16>>,
    retriable: Vec<RangeInclusive<u16>>,
    receive: Vec<Vec<u8>>,
    body_limit: usize,
}

/// A request and how it is brought to an endpoint.
pub(super) struct Client {
    pub(super) template: Template,
    pub(super) tls: Option<Tls>,
}

impl Client {
    /// A new HTTP connection over `tcp`, for an answer of which `body` bytes are looked at, and the answer's begin.
    pub(super) async fn send(
        &self,
        target: &Target,
        tcp: TcpStream,
        body: usize,
    ) -> Result<(Connection, Response<Incoming>, Meter), Failure> {
        let request = self.template.request(target)?;
        let (stream, meter) = Stream::new(tcp, body);
        let http2 = self.template.http2;
        let connection = match &self.tls {
            Some(tls) => {
                let host = self.template.host(target);
                let stream = Box::pin(tls.connect(host, target.address, stream, &meter)).await?;
                Connection::new(Box::new(stream), http2).await
            }
            None => Connection::new(Box::new(stream), http2).await,
        };
        let failed = |error: hyper::Error| Failure::http(&error, http2, meter.seen());
        let mut connection = connection.map_err(failed)?;
        let response = connection.send(request).await.map_err(failed)?;
        Ok((connection, response, meter))
    }
}

impl HttpProber {
    pub(super) fn new(probe: &HttpProbe) -> Result<Self> {
        let HttpProbe { method, path, host, headers: further, send, .. } = probe;
        let HttpProbe { expected, retriable, receive, body_limit, http2, tls, .. } = probe;
        let method: Method = method.parse().with_context(|| format!("`{method}` is no method"))?;
        if method == Method::CONNECT {
            bail!("a probe cannot be a CONNECT");
        }
        if let Some(host) = host {
            authority(host)?;
        }
        let template = Template {
            method,
            path: path.parse().with_context(|| format!("`{path}` is no path"))?,
            host: host.clone(),
            headers: headers(further)?,
            body: send.clone().into(),
            http2: *http2,
            scheme: if tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP },
        };
        let protocol = if *http2 { "h2" } else { "http/1.1" };
        let tls = tls.as_ref().map(|tls| Tls::new(tls, protocol)).transpose()?;
        Ok(Self {
            client: Client { template, tls },
            expected: expected.clone(),
            retriable: retriable.clone(),
            receive: receive.clone(),
            body_limit: if *body_limit == 0 { BODY_LIMIT } else { *body_limit },
        })
    }

    /// Sends the request over a new connection and judges the answer. Its body is read only to find something in it.
    pub(super) async fn exchange(&self, target: &Target, tcp: TcpStream) -> Result<(), Failure> {
        let (mut connection, mut response, meter) = self.client.send(target, tcp, self.body_limit).await?;
        let asks_out = response.headers().contains_key(IMMEDIATE);
        let status = response.status().as_u16();
        if !within(&self.expected, status) {
            let failure = Failure::answer(format!("status {status}"));
            let retriable = within(&self.retriable, status) && !asks_out;
            return Err(if retriable { failure } else { failure.at_once() });
        }
        if self.receive.is_empty() {
            return Ok(());
        }
        let mut matching = Matching::new(&self.receive);
        let mut left = self.body_limit;
        while left > 0 {
            let frame = connection.frame(response.body_mut()).await;
            let frame =
                frame.map_err(|error| Failure::http(&error, self.client.template.http2, meter.seen()))?;
            let Some(frame) = frame else { break };
            let Some(data) = frame.data_ref() else { continue };
            let data = &data[..data.len().min(left)];
            left -= data.len();
            if matching.feed(data) {
                return Ok(());
            }
        }
        // As Envoy, which has no threshold for that.
        Err(Failure::answer(match left {
            0 => format!("the expected text is not in the first {} bytes of the body", self.body_limit),
            _ => "the expected text is not in the body".into(),
        })
        .at_once())
    }
}

fn within(ranges: &[RangeInclusive<u16>], status: u16) -> bool {
    ranges.iter().any(|range| range.contains(&status))
}
