//! A living cluster, from the clients' side: under load without a pause the endpoints, the DNS server, the addresses,
//! the routes, the configuration and a neighbour change, and no request fails.
#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::ensure;
use lb_tests::agent::Agent;
use lb_tests::cmd::wait_for;
use lb_tests::discovery::{
    Cluster, SILENCE, SOON, backend, events, require_endpoints, wait_becomes, wait_carried_by,
    wait_endpoints, wait_why,
};
use lb_tests::dnsmasq::Unknown;
use lb_tests::http::sequential;
use lb_tests::load::{Clients, Load};
use lb_tests::rung::Rung;
use lb_tests::scenario::Setup;
use lb_tests::second_link::{SecondLink, Way};
use lb_tests::timeline::Printout;
use lb_tests::topology::{Family, HTTP};
use serde_json::Value;

const CLIENTS: Clients = Clients { held: 4, keep_alive: 4, one_shot: 3 };
/// How long the load goes on after a change before the next one.
const A_WHILE: Duration = Duration::from_secs(2);
/// The port of the listener that a reload adds.
const ADDED_PORT: u16 = 8081;

#[test]
fn no_request_fails_on_xdp() {
    let cluster = Cluster::start(Setup::Xdp).unwrap();
    for backend in &cluster.topology.backends {
        // As a failover does: a new MAC address is announced.
        backend.sysctl("net.ipv4.conf.e0.arp_notify", "1").unwrap();
    }
    let second_link = SecondLink::add(&cluster.topology).unwrap();
    cluster.publish(&[1, 2], Unknown::Absent).unwrap();
    let agent = cluster.start_agent(&config("round_robin", false)).unwrap();
    let load = Load::start(&cluster.topology.client, Family::V4.vip(), CLIENTS).unwrap();
    let mut timeline = Timeline::new(&cluster, &agent, &load);

    timeline.phase("load begins: endpoints b1 and b2 in DNS", |run| {
        run.wait_answers("b1");
        run.wait_answers("b2");
    });
    timeline.phase("endpoint b3 added in DNS", |run| {
        run.cluster.publish(&[1, 2, 3], Unknown::Absent).unwrap();
        run.wait_answers("b3");
        // Until its neighbour is known.
        run.may_leave_xdp = true;
        wait_carried_by(run.cluster, run.agent, Rung::Xdp).unwrap();
    });
    timeline.phase("endpoint b1 removed in DNS", |run| {
        run.cluster.publish(&[2, 3], Unknown::Absent).unwrap();
        wait_becomes(run.agent, 1, "draining").unwrap();
        let before = run.connections_of(1);
        run.go_on();
        assert_eq!(run.connections_of(1), before, "new connections to a removed endpoint");
    });
    timeline.phase("endpoint b1 back in DNS", |run| {
        run.cluster.publish(&[1, 2, 3], Unknown::Absent).unwrap();
        wait_endpoints(run.agent, &[1, 2, 3]).unwrap();
        let before = run.connections_of(1);
        run.go_on();
        assert!(run.connections_of(1) > before, "no new connections to it");
    });
    timeline.phase("the DNS server is silent", |run| {
        let known = events(run.agent).unwrap().len();
        run.cluster.dns.freeze().unwrap();
        wait_why(run.agent, known, &SILENCE).unwrap();
        run.go_on();
        require_endpoints(run.agent, &[1, 2, 3]).unwrap();
    });
    timeline.phase("the DNS server answers again", |run| {
        run.cluster.dns.wake().unwrap();
        run.go_on();
        require_endpoints(run.agent, &[1, 2, 3]).unwrap();
    });
    timeline.phase("DNS says NXDOMAIN, within the hold of 20 s", |run| {
        let known = events(run.agent).unwrap().len();
        run.cluster.publish(&[], Unknown::Absent).unwrap();
        wait_why(run.agent, known, &["nxdomain"]).unwrap();
        run.go_on();
        require_endpoints(run.agent, &[1, 2, 3]).unwrap();
    });
    timeline.phase("the records are back", |run| {
        run.cluster.publish(&[1, 2, 3], Unknown::Absent).unwrap();
        run.go_on();
        require_endpoints(run.agent, &[1, 2, 3]).unwrap();
    });
    timeline.phase("a VIP is added, loaded, rested and removed", Run::second_vip);
    timeline.phase("the route to the clients moves to the second link", |run| {
        second_link.route_by(Way::Second).unwrap();
        run.wait_silent(&second_link, Way::First);
        let before = second_link.arrived_by(Way::Second).unwrap();
        run.go_on();
        assert!(
            second_link.arrived_by(Way::Second).unwrap() > before + 100,
            "answers come by the second link"
        );
    });
    timeline.phase("the route moves back", |run| {
        second_link.route_by(Way::First).unwrap();
        run.wait_silent(&second_link, Way::Second);
        run.go_on();
    });
    timeline.phase("a reload with a file that is none", |run| {
        let error = run.agent.reload("listeners: [").unwrap().unwrap_err();
        println!("           agent: refused: {}", error.lines().next().unwrap_or_default());
        run.go_on();
    });
    timeline.phase("a reload to source_ip, with a listener more", |run| {
        // A SYN that comes while the tables change goes to the proxy.
        run.may_leave_xdp = true;
        run.reload("source_ip", true);
        let outcome = sequential(&run.cluster.topology.client, Family::V4.vip(), 30).unwrap();
        outcome.require(30).unwrap();
        assert_eq!(outcome.served.len(), 1, "one client, one backend: {:?}", outcome.served);
        run.load_on(SocketAddr::new(Family::V4.vip().ip(), ADDED_PORT));
    });
    timeline.phase("a reload to round_robin again, without it", |run| {
        // A SYN that comes while the tables change goes to the proxy.
        run.may_leave_xdp = true;
        run.reload("round_robin", false);
        let outcome = sequential(&run.cluster.topology.client, Family::V4.vip(), 60).unwrap();
        outcome.require(60).unwrap();
        assert_eq!(outcome.served.len(), 3, "all backends again: {:?}", outcome.served);
        run.go_on();
    });
    timeline.phase("the MAC address of b2 changes", |run| {
        let mac = "02:00:00:00:02:99";
        // What was under way to the old address is lost; a SYN that comes again may be passed to the proxy.
        run.may_leave_xdp = true;
        run.cluster.topology.backends[1].ip(&["link", "set", "dev", "e0", "address", mac]).unwrap();
        run.wait_answers("b2");
        let neighbours = run.cluster.topology.lb.ip(&["neigh", "show", "dev", "lb2"]).unwrap();
        assert!(neighbours.contains(mac), "{neighbours}");
        let before = run.load.record().by("b2");
        run.go_on();
        assert!(run.load.record().by("b2") > before + 50, "b2 serves on");
    });

    let (began, elsewhere) = (timeline.printout.began, timeline.elsewhere);
    let record = load.stop().unwrap();
    println!(
        "in {:.1} s {} requests on {} connections, and {elsewhere} on other addresses: {} failed",
        began.elapsed().as_secs_f64(),
        record.requests(),
        record.connections,
        record.failures.len()
    );
    record.require_no_failure(began).unwrap();
}

