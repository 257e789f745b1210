//! Frames of 9,000 bytes.

use lb_tests::lan::{LB, Lan, Site, backends, vip};
use lb_tests::payload::Payload;
use lb_tests::scenario::Setup;
use lb_tests::topology::Family;

/// Of each transfer.
const MIB: u64 = 64;
const MTU: u32 = 9000;

#[test]
fn jumbo_frames_on_xdp() {
    jumbo_frames(Setup::Xdp);
}

#[test]
fn jumbo_frames_on_tc() {
    jumbo_frames(Setup::Tc);
}

fn jumbo_frames(setup: Setup) {
    let payload = Payload::random(MIB).unwrap();
    let lan = Lan::new(&["client", LB, "b1"]).unwrap();
    lan.network(0, (LB, "lc0"), ("client", "c0")).unwrap();
    lan.network(1, (LB, "lb1"), ("b1", "e0")).unwrap();
    let far_ends = [("client", "c0"), ("b1", "e0")];
    for end in far_ends.into_iter().chain([(LB, "lc0"), (LB, "lb1")]) {
        lan.mtu(end, MTU).unwrap();
    }
    lan.face_xdp(setup, &far_ends).unwrap();

    let site = Site::start(lan, setup, &["b1"], &backends(&[(1, 2)]), &payload).unwrap();
    site.require_rung(&["lc0", "lb1"], setup.rung()).unwrap();
    for family in Family::ALL {
        let before = frames(&site, "lb1");
        site.job("client", vip(family, 0), &["b1"], setup.rung(), &payload).unwrap();
        // Frames of 1,500 bytes would be six times as many.
        let frames = frames(&site, "lb1") - before;
        assert!(frames < 2 * payload.bytes / 4000, "{family}: {frames} frames for {} bytes", payload.bytes);
    }
    assert_eq!(site.agent.reason("to_tc").unwrap(), 0);
}

/// Frames that came in by a device of the balancer: data of the download, acknowledgements of the upload.
fn frames(site: &Site, device: &str) -> u64 {
    let text = site.lan[LB].ip(&["-j", "-s", "link", "show", "dev", device]).unwrap();
    let links: serde_json::Value = serde_json::from_str(&text).unwrap();
    links[0]["stats64"]["rx"]["packets"].as_u64().unwrap()
}
