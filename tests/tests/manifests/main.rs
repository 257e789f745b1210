//! `deploy/kubernetes`: the base and every overlay build, are what the API knows, and say what has to be said.
#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

mod dashboard;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use clap::Parser as _;
use lb_tests::agent::headgate;
use lb_tests::cmd::output;
use lb_tests::kustomize::{Manifests, minor, versions};
use lb_userspace::cli::{self, Cli};
use serde_json::{Value, json};

/// The minor version from which on the API has all fields that the manifests use.
const OLDEST: u32 = 30;

fn kubernetes() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kubernetes")
}

/// The base and the overlays, by name.
static ALL: LazyLock<BTreeMap<String, Manifests>> = LazyLock::new(|| {
    let entries = fs::read_dir(kubernetes().join("overlays")).unwrap();
    let overlays = entries.map(|entry| entry.unwrap().path());
    let directories = std::iter::once(kubernetes().join("base")).chain(overlays);
    let name = |directory: &Path| directory.file_name().unwrap().to_str().unwrap().to_owned();
    directories.map(|directory| (name(&directory), Manifests::build(&directory).unwrap())).collect()
});

fn of(name: &str) -> &'static Manifests {
    &ALL[name]
}

/// The pods' specification.
fn pod(manifests: &Manifests) -> &Value {
    &manifests.get("DaemonSet", "headgate").unwrap()["spec"]["template"]["spec"]
}

fn container(manifests: &Manifests) -> &Value {
    let containers = pod(manifests)["containers"].as_array().unwrap();
    containers.iter().find(|container| container["name"] == "headgate").unwrap()
}

/// The file in the ConfigMap that the container has its configuration from, as text.
fn configuration(manifests: &Manifests) -> &str {
    let config_map = manifests.get("ConfigMap", "headgate").unwrap();
    config_map["data"]["headgate.yaml"].as_str().unwrap()
}

fn parsed(configuration: &str) -> Value {
    serde_saphyr::from_str(configuration).unwrap()
}

fn named<'a>(list: &'a Value, name: &str) -> &'a Value {
    list.as_array().unwrap().iter().find(|item| item["name"] == name).unwrap()
}

/// For the files of one test; dropping it removes them.
struct Directory(PathBuf);

