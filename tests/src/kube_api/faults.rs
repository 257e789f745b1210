//! What can go wrong with a server, each by one method. What ends or breaks a watch is about those that run now;
//! the next one is served again.

use anyhow::Result;

use super::resource::{Resource, Verb};
use super::status::Status;
use super::{KubeApi, State, listen};

/// What every request gets for an answer, whoever asks for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// 500, as while etcd chooses a leader.
    Internal,
    /// 410 as the status of the answer, where today's servers send an event; see [`KubeApi::forget_history`].
    Gone,
    /// 429, with `Retry-After` in seconds.
    TooManyRequests { retry_after: u32 },
    /// The request is read, and never answered; not even after [`KubeApi::heal`].
    Silence,
}

/// A failure, and how many more requests it takes; `None`: all.
pub(super) type Failing = (Failure, Option<u32>);

impl KubeApi {
    /// Every request fails from now on; running watches go on.
    pub fn fail(&self, failure: Failure) {
        self.shared.lock().failing = Some((failure, None));
    }

    /// So do this many requests.
    pub fn fail_times(&self, times: u32, failure: Failure) {
        self.shared.lock().failing = Some((failure, Some(times)));
    }

    /// Requests are answered again.
    pub fn heal(&self) {
        self.shared.lock().failing = None;
    }

    /// Versions before the newest are forgotten: a watch from one of them, and a list's next page, is told 410.
    pub fn forget_history(&self) {
        self.shared.lock().store.compact();
    }

    /// Running watches get 410 as an event, as from a server that cannot keep up, and end.
    pub fn expire_watches(&self) {
        let mut state = self.shared.lock();
        let (oldest, newest) = (state.store.oldest(), state.store.version());
        state.watches.refuse(&Status::too_old(oldest, newest));
    }

    /// Running watches end as they do at their timeout.
    pub fn end_watches(&self) {
        self.shared.lock().watches.end();
    }

    /// Running watches break off: HTTP/1.1 connections are closed in the middle of the answer, HTTP/2 streams reset.
    pub fn cut_watches(&self) {
        self.shared.lock().watches.cut();
    }

    /// Running watches stay open and hear nothing more, not even of what happens later.
    pub fn freeze_watches(&self) {
        self.shared.lock().watches.freeze();
    }

    /// Running watches get a line that is no JSON, and go on.
    pub fn garble_watches(&self) {
        self.shared.lock().watches.send_text("<html>502 Bad Gateway</html>\n");
    }

    /// Running watches get the first half of an event, and end.
    pub fn truncate_watches(&self) {
        let mut state = self.shared.lock();
        state.watches.send_text(r#"{"type":"MODIFIED","object":{"kind":"EndpointSlice","apiVer"#);
        state.watches.end();
    }

    /// Another token is the right one from now on: who comes with the old one gets 401. Running watches end.
    pub fn set_token(&self, token: &str) {
        let mut state = self.shared.lock();
        token.clone_into(&mut state.token);
        state.watches.end();
    }

    /// A right token may not do this any more; running watches go on, as they do with the real server.
    pub fn forbid(&self, verb: Verb, resource: Resource) {
        self.shared.lock().forbidden.insert((verb, resource));
    }

    pub fn allow(&self, verb: Verb, resource: Resource) {
        self.shared.lock().forbidden.remove(&(verb, resource));
    }

    /// The port is closed and every connection with it. Objects, history and the record stay.
    pub fn stop(&mut self) -> Result<()> {
        match self.serving.take() {
            Some(serving) => self.runtime.block_on(serving.stop()),
            None => Ok(()),
        }
    }

    /// Listens on the same port again.
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.serve(listen(&self.runtime, self.address)?);
        Ok(())
    }
}

impl State {
    /// What the next request fails by.
    pub(super) fn failure(&mut self) -> Option<Failure> {
        let (failure, times) = self.failing?;
        self.failing = match times {
            None => Some((failure, None)),
            Some(times) => (times > 1).then_some((failure, Some(times - 1))),
        };
        Some(failure)
    }
}
