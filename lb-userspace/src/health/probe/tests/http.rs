use super::*;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nready";

fn http() -> Probe {
    Probe::Http(http_probe())
}

fn body(receive: &[&str]) -> Probe {
    Probe::Http(HttpProbe {
        receive: receive.iter().map(|text| text.as_bytes().to_vec()).collect(),
        ..http_probe()
    })
}

/// The request of a probe.
async fn seen(probe: HttpProbe, host: Option<&str>) -> (String, SocketAddr) {
    let (sender, mut requests) = mpsc::channel(1);
    let address = serve(move |mut stream| {
        let sender = sender.clone();
        async move {
            let mut request = vec![0; 4096];
            let bytes = stream.read(&mut request).await.unwrap();
            request.truncate(bytes);
            sender.send(String::from_utf8(request).unwrap()).await.unwrap();
            stream.write_all(OK.as_bytes()).await.unwrap();
        }
    })
    .await;
    let target = Target { host: host.map(Arc::from), ..target(address) };
    Prober::new(&Probe::Http(probe)).unwrap().ask(&target, LONG).await.unwrap();
    (requests.recv().await.unwrap(), address)
}

#[tokio::test]
async fn the_request() {
    let (request, address) = seen(http_probe(), None).await;
    assert_eq!(
        request,
        format!(
            "GET /healthz HTTP/1.1\r\nuser-agent: Headgate/{}\r\nhost: {address}\r\nconnection: close\r\n\r\n",
            env!("CARGO_PKG_VERSION")
        )
    );
    let probe = HttpProbe {
        method: "POST".into(),
        path: "/a?b=c".into(),
        host: Some("gw.example:81".into()),
        headers: vec![
            ("x-a".into(), "1".into()),
            ("x-a".into(), "2".into()),
            ("user-agent".into(), "me".into()),
        ],
        send: b"ping".into(),
        ..http_probe()
    };
    let (request, _) = seen(probe.clone(), None).await;
    assert!(
        request.starts_with("POST /a?b=c HTTP/1.1\r\nx-a: 1\r\nx-a: 2\r\nuser-agent: me\r\n"),
        "{request}"
    );
    assert!(request.contains("\r\nhost: gw.example:81\r\n"), "{request}");
    assert!(request.contains("\r\ncontent-length: 4\r\n"), "{request}");
    let (request, _) = seen(probe, Some("other.example")).await;
    assert!(request.contains("\r\nhost: other.example\r\n"), "{request}");
}

#[test]
fn no_request() {
    let error = |probe| format!("{:#}", Prober::new(&Probe::Http(probe)).err().unwrap());
    assert!(error(HttpProbe { path: "a b".into(), ..http_probe() }).contains("`a b` is no path"));
    assert!(error(HttpProbe { method: "G T".into(), ..http_probe() }).contains("`G T` is no method"));
    assert!(error(HttpProbe { method: "CONNECT".into(), ..http_probe() }).contains("CONNECT"));
    assert!(error(HttpProbe { host: Some("a b".into()), ..http_probe() }).contains("`a b` is no host"));
    for (name, value) in [("a b", "c"), ("a", "b\r\nc: d"), ("host", "a"), ("content-length", "1")] {
        assert!(
            error(HttpProbe { headers: vec![(name.into(), value.into())], ..http_probe() }).contains(name)
        );
    }
}

#[tokio::test]
async fn statuses() {
    let status = |status: u16, more: &str| {
        answer(format!("HTTP/1.1 {status} Whatever\r\n{more}content-length: 0\r\n\r\n"))
    };
    let probe = Probe::Http(HttpProbe {
        expected: vec![200..=204, 299..=299],
        retriable: vec![503..=503],
        ..http_probe()
    });
    for healthy in [200, 204, 299] {
        assert_eq!(ask(&probe, status(healthy, "").await).await, Ok(()));
    }
    let answered = |reason: &str, immediate| (FailureKind::Answer, reason.to_owned(), immediate);
    let moved = status(302, "location: /\r\n").await;
    assert_eq!(failure(&probe, moved).await, answered("status 302", true));
    assert_eq!(failure(&probe, status(500, "").await).await, answered("status 500", true));
    assert_eq!(failure(&probe, status(503, "").await).await, answered("status 503", false));
    let out = "x-envoy-immediate-health-check-fail: true\r\n";
    assert_eq!(failure(&probe, status(503, out).await).await, answered("status 503", true));
    assert_eq!(failure(&probe, status(101, "upgrade: x\r\n").await).await, answered("status 101", true));
}

#[tokio::test]
async fn informational_answers() {
    let early = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";
    assert_eq!(ask(&http(), answer(format!("{early}{OK}")).await).await, Ok(()));
    let (address, mut sent) = flood("", early).await;
    assert_eq!(
        failure(&http(), address).await,
        (FailureKind::Network, "the answer takes more than 320 KiB".into(), false)
    );
    assert!(sent.recv().await.unwrap() < 16 << 20);
}