fn config(lb_policy: &str, with_added: bool) -> String {
    let added = if with_added {
        format!("  - {{ name: added, address: \"0.0.0.0:{ADDED_PORT}\", cluster: web }}\n")
    } else {
        String::new()
    };
    format!(
        r#"datapath: {{ mode: xdp, interfaces: auto, max_flows: 65536 }}
listeners:
  - {{ name: http, address: "0.0.0.0:{HTTP}", cluster: web }}
{added}clusters:
  - name: web
    discovery: {{ type: strict_dns, hosts: ["web.test:8080"], refresh_rate: 500ms, hold_nx: 20s }}
    lb_policy: {lb_policy}
"#
    )
}

/// What is printed: each change, what the agent made of it, and how the clients fared.
struct Timeline<'a> {
    run: Run<'a>,
    printout: Printout,
    /// Requests of other clients than the load from first to last.
    elsewhere: u64,
}

impl<'a> Timeline<'a> {
    fn new(cluster: &'a Cluster, agent: &'a Agent, load: &'a Load) -> Self {
        let run = Run { cluster, agent, load, elsewhere: 0, may_leave_xdp: false };
        Self { run, printout: Printout::default(), elsewhere: 0 }
    }

    fn phase(&mut self, what: &str, change: impl FnOnce(&mut Run<'a>)) {
        self.printout.begin(what);
        let before = self.run.agent.totals().unwrap();
        let without_port = no_port(&self.run.agent.status().unwrap());
        self.run.may_leave_xdp = false;
        change(&mut self.run);
        self.elsewhere = self.run.elsewhere;

        self.printout.events(self.run.agent).unwrap();
        let status = self.run.agent.status().unwrap();
        let record = self.run.load.record();
        let totals = self.run.agent.totals().unwrap().sum();
        println!(
            "           {} requests, {} failed; slowest {} ms; connections by rung: {totals:?}; {} without a port",
            record.requests(),
            record.failures.len(),
            self.run.load.take_slowest().as_millis(),
            no_port(&status),
        );
        let now = totals.since(before.sum());
        // On a fast machine the load uses up SNAT ports, which rest for a minute; the proxy takes what finds none.
        let status = self.run.agent.status().unwrap();
        let without_port = no_port(&status) - without_port;
        let (elsewhere, allowed) =
            (now.tc + now.proxy, without_port + if self.run.may_leave_xdp { now.xdp / 10 } else { 0 });
        assert!(elsewhere <= allowed, "{what}: not all on xdp: {now:?}; {}", status["reasons"]);
    }
}

/// SYNs that found no SNAT port so far.
fn no_port(status: &Value) -> u64 {
    status["reasons"]["no_port"].as_u64().unwrap_or(0)
}

/// What a phase works with.
struct Run<'a> {
    cluster: &'a Cluster,
    agent: &'a Agent,
    load: &'a Load,
    elsewhere: u64,
    /// Whether a few connections of the phase may be carried by TC or the proxy.
    may_leave_xdp: bool,
}

