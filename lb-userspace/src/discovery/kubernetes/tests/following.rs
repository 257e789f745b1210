//! A Service followed: what is asked, what is told, and what goes wrong.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::super::{Timing, follow};
use super::api::{FakeApi, Reply, Request, certificate, kubeconfig};
use super::{endpoint, ready, settings, slice, with};
use crate::discovery::feed::{Feed, Report};
use crate::discovery::tests::Scratch;
use crate::model::Kubernetes;

const MS: Duration = Duration::from_millis(1);

/// Longer than anything here takes; what is waited for comes or the test fails.
const PATIENCE: Duration = Duration::from_secs(30);

const FAST: Timing = Timing {
    merge: Duration::from_millis(100),
    answer: Duration::from_secs(20),
    watch: Duration::from_secs(20),
    margin: Duration::from_secs(5),
    pace: Duration::from_millis(20),
    wait: Duration::from_millis(20),
    max_wait: Duration::from_millis(100),
};

/// Follows the Service until this value is gone.
struct Followed {
    reports: mpsc::Receiver<(u64, Arc<str>, Report)>,
    _task: JoinSet<()>,
}

impl Followed {
    fn start(kubeconfig: PathBuf, timing: Timing) -> Self {
        Self::start_as(Kubernetes { kubeconfig: Some(kubeconfig), ..settings() }, timing)
    }

    fn start_as(of: Kubernetes, timing: Timing) -> Self {
        let (feed, reports) = Feed::alone();
        let mut task = JoinSet::new();
        task.spawn(async move {
            follow(&of, feed, timing).await;
        });
        Self { reports, _task: task }
    }

    /// The next report: `ADDRESS, ADDRESS off; left ADDRESS; WHY`, or `failed: WHY`.
    async fn next(&mut self) -> String {
        let report = timeout(PATIENCE, self.reports.recv()).await.expect("a report in time");
        match report.expect("the source runs for ever").2 {
            Report::Failed(why) => format!("failed: {why}"),
            Report::Endpoints { endpoints, left, why } => {
                let endpoints = endpoints.iter().map(|endpoint| {
                    let off = if endpoint.ready { "" } else { " off" };
                    format!("{}{off}", endpoint.address)
                });
                let mut parts = vec![endpoints.collect::<Vec<_>>().join(", ")];
                parts.extend(left.iter().map(|(address, why)| format!("left {address}, {why}")));
                parts.push(why);
                parts.join("; ")
            }
        }
    }

    /// Passes over failures.
    async fn next_endpoints(&mut self) -> String {
        for _ in 0..1000 {
            let next = self.next().await;
            if !next.starts_with("failed") {
                return next;
            }
        }
        panic!("nothing but failures");
    }

    /// Nothing is told for a while.
    async fn silent(&mut self) {
        let told = timeout(MS * 400, self.next()).await;
        assert!(told.is_err(), "{told:?}");
    }
}

const IN_SLICES: &str = "in EndpointSlices of istio-system/gateway";

fn of(addresses: &str) -> String {
    format!("{addresses}; {IN_SLICES}")
}

fn list(version: u32, slices: &[Value]) -> Reply {
    let metadata = json!({ "resourceVersion": version.to_string() });
    let list = json!({ "kind": "EndpointSliceList", "apiVersion": "discovery.k8s.io/v1", "metadata": metadata,
                       "items": slices });
    Reply::Json(200, list)
}

fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
            "reason": reason, "code": code })
}

fn event(kind: &str, object: Value) -> String {
    json!({ "type": kind, "object": object }).to_string()
}

