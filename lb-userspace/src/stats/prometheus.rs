//! `/stats/prometheus`: Envoy's metrics as Envoy writes them, without help texts and without base units, then our own
//! as Prometheus would have them.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::stats::histogram::{BOUNDS, HistogramSnapshot};
use crate::stats::own::{self, Kind};
use crate::stats::page::Page;
use crate::stats::query::Query;
use crate::stats::selection::Selection;
use crate::stats::stat::{Stat, Value};
use crate::stats::view::View;

/// Takes `usedonly`, `filter` and `invert_filter`; the filter sees the names of `/stats`.
pub fn prometheus(view: &View, query: &Query) -> Page {
    if !["", "none", "cumulative"].contains(&query.get("histogram_buckets").unwrap_or_default()) {
        let usage = "usage: /stats/prometheus?histogram_buckets=cumulative\n";
        return Page::refusal(400, usage);
    }
    let selection = match Selection::of(query) {
        Ok(selection) => selection,
        Err(error) => return Page::refusal(400, error),
    };
    let stats = super::envoy::stats(view);
    // By type, then by name with its dots, as Envoy orders its page. Names that differ only in what a metric's name
    // cannot hold are one metric, and a series is there once: Prometheus would refuse the whole page.
    let mut metrics: BTreeMap<String, (u8, &str)> = BTreeMap::new();
    let mut families: BTreeMap<(u8, &str), BTreeMap<String, &Stat>> = BTreeMap::new();
    for (_, stat) in stats.iter().filter(|(name, stat)| selection.takes(name, stat)) {
        let kind = match stat.value {
            Value::Counter(_) => 0,
            Value::Gauge(_) => 1,
            Value::Histogram(_) => 2,
        };
        let family = *metrics.entry(metric_name(&stat.untagged)).or_insert((kind, &stat.untagged));
        if family.0 == kind {
            families.entry(family).or_default().entry(labels(&stat.label)).or_insert(stat);
        }
    }
    let mut text = String::new();
    for ((kind, untagged), series) in families {
        let name = metric_name(untagged);
        let _ = writeln!(text, "# TYPE {name} {}", ["counter", "gauge", "histogram"][usize::from(kind)]);
        for (labels, stat) in series {
            match &stat.value {
                Value::Counter(value) | Value::Gauge(value) => {
                    let _ = writeln!(text, "{name}{{{labels}}} {value}");
                }
                Value::Histogram(snapshot) => histogram(&mut text, &name, &labels, snapshot),
            }
        }
    }
    own_metrics(&mut text, view, &selection);
    Page::text(text)
}

fn histogram(text: &mut String, name: &str, labels: &str, snapshot: &HistogramSnapshot) {
    let comma = if labels.is_empty() { "" } else { "," };
    for (bound, _) in BOUNDS {
        let _ = writeln!(text, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {}", snapshot.at_most(bound));
    }
    let count = snapshot.count();
    let _ = writeln!(text, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {count}");
    let _ = writeln!(text, "{name}_sum{{{labels}}} {}", snapshot.sum());
    let _ = writeln!(text, "{name}_count{{{labels}}} {count}");
}

fn own_metrics(text: &mut String, view: &View, selection: &Selection) {
    for metric in own::metrics(view) {
        let mut samples =
            metric.samples.iter().filter(|sample| selection.takes_own(&metric, sample)).peekable();
        if samples.peek().is_none() {
            continue;
        }
        let kind = if metric.kind == Kind::Counter { "counter" } else { "gauge" };
        let _ = writeln!(text, "# HELP {} {}\n# TYPE {} {kind}", metric.name, metric.help, metric.name);
        for sample in samples {
            let labels = labels(&sample.labels);
            let braces = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
            let _ = writeln!(text, "{}{braces} {}", metric.name, sample.value);
        }
    }
}

/// Without the braces.
fn labels<'a>(labels: impl IntoIterator<Item = &'a (&'static str, String)>) -> String {
    let pairs = labels.into_iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value)));
    pairs.collect::<Vec<_>>().join(",")
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('\n', "\\n").replace('"', "\\\"")
}

/// With the prefix `envoy_`, and an underscore for what a metric's name cannot hold.
fn metric_name(untagged: &str) -> String {
    let allowed = |byte: char| if byte.is_ascii_alphanumeric() { byte } else { '_' };
    format!("envoy_{}", untagged.chars().map(allowed).collect::<String>())
}
