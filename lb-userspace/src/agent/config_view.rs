//! What `/config_dump` shows: the configuration that runs, in Envoy's terms.

use crate::agent::Agent;
use crate::model::{Cluster, Discovery, DnsFamily, DnsRefresh, LbPolicy, Listener};
use crate::stats::{
    ClusterConfig, ConfigView, DnsConfig, EndpointConfig, EndpointFileConfig, ListenerConfig,
};

impl Agent {
    pub(super) fn config_view(&self) -> ConfigView {
        ConfigView {
            admin_address: self.config.admin.map(|admin| admin.address),
            last_updated: Some(self.changes.configured),
            listeners: self.config.listeners.iter().map(|listener| self.listener_config(listener)).collect(),
            clusters: self.config.clusters.iter().map(cluster_config).collect(),
        }
    }

    fn listener_config(&self, listener: &Listener) -> ListenerConfig {
        let of_cluster =
            self.config.cluster(&listener.clusters[0].name).map_or(1, |cluster| cluster.connect_attempts);
        ListenerConfig {
            name: listener.name.clone(),
            address: listener.address,
            stat_prefix: listener.stat_prefix.clone(),
            clusters: listener.clusters.iter().map(|share| (share.name.clone(), share.weight)).collect(),
            idle_timeout: listener.idle_timeout,
            max_connect_attempts: listener.connect_attempts.unwrap_or(of_cluster),
            max_downstream_connection_duration: listener.max_connection_duration,
            access_log_paths: listener.access_logs.iter().map(|log| log.path.display().to_string()).collect(),
        }
    }
}

fn cluster_config(cluster: &Cluster) -> ClusterConfig {
    let of_name = |host: &str, port, weight| EndpointConfig { host: host.to_owned(), port, weight };
    let (dns, file, endpoints) = match &cluster.discovery {
        Discovery::Static(endpoints) => {
            let endpoints = endpoints.iter().map(|endpoint| {
                let host = endpoint.address.ip().to_string();
                EndpointConfig { host, port: endpoint.address.port(), weight: endpoint.weight }
            });
            (None, None, endpoints.collect())
        }
        Discovery::StrictDns(dns) => {
            let endpoints = dns.hosts.iter().map(|host| of_name(&host.name, host.port, host.weight));
            (Some(dns_config(&dns.refresh(), dns.logical)), None, endpoints.collect())
        }
        // Envoy has no such type; the ports are in the records.
        Discovery::Srv(srv) => (Some(dns_config(&srv.refresh, false)), None, vec![of_name(&srv.name, 0, 1)]),
        Discovery::File(file) => {
            let path = file.path.display().to_string();
            (None, Some(EndpointFileConfig { path, service_name: file.cluster_name.clone() }), Vec::new())
        }
        Discovery::Kubernetes(_) => (None, None, Vec::new()),
    };
    let lb_policy = match cluster.lb_policy {
        LbPolicy::RoundRobin => "ROUND_ROBIN",
        LbPolicy::Random => "RANDOM",
        LbPolicy::Maglev | LbPolicy::SourceIp => "MAGLEV",
        LbPolicy::LeastRequest => "LEAST_REQUEST",
    };
    ClusterConfig {
        name: cluster.name.clone(),
        alt_stat_name: cluster.stat_name.clone(),
        connect_timeout: cluster.connect_timeout,
        lb_policy: lb_policy.to_owned(),
        max_connections: cluster.max_connections.map(u64::from),
        dns,
        file,
        endpoints,
    }
}

fn dns_config(refresh: &DnsRefresh, logical: bool) -> DnsConfig {
    let lookup_family = match refresh.family {
        DnsFamily::Auto => "AUTO",
        DnsFamily::V4 => "V4_ONLY",
        DnsFamily::V6 => "V6_ONLY",
        DnsFamily::All => "ALL",
    };
    DnsConfig {
        logical,
        refresh_rate: refresh.rate,
        respect_ttl: refresh.respect_ttl,
        jitter: refresh.jitter,
        failure_refresh_rate: (refresh.failure_backoff.base, refresh.failure_backoff.max),
        lookup_family: lookup_family.to_owned(),
    }
}
