//! The keys of `health_check:` that say what endpoints are asked, each for some types alone.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use super::dns_name;
use super::http::{self, BODILESS, METHODS};
use super::payload;
use super::tree::{Entry, Fields, Report};
use super::yaml::Value;
use crate::model::{GrpcProbe, HttpProbe, Probe, ProbeTls, TcpProbe};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Tcp,
    Http,
    Https,
    Grpc,
    Istio,
}

pub(super) const KINDS: [(&str, Kind); 5] = [
    ("tcp", Kind::Tcp),
    ("http", Kind::Http),
    ("https", Kind::Https),
    ("grpc", Kind::Grpc),
    ("istio", Kind::Istio),
];

/// Where an ingress gateway of Istio says that it is ready.
const ISTIO_PORT: u16 = 15021;
const ISTIO_PATH: &str = "/healthz/ready";

pub(super) const PATH: &str = "/";
pub(super) const METHOD: &str = "GET";
pub(super) const EXPECTED: RangeInclusive<u16> = 200..=200;

/// Of answers over HTTP.
pub(super) const STATUSES: RangeInclusive<u16> = 100..=599;

const HTTP: &[Kind] = &[Kind::Http, Kind::Https, Kind::Istio];

/// Each key and the types that it belongs to.
pub(super) const KEYS: [(&str, &[Kind]); 17] = [
    ("send", &[Kind::Tcp, Kind::Http, Kind::Https, Kind::Istio]),
    ("receive", &[Kind::Tcp]),
    ("path", HTTP),
    ("host", HTTP),
    ("method", HTTP),
    ("headers", &[Kind::Http, Kind::Https, Kind::Grpc, Kind::Istio]),
    ("expect_status", HTTP),
    ("retry_status", HTTP),
    ("expect_body", HTTP),
    ("body_limit", HTTP),
    ("http2", HTTP),
    ("service", &[Kind::Grpc]),
    ("authority", &[Kind::Grpc]),
    ("tls", &[Kind::Grpc]),
    ("ca", &[Kind::Https, Kind::Grpc]),
    ("sni", &[Kind::Https, Kind::Grpc]),
    ("verify", &[Kind::Https, Kind::Grpc]),
];

/// Of TLS.
const TLS_KEYS: [&str; 3] = ["ca", "sni", "verify"];

impl Kind {
    /// The port to ask at, if it is not that of the endpoint.
    pub(super) fn port(self) -> Option<u16> {
        (self == Self::Istio).then_some(ISTIO_PORT)
    }
}

/// `None` with something in `report`.
pub(super) fn read(kind: Kind, fields: &Fields<'_>, report: &mut Report) -> Option<Probe> {
    for (key, kinds) in KEYS.iter().filter(|(_, kinds)| !kinds.contains(&kind)) {
        if let Some(entry) = fields.get(key) {
            let words = KINDS.iter().filter(|(_, kind)| kinds.contains(kind)).map(|(word, _)| *word);
            let words = words.collect::<Vec<_>>().join(", ");
            entry.refuse(format!("belongs to type: {words}: remove the key, or change the type"), report);
        }
    }
    match kind {
        Kind::Tcp => Some(Probe::Tcp(TcpProbe {
            send: fields.get("send").and_then(|entry| payload::read(&entry, report)).unwrap_or_default(),
            receive: fields.get("receive").map(|entry| payload::list(&entry, report)).unwrap_or_default(),
        })),
        Kind::Http | Kind::Istio => Some(Probe::Http(http(kind, fields, report))),
        Kind::Https => {
            let tls = Some(tls(fields, report));
            Some(Probe::Http(HttpProbe { tls, ..http(kind, fields, report) }))
        }
        Kind::Grpc => Some(Probe::Grpc(grpc(fields, report))),
    }
}

fn http(kind: Kind, fields: &Fields<'_>, report: &mut Report) -> HttpProbe {
    let path = fields.get("path").and_then(|entry| path(&entry, report));
    let default_path = if kind == Kind::Istio { ISTIO_PATH } else { PATH };
    let method =
        fields.get("method").and_then(|entry| entry.choice(&METHODS.map(|word| (word, word)), &[], report));
    let method = method.unwrap_or(METHOD);
    let send = fields.get("send").and_then(|entry| {
        if BODILESS.contains(&method) {
            entry.refuse(format!("a request {method} has no body: write method: POST"), report);
        }
        payload::read(&entry, report)
    });
    let receive = fields.get("expect_body").map(|entry| payload::list(&entry, report)).unwrap_or_default();
    HttpProbe {
        method: method.to_owned(),
        path: path.unwrap_or(default_path).to_owned(),
        host: fields.get("host").and_then(|entry| entry.header_value(report)).map(str::to_owned),
        headers: fields.get("headers").map(|entry| entry.headers(report)).unwrap_or_default(),
        send: send.unwrap_or_default(),
        expected: fields
            .get("expect_status")
            .map_or_else(|| vec![EXPECTED], |entry| statuses(&entry, report)),
        retriable: fields.get("retry_status").map(|entry| statuses(&entry, report)).unwrap_or_default(),
        body_limit: body_limit(fields, &receive, report),
        receive,
        http2: flag(fields, "http2", report).unwrap_or(false),
        tls: None,
    }
}

