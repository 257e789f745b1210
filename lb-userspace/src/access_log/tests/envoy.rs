//! Lines that Envoy 1.40 wrote for the same connections.

use std::time::Duration;

use serde_json::{Value, json};

use super::super::{Close, Flags, Format, Kind, Record, Rung, reason};
use super::{address, record, rendered, text};

#[test]
fn the_default_line() {
    let record = record();
    let line =
        "[2026-11-30T12:47:09.434Z] \"- - -\" 0 - 5 10 51 - \"-\" \"-\" \"-\" \"-\" \"127.0.0.1:28301\"\n";
    assert_eq!(rendered(&Format::envoy_default(), &record), line);
    let sample = Record {
        start: std::time::UNIX_EPOCH + Duration::from_millis(1_579_573_357_303),
        duration: Duration::from_millis(396_548),
        bytes_in: 493,
        bytes_out: 10_478,
        upstream: Some(address("10.82.1.26:5000")),
        ..record
    };
    let line = "[2020-01-21T02:22:37.303Z] \"- - -\" 0 - 493 10478 396548 - \
        \"-\" \"-\" \"-\" \"-\" \"10.82.1.26:5000\"\n";
    assert_eq!(rendered(&Format::envoy_default(), &sample), line);
}

const FAILURES: &str = "%RESPONSE_FLAGS% %RESPONSE_FLAGS_LONG% %UPSTREAM_HOST% %UPSTREAM_LOCAL_ADDRESS% \
    %UPSTREAM_REMOTE_ADDRESS% %UPSTREAM_CLUSTER% %CONNECTION_TERMINATION_DETAILS% \
    %UPSTREAM_TRANSPORT_FAILURE_REASON% %DOWNSTREAM_LOCAL_CLOSE_REASON% %UPSTREAM_LOCAL_CLOSE_REASON% \
    %DOWNSTREAM_DETECTED_CLOSE_TYPE% %UPSTREAM_DETECTED_CLOSE_TYPE% %UPSTREAM_REQUEST_ATTEMPT_COUNT% \
    %UPSTREAM_HOSTS_ATTEMPTED% %UPSTREAM_CONNECTION_ID% %UPSTREAM_CONNECTION_IDS_ATTEMPTED% \
    %UPSTREAM_CONNECTION_POOL_READY_DURATION% %ACCESS_LOG_TYPE% %UPSTREAM_WIRE_BYTES_SENT%";

#[test]
fn connections_that_fail() {
    let refused = Record {
        connect: Some(Duration::ZERO),
        bytes_in: 0,
        bytes_out: 0,
        upstream_local: None,
        earlier: vec![address("127.0.0.1:28301"); 2],
        flags: Flags::UF | Flags::URX,
        attempts: 3,
        failure: Some(reason::REFUSED),
        local_close: Some(reason::CONNECT_FAILED),
        ..record()
    };
    assert_eq!(
        text(FAILURES, &refused),
        "UF,URX UpstreamConnectionFailure,UpstreamRetryLimitExceeded 127.0.0.1:28301 - - c - \
         delayed_connect_error:_Connection_refused tcp_initializion_failure:0 - Normal Normal 3 \
         127.0.0.1:28301,127.0.0.1:28301,127.0.0.1:28301 0 - 0 TcpConnectionEnd 0"
    );
    let unhealthy = Record {
        upstream: None,
        earlier: Vec::new(),
        flags: Flags::UH,
        attempts: 0,
        failure: None,
        local_close: Some(reason::NO_HEALTHY_UPSTREAM),
        ..refused.clone()
    };
    assert_eq!(
        text(FAILURES, &unhealthy),
        "UH NoHealthyUpstream - - - c - - tcp_initializion_failure:1 - Normal Normal 0 - 0 - 0 TcpConnectionEnd 0"
    );
    let overflow = Record { flags: Flags::UO, local_close: Some(reason::OVERFLOW), ..unhealthy.clone() };
    assert_eq!(
        text(FAILURES, &overflow),
        "UO UpstreamOverflow - - - c - - tcp_initializion_failure:2 - Normal Normal 0 - 0 - 0 TcpConnectionEnd 0"
    );
    let no_cluster = Record {
        flags: Flags::NC,
        cluster: None,
        connect: None,
        local_close: Some(reason::NO_CLUSTER),
        ..unhealthy
    };
    assert_eq!(
        text(FAILURES, &no_cluster),
        "NC NoClusterFound - - - - - - tcp_initializion_failure:3 - Normal Normal 0 - 0 - - TcpConnectionEnd 0"
    );
}

