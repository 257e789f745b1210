//! `cargo xtask image`: the container image, an OCI archive for each architecture.

use std::{
    fmt, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};

use crate::{
    setup::{self, Scope},
    workspace::{Workspace, run},
};

/// Directories that are mounted over when it runs: the root file system is read-only.
const MOUNT_POINTS: [&str; 6] =
    ["dev", "etc/headgate", "proc", "run/headgate", "sys/fs/bpf", "var/lib/headgate"];

#[derive(Args)]
pub(crate) struct Options {
    /// What it is to run on; by default this machine's. May be given more than once
    #[arg(long, value_enum)]
    arch: Vec<Arch>,
}

/// As rustc names it.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Arch {
    #[value(name = "x86_64")]
    X86_64,
    Aarch64,
}

impl Arch {
    /// This machine's.
    pub(crate) const OWN: Self = if cfg!(target_arch = "aarch64") { Self::Aarch64 } else { Self::X86_64 };

    /// As container tools name it.
    fn oci(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }

    /// The static target.
    pub(crate) fn target(self) -> String {
        format!("{self}-unknown-linux-musl")
    }

    /// A C compiler that builds for it, for the assembly of rustls' cryptography, and its Debian package. That of another
    /// architecture needs no libc of its target.
    pub(crate) fn compiler(self) -> (&'static str, &'static str) {
        match self {
            own if own == Self::OWN => ("musl-gcc", "musl-tools"),
            Self::X86_64 => ("x86_64-linux-gnu-gcc", "gcc-x86-64-linux-gnu"),
            Self::Aarch64 => ("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu"),
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        })
    }
}

/// Builds the images and prints where they are, and how large.
pub(crate) fn run_command(workspace: &Workspace, options: &Options) -> Result<()> {
    let arches = if options.arch.is_empty() { vec![Arch::OWN] } else { options.arch.clone() };
    for arch in arches {
        build(workspace, arch)?;
    }
    Ok(())
}

/// Builds that of this machine, as the step of a test.
pub(crate) fn build_own(workspace: &Workspace) -> Result<()> {
    build(workspace, Arch::OWN)
}

fn build(workspace: &Workspace, arch: Arch) -> Result<()> {
    setup::ensure(workspace, Scope::Image(arch))?;
    let binary = binary(workspace, arch)?;
    let directory = workspace.images();
    let context = directory.join(format!("{arch}.context"));
    lay_out(&context, &binary)?;

    let name = format!("headgate:{}", env!("CARGO_PKG_VERSION"));
    let archive = directory.join(format!("headgate-{arch}.tar"));
    run(buildah(&directory)
        .args(["build", "--quiet", "--isolation", "chroot", "--layers=false", "--format", "oci"])
        // The same input makes the same image.
        .args(["--timestamp", "0", "--arch", arch.oci(), "--tag", &name])
        .args(["--build-arg", concat!("VERSION=", env!("CARGO_PKG_VERSION"))])
        .arg("--build-arg")
        .arg(format!("REVISION={}", revision(workspace)))
        .arg("--file")
        .arg(workspace.root.join("deploy/Containerfile"))
        .arg(&context))?;
    // An archive that is there would be added to.
    let _ = fs::remove_file(&archive);
    let destination = format!("oci-archive:{}:{name}", archive.display());
    run(buildah(&directory).args(["push", "--quiet", &name, &destination]))?;
    run(buildah(&directory).args(["rmi", &name]))?;
    println!(
        "{} ({}): {}, in it a binary of {}",
        archive.display(),
        name,
        mebibytes(&archive)?,
        mebibytes(&binary)?
    );
    Ok(())
}

/// The static binary.
fn binary(workspace: &Workspace, arch: Arch) -> Result<PathBuf> {
    let target = arch.target();
    let variable =
        |prefix: &str, suffix: &str| format!("{prefix}_{}{suffix}", target.to_uppercase().replace('-', "_"));
    let mut cargo = workspace.cargo("build");
    cargo.args([
        "--locked",
        "--profile=image",
        "--package=lb-userspace",
        "--bin=headgate",
        "--target",
        &target,
    ]);
    if arch != Arch::OWN {
        let name = target.replace('-', "_");
        cargo.env(format!("CC_{name}"), arch.compiler().0);
        // ring, whose assembly it is for, does without a libc then, of which there is none for that target.
        cargo.env(format!("CFLAGS_{name}"), "-ffreestanding -DRING_CORE_NOSTDLIBINC=1");
        // The toolchain brings what a static program is linked from, and a linker for all architectures.
        cargo.env(variable("CARGO_TARGET", "_LINKER"), "rust-lld");
    }
    run(&mut cargo)?;
    Ok(workspace.target().join(target).join("image/headgate"))
}

/// The root file system.
fn lay_out(root: &Path, binary: &Path) -> Result<()> {
    let laying = || -> std::io::Result<()> {
        if root.exists() {
            fs::remove_dir_all(root)?;
        }
        for directory in MOUNT_POINTS {
            fs::create_dir_all(root.join(directory))?;
        }
        fs::copy(binary, root.join("headgate"))?;
        // Nothing in it is to be written, whoever runs it and however it is mounted.
        for directory in MOUNT_POINTS.iter().flat_map(|path| Path::new(path).ancestors()) {
            fs::set_permissions(root.join(directory), fs::Permissions::from_mode(0o555))?;
        }
        fs::set_permissions(root.join("headgate"), fs::Permissions::from_mode(0o555))
    };
    laying().with_context(|| format!("laying out {}", root.display()))
}

/// It works without a container engine, and keeps all that it needs in `directory`.
fn buildah(directory: &Path) -> Command {
    let mut buildah = Command::new("buildah");
    buildah.args(["--storage-driver", "vfs", "--root"]).arg(directory.join("storage"));
    buildah.arg("--runroot").arg(directory.join("run"));
    buildah
}

/// The commit; empty where there is no repository.
fn revision(workspace: &Workspace) -> String {
    let output = Command::new("git").args(["rev-parse", "HEAD"]).current_dir(&workspace.root).output();
    output
        .ok()
        .filter(|output| output.status.success())
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        .unwrap_or_default()
}

fn mebibytes(path: &Path) -> Result<String> {
    let bytes = fs::metadata(path).with_context(|| format!("{}", path.display()))?.len();
    if bytes == 0 {
        bail!("{} is empty", path.display());
    }
    Ok(format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)))
}
