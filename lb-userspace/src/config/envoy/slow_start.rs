//! `slow_start_config:` of a policy.

use std::time::Duration;

use super::import::Import;
use super::message;
use super::percent::percent;
use super::schema::{Field, Kind, checked, read};
use super::value;
use crate::config::slow_start::{AGGRESSION, MIN_WEIGHT_PERCENT};
use crate::config::tree::Entry;
use crate::model::SlowStart;

const SLOW_START: &[Field] = &[read("slow_start_window"), read("aggression"), read("min_weight_percent")];

/// `RuntimeDouble`.
const AGGRESSION_FIELDS: &[Field] = &[read("default_value"), checked("runtime_key", Kind::Text)];

/// The most that the native form takes.
const MOST: f64 = 1_000_000.0;

/// `None` where there is none.
pub(super) fn read_slow_start(entry: &Entry<'_>, import: &mut Import<'_>) -> Option<SlowStart> {
    let fields = message::read(entry, SLOW_START, import)?;
    let window = fields.get("slow_start_window").and_then(|entry| {
        let window = value::duration(entry, import)?;
        Some(value::settle(entry, window, import))
    });
    let aggression = fields.get("aggression").and_then(|entry| aggression(entry, import));
    let min_weight = fields.get("min_weight_percent").and_then(|entry| {
        let percent = percent(entry, import)?;
        let rounded = percent.round();
        if rounded == percent {
            import.honour(entry);
        } else {
            import.approximate(entry, format!("{rounded} %: whole percents"));
        }
        Some(rounded as u32)
    });
    let window = window.filter(|window| *window > Duration::ZERO)?;
    Some(SlowStart {
        window,
        aggression: aggression.unwrap_or(AGGRESSION),
        min_weight_percent: min_weight.unwrap_or(MIN_WEIGHT_PERCENT),
    })
}

fn aggression(entry: &Entry<'_>, import: &mut Import<'_>) -> Option<u32> {
    let fields = message::read(entry, AGGRESSION_FIELDS, import)?;
    let aggression = match fields.get("default_value") {
        None => 0.0,
        Some(value) => value::fraction(value, f64::MIN..=f64::MAX, import)?,
    };
    if aggression <= 0.0 {
        import.refuse(entry, "Envoy asks for more than 0: write default_value, as in 1.0");
        return None;
    }
    let thousandths = (aggression.min(MOST) * 1000.0).round().max(1.0);
    if thousandths / 1000.0 == aggression {
        import.honour(entry);
    } else {
        import.approximate(entry, format!("{}: three decimals, up to {MOST}", thousandths / 1000.0));
    }
    Some(thousandths as u32)
}
