//! The policy of a cluster, by `lb_policy` or `load_balancing_policy`, and what listeners add to it.

use super::common_lb::{LOCALITIES, ONE_ZONE, ZONE_AWARE};
use super::import::Import;
use super::message::{self, Message};
use super::schema::{Field, Kind, checked, ignored, read, refused};
use super::{extension, slow_start, table_sizes, value};
use crate::config::tree::Entry;
use crate::model::{LbPolicy, SlowStart};

/// In the order of their numbers.
const POLICIES: &[&str] = &[
    "ROUND_ROBIN",
    "LEAST_REQUEST",
    "RING_HASH",
    "RANDOM",
    "ORIGINAL_DST_LB",
    "MAGLEV",
    "CLUSTER_PROVIDED",
    "LOAD_BALANCING_POLICY_CONFIG",
];

const TWO_CHOICES: &str = "Headgate takes the less loaded of two";

const LOCALITY_LB: Kind = Kind::Message(&[
    ignored("zone_aware_lb_config", ZONE_AWARE, ONE_ZONE),
    refused("locality_weighted_lb_config", LOCALITIES),
]);

const CONSISTENT_HASHING: Kind = Kind::Message(&[
    ignored("use_hostname_for_hashing", Kind::Bool, "backends are hashed by their addresses"),
    refused("hash_balance_factor", "bounded loads are not supported yet"),
    refused("hash_policy", "hash policies are those of tcp_proxy"),
]);

pub(super) const ROUND_ROBIN: &[Field] =
    &[read("slow_start_config"), checked("locality_lb_config", LOCALITY_LB)];

pub(super) const LEAST_REQUEST: &[Field] = &[
    ignored("choice_count", Kind::Range(2, u32::MAX as u64), TWO_CHOICES),
    ignored("active_request_bias", Kind::Mapping, "weights divide the load as with a bias of 1"),
    read("slow_start_config"),
    checked("locality_lb_config", LOCALITY_LB),
    ignored("enable_full_scan", Kind::Bool, TWO_CHOICES),
    ignored("selection_method", Kind::Word(&["N_CHOICES", "FULL_SCAN"]), TWO_CHOICES),
];

const RANDOM: &[Field] = &[checked("locality_lb_config", LOCALITY_LB)];

pub(super) const RING_HASH: &[Field] = &[
    read("minimum_ring_size"),
    read("maximum_ring_size"),
    ignored(
        "hash_function",
        Kind::Word(&["DEFAULT_HASH", "XX_HASH", "MURMUR_HASH_2"]),
        "Headgate has its own hash",
    ),
    ignored("use_hostname_for_hashing", Kind::Bool, "backends are hashed by their addresses"),
    refused("hash_balance_factor", "bounded loads are not supported yet"),
    checked("consistent_hashing_lb_config", CONSISTENT_HASHING),
    refused("locality_weighted_lb_config", LOCALITIES),
    ignored("deprecated_v1", Kind::Mapping, "Headgate has its own hash"),
];

pub(super) const MAGLEV: &[Field] = &[
    read("table_size"),
    checked("consistent_hashing_lb_config", CONSISTENT_HASHING),
    refused("locality_weighted_lb_config", LOCALITIES),
];

const POLICY_LIST: &[Field] = &[read("policies")];
const POLICY: &[Field] = &[read("typed_extension_config")];
const EXTENSION: &[Field] = &[read("name"), read("typed_config")];

/// As the cluster has it.
pub(super) enum Policy<'a> {
    Fixed(LbPolicy),
    /// By a hash of what the `hash_policy` of the listeners says. With the place and name of the policy.
    Hashed(Entry<'a>, &'static str),
}

/// With what belongs to it.
pub(super) struct Chosen<'a> {
    pub(super) policy: Policy<'a>,
    pub(super) slow_start: Option<SlowStart>,
}

/// From the keys of the cluster. `None` with something reported.
pub(super) fn read_policy<'a>(fields: &Message<'a>, import: &mut Import<'_>) -> Option<Chosen<'a>> {
    let word = match fields.get("lb_policy") {
        None => None,
        Some(entry) => Some((entry, POLICIES[value::word(entry, POLICIES, import)?])),
    };
    if let Some(policy) = fields.get("load_balancing_policy") {
        if let Some((entry, word)) = word {
            match word {
                "LOAD_BALANCING_POLICY_CONFIG" => import.honour(entry),
                _ => import.ignore(entry, "load_balancing_policy holds instead"),
            }
        }
        old_settings(fields, "", import);
        return typed(policy, import);
    }
    let slow_start = old_settings(fields, word.map_or("ROUND_ROBIN", |(_, word)| word), import);
    let Some((entry, word)) = word else {
        return Some(Chosen { policy: Policy::Fixed(LbPolicy::RoundRobin), slow_start });
    };
    let fixed = match word {
        "ROUND_ROBIN" => LbPolicy::RoundRobin,
        "LEAST_REQUEST" => LbPolicy::LeastRequest,
        "RANDOM" => LbPolicy::Random,
        "RING_HASH" => {
            return Some(Chosen { policy: Policy::Hashed(entry.clone(), "RING_HASH"), slow_start });
        }
        "MAGLEV" => return Some(Chosen { policy: Policy::Hashed(entry.clone(), "MAGLEV"), slow_start }),
        "LOAD_BALANCING_POLICY_CONFIG" => {
            import.error(entry, "needs load_balancing_policy");
            return None;
        }
        _ => {
            import.refuse(entry, format!("{word} is for ORIGINAL_DST clusters, which are not supported"));
            return None;
        }
    };
    import.honour(entry);
    Some(Chosen { policy: Policy::Fixed(fixed), slow_start })
}

