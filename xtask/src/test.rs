//! `cargo xtask test`: everything that CI checks, step by step.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::Value;

use crate::{
    ebpf,
    guest::STATISTICS,
    image, kernel, manifests,
    setup::{self, Scope},
    workspace::{Workspace, is_root, run as run_program, show},
};

/// The step that makes `target/release/headgate`, which the suites start.
const BUILD: &str = "build";
/// The suites that print a timeline of what happens to a cluster and its nodes under load, or how long something took:
/// always shown, too.
const TIMELINES: [&str; 7] =
    ["e2e_day", "e2e_ecmp", "e2e_image", "e2e_kubernetes", "e2e_takeover", "e2e_timeline", "e2e_vip"];
/// Suites that mostly wait for timeouts: some of their tests at a time, each in namespaces of its own.
const WAITING: [&str; 4] = ["e2e_access_log", "e2e_health", "e2e_kubernetes", "e2e_limits"];
/// The step that builds the container image, and the suites that start it.
const IMAGE: (&str, [&str; 2]) = ("image", ["e2e_image", "e2e_kubernetes"]);
/// The step that boots other kernels.
const KERNELS: &str = "kernels";

#[derive(Args)]
pub(crate) struct Options {
    /// Run only the steps with one of these in their name (see --list)
    #[arg(value_name = "FILTER")]
    filters: Vec<String>,
    /// Only the steps that need no root: nothing is loaded into the kernel
    #[arg(long)]
    quick: bool,
    /// Name the steps and run nothing
    #[arg(long)]
    list: bool,
    /// Run the suites on other kernels of Debian's in QEMU: versions such as 6.1,6.12 or `newest`, or `all`; filters and
    /// test arguments choose among the suites. Kernels are kept in target/kernels: remove a directory there to have
    /// the newest of its version again
    #[arg(long, value_name = "VERSION", value_delimiter = ',', conflicts_with = "quick")]
    kernel: Vec<String>,
    /// Arguments for the test programs, such as a part of a test's name
    #[arg(last = true, value_name = "TEST ARGS")]
    args: Vec<String>,
}

struct Step {
    name: String,
    about: String,
    root: bool,
    action: Action,
}

enum Action {
    Lints,
    Image,
    Program(Command),
    Kernels,
}

/// Runs the chosen steps up to the first that fails.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    if !options.kernel.is_empty() {
        return run_on_kernels(workspace, options);
    }
    let mut steps = chosen(steps(workspace, &options.args)?, options)?;
    if options.list {
        for step in &steps {
            println!("{:<18} {}{}", step.name, step.about, if step.root { " (root)" } else { "" });
        }
        return Ok(());
    }
    let rooted = steps.iter().filter(|step| step.root).count();
    if rooted > 0 && !is_root() {
        bail!(
            "{rooted} of these {} steps load BPF programs and make network namespaces: run as root, or leave them \
             out with --quick",
            steps.len()
        );
    }
    let mut hindrance = None;
    let mut scope = if rooted > 0 { Scope::All } else { Scope::Build };
    if steps.iter().any(|step| step.name == KERNELS) {
        hindrance = kernel::hindrance(workspace, &kernel::by_default());
        if hindrance.is_some() {
            steps.retain(|step| step.name != KERNELS);
        } else {
            scope = Scope::Kernel;
        }
    }
    setup::ensure(workspace, scope)?;

    let total = steps.len();
    let began = Instant::now();
    for (number, step) in steps.into_iter().enumerate() {
        println!("\n== {} ({}/{total}): {}", step.name, number + 1, step.about);
        let step_began = Instant::now();
        let result = match step.action {
            Action::Lints => manifests::check_lints(&workspace.root),
            Action::Image => image::build_own(workspace),
            Action::Program(mut command) => {
                println!("   {}", show(&command));
                run_program(&mut command)
            }
            Action::Kernels => run_by_default(workspace),
        };
        let took = seconds(step_began.elapsed());
        result.with_context(|| {
            format!("step {0} failed after {took}; alone: cargo xtask test {0}", step.name)
        })?;
        println!("== {}: ok, {took}", step.name);
    }
    println!("\nsteps passed: {total}, in {}", seconds(began.elapsed()));
    if let Some(why) = hindrance {
        println!("not run: {KERNELS}: {why}");
    }
    Ok(())
}

/// Builds the agent and the suites here and runs the suites on the kernels that `--kernel` names.
fn run_on_kernels(workspace: &Workspace, options: &Options) -> Result<()> {
    let jobs = kernel::asked(&options.kernel, &options.filters, &options.args)?;
    if options.list {
        for (name, args) in jobs.iter().take(1).flat_map(|job| &job.suites) {
            println!("{name:<18} {}", args.join(" "));
        }
        return Ok(());
    }
    if let Some(why) = kernel::hindrance(workspace, &jobs) {
        bail!("{why}");
    }
    setup::ensure(workspace, Scope::Kernel)?;
    run_program(workspace.cargo("build").args(["--locked", "--release", "--package=lb-userspace"]))?;
    run_jobs(workspace, &jobs, kernel::Mode::ASKED)
}

