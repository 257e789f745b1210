//! From a request to its answer.

use std::convert::Infallible;
use std::sync::Arc;

use http_body_util::{Either, Full};
use hyper::body::Bytes;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Request as HttpRequest, Response};
use serde_json::{Value, json};

use super::documents::document;
use super::faults::Failure;
use super::requests::{ListOptions, Page, Request, Token, parameter};
use super::resource::{Resource, Verb};
use super::selection::Selection;
use super::status::{ANONYMOUS, Status, USER};
use super::store::Key;
use super::watch::WatchBody;
use super::{Shared, State};

pub(super) type Answer = Response<Either<Full<Bytes>, WatchBody>>;

/// What a path below a group's version is about: `namespaces/NAMESPACE/RESOURCE/NAME` or a part of it.
struct Target {
    resource: Resource,
    namespace: Option<String>,
    name: Option<String>,
}

/// Answers and records a request. While the server is silent this never ends.
pub(super) async fn serve<B>(shared: Arc<Shared>, request: HttpRequest<B>) -> Result<Answer, Infallible> {
    let Some(answer) = shared.answer(&request) else { return std::future::pending().await };
    Ok(answer)
}

impl Shared {
    /// `None`: there shall be no answer.
    fn answer<B>(self: &Arc<Self>, request: &HttpRequest<B>) -> Option<Answer> {
        let mut state = self.lock();
        let mut record = Request::read(request, &state.token);
        let answer = match state.failure() {
            None => Some(self.respond(&mut state, &record).unwrap_or_else(|status| refusal(&status))),
            Some(Failure::Internal) => Some(refusal(&Status::internal())),
            Some(Failure::Gone) => Some(refusal(&Status::too_old(0, state.store.oldest()))),
            Some(Failure::TooManyRequests { retry_after }) => Some(too_many_requests(retry_after)),
            Some(Failure::Silence) => None,
        };
        record.answered = answer.as_ref().map(|answer| answer.status().as_u16());
        state.requests.push(record);
        answer
    }

    fn respond(self: &Arc<Self>, state: &mut State, request: &Request) -> Result<Answer, Status> {
        if request.token == Token::Wrong {
            return Err(Status::unauthorized());
        }
        if request.method != "GET" {
            return Err(Status::method_not_allowed());
        }
        if let Some(document) = document(&request.path, self.address) {
            return Ok(ok(&document));
        }
        let Some(Target { resource, namespace, name }) = target(&request.path) else {
            return Ok(text(404, "404 page not found\n"));
        };
        let options = ListOptions::read(&request.query)?;
        let verb = match (&name, options.watch) {
            (Some(_), _) => Verb::Get,
            (None, true) => Verb::Watch,
            (None, false) => Verb::List,
        };
        let user = if request.token == Token::Right { USER } else { ANONYMOUS };
        if user == ANONYMOUS || state.forbidden.contains(&(verb, resource)) {
            return Err(Status::forbidden(user, verb, resource, namespace.as_deref(), name.as_deref()));
        }
        if let Some(name) = name {
            let namespace = namespace.unwrap_or_default();
            let key = Key { resource, namespace, name };
            let object = state.store.get(&key).ok_or_else(|| Status::not_found(resource, &key.name))?;
            return Ok(ok(object));
        }
        let labels = parameter(&request.query, "labelSelector");
        let fields = parameter(&request.query, "fieldSelector");
        let selection = Selection::new(resource, namespace, labels, fields)?;
        if options.watch {
            Ok(self.watch(state, selection, &options))
        } else {
            Ok(ok(&list(state, &selection, &options)?))
        }
    }

    /// From a version that is forgotten the watch itself begins, and says so.
    fn watch(self: &Arc<Self>, state: &mut State, selection: Selection, options: &ListOptions) -> Answer {
        let store = &state.store;
        let events: Vec<_> = match options.version {
            // What there is comes first.
            None | Some(0) => {
                let objects = store.at(store.version()).expect("the newest version is never forgotten");
                let selected = objects.iter().filter(|(key, object)| selection.has(key, object));
                selected.map(|(_, object)| ("ADDED", Value::clone(object))).collect()
            }
            // Nothing is to be told before this version is reached.
            Some(version) if version > store.version() => Vec::new(),
            Some(version) => match store.since(version) {
                Some(changes) => changes.iter().filter_map(|change| selection.event(change)).collect(),
                None => {
                    let status = Status::too_old(version, store.oldest());
                    return json_answer(200, Either::Right(state.watches.refused(self, &status)));
                }
            },
        };
        let body = state.watches.add(self, selection, options.bookmarks, options.timeout, events);
        json_answer(200, Either::Right(body))
    }
}

