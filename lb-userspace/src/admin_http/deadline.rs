//! Until when a connection has to take its next step: the end of a request's headers, the answer, the next request.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::time::Instant;

/// One moment for each connection, moved at each step.
pub(super) struct Deadline {
    until: watch::Sender<Instant>,
    /// The next byte that is read begins a request.
    between_requests: AtomicBool,
}

impl Deadline {
    pub(super) fn new(from_now: Duration) -> Self {
        let until = watch::Sender::new(Instant::now() + from_now);
        Self { until, between_requests: AtomicBool::new(true) }
    }

    pub(super) fn set(&self, from_now: Duration) {
        self.until.send_replace(Instant::now() + from_now);
    }

    /// The answer goes out from now on; so long until the next request begins.
    pub(super) fn await_request(&self, from_now: Duration) {
        self.set(from_now);
        self.between_requests.store(true, Relaxed);
    }

    /// Returns when the deadline passes, wherever it was moved meanwhile.
    pub(super) async fn passed(&self) {
        let mut moved = self.until.subscribe();
        loop {
            let until = *moved.borrow_and_update();
            tokio::select! {
                () = tokio::time::sleep_until(until) => return,
                _ = moved.changed() => {}
            }
        }
    }
}

/// A stream that moves the deadline when a request begins.
pub(super) struct Watched<S> {
    stream: S,
    deadline: Arc<Deadline>,
    head: Duration,
}

impl<S> Watched<S> {
    /// `head`: from a request's first byte to the end of its headers.
    pub(super) fn new(stream: S, deadline: Arc<Deadline>, head: Duration) -> Self {
        Self { stream, deadline, head }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before && self.deadline.between_requests.swap(false, Relaxed) {
            self.deadline.set(self.head);
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
