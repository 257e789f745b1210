//! `cargo xtask test --kernel VERSION`: the suites on another kernel of Debian's, booted in QEMU.
//!
//! Nothing is installed but QEMU and a few tools: the kernel's package is unpacked below `target/kernels`. The
//! guest sees this machine's root file system read-only (9p) with a layer in memory above it, so it runs the very
//! programs that cargo has built here, against this machine's nginx, curl and iproute2. QEMU emulates the CPU
//! (tcg): no nested virtualization is needed, and everything takes ten times as long.

use std::{
    collections::BTreeMap,
    env::consts::ARCH,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    guest::{self, Suite},
    workspace::{Workspace, is_root, run, show},
};

/// After this a guest counts as hung.
const TIME_LIMIT: Duration = Duration::from_secs(45 * 60);
const MEMORY_MIB: &str = "3072";
const CPUS: &str = "2";

/// Modules without which the guest has no root file system; the others come from there, on demand.
const MODULES: [&str; 4] = ["virtio_pci", "9p", "9pnet_virtio", "overlay"];

/// What is run of which suite: loading, attachment, traffic and its end on every rung, in minutes also at a tenth of
/// the speed. Of XDP only the suite that knows what a veth can do on an old kernel.
const SUITES: [(&str, &[&str]); 5] = [
    ("programs", &["statistics"]),
    ("e2e_rungs", &[]),
    ("e2e_basic", &["requests_on_tc", "requests_on_proxy"]),
    ("e2e_bulk", &["narrow_links_on_tc"]),
    ("e2e_lifecycle", &["added_address_is_served_on_tc", "sigterm_drains_tc", "outlive_the_change_to_tc"]),
];

/// A kernel that has been unpacked.
struct Kernel {
    /// What its package has, from `/` on.
    root: PathBuf,
    /// As `uname -r` says it.
    release: String,
}

/// The suites with one of the filters in their name, and the arguments of each; `args` go before our own choice.
pub(crate) fn chosen(filters: &[String], args: &[String]) -> Result<Vec<(String, Vec<String>)>> {
    if let Some(filter) = filters.iter().find(|filter| !SUITES.iter().any(|(name, _)| name.contains(*filter)))
    {
        bail!("no suite has {filter} in its name; there are {}", SUITES.map(|(name, _)| name).join(", "));
    }
    let wanted = |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(filter));
    let chosen = SUITES.into_iter().filter(|(name, _)| wanted(name)).map(|(name, own)| {
        let own = own.iter().map(|arg| (*arg).to_owned()).collect();
        (name.to_owned(), if args.is_empty() { own } else { args.to_vec() })
    });
    Ok(chosen.collect())
}

/// Boots the kernel, runs the suites in it and judges them by what they print.
pub(crate) fn test(workspace: &Workspace, version: &str, suites: &[Suite]) -> Result<()> {
    ensure!(ARCH == "x86_64", "--kernel boots Debian's amd64 kernels: this machine is {ARCH}");
    let kernel = Kernel::get(&workspace.kernels(), version)?;
    let script = guest::script(&kernel.modules(), &workspace.release("headgate"), suites);
    let initramfs = kernel.pack_initramfs(&script)?;
    println!("== Linux {} in QEMU", kernel.release);
    guest::judge(&boot(&kernel, &initramfs, TIME_LIMIT)?, suites)
}

impl Kernel {
    /// The newest kernel of this version that the package sources have; an unpacked one is kept and used again.
    fn get(kernels: &Path, version: &str) -> Result<Self> {
        let root = kernels.join(version);
        if !root.exists() {
            unpack(kernels, version, &root)?;
        }
        let releases = root.join("lib/modules");
        let release = fs::read_dir(&releases).with_context(|| releases.display().to_string())?.next();
        let release = release.with_context(|| format!("{} is empty", releases.display()))??.file_name();
        Ok(Self { release: release.to_string_lossy().into_owned(), root })
    }

    fn image(&self) -> PathBuf {
        self.root.join(format!("boot/vmlinuz-{}", self.release))
    }

    fn modules(&self) -> PathBuf {
        self.root.join("lib/modules").join(&self.release)
    }

