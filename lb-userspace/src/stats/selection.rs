//! Which statistics a request asks for.

use crate::stats::own::{Kind, Metric, Sample};
use crate::stats::query::{Pattern, Query};
use crate::stats::stat::{Stat, Value};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    All,
    Counters,
    Gauges,
    Histograms,
    /// Envoy's strings; there are none here.
    TextReadouts,
}

#[derive(Debug)]
pub(super) struct Selection {
    used_only: bool,
    filter: Option<Pattern>,
    invert: bool,
    kind: Type,
}

impl Selection {
    /// The error is the answer's text, with status 400.
    pub(super) fn of(query: &Query) -> Result<Self, String> {
        let kind = match query.get("type").unwrap_or_default() {
            "" | "All" => Type::All,
            "Counters" => Type::Counters,
            "Gauges" => Type::Gauges,
            "Histograms" => Type::Histograms,
            "TextReadouts" => Type::TextReadouts,
            _ => return Err("invalid &type= param".to_owned()),
        };
        Ok(Self {
            used_only: query.has("usedonly"),
            filter: query.pattern("filter")?,
            invert: query.has("invert_filter"),
            kind,
        })
    }

    pub(super) fn takes(&self, name: &str, stat: &Stat) -> bool {
        let kind = match stat.value {
            Value::Counter(_) => Type::Counters,
            Value::Gauge(_) => Type::Gauges,
            Value::Histogram(_) => Type::Histograms,
        };
        self.takes_one(name, kind, stat.used)
    }

    /// Gauges of our own are always set.
    pub(super) fn takes_own(&self, metric: &Metric, sample: &Sample) -> bool {
        let (kind, used) = match metric.kind {
            Kind::Counter => (Type::Counters, sample.value > 0),
            Kind::Gauge => (Type::Gauges, true),
        };
        self.takes_one(&metric.stat_name(sample), kind, used)
    }

    fn takes_one(&self, name: &str, kind: Type, used: bool) -> bool {
        (self.kind == Type::All || self.kind == kind)
            && (used || !self.used_only)
            && self.filter.as_ref().is_none_or(|filter| filter.matches(name) != self.invert)
    }
}
