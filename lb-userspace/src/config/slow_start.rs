//! `slow_start:` of a cluster: a duration, or a mapping.

use std::ops::RangeInclusive;

use super::cluster::POLICIES;
use super::tree::{Entry, Report};
use crate::model::{LbPolicy, SlowStart};

/// Envoy's default: the share grows evenly.
pub(super) const AGGRESSION: u32 = 1000;
/// Envoy's default.
pub(super) const MIN_WEIGHT_PERCENT: u32 = 10;
pub(super) const PERCENTS: RangeInclusive<u32> = 0..=100;

/// `None` where there is none.
pub(super) fn read(entry: &Entry<'_>, policy: LbPolicy, report: &mut Report) -> Option<SlowStart> {
    let slow_start = if entry.is_map() {
        let fields = entry.fields(&["window", "aggression", "min_weight_percent"], report)?;
        let window = fields.require("window", "how long the share grows", report)?.duration(report)?;
        SlowStart {
            window,
            aggression: fields
                .get("aggression")
                .and_then(|entry| entry.thousandths(report))
                .unwrap_or(AGGRESSION),
            min_weight_percent: fields
                .get("min_weight_percent")
                .and_then(|entry| entry.number("", PERCENTS, report))
                .unwrap_or(MIN_WEIGHT_PERCENT),
        }
    } else {
        let window = entry.duration(report)?;
        SlowStart { window, aggression: AGGRESSION, min_weight_percent: MIN_WEIGHT_PERCENT }
    };
    if slow_start.window.is_zero() {
        return None;
    }
    if matches!(policy, LbPolicy::Maglev | LbPolicy::SourceIp) {
        let word = POLICIES.iter().find(|(_, known)| *known == policy).map_or("", |(word, _)| *word);
        let message = format!(
            "weights that grow would move clients of lb_policy: {word} from backend to backend: remove the key, or \
             use round_robin, least_request or random"
        );
        entry.refuse(message, report);
    }
    Some(slow_start)
}
