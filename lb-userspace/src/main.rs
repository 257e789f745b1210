//! The `headgate` binary: reads the command line, does what it says, and tells people what went wrong.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Parser;
use lb_userspace::agent::admin::{self, Question};
use lb_userspace::agent::{self, Options, kernel_side};
use lb_userspace::cli::{Cli, Command, Maps, Output, Places, Run};
use lb_userspace::datapath::object::Pins;
use lb_userspace::explain::{Names, Packet, explain};
use lb_userspace::file_watch::FileWatch;
use lb_userspace::model::Locality;
use lb_userspace::{config, desired, flows, maps, net, views};

fn main() -> ExitCode {
    let cli = Cli::parse();
    match execute(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("headgate: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute(cli: Cli) -> Result<()> {
    let places = cli.places;
    let text = match cli.command {
        Command::Run(run) => return run_agent(run, places),
        Command::Unload => return unload(&places),
        Command::Check { file } => {
            let loaded = config::load(&file)?;
            agent::check_logs(&loaded)?;
            for warning in &loaded.warnings {
                eprintln!("warning: {warning}");
            }
            format!("{}: good\n", file.display())
        }
        Command::Convert { file } => return convert(&file),
        Command::Status(output) => {
            let status = admin::read(&places.run_dir, &Question::Status)?;
            if output.json { pretty(&status)? } else { views::status(&status) }
        }
        Command::Ready => admin::read::<String>(&places.run_dir, &Question::Ready)? + "\n",
        Command::Drain { what, force } => {
            let question = match what.backend {
                Some(backend) => Question::Drain { backend, cluster: what.cluster, force },
                None => Question::DrainNode,
            };
            admin::read::<String>(&places.run_dir, &question)? + "\n"
        }
        Command::Undrain { what } => {
            let question = match what.backend {
                Some(backend) => Question::Undrain { backend, cluster: what.cluster },
                None => Question::UndrainNode,
            };
            admin::read::<String>(&places.run_dir, &question)? + "\n"
        }
        Command::ReopenLogs => return admin::read(&places.run_dir, &Question::ReopenLogs),
        Command::Backends(output) => {
            let backends = admin::read(&places.run_dir, &Question::Backends)?;
            if output.json { pretty(&backends)? } else { views::backends(&backends) }
        }
        Command::Flows { filter, output } => {
            let question = Question::Flows { filter };
            if output.json {
                return print(&admin::ask(&places.run_dir, &question)?);
            }
            flows::flows_table(&admin::read::<Vec<flows::FlowRow>>(&places.run_dir, &question)?)
        }
        Command::Maps { command } => {
            let pins = Pins::new(&places.bpffs);
            match command.unwrap_or(Maps::List(Output { json: false })) {
                Maps::List(output) => maps::list(&pins, output.json)?,
                Maps::Dump { name, output } => maps::dump(&pins, &name, output.json)?,
            }
        }
        Command::Explain { packet, output } => explain_packet(&packet, output.json, &places)?,
    };
    print(text.as_bytes())
}

/// The native file on stdout, what became of the Envoy file's keys on stderr.
fn convert(file: &Path) -> Result<()> {
    let converted = config::convert_file(file)?;
    for finding in &converted.findings {
        eprintln!("{finding}");
    }
    for warning in &converted.warnings {
        eprintln!("warning: {warning}");
    }
    print(converted.yaml.as_bytes())
}

fn run_agent(run: Run, places: Places) -> Result<()> {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info"))
        .format_target(false)
        .init();
    // Before the file is read, so that no change of it is missed.
    let watch = run.watch_config.then(|| FileWatch::new(run.config.clone()));
    // Libraries report to `tracing`, which hands that on to the log where nobody else listens. The agent says itself what
    // went wrong, and with which cluster.
    let _ = tracing::subscriber::set_global_default(tracing::subscriber::NoSubscriber::new());
    let loaded = config::load(&run.config)?;
    for warning in &loaded.warnings {
        log::warn!("{warning}");
    }
    let options = Options {
        config: run.config,
        bpffs: places.bpffs,
        run_dir: places.run_dir,
        state_dir: run.state_dir,
        resolv_conf: run.resolv_conf,
        mode: run.datapath.map(Into::into),
        locality: Locality {
            node: run.node_name.or_else(|| variable("NODE_NAME")).or_else(|| Some(net::host_name())),
            zone: run.node_zone.or_else(|| variable("NODE_ZONE")),
        },
        leave_datapath: run.leave_datapath,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(agent::run(loaded, options, watch));
    // Connections that are still proxied end with the process.
    runtime.shutdown_background();
    result
}

/// An environment variable; one that is empty says nothing.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn unload(places: &Places) -> Result<()> {
    if admin::is_served(&places.run_dir) {
        bail!("an agent is running; stop it first (SIGTERM), it then detaches by itself");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let network = runtime.block_on(net::snapshot()).context("reading the node's network")?;
    kernel_side::unload_all(&Pins::new(&places.bpffs), &network)
}

fn explain_packet(packet: &Packet, json: bool, places: &Places) -> Result<String> {
    // Names are the agent's to tell; without it, numbers do.
    let status: Option<serde_json::Value> = admin::read(&places.run_dir, &Question::Status).ok();
    let name = |list: &str, id: u32| {
        let all = status.as_ref()?.get(list)?.as_array()?;
        let found = all.iter().find(|one| one["id"].as_u64() == Some(id.into()))?;
        Some(found["name"].as_str()?.to_owned())
    };
    let names = Names {
        listener: &|service| name("listeners", service),
        cluster: &|window| name("clusters", desired::cluster_of_window(window)),
    };
    explain(&Pins::new(&places.bpffs), packet, &names)?.render(json)
}

fn pretty(value: &serde_json::Value) -> Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

/// A reader that has seen enough (`| head`) is no error.
fn print(text: &[u8]) -> Result<()> {
    match std::io::stdout().write_all(text) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