fn bookmark(version: u32) -> String {
    let metadata = json!({ "resourceVersion": version.to_string() });
    let object =
        json!({ "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "metadata": metadata });
    event("BOOKMARK", object)
}

/// The one list, and watches that the test feeds: each watch hands over where to put its lines.
struct Fed {
    watches: mpsc::UnboundedReceiver<mpsc::UnboundedSender<String>>,
}

impl Fed {
    async fn watch(&mut self) -> mpsc::UnboundedSender<String> {
        timeout(PATIENCE, self.watches.recv()).await.expect("a watch in time").unwrap()
    }
}

/// Lists by `listed`; what it answers to all the rest is 404.
fn fed(mut listed: impl FnMut() -> Reply + Send) -> (Fed, impl FnMut(&Request) -> Reply + Send) {
    let (sender, watches) = mpsc::unbounded_channel();
    let script = move |request: &Request| {
        if request.is_watch() {
            let (lines, reply) = mpsc::unbounded_channel();
            sender.send(lines).unwrap();
            return Reply::Lines(reply);
        }
        if request.is_list() { listed() } else { Reply::Json(404, status(404, "NotFound", "not found")) }
    };
    (Fed { watches }, script)
}

#[tokio::test]
async fn a_list_and_then_every_change() {
    let (mut fed, script) = fed(|| list(7, &[slice("a", 5, &[ready("10.0.0.1")])]));
    let api = FakeApi::start(script).await;
    let mut followed = Followed::start(api.kubeconfig(), FAST);
    assert_eq!(followed.next().await, of("10.0.0.1:8080"));

    let watch = fed.watch().await;
    watch.send(event("ADDED", slice("b", 8, &[ready("10.0.0.2")]))).unwrap();
    assert_eq!(followed.next().await, of("10.0.0.1:8080, 10.0.0.2:8080"));
    let off = endpoint("10.0.0.1", json!({ "ready": false }));
    watch.send(event("MODIFIED", slice("a", 9, &[off]))).unwrap();
    assert_eq!(followed.next().await, of("10.0.0.1:8080 off, 10.0.0.2:8080"));
    let terminating = endpoint("10.0.0.1", json!({ "ready": false, "terminating": true }));
    watch.send(event("MODIFIED", slice("a", 10, &[terminating]))).unwrap();
    assert_eq!(followed.next().await, of("10.0.0.2:8080; left 10.0.0.1:8080, terminating"));
    watch.send(event("DELETED", slice("a", 11, &[]))).unwrap();
    assert_eq!(followed.next().await, of("10.0.0.2:8080"));
    // What changes nothing is not told.
    watch.send(event("MODIFIED", slice("b", 12, &[ready("10.0.0.2")]))).unwrap();
    watch.send(bookmark(50)).unwrap();
    followed.silent().await;

    // The server ends the watch: the next one goes on where it was.
    drop(watch);
    let watch = fed.watch().await;
    watch.send(event("ADDED", slice("c", 51, &[ready("10.0.0.3")]))).unwrap();
    assert_eq!(followed.next().await, of("10.0.0.2:8080, 10.0.0.3:8080"));

    let requests = api.requests();
    assert_eq!(requests.len(), 3, "{requests:#?}");
    let base = "/apis/discovery.k8s.io/v1/namespaces/istio-system/endpointslices?";
    for request in &requests {
        assert!(request.path.starts_with(base), "{request:?}");
        assert!(request.path.contains("labelSelector=kubernetes.io%2Fservice-name%3Dgateway"), "{request:?}");
        assert_eq!(request.token.as_deref(), Some("first"));
    }
    assert!(requests[0].is_list());
    for (request, version) in requests[1..].iter().zip([7, 50]) {
        for part in [
            format!("resourceVersion={version}"),
            "allowWatchBookmarks=true".into(),
            "timeoutSeconds=20".into(),
        ] {
            assert!(request.path.contains(&part), "{part} not in {request:?}");
        }
    }
}

#[tokio::test]
async fn changes_that_come_together_are_told_once() {
    let (mut fed, script) = fed(|| list(1, &[slice("a", 1, &[ready("10.0.0.1")])]));
    let api = FakeApi::start(script).await;
    let mut followed = Followed::start(api.kubeconfig(), Timing { merge: MS * 500, ..FAST });
    assert_eq!(followed.next().await, of("10.0.0.1:8080"));
    let watch = fed.watch().await;
    for number in 2..=6 {
        let name = format!("slice-{number}");
        watch.send(event("ADDED", slice(&name, number, &[ready(&format!("10.0.0.{number}"))]))).unwrap();
    }
    let all = "10.0.0.1:8080, 10.0.0.2:8080, 10.0.0.3:8080, 10.0.0.4:8080, 10.0.0.5:8080, 10.0.0.6:8080";
    assert_eq!(followed.next().await, of(all));
}

#[tokio::test]
async fn a_version_that_is_too_old_is_listed_anew_and_no_failure() {
    let lists = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&lists);
    let (mut fed, mut script) = fed(move || {
        let number = 1 + u32::try_from(counted.fetch_add(1, Ordering::Relaxed)).unwrap();
        list(number * 100, &[slice("a", number, &[ready(&format!("10.0.0.{number}"))])])
    });
    let gone = status(410, "Expired", "too old resource version: 100 (200)");
    let refused = gone.clone();
    let script = move |request: &Request| {
        // The second way to say it.
        if request.is_watch() && request.path.contains("resourceVersion=200") {
            return Reply::Json(410, refused.clone());
        }
        script(request)
    };
    let api = FakeApi::start(script).await;
    let mut followed = Followed::start(api.kubeconfig(), FAST);
    assert_eq!(followed.next().await, of("10.0.0.1:8080"));
    fed.watch().await.send(event("ERROR", gone)).unwrap();
    assert_eq!(followed.next().await, of("10.0.0.3:8080"));
    let _watch = fed.watch().await;
    followed.silent().await;
    assert_eq!(lists.load(Ordering::Relaxed), 3);
}

const FORBIDDEN: &str = "endpointslices.discovery.k8s.io is forbidden: User \
                         \"system:serviceaccount:headgate:headgate\" cannot list resource \"endpointslices\" in API group \
                         \"discovery.k8s.io\" in the namespace \"istio-system\"";

#[tokio::test]
async fn what_is_not_allowed_says_what_to_allow() {
    let api = FakeApi::start(|_| Reply::Json(403, status(403, "Forbidden", FORBIDDEN))).await;
    let mut followed = Followed::start(api.kubeconfig(), FAST);
    let text = followed.next().await;
    let expected = "failed: not allowed to list endpointslices in istio-system: User \
                    \"system:serviceaccount:headgate:headgate\" cannot list resource \"endpointslices\" in API group \
                    \"discovery.k8s.io\" in the namespace \"istio-system\": add a Role with get, list, watch on \
                    endpointslices and get on services (deploy/kubernetes/base/rbac.yaml)";
    assert_eq!(text, expected);
    assert_eq!(followed.next().await, expected);
}

#[tokio::test]
async fn a_list_counts_though_the_watch_is_not_allowed() {
    let addresses = Arc::new(Mutex::new("10.0.0.1"));
    let listed = Arc::clone(&addresses);
    let script = move |request: &Request| match request.is_watch() {
        true => Reply::Json(403, status(403, "Forbidden", "no watching")),
        false => list(1, &[slice("a", 1, &[ready(*listed.lock().unwrap())])]),
    };
    let api = FakeApi::start(script).await;
    let mut followed = Followed::start(api.kubeconfig(), FAST);
    assert_eq!(followed.next().await, of("10.0.0.1:8080"));
    // What has not changed is not told again.
    for _ in 0..3 {
        let text = followed.next().await;
        assert!(text.starts_with("failed: not allowed to watch endpointslices"), "{text}");
    }
    *addresses.lock().unwrap() = "10.0.0.2";
    assert_eq!(followed.next_endpoints().await, of("10.0.0.2:8080"));
}

#[tokio::test]
async fn a_token_that_has_expired_is_read_again() {
    let (mut fed, mut script) = fed(|| list(1, &[slice("a", 1, &[ready("10.0.0.1")])]));
    let script = move |request: &Request| match request.token.as_deref() {
        Some("second") => script(request),
        _ => Reply::Json(401, status(401, "Unauthorized", "Unauthorized")),
    };
    let api = FakeApi::start(script).await;
    let kubeconfig = api.kubeconfig();
    let mut followed = Followed::start(kubeconfig.clone(), FAST);
    let text = followed.next().await;
    let source = format!("does not accept the credentials of the kubeconfig {}", kubeconfig.display());
    assert!(text.contains(&source) && text.contains("(401 Unauthorized)"), "{text}");
    std::fs::write(api.token(), "second").unwrap();
    assert_eq!(followed.next_endpoints().await, of("10.0.0.1:8080"));
    let _watch = fed.watch().await;
    followed.silent().await;
}

#[tokio::test]
async fn a_service_without_slices_is_looked_at() {
    let service = |spec: Value| {
        Reply::Json(200, json!({ "kind": "Service", "apiVersion": "v1", "metadata": {}, "spec": spec }))
    };
    type Answer = Box<dyn Fn() -> Reply + Send>;
    let cases: [(Answer, &str); 6] = [
        (
            Box::new(|| Reply::Json(404, status(404, "NotFound", "services \"gateway\" not found"))),
            "failed: service istio-system/gateway not found",
        ),
        (
            Box::new(move || service(json!({ "selector": { "app": "gateway" } }))),
            "failed: service istio-system/gateway has no EndpointSlice yet: the cluster's controller makes one for every \
             selector",
        ),
        (
            Box::new(move || service(json!({ "type": "ExternalName", "externalName": "a.example" }))),
            "failed: service istio-system/gateway is another name of a.example: use type: strict_dns with it",
        ),
        (
            Box::new(|| {
                Reply::Json(403, status(403, "Forbidden", "services is forbidden: User \"u\" cannot"))
            }),
            "failed: service istio-system/gateway has no EndpointSlice, or does not exist: not allowed to get services in \
             istio-system: User \"u\" cannot: add a Role with get, list, watch on endpointslices and get on services \
             (deploy/kubernetes/base/rbac.yaml)",
        ),
        (Box::new(move || service(json!({}))), "; service istio-system/gateway has no EndpointSlice"),
        (Box::new(move || service(json!(null))), "; service istio-system/gateway has no EndpointSlice"),
    ];
    for (answer, expected) in cases {
        let (mut fed, mut script) = fed(|| list(1, &[]));
        let script = move |request: &Request| match request.path.as_str() {
            "/api/v1/namespaces/istio-system/services/gateway" => answer(),
            _ => script(request),
        };
        let api = FakeApi::start(script).await;
        let mut followed = Followed::start(api.kubeconfig(), FAST);
        assert_eq!(followed.next().await, expected);
        // The first slice is all that it takes.
        let watch = fed.watch().await;
        watch.send(event("ADDED", slice("a", 2, &[ready("10.0.0.1")]))).unwrap();
        assert_eq!(followed.next().await, of("10.0.0.1:8080"));
    }
}

#[tokio::test]
async fn a_port_that_goes_is_a_failure_until_it_is_back() {
    let (mut fed, script) = fed(|| list(1, &[slice("a", 1, &[ready("10.0.0.1")])]));
    let api = FakeApi::start(script).await;
    let mut followed = Followed::start(api.kubeconfig(), FAST);
    assert_eq!(followed.next().await, of("10.0.0.1:8080"));
    let watch = fed.watch().await;
    let other = json!({ "ports": [{ "name": "http", "port": 80 }] });
    for version in [2, 3] {
        let renamed = with(slice("a", version, &[ready("10.0.0.1")]), other.clone());
        watch.send(event("MODIFIED", renamed)).unwrap();
    }
    assert_eq!(
        followed.next().await,
        "failed: port `http2` not found in the EndpointSlices of istio-system/gateway: they have http (80)"
    );
    followed.silent().await;
    watch.send(event("MODIFIED", slice("a", 4, &[ready("10.0.0.1")]))).unwrap();
    assert_eq!(followed.next().await, of("10.0.0.1:8080"));
}

#[tokio::test]
async fn answers_that_make_no_sense() {
    let page = format!("<html>\n<body>{}</body>\n</html>", "Bad Gateway ".repeat(100));
    type Answer = Box<dyn Fn() -> Reply + Send>;
    let no_version = json!({ "kind": "EndpointSliceList", "apiVersion": "discovery.k8s.io/v1", "metadata": {}, "items": [] });
    let cases: [(Answer, &str); 6] = [
        (Box::new(|| Reply::Text(200, "garbage".into())), "makes no sense: "),
        (Box::new(move || Reply::Text(502, page.clone())), " answered 502 "),
        (
            Box::new(|| Reply::Json(503, status(503, "ServiceUnavailable", "etcd is away"))),
            " answered 503 ServiceUnavailable: etcd is away",
        ),
        (
            Box::new(|| Reply::Json(404, status(404, "NotFound", "the server could not find it"))),
            "Kubernetes 1.21 or later",
        ),
        (Box::new(move || Reply::Json(200, no_version.clone())), "has no resourceVersion"),
        (Box::new(|| Reply::Hangup), "no connection to the API server http://127.0.0.1:"),
    ];
    for (answer, phrase) in cases {
        let api = FakeApi::start(move |_| answer()).await;
        let mut followed = Followed::start(api.kubeconfig(), FAST);
        let text = followed.next().await;
        assert!(text.starts_with("failed: ") && text.contains(phrase), "{phrase:?} not in {text}");
        assert!(text.contains("the API server http://127.0.0.1:"), "{text}");
        assert!(!text.contains('\n') && text.len() < 500, "{text}");
    }
}

#[tokio::test]
async fn a_watch_that_breaks_is_begun_anew_from_a_list() {
    let version = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&version);
    let (mut fed, script) = fed(move || {
        let number = 1 + counted.fetch_add(1, Ordering::Relaxed);
        list(1, &[slice("a", 1, &[ready(&format!("10.0.0.{number}"))])])
    });
    let api = FakeApi::start(script).await;
    let mut followed = Followed::start(api.kubeconfig(), FAST);
    let breaks = [
        ("garbage".to_owned(), "makes no sense"),
        (event("ADDED", json!({ "kind": "EndpointSlice", "metadata": 1 })), "makes no sense"),
        (
            event("ERROR", status(500, "InternalError", "etcdserver: leader changed")),
            "500 InternalError: etcdserver",
        ),
        (event("ERROR", status(403, "Forbidden", "not any more")), "not allowed to watch endpointslices"),
    ];
    for (number, (line, phrase)) in (1..).zip(breaks) {
        assert_eq!(followed.next().await, of(&format!("10.0.0.{number}:8080")));
        fed.watch().await.send(line).unwrap();
        let text = followed.next().await;
        assert!(text.starts_with("failed: ") && text.contains(phrase), "{phrase:?} not in {text}");
    }
    assert_eq!(followed.next().await, of("10.0.0.5:8080"));
}

