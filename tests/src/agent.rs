//! The agent under test: the `headgate` binary, run in the balancer's namespace with directories of its own.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::bpf::{BPFFS, ensure_bpffs};
use crate::cmd::{output, wait_for};
use crate::netns::{self, Namespace};
use crate::rung::{BackendTotals, Rung, Totals};
use crate::topology::{Family, HTTP, Topology};

/// A running agent. Dropping it kills it, unloads its datapath and removes its directories; a panic prints its
/// log first.
#[derive(Debug)]
pub struct Agent {
    binary: PathBuf,
    namespace: String,
    /// Holds the configuration, the log and the run directory.
    directory: PathBuf,
    bpffs: PathBuf,
    child: Child,
}

impl Agent {
    /// Starts `headgate run` with this configuration and waits until `headgate status` answers.
    pub fn start(topology: &Topology, config: &str) -> Result<Self> {
        Self::start_with(&headgate()?, topology, config, &[])
    }

    /// The same with a given binary and more arguments for `run`.
    pub fn start_with(binary: &Path, topology: &Topology, config: &str, arguments: &[&str]) -> Result<Self> {
        Self::start_in(binary, &topology.name, &topology.lb, config, arguments)
    }

    /// The same in any namespace; its directories are named after `installation`, which is unique on this machine.
    pub fn start_in(
        binary: &Path,
        installation: &str,
        lb: &Namespace,
        config: &str,
        arguments: &[&str],
    ) -> Result<Self> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        ensure_bpffs()?;
        let name = format!("{installation}-agent{}", COUNTER.fetch_add(1, Ordering::Relaxed));
        let directory = std::env::temp_dir().join(&name);
        let bpffs = Path::new(BPFFS).join(&name);
        fs::create_dir_all(directory.join("run"))?;
        fs::write(directory.join("headgate.yaml"), config)?;
        let namespace = lb.name().to_owned();
        let child = spawn(binary, &namespace, &directory, &bpffs, arguments)?;
        let mut agent = Self { binary: binary.to_owned(), namespace, directory, bpffs, child };
        agent.wait_ready().with_context(|| format!("the agent's log:\n{}", agent.log()))?;
        Ok(agent)
    }

    /// Ends the process as a crash would, without a word to it.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Starts it anew, with the same configuration and directories, after its end.
    pub fn restart(&mut self, arguments: &[&str]) -> Result<()> {
        self.child = spawn(&self.binary, &self.namespace, &self.directory, &self.bpffs, arguments)?;
        self.wait_ready().with_context(|| format!("the agent's log:\n{}", self.log()))
    }

    /// `headgate status --json`
    pub fn status(&self) -> Result<Value> {
        self.json(&["status"])
    }

    /// `headgate backends --json`
    pub fn backends(&self) -> Result<Value> {
        self.json(&["backends"])
    }

    /// `headgate flows --json`
    pub fn flows(&self) -> Result<Vec<Value>> {
        match self.json(&["flows"])? {
            Value::Array(flows) => Ok(flows),
            other => bail!("headgate flows --json: not a list: {other}"),
        }
    }

    /// A counter of `status.reasons`; one that is not there yet stands at 0.
    pub fn reason(&self, name: &str) -> Result<u64> {
        Ok(self.status()?["reasons"][name].as_u64().unwrap_or(0))
    }

    /// Connections so far by backend and rung.
    pub fn totals(&self) -> Result<BackendTotals> {
        BackendTotals::parse(&self.backends()?)
    }

    /// Fails unless, since `before`, exactly `count` connections were carried, and all of them by `rung`. Waits a
    /// little for counters that follow their connection.
    pub fn require_carried(&self, before: &BackendTotals, rung: Rung, count: u64) -> Result<BackendTotals> {
        let now = wait_for(&format!("{count} connections in the counters"), Duration::from_secs(3), || {
            let now = self.totals()?;
            let carried = now.sum().since(before.sum());
            ensure!(carried.sum() >= count, "carried so far: {carried:?}");
            Ok(now)
        });
        let now = now.with_context(|| self.reasons_text())?;
        let carried = now.sum().since(before.sum());
        let wanted = Totals::only(rung, count);
        ensure!(carried == wanted, "carried {carried:?} instead of {wanted:?}; {}", self.reasons_text());
        Ok(now)
    }

    /// Any command of the binary with this agent's directories; its stdout.
    pub fn headgate(&self, arguments: &[&str]) -> Result<String> {
        output(&mut self.command(arguments))
    }

    /// What [`Agent::headgate`] runs.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let inside = self.command_inside(arguments);
        let mut command = netns::command(&self.namespace, inside.get_program());
        command.args(inside.get_args());
        command
    }

    /// The same for somebody who is in the agent's namespace already.
    pub fn command_inside(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .args(arguments)
            .arg("--bpffs")
            .arg(&self.bpffs)
            .arg("--run-dir")
            .arg(self.directory.join("run"));
        command
    }

    /// Everything the agent printed.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// Its configuration file.
    pub fn config_file(&self) -> PathBuf {
        self.directory.join("headgate.yaml")
    }

    /// Its directory in the BPF file system.
    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) -> Result<()> {
        Ok(kill_process(self.pid(), Signal::TERM)?)
    }

    /// Puts another configuration in the place of the one it runs with, for its next start.
    pub fn configure(&self, config: &str) -> Result<()> {
        Ok(fs::write(self.directory.join("headgate.yaml"), config)?)
    }

    /// Has it open its access logs anew, by SIGUSR1.
    pub fn reopen_logs(&self) -> Result<()> {
        Ok(kill_process(self.pid(), Signal::USR1)?)
    }

    /// Has it read its configuration again, and does not wait for that.
    pub fn hang_up(&self) -> Result<()> {
        Ok(kill_process(self.pid(), Signal::HUP)?)
    }

    /// Puts another configuration in the place of the one it runs with, and sends SIGHUP. Waits until the agent has come
    /// to a decision: `Err` with its reason where it refused the file.
    pub fn reload(&self, config: &str) -> Result<Result<(), String>> {
        let last = |status: &Value| status["reload"]["at"].clone();
        let before = last(&self.status()?);
        self.configure(config)?;
        self.hang_up()?;
        wait_for("the agent has read its file again", Duration::from_secs(10), || {
            let status = self.status()?;
            ensure!(last(&status) != before, "not yet");
            Ok(status["reload"]["error"].as_str().map_or(Ok(()), |error| Err(error.to_owned())))
        })
    }

    /// `None` while it runs.
    pub fn exit_status(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for its end, which must be exit code 0.
    pub fn require_exit(&mut self, limit: Duration) -> Result<()> {
        let status = wait_for("the agent ends", limit, || self.exit_status()?.context("it runs"))?;
        ensure!(status.success(), "the agent ended with {status}; its log:\n{}", self.log());
        Ok(())
    }

    /// Leaves the agent, its datapath and its directories for good, for `demo --keep`; [`remove_left`](crate::topology::remove_left)
    /// removes what
    /// its processes leave.
    pub fn leave(self) {
        std::mem::forget(self);
    }

    /// The agent's process: nsenter replaces itself by the program.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn wait_ready(&mut self) -> Result<()> {
        wait_for("the agent is ready", Duration::from_secs(15), || {
            if let Some(status) = self.exit_status()? {
                // Asking on would only find the socket missing.
                return Ok(Err(anyhow::anyhow!("it ended with {status}")));
            }
            self.status().map(Ok)
        })?
        .map(drop)
    }

    fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.headgate(&[arguments, &["--json"]].concat())?;
        serde_json::from_str(&text)
            .with_context(|| format!("headgate {arguments:?} --json: not JSON: {text}"))
    }

    fn reasons_text(&self) -> String {
        self.status()
            .map_or_else(|error| format!("{error:#}"), |status| format!("reasons {}", status["reasons"]))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- log of {} ----\n{}", self.directory.display(), self.log());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Err(error) = self.headgate(&["unload"]) {
            eprintln!("{error:#}");
        }
        let _ = fs::remove_dir_all(&self.bpffs);
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn spawn(
    binary: &Path,
    namespace: &str,
    directory: &Path,
    bpffs: &Path,
    arguments: &[&str],
) -> Result<Child> {
    let log = File::options().create(true).append(true).open(directory.join("log"))?;
    let mut command = netns::command(namespace, binary);
    command.arg("run").arg("-c").arg(directory.join("headgate.yaml")).args(arguments);
    command.arg("--bpffs").arg(bpffs).arg("--run-dir").arg(directory.join("run"));
    command.arg("--state-dir").arg(directory.join("state"));
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot start {}", binary.display()))
}

