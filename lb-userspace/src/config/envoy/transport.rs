//! `transport_socket`, of a filter chain and of a cluster: only plain TCP passes.

use super::extension;
use super::import::Import;
use super::message;
use super::schema::{Field, read};
use crate::config::tree::Entry;

const TRANSPORT_SOCKET: &[Field] = &[read("name"), read("typed_config"), read("config")];

pub(super) const TLS: &str = "Headgate passes TLS through and cannot end or begin it";

pub(super) fn check(entry: &Entry<'_>, import: &mut Import<'_>) {
    let Some(message) = message::read(entry, TRANSPORT_SOCKET, import) else { return };
    let Some(extension) = extension::read(entry, &message, import) else { return };
    let kind = extension.kind;
    if kind.ends_with("raw_buffer") || kind.ends_with(".RawBuffer") {
        import.honour(&extension.place);
    } else if kind.contains("proxy_protocol") {
        import.refuse(&extension.place, "the PROXY protocol is not supported yet");
    } else if kind.contains("tls") {
        import.refuse(&extension.place, TLS);
    } else {
        import
            .refuse(&extension.place, format!("the transport socket {kind} is not supported: raw_buffer is"));
    }
}