impl Directory {
    fn new(what: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("hgt-{}-{what}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        Self(directory)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let file = self.0.join(name);
        fs::write(&file, text).unwrap();
        file
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn everything_is_what_the_api_knows() {
    let versions = versions().unwrap();
    let versions: Vec<&String> = versions.iter().filter(|version| minor(version) >= Some(OLDEST)).collect();
    assert!(versions.len() >= 5, "{versions:?}");
    for (name, manifests) in &*ALL {
        for version in &versions {
            let unknown = manifests.validate(version);
            let unknown = unknown.unwrap_or_else(|error| panic!("{name}, Kubernetes {version}: {error:#}"));
            // The test of the dashboard looks at it.
            let custom = BTreeSet::from(["PodMonitor".to_owned()]);
            assert!(unknown.is_subset(&custom), "{name}, Kubernetes {version}: {unknown:?}");
        }
    }
}

/// docs/kubernetes.md says what to do there.
#[test]
fn before_the_oldest_version_one_field_is_missing() {
    let versions = versions().unwrap();
    let before = versions.iter().rfind(|version| minor(version) < Some(OLDEST)).unwrap();
    let error = format!("{:#}", of("base").validate(before).unwrap_err());
    assert!(
        error.contains("spec.template.spec.securityContext: ") && error.contains("'appArmorProfile'"),
        "{error}"
    );
    assert_eq!(error.lines().count(), 1, "{error}");
}

#[test]
fn pods_are_of_the_hosts_network_and_go_one_at_a_time() {
    for (name, manifests) in &*ALL {
        let daemon_set = &manifests.get("DaemonSet", "headgate").unwrap()["spec"];
        let update = json!({
            "type": "RollingUpdate",
            "rollingUpdate": { "maxUnavailable": 1, "maxSurge": 0 },
        });
        assert_eq!(daemon_set["updateStrategy"], update, "{name}");
        assert!(daemon_set["minReadySeconds"].as_u64() > Some(0), "{name}");
        let pod = pod(manifests);
        assert_eq!(pod["hostNetwork"], true, "{name}");
        assert_eq!(pod["dnsPolicy"], "ClusterFirstWithHostNet", "{name}");
        assert_eq!(pod["priorityClassName"], "system-node-critical", "{name}");
        assert_eq!(pod["hostPID"], Value::Null, "{name}");
        let labels = &daemon_set["template"]["metadata"]["labels"];
        for (key, value) in daemon_set["selector"]["matchLabels"].as_object().unwrap() {
            assert_eq!(&labels[key], value, "{name}");
        }
    }
}

#[test]
fn privileges_are_five_capabilities_but_where_they_are_asked_for() {
    for (name, manifests) in &*ALL {
        let context = &container(manifests)["securityContext"];
        assert_eq!(context["readOnlyRootFilesystem"], true, "{name}");
        let all_containers = ["containers", "initContainers"].into_iter();
        let all_containers = all_containers.filter_map(|list| pod(manifests)[list].as_array()).flatten();
        let privileged: Vec<&str> = all_containers
            .filter(|container| container["securityContext"]["privileged"] == true)
            .map(|container| container["name"].as_str().unwrap())
            .collect();
        if name == "privileged" {
            assert_eq!(privileged, ["headgate"]);
            // With `false` the API server refuses it, and with capabilities it says two things at once.
            assert_eq!(context["allowPrivilegeEscalation"], true);
            assert_eq!(context["capabilities"], Value::Null);
            continue;
        }
        // It sets the node's answers to ARP, once.
        let expected: &[&str] = if name == "keepalived" { &["keepalived-prepare"] } else { &[] };
        assert_eq!(privileged, expected, "{name}");
        let capabilities = json!({
            "drop": ["ALL"],
            "add": ["BPF", "NET_ADMIN", "NET_RAW", "PERFMON", "NET_BIND_SERVICE"],
        });
        assert_eq!(context["capabilities"], capabilities, "{name}");
        assert_eq!(context["privileged"], false, "{name}");
        assert_eq!(context["allowPrivilegeEscalation"], false, "{name}");
        // Other users get no capability from Kubernetes.
        assert_eq!(pod(manifests)["securityContext"]["runAsUser"], 0, "{name}");
        assert_eq!(pod(manifests)["securityContext"]["seccompProfile"]["type"], "RuntimeDefault", "{name}");
        assert_eq!(pod(manifests)["securityContext"]["appArmorProfile"]["type"], "Unconfined", "{name}");
    }
}

#[test]
fn what_outlives_a_pod_is_on_the_host() {
    for (name, manifests) in &*ALL {
        let pod = pod(manifests);
        let mounts = container(manifests)["volumeMounts"].as_array().unwrap();
        let at = |path: &str| mounts.iter().find(|mount| mount["mountPath"] == path).unwrap();
        let volume = |path: &str| named(&pod["volumes"], at(path)["name"].as_str().unwrap());
        for (path, kind) in [
            ("/sys/fs/bpf", "Directory"),
            ("/run/headgate", "DirectoryOrCreate"),
            ("/var/lib/headgate", "DirectoryOrCreate"),
        ] {
            assert_eq!(volume(path)["hostPath"], json!({ "path": path, "type": kind }), "{name}");
        }
        let propagation = if name == "privileged" { "Bidirectional" } else { "HostToContainer" };
        assert_eq!(at("/sys/fs/bpf")["mountPropagation"], propagation, "{name}");
        assert_eq!(volume("/etc/headgate")["configMap"]["name"], "headgate", "{name}");
        // A file of its own would be the ConfigMap's at the pod's start, for good.
        assert!(mounts.iter().all(|mount| mount["subPath"].is_null()), "{name}: {mounts:?}");
    }
}

#[test]
fn the_arguments_are_the_command_lines_own() {
    for (name, manifests) in &*ALL {
        let args = container(manifests)["args"].as_array().unwrap();
        let args = args.iter().map(|arg| arg.as_str().unwrap());
        let cli = Cli::try_parse_from(std::iter::once("headgate").chain(args.clone()));
        let cli = cli.unwrap_or_else(|error| panic!("{name}: {error}"));
        let cli::Command::Run(run) = cli.command else { panic!("{name}: {:?}", cli.command) };
        assert_eq!(run.config, Path::new("/etc/headgate/headgate.yaml"), "{name}");
        assert_eq!(run.leave_datapath, name != "drain-on-stop", "{name}");
        assert!(args.clone().any(|arg| arg == "--watch-config"), "{name}");
        // The defaults of the places are where the volumes are mounted.
        assert_eq!(cli.places.bpffs, Path::new("/sys/fs/bpf/headgate"), "{name}");
        assert_eq!(cli.places.run_dir, Path::new("/run/headgate"), "{name}");
        assert_eq!(run.state_dir, Path::new("/var/lib/headgate"), "{name}");
        let node = named(&container(manifests)["env"], "NODE_NAME");
        assert_eq!(node["valueFrom"]["fieldRef"]["fieldPath"], "spec.nodeName", "{name}");
    }
}

#[test]
fn the_configuration_is_good_and_what_probes_and_ports_say() {
    for (name, manifests) in &*ALL {
        let configuration = configuration(manifests);
        let directory = Directory::new(&format!("check-{name}"));
        let file = directory.write("headgate.yaml", configuration);
        let check = output(Command::new(headgate().unwrap()).arg("check").arg(file));
        check.unwrap_or_else(|error| panic!("{name}: {error:#}"));

        let configuration = parsed(configuration);
        let admin: SocketAddr = configuration["admin"]["address"].as_str().unwrap().parse().unwrap();
        let container = container(manifests);
        for (probe, path) in [
            ("startupProbe", "/server_info"),
            ("readinessProbe", "/ready"),
            ("livenessProbe", "/server_info"),
        ] {
            let get = json!({ "host": "127.0.0.1", "port": admin.port(), "path": path });
            assert_eq!(container[probe]["httpGet"], get, "{name}");
        }
        assert!(admin.ip().is_loopback() || admin.ip().is_unspecified(), "{name}: {admin}");
        // Whoever is on the wire would see everything, so it is open only where somebody asks for it.
        assert_eq!(admin.ip().is_loopback(), name != "monitoring", "{name}");

        let mut ports = BTreeSet::from([admin.port()]);
        for listener in configuration["listeners"].as_array().unwrap() {
            let address: SocketAddr = listener["address"].as_str().unwrap().parse().unwrap();
            ports.insert(address.port());
        }
        let declared = container["ports"].as_array().unwrap().iter().map(|port| {
            assert_eq!(port["containerPort"], port["hostPort"], "{name}");
            u16::try_from(port["containerPort"].as_u64().unwrap()).unwrap()
        });
        assert_eq!(declared.collect::<BTreeSet<u16>>(), ports, "{name}");
    }
}

/// The gateways of the configuration are those of the Service, by DNS as well as by the API.
#[test]
fn the_configuration_asks_for_the_service_that_there_is() {
    for (name, manifests) in &*ALL {
        let service = manifests.get("Service", "istio-ingressgateway-headgate").unwrap();
        let spec = &service["spec"];
        assert_eq!(service["metadata"]["namespace"], "istio-system", "{name}");
        assert_eq!(spec["clusterIP"], "None", "{name}");
        assert_ne!(spec["publishNotReadyAddresses"], true, "{name}");
        let ports = spec["ports"].as_array().unwrap();
        // What a headless Service says of its pods is their own port.
        assert!(ports.iter().all(|port| port["port"] == port["targetPort"]), "{name}");
        for cluster in parsed(configuration(manifests))["clusters"].as_array().unwrap() {
            let discovery = &cluster["discovery"];
            if name == "dns-discovery" {
                let host = discovery["hosts"][0].as_str().unwrap();
                let known = ports.iter().any(|port| {
                    let port = &port["port"];
                    host == format!("istio-ingressgateway-headgate.istio-system.svc.cluster.local:{port}")
                });
                assert!(known, "{name}: {host}");
            } else {
                assert_eq!(discovery["type"], "kubernetes", "{name}");
                assert_eq!(discovery["namespace"], "istio-system", "{name}");
                assert_eq!(discovery["service"], "istio-ingressgateway-headgate", "{name}");
                assert!(ports.iter().any(|port| port["name"] == discovery["port"]), "{name}: {discovery}");
            }
        }
    }
}

#[test]
fn rights_are_to_read_what_is_needed() {
    for (name, manifests) in &*ALL {
        let rights = |object: &&Value| {
            let group = object["apiVersion"].as_str().unwrap();
            group.starts_with("rbac.authorization.k8s.io/")
        };
        let rights: Vec<&Value> = manifests.objects.iter().filter(rights).collect();
        let account = manifests.get("ServiceAccount", "headgate").unwrap();
        assert_eq!(pod(manifests)["serviceAccountName"], "headgate", "{name}");
        if name == "dns-discovery" {
            assert!(rights.is_empty(), "{rights:?}");
            assert_eq!(account["automountServiceAccountToken"], false);
            continue;
        }
        assert_eq!(rights.len(), 2, "{name}: {rights:?}");
        let role = manifests.get("Role", "headgate").unwrap();
        let rules = json!([
            { "apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["get", "list", "watch"] },
            { "apiGroups": [""], "resources": ["services"], "verbs": ["get"] },
        ]);
        assert_eq!(role["rules"], rules, "{name}");
        let binding = manifests.get("RoleBinding", "headgate").unwrap();
        assert_eq!(role["metadata"]["namespace"], "istio-system", "{name}");
        assert_eq!(binding["metadata"]["namespace"], "istio-system", "{name}");
        let role_ref = json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "headgate" });
        assert_eq!(binding["roleRef"], role_ref, "{name}");
        let subject =
            json!([{ "kind": "ServiceAccount", "name": "headgate", "namespace": "headgate-system" }]);
        assert_eq!(binding["subjects"], subject, "{name}");
    }
}

#[test]
fn overlays_do_what_they_are_named_after() {
    let edge_nodes = of("edge-nodes");
    let required =
        &pod(edge_nodes)["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    let edge = json!({ "key": "node-role.kubernetes.io/edge", "operator": "Exists" });
    assert_eq!(required, &json!({ "nodeSelectorTerms": [{ "matchExpressions": [edge] }] }));
    assert!(pod(edge_nodes)["tolerations"].as_array().unwrap().contains(&edge));

    let drain_on_stop = of("drain-on-stop");
    // The default of `drain_timeout`, which the configuration does not change.
    assert!(!configuration(drain_on_stop).contains("drain_timeout"));
    assert!(pod(drain_on_stop)["terminationGracePeriodSeconds"].as_u64() > Some(600));
}

/// What the overlays change of the configuration is what they are for.
#[test]
fn configurations_of_overlays_follow_that_of_the_base() {
    let without = |name: &str, changed: &[&str]| {
        let mut configuration = parsed(configuration(of(name)));
        for pointer in changed {
            configuration.pointer_mut(pointer).unwrap().take();
        }
        configuration
    };
    assert_eq!(configuration(of("edge-nodes")), configuration(of("base")));
    assert_eq!(without("monitoring", &["/admin"]), without("edge-nodes", &["/admin"]));
    let discovery = ["/clusters/0/discovery", "/clusters/1/discovery"];
    assert_eq!(without("dns-discovery", &discovery), without("edge-nodes", &discovery));
}

#[test]
fn the_image_is_this_version() {
    assert_eq!(container(of("base"))["image"], format!("headgate:{}", env!("CARGO_PKG_VERSION")));
}

/// The kustomization that docs/kubernetes.md shows, with the base and several components.
#[test]
fn the_overlay_of_the_documentation_builds() {
    let documentation = fs::read_to_string(kubernetes().join("../../docs/kubernetes.md")).unwrap();
    let (_, rest) = documentation.split_once("```yaml\n# kustomization.yaml\n").unwrap();
    let (kustomization, _) = rest.split_once("```").unwrap();
    let directory = Directory::new("own-overlay");
    directory.write("kustomization.yaml", kustomization);
    directory.write("headgate.yaml", &configuration(of("base")).replace("127.0.0.1:8001", "0.0.0.0:8001"));
    let repository = fs::canonicalize(kubernetes().join("../..")).unwrap();
    std::os::unix::fs::symlink(repository, directory.0.join("headgate")).unwrap();
    let own = Manifests::build(&directory.0).unwrap();
    assert!(configuration(&own).contains("0.0.0.0:8001"));
    assert!(
        container(&own)["image"]
            .as_str()
            .unwrap()
            .ends_with(&format!("/headgate:{}", env!("CARGO_PKG_VERSION")))
    );
    assert!(!pod(&own)["affinity"].is_null());
    own.get("PodMonitor", "headgate").unwrap();
}
