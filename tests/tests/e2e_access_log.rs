//! The access log: exact byte counts, whatever becomes of the file, the reader, and the agent.
#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::ensure;
use lb_tests::agent::{Agent, config, headgate};
use lb_tests::cmd::{run, wait_for};
use lb_tests::echo::Source;
use lb_tests::http::{Connection, sequential};
use lb_tests::scenario::{Scenario, Setup, start_nginx};
use lb_tests::topology::{Family, Topology};

/// Ends a test that hangs.
const PATIENCE: Duration = Duration::from_secs(20);
const SETUPS: [Setup; 3] = [Setup::Xdp, Setup::Tc, Setup::Proxy];

/// A directory for logs, removed in the end.
struct Directory(PathBuf);

impl Directory {
    fn new(topology: &Topology) -> Self {
        let directory = std::env::temp_dir().join(format!("{}-logs", topology.name));
        fs::create_dir_all(&directory).unwrap();
        Self(directory)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The configuration of other tests with an access log.
fn logging(setup: Setup, topology: &Topology, path: &Path, format: &str) -> String {
    let config = config(setup.rung().name(), topology);
    format!("{config}admin: {{}}\naccess_log: {{ path: {}, format: {format} }}\n", path.display())
}

const SHORT: &str = "'%DOWNSTREAM_REMOTE_ADDRESS% %BYTES_RECEIVED% %BYTES_SENT% %RESPONSE_FLAGS%'";

/// The lines of a log, once there are so many.
fn lines(path: &Path, count: usize) -> Vec<String> {
    wait_for(&format!("{count} lines in {}", path.display()), PATIENCE, || {
        let lines: Vec<String> = fs::read_to_string(path)?.lines().map(str::to_owned).collect();
        ensure!(lines.len() >= count, "there are {lines:#?}");
        Ok(lines)
    })
    .unwrap()
}

/// A hosts' setup with nginx on the backends and an agent that logs.
fn start(setup: Setup, log: &str, format: &str) -> (Scenario, Directory) {
    let topology = Topology::new(&setup.options()).unwrap();
    let directory = Directory::new(&topology);
    let nginx = start_nginx(&topology, None).unwrap();
    let config = logging(setup, &topology, &directory.file(log), format);
    let agent = Agent::start(&topology, &config).unwrap();
    (Scenario { agent, nginx, topology }, directory)
}

/// The sum of a metric over its labels.
fn stat(topology: &Topology, name: &str) -> u64 {
    let text = topology.lb.run("curl", &["-s", "http://127.0.0.1:8001/stats/prometheus"]).unwrap();
    let lines = text.lines().filter(|line| line.starts_with(name));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

/// More than sequence numbers can count.
#[test]
fn bytes_are_exact_beyond_4_gib() {
    const SENT: u64 = (5 << 30) + 123;
    for setup in SETUPS {
        let topology = Topology::new(&setup.options()).unwrap();
        let directory = Directory::new(&topology);
        let log = directory.file("access.log");
        let at = Family::V4.backend(1);
        let _source = Source::start(&topology.backends[0], at).unwrap();
        let text = logging(setup, &topology, &log, SHORT);
        let hosts = |number: usize| format!("\"{}\"", Family::V4.backend(number));
        let all = [hosts(1), hosts(2), hosts(3)].join(", ");
        assert!(text.contains(&all), "{text}");
        let _agent = Agent::start(&topology, &text.replace(&all, &hosts(1))).unwrap();

        let client = topology.client.within(|| TcpStream::connect(Family::V4.vip())).unwrap();
        let mut client: TcpStream = client.unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.write_all(&SENT.to_le_bytes()).unwrap();
        let mut buffer = vec![0; 1 << 20];
        let mut received = 0;
        loop {
            let bytes = client.read(&mut buffer).unwrap();
            received += bytes as u64;
            if bytes == 0 {
                break;
            }
        }
        assert_eq!(received, SENT);
        let name = client.local_addr().unwrap();
        drop(client);
        assert_eq!(lines(&log, 1), [format!("{name} 8 {SENT} -")], "{setup:?}");
        wait_for("the bytes are in the statistics", PATIENCE, || {
            let sent = stat(&topology, "envoy_tcp_downstream_cx_tx_bytes_total");
            ensure!(sent == SENT, "{sent}");
            Ok(())
        })
        .unwrap();
        assert_eq!(stat(&topology, "envoy_cluster_upstream_cx_rx_bytes_total"), SENT);
        assert_eq!(stat(&topology, "envoy_cluster_upstream_cx_tx_bytes_total"), 8);
    }
}

#[test]
fn a_rotated_log_is_opened_anew() {
    for setup in [Setup::Tc, Setup::Proxy] {
        let (scenario, directory) = start(setup, "access.log", SHORT);
        let client = &scenario.topology.client;
        let (log, old, older) =
            (directory.file("access.log"), directory.file("access.log.1"), directory.file("access.log.2"));
        let request = || sequential(client, Family::V4.vip(), 1).unwrap().require(1).unwrap();
        request();
        lines(&log, 1);
        fs::rename(&log, &old).unwrap();
        request();
        assert_eq!(lines(&old, 2).len(), 2, "until it is told");
        scenario.agent.reopen_logs().unwrap();
        wait_for("there is a new file", PATIENCE, || Ok(fs::metadata(&log)?)).unwrap();
        request();
        assert_eq!((lines(&log, 1).len(), lines(&old, 2).len()), (1, 2));

        // What cannot be opened does not end the old one.
        fs::rename(&log, &older).unwrap();
        fs::create_dir(&log).unwrap();
        scenario.agent.headgate(&["reopen-logs"]).unwrap();
        wait_for("a warning", PATIENCE, || {
            let text = scenario.agent.log();
            ensure!(text.contains("access.log") && text.contains("WARN"), "{text}");
            Ok(())
        })
        .unwrap();
        request();
        assert_eq!(lines(&older, 2).len(), 2);
        assert_eq!(stat(&scenario.topology, "headgate_access_log_dropped"), 0);
    }
}

#[test]
fn a_log_that_cannot_be_written_is_refused() {
    let (scenario, directory) = start(Setup::Proxy, "access.log", SHORT);
    let nowhere = directory.file("no/such/directory/access.log");
    let text = logging(Setup::Proxy, &scenario.topology, &nowhere, SHORT);
    let refused = scenario.agent.reload(&text).unwrap().unwrap_err();
    assert!(refused.contains("no/such/directory"), "{refused}");
    sequential(&scenario.topology.client, Family::V4.vip(), 1).unwrap().require(1).unwrap();
    lines(&directory.file("access.log"), 1);

    let file = directory.file("headgate.yaml");
    fs::write(&file, &text).unwrap();
    let binary = headgate().unwrap();
    let error = run(binary.to_str().unwrap(), &["check", file.to_str().unwrap()]).unwrap_err();
    let error = format!("{error:#}");
    assert!(error.contains("no/such/directory") && error.contains("create the directory"), "{error}");
    let error = Agent::start(&scenario.topology, &text).unwrap_err();
    assert!(format!("{error:#}").contains("no/such/directory"), "{error:#}");
}

/// From its beginning to its end, which here is the agent's.
#[test]
fn a_connection_has_all_the_lines_that_are_asked_for() {
    const FORMAT: &str =
        "'%ACCESS_LOG_TYPE% %STREAM_ID% %BYTES_RECEIVED% %UPSTREAM_CLUSTER% %DOWNSTREAM_LOCAL_CLOSE_REASON%'";
    for setup in SETUPS {
        let topology = Topology::new(&setup.options()).unwrap();
        let directory = Directory::new(&topology);
        let log = directory.file("access.log");
        let nginx = start_nginx(&topology, None).unwrap();
        let options = format!("{FORMAT}, on_start: true, flush_interval: 500ms");
        let text = logging(setup, &topology, &log, &options);
        let text = text.replace("    discovery:", "    drain_timeout: 1s\n    discovery:");
        assert!(text.contains("drain_timeout"), "{text}");
        let agent = Agent::start(&topology, &text).unwrap();
        let mut scenario = Scenario { agent, nginx, topology };
        let mut connection = Connection::open_in(&scenario.topology.client, Family::V4.vip()).unwrap();
        connection.get().unwrap();
        lines(&log, 2);
        scenario.agent.terminate().unwrap();
        scenario.agent.require_exit(Duration::from_secs(10)).unwrap();

        let lines = lines(&log, 3);
        let fields: Vec<Vec<&str>> = lines.iter().map(|line| line.split(' ').collect()).collect();
        let [first, between @ .., last] = fields.as_slice() else { unreachable!() };
        assert_eq!((first[0], first[2], first[3]), ("TcpConnectionStart", "0", "-"), "{lines:#?}");
        assert!(between.iter().all(|line| line[0] == "TcpPeriodic" && line[4] == "-"), "{lines:#?}");
        assert_eq!((last[0], last[4]), ("TcpConnectionEnd", "shutdown"), "{lines:#?}");
        assert!(last[2].parse::<u64>().unwrap() > 0 && last[3] != "-", "{lines:#?}");
        assert!(fields.iter().all(|line| line[1] == first[1]), "one connection: {lines:#?}");
    }
}

/// Nobody reads from the pipe: lines are lost, and counted, and nothing else is.
#[test]
fn a_reader_that_does_not_read_stops_nobody() {
    for setup in SETUPS {
        let topology = Topology::new(&setup.options()).unwrap();
        let directory = Directory::new(&topology);
        let pipe = directory.file("pipe");
        run("mkfifo", &[pipe.to_str().unwrap()]).unwrap();
        // Open, so that there is a reader, but nothing is read.
        let _reader = File::options().read(true).write(true).open(&pipe).unwrap();
        let nginx = start_nginx(&topology, None).unwrap();
        let format = format!("'%DURATION% {}'", "x".repeat(8000));
        let agent = Agent::start(&topology, &logging(setup, &topology, &pipe, &format)).unwrap();
        let scenario = Scenario { agent, nginx, topology };
        let before = scenario.agent.totals().unwrap();
        let client = &scenario.topology.client;
        sequential(client, Family::V4.vip(), 2000).unwrap().require(2000).unwrap();
        scenario.agent.require_carried(&before, setup.rung(), 2000).unwrap();
        wait_for("lines are dropped", PATIENCE, || {
            let dropped = stat(&scenario.topology, "headgate_access_log_dropped");
            ensure!(dropped > 500, "{dropped}");
            Ok(())
        })
        .unwrap();
        // It ends, too.
        scenario.agent.terminate().unwrap();
        let mut agent = scenario.agent;
        agent.require_exit(Duration::from_secs(10)).unwrap();
    }
}

/// What ends while nobody runs is in the ring until the next agent comes.
#[test]
fn connections_that_end_without_an_agent_are_logged_by_the_next() {
    for setup in [Setup::Xdp, Setup::Tc] {
        let (mut scenario, directory) = start(setup, "access.log", SHORT);
        let connections = [1, 2, 3].map(|_| {
            let mut connection = Connection::open_in(&scenario.topology.client, Family::V4.vip()).unwrap();
            connection.get().unwrap();
            connection
        });
        let mut names: Vec<SocketAddr> = connections.iter().map(|one| one.local().unwrap()).collect();
        let active = || stat(&scenario.topology, "envoy_cluster_upstream_cx_active");
        assert_eq!(active(), 3);
        scenario.agent.kill().unwrap();
        let [first, second, third] = connections;
        drop(first);
        drop(second);
        std::thread::sleep(Duration::from_millis(200));
        scenario.agent.restart(&[]).unwrap();
        let log = directory.file("access.log");
        let mut ended = lines(&log, 2);
        assert_eq!(stat(&scenario.topology, "envoy_cluster_upstream_cx_active"), 1);
        drop(third);
        ended = lines(&log, ended.len() + 1);
        let mut told: Vec<SocketAddr> =
            ended.iter().map(|line| line.split(' ').next().unwrap().parse().unwrap()).collect();
        told.sort();
        names.sort();
        assert_eq!(told, names, "each once: {ended:#?}");
        wait_for("none is open", PATIENCE, || {
            let active = stat(&scenario.topology, "envoy_cluster_upstream_cx_active");
            ensure!(active == 0, "{active}");
            Ok(())
        })
        .unwrap();
    }
}