#[test]
fn connections_that_end_otherwise() {
    let connected = " 127.0.0.1:28301 127.0.0.1:52420 127.0.0.1:28301 c - - ";
    let reset = Record {
        flags: Flags::UR,
        backend_last: false,
        downstream_close: Close::LocalReset,
        upstream_close: Close::RemoteReset,
        ..record()
    };
    let rest = " 1 127.0.0.1:28301 7 7 0 TcpConnectionEnd 5";
    assert_eq!(
        text(FAILURES, &reset),
        format!("UR UpstreamRemoteReset{connected}- - LocalReset RemoteReset{rest}")
    );
    let idle = Record { local_close: Some(reason::IDLE_TIMEOUT), ..record() };
    assert_eq!(
        text(FAILURES, &idle),
        format!("- -{connected}tcp_session_idle_timeout tcp_session_idle_timeout Normal Normal{rest}")
    );
    let old = Record { flags: Flags::DT, local_close: Some(reason::MAX_DURATION), ..record() };
    let why = "max_connection_duration_reached";
    assert_eq!(text(FAILURES, &old), format!("DT DurationTimeout{connected}{why} {why} Normal Normal{rest}"));
}

#[test]
fn the_other_kinds_of_lines() {
    let start = Record {
        kind: Kind::Start,
        connect: None,
        upstream: None,
        upstream_local: None,
        cluster: None,
        attempts: 0,
        ..record()
    };
    assert_eq!(text(FAILURES, &start), "- - - - - - - - - - Normal Normal 0 - 0 - - TcpConnectionStart 0");
    // While the backend is being connected it is among those attempted, but not yet the connection's.
    let connecting = Record {
        kind: Kind::Periodic,
        earlier: vec![address("127.0.0.1:28301")],
        cluster: Some("c".into()),
        attempts: 1,
        ..start
    };
    assert_eq!(
        text(FAILURES, &connecting),
        "- - - - - c - - - - Normal Normal 1 127.0.0.1:28301 0 - - TcpPeriodic 0"
    );
    let connected = Record { kind: Kind::Connected, ..record() };
    assert_eq!(text("%ACCESS_LOG_TYPE%", &connected), "TcpUpstreamConnected");
}

