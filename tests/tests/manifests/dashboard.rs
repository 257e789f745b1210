//! The overlay `monitoring`: what Prometheus is to scrape is there, and what the dashboard asks for is on that page.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use lb_common::reason::{Fate, Reason};
use lb_tests::agent::{Agent, headgate};
use lb_tests::cmd::output;
use lb_tests::kustomize::Manifests;
use lb_tests::scenario::Setup;
use lb_tests::topology::{Family, Topology};
use regex::Regex;
use serde_json::{Value, json};

use crate::{Directory, configuration, container, of, parsed};

/// Metrics of others, with the labels that the dashboard may ask them for.
const FOREIGN: [(&str, &[&str]); 2] =
    [("up", &[]), ("container_cpu_usage_seconds_total", &["namespace", "container", "pod"])];
/// Labels that Prometheus and the PodMonitor give to every series of the agents.
const OF_PROMETHEUS: [&str; 2] = ["job", "node"];

fn dashboard(monitoring: &Manifests) -> Value {
    let config_map = monitoring.get("ConfigMap", "headgate-dashboard").unwrap();
    assert_eq!(config_map["metadata"]["labels"]["grafana_dashboard"], "1");
    serde_json::from_str(config_map["data"]["headgate-dashboard.json"].as_str().unwrap()).unwrap()
}

fn panels(dashboard: &Value) -> &Vec<Value> {
    dashboard["panels"].as_array().unwrap()
}

/// Title of the panel, and query.
fn queries(dashboard: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let of_panel = |panel: &Value| {
        let title = text(&panel["title"]);
        let targets = panel["targets"].as_array().cloned().unwrap_or_default();
        targets.into_iter().map(move |target| (title.clone(), text(&target["expr"])))
    };
    panels(dashboard).iter().flat_map(of_panel).collect()
}

fn names<'a>(regex: &str, text: &'a str) -> Vec<&'a str> {
    let regex = Regex::new(regex).unwrap();
    regex.captures_iter(text).map(|found| found.get(1).unwrap().as_str()).collect()
}

#[test]
fn the_dashboard_is_one_that_grafana_reads() {
    let dashboard = dashboard(of("monitoring"));
    assert!(dashboard["schemaVersion"].as_u64() >= Some(30));
    assert!(["uid", "title"].iter().all(|key| dashboard[key].as_str().is_some_and(|text| !text.is_empty())));
    let mut ids = BTreeSet::new();
    let mut taken = BTreeSet::new();
    for panel in panels(&dashboard) {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}");
        let side = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(side("x") + side("w") <= 24, "{title}");
        for x in side("x")..side("x") + side("w") {
            for y in side("y")..side("y") + side("h") {
                assert!(taken.insert((x, y)), "{title} covers another panel");
            }
        }
        let known = ["row", "stat", "timeseries", "table"];
        assert!(known.contains(&panel["type"].as_str().unwrap()), "{title}");
        if panel["type"] == "row" {
            continue;
        }
        let source = json!({ "type": "prometheus", "uid": "${datasource}" });
        assert_eq!(panel["datasource"], source, "{title}");
        let targets = panel["targets"].as_array().unwrap();
        let references: BTreeSet<&str> =
            targets.iter().map(|target| target["refId"].as_str().unwrap()).collect();
        assert_eq!(references.len(), targets.len(), "{title}");
    }
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let variables: BTreeSet<&str> = variables.iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(variables, BTreeSet::from(["datasource", "job", "node"]));
    for (title, query) in queries(&dashboard) {
        let used = names(r"\$([a-z_]+)", &query);
        let known = |name: &&str| variables.contains(name) || *name == "__rate_interval";
        assert!(used.iter().all(known), "{title}: {used:?}");
    }
}

/// As rules, which are what promtool takes.
#[test]
fn the_queries_are_promql() {
    let queries = queries(&dashboard(of("monitoring")));
    let rules: Vec<Value> = queries
        .iter()
        .enumerate()
        .map(|(number, (_, query))| {
            let query = query.replace("$__rate_interval", "1m").replace("$job", ".*").replace("$node", ".*");
            json!({ "record": format!("query:{number}"), "expr": query })
        })
        .collect();
    assert!(rules.len() >= 25, "{}", rules.len());
    let directory = Directory::new("rules");
    let rules = json!({ "groups": [{ "name": "dashboard", "rules": rules }] });
    let file = directory.write("rules.yaml", &rules.to_string());
    output(Command::new(promtool()).args(["check", "rules"]).arg(file)).unwrap();
}

