//! The views over maps of the kernel, pinned, with no agent: needs root and a BPF file system.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use lb_common::V4;
use lb_common::flow::{generation_at, mark};
use lb_common::host::{HostTables, empty_flow};
use lb_common::tables::{ServiceKey, Settings};
use lb_common::tcp::{flags, state};
use serde_json::Value;

use super::*;
use crate::datapath::bpffs;
use crate::datapath::contents::Step;
use crate::datapath::kernel::Kernel;
use crate::datapath::object;
use crate::datapath::sweep::{Limits, Moved};
use crate::explain::{Names, Packet, Protocol, explain};
use crate::flows::FlowFilter;
use crate::listing::{Listing, Tables};
use crate::test_tables::{CLIENT, VIP, address, established_flow, key, send, tables};

/// Takes the pins away in any case.
struct Pinned(Pins);

impl Drop for Pinned {
    fn drop(&mut self) {
        self.0.remove().expect("the test's own pins");
    }
}

/// Writes what the host's tables hold into the kernel's.
fn fill(kernel: &mut Kernel, pins: &Pins, host: &HostTables) {
    let service = ServiceKey { address: address("10.0.0.1"), port: 80u16.to_be(), protocol: [6, 0] };
    let mut steps = vec![
        Step::Device(1, true),
        Step::Slots(0, host.slots[16..].into()),
        Step::Route4((address("10.0.0.0"), 24), Some(1)),
        Step::SnatAddress(0, host.snat_addresses[0]),
        Step::SnatPorts(host.snat_ports.clone()),
        Step::Settings(Settings {
            max_flows: 1000,
            snat_ports: host.snat_ports.len() as u32,
            ..Settings::default()
        }),
        Step::Service4(service, Some(host.v4.services[&service])),
    ];
    for (index, hop) in host.next_hops.iter().enumerate().skip(1) {
        // The loopback interface is in every namespace.
        steps.push(Step::Hop(index as u32, Some(NextHop { ifindex: 1, device: 1, ..*hop })));
    }
    for (index, backend) in host.backends.iter().enumerate().skip(1) {
        steps.push(Step::Backend(index as u32, Some(*backend)));
    }
    for step in steps {
        kernel.apply(&step).unwrap();
    }
    let maps = PinnedMaps::open(pins).unwrap();
    let table = maps.flows::<V4>().unwrap();
    let look = table.look();
    for flow in host.v4.established_entries().into_iter().chain(host.v4.half_open_entries()) {
        assert!(look.insert(&flow).unwrap());
    }
}

#[test]
#[ignore = "needs root"]
fn pinned_maps_are_listed_dumped_and_explained() {
    let root = format!("/sys/fs/bpf/headgate-test-views-{}", std::process::id());
    bpffs::prepare(Path::new(&root)).unwrap();
    let pinned = Pinned(Pins::new(Path::new(&root)));
    let pins = &pinned.0;
    let mut kernel = Kernel::new(object::load(1000, 7, Some(pins)).unwrap()).unwrap();

    let described: BTreeSet<String> = MAPS.iter().map(|map| map.name.to_owned()).collect();
    let there = std::fs::read_dir(pins.maps())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(there.collect::<BTreeSet<_>>(), described);

    let now = monotonic_now();
    let host = tables();
    host.set_clock(now);
    established_flow(&host, now);
    let reason = send(&host, now, key("10.0.0.2:40001", VIP), flags::SYN, 7, 0, 0);
    assert_eq!(reason.name(), "new_flow");
    fill(&mut kernel, pins, &host);
    drop(kernel);

    let json = |text: String| serde_json::from_str::<Value>(&text).unwrap();
    let listed = json(list(pins, true).unwrap());
    let entries = |name: &str| {
        let row = listed.as_array().unwrap().iter().find(|row| row["name"] == name).unwrap();
        assert!(row["memory_bytes"].as_u64().unwrap() > 0, "{row}");
        row["entries"].as_u64().unwrap()
    };
    assert_eq!(entries("FLOWS4"), 4);
    assert_eq!(entries("FLOWS6"), 0);
    assert_eq!(entries("SERVICES4"), 1);
    assert_eq!(entries("ROUTES4"), 1);
    assert_eq!(entries("SLOTS"), 2);
    assert_eq!(entries("BACKENDS"), 2);
    assert_eq!(entries("NEXT_HOPS"), 2);
    assert_eq!(entries("SNAT_ADDRESSES"), 1);
    assert_eq!(entries("SNAT_PORTS"), 1024);
    assert_eq!(entries("DEVICES"), 1);
    println!("{}", list(pins, false).unwrap());

    for map in MAPS {
        let rows = json(dump(pins, map.name, true).unwrap());
        assert!(rows.is_array(), "{}: {rows}", map.name);
        println!("{}:\n{}", map.name, dump(pins, map.name, false).unwrap());
    }
    let flows = json(dump(pins, "flows", true).unwrap());
    assert_eq!(
        (flows[0]["client"].as_str(), flows[0]["direction"].as_str()),
        (Some(CLIENT), Some("forward"))
    );
    assert_eq!(
        (flows[1]["backend"].as_str(), flows[1]["direction"].as_str()),
        (Some("10.0.1.2:8080"), Some("reverse"))
    );
    assert_eq!(json(dump(pins, "backends", true).unwrap())[1]["address"], "10.0.1.3:8080");
    assert_eq!(json(dump(pins, "routes", true).unwrap())[0]["prefix"], "10.0.0.0/24");
    let ports = json(dump(pins, "snat-ports", true).unwrap());
    assert_eq!(ports, serde_json::json!([{ "first": 1024, "last": 2047, "ports": 1024 }]));

    let maps = PinnedMaps::open(pins).unwrap();
    let tables = Tables { v4: Arc::new(maps.flows().unwrap()), v6: Arc::new(maps.flows().unwrap()) };
    let rows = Listing { tables: Some(tables), proxied: Vec::new() }.rows(&FlowFilter::default()).unwrap();
    assert_eq!(rows.len(), 2);
    println!("{}", crate::flows::flows_table(&rows));

    let names = Names { listener: &|id| Some(format!("listener {id}")), cluster: &|_| None };
    let ask = |from: &str, to: &str| {
        let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
        let packet = Packet { from, to, proto: Protocol::Tcp, interface: None, rung: None };
        let answer = explain(pins, &packet, &names).unwrap();
        println!("{}", answer.render(false).unwrap());
        answer
    };
    let answer = ask(CLIENT, VIP);
    assert_eq!((answer.reason, answer.backend), ("forward", Some("10.0.1.2:8080".parse().unwrap())));
    let answer = ask("10.0.1.2:8080", &answer.snat.unwrap().to_string());
    assert_eq!((answer.reason, answer.interface.as_deref()), ("reverse", Some("lo")));
    let answer = ask("10.0.0.2:50000", VIP);
    assert_eq!((answer.reason, answer.backend), ("new_flow", Some("10.0.1.3:8080".parse().unwrap())));
    assert_eq!(ask("10.0.0.2:50000", "10.0.0.9:80").reason, "no_flow");
    let after = json(list(pins, true).unwrap());
    assert_eq!(after, listed, "nothing was changed");
}

