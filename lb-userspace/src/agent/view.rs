//! What the admin port shows, gathered from configuration, endpoints, proxy and kernel.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use anyhow::Result;
use lb_common::Reason;

use crate::access_log::Rung;
use crate::admin_http::ViewSource;
use crate::agent::Agent;
use crate::agent::interfaces::rung_name;
use crate::datapath::sweep::Carried;
use crate::endpoints::{Health, Member, Readiness};
use crate::health::outlier::Tally;
use crate::model::{Cluster, Discovery, Listener};
use crate::proxy::Backend;
use crate::stats::{
    CircuitBreakersView, ClusterManagerView, ClusterView, Counts, DnsView, EndpointView, FlowTableView,
    HeadgateView, HealthCheckView, HealthFlags, ListenerManagerView, ListenerView, OutlierDetectionView,
    PanicView, RungView, ServerState, ServerView, SnatView, UpdateView, View,
};

impl Agent {
    /// The view, or what makes it.
    pub(super) fn view(&mut self, only_server: bool) -> Result<ViewSource> {
        let mut view = View { server: self.server_view(), ..View::default() };
        if !only_server {
            if let Some(kernel) = &mut self.kernel {
                kernel.count_all()?;
            }
            view.listener_manager = self.listener_manager_view();
            view.cluster_manager = self.cluster_manager_view();
            view.listeners =
                self.config.listeners.iter().map(|listener| self.listener_view(listener)).collect();
            let clusters = self.config.clusters.iter().map(|cluster| self.cluster_view(cluster));
            view.clusters = clusters.collect::<Result<_>>()?;
            view.headgate = self.headgate_view()?;
            view.config = self.config_view();
        }
        Ok(Box::new(move || Ok(view)))
    }

    pub(super) fn server_view(&self) -> ServerView {
        let drain = self.config.clusters.iter().map(|cluster| cluster.drain_timeout).max();
        ServerView {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime: self.started.elapsed(),
            state: match (self.stopping || self.node_drained.is_some(), self.ready_after) {
                (true, _) => ServerState::Draining,
                (false, Some(_)) => ServerState::Live,
                (false, None) => ServerState::Initializing,
            },
            concurrency: tokio::runtime::Handle::current().metrics().num_workers() as u64,
            config_path: self.options.config.display().to_string(),
            drain_time: drain.unwrap_or_default(),
            node_id: String::new(),
            node_cluster: String::new(),
            total_connections: self
                .config
                .listeners
                .iter()
                .map(|of| self.accounts.listener(&of.name).flows)
                .sum(),
            memory_physical_size: resident_bytes(),
            initialization_time_ms: self.ready_after.map(|after| after.as_millis() as u64),
        }
    }

    fn listener_manager_view(&self) -> ListenerManagerView {
        let changes = &self.changes;
        ListenerManagerView {
            listener_added: changes.listeners.added,
            listener_modified: changes.listeners.modified,
            listener_removed: changes.listeners.removed,
            listener_create_success: changes.listeners.added + changes.listeners.modified,
            total_listeners_active: self.config.listeners.len() as u64,
        }
    }

    fn cluster_manager_view(&self) -> ClusterManagerView {
        let changes = &self.changes;
        ClusterManagerView {
            cluster_added: changes.clusters.added,
            cluster_modified: changes.clusters.modified,
            cluster_removed: changes.clusters.removed,
            active_clusters: self.config.clusters.len() as u64,
            warming_clusters: self.discovery.unsettled() as u64,
        }
    }

    fn listener_view(&self, listener: &Listener) -> ListenerView {
        let counts = self.connections.listener(&listener.name.as_str().into());
        let carried = self.accounts.listener(&listener.name);
        let served = self.kernel.as_ref().map_or(0, |kernel| kernel.totals.served(&listener.name));
        let total = served + counts.proxied.load(Relaxed) + counts.without_backend.load(Relaxed);
        ListenerView {
            name: listener.name.clone(),
            address: listener.address,
            stat_prefix: listener.stat_prefix.clone(),
            downstream_cx_total: total,
            downstream_cx_active: carried.flows,
            downstream_cx_destroy: total.saturating_sub(carried.flows),
            downstream_cx_rx_bytes_total: carried.bytes_in,
            downstream_cx_tx_bytes_total: carried.bytes_out,
            downstream_cx_no_route: counts.no_route.load(Relaxed),
            idle_timeout: counts.idle_timeout.load(Relaxed),
            max_downstream_connection_duration: counts.max_duration.load(Relaxed),
            upstream_flush_total: None,
            upstream_flush_active: None,
            downstream_cx_length_ms: Some(counts.length_ms.snapshot()),
        }
    }

