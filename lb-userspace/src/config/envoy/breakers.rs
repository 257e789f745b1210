//! `circuit_breakers:`, of which the limit of connections has an effect.

use super::cluster::NO_HTTP;
use super::import::Import;
use super::message;
use super::schema::{Field, Kind, ignored, read, refused};
use super::value;
use crate::config::tree::Entry;

/// Envoy's default.
pub(super) const MAX_CONNECTIONS: u32 = 1024;

const CIRCUIT_BREAKERS: &[Field] =
    &[read("thresholds"), refused("per_host_thresholds", "limits for each backend are not supported yet")];

const THRESHOLDS: &[Field] = &[
    read("priority"),
    read("max_connections"),
    ignored("max_pending_requests", Kind::U32, "connections that are being opened count in max_connections"),
    ignored("max_requests", Kind::U32, NO_HTTP),
    ignored("max_retries", Kind::U32, NO_HTTP),
    ignored("retry_budget", Kind::Mapping, NO_HTTP),
    ignored("track_remaining", Kind::Bool, "it adds statistics only"),
    ignored("max_connection_pools", Kind::U32, "there are no connection pools"),
];

/// Of the first threshold of the default priority, the only one that `tcp_proxy` uses. `None`: it is silent.
pub(super) fn max_connections(entry: &Entry<'_>, import: &mut Import<'_>) -> Option<u32> {
    let fields = message::read(entry, CIRCUIT_BREAKERS, import)?;
    let thresholds = message::repeated(fields.get("thresholds")?, import);
    let mut limit = None;
    let mut found = false;
    for item in &thresholds {
        let Some(fields) = message::read(item, THRESHOLDS, import) else { continue };
        let priority = match fields.get("priority") {
            None => Some(0),
            Some(entry) => {
                import.honour(entry);
                value::word(entry, &["DEFAULT", "HIGH"], import)
            }
        };
        let holds = priority == Some(0) && !found;
        found |= holds;
        let Some(entry) = fields.get("max_connections") else { continue };
        let Some(number) = value::u32(entry, 0..=u32::MAX, import) else { continue };
        if !holds {
            import.ignore(entry, "tcp_proxy uses the first threshold of the priority DEFAULT");
        } else if number == 0 {
            import.refuse(entry, "0 lets no connection through: remove the listener, or give a limit");
        } else {
            import.honour(entry);
            limit = Some(number);
        }
    }
    limit
}
