//! What endpoints are asked, in `health_check:`.

use std::ops::RangeInclusive;

use super::writer::{Writer, quoted, scalar};
use crate::config::probe::{EXPECTED, METHOD, PATH};
use crate::model::{GrpcProbe, HttpProbe, Probe, ProbeTls, TcpProbe};

pub(super) fn write_type(writer: &mut Writer, probe: &Probe) {
    let word = match probe {
        Probe::Tcp(_) => "tcp",
        Probe::Http(HttpProbe { tls: None, .. }) => "http",
        Probe::Http(_) => "https",
        Probe::Grpc(_) => "grpc",
    };
    writer.text("type", word);
}

pub(super) fn write(writer: &mut Writer, probe: &Probe) {
    match probe {
        Probe::Tcp(TcpProbe { send, receive }) => {
            write_bytes(writer, "send", send);
            write_list(writer, "receive", receive.iter().map(|bytes| payload(bytes)));
        }
        Probe::Http(http) => write_http(writer, http),
        Probe::Grpc(grpc) => write_grpc(writer, grpc),
    }
}

fn write_http(writer: &mut Writer, probe: &HttpProbe) {
    if probe.path != PATH {
        writer.text("path", &probe.path);
    }
    if let Some(host) = &probe.host {
        writer.text("host", host);
    }
    if probe.method != METHOD {
        writer.text("method", &probe.method);
    }
    write_headers(writer, &probe.headers);
    write_bytes(writer, "send", &probe.send);
    if probe.expected != [EXPECTED] {
        write_list(writer, "expect_status", probe.expected.iter().map(status));
    }
    write_list(writer, "retry_status", probe.retriable.iter().map(status));
    write_list(writer, "expect_body", probe.receive.iter().map(|bytes| payload(bytes)));
    if probe.body_limit != 0 {
        writer.written("body_limit", &probe.body_limit.to_string());
    }
    if probe.http2 {
        writer.boolean("http2", true);
    }
    if let Some(tls) = &probe.tls {
        write_tls(writer, tls);
    }
}

fn write_grpc(writer: &mut Writer, probe: &GrpcProbe) {
    if !probe.service.is_empty() {
        writer.text("service", &probe.service);
    }
    if let Some(authority) = &probe.authority {
        writer.text("authority", authority);
    }
    write_headers(writer, &probe.metadata);
    if let Some(tls) = &probe.tls {
        writer.boolean("tls", true);
        write_tls(writer, tls);
    }
}

fn write_tls(writer: &mut Writer, tls: &ProbeTls) {
    if let Some(ca) = &tls.ca {
        writer.text("ca", &ca.to_string_lossy());
    }
    if let Some(sni) = &tls.sni {
        writer.text("sni", sni);
    }
    if tls.insecure {
        writer.boolean("verify", false);
    }
}

/// Those of one name stand together.
fn write_headers(writer: &mut Writer, headers: &[(String, String)]) {
    if headers.is_empty() {
        return;
    }
    writer.mapping("headers", |writer| {
        for headers in headers.chunk_by(|(one, _), (next, _)| one == next) {
            let Some((name, value)) = headers.first() else { continue };
            match headers.len() {
                1 => writer.written(&scalar(name), &quoted(value)),
                _ => write_list(writer, &scalar(name), headers.iter().map(|(_, value)| quoted(value))),
            }
        }
    });
}

fn write_bytes(writer: &mut Writer, key: &str, bytes: &[u8]) {
    if !bytes.is_empty() {
        writer.written(key, &payload(bytes));
    }
}

/// A list in one line; none if it is empty.
fn write_list(writer: &mut Writer, key: &str, items: impl Iterator<Item = String>) {
    let items: Vec<String> = items.collect();
    if !items.is_empty() {
        writer.written(key, &format!("[{}]", items.join(", ")));
    }
}

fn status(range: &RangeInclusive<u16>) -> String {
    match range.start() == range.end() {
        true => range.start().to_string(),
        false => format!("\"{}-{}\"", range.start(), range.end()),
    }
}

/// Text where it is some, else its bytes.
fn payload(bytes: &[u8]) -> String {
    let is_text = |text: &&str| !text.contains(|c: char| c.is_control() && !matches!(c, '\r' | '\n' | '\t'));
    match std::str::from_utf8(bytes).ok().filter(is_text) {
        Some(text) => quoted(text),
        None => {
            let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{{ hex: \"{digits}\" }}")
        }
    }
}
