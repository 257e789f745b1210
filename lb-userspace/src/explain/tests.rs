use lb_common::host::HostTables;
use lb_common::table::{self, FlowSet};
use lb_common::tables::{
    Active, Backend, NextHop, Service, ServiceKey, Settings, Window, backend, hop, service,
};
use lb_common::tcp::flags;
use lb_common::{Flow, Reason, Tables};

use super::*;
use crate::test_tables::{
    BACKENDS, CLIENT, CLIENTS, NOW, SECOND, VIP, address, established_flow, half_open_flow, key, send, tables,
};

/// The host's tables as a source of copies.
struct Copies<'t>(&'t HostTables);

impl Source<V4> for Copies<'_> {
    fn flow_sets(&self) -> u32 {
        Tables::<V4>::flow_sets(self.0)
    }
    fn flow_set(&self, index: u32) -> Option<FlowSet<V4>> {
        self.0.v4.sets().get(index as usize).copied()
    }
    fn flow(&self, key: &Key<V4>) -> Option<Flow<V4>> {
        table::find(self.0, key).map(|flow| *flow.get())
    }
    fn service(&self, key: &ServiceKey<V4>) -> Option<Service> {
        Tables::service(self.0, key)
    }
    fn window(&self, cluster: u32) -> Option<Window> {
        Tables::<V4>::window(self.0, cluster)
    }
    fn cursor(&self, cluster: u32) -> u32 {
        Tables::<V4>::cursor(self.0, cluster)
    }
    fn slot(&self, index: u32) -> Option<u32> {
        Tables::<V4>::slot(self.0, index)
    }
    fn backend(&self, index: u32) -> Option<Backend> {
        Tables::<V4>::backend(self.0, index).copied()
    }
    fn next_hop(&self, index: u32) -> Option<NextHop> {
        Tables::<V4>::next_hop(self.0, index).copied()
    }
    fn route(&self, address: V4) -> Option<u32> {
        Tables::route(self.0, address)
    }
    fn snat_address(&self, index: u32) -> Option<V4> {
        Tables::snat_address(self.0, index)
    }
    fn snat_port(&self, index: u32) -> Option<u16> {
        Tables::<V4>::snat_port(self.0, index)
    }
    fn settings(&self) -> Option<Settings> {
        Tables::<V4>::settings(self.0)
    }
    fn live(&self) -> u64 {
        Tables::<V4>::live(self.0)
    }
    fn active(&self, index: u32) -> Active {
        self.0.active_at(index)
    }
}

fn ask(tables: &HostTables, first: Rung, from: &str, to: &str, now: u64) -> Explanation {
    let key = key(from, to);
    let device = |index: u32| match index {
        CLIENTS => "eth0".to_owned(),
        BACKENDS => "lb1".to_owned(),
        other => format!("#{other}"),
    };
    let listener = |id: u32| (id == 1).then(|| "http".to_owned());
    let cluster = |index: u32| (index == 0).then(|| "gateways".to_owned());
    let names = Names { listener: &listener, cluster: &cluster };
    let ingress = likely_ingress(&Copies(tables), &key);
    tell(&Copies(tables), &Question { key, ingress, first, now, device: &device }, &names)
}

/// The sentence that has all of `words`.
#[track_caller]
fn assert_says(explanation: &Explanation, words: &[&str]) {
    let found = explanation.steps.iter().any(|step| words.iter().all(|word| step.contains(word)));
    assert!(found, "no sentence with {words:?} in {:#?}", explanation.steps);
}

