//! kubectl, Kubernetes' own client.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

use crate::cmd::output;
use crate::lines::Lines;
use crate::netns::Namespace;

/// For one request; far above what any takes.
const TIME_LIMIT: &str = "--request-timeout=30s";

/// kubectl with a kubeconfig file.
#[derive(Debug)]
pub struct Kubectl<'a> {
    kubeconfig: PathBuf,
    /// Where it runs; `None`: where the test itself does.
    host: Option<&'a Namespace>,
    /// What it remembers of the server.
    cache: TempDir,
}

impl<'a> Kubectl<'a> {
    pub fn new(kubeconfig: PathBuf, host: Option<&'a Namespace>) -> Result<Self> {
        Ok(Self { kubeconfig, host, cache: TempDir::with_prefix("hgt-kubectl-")? })
    }

    /// Runs it to its end and returns what it printed; its complaint is in the error.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        output(self.command()?.arg(TIME_LIMIT).args(args))
    }

    /// Starts `kubectl get … --watch`.
    pub fn watch(&self, args: &[&str]) -> Result<Lines> {
        let mut command = self.command()?;
        command.arg("get").args(args).arg("--watch");
        Lines::of(command)
    }

    fn command(&self) -> Result<Command> {
        let binary = tool("kubectl")?;
        let binary = binary.to_str().context("a path that is not UTF-8")?;
        let mut command = self.host.map_or_else(|| Command::new(binary), |host| host.command(binary));
        // No proxy of the machine is between it and the server.
        command.env("NO_PROXY", "*").env("HOME", self.cache.path());
        command.arg("--kubeconfig").arg(&self.kubeconfig);
        command.arg("--cache-dir").arg(self.cache.path());
        Ok(command)
    }
}

/// A program of the wheels that `cargo xtask setup` unpacks for this clone.
pub fn tool(name: &str) -> Result<PathBuf> {
    let program = tools()?.join("bin").join(name);
    ensure!(program.is_file(), "{} is missing: `cargo xtask setup` installs it", program.display());
    Ok(program)
}

/// Where they are, and what their Python needs.
pub fn tools() -> Result<PathBuf> {
    // At run time: with a target directory shared by several clones, cargo takes the one's build for the other's.
    let tests = std::env::var_os("CARGO_MANIFEST_DIR").context("start it with cargo")?;
    Ok(Path::new(&tests).join("../target/tools/kube"))
}
