//! The API server of the harness itself: as kubectl sees it, and its lists, watches and faults one by one as curl sees
//! them.
#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use lb_tests::cmd::output;
use lb_tests::kube_api::{Endpoint, Failure, KubeApi, Kubeconfig, Resource, Slice, Token, USER, Verb};
use lb_tests::kubectl::Kubectl;
use lb_tests::lines::Lines;
use lb_tests::netns::Namespace;
use serde_json::Value;
use tempfile::TempDir;

const NAMESPACE: &str = "istio-system";
const SERVICE: &str = "istio-ingressgateway";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/istio-system/endpointslices";
const OF_SERVICE: &str = "labelSelector=kubernetes.io%2Fservice-name%3Distio-ingressgateway";

/// Far above what any answer takes.
const SOON: Duration = Duration::from_secs(20);
/// In which an event would have come.
const A_WHILE: Duration = Duration::from_millis(300);

fn start() -> KubeApi {
    KubeApi::start_here(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0)).unwrap()
}

fn slice(name: &str, addresses: &[&str]) -> Slice {
    Slice::new(NAMESPACE, name, SERVICE).port("http2", 8080).ready(addresses)
}

/// A service with one slice of two endpoints.
fn gateway() -> KubeApi {
    let api = start();
    api.put_service(NAMESPACE, SERVICE, &[("http2", 8080)]).unwrap();
    api.put_slice(&slice("gateway-a", &["10.0.0.1", "10.0.0.2"])).unwrap();
    api
}

fn kubectl(api: &KubeApi) -> (Kubeconfig, Kubectl<'static>) {
    let kubeconfig = api.access(NAMESPACE).unwrap().kubeconfig().unwrap();
    let kubectl = Kubectl::new(kubeconfig.path(), None).unwrap();
    (kubeconfig, kubectl)
}

/// curl with what it needs to be let in.
struct Curl {
    directory: TempDir,
    address: SocketAddr,
    token: String,
    http2: bool,
}

impl Curl {
    fn new(api: &KubeApi) -> Self {
        let access = api.access(NAMESPACE).unwrap();
        let directory = TempDir::with_prefix("hgt-curl-").unwrap();
        fs::write(directory.path().join("ca.pem"), access.authority).unwrap();
        Self { directory, address: access.address, token: access.token, http2: false }
    }

    fn command(&self, target: &str) -> Command {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--no-buffer", "--noproxy", "*", "--max-time", "60"]);
        curl.arg(if self.http2 { "--http2" } else { "--http1.1" });
        curl.arg("--cacert").arg(self.directory.path().join("ca.pem"));
        curl.args(["--header", &format!("Authorization: Bearer {}", self.token)]);
        curl.args(["--user-agent", "curl-of-the-test"]);
        curl.arg(format!("https://{}{target}", self.address));
        curl
    }

    /// Status, `Retry-After` and body.
    fn ask(&self, target: &str) -> (u16, String, String) {
        let mut curl = self.command(target);
        let text = output(curl.args(["--write-out", "\n%{http_code} %header{retry-after}"])).unwrap();
        let (body, last) = text.rsplit_once('\n').unwrap();
        let (code, retry_after) = last.split_once(' ').unwrap();
        (code.parse().unwrap(), retry_after.to_owned(), body.to_owned())
    }

    /// The same with a body of JSON.
    fn get(&self, target: &str) -> (u16, Value) {
        let (code, _, body) = self.ask(target);
        (code, serde_json::from_str(&body).unwrap())
    }

    fn list(&self, query: &str) -> Value {
        let (code, list) = self.get(&format!("{SLICES}?{query}"));
        assert_eq!(code, 200, "{list}");
        list
    }

    fn watch(&self, query: &str) -> Lines {
        Lines::of(self.command(&format!("{SLICES}?watch=1&{query}"))).unwrap()
    }
}

/// The event's type, and its object.
fn event(watch: &Lines) -> (String, Value) {
    let mut event: Value = serde_json::from_str(&watch.next(SOON).unwrap()).unwrap();
    (event["type"].as_str().unwrap().to_owned(), event["object"].take())
}

/// Type and object's name.
fn named(watch: &Lines) -> (String, String) {
    let (kind, object) = event(watch);
    (kind, name(&object).to_owned())
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap()
}

fn version(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(name).collect()
}

