//! The resolver: transports, servers, search, aliases, and answers that are wrong.

use std::time::Duration;

use super::*;
use crate::discovery::answer::{Answer, FailureKind, HostAnswer};
use crate::discovery::resolv_conf::ResolvConfFile;
use crate::discovery::resolver::{Families, Resolver};

const V4: Families = Families { v4: true, v6: false };
const BOTH: Families = Families { v4: true, v6: true };
const FAST: &str = "options timeout:1 attempts:1\n";

fn resolver(scratch: &Scratch, conf: &str, port: u16) -> Resolver {
    Resolver::new(ResolvConfFile::new(scratch.resolv_conf(conf)), port)
}

/// One lookup at one server.
async fn lookup(server: &FakeDns, host: &str, families: Families) -> HostAnswer {
    let scratch = Scratch::new();
    let conf = format!("nameserver 127.0.0.1\n{FAST}");
    resolver(&scratch, &conf, server.address.port()).lookup(host, families, None).await
}

fn addresses(answer: Option<&Answer>) -> Vec<String> {
    match answer {
        Some(Answer::Records { addresses, .. }) => addresses.iter().map(IpAddr::to_string).collect(),
        other => panic!("no records: {other:?}"),
    }
}

#[track_caller]
fn failed(answer: Option<&Answer>, kind: FailureKind, phrase: &str) {
    let Some(Answer::Failure(failure)) = answer else { panic!("no failure: {answer:?}") };
    assert_eq!(failure.kind, kind, "{failure:?}");
    assert!(failure.why.contains(phrase), "{failure:?}");
}

#[tokio::test]
async fn both_families_with_the_least_ttl() {
    let server = FakeDns::start(|query, over| {
        let all = [
            address_record("gw.test.", 30, "192.0.2.2"),
            address_record("gw.test.", 7, "192.0.2.1"),
            address_record("gw.test.", 30, "192.0.2.1"),
            address_record("gw.test.", 0, "2001:db8::1"),
        ];
        records(query, over, &all)
    })
    .await;
    let answer = lookup(&server, "gw.test.", BOTH).await;
    assert_eq!(addresses(answer.v4.as_ref()), ["192.0.2.1", "192.0.2.2"]);
    assert_eq!(addresses(answer.v6.as_ref()), ["2001:db8::1"]);
    assert!(matches!(answer.v4, Some(Answer::Records { ttl, .. }) if ttl == Duration::from_secs(7)));
    assert!(matches!(answer.v6, Some(Answer::Records { ttl, .. }) if ttl == Duration::ZERO));
    assert_eq!(answer.name.as_deref(), Some("gw.test."));
}

#[tokio::test]
async fn a_spoofed_id_and_question_are_passed_over() {
    let server = FakeDns::start(|query, over| {
        let evil =
            [address_record("gw.test.", 60, "203.0.113.66"), address_record("x.test.", 60, "203.0.113.66")];
        let mut wrong_id = response(query, ResponseCode::NoError, &evil);
        wrong_id.metadata.id = query.id.wrapping_add(1);
        let mut wrong_question = response(query, ResponseCode::NoError, &evil);
        wrong_question.queries[0].set_name(name("x.test."));
        let right = response(query, ResponseCode::NoError, &[address_record("gw.test.", 60, "192.0.2.1")]);
        let frame = |message: &Message| framed(&message.to_vec().unwrap(), over);
        Reaction::Bytes(vec![frame(&wrong_id), vec![1], Vec::new(), frame(&wrong_question), frame(&right)])
    })
    .await;
    assert_eq!(addresses(lookup(&server, "gw.test.", V4).await.v4.as_ref()), ["192.0.2.1"]);
}

#[tokio::test]
async fn truncation_leads_to_tcp_with_thousands_of_records() {
    let server = FakeDns::start(|query, over| match over {
        Over::Udp => {
            let mut message = response(query, ResponseCode::NoError, &[]);
            message.metadata.truncation = true;
            reply(&message, over)
        }
        Over::Tcp => {
            let many: Vec<Record> = (0..2500_u32)
                .map(|n| record("gw.test.", 60, RData::A(A(std::net::Ipv4Addr::from(0x0a00_0000 | n)))))
                .collect();
            records(query, over, &many)
        }
    })
    .await;
    let answer = lookup(&server, "gw.test.", V4).await;
    assert_eq!(addresses(answer.v4.as_ref()).len(), 2500);
    assert_eq!(server.asked().last().unwrap().2, Over::Tcp);
}

