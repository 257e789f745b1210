//! One element of `static_resources.listeners`.

use super::import::Import;
use super::message::{self, Message};
use super::schema::{DURATION, Field, KEEPALIVE, Kind, SOCKET_OPTIONS, checked, ignored, read, refused};
use super::tcp_proxy::{self, TcpProxy};
use super::{access_log, address, extension, transport, value};
use crate::config::listener::ListenerDraft;
use crate::config::tree::{Entry, Located};
use crate::model::AccessLog;

const OWN_SOCKETS: &str = "Headgate sets up its sockets itself";
const BUFFERS: &str = "the kernel path buffers nothing, and the proxy leaves buffers to the kernel";
const NO_FILTERS: &str = "no listener filter has to be waited for";
const ONE_CHAIN: &str = "Headgate serves every connection of a listener alike";
const BIND: &str =
    "a listener without a port of its own takes redirected connections, which Headgate does not";

const LISTENER: &[Field] = &[
    read("name"),
    read("address"),
    refused("additional_addresses", "give each address a listener of its own"),
    ignored("stat_prefix", Kind::Text, "the statistics of a listener are named by its address"),
    ignored("stats_matcher", Kind::Mapping, "every statistic is shown"),
    read("filter_chains"),
    refused("fcds_config", "only filter chains of the file are supported"),
    refused("filter_chain_matcher", ONE_CHAIN),
    refused("use_original_dst", "redirected connections are not supported"),
    read("default_filter_chain"),
    ignored("per_connection_buffer_limit_bytes", Kind::U32, BUFFERS),
    ignored("per_connection_buffer_high_watermark_timeout", DURATION, BUFFERS),
    ignored("metadata", Kind::Mapping, "nothing reads it"),
    read("deprecated_v1"),
    ignored("drain_type", Kind::Word(&["DEFAULT", "MODIFY_ONLY"]), "Headgate drains on SIGTERM alone"),
    read("listener_filters"),
    ignored("listener_filters_timeout", DURATION, NO_FILTERS),
    ignored("continue_on_listener_filters_timeout", Kind::Bool, NO_FILTERS),
    refused("transparent", "transparent proxying is not supported yet"),
    ignored(
        "freebind",
        Kind::Bool,
        "Headgate always listens on addresses that the node has not got yet, too",
    ),
    ignored("socket_options", SOCKET_OPTIONS, OWN_SOCKETS),
    ignored("tcp_fast_open_queue_length", Kind::U32, OWN_SOCKETS),
    ignored(
        "traffic_direction",
        Kind::Word(&["UNSPECIFIED", "INBOUND", "OUTBOUND"]),
        "Headgate drains all listeners together",
    ),
    refused("udp_listener_config", "UDP is not supported yet"),
    refused("api_listener", "only listeners on addresses are supported"),
    refused("internal_listener", "only listeners on addresses are supported"),
    ignored("connection_balance_config", Kind::Mapping, "the kernel spreads the connections over the CPUs"),
    ignored("reuse_port", Kind::Bool, OWN_SOCKETS),
    ignored("enable_reuse_port", Kind::Bool, OWN_SOCKETS),
    read("access_log"),
    ignored("tcp_backlog_size", Kind::U32, OWN_SOCKETS),
    ignored("max_connections_to_accept_per_socket_event", Kind::Range(1, u32::MAX as u64), OWN_SOCKETS),
    read("bind_to_port"),
    ignored("enable_mptcp", Kind::Bool, "clients fall back to plain TCP"),
    ignored("ignore_global_conn_limit", Kind::Bool, "there is no limit of all listeners together"),
    ignored("bypass_overload_manager", Kind::Bool, "there is no overload manager"),
    ignored("tcp_keepalive", KEEPALIVE, OWN_SOCKETS),
];

const DEPRECATED_V1: &[Field] = &[read("bind_to_port")];

const FILTER_CHAIN: &[Field] = &[
    read("filter_chain_match"),
    read("filters"),
    refused("tls_context", transport::TLS),
    refused("use_proxy_proto", "the PROXY protocol is not supported yet"),
    ignored("metadata", Kind::Mapping, "nothing reads it"),
    read("transport_socket"),
    ignored(
        "transport_socket_connect_timeout",
        DURATION,
        "plain TCP has no handshake after the connection's",
    ),
    ignored("name", Kind::Text, "a listener has only one filter chain"),
];

