//! A Kubernetes API server that does what a test says: it has EndpointSlices, Services, Nodes and Namespaces, lists and
//! watches as the real one does, fails in the ways the real one does, and records what it was asked.
//!
//! It speaks HTTPS (HTTP/1.1 and HTTP/2) with a certificate of an authority of its own, and knows one bearer token.
//! What it answers follows the "Kubernetes API Concepts" of the Kubernetes documentation, as a server without
//! streaming lists (the feature `WatchList`), without server-side printing (`Table`), and with JSON alone.

mod documents;
mod faults;
mod files;
mod objects;
mod requests;
mod resource;
mod routes;
mod selection;
mod server;
mod status;
mod store;
mod watch;

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustls::ServerConfig;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};

pub use self::faults::Failure;
pub use self::files::{Access, Kubeconfig, ServiceAccount};
pub use self::objects::{Endpoint, Port, Slice};
pub use self::requests::{Query, Request, Token};
pub use self::resource::{Resource, Verb};
pub use self::status::USER;

use self::faults::Failing;
use self::server::{Serving, tls_config};
use self::store::{Key, Store};
use self::watch::Watches;
use crate::cmd::wait_for;
use crate::netns::Namespace;
use crate::tls::Authority;
use crate::topology::{TEST_PREFIX, unique_name};

/// Far above what any client takes to come back.
const SOON: Duration = Duration::from_secs(60);

/// A running server. Dropping it closes its connections.
#[derive(Debug)]
pub struct KubeApi {
    /// Where it listens; the same after [`KubeApi::restart`].
    pub address: SocketAddr,
    authority: Authority,
    tls: Arc<ServerConfig>,
    shared: Arc<Shared>,
    serving: Option<Serving>,
    runtime: Runtime,
}

/// What the server's threads and the test have in common.
#[derive(Debug)]
struct Shared {
    address: SocketAddr,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    store: Store,
    watches: Watches,
    requests: Vec<Request>,
    /// The right one.
    token: String,
    forbidden: BTreeSet<(Verb, Resource)>,
    failing: Option<Failing>,
}

impl KubeApi {
    /// Starts it in `namespace` on an address of it, with no objects; port 0 is any free one.
    pub fn start(namespace: &Namespace, address: SocketAddr) -> Result<Self> {
        Self::start_on(namespace.within(runtime)??, address)
    }

    /// The same where the test itself runs.
    pub fn start_here(address: SocketAddr) -> Result<Self> {
        Self::start_on(runtime()?, address)
    }

    fn start_on(runtime: Runtime, address: SocketAddr) -> Result<Self> {
        let authority = Authority::new(&format!("{}-kube", unique_name(TEST_PREFIX)))?;
        let names = vec![address.ip().to_string(), "kubernetes.default.svc".to_owned()];
        let tls = tls_config(&authority.issue(names)?)?;
        let listener = listen(&runtime, address)?;
        let address = listener.local_addr()?;
        let state = State {
            store: Store::new(),
            watches: Watches::default(),
            requests: Vec::new(),
            token: "token-of-headgate".to_owned(),
            forbidden: BTreeSet::new(),
            failing: None,
        };
        let shared = Arc::new(Shared { address, state: Mutex::new(state) });
        let mut api = Self { address, authority, tls, shared, serving: None, runtime };
        api.serve(listener);
        Ok(api)
    }

    fn serve(&mut self, listener: TcpListener) {
        let _context = self.runtime.enter();
        self.serving = Some(Serving::start(listener, self.tls.clone(), self.shared.clone()));
    }

    /// For a client with the token that is right now.
    pub fn access(&self, namespace: &str) -> Result<Access> {
        Ok(Access {
            address: self.address,
            authority: fs::read_to_string(self.authority.file())?,
            token: self.shared.lock().token.clone(),
            namespace: namespace.to_owned(),
        })
    }

    /// Creates or replaces a slice.
    pub fn put_slice(&self, slice: &Slice) -> Result<()> {
        self.put(Resource::EndpointSlices, slice.json())
    }

    pub fn delete_slice(&self, namespace: &str, name: &str) -> Result<()> {
        self.delete(Resource::EndpointSlices, namespace, name)
    }

    /// Creates or replaces a headless Service with these TCP ports.
    pub fn put_service(&self, namespace: &str, name: &str, ports: &[(&str, u16)]) -> Result<()> {
        self.put(Resource::Services, objects::service(namespace, name, ports))
    }

    pub fn delete_service(&self, namespace: &str, name: &str) -> Result<()> {
        self.delete(Resource::Services, namespace, name)
    }

    /// Creates or replaces a node in a zone.
    pub fn put_node(&self, name: &str, zone: &str) -> Result<()> {
        self.put(Resource::Nodes, objects::node(name, zone))
    }

    /// Creates or replaces an object with any fields, also with such as no real server has. Its namespace comes with
    /// it.
    pub fn put(&self, resource: Resource, object: Value) -> Result<()> {
        let mut state = self.shared.lock();
        let State { store, watches, .. } = &mut *state;
        if let Some(name) = object["metadata"]["namespace"].as_str() {
            let namespaces = Resource::Namespaces;
            let key = Key { resource: namespaces, namespace: String::new(), name: name.to_owned() };
            if store.get(&key).is_none() {
                watches.tell(store.put(namespaces, objects::namespace(name))?);
            }
        }
        watches.tell(store.put(resource, object)?);
        Ok(())
    }

    fn delete(&self, resource: Resource, namespace: &str, name: &str) -> Result<()> {
        let key = Key { resource, namespace: namespace.to_owned(), name: name.to_owned() };
        let mut state = self.shared.lock();
        let State { store, watches, .. } = &mut *state;
        watches.tell(store.delete(key)?);
        Ok(())
    }

    /// So many changes of objects that nobody here asks for: versions grow, and no watch hears of it.
    pub fn change_others(&self, changes: u64) {
        self.shared.lock().store.pass(changes);
    }

    /// Tells running watches that take bookmarks which version they are at. The real server does so each minute.
    pub fn bookmark(&self) {
        let state = self.shared.lock();
        state.watches.bookmark(state.store.version());
    }

    /// The newest version.
    pub fn version(&self) -> u64 {
        self.shared.lock().store.version()
    }

    /// Every request so far, the oldest first.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.lock().requests.clone()
    }

    /// How many watches run.
    pub fn watches(&self, resource: Resource) -> usize {
        self.shared.lock().watches.count(resource)
    }

    /// Until so many run.
    pub fn wait_watches(&self, resource: Resource, wanted: usize) -> Result<()> {
        wait_for(&format!("{wanted} watches of {resource:?}"), SOON, || {
            let now = self.watches(resource);
            ensure!(now == wanted, "there are {now}; requests: {:#?}", self.requests());
            Ok(())
        })
    }
}

impl Drop for KubeApi {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("the API server ended badly: {error:#}");
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One thread, which is started at once and so in the namespace of whoever calls this.
fn runtime() -> Result<Runtime> {
    Ok(Builder::new_multi_thread().worker_threads(1).thread_name("kube-api").enable_all().build()?)
}

/// On the runtime's thread, which is where the namespace is.
fn listen(runtime: &Runtime, address: SocketAddr) -> Result<TcpListener> {
    let listener = runtime.block_on(runtime.spawn(TcpListener::bind(address)))?;
    listener.with_context(|| format!("cannot listen on {address}"))
}