    /// The files of [`MODULES`] and what they need, each after what it needs.
    fn early_modules(&self) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for module in MODULES {
            let mut modprobe = Command::new("modprobe");
            modprobe.arg("--dirname").arg(&self.root).args(["--set-version", &self.release]);
            for line in output(modprobe.args(["--show-depends", module]))?.lines() {
                // "insmod FILE"; "builtin NAME" for what the kernel has in itself.
                let file = line.strip_prefix("insmod ").map(|file| PathBuf::from(file.trim()));
                files.extend(file.filter(|file| !files.contains(file)));
            }
        }
        Ok(files)
    }

    fn pack_initramfs(&self, script: &str) -> Result<PathBuf> {
        let files = self.root.join("initramfs");
        if files.exists() {
            fs::remove_dir_all(&files)?;
        }
        // Mount points, and `bin` and `modules` to be filled.
        for directory in ["bin", "modules", "host", "memory", "sysroot"] {
            fs::create_dir_all(files.join(directory))?;
        }
        let busybox = output(Command::new("sh").args(["-c", "command -v busybox"]))?;
        fs::copy(busybox.trim(), files.join("bin/busybox"))?;
        for (place, module) in self.early_modules()?.iter().enumerate() {
            let name = module.file_name().context("a module's file has a name")?.to_string_lossy();
            fs::copy(module, files.join("modules").join(format!("{place:02}-{name}")))?;
        }
        fs::write(files.join("init"), guest::INIT)?;
        fs::write(files.join("script"), script)?;
        let archive = self.root.join("initramfs.cpio");
        let pack =
            "chmod 755 init && find . | cpio --quiet --create --format=newc --owner=0:0 >../initramfs.cpio";
        run(Command::new("sh").args(["-ec", pack]).current_dir(&files))?;
        Ok(archive)
    }
}

/// Downloads the package with the ordinary client and unpacks it; `root` appears only when all is there.
fn unpack(kernels: &Path, version: &str, root: &Path) -> Result<()> {
    let unfinished = kernels.join(format!("{version}.unfinished"));
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished)?;
    }
    fs::create_dir_all(&unfinished)?;
    if is_root() {
        run(Command::new("apt-get").args(["--quiet", "--quiet", "update"]))?;
    }
    let names = output(Command::new("apt-cache").args(["pkgnames", "linux-image-"]))?;
    let Some(package) = newest(names.lines(), version) else {
        bail!(
            "the package sources of this system have no kernel {version}; they have {}",
            versions(names.lines()).join(", ")
        );
    };
    println!("setup: downloading {package} into {}", root.display());
    // `Sandbox::User`: apt's own user may not write here, and the client warns of that.
    let mut download = Command::new("apt-get");
    download.args(["--quiet", "--quiet", "-o", "APT::Sandbox::User=root", "download", package]);
    run(download.current_dir(&unfinished))?;
    let mut package_file = None;
    for entry in fs::read_dir(&unfinished)? {
        package_file = Some(entry?.path());
    }
    let package_file = package_file.with_context(|| format!("apt-get left no file of {package}"))?;
    run(Command::new("dpkg-deb").arg("--extract").arg(&package_file).arg(&unfinished))?;
    fs::remove_file(package_file)?;
    for release in fs::read_dir(unfinished.join("lib/modules"))? {
        run(Command::new("depmod").arg("--basedir").arg(&unfinished).arg(release?.file_name()))?;
    }
    fs::rename(&unfinished, root).with_context(|| root.display().to_string())
}

/// The name of the newest kernel package of a version such as 6.1 or 6.12.
fn newest<'a>(names: impl Iterator<Item = &'a str>, version: &str) -> Option<&'a str> {
    let of_version = |name: &&str| {
        kernel_version(name)
            .and_then(|found| found.strip_prefix(version))
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '-', '+']))
    };
    names.filter(of_version).max_by_key(|name| numbers(name))
}

/// Versions that [`newest`] knows, as one would ask for them.
fn versions<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let two = |name: &str| {
        let found = numbers(kernel_version(name)?);
        Some(((*found.first()?, *found.get(1)?), ()))
    };
    names
        .filter_map(two)
        .collect::<BTreeMap<_, _>>()
        .keys()
        .map(|(major, minor)| format!("{major}.{minor}"))
        .collect()
}