    fn cluster_view(&self, cluster: &Cluster) -> Result<ClusterView> {
        let name: Arc<str> = cluster.name.as_str().into();
        let counts = self.connections.cluster(&name);
        let Carried { bytes_in, bytes_out, .. } = self.accounts.cluster(&cluster.name);
        let balancer = self.balancers.get(&cluster.name);
        let proxied = balancer.map(|balancer| balancer.totals()).unwrap_or_default();
        let (opened, failed) = match &self.kernel {
            Some(kernel) => (kernel.totals.opened(&name), kernel.totals.failed(&name)),
            None => Default::default(),
        };
        let connected = opened + proxied.connections;
        let timeouts = failed.unanswered + proxied.connect_timeouts;
        let failures = failed.refused + failed.unanswered + proxied.connect_failures;
        let refused = failures.saturating_sub(timeouts);
        let active = balancer.map_or(0, |balancer| balancer.open_connections());
        let total = connected + failures + proxied.connecting;
        let over = counts.over.connections.load(Relaxed);
        let backend_last = counts.backend_last.load(Relaxed);
        let endpoints = self.endpoint_views(cluster)?;
        let members = self.endpoints.counts(&cluster.name);
        Ok(ClusterView {
            name: cluster.name.clone(),
            alt_stat_name: cluster.stat_name.clone(),
            upstream_cx_total: total,
            upstream_cx_active: active,
            upstream_cx_connect_fail: failures,
            upstream_cx_connect_timeout: timeouts,
            upstream_cx_connect_attempts_exceeded: counts.attempts_exceeded.load(Relaxed),
            upstream_cx_overflow: counts.overflow.load(Relaxed),
            upstream_cx_none_healthy: counts.none_healthy.load(Relaxed),
            upstream_cx_destroy: over + failures,
            upstream_cx_destroy_local: over.saturating_sub(backend_last) + timeouts,
            upstream_cx_destroy_remote: backend_last + refused,
            upstream_cx_destroy_with_active_rq: over,
            upstream_cx_destroy_local_with_active_rq: over.saturating_sub(backend_last),
            upstream_cx_destroy_remote_with_active_rq: backend_last,
            upstream_cx_rx_bytes_total: bytes_out,
            upstream_cx_tx_bytes_total: bytes_in,
            upstream_rq_total: connected,
            upstream_rq_active: active.saturating_sub(proxied.connecting),
            upstream_rq_pending_total: total,
            upstream_rq_pending_active: proxied.connecting,
            upstream_rq_pending_failure_eject: failures,
            upstream_cx_connect_ms: Some(counts.connect_ms.snapshot()),
            upstream_cx_length_ms: Some(counts.length_ms.snapshot()),
            membership_total: members.members,
            membership_healthy: members.healthy,
            membership_degraded: 0,
            membership_excluded: 0,
            membership_change: self.changes.membership.get(&cluster.name).copied().unwrap_or(0),
            update: Some(self.update_view(cluster)),
            // Envoy chooses among all of a cluster without a healthy endpoint, and there is none then, too.
            lb_healthy_panic: counts.none_healthy.load(Relaxed) + self.chosen_in_panic(&cluster.name, total),
            circuit_breakers: CircuitBreakersView {
                max_connections: cluster.max_connections.map(u64::from),
                cx_open: cluster.max_connections.is_some_and(|limit| active >= u64::from(limit)),
                remaining_cx: None,
            },
            health_check: self.health_check_view(cluster),
            outlier_detection: self.outlier_view(cluster),
            endpoints,
        })
    }

