//! FRR's daemons in a namespace, without the service that usually runs them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::cmd::{line_of, output, run, wait_for};
use crate::netns::Namespace;

/// Where Debian's package has the daemons.
const DAEMONS: &str = "/usr/lib/frr";
/// They give root up for this user.
const USER: &str = "frr";
/// Far above what a start takes.
const SOON: Duration = Duration::from_secs(20);

/// zebra, bfdd and bgpd. Dropping it ends them.
#[derive(Debug)]
pub struct Frr {
    namespace: String,
    directory: PathBuf,
    daemons: Vec<Child>,
}

impl Frr {
    /// Starts them with the lines of a frr.conf.
    pub fn start(host: &Namespace, configuration: &str) -> Result<Self> {
        let directory = std::env::temp_dir().join(format!("{}-frr", host.name()));
        fs::create_dir_all(&directory)?;
        fs::write(directory.join("frr.conf"), configuration)?;
        fs::write(directory.join("vtysh.conf"), "")?;
        run("chown", &["-R", &format!("{USER}:{USER}"), path(&directory)?])?;
        let mut frr = Self { namespace: host.name().to_owned(), directory, daemons: Vec::new() };
        // bgpd and bfdd look for zebra when they start, and again a long time later.
        for (daemon, socket) in [("zebra", "zserv.api"), ("bfdd", "bfdd.vty"), ("bgpd", "bgpd.vty")] {
            frr.spawn(host, daemon)?;
            wait_for(&format!("{daemon} listens"), SOON, || {
                ensure!(frr.directory.join(socket).exists(), "its log:\n{}", frr.log(daemon));
                Ok(())
            })?;
        }
        output(frr.vtysh().arg("-b"))?;
        Ok(frr)
    }

    /// FRR's command line, for these daemons.
    pub fn vtysh(&self) -> Command {
        let mut command = Command::new("vtysh");
        command.arg("--config_dir").arg(&self.directory).arg("--vty_socket").arg(&self.directory);
        command
    }

    /// The same as text.
    pub fn vtysh_line(&self) -> String {
        line_of(&self.vtysh())
    }

    /// What a daemon printed.
    fn log(&self, daemon: &str) -> String {
        fs::read_to_string(self.directory.join(daemon).with_extension("log")).unwrap_or_default()
    }

    fn spawn(&mut self, host: &Namespace, daemon: &str) -> Result<()> {
        let file = |suffix: &str| self.directory.join(daemon).with_extension(suffix);
        let log = File::create(file("log"))?;
        let mut command = host.command(path(&Path::new(DAEMONS).join(daemon))?);
        command
            .args(["--config_file", "/dev/null", "--log", "stdout", "--vty_port", "0"])
            .arg("--vty_socket")
            .arg(&self.directory)
            .arg("--pid_file")
            .arg(file("pid"))
            .arg("--socket")
            .arg(self.directory.join("zserv.api"));
        if daemon == "bfdd" {
            command.arg("--bfdctl").arg(file("sock"));
        }
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        self.daemons.push(child.context("cannot start FRR (`cargo xtask setup` installs it)")?);
        Ok(())
    }
}

impl Drop for Frr {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for daemon in ["zebra", "bfdd", "bgpd"] {
                eprintln!("---- {daemon} of {} ----\n{}", self.namespace, self.log(daemon));
            }
        }
        for daemon in &mut self.daemons {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is not UTF-8")
}
