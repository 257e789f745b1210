//! The server over real connections, against an agent that answers as it is told.

mod bounds;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::anyhow;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::stats::ServerState;

/// No test waits longer for anything.
const BOUND: Duration = Duration::from_secs(20);

/// Ends the server with the test.
struct Agent {
    address: SocketAddr,
    running: JoinHandle<()>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.running.abort();
    }
}

fn live() -> Result<ViewSource> {
    Ok(Box::new(|| {
        let mut view = View::default();
        view.server.state = ServerState::Live;
        Ok(view)
    }))
}

fn agent(limits: Limits, answer: impl Fn(bool) -> Result<ViewSource> + Send + 'static) -> Agent {
    let mut port = AdminHttp::bind_with("127.0.0.1:0".parse().unwrap(), limits).unwrap();
    let address = port.address();
    let running = tokio::spawn(async move {
        while let Some(request) = port.next().await {
            let answer = answer(request.only_server());
            request.answer(answer);
        }
    });
    Agent { address, running }
}

async fn connect(agent: &Agent) -> TcpStream {
    timeout(BOUND, TcpStream::connect(agent.address)).await.unwrap().unwrap()
}

/// All until the server closes.
async fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset is an end as well: the server closes with bytes unread.
    let _ = timeout(BOUND, stream.read_to_end(&mut bytes)).await.expect("the server closes");
    String::from_utf8(bytes).unwrap()
}

async fn ask(agent: &Agent, request: &str) -> String {
    let mut stream = connect(agent).await;
    stream.write_all(request.as_bytes()).await.unwrap();
    rest(&mut stream).await
}

