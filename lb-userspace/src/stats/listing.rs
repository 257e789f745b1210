//! `/stats`: as text or JSON, counters and gauges by name and then the histograms.

use std::fmt::Write;

use serde::Serialize;

use crate::stats::histogram::{BOUNDS, HistogramSnapshot, QUANTILES};
use crate::stats::own;
use crate::stats::page::Page;
use crate::stats::prometheus;
use crate::stats::query::Query;
use crate::stats::selection::Selection;
use crate::stats::stat::Value;
use crate::stats::view::View;

/// How histograms are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Buckets {
    Quantiles,
    Cumulative,
    Disjoint,
}

/// What was asked for, in order.
struct Rows<'a> {
    values: Vec<(String, u64)>,
    histograms: Vec<(&'a str, &'a HistogramSnapshot)>,
}

/// `/stats`. Takes `usedonly`, `filter`, `invert_filter`, `type`, `histogram_buckets` and `format`.
pub fn stats(view: &View, query: &Query) -> Page {
    let format = query.get("format").unwrap_or("text");
    if format == "prometheus" {
        return prometheus(view, query);
    }
    if !["text", "json"].contains(&format) {
        return Page::refusal(400, "usage: /stats?format=(json|prometheus|text)\n\n");
    }
    let buckets = match query.get("histogram_buckets").unwrap_or_default() {
        "" | "none" | "summary" => Buckets::Quantiles,
        "cumulative" => Buckets::Cumulative,
        "disjoint" => Buckets::Disjoint,
        _ => {
            let usage = "usage: /stats?histogram_buckets=(cumulative|disjoint|summary)\n";
            return Page::refusal(400, usage);
        }
    };
    let selection = match Selection::of(query) {
        Ok(selection) => selection,
        Err(error) => return Page::refusal(400, error),
    };
    let stats = super::envoy::stats(view);
    let mut rows = Rows { values: Vec::new(), histograms: Vec::new() };
    for (name, stat) in stats.iter().filter(|(name, stat)| selection.takes(name, stat)) {
        match &stat.value {
            Value::Counter(value) | Value::Gauge(value) => rows.values.push((name.to_owned(), *value)),
            Value::Histogram(snapshot) => rows.histograms.push((name, snapshot)),
        }
    }
    for metric in own::metrics(view) {
        for sample in metric.samples.iter().filter(|sample| selection.takes_own(&metric, sample)) {
            rows.values.push((metric.stat_name(sample), sample.value));
        }
    }
    rows.values.sort();
    if format == "json" { Page::compact_json(&rows.json(buckets)) } else { Page::text(rows.text(buckets)) }
}

impl Rows<'_> {
    fn text(&self, buckets: Buckets) -> String {
        let mut text = String::new();
        for (name, value) in &self.values {
            let _ = writeln!(text, "{name}: {value}");
        }
        for (name, snapshot) in &self.histograms {
            let _ = writeln!(text, "{name}: {}", histogram_text(snapshot, buckets));
        }
        text
    }

    fn json(&self, buckets: Buckets) -> Json<'_> {
        let mut stats: Vec<_> =
            self.values.iter().map(|(name, value)| Item::Value { name, value: *value }).collect();
        if !self.histograms.is_empty() {
            let all = self.histograms.iter();
            let histograms = match buckets {
                Buckets::Quantiles => Histograms::Quantiles {
                    supported_quantiles: QUANTILES.map(|(percent, _)| number(percent)),
                    computed_quantiles: all
                        .map(|(name, snapshot)| Computed { name, values: quantiles(snapshot) })
                        .collect(),
                },
                _ => Histograms::Buckets(
                    all.map(|(name, snapshot)| Bucketed { name, buckets: bucketed(snapshot, buckets) })
                        .collect(),
                ),
            };
            stats.push(Item::Histograms { histograms });
        }
        Json { stats }
    }
}

/// Envoy prints the last interval before the whole time; no interval is kept here, so that half is always `nan` or
/// zero.
fn histogram_text(snapshot: &HistogramSnapshot, buckets: Buckets) -> String {
    if snapshot.count() == 0 {
        return "No recorded values".to_owned();
    }
    let parts: Vec<String> = match buckets {
        Buckets::Quantiles => QUANTILES
            .iter()
            .filter_map(|(percent, text)| {
                Some(format!("P{text}(nan,{})", rounded(snapshot.quantile(*percent)?)))
            })
            .collect(),
        _ => {
            let counts = bucket_counts(snapshot, buckets);
            BOUNDS.iter().zip(counts).map(|((_, text), count)| format!("B{text}(0,{count})")).collect()
        }
    };
    parts.join(" ")
}

/// Without the noise of binary fractions in the last digits.
fn rounded(value: f64) -> f64 {
    (value * 1e9).round() / 1e9
}

fn bucket_counts(snapshot: &HistogramSnapshot, buckets: Buckets) -> [u64; BOUNDS.len()] {
    let mut below = 0;
    BOUNDS.map(|(bound, _)| {
        let count = snapshot.at_most(bound);
        let more = count - below;
        below = count;
        if buckets == Buckets::Disjoint { more } else { count }
    })
}

#[derive(Serialize)]
struct Json<'a> {
    stats: Vec<Item<'a>>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Item<'a> {
    Value { name: &'a str, value: u64 },
    Histograms { histograms: Histograms<'a> },
}

#[derive(Serialize)]
#[serde(untagged)]
enum Histograms<'a> {
    Quantiles {
        supported_quantiles: [serde_json::Number; QUANTILES.len()],
        computed_quantiles: Vec<Computed<'a>>,
    },
    Buckets(Vec<Bucketed<'a>>),
}

#[derive(Serialize)]
struct Computed<'a> {
    name: &'a str,
    values: [Quantile; QUANTILES.len()],
}

#[derive(Serialize)]
struct Quantile {
    cumulative: Option<serde_json::Number>,
    /// Always null.
    interval: Option<u64>,
}

#[derive(Serialize)]
struct Bucketed<'a> {
    name: &'a str,
    buckets: Vec<Bucket>,
}

#[derive(Serialize)]
struct Bucket {
    upper_bound: serde_json::Number,
    /// Always zero.
    interval: u64,
    /// Of the whole time; cumulative by value or not, as was asked for.
    cumulative: u64,
}

fn quantiles(snapshot: &HistogramSnapshot) -> [Quantile; QUANTILES.len()] {
    QUANTILES
        .map(|(percent, _)| Quantile { cumulative: snapshot.quantile(percent).map(number), interval: None })
}

fn bucketed(snapshot: &HistogramSnapshot, buckets: Buckets) -> Vec<Bucket> {
    let counts = BOUNDS.iter().zip(bucket_counts(snapshot, buckets));
    counts
        .map(|((bound, _), count)| Bucket { upper_bound: number(*bound), interval: 0, cumulative: count })
        .collect()
}

/// Whole numbers without a fraction.
fn number(value: f64) -> serde_json::Number {
    let value = rounded(value);
    let whole = value as u64;
    serde_json::Number::from_f64(value).filter(|_| whole as f64 != value).unwrap_or_else(|| whole.into())
}
