//! One connection from its acceptance to its end: finding a backend, then the relay.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::ProxyListener;
use super::backend::{Active, Backend};
use super::flows::{Flow, OpenFlow, Upstream};
use super::relay::{End, errored, relay};
use super::stats::{Counter, Tally};

/// `flow` comes first to be dropped last: a connection that is not open any more has no socket either.
pub(super) async fn serve(flow: OpenFlow, listener: Arc<ProxyListener>, tally: Tally, client: TcpStream) {
    let connected = tokio::select! {
        // Apart from the relay, since an idle connection should not keep room for it.
        connected = Box::pin(connect(&flow, &listener, &tally)) => connected,
        () = errored(&client) => Err(Counter::ClientGone),
    };
    let (backend, _active) = match connected {
        Ok(connected) => connected,
        Err(why) => {
            tally.count(why);
            return reset(&client);
        }
    };
    no_delay(&client);

    let end = relay(&client, &backend, &flow, listener.idle_timeout, &tally).await;
    match end {
        End::Closed | End::Idle => {}
        End::ClientReset => reset(&backend),
        End::BackendReset => reset(&client),
    }
    tally.count(match end {
        End::Closed => Counter::Closed,
        End::Idle => Counter::IdleTimeout,
        End::ClientReset => Counter::ClientReset,
        End::BackendReset => Counter::BackendReset,
    });
}

/// A connection to a backend, or why there is none.
async fn connect(
    flow: &Flow,
    listener: &ProxyListener,
    tally: &Tally,
) -> Result<(TcpStream, Active), Counter> {
    let balancer = &listener.balancer;
    let mut failure = Counter::NoBackend;
    for attempt in 0..balancer.connect_attempts().max(1) {
        let Some(backend) = balancer.pick(flow.client, flow.vip, attempt) else { break };
        match connect_to(&backend, balancer.connect_timeout()).await {
            Ok((stream, upstream)) => {
                flow.established(upstream);
                return Ok((stream, Active::new(backend)));
            }
            Err(why) => {
                tally.count(why);
                // What failed on this node says nothing about the backend.
                if why != Counter::ConnectError {
                    backend.stats.failed();
                }
                failure = Counter::ConnectFailed;
            }
        }
    }
    Err(failure)
}

async fn connect_to(backend: &Backend, limit: Duration) -> Result<(TcpStream, Upstream), Counter> {
    let address = backend.address;
    let connected =
        timeout(limit, TcpStream::connect(address)).await.unwrap_or_else(|elapsed| Err(elapsed.into()));
    connected
        .and_then(|stream| {
            let snat = stream.local_addr()?;
            no_delay(&stream);
            Ok((stream, Upstream { snat, backend: address }))
        })
        .map_err(|error| {
            log::debug!("connecting to backend {address}: {error}");
            match error.kind() {
                // Reset right after the handshake comes to the same: nothing was sent to it yet.
                io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Counter::ConnectRefused,
                io::ErrorKind::TimedOut => Counter::ConnectTimeout,
                io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
                    Counter::ConnectUnreachable
                }
                _ => Counter::ConnectError,
            }
        })
}

/// Both sockets, or Nagle's algorithm would hold back what the other end has sent on purpose.
fn no_delay(socket: &TcpStream) {
    if let Err(error) = socket.set_nodelay(true) {
        log::debug!("TCP_NODELAY: {error}");
    }
}

/// Makes the close that follows a RST instead of a FIN (SO_LINGER with time 0, socket(7)).
fn reset(socket: &TcpStream) {
    if let Err(error) = SockRef::from(socket).set_linger(Some(Duration::ZERO)) {
        log::debug!("SO_LINGER: {error}");
    }
}