/// Every operator of Envoy whose value is the same for each such connection.
#[test]
fn json_has_the_types_and_the_order() {
    let operators = [
        "ACCESS_LOG_TYPE",
        "BYTES_RECEIVED",
        "BYTES_SENT",
        "CONNECTION_TERMINATION_DETAILS",
        "CUSTOM_FLAGS",
        "DOWNSTREAM_DETECTED_CLOSE_TYPE",
        "DOWNSTREAM_DIRECT_REMOTE_ADDRESS",
        "DOWNSTREAM_LOCAL_PORT",
        "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
        "DOWNSTREAM_WIRE_BYTES_SENT",
        "DURATION",
        "PROTOCOL",
        "RESPONSE_CODE",
        "RESPONSE_CODE_DETAILS",
        "RESPONSE_FLAGS",
        "START_TIME",
        "UPSTREAM_CONNECTION_ID",
        "UPSTREAM_CONNECTION_IDS_ATTEMPTED",
        "UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT",
        "UPSTREAM_REMOTE_PORT",
        "UPSTREAM_WIRE_BYTES_RECEIVED",
        "UPSTREAM_WIRE_BYTES_SENT",
    ];
    let mut members: serde_json::Map<String, Value> =
        operators.iter().rev().map(|name| ((*name).to_owned(), format!("%{name}%").into())).collect();
    members.insert("COMMON_DURATION".into(), "%COMMON_DURATION(DS_RX_BEG:US_CX_END:us)%".into());
    members.insert("COMMON_REVERSED".into(), "%COMMON_DURATION(US_CX_END:US_CX_BEG:us)%".into());
    members.insert("MASKED".into(), "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(8)%".into());
    let format = Format::json(&Value::Object(members)).unwrap();
    let line = concat!(
        r#"{"ACCESS_LOG_TYPE":"TcpConnectionEnd","BYTES_RECEIVED":5,"BYTES_SENT":10,"COMMON_DURATION":704,"#,
        r#""COMMON_REVERSED":null,"CONNECTION_TERMINATION_DETAILS":null,"CUSTOM_FLAGS":"","#,
        r#""DOWNSTREAM_DETECTED_CLOSE_TYPE":"Normal","DOWNSTREAM_DIRECT_REMOTE_ADDRESS":"127.0.0.1:33366","#,
        r#""DOWNSTREAM_LOCAL_PORT":28300,"DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT":"127.0.0.1","#,
        r#""DOWNSTREAM_WIRE_BYTES_SENT":10,"DURATION":51,"MASKED":"127.0.0.0/8","PROTOCOL":null,"#,
        r#""RESPONSE_CODE":0,"RESPONSE_CODE_DETAILS":null,"RESPONSE_FLAGS":"-","#,
        r#""START_TIME":"2026-11-30T12:47:09.434Z","UPSTREAM_CONNECTION_ID":7,"#,
        r#""UPSTREAM_CONNECTION_IDS_ATTEMPTED":"7","UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT":"127.0.0.1","#,
        r#""UPSTREAM_REMOTE_PORT":28301,"UPSTREAM_WIRE_BYTES_RECEIVED":10,"UPSTREAM_WIRE_BYTES_SENT":5}"#,
        "\n"
    );
    assert_eq!(rendered(&format, &record()), line);
    serde_json::from_str::<Value>(line).unwrap();
}

fn mixed() -> Value {
    json!({
        "b": "%DURATION%",
        "a": {"z": "%BYTES_SENT%", "y": ["%DURATION%", 1, 2.5, "lit", "%UPSTREAM_CLUSTER%"]},
        "ü/<&>\"\\\n\t\u{1}": "q\"uo\\te\n/<é\u{2028}\u{7f}😀",
        "esc": "\u{8}\u{c}\r\u{1f}",
        "numbers": [
            3, -2, 0.1, 1e21, 1e-7, 9_007_199_254_740_993_u64, 1e15, 1e16, 123_456_789_012_345_678_u64,
            1.5e15, 1_234_567_890_123_456.7, 0.0001, 0.000_01, 0.000_123_45, -0.0, 1.0, 1e300, 5e-324, 100,
            123_456.789, 12_345_678_901_234_567_890_u64, true, false
        ],
        "empty": "",
        "pct": "100%%",
        "two": "%BYTES_RECEIVED%%BYTES_SENT%",
        "unset": "%REQ(X)%",
        "unset2": "a%REQ(X)%b",
        "A": 1,
        "null": null,
        "nested": {"only": "%REQ(Q)%"},
        "list": [null, "%REQ(A)%", {"x": null}, [null]],
        "eo": {},
        "el": [],
    })
}

const NUMBERS: &str = "[3,-2,0.1,1e+21,1e-07,9007199254740992,1e+15,1e+16,123456789012345680,1.5e+15,\
    1234567890123456.8,1e-04,1e-05,0.00012345,-0,1,1e+300,5e-324,100,123456.789,12345678901234567168,true,false]";

#[test]
fn json_is_nested_and_escaped() {
    let line = rendered(&Format::json(&mixed()).unwrap(), &record());
    let expected = format!(
        concat!(
            r#"{{"A":1,"a":{{"y":[51,1,2.5,"lit","c"],"z":10}},"b":51,"el":[],"empty":"","eo":{{}},"#,
            r#""esc":"\b\f\r\u001f","list":[null,null,{{"x":null}},[null]],"nested":{{"only":null}},"null":null,"#,
            r#""numbers":{},"pct":"100%","two":"510","unset":null,"unset2":"a-b","#,
            r#""ü/<&>\"\\\n\t\u0001":"q\"uo\\te\n/<é{}😀"}}"#,
            "\n"
        ),
        NUMBERS, "\u{2028}\u{7f}"
    );
    assert_eq!(line, expected);
    serde_json::from_str::<Value>(&line).unwrap();
}

