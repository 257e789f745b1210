//! What only Headgate has.

use std::time::SystemTime;

/// A name and its count.
pub type Counts = Vec<(String, u64)>;

#[derive(Clone, Debug, Default)]
pub struct HeadgateView {
    /// The datapath mode, as `status` says it.
    pub mode: String,
    /// By rung, `xdp`, `tc` and `proxy`.
    pub rungs: Vec<RungView>,
    pub flow_tables: Vec<FlowTableView>,
    /// Packets by the datapath's reasons.
    pub reasons: Counts,
    /// Events of the proxy's connections.
    pub proxy: Counts,
    pub snat: Vec<SnatView>,
    /// Lookups and their outcomes.
    pub dns: Vec<DnsView>,
    pub reloads_applied: u64,
    pub reloads_refused: u64,
    /// Also the start of the agent counts.
    pub last_reload_success: Option<SystemTime>,
    pub access_log_dropped: Option<u64>,
    pub panic: Vec<PanicView>,
}

/// Whether a cluster uses its endpoints whatever their health.
#[derive(Clone, Debug, Default)]
pub struct PanicView {
    pub cluster: String,
    pub panic: bool,
}

#[derive(Clone, Debug, Default)]
pub struct RungView {
    pub rung: String,
    pub connections: u64,
    /// Payload bytes from and to the clients.
    pub bytes_from_clients: Option<u64>,
    pub bytes_to_clients: Option<u64>,
}

#[derive(Clone, Debug, Default)]
pub struct FlowTableView {
    /// `ipv4` or `ipv6`.
    pub family: String,
    pub live: u64,
    pub max: u64,
    /// Kernel memory.
    pub bytes: u64,
}

/// SNAT ports towards one backend.
#[derive(Clone, Debug, Default)]
pub struct SnatView {
    pub cluster: String,
    pub backend: String,
    pub ports_used: u64,
    /// Ports that there are, of all SNAT addresses together.
    pub ports: u64,
}

#[derive(Clone, Debug, Default)]
pub struct DnsView {
    pub cluster: String,
    pub events: Counts,
}
