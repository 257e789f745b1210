//! Cargo for the BPF target. Its flags and its linker are in `.cargo/config.toml`, for the agent's build
//! script too.

use std::{fs, process::Command};

use anyhow::{Context as _, Result};

use crate::workspace::{Workspace, run};

/// A cargo subcommand for the BPF target. The target has no prebuilt `core`, hence the unstable `build-std`,
/// which the pinned stable toolchain lets through with `RUSTC_BOOTSTRAP`.
pub(crate) fn cargo(workspace: &Workspace, subcommand: &str) -> Command {
    let mut cargo = workspace.cargo(subcommand);
    // The flags of the configuration count only when the environment has none.
    cargo.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    cargo.env("RUSTC_BOOTSTRAP", "1");
    cargo.args(["--locked", "--release", "--target=bpfel-unknown-none", "-Zbuild-std=core"]);
    cargo
}

/// Builds the object and prints where it is and how large.
pub(crate) fn build(workspace: &Workspace) -> Result<()> {
    run(cargo(workspace, "build").args(["--package=lb-ebpf", "--bin=headgate-ebpf"]))?;
    let object = workspace.bpf_release("headgate-ebpf");
    let size = fs::metadata(&object).with_context(|| format!("{}", object.display()))?.len();
    println!("{} ({size} bytes)", object.display());
    Ok(())
}
