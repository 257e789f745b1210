//! One request over an HTTP connection of its own, without tasks.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::rt::Executor;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;

use super::stream::Duplex;

/// Bytes of an answer's head, and of what is read ahead.
const MAX_HEAD: usize = 16 << 10;
const MAX_HEADERS: usize = 100;
/// Bytes of a body on their way over HTTP/2: what the protocol has without negotiation.
const WINDOW: u32 = 65_535;

/// A connection, driven while something is awaited of it. Dropping it closes it.
pub(super) struct Connection {
    sender: Sender,
    background: Background,
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Connection {
    pub(super) async fn new(stream: Box<dyn Duplex>, http2: bool) -> hyper::Result<Self> {
        let stream = TokioIo::new(stream);
        let (spawner, spawned) = mpsc::unbounded_channel();
        let mut background = Background { running: Vec::with_capacity(2), spawned };
        let sender = if http2 {
            let (sender, connection) = http2::Builder::new(Spawner(spawner))
                .initial_stream_window_size(WINDOW)
                .initial_connection_window_size(WINDOW)
                .max_header_list_size(MAX_HEAD as u32)
                .handshake(stream)
                .await?;
            background.run(connection);
            Sender::Http2(sender)
        } else {
            let (sender, connection) = http1::Builder::new()
                .max_buf_size(MAX_HEAD)
                .max_headers(MAX_HEADERS)
                .handshake(stream)
                .await?;
            background.run(connection);
            Sender::Http1(sender)
        };
        Ok(Self { sender, background })
    }

    /// The answer's status and headers.
    pub(super) async fn send(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<Response<Incoming>> {
        match &mut self.sender {
            Sender::Http1(sender) => self.background.beside(sender.send_request(request)).await,
            Sender::Http2(sender) => self.background.beside(sender.send_request(request)).await,
        }
    }

    /// The next piece of the answer's body, or its trailers.
    pub(super) async fn frame(&mut self, body: &mut Incoming) -> hyper::Result<Option<Frame<Bytes>>> {
        self.background.beside(body.frame()).await.transpose()
    }
}

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What goes on in a connection while its answer is awaited.
struct Background {
    running: Vec<Work>,
    spawned: mpsc::UnboundedReceiver<Work>,
}

impl Background {
    /// Errors of the connection come out at the answer as well.
    fn run(&mut self, connection: impl Future<Output = hyper::Result<()>> + Send + 'static) {
        self.running.push(Box::pin(async move {
            let _ = connection.await;
        }));
    }

    async fn beside<F: Future>(&mut self, future: F) -> F::Output {
        let mut future = pin!(future);
        poll_fn(|cx| {
            self.poll(cx);
            future.as_mut().poll(cx)
        })
        .await
    }

    fn poll(&mut self, cx: &mut Context<'_>) {
        self.running.retain_mut(|work| work.as_mut().poll(cx).is_pending());
        while let Poll::Ready(Some(mut work)) = self.spawned.poll_recv(cx) {
            if work.as_mut().poll(cx).is_pending() {
                self.running.push(work);
            }
        }
    }
}

/// Hands what hyper wants to run over to the one who awaits the answer. The work itself has copies of this, so it
/// must not own the list.
#[derive(Clone)]
struct Spawner(mpsc::UnboundedSender<Work>);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Spawner {
    fn execute(&self, future: F) {
        // Refused only when the probe has ended.
        let _ = self.0.send(Box::pin(future));
    }
}