fn list(state: &State, selection: &Selection, options: &ListOptions) -> Result<Value, Status> {
    let store = &state.store;
    if let Some(asked) = options.version.filter(|&version| version > store.version()) {
        return Err(Status::too_large(asked, store.version()));
    }
    let (version, objects) = match (&options.page, options.version) {
        (Some(page), _) => (page.version, store.at(page.version).ok_or_else(Status::continue_too_old)?),
        (None, Some(exact)) if options.exact => {
            (exact, store.at(exact).ok_or_else(|| Status::too_old(exact, store.oldest()))?)
        }
        _ => {
            let newest = store.version();
            (newest, store.at(newest).expect("the newest version is never forgotten"))
        }
    };
    let place = |key: &Key| (key.namespace.clone(), key.name.clone());
    let mut rest = objects
        .iter()
        .filter(|(key, object)| selection.has(key, object))
        .filter(|(key, _)| options.page.as_ref().is_none_or(|page| place(key) > page.after))
        .peekable();
    let mut items = Vec::new();
    let mut last = None;
    for (key, object) in rest.by_ref().take(options.limit.unwrap_or(usize::MAX)) {
        // The server leaves out what all items have in common.
        let mut item = Value::clone(object);
        if let Some(fields) = item.as_object_mut() {
            fields.remove("kind");
            fields.remove("apiVersion");
        }
        items.push(item);
        last = Some(Page { version, after: place(key) });
    }
    let mut metadata = json!({ "resourceVersion": version.to_string() });
    if let Some(page) = last.filter(|_| rest.peek().is_some()) {
        metadata["continue"] = page.token().into();
        if !selection.is_selective() {
            metadata["remainingItemCount"] = rest.count().into();
        }
    }
    Ok(json!({
        "kind": format!("{}List", selection.resource.kind()),
        "apiVersion": selection.resource.api_version(),
        "metadata": metadata,
        "items": items,
    }))
}

fn target(path: &str) -> Option<Target> {
    let (group, rest) = match path.strip_prefix("/api/v1/") {
        Some(rest) => ("", rest),
        None => ("discovery.k8s.io", path.strip_prefix("/apis/discovery.k8s.io/v1/")?),
    };
    let parts: Vec<_> = rest.split('/').collect();
    let (namespace, parts) = match parts[..] {
        ["namespaces", namespace, ref rest @ ..] if !rest.is_empty() => (Some(namespace), rest),
        ref rest => (None, rest),
    };
    let (plural, name) = match *parts {
        [plural] => (plural, None),
        [plural, name] => (plural, Some(name)),
        _ => return None,
    };
    let mut resources = Resource::ALL.into_iter();
    let resource = resources.find(|resource| resource.group() == group && resource.plural() == plural)?;
    // A name alone says which node, but not which service.
    let found = namespace.is_some() == resource.namespaced() || namespace.is_none() && name.is_none();
    found.then(|| Target { resource, namespace: namespace.map(str::to_owned), name: name.map(str::to_owned) })
}

fn ok(document: &Value) -> Answer {
    json_answer(200, Either::Left(Full::from(document.to_string())))
}

fn refusal(status: &Status) -> Answer {
    json_answer(status.code, Either::Left(Full::from(status.json().to_string())))
}

/// As the server's own limits say it, before anything has read the request.
fn too_many_requests(retry_after: u32) -> Answer {
    let mut answer = text(429, "Too many requests, please try again later.\n");
    answer.headers_mut().insert(RETRY_AFTER, retry_after.into());
    answer
}

fn json_answer(code: u16, body: Either<Full<Bytes>, WatchBody>) -> Answer {
    respond(code, "application/json", body)
}

fn text(code: u16, text: &'static str) -> Answer {
    respond(code, "text/plain; charset=utf-8", Either::Left(Full::from(text)))
}

fn respond(code: u16, content_type: &'static str, body: Either<Full<Bytes>, WatchBody>) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = code.try_into().expect("codes of HTTP");
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    answer
}
