//! What became of requests.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

/// A request that takes longer has been held up by something: a SYN that is sent again takes a second.
const SLOW: Duration = Duration::from_millis(250);

/// What happened so far.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// Requests that were answered, by the name of the server.
    pub served: BTreeMap<String, u64>,
    /// Connections that were made.
    pub connections: u64,
    /// Requests that were sent a second time: see [`Ended`].
    pub retried: u64,
    pub failures: Vec<Failure>,
    /// The longest time from a request's beginning, including its connect, to its answer.
    pub slowest: Duration,
    /// When the last request ended that took more than a quarter of a second.
    pub last_slow: Option<Instant>,
}

/// A request that was not answered as it should be.
#[derive(Clone, Debug)]
pub struct Failure {
    pub began: Instant,
    pub at: Instant,
    /// The client's address, if it was connected.
    pub client: Option<SocketAddr>,
    pub why: String,
}

impl Record {
    pub fn requests(&self) -> u64 {
        self.served.values().sum()
    }

    /// Requests answered by this server.
    pub fn by(&self, name: &str) -> u64 {
        self.served.get(name).copied().unwrap_or(0)
    }

    /// Writes a request down.
    pub(super) fn note(&mut self, began: Instant, client: Option<SocketAddr>, answer: Result<String>) {
        let at = Instant::now();
        self.slowest = self.slowest.max(at - began);
        if at - began > SLOW {
            self.last_slow = Some(at);
        }
        match answer {
            Ok(name) => *self.served.entry(name).or_default() += 1,
            Err(error) => self.failures.push(Failure { began, at, client, why: format!("{error:#}") }),
        }
    }

    /// Fails if a request has; the error tells how long after `began` each has.
    pub fn require_no_failure(&self, began: Instant) -> Result<()> {
        let failures = self.failures.iter();
        let failures: Vec<_> = failures.map(|failure| failure.text(began)).collect();
        ensure!(failures.is_empty(), "{} requests failed: {failures:#?}", failures.len());
        Ok(())
    }
}

impl Failure {
    /// Its time after `began`, and why.
    pub fn text(&self, began: Instant) -> String {
        let after = self.at.saturating_duration_since(began).as_secs_f64();
        format!("{after:.1} s, from {:?}: {}", self.client, self.why)
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn answers_failures_and_slow_requests_are_told_apart() {
        let mut record = Record::default();
        let client = Some("10.0.0.1:1234".parse().unwrap());
        let began = Instant::now();
        record.note(began, client, Ok("b1".into()));
        assert_eq!((record.by("b1"), record.by("b2"), record.last_slow), (1, 0, None));
        record.require_no_failure(began).unwrap();

        let long_ago = began.checked_sub(2 * SLOW).unwrap();
        record.note(long_ago, client, Err(anyhow!("refused")));
        assert!(record.slowest >= 2 * SLOW && record.last_slow >= Some(began));
        assert_eq!(
            (record.requests(), record.failures[0].began, record.failures[0].client),
            (1, long_ago, client)
        );
        let error = record.require_no_failure(began).unwrap_err().to_string();
        assert!(error.starts_with("1 requests failed") && error.contains("10.0.0.1:1234"), "{error}");
    }
}