    fn health_check_view(&self, cluster: &Cluster) -> Option<HealthCheckView> {
        cluster.health_check.as_ref()?;
        let counts = self.health.checker.counts(&cluster.name);
        let is_healthy = |member: &Member| matches!(member.health, Health::Passing | Health::Unchecked);
        let members = self.endpoints.of(&cluster.name).filter(|(_, member)| member.removed.is_none());
        Some(HealthCheckView {
            attempt: counts.attempt,
            success: counts.success,
            failure: counts.failure,
            network_failure: counts.network_failure,
            healthy: members.filter(|(_, member)| is_healthy(member)).count() as u64,
        })
    }

    fn outlier_view(&self, cluster: &Cluster) -> Option<OutlierDetectionView> {
        cluster.outlier.as_ref()?;
        let counts = self.health.clusters.get(&cluster.name)?.detector.counts();
        let tally = |of: Tally| (of.detected, of.enforced);
        Some(OutlierDetectionView {
            ejections_active: counts.ejections_active as u64,
            ejections_enforced_total: counts.ejections_enforced_total,
            ejections_overflow: counts.ejections_overflow,
            consecutive_local_origin_failure: tally(counts.consecutive_local_origin_failure),
            local_origin_success_rate: tally(counts.local_origin_success_rate),
            local_origin_failure_percentage: tally(counts.local_origin_failure_percentage),
        })
    }

    /// All 0 for a static cluster, as in Envoy.
    fn update_view(&self, cluster: &Cluster) -> UpdateView {
        let counts = self.discovery.counts(&cluster.name).unwrap_or_default();
        UpdateView {
            attempt: counts.attempts,
            success: counts.answered,
            failure: counts.failed,
            empty: counts.empty,
            no_rebuild: counts.unchanged,
        }
    }

    fn endpoint_views(&self, cluster: &Cluster) -> Result<Vec<EndpointView>> {
        let balancer = self.balancers.get(&cluster.name);
        let mut views = Vec::new();
        for (address, member) in self.endpoints.of(&cluster.name) {
            let of_proxy = balancer.and_then(|balancer| balancer.backend(address));
            let proxied = of_proxy.as_deref().map(Backend::totals).unwrap_or_default();
            let (mut connected, mut failures) = (proxied.connections, proxied.connect_failures);
            if let Some(kernel) = &self.kernel
                && let Some(index) = kernel.backend_index(&cluster.name, address)
            {
                let (opened, failed) = kernel.of_backend(index)?;
                connected += opened.xdp + opened.tc;
                failures += failed.refused + failed.unanswered;
            }
            views.push(EndpointView {
                address,
                hostname: hostname(cluster, address),
                cx_active: of_proxy.map_or(0, |backend| backend.open.sum()),
                cx_connect_fail: failures,
                cx_total: connected + failures + proxied.connecting,
                rq_pending_active: proxied.connecting,
                rq_total: connected,
                weight: member.endpoint.weight,
                priority: member.endpoint.priority,
                region: String::new(),
                zone: member.endpoint.zone.as_deref().unwrap_or_default().to_owned(),
                sub_zone: String::new(),
                health: HealthFlags {
                    failed_active_hc: matches!(member.health, Health::Pending | Health::Failing { .. }),
                    failed_outlier_check: member.ejected.is_some(),
                    failed_eds_health: member.readiness != Readiness::Ready,
                    pending_dynamic_removal: member.removed.is_some() || member.leaving,
                    pending_active_hc: member.health == Health::Pending,
                    active_hc_timeout: member.health == Health::Failing { timeout: true },
                    eds_status_draining: member.drained.is_some(),
                },
            });
        }
        Ok(views)
    }

