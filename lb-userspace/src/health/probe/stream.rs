//! The bytes under HTTP and TLS, bounded and looked at.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Bytes of an answer beside its body: handshakes, heads, framing. What an endpoint can send without end and
/// without the libraries' bounds, such as 1xx answers and HTTP/2 settings, ends here.
const OVERHEAD: usize = 256 << 10;

/// A connection in plain text or with TLS.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A TCP connection from which no more than a limit is read.
pub(super) struct Stream {
    tcp: TcpStream,
    meter: Meter,
}

/// What was read from a [`Stream`].
#[derive(Clone)]
pub(super) struct Meter(Arc<Mutex<Seen>>);

#[derive(Clone, Copy)]
pub(super) struct Seen {
    limit: usize,
    bytes: usize,
    /// The first ones, enough to tell protocols apart.
    first: [u8; 9],
}

impl Stream {
    /// For an answer of which `body` bytes are looked at.
    pub(super) fn new(tcp: TcpStream, body: usize) -> (Self, Meter) {
        let seen = Seen { limit: OVERHEAD.saturating_add(body), bytes: 0, first: [0; 9] };
        let meter = Meter(Arc::new(Mutex::new(seen)));
        (Self { tcp, meter: meter.clone() }, meter)
    }
}

impl Meter {
    pub(super) fn seen(&self) -> Seen {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An error if that is more than the limit.
    fn add(&self, bytes: &[u8]) -> io::Result<()> {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = seen.bytes.min(seen.first.len());
        let add = bytes.len().min(seen.first.len() - at);
        seen.first[at..at + add].copy_from_slice(&bytes[..add]);
        seen.bytes += bytes.len();
        seen.too_much().map_or(Ok(()), |reason| Err(io::Error::other(reason)))
    }
}

impl Seen {
    /// That more came than the limit.
    pub(super) fn too_much(&self) -> Option<String> {
        (self.bytes > self.limit).then(|| format!("the answer takes more than {} KiB", self.limit >> 10))
    }

    /// How the answer begins, if not as one in HTTP/1 or HTTP/2 does.
    pub(super) fn other_protocol(&self, http2: bool) -> Option<&'static str> {
        let first = &self.first[..self.bytes.min(self.first.len())];
        if self.tls() {
            return None;
        }
        if first.starts_with(&TLS_ALERT) {
            return Some("the answer is TLS");
        }
        match http2 {
            false if self.http2_settings() => Some("the answer is HTTP/2, not HTTP/1.1"),
            true if first.starts_with(b"HTTP/1.") => Some("the answer is HTTP/1.1, not HTTP/2"),
            true if first.len() == self.first.len() && !self.http2_settings() => {
                Some("the answer is not HTTP/2")
            }
            _ => None,
        }
    }

    /// The answer begins as HTTP in plain text.
    pub(super) fn plain_http(&self) -> bool {
        self.first.starts_with(b"HTTP/1.") || self.http2_settings()
    }

    /// A handshake record, so that what these bytes carry is not to be seen here.
    fn tls(&self) -> bool {
        self.first[..2] == [22, 3]
    }

    /// The frame that HTTP/2 begins with: 24 bits of length, type 4, no flags, stream 0.
    fn http2_settings(&self) -> bool {
        self.bytes >= self.first.len() && self.first[0] == 0 && self.first[3..] == [4, 0, 0, 0, 0, 0]
    }
}

/// A record of type alert, of version 3.x.
const TLS_ALERT: [u8; 2] = [21, 3];

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.tcp).poll_read(cx, buffer);
        self.meter.add(&buffer.filled()[before..])?;
        result
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
