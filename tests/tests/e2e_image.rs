//! The container image: what is in it, and that it is all that the agent needs.
#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use lb_tests::agent::config;
use lb_tests::cmd::wait_for;
use lb_tests::container::{Container, Image, Node};
use lb_tests::http::sequential;
use lb_tests::netns::Namespace;
use lb_tests::payload::Payload;
use lb_tests::scenario::{Setup, start_nginx, transfer};
use lb_tests::topology::{Family, Topology, xdp_modes};

const ADMIN: &str = "127.0.0.1:8001";

#[test]
fn the_image_is_one_binary() {
    let image = Image::unpack("hgt-one-binary").unwrap();
    let mut files = Vec::new();
    walk(&image.root(), &mut files);
    assert_eq!(files, [image.root().join("headgate")], "no libc, no shell");
    assert_eq!(image.command[0], "/headgate");
}

/// Every file; nothing on the way may be written.
fn walk(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let metadata = entry.metadata().unwrap();
        let (path, mode) = (entry.path(), metadata.permissions().mode());
        assert_eq!(mode & 0o7222, 0, "{}: {mode:o}", path.display());
        if metadata.is_dir() { walk(&path, files) } else { files.push(path) }
    }
}

#[test]
fn the_image_serves_on_xdp() {
    the_image_serves(Setup::Xdp);
}

#[test]
fn the_image_serves_on_tc() {
    the_image_serves(Setup::Tc);
}

/// From an empty environment to `/ready`, a transfer through it on the wanted rung, and an end that leaves the datapath to
/// the next one.
fn the_image_serves(setup: Setup) {
    let payload = Payload::random(20).unwrap();
    let topology = Topology::new(&setup.options()).unwrap();
    let nginx = start_nginx(&topology, Some(&payload)).unwrap();
    let image = Image::unpack(&topology.name).unwrap();
    let config = format!("admin: {{ address: {ADMIN} }}\n{}", config(setup.rung().name(), &topology));
    let node = Node::new(&topology, &config).unwrap();

    let mut container = node.start(&image).unwrap();
    wait_ready(&topology.lb, &mut container).unwrap();
    println!(
        "{}: ready {} ms after its start; the image is {:.1} MiB",
        setup.rung(),
        container.began.elapsed().as_millis(),
        image.bytes as f64 / f64::from(1 << 20)
    );
    transfer(&topology.client, &nginx, Family::V4.vip(), &payload).unwrap();
    transfer(&topology.client, &nginx, Family::V6.vip(), &payload).unwrap();
    let native = xdp_modes(&topology.lb).unwrap().into_values().filter(|mode| *mode == 1).count();
    assert_eq!(native > 0, setup == Setup::Xdp, "{}", container.log());
    let status: serde_json::Value =
        serde_json::from_str(&node.headgate(&["status", "--json"]).unwrap()).unwrap();
    assert_eq!(status["mode"], setup.rung().name(), "{status}");
    container.terminate().unwrap();

    // As a rollout has it.
    let mut next = node.start(&image).unwrap();
    wait_ready(&topology.lb, &mut next).unwrap();
    transfer(&topology.client, &nginx, Family::V4.vip(), &payload).unwrap();
    next.terminate().unwrap();
}

/// The proxy serves, and one line says why.
#[test]
fn without_a_bpf_file_system_the_proxy_serves() {
    let topology = Topology::new(&Setup::Proxy.options()).unwrap();
    let _nginx = start_nginx(&topology, None).unwrap();
    let image = Image::unpack(&topology.name).unwrap();
    let config = format!("admin: {{ address: {ADMIN} }}\n{}", config("auto", &topology));
    let node = Node::new(&topology, &config).unwrap();
    let mut container = node.start_without_bpffs(&image).unwrap();
    wait_ready(&topology.lb, &mut container).unwrap();
    sequential(&topology.client, Family::V4.vip(), 9).unwrap().require(9).unwrap();
    let log = container.log();
    let why: Vec<&str> = log.lines().filter(|line| line.contains("/sys/fs/bpf")).collect();
    assert_eq!(why.len(), 1, "{log}");
    println!("{}", why[0]);
    container.terminate().unwrap();
}

fn wait_ready(lb: &Namespace, container: &mut Container) -> Result<()> {
    wait_for("the container is ready", Duration::from_secs(15), || {
        if !container.is_running()? {
            return Ok(Err(anyhow::anyhow!("it ended:\n{}", container.log())));
        }
        let answer = lb.within(ask)??;
        ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        Ok(Ok(()))
    })?
}

/// `/ready` of the admin port in the thread's namespace.
fn ask() -> Result<String> {
    let mut stream = TcpStream::connect(ADMIN)?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(b"GET /ready HTTP/1.1\r\nHost: headgate\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