#[test]
fn a_new_connection() {
    let tables = tables();
    let answer = ask(&tables, Rung::Xdp, CLIENT, VIP, NOW);
    assert_says(&answer, &["A SYN from 10.0.0.2:40000 to 10.0.0.1:80", "eth0", "xdp"]);
    assert_says(&answer, &["no flow"]);
    assert_says(
        &answer,
        &["10.0.0.1:80 is listener \"http\" (service 1), cluster \"gateways\" (0), round_robin"],
    );
    assert_says(&answer, &["CPU 0 is at position 1 of 2", "slot 17", "backend 10.0.1.2:8080 (1)"]);
    assert_says(&answer, &["To the backend: next hop 2, device lb1, MAC 02:00:00:00:00:0c", "resolved"]);
    assert_says(&answer, &["Back to the client", "eth0"]);
    assert_says(&answer, &["SNAT", "10.0.1.1:", "first one tried was free"]);
    assert_says(&answer, &["device lb1", "XDP_REDIRECT", "1460"]);
    assert_says(&answer, &["Verdict: new_flow, forwarded by xdp on lb1"]);
    assert_eq!((answer.verdict, answer.reason, answer.rung), ("forwarded", "new_flow", Some("xdp")));
    assert_eq!(answer.backend, Some("10.0.1.2:8080".parse().unwrap()));
    assert_eq!(answer.leaves_to, answer.backend);
    assert_eq!(answer.leaves_from, answer.snat);
    assert_eq!(answer.listener.as_deref(), Some("http"));

    assert!(tables.v4.half_open_entries().is_empty(), "only imagined");
    assert_eq!(answer, ask(&tables, Rung::Xdp, CLIENT, VIP, NOW), "nothing has moved");
}

#[test]
fn the_answer_is_what_then_happens() {
    let tables = tables();
    let answer = ask(&tables, Rung::Tc, CLIENT, VIP, NOW);
    let back = half_open_flow(&tables, NOW);
    let socket = |address: V4, port: u16| crate::flows::socket(address, port);
    assert_eq!(answer.backend, Some(socket(back.source, back.source_port)));
    assert_eq!(answer.snat, Some(socket(back.destination, back.destination_port)));
}

#[test]
fn what_xdp_cannot_do_comes_to_tc() {
    let mut tables = tables();
    tables.next_hops[2].flags &= !hop::XDP;
    let answer = ask(&tables, Rung::Xdp, CLIENT, VIP, NOW);
    assert_says(&answer, &["xdp:", "hands the packet", "TC program"]);
    assert_says(&answer, &["bpf_redirect"]);
    assert_says(&answer, &["Verdict: new_flow, forwarded by tc on lb1"]);
    assert_eq!(answer.steps.iter().filter(|step| step.contains("is listener")).count(), 1, "told once");
    // Nobody vouches for the next hop any more.
    let answer = ask(&tables, Rung::Tc, CLIENT, VIP, NOW + 60 * SECOND);
    assert_says(&answer, &["bpf_redirect_neigh"]);
    assert_eq!(answer.reason, "new_flow");
}

#[test]
fn a_route_that_moved_under_an_open_flow() {
    let mut tables = tables();
    let back = established_flow(&tables, NOW);
    // The clients are behind a router on the backends' side now.
    let index = tables.next_hops.len() as u32;
    tables.next_hops.push(tables.next_hops[2]);
    tables.next_hops[1].flags |= hop::RELOOKUP;
    tables.v4.routes.iter_mut().for_each(|(.., hop)| *hop = index);
    let socket = |address: V4, port: u16| crate::flows::socket(address, port).to_string();
    let (from, to) = (socket(back.source, back.source_port), socket(back.destination, back.destination_port));
    let answer = ask(&tables, Rung::Tc, &from, &to, NOW);
    assert_says(&answer, &["The route that the flow was opened with has moved", "next hop 3", "lb1"]);
    assert_eq!((answer.reason, answer.leaves_by.as_deref()), ("reverse", Some("lb1")));
    tables.v4.routes.clear();
    let answer = ask(&tables, Rung::Tc, &from, &to, NOW);
    assert_says(&answer, &["has moved, and there is no other"]);
    assert_eq!((answer.verdict, answer.reason), ("dropped", "hop_gone"));
}

