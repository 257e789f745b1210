use lb_common::Flow;
use lb_common::flow::{generation_at, mark};
use lb_common::host::empty_flow;
use lb_common::tcp::flags;

use super::flow_entries::decode;
use super::services::{Run, order, runs};
use super::*;
use crate::test_tables::{CLIENT, NOW, SECOND, VIP, established_flow, half_open_flow, key, send, tables};

fn found(name: &str) -> Vec<&'static str> {
    find(name).unwrap().iter().map(|map| map.name).collect()
}

#[test]
fn names_in_any_case_and_aliases() {
    assert_eq!(found("FLOWS4"), ["FLOWS4"]);
    assert_eq!(found("flows"), ["FLOWS4", "FLOWS6"]);
    assert_eq!(found("half-open"), ["FLOWS4", "FLOWS6"]);
    assert_eq!(found("Next-Hops"), ["NEXT_HOPS"]);
    assert_eq!(found("services"), ["SERVICES4", "SERVICES6"]);
    assert_eq!(found("backends"), ["BACKENDS"]);
    assert_eq!(found("reasons"), ["REASONS"]);
}

#[test]
fn an_unknown_name_is_answered_with_the_names() {
    let error = find("bakends").err().unwrap().to_string();
    assert!(error.contains("did you mean `backends`"), "{error}");
    for name in ["flows4", "next-hops", "half-open"] {
        assert!(error.contains(name), "{error}");
    }
    assert!(!find("x").err().unwrap().to_string().contains("did you mean"));
}

#[test]
fn without_pins_the_error_says_where_it_looked() {
    let pins = Pins::new(std::path::Path::new("/nonexistent/headgate"));
    let error = list(&pins, false).unwrap_err().to_string();
    assert!(
        error.contains("no maps are pinned in /nonexistent/headgate") && error.contains("--bpffs"),
        "{error}"
    );
    let error = dump(&pins, "nothing", false).unwrap_err().to_string();
    assert!(error.contains("no map `nothing`"), "{error}");
}

#[test]
fn numbers_in_a_row_are_one_range() {
    assert_eq!(ranges(vec![7, 2, 1, 3, 9, 8]), [(1, 3), (7, 9)]);
    assert_eq!(ranges(vec![5, 5]), [(5, 5)]);
    assert_eq!(ranges(Vec::new()), []);
}

#[test]
fn slots_in_a_row_are_one_run() {
    let list = runs([1, 2, 2, 2, 1]);
    assert_eq!(list[1], Run { backend: 2, slots: 3 });
    assert_eq!(order(&list), "1, 2 (3 times), 1");
    assert!(order(&runs((0..100).map(|n| n % 2))).ends_with("0, 1, ..."));
}

#[test]
fn both_directions_of_a_flow_have_the_same_ends() {
    let tables = tables();
    let back = established_flow(&tables, NOW);
    send(&tables, NOW + SECOND, key(CLIENT, VIP), flags::ACK | flags::FIN, 101, 501, 0);
    send(&tables, NOW + SECOND, back, flags::ACK, 501, 102, 10);
    let device = |hop: u32| Some(format!("lb{hop}"));
    let entries = tables.v4.established_entries();
    let json: Vec<serde_json::Value> = entries
        .iter()
        .map(|flow| serde_json::to_value(decode(flow, NOW + 3 * SECOND, &device)).unwrap())
        .collect();
    assert_eq!(json.len(), 2);
    for entry in &json {
        assert_eq!(entry["client"], CLIENT);
        assert_eq!(entry["vip"], VIP);
        assert_eq!(entry["backend"], "10.0.1.2:8080");
        assert_eq!(entry["state"], "established");
        assert_eq!(entry["rung"], "tc");
        assert_eq!(entry["attempt"], 1);
        assert_eq!(entry["age_s"], 3.0);
        assert_eq!(entry["idle_s"], 2.0);
        assert_eq!(entry["mss"], 1460);
    }
    let direction = |name: &str| json.iter().find(|entry| entry["direction"] == name).unwrap();
    let (forward, reverse) = (direction("forward"), direction("reverse"));
    assert_eq!(forward["device"], "lb2");
    assert_eq!(reverse["device"], "lb1");
    assert_eq!(forward["learned_mac"], serde_json::Value::Null);
    assert_eq!(reverse["learned_mac"], "02:00:00:00:00:63");
    assert_eq!(reverse["bytes"], 10);
    assert_eq!(forward["marks"], serde_json::json!(["client_fin", "answered"]));
    assert_eq!(forward["generation"], reverse["generation"]);
}

#[test]
fn half_open_entries_and_tombstones() {
    let tables = tables();
    half_open_flow(&tables, NOW);
    let state = |flow: &Flow<V4>, now| {
        let entry = decode(flow, now, &|_| None);
        serde_json::to_value(entry).unwrap()["state"].as_str().unwrap().to_owned()
    };
    for flow in tables.v4.half_open_entries() {
        assert_eq!(state(&flow, NOW), "half_open");
        let late = if flow.is_forward() { "expired" } else { "half_open" };
        assert_eq!(state(&flow, NOW + 41 * SECOND), late);
    }
    let mut tombstone = empty_flow::<V4>();
    tombstone.key = key(CLIENT, VIP);
    tombstone.word = generation_at(NOW) | mark::TOMBSTONE;
    tombstone.last_seen = NOW;
    assert_eq!(state(&tombstone, NOW), "tombstone");
    let row = decode(&tombstone, NOW + SECOND, &|_| None);
    let text = flow_entries::render(std::slice::from_ref(&row), false).unwrap();
    let cells: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(cells[..6], ["tombstone", CLIENT, VIP, "-", "-", "tombstone"]);
}

#[test]
fn addresses_of_either_family() {
    use lb_common::address::words;
    for text in ["10.0.0.1", "2001:db8::1", "::ffff:1.2.3.4"] {
        let address: IpAddr = text.parse().unwrap();
        assert_eq!(address_of_words(words(address)), address);
    }
}

#[test]
fn a_next_hop_in_words() {
    let tables = tables();
    let device = |index: u32| format!("lb{index}");
    let words = describe_hop(&tables.next_hops[2], NOW, &device);
    assert_eq!(words, "device lb12, MAC 02:00:00:00:00:0c, MTU 1500, resolved");
    let words = describe_hop(&tables.next_hops[1], NOW + 60 * SECOND, &device);
    assert!(
        words.contains("on the link") && words.contains("not confirmed by an agent for 1m00s"),
        "{words}"
    );
    assert_eq!(describe_hop(&tables.next_hops[0], NOW, &device), "the route is gone");
}
