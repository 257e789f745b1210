//! Requests and readers that would cost more than they may.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use super::*;
use crate::stats::ClusterView;

#[tokio::test]
async fn bad_requests_are_refused() {
    let agent = agent(Limits::default(), |_| live());
    for bad in ["GET\r\n\r\n", "\x16\x03\x01\x02\r\n\r\n", "GET /ready HTTP/9.9\r\n\r\n"] {
        let answer = ask(&agent, bad).await;
        assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{bad:?}: {answer}");
    }
    let many: String = (0..=MAX_HEADERS).map(|index| format!("a{index}: b\r\n")).collect();
    let large = format!("a: {}\r\n", "b".repeat(MAX_HEAD));
    for headers in [many, large] {
        let answer = ask(&agent, &format!("GET /ready HTTP/1.1\r\n{headers}\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    }
    let line = ask(&agent, &format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(MAX_HEAD))).await;
    assert!(line.starts_with("HTTP/1.1 4"), "{line}");
    assert!(get(&agent, "/ready").await.contains("LIVE"));
}

/// A body is neither waited for nor kept.
#[tokio::test]
async fn bodies_are_ignored() {
    let agent = agent(Limits::default(), |_| live());
    let mut stream = connect(&agent).await;
    stream
        .write_all(b"POST /ready HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\nabc")
        .await
        .unwrap();
    let answer = rest(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("LIVE\n"), "{answer}");
}

#[tokio::test]
async fn slow_requests_are_cut() {
    let head = Duration::from_millis(100);
    let agent = agent(Limits { head, ..Limits::default() }, |_| live());
    let begun = Instant::now();
    // One says nothing, one begins, one goes on too slowly; each is cut, and in time of its own.
    let mut silent = connect(&agent).await;
    let mut begins = connect(&agent).await;
    begins.write_all(b"GET /ready HT").await.unwrap();
    let mut trickles = connect(&agent).await;
    let (mut read, mut write) = trickles.split();
    let trickle = async {
        write.write_all(b"GET /ready HTTP/1.1\r\n").await.unwrap();
        while write.write_all(b"a: b\r\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let mut received = Vec::new();
    tokio::select! {
        () = trickle => {}
        _ = read.read_to_end(&mut received) => {}
    }
    assert!(!received.starts_with(b"HTTP/1.1 200"));
    assert_eq!(rest(&mut silent).await + &rest(&mut begins).await, "");
    assert!(begun.elapsed() >= head);
}

#[tokio::test]
async fn an_idle_connection_is_cut_and_a_used_one_is_not() {
    let limits = Limits { idle: Duration::from_secs(1), head: BOUND, ..Limits::default() };
    let agent = agent(limits, |_| live());
    let mut stream = connect(&agent).await;
    let mut answer = [0; 4096];
    for _ in 0..3 {
        stream.write_all(b"GET /ready HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let length = timeout(BOUND, stream.read(&mut answer)).await.unwrap().unwrap();
        assert!(answer[..length].ends_with(b"LIVE\n"));
    }
    assert_eq!(rest(&mut stream).await, "");
}

/// One who does not read its page holds that page alone, and not for ever; meanwhile others are served.
#[tokio::test]
async fn a_slow_reader_is_cut() {
    let idle = Duration::from_millis(300);
    let agent = agent(Limits { idle, views: 1, connections: 2, ..Limits::default() }, |only_server| {
        Ok(Box::new(move || {
            let cluster = ClusterView { name: "x".repeat(4 << 20), ..ClusterView::default() };
            let clusters = if only_server { Vec::new() } else { vec![cluster; 4] };
            Ok(View { clusters, ..View::default() })
        }))
    });
    let mut readers = [connect(&agent).await, connect(&agent).await];
    let mut first = [0; 1];
    for reader in &mut readers {
        reader.write_all(b"GET /clusters HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        timeout(BOUND, reader.read_exact(&mut first)).await.unwrap().unwrap();
    }
    // There is room for another connection when one of them is cut.
    assert!(get(&agent, "/ready").await.contains("INITIALIZING"));
    let mut received = Vec::new();
    let _ = timeout(BOUND, readers[0].read_to_end(&mut received)).await.expect("the server closes");
    assert!(received.len() < 32 << 20, "{}", received.len());
}

/// A page under way to a slow reader is in nobody's way.
#[tokio::test]
async fn others_are_served_beside_a_slow_reader() {
    let agent = agent(Limits { views: 1, ..Limits::default() }, |_| {
        Ok(Box::new(|| {
            let cluster = ClusterView { name: "x".repeat(4 << 20), ..ClusterView::default() };
            Ok(View { clusters: vec![cluster; 4], ..View::default() })
        }))
    });
    let mut slow = connect(&agent).await;
    slow.write_all(b"GET /clusters HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    timeout(BOUND, slow.read_exact(&mut [0; 1])).await.unwrap().unwrap();
    assert!(get(&agent, "/listeners?format=json").await.ends_with("{}\n"));
}

#[tokio::test]
async fn connections_are_limited() {
    let head = Duration::from_millis(300);
    let agent = agent(Limits { connections: 2, head, ..Limits::default() }, |_| live());
    let begun = Instant::now();
    let (mut one, mut other) = (connect(&agent).await, connect(&agent).await);
    // It is served when the deadline of the first two has passed.
    assert!(get(&agent, "/ready").await.contains("LIVE"));
    assert!(begun.elapsed() >= head, "{:?}", begun.elapsed());
    assert_eq!(rest(&mut one).await + &rest(&mut other).await, "");
}
