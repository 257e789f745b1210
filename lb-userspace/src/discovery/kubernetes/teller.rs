//! Tells what is new.

use super::slices::Found;
use crate::discovery::feed::{Feed, Report};

/// Knows what was told last.
pub(super) struct Teller {
    feed: Feed,
    endpoints: Option<Found>,
    failure: Option<String>,
}

impl Teller {
    pub(super) fn new(feed: Feed) -> Self {
        Self { feed, endpoints: None, failure: None }
    }

    /// The endpoints are known, and everything works.
    pub(super) async fn works(&mut self, found: Found) {
        if self.failure.take().is_some() || self.endpoints.as_ref() != Some(&found) {
            self.tell(found).await;
        }
    }

    /// The endpoints are known, though something fails; the caller tells what.
    pub(super) async fn known(&mut self, found: Found) {
        if self.endpoints.as_ref() != Some(&found) {
            self.tell(found).await;
        }
    }

    async fn tell(&mut self, found: Found) {
        self.endpoints = Some(found.clone());
        let Found { endpoints, left, why } = found;
        self.feed.tell(Report::Endpoints { endpoints, left, why }).await;
    }

    /// Nothing works. Told again each time.
    pub(super) async fn failed(&mut self, why: String) {
        self.failure = Some(why.clone());
        self.feed.tell(Report::Failed(why)).await;
    }

    /// What the server says is no good. Told again when it says something else.
    pub(super) async fn no_good(&mut self, why: String) {
        if self.failure.as_ref() != Some(&why) {
            self.failed(why).await;
        }
    }
}
