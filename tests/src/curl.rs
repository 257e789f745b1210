//! curl as the client: whole requests, downloads and uploads, each in a process of its own.

use std::net::SocketAddr;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::cmd::{line_of, output};
use crate::netns::Namespace;
use crate::payload::{Payload, sha256_of};

/// Seconds after which a transfer counts as hung; far above what any takes.
const TIME_LIMIT: &str = "120";

/// One request on a connection of its own; the answer's body without the line end.
pub fn get(host: &Namespace, address: SocketAddr) -> Result<String> {
    let body = output(curl(host).arg(format!("http://{address}/")))?;
    Ok(body.trim_end().to_owned())
}

/// `requests` requests of one curl, which keeps its connection. The bodies, and how many connections curl made.
pub fn get_kept_alive(
    host: &Namespace,
    address: SocketAddr,
    requests: usize,
) -> Result<(Vec<String>, usize)> {
    let mut command = curl(host);
    // Printed after each body: how many connections that request had to make.
    command.args(["--write-out", "%{num_connects}\n"]);
    command.args(vec![format!("http://{address}/"); requests]);
    let text = output(&mut command)?;
    let mut bodies = Vec::new();
    let mut connections = 0;
    let mut lines = text.lines();
    while let (Some(body), Some(count)) = (lines.next(), lines.next()) {
        bodies.push(body.to_owned());
        connections += count.parse::<usize>().with_context(|| format!("num_connects in {text}"))?;
    }
    ensure!(bodies.len() == requests, "{} answers to {requests} requests: {text}", bodies.len());
    Ok((bodies, connections))
}

/// Downloads `/big` and compares it with the payload.
pub fn download(host: &Namespace, address: SocketAddr, payload: &Payload) -> Result<()> {
    let mut command = curl(host);
    command
        .arg(format!("http://{address}/big"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let line = line_of(&command);
    let mut child = command.spawn().context("cannot start curl")?;
    let (bytes, sha256) = sha256_of(child.stdout.take().expect("piped"))?;
    let result = child.wait_with_output()?;
    ensure!(
        result.status.success(),
        "`{line}`: {} after {bytes} bytes: {}",
        result.status,
        String::from_utf8_lossy(&result.stderr).trim()
    );
    ensure!(bytes == payload.bytes, "{bytes} bytes arrived instead of {}", payload.bytes);
    ensure!(sha256 == payload.sha256, "the download arrived changed: {sha256} instead of {}", payload.sha256);
    Ok(())
}

/// Uploads the payload as `/upload/NAME`.
pub fn upload(host: &Namespace, address: SocketAddr, payload: &Payload, name: &str) -> Result<()> {
    let mut command = curl(host);
    command.args(["--upload-file", &payload.path(), &format!("http://{address}/upload/{name}")]);
    output(&mut command).map(drop)
}

fn curl(host: &Namespace) -> Command {
    let mut command = host.command("curl");
    command.args(["--silent", "--show-error", "--fail", "--noproxy", "*", "--max-time", TIME_LIMIT]);
    command
}
