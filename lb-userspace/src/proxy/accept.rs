//! A listening socket and the task that accepts its connections.

use std::future::poll_fn;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::sleep;

use super::bind::BACKLOG;
use super::connection::serve;
use super::stats::{Counter, ListenerStats, Tally};
use super::{ProxyListener, Shared};

/// A pause after a failed accept(2): what is missing (descriptors, memory) is missing a moment later too.
const PAUSE: Duration = Duration::from_millis(50);

/// One address listened on, until dropped.
pub(super) struct Listening {
    acceptor: Arc<Acceptor>,
    task: AbortHandle,
}

impl Listening {
    pub(super) fn start(socket: TcpListener, listener: ProxyListener, shared: &Arc<Shared>) -> Self {
        let acceptor = Arc::new(Acceptor {
            socket,
            listener: Mutex::new(Some(Arc::new(listener))),
            tally: Tally { shared: Arc::clone(shared), listener: Arc::default() },
            runtime: Handle::current(),
        });
        let task = tokio::spawn(Arc::clone(&acceptor).run()).abort_handle();
        Self { acceptor, task }
    }

    /// For connections accepted from now on.
    pub(super) fn update(&self, listener: ProxyListener) {
        *self.acceptor.listener() = Some(Arc::new(listener));
    }

    pub(super) fn socket(&self) -> &TcpListener {
        &self.acceptor.socket
    }

    /// `None` when it has stopped.
    pub(super) fn stats(&self) -> Option<ListenerStats> {
        let listener = Arc::clone(self.acceptor.listener().as_ref()?);
        let address = self.acceptor.socket.local_addr().unwrap_or(listener.address);
        let counts = self.acceptor.tally.listener.snapshot();
        Some(ListenerStats { name: Arc::clone(&listener.name), address, counts })
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.acceptor.stop();
        self.task.abort();
    }
}

struct Acceptor {
    socket: TcpListener,
    /// `None` once stopped. Held while a connection is accepted and registered, so that there is none in
    /// between when `stop` returns.
    listener: Mutex<Option<Arc<ProxyListener>>>,
    tally: Tally,
    runtime: Handle,
}

impl Acceptor {
    async fn run(self: Arc<Self>) {
        let mut accepting = self.tally.shared.accepting.subscribe();
        if accepting.wait_for(|accepts| *accepts).await.is_err() {
            return;
        }
        let mut failing = false;
        while let Some(result) = poll_fn(|context| self.poll_accept(context)).await {
            let error = match result {
                Ok(()) => {
                    failing = false;
                    continue;
                }
                Err(error) => error,
            };
            self.tally.count(Counter::AcceptError);
            // The client's doing, and over with it.
            if error.kind() == io::ErrorKind::ConnectionAborted {
                continue;
            }
            if !failing {
                failing = true;
                let address = self.socket.local_addr();
                log::warn!("cannot accept connections on {address:?}, trying on: {error}");
            }
            sleep(PAUSE).await;
        }
    }

    /// Accepts one connection; `None` once stopped.
    fn poll_accept(&self, context: &mut Context<'_>) -> Poll<Option<io::Result<()>>> {
        let listener = self.listener();
        let Some(listener) = listener.as_ref() else { return Poll::Ready(None) };
        let accepted = ready!(self.socket.poll_accept(context));
        Poll::Ready(Some(accepted.and_then(|(stream, client)| self.admit(stream, client, listener))))
    }

    /// Admits what waits to be accepted, since closing the socket would reset it, and stops listening.
    fn stop(&self) {
        let mut current = self.listener();
        let Some(listener) = current.take() else { return };
        let _runtime = self.runtime.enter();
        let socket = SockRef::from(&self.socket);
        for _ in 0..=BACKLOG {
            let Ok((stream, client)) = socket.accept() else { break };
            let admitted = stream
                .set_nonblocking(true)
                .and_then(|()| TcpStream::from_std(stream.into()))
                .and_then(|stream| match client.as_socket() {
                    Some(client) => self.admit(stream, client, &listener),
                    None => Err(io::ErrorKind::InvalidData.into()),
                });
            if admitted.is_err() {
                self.tally.count(Counter::AcceptError);
            }
        }
        // The descriptor is the task's too: this ends LISTEN right now (tcp(7); inet_shutdown in the kernel).
        if let Err(error) = socket.shutdown(Shutdown::Read) {
            log::debug!("shutdown of a listening socket: {error}");
        }
    }

    fn admit(&self, stream: TcpStream, client: SocketAddr, listener: &Arc<ProxyListener>) -> io::Result<()> {
        let flow = self.tally.shared.flows.open(client, stream.local_addr()?, listener, &self.tally.shared);
        self.tally.count(Counter::Accepted);
        self.runtime.spawn(serve(flow, Arc::clone(listener), self.tally.clone(), stream));
        Ok(())
    }

    fn listener(&self) -> MutexGuard<'_, Option<Arc<ProxyListener>>> {
        self.listener.lock().expect("no holder panics")
    }
}
