//! The metrics that only Headgate has: `headgate_*` for Prometheus, and under names with a dot in `/stats`.

use std::time::UNIX_EPOCH;

use crate::stats::view::{Counts, View};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
}

/// A metric and its values by label.
#[derive(Clone, Debug)]
pub(super) struct Metric {
    /// With the prefix `headgate_`; counters end in `_total`.
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) kind: Kind,
    pub(super) samples: Vec<Sample>,
}

#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) labels: Vec<(&'static str, String)>,
    pub(super) value: u64,
}

impl Metric {
    /// A value's name in `/stats`: `headgate.connections_total.xdp`.
    pub(super) fn stat_name(&self, sample: &Sample) -> String {
        let mut name = self.name.replacen('_', ".", 1);
        for (_, value) in &sample.labels {
            name.push('.');
            name.push_str(value);
        }
        name
    }
}

/// All metrics that have a value, by name.
pub(super) fn metrics(view: &View) -> Vec<Metric> {
    let of = &view.headgate;
    let mut metrics = Metrics::default();
    let rungs = || of.rungs.iter();
    metrics.gauge(
        "headgate_build_info",
        "The version that runs and its fastest rung; always 1.",
        [sample([("version", &view.server.version), ("mode", &of.mode)], 1)],
    );
    metrics.counter(
        "headgate_connections_total",
        "Connections by the rung that carried them.",
        rungs().map(|rung| sample([("rung", &rung.rung)], rung.connections)),
    );
    metrics.counter(
        "headgate_payload_bytes_total",
        "TCP payload by rung and direction, as seen from Headgate.",
        rungs().flat_map(|rung| {
            let directions =
                [("from_clients", rung.bytes_from_clients), ("to_clients", rung.bytes_to_clients)];
            directions.into_iter().filter_map(|(direction, bytes)| {
                Some(sample([("rung", &rung.rung), ("direction", direction)], bytes?))
            })
        }),
    );
    metrics.counter(
        "headgate_packets_total",
        "Packets that the kernel datapath looked at, by what it did and why.",
        by_name("reason", &of.reasons),
    );
    metrics.counter(
        "headgate_proxy_events_total",
        "What became of the proxy's connections and of its attempts to connect.",
        by_name("event", &of.proxy),
    );
    let tables = || of.flow_tables.iter();
    metrics.gauge(
        "headgate_flow_table_entries",
        "Flows in the kernel's table.",
        tables().map(|table| sample([("family", &table.family)], table.live)),
    );
    metrics.gauge(
        "headgate_flow_table_entries_limit",
        "Flows that the kernel's table holds at most; what does not fit is proxied.",
        tables().map(|table| sample([("family", &table.family)], table.max)),
    );
    metrics.gauge(
        "headgate_flow_table_size_bytes",
        "Kernel memory of the flow table.",
        tables().map(|table| sample([("family", &table.family)], table.bytes)),
    );
    let snat = || of.snat.iter();
    metrics.gauge(
        "headgate_snat_ports_used",
        "SNAT ports towards the backend that a flow holds, or that rest after one.",
        snat().map(|snat| sample([("cluster", &snat.cluster), ("backend", &snat.backend)], snat.ports_used)),
    );
    metrics.gauge(
        "headgate_snat_ports_limit",
        "SNAT ports that there are towards the backend, of all SNAT addresses together.",
        snat().map(|snat| sample([("cluster", &snat.cluster), ("backend", &snat.backend)], snat.ports)),
    );
    metrics.counter(
        "headgate_dns_events_total",
        "DNS lookups of a cluster's names, by outcome.",
        of.dns.iter().flat_map(|dns| {
            dns.events
                .iter()
                .map(|(event, count)| sample([("cluster", &dns.cluster), ("event", event)], *count))
        }),
    );
    metrics.counter(
        "headgate_reloads_total",
        "Reloads of the configuration, by result.",
        [
            sample([("result", "applied")], of.reloads_applied),
            sample([("result", "refused")], of.reloads_refused),
        ],
    );
    let since_epoch = of.last_reload_success.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    metrics.gauge(
        "headgate_last_reload_success_timestamp_seconds",
        "When the configuration in force was taken on.",
        since_epoch.map(|since| sample([], since.as_secs())),
    );
    metrics.counter(
        "headgate_access_log_dropped_total",
        "Lines of the access log that were lost since a log did not take them.",
        of.access_log_dropped.map(|count| sample([], count)),
    );
    metrics.gauge(
        "headgate_cluster_panic",
        "1 while so few endpoints of the cluster are healthy that all are used.",
        of.panic.iter().map(|of| sample([("cluster", &of.cluster)], of.panic.into())),
    );
    metrics.gauge(
        "headgate_agent_resident_memory_bytes",
        "Resident memory of the agent, the proxy in it.",
        view.server.memory_physical_size.map(|bytes| sample([], bytes)),
    );
    metrics.0.retain(|metric| !metric.samples.is_empty());
    metrics.0.sort_by_key(|metric| metric.name);
    metrics.0
}

#[derive(Default)]
struct Metrics(Vec<Metric>);

impl Metrics {
    fn counter(&mut self, name: &'static str, help: &'static str, samples: impl IntoIterator<Item = Sample>) {
        self.add(name, help, Kind::Counter, samples);
    }

    fn gauge(&mut self, name: &'static str, help: &'static str, samples: impl IntoIterator<Item = Sample>) {
        self.add(name, help, Kind::Gauge, samples);
    }

    /// A series that comes twice (an endpoint that is named twice in a cluster) would spoil the whole page: one is
    /// kept.
    fn add(
        &mut self,
        name: &'static str,
        help: &'static str,
        kind: Kind,
        samples: impl IntoIterator<Item = Sample>,
    ) {
        let mut samples: Vec<Sample> = samples.into_iter().collect();
        samples.sort_by(|one, other| one.labels.cmp(&other.labels));
        samples.dedup_by(|one, other| one.labels == other.labels);
        self.0.push(Metric { name, help, kind, samples });
    }
}

fn sample<const N: usize>(labels: [(&'static str, &str); N], value: u64) -> Sample {
    Sample { labels: labels.into_iter().map(|(name, value)| (name, value.to_owned())).collect(), value }
}

fn by_name(label: &'static str, counts: &Counts) -> impl Iterator<Item = Sample> {
    counts.iter().map(move |(name, count)| sample([(label, name)], *count))
}
