//! `common_lb_config:` of a cluster, and what policies have of it.

use super::import::Import;
use super::message;
use super::percent::percent;
use super::schema::{DURATION, Field, Kind, PERCENT, checked, ignored, read, refused};
use super::value;
use crate::config::cluster::PANIC_THRESHOLD;
use crate::config::tree::Entry;

pub(super) const LOCALITIES: &str = "weights of localities are not supported yet";
pub(super) const ONE_ZONE: &str =
    "all localities are served alike, as by an Envoy that knows no zone of its own";

/// `ZoneAwareLbConfig`, of a cluster and of a policy.
pub(super) const ZONE_AWARE: Kind = Kind::Message(&[
    checked("routing_enabled", PERCENT),
    checked("min_cluster_size", Kind::U64),
    refused("fail_traffic_on_panic", "in panic all backends are used: panic_threshold 0 is no panic"),
    checked("force_locality_direct_routing", Kind::Bool),
    checked("force_local_zone", Kind::Message(&[checked("min_size", Kind::U32)])),
    checked("locality_basis", Kind::Word(&["HEALTHY_HOSTS_NUM", "HEALTHY_HOSTS_WEIGHT"])),
]);

const COMMON_LB_CONFIG: &[Field] = &[
    read("healthy_panic_threshold"),
    ignored("zone_aware_lb_config", ZONE_AWARE, ONE_ZONE),
    refused("locality_weighted_lb_config", LOCALITIES),
    ignored("update_merge_window", DURATION, "changes are applied at once"),
    read("ignore_new_hosts_until_first_hc"),
    refused("close_connections_on_host_set_change", "a change would end the connections of all backends"),
    ignored(
        "consistent_hashing_lb_config",
        Kind::Message(&[
            checked("use_hostname_for_hashing", Kind::Bool),
            refused("hash_balance_factor", "bounded loads are not supported yet"),
        ]),
        "backends are hashed by their addresses",
    ),
    ignored("override_host_status", Kind::Mapping, "no filter chooses a backend by itself"),
];

/// The threshold of panic, in percent.
pub(super) fn panic_threshold(entry: Option<&Entry<'_>>, is_probed: bool, import: &mut Import<'_>) -> u32 {
    let Some(fields) = entry.and_then(|entry| message::read(entry, COMMON_LB_CONFIG, import)) else {
        return PANIC_THRESHOLD;
    };
    if let Some(entry) = fields.get("ignore_new_hosts_until_first_hc")
        && let Some(ignores) = value::boolean(entry, import)
    {
        match (is_probed, ignores) {
            (false, _) => import.ignore(entry, "without health checks it has no effect in Envoy either"),
            (true, true) => import.honour(entry),
            (true, false) => import.approximate(
                entry,
                "new backends do not count for panic and priorities before their first probe",
            ),
        }
    }
    let Some(entry) = fields.get("healthy_panic_threshold") else { return PANIC_THRESHOLD };
    let Some(percent) = percent(entry, import) else { return PANIC_THRESHOLD };
    import.honour(entry);
    // Envoy leaves the fraction out too.
    percent as u32
}
