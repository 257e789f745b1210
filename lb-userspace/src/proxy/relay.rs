//! Moving bytes between two connected sockets, until both directions have ended or one end breaks.

use std::future::pending;
use std::io;
use std::net::Shutdown;
use std::pin::pin;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::task::yield_now;
use tokio::time::sleep;

use super::ProxyListener;
use super::flows::Flow;
use super::pipe::Lease;
use super::stats::{Counter, Tally};

/// Fills of the pipe in a row, before other connections get their turn: at most 4 MiB.
const ROUNDS: u32 = 16;

/// When no pipe could be made, another connection returns its own soon.
const PIPE_RETRY: Duration = Duration::from_millis(10);

/// How a relay ended. What becomes of the sockets is the caller's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Both FINs were passed on, after all the bytes before them.
    Closed {
        backend_last: bool,
    },
    Idle,
    /// It has been open for as long as it may.
    TooLong,
    /// Its backend is not to have it any more.
    Cut,
    ClientReset,
    BackendReset,
}

/// Runs until the connection has ended, also half-closed, or until it has reached one of the listener's limits.
pub(super) async fn relay(
    client: &TcpStream,
    backend: &TcpStream,
    flow: &Flow,
    limits: &ProxyListener,
    tally: &Tally,
) -> End {
    let mut inward = pin!(pump(client, backend, flow, &flow.bytes_in, tally));
    let mut outward = pin!(pump(backend, client, flow, &flow.bytes_out, tally));
    let mut idle = pin!(idle(flow, limits.idle_timeout));
    let mut too_long = pin!(too_long(flow, limits.max_connection_duration));
    let mut cut = pin!(flow.is_cut());
    let (mut inward_ended, mut outward_ended) = (false, false);
    // Set when an end turned out broken on a write: what it had sent before is still to be delivered.
    let mut broken = None;
    let mut backend_last = false;

    while !(inward_ended && outward_ended) {
        let (result, to, reset_from, reset_to) = tokio::select! {
            result = &mut inward, if !inward_ended => {
                inward_ended = true;
                (result, backend, End::ClientReset, End::BackendReset)
            }
            result = &mut outward, if !outward_ended => {
                outward_ended = true;
                backend_last = inward_ended;
                (result, client, End::BackendReset, End::ClientReset)
            }
            // Nobody reads from an end that has sent its FIN, but it can be reset all the same.
            () = errored(client), if inward_ended && broken.is_none() => return End::ClientReset,
            () = errored(backend), if outward_ended && broken.is_none() => return End::BackendReset,
            () = &mut too_long => return broken.unwrap_or(End::TooLong),
            () = &mut idle => return broken.unwrap_or(End::Idle),
            () = &mut cut => return broken.unwrap_or(End::Cut),
        };
        flow.closing();
        match result {
            Ok(()) if broken.is_none() => pass_fin_on(to),
            Ok(()) => {}
            Err(Broken::Source) => return broken.unwrap_or(reset_from),
            Err(Broken::Sink) => {
                broken.get_or_insert(reset_to);
            }
        }
    }
    broken.unwrap_or(End::Closed { backend_last })
}

/// Which socket of a direction has failed.
enum Broken {
    Source,
    Sink,
}

/// Moves bytes until `from` has sent a FIN.
async fn pump(
    from: &TcpStream,
    to: &TcpStream,
    flow: &Flow,
    bytes: &AtomicU64,
    tally: &Tally,
) -> Result<(), Broken> {
    loop {
        from.readable().await.map_err(|_| Broken::Source)?;
        let mut pipe = pipe(tally).await;
        // Until there is nothing to move: only then the pipe goes back and readiness is worth waiting for.
        for round in 1_u32.. {
            match from.try_io(Interest::READABLE, || pipe.fill(from)) {
                Ok(0) => return Ok(()),
                Ok(moved) => flow.add(bytes, moved),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return Err(Broken::Source),
            }
            while !pipe.is_empty() {
                to.async_io(Interest::WRITABLE, || pipe.drain(to)).await.map_err(|_| Broken::Sink)?;
            }
            if round % ROUNDS == 0 {
                yield_now().await;
            }
        }
    }
}

async fn pipe(tally: &Tally) -> Lease<'_> {
    let mut waiting = false;
    loop {
        match tally.shared.pipes.take() {
            Ok(pipe) => return pipe,
            Err(_) if waiting => {}
            Err(error) => {
                log::debug!("no pipe for a transfer, trying on: {error}");
                tally.count(Counter::PipeShortage);
                waiting = true;
            }
        }
        sleep(PIPE_RETRY).await;
    }
}

fn pass_fin_on(to: &TcpStream) {
    // It fails if the peer has reset the connection meanwhile, which shows anyway.
    if let Err(error) = SockRef::from(to).shutdown(Shutdown::Write) {
        log::debug!("passing a FIN on: {error}");
    }
}

/// Resolves once the socket has an error: its peer has reset the connection, or is not reached any more.
pub(super) async fn errored(socket: &TcpStream) {
    // It has no error of its own but the runtime's shutdown.
    drop(socket.ready(Interest::ERROR).await);
}

async fn too_long(flow: &Flow, limit: Option<Duration>) {
    match limit {
        Some(limit) => sleep(limit.saturating_sub(flow.age())).await,
        None => pending().await,
    }
}

async fn idle(flow: &Flow, timeout: Option<Duration>) {
    let Some(timeout) = timeout else { return pending().await };
    while let Some(left) = timeout.checked_sub(flow.idle()).filter(|left| !left.is_zero()) {
        sleep(left).await;
    }
}