#[test]
fn empty_values_can_be_left_out() {
    let format = Format::json(&mixed()).unwrap().omit_empty(true);
    let line = rendered(&format, &record());
    let expected = format!(
        concat!(
            r#"{{"A":1,"a":{{"y":[51,1,2.5,"lit","c"],"z":10}},"b":51,"el":[],"empty":"","#,
            r#""esc":"\b\f\r\u001f","list":[[]],"numbers":{},"pct":"100%","two":"510","unset2":"ab","#,
            r#""ü/<&>\"\\\n\t\u0001":"q\"uo\\te\n/<é{}😀"}}"#,
            "\n"
        ),
        NUMBERS, "\u{2028}\u{7f}"
    );
    assert_eq!(line, expected);
    let gone = Format::json(&json!({"a": "%REQ(X)%"})).unwrap().omit_empty(true);
    assert_eq!(rendered(&gone, &record()), "{}\n");
    assert_eq!(rendered(&Format::json(&json!({})).unwrap(), &record()), "{}\n");
    let format = Format::text("[%REQ(X)%] [%UPSTREAM_HOST%] %RESPONSE_FLAGS%").unwrap().omit_empty(true);
    assert_eq!(rendered(&format, &record()), "[] [127.0.0.1:28301] -");
}

#[test]
fn texts_are_taken_literally() {
    let record = record();
    assert_eq!(text("", &record), "");
    assert_eq!(text("100%% of %BYTES_SENT%%%", &record), "100% of 10%");
    assert_eq!(text("%REQ(A)%x%REQ(B?:C):10%", &record), "-x-");
    assert_eq!(text("%START_TIME(%H:%M)%|%START_TIME(a)b)%", &record), "12:47|a)b");
    assert_eq!(text("%DURATION()%", &record), "51");
    assert_eq!(text("%ENVIRONMENT(HEADGATE_NO_SUCH)%%ENVIRONMENT(CARGO_PKG_EDITION_NOT):3%", &record), "--");
    let package = std::env::var("CARGO_PKG_NAME").unwrap();
    assert_eq!(text("%ENVIRONMENT(CARGO_PKG_NAME)%", &record), package);
    assert_eq!(text("%ENVIRONMENT(CARGO_PKG_NAME):1%", &record), package[..1]);
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(text("%HOSTNAME%", &record), host.trim_end());
    assert_eq!(text("%HEADGATE_RUNG%", &Record { rung: Rung::Tc, ..record }), "tc");
}

#[test]
fn ipv6_addresses() {
    let record = Record {
        client: address("[2001:db8::1]:5"),
        upstream: Some(address("[::1]:80")),
        upstream_local: Some(address("[::2]:81")),
        ..record()
    };
    let format = "%DOWNSTREAM_REMOTE_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% \
        %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(33)% %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(0)% \
        %UPSTREAM_HOST% %UPSTREAM_LOCAL_ADDRESS% %UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT%";
    assert_eq!(text(format, &record), "[2001:db8::1]:5 2001:db8::1 2001:db8::/33 ::/0 [::1]:80 [::2]:81 ::1");
}

#[test]
fn identifiers_are_uuids() {
    let record = record();
    let is_uuid = |id: &str| {
        let groups: Vec<usize> = id.split('-').map(str::len).collect();
        let digits = id.chars().all(|c| c == '-' || c.is_ascii_digit() || ('a'..='f').contains(&c));
        groups == [8, 4, 4, 4, 12] && digits && &id[14..15] == "4" && "89ab".contains(&id[19..20])
    };
    let stream = text("%STREAM_ID%", &record);
    assert!(is_uuid(&stream), "{stream}");
    assert_eq!(text("%STREAM_ID%", &Record { kind: Kind::Start, ..record.clone() }), stream);
    assert_ne!(text("%STREAM_ID%", &Record { id: 8, ..record.clone() }), stream);
    let unique = text("%UNIQUE_ID%", &record);
    assert!(is_uuid(&unique), "{unique}");
    assert_ne!(text("%UNIQUE_ID%", &record), unique);
}