/// The step of the default command, with what the steps before it have built.
fn run_by_default(workspace: &Workspace) -> Result<()> {
    run_jobs(workspace, &kernel::by_default(), kernel::Mode::DEFAULT)
}

fn run_jobs(workspace: &Workspace, jobs: &[kernel::Job], mode: kernel::Mode) -> Result<()> {
    let mut names: Vec<_> = jobs.iter().flat_map(|job| &job.suites).map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let programs = test_programs(workspace, &names)?;
    kernel::test(workspace, jobs, mode, &programs)
}

/// Builds suites without running them; the file that cargo made of each.
fn test_programs(workspace: &Workspace, suites: &[&str]) -> Result<HashMap<String, PathBuf>> {
    let mut cargo = workspace.cargo("test");
    cargo.args(["--locked", "--release", "--package=lb-tests", "--no-run"]);
    cargo.args(suites.iter().flat_map(|suite| ["--test", suite]));
    cargo.args(["--quiet", "--message-format=json-render-diagnostics"]);
    let output = cargo.stderr(Stdio::inherit()).output();
    let output = output.with_context(|| format!("cannot start `{}`", show(&cargo)))?;
    if !output.status.success() {
        bail!("`{}` failed: {}", show(&cargo), output.status);
    }
    let mut programs = HashMap::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Ok(message) = serde_json::from_str::<Value>(line) else { continue };
        if let (Some(name), Some(program)) =
            (message["target"]["name"].as_str(), message["executable"].as_str())
        {
            programs.insert(name.to_owned(), PathBuf::from(program));
        }
    }
    if let Some(suite) = suites.iter().find(|suite| !programs.contains_key(**suite)) {
        bail!("cargo names no program of {suite}");
    }
    Ok(programs)
}

/// All steps in their order: what fails fast and cheaply comes first, so that a later failure means what it
/// says.
fn steps(workspace: &Workspace, test_args: &[String]) -> Result<Vec<Step>> {
    let step = |name: &str, about: &str, command: Command| Step {
        name: name.to_owned(),
        about: about.to_owned(),
        root: false,
        action: Action::Program(command),
    };
    let cargo = |words: &[&str]| {
        let mut cargo = workspace.cargo(words[0]);
        cargo.args(&words[1..]);
        cargo
    };
    let bpf = |words: &[&str]| {
        let mut cargo = ebpf::cargo(workspace, words[0]);
        cargo.args(&words[1..]);
        cargo
    };

    let unit = |words: &[&str]| {
        let packages =
            ["--package=lb-common", "--package=lb-userspace", "--package=lb-bench", "--package=xtask"];
        let mut cargo = cargo(&["test", "--locked"]);
        cargo.args(packages).args(words).args(test_args);
        cargo
    };
    // One at a time: the tests share the machine's network and its CPUs.
    let rooted =
        |name: &str, about: &str, command: Command| Step { root: true, ..step(name, about, command) };

    let mut steps = vec![
        step("format", "the code is as rustfmt has it", cargo(&["fmt", "--all", "--check"])),
        step(
            "clippy-host",
            "no warnings in host code",
            cargo(&["clippy", "--locked", "--workspace", "--all-targets", "--", "--deny=warnings"]),
        ),
        step(
            "clippy-bpf",
            "no warnings in the code for the kernel",
            bpf(&["clippy", "--package=lb-ebpf", "--package=lb-bench-ebpf", "--", "--deny=warnings"]),
        ),
        Step {
            name: "lints".to_owned(),
            about: "every member inherits the lints of the workspace".to_owned(),
            root: false,
            action: Action::Lints,
        },
        step(
            "common-bpf",
            "lb-common builds for the BPF target without features",
            bpf(&["build", "--package=lb-common", "--no-default-features"]),
        ),
        step(
            BUILD,
            "the agent, in release",
            cargo(&["build", "--locked", "--release", "--package=lb-userspace"]),
        ),
        step("unit", "unit and property tests on the host", unit(&["--"])),
        rooted(
            "unit-root",
            "unit tests that need root",
            unit(&["--lib", "--bins", "--", "--ignored", "--test-threads=1"]),
        ),
    ];

    let suite = |words: &[&str]| {
        let mut cargo = cargo(&["test", "--locked", "--release", "--package=lb-tests"]);
        cargo.args(words).env("HEADGATE", workspace.release("headgate"));
        cargo
    };
    steps.push(rooted("build-suites", "the tests with programs in the kernel", suite(&["--no-run"])));
    steps.push(rooted("unit-suites", "unit tests of their harness", suite(&["--lib", "--bins"])));
    steps.push(Step {
        name: IMAGE.0.to_owned(),
        about: "the container image, with a static binary".to_owned(),
        root: true,
        action: Action::Image,
    });
    for name in suites(&workspace.root.join("tests/tests"))? {
        let threads = if WAITING.contains(&name.as_str()) { 3 } else { 1 };
        let mut test = suite(&["--test", &name, "--", &format!("--test-threads={threads}")]);
        if name == STATISTICS || TIMELINES.contains(&name.as_str()) {
            test.arg("--nocapture");
        }
        test.args(test_args);
        steps.push(rooted(&name, &format!("tests/tests/{name}"), test));
    }
    steps.push(Step {
        name: KERNELS.to_owned(),
        about: "the main job on other kernels, in QEMU".to_owned(),
        root: true,
        action: Action::Kernels,
    });
    Ok(steps)
}