#[test]
fn kubectl_reads_what_a_test_has_put() {
    let api = gateway();
    let terminating = Endpoint::terminating(&"10.0.0.3", true).on("edge-1", "zone-a");
    api.put_slice(&slice("gateway-b", &[]).endpoint(terminating)).unwrap();
    api.put_node("edge-1", "zone-a").unwrap();
    let (_kubeconfig, kubectl) = kubectl(&api);

    let json = kubectl.run(&["get", "endpointslices", "-n", NAMESPACE, "-o", "json"]).unwrap();
    let list: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(names(&list), ["gateway-a", "gateway-b"]);
    let [a, b] = &list["items"].as_array().unwrap()[..] else { panic!("{list}") };
    assert_eq!((&a["kind"], &a["apiVersion"]), (&"EndpointSlice".into(), &"discovery.k8s.io/v1".into()));
    assert_eq!(a["endpoints"][1]["addresses"][0], "10.0.0.2");
    assert_eq!(a["ports"][0]["port"], 8080);
    assert_eq!(b["endpoints"][0]["conditions"]["terminating"], true);
    assert_eq!(b["endpoints"][0]["zone"], "zone-a");

    let label = format!("kubernetes.io/service-name={SERVICE}");
    let text = kubectl.run(&["get", "endpointslices", "-l", &label, "-o", "name"]).unwrap();
    assert_eq!(
        text.lines().collect::<Vec<_>>(),
        ["endpointslice.discovery.k8s.io/gateway-a", "endpointslice.discovery.k8s.io/gateway-b"]
    );
    assert_eq!(kubectl.run(&["get", "endpointslices", "-l", "a=b", "-o", "name"]).unwrap(), "");

    // What people see: a name and an age.
    let table = kubectl.run(&["get", "svc"]).unwrap();
    let rows: Vec<Vec<_>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!((&rows[0][..], rows[1][0], rows.len()), (&["NAME", "AGE"][..], SERVICE, 2), "{table}");
    let zone = "jsonpath={.metadata.labels.topology\\.kubernetes\\.io/zone}";
    assert_eq!(kubectl.run(&["get", "node", "edge-1", "-o", zone]).unwrap(), "zone-a");
    let all = kubectl.run(&["get", "svc", "--all-namespaces", "-o", "name"]).unwrap();
    assert_eq!(all.trim(), format!("service/{SERVICE}"));
    assert!(kubectl.run(&["version"]).unwrap().contains("Server Version: v1."));

    let requests = api.requests();
    assert!(requests.iter().all(|request| request.token == Token::Right && request.method == "GET"));
    assert!(requests.iter().all(|request| request.user_agent.starts_with("kubectl")), "{requests:#?}");
    assert!(requests.iter().any(|request| request.parameter("labelSelector") == label));
}

#[test]
fn kubectl_sees_a_slice_come_while_it_watches() {
    let api = gateway();
    let (_kubeconfig, kubectl) = kubectl(&api);
    let watch = kubectl.watch(&["endpointslices", "-o", "name"]).unwrap();
    assert_eq!(watch.next(SOON).unwrap(), "endpointslice.discovery.k8s.io/gateway-a");
    api.wait_watches(Resource::EndpointSlices, 1).unwrap();
    api.put_slice(&slice("gateway-b", &["10.0.0.3"])).unwrap();
    assert_eq!(watch.next(SOON).unwrap(), "endpointslice.discovery.k8s.io/gateway-b");
    drop(watch);
    api.wait_watches(Resource::EndpointSlices, 0).unwrap();
}

#[test]
fn kubectl_says_why_it_is_refused() {
    let api = gateway();
    let (kubeconfig, kubectl) = kubectl(&api);
    let complaint = |args: &[&str]| format!("{:#}", kubectl.run(args).unwrap_err());

    api.forbid(Verb::List, Resource::EndpointSlices);
    let text = complaint(&["get", "endpointslices", "-n", NAMESPACE]);
    let wanted = format!(
        "Error from server (Forbidden): endpointslices.discovery.k8s.io is forbidden: User \"{USER}\" cannot list \
         resource \"endpointslices\" in API group \"discovery.k8s.io\" in the namespace \"{NAMESPACE}\""
    );
    assert!(text.contains(&wanted), "{text}");
    // What was not forbidden works on.
    kubectl.run(&["get", "svc", SERVICE]).unwrap();
    api.allow(Verb::List, Resource::EndpointSlices);
    kubectl.run(&["get", "endpointslices"]).unwrap();

    api.delete_service(NAMESPACE, SERVICE).unwrap();
    let text = complaint(&["get", "svc", SERVICE]);
    assert!(text.contains(&format!("(NotFound): services \"{SERVICE}\" not found")), "{text}");
    let text = complaint(&["get", "svc", SERVICE, "-n", "nowhere"]);
    assert!(text.contains("(NotFound): ") && text.contains("\"nowhere\""), "{text}");

    api.set_token("another");
    let text = complaint(&["get", "svc"]);
    assert!(text.contains("You must be logged in to the server"), "{text}");
    let last = api.requests().pop().unwrap();
    assert_eq!((last.token, last.answered), (Token::Wrong, Some(401)));
    kubeconfig.write(&api.access(NAMESPACE).unwrap()).unwrap();
    kubectl.run(&["get", "svc"]).unwrap();

    // One that nobody signed for this address.
    let stranger = start();
    let mut access = api.access(NAMESPACE).unwrap();
    access.authority = stranger.access(NAMESPACE).unwrap().authority;
    kubeconfig.write(&access).unwrap();
    let text = complaint(&["get", "svc"]);
    assert!(text.contains("certificate signed by unknown authority"), "{text}");
}

