//! What clients ask, and the record of it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper::Request as HttpRequest;
use hyper::header::{AUTHORIZATION, USER_AGENT};
use serde_json::{Value, json};

use super::status::Status;

/// The parameters of a request, decoded.
pub type Query = BTreeMap<String, String>;

/// The token that came with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    Right,
    /// An old one, or none that the server ever gave out.
    Wrong,
    Missing,
}

/// A request as it was received.
#[derive(Clone, Debug)]
pub struct Request {
    pub at: Instant,
    pub method: String,
    pub path: String,
    pub query: Query,
    pub user_agent: String,
    pub token: Token,
    /// The status of the HTTP answer; `None` while there is none. A watch has its 200 from the start.
    pub answered: Option<u16>,
}

impl Request {
    /// `token` is the one that is right now.
    pub(super) fn read<B>(request: &HttpRequest<B>, token: &str) -> Self {
        let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
        let token = match header(AUTHORIZATION) {
            None => Token::Missing,
            Some(value) if value.strip_prefix("Bearer ") == Some(token) => Token::Right,
            Some(_) => Token::Wrong,
        };
        let query = request.uri().query().unwrap_or_default();
        Self {
            at: Instant::now(),
            method: request.method().to_string(),
            path: request.uri().path().to_owned(),
            query: form_urlencoded::parse(query.as_bytes()).into_owned().collect(),
            user_agent: header(USER_AGENT).unwrap_or_default().to_owned(),
            token,
            answered: None,
        }
    }

    /// A parameter, empty if it is not there.
    pub fn parameter(&self, name: &str) -> &str {
        parameter(&self.query, name)
    }

    /// Whether it is about EndpointSlices.
    pub fn is_for_slices(&self) -> bool {
        self.path.ends_with("/endpointslices")
    }

    /// Whether it asks for changes rather than for what there is.
    pub fn is_watch(&self) -> bool {
        flag(&self.query, "watch")
    }
}

/// The parameters of a list or watch (`ListOptions` of meta/v1), without the selectors.
#[derive(Clone, Debug)]
pub(super) struct ListOptions {
    pub(super) watch: bool,
    pub(super) bookmarks: bool,
    /// The end of a watch.
    pub(super) timeout: Option<Duration>,
    /// `None`: the newest; 0: any.
    pub(super) version: Option<u64>,
    /// The list is to be of this version, not only as new.
    pub(super) exact: bool,
    pub(super) limit: Option<usize>,
    pub(super) page: Option<Page>,
}

/// Where a list goes on: `continue`, which clients give back as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) version: u64,
    /// Namespace and name of the last object of the page before.
    pub(super) after: (String, String),
}

impl ListOptions {
    pub(super) fn read(query: &Query) -> Result<Self, Status> {
        let watch = flag(query, "watch");
        let version = number(query, "resourceVersion")?;
        let rule = parameter(query, "resourceVersionMatch");
        if query.contains_key("sendInitialEvents") {
            let why = "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
            return Err(Status::invalid_option("sendInitialEvents", why));
        }
        if !rule.is_empty() && (watch || version.is_none()) {
            let why = if watch {
                "resourceVersionMatch is forbidden for watch"
            } else {
                "resourceVersionMatch is forbidden unless resourceVersion is provided"
            };
            return Err(Status::invalid_option("resourceVersionMatch", why));
        }
        let page = match parameter(query, "continue") {
            "" => None,
            _ if version.is_some_and(|version| version > 0) => {
                let why = "specifying resource version is not allowed when using continue";
                return Err(Status::bad_request(why));
            }
            token => Some(Page::read(token).ok_or_else(|| Status::bad_request("continue key is not valid"))?),
        };
        Ok(Self {
            watch,
            bookmarks: flag(query, "allowWatchBookmarks"),
            timeout: number(query, "timeoutSeconds")?.filter(|&seconds| seconds > 0).map(Duration::from_secs),
            version,
            exact: match rule {
                "" | "NotOlderThan" => false,
                "Exact" => true,
                _ => return Err(Status::bad_request(format!("resourceVersionMatch: {rule:?}"))),
            },
            limit: number(query, "limit")?.filter(|&limit| limit > 0).map(|limit| limit as usize),
            page,
        })
    }
}

impl Page {
    pub(super) fn token(&self) -> String {
        let (namespace, name) = &self.after;
        let value =
            json!({ "v": "meta.k8s.io/v1", "rv": self.version, "start": format!("{namespace}/{name}") });
        URL_SAFE_NO_PAD.encode(value.to_string())
    }

    fn read(token: &str) -> Option<Self> {
        let value: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
        let (namespace, name) = value["start"].as_str()?.split_once('/')?;
        Some(Self { version: value["rv"].as_u64()?, after: (namespace.to_owned(), name.to_owned()) })
    }
}

pub(super) fn parameter<'a>(query: &'a Query, name: &str) -> &'a str {
    query.get(name).map_or("", String::as_str)
}

/// As the server reads flags: whatever is there is true, but for two words.
fn flag(query: &Query, name: &str) -> bool {
    query.get(name).is_some_and(|value| !matches!(value.as_str(), "false" | "0"))
}

fn number(query: &Query, name: &str) -> Result<Option<u64>, Status> {
    match parameter(query, name) {
        "" => Ok(None),
        text => match text.parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(Status::bad_request(format!("{name}: {text:?} is no number"))),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::{ListOptions, Page, Query};

    fn read(parameters: &[(&str, &str)]) -> Result<ListOptions, u16> {
        let query: Query = parameters.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        ListOptions::read(&query).map_err(|refusal| refusal.code)
    }

    #[test]
    fn options_are_checked_as_the_server_does() {
        let options =
            read(&[("watch", "1"), ("allowWatchBookmarks", "true"), ("timeoutSeconds", "9")]).unwrap();
        assert!(options.watch && options.bookmarks && options.version.is_none());
        assert_eq!(options.timeout.unwrap().as_secs(), 9);
        assert!(!read(&[("watch", "false")]).unwrap().watch);
        assert!(read(&[("resourceVersion", "7"), ("resourceVersionMatch", "Exact")]).unwrap().exact);
        for (refused, code) in [
            (&[("limit", "many")][..], 400),
            (&[("continue", "?")], 400),
            (&[("resourceVersionMatch", "Exact")], 422),
            (&[("watch", "1"), ("sendInitialEvents", "true")], 422),
            (&[("watch", "1"), ("resourceVersion", "7"), ("resourceVersionMatch", "NotOlderThan")], 422),
        ] {
            assert_eq!(read(refused).unwrap_err(), code, "{refused:?}");
        }
    }

    #[test]
    fn a_page_comes_back_as_it_was() {
        let page = Page { version: 1012, after: ("istio-system".into(), "web-x7k2p".into()) };
        assert_eq!(Page::read(&page.token()), Some(page));
    }
}