/// The integration tests of `lb-tests` that this kernel can run, as cargo finds them: `NAME.rs` or `NAME/main.rs`.
/// The statistics of the programs come first: nothing else passes when they do not load.
fn suites(dir: &Path) -> Result<Vec<String>> {
    let mut suites = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("{}", dir.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") || path.join("main.rs").exists() {
            let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
            suites.extend(name.filter(|name| !kernel::GUESTS_ONLY.contains(&name.as_str())));
        }
    }
    suites.sort_by_key(|suite| (suite != STATISTICS, suite.clone()));
    Ok(suites)
}

/// What the options leave of the steps. A suite brings the build of the agent, or of the image, with it: it would start an
/// old one otherwise.
fn chosen(steps: Vec<Step>, options: &Options) -> Result<Vec<Step>> {
    let quick = |step: &Step| !(options.quick && step.root);
    let steps: Vec<_> = steps.into_iter().filter(quick).collect();
    for filter in &options.filters {
        if !steps.iter().any(|step| step.name.contains(filter)) {
            let names = steps.iter().map(|step| step.name.as_str()).collect::<Vec<_>>().join(", ");
            bail!("no step has {filter} in its name; there are {names}");
        }
    }
    let wanted = |step: &Step| {
        options.filters.is_empty() || options.filters.iter().any(|filter| step.name.contains(filter))
    };
    let any_suite = steps.iter().any(|step| step.root && wanted(step));
    let of_image = steps.iter().any(|step| IMAGE.1.contains(&step.name.as_str()) && wanted(step));
    let brought = |step: &Step| any_suite && step.name == BUILD || of_image && step.name == IMAGE.0;
    Ok(steps.into_iter().filter(|step| wanted(step) || brought(step)).collect())
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(filters: &[&str], quick: bool) -> Options {
        let filters = filters.iter().map(|filter| (*filter).to_owned()).collect();
        Options { filters, quick, list: false, kernel: Vec::new(), args: Vec::new() }
    }

    fn sample() -> Vec<Step> {
        let step = |name: &str, root| Step {
            name: name.to_owned(),
            about: String::new(),
            root,
            action: Action::Lints,
        };
        let steps =
            [("format", false), ("build", false), ("programs", true), ("image", true), ("netns", true)];
        steps.into_iter().chain([("e2e_image", true)]).map(|(name, root)| step(name, root)).collect()
    }

    fn names(steps: &[Step]) -> Vec<&str> {
        steps.iter().map(|step| step.name.as_str()).collect()
    }

    #[test]
    fn without_filters_everything_runs() {
        let steps = chosen(sample(), &options(&[], false)).unwrap();
        assert_eq!(names(&steps), ["format", "build", "programs", "image", "netns", "e2e_image"]);
    }

    #[test]
    fn quick_leaves_out_what_needs_root() {
        let steps = chosen(sample(), &options(&[], true)).unwrap();
        assert_eq!(names(&steps), ["format", "build"]);
    }

    #[test]
    fn a_suite_brings_the_build_with_it() {
        let steps = chosen(sample(), &options(&["netns"], false)).unwrap();
        assert_eq!(names(&steps), ["build", "netns"]);
        let steps = chosen(sample(), &options(&["form"], false)).unwrap();
        assert_eq!(names(&steps), ["format"]);
        let steps = chosen(sample(), &options(&["e2e_image"], false)).unwrap();
        assert_eq!(names(&steps), ["build", "image", "e2e_image"]);
    }

    #[test]
    fn an_unknown_step_is_refused() {
        for (filters, quick) in [(["format", "formt"], false), (["format", "netns"], true)] {
            let error = chosen(sample(), &options(&filters, quick)).err().unwrap().to_string();
            assert!(
                error
                    .starts_with(&format!("no step has {} in its name; there are format, build", filters[1]))
            );
        }
    }

    #[test]
    fn suites_are_the_integration_tests() {
        let dir = std::env::temp_dir().join(format!("headgate-xtask-suites-{}", std::process::id()));
        fs::create_dir_all(dir.join("wide")).unwrap();
        fs::create_dir_all(dir.join("helpers")).unwrap();
        for file in ["netns.rs", "e2e_vlan.rs", "programs.rs", "wide/main.rs", "helpers/mod.rs", "README.md"]
        {
            fs::write(dir.join(file), "").unwrap();
        }
        let found = suites(&dir).unwrap();
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(found, ["programs", "netns", "wide"]);
        assert!(suites(&dir).unwrap_err().to_string().contains("headgate-xtask-suites"));
    }
}
