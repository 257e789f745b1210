//! Clients of a gateway with TLS: curl, wrk, and nghttp2's h2load and nghttp.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::cmd::{line_of, output};
use crate::netns::Namespace;
use crate::payload::sha256_of;

/// What the gateways' certificates are issued for, and what the clients ask for.
pub const NAME: &str = "gateway.test";
/// Seconds after which a transfer counts as hung; far above what any takes.
const TIME_LIMIT: &str = "300";

/// A version of HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    Http1,
    Http2,
}

/// Where to ask, from where, and whom to trust.
#[derive(Clone, Debug)]
pub struct Clients<'a> {
    pub host: &'a Namespace,
    pub vip: SocketAddr,
    /// The authority's certificate; see [`Authority::file`](crate::tls::Authority::file).
    pub authority: PathBuf,
}

/// What curl saw.
#[derive(Debug)]
pub struct Answer {
    /// Without the line end.
    pub body: String,
    /// The certificates that the server showed, PEM.
    pub certificates: String,
}

/// A stream of nghttp's; times from its start.
#[derive(Clone, Debug)]
pub struct H2Stream {
    pub path: String,
    pub status: u16,
    /// The body's length with the unit, as nghttp prints it: `64M`.
    pub size: String,
    pub began: Duration,
    pub ended: Duration,
}

impl Clients<'_> {
    /// `GET /` on a connection of its own. The certificate's authority and name are checked by curl, and the version
    /// of the protocol here.
    pub fn get(&self, version: Version) -> Result<Answer> {
        let mut curl = self.curl(version, "/");
        curl.args(["--write-out", "%{http_version}\n%{certs}"]);
        let text = output(&mut curl)?;
        let (body, rest) = text.split_once('\n').context("an empty answer")?;
        let (spoken, certificates) = rest.split_once('\n').with_context(|| format!("curl printed {text}"))?;
        let wanted = match version {
            Version::Http1 => "1.1",
            Version::Http2 => "2",
        };
        ensure!(spoken == wanted, "HTTP/{spoken} was spoken instead of HTTP/{wanted}");
        Ok(Answer { body: body.to_owned(), certificates: certificates.to_owned() })
    }

    /// Downloads `path`; the body's length and SHA-256.
    pub fn download(&self, version: Version, path: &str) -> Result<(u64, String)> {
        let mut curl = self.curl(version, path);
        curl.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let line = line_of(&curl);
        let mut child = curl.spawn().context("cannot start curl")?;
        let received = sha256_of(child.stdout.take().expect("piped"))?;
        let result = child.wait_with_output()?;
        ensure!(
            result.status.success(),
            "`{line}`: {} after {} bytes: {}",
            result.status,
            received.0,
            String::from_utf8_lossy(&result.stderr).trim()
        );
        Ok(received)
    }

    /// `GET /` again and again on so many HTTP/1.1 connections; the number of requests, all of which were answered
    /// with success.
    pub fn wrk(&self, connections: u32, time: Duration) -> Result<u64> {
        let mut wrk = self.host.command("wrk");
        wrk.args(["--threads", "2", "--connections", &connections.to_string()]);
        wrk.args(["--duration", &format!("{}s", time.as_secs()), "--timeout", "20s"]);
        let text = output(wrk.arg(self.url("/")))?;
        // "Socket errors: connect 0, read 0, write 0, timeout 0" and "Non-2xx or 3xx responses: 3" are there only
        // where something failed.
        ensure!(!text.contains("errors") && !text.contains("Non-2xx"), "wrk: {text}");
        let line = text.lines().find(|line| line.contains(" requests in "));
        let count = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        count.with_context(|| format!("no number of requests in wrk's output: {text}"))
    }

    /// `requests` times `GET path`, on so many HTTP/2 connections with so many streams at once; fails unless every
    /// one succeeded.
    pub fn h2load(&self, path: &str, requests: u64, connections: u32, streams: u32) -> Result<()> {
        let mut h2load = self.host.command("h2load");
        h2load.args(["--requests", &requests.to_string(), "--clients", &connections.to_string()]);
        h2load.args([
            "--max-concurrent-streams",
            &streams.to_string(),
            "--connection-active-timeout",
            TIME_LIMIT,
        ]);
        let text = output(h2load.arg(self.url(path)))?;
        let wanted = format!("{requests} done, {requests} succeeded, 0 failed, 0 errored, 0 timeout");
        ensure!(text.contains(&wanted), "h2load: not \"{wanted}\": {text}");
        ensure!(text.contains("Application protocol: h2"), "h2load spoke no HTTP/2: {text}");
        Ok(())
    }

    /// All these paths at once, as streams of one HTTP/2 connection.
    pub fn nghttp(&self, paths: &[String]) -> Result<Vec<H2Stream>> {
        let mut nghttp = self.host.command("nghttp");
        nghttp.args(["--null-out", "--stat", "--no-verify-peer", "--timeout", TIME_LIMIT]);
        let text = output(nghttp.args(paths.iter().map(|path| self.url(path))))?;
        let streams = text.lines().filter_map(parse_stream).collect::<Result<Vec<_>>>()?;
        ensure!(streams.len() == paths.len(), "nghttp: {} of {} streams: {text}", streams.len(), paths.len());
        Ok(streams)
    }

    fn curl(&self, version: Version, path: &str) -> Command {
        let mut curl = self.host.command("curl");
        curl.args(["--silent", "--show-error", "--fail", "--noproxy", "*", "--max-time", TIME_LIMIT]);
        curl.arg(match version {
            Version::Http1 => "--http1.1",
            Version::Http2 => "--http2",
        });
        curl.arg("--cacert").arg(&self.authority);
        let (address, port) = (bracketed(self.vip.ip()), self.vip.port());
        curl.args([
            "--resolve",
            &format!("{NAME}:{port}:{address}"),
            &format!("https://{NAME}:{port}{path}"),
        ]);
        curl
    }

    fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.vip)
    }
}

