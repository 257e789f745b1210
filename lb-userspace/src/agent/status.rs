//! The agent's view of itself, as the JSON of `status`, `backends` and `flows`.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use lb_common::Rung;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::agent::Agent;
use crate::agent::admin::{Answer, Question};
use crate::agent::interfaces::rung_name;
use crate::agent::kernel_side::KernelSide;
use crate::desired::served_addresses;
use crate::listing::{Listing, Tables};

impl Agent {
    pub(super) fn answer(&mut self, question: Question) -> Result<Answer> {
        Ok(match question {
            Question::Status => {
                let status = self.status()?;
                Box::new(move |out| Ok(serde_json::to_writer(out, &status)?))
            }
            Question::Ready => said(self.ready()?),
            Question::Backends => {
                let (mut backends, listing) = (self.backends()?, self.listing());
                Box::new(move |out| {
                    let open = listing.open_by_backend()?;
                    for backend in &mut backends {
                        backend.active = open.get(&backend.address).copied().unwrap_or(0);
                    }
                    Ok(serde_json::to_writer(out, &backends)?)
                })
            }
            Question::ReopenLogs => {
                self.connections.logs.reopen();
                Box::new(|out| Ok(serde_json::to_writer(out, &())?))
            }
            Question::Drain { backend, cluster, force } => {
                said(self.drain_backend(backend, cluster.as_deref(), force)?)
            }
            Question::Undrain { backend, cluster } => {
                said(self.undrain_backend(backend, cluster.as_deref())?)
            }
            Question::DrainNode => said(self.drain_node()?),
            Question::UndrainNode => said(self.undrain_node()?),
            Question::Flows { filter } => {
                let listing = self.listing();
                Box::new(move |mut out| listing.write(&filter, &mut out))
            }
        })
    }

    fn status(&self) -> Result<Value> {
        let kernel = self.kernel.as_ref();
        let interfaces: Vec<Value> = kernel
            .map(|kernel| kernel.interfaces.list())
            .unwrap_or_default()
            .iter()
            .map(|interface| {
                json!({
                    "name": interface.name,
                    "rung": rung_name(interface.rung),
                    "why": interface.why,
                })
            })
            .collect();
        let rung = self.fastest_rung();
        let listeners: Vec<Value> = self
            .config
            .listeners
            .iter()
            .map(|listener| {
                let addresses: Vec<String> = served_addresses(&self.network, listener.address)
                    .iter()
                    .filter(|address| self.network.is_local(**address))
                    .map(IpAddr::to_string)
                    .collect();
                json!({
                    "name": listener.name,
                    "id": kernel.and_then(|kernel| kernel.service_id(&listener.name)),
                    "address": listener.address,
                    "cluster": listener.clusters.iter().map(|of| of.name.as_str()).collect::<Vec<_>>().join(", "),
                    "rung": rung_name(rung),
                    "serves": addresses,
                })
            })
            .collect();
        let clusters: Vec<Value> = self
            .config
            .clusters
            .iter()
            .map(|cluster| {
                let counts = self.endpoints.counts(&cluster.name);
                let health = self.health.clusters.get(&cluster.name);
                json!({
                    "name": cluster.name,
                    "id": kernel.and_then(|kernel| kernel.cluster_index(&cluster.name)),
                    "endpoints": counts.members,
                    "healthy": counts.healthy,
                    "draining": counts.draining,
                    "panic": health.map(|of| &of.panic),
                    "spilling": health.map(|of| of.spilling),
                    "discovery": self.discovery.status(&cluster.name),
                })
            })
            .collect();
        let mut reasons = Map::new();
        for (name, count) in self.proxy.counts().iter().filter(|(_, count)| *count > 0) {
            reasons.insert(format!("proxy_{name}"), json!(count));
        }
        let mut flows = json!({ "proxied": self.proxy.connections() });
        if let Some(kernel) = &self.kernel {
            for (reason, count) in kernel.kernel.reasons()? {
                reasons.insert(reason.name().into(), json!(count));
            }
            flows = json!({
                "proxied": self.proxy.connections(),
                "kernel_v4": kernel.kernel.live_flows(0),
                "kernel_v6": kernel.kernel.live_flows(1),
                "max": kernel.max_flows,
                "bytes": kernel.kernel.v4.flows.bytes() + kernel.kernel.v6.flows.bytes(),
                "snat_ports": kernel.snat_ports.len(),
            });
        }
        Ok(json!({
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_s": self.started.elapsed().as_secs(),
            "mode": rung_name(rung),
            "why": self.no_kernel,
            "draining": self.stopping || self.node_drained.is_some(),
            "drain": self.node_drained.map(|out| {
                json!({ "age_s": out.since.elapsed().as_secs(), "resets_in_s": seconds_to(out.cut) })
            }),
            "map_writes": self.kernel.as_ref().map(|kernel| kernel.kernel.writes),
            "reload": self.reloaded.as_ref().map(|reload| {
                json!({ "at": humantime::format_rfc3339_millis(reload.at).to_string(), "error": reload.error })
            }),
            "findings": self.findings,
            "interfaces": interfaces,
            "listeners": listeners,
            "clusters": clusters,
            "flows": flows,
            "reasons": reasons,
            "events": self.events.iter().collect::<Vec<_>>(),
        }))
    }