#[test]
fn lists_come_in_pages_of_one_moment() {
    let api = start();
    for name in ["a", "b", "c", "d", "e"] {
        api.put_slice(&slice(name, &["10.0.0.1"])).unwrap();
    }
    let curl = Curl::new(&api);
    let first = curl.list("limit=2");
    assert_eq!((names(&first), &first["metadata"]["remainingItemCount"]), (vec!["a", "b"], &3.into()));
    assert!(first["items"][0].get("kind").is_none(), "{first}");
    let token = |list: &Value| list["metadata"]["continue"].as_str().unwrap_or_default().to_owned();

    // Neither of these is in the list that was begun.
    api.delete_slice(NAMESPACE, "c").unwrap();
    api.put_slice(&slice("cc", &["10.0.0.1"])).unwrap();
    let second = curl.list(&format!("limit=2&continue={}", token(&first)));
    assert_eq!((names(&second), version(&second)), (vec!["c", "d"], version(&first)));
    let third = curl.list(&format!("limit=2&continue={}", token(&second)));
    assert_eq!((names(&third), token(&third)), (vec!["e"], String::new()));
    assert_eq!(names(&curl.list(OF_SERVICE)), ["a", "b", "cc", "d", "e"]);
    assert_eq!(names(&curl.list("fieldSelector=metadata.name%3Dcc")), ["cc"]);
    let exact = format!("resourceVersion={}&resourceVersionMatch=Exact", version(&first));
    assert_eq!(names(&curl.list(&exact)), ["a", "b", "c", "d", "e"]);

    api.forget_history();
    let (code, status) = curl.get(&format!("{SLICES}?limit=2&continue={}", token(&first)));
    assert_eq!((code, &status["reason"]), (410, &"Expired".into()), "{status}");
    let (code, status) = curl.get(&format!("{SLICES}?resourceVersion={}", api.version() + 1));
    assert_eq!((code, &status["reason"]), (504, &"Timeout".into()), "{status}");
}

#[test]
fn watches_tell_every_change_once() {
    let api = gateway();
    let curl = Curl::new(&api);
    let from = version(&curl.list(OF_SERVICE));
    let watch = curl.watch(&format!("{OF_SERVICE}&resourceVersion={from}"));
    let from_nothing = curl.watch("resourceVersion=0");
    api.wait_watches(Resource::EndpointSlices, 2).unwrap();
    let pair = |kind: &str, name: &str| (kind.to_owned(), name.to_owned());
    assert_eq!(named(&from_nothing), pair("ADDED", "gateway-a"));

    api.put_slice(&slice("gateway-b", &["10.0.0.3"])).unwrap();
    api.put_slice(&slice("gateway-a", &["10.0.0.1"])).unwrap();
    // Of another service, and in another namespace.
    let other = Slice::new(NAMESPACE, "gateway-b", "another");
    api.put_slice(&other).unwrap();
    api.put_slice(&Slice::new("default", "elsewhere", SERVICE)).unwrap();
    api.delete_slice(NAMESPACE, "gateway-a").unwrap();

    assert_eq!(named(&watch), pair("ADDED", "gateway-b"));
    let (kind, modified) = event(&watch);
    assert_eq!((kind.as_str(), name(&modified)), ("MODIFIED", "gateway-a"));
    assert_eq!((version(&modified), modified["metadata"]["generation"].as_u64()), (from + 2, Some(2)));
    assert_eq!(modified["endpoints"].as_array().unwrap().len(), 1);
    // As far as this watch can tell it is gone.
    let (kind, left) = event(&watch);
    assert_eq!((kind.as_str(), name(&left), version(&left)), ("DELETED", "gateway-b", from + 3));
    let (kind, deleted) = event(&watch);
    assert_eq!((kind.as_str(), name(&deleted), version(&deleted)), ("DELETED", "gateway-a", api.version()));
    watch.require_silence(A_WHILE).unwrap();
    for (kind, name) in [
        ("ADDED", "gateway-b"),
        ("MODIFIED", "gateway-a"),
        ("MODIFIED", "gateway-b"),
        ("DELETED", "gateway-a"),
    ] {
        assert_eq!(named(&from_nothing), pair(kind, name));
    }

    // From a version in the middle a watch goes on with what comes after it, and ends at its time.
    let resumed = curl.watch(&format!("{OF_SERVICE}&resourceVersion={}&timeoutSeconds=1", from + 2));
    assert_eq!(named(&resumed), pair("DELETED", "gateway-b"));
    assert_eq!(named(&resumed), pair("DELETED", "gateway-a"));
    let (rest, status) = resumed.end(SOON).unwrap();
    assert!(rest.is_empty() && status.success(), "{rest:?} {status}");
}

