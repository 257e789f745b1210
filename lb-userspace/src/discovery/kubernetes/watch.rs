//! List and watch, by the API's rules: a watch goes on from the resource version of a list, an event or a bookmark, and
//! where the server does not have that any more (410 Gone) from a new list.
//!
//! See "Efficient detection of changes" in the Kubernetes API concepts.

use std::convert::Infallible;
use std::ops::ControlFlow::{self, Break, Continue};
use std::pin::pin;

use futures_util::StreamExt;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::{Api, Client};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::access::{self, Server};
use super::failure::{self, Request};
use super::slices::Slices;
use super::teller::Teller;
use super::{Timing, service};
use crate::model::Kubernetes;

const RESOURCE: &str = "endpointslices";

/// Of a slice's Service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// HTTP's Gone: the resource version is too old.
const GONE: u16 = 410;

/// How a watch ended that did not fail.
enum End {
    /// Its time is over; the next one goes on where it was.
    Over,
    Gone,
}

struct Session<'s> {
    of: &'s Kubernetes,
    teller: &'s mut Teller,
    timing: Timing,
    client: Client,
    server: Server,
    api: Api<EndpointSlice>,
    slices: Slices,
    /// Where to go on.
    version: String,
}

/// Follows the slices of a Service until something fails, and says what.
pub(super) async fn session(
    of: &Kubernetes,
    teller: &mut Teller,
    timing: Timing,
) -> Result<Infallible, String> {
    let (client, server) = connect(of, teller, timing).await?;
    let api = Api::namespaced(client.clone(), &of.namespace);
    let (slices, version) = (Slices::default(), String::new());
    let mut session = Session { of, teller, timing, client, server, api, slices, version };
    loop {
        session.list().await?;
        loop {
            let began = Instant::now();
            let end = session.watch().await?;
            // Most servers that end a watch at once would do so with the next.
            sleep_until(began + timing.pace).await;
            if matches!(end, End::Gone) {
                break;
            }
        }
    }
}

/// On a thread of its own, for the command of a kubeconfig; another one is not started before that has ended.
async fn connect(of: &Kubernetes, teller: &mut Teller, timing: Timing) -> Result<(Client, Server), String> {
    let settings = of.clone();
    let mut task = tokio::task::spawn_blocking(move || access::client(&settings, timing.answer));
    let joined = match timeout(timing.answer, &mut task).await {
        Ok(joined) => joined,
        Err(_) => {
            let patience = humantime::format_duration(timing.answer);
            teller
                .no_good(format!("no credentials for the API server after {patience}, still waiting"))
                .await;
            task.await
        }
    };
    match joined {
        Ok(made) => made,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err("the agent is ending".to_owned()),
        },
    }
}

impl Session<'_> {
    fn selector(&self) -> String {
        format!("{SERVICE_LABEL}={}", self.of.service)
    }

    fn request(&self, verb: &'static str) -> Request<'_> {
        Request { verb, resource: RESOURCE, namespace: &self.of.namespace }
    }

    fn no_answer(&self) -> String {
        let patience = humantime::format_duration(self.timing.answer);
        format!("{} did not answer within {patience}", self.server)
    }

    async fn list(&mut self) -> Result<(), String> {
        let params = ListParams::default().labels(&self.selector());
        let listed = timeout(self.timing.answer, self.api.list(&params)).await;
        let list = listed
            .map_err(|_| self.no_answer())?
            .map_err(|error| failure::of_request(&error, self.request("list"), &self.server))?;
        let version = list.metadata.resource_version.filter(|version| !version.is_empty());
        self.version =
            version.ok_or_else(|| format!("the list of {} has no resourceVersion", self.server))?;
        self.slices.replace(list.items);
        Ok(())
    }

    async fn watch(&mut self) -> Result<End, String> {
        let began = Instant::now();
        let seconds = u32::try_from(self.timing.watch.as_secs()).unwrap_or(u32::MAX).max(1);
        let params = WatchParams::default().labels(&self.selector()).timeout(seconds);
        let opened = match timeout(self.timing.answer, self.api.watch(&params, &self.version)).await {
            Err(_) => Err(self.no_answer()),
            Ok(Err(error)) if is_gone(&error) => return Ok(End::Gone),
            Ok(Err(error)) => Err(failure::of_request(&error, self.request("watch"), &self.server)),
            Ok(Ok(events)) => Ok(events),
        };
        let mut events = match opened {
            Ok(events) => pin!(events),
            Err(why) => {
                // What the list said holds, though it may soon be old.
                if let Ok(found) = self.slices.endpoints(self.of)
                    && !self.slices.is_empty()
                {
                    self.teller.known(found).await;
                }
                return Err(why);
            }
        };
        self.tell().await;

        let deadline = began + self.timing.watch + self.timing.margin;
        let mut due = None;
        let end = loop {
            let event = tokio::select! {
                event = timeout_at(deadline, events.next()) => event,
                () = sleep_until(due.unwrap_or(deadline)), if due.is_some() => {
                    due = None;
                    self.tell().await;
                    continue;
                }
            };
            match event {
                Ok(Some(Ok(event))) => match self.absorb(event) {
                    Continue(true) => due = due.or_else(|| Some(Instant::now() + self.timing.merge)),
                    Continue(false) => {}
                    Break(end) => break end,
                },
                Ok(Some(Err(error))) if is_gone(&error) => break Ok(End::Gone),
                Ok(Some(Err(error))) => {
                    break Err(failure::of_request(&error, self.request("watch"), &self.server));
                }
                Ok(None) => break Ok(End::Over),
                Err(_) => {
                    let silence = humantime::format_duration(self.timing.watch + self.timing.margin);
                    break Err(format!("{} does not end a watch after {silence}: it is gone", self.server));
                }
            }
        };
        if due.is_some() {
            self.tell().await;
        }
        end
    }

    /// Whether the slices are others now, or how the watch ends.
    fn absorb(&mut self, event: WatchEvent<EndpointSlice>) -> ControlFlow<Result<End, String>, bool> {
        let (version, changed) = match event {
            WatchEvent::Added(slice) | WatchEvent::Modified(slice) => {
                let version = slice.metadata.resource_version.clone();
                self.slices.apply(slice);
                (version, true)
            }
            WatchEvent::Deleted(slice) => {
                self.slices.remove(&slice);
                (slice.metadata.resource_version, true)
            }
            WatchEvent::Bookmark(bookmark) => (Some(bookmark.metadata.resource_version), false),
            WatchEvent::Error(status) if status.code == GONE => return Break(Ok(End::Gone)),
            WatchEvent::Error(status) => {
                return Break(Err(failure::of_status(&status, self.request("watch"), &self.server)));
            }
        };
        if let Some(version) = version.filter(|version| !version.is_empty()) {
            self.version = version;
        }
        Continue(changed)
    }

    /// Tells what the slices say now.
    async fn tell(&mut self) {
        let outcome = if self.slices.is_empty() {
            let asked = service::without_slices(&self.client, self.of, &self.server);
            timeout(self.timing.answer, asked).await.unwrap_or_else(|_| Err(self.no_answer()))
        } else {
            self.slices.endpoints(self.of)
        };
        match outcome {
            Ok(found) => self.teller.works(found).await,
            Err(why) => self.teller.no_good(why).await,
        }
    }
}

fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == GONE)
}