    pub(super) fn fastest_rung(&self) -> Option<Rung> {
        let rungs = self.kernel.as_ref()?.interfaces.list().iter().filter_map(|interface| interface.rung);
        rungs.min_by_key(|rung| *rung as u32)
    }

    /// All endpoints, but for the connections that are open to them.
    fn backends(&self) -> Result<Vec<BackendRow>> {
        let mut rows = Vec::new();
        for (cluster, address, member) in self.endpoints.iter() {
            let proxied = self.balancers.get(cluster).and_then(|balancer| balancer.backend(address));
            let mut total =
                Total { proxy: proxied.map_or(0, |backend| backend.stats.connections()), ..Total::default() };
            let mut why = None;
            if let Some(kernel) = &self.kernel {
                if let Some(id) = kernel.backend_index(cluster, address) {
                    let opened = kernel.kernel.opened(id)?;
                    (total.xdp, total.tc) = (opened.xdp, opened.tc);
                }
                why = kernel.proxy_only(address, &self.network);
            }
            rows.push(BackendRow {
                cluster: cluster.to_owned(),
                address,
                state: member.state().name(),
                since_s: member.since.elapsed().as_secs(),
                why: member.why.to_string(),
                weight: member.endpoint.weight,
                share: member.share,
                priority: member.endpoint.priority,
                node: member.endpoint.node.as_deref().map(str::to_owned),
                zone: member.endpoint.zone.as_deref().map(str::to_owned),
                resets_in_s: seconds_to(member.cut()),
                active: 0,
                total,
                proxy_only: why,
            });
        }
        Ok(rows)
    }

    fn listing(&self) -> Listing {
        let tables = self.kernel.as_ref().map(|KernelSide { kernel, .. }| Tables {
            v4: Arc::clone(&kernel.v4.flows),
            v6: Arc::clone(&kernel.v6.flows),
        });
        Listing { tables, proxied: self.proxy.flows() }
    }
}

/// What was done, for people.
fn said(text: String) -> Answer {
    Box::new(move |out| Ok(serde_json::to_writer(out, &text)?))
}

/// An endpoint, in the answer to `headgate backends`.
#[derive(Serialize)]
struct BackendRow {
    cluster: String,
    address: SocketAddr,
    state: &'static str,
    /// How long it has been in that state, and why.
    since_s: u64,
    why: String,
    weight: u32,
    /// Weight among those that take new connections; `None`: it takes none.
    share: Option<u32>,
    priority: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    zone: Option<String>,
    /// When its open connections are reset, if they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    resets_in_s: Option<u64>,
    /// Connections that are open to it.
    active: u64,
    total: Total,
    /// Why it is left to the proxy, if it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    proxy_only: Option<String>,
}

fn seconds_to(at: Option<Instant>) -> Option<u64> {
    at.map(|at| at.saturating_duration_since(Instant::now()).as_secs())
}

/// Connections opened to an endpoint, by rung.
#[derive(Default, Serialize)]
struct Total {
    xdp: u64,
    tc: u64,
    proxy: u64,
}