impl Run<'_> {
    /// The load goes on for a while.
    fn go_on(&self) {
        std::thread::sleep(A_WHILE);
    }

    /// Until this backend has answered more requests than so far.
    fn wait_answers(&self, name: &str) {
        let before = self.load.record().by(name);
        wait_for(&format!("{name} answers"), SOON, || {
            ensure!(self.load.record().by(name) > before, "{:?}", self.load.record().failures);
            Ok(())
        })
        .unwrap();
    }

    /// Connections to a backend so far; none of one that is gone.
    fn connections_of(&self, number: usize) -> u64 {
        backend(self.agent, number).unwrap().map_or(0, |row| row["total"]["xdp"].as_u64().unwrap())
    }

    /// Clients on another address for a while; none of their requests fails.
    fn load_on(&mut self, address: SocketAddr) {
        let before = self.traces();
        let began = Instant::now();
        let load = Load::start(&self.cluster.topology.client, address, CLIENTS).unwrap();
        self.go_on();
        let record = load.stop().unwrap();
        println!("           {address}: {} requests, {} failed", record.requests(), record.failures.len());
        if let Err(failures) = record.require_no_failure(began) {
            panic!("{failures:#}\nbefore: {before}\nafter:  {}", self.traces());
        }
        assert!(record.requests() > 100, "{record:?}");
        self.elsewhere += record.requests();
    }

    /// What tells who has ended a connection, and why: RSTs that each host has sent, and the counters of the datapath.
    fn traces(&self) -> String {
        let resets = self.cluster.topology.hosts().map(|host| {
            let sent = host
                .counter("Tcp", "OutRsts")
                .map_or_else(|error| format!("{error:#}"), |sent| sent.to_string());
            format!("{} {sent}", host.name())
        });
        let resets = resets.collect::<Vec<_>>().join(", ");
        format!("RSTs sent: {resets}; {}", self.agent.status().unwrap()["reasons"])
    }

    fn second_vip(&mut self) {
        let address = Family::V4.address(0, 77);
        let vip = SocketAddr::new(address, HTTP);
        let prefixed = Family::V4.with_prefix(address);
        let lb = &self.cluster.topology.lb;
        lb.ip(&["addr", "add", &prefixed, "dev", "lc0"]).unwrap();
        self.wait_served(vip, true);
        self.load_on(vip);
        lb.ip(&["addr", "del", &prefixed, "dev", "lc0"]).unwrap();
        self.wait_served(vip, false);
    }

    fn wait_served(&self, vip: SocketAddr, wanted: bool) {
        wait_for(&format!("{vip} is served: {wanted}"), SOON, || {
            let listeners = self.agent.status()?["listeners"].clone();
            let serves = listeners[0]["serves"].as_array().cloned().unwrap_or_default();
            let served = serves.contains(&vip.ip().to_string().into());
            ensure!(served == wanted, "{listeners}");
            Ok(())
        })
        .unwrap();
        let services = self.agent.headgate(&["maps", "dump", "services4"]).unwrap();
        assert_eq!(services.contains(&vip.ip().to_string()), wanted, "{services}");
    }

    /// Until a quarter of a second passes in which nothing arrives this way.
    fn wait_silent(&self, link: &SecondLink<'_>, way: Way) {
        wait_for(&format!("no answers by the {way:?} link"), SOON, || {
            let before = link.arrived_by(way)?;
            std::thread::sleep(Duration::from_millis(250));
            let arrived = link.arrived_by(way)? - before;
            // Neighbour discovery goes on.
            ensure!(arrived < 5, "{arrived} packets in 250 ms");
            Ok(())
        })
        .unwrap();
    }

    fn reload(&self, lb_policy: &str, with_added: bool) {
        self.agent.reload(&config(lb_policy, with_added)).unwrap().unwrap();
    }
}
