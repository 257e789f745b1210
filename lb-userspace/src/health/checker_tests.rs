use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::timeout;

use super::*;
use crate::model::{Jitter, Pace, Probe, TcpProbe};

const MS: Duration = Duration::from_millis(1);
/// Longer than anything here takes; what is waited for comes or the test fails.
const PATIENCE: Duration = Duration::from_secs(20);

fn check(version: u64) -> Arc<Check> {
    let probe = Probe::Tcp(TcpProbe::default());
    Arc::new(Check {
        cluster: "web".into(),
        version,
        prober: Prober::new(&probe).unwrap(),
        check: HealthCheck {
            probe,
            port: None,
            interval: MS * 10,
            timeout: Duration::from_secs(5),
            unhealthy: 2,
            healthy: 2,
            jitter: Jitter::default(),
            pace: Pace::default(),
        },
        traffic: Arc::default(),
    })
}

fn endpoint(at: SocketAddr, id: u64) -> Endpoint {
    Endpoint {
        address: SocketAddr::from(([192, 0, 2, 1], 80)),
        id,
        at,
        host: None,
        source: None,
        adopted: None,
        tell_of_successes: false,
    }
}

async fn next(checker: &mut Checker) -> Change {
    timeout(PATIENCE, checker.changed()).await.expect("a change")
}

async fn listening() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

#[tokio::test]
async fn health_is_told_when_it_changes() {
    let mut checker = Checker::new();
    let (listener, at) = listening().await;
    checker.set(&check(0), vec![endpoint(at, 7)]);
    let change = next(&mut checker).await;
    assert!(change.healthy && !change.timeout);
    assert_eq!((change.id, change.version, &*change.why), (7, 0, "its health check passes"));
    drop(listener);
    let change = next(&mut checker).await;
    assert!(!change.healthy);
    assert_eq!(change.why, "its health check fails: connection refused");
    let _listener = TcpListener::bind(at).await.unwrap();
    assert!(next(&mut checker).await.healthy);
    let counts = checker.counts("web");
    assert!(counts.success >= 3 && counts.network_failure >= 2, "{counts:?}");
    assert!(counts.attempt >= counts.success + counts.failure, "{counts:?}");
    assert_eq!(checker.try_changed(), None, "no news");
}

/// Its health is told again, though it is the same as that of the one before.
#[tokio::test]
async fn another_endpoint_or_another_check_begins_anew() {
    let mut checker = Checker::new();
    let (_listener, at) = listening().await;
    checker.set(&check(0), vec![endpoint(at, 1)]);
    assert_eq!(next(&mut checker).await.id, 1);
    checker.set(&check(0), vec![endpoint(at, 2)]);
    assert_eq!(next(&mut checker).await.id, 2);
    checker.set(&check(1), vec![endpoint(at, 2)]);
    assert_eq!(next(&mut checker).await.version, 1);
    checker.set(&check(1), Vec::new());
    checker.set(&check(1), vec![endpoint(at, 2)]);
    assert!(next(&mut checker).await.healthy, "it was gone meanwhile");
}

#[tokio::test]
async fn what_was_known_is_not_told_again() {
    let mut checker = Checker::new();
    let (listener, at) = listening().await;
    checker.set(&check(0), vec![Endpoint { adopted: Some(true), ..endpoint(at, 1) }]);
    while checker.counts("web").success < 3 {
        tokio::time::sleep(MS).await;
    }
    assert_eq!(checker.try_changed(), None);
    drop(listener);
    assert!(!next(&mut checker).await.healthy);
}

#[tokio::test]
async fn successes_are_told_if_they_are_to_be() {
    let mut checker = Checker::new();
    let (_listener, at) = listening().await;
    checker.set(&check(0), vec![Endpoint { adopted: Some(true), ..endpoint(at, 1) }]);
    checker.tell_of_successes("web", endpoint(at, 1).address, true);
    for _ in 0..3 {
        assert!(next(&mut checker).await.healthy);
    }
    checker.forget("web");
    // One may be on its way.
    tokio::time::sleep(MS * 50).await;
    while checker.try_changed().is_some() {}
    tokio::time::sleep(MS * 50).await;
    assert_eq!(checker.try_changed(), None, "nobody is asked any more");
}

/// Endpoints that say nothing take up the room of their own cluster only.
#[tokio::test]
async fn slow_endpoints_of_one_cluster_leave_room_for_others() {
    let mut checker = Checker::new();
    let probe = Probe::Tcp(TcpProbe { send: Vec::new(), receive: vec![b"hello".to_vec()] });
    let (silent, at_silent) = listening().await;
    let slow = Check {
        cluster: "slow".into(),
        prober: Prober::new(&probe).unwrap(),
        check: HealthCheck { timeout: PATIENCE, ..check(0).check.clone() },
        version: 0,
        traffic: Arc::default(),
    };
    let slow_ones = (0..700u16).map(|n| Endpoint {
        address: SocketAddr::from(([192, 0, 2, 2], n + 1)),
        ..endpoint(at_silent, n.into())
    });
    checker.set(&Arc::new(slow), slow_ones.collect());
    while checker.counts("slow").attempt < AT_ONCE_OF_ONE as u64 {
        tokio::time::sleep(MS).await;
    }
    let (_listener, at) = listening().await;
    checker.set(&check(0), vec![endpoint(at, 1)]);
    let change = next(&mut checker).await;
    assert!(change.healthy && &*change.cluster == "web");
    assert_eq!(checker.counts("slow").attempt, AT_ONCE_OF_ONE as u64);
    drop(silent);
}
