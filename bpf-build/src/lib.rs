//! For build scripts: builds a program of the workspace for the BPF target.
//!
//! How it is compiled and linked stands in `.cargo/config.toml`, for this and for a build by hand.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Builds the program `bin` of `package` and leaves it as `$OUT_DIR/{bin}`. It is built again when one of `sources`
/// changes: paths from the directory of the build script's crate.
pub fn build(package: &str, bin: &str, sources: &[&str]) -> Result<()> {
    for path in sources.iter().chain(&["../.cargo/config.toml"]) {
        println!("cargo:rerun-if-changed={path}");
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").context("OUT_DIR is set by cargo")?);
    let target_dir = out.join("bpf");
    let mut cargo = Command::new(std::env::var_os("CARGO").context("CARGO is set by cargo")?);
    cargo
        .args(["build", "--quiet", "--locked", "--release", "--package", package, "--bin", bin])
        .args(["--target=bpfel-unknown-none", "-Zbuild-std=core", "--target-dir"])
        .arg(&target_dir)
        // For `-Z` and the atomic intrinsics, on the pinned stable compiler.
        .env("RUSTC_BOOTSTRAP", "1");
    // What cargo set for this build is not for that one.
    for variable in
        ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "RUSTC", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER"]
    {
        cargo.env_remove(variable);
    }
    let status = cargo.status().with_context(|| format!("running {cargo:?}"))?;
    ensure!(status.success(), "{bin} did not build; `cargo xtask setup` installs what that needs");
    let object = target_dir.join("bpfel-unknown-none/release").join(bin);
    std::fs::copy(&object, out.join(bin)).with_context(|| format!("copying {}", object.display()))?;
    Ok(())
}
