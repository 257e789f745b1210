//! The configuration as a kubelet mounts it: links that are swapped.
#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::ensure;
use lb_tests::agent::{Agent, config};
use lb_tests::cmd::wait_for;
use lb_tests::http::{Connection, sequential};
use lb_tests::rung::Rung;
use lb_tests::scenario::{Setup, start_nginx};
use lb_tests::topology::{Family, Topology};
use serde_json::Value;

const ADMIN: &str = "127.0.0.1:8001";
/// Far more than the agent takes to see it.
const SOON: Duration = Duration::from_secs(10);

#[test]
fn an_edited_config_map_is_followed_and_a_broken_one_is_not() {
    let topology = Topology::new(&Setup::Tc.options()).unwrap();
    let _nginx = start_nginx(&topology, None).unwrap();
    let first = format!("admin: {{ address: \"{ADMIN}\" }}\n{}", config("tc", &topology));
    let mut agent = Agent::start(&topology, &first).unwrap();
    agent.terminate().unwrap();
    agent.require_exit(SOON).unwrap();

    let mut mount = Mount::over(&agent, &first);
    agent.restart(&["--watch-config", "--leave-datapath"]).unwrap();
    let mut open = Connection::open_in(&topology.client, Family::V4.vip()).unwrap();
    let name = open.get().unwrap();
    require_ready(&topology);

    mount.swap(&first.replace("name: http4,", "name: edge4,"));
    let status = wait_reload(&agent, &Value::Null);
    assert_eq!(status["reload"]["error"], Value::Null, "{status}");
    assert_eq!(status["listeners"][0]["name"], "edge4", "{status}");
    assert_eq!(last_event(&status)["to"], "applied", "{status}");
    assert_eq!(open.get().unwrap(), name);

    mount.swap("listeners: [");
    let status = wait_reload(&agent, &status["reload"]["at"]);
    let error = status["reload"]["error"].as_str().unwrap();
    assert!(error.contains("headgate.yaml:1:"), "{error}");
    assert_eq!(last_event(&status)["to"], "refused", "{status}");
    assert_eq!(status["listeners"][0]["name"], "edge4", "what ran runs on: {status}");
    require_ready(&topology);
    let refused = "headgate_reloads_total{result=\"refused\"} 1";
    assert!(page(&topology, "stats/prometheus").contains(refused));
    assert_eq!(open.get().unwrap(), name);
    let before = agent.totals().unwrap();
    sequential(&topology.client, Family::V4.vip(), 9).unwrap().require(9).unwrap();
    agent.require_carried(&before, Rung::Tc, 9).unwrap();

    // The same content again is no change; a good one is.
    mount.swap("listeners: [");
    mount.swap(&first);
    let status = wait_reload(&agent, &status["reload"]["at"]);
    assert_eq!(status["reload"]["error"], Value::Null, "{status}");
    assert_eq!(status["listeners"][0]["name"], "http4", "{status}");
}

/// At its start there is nothing to go on with.
#[test]
fn an_agent_that_starts_with_a_broken_file_ends_and_its_last_line_says_why() {
    let topology = Topology::new(&Setup::Tc.options()).unwrap();
    let mut agent = Agent::start(&topology, &config("tc", &topology)).unwrap();
    agent.terminate().unwrap();
    agent.require_exit(SOON).unwrap();
    agent.configure("listeners: [").unwrap();
    let error = agent.restart(&["--watch-config"]).unwrap_err();
    assert!(format!("{error:#}").contains("it ended with exit status: 1"), "{error:#}");
    let log = agent.log();
    let last = log.lines().last().unwrap();
    assert!(last.contains("headgate.yaml:1:12") && last.contains("not YAML"), "{last}");
}

/// A ConfigMap's directory: the file is a link into `..data`, and that one a link to a directory, which is replaced.
struct Mount {
    directory: PathBuf,
    generation: u32,
}

impl Mount {
    /// In the place of the agent's own file.
    fn over(agent: &Agent, text: &str) -> Self {
        let file = agent.config_file();
        let mut mount = Self { directory: file.parent().unwrap().to_owned(), generation: 0 };
        fs::remove_file(&file).unwrap();
        mount.swap(text);
        symlink("..data/headgate.yaml", file).unwrap();
        mount
    }

    /// As kubelet's atomic writer does it.
    fn swap(&mut self, text: &str) {
        self.generation += 1;
        let name = format!("..generation_{}", self.generation);
        let directory = self.directory.join(&name);
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("headgate.yaml"), text).unwrap();
        symlink(&name, self.directory.join("..data_tmp")).unwrap();
        fs::rename(self.directory.join("..data_tmp"), self.directory.join("..data")).unwrap();
        let old = self.directory.join(format!("..generation_{}", self.generation - 1));
        let _ = fs::remove_dir_all(old);
    }
}

/// The status after the first reload that is not the one at `before`.
fn wait_reload(agent: &Agent, before: &Value) -> Value {
    wait_for("the agent has read its file again", SOON, || {
        let status = agent.status()?;
        let at = &status["reload"]["at"];
        ensure!(at.is_string() && at != before, "not yet");
        Ok(status)
    })
    .unwrap()
}

fn last_event(status: &Value) -> &Value {
    status["events"].as_array().unwrap().last().unwrap()
}

fn require_ready(topology: &Topology) {
    assert_eq!(page(topology, "ready").trim(), "LIVE");
}

/// A page of the admin port; an answer with an error's status is none.
fn page(topology: &Topology, path: &str) -> String {
    topology.lb.run("curl", &["-sSf", "--max-time", "5", &format!("http://{ADMIN}/{path}")]).unwrap()
}
