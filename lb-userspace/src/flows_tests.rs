use clap::Parser;
use lb_common::flow::{generation_at, mark};
use lb_common::host::empty_flow;
use lb_common::tcp::flags;
use lb_common::{Reason, V4};

use super::*;
use crate::listing::in_order;
use crate::proxy::Upstream;
use crate::test_tables::{
    CLIENT, NOW, SECOND, VIP, established_flow, half_open_flow, key, send, tables as host_tables,
};

fn rows(tables: &lb_common::host::HostTables, now: u64) -> Vec<FlowRow> {
    let entries = [tables.v4.established_entries(), tables.v4.half_open_entries()].concat();
    let back = |flow: &Flow<V4>| {
        entries
            .iter()
            .find(|other| other.key == flow.out.reversed() && other.generation() == flow.generation())
    };
    entries.iter().filter_map(|flow| FlowRow::of(flow, back(flow), now)).collect()
}

#[test]
fn two_entries_make_one_row() {
    let tables = host_tables();
    let back = established_flow(&tables, NOW);
    let there = key(CLIENT, VIP);
    assert_eq!(send(&tables, NOW + SECOND, there, flags::ACK, 101, 501, 300), Reason::FORWARD);
    assert_eq!(send(&tables, NOW + 2 * SECOND, back, flags::ACK, 501, 401, 4_000), Reason::REVERSE);
    // A retransmission.
    assert_eq!(send(&tables, NOW + 3 * SECOND, back, flags::ACK, 501, 401, 4_000), Reason::REVERSE);

    let rows = rows(&tables, NOW + 10 * SECOND);
    let [row] = rows.as_slice() else { panic!("one row, not {rows:?}") };
    assert_eq!(row.client, CLIENT.parse().unwrap());
    assert_eq!(row.vip, VIP.parse().unwrap());
    assert_eq!(row.backend, Some("10.0.1.2:8080".parse().unwrap()));
    assert_eq!(row.snat.unwrap().ip().to_string(), "10.0.1.1");
    assert_eq!((row.state, row.rung), (State::Established, Carrier::Tc));
    assert_eq!((row.bytes_in, row.bytes_out), (300, 4_000));
    // The handshake's packets count.
    assert_eq!((row.packets_in, row.packets_out), (Some(3), Some(3)));
    assert_eq!((row.age_s, row.idle_s), (10.0, 7.0));
}

#[test]
fn states_follow_the_connection() {
    let tables = host_tables();
    let back = half_open_flow(&tables, NOW);
    assert_eq!(rows(&tables, NOW)[0].state, State::HalfOpen);
    send(&tables, NOW, back, flags::SYN | flags::ACK, 500, 101, 0);
    assert_eq!(rows(&tables, NOW)[0].state, State::HalfOpen);
    send(&tables, NOW, key(CLIENT, VIP), flags::ACK, 101, 501, 0);
    assert_eq!(rows(&tables, NOW)[0].state, State::Established);
    send(&tables, NOW, key(CLIENT, VIP), flags::ACK | flags::FIN, 101, 501, 0);
    assert_eq!(rows(&tables, NOW)[0].state, State::Established);
    send(&tables, NOW, back, flags::ACK | flags::FIN, 501, 102, 0);
    assert_eq!(rows(&tables, NOW)[0].state, State::Closing);
}

#[test]
fn half_open_rows_end_when_the_programs_stop_heeding_them() {
    let tables = host_tables();
    half_open_flow(&tables, NOW);
    assert_eq!(rows(&tables, NOW + HALF_OPEN_LIMIT).len(), 1);
    assert_eq!(rows(&tables, NOW + HALF_OPEN_LIMIT + 1).len(), 0);

    // The programs' own bound: a repeated SYN finds the entry, a nanosecond later it opens a new flow.
    let last = send(&tables, NOW + HALF_OPEN_LIMIT, key(CLIENT, VIP), flags::SYN, 100, 0, 0);
    assert_eq!(last, Reason::SYN_RETRIED);
    let tables = host_tables();
    half_open_flow(&tables, NOW);
    let late = send(&tables, NOW + HALF_OPEN_LIMIT + 1, key(CLIENT, VIP), flags::SYN, 100, 0, 0);
    assert_eq!(late, Reason::NEW_FLOW);
}