#[tokio::test]
async fn half_an_answer_over_tcp_is_a_failure() {
    let server = FakeDns::start(|query, over| {
        let mut message =
            response(query, ResponseCode::NoError, &[address_record("gw.test.", 60, "192.0.2.1")]);
        match over {
            Over::Udp => {
                message.metadata.truncation = true;
                reply(&message, over)
            }
            Over::Tcp => {
                let whole = framed(&message.to_vec().unwrap(), over);
                Reaction::Bytes(vec![whole[..whole.len() / 2].to_vec()])
            }
        }
    })
    .await;
    let answer = lookup(&server, "gw.test.", V4).await;
    assert!(matches!(answer.v4, Some(Answer::Failure(_))), "{answer:?}");
}

#[tokio::test]
async fn another_question_over_tcp_is_a_failure() {
    let server = FakeDns::start(|query, over| {
        let mut message =
            response(query, ResponseCode::NoError, &[address_record("gw.test.", 60, "192.0.2.1")]);
        match over {
            Over::Udp => message.metadata.truncation = true,
            Over::Tcp => {
                message.queries[0].set_name(name("x.test."));
            }
        }
        reply(&message, over)
    })
    .await;
    failed(lookup(&server, "gw.test.", V4).await.v4.as_ref(), FailureKind::Malformed, "another question");
}

#[tokio::test]
async fn garbage_is_a_failure() {
    let server = FakeDns::start(|query, _| {
        let mut garbage = vec![0xff; 200];
        garbage[..2].copy_from_slice(&query.id.to_be_bytes());
        Reaction::Bytes(vec![garbage])
    })
    .await;
    failed(lookup(&server, "gw.test.", V4).await.v4.as_ref(), FailureKind::Malformed, "no usable answer");
}

#[tokio::test]
async fn silence_is_a_timeout_that_names_the_server() {
    let server = FakeDns::start(|_, _| Reaction::Silence).await;
    let answer = lookup(&server, "gw.test.", V4).await;
    let phrase = format!("{} did not answer within 1s", server.address);
    failed(answer.v4.as_ref(), FailureKind::Timeout, &phrase);
}

#[tokio::test]
async fn negative_answers() {
    let server = FakeDns::start(|query, over| {
        let asked = query.queries[0].name().to_ascii();
        code(query, over, if asked == "none.test." { ResponseCode::NXDomain } else { ResponseCode::NoError })
    })
    .await;
    assert_eq!(lookup(&server, "none.test.", BOTH).await.v4, Some(Answer::NxDomain));
    let answer = lookup(&server, "empty.test.", BOTH).await;
    assert_eq!((answer.v4, answer.v6), (Some(Answer::NoData), Some(Answer::NoData)));
}

#[tokio::test]
async fn the_next_server_is_asked_where_one_fails() {
    for bad in [ResponseCode::ServFail, ResponseCode::Refused, ResponseCode::NotImp] {
        let first =
            FakeDns::start_at("127.0.0.2:0".parse().unwrap(), move |query, over| code(query, over, bad))
                .await;
        let port = first.address.port();
        let second = FakeDns::start_at(SocketAddr::new("127.0.0.3".parse().unwrap(), port), |query, over| {
            records(query, over, &[address_record("gw.test.", 60, "192.0.2.1")])
        })
        .await;
        let scratch = Scratch::new();
        let conf = format!("nameserver 127.0.0.2\nnameserver 127.0.0.3\n{FAST}");
        let answer = resolver(&scratch, &conf, port).lookup("gw.test.", V4, None).await;
        assert_eq!(addresses(answer.v4.as_ref()), ["192.0.2.1"], "{bad}");
        assert_eq!((first.asked().is_empty(), second.asked().len()), (false, 1));

        let conf = format!("nameserver 127.0.0.2\n{FAST}");
        let answer = resolver(&scratch, &conf, port).lookup("gw.test.", V4, None).await;
        let kind = if bad == ResponseCode::Refused { FailureKind::Refused } else { FailureKind::ServFail };
        failed(answer.v4.as_ref(), kind, "127.0.0.2");
    }
}

