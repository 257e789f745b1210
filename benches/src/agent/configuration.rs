//! Configurations of many endpoints.

use std::fmt::Write as _;

use super::hosts::endpoint;

/// The port of the first listener; the others have the next ones.
const LISTEN: u16 = 30_000;

/// Clusters, each with a listener and with endpoints of its own, all with the same policy and health check.
pub(super) struct Size {
    pub(super) clusters: u32,
    /// Of each.
    pub(super) endpoints: u32,
    pub(super) lb_policy: &'static str,
    /// YAML; empty: none.
    pub(super) health_check: &'static str,
}

impl Size {
    pub(super) fn yaml(&self) -> String {
        let mut text = String::from("datapath: { mode: tc, max_flows: 65536 }\nlisteners:\n");
        for cluster in 0..self.clusters {
            let port = u32::from(LISTEN) + cluster;
            let _ = writeln!(
                text,
                "  - {{ name: l{cluster}, address: \"0.0.0.0:{port}\", cluster: c{cluster} }}"
            );
        }
        text += "clusters:\n";
        for cluster in 0..self.clusters {
            let _ = writeln!(text, "  - name: c{cluster}\n    lb_policy: {}", self.lb_policy);
            if !self.health_check.is_empty() {
                let _ = writeln!(text, "    health_check: {}", self.health_check);
            }
            let first = cluster * self.endpoints;
            let hosts: Vec<String> =
                (first..first + self.endpoints).map(|number| format!("\"{}\"", endpoint(number))).collect();
            let _ = writeln!(text, "    discovery: {{ type: static, hosts: [{}] }}", hosts.join(", "));
        }
        text
    }
}