fn path<'a>(entry: &Entry<'a>, report: &mut Report) -> Option<&'a str> {
    let path = entry.text("a path, as in /healthz/ready", report)?;
    if let Some(problem) = http::path_problem(path) {
        entry.refuse(problem, report);
        return None;
    }
    Some(path)
}

/// 0 where there is none.
fn body_limit(fields: &Fields<'_>, receive: &[Vec<u8>], report: &mut Report) -> usize {
    let Some(entry) = fields.get("body_limit") else { return 0 };
    let limit = entry.number("0 (no limit), or ", 0..=u32::MAX, report).unwrap_or_default();
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let expected: usize = receive.iter().map(Vec::len).sum();
    if (1..expected).contains(&limit) {
        entry.refuse(format!("expect_body has {expected} bytes: write as much or more"), report);
    }
    limit
}

/// A status, a range such as `200-299`, or a list of them.
fn statuses(entry: &Entry<'_>, report: &mut Report) -> Vec<RangeInclusive<u16>> {
    let items = if entry.is_list() { entry.items("status", report) } else { vec![entry.clone()] };
    items.iter().filter_map(|item| status(item, report)).collect()
}

fn status(entry: &Entry<'_>, report: &mut Report) -> Option<RangeInclusive<u16>> {
    const ACCEPTED: &str = "a status from 100 to 599, or a range of them, as in 200-299";
    let (Value::Number(text) | Value::Text(text)) = entry.value() else {
        entry.refuse_type(ACCEPTED, report);
        return None;
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let range = match (first.trim().parse::<u16>(), last.trim().parse::<u16>()) {
        (Ok(first), Ok(last)) if first <= last => Some(first..=last),
        _ => None,
    };
    let range = range.filter(|range| STATUSES.contains(range.start()) && STATUSES.contains(range.end()));
    if range.is_none() {
        entry.refuse(format!("`{text}` is not accepted: {ACCEPTED}"), report);
    }
    range
}

fn grpc(fields: &Fields<'_>, report: &mut Report) -> GrpcProbe {
    let is_tls = flag(fields, "tls", report).unwrap_or(false);
    if !is_tls {
        for entry in TLS_KEYS.iter().filter_map(|key| fields.get(key)) {
            entry.refuse("belongs to tls: true: remove the key, or add that one", report);
        }
    }
    GrpcProbe {
        service: fields
            .get("service")
            .and_then(|entry| entry.text("the name of a service", report))
            .unwrap_or_default()
            .to_owned(),
        authority: fields.get("authority").and_then(|entry| entry.header_value(report)).map(str::to_owned),
        metadata: fields.get("headers").map(|entry| entry.headers(report)).unwrap_or_default(),
        tls: is_tls.then(|| tls(fields, report)),
    }
}

fn tls(fields: &Fields<'_>, report: &mut Report) -> ProbeTls {
    ProbeTls {
        ca: fields.get("ca").and_then(|entry| ca(&entry, report)),
        sni: fields.get("sni").and_then(|entry| server_name(&entry, report)),
        insecure: !flag(fields, "verify", report).unwrap_or(true),
    }
}

fn ca(entry: &Entry<'_>, report: &mut Report) -> Option<PathBuf> {
    let path = entry.text("the path of a PEM file", report)?;
    if path.is_empty() {
        entry.refuse("empty: give the path of a PEM file, or leave the key out", report);
        return None;
    }
    Some(path.into())
}

fn server_name(entry: &Entry<'_>, report: &mut Report) -> Option<String> {
    let name = entry.text("a host name", report)?;
    if let Some(problem) = dns_name::problem(name) {
        entry.refuse(format!("`{name}`: {problem}"), report);
        return None;
    }
    Some(name.to_ascii_lowercase())
}

fn flag(fields: &Fields<'_>, key: &str, report: &mut Report) -> Option<bool> {
    fields.get(key)?.boolean(report)
}
