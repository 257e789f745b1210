//! Endpoints from the EndpointSlices of a Service (`discovery: { type: kubernetes }`).
//!
//! `watch` lists and watches by the API's rules, `slices` makes endpoints of what it gets, `service` says what it means
//! that there is nothing, `access` finds the API server and `failure` puts in one line what went wrong. [`run`] begins
//! anew after each failure, with what the files on disk say then: a token, a CA or a kubeconfig may be another by now.

mod access;
mod failure;
mod service;
mod slices;
mod teller;
#[cfg(test)]
mod tests;
mod watch;

use std::convert::Infallible;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use self::teller::Teller;
use super::feed::Feed;
use crate::model::Kubernetes;

/// How long things take at most.
#[derive(Clone, Copy)]
struct Timing {
    /// A change waits for others that come with it: a rollout writes several slices.
    merge: Duration,
    /// The API server's answer, connecting included.
    answer: Duration,
    /// One request to watch, after which the server ends it. A server that has gone without a word does not, and that is
    /// how it is noticed, by all kinds of servers and whatever is between.
    watch: Duration,
    /// The end of a watch comes no later than this after its time.
    margin: Duration,
    /// From one request to watch to the next, though the server ends it at once.
    pace: Duration,
    /// The wait after a first failure, doubled with each further one up to `max_wait`.
    wait: Duration,
    max_wait: Duration,
}

const TIMING: Timing = Timing {
    merge: Duration::from_millis(50),
    answer: Duration::from_secs(15),
    watch: Duration::from_secs(50),
    margin: Duration::from_secs(10),
    pace: Duration::from_secs(1),
    wait: Duration::from_secs(1),
    max_wait: Duration::from_secs(30),
};

/// Tells the endpoints of a Service and every change of them, for ever.
pub(super) async fn run(settings: Kubernetes, feed: Feed) {
    follow(&settings, feed, TIMING).await;
}

async fn follow(settings: &Kubernetes, feed: Feed, timing: Timing) -> Infallible {
    let mut teller = Teller::new(feed);
    let mut wait = timing.wait;
    loop {
        let began = Instant::now();
        let Err(why) = watch::session(settings, &mut teller, timing).await;
        teller.failed(why).await;
        if began.elapsed() > timing.max_wait {
            wait = timing.wait;
        }
        // Between half of it and all, so that the nodes do not come back to a restarted server all at once.
        sleep(wait.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        wait = (wait * 2).min(timing.max_wait);
    }
}