/// `6.1.0-56` of `linux-image-6.1.0-56-amd64`; nothing of other flavours, unsigned kernels and meta packages.
fn kernel_version(package: &str) -> Option<&str> {
    let version = package.strip_prefix("linux-image-")?.strip_suffix("-amd64")?;
    let flavour = version.split('-').skip(1).any(|part| part.starts_with(|c: char| c.is_ascii_alphabetic()));
    (version.starts_with(|c: char| c.is_ascii_digit()) && !flavour).then_some(version)
}

fn numbers(text: &str) -> Vec<u64> {
    text.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

/// Runs the guest to its end, showing its console; the lines of it. Its end says nothing about success.
fn boot(kernel: &Kernel, initramfs: &Path, limit: Duration) -> Result<Vec<String>> {
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-m", MEMORY_MIB, "-smp", CPUS]);
    qemu.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"]);
    qemu.arg("-kernel").arg(kernel.image()).arg("-initrd").arg(initramfs);
    // The console is for the tests' lines; an oops raises the level by itself and ends the guest.
    qemu.args(["-append", "console=ttyS0 loglevel=1 oops=panic panic=-1 mitigations=off"]);
    let root = "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap";
    qemu.args(["-virtfs", root]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = qemu.spawn().with_context(|| format!("cannot start `{}`", show(&qemu)))?;

    let lines = Arc::new(Mutex::new(Vec::new()));
    let console = BufReader::new(child.stdout.take().context("stdout is piped")?);
    let reader = thread::spawn({
        let lines = Arc::clone(&lines);
        move || {
            for line in console.split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
                // A reader that has gone away is no reason to stop the tests.
                let _ = writeln!(std::io::stdout(), "{line}");
                lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        }
    });
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            bail!("the guest did not come to its end within {} minutes", limit.as_secs() / 60);
        }
        thread::sleep(Duration::from_millis(100));
    };
    let _ = reader.join();
    ensure!(status.success(), "`{}` failed: {status}", show(&qemu));
    Ok(std::mem::take(&mut *lines.lock().unwrap_or_else(PoisonError::into_inner)))
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.with_context(|| format!("cannot start `{}`", show(command)))?;
    ensure!(output.status.success(), "`{}` failed: {}", show(command), output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 9] = [
        "linux-image-6.1.0-9-amd64",
        "linux-image-6.1.0-56-amd64",
        "linux-image-6.1.0-57-amd64-unsigned",
        "linux-image-6.1.0-57-cloud-amd64",
        "linux-image-6.1.0-57-rt-amd64",
        "linux-image-6.12.48+deb13-amd64",
        "linux-image-6.12.9+bpo-amd64",
        "linux-image-amd64",
        "linux-image-6.1.0-57-arm64",
    ];

    #[test]
    fn filters_and_arguments_choose() {
        let strings = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        assert_eq!(chosen(&[], &[]).unwrap().len(), SUITES.len());
        let own = [("e2e_bulk".to_owned(), strings(&["narrow_links_on_tc"]))];
        assert_eq!(chosen(&strings(&["bulk"]), &[]).unwrap(), own);
        let given = [("e2e_bulk".to_owned(), strings(&["gibi", "--nocapture"]))];
        assert_eq!(chosen(&strings(&["bulk"]), &strings(&["gibi", "--nocapture"])).unwrap(), given);
        let error = chosen(&strings(&["bulk", "fmt"]), &[]).unwrap_err().to_string();
        assert!(error.starts_with("no suite has fmt in its name; there are programs, "), "{error}");
    }

    #[test]
    fn newest_kernel_of_a_version() {
        assert_eq!(newest(NAMES.into_iter(), "6.1"), Some("linux-image-6.1.0-56-amd64"));
        assert_eq!(newest(NAMES.into_iter(), "6.12"), Some("linux-image-6.12.48+deb13-amd64"));
        assert_eq!(newest(NAMES.into_iter(), "6"), Some("linux-image-6.12.48+deb13-amd64"));
        assert_eq!(newest(NAMES.into_iter(), "6.2"), None);
        assert_eq!(versions(NAMES.into_iter()), ["6.1", "6.12"]);
    }
}
