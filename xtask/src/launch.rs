//! Building a program in release and becoming it.

use std::{os::unix::process::CommandExt as _, process::Command};

use anyhow::{Error, Result};

use crate::{
    setup::{self, Scope},
    workspace::{Workspace, require_root, run, show},
};

/// `headgate ARGS`, in the directory of the caller.
pub(crate) fn agent(workspace: &Workspace, args: &[String]) -> Result<()> {
    setup::ensure(workspace, Scope::Build)?;
    build(workspace, &["--package=lb-userspace", "--bin=headgate"])?;
    become_program(Command::new(workspace.release("headgate")).args(args))
}

pub(crate) fn demo(workspace: &Workspace, keep: bool) -> Result<()> {
    require_root("the demo")?;
    setup::ensure(workspace, Scope::All)?;
    build_with_agent(workspace, "--package=lb-tests", "--bin=demo")?;
    let mut demo = Command::new(workspace.release("demo"));
    demo.arg("--headgate").arg(workspace.release("headgate"));
    if keep {
        demo.arg("--keep");
    }
    become_program(&mut demo)
}

pub(crate) fn bench(workspace: &Workspace, args: &[String]) -> Result<()> {
    require_root("the benchmark")?;
    setup::ensure(workspace, Scope::Bench)?;
    build_with_agent(workspace, "--package=lb-bench", "--bin=bench")?;
    let mut bench = Command::new(workspace.release("bench"));
    bench.arg("--headgate").arg(workspace.release("headgate")).arg("--envoy").arg(setup::envoy(workspace));
    become_program(bench.args(args).current_dir(&workspace.root))
}

/// Builds the agent and another program in one go: they share nearly all of their dependencies.
fn build_with_agent(workspace: &Workspace, package: &str, program: &str) -> Result<()> {
    build(workspace, &["--package=lb-userspace", package, "--bin=headgate", program])
}

fn build(workspace: &Workspace, what: &[&str]) -> Result<()> {
    run(workspace.cargo("build").args(["--locked", "--release"]).args(what))
}

/// Replaces this process, so that signals and the exit code are the program's own.
fn become_program(program: &mut Command) -> Result<()> {
    let error = program.exec();
    Err(Error::new(error).context(format!("cannot start `{}`", show(program))))
}