/// Where even a bare ACK is too big.
#[test]
fn what_is_too_big_is_answered() {
    let mut tables = tables();
    established_flow(&tables, NOW);
    tables.next_hops.iter_mut().for_each(|hop| hop.mtu = 39);
    let answer = ask(&tables, Rung::Tc, CLIENT, VIP, NOW);
    assert_says(&answer, &["Verdict: too_big, answered by tc", "its sender is told"]);
    assert_eq!(answer.verdict, "answered");
    let answer = ask(&tables, Rung::Xdp, CLIENT, VIP, NOW);
    assert_says(&answer, &["xdp:", "hands the packet"]);
    assert_eq!((answer.verdict, answer.rung), ("answered", Some("tc")));
}

#[test]
fn both_sides_of_an_open_flow() {
    let tables = tables();
    let back = established_flow(&tables, NOW);
    send(&tables, NOW + SECOND, back, flags::ACK, 501, 101, 2048);
    let answer = ask(&tables, Rung::Tc, CLIENT, VIP, NOW + 3 * SECOND);
    assert_says(&answer, &["An ACK from", "eth0"]);
    assert_says(
        &answer,
        &[
            CLIENT,
            VIP,
            "listener \"http\"",
            "backend 10.0.1.2:8080",
            "established",
            "3.0s ago by tc",
            "2.0 KiB",
        ],
    );
    assert_says(&answer, &["Rewrite", "10.0.1.1:", "to backend 10.0.1.2:8080"]);
    assert_eq!((answer.verdict, answer.reason), ("forwarded", "forward"));

    let snat = answer.snat.unwrap().to_string();
    let answer = ask(&tables, Rung::Tc, "10.0.1.2:8080", &snat, NOW + 3 * SECOND);
    assert_says(&answer, &["An ACK from 10.0.1.2:8080", "comes in by lb1"]);
    assert_says(&answer, &["backend's side", CLIENT, VIP, "10.0.1.2:8080"]);
    assert_says(&answer, &["Rewrite", VIP, "to client 10.0.0.2:40000"]);
    assert_says(&answer, &["eth0", "learned from the client's SYN"]);
    assert_eq!((answer.reason, answer.backend), ("reverse", Some("10.0.1.2:8080".parse().unwrap())));
}

#[test]
fn a_handshake_under_way() {
    let tables = tables();
    let back = half_open_flow(&tables, NOW);
    let from_backend = format!("10.0.1.1:{}", u16::from_be(back.destination_port));
    let answer = ask(&tables, Rung::Tc, CLIENT, VIP, NOW + SECOND);
    assert_says(&answer, &["A repeated SYN"]);
    assert_says(&answer, &["half open: attempt 1", "not answered yet"]);
    assert_eq!((answer.reason, answer.backend), ("syn_retried", Some("10.0.1.3:8080".parse().unwrap())));
    let answer = ask(&tables, Rung::Tc, "10.0.1.2:8080", &from_backend, NOW + SECOND);
    assert_says(&answer, &["A SYN-ACK"]);
    assert_eq!(answer.reason, "syn_ack");

    send(&tables, NOW, back, flags::SYN | flags::ACK, 500, 101, 0);
    let answer = ask(&tables, Rung::Tc, CLIENT, VIP, NOW + SECOND);
    assert_says(&answer, &["acknowledgement is missing"]);
    assert_eq!(answer.reason, "established");
    assert!(tables.v4.established_entries().is_empty(), "only imagined");
}