#[tokio::test]
async fn a_server_without_edns_is_asked_without_it() {
    let server = FakeDns::start(|query, over| {
        if query.edns.is_some() {
            return code(query, over, ResponseCode::FormErr);
        }
        records(query, over, &[address_record("gw.test.", 60, "192.0.2.1")])
    })
    .await;
    assert_eq!(addresses(lookup(&server, "gw.test.", V4).await.v4.as_ref()), ["192.0.2.1"]);
}

#[tokio::test]
async fn rotate_begins_at_another_server_each_time() {
    let answer = |query: &Message, over| records(query, over, &[address_record("gw.test.", 60, "192.0.2.1")]);
    let first = FakeDns::start_at("127.0.0.2:0".parse().unwrap(), answer).await;
    let port = first.address.port();
    let second = FakeDns::start_at(SocketAddr::new("127.0.0.3".parse().unwrap(), port), answer).await;
    let scratch = Scratch::new();
    let resolver = resolver(&scratch, "nameserver 127.0.0.2\nnameserver 127.0.0.3\noptions rotate\n", port);
    for _ in 0..4 {
        resolver.lookup("gw.test.", V4, None).await;
    }
    assert_eq!((first.asked().len(), second.asked().len()), (2, 2));
}

#[tokio::test]
async fn aliases_are_followed() {
    let server = FakeDns::start(|query, over| {
        let chain = match query.queries[0].name().to_ascii().as_str() {
            // Whole, out of order.
            "whole.test." => vec![
                address_record("end.test.", 60, "192.0.2.1"),
                alias("middle.test.", 5, "end.test."),
                alias("whole.test.", 9, "middle.test."),
            ],
            // In parts.
            "part.test." => vec![alias("part.test.", 9, "end.test.")],
            "end.test." => vec![address_record("END.test.", 60, "192.0.2.1")],
            other => panic!("asked for {other}"),
        };
        records(query, over, &chain)
    })
    .await;
    for (host, least) in [("whole.test.", 5), ("part.test.", 9)] {
        let answer = lookup(&server, host, V4).await.v4;
        assert_eq!(addresses(answer.as_ref()), ["192.0.2.1"]);
        assert!(matches!(answer, Some(Answer::Records { ttl, .. }) if ttl == Duration::from_secs(least)));
    }
}

#[tokio::test]
async fn alias_loops_are_failures() {
    let server = FakeDns::start(|query, over| {
        let asked = query.queries[0].name().to_ascii();
        let chain = match asked.as_str() {
            "one.test." => vec![alias("one.test.", 60, "two.test."), alias("two.test.", 60, "one.test.")],
            "self.test." => vec![alias("self.test.", 60, "self.test.")],
            "far.test." => vec![alias("far.test.", 60, "back.test.")],
            "back.test." => vec![alias("back.test.", 60, "far.test.")],
            // Without an end.
            long => vec![alias(long, 60, &format!("x{long}"))],
        };
        records(query, over, &chain)
    })
    .await;
    for host in ["one.test.", "self.test.", "far.test."] {
        failed(lookup(&server, host, V4).await.v4.as_ref(), FailureKind::Malformed, "a loop");
    }
    failed(lookup(&server, "x.test.", V4).await.v4.as_ref(), FailureKind::Malformed, "more than 16 aliases");
    assert!(server.asked().len() < 30);
}