async fn get(agent: &Agent, path: &str) -> String {
    ask(agent, &format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")).await
}

#[tokio::test]
async fn pages_have_envoys_headers() {
    let agent = agent(Limits::default(), |_| live());
    let answer = get(&agent, "/ready").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nLIVE\n"), "{answer}");
    for header in [
        "content-type: text/plain; charset=UTF-8\r\n",
        "cache-control: no-cache, max-age=0\r\n",
        "x-content-type-options: nosniff\r\n",
        "connection: close\r\n",
        "date: ",
    ] {
        assert!(answer.contains(header), "{header}: {answer}");
    }
    for path in [
        "/server_info",
        "/stats?format=json",
        "/clusters?format=json",
        "/listeners?format=json",
        "/config_dump",
    ] {
        let answer = get(&agent, path).await;
        assert!(
            answer.starts_with("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"),
            "{path}: {answer}"
        );
    }
    for path in ["/stats", "/stats/prometheus?usedonly", "/clusters", "/listeners", "/help", "/"] {
        let answer = get(&agent, path).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\ncontent-type: text/plain"), "{path}: {answer}");
    }
    let bad = get(&agent, "/stats?filter=%28").await;
    assert!(bad.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{bad}");
}

#[tokio::test]
async fn head_has_no_body_and_the_connection_stays() {
    let agent = agent(Limits::default(), |_| live());
    let both =
        "HEAD /ready HTTP/1.1\r\nhost: x\r\n\r\nGET /ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let answers = ask(&agent, both).await;
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 2, "{answers}");
    assert_eq!(answers.matches("LIVE").count(), 1, "{answers}");
    assert_eq!(answers.matches("content-length: 5").count(), 2, "{answers}");
}

#[tokio::test]
async fn unknown_paths_get_the_help() {
    let agent = agent(Limits::default(), |_| Err(anyhow!("not to be asked")));
    for path in ["/nope", "/ready/", "/stats/recentlookups"] {
        let answer = get(&agent, path).await;
        assert!(answer.starts_with("HTTP/1.1 404 Not Found\r\n"), "{answer}");
        assert!(answer.contains("\r\n\r\ninvalid path. admin commands are:\n  /: "), "{answer}");
    }
    let help = get(&agent, "/help").await;
    assert!(
        help.contains("\r\n\r\nadmin commands are:\n  /: ") && help.contains("\n  /stats/prometheus: "),
        "{help}"
    );
}

#[tokio::test]
async fn nothing_is_changed() {
    let agent = agent(Limits::default(), |_| Err(anyhow!("not to be asked")));
    let paths = [
        "/quitquitquit",
        "/healthcheck/fail",
        "/healthcheck/ok",
        "/drain_listeners",
        "/logging",
        "/reset_counters",
        "/reopen_logs",
    ];
    for path in paths {
        let answer = get(&agent, &format!("{path}?level=debug")).await;
        assert!(answer.starts_with("HTTP/1.1 405 Method Not Allowed\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\nMethod GET not allowed, POST required."), "{answer}");
        let post =
            format!("POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
        let answer = ask(&agent, &post).await;
        assert!(answer.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{answer}");
        assert!(answer.contains(&format!("nothing can be changed over HTTP ({path}): ")), "{answer}");
    }
}

#[tokio::test]
async fn states_and_failures_are_told() {
    let agent = agent(Limits::default(), |only_server| {
        if only_server {
            Ok(Box::new(|| Ok(View::default())))
        } else {
            Err(anyhow!("the maps cannot be read"))
        }
    });
    let answer = get(&agent, "/ready").await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.ends_with("INITIALIZING\n"), "{answer}");
    let answer = get(&agent, "/stats").await;
    assert!(answer.starts_with("HTTP/1.1 500 ") && answer.ends_with("the maps cannot be read\n"), "{answer}");
}

#[tokio::test]
async fn an_agent_that_does_not_answer_or_has_ended_is_told() {
    let limits = Limits { answer: Duration::from_millis(50), ..Limits::default() };
    let port = AdminHttp::bind_with("127.0.0.1:0".parse().unwrap(), limits).unwrap();
    let (address, running) = (port.address(), tokio::spawn(std::future::pending()));
    let agent = Agent { address, running };
    let answer = get(&agent, "/ready").await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("the agent is busy"), "{answer}");
    drop(port);
    // The port is closed, or the connection is when the task has ended.
    if let Ok(mut stream) = TcpStream::connect(address).await {
        assert_eq!(rest(&mut stream).await, "");
    }
}

#[tokio::test]
async fn requests_that_nobody_waits_for_are_left_out() {
    let limits = Limits { answer: Duration::from_millis(50), ..Limits::default() };
    let mut port = AdminHttp::bind_with("127.0.0.1:0".parse().unwrap(), limits).unwrap();
    let agent = Agent { address: port.address(), running: tokio::spawn(std::future::pending()) };
    get(&agent, "/stats").await;
    let asking = get(&agent, "/ready");
    let answering = async {
        let request = port.next().await.unwrap();
        assert!(request.only_server());
        request.answer(live());
    };
    // The second request may be given up as well before it is seen, on a very slow machine.
    let (answer, _) = tokio::join!(asking, timeout(BOUND, answering));
    assert!(answer.contains("LIVE") || answer.contains("busy"), "{answer}");
}

#[tokio::test]
async fn dropping_it_closes_port_and_connections() {
    let port = AdminHttp::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = port.address();
    let mut idle = TcpStream::connect(address).await.unwrap();
    drop(port);
    assert_eq!(rest(&mut idle).await, "");
    // Free for the next agent.
    assert_eq!(AdminHttp::bind(address).unwrap().address(), address);
}

#[tokio::test]
async fn an_address_that_cannot_be_had_is_an_error_with_a_remedy() {
    let first = AdminHttp::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let error = format!("{:#}", AdminHttp::bind(first.address()).err().unwrap());
    assert!(
        error.contains(&first.address().to_string()) && error.contains("another `admin.address`"),
        "{error}"
    );
    let error = format!("{:#}", AdminHttp::bind("192.0.2.1:0".parse().unwrap()).err().unwrap());
    assert!(error.contains("an address of this node"), "{error}");
}
