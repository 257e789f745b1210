//! Why a probe failed, in words for whoever looks after the endpoint.

use std::error::Error;
use std::io;
use std::time::Duration;

use super::stream::Seen;
use super::tls;

/// Characters of a reason.
const MAX_REASON: usize = 300;

/// A probe that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub kind: FailureKind,
    /// One short line without control characters, such as `connection refused` or `status 503`.
    pub reason: String,
    /// The endpoint is unhealthy at once, however many failures in a row it otherwise takes.
    pub immediate: bool,
}

/// Where a probe failed. As Envoy tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// It came to no end in time.
    Timeout,
    /// No connection, or it broke, or what came over it is not of the protocol.
    Network,
    /// A valid answer that is not that of a healthy endpoint.
    Answer,
}

impl Failure {
    fn new(kind: FailureKind, reason: &str, immediate: bool) -> Self {
        Self { kind, reason: one_line(reason, MAX_REASON), immediate }
    }

    pub(super) fn timeout(after: Duration) -> Self {
        Self::new(FailureKind::Timeout, &format!("no answer within {after:?}"), false)
    }

    pub(super) fn network(reason: impl AsRef<str>) -> Self {
        Self::new(FailureKind::Network, reason.as_ref(), false)
    }

    /// An answer that counts as any other failure.
    pub(super) fn answer(reason: impl AsRef<str>) -> Self {
        Self::new(FailureKind::Answer, reason.as_ref(), false)
    }

    /// The same failure, and the endpoint is unhealthy at once.
    pub(super) fn at_once(self) -> Self {
        Self { immediate: true, ..self }
    }

    pub(super) fn io(error: &io::Error) -> Self {
        if let Some(error) = inner::<rustls::Error>(error) {
            return Self::network(tls::reason(error));
        }
        match error.kind() {
            io::ErrorKind::TimedOut => Self::new(FailureKind::Timeout, "connection timed out", false),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe => Self::network(CLOSED),
            _ => Self::network(io_text(error)),
        }
    }

    /// An error of the HTTP connection over which `seen` came.
    pub(super) fn http(error: &hyper::Error, http2: bool, seen: Seen) -> Self {
        if let Some(reason) = seen.too_much() {
            return Self::network(reason);
        }
        if let Some(tls) = caused_by::<io::Error>(error).and_then(inner::<rustls::Error>) {
            return Self::network(tls::reason(tls));
        }
        if let Some(reason) = seen.other_protocol(http2) {
            return Self::network(reason);
        }
        if error.is_parse_too_large() {
            return Self::network("the answer's head is longer than 16 KiB or 100 headers");
        }
        if error.is_parse() {
            return Self::network("the answer is not HTTP");
        }
        if let Some(error) = caused_by::<h2::Error>(error) {
            return Self::h2(error);
        }
        if let Some(error) = caused_by::<io::Error>(error) {
            return Self::io(error);
        }
        if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
            return Self::network(CLOSED);
        }
        Self::network(innermost(error).to_string())
    }

    fn h2(error: &h2::Error) -> Self {
        if let Some(error) = error.get_io() {
            return Self::io(error);
        }
        match error.reason() {
            Some(reason) if error.is_remote() => {
                Self::network(format!("the endpoint ends it with {reason:?}"))
            }
            Some(reason) => Self::network(format!("the answer breaks HTTP/2: {reason:?}")),
            None => Self::network(format!("HTTP/2: {error}")),
        }
    }
}

const CLOSED: &str = "closed before the end of the answer";

/// The text without control characters, no longer than `max` characters.
pub(super) fn one_line(text: &str, max: usize) -> String {
    text.chars().filter(|c| !c.is_control() && !is_invisible(*c)).take(max).collect()
}

/// What moves text around where it is shown: separators of lines, and directions of writing (UAX #9).
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// As the kernel calls it, such as `connection refused`.
pub(super) fn io_text(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    chars.next().map(|first| first.to_ascii_lowercase()).into_iter().chain(chars).collect()
}

fn inner<E: Error + 'static>(error: &io::Error) -> Option<&E> {
    error.get_ref()?.downcast_ref()
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

fn caused_by<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    causes(error).find_map(|error| error.downcast_ref())
}

fn innermost<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    causes(error).last().unwrap_or(error)
}
