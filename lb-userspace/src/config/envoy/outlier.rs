//! `outlier_detection:` of a cluster. For `tcp_proxy`, a connection that cannot be made is a failure, and nothing else.

use std::time::Duration;

use super::import::Import;
use super::message::{self, Message};
use super::schema::{Field, Kind, ignored, read, refused};
use super::value;
use crate::config::outlier::{
    self, CONSECUTIVE_FAILURES, EJECTION, FAILURE_PERCENTAGE, INTERVAL, MIN_INTERVAL, SUCCESS_RATE,
};
use crate::config::scalar::MAX_DURATION;
use crate::config::tree::Entry;
use crate::model::{FailurePercentage, Outlier, SuccessRate};

/// Envoy's default.
const MAX_EJECTION_PERCENT: u32 = 10;

/// The largest factor of the native form, in thousandths.
const MAX_FACTOR: u32 = 1_000_000_000;

const OUTLIER: &[Field] = &[
    read("consecutive_5xx"),
    read("interval"),
    read("base_ejection_time"),
    read("max_ejection_percent"),
    read("enforcing_consecutive_5xx"),
    read("enforcing_success_rate"),
    read("success_rate_minimum_hosts"),
    read("success_rate_request_volume"),
    read("success_rate_stdev_factor"),
    read("consecutive_gateway_failure"),
    read("enforcing_consecutive_gateway_failure"),
    read("split_external_local_origin_errors"),
    read("consecutive_local_origin_failure"),
    read("enforcing_consecutive_local_origin_failure"),
    read("enforcing_local_origin_success_rate"),
    read("failure_percentage_threshold"),
    read("enforcing_failure_percentage"),
    read("enforcing_failure_percentage_local_origin"),
    read("failure_percentage_minimum_hosts"),
    read("failure_percentage_request_volume"),
    read("max_ejection_time"),
    read("max_ejection_time_jitter"),
    read("successful_active_health_check_uneject_host"),
    refused("monitors", "monitors are not supported: the keys beside them are"),
    read("always_eject_one_host"),
    ignored("detect_degraded_hosts", Kind::Bool, "tcp_proxy reads no responses"),
];

/// Rules that connections fall under as long as local errors are not apart.
const EXTERNAL: [&str; 6] = [
    "consecutive_5xx",
    "enforcing_consecutive_5xx",
    "consecutive_gateway_failure",
    "enforcing_consecutive_gateway_failure",
    "enforcing_success_rate",
    "enforcing_failure_percentage",
];

/// Those that they fall under else.
const LOCAL: [&str; 4] = [
    "consecutive_local_origin_failure",
    "enforcing_consecutive_local_origin_failure",
    "enforcing_local_origin_success_rate",
    "enforcing_failure_percentage_local_origin",
];

pub(super) fn read_outlier(entry: &Entry<'_>, import: &mut Import<'_>) -> Option<Outlier> {
    let fields = message::read(entry, OUTLIER, import)?;
    let is_v2 = import.speaks_v2();
    let mut reader = Reader { fields: &fields, import };
    let is_split = reader.flag("split_external_local_origin_errors", false);
    let (used, unused, why) = match is_split {
        false => {
            (&EXTERNAL[..], &LOCAL[..], "without split_external_local_origin_errors Envoy does not use it")
        }
        true => {
            (&LOCAL[..], &EXTERNAL[..], "with split_external_local_origin_errors it is not for connections")
        }
    };
    reader.judge(used, unused, why);
    let [success_rate, failure_percentage] = match is_split {
        false => ["enforcing_success_rate", "enforcing_failure_percentage"],
        true => ["enforcing_local_origin_success_rate", "enforcing_failure_percentage_local_origin"],
    };
    let (consecutive_failures, enforcing_consecutive) = reader.consecutive(is_split);
    let (base_ejection, max_ejection) = reader.ejections();
    Some(Outlier {
        consecutive_failures,
        enforcing_consecutive,
        interval: reader.positive("interval", MIN_INTERVAL).unwrap_or(INTERVAL),
        base_ejection,
        max_ejection,
        ejection_jitter: reader.duration("max_ejection_time_jitter").unwrap_or_default(),
        max_ejection_percent: reader.own("max_ejection_percent", 100, MAX_EJECTION_PERCENT),
        // Envoys that read v2 know no other way.
        always_eject_one: reader.flag("always_eject_one_host", is_v2),
        success_rate: reader.success_rate(success_rate),
        failure_percentage: reader.failure_percentage(failure_percentage),
        uneject_by_probe: reader.flag("successful_active_health_check_uneject_host", true),
    })
}

struct Reader<'m, 'a, 'i, 'r> {
    fields: &'m Message<'a>,
    import: &'i mut Import<'r>,
}

impl Reader<'_, '_, '_, '_> {
    /// Looks at the values of both lists of numbers, too, so that all that is wrong is found.
    fn judge(&mut self, used: &[&str], unused: &[&str], why: &str) {
        for entry in used.iter().filter_map(|key| self.fields.get(key)) {
            self.import.honour(entry);
        }
        for key in unused {
            let Some(entry) = self.fields.get(key) else { continue };
            self.number(key, most(key), 0);
            self.import.ignore(entry, why);
        }
    }

    fn number(&mut self, key: &str, most: u32, default: u32) -> u32 {
        self.fields.get(key).and_then(|entry| value::u32(entry, 0..=most, self.import)).unwrap_or(default)
    }