/// A flow table of the kernel as the agent uses it.
#[test]
#[ignore = "needs root"]
fn entries_are_found_listed_and_swept() {
    let mut kernel = Kernel::new(object::load(64, 9, None).unwrap()).unwrap();
    let table = &kernel.v4.flows;
    assert_eq!((table.max_flows(), table.bytes()), (64, 64 * 256));
    let now = monotonic_now();
    let flow = |number: u16, marks: u64, last_seen: u64| {
        let mut forward = empty_flow::<V4>();
        forward.key = key(&format!("10.1.0.1:{}", 1000 + number), VIP);
        forward.out = key(&format!("10.0.1.1:{}", 1000 + number), "10.0.1.2:8080");
        forward.word = generation_at(now + (number as u64) * 64) | marks;
        forward.last_seen = last_seen;
        let mut reverse = forward;
        (reverse.key, reverse.out) = (forward.out.reversed(), forward.key.reversed());
        reverse.word |= mark::REVERSE;
        [forward, reverse]
    };
    const FIN: u64 = state::CLIENT_FIN | state::BACKEND_FIN;
    let old = now - 70_000_000_000;
    let live: Vec<_> = (0..40).flat_map(|number| flow(number, mark::ESTABLISHED, old)).collect();
    // One of the two directions was heard of just now.
    let [mut half_silent, mut reverse] = flow(50, mark::ESTABLISHED | FIN, old);
    (half_silent.last_seen, reverse.last_seen) = (now, old);
    let ended: Vec<_> = (60..63).flat_map(|number| flow(number, mark::ESTABLISHED | FIN, old)).collect();
    let half_open = flow(70, 0, old);
    let look = table.look();
    for entry in live.iter().chain([&half_silent, &reverse]).chain(&ended).chain(&half_open) {
        assert!(look.insert(entry).unwrap(), "room for 64 flows");
    }
    for entry in live.iter().chain(&ended) {
        assert_eq!(look.find(&entry.key).unwrap().unwrap().word, entry.word);
    }
    assert_eq!(look.find(&key("10.9.9.9:1", VIP)).unwrap().map(|flow| flow.word), None);
    let strays: u64 = (0..table.sets()).map(|index| table.set(index).unwrap().strays).sum();
    assert!(strays > 0, "some are in their second set");
    drop(look);

    let moved = Moved { hops: &BTreeMap::new(), route: &|_| None };
    kernel.sweep(&Limits::default(), &moved, &mut |_, _| ()).unwrap();
    let left: BTreeSet<_> = kernel.v4.flows.entries().unwrap().iter().map(|flow| flow.word).collect();
    let wanted: BTreeSet<_> = live.iter().chain([&half_silent, &reverse]).map(|flow| flow.word).collect();
    assert_eq!(left, wanted);
    assert_eq!(kernel.live.get(0).closed, 3);
    let look = kernel.v4.flows.look();
    for entry in kernel.v4.flows.entries().unwrap() {
        assert!(look.remove(&entry).unwrap());
        assert!(!look.remove(&entry).unwrap());
    }
    drop(look);
    let sets = (0..kernel.v4.flows.sets()).map(|index| kernel.v4.flows.set(index).unwrap());
    assert!(sets.into_iter().all(|set| set.tags == [0; 3] && set.strays == 0));
    // The programs stay loaded as long as this lives.
    kernel.apply(&Step::Settings(Settings::default())).unwrap();
}
