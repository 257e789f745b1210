//! Envoy's own files in Headgate's hands: the real Envoy is the judge of the samples, and the same traffic through both is
//! logged and counted alike but for what `docs/envoy-differences.md` lists.
#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use lb_tests::agent::headgate;
use lb_tests::cmd::output;
use lb_tests::envoy;
use lb_tests::envoy_pages::{Pages, Run, compare, judge};
use lb_tests::rung::Rung;

fn samples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("envoy")
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = entries.filter(|path| path.is_file()).collect();
    files.sort();
    files
}

/// Whether a program that looks at a file ends well.
fn takes(command: &mut Command) -> bool {
    let result = command.stdin(Stdio::null()).output().unwrap();
    assert!(result.status.code().is_some(), "{command:?} ended by {}", result.status);
    result.status.success()
}

fn envoy_takes(file: &Path) -> bool {
    let quiet = ["--mode", "validate", "--concurrency", "1", "--disable-hot-restart", "-l", "error"];
    // Relative paths of logs are made while it looks.
    let directory = std::env::temp_dir();
    takes(Command::new(envoy::binary().unwrap()).current_dir(directory).args(quiet).arg("-c").arg(file))
}

fn headgate_takes(file: &Path) -> bool {
    takes(Command::new(headgate().unwrap()).arg("check").arg(file))
}

#[test]
fn samples_are_what_envoy_takes_and_mean_the_same_in_both_versions() {
    let mut twins = 0;
    for file in files(&samples()) {
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        assert!(headgate_takes(&file), "{name}");
        let converted = output(Command::new(headgate().unwrap()).arg("convert").arg(&file)).unwrap();
        if name.contains("-v3.") {
            assert!(envoy_takes(&file), "{name}");
            let twin = file.with_file_name(name.replace("-v3.", "-v2."));
            let of_twin = output(Command::new(headgate().unwrap()).arg("convert").arg(&twin)).unwrap();
            assert_eq!(converted, of_twin, "{name} and its twin");
            twins += 1;
        }
    }
    assert!(twins >= 5, "{twins}");
}

#[test]
fn what_envoy_rejects_is_rejected() {
    let rejected = files(&samples().join("rejected"));
    assert!(rejected.len() >= 25, "{rejected:?}");
    for file in rejected {
        assert!(!envoy_takes(&file), "Envoy takes {}", file.display());
        assert!(!headgate_takes(&file), "Headgate takes {}", file.display());
    }
}

/// Directories of the runs, removed in the end.
struct Runs(PathBuf);

impl Drop for Runs {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Runs {
    /// What the traffic came to through one of the two.
    fn run(&self, name: &str, arguments: &[&str]) -> Result<Pages> {
        let directory = self.0.join(name);
        let mut script = Command::new(samples().join("compare/by-hand.sh"));
        script.args(arguments).env("OUT", &directory).stdin(Stdio::null());
        let result = script.output().context("running by-hand.sh")?;
        let said = || {
            let log = fs::read_to_string(directory.join("balancer.log")).unwrap_or_default();
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            format!("{}\n{}\nits log:\n{log}", text(&result.stdout), text(&result.stderr))
        };
        ensure!(result.status.success(), "{name}: {}: {}", result.status, said());
        Pages::read(&directory)
    }
}

#[test]
fn the_same_traffic_through_both_is_logged_and_counted_alike() {
    let runs = Runs(std::env::temp_dir().join(format!("headgate-compare-{}", std::process::id())));
    fs::create_dir_all(&runs.0).unwrap();
    let envoy = envoy::binary().unwrap();
    let envoy = runs.run("envoy", &["envoy", envoy.to_str().unwrap()]).unwrap();
    let binary = headgate().unwrap();
    let rungs = [Rung::Xdp, Rung::Tc, Rung::Proxy].map(|rung| {
        let arguments = ["headgate", binary.to_str().unwrap(), "--datapath", rung.name()];
        let headgate = runs.run(rung.name(), &arguments).unwrap();
        let differences = compare(&envoy, &headgate).unwrap();
        println!("{rung}: {} differences", differences.len());
        Run { rung, differences }
    });
    let report = judge(&rungs);
    assert!(report.is_clean(), "{report}");
}
