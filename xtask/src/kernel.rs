//! `cargo xtask test --kernel VERSION`, and the kernels of the default command: the suites on other kernels of
//! Debian's, booted in QEMU.
//!
//! Nothing is installed but QEMU and a few tools: a kernel's packages are unpacked below `target/kernels`, and stay
//! there. The guest sees this machine's root file system read-only (9p) with a layer in memory above it, so it runs
//! the very programs that cargo has built here, against this machine's nginx, curl and iproute2. QEMU emulates the
//! CPU (tcg): no nested virtualization is needed, and everything takes ten times as long.

mod archive;
mod image;
mod qemu;
mod report;

use std::{
    collections::HashMap,
    env::consts::ARCH,
    fs,
    io::{Write as _, stdout},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use self::{archive::Mirror, image::Kernel, report::Entry};
use crate::{
    guest::{self, Passed, Suite},
    workspace::{Workspace, show},
};

/// Instead of a version: the newest kernel of the archive.
pub(crate) const NEWEST: &str = "newest";
/// Instead of a version: all of [`MATRIX`].
const ALL: &str = "all";
/// What `--kernel all` tries: the stable releases since TC goes by clsact, and what comes.
const MATRIX: [&str; 3] = ["6.1", "6.12", NEWEST];
/// What the default command tries.
const DEFAULT: [&str; 2] = ["6.1", NEWEST];

/// Where the default command runs a suite.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ByDefault {
    /// On each of [`DEFAULT`].
    Each,
    /// On one of them.
    Newest,
    /// Only with `--kernel`.
    Never,
}

/// What is run of which suite: loading, attachment, traffic and its end on every rung, in minutes also at a tenth of
/// the speed. Of XDP only the suites that know what a veth can do on an old kernel.
const SUITES: [(&str, &[&str], ByDefault); 6] = [
    (guest::STATISTICS, &["statistics", "--nocapture"], ByDefault::Each),
    ("e2e_rungs", &[], ByDefault::Each),
    ("e2e_vlan", &[], ByDefault::Newest),
    ("e2e_basic", &["requests_on_tc", "requests_on_proxy"], ByDefault::Never),
    ("e2e_bulk", &["narrow_links_on_tc"], ByDefault::Never),
    (
        "e2e_lifecycle",
        &["added_address_is_served_on_tc", "sigterm_drains_tc", "outlive_the_change_to_tc"],
        ByDefault::Never,
    ),
];

/// Suites for kernels with what this one may lack: they are no steps of their own.
pub(crate) const GUESTS_ONLY: [&str; 1] = ["e2e_vlan"];

/// A kernel to try, and the suites with the arguments of each.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Job {
    pub(crate) version: String,
    pub(crate) suites: Vec<(String, Vec<String>)>,
}

/// How the guests are run.
#[derive(Clone, Copy)]
pub(crate) struct Mode {
    /// Shows the console as it comes; without, only that of a guest that failed.
    pub(crate) live: bool,
    /// After this a guest counts as hung.
    pub(crate) time_limit: Duration,
}

impl Mode {
    /// For `--kernel`.
    pub(crate) const ASKED: Self = Self { live: true, time_limit: Duration::from_secs(45 * 60) };
    /// For the default command.
    pub(crate) const DEFAULT: Self = Self { live: false, time_limit: Duration::from_secs(15 * 60) };
}

/// What `--kernel` asks for: each version with the suites that have one of the filters in their name; `args` go
/// before our own choice.
pub(crate) fn asked(versions: &[String], filters: &[String], args: &[String]) -> Result<Vec<Job>> {
    if let Some(filter) =
        filters.iter().find(|filter| !SUITES.iter().any(|(name, ..)| name.contains(*filter)))
    {
        bail!("no suite has {filter} in its name; there are {}", SUITES.map(|(name, ..)| name).join(", "));
    }
    let mut wanted: Vec<&str> = Vec::new();
    for version in versions {
        let each: &[&str] = if version == ALL { &MATRIX } else { &[version] };
        for version in each {
            let number = version.split('.').all(|part| part.parse::<u32>().is_ok());
            ensure!(
                number || *version == NEWEST,
                "{version} is no version such as 6.1, nor {NEWEST} or {ALL}"
            );
            if !wanted.contains(version) {
                wanted.push(version);
            }
        }
    }
    let by_name = |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(filter));
    let suites = SUITES.iter().filter(|(name, ..)| by_name(name)).map(|(name, own, _)| {
        ((*name).to_owned(), if args.is_empty() { strings(own) } else { args.to_vec() })
    });
    let suites: Vec<_> = suites.collect();
    Ok(wanted
        .into_iter()
        .map(|version| Job { version: version.to_owned(), suites: suites.clone() })
        .collect())
}

/// What the default command tries: few suites, in a few minutes.
pub(crate) fn by_default() -> Vec<Job> {
    let job = |version: &str| {
        let here = |when| match when {
            ByDefault::Each => true,
            ByDefault::Newest => version == NEWEST,
            ByDefault::Never => false,
        };
        let suites = SUITES.iter().filter(|(.., when)| here(*when));
        let suites = suites.map(|(name, own, _)| ((*name).to_owned(), strings(own))).collect();
        Job { version: version.to_owned(), suites }
    };
    DEFAULT.map(job).into()
}