/// `ring_hash_lb_config` and its like, of which that of the policy named `policy` has an effect.
fn old_settings(fields: &Message<'_>, policy: &str, import: &mut Import<'_>) -> Option<SlowStart> {
    const KEYS: [(&str, &str, &[Field]); 4] = [
        ("ring_hash_lb_config", "RING_HASH", RING_HASH),
        ("maglev_lb_config", "MAGLEV", MAGLEV),
        ("least_request_lb_config", "LEAST_REQUEST", LEAST_REQUEST),
        ("round_robin_lb_config", "ROUND_ROBIN", ROUND_ROBIN),
    ];
    fields.one_of(&KEYS.map(|(key, _, _)| key), import);
    let mut slow_start = None;
    for (key, word, schema) in KEYS {
        if let Some(entry) = fields.get(key)
            && let Some(fields) = message::read(entry, schema, import)
        {
            table_sizes::check(&fields, import);
            let found = slow_start_of(&fields, import);
            if word == policy {
                slow_start = found;
            } else if let Some(entry) = fields.get("slow_start_config") {
                import.ignore(entry, "the cluster has another policy");
            }
        }
    }
    slow_start
}

fn slow_start_of(fields: &Message<'_>, import: &mut Import<'_>) -> Option<SlowStart> {
    let entry = fields.get("slow_start_config")?;
    import.honour(entry);
    slow_start::read_slow_start(entry, import)
}

/// `load_balancing_policy`: Envoy takes the first that it knows, which is the first of all that it accepts.
fn typed<'a>(entry: &Entry<'a>, import: &mut Import<'_>) -> Option<Chosen<'a>> {
    let fields = message::read(entry, POLICY_LIST, import)?;
    let policies = fields.get("policies").map(|entry| message::repeated(entry, import)).unwrap_or_default();
    let Some((policy, others)) = policies.split_first() else {
        import.error(entry, "needs policies, at least one");
        return None;
    };
    for other in others {
        import.ignore(other, "the first policy holds");
    }
    let fields = message::read(policy, POLICY, import)?;
    let Some(policy) = fields.get("typed_extension_config") else {
        import.error(policy, "needs typed_extension_config");
        return None;
    };
    let message = message::read(policy, EXTENSION, import)?;
    if message.get("name").is_none() || message.get("typed_config").is_none() {
        import.error(policy, "needs name and typed_config");
        return None;
    }
    let extension = extension::read(policy, &message, import)?;
    let known = extension.kind.strip_prefix("envoy.extensions.load_balancing_policies.");
    let (found, schema) = match known {
        Some("round_robin.v3.RoundRobin") => (Policy::Fixed(LbPolicy::RoundRobin), ROUND_ROBIN),
        Some("least_request.v3.LeastRequest") => (Policy::Fixed(LbPolicy::LeastRequest), LEAST_REQUEST),
        Some("random.v3.Random") => (Policy::Fixed(LbPolicy::Random), RANDOM),
        Some("ring_hash.v3.RingHash") => (Policy::Hashed(extension.place.clone(), "RING_HASH"), RING_HASH),
        Some("maglev.v3.Maglev") => (Policy::Hashed(extension.place.clone(), "MAGLEV"), MAGLEV),
        _ => {
            let kinds = "round_robin, least_request, random, ring_hash and maglev";
            let why = format!("the policy {} is not supported: {kinds} are", extension.kind);
            import.refuse(&extension.place, why);
            return None;
        }
    };
    let config = extension.config.as_ref().and_then(|config| message::read(config, schema, import));
    let slow_start = config.and_then(|fields| {
        table_sizes::check(&fields, import);
        slow_start_of(&fields, import)
    });
    if matches!(found, Policy::Fixed(_)) {
        import.honour(&extension.place);
    }
    Some(Chosen { policy: found, slow_start })
}

/// Listeners that send connections to one cluster.
#[derive(Clone, Copy, Default)]
pub(super) struct Hashing {
    pub(super) by_source_ip: bool,
    pub(super) by_nothing: bool,
}

/// The policy, now that the listeners are known.
pub(super) fn resolve(policy: Policy<'_>, hashing: Hashing, import: &mut Import<'_>) -> LbPolicy {
    match policy {
        Policy::Fixed(policy) => policy,
        Policy::Hashed(entry, name) => match hashing {
            Hashing { by_source_ip: true, by_nothing: true } => {
                import.refuse(
                    &entry,
                    "a listener with hash_policy.source_ip and one without share the cluster: give all of them \
                     the same hash_policy, or each a cluster of its own",
                );
                LbPolicy::SourceIp
            }
            Hashing { by_source_ip: true, .. } => {
                let table = match name {
                    "MAGLEV" => "Headgate has its own hash",
                    _ => "a Maglev table of 65,537 entries in place of a ring",
                };
                import.approximate(
                    &entry,
                    format!("source_ip: {table}, so that a client may have another backend than with Envoy"),
                );
                LbPolicy::SourceIp
            }
            Hashing { .. } => {
                import.approximate(
                    &entry,
                    "maglev: by a hash of the client's address and port, where Envoy without hash_policy chooses at \
                     random",
                );
                LbPolicy::Maglev
            }
        },
    }
}
