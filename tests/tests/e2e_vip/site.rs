//! Two balancers with keepalived beside each agent, and what happens to them.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::ensure;
use lb_tests::cmd::wait_for;
use lb_tests::http::sequential;
use lb_tests::keepalived::{self, Keepalived};
use lb_tests::load::{Ended, Load};
use lb_tests::pair::{BACKEND_SIDE, BALANCERS, CLIENT_SIDE, Pair, address, vip};
use lb_tests::scenario::Setup;
use lb_tests::timeline::{INDENT, Printout, ms};

use crate::{HELD, SHORT};

/// The nodes: [`BALANCERS`], and `node-a` and `node-b` of keepalived's configuration. Node A has the higher priority.
pub(crate) const A: usize = 0;
pub(crate) const B: usize = 1;

/// Far above what a change takes.
const SOON: Duration = Duration::from_secs(15);
/// Between two requests of a client.
const REST: Duration = Duration::from_millis(30);
/// One attempt to connect.
const ATTEMPT: Duration = Duration::from_millis(100);

/// The parts, in the order in which they must go.
pub(crate) struct Site {
    pub(crate) printout: Printout,
    keepalived: [Option<Keepalived>; 2],
    pub(crate) pair: Pair,
}

impl Site {
    /// With the address at node A.
    pub(crate) fn start(setup: Setup) -> Self {
        let pair = Pair::start(setup).unwrap();
        let mut site = Self { printout: Printout::default(), keepalived: [None, None], pair };
        for number in [A, B] {
            site.start_keepalived(number);
        }
        site.wait_owner(A);
        site
    }

    /// Ends keepalived, as an upgrade does.
    pub(crate) fn stop_keepalived(&mut self, number: usize) {
        self.keepalived[number].take().unwrap().stop().unwrap();
    }

    pub(crate) fn start_keepalived(&mut self, number: usize) {
        let nodes = [A, B].map(|number| address(number).to_string());
        let vip = vip().ip().to_string();
        let site = keepalived::Site { interface: CLIENT_SIDE, vip: &vip, nodes: [&nodes[A], &nodes[B]] };
        let (host, agent) = (&self.pair.lan[BALANCERS[number]], &self.pair.agents[number]);
        self.keepalived[number] = Some(Keepalived::start(host, number, site, agent).unwrap());
    }

    /// The clients at work.
    pub(crate) fn load(&self, ended: Ended) -> [Load; 2] {
        [("client", SHORT), ("patient", HELD)].map(|(host, clients)| {
            Load::start_paced(&self.pair.lan[host], vip(), clients, ended, REST).unwrap()
        })
    }

    /// The load goes on for a while; prints how it fares.
    pub(crate) fn go_on(&self, load: &[Load; 2], time: Duration) {
        std::thread::sleep(time);
        for load in load {
            self.printout.load(load);
        }
    }

    /// Lets the clients finish; no request may fail that has not been taken account of.
    pub(crate) fn stop(&self, load: [Load; 2]) {
        for load in load {
            load.stop().unwrap().require_no_failure(self.printout.began).unwrap();
        }
    }

    pub(crate) fn drain(&self, number: usize) {
        self.pair.agents[number].headgate(&["drain", "--all"]).unwrap();
    }

    pub(crate) fn undrain(&self, number: usize) {
        self.pair.agents[number].headgate(&["undrain", "--all"]).unwrap();
    }

    /// What `headgate ready` says: on stdout with exit code 0, or else on stderr.
    pub(crate) fn ready(&self, number: usize) -> Result<String, String> {
        let output = self.pair.agents[number].command(&["ready"]).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
    }

    /// Until this node announces the address, and the other does not.
    pub(crate) fn wait_owner(&self, number: usize) {
        let began = Instant::now();
        wait_for(&format!("node {number} has the address"), SOON, || {
            let has = |number: usize| {
                let addresses = self.pair.lan[BALANCERS[number]].ip(&["addr", "show", "dev", CLIENT_SIDE])?;
                anyhow::Ok(addresses.contains(&format!("inet {}/32", vip().ip())))
            };
            ensure!(has(number)? && !has(1 - number)?, "not yet");
            Ok(())
        })
        .unwrap();
        println!("{INDENT}{} has the address after {}", keepalived::NODES[number], ms(began.elapsed()));
    }

    /// Connections to the virtual address that a node carries.
    pub(crate) fn established(&self, number: usize) -> usize {
        let flows = self.pair.agents[number].flows().unwrap();
        let vip = vip().to_string();
        flows.iter().filter(|flow| flow["state"] == "established" && flow["vip"] == *vip).count()
    }

    /// Until there are just so many.
    pub(crate) fn wait_established(&self, number: usize, count: usize) {
        wait_for(&format!("{count} connections are left"), SOON, || {
            let left = self.established(number);
            ensure!(left == count, "{left} are");
            Ok(())
        })
        .unwrap();
    }

    /// Until a new connection is made and answered; how long after `since` that was.
    pub(crate) fn wait_connects(&self, since: Instant) -> Duration {
        let client = &self.pair.lan["client"];
        wait_for("a new connection", SOON, || {
            client.within(|| TcpStream::connect_timeout(&vip(), ATTEMPT))??;
            Ok(())
        })
        .unwrap();
        let outage = since.elapsed();
        sequential(client, vip(), 1).unwrap().require(1).unwrap();
        outage
    }

    /// As when its power fails: nothing is said, nothing is sent.
    pub(crate) fn kill_node(&mut self, number: usize) {
        let host = &self.pair.lan[BALANCERS[number]];
        for device in [CLIENT_SIDE, BACKEND_SIDE] {
            host.ip(&["link", "set", device, "down"]).unwrap();
        }
        host.kill_all().unwrap();
        self.pair.agents[number].kill().unwrap();
        self.keepalived[number] = None;
    }

    /// With nothing left of what it had before.
    pub(crate) fn boot_node(&mut self, number: usize) {
        let host = &self.pair.lan[BALANCERS[number]];
        let agent = &mut self.pair.agents[number];
        agent.headgate(&["unload"]).unwrap();
        host.ip(&["addr", "flush", "to", &vip().ip().to_string()]).unwrap();
        host.run("nft", &["flush", "ruleset"]).unwrap();
        for device in [CLIENT_SIDE, BACKEND_SIDE] {
            host.ip(&["link", "set", device, "up"]).unwrap();
        }
        agent.restart(&[]).unwrap();
        self.start_keepalived(number);
    }
}
