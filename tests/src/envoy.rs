//! The real Envoy: as the ingress gateway in a backend's namespace, with TLS, HTTP/1.1 and HTTP/2, WebSocket, or with
//! any other file.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::app;
use crate::cmd::wait_for;
use crate::netns::Namespace;
use crate::tls::Identity;
use crate::websocket;

/// Where it listens, on every address of both families, as an Istio ingress gateway does.
pub const PORT: u16 = 8443;

/// A running Envoy. As a gateway it passes `/echo` on to a WebSocket server and all else to the
/// [application](app::App), both in its own namespace.
#[derive(Debug)]
pub struct Envoy {
    child: Child,
    directory: PathBuf,
}

impl Envoy {
    /// Starts it and waits until it listens.
    pub fn start(namespace: &Namespace, identity: &Identity) -> Result<Self> {
        let own = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        Self::start_with(namespace, &config(identity).to_string(), &own.map(|ip| SocketAddr::new(ip, PORT)))
    }

    /// The same with any bootstrap file, and until it listens at these addresses.
    pub fn start_with(namespace: &Namespace, config: &str, listens: &[SocketAddr]) -> Result<Self> {
        let binary = binary()?;
        let directory = std::env::temp_dir().join(format!("{}-envoy", namespace.name()));
        fs::create_dir_all(&directory)?;
        fs::write(directory.join("envoy.yaml"), config)?;
        let log = fs::File::create(directory.join("log"))?;
        let child = namespace
            .command(binary.to_str().context("a path that is not UTF-8")?)
            .arg("-c")
            .arg(directory.join("envoy.yaml"))
            .args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", binary.display()))?;
        let mut envoy = Self { child, directory };
        envoy.wait_ready(namespace, listens).with_context(|| format!("Envoy's log:\n{}", envoy.log()))?;
        Ok(envoy)
    }

    /// What it printed: warnings and errors.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    fn wait_ready(&mut self, namespace: &Namespace, listens: &[SocketAddr]) -> Result<()> {
        wait_for("Envoy listens", Duration::from_secs(20), || {
            if let Some(status) = self.child.try_wait()? {
                // Asking on would only find nobody.
                return Ok(Err(anyhow::anyhow!("it ended with {status}")));
            }
            for address in listens {
                namespace.within(|| TcpStream::connect(address))??;
            }
            Ok(Ok(()))
        })?
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// `$ENVOY`, or the one that `cargo xtask setup` unpacks for this clone.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("ENVOY") {
        return Ok(path.into());
    }
    // At run time: with a target directory shared by several clones, cargo takes the one's build for the other's.
    let tests =
        std::env::var_os("CARGO_MANIFEST_DIR").context("started without cargo: name the Envoy in $ENVOY")?;
    let binary = Path::new(&tests).join("../target/tools/envoy/envoy/_bin/envoy");
    ensure!(binary.is_file(), "{} is missing: `cargo xtask setup` installs it", binary.display());
    Ok(binary)
}

/// A bootstrap file: one listener, two clusters. Envoy's own time limits for whole requests (15 s) are off, since
/// the tests hold streams for as long as they like.
fn config(identity: &Identity) -> Value {
    let manager = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let tls = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
    let router = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
    let route = |prefix: &str, cluster: &str| json!({ "match": { "prefix": prefix }, "route": { "cluster": cluster, "timeout": "0s" } });
    let cluster = |name: &str, port: u16| {
        let address = json!({ "socket_address": { "address": "127.0.0.1", "port_value": port } });
        json!({
            "name": name,
            "connect_timeout": "5s",
            "load_assignment": {
                "cluster_name": name,
                "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address } }] }],
            },
        })
    };
    let http = json!({
        "@type": manager,
        "stat_prefix": "ingress",
        "codec_type": "AUTO",
        "upgrade_configs": [{ "upgrade_type": "websocket" }],
        "http_filters": [{ "name": "envoy.filters.http.router", "typed_config": { "@type": router } }],
        "route_config": { "virtual_hosts": [{
            "name": "all",
            "domains": ["*"],
            "routes": [route("/echo", "echo"), route("/", "app")],
        }] },
    });
    let certificate = json!({
        "certificate_chain": { "inline_string": identity.certificate },
        "private_key": { "inline_string": identity.key },
    });
    let transport = json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": tls,
            "common_tls_context": { "alpn_protocols": ["h2", "http/1.1"], "tls_certificates": [certificate] },
        },
    });
    json!({ "static_resources": {
        "listeners": [{
            "name": "https",
            "address": { "socket_address": { "address": "::", "port_value": PORT, "ipv4_compat": true } },
            "filter_chains": [{
                "filters": [{ "name": "http", "typed_config": http }],
                "transport_socket": transport,
            }],
        }],
        "clusters": [cluster("app", app::PORT), cluster("echo", websocket::PORT)],
    } })
}
