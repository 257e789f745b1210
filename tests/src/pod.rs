//! An ingress gateway as a pod has it: a web server with readiness beside it, its life from one start to the next, and
//! the ways in which it fails.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;

use crate::cmd::{output, wait_for};
use crate::netns::Namespace;
use crate::nginx::{MEMORY, Nginx};
use crate::topology::BACKEND_HTTP;

/// Where readiness is asked for, as in Istio's gateway.
pub const READINESS: u16 = 15021;

/// What becomes of a SYN to it. Connections that are open go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No answer, neither from the web server nor from readiness.
    Hangs,
    /// A RST from the web server; readiness knows nothing of it.
    Refuses,
}

/// A gateway in a namespace: nginx on port 8080, and on 15021 `/healthz/ready` with 200 or 503. It outlives its
/// processes.
#[derive(Debug)]
pub struct Pod<'a> {
    pub name: String,
    namespace: &'a Namespace,
    /// `None`: its process is gone.
    nginx: Option<Nginx>,
}

impl<'a> Pod<'a> {
    /// Up, and ready.
    pub fn start(namespace: &'a Namespace, name: &str) -> Result<Self> {
        let mut pod = Self { name: name.to_owned(), namespace, nginx: None };
        pod.launch()?;
        pod.set_ready(true)?;
        Ok(pod)
    }

    /// Starts its process, which answers and is not ready, after the one before has ended.
    pub fn launch(&mut self) -> Result<()> {
        // What is left of the one before would else go after this one has begun.
        self.nginx = None;
        let servers = readiness_server(&self.ready_file());
        self.nginx = Some(Nginx::start_with(self.namespace, &self.name, None, &servers)?);
        Ok(())
    }

    /// What readiness says from now on.
    pub fn set_ready(&self, ready: bool) -> Result<()> {
        let file = self.ready_file();
        if ready { fs::write(&file, "") } else { fs::remove_file(&file) }
            .with_context(|| file.display().to_string())
    }

    /// Ends its process with grace: see [`Nginx::quit`].
    pub fn quit(&mut self) -> Result<()> {
        self.nginx.take().context("it does not run")?.quit()
    }

    /// Its processes stand still: the kernel takes connections and requests for it, and nobody answers.
    pub fn freeze(&self) -> Result<()> {
        self.namespace.signal(Signal::STOP)
    }

    /// Its processes are killed: with a FIN on connections whose requests it had read, with a RST on the others. Waits
    /// until nothing is open or accepted any more, which is a little after the processes seem gone.
    pub fn die(&mut self) -> Result<()> {
        self.namespace.kill_all()?;
        self.nginx = None;
        wait_for(&format!("the sockets of {} are closed", self.name), Duration::from_secs(10), || {
            let left = self.sockets(&["listening", "established"])?;
            ensure!(left == 0, "{left} are open");
            Ok(())
        })
    }

    /// Until [`Pod::mend`].
    pub fn break_by(&self, fault: Fault) -> Result<()> {
        self.namespace.run("nft", &[&rules(fault)]).map(drop)
    }

    /// Undoes a fault.
    pub fn mend(&self) -> Result<()> {
        self.namespace.run("nft", &["delete table inet fault"]).map(drop)
    }

    /// Connections to its web server, also those that it has not accepted yet.
    pub fn open_connections(&self) -> Result<usize> {
        self.sockets(&["established"])
    }

    /// Sockets on its web server's port in one of these states.
    fn sockets(&self, states: &[&str]) -> Result<usize> {
        let mut command = self.namespace.command("ss");
        command.arg("-Htn").args(states.iter().flat_map(|state| ["state", *state]));
        command.arg(format!("sport = :{BACKEND_HTTP}"));
        Ok(output(&mut command)?.lines().count())
    }

    /// In nginx's own directory, which goes with it.
    fn ready_file(&self) -> PathBuf {
        Path::new(MEMORY).join(self.namespace.name()).join("ready")
    }
}

fn rules(fault: Fault) -> String {
    // Of SYN and ACK only SYN is set: the first segment of a connection.
    let syn = "tcp flags & (syn | ack) == syn";
    let verdict = match fault {
        Fault::Hangs => format!("tcp dport {{ {BACKEND_HTTP}, {READINESS} }} {syn} drop"),
        Fault::Refuses => format!("tcp dport {BACKEND_HTTP} {syn} reject with tcp reset"),
    };
    format!(
        "add table inet fault; add chain inet fault in {{ type filter hook input priority 0; }}; \
         add rule inet fault in {verdict}"
    )
}

fn readiness_server(ready: &Path) -> String {
    let ready = ready.display();
    format!(
        "server {{
            listen 0.0.0.0:{READINESS}; listen [::]:{READINESS};
            location = /healthz/ready {{ if (-f {ready}) {{ return 200; }} return 503; }}
        }}"
    )
}
