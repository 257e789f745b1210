//! An API server that answers as a test says.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::discovery::tests::Scratch;

/// A longer head of a request is none of ours.
const MAX_HEAD: usize = 16 * 1024;

/// What was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// With the query.
    pub(super) path: String,
    pub(super) token: Option<String>,
}

impl Request {
    pub(super) fn is_watch(&self) -> bool {
        self.path.contains("watch=true")
    }

    pub(super) fn is_list(&self) -> bool {
        self.path.contains("/endpointslices?") && !self.is_watch()
    }
}

pub(super) enum Reply {
    Json(u16, Value),
    Text(u16, String),
    /// Lines as they come, until there are no more.
    Lines(mpsc::UnboundedReceiver<String>),
    /// Says nothing, and keeps the connection.
    Silence,
    Hangup,
}

type Script = Box<dyn FnMut(&Request) -> Reply + Send>;

/// Ends with this value.
pub(super) struct FakeApi {
    port: u16,
    requests: Arc<Mutex<Vec<Request>>>,
    scratch: Scratch,
    _task: JoinSet<()>,
}

impl FakeApi {
    pub(super) async fn start(script: impl FnMut(&Request) -> Reply + Send + 'static) -> Self {
        Self::start_with(None, script).await
    }

    /// With TLS, where there is a certificate for it.
    pub(super) async fn start_with(
        certified: Option<&CertifiedKey<rcgen::KeyPair>>,
        script: impl FnMut(&Request) -> Reply + Send + 'static,
    ) -> Self {
        let tls = certified.map(acceptor);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let mut task = JoinSet::new();
        let script = Arc::new(Mutex::new(Box::new(script) as Script));
        task.spawn(accept(listener, tls, script, Arc::clone(&requests)));
        Self { port, requests, scratch: Scratch::new(), _task: task }
    }

    pub(super) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// The file that the kubeconfig takes the token from.
    pub(super) fn token(&self) -> PathBuf {
        self.scratch.0.join("token")
    }

    /// A kubeconfig with this server.
    pub(super) fn kubeconfig(&self) -> PathBuf {
        kubeconfig(&self.scratch, &format!("http://127.0.0.1:{}", self.port), &certificate().cert.pem())
    }

    /// The same over TLS, with the certificate of an authority in PEM.
    pub(super) fn kubeconfig_with(&self, ca: &str) -> PathBuf {
        kubeconfig(&self.scratch, &format!("https://127.0.0.1:{}", self.port), ca)
    }
}

/// A certificate for the server that is its own authority.
pub(super) fn certificate() -> CertifiedKey<rcgen::KeyPair> {
    generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap()
}

fn acceptor(of: &CertifiedKey<rcgen::KeyPair>) -> TlsAcceptor {
    let key = PrivateKeyDer::try_from(of.signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![of.cert.der().clone()], key)
        .unwrap();
    Arc::new(config).into()
}

/// A kubeconfig in the directory, with a token in a file `token` beside it and an authority in PEM. Without one, all those
/// of the system would be read.
pub(super) fn kubeconfig(scratch: &Scratch, server: &str, ca: &str) -> PathBuf {
    let token = scratch.0.join("token");
    if !token.exists() {
        std::fs::write(&token, "first").unwrap();
    }
    let path = scratch.0.join("ca.pem");
    std::fs::write(&path, ca).unwrap();
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "c", "cluster": { "server": server, "certificate-authority": path } }],
        "users": [{ "name": "u", "user": { "tokenFile": token } }],
        "contexts": [{ "name": "main", "context": { "cluster": "c", "user": "u" } }],
        "current-context": "main",
    });
    let path = scratch.0.join("kubeconfig");
    std::fs::write(&path, config.to_string()).unwrap();
    path
}

async fn accept(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    script: Arc<Mutex<Script>>,
    requests: Arc<Mutex<Vec<Request>>>,
) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (tls, script, requests) = (tls.clone(), Arc::clone(&script), Arc::clone(&requests));
        connections.spawn(async move {
            match tls {
                None => serve(stream, script, requests).await,
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        serve(stream, script, requests).await;
                    }
                }
            }
        });
    }
}

/// One request after the other; ends with the connection.
async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    script: Arc<Mutex<Script>>,
    requests: Arc<Mutex<Vec<Request>>>,
) {
    while let Some(request) = read(&mut stream).await {
        requests.lock().unwrap().push(request.clone());
        let reply = script.lock().unwrap()(&request);
        let sent = match reply {
            Reply::Json(code, body) => answer(&mut stream, code, "application/json", &body.to_string()).await,
            Reply::Text(code, body) => answer(&mut stream, code, "text/html", &body).await,
            Reply::Lines(lines) => send_lines(&mut stream, lines).await,
            Reply::Silence => std::future::pending().await,
            Reply::Hangup => return,
        };
        if sent.is_err() {
            return;
        }
    }
}

async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Option<Request> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() > MAX_HEAD {
            return None;
        }
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).ok()?;
    let path = head.strip_prefix("GET ")?.split(' ').next()?.to_owned();
    let token = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("authorization").then(|| value.trim_start_matches("Bearer ").to_owned())
    });
    Some(Request { path, token })
}

async fn answer(
    stream: &mut (impl AsyncWrite + Unpin),
    code: u16,
    kind: &str,
    body: &str,
) -> std::io::Result<()> {
    let head = format!("HTTP/1.1 {code} X\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(format!("{head}{body}").as_bytes()).await
}

async fn send_lines(
    stream: &mut (impl AsyncWrite + Unpin),
    mut lines: mpsc::UnboundedReceiver<String>,
) -> std::io::Result<()> {
    stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await?;
    while let Some(line) = lines.recv().await {
        stream.write_all(format!("{:x}\r\n{line}\n\r\n", line.len() + 1).as_bytes()).await?;
    }
    stream.write_all(b"0\r\n\r\n").await
}
