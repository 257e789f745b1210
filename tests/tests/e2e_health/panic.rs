//! With too few healthy endpoints all are used, but for those that drain; or none, if the file wants it so.

use lb_tests::world::{Seen, exchange, number};

use crate::{CHECKED, Cluster, ECHO, LISTENER, PROBE, RUNGS, start, wait_state};

const ALL_USED: u16 = LISTENER;
const NONE_USED: u16 = LISTENER + 1;

#[test]
fn without_a_healthy_endpoint() {
    for (setup, family) in RUNGS {
        let keys = |threshold: u32| format!("panic_threshold: {threshold}, on_unhealthy: reset, {CHECKED}");
        let clusters = [
            Cluster::new("all", family, &[1, 2, 3], ECHO, &keys(50)),
            Cluster::new("none", family, &[1, 2, 3], ECHO + 1, &keys(0)),
        ];
        let mut world = start(setup, family, &clusters, &[]);
        assert_eq!(world.used(ALL_USED), [1, 2, 3]);
        let drained = world.backend(3, ECHO).to_string();
        world.agent.headgate(&["drain", &drained]).unwrap();
        assert!(!world.agent.headgate(&["status"]).unwrap().contains("PANIC"));
        let calm = world.stats_now();
        assert_eq!(number(&calm, "cluster.all.lb_healthy_panic"), 0);

        (1..=3).for_each(|backend| world.close(backend, PROBE));
        for (cluster, backend) in [("all", 1), ("all", 2), ("none", 1), ("none", 2), ("none", 3)] {
            wait_state(&world, cluster, backend, "unhealthy");
        }
        let status = world.agent.headgate(&["status"]).unwrap();
        assert!(status.starts_with("PANIC: 0 of 3 endpoints of cluster all are healthy"), "{status}");
        let gauge = |cluster: &str| format!("headgate_cluster_panic{{cluster=\"{cluster}\"}}");
        let page = world.page("/stats/prometheus");
        for (cluster, value) in [("all", 1), ("none", 0)] {
            let line = format!("{} {value}", gauge(cluster));
            assert!(page.lines().any(|of| of == line), "no {line} in {page}");
        }
        let mut held = world.open(ALL_USED);
        assert_eq!(world.used(ALL_USED), [1, 2], "what drains is not used");
        let stats = world.stats(|stats| number(stats, "cluster.all.lb_healthy_panic") >= 7);
        assert_eq!(number(&stats, "cluster.all.lb_healthy_panic"), 7);
        let line = "envoy_cluster_lb_healthy_panic{envoy_cluster_name=\"all\"} 7\n";
        assert!(world.page("/stats/prometheus").contains(line));
        for count in 1..=2 {
            assert_eq!(world.attempt(NONE_USED), Seen::Reset);
            let line = world.last_line(NONE_USED, count);
            assert_eq!(
                (&line["flags"], &line["why"]),
                (&"UH".into(), &"tcp_initializion_failure:1".into()),
                "{line}"
            );
        }

        (1..=3).for_each(|backend| world.listen(backend, PROBE));
        for (cluster, backend) in [("all", 1), ("all", 2), ("none", 1), ("none", 2), ("none", 3)] {
            wait_state(&world, cluster, backend, "healthy");
        }
        assert_eq!(world.used(NONE_USED), [1, 2, 3]);
        assert!(!world.agent.headgate(&["status"]).unwrap().contains("PANIC"));
        assert!(world.page("/stats/prometheus").contains(&format!("{} 0\n", gauge("all"))));
        // It was made when its backend was unhealthy already.
        exchange(&mut held, b"still there");
    }
}