const NO_MATCH: &str = "matching connections to filter chains is not supported";

const FILTER_CHAIN_MATCH: &[Field] = &[
    refused("destination_port", NO_MATCH),
    refused("prefix_ranges", NO_MATCH),
    refused("address_suffix", NO_MATCH),
    refused("suffix_len", NO_MATCH),
    refused("direct_source_prefix_ranges", NO_MATCH),
    read("source_type"),
    refused("source_prefix_ranges", NO_MATCH),
    refused("source_ports", NO_MATCH),
    refused("server_names", "matching on the TLS server name (SNI) is not supported"),
    refused("transport_protocol", NO_MATCH),
    refused("application_protocols", NO_MATCH),
];

const FILTER: &[Field] = &[
    read("name"),
    read("typed_config"),
    read("config"),
    refused("config_discovery", "only configuration of the file is supported"),
];

const LISTENER_FILTER: &[Field] = &[
    read("name"),
    read("typed_config"),
    read("config"),
    refused("config_discovery", "only configuration of the file is supported"),
    checked("filter_disabled", Kind::Mapping),
];

/// A listener and what the policies of its clusters depend on.
pub(super) struct Imported<'a> {
    pub(super) draft: ListenerDraft,
    /// Its `hash_policy.source_ip`.
    pub(super) source_ip: Option<Entry<'a>>,
}

pub(super) fn read_listener<'a>(entry: &Entry<'a>, import: &mut Import<'_>) -> Option<Imported<'a>> {
    let fields = message::read(entry, LISTENER, import)?;
    bind_to_port(&fields, import);
    if let Some(filters) = fields.get("listener_filters") {
        for filter in message::repeated(filters, import) {
            listener_filter(&filter, import);
        }
    }
    let address = match fields.get("address") {
        None => {
            import.error(entry, "needs an address");
            None
        }
        Some(at) => address::socket_address(at, import).map(|address| at.at(address)),
    };
    let name = match fields.get("name") {
        Some(name) if !message::is_empty_text(name) => {
            let text = name.name(import.report);
            import.honour(name);
            text
        }
        // What Envoy's statistics call it.
        _ => address.as_ref().map(|address| Located {
            value: address.value.to_string().replace(':', "_"),
            place: address.place,
            path: address.path.clone(),
        }),
    };
    let own_logs = fields.get("access_log").map(|logs| listener_logs(logs, import)).unwrap_or_default();
    let proxy = filter_chain(entry, &fields, import)?;
    let access_logs = proxy.access_logs.into_iter().chain(own_logs).collect();
    Some(Imported {
        draft: ListenerDraft {
            name,
            address,
            clusters: proxy.clusters,
            stat_prefix: proxy.stat_prefix,
            idle_timeout: proxy.idle_timeout,
            connect_attempts: Some(proxy.connect_attempts),
            max_connection_duration: proxy.max_connection_duration,
            access_logs: Some(access_logs),
        },
        source_ip: proxy.source_ip,
    })
}

fn bind_to_port(fields: &Message<'_>, import: &mut Import<'_>) {
    let old = fields.get("deprecated_v1").and_then(|entry| message::read(entry, DEPRECATED_V1, import));
    let old = old.as_ref().and_then(|fields| fields.get("bind_to_port"));
    for entry in [fields.get("bind_to_port"), old].into_iter().flatten() {
        match value::boolean(entry, import) {
            Some(true) => import.honour(entry),
            Some(false) => import.refuse(entry, BIND),
            None => {}
        }
    }
}

/// The logs of a listener, which Envoy writes when a connection ends, as Headgate does those of `tcp_proxy`.
fn listener_logs(entry: &Entry<'_>, import: &mut Import<'_>) -> Vec<AccessLog> {
    let logs = access_log::read_all(entry, import);
    if !logs.is_empty() {
        import.approximate(entry, "written with the access logs of tcp_proxy");
    }
    logs.into_iter()
        .map(|log| AccessLog {
            path: log.path,
            format: log.format,
            flush_interval: None,
            on_connect: false,
            on_start: false,
        })
        .collect()
}

