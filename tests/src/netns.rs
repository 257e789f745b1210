//! One network namespace: made, entered, and taken down with everything that runs in it.
//!
//! Processes enter by `nsenter --net`, never by `ip netns exec`: that one gives each process a mount namespace of
//! its own with a fresh /sys, in which /sys/fs/bpf is missing.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, getpid, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::cmd::{output, run, wait_for};

/// A named network namespace; dropping it ends the processes in it and deletes it, also during a panic.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes a namespace with `lo` up and IPv6 addresses usable at once (no duplicate address detection).
    pub fn create(name: &str) -> Result<Self> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "network namespaces and BPF programs need root: run the tests as root (`cargo xtask test` does)"
        );
        run("ip", &["netns", "add", name])?;
        let namespace = Self { name: name.to_owned() };
        namespace.sysctl("net.ipv6.conf.all.accept_dad", "0")?;
        namespace.sysctl("net.ipv6.conf.default.accept_dad", "0")?;
        namespace.ip(&["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that will run inside.
    pub fn command(&self, program: &str) -> Command {
        command(&self.name, program)
    }

    /// Runs a program inside to its end and returns its stdout.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        output(self.command(program).args(args))
    }

    /// `ip -n NAME …`
    pub fn ip(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new("ip");
        command.args(["-n", &self.name]).args(args);
        output(&mut command)
    }

    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.run("sysctl", &["-qw", &format!("{key}={value}")]).map(drop)
    }

    /// Runs `work` on a thread that lives in this namespace: the sockets it makes belong here, wherever they are
    /// used afterwards. A panic of `work` goes on in the caller.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let namespace = File::open(path(&self.name)).with_context(|| format!("namespace {}", self.name))?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                    .context("cannot enter the namespace")?;
                Ok(work())
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Sends a signal to every process in here, found by the namespace.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        for pid in pids(&self.name)? {
            // It may have ended in between.
            let _ = kill_process(pid, signal);
        }
        Ok(())
    }

    /// Ends every process in here, without a word to it, and waits until they are gone.
    pub fn kill_all(&self) -> Result<()> {
        kill_all(&self.name)
    }

    /// A counter of /proc/net/netstat (`TcpExt`, `IpExt`) or /proc/net/snmp (`Tcp`, `Ip`, …) in here.
    pub fn counter(&self, group: &str, name: &str) -> Result<u64> {
        // Two lines a group, the names and the values, each starting with "Group:".
        let text = self.run("cat", &["/proc/net/netstat", "/proc/net/snmp"])?;
        let prefix = format!("{group}: ");
        let mut lines = text.lines().filter_map(|line| line.strip_prefix(&prefix));
        if let (Some(names), Some(values)) = (lines.next(), lines.next())
            && let Some((_, value)) = names.split(' ').zip(values.split(' ')).find(|(key, _)| *key == name)
        {
            return value.parse().with_context(|| format!("counter {group}.{name}"));
        }
        bail!("the kernel has no counter {group}.{name}")
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = delete(&self.name) {
            eprintln!("namespace {} stays behind: {error:#}", self.name);
        }
    }
}

/// A command that will run in the namespace of that name.
pub fn command(namespace: &str, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", path(namespace))).arg("--").arg(program);
    command
}

/// Ends every process whose network namespace this is (found by namespace, never by name) and deletes it.
pub fn delete(name: &str) -> Result<()> {
    kill_all(name)?;
    run("ip", &["netns", "del", name]).map(drop)
}

fn kill_all(name: &str) -> Result<()> {
    wait_for(&format!("processes in {name} end"), Duration::from_secs(5), || {
        let pids = pids(name)?;
        for &pid in &pids {
            // It may have ended in between.
            let _ = kill_process(pid, Signal::KILL);
        }
        ensure!(pids.is_empty(), "{} still run", pids.len());
        Ok(())
    })
}

/// The names of the existing namespaces that start with `prefix`.
pub fn list(prefix: &str) -> Result<Vec<String>> {
    let text = run("ip", &["netns", "list"])?;
    let names = text.lines().filter_map(|line| line.split(' ').next());
    Ok(names.filter(|name| name.starts_with(prefix)).map(str::to_owned).collect())
}

fn pids(name: &str) -> Result<Vec<Pid>> {
    let text = run("ip", &["netns", "pids", name])?;
    let pids = text.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?));
    Ok(pids.filter(|&pid| pid != getpid()).collect())
}

fn path(name: &str) -> String {
    format!("/run/netns/{name}")
}