fn bracketed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

/// A line such as ` 13   +3.05s       +215us  3.05s  200  29K /slow/30`: id, end, start, their difference, status,
/// size, path. A `*` before the start marks a pushed stream. Other lines are none of a stream.
fn parse_stream(line: &str) -> Option<Result<H2Stream>> {
    let words: Vec<_> = line.split_whitespace().collect();
    let [id, ended, began, _process, status, size, path] = words[..] else { return None };
    id.parse::<u32>().ok()?;
    let stream = || -> Result<H2Stream> {
        Ok(H2Stream {
            path: path.to_owned(),
            status: status.parse()?,
            size: size.to_owned(),
            began: time(began)?,
            ended: time(ended)?,
        })
    };
    Some(stream().with_context(|| format!("nghttp's line {line:?}")))
}

/// `+1.35s`, `+215us`, `+12.3ms`
fn time(text: &str) -> Result<Duration> {
    let text = text.trim_start_matches('+');
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let seconds = match unit {
        "s" => 1.0,
        "ms" => 1e-3,
        "us" => 1e-6,
        _ => bail!("not a time: {text}"),
    };
    Ok(Duration::from_secs_f64(text[..text.len() - unit.len()].parse::<f64>()? * seconds))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::parse_stream;

    #[test]
    fn lines_of_streams_are_read() {
        let stream =
            parse_stream(" 13      +3.05s       +215us   3.05s  200   29K /slow/30").unwrap().unwrap();
        assert_eq!((stream.path.as_str(), stream.status, stream.size.as_str()), ("/slow/30", 200, "29K"));
        assert_eq!((stream.began, stream.ended), (Duration::from_micros(215), Duration::from_millis(3050)));
        assert!(parse_stream("id  responseEnd requestStart  process code size request path").is_none());
    }
}
