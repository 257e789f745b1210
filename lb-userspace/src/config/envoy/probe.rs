//! What a health check of Envoy asks: over TCP, HTTP or gRPC.

use std::ops::RangeInclusive;

use super::headers::headers;
use super::import::Import;
use super::message::{self, Message};
use super::schema::{Field, Kind, ignored, read, refused};
use super::{payload, value};
use crate::config::http::{BODILESS, METHODS, is_header_value, path_problem};
use crate::config::probe::{EXPECTED, STATUSES};
use crate::config::tree::Entry;
use crate::model::{GrpcProbe, HttpProbe, Probe, TcpProbe};

/// Envoy's default of the bytes of a body that it looks at.
const BODY_LIMIT: u64 = 1024;

const TCP: &[Field] = &[
    read("send"),
    read("receive"),
    refused("proxy_protocol_config", "the PROXY protocol is not supported yet"),
];

const HTTP: &[Field] = &[
    read("host"),
    read("path"),
    read("send"),
    read("receive"),
    read("response_buffer_size"),
    refused("service_name", "the name of the service in the answer is not looked at"),
    refused("service_name_matcher", "the name of the service in the answer is not looked at"),
    read("request_headers_to_add"),
    ignored(
        "request_headers_to_remove",
        Kind::List(&Kind::Text),
        "a probe has no headers but Host and those that are added",
    ),
    read("use_http2"),
    read("expected_statuses"),
    read("retriable_statuses"),
    read("codec_client_type"),
    read("method"),
];

const GRPC: &[Field] = &[read("service_name"), read("authority"), read("initial_metadata")];

const STATUS_RANGE: &[Field] = &[read("start"), read("end")];

const CHECKERS: [&str; 4] =
    ["http_health_check", "tcp_health_check", "grpc_health_check", "custom_health_check"];

/// In the order of their numbers; an empty word is none.
const ENVOY_METHODS: [&str; 10] =
    ["METHOD_UNSPECIFIED", "GET", "HEAD", "POST", "PUT", "DELETE", "", "OPTIONS", "TRACE", "PATCH"];

/// Of the check at `entry`, of the cluster `name`.
pub(super) fn read_probe(
    entry: &Entry<'_>,
    fields: &Message<'_>,
    name: &str,
    is_http2: bool,
    import: &mut Import<'_>,
) -> Option<Probe> {
    let Some(checker) = fields.one_of(&CHECKERS, import) else {
        import.error(entry, format!("needs one of {}", CHECKERS.join(", ")));
        return None;
    };
    // The first of them, where there are more than the one that may be.
    match CHECKERS.into_iter().find(|key| fields.get(key).is_some()) {
        Some("http_health_check") => http(checker, name, import).map(Probe::Http),
        Some("tcp_health_check") => tcp(checker, import).map(Probe::Tcp),
        Some("grpc_health_check") => {
            if !is_http2 {
                let keys = "http2_protocol_options or typed_extension_protocol_options";
                import.error(checker, format!("Envoy needs {keys} of the cluster for it"));
            }
            grpc(checker, name, import).map(Probe::Grpc)
        }
        _ => {
            import.refuse(checker, "custom health checks are not supported: http, tcp and grpc are");
            None
        }
    }
}

fn tcp(entry: &Entry<'_>, import: &mut Import<'_>) -> Option<TcpProbe> {
    let fields = message::read(entry, TCP, import)?;
    import.honour(entry);
    Some(TcpProbe {
        send: fields.get("send").and_then(|entry| payload::bytes(entry, import)).unwrap_or_default(),
        receive: fields.get("receive").map(|entry| payload::list(entry, import)).unwrap_or_default(),
    })
}

fn http(entry: &Entry<'_>, name: &str, import: &mut Import<'_>) -> Option<HttpProbe> {
    let fields = message::read(entry, HTTP, import)?;
    let Some(path_entry) = fields.get("path") else {
        import.error(entry, "needs path");
        return None;
    };
    let path = value::nonempty(path_entry, import)?;
    match path_problem(path) {
        None => import.honour(path_entry),
        Some(problem) => import.refuse(path_entry, problem),
    }
    let method = fields.get("method").map_or(Some("GET"), |entry| method(entry, import))?;
    let send = fields.get("send").and_then(|entry| {
        if BODILESS.contains(&method) {
            import.error(entry, format!("a request {method} has no body: write method: POST"));
        }
        payload::bytes(entry, import)
    });
    let receive = fields.get("receive").map(|entry| payload::list(entry, import)).unwrap_or_default();
    Some(HttpProbe {
        method: method.to_owned(),
        path: path.to_owned(),
        host: Some(host(&fields, "host", name, import)),
        headers: fields.get("request_headers_to_add").map(|entry| headers(entry, import)).unwrap_or_default(),
        send: send.unwrap_or_default(),
        expected: Some(statuses(&fields, "expected_statuses", import))
            .filter(|statuses| !statuses.is_empty())
            .unwrap_or_else(|| vec![EXPECTED]),
        retriable: statuses(&fields, "retriable_statuses", import),
        body_limit: body_limit(&fields, &receive, import),
        receive,
        http2: speaks_http2(&fields, import),
        tls: None,
    })
}

