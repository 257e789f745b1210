//! What `/config_dump` shows: the configuration that runs, in Envoy's terms.

use crate::agent::Agent;
use crate::model::{Cluster, Discovery, DnsFamily, LbPolicy, Listener};
use crate::stats::{ClusterConfig, ConfigView, DnsConfig, EndpointConfig, ListenerConfig};

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
    let (dns, endpoints) = match &cluster.discovery {
        Discovery::Static(endpoints) => {
            let endpoints = endpoints.iter().map(|endpoint| EndpointConfig {
                host: endpoint.address.ip().to_string(),
                port: endpoint.address.port(),
                weight: endpoint.weight,
            });
            (None, endpoints.collect())
        }
        Discovery::StrictDns(dns) => {
            let endpoints = dns.hosts.iter().map(|host| EndpointConfig {
                host: host.name.clone(),
                port: host.port,
                weight: host.weight,
            });
            let family = match dns.family {
                DnsFamily::Auto => "AUTO",
                DnsFamily::V4 => "V4_ONLY",
                DnsFamily::V6 => "V6_ONLY",
                DnsFamily::All => "ALL",
            };
            let config = DnsConfig {
                logical: dns.logical,
                refresh_rate: dns.refresh_rate,
                respect_ttl: dns.respect_ttl,
                jitter: dns.jitter,
                failure_refresh_rate: (dns.failure_backoff.base, dns.failure_backoff.max),
                lookup_family: family.to_owned(),
            };
            (Some(config), endpoints.collect())
        }
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
        endpoints,
    }
}
