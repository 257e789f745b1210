//! Keys about the health of endpoints that proptest makes up.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::bootstraps::{duration, optional, text};

fn bytes() -> impl Strategy<Value = Value> {
    prop::collection::vec(any::<u8>(), 1..6).prop_map(|bytes| {
        let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        json!({ "text": digits })
    })
}

fn headers() -> impl Strategy<Value = Value> {
    let header = ("[a-c]", "[!-~]{1,3}", any::<bool>()).prop_map(|(key, value, append)| {
        json!({ "header": { "key": key, "value": value.replace('%', "%%") }, "append": append })
    });
    prop::collection::vec(header, 0..4).prop_map(Value::from)
}

fn probe() -> impl Strategy<Value = (&'static str, Value)> {
    let statuses = || {
        let range = (100_u16..599, 1_u16..50)
            .prop_map(|(start, more)| json!({ "start": start, "end": (start + more).min(600) }));
        prop::collection::vec(range, 0..3).prop_map(Value::from)
    };
    prop_oneof![
        (optional(bytes()), prop::collection::vec(bytes(), 0..3))
            .prop_map(|(send, receive)| ("tcp_health_check", json!({ "send": send, "receive": receive }))),
        (statuses(), statuses(), headers(), bytes(), optional((9_u64..9_000_000_000).prop_map(Value::from)))
            .prop_map(|(expected, retriable, headers, send, buffer)| (
                "http_health_check",
                json!({
                    "path": "/a?b=%20",
                    "response_buffer_size": buffer,
                    "receive": [send],
                    "method": "POST",
                    "send": send,
                    "expected_statuses": expected,
                    "retriable_statuses": retriable,
                    "request_headers_to_add": headers,
                })
            )),
        (text(), headers()).prop_map(|(service, headers)| (
            "grpc_health_check",
            json!({
                "service_name": service,
                "initial_metadata": headers,
            })
        )),
    ]
}

prop_compose! {
    fn health_check()(
        (interval, timeout) in (duration(), duration()),
        (unhealthy, healthy) in (1_u32..200, 1_u32..200),
        percent in 0_u32..2000,
        jitters in (optional(duration()), optional(duration())),
        no_traffic in (optional(duration()), optional(duration())),
        edges in (optional(duration()), optional(duration()), optional(duration())),
        (kind, probe) in probe(),
    ) -> Value {
        json!({
            "interval": interval,
            "timeout": timeout,
            "unhealthy_threshold": unhealthy,
            "healthy_threshold": healthy,
            "interval_jitter_percent": percent,
            "initial_jitter": jitters.0,
            "interval_jitter": jitters.1,
            "no_traffic_interval": no_traffic.0,
            "no_traffic_healthy_interval": no_traffic.1,
            "unhealthy_interval": edges.0,
            "unhealthy_edge_interval": edges.1,
            "healthy_edge_interval": edges.2,
            kind: probe,
        })
    }
}

prop_compose! {
    fn outlier()(
        numbers in prop::collection::vec(optional(any::<u32>().prop_map(Value::from)), 8),
        percents in prop::collection::vec(optional((0_u32..=100).prop_map(Value::from)), 9),
        flags in prop::collection::vec(any::<bool>(), 3),
        durations in (optional(duration()), optional(duration()), optional(duration())),
    ) -> Value {
        json!({
            "interval": durations.0,
            "base_ejection_time": durations.1,
            "max_ejection_time_jitter": durations.2,
            "split_external_local_origin_errors": flags[0],
            "always_eject_one_host": flags[1],
            "successful_active_health_check_uneject_host": flags[2],
            "consecutive_5xx": numbers[0],
            "consecutive_gateway_failure": numbers[1],
            "consecutive_local_origin_failure": numbers[2],
            "success_rate_minimum_hosts": numbers[3],
            "success_rate_request_volume": numbers[4],
            "success_rate_stdev_factor": numbers[5],
            "failure_percentage_minimum_hosts": numbers[6],
            "failure_percentage_request_volume": numbers[7],
            "max_ejection_percent": percents[0],
            "enforcing_consecutive_5xx": percents[1],
            "enforcing_consecutive_gateway_failure": percents[2],
            "enforcing_consecutive_local_origin_failure": percents[3],
            "enforcing_success_rate": percents[4],
            "enforcing_local_origin_success_rate": percents[5],
            "enforcing_failure_percentage": percents[6],
            "enforcing_failure_percentage_local_origin": percents[7],
            "failure_percentage_threshold": percents[8],
        })
    }
}

prop_compose! {
    /// The keys of a cluster about the health of its endpoints.
    pub(super) fn health()(
        checks in prop::collection::vec(health_check(), 0..2),
        outlier in optional(outlier()),
        panic in optional((0_u32..=1000).prop_map(|tenths| json!({ "value": f64::from(tenths) / 10.0 }))),
        (resets, ignores) in any::<(bool, bool)>(),
        window in optional(duration()),
        aggression in 1_u32..5000,
        weight in 0_u32..=100,
    ) -> Value {
        let slow_start = json!({
            "slow_start_window": window,
            "aggression": { "default_value": f64::from(aggression) / 1000.0 },
            "min_weight_percent": { "value": weight },
        });
        json!({
            "http2_protocol_options": {},
            "health_checks": checks,
            "outlier_detection": outlier,
            "common_lb_config": { "healthy_panic_threshold": panic },
            "close_connections_on_host_health_failure": resets,
            "ignore_health_on_host_removal": ignores,
            "round_robin_lb_config": { "slow_start_config": slow_start },
        })
    }
}