#[test]
fn bookmarks_outlive_forgotten_history() {
    let api = gateway();
    let curl = Curl::new(&api);
    let old = version(&curl.list(OF_SERVICE));
    let query = format!("{OF_SERVICE}&resourceVersion={old}");
    let watch = curl.watch(&format!("{query}&allowWatchBookmarks=true"));
    let without = curl.watch(&query);
    api.wait_watches(Resource::EndpointSlices, 2).unwrap();
    api.change_others(100);
    api.bookmark();
    let (kind, bookmark) = event(&watch);
    assert_eq!((kind.as_str(), version(&bookmark)), ("BOOKMARK", old + 100));
    assert_eq!((&bookmark["kind"], &bookmark["endpoints"]), (&"EndpointSlice".into(), &Value::Null));
    without.require_silence(A_WHILE).unwrap();

    api.forget_history();
    let refused = curl.watch(&query);
    let (kind, status) = event(&refused);
    assert_eq!(
        (kind.as_str(), &status["code"], &status["reason"]),
        ("ERROR", &410.into(), &"Expired".into())
    );
    assert!(refused.end(SOON).unwrap().1.success());
    let resumed = curl.watch(&format!("{OF_SERVICE}&resourceVersion={}", version(&bookmark)));
    api.wait_watches(Resource::EndpointSlices, 3).unwrap();
    api.put_slice(&slice("gateway-b", &["10.0.0.3"])).unwrap();
    assert_eq!(named(&resumed), ("ADDED".to_owned(), "gateway-b".to_owned()));
}

/// What a running watch prints after a fault, and how curl ends.
fn broken(http2: bool, fault: impl FnOnce(&KubeApi)) -> (Vec<String>, ExitStatus) {
    let api = gateway();
    let curl = Curl { http2, ..Curl::new(&api) };
    let watch = curl.watch(&format!("resourceVersion={}", api.version()));
    api.wait_watches(Resource::EndpointSlices, 1).unwrap();
    fault(&api);
    let end = watch.end(SOON).unwrap();
    assert_eq!(api.watches(Resource::EndpointSlices), 0);
    end
}

#[test]
fn running_watches_end_in_each_way() {
    for http2 in [false, true] {
        let (lines, status) = broken(http2, KubeApi::end_watches);
        assert!(lines.is_empty() && status.success(), "{lines:?} {status}");

        // CURLE_PARTIAL_FILE, CURLE_HTTP2_STREAM
        let (lines, status) = broken(http2, KubeApi::cut_watches);
        assert_eq!((lines.len(), status.code()), (0, Some(if http2 { 92 } else { 18 })), "{lines:?}");

        let (lines, status) = broken(http2, KubeApi::expire_watches);
        let event: Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!((&event["type"], &event["object"]["code"]), (&"ERROR".into(), &410.into()));
        assert!(lines.len() == 1 && status.success(), "{lines:?} {status}");

        let (lines, status) = broken(http2, KubeApi::truncate_watches);
        assert!(status.success() && lines.len() == 1, "{lines:?} {status}");
        assert!(serde_json::from_str::<Value>(&lines[0]).unwrap_err().is_eof(), "{lines:?}");

        let (lines, status) = broken(http2, |api| api.set_token("another"));
        assert!(lines.is_empty() && status.success(), "{lines:?} {status}");
    }
}

