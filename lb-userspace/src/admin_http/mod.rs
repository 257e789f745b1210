//! The admin HTTP port: Envoy's pages for whoever reaches `admin.address`, to look and not to change anything. What
//! changes something goes over the Unix socket.
//!
//! Each connection is bounded in time and memory, all of them in number; the agent is asked for a [`View`] at each
//! request, and the page is made from it beside the agent.

mod deadline;
mod help;
mod refused;
mod routes;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, SERVER, X_CONTENT_TYPE_OPTIONS};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;

use crate::admin_http::deadline::{Deadline, Watched};
use crate::admin_http::routes::{Route, route};
use crate::stats::{Page, Query, View};

/// Bytes of a request's line and headers, and of what is read ahead.
const MAX_HEAD: usize = 16 << 10;
const MAX_HEADERS: usize = 64;

/// What one who asks can cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once; further ones wait to be accepted.
    pub connections: usize,
    /// Requests at once for which the agent is asked and a page made; further ones wait.
    pub views: usize,
    /// From the first byte of a request to the end of its headers, and from the connection to the first byte.
    pub head: Duration,
    /// How long the agent may take.
    pub answer: Duration,
    /// From an answer to the first byte of the next request: so long a reader may take for the answer as well.
    pub idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 64,
            views: 4,
            head: Duration::from_secs(5),
            answer: Duration::from_secs(10),
            idle: Duration::from_secs(60),
        }
    }
}

/// Makes the view, called beside the agent since it may take its time.
pub type ViewSource = Box<dyn FnOnce() -> Result<View> + Send>;

/// A request on its way to the agent.
pub struct ViewRequest {
    only_server: bool,
    reply: oneshot::Sender<Result<ViewSource>>,
}

impl ViewRequest {
    /// Nothing but [`View::server`] is looked at: `/ready` and `/server_info`, which are asked for often.
    pub fn only_server(&self) -> bool {
        self.only_server
    }

    /// Answers it. One who has gone meanwhile is no fault.
    pub fn answer(self, source: Result<ViewSource>) {
        let _ = self.reply.send(source);
    }
}

/// The listening port. Dropping it closes the port and all its connections.
pub struct AdminHttp {
    address: SocketAddr,
    requests: mpsc::Receiver<ViewRequest>,
    accepting: tokio::task::JoinHandle<()>,
}

impl AdminHttp {
    /// Listens on `admin.address`; inside a tokio runtime. With port 0 the kernel chooses one.
    pub fn bind(address: SocketAddr) -> Result<Self> {
        Self::bind_with(address, Limits::default())
    }

    /// The same with other limits.
    pub fn bind_with(address: SocketAddr, limits: Limits) -> Result<Self> {
        let listener = listen(address).map_err(|error| {
            let remedy = match error.kind() {
                ErrorKind::AddrInUse => "stop the process that listens there, or set another `admin.address`",
                ErrorKind::AddrNotAvailable => "set `admin.address` to an address of this node",
                ErrorKind::PermissionDenied => "run as root, or set `admin.address` to a port above 1023",
                _ => "set another `admin.address`",
            };
            anyhow::Error::new(error).context(format!("listening for the admin pages on {address}: {remedy}"))
        })?;
        let address = listener.local_addr().context("the address of the admin port")?;
        let (sender, requests) = mpsc::channel(limits.views.max(1));
        let shared =
            Arc::new(Shared { limits, agent: sender, views: Arc::new(Semaphore::new(limits.views.max(1))) });
        let accepting = tokio::spawn(accept(listener, shared));
        Ok(Self { address, requests, accepting })
    }

    /// Where it listens: where port 0 was asked for, the port that the kernel chose.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next request that somebody still waits for. Dropping the future loses none.
    pub async fn next(&mut self) -> Option<ViewRequest> {
        loop {
            let request = self.requests.recv().await?;
            if !request.reply.is_closed() {
                return Some(request);
            }
        }
    }
}

impl Drop for AdminHttp {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

struct Shared {
    limits: Limits,
    agent: mpsc::Sender<ViewRequest>,
    views: Arc<Semaphore>,
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let limit = shared.limits.connections.max(1);
    // Ends the connections when it is dropped with this task.
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        if connections.len() >= limit {
            connections.join_next().await;
            continue;
        }
        match listener.accept().await {
            Ok((stream, _)) => {
                connections.spawn(serve(stream, Arc::clone(&shared)));
            }
            Err(error) => {
                log::warn!("accepting on the admin port: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Serves a connection until either side ends it, or a deadline passes.
async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    let limits = shared.limits;
    let deadline = Arc::new(Deadline::new(limits.head));
    let io = TokioIo::new(Watched::new(stream, Arc::clone(&deadline), limits.head));
    let service = service_fn(|request: Request<Incoming>| {
        let (shared, deadline) = (Arc::clone(&shared), Arc::clone(&deadline));
        async move {
            // Beyond the agent's limit, so that its end is told to the one who asked.
            deadline.set(limits.answer + limits.head);
            let page = page(&request, &shared).await;
            deadline.await_request(limits.idle);
            Ok::<_, Infallible>(response(page))
        }
    });
    let mut connection = http1::Builder::new();
    connection.max_buf_size(MAX_HEAD).max_headers(MAX_HEADERS).keep_alive(true);
    tokio::select! {
        // One who asks wrongly or goes away bothers nobody else.
        _ = connection.serve_connection(io, service) => {}
        () = deadline.passed() => {}
    }
}

async fn page(request: &Request<Incoming>, shared: &Shared) -> Page {
    let (render, only_server) = match route(request.method(), request.uri().path()) {
        Route::Page(page) => return page,
        Route::View { render, only_server } => (render, only_server),
    };
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let made = tokio::time::timeout(shared.limits.answer, async {
        // It goes along with the work, which goes on when nobody waits for it any more.
        let permit = Arc::clone(&shared.views).acquire_owned().await?;
        let (reply, source) = oneshot::channel();
        shared.agent.send(ViewRequest { only_server, reply }).await.context("the agent is ending")?;
        let source = source.await.context("the agent is ending")??;
        let rendering = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            source().map(|view| render(&view, &query))
        });
        rendering.await?
    });
    match made.await {
        Ok(Ok(page)) => page,
        Ok(Err(error)) => Page::refusal(500, format!("{error:#}\n")),
        Err(_) => Page::refusal(503, "the agent is busy and does not answer: try again\n"),
    }
}

fn response(page: Page) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(page.body)));
    *response.status_mut() = StatusCode::from_u16(page.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(page.content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, max-age=0"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(SERVER, HeaderValue::from_static("headgate"));
    response
}