#[tokio::test]
async fn wrong_records_are_no_answer() {
    let server = FakeDns::start(|query, over| {
        let answers = match query.queries[0].name().to_ascii().as_str() {
            "text.test." => vec![text("text.test.")],
            "other.test." => vec![address_record("unrelated.test.", 60, "203.0.113.66")],
            "zero.test." => vec![address_record("zero.test.", 60, "0.0.0.0")],
            "mixed.test." => vec![
                text("mixed.test."),
                address_record("mixed.test.", 60, "192.0.2.1"),
                address_record("mixed.test.", 60, "224.0.0.1"),
                address_record("unrelated.test.", 60, "203.0.113.66"),
            ],
            other => panic!("asked for {other}"),
        };
        records(query, over, &answers)
    })
    .await;
    for host in ["text.test.", "other.test."] {
        failed(lookup(&server, host, V4).await.v4.as_ref(), FailureKind::Malformed, "no A record of it");
    }
    failed(
        lookup(&server, "zero.test.", V4).await.v4.as_ref(),
        FailureKind::Malformed,
        "unspecified address",
    );
    let Some(Answer::Records { addresses, refused, .. }) = lookup(&server, "mixed.test.", V4).await.v4 else {
        panic!("records")
    };
    assert_eq!((addresses.len(), refused), (1, vec!["224.0.0.1".parse::<IpAddr>().unwrap()]));
}

/// `gw.b.test.` has addresses; `a.test` fails or not, as told.
async fn searched(
    known: Option<&str>,
    a_test: ResponseCode,
    b_test: ResponseCode,
) -> (HostAnswer, Vec<String>) {
    let server = FakeDns::start(move |query, over| match query.queries[0].name().to_ascii().as_str() {
        "gw.a.test." => code(query, over, a_test),
        "gw.b.test." if b_test == ResponseCode::NoError => {
            records(query, over, &[address_record("gw.b.test.", 60, "192.0.2.1")])
        }
        "gw.b.test." => code(query, over, b_test),
        _ => code(query, over, ResponseCode::NXDomain),
    })
    .await;
    let scratch = Scratch::new();
    let conf = format!("nameserver 127.0.0.1\nsearch a.test b.test\n{FAST}");
    let answer = resolver(&scratch, &conf, server.address.port()).lookup("gw", V4, known).await;
    let names = server.asked().into_iter().map(|(name, _, _)| name).collect();
    (answer, names)
}

#[tokio::test]
async fn the_search_list_is_gone_through() {
    let (answer, names) = searched(None, ResponseCode::NXDomain, ResponseCode::NoError).await;
    assert_eq!(addresses(answer.v4.as_ref()), ["192.0.2.1"]);
    assert_eq!(answer.name.as_deref(), Some("gw.b.test."));
    assert_eq!(names, ["gw.a.test.", "gw.b.test."]);
    let (answer, names) = searched(None, ResponseCode::NXDomain, ResponseCode::NXDomain).await;
    assert_eq!((answer.v4, names.len()), (Some(Answer::NxDomain), 3));
    // A name that exists without addresses says more than none.
    let (answer, _) = searched(None, ResponseCode::NoError, ResponseCode::NXDomain).await;
    assert_eq!(answer.v4, Some(Answer::NoData));
}

#[tokio::test]
async fn a_failure_in_the_search_list_is_not_forgotten() {
    let (answer, _) = searched(None, ResponseCode::ServFail, ResponseCode::NoError).await;
    assert_eq!(addresses(answer.v4.as_ref()), ["192.0.2.1"]);
    let (answer, names) = searched(None, ResponseCode::ServFail, ResponseCode::NXDomain).await;
    failed(answer.v4.as_ref(), FailureKind::ServFail, "SERVFAIL");
    assert_eq!(names.len(), 3);
    // The name that answered before fails: no other takes its place.
    let (answer, names) = searched(Some("gw.a.test."), ResponseCode::ServFail, ResponseCode::NoError).await;
    failed(answer.v4.as_ref(), FailureKind::ServFail, "SERVFAIL");
    assert_eq!(names, ["gw.a.test."]);
}

#[tokio::test]
async fn a_missing_file_means_this_host_and_is_said() {
    let server = FakeDns::start(|query, over| code(query, over, ResponseCode::ServFail)).await;
    let scratch = Scratch::new();
    let file = ResolvConfFile::new(scratch.0.join("missing"));
    let answer = Resolver::new(file, server.address.port()).lookup("gw", V4, None).await;
    failed(answer.v4.as_ref(), FailureKind::ServFail, "cannot be read");
}
