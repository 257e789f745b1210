//! What a long test prints: what is done, what the agent decided about it and when, and how the clients fared.

use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;
use serde_json::Value;

use crate::agent::Agent;
use crate::discovery::events;
use crate::load::Load;

/// Begins the lines below a phase's own.
pub const INDENT: &str = "           ";

/// Phases, one after the other.
#[derive(Debug)]
pub struct Printout {
    pub began: Instant,
    /// When the phase began, by both clocks: events have the time of day.
    phase: (Instant, SystemTime),
    /// Events that were printed.
    seen: Vec<Value>,
}

impl Default for Printout {
    fn default() -> Self {
        Self { began: Instant::now(), phase: (Instant::now(), SystemTime::now()), seen: Vec::new() }
    }
}

impl Printout {
    /// The next phase.
    pub fn begin(&mut self, what: &str) {
        println!("{:>7.1} s  {what}", self.began.elapsed().as_secs_f64());
        self.phase = (Instant::now(), SystemTime::now());
    }

    /// Prints the events that are new.
    pub fn events(&mut self, agent: &Agent) -> Result<()> {
        for event in events(agent)? {
            if !self.seen.contains(&event) {
                println!("{INDENT}agent: {}", describe(&event, self.phase.1));
                self.seen.push(event);
            }
        }
        Ok(())
    }

    /// Prints how the clients have fared, and until when something held them up in this phase.
    pub fn load(&self, load: &Load) {
        let record = load.record();
        let slow = record.last_slow.and_then(|last| last.checked_duration_since(self.phase.0));
        let slow = slow.map_or_else(String::new, |after| format!(", the last slow one after {}", ms(after)));
        println!(
            "{INDENT}{} requests on {} connections, {} failed, {} retried; slowest {}{slow}",
            record.requests(),
            record.connections,
            record.failures.len(),
            record.retried,
            ms(load.take_slowest()),
        );
    }
}

/// As people read it.
pub fn ms(time: Duration) -> String {
    format!("{} ms", time.as_millis())
}

/// An event, and how long after `since` it was.
fn describe(event: &Value, since: SystemTime) -> String {
    let word = |key: &str| event[key].as_str().unwrap_or("-");
    let at = humantime::parse_rfc3339(word("at")).ok();
    let after = at.and_then(|at| at.duration_since(since).ok());
    let after = after.map_or_else(|| "before".to_owned(), |after| format!("after {}", ms(after)));
    let [cluster, endpoint, from, to, why] = ["cluster", "endpoint", "from", "to", "why"].map(word);
    format!("{cluster} {endpoint}: {from} -> {to}: {why} ({after})")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn events_are_timed_from_the_phase() {
        let since = SystemTime::UNIX_EPOCH + Duration::from_millis(1_000);
        let event = |at: &str, endpoint: Value| {
            json!({
                "at": at, "cluster": "web", "endpoint": endpoint, "from": "healthy", "to": "unhealthy",
                "why": "answered 503",
            })
        };
        let described = |at, endpoint| describe(&event(at, endpoint), since);
        assert_eq!(
            described("1970-01-01T00:00:02.250Z", "10.0.0.1:8080".into()),
            "web 10.0.0.1:8080: healthy -> unhealthy: answered 503 (after 1250 ms)"
        );
        assert_eq!(
            described("1970-01-01T00:00:00.999Z", Value::Null),
            "web -: healthy -> unhealthy: answered 503 (before)"
        );
    }
}
