//! What many endpoints cost the agent: `bench agent`.

mod change;
mod configuration;
mod crowd;
mod hosts;
mod live;
mod maglev;

use std::time::Duration;

use anyhow::{Context as _, Result};

use self::change::{Cost, Event};
use self::crowd::Needs;
use self::hosts::Hosts;
use crate::Effort;
use crate::report::{Figure, Section, Spread, Table, Target, number};

const POLICIES: [&str; 2] = ["round_robin", "maglev"];
/// Milliseconds from an event to the tables.
const FOLLOWED: Target = Target::AtMost(5.0);

/// Measures.
pub(crate) fn run(effort: &Effort) -> Result<Section> {
    let (orders, rounds, samples, starts) = if effort.quick { (20, 5, 2, 1) } else { (200, 30, 8, 5) };
    let (slots, mut figures) = maglev::run(orders)?;
    let changes = changes(effort, rounds, samples, &mut figures)?;
    let crowd = crowd(effort, starts, &mut figures)?;
    Ok(Section {
        name: "agent",
        title: "Many endpoints",
        method: METHOD.iter().map(|paragraph| (*paragraph).to_owned()).collect(),
        tables: vec![slots, changes, crowd],
        figures,
        obstacles: &OBSTACLES,
        ..Section::default()
    })
}

/// One endpoint of a thousand.
fn changes(effort: &Effort, rounds: usize, samples: u32, figures: &mut Vec<Figure>) -> Result<Table> {
    let hosts = Hosts::new()?;
    let mut rows = Vec::new();
    let mut row = |name: String, costs: &[Cost]| {
        let times: Vec<f64> = costs.iter().map(|cost| cost.time.as_secs_f64() * 1e3).collect();
        let stores: Vec<f64> = costs.iter().map(|cost| cost.stores as f64).collect();
        let (time, stores) = (Spread::of(&times), Spread::of(&stores));
        rows.push(vec![name.clone(), time.show(2), stores.show(0)]);
        figures.push(Figure::new(format!("agent: {name}"), time.median, "ms").target(FOLLOWED));
        figures.push(Figure::new(format!("agent: {name}, stores into maps"), stores.median, "stores"));
    };
    for lb_policy in POLICIES {
        let costs = change::measure(&hosts.balancer, lb_policy, rounds).context(lb_policy)?;
        for (event, costs) in Event::ALL.into_iter().zip(&costs) {
            row(format!("{lb_policy}: {}", event.name()), costs);
        }
        let costs = live::measure(effort, &hosts, lb_policy, samples).context(lb_policy)?;
        for (event, costs) in [Event::Fails, Event::Passes].into_iter().zip(&costs) {
            row(format!("{lb_policy}, the agent as it runs: {}", event.name()), costs);
        }
    }
    Ok(Table {
        title: "One endpoint of 1,000 changes".to_owned(),
        columns: ["event", "until the tables have followed, ms", "stores into maps"]
            .map(str::to_owned)
            .into(),
        rows,
    })
}

/// Ten thousand.
fn crowd(effort: &Effort, starts: usize, figures: &mut Vec<Figure>) -> Result<Table> {
    let window = Duration::from_secs(if effort.quick { 5 } else { 30 });
    let hosts = Hosts::new()?;
    let mut ready = crowd::CHECKS.map(|_| Vec::new());
    for _ in 1..starts {
        for ((name, health_check), ready) in crowd::CHECKS.into_iter().zip(&mut ready) {
            ready.push(crowd::start(effort, &hosts, health_check).context(name)?.1);
        }
    }
    let mut rows = Vec::new();
    for ((name, health_check), mut ready) in crowd::CHECKS.into_iter().zip(ready) {
        let (agent, seconds) = crowd::start(effort, &hosts, health_check).context(name)?;
        ready.push(seconds);
        let Needs { memory, most_memory, cpu } = crowd::look(&agent, window).context(name)?;
        let ready = Spread::of(&ready);
        rows.push(vec![
            name.to_owned(),
            ready.show(2),
            format!("{memory:.0}"),
            format!("{most_memory:.0}"),
            number(cpu),
        ]);
        for (what, value, unit, target) in [
            ("start to ready", ready.median, "s", Target::AtMost(3.0)),
            ("memory", memory, "MiB", Target::AtMost(150.0)),
            ("CPU", cpu, "%", Target::AtMost(1.0)),
        ] {
            let figure = Figure::new(format!("agent: 10,000 endpoints, {name}: {what}"), value, unit);
            figures.push(figure.target(target));
        }
    }
    let bare = crowd::bare_connections(&hosts.balancer)?;
    let none = || "-".to_owned();
    rows.push(vec!["as many connections by one loop".to_owned(), none(), none(), none(), number(bare)]);
    figures.push(Figure::new("agent: as many connections by one loop: CPU", bare, "%"));
    let columns = ["agent", "start to ready, s", "memory, MiB", "at the most, MiB", "CPU, %"];
    Ok(Table {
        title: "10,000 endpoints in 100 clusters".to_owned(),
        columns: columns.map(str::to_owned).into(),
        rows,
    })
}

const METHOD: [&str; 3] = [
    "Slots: what makes the order of a cluster's backends, alone, in one thread.",
    "One endpoint of 1,000: the agent's own functions in this process, on the maps of loaded programs, from the \
     event to the last store. *Stores* are those into maps (`map_writes` of `headgate status --json`): a window \
     of round robin has another length with each endpoint and is written beside the old one, of a Maglev table \
     only what differs is written. Discovery includes asking for the way to a new endpoint, a first connection to \
     it, and the proxy's table. *The agent as it runs*: 1,000 endpoints asked by HTTP every two seconds, one of \
     which answers 503, or 200 again (thresholds of 1): from the moment at which the endpoint sends that to the \
     moment at which the pinned maps show the outcome, seen from outside every 0.1 ms.",
    "10,000 endpoints: 100 clusters with a listener each, static discovery, `datapath.mode: tc`, `max_flows: \
     65536`. One host answers for all endpoints, behind one neighbour, on the same CPUs. *Start to ready*: from \
     the start of the process until `headgate status` is answered, with all endpoints found out about that are \
     within the limits of a start. Memory is `VmRSS` and `VmHWM`, CPU user and system time of all threads, both \
     of an agent that has no connections, while each endpoint is asked every five seconds, 2,000 in a second. *As \
     many connections by one loop*: 2,000 connections a second that a thread opens and closes, without waiting \
     for anything else. In namespaces the kernel's work for the far end counts as the near end's.",
];
const OBSTACLES: [&str; 3] = [
    "Discovery with Maglev: two tables are made one after the other, the proxy's and the kernel's, and a first \
     connection to the new endpoint is waited for.",
    "Start with 10,000 endpoints: the kernel verifies the programs for most of a second, and each endpoint has one \
     connection to find out where it leads and one that asks for its health, on the CPUs that answer them as well.",
    "Health checks of 10,000 endpoints every five seconds: opening and closing 2,000 connections a second takes \
     several percent of a CPU in the kernel, whoever does it; the agent adds timers, polls and a task for each.",
];
