//! Where things are, and running other programs.

use std::{
    env,
    ffi::OsStr,
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf, absolute},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

pub(crate) struct Workspace {
    pub(crate) root: PathBuf,
    /// Cargo's target directory; children get it by environment, so that it stays the same for all of them.
    target: PathBuf,
}

impl Workspace {
    pub(crate) fn locate() -> Result<Self> {
        // At run time: with a target directory shared by several clones, cargo takes the one's build for the
        // other's.
        let manifest_dir = env::var_os("CARGO_MANIFEST_DIR").context("start it with `cargo xtask`")?;
        let root =
            Path::new(&manifest_dir).parent().context("xtask is not inside a workspace")?.to_path_buf();
        let target = match env::var_os("CARGO_TARGET_DIR") {
            Some(dir) => absolute(dir).context("CARGO_TARGET_DIR")?,
            None => root.join("target"),
        };
        Ok(Self { root, target })
    }

    /// Tools of this clone: `cargo install --root`. `.cargo/config.toml` names the linker in here, so the place
    /// does not move with `CARGO_TARGET_DIR`.
    pub(crate) fn tools(&self) -> PathBuf {
        self.root.join("target/tools")
    }

    /// A program that a release build made.
    pub(crate) fn release(&self, program: &str) -> PathBuf {
        self.target.join("release").join(program)
    }

    /// What a release build for the BPF target made.
    pub(crate) fn bpf_release(&self, program: &str) -> PathBuf {
        self.target.join("bpfel-unknown-none/release").join(program)
    }

    /// Where cargo puts what it builds, for each target in a directory of its own.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// Container images, and what they are made of.
    pub(crate) fn images(&self) -> PathBuf {
        self.target.join("images")
    }

    /// Kernels that tests are run on, by version.
    pub(crate) fn kernels(&self) -> PathBuf {
        self.target.join("kernels")
    }

    /// The cargo that runs us, at the root of the workspace.
    pub(crate) fn cargo(&self, subcommand: &str) -> Command {
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(&self.root).env("CARGO_TARGET_DIR", &self.target).arg(subcommand);
        cargo
    }
}

/// Runs a program to its end. An error names the command line.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start `{}`", show(command)))?;
    if !status.success() {
        bail!("`{}` failed: {status}", show(command));
    }
    Ok(())
}

/// A command line as one would type it: program without its directory, words quoted where needed.
pub(crate) fn show(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_else(|| command.get_program());
    let words = [program].into_iter().chain(command.get_args()).map(|word| {
        let word = word.to_string_lossy();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,+@%".contains(c);
        if !word.is_empty() && word.chars().all(plain) {
            word.into_owned()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Whether we are root. `/proc/self` belongs to the effective user.
pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

pub(crate) fn require_root(what: &str) -> Result<()> {
    if !is_root() {
        bail!("{what} loads BPF programs and makes network namespaces: run it as root");
    }
    Ok(())
}

pub(crate) fn on_path(program: &str) -> bool {
    found_in(&env::var_os("PATH").unwrap_or_default(), program)
}

fn found_in(path: &OsStr, program: &str) -> bool {
    env::split_paths(path)
        .filter_map(|dir| fs::metadata(dir.join(program)).ok())
        .any(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines_are_shown_as_typed() {
        let mut command = Command::new("/opt/bin/cargo");
        command.args(["test", "-p", "lb-tests", "--", "it's a name", ""]);
        assert_eq!(show(&command), r"cargo test -p lb-tests -- 'it'\''s a name' ''");
    }

    #[test]
    fn only_executables_count_as_programs() {
        let xtask = Workspace::locate().unwrap().root.join("xtask");
        let own = env::current_exe().unwrap();
        let own_dir = own.parent().unwrap();
        let path = env::join_paths([xtask.as_path(), own_dir]).unwrap();
        assert!(found_in(&path, own.file_name().unwrap().to_str().unwrap()));
        assert!(!found_in(&path, "Cargo.toml"), "a file that is not executable");
        assert!(!found_in(&path, "src"), "a directory");
        assert!(!found_in(OsStr::new(""), "no-such-program"));
    }

    #[test]
    fn failure_names_the_command() {
        let error = run(Command::new("false").arg("--really")).unwrap_err().to_string();
        assert!(error.contains("`false --really`") && error.contains("exit status: 1"), "{error}");
        let error = run(&mut Command::new("./no-such-program")).unwrap_err().to_string();
        assert_eq!(error, "cannot start `no-such-program`");
    }
}
