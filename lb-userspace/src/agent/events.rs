//! What has become of endpoints and clusters, and why: the last of it, for `status`.

use std::collections::VecDeque;
use std::net::SocketAddr;

use crate::discovery::Event;

/// Events that are kept.
const KEPT: usize = 1000;
/// Events of one change that are logged one by one.
const LOGGED: usize = 16;

/// The last events, oldest first.
#[derive(Default)]
pub(super) struct Events {
    last: VecDeque<Event>,
}

impl Events {
    /// Keeps an event that was logged.
    pub(super) fn keep(&mut self, event: Event) {
        if self.last.len() == KEPT {
            self.last.pop_front();
        }
        self.last.push_back(event);
    }

    /// Notes and logs an event.
    pub(super) fn add(&mut self, event: Event) {
        log::info!("{event}");
        self.keep(event);
    }

    /// Notes events of a cluster, and logs some of them one by one.
    pub(super) fn add_all(&mut self, cluster: &str, events: Vec<Event>) {
        let count = events.len();
        for (at, event) in events.into_iter().enumerate() {
            if at < LOGGED {
                log::info!("{event}");
            }
            self.keep(event);
        }
        if count > LOGGED {
            log::info!("cluster {cluster}: {} more endpoints changed", count - LOGGED);
        }
    }

    /// Notes and logs that an endpoint goes from one state to another now.
    pub(super) fn endpoint(&mut self, cluster: &str, endpoint: SocketAddr, from: &str, to: &str, why: &str) {
        self.add(Event::now(cluster, Some(endpoint), from, to, why));
    }

    /// Those that are kept, oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Event> {
        self.last.iter()
    }
}
