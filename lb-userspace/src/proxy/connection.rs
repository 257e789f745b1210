//! One connection from its acceptance to its end: finding a backend, then the relay.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::ProxyListener;
use super::backend::{Admitted, Backend, Balancer, Connected, Connecting};
use super::flows::{Flow, OpenFlow, Upstream};
use super::relay::{End, errored, relay};
use super::stats::{Counter, Tally};
use crate::access_log::{Close, Flags, Kind, Record, reason};

/// `flow` comes first to be dropped last: a connection that is not open any more has no socket either.
pub(super) async fn serve(flow: OpenFlow, listener: Arc<ProxyListener>, tally: Tally, client: TcpStream) {
    let observer = Arc::clone(&tally.shared.observer);
    observer.tell(&flow.record(Kind::Start));
    let (counter, describe) = carry(&flow, &listener, &tally, client).await;
    tally.count(counter);
    let mut record = flow.record(Kind::End);
    describe(&mut record);
    observer.tell(&record);
}

/// Adds to a record how its connection ended.
type Describe = fn(&mut Record);

/// Carries a connection to its end, and closes it: what that was.
async fn carry(
    flow: &Flow,
    listener: &ProxyListener,
    tally: &Tally,
    client: TcpStream,
) -> (Counter, Describe) {
    let connected = tokio::select! {
        // Apart from the relay, since an idle connection should not keep room for it.
        connected = Box::pin(connect(flow, listener, tally)) => connected,
        () = errored(&client) => Err((Counter::ClientGone, client_reset as Describe)),
    };
    let Upward { stream: backend, .. } = &match connected {
        Ok(connected) => connected,
        Err(why) => {
            flow.settled();
            reset(&client);
            return why;
        }
    };
    no_delay(&client);
    tally.shared.observer.tell(&flow.record(Kind::Connected));
    match relay(&client, backend, flow, listener, tally).await {
        End::Closed { backend_last: false } => (Counter::Closed, |_| {}),
        End::Closed { backend_last: true } => (Counter::Closed, |record| record.backend_last = true),
        End::Idle => {
            reset(&client);
            reset(backend);
            (Counter::IdleTimeout, |record| record.local_close = Some(reason::IDLE_TIMEOUT))
        }
        End::TooLong => {
            reset(&client);
            reset(backend);
            (Counter::MaxDuration, |record| {
                record.flags |= Flags::DT;
                record.local_close = Some(reason::MAX_DURATION);
            })
        }
        End::Cut => {
            reset(&client);
            reset(backend);
            (Counter::Drained, |_| {})
        }
        End::ClientReset => {
            reset(backend);
            (Counter::ClientReset, client_reset)
        }
        End::BackendReset => {
            reset(&client);
            (Counter::BackendReset, |record| {
                record.flags |= Flags::UR;
                record.backend_last = true;
                record.downstream_close = Close::LocalReset;
                record.upstream_close = Close::RemoteReset;
            })
        }
    }
}

fn client_reset(record: &mut Record) {
    record.downstream_close = Close::RemoteReset;
}

/// A connection to a backend. The socket comes first to be dropped first.
struct Upward {
    stream: TcpStream,
    _connected: Connected,
    _admitted: Admitted,
}

/// One of the listener's clusters, by weight.
fn choose(listener: &ProxyListener) -> Option<&Arc<dyn Balancer>> {
    let all: u64 = listener.clusters.iter().map(|(_, weight)| u64::from(*weight)).sum();
    let mut at = fastrand::u64(..all.max(1));
    listener.clusters.iter().find_map(|(cluster, weight)| match at.checked_sub((*weight).into()) {
        Some(left) => {
            at = left;
            None
        }
        None => Some(cluster),
    })
}

/// A connection to a backend, or why there is none.
async fn connect(
    flow: &Flow,
    listener: &ProxyListener,
    tally: &Tally,
) -> Result<Upward, (Counter, Describe)> {
    let no_cluster: Describe = |record| {
        record.flags |= Flags::NC;
        record.local_close = Some(reason::NO_CLUSTER);
    };
    let Some(cluster) = choose(listener) else { return Err((Counter::NoBackend, no_cluster)) };
    flow.routed(cluster.name());
    let mut failure: (Counter, Describe) = (Counter::NoBackend, |record| {
        record.flags |= Flags::UH;
        record.local_close = Some(reason::NO_HEALTHY_UPSTREAM);
    });
    let Some(first) = cluster.pick(flow.client, flow.vip, &[]) else { return Err(failure) };
    let Some(admitted) = Admitted::new(cluster) else {
        return Err((Counter::Overflow, |record| {
            record.flags |= Flags::UO;
            record.local_close = Some(reason::OVERFLOW);
        }));
    };
    let mut next = Some(first);
    for _ in 1..=listener.connect_attempts.unwrap_or_else(|| cluster.connect_attempts()).max(1) {
        let Some(backend) = next.take().or_else(|| cluster.pick(flow.client, flow.vip, &flow.tried_so_far()))
        else {
            break;
        };
        flow.trying(backend.address);
        let began = Instant::now();
        match connect_to(&backend, cluster.connect_timeout()).await {
            Ok((stream, upstream)) => {
                backend.open.attempt_succeeded();
                flow.established(upstream);
                return Ok(Upward { stream, _connected: Connected::new(backend), _admitted: admitted });
            }
            Err(why) => {
                tally.count(why);
                // What failed on this node says nothing about the backend.
                if why != Counter::ConnectError {
                    backend.stats.failed(why == Counter::ConnectTimeout);
                    backend.open.attempt_failed();
                }
                flow.failed(match why {
                    Counter::ConnectRefused => Some(reason::REFUSED),
                    Counter::ConnectUnreachable => Some(reason::NO_ROUTE_TO_HOST),
                    _ => None,
                });
                tally.shared.observer.attempt_failed(&cluster.name(), began.elapsed());
                failure = (Counter::ConnectFailed, |record| {
                    record.flags |= Flags::URX;
                    record.local_close = Some(reason::CONNECT_FAILED);
                });
            }
        }
    }
    Err(failure)
}

async fn connect_to(backend: &Backend, limit: Duration) -> Result<(TcpStream, Upstream), Counter> {
    let address = backend.address;
    let _connecting = Connecting::new(backend);
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
