//! SIGHUP: whatever changes in the file, flows that have nothing to do with it go on, and a file that is not good changes
//! nothing.
#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::ensure;
use lb_tests::agent::config;
use lb_tests::cmd::wait_for;
use lb_tests::http::{Connection, Kept, sequential};
use lb_tests::rung::Rung;
use lb_tests::scenario::{Scenario, Setup};
use lb_tests::topology::Family;

/// Requests that show where new connections go.
const REQUESTS: u64 = 30;

#[test]
fn a_reload_on_xdp() {
    a_reload(Setup::Xdp);
}

#[test]
fn a_reload_on_tc() {
    a_reload(Setup::Tc);
}

#[test]
fn a_reload_on_proxy() {
    a_reload(Setup::Proxy);
}

/// A listener added and removed, the policy changed, a backend taken out and put back, while connections are open.
fn a_reload(setup: Setup) {
    let scenario = Scenario::start(setup, None).unwrap();
    let (agent, client, rung) = (&scenario.agent, &scenario.topology.client, setup.rung());
    let first = config(rung.name(), &scenario.topology);
    // One connection to each backend of each family.
    let mut kept: Vec<Kept> = Vec::new();
    for family in Family::ALL {
        kept.extend((0..3).map(|_| Kept::open_in(&scenario.topology.client, family.vip()).unwrap()));
    }
    let carried = |vip: SocketAddr| {
        let before = agent.totals().unwrap();
        let outcome = sequential(client, vip, REQUESTS).unwrap();
        outcome.require(REQUESTS).unwrap();
        agent.require_carried(&before, rung, REQUESTS).unwrap();
        outcome.served
    };

    // Nothing.
    agent.reload(&first).unwrap().unwrap();
    assert_eq!(carried(Family::V4.vip()).len(), 3);

    // Another policy: a client stays with one backend.
    let sticky = first.replace("round_robin", "source_ip");
    assert_ne!(sticky, first);
    agent.reload(&sticky).unwrap().unwrap();
    for family in Family::ALL {
        assert_eq!(carried(family.vip()).len(), 1, "{family}");
    }

    // A listener more, of each family.
    let mut more = first.clone();
    for (number, address) in ["0.0.0.0:81", "[::]:81"].iter().enumerate() {
        let cluster = if number == 0 { "web4" } else { "web6" };
        let listener =
            format!("listeners:\n  - {{ name: more{number}, address: \"{address}\", cluster: {cluster} }}\n");
        more = more.replacen("listeners:\n", &listener, 1);
    }
    agent.reload(&more).unwrap().unwrap();
    for family in Family::ALL {
        let vip = SocketAddr::new(family.lb(0), 81);
        assert_eq!(carried(vip).len(), 3, "{family}");
        kept.push(Kept::open_in(&scenario.topology.client, vip).unwrap());
        assert_eq!(carried(family.vip()).len(), 3, "{family}");
    }
    kept.iter_mut().for_each(|kept| kept.check().unwrap());

    // A backend less: its connections live, new ones go elsewhere.
    let mut less = more.clone();
    for family in Family::ALL {
        less = less.replace(&format!(", \"{}\"", family.backend(3)), "");
    }
    assert_ne!(less, more);
    agent.reload(&less).unwrap().unwrap();
    for family in Family::ALL {
        let served = carried(family.vip());
        assert_eq!(served.keys().collect::<Vec<_>>(), ["b1", "b2"], "{family}");
    }
    let drains = |family: Family| {
        let backends = agent.backends().unwrap();
        let address = family.backend(3).to_string();
        let row = backends.as_array().unwrap().iter().find(|row| row["address"] == *address).cloned();
        row.map(|row| row["state"].as_str().unwrap().to_owned())
    };
    kept.iter_mut().for_each(|kept| kept.check().unwrap());
    for family in Family::ALL {
        assert_eq!(drains(family).as_deref(), Some("draining"), "{family}");
    }

    // The listeners gone again: no new connections there, the open ones live.
    agent.reload(&less.replace(":81\"", ":82\"")).unwrap().unwrap();
    for family in Family::ALL {
        assert!(Connection::open_in(client, SocketAddr::new(family.lb(0), 81)).is_err(), "{family}");
        assert_eq!(carried(SocketAddr::new(family.lb(0), 82)).len(), 2, "{family}");
    }
    kept.iter_mut().for_each(|kept| kept.check().unwrap());

    // With its last connection the backend is gone.
    kept.retain(|kept| kept.name != "b3");
    for family in Family::ALL {
        wait_for("the drained backend is gone", Duration::from_secs(90), || {
            ensure!(drains(family).is_none(), "it still drains");
            Ok(())
        })
        .unwrap();
    }
    let status = agent.status().unwrap();
    let address = Family::V4.backend(3).to_string();
    let events = status["events"].as_array().unwrap();
    let states: Vec<_> = events
        .iter()
        .filter(|event| event["endpoint"] == *address)
        .map(|event| (event["from"].as_str().unwrap(), event["to"].as_str().unwrap()))
        .collect();
    assert_eq!(states, [("absent", "healthy"), ("healthy", "draining"), ("draining", "absent")]);

    // And back.
    agent.reload(&first).unwrap().unwrap();
    for family in Family::ALL {
        assert_eq!(carried(family.vip()).len(), 3, "{family}");
    }
    kept.iter_mut().for_each(|kept| kept.check().unwrap());
}

