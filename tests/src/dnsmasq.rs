//! dnsmasq as the DNS server, and the ways in which a server fails.

use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::cmd::wait_for;
use crate::netns::Namespace;

/// The domain that it answers for. What is outside of it is REFUSED.
const DOMAIN: &str = "test";

/// What it says of a name in `test.` that it has no record of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// NXDOMAIN, or no data if the name has an address of the other family.
    Absent,
    /// REFUSED, as a server without recursion.
    Refused,
    /// SERVFAIL, as a server whose own sources fail.
    ServFail,
}

/// A running dnsmasq. Dropping it ends it.
#[derive(Debug)]
pub struct Dnsmasq {
    pub address: IpAddr,
    child: Child,
    directory: PathBuf,
    /// Answers SERVFAIL to whatever dnsmasq passes on to it.
    failing: FailingServer,
}

impl Dnsmasq {
    /// Starts it in `namespace` on port 53 of `address`, which is one of that namespace, without records.
    pub fn start(namespace: &Namespace, address: IpAddr) -> Result<Self> {
        let directory = std::env::temp_dir().join(format!("{}-dns-{address}", namespace.name()));
        fs::create_dir_all(&directory)?;
        let failing = FailingServer::start(namespace, address)?;
        write_files(&directory, &[], &failing.servers(Unknown::Absent))?;
        let child = spawn(namespace, address, &directory, &[])?;
        let dnsmasq = Self { address, child, directory, failing };
        dnsmasq.wait_read(0)?;
        Ok(dnsmasq)
    }

    /// These are its records from now on, each a name in `test` and its address; and what it says of other names
    /// there. Not while it is frozen.
    pub fn set(&self, records: &[(&str, IpAddr)], unknown: Unknown) -> Result<()> {
        let before = self.times_read();
        write_files(&self.directory, records, &self.failing.servers(unknown))?;
        // It reads both files again.
        kill_process(self.pid(), Signal::HUP)?;
        self.wait_read(before)
    }

    /// These are its SRV records from now on, each as `--srv-host` takes it: a service and, separated by commas, a
    /// target, a port, a priority and a weight. Other records stay. It starts anew for that, so for a moment nobody is
    /// there.
    pub fn set_services(&mut self, namespace: &Namespace, services: &[&str]) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        let before = self.times_read();
        self.child = spawn(namespace, self.address, &self.directory, services)?;
        self.wait_read(before)
    }

    /// It hears and does not answer, until [`Dnsmasq::wake`].
    pub fn freeze(&self) -> Result<()> {
        Ok(kill_process(self.pid(), Signal::STOP)?)
    }

    pub fn wake(&self) -> Result<()> {
        Ok(kill_process(self.pid(), Signal::CONT)?)
    }

    /// Every query and answer, and what it says itself.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    fn wait_read(&self, before: usize) -> Result<()> {
        wait_for("dnsmasq has read its files", Duration::from_secs(10), || {
            ensure!(self.times_read() > before, "its log:\n{}", self.log());
            Ok(())
        })
    }

    /// "dnsmasq: read /…/hosts - 3 names"
    fn times_read(&self) -> usize {
        self.log().lines().filter(|line| line.contains(": read ") && line.ends_with(" names")).count()
    }

    // nsenter replaces itself by the program, so the child's id is dnsmasq's.
    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Dnsmasq {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- log of {} ----\n{}", self.directory.display(), self.log());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// With the files of `directory`.
fn spawn(namespace: &Namespace, address: IpAddr, directory: &Path, services: &[&str]) -> Result<Child> {
    let log = fs::File::options().create(true).append(true).open(directory.join("log"))?;
    namespace
        .command("dnsmasq")
        .args(["--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--pid-file"])
        // Nothing of the machine's own, and no answers from memory.
        .args(["--no-resolv", "--no-hosts", "--cache-size=0"])
        .args(["--log-facility=-", "--log-queries", "--bind-interfaces"])
        .arg(format!("--listen-address={address}"))
        .arg(format!("--addn-hosts={}", directory.join("hosts").display()))
        .arg(format!("--servers-file={}", directory.join("servers").display()))
        .args(services.iter().map(|service| format!("--srv-host={service}")))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("cannot start dnsmasq (`cargo xtask setup` installs it)")
}

fn write_files(directory: &Path, records: &[(&str, IpAddr)], servers: &str) -> Result<()> {
    let mut hosts = String::new();
    for (name, address) in records {
        writeln!(hosts, "{address} {name}")?;
    }
    fs::write(directory.join("hosts"), hosts)?;
    fs::write(directory.join("servers"), servers)?;
    Ok(())
}

/// A server that knows nothing but to fail.
#[derive(Debug)]
struct FailingServer {
    address: SocketAddr,
}

impl FailingServer {
    /// Its thread ends with the process.
    fn start(namespace: &Namespace, address: IpAddr) -> Result<Self> {
        let socket = namespace.within(|| UdpSocket::bind((address, 0)))??;
        let address = socket.local_addr()?;
        std::thread::spawn(move || {
            let mut message = [0; 512];
            while let Ok((length, client)) = socket.recv_from(&mut message) {
                fail(&mut message);
                let _ = socket.send_to(&message[..length], client);
            }
        });
        Ok(Self { address })
    }

    /// The contents of dnsmasq's `servers-file`.
    fn servers(&self, unknown: Unknown) -> String {
        match unknown {
            Unknown::Absent => format!("server=/{DOMAIN}/\n"),
            Unknown::Refused => String::new(),
            Unknown::ServFail => {
                format!("server=/{DOMAIN}/{}#{}\n", self.address.ip(), self.address.port())
            }
        }
    }
}

/// Makes a query an answer with SERVFAIL (RFC 1035, section 4.1.1: QR is the first bit of the third byte, RCODE the
/// low half of the fourth).
fn fail(message: &mut [u8; 512]) {
    message[2] |= 0x80;
    message[3] = message[3] & 0xf0 | 2;
}
