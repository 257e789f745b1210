//! Formats that Envoy 1.40 refuses too, and what is said of them.

use serde_json::{Value, json};

use super::super::compile::{Compiled, compile};
use super::super::names::{PLAIN, SPECIAL, WITHOUT_VALUE, nearest};
use super::super::{Format, Source};
use super::{record, rendered};

fn error(format: &str) -> String {
    Format::text(format).unwrap_err().to_string()
}

#[test]
fn what_is_no_operator() {
    for (format, offset) in [
        ("%START_TIME(%", 0),
        ("%FOO", 0),
        ("%", 0),
        ("%duration%", 0),
        ("a%b", 1),
        ("%DURATION %", 0),
        ("% DURATION%", 0),
        ("%REQ(X):%", 0),
        ("%REQ(X):abc%", 0),
        ("%REQ(A):99999999999999999999999%", 0),
        ("%REQ(\n)%", 0),
        ("x%%%", 3),
        ("%%%", 2),
        ("%START_TIME(%H)%)%", 17),
        ("%START_TIME(%Y)", 0),
    ] {
        let error = error(format);
        let expected = format!("the `%` at offset {offset} begins no operator; write `%NAME%`,");
        assert!(error.starts_with(&expected), "{format}: {error}");
    }
}

#[test]
fn operators_that_do_not_exist_or_take_something_else() {
    for (format, expected) in [
        ("ab %DURATON%", "`%DURATON%` at offset 3 does not exist, did you mean `%DURATION%`?"),
        ("%UPSTREM_HOST%", "`%UPSTREM_HOST%` at offset 0 does not exist, did you mean `%UPSTREAM_HOST%`?"),
        ("%STARTTIME(%s)%", "`%STARTTIME(%s)%` at offset 0 does not exist, did you mean `%START_TIME%`?"),
        ("%FOO_BAR%", "`%FOO_BAR%` at offset 0 does not exist"),
        ("%CEL(x)%", "`%CEL(x)%` at offset 0 exists in Envoy and is not supported by Headgate"),
        ("%DURATION(x)%", "`%DURATION(x)%` at offset 0 takes neither parameters nor a length"),
        ("%PROTOCOL:3%", "`%PROTOCOL:3%` at offset 0 takes neither parameters nor a length"),
        ("%HOSTNAME(x)%", "`%HOSTNAME(x)%` at offset 0 takes neither parameters nor a length"),
        ("%START_TIME:5%", "`%START_TIME:5%` at offset 0 takes no length"),
        ("%REQ%", "`%REQ%` at offset 0 needs parameters in parentheses"),
        ("%ENVIRONMENT()%", "`%ENVIRONMENT()%` at offset 0 needs parameters in parentheses"),
        ("%REQ(A?B?C)%", "`%REQ(A?B?C)%` at offset 0 takes one alternative header, after a `?`"),
        ("%REQ(a b)%", "`%REQ(a b)%` at offset 0 takes the name of a header, in which there is no ' '"),
        (
            "%COMMON_DURATION(A:B:s)%",
            "`%COMMON_DURATION(A:B:s)%` at offset 0 takes one of the units ms, us, ns, not `s`",
        ),
        ("%PATH(X)%", "`%PATH(X)%` at offset 0 takes one of WQ, NQ, not `X`"),
        (
            "%START_TIME(%n)%",
            "`%START_TIME(%n)%` at offset 0 cannot be written: the time format has %n, a newline, which would break \
             the line",
        ),
    ] {
        assert_eq!(error(format), expected);
    }
    for format in [
        "%REQ(A)b)%",
        "%REQ(a:b)%",
        "%METADATA(FOO:a)%",
        "%METADATA(:a)%",
        "%METADATA%",
        "%FILTER_STATE(a:FOO)%",
        "%FILTER_STATE(a:FIELD)%",
        "%FILTER_STATE(a::x)%",
        "%FILTER_STATE(a:PLAIN:x)%",
        "%GRPC_STATUS(x)%",
        "%QUERY_PARAMS(ORIG:X)%",
        "%REQUESTED_SERVER_NAME(SNI_ONLY:FOO)%",
        "%COMMON_DURATION(A)%",
        "%COMMON_DURATION(A:B:)%",
        "%COMMON_DURATION(A:B:ms:x)%",
        "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(8):3%",
    ] {
        assert!(Format::text(format).is_err(), "{format}");
    }
}

#[test]
fn json_errors_name_the_member() {
    let error = |format: Value| Format::json(&format).unwrap_err().to_string();
    assert_eq!(
        error(json!({"a": {"b": ["x", {"c": "%DURATON%"}]}})),
        "a.b[1].c: `%DURATON%` at offset 0 does not exist, did you mean `%DURATION%`?"
    );
    assert_eq!(error(json!(["x"])), "a JSON format has to be an object");
    let mut deep = json!("x");
    for _ in 0..100 {
        deep = json!([deep]);
    }
    assert!(error(json!({"a": deep})).ends_with("is nested more than 64 levels deep"));
}

