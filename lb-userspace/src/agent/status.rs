//! The agent's view of itself, as the JSON of `status`, `backends` and `flows`.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use lb_common::Rung;
use serde_json::{Map, Value, json};

use crate::agent::Agent;
use crate::agent::admin::Question;
use crate::agent::interfaces::rung_name;
use crate::agent::membership::{DRAINING, HEALTHY};
use crate::datapath::kernel::monotonic_now;
use crate::desired::served_addresses;
use crate::flows::{FlowFilter, FlowRow, pair_flows, proxied_rows};

impl Agent {
    pub(super) fn answer(&self, question: Question) -> Result<Value> {
        match question {
            Question::Status => self.status(),
            Question::Backends => self.backends(),
            Question::Flows { filter } => Ok(serde_json::to_value(self.flows(&filter)?)?),
        }
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
                    "cluster": listener.cluster,
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
                let active = self.endpoints.active(&cluster.name).count();
                json!({
                    "name": cluster.name,
                    "id": kernel.and_then(|kernel| kernel.cluster_index(&cluster.name)),
                    "endpoints": active,
                    "healthy": active,
                    "draining": self.endpoints.of(&cluster.name).count() - active,
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
            "draining": self.draining,
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

    fn fastest_rung(&self) -> Option<Rung> {
        let rungs = self.kernel.as_ref()?.interfaces.list().iter().filter_map(|interface| interface.rung);
        rungs.min_by_key(|rung| *rung as u32)
    }

    fn backends(&self) -> Result<Value> {
        let mut active: HashMap<SocketAddr, u64> = HashMap::new();
        for flow in self.flows(&FlowFilter::default())? {
            if let Some(backend) = flow.open_to() {
                *active.entry(backend).or_default() += 1;
            }
        }
        let mut rows = Vec::new();
        for (name, member) in self.endpoints.iter() {
            let (cluster, address) = name;
            let proxied = self.balancers.get(cluster).and_then(|balancer| balancer.backend(*address));
            let connections = proxied.map_or(0, |backend| backend.stats.connections());
            let mut total = json!({ "xdp": 0, "tc": 0, "proxy": connections });
            let mut why = None;
            if let Some(kernel) = &self.kernel {
                if let Some(id) = kernel.backend_index(name) {
                    let opened = kernel.kernel.opened(id)?;
                    total["xdp"] = json!(opened.xdp);
                    total["tc"] = json!(opened.tc);
                }
                why = kernel.proxy_only(*address, &self.network);
            }
            let mut row = json!({
                "cluster": cluster,
                "address": address,
                "state": if member.draining.is_some() { DRAINING } else { HEALTHY },
                "weight": member.weight,
                "active": active.get(address).copied().unwrap_or(0),
                "total": total,
            });
            if let Some(why) = why {
                row["proxy_only"] = json!(why);
            }
            rows.push(row);
        }
        Ok(Value::Array(rows))
    }

    fn flows(&self, filter: &FlowFilter) -> Result<Vec<FlowRow>> {
        let mut rows = Vec::new();
        if let Some(kernel) = &self.kernel {
            let now = monotonic_now();
            let (v4, v6) = (&kernel.kernel.v4, &kernel.kernel.v6);
            rows.extend(pair_flows(v4.flows.entries()?, now));
            rows.extend(pair_flows(v6.flows.entries()?, now));
        }
        rows.extend(proxied_rows(self.proxy.flows()));
        Ok(filter.apply(rows))
    }
}
