//! How the discovery of a cluster stands, and how it comes to stand otherwise.

use std::net::SocketAddr;
use std::time::SystemTime;

use super::event::Event;

/// How a cluster's discovery stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// No endpoints, and no answer yet.
    Unresolved,
    /// Endpoints of the saved file, or remembered of a cluster that was taken out, until the first answer.
    Saved,
    Resolved,
    /// Some endpoints are of an older answer.
    Stale,
    /// The answer is that there are none.
    Empty,
}

impl Phase {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Unresolved => "unresolved",
            Self::Saved => "saved",
            Self::Resolved => "resolved",
            Self::Stale => "stale",
            Self::Empty => "empty",
        }
    }
}

/// A change to tell of; the endpoint, or the cluster if there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Transition {
    pub(super) endpoint: Option<SocketAddr>,
    pub(super) from: &'static str,
    pub(super) to: &'static str,
    pub(super) why: String,
}

impl Transition {
    pub(super) fn of_endpoint(
        endpoint: SocketAddr,
        from: &'static str,
        to: &'static str,
        why: String,
    ) -> Self {
        Self { endpoint: Some(endpoint), from, to, why }
    }

    pub(super) fn of_cluster(from: Phase, to: Phase, why: String) -> Self {
        Self { endpoint: None, from: from.as_str(), to: to.as_str(), why }
    }
}

/// The events of transitions that happen now. Those of the cluster are logged here, those of endpoints by who knows what
/// else there is to them.
pub(super) fn events(cluster: &str, transitions: Vec<Transition>) -> Vec<Event> {
    let at = SystemTime::now();
    let events = transitions.into_iter().map(|transition| Event {
        at,
        cluster: cluster.to_owned(),
        endpoint: transition.endpoint,
        from: transition.from.to_owned(),
        to: transition.to.to_owned(),
        why: transition.why,
    });
    let events: Vec<Event> = events.collect();
    for event in events.iter().filter(|event| event.endpoint.is_none()) {
        if event.to == Phase::Resolved.as_str() { log::info!("{event}") } else { log::warn!("{event}") }
    }
    events
}