#[test]
fn what_passes_up_and_who_serves_it() {
    let served = |change: &dyn Fn(&mut HostTables), reason: &str| {
        let mut tables = tables();
        change(&mut tables);
        let answer = ask(&tables, Rung::Tc, CLIENT, VIP, NOW);
        assert_eq!((answer.verdict, answer.reason), ("passed", reason));
        assert_says(&answer, &[&format!("Verdict: {reason}, passed"), "proxy", "listens on 10.0.0.1:80"]);
        answer
    };
    served(&|tables| tables.windows[0].count = 0, "no_backend");
    served(&|tables| tables.settings.snat_ports = 0, "no_port");
    served(&|tables| tables.v4.routes.clear(), "no_route");
    let answer = served(&|tables| tables.settings.max_flows = 0, "table_full");
    assert_says(&answer, &["0 of 0 flows"]);
    let answer = served(&|tables| tables.backends[1].hop = 0, "no_next_hop");
    assert_says(&answer, &["no known way"]);
    let answer = served(&|tables| tables.backends[1].flags |= backend::PROXY_ONLY, "proxy_backend");
    assert_says(&answer, &["10.0.1.2:8080", "only the proxy can reach"]);
    let drain = |tables: &mut HostTables| {
        tables.v4.services.values_mut().for_each(|of| of.flags = service::DRAINING);
    };
    let answer = served(&drain, "draining");
    assert_says(&answer, &["it is draining"]);
}

#[test]
fn a_syn_that_was_left_to_the_proxy() {
    let mut tables = tables();
    tables.windows[0].count = 0;
    assert_eq!(send(&tables, NOW, key(CLIENT, VIP), flags::SYN, 1, 0, 0), Reason::NO_BACKEND);
    let answer = ask(&tables, Rung::Tc, CLIENT, VIP, NOW + 3 * SECOND);
    assert_says(&answer, &["left to the proxy 3.0s ago"]);
    assert_eq!(answer.reason, "tombstone");
}

#[test]
fn an_address_that_is_not_served() {
    let tables = tables();
    let answer = ask(&tables, Rung::Xdp, CLIENT, "10.0.0.1:81", NOW);
    assert_says(&answer, &["10.0.0.1:81 is no address that Headgate serves"]);
    assert_says(&answer, &["no_flow", "as if Headgate were not there"]);
    assert_eq!((answer.verdict, answer.backend), ("passed", None));
    assert_eq!(Tables::route(&tables, address("192.0.2.1")), None);
    let answer = ask(&tables, Rung::Tc, "192.0.2.1:1", VIP, NOW);
    assert_eq!((answer.interface, answer.reason), (None, "no_route"));
}

fn packet(from: &str, to: &str, proto: Protocol) -> Packet {
    Packet { from: from.parse().unwrap(), to: to.parse().unwrap(), proto, interface: None, rung: None }
}

#[test]
fn udp_and_mixed_families_need_no_maps() {
    let pins = Pins::new(std::path::Path::new("/nonexistent"));
    let names = Names { listener: &|_| None, cluster: &|_| None };
    let answer = explain(&pins, &packet(CLIENT, VIP, Protocol::Udp), &names).unwrap();
    assert_says(&answer, &["forwards TCP only"]);
    assert_eq!((answer.verdict, answer.reason), ("passed", "not_tcp"));
    let error = explain(&pins, &packet(CLIENT, "[::1]:80", Protocol::Tcp), &names).unwrap_err().to_string();
    assert!(error.contains("both must be IPv4, or both IPv6"), "{error}");
    let error = explain(&pins, &packet(CLIENT, VIP, Protocol::Tcp), &names).unwrap_err().to_string();
    assert!(error.contains("no maps are pinned"), "{error}");
}

#[test]
fn output_for_people_and_scripts() {
    let answer = ask(&tables(), Rung::Tc, CLIENT, VIP, NOW);
    let text = answer.render(false).unwrap();
    assert!(text.starts_with(" 1. ") || text.starts_with("1. "), "{text}");
    assert_eq!(text.lines().count(), answer.steps.len());
    let json: serde_json::Value = serde_json::from_str(&answer.render(true).unwrap()).unwrap();
    assert_eq!(json["verdict"], "forwarded");
    assert_eq!(json["backend"], "10.0.1.2:8080");
    assert_eq!(json["steps"].as_array().unwrap().len(), answer.steps.len());
}
