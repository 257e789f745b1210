//! `outlier:` of a cluster.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::tree::{Entry, Fields, Report};
use super::yaml::Value;
use crate::model::{FailurePercentage, Outlier, SuccessRate};

pub(super) const CONSECUTIVE_FAILURES: u32 = 5;
pub(super) const INTERVAL: Duration = Duration::from_secs(10);
pub(super) const EJECTION: Duration = Duration::from_secs(30);
/// Unless [`Outlier::base_ejection`] is longer.
const MAX_EJECTION: Duration = Duration::from_secs(300);
/// Envoy's is 10, by which no endpoint of less than ten is ever ejected.
const MAX_EJECTION_PERCENT: u32 = 50;

/// Ejections are looked at no more often.
pub(super) const MIN_INTERVAL: Duration = Duration::from_millis(100);

pub(super) const PERCENTS: RangeInclusive<u32> = 0..=100;

/// Envoy's defaults.
pub(super) const SUCCESS_RATE: SuccessRate =
    SuccessRate { minimum_hosts: 5, request_volume: 100, stdev_factor: 1900, enforcing: 100 };
pub(super) const FAILURE_PERCENTAGE: FailurePercentage =
    FailurePercentage { threshold: 85, minimum_hosts: 5, request_volume: 50, enforcing: 100 };

const KEYS: [&str; 11] = [
    "consecutive_failures",
    "enforcing",
    "interval",
    "ejection",
    "max_ejection",
    "jitter",
    "max_ejection_percent",
    "always_eject_one",
    "success_rate",
    "failure_percentage",
    "uneject_by_probe",
];

/// Of a native file that says nothing about it.
pub(super) const DEFAULT: Outlier = Outlier {
    consecutive_failures: Some(CONSECUTIVE_FAILURES),
    enforcing_consecutive: 100,
    interval: INTERVAL,
    base_ejection: EJECTION,
    max_ejection: MAX_EJECTION,
    ejection_jitter: Duration::ZERO,
    max_ejection_percent: MAX_EJECTION_PERCENT,
    always_eject_one: false,
    success_rate: None,
    failure_percentage: None,
    uneject_by_probe: false,
};

/// The longest ejection where the file does not say it.
pub(super) fn max_ejection(base: Duration) -> Duration {
    MAX_EJECTION.max(base)
}

/// `None` for `false`: nothing is ejected.
pub(super) fn read(entry: &Entry<'_>, report: &mut Report) -> Option<Outlier> {
    match entry.value() {
        Value::Bool(false) => return None,
        Value::Map(_) => {}
        _ => {
            let expected = "false (nothing is ejected), or a mapping with the keys";
            entry.refuse_type(&format!("{expected} {}", KEYS.join(", ")), report);
            return None;
        }
    }
    let fields = entry.fields(&KEYS, report)?;
    let base_ejection = fields
        .get("ejection")
        .and_then(|entry| entry.positive_duration("ejects nothing: write outlier: false for that", report))
        .unwrap_or(EJECTION);
    let failures = number(&fields, "consecutive_failures", 0..=u32::MAX, CONSECUTIVE_FAILURES, report);
    let interval = fields.get("interval");
    let interval =
        interval.and_then(|entry| entry.duration_from(MIN_INTERVAL, "as often as makes sense", report));
    Some(Outlier {
        consecutive_failures: (failures > 0).then_some(failures),
        enforcing_consecutive: number(&fields, "enforcing", PERCENTS, 100, report),
        interval: interval.unwrap_or(INTERVAL),
        base_ejection,
        max_ejection: longest(&fields, base_ejection, report),
        ejection_jitter: fields.get("jitter").and_then(|entry| entry.duration(report)).unwrap_or_default(),
        max_ejection_percent: number(&fields, "max_ejection_percent", PERCENTS, MAX_EJECTION_PERCENT, report),
        always_eject_one: flag(&fields, "always_eject_one", false, report),
        success_rate: fields.get("success_rate").and_then(|entry| success_rate(&entry, report)),
        failure_percentage: fields
            .get("failure_percentage")
            .and_then(|entry| failure_percentage(&entry, report)),
        uneject_by_probe: flag(&fields, "uneject_by_probe", false, report),
    })
}

fn longest(fields: &Fields<'_>, base: Duration, report: &mut Report) -> Duration {
    let Some(entry) = fields.get("max_ejection") else { return max_ejection(base) };
    let Some(longest) = entry.duration(report) else { return base };
    if longest < base {
        let base = humantime::format_duration(base);
        entry.refuse(format!("below the first ejection: write {base} or more"), report);
    }
    longest
}

fn success_rate(entry: &Entry<'_>, report: &mut Report) -> Option<SuccessRate> {
    const KEYS: [&str; 4] = ["minimum_hosts", "request_volume", "stdev_factor", "enforcing"];
    let fields = entry.fields(&KEYS, report)?;
    let SuccessRate { minimum_hosts, request_volume, stdev_factor, enforcing } = SUCCESS_RATE;
    Some(SuccessRate {
        minimum_hosts: number(&fields, "minimum_hosts", 0..=u32::MAX, minimum_hosts, report),
        request_volume: number(&fields, "request_volume", 0..=u32::MAX, request_volume, report),
        stdev_factor: fields
            .get("stdev_factor")
            .and_then(|entry| entry.thousandths(report))
            .unwrap_or(stdev_factor),
        enforcing: number(&fields, "enforcing", PERCENTS, enforcing, report),
    })
}

fn failure_percentage(entry: &Entry<'_>, report: &mut Report) -> Option<FailurePercentage> {
    const KEYS: [&str; 4] = ["threshold", "minimum_hosts", "request_volume", "enforcing"];
    let fields = entry.fields(&KEYS, report)?;
    let FailurePercentage { threshold, minimum_hosts, request_volume, enforcing } = FAILURE_PERCENTAGE;
    Some(FailurePercentage {
        threshold: number(&fields, "threshold", PERCENTS, threshold, report),
        minimum_hosts: number(&fields, "minimum_hosts", 0..=u32::MAX, minimum_hosts, report),
        request_volume: number(&fields, "request_volume", 0..=u32::MAX, request_volume, report),
        enforcing: number(&fields, "enforcing", PERCENTS, enforcing, report),
    })
}

fn number(
    fields: &Fields<'_>,
    key: &str,
    range: RangeInclusive<u32>,
    default: u32,
    report: &mut Report,
) -> u32 {
    fields.get(key).and_then(|entry| entry.number("", range, report)).unwrap_or(default)
}

fn flag(fields: &Fields<'_>, key: &str, default: bool, report: &mut Report) -> bool {
    fields.get(key).and_then(|entry| entry.boolean(report)).unwrap_or(default)
}