#[test]
fn what_is_no_connection_is_no_row() {
    let mut tombstone = empty_flow::<V4>();
    tombstone.key = key(CLIENT, VIP);
    tombstone.word = generation_at(NOW) | mark::TOMBSTONE;
    tombstone.last_seen = NOW;
    let mut resting = empty_flow::<V4>();
    resting.key = key("10.0.1.2:8080", "10.0.1.1:1024");
    resting.word = generation_at(NOW) | mark::REVERSE | mark::ESTABLISHED;
    assert_eq!(FlowRow::of(&tombstone, None, NOW), None);
    assert_eq!(FlowRow::of(&resting, None, NOW), None);
}

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    filter: FlowFilter,
}

fn filter(arguments: &[&str]) -> Result<FlowFilter, String> {
    let all = ["flows"].iter().chain(arguments);
    Command::try_parse_from(all).map(|command| command.filter).map_err(|error| error.to_string())
}

fn proxied(client: &str, idle: u64, state: FlowState) -> ProxiedFlow {
    let upstream =
        Upstream { snat: "10.0.1.1:5000".parse().unwrap(), backend: "10.0.1.3:80".parse().unwrap() };
    ProxiedFlow {
        client: client.parse().unwrap(),
        vip: VIP.parse().unwrap(),
        upstream: (state != FlowState::HalfOpen).then_some(upstream),
        state,
        age: std::time::Duration::from_secs(10),
        idle: std::time::Duration::from_secs(idle),
        bytes_in: 1,
        bytes_out: 2,
    }
}

#[test]
fn filters() {
    let rows: Vec<FlowRow> = proxied_rows(vec![
        proxied("10.1.0.1:1", 3, FlowState::Established),
        proxied("10.2.0.1:1", 1, FlowState::HalfOpen),
        proxied("[2001:db8::1]:1", 2, FlowState::Closing),
    ])
    .collect();
    let shown = |arguments: &[&str]| -> Vec<String> {
        let filter = filter(arguments).unwrap();
        let text = serde_json::to_string(&filter).unwrap();
        assert_eq!(serde_json::from_str::<FlowFilter>(&text).unwrap(), filter, "goes over the admin socket");
        let shown: Vec<FlowRow> = rows.iter().filter(|row| filter.shows(row)).cloned().collect();
        in_order(&shown, filter.limit).map(|row| row.client.ip().to_string()).collect()
    };
    assert_eq!(shown(&[]), ["10.2.0.1", "2001:db8::1", "10.1.0.1"]);
    assert_eq!(shown(&["--limit", "1"]), ["10.2.0.1"]);
    assert_eq!(shown(&["--client", "10.1.0.0/16"]), ["10.1.0.1"]);
    assert_eq!(shown(&["--client", "2001:db8::1"]), ["2001:db8::1"]);
    assert_eq!(shown(&["--state", "half_open"]), ["10.2.0.1"]);
    assert_eq!(shown(&["--backend", "10.0.1.3:80"]), ["2001:db8::1", "10.1.0.1"]);
    assert_eq!(shown(&["--backend", "10.0.1.3:81"]), [""; 0]);
    assert!(filter(&["--client", "10.1.0.0/33"]).unwrap_err().contains("expected an address or a prefix"));
    assert!(filter(&["--state", "open"]).unwrap_err().contains("half_open, established, closing"));
    assert_eq!(rows.iter().filter(|row| row.open_to() == Some("10.0.1.3:80".parse().unwrap())).count(), 1);
}

#[test]
fn rows_as_json_and_as_a_table() {
    let rows: Vec<FlowRow> =
        proxied_rows(vec![proxied("[2001:db8::1]:1", 3, FlowState::Established)]).collect();
    let json = serde_json::to_value(&rows).unwrap();
    assert_eq!(json[0]["client"], "[2001:db8::1]:1");
    assert_eq!(json[0]["state"], "established");
    assert_eq!(json[0]["rung"], "proxy");
    assert_eq!(json[0]["idle_s"], 3.0);
    assert_eq!(json[0].get("packets_in"), None);
    assert_eq!(serde_json::from_value::<Vec<FlowRow>>(json).unwrap(), rows);
    let table = flows_table(&rows);
    let line = table.lines().nth(1).unwrap();
    let cells: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(
        cells,
        [
            "[2001:db8::1]:1",
            VIP,
            "10.0.1.3:80",
            "10.0.1.1:5000",
            "established",
            "proxy",
            "10s",
            "3.0s",
            "1",
            "B",
            "2",
            "B"
        ]
    );
}
