//! Running watches: answers without an end, one line of JSON for each event.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame};
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Sleep, sleep};

use super::Shared;
use super::resource::Resource;
use super::selection::Selection;
use super::status::Status;
use super::store::Change;

/// The end of a watch whose client names none (`--min-request-timeout` of the real server).
const TIMEOUT: Duration = Duration::from_secs(1800);

/// Those that run now.
#[derive(Debug, Default)]
pub(super) struct Watches {
    next_id: u64,
    running: BTreeMap<u64, Running>,
}

#[derive(Debug)]
struct Running {
    selection: Selection,
    /// Whether the client takes bookmarks.
    bookmarks: bool,
    /// The head of the answer and the first events are on their way.
    begun: bool,
    /// It hears of nothing any more.
    frozen: bool,
    /// Dropping it ends the answer as it should end.
    sender: UnboundedSender<Piece>,
}

#[derive(Debug)]
enum Piece {
    Text(Bytes),
    /// The answer breaks off.
    Cut,
}

/// The body of such an answer.
#[derive(Debug)]
pub(super) struct WatchBody {
    id: u64,
    begun: bool,
    receiver: UnboundedReceiver<Piece>,
    end: Pin<Box<Sleep>>,
    shared: Arc<Shared>,
}

impl Watches {
    /// A new one, which begins with these events.
    pub(super) fn add(
        &mut self,
        shared: &Arc<Shared>,
        selection: Selection,
        bookmarks: bool,
        timeout: Option<Duration>,
        events: impl IntoIterator<Item = (&'static str, Value)>,
    ) -> WatchBody {
        let (sender, body) = self.open(shared, timeout);
        for (kind, object) in events {
            // Its receiver is right here.
            let _ = sender.send(line(kind, &object));
        }
        self.running.insert(body.id, Running { selection, bookmarks, begun: false, frozen: false, sender });
        body
    }

    /// One that only says why it is none.
    pub(super) fn refused(&mut self, shared: &Arc<Shared>, status: &Status) -> WatchBody {
        let (sender, body) = self.open(shared, None);
        let _ = sender.send(line("ERROR", &status.json()));
        body
    }

    fn open(
        &mut self,
        shared: &Arc<Shared>,
        timeout: Option<Duration>,
    ) -> (UnboundedSender<Piece>, WatchBody) {
        let (sender, receiver) = unbounded_channel();
        let id = self.next_id;
        self.next_id += 1;
        let end = Box::pin(sleep(timeout.unwrap_or(TIMEOUT)));
        (sender, WatchBody { id, begun: false, receiver, end, shared: shared.clone() })
    }

    /// Those that a client knows to run. What ends them before would end them without an answer.
    pub(super) fn count(&self, resource: Resource) -> usize {
        let begun = self.running.values().filter(|watch| watch.begun);
        begun.filter(|watch| watch.selection.resource == resource).count()
    }

    fn begin(&mut self, id: u64) {
        if let Some(watch) = self.running.get_mut(&id) {
            watch.begun = true;
        }
    }

    pub(super) fn tell(&self, change: &Change) {
        for watch in self.running.values() {
            if let Some((kind, object)) = watch.selection.event(change) {
                watch.send(line(kind, &object));
            }
        }
    }

    /// Tells those that take bookmarks how far they are.
    pub(super) fn bookmark(&self, version: u64) {
        for watch in self.running.values().filter(|watch| watch.bookmarks) {
            watch.send(line("BOOKMARK", &empty(watch.selection.resource, version)));
        }
    }

    /// Says what is no longer possible, and ends them.
    pub(super) fn refuse(&mut self, status: &Status) {
        self.send_all(|| line("ERROR", &status.json()));
        self.end();
    }

    pub(super) fn send_text(&self, text: &'static str) {
        self.send_all(|| Piece::Text(Bytes::from_static(text.as_bytes())));
    }

    pub(super) fn end(&mut self) {
        self.running.clear();
    }

    pub(super) fn cut(&mut self) {
        self.send_all(|| Piece::Cut);
        self.end();
    }

    pub(super) fn freeze(&mut self) {
        for watch in self.running.values_mut() {
            watch.frozen = true;
        }
    }

    fn send_all(&self, piece: impl Fn() -> Piece) {
        for watch in self.running.values() {
            watch.send(piece());
        }
    }
}

impl Running {
    fn send(&self, piece: Piece) {
        if !self.frozen {
            // A client that has just gone away is taken out by its body.
            let _ = self.sender.send(piece);
        }
    }
}

impl Body for WatchBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.receiver.poll_recv(context) {
            Poll::Ready(Some(Piece::Text(text))) => Poll::Ready(Some(Ok(Frame::data(text)))),
            Poll::Ready(Some(Piece::Cut)) => Poll::Ready(Some(Err(io::Error::new(
                io::ErrorKind::ConnectionReset,
                "the test cut the watch",
            )))),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => {
                // hyper writes out what it has before it asks again.
                if !self.begun {
                    self.begun = true;
                    self.shared.lock().watches.begin(self.id);
                }
                self.end.as_mut().poll(context).map(|()| None)
            }
        }
    }
}

impl Drop for WatchBody {
    fn drop(&mut self) {
        self.shared.lock().watches.running.remove(&self.id);
    }
}

fn line(kind: &str, object: &Value) -> Piece {
    Piece::Text(format!("{}\n", json!({ "type": kind, "object": object })).into())
}

/// The object in a bookmark: of the right kind, and with nothing in it but the version. The server encodes a structure
/// of Go, whose lists that cannot be left out become `null`.
fn empty(resource: Resource, version: u64) -> Value {
    let mut object = json!({
        "kind": resource.kind(),
        "apiVersion": resource.api_version(),
        "metadata": { "resourceVersion": version.to_string() },
    });
    match resource {
        Resource::EndpointSlices => {
            object["addressType"] = "".into();
            object["endpoints"] = Value::Null;
            object["ports"] = Value::Null;
        }
        Resource::Services => {
            object["spec"] = json!({});
            object["status"] = json!({ "loadBalancer": {} });
        }
        Resource::Nodes | Resource::Namespaces => {
            object["spec"] = json!({});
            object["status"] = json!({});
        }
    }
    object
}
