//! A statistic under Envoy's name, and the collection of them in which equal names are one statistic.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use crate::stats::histogram::HistogramSnapshot;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Counter(u64),
    Gauge(u64),
    Histogram(HistogramSnapshot),
}

/// One statistic.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Stat {
    /// Its name without the part that Prometheus gets as a label, dots in it: `cluster.upstream_cx_total`.
    pub(super) untagged: String,
    pub(super) label: Option<(&'static str, String)>,
    /// Something has been written to it, what `usedonly` asks for.
    pub(super) used: bool,
    pub(super) value: Value,
}

/// Where a group of statistics lives.
#[derive(Clone, Debug)]
pub(super) struct Scope {
    prefix: String,
    untagged: String,
    label: Option<(&'static str, String)>,
}

impl Scope {
    /// Of no label: `server`.
    pub(super) fn plain(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned(), untagged: prefix.to_owned(), label: None }
    }

    /// Of a cluster's or a prefix's name. Envoy makes a label of that name up to its first dot, and leaves the rest in
    /// the metric's name; dashboards that were made for Envoy look for it there.
    pub(super) fn named(kind: &str, label: &'static str, name: &str) -> Self {
        let name = sanitized(name);
        let (first, rest) = name.split_once('.').unwrap_or((&name, ""));
        let dot = if rest.is_empty() { "" } else { "." };
        Self {
            prefix: format!("{kind}.{name}"),
            untagged: format!("{kind}{dot}{rest}"),
            label: Some((label, first.to_owned())),
        }
    }

    /// Of an address, which is a label with its dots.
    pub(super) fn addressed(kind: &str, label: &'static str, address: &str) -> Self {
        let address = sanitized(address);
        Self { prefix: format!("{kind}.{address}"), untagged: kind.to_owned(), label: Some((label, address)) }
    }

    /// A group below this one.
    pub(super) fn below(&self, group: &str) -> Self {
        Self {
            prefix: format!("{}.{group}", self.prefix),
            untagged: format!("{}.{group}", self.untagged),
            label: self.label.clone(),
        }
    }
}

/// As Envoy writes names into statistics.
fn sanitized(name: &str) -> String {
    name.replace("://", "_").replace([':', '\0'], "_")
}

/// Statistics by their full names.
#[derive(Clone, Debug, Default)]
pub(super) struct Stats(BTreeMap<String, Stat>);

impl Stats {
    pub(super) fn counter(&mut self, scope: &Scope, name: &str, value: u64) {
        self.add(scope, name, value > 0, Value::Counter(value));
    }

    /// `used` says whether it has ever been set, since it may be back at zero.
    pub(super) fn gauge(&mut self, scope: &Scope, name: &str, used: bool, value: u64) {
        self.add(scope, name, used || value > 0, Value::Gauge(value));
    }

    pub(super) fn histogram(&mut self, scope: &Scope, name: &str, snapshot: &HistogramSnapshot) {
        self.add(scope, name, snapshot.count() > 0, Value::Histogram(snapshot.clone()));
    }

    /// Listeners may share a prefix, and clusters a name: then they have one statistic between them.
    fn add(&mut self, scope: &Scope, name: &str, used: bool, value: Value) {
        match self.0.entry(format!("{}.{name}", scope.prefix)) {
            Entry::Vacant(entry) => {
                entry.insert(Stat {
                    untagged: format!("{}.{name}", scope.untagged),
                    label: scope.label.clone(),
                    used,
                    value,
                });
            }
            Entry::Occupied(entry) => {
                let stat = entry.into_mut();
                stat.used |= used;
                match (&mut stat.value, value) {
                    (Value::Counter(sum), Value::Counter(more)) | (Value::Gauge(sum), Value::Gauge(more)) => {
                        *sum = sum.saturating_add(more);
                    }
                    (Value::Histogram(sum), Value::Histogram(more)) => sum.merge(&more),
                    // A cluster named so that its counter's name is another's gauge: the first one stays.
                    _ => {}
                }
            }
        }
    }

    /// In the order of their names.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Stat)> {
        self.0.iter().map(|(name, stat)| (name.as_str(), stat))
    }

    #[cfg(test)]
    pub(super) fn get(&self, name: &str) -> Option<&Stat> {
        self.0.get(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Envoy 1.40 does with such names.
    #[test]
    fn labels_are_cut_from_names_as_envoy_cuts_them() {
        let cluster = Scope::named("cluster", "envoy_cluster_name", "outbound|80||x.y");
        assert_eq!(cluster.prefix, "cluster.outbound|80||x.y");
        assert_eq!(cluster.untagged, "cluster.y");
        assert_eq!(cluster.label.unwrap().1, "outbound|80||x");
        assert_eq!(Scope::named("cluster", "envoy_cluster_name", "brk:1").prefix, "cluster.brk_1");
        let listener = Scope::addressed("listener", "envoy_listener_address", "[::1]:18445");
        assert_eq!(listener.prefix, "listener.[__1]_18445");
        assert_eq!(
            (listener.untagged.as_str(), listener.label.unwrap().1.as_str()),
            ("listener", "[__1]_18445")
        );
    }

    #[test]
    fn equal_names_are_one_statistic() {
        let mut stats = Stats::default();
        let scope = Scope::named("tcp", "envoy_tcp_prefix", "a");
        stats.counter(&scope, "n", 0);
        stats.counter(&scope, "n", 4);
        stats.counter(&scope, "n", u64::MAX);
        stats.gauge(&scope, "n", true, 9);
        let stat = stats.get("tcp.a.n").unwrap();
        assert_eq!((stat.used, &stat.value), (true, &Value::Counter(u64::MAX)));
        assert_eq!(stats.iter().count(), 1);
    }
}
