//! The developer commands of Headgate: `cargo xtask --help`.
//!
//! Each command installs what it misses first (as root on Debian and Ubuntu; elsewhere it says what to
//! install), so a fresh clone needs no other preparation than a Rust toolchain manager.

mod ebpf;
mod guest;
mod image;
mod kernel;
mod launch;
mod manifests;
mod setup;
mod test;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::{setup::Scope, workspace::Workspace};

#[derive(Parser)]
#[command(
    bin_name = "cargo xtask",
    about = "The developer commands of Headgate",
    disable_help_subcommand = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what building and testing needs: Rust components, bpf-linker, LLVM, the peers of the tests
    Setup,
    /// Build the BPF object alone and print where it is (a build of the agent embeds its own)
    BuildEbpf,
    /// Build the agent and run it: `cargo xtask run -- run -c FILE`
    Run {
        /// Arguments of `headgate`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Show the main job with real traffic in throw-away network namespaces (root)
    Demo {
        /// Leave it up and print how to play with it
        #[arg(long)]
        keep: bool,
    },
    /// Build the container image: a static binary and nothing else, as an OCI archive (root)
    Image(image::Options),
    /// Run everything that CI checks, up to the first failure (root, unless --quick)
    Test(test::Options),
    /// Measure (root)
    Bench {
        /// Arguments of the benchmark program: the section to run, such as `packet`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

fn main() -> ExitCode {
    match execute(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute(command: Command) -> Result<()> {
    let workspace = Workspace::locate()?;
    match command {
        Command::Setup => setup::run_command(&workspace),
        Command::BuildEbpf => {
            setup::ensure(&workspace, Scope::Build)?;
            ebpf::build(&workspace)
        }
        Command::Run { args } => launch::agent(&workspace, &args),
        Command::Demo { keep } => launch::demo(&workspace, keep),
        Command::Image(options) => image::run_command(&workspace, &options),
        Command::Test(options) => test::run(&workspace, &options),
        Command::Bench { args } => launch::bench(&workspace, &args),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn arguments_of_the_agent_are_left_alone() {
        let cli = Cli::try_parse_from(["xtask", "run", "--", "run", "-c", "a.yaml", "--help"]).unwrap();
        let Command::Run { args } = cli.command else { panic!("not the run command") };
        assert_eq!(args, ["run", "-c", "a.yaml", "--help"]);
    }
}
