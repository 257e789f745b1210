//! From an operator's name and parameters to what it writes. Envoy refuses the same ones.

use super::names::{PLAIN, WITHOUT_VALUE, nearest};
use super::operator::{Operator, Part, Peer, Point, Unit};
use super::timestamp::TimeFormat;

/// What an operator has become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Compiled {
    Operator(Operator),
    /// A value that is the same for as long as the process runs.
    Text(String),
}

/// `parameters` is empty without any. An error continues a sentence that begins with the operator.
pub(super) fn compile(name: &str, parameters: &str, length: Option<usize>) -> Result<Compiled, String> {
    let plain = PLAIN.iter().find(|(known, _)| *known == name).map(|(_, operator)| operator.clone());
    let plain = plain.or_else(|| WITHOUT_VALUE.contains(&name).then_some(Operator::Unset));
    if let Some(operator) = plain {
        return if parameters.is_empty() && length.is_none() {
            Ok(Compiled::Operator(operator))
        } else {
            Err("takes neither parameters nor a length".to_owned())
        };
    }
    match name {
        "HOSTNAME" if parameters.is_empty() && length.is_none() => {
            return Ok(Compiled::Text(crate::net::host_name()));
        }
        "HOSTNAME" => return Err("takes neither parameters nor a length".to_owned()),
        "ENVIRONMENT" => return required(parameters).map(|name| Compiled::Text(environment(name, length))),
        _ => {}
    }
    with_parameters(name, parameters, length).map(Compiled::Operator)
}

fn with_parameters(name: &str, parameters: &str, length: Option<usize>) -> Result<Operator, String> {
    // None of those that may be cut has a value.
    let uncut = |operator: Result<Operator, String>| match length {
        None => operator,
        Some(_) => Err("takes no length".to_owned()),
    };
    match name {
        "START_TIME" => uncut(time(parameters).map(Operator::StartTime)),
        "EMIT_TIME" => uncut(time(parameters).map(Operator::EmitTime)),
        "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" | "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT" => {
            uncut(without_port(Peer::Client, parameters))
        }
        "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" | "DOWNSTREAM_DIRECT_LOCAL_ADDRESS_WITHOUT_PORT" => {
            uncut(without_port(Peer::Local, parameters))
        }
        "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => uncut(without_port(Peer::Remote, parameters)),
        "UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => uncut(without_port(Peer::UpstreamLocal, parameters)),
        "COMMON_DURATION" => uncut(required(parameters).and_then(between)),
        "DOWNSTREAM_PEER_CERT_V_START"
        | "DOWNSTREAM_PEER_CERT_V_END"
        | "UPSTREAM_PEER_CERT_V_START"
        | "UPSTREAM_PEER_CERT_V_END" => uncut(time(parameters).map(|_| Operator::Unset)),
        "RESPONSE_CODE_DETAILS" => uncut(Ok(Operator::Unset)),
        "GRPC_STATUS" => uncut(one_of(parameters, &["CAMEL_STRING", "SNAKE_STRING", "NUMBER"])),
        "REQUESTED_SERVER_NAME" => {
            let (choice, host) = split(parameters);
            let choice = one_of(choice, &["SNI_ONLY", "SNI_FIRST", "HOST_FIRST"]);
            uncut(choice.and_then(|_| one_of(host, &["ORIG_OR_HOST", "HOST", "ORIG"])))
        }
        "PATH" => {
            let (with_query, which) = split(parameters);
            one_of(with_query, &["WQ", "NQ"])?;
            one_of(which, &["ORIG", "PATH", "ORIG_OR_PATH"])
        }
        "QUERY_PARAMS" => one_of(parameters, &["ORIG", "DECODED"]),
        "REQ" | "REQUEST_HEADER" | "RESP" | "RESPONSE_HEADER" | "TRAILER" | "RESPONSE_TRAILER" => {
            required(parameters).and_then(header)
        }
        "CLUSTER_METADATA" | "DYNAMIC_METADATA" | "QUERY_PARAM" | "UPSTREAM_METADATA" => {
            required(parameters).map(|_| Operator::Unset)
        }
        "METADATA" => required(split(parameters).0).and_then(|kind| one_of(kind, METADATA_TYPES)),
        "FILTER_STATE" | "UPSTREAM_FILTER_STATE" => required(parameters).and_then(filter_state),
        "CEL" | "COALESCE" | "START_TIME_LOCAL" | "EMIT_TIME_LOCAL" => {
            Err("exists in Envoy and is not supported by Headgate".to_owned())
        }
        _ => Err(match nearest(name) {
            Some(known) => format!("does not exist, did you mean `%{known}%`?"),
            None => "does not exist".to_owned(),
        }),
    }
}