#[test]
fn reasons_are_the_datapaths() {
    let dropped: BTreeSet<&str> =
        names_of(Reason::ALL.iter().filter(|reason| reason.fate() == Fate::Dropped));
    let passed: BTreeSet<&str> = names_of(Reason::ALL.iter().filter(|reason| reason.fate() == Fate::Passed));
    let queries = queries(&dashboard(of("monitoring")));
    let of_panel = |wanted: &str| {
        let (_, query) = queries.iter().find(|(title, _)| title == wanted).unwrap();
        let list = names("reason=~\"([a-z_|]+)\"", query)[0];
        list.split('|').map(str::to_owned).collect::<BTreeSet<String>>()
    };
    assert_eq!(of_panel("Packets dropped by reason"), dropped.iter().map(ToString::to_string).collect());
    let to_proxy = of_panel("Left to the proxy by reason");
    assert!(to_proxy.iter().all(|name| passed.contains(name.as_str())), "{to_proxy:?}");
    // These are worded so.
    let worded = Reason::ALL.iter().filter(|reason| reason.help().starts_with("A SYN for the proxy"));
    assert_eq!(to_proxy, names_of(worded).iter().map(ToString::to_string).collect());
}

fn names_of<'a>(reasons: impl Iterator<Item = &'a Reason>) -> BTreeSet<&'a str> {
    reasons.map(|reason| reason.name()).collect()
}

/// An agent with the overlay's configuration, but for the gateways, answers at the PodMonitor's path with every metric
/// and label that the dashboard asks for.
#[test]
fn what_the_dashboard_asks_for_is_scraped() {
    let monitoring = of("monitoring");
    let monitor = &monitoring.get("PodMonitor", "headgate").unwrap()["spec"];
    let endpoint = &monitor["podMetricsEndpoints"][0];
    let labels = &monitoring.get("DaemonSet", "headgate").unwrap()["spec"]["template"]["metadata"]["labels"];
    for (key, value) in monitor["selector"]["matchLabels"].as_object().unwrap() {
        assert_eq!(&labels[key], value);
    }
    // The fields that the operator's API has for these purposes.
    let keys: BTreeSet<&str> = endpoint.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, BTreeSet::from(["interval", "path", "port", "relabelings", "scrapeTimeout"]));
    let ports = container(monitoring)["ports"].as_array().unwrap();
    let port = ports.iter().find(|port| port["name"] == endpoint["port"]).unwrap();

    let setup = Setup::Tc;
    let topology = Topology::new(&setup.options()).unwrap();
    let mut config = parsed(configuration(monitoring));
    for cluster in config["clusters"].as_array_mut().unwrap() {
        cluster["discovery"] = json!({ "type": "static", "hosts": [Family::V4.backend(1).to_string()] });
    }
    let options = ["--datapath", setup.rung().name()];
    let binary = headgate().unwrap();
    let _agent = Agent::start_with(&binary, &topology, &config.to_string(), &options).unwrap();
    // From outside of the node, as Prometheus does.
    let (node, port, path) = (Family::V4.lb(0), &port["containerPort"], endpoint["path"].as_str().unwrap());
    let page =
        topology.client.run("curl", &["-sS", "--fail", &format!("http://{node}:{port}{path}")]).unwrap();
    let scraped = labels_by_metric(&page);

    let dashboard = dashboard(monitoring);
    let selector = Regex::new(r"([a-z_]+)\{([^}]*)\}").unwrap();
    let mut asked = 0;
    for (title, query) in queries(&dashboard) {
        let mut union: BTreeSet<&str> = OF_PROMETHEUS.into_iter().collect();
        for found in selector.captures_iter(&query) {
            let (_, [metric, matchers]) = found.extract();
            let labels: BTreeSet<&str> = match FOREIGN.iter().find(|(name, _)| *name == metric) {
                Some((_, labels)) => labels.iter().copied().collect(),
                None => {
                    let labels = scraped.get(metric);
                    let labels = labels.unwrap_or_else(|| panic!("{title}: {metric} is not on the page"));
                    labels.iter().map(String::as_str).collect()
                }
            };
            union.extend(labels);
            for label in names(r"([a-z_]+)(?:=~|!~|!=|=)", matchers) {
                assert!(union.contains(label), "{title}: {metric} has no label {label}");
            }
            asked += 1;
        }
        let grouped = names(r"by \(([^)]*)\)", &query);
        for label in grouped.iter().flat_map(|list| list.split(", ")) {
            assert!(union.contains(label), "{title}: nothing has the label {label}");
        }
        // No metric escapes by having no selector.
        let own = names(r"((?:headgate|envoy)_[a-z_]+)", &query).len();
        let own_selected = names(r"((?:headgate|envoy)_[a-z_]+)\{", &query).len();
        // `envoy_cluster_name` is a label.
        let labels = names(r"(envoy_cluster_name)", &query).len();
        assert_eq!(own, own_selected + labels, "{title}: {query}");
    }
    assert!(asked >= 30, "{asked}");
}

/// The labels that the series of each metric of a page have.
fn labels_by_metric(page: &str) -> BTreeMap<&str, BTreeSet<String>> {
    let mut metrics: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap();
        let labels = names("(?:\\{|\",)([a-z_]+)=\"", line).into_iter().map(str::to_owned);
        metrics.entry(name).or_default().extend(labels);
    }
    metrics
}

/// `$PROMTOOL`, or the one that `cargo xtask setup` unpacks for this clone.
fn promtool() -> std::path::PathBuf {
    std::env::var_os("PROMTOOL").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/prometheus/usr/bin/promtool"),
        Into::into,
    )
}