#[test]
fn running_watches_get_garbage_and_go_on_or_hear_nothing() {
    let api = gateway();
    let curl = Curl::new(&api);
    let watch = curl.watch(&format!("resourceVersion={}", api.version()));
    api.wait_watches(Resource::EndpointSlices, 1).unwrap();
    api.garble_watches();
    assert!(serde_json::from_str::<Value>(&watch.next(SOON).unwrap()).is_err());
    api.put_slice(&slice("gateway-b", &[])).unwrap();
    assert_eq!(named(&watch), ("ADDED".to_owned(), "gateway-b".to_owned()));
    api.freeze_watches();
    api.put_slice(&slice("gateway-c", &[])).unwrap();
    watch.require_silence(A_WHILE).unwrap();
    assert_eq!(api.watches(Resource::EndpointSlices), 1);
}

#[test]
fn requests_fail_in_each_way_and_are_recorded() {
    let api = gateway();
    let curl = Curl::new(&api);
    api.fail_times(2, Failure::Internal);
    for _ in 0..2 {
        let (code, status) = curl.get(SLICES);
        assert_eq!((code, &status["reason"]), (500, &"InternalError".into()), "{status}");
    }
    curl.list("");

    api.fail(Failure::TooManyRequests { retry_after: 3 });
    let (code, retry_after, body) = curl.ask(SLICES);
    assert_eq!((code, retry_after.as_str()), (429, "3"), "{body}");
    api.fail(Failure::Gone);
    let (code, status) = curl.get(&format!("{SLICES}?watch=1&resourceVersion=7"));
    assert_eq!((code, &status["code"], &status["reason"]), (410, &410.into(), &"Expired".into()));
    api.fail(Failure::Silence);
    let status = curl.command(SLICES).args(["--max-time", "0.5"]).status().unwrap();
    // CURLE_OPERATION_TIMEDOUT
    assert_eq!(status.code(), Some(28));
    api.heal();
    curl.list(OF_SERVICE);

    let requests = api.requests();
    let answered: Vec<_> = requests.iter().map(|request| request.answered).collect();
    assert_eq!(
        answered,
        [Some(500), Some(500), Some(200), Some(429), Some(410), None, Some(200)],
        "{requests:#?}"
    );
    assert!(requests.is_sorted_by_key(|request| request.at));
    assert!(
        requests.iter().all(|request| request.user_agent == "curl-of-the-test" && request.is_for_slices())
    );
    assert!(requests[4].is_watch() && !requests[6].is_watch());
    assert_eq!(requests[6].parameter("labelSelector"), format!("kubernetes.io/service-name={SERVICE}"));

    let (code, status) = curl.get(&format!("{SLICES}?watch=1&sendInitialEvents=true"));
    assert_eq!((code, &status["reason"]), (422, &"Invalid".into()), "{status}");
    assert_eq!(curl.ask("/apis/apps/v1").0, 404);
    assert_eq!(api.requests().len(), requests.len() + 2);
}

#[test]
fn a_stopped_server_refuses_and_comes_back_on_its_port() {
    let mut api = gateway();
    let curl = Curl::new(&api);
    let watch = curl.watch(&format!("resourceVersion={}", api.version()));
    api.wait_watches(Resource::EndpointSlices, 1).unwrap();
    api.stop().unwrap();
    assert!(!watch.end(SOON).unwrap().1.success());
    assert_eq!(TcpStream::connect(api.address).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    // CURLE_COULDNT_CONNECT
    assert_eq!(curl.command(SLICES).status().unwrap().code(), Some(7));
    api.restart().unwrap();
    assert_eq!(names(&curl.list("")), ["gateway-a"]);
    api.restart().unwrap();
    assert_eq!(names(&curl.list("")), ["gateway-a"]);
    assert_eq!(api.requests().len(), 3);
}

#[test]
fn a_server_is_in_its_namespace_alone() {
    let namespace = Namespace::create(&format!("hgt-{}-kube", std::process::id())).unwrap();
    let mut api = KubeApi::start(&namespace, "[::1]:6443".parse().unwrap()).unwrap();
    api.put_slice(&slice("gateway-a", &["10.0.0.1"])).unwrap();
    let kubeconfig = api.access(NAMESPACE).unwrap().kubeconfig().unwrap();
    let inside = Kubectl::new(kubeconfig.path(), Some(&namespace)).unwrap();
    let outside = Kubectl::new(kubeconfig.path(), None).unwrap();
    for _ in 0..2 {
        let text = inside.run(&["get", "endpointslices", "-o", "name"]).unwrap();
        assert_eq!(text.trim(), "endpointslice.discovery.k8s.io/gateway-a");
        outside.run(&["get", "endpointslices"]).unwrap_err();
        api.restart().unwrap();
    }
}
