//! `outlier:` of a cluster, less what has its default.

use std::time::Duration;

use super::writer::Writer;
use crate::config::outlier::{self, DEFAULT};
use crate::model::{FailurePercentage, Outlier, SuccessRate};

pub(super) fn write(writer: &mut Writer, outlier: Option<&Outlier>) {
    match outlier {
        None => writer.boolean("outlier", false),
        Some(outlier) if *outlier == DEFAULT => {}
        Some(outlier) => writer.mapping("outlier", |writer| write_keys(writer, outlier)),
    }
}

fn write_keys(writer: &mut Writer, outlier: &Outlier) {
    if outlier.consecutive_failures != DEFAULT.consecutive_failures {
        writer.number("consecutive_failures", outlier.consecutive_failures.unwrap_or(0));
    }
    if outlier.enforcing_consecutive != DEFAULT.enforcing_consecutive {
        writer.number("enforcing", outlier.enforcing_consecutive);
    }
    if outlier.interval != DEFAULT.interval {
        writer.duration("interval", outlier.interval);
    }
    if outlier.base_ejection != DEFAULT.base_ejection {
        writer.duration("ejection", outlier.base_ejection);
    }
    if outlier.max_ejection != outlier::max_ejection(outlier.base_ejection) {
        writer.duration("max_ejection", outlier.max_ejection);
    }
    if outlier.ejection_jitter != Duration::ZERO {
        writer.duration("jitter", outlier.ejection_jitter);
    }
    if outlier.max_ejection_percent != DEFAULT.max_ejection_percent {
        writer.number("max_ejection_percent", outlier.max_ejection_percent);
    }
    if outlier.always_eject_one {
        writer.boolean("always_eject_one", true);
    }
    if let Some(SuccessRate { minimum_hosts, request_volume, stdev_factor, enforcing }) = outlier.success_rate
    {
        writer.mapping("success_rate", |writer| {
            writer.number("minimum_hosts", minimum_hosts);
            writer.number("request_volume", request_volume);
            writer.thousandths("stdev_factor", stdev_factor);
            writer.number("enforcing", enforcing);
        });
    }
    if let Some(FailurePercentage { threshold, minimum_hosts, request_volume, enforcing }) =
        outlier.failure_percentage
    {
        writer.mapping("failure_percentage", |writer| {
            writer.number("threshold", threshold);
            writer.number("minimum_hosts", minimum_hosts);
            writer.number("request_volume", request_volume);
            writer.number("enforcing", enforcing);
        });
    }
    if outlier.uneject_by_probe {
        writer.boolean("uneject_by_probe", true);
    }
}