/// A configuration with a wildcard listener of each family on port 80, spread by round robin over the topology's
/// backends, and `mode` forced.
pub fn config(mode: &str, topology: &Topology) -> String {
    let backends = |family: Family| (1..=topology.backends.len()).map(move |number| family.backend(number));
    let backends: Vec<_> = Family::ALL.into_iter().flat_map(backends).collect();
    config_of(mode, "auto", &backends)
}

/// The same for any backends, and with `datapath.interfaces` as given.
pub fn config_of(mode: &str, interfaces: &str, backends: &[SocketAddr]) -> String {
    let hosts = |v6: bool| {
        let hosts = backends.iter().filter(|backend| backend.is_ipv6() == v6);
        hosts.map(|backend| format!("\"{backend}\"")).collect::<Vec<_>>().join(", ")
    };
    format!(
        r#"datapath: {{ mode: {mode}, interfaces: {interfaces}, max_flows: 65536 }}
listeners:
  - {{ name: http4, address: "0.0.0.0:{HTTP}", cluster: web4 }}
  - {{ name: http6, address: "[::]:{HTTP}", cluster: web6 }}
clusters:
  - name: web4
    discovery: {{ type: static, hosts: [{}] }}
    lb_policy: round_robin
  - name: web6
    discovery: {{ type: static, hosts: [{}] }}
    lb_policy: round_robin
"#,
        hosts(false),
        hosts(true),
    )
}

/// The binary to test: `$HEADGATE`, or the one that cargo built beside these tests.
pub fn headgate() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("HEADGATE") {
        return Ok(path.into());
    }
    // Tests run from target/PROFILE/deps.
    let own = std::env::current_exe()?;
    let built = own.ancestors().skip(1).take(2).map(|directory| directory.join("headgate"));
    let built = built.into_iter().find(|path| path.is_file());
    built.context("no headgate binary: build it (`cargo build -p lb-userspace`) or name it in $HEADGATE")
}