#[tokio::test]
async fn bodies() {
    assert_eq!(ask(&body(&["ready"]), answer(OK).await).await, Ok(()));
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nrea\r\n2\r\ndy\r\n0\r\n\r\n";
    assert!(ask(&body(&["re", "ready"]), answer(chunked).await).await.is_err());
    assert_eq!(ask(&body(&["ready"]), answer(chunked).await).await, Ok(()));
    let to_the_end = "HTTP/1.0 200 OK\r\n\r\nready";
    assert_eq!(ask(&body(&["ready"]), answer_and_close(to_the_end).await).await, Ok(()));
    assert_eq!(
        failure(&body(&["steady"]), answer(OK).await).await,
        (FailureKind::Answer, "the expected text is not in the body".into(), true)
    );
    let limited = HttpProbe { receive: vec![b"ready".into()], body_limit: 4, ..http_probe() };
    assert_eq!(
        reason(&Probe::Http(limited), answer(OK).await).await,
        "the expected text is not in the first 4 bytes of the body"
    );
}

#[tokio::test]
async fn a_gigabyte_of_body() {
    let head = "HTTP/1.1 200 OK\r\ncontent-length: 1073741824\r\n\r\n";
    let (address, mut sent) = flood(head, "x").await;
    assert_eq!(ask(&http(), address).await, Ok(()), "nobody wants the body");
    assert!(sent.recv().await.unwrap() < 16 << 20);
    assert_eq!(
        reason(&body(&["ready"]), address).await,
        "the expected text is not in the first 65536 bytes of the body"
    );
    assert!(sent.recv().await.unwrap() < 16 << 20);
    let (address, _) = flood("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", "1\r\nx\r\n").await;
    assert_eq!(reason(&body(&["ready"]), address).await, "the answer takes more than 320 KiB");
}

#[tokio::test]
async fn heads_without_end() {
    let too_long = "the answer's head is longer than 16 KiB or 100 headers";
    let (address, _) = flood("HTTP/1.1 200 OK\r\nx: ", "y").await;
    assert_eq!(reason(&http(), address).await, too_long);
    let (address, _) = flood("HTTP/1.1 200 OK\r\n", "a: b\r\n").await;
    assert_eq!(reason(&http(), address).await, too_long);
    let headers = |count| format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(count));
    assert_eq!(ask(&http(), answer(headers(100)).await).await, Ok(()));
    assert_eq!(reason(&http(), answer(headers(101)).await).await, too_long);
    let (address, _) =
        flood("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1;", "an extension without end").await;
    let (kind, ..) = failure(&body(&["ready"]), address).await;
    assert_eq!(kind, FailureKind::Network);
}

#[tokio::test]
async fn no_http() {
    let network = |reason: &str| (FailureKind::Network, reason.to_owned(), false);
    for garbage in
        ["SSH-2.0-OpenSSH_9.6\r\n", "\0\0\0\0\0\0", "HTTP/1.1 2x0 OK\r\n\r\n", "ICY 200 OK\r\n\r\n"]
    {
        assert_eq!(
            failure(&http(), answer(garbage).await).await,
            network("the answer is not HTTP"),
            "{garbage:?}"
        );
    }
    let settings = b"\0\0\0\x04\0\0\0\0\0";
    assert_eq!(failure(&http(), answer(settings).await).await, network("the answer is HTTP/2, not HTTP/1.1"));
    let alert = [21, 3, 1, 0, 2, 2, 70];
    assert_eq!(failure(&http(), answer(alert).await).await, network("the answer is TLS"));
}

#[tokio::test]
async fn half_an_answer() {
    let closed = (FailureKind::Network, "closed before the end of the answer".into(), false);
    for half in ["", "HTTP/1.1 200 OK\r\ncontent-le"] {
        assert_eq!(failure(&http(), answer_and_close(half).await).await, closed, "{half:?}");
    }
    for half in ["5\r\n\r\nrea", "50\r\n\r\nrea"] {
        let half = format!("HTTP/1.1 200 OK\r\ncontent-length: {half}");
        assert_eq!(failure(&body(&["ready"]), answer_and_close(half).await).await, closed);
    }
}

#[tokio::test]
async fn a_byte_at_a_time() {
    let address = serve(|mut stream| async move {
        request(&mut stream).await;
        for byte in OK.bytes() {
            let _ = stream.write_all(&[byte]).await;
            tokio::time::sleep(SHORT / 4).await;
        }
    })
    .await;
    let failure = Prober::new(&http()).unwrap().ask(&target(address), SHORT).await.unwrap_err();
    assert_eq!((failure.kind, &*failure.reason), (FailureKind::Timeout, "no answer within 200ms"));
}

#[tokio::test]
async fn no_answer() {
    closes_when_dropped(http()).await;
}