#[test]
fn long_formats_and_long_operators() {
    let operator = format!("%{}%", "X".repeat(60_000));
    assert!(error(&operator).len() < 300, "it is not quoted whole");
    assert_eq!(nearest(&"X".repeat(1 << 20)), None);
    let long = "x".repeat(100_000);
    assert_eq!(error(&long), "has 100000 bytes; up to 65536 are possible");
    let json = Format::json(&json!({"a": long})).unwrap_err().to_string();
    assert_eq!(json, "has 100008 bytes; up to 65536 are possible");
}

/// Pieces of operators in any order, so that many are right and many are nearly so.
#[test]
fn any_text_is_refused_or_makes_one_line_of_json() {
    const PIECES: [&str; 24] = [
        "%",
        "%",
        "(",
        ")",
        ":",
        "1",
        "9",
        "0",
        "*",
        "E",
        "-",
        "S",
        "f",
        "é",
        "\"",
        "\\",
        "\n",
        "\u{1}",
        "START_TIME",
        "DURATION",
        "REQ",
        "START_TIME(%",
        ")%",
        "%DURATION%",
    ];
    let mut random = fastrand::Rng::with_seed(1);
    let mut accepted = 0;
    for _ in 0..20_000 {
        let text: String = (0..random.usize(..12)).map(|_| PIECES[random.usize(..PIECES.len())]).collect();
        let Ok(format) = Format::json(&json!({ &text: "x", "value": &text })) else { continue };
        accepted += 1;
        let line = rendered(&format, &record());
        assert_eq!(line.find('\n'), Some(line.len() - 1), "{text:?}");
        let parsed: Value = serde_json::from_str(&line).unwrap();
        let value = &parsed["value"];
        assert!(parsed[&text] == "x" || text == "value");
        let alone = rendered(&Format::text(&text).unwrap(), &record());
        match value {
            Value::Number(number) => assert_eq!(alone, number.to_string()),
            Value::Null => assert_eq!(alone, "-"),
            value => assert_eq!(value, &json!(alone), "{text:?}"),
        }
    }
    assert!((2_000..18_000).contains(&accepted), "{accepted}");
}

#[test]
fn what_envoy_accepts() {
    for format in [
        "%START_TIME()%",
        "%START_TIME(%Q)%",
        "%START_TIME(a%)%",
        "%COMMON_DURATION(FOO:BAR:ms)%",
        "%COMMON_DURATION(A:)%",
        "%REQ(A?)%%REQ(?A)%%REQ(A):0%",
        "%REQ(a|b^c~`)%",
        "%METADATA(CLUSTER)%%METADATA(LISTENER_FILTER_CHAIN:a)%",
        "%FILTER_STATE(a:PLAIN)%%FILTER_STATE(a:FIELD:b)%%UPSTREAM_FILTER_STATE(x):3%",
        "%PATH%%PATH(NQ:PATH):4%%PATH(:ORIG)%%PATH(WQ:)%%QUERY_PARAMS(ORIG):3%%QUERY_PARAM(x)%",
        "%REQUESTED_SERVER_NAME(SNI_ONLY:ORIG)%%REQUESTED_SERVER_NAME(:ORIG)%",
        "%RESPONSE_CODE_DETAILS(ALLOW_WHITESPACES)%%GRPC_STATUS()%%GRPC_STATUS(NUMBER)%",
        "%UPSTREAM_PEER_CERT_V_START(%Y%)%%ENVIRONMENT(A(b))%",
    ] {
        assert!(Format::text(format).is_ok(), "{format}: {}", error(format));
    }
}

#[test]
fn every_name_is_known_once() {
    let plain = PLAIN.iter().map(|(name, _)| *name);
    let mut all: Vec<&str> =
        plain.chain(WITHOUT_VALUE.iter().copied()).chain(SPECIAL.iter().copied()).collect();
    for name in &all {
        let result = compile(name, "", None);
        let known = !matches!(&result, Err(error) if error.starts_with("does not exist"));
        assert!(known, "{name}");
        assert_eq!(nearest(name), Some(*name));
    }
    assert_eq!(
        compile("HEADGATE_RUNG", "", None).is_ok(),
        matches!(compile("HOSTNAME", "", None), Ok(Compiled::Text(_)))
    );
    let count = all.len();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), count);
}

#[test]
fn the_source_can_be_written_back() {
    assert_eq!(Format::envoy_default().source(), &Source::Default);
    let text = Format::text("%DURATION%\n").unwrap();
    assert_eq!(text.source(), &Source::Text("%DURATION%\n".to_owned()));
    assert_eq!(text, Format::text("%DURATION%\n").unwrap());
    assert_ne!(text, Format::text("%DURATION%\n").unwrap().omit_empty(true));
    let json = json!({"a": "%DURATION%"});
    assert_eq!(Format::json(&json).unwrap().source(), &Source::Json(json));
}
