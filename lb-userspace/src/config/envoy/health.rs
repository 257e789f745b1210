//! What a cluster says of the health of its endpoints, and of their connections when that is bad.

use super::import::Import;
use super::message::Message;
use super::{health_check, outlier, value};
use crate::config::tree::{Entry, Located};
use crate::model::{HealthCheck, OnLeaving, Outlier};

const NO_HEALTH_CHECKS: &str = "without health checks it has no effect in Envoy either";

/// Keys by which Envoy knows that the backends of a cluster speak HTTP/2.
const HTTP2_KEYS: [&str; 4] = [
    "http2_protocol_options",
    "http2ProtocolOptions",
    "typed_extension_protocol_options",
    "typedExtensionProtocolOptions",
];

pub(super) struct Health {
    pub(super) check: Option<Located<HealthCheck>>,
    pub(super) outlier: Option<Outlier>,
    pub(super) keep_while_healthy: bool,
    pub(super) on_unhealthy: OnLeaving,
}

impl Health {
    /// Of the cluster at `entry`.
    pub(super) fn read(
        entry: &Entry<'_>,
        fields: &Message<'_>,
        name: Option<&Located<String>>,
        import: &mut Import<'_>,
    ) -> Self {
        let name = name.map_or("", |name| &name.value);
        let is_http2 = entry.members().any(|(key, _)| HTTP2_KEYS.contains(&key.name.as_str()));
        let check = fields
            .get("health_checks")
            .and_then(|entry| health_check::read_checks(entry, name, is_http2, import));
        let outlier = fields.get("outlier_detection").and_then(|entry| outlier::read_outlier(entry, import));
        // The older name is that of v2.
        let ignores = ["ignore_health_on_host_removal", "drain_connections_on_host_removal"]
            .map(|key| flag(fields, key, check.is_some(), import));
        let resets = flag(
            fields,
            "close_connections_on_host_health_failure",
            check.is_some() || outlier.is_some(),
            import,
        );
        Self {
            keep_while_healthy: check.is_some() && !ignores.contains(&true),
            on_unhealthy: if resets { OnLeaving::Reset } else { OnLeaving::Keep },
            check,
            outlier,
        }
    }
}

/// Whether the key is on, and matters.
fn flag(fields: &Message<'_>, key: &str, matters: bool, import: &mut Import<'_>) -> bool {
    let Some(entry) = fields.get(key) else { return false };
    let Some(is_on) = value::boolean(entry, import) else { return false };
    if matters {
        import.honour(entry);
    } else {
        import.ignore(entry, NO_HEALTH_CHECKS);
    }
    is_on && matters
}