    /// A number that is honoured.
    fn own(&mut self, key: &str, most: u32, default: u32) -> u32 {
        if let Some(entry) = self.fields.get(key) {
            self.import.honour(entry);
        }
        self.number(key, most, default)
    }

    fn flag(&mut self, key: &str, default: bool) -> bool {
        let Some(entry) = self.fields.get(key) else { return default };
        self.import.honour(entry);
        value::boolean(entry, self.import).unwrap_or(default)
    }

    fn duration(&mut self, key: &str) -> Option<Duration> {
        let entry = self.fields.get(key)?;
        let duration = value::duration(entry, self.import)?;
        Some(value::settle(entry, duration, self.import))
    }

    fn positive(&mut self, key: &str, least: Duration) -> Option<Duration> {
        let entry = self.fields.get(key)?;
        let duration = value::positive_duration(entry, self.import)?;
        Some(value::settle_from(entry, duration, least, self.import))
    }

    /// The first ejection and the longest.
    fn ejections(&mut self) -> (Duration, Duration) {
        let least = Duration::from_millis(1);
        let base = self.positive("base_ejection_time", least).unwrap_or(EJECTION);
        let Some(longest) = self.positive("max_ejection_time", least) else {
            return (base, outlier::max_ejection(base).min(MAX_DURATION));
        };
        if longest < base
            && let Some(entry) = self.fields.get("max_ejection_time")
        {
            self.import.error(entry, "below base_ejection_time: write as much or more");
        }
        (base, longest)
    }

    /// Failures in a row that eject, and in how many percent of the cases.
    fn consecutive(&mut self, is_split: bool) -> (Option<u32>, u32) {
        let keys: &[(&str, &str, u32)] = match is_split {
            false => &[
                ("consecutive_5xx", "enforcing_consecutive_5xx", 100),
                ("consecutive_gateway_failure", "enforcing_consecutive_gateway_failure", 0),
            ],
            true => {
                &[("consecutive_local_origin_failure", "enforcing_consecutive_local_origin_failure", 100)]
            }
        };
        let mut rules = Vec::new();
        for (failures_key, enforcing_key, default) in keys {
            let failures = self.number(failures_key, u32::MAX, CONSECUTIVE_FAILURES);
            let enforcing = self.number(enforcing_key, 100, *default);
            if failures > 0 && enforcing > 0 {
                rules.push((failures, enforcing, *enforcing_key));
            }
        }
        // Of two at once, the surer one.
        rules.sort_by_key(|(failures, enforcing, _)| (*failures, 100 - enforcing));
        let Some((failures, enforcing, key)) = rules.first().copied() else { return (None, 100) };
        if rules.len() > 1
            && enforcing < 100
            && let Some(entry) = self.fields.get(key)
        {
            let why = format!("{failures} failures in a row eject in {enforcing} % of the cases");
            self.import.approximate(entry, format!("of two rules for the same failures one holds: {why}"));
        }
        (Some(failures), enforcing)
    }

    fn success_rate(&mut self, enforcing: &str) -> Option<SuccessRate> {
        const KEYS: [&str; 3] =
            ["success_rate_minimum_hosts", "success_rate_request_volume", "success_rate_stdev_factor"];
        let [hosts, volume, factor] = KEYS;
        let found = SuccessRate {
            minimum_hosts: self.own(hosts, u32::MAX, SUCCESS_RATE.minimum_hosts),
            request_volume: self.own(volume, u32::MAX, SUCCESS_RATE.request_volume),
            stdev_factor: self.factor(factor),
            enforcing: self.number(enforcing, 100, SUCCESS_RATE.enforcing),
        };
        self.enforced(found.enforcing, enforcing, &KEYS).then_some(found)
    }

    /// In thousandths.
    fn factor(&mut self, key: &str) -> u32 {
        let factor = self.own(key, u32::MAX, SUCCESS_RATE.stdev_factor);
        let fitted = factor.clamp(1, MAX_FACTOR);
        if fitted != factor
            && let Some(entry) = self.fields.get(key)
        {
            self.import.approximate(entry, format!("{fitted}: Headgate takes 1 to {MAX_FACTOR}"));
        }
        fitted
    }

    fn failure_percentage(&mut self, enforcing: &str) -> Option<FailurePercentage> {
        const KEYS: [&str; 3] = [
            "failure_percentage_threshold",
            "failure_percentage_minimum_hosts",
            "failure_percentage_request_volume",
        ];
        let [threshold, hosts, volume] = KEYS;
        let found = FailurePercentage {
            threshold: self.own(threshold, 100, FAILURE_PERCENTAGE.threshold),
            minimum_hosts: self.own(hosts, u32::MAX, FAILURE_PERCENTAGE.minimum_hosts),
            request_volume: self.own(volume, u32::MAX, FAILURE_PERCENTAGE.request_volume),
            enforcing: self.number(enforcing, 100, 0),
        };
        self.enforced(found.enforcing, enforcing, &KEYS).then_some(found)
    }

    /// Whether a rule ejects at all; if not, its keys have no effect.
    fn enforced(&mut self, percent: u32, key: &str, keys: &[&str]) -> bool {
        if percent == 0 {
            for entry in keys.iter().filter_map(|key| self.fields.get(key)) {
                self.import.ignore(entry, format!("{key} is 0, so that it ejects nothing"));
            }
        }
        percent > 0
    }
}

/// The most that a number may be.
fn most(key: &str) -> u32 {
    if key.starts_with("enforcing") { 100 } else { u32::MAX }
}
