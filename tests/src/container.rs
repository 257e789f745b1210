//! The agent's image in a container, as a kubelet would have it run: the image's root file system, read-only, with a few
//! mounts, the capabilities of the DaemonSet, `no_new_privs`, and process ids of its own. By bubblewrap, which needs no
//! control groups, unlike the usual runtimes.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::agent;
use crate::bpf::{BPFFS, ensure_bpffs};
use crate::cmd::{output, wait_for};
use crate::kube_api::ServiceAccount;
use crate::netns;
use crate::topology::Topology;

/// What the DaemonSet gives it.
const CAPABILITIES: [&str; 5] =
    ["CAP_BPF", "CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_PERFMON"];

/// How the node's BPF file system gets to where the agent looks for it.
const MOUNTED: [&str; 2] = ["--bind", BPFFS];

/// An image that `cargo xtask image` made, unpacked.
#[derive(Debug)]
pub struct Image {
    directory: PathBuf,
    /// Of its layers, as they are sent over the network.
    pub bytes: u64,
    /// What is to be run, with its arguments.
    pub command: Vec<String>,
}

impl Image {
    /// Unpacks that of this machine's architecture into a directory named after `name`, which goes with this value.
    pub fn unpack(name: &str) -> Result<Self> {
        let archive = archive()?;
        let directory = std::env::temp_dir().join(format!("{name}-image"));
        let blobs = directory.join("oci");
        let mut image = Self { directory, bytes: 0, command: Vec::new() };
        fs::create_dir_all(&blobs)?;
        fs::create_dir_all(image.root())?;
        output(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&blobs))?;
        let index = read_json(&blobs.join("index.json"))?;
        let manifest = read_json(&blob(&blobs, &index["manifests"][0]))?;
        let config = read_json(&blob(&blobs, &manifest["config"]))?;
        for layer in manifest["layers"].as_array().context("no layers")? {
            let path = blob(&blobs, layer);
            image.bytes += fs::metadata(&path)?.len();
            output(Command::new("tar").arg("-xf").arg(path).arg("-C").arg(image.root()))?;
        }
        let words = |key: &str| config["config"][key].as_array().cloned().unwrap_or_default();
        let words = words("Entrypoint").into_iter().chain(words("Cmd"));
        image.command = words.filter_map(|word| word.as_str().map(str::to_owned)).collect();
        ensure!(!image.command.is_empty(), "the image names no command: {config}");
        Ok(image)
    }

    /// Its root file system.
    pub fn root(&self) -> PathBuf {
        self.directory.join("root")
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A running container. Dropping it ends it; what the agent in it has pinned stays.
#[derive(Debug)]
pub struct Container {
    log: PathBuf,
    child: Child,
    /// When it was started.
    pub began: Instant,
}

impl Container {
    /// Starts the image's command with more arguments in the node's network. Of the node's file systems it sees bpffs, the
    /// run directory and the configuration; `options` of bwrap may add to that. It has no environment but what these set.
    fn start(image: &Image, node: &Node, bpffs: &[&str], options: &[OsString]) -> Result<Self> {
        ensure_bpffs()?;
        let log = image.directory.join("log");
        let output = File::options().create(true).append(true).open(&log)?;
        let [run, config] = ["run", "config"].map(|name| node.directory.join(name));
        let mut command = netns::command(&node.namespace, "bwrap");
        command.arg("--ro-bind").arg(image.root()).arg("/").args(["--proc", "/proc", "--dev", "/dev"]);
        command.args(["--ro-bind", "/sys", "/sys"]).args(bpffs).arg("/sys/fs/bpf");
        command.arg("--bind").arg(run).arg("/run/headgate").arg("--ro-bind").arg(config).arg("/etc/headgate");
        command.arg("--clearenv").args(options);
        command.args(["--remount-ro", "/", "--unshare-pid", "--as-pid-1", "--unshare-ipc", "--unshare-uts"]);
        command.args(["--chdir", "/", "--die-with-parent", "--cap-drop", "ALL"]);
        command.args(CAPABILITIES.iter().flat_map(|capability| ["--cap-add", capability]));
        command.arg("--").args(&image.command).arg("--bpffs").arg(&node.bpffs);
        let began = Instant::now();
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("cannot start bwrap (`cargo xtask setup` installs it)")?;
        Ok(Self { log, child, began })
    }

    /// What it printed, and those that the image ran as before.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Ends it as a kubelet does, and waits until it has ended, with exit code 0.
    pub fn terminate(&mut self) -> Result<()> {
        kill_process(self.agent()?, Signal::TERM)?;
        let ended = || self.child.try_wait()?.context("it runs");
        let status = wait_for("the container ends", Duration::from_secs(10), ended)?;
        ensure!(status.success(), "the container ended with {status}");
        Ok(())
    }

    /// The agent's process: the only child of the one that watches it.
    fn agent(&self) -> Result<Pid> {
        let watcher = self.child.id();
        let children = fs::read_to_string(format!("/proc/{watcher}/task/{watcher}/children"))?;
        let pid = children.trim().parse().with_context(|| format!("one child: {children:?}"))?;
        Pid::from_raw(pid).context("not 0")
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- log of the container ----\n{}", self.log());
        }
        // The agent dies with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a node has of the agent. Dropping it takes away what was pinned.
#[derive(Debug)]
pub struct Node {
    directory: PathBuf,
    bpffs: PathBuf,
    namespace: String,
}

impl Node {
    /// The balancer of a topology, with this configuration.
    pub fn new(topology: &Topology, config: &str) -> Result<Self> {
        let directory = std::env::temp_dir().join(format!("{}-node", topology.name));
        fs::create_dir_all(directory.join("run"))?;
        fs::create_dir_all(directory.join("config"))?;
        fs::write(directory.join("config/headgate.yaml"), config)?;
        let bpffs = Path::new(BPFFS).join(format!("{}-node", topology.name));
        Ok(Self { directory, bpffs, namespace: topology.lb.name().to_owned() })
    }

    /// Starts the image on it.
    pub fn start(&self, image: &Image) -> Result<Container> {
        Container::start(image, self, &MOUNTED, &[])
    }

    /// The same where nobody has mounted the BPF file system.
    pub fn start_without_bpffs(&self, image: &Image) -> Result<Container> {
        Container::start(image, self, &["--tmpfs"], &[])
    }

    /// The same with what a pod has of its service account.
    pub fn start_in_cluster(&self, image: &Image, account: &ServiceAccount) -> Result<Container> {
        // The image has no place to mount it; a container runtime would make one.
        let mut options: Vec<OsString> = ["--tmpfs", "/var", "--ro-bind"].map(Into::into).into();
        options.extend([account.path().into(), ServiceAccount::MOUNT.into()]);
        for (name, value) in account.environment() {
            options.extend(["--setenv".into(), name.into(), value.into()]);
        }
        Container::start(image, self, &MOUNTED, &options)
    }

    /// A command of the agent's own build, which finds the container by what they share; its stdout.
    pub fn headgate(&self, arguments: &[&str]) -> Result<String> {
        let mut command = netns::command(&self.namespace, agent::headgate()?);
        command.args(arguments).arg("--bpffs").arg(&self.bpffs);
        output(command.arg("--run-dir").arg(self.directory.join("run")))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Err(error) = self.headgate(&["unload"]) {
            eprintln!("{error:#}");
        }
        let _ = fs::remove_dir_all(&self.bpffs);
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// The archive: `$HEADGATE_IMAGE`, or what `cargo xtask image` has left in the target directory of these tests.
fn archive() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("HEADGATE_IMAGE") {
        return Ok(path.into());
    }
    // Tests run from target/PROFILE/deps.
    let own = std::env::current_exe()?;
    let target = own.ancestors().nth(3).context("no target directory")?;
    let archive = target.join(format!("images/headgate-{}.tar", std::env::consts::ARCH));
    ensure!(archive.is_file(), "{} is missing: `cargo xtask image` makes it", archive.display());
    Ok(archive)
}

fn read_json(path: &Path) -> Result<Value> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

/// The file of what a descriptor describes.
fn blob(directory: &Path, descriptor: &Value) -> PathBuf {
    let digest = descriptor["digest"].as_str().unwrap_or_default();
    directory.join("blobs").join(digest.replace(':', "/"))
}
