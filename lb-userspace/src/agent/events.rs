//! What has become of endpoints and clusters, and why: the last of it, for `status`.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::SystemTime;

use crate::discovery::Event;

/// Events that are kept.
const KEPT: usize = 1000;

/// The last events, oldest first.
#[derive(Default)]
pub(super) struct Events {
    last: VecDeque<Event>,
}

impl Events {
    /// Notes an event; discovery logs its own.
    pub(super) fn add(&mut self, event: Event) {
        if self.last.len() == KEPT {
            self.last.pop_front();
        }
        self.last.push_back(event);
    }

    /// Notes and logs that an endpoint goes from one state to another now.
    pub(super) fn endpoint(&mut self, cluster: &str, endpoint: SocketAddr, from: &str, to: &str, why: &str) {
        let event = Event {
            at: SystemTime::now(),
            cluster: cluster.to_owned(),
            endpoint: Some(endpoint),
            from: from.to_owned(),
            to: to.to_owned(),
            why: why.to_owned(),
        };
        log::info!("{event}");
        self.add(event);
    }

    /// Those that are kept, oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Event> {
        self.last.iter()
    }
}