#[test]
fn a_bad_file_changes_nothing() {
    let scenario = Scenario::start(Setup::Tc, None).unwrap();
    let (agent, client) = (&scenario.agent, &scenario.topology.client);
    let good = config("tc", &scenario.topology);
    let mut kept = Kept::open_in(&scenario.topology.client, Family::V4.vip()).unwrap();
    // In use by another process of the balancer.
    let busy =
        scenario.topology.lb.within(|| std::net::TcpListener::bind((Family::V4.lb(0), 83))).unwrap().unwrap();
    let on_busy_port = good.replacen(
        "listeners:\n",
        "listeners:\n  - { name: busy, address: \"0.0.0.0:83\", cluster: web4 }\n",
        1,
    );
    let cases = [
        ("listeners: [", "headgate.yaml:1:"),
        (&good.replace("round_robin", "fair"), "`fair` is not accepted"),
        (&on_busy_port, "83"),
        (&good.replace("mode: tc", "mode: proxy"), "datapath.mode"),
    ];
    for (text, reason) in cases {
        let error = agent.reload(text).unwrap().unwrap_err();
        assert!(error.contains(reason), "{error}");
        assert!(agent.log().contains(reason), "{}", agent.log());
        kept.check().unwrap();
        let before = agent.totals().unwrap();
        for family in Family::ALL {
            sequential(client, family.vip(), REQUESTS).unwrap().require(REQUESTS).unwrap();
        }
        agent.require_carried(&before, Rung::Tc, 2 * REQUESTS).unwrap();
    }
    drop(busy);
    agent.reload(&good).unwrap().unwrap();
}

/// From XDP to TC and back, and interfaces named and left out, under open connections.
#[test]
fn rungs_and_interfaces_change_under_open_connections() {
    let scenario = Scenario::start(Setup::Xdp, None).unwrap();
    let (agent, client) = (&scenario.agent, &scenario.topology.client);
    let xdp = config("xdp", &scenario.topology);
    let mut kept: Vec<Kept> =
        Family::ALL.map(|family| Kept::open_in(&scenario.topology.client, family.vip()).unwrap()).into();
    let named = |text: &str, names: &str| text.replace("interfaces: auto", &format!("interfaces: {names}"));
    let steps = [
        (xdp.replace("mode: xdp", "mode: tc"), Rung::Tc),
        (xdp.clone(), Rung::Xdp),
        (named(&xdp, "[lc0, lb1, lb2, lb3]"), Rung::Xdp),
        (xdp.replace("mode: xdp", "mode: auto"), Rung::Tc),
        (xdp.clone(), Rung::Xdp),
    ];
    for (text, rung) in steps {
        agent.reload(&text).unwrap().unwrap();
        scenario.require_attached(rung).unwrap();
        let before = agent.totals().unwrap();
        for family in Family::ALL {
            sequential(client, family.vip(), REQUESTS).unwrap().require(REQUESTS).unwrap();
        }
        agent.require_carried(&before, rung, 2 * REQUESTS).unwrap();
        kept.iter_mut().for_each(|kept| kept.check().unwrap());
    }
}
