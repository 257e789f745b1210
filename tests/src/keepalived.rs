//! keepalived with the configuration of `deploy/keepalived`, as it is but for names and addresses.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::agent::Agent;
use crate::cmd::{line_of, output, wait_for};
use crate::netns::{self, Namespace};

/// What the files of `deploy` call the nodes.
pub const NODES: [&str; 2] = ["node-a", "node-b"];

/// A running keepalived. Dropping it ends it.
#[derive(Debug)]
pub struct Keepalived {
    child: Child,
    directory: PathBuf,
}

/// What of the files is another in a test.
#[derive(Clone, Copy, Debug)]
pub struct Site<'a> {
    pub interface: &'a str,
    pub vip: &'a str,
    /// The address of each of [`NODES`] on that interface.
    pub nodes: [&'a str; 2],
}

impl Keepalived {
    /// Starts it on node 0 or 1, beside that node's agent.
    pub fn start(host: &Namespace, node: usize, site: Site<'_>, agent: &Agent) -> Result<Self> {
        let directory = std::env::temp_dir().join(format!("{}-keepalived", host.name()));
        fs::create_dir_all(&directory)?;
        let ready = line_of(&agent.command_inside(&["ready"]));
        let mut configuration = read("keepalived.conf")?;
        for (from, to) in [
            ("$INTERFACE=eth0", format!("$INTERFACE={}", site.interface)),
            ("/usr/local/bin/headgate ready", ready),
            // /tmp is everybody's, and scripts there are refused.
            ("    enable_script_security\n", String::new()),
        ] {
            ensure!(configuration.contains(from), "deploy/keepalived/keepalived.conf has no {from}");
            configuration = configuration.replace(from, &to);
        }
        let addressed = |text: &str| {
            text.replace("192.0.2.10", site.vip)
                .replace("192.0.2.2", site.nodes[0])
                .replace("192.0.2.3", site.nodes[1])
        };
        fs::write(directory.join("keepalived.conf"), addressed(&configuration))?;
        let rules = directory.join("handover.nft");
        fs::write(&rules, addressed(&read("handover.nft")?))?;
        // As the drop-in of its unit does.
        let mut prepare = netns::command(host.name(), deployed("headgate-prepare"));
        output(prepare.arg(rules).arg(site.interface).arg(site.vip))?;
        let child = spawn(host, node, &directory)?;
        let mut keepalived = Self { child, directory };
        keepalived.wait_started()?;
        Ok(keepalived)
    }

    /// Everything that it printed.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// Ends it as its operator would.
    pub fn stop(mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        wait_for("keepalived has ended", Duration::from_secs(10), || {
            self.child.try_wait()?.context("it runs")
        })
        .map(drop)
    }

    fn wait_started(&mut self) -> Result<()> {
        wait_for("keepalived is in a state", Duration::from_secs(10), || {
            let log = self.log();
            ensure!(
                self.child.try_wait()?.is_none() && log.contains("Entering BACKUP STATE"),
                "its log:\n{log}"
            );
            Ok(())
        })
    }
}

impl Drop for Keepalived {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- log of {} ----\n{}", self.directory.display(), self.log());
        }
        // Its children end with it, or with the namespace.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn spawn(host: &Namespace, node: usize, directory: &Path) -> Result<Child> {
    let log = File::create(directory.join("log"))?;
    let mut command = host.command("keepalived");
    command.args(["--dont-fork", "--log-console", "--log-detail", "--no-syslog", "--config-id", NODES[node]]);
    for (option, file) in [
        ("--use-file", "keepalived.conf"),
        ("--pid", "pid"),
        ("--vrrp_pid", "vrrp.pid"),
        ("--checkers_pid", "checkers.pid"),
        ("--bfd_pid", "bfd.pid"),
    ] {
        command.arg(option).arg(directory.join(file));
    }
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("cannot start keepalived (`cargo xtask setup` installs it)")
}

/// A file of `deploy/keepalived`.
fn deployed(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/keepalived").join(name)
}

fn read(name: &str) -> Result<String> {
    let path = deployed(name);
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}