#[tokio::test]
async fn a_server_that_falls_silent_is_noticed() {
    let api = FakeApi::start(|_| Reply::Silence).await;
    let mut followed = Followed::start(api.kubeconfig(), Timing { answer: MS * 500, ..FAST });
    let mut text = followed.next().await;
    if text.ends_with("still waiting") {
        text = followed.next().await;
    }
    assert!(text.ends_with(" did not answer within 500ms"), "{text}");

    // Only the watch, which is opened and never heard of again, nor ended.
    let (mut fed, script) = fed(|| list(1, &[slice("a", 1, &[ready("10.0.0.1")])]));
    let api = FakeApi::start(script).await;
    let short = Timing { watch: MS * 500, margin: MS * 500, ..FAST };
    let mut followed = Followed::start(api.kubeconfig(), short);
    assert_eq!(followed.next().await, of("10.0.0.1:8080"));
    let _watch = fed.watch().await;
    let text = followed.next().await;
    assert!(text.ends_with(" does not end a watch after 1s: it is gone"), "{text}");
    // It is back, with the same endpoints.
    assert_eq!(followed.next().await, of("10.0.0.1:8080"));
}

#[tokio::test]
async fn watches_that_end_at_once_are_asked_for_slowly() {
    let script = |request: &Request| match request.is_watch() {
        true => Reply::Text(200, String::new()),
        false => list(1, &[slice("a", 1, &[ready("10.0.0.1")])]),
    };
    let api = FakeApi::start(script).await;
    let mut followed = Followed::start(api.kubeconfig(), Timing { pace: MS * 100, ..FAST });
    assert_eq!(followed.next().await, of("10.0.0.1:8080"));
    let told = timeout(MS * 550, followed.next()).await;
    assert!(told.is_err(), "{told:?}");
    let requests = api.requests().len();
    assert!((3..=8).contains(&requests), "{requests} requests");
}