    fn headgate_view(&self) -> Result<HeadgateView> {
        let opened = self.kernel.as_ref().map(|kernel| kernel.totals.rungs()).unwrap_or_default();
        let proxied = self.proxy.counts();
        let without_backend = |rung| self.connections.without_backend(rung);
        let rungs = [
            (Rung::Xdp, opened.xdp + without_backend(Rung::Xdp)),
            (Rung::Tc, opened.tc + without_backend(Rung::Tc)),
            (Rung::Proxy, proxied.get(crate::proxy::Counter::Accepted)),
        ];
        let rungs = rungs.into_iter().map(|(rung, connections)| RungView {
            rung: rung.name().to_owned(),
            connections,
            bytes_from_clients: Some(self.accounts.rung(rung).bytes_in),
            bytes_to_clients: Some(self.accounts.rung(rung).bytes_out),
        });
        let mut view = HeadgateView {
            mode: rung_name(self.fastest_rung()).to_owned(),
            rungs: rungs.collect(),
            proxy: proxied.iter().map(|(name, count)| (name.to_owned(), count)).collect(),
            dns: self.config.clusters.iter().filter_map(|cluster| self.dns_view(cluster)).collect(),
            reloads_applied: self.changes.reloads_applied,
            reloads_refused: self.changes.reloads_refused,
            last_reload_success: Some(self.changes.configured),
            access_log_dropped: Some(self.connections.logs.dropped()),
            panic: self.panic_views(),
            ..HeadgateView::default()
        };
        let Some(kernel) = &self.kernel else { return Ok(view) };
        view.access_log_dropped =
            view.access_log_dropped.map(|dropped| dropped + kernel.kernel.events_lost());
        let counted = kernel.kernel.reasons()?;
        let count =
            |reason: &Reason| counted.iter().find(|(of, _)| of == reason).map_or(0, |(_, count)| *count);
        view.reasons = Reason::ALL.iter().map(|reason| (reason.name().to_owned(), count(reason))).collect();
        let tables =
            [("ipv4", kernel.kernel.v4.flows.bytes(), 0), ("ipv6", kernel.kernel.v6.flows.bytes(), 1)];
        view.flow_tables = tables
            .into_iter()
            .map(|(family, bytes, index)| FlowTableView {
                family: family.to_owned(),
                live: kernel.kernel.live_flows(index),
                max: kernel.max_flows.into(),
                bytes,
            })
            .collect();
        view.snat = self
            .endpoints
            .iter()
            .filter_map(|(cluster, address, _)| {
                let index = kernel.backend_index(cluster, address)?;
                Some(SnatView {
                    cluster: cluster.to_owned(),
                    backend: address.to_string(),
                    ports_used: kernel.snat_ports_used(index),
                    ports: kernel.snat_ports_of(index),
                })
            })
            .collect();
        Ok(view)
    }

    fn panic_views(&self) -> Vec<PanicView> {
        let clusters = self.config.clusters.iter();
        clusters
            .map(|cluster| PanicView {
                cluster: cluster.name.clone(),
                panic: self.health.clusters.get(&cluster.name).is_some_and(|of| !of.panic.is_empty()),
            })
            .collect()
    }

    /// Connections of a cluster that were made while it was in panic, of so many in all.
    fn chosen_in_panic(&self, cluster: &str, total: u64) -> u64 {
        self.health.clusters.get(cluster).map_or(0, |of| {
            of.chosen_in_panic + of.total_before_panic.map_or(0, |before| total.saturating_sub(before))
        })
    }

    /// Attempts of a cluster so far.
    pub(super) fn attempts(&mut self, cluster: &str) -> u64 {
        let Some(cluster) = self.config.cluster(cluster).cloned() else { return 0 };
        if let Some(kernel) = &mut self.kernel
            && let Err(error) = kernel.count_all()
        {
            log::debug!("{error:#}");
        }
        self.cluster_view(&cluster).map_or(0, |view| view.upstream_cx_total)
    }

    fn dns_view(&self, cluster: &Cluster) -> Option<DnsView> {
        let counts = self.discovery.counts(&cluster.name)?;
        let events: Counts = vec![
            ("lookup".to_owned(), counts.attempts),
            ("answered".to_owned(), counts.answered),
            ("failed".to_owned(), counts.failed),
            ("empty".to_owned(), counts.empty),
            ("unchanged".to_owned(), counts.unchanged),
        ];
        Some(DnsView { cluster: cluster.name.clone(), events })
    }
}

/// The name that an endpoint was resolved from, if there is only one that it can be.
fn hostname(cluster: &Cluster, address: SocketAddr) -> String {
    let Discovery::StrictDns(dns) = &cluster.discovery else { return String::new() };
    let mut hosts = dns.hosts.iter().filter(|host| host.port == address.port());
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.name.clone(),
        _ => String::new(),
    }
}

/// The agent's resident memory.
fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}
