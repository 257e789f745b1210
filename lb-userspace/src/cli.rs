//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::explain::Packet;
use crate::flows::FlowFilter;
use crate::model::Mode;

/// An L4 load balancer in the kernel for ports 80 and 443 of an edge node, with a proxy behind it.
#[derive(Debug, Parser)]
#[command(name = "headgate", version, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    pub places: Places,
    #[command(subcommand)]
    pub command: Command,
}

/// Where an instance keeps what others find it by; one pair for each instance on a host.
#[derive(Clone, Debug, Args)]
pub struct Places {
    /// Directory of the pinned maps and links, on a BPF file system.
    #[arg(long, global = true, value_name = "DIR", default_value = "/sys/fs/bpf/headgate")]
    pub bpffs: PathBuf,
    /// Directory of the admin socket.
    #[arg(long, global = true, value_name = "DIR", default_value = "/run/headgate")]
    pub run_dir: PathBuf,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs the agent in the foreground; SIGTERM drains and ends it.
    Run(Run),
    /// Validates a configuration file, native or an Envoy bootstrap.
    Check {
        /// The file.
        file: PathBuf,
    },
    /// Writes an Envoy bootstrap as a native configuration file, and says what became of each key.
    Convert {
        /// The Envoy file, of v2 or v3, YAML or JSON.
        file: PathBuf,
    },
    /// What the running agent does, where, and why.
    Status(Output),
    /// Whether new connections should come to this node: exit code 0, or 1 with the reason. For the track script of a VIP.
    Ready,
    /// The backends and the connections that they got, by the rung that carried them.
    Backends(Output),
    /// The connections that are open.
    Flows {
        #[command(flatten)]
        filter: FlowFilter,
        #[command(flatten)]
        output: Output,
    },
    /// The BPF maps, decoded; works with the agent down.
    Maps {
        #[command(subcommand)]
        command: Option<Maps>,
    },
    /// What would happen to a packet, step by step, against the live maps.
    Explain {
        #[command(flatten)]
        packet: Packet,
        #[command(flatten)]
        output: Output,
    },
    /// Has a backend, or with --all the node, take no new connections; what is open is reset after the drain timeout.
    Drain {
        #[command(flatten)]
        what: Drained,
        /// Also the last healthy backend of its cluster.
        #[arg(long, requires = "backend")]
        force: bool,
    },
    /// Takes a drain back.
    Undrain {
        #[command(flatten)]
        what: Drained,
    },
    /// Has the agent open its access logs anew, after a rotation has renamed them. As SIGUSR1 does.
    ReopenLogs,
    /// Takes programs, links and maps away; kernel flows end.
    Unload,
}

/// What is drained.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub struct Drained {
    /// The backend's address and port, as `headgate backends` shows them.
    #[arg(value_name = "IP:PORT", required_unless_present = "all", conflicts_with = "all")]
    pub backend: Option<SocketAddr>,
    /// Of this cluster alone, where several have it.
    #[arg(long, value_name = "NAME", requires = "backend")]
    pub cluster: Option<String>,
    /// The node: `/ready` says 503, so that VIP and upstream balancers go elsewhere. Connections that come all the same are
    /// served by the proxy.
    #[arg(long)]
    pub all: bool,
}

#[derive(Debug, Args)]
pub struct Run {
    /// The configuration file.
    #[arg(short = 'c', long, value_name = "FILE")]
    pub config: PathBuf,
    /// Overrides `datapath.mode` of the file.
    #[arg(long, value_name = "MODE")]
    pub datapath: Option<ModeArgument>,
    /// Where the last good endpoints of DNS discovery are kept, for a start while DNS is down.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/headgate")]
    pub state_dir: PathBuf,
    /// The file with the name servers, read again when it changes.
    #[arg(long, value_name = "FILE", default_value = "/etc/resolv.conf")]
    pub resolv_conf: PathBuf,
    /// The node that this runs on, as endpoints name theirs; by default $NODE_NAME or the host's name.
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    /// The zone of that node, as endpoints name theirs; by default $NODE_ZONE.
    #[arg(long, value_name = "NAME")]
    pub node_zone: Option<String>,
    /// Read the configuration file again when its content changes, as with SIGHUP. What the path leads to counts, so that a
    /// mounted ConfigMap is followed.
    #[arg(long)]
    pub watch_config: bool,
    /// On SIGTERM, go at once and leave programs, links and maps to the next agent.
    #[arg(long)]
    pub leave_datapath: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ModeArgument {
    Auto,
    Xdp,
    Tc,
    Proxy,
}

impl From<ModeArgument> for Mode {
    fn from(mode: ModeArgument) -> Self {
        match mode {
            ModeArgument::Auto => Self::Auto,
            ModeArgument::Xdp => Self::Xdp,
            ModeArgument::Tc => Self::Tc,
            ModeArgument::Proxy => Self::Proxy,
        }
    }
}

#[derive(Clone, Copy, Debug, Args)]
pub struct Output {
    /// JSON for scripts instead of a table.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum Maps {
    /// Names, kinds, sizes.
    List(Output),
    /// The entries of a map.
    Dump {
        /// The map's name, as `maps list` shows it.
        name: String,
        #[command(flatten)]
        output: Output,
    },
}
