//! Endpoints of a file that changes.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;

use super::*;
use crate::discovery::feed::{Feed, Report};
use crate::discovery::file::run;
use crate::model::EndpointFile;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// The file with these endpoints; each has its last byte and its status.
fn text(endpoints: &[(u8, &str)]) -> String {
    let endpoint = |(last, status): &(u8, &str)| {
        let address = format!("{{ socket_address: {{ address: 192.0.2.{last}, port_value: 80 }} }}");
        format!("{{ endpoint: {{ address: {address} }}, health_status: {status} }}")
    };
    let endpoints: Vec<String> = endpoints.iter().map(endpoint).collect();
    format!("cluster_name: gateway\nendpoints:\n- lb_endpoints: [{}]\n", endpoints.join(", "))
}

async fn next(reports: &mut mpsc::Receiver<(u64, Arc<str>, Report)>) -> Report {
    let (_, _, report) =
        timeout(PATIENCE, reports.recv()).await.expect("a report").expect("a source that goes on");
    report
}

/// Addresses, those that are not ready with a `-`.
fn shown(report: &Report) -> Vec<String> {
    let Report::Endpoints { endpoints, .. } = report else { panic!("{report:?}") };
    let mark = |ready| if ready { "" } else { "-" };
    endpoints.iter().map(|endpoint| format!("{}{}", mark(endpoint.ready), endpoint.address.ip())).collect()
}

/// Every kind of change is seen, none of them twice.
#[tokio::test]
async fn the_source_follows_its_file() {
    let scratch = Scratch::new();
    let at = |name: &str| scratch.0.join(name);
    for (version, endpoints) in
        [("..1", &[(1, "HEALTHY")][..]), ("..2", &[(1, "DRAINING"), (2, "UNHEALTHY")])]
    {
        fs::create_dir(at(version)).unwrap();
        fs::write(at(version).join("e.yaml"), text(endpoints)).unwrap();
    }
    symlink("..1", at("..data")).unwrap();
    symlink("..data/e.yaml", at("e.yaml")).unwrap();
    let path = at("e.yaml");
    let (feed, mut reports) = Feed::alone();
    let mut tasks = JoinSet::new();
    tasks.spawn(run(EndpointFile { path: path.clone(), cluster_name: "gateway".to_owned() }, feed));
    let report = next(&mut reports).await;
    assert_eq!(shown(&report), ["192.0.2.1"]);
    let Report::Endpoints { why, .. } = report else { unreachable!() };
    assert_eq!(why, format!("in {}", path.display()));

    symlink("..2", at("next")).unwrap();
    fs::rename(at("next"), at("..data")).unwrap();
    let report = next(&mut reports).await;
    assert_eq!(shown(&report), ["-192.0.2.2"]);
    let Report::Endpoints { left, .. } = report else { unreachable!() };
    let why = format!("DRAINING in {}", path.display());
    assert_eq!(left, [("192.0.2.1:80".parse().unwrap(), why)].into());

    fs::write(&path, "cluster_name: gateway\nendpoints: [{ lb_endpoint: [] }, { priority: 200 }]\n").unwrap();
    let Report::Failed(why) = next(&mut reports).await else { panic!("a broken file") };
    assert!(
        why.starts_with(&format!("{}:2:15: endpoints[0].lb_endpoint: unknown key", path.display())),
        "{why}"
    );
    assert!(why.ends_with(" (and 1 more)"), "{why}");

    fs::write(at("next"), text(&[(3, "UNKNOWN")])).unwrap();
    fs::rename(at("next"), &path).unwrap();
    assert_eq!(shown(&next(&mut reports).await), ["192.0.2.3"]);

    fs::remove_file(&path).unwrap();
    let Report::Failed(why) = next(&mut reports).await else { panic!("no file") };
    assert!(why.starts_with(&format!("{}: cannot read: No such file", path.display())), "{why}");

    fs::write(&path, text(&[])).unwrap();
    assert_eq!(shown(&next(&mut reports).await), [""; 0]);
    assert!(timeout(Duration::from_secs(1), reports.recv()).await.is_err(), "a report of nothing");
    tasks.abort_all();
}