fn listener_filter(entry: &Entry<'_>, import: &mut Import<'_>) {
    let Some(fields) = message::read(entry, LISTENER_FILTER, import) else { return };
    let Some(extension) = extension::read(entry, &fields, import) else { return };
    let kind = extension.kind;
    let is = |part: &str, message: &str| kind.contains(part) || kind.ends_with(message);
    if is("tls_inspector", ".TlsInspector") || is("http_inspector", ".HttpInspector") {
        import.ignore(&extension.place, "nothing matches on what it finds");
    } else if is("proxy_protocol", ".ProxyProtocol") {
        import.refuse(&extension.place, "the PROXY protocol is not supported yet");
    } else if is("original_dst", ".OriginalDst") || is("original_src", ".OriginalSrc") {
        import.refuse(&extension.place, "redirected connections are not supported");
    } else {
        import.refuse(&extension.place, format!("the listener filter {kind} is not supported"));
    }
}

/// The only filter chain.
fn filter_chain<'a>(
    entry: &Entry<'a>,
    fields: &Message<'a>,
    import: &mut Import<'_>,
) -> Option<TcpProxy<'a>> {
    let mut chains =
        fields.get("filter_chains").map(|entry| message::repeated(entry, import)).unwrap_or_default();
    chains.extend(fields.get("default_filter_chain").cloned());
    let [chain] = chains.as_slice() else {
        match chains.get(1) {
            None => import.error(entry, "needs filter_chains, with one of them"),
            Some(second) => import.refuse(second, format!("a second filter chain: {ONE_CHAIN}")),
        }
        return None;
    };
    let fields = message::read(chain, FILTER_CHAIN, import)?;
    if let Some(entry) = fields.get("filter_chain_match")
        && let Some(fields) = message::read(entry, FILTER_CHAIN_MATCH, import)
        && let Some(kind) = fields.get("source_type")
    {
        match value::word(kind, &["ANY", "SAME_IP_OR_LOOPBACK", "EXTERNAL"], import) {
            Some(0) => import.honour(kind),
            Some(_) => import.refuse(kind, NO_MATCH),
            None => {}
        }
    }
    if let Some(socket) = fields.get("transport_socket") {
        transport::check(socket, import);
    }
    let filters = fields.get("filters").map(|entry| message::repeated(entry, import)).unwrap_or_default();
    if filters.is_empty() {
        import.refuse(chain, "no filter, so that Envoy closes every connection: remove the listener");
    }
    let mut proxy = None;
    for item in &filters {
        let Some(found) = filter(item, import) else { continue };
        if proxy.replace(found).is_some() {
            import.error(item, "a second tcp_proxy: it is the last filter of a chain");
        }
    }
    proxy
}

/// The filter, if it is `tcp_proxy`.
fn filter<'a>(entry: &Entry<'a>, import: &mut Import<'_>) -> Option<TcpProxy<'a>> {
    let fields = message::read(entry, FILTER, import)?;
    if let Some(name) = fields.get("name") {
        value::nonempty(name, import)?;
    } else {
        import.error(entry, "needs a name");
    }
    if fields.get("typed_config").is_none() && fields.get("config").is_none() {
        import.error(entry, "needs a typed_config");
        return None;
    }
    let extension = extension::read(entry, &fields, import)?;
    match (extension.kind, &extension.config) {
        (
            "envoy.tcp_proxy"
            | "envoy.filters.network.tcp_proxy"
            | "envoy.config.filter.network.tcp_proxy.v2.TcpProxy"
            | "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            Some(config),
        ) => {
            import.honour(&extension.place);
            tcp_proxy::read_filter(config, import)
        }
        (other, _) => {
            let why = match other {
                kind if kind.contains("http_connection_manager") => "HTTP filters are not supported",
                kind if kind.contains("rbac") => "access rules (RBAC) are not supported",
                _ => "it is not supported, only tcp_proxy is",
            };
            import.refuse(&extension.place, format!("the filter {other}: {why}"));
            None
        }
    }
}