fn method(entry: &Entry<'_>, import: &mut Import<'_>) -> Option<&'static str> {
    let word = ENVOY_METHODS[value::word(entry, &ENVOY_METHODS, import)?];
    import.honour(entry);
    Some(METHODS.into_iter().find(|method| *method == word).unwrap_or("GET"))
}

/// The name of the cluster is what Envoy calls a host that has no other name.
fn host(fields: &Message<'_>, key: &str, cluster: &str, import: &mut Import<'_>) -> String {
    let given = fields.get(key).filter(|entry| !message::is_empty_text(entry)).and_then(|entry| {
        let host = value::text(entry, import)?;
        if is_header_value(host) {
            import.honour(entry);
        } else {
            import.refuse(entry, "a host is ASCII without control characters");
        }
        Some(host)
    });
    given.unwrap_or(cluster).to_owned()
}

fn statuses(fields: &Message<'_>, key: &str, import: &mut Import<'_>) -> Vec<RangeInclusive<u16>> {
    let Some(entry) = fields.get(key) else { return Vec::new() };
    import.honour(entry);
    let ranges = message::repeated(entry, import);
    ranges.iter().filter_map(|range| status_range(range, import)).collect()
}

/// `Int64Range`, whose end is not in it.
fn status_range(entry: &Entry<'_>, import: &mut Import<'_>) -> Option<RangeInclusive<u16>> {
    let fields = message::read(entry, STATUS_RANGE, import)?;
    let (Some(start), Some(end)) = (fields.get("start"), fields.get("end")) else {
        import.error(entry, "needs start and end");
        return None;
    };
    let (least, most) = (u64::from(*STATUSES.start()), u64::from(*STATUSES.end()));
    let first = value::number(start, least..=most, import)?;
    let after = value::number(end, least..=most + 1, import)?;
    if after <= first {
        import.error(
            end,
            format!("not above the start: the end is not in the range, write {} for it", first + 1),
        );
        return None;
    }
    Some(u16::try_from(first).ok()?..=u16::try_from(after - 1).ok()?)
}

fn body_limit(fields: &Message<'_>, receive: &[Vec<u8>], import: &mut Import<'_>) -> usize {
    let entry = fields.get("response_buffer_size");
    let limit = entry.and_then(|entry| {
        let limit = value::number(entry, 0..=u64::MAX, import)?;
        import.honour(entry);
        // More is no limit: the probe has its own.
        Some(if limit > u64::from(u32::MAX) { 0 } else { limit })
    });
    let limit = limit.unwrap_or(BODY_LIMIT);
    let expected = receive.iter().map(Vec::len).sum::<usize>() as u64;
    if (1..expected).contains(&limit)
        && let Some(entry) = entry.or_else(|| fields.get("receive"))
    {
        import.error(entry, format!("receive has {expected} bytes, response_buffer_size is {limit}"));
    }
    usize::try_from(limit).unwrap_or(0)
}

/// By `codec_client_type`, or `use_http2` in v2.
fn speaks_http2(fields: &Message<'_>, import: &mut Import<'_>) -> bool {
    let old = fields.get("use_http2").is_some_and(|entry| {
        import.honour(entry);
        value::boolean(entry, import) == Some(true)
    });
    let Some(entry) = fields.get("codec_client_type") else { return old };
    match value::word(entry, &["HTTP1", "HTTP2", "HTTP3"], import) {
        Some(2) => import.refuse(entry, "HTTP/3 is not supported: HTTP1 and HTTP2 are"),
        Some(codec) => {
            import.honour(entry);
            return old || codec == 1;
        }
        None => {}
    }
    old
}

fn grpc(entry: &Entry<'_>, name: &str, import: &mut Import<'_>) -> Option<GrpcProbe> {
    let fields = message::read(entry, GRPC, import)?;
    import.honour(entry);
    let service = fields.get("service_name").and_then(|entry| {
        import.honour(entry);
        value::text(entry, import)
    });
    Some(GrpcProbe {
        service: service.unwrap_or_default().to_owned(),
        authority: Some(host(&fields, "authority", name, import)),
        metadata: fields.get("initial_metadata").map(|entry| headers(entry, import)).unwrap_or_default(),
        tls: None,
    })
}