const METADATA_TYPES: &[&str] =
    &["DYNAMIC", "CLUSTER", "ROUTE", "UPSTREAM_HOST", "LISTENER", "LISTENER_FILTER_CHAIN", "VIRTUAL_HOST"];

fn required(parameters: &str) -> Result<&str, String> {
    if parameters.is_empty() { Err("needs parameters in parentheses".to_owned()) } else { Ok(parameters) }
}

/// Before and after the first colon.
fn split(parameters: &str) -> (&str, &str) {
    parameters.split_once(':').unwrap_or((parameters, ""))
}

/// A value that does not exist, if the choice of it does.
fn one_of(choice: &str, choices: &[&str]) -> Result<Operator, String> {
    if choice.is_empty() || choices.contains(&choice) {
        Ok(Operator::Unset)
    } else {
        Err(format!("takes one of {}, not `{choice}`", choices.join(", ")))
    }
}

fn time(format: &str) -> Result<TimeFormat, String> {
    let format = if format.is_empty() { TimeFormat::DEFAULT } else { format };
    TimeFormat::parse(format).map_err(|error| format!("cannot be written: {error}"))
}

/// An address, or the network that it is in where its number of bits is given.
fn without_port(peer: Peer, bits: &str) -> Result<Operator, String> {
    let part = if bits.is_empty() {
        Part::WithoutPort
    } else {
        let bits = bits.parse();
        Part::Network(bits.map_err(|_| "takes the number of bits of a network, as in `(24)`".to_owned())?)
    };
    Ok(Operator::Address(peer, part))
}

/// `START:END` or `START:END:UNIT`.
fn between(parameters: &str) -> Result<Operator, String> {
    let parts: Vec<&str> = parameters.split(':').collect();
    let (from, to, unit) = match parts[..] {
        [from, to] => (from, to, "ms"),
        [from, to, unit] => (from, to, unit),
        _ => return Err("takes (START:END:UNIT), as in `(DS_RX_BEG:US_CX_END:us)`".to_owned()),
    };
    let unit = match unit {
        "ms" => Unit::Milliseconds,
        "us" => Unit::Microseconds,
        "ns" => Unit::Nanoseconds,
        _ => return Err(format!("takes one of the units ms, us, ns, not `{unit}`")),
    };
    Ok(Operator::Between { from: point(from), to: point(to), unit })
}

/// Envoy takes any name, since filters may define points of their own.
fn point(name: &str) -> Point {
    match name {
        "DS_RX_BEG" => Point::Start,
        "US_CX_BEG" => Point::ConnectStart,
        "US_CX_END" => Point::Connected,
        _ => Point::Unknown,
    }
}

/// `NAME` or `NAME?OTHER`; either may be one of HTTP/2's with a colon before it.
fn header(parameters: &str) -> Result<Operator, String> {
    let valid = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    if parameters.matches('?').count() > 1 {
        return Err("takes one alternative header, after a `?`".to_owned());
    }
    let names = parameters.split('?').map(|name| name.strip_prefix(':').unwrap_or(name));
    match names.flat_map(str::chars).find(|c| !valid(*c)) {
        Some(wrong) => Err(format!("takes the name of a header, in which there is no {wrong:?}")),
        None => Ok(Operator::Unset),
    }
}

/// `KEY`, `KEY:PLAIN`, `KEY:TYPED`, `KEY:FIELD:NAME`.
fn filter_state(parameters: &str) -> Result<Operator, String> {
    let (key, rest) = split(parameters);
    let (form, field) = split(rest);
    match (key, form, field) {
        ("", ..) => Err("needs a key".to_owned()),
        (_, "FIELD", "") => Err("needs the name of a field after FIELD:".to_owned()),
        (_, "FIELD", _) | (_, "" | "PLAIN" | "TYPED", "") => Ok(Operator::Unset),
        (_, "PLAIN" | "TYPED", _) => Err("takes a field's name only after FIELD:".to_owned()),
        _ => Err(format!("takes one of PLAIN, TYPED, FIELD after the key, not `{form}`")),
    }
}

/// The variable's value, cut to `length` bytes; `-` without it.
fn environment(name: &str, length: Option<usize>) -> String {
    let value = std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    let mut value = value.unwrap_or_else(|| "-".to_owned());
    if let Some(length) = length {
        value.truncate(value.floor_char_boundary(length));
    }
    value
}
