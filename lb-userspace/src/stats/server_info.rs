//! `/ready` and `/server_info`.

use serde::Serialize;

use crate::stats::page::Page;
use crate::stats::view::{ServerState, ServerView};

/// The state's name; status 200 if it is `LIVE`, else 503.
pub fn ready(server: &ServerView) -> Page {
    let status = if server.state == ServerState::Live { 200 } else { 503 };
    Page::refusal(status, format!("{}\n", server.state.name()))
}

#[derive(Serialize)]
struct ServerInfo<'a> {
    /// Envoy's is `REVISION/VERSION/...`: the number is between the first two slashes here as well.
    version: String,
    state: &'static str,
    uptime_current_epoch: String,
    uptime_all_epochs: String,
    command_line_options: CommandLineOptions<'a>,
    node: Node<'a>,
}

#[derive(Serialize)]
struct CommandLineOptions<'a> {
    concurrency: u64,
    config_path: &'a str,
    drain_time: String,
    mode: &'static str,
}

#[derive(Serialize)]
struct Node<'a> {
    id: &'a str,
    cluster: &'a str,
    user_agent_name: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_agent_build_version: Option<BuildVersion>,
}

#[derive(Serialize)]
struct BuildVersion {
    version: SemanticVersion,
}

#[derive(Serialize)]
struct SemanticVersion {
    major_number: u32,
    minor_number: u32,
    patch: u32,
}

/// Envoy's `admin.v3.ServerInfo` with what there is of it; there is no hot restart, so both uptimes are one.
pub fn server_info(server: &ServerView) -> Page {
    let uptime = format!("{}s", server.uptime.as_secs());
    Page::json(&ServerInfo {
        version: format!("headgate/{}", server.version),
        state: server.state.name(),
        uptime_current_epoch: uptime.clone(),
        uptime_all_epochs: uptime,
        command_line_options: CommandLineOptions {
            concurrency: server.concurrency,
            config_path: &server.config_path,
            drain_time: format!("{}s", server.drain_time.as_secs()),
            mode: "Serve",
        },
        node: Node {
            id: &server.node_id,
            cluster: &server.node_cluster,
            user_agent_name: "headgate",
            user_agent_build_version: build_version(&server.version),
        },
    })
}

fn build_version(version: &str) -> Option<BuildVersion> {
    let mut numbers = version.split(['.', '-', '+']).map(|number| number.parse().ok());
    let mut next = || numbers.next().flatten();
    let version = SemanticVersion { major_number: next()?, minor_number: next()?, patch: next()? };
    Some(BuildVersion { version })
}