#[tokio::test]
async fn servers_that_are_not_there() {
    let scratch = Scratch::new();
    // The port of a socket that does not listen, so that nobody else gets it.
    let tcp = tokio::net::TcpSocket::new_v4().unwrap();
    tcp.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = tcp.local_addr().unwrap().port();
    let refused = kubeconfig(&scratch, &format!("http://127.0.0.1:{port}"), &certificate().cert.pem());
    let mut followed = Followed::start(refused.clone(), FAST);
    let text = followed.next().await;
    let expected =
        format!("failed: no connection to the API server http://127.0.0.1:{port}: Connection refused");
    assert!(text.starts_with(&expected), "{text}");

    let none = Kubernetes { kubeconfig: Some(refused), context: Some("other".into()), ..settings() };
    let text = Followed::start_as(none, FAST).next().await;
    assert!(
        text.starts_with("failed: the kubeconfig /") && text.ends_with(" has no context `other`"),
        "{text}"
    );

    let missing = scratch.0.join("none");
    let text = Followed::start(missing.clone(), FAST).next().await;
    assert!(text.contains(&missing.display().to_string()) && text.contains("No such file"), "{text}");
}

#[tokio::test]
async fn no_secret_is_told() {
    let scratch = Scratch::new();
    let broken = scratch.0.join("broken");
    std::fs::write(&broken, "users:\n- name: u\n  user: { token: sesame\n").unwrap();
    let text = Followed::start(broken.clone(), FAST).next().await;
    let expected =
        format!("failed: the kubeconfig {} is none: line 3, column 9 cannot be read", broken.display());
    assert_eq!(text, expected);

    let whole = kubeconfig(&scratch, "http://127.0.0.1:1", &certificate().cert.pem());
    std::fs::write(scratch.0.join("token"), "sesame\n").unwrap();
    let text = Followed::start(whole.clone(), FAST).next().await;
    assert!(text.ends_with(": its token is no word: is there a line break in it?"), "{text}");

    let commands = [
        ("printf sesame; exit 3", "ended with exit status: 3"),
        ("echo sesame", ": its command printed no ExecCredential"),
    ];
    for (command, phrase) in commands {
        let script = scratch.0.join("plugin");
        std::fs::write(&script, format!("{command}\n")).unwrap();
        let exec = json!({ "apiVersion": "client.authentication.k8s.io/v1", "command": "/bin/sh", "args": [script],
                           "interactiveMode": "Never" });
        let mut config: Value = serde_json::from_slice(&std::fs::read(&whole).unwrap()).unwrap();
        config["users"][0]["user"] = json!({ "exec": exec });
        let path = scratch.0.join("exec");
        std::fs::write(&path, config.to_string()).unwrap();
        let text = Followed::start(path, FAST).next().await;
        assert!(text.ends_with(phrase) && !text.contains("sesame"), "{phrase:?} not in {text}");
    }
}

#[tokio::test]
async fn the_server_is_known_by_its_authority() {
    let own = certificate();
    let (mut fed, script) = fed(|| list(1, &[slice("a", 1, &[ready("10.0.0.1")])]));
    let api = FakeApi::start_with(Some(&own), script).await;
    let mut followed = Followed::start(api.kubeconfig_with(&certificate().cert.pem()), FAST);
    let text = followed.next().await;
    assert!(
        text.contains(" is not trusted: its certificate is not of the authority that the kubeconfig /"),
        "{text}"
    );
    // The file is read again.
    api.kubeconfig_with(&own.cert.pem());
    assert_eq!(followed.next_endpoints().await, of("10.0.0.1:8080"));
    let _watch = fed.watch().await;
}