/// Why no kernel can be had here, of those that are not unpacked yet.
pub(crate) fn hindrance(workspace: &Workspace, jobs: &[Job]) -> Option<String> {
    if ARCH != "x86_64" {
        return Some(format!("Debian's amd64 kernels are booted, and this machine is {ARCH}"));
    }
    if jobs.iter().all(|job| Kernel::is_unpacked(&workspace.kernels(), &job.version)) {
        return None;
    }
    Mirror::locate().err().map(|error| format!("{error:#}"))
}

/// Boots each job's kernel, runs its suites there, judges them by what they print and shows the table. A kernel that
/// fails does not keep the others from their turn.
pub(crate) fn test(
    workspace: &Workspace,
    jobs: &[Job],
    mode: Mode,
    programs: &HashMap<String, PathBuf>,
) -> Result<()> {
    let mut entries = Vec::new();
    for Job { version, suites } in jobs {
        let suite = |(name, args): &(String, Vec<String>)| {
            let program = programs.get(name).with_context(|| format!("{name} has not been built"))?;
            Ok(Suite { name: name.clone(), program: program.clone(), args: args.clone() })
        };
        let suites = suites.iter().map(suite).collect::<Result<Vec<_>>>()?;
        entries.push(match Kernel::get(&workspace.kernels(), version) {
            Ok(kernel) => {
                println!("-- Linux {} in QEMU: {}", kernel.release(), names(&suites));
                let began = Instant::now();
                let result = run_guest(workspace, &kernel, &suites, mode);
                Entry { kernel: kernel.release().to_owned(), took: began.elapsed(), result }
            }
            Err(error) => Entry { kernel: version.clone(), took: Duration::ZERO, result: Err(error) },
        });
    }
    print!("\n{}", report::table(&entries));
    let failed = entries.into_iter().filter_map(|Entry { kernel, result, .. }| {
        result.err().map(|error| format!("Linux {kernel}: {error:#}"))
    });
    let failed: Vec<_> = failed.collect();
    ensure!(failed.is_empty(), "{}", failed.join("\n       "));
    Ok(())
}

/// One guest; its console is shown, unless it is quiet and good.
fn run_guest(workspace: &Workspace, kernel: &Kernel, suites: &[Suite], mode: Mode) -> Result<Passed> {
    let script = guest::script(&kernel.modules(), &workspace.release("headgate"), suites);
    let initramfs = kernel.pack_initramfs(&script)?;
    let console = qemu::boot(&kernel.image()?, &initramfs, mode)?;
    let judged = match console.fault {
        Some(fault) => Err(anyhow!(fault)),
        None => guest::judge(&console.lines, suites),
    };
    if judged.is_err() && !mode.live {
        let mut out = stdout().lock();
        for line in &console.lines {
            // A reader that has gone away changes nothing about the failure.
            let _ = writeln!(out, "{line}");
        }
    }
    judged
}

fn names(suites: &[Suite]) -> String {
    suites.iter().map(|suite| suite.name.as_str()).collect::<Vec<_>>().join(", ")
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// What a program prints; its complaints are shown.
fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.with_context(|| format!("cannot start `{}`", show(command)))?;
    ensure!(output.status.success(), "`{}` failed: {}", show(command), output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A directory that is empty, whatever was there.
fn emptied(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory).with_context(|| directory.display().to_string())?;
    }
    fs::create_dir_all(directory).with_context(|| directory.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(job: &Job) -> Vec<&str> {
        job.suites.iter().map(|(name, _)| name.as_str()).collect()
    }

    #[test]
    fn filters_and_arguments_choose() {
        let version = strings(&["6.1"]);
        assert_eq!(asked(&version, &[], &[]).unwrap()[0].suites.len(), SUITES.len());
        let one = |args: &[&str]| {
            let suites = vec![("e2e_bulk".to_owned(), strings(args))];
            vec![Job { version: "6.1".to_owned(), suites }]
        };
        let bulk = strings(&["bulk"]);
        assert_eq!(asked(&version, &bulk, &[]).unwrap(), one(&["narrow_links_on_tc"]));
        let args = strings(&["gibi", "--nocapture"]);
        assert_eq!(asked(&version, &bulk, &args).unwrap(), one(&["gibi", "--nocapture"]));
        let error = asked(&version, &strings(&["bulk", "fmt"]), &[]).unwrap_err().to_string();
        assert!(error.starts_with("no suite has fmt in its name; there are programs, "), "{error}");
    }

    #[test]
    fn versions_are_each_tried_once() {
        let jobs = asked(&strings(&["7.0", "6.12", "all"]), &[], &[]).unwrap();
        let versions: Vec<_> = jobs.iter().map(|job| job.version.as_str()).collect();
        assert_eq!(versions, ["7.0", "6.12", "6.1", "newest"]);
        for wrong in ["", "6.x", "../6.1", "latest"] {
            assert!(asked(&strings(&[wrong]), &[], &[]).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn every_default_kernel_has_every_rung() {
        let jobs = by_default();
        assert_eq!(jobs.iter().map(|job| job.version.as_str()).collect::<Vec<_>>(), DEFAULT);
        assert!(jobs.iter().all(|job| of(job).starts_with(&["programs", "e2e_rungs"])));
        for name in GUESTS_ONLY {
            assert!(jobs.iter().any(|job| of(job).contains(&name)), "{name} is run nowhere");
        }
    }
}
