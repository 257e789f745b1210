//! Tables of another size over pinned maps, with no agent and nothing attached: needs root and a BPF file system.

use std::collections::BTreeMap;
use std::path::Path;

use lb_common::flow::{Flow, generation_at, mark};
use lb_common::host::empty_flow;
use lb_common::tables::Settings;
use lb_common::tcp::state;
use lb_common::{Address, Key, V4, V6};

use crate::datapath::bpffs;
use crate::datapath::contents::Step;
use crate::datapath::flow_table::FlowTable;
use crate::datapath::kernel::{Kernel, monotonic_now};
use crate::datapath::object::{self, FLOW_TABLES, Pins};
use crate::datapath::resize::{resize, resume};

/// The tests' own pins, which are taken away in any case.
struct Pinned(Pins);

impl Drop for Pinned {
    fn drop(&mut self) {
        self.0.remove().expect("the test's own pins");
    }
}

/// Maps for 4,096 flows, pinned.
fn pinned(name: &str) -> (Pinned, Kernel) {
    let root = format!("/sys/fs/bpf/headgate-test-resize-{name}-{}", std::process::id());
    bpffs::prepare(Path::new(&root)).unwrap();
    let pins = Pins::new(Path::new(&root));
    let mut kernel = Kernel::new(object::load(4096, 7, Some(&pins)).unwrap()).unwrap();
    kernel
        .apply(&Step::Settings(Settings { max_flows: 4096, snat_ports: 5, ..Settings::default() }))
        .unwrap();
    (Pinned(pins), kernel)
}

/// Both entries of a flow with these marks.
fn flow<A: Address>(number: u32, marks: u64, now: u64) -> [Flow<A>; 2] {
    let of = |last: u32| A::from_words([last.to_be(), 0, 0, 0]);
    let mut forward = empty_flow::<A>();
    forward.key = Key::new(of(0x0a01_0000 + number), of(0x0a00_0001), 40_000, 80);
    forward.out = Key::new(of(0x0a00_0001), of(0x0a00_0102), number as u16, 8080);
    forward.word = generation_at(now + u64::from(number) * 64) | marks;
    (forward.last_seen, forward.packets) = (now, u64::from(number));
    let mut reverse = forward;
    (reverse.key, reverse.out) = (forward.out.reversed(), forward.key.reversed());
    reverse.word |= mark::REVERSE;
    [forward, reverse]
}

fn fill<A: Address>(table: &FlowTable<A>, numbers: std::ops::Range<u32>, marks: u64) {
    let now = monotonic_now();
    let look = table.look();
    for entry in numbers.flat_map(|number| flow::<A>(number, marks, now)) {
        assert!(look.insert(&entry).unwrap());
    }
}

/// What is in a table, by word.
fn entries<A: Address>(table: &FlowTable<A>) -> BTreeMap<u64, u64> {
    table.entries().unwrap().iter().map(|flow| (flow.word, flow.packets)).collect()
}

fn require_no_next(pins: &Pins) {
    for name in FLOW_TABLES {
        assert!(!pins.next(name).exists() && pins.map(name).exists(), "{name}");
    }
}

#[test]
#[ignore = "needs root"]
fn entries_move_to_larger_and_smaller_tables() {
    let (pinned, mut kernel) = pinned("move");
    let pins = &pinned.0;
    fill(&kernel.v4.flows, 0..900, mark::ESTABLISHED);
    fill(&kernel.v4.flows, 900..1000, mark::ESTABLISHED | state::RESET);
    fill(&kernel.v4.flows, 1000..1010, mark::TOMBSTONE);
    fill(&kernel.v6.flows, 0..50, mark::ESTABLISHED);
    kernel.live.word(0, 0).store(5_000, std::sync::atomic::Ordering::Relaxed);
    let (before4, before6) = (entries(&kernel.v4.flows), entries(&kernel.v6.flows));
    for max_flows in [8192, 4096, 2048] {
        let resized = resize(pins, &[], max_flows).unwrap();
        assert!(resized.failed.is_empty());
        kernel.replace_tables(resized.loaded).unwrap();
        assert_eq!((kernel.v4.flows.max_flows(), kernel.v6.flows.max_flows()), (max_flows, max_flows));
        assert_eq!(object::pinned_tables(pins).unwrap(), Some((max_flows, 7)));
        assert_eq!(
            (entries(&kernel.v4.flows), entries(&kernel.v6.flows)),
            (before4.clone(), before6.clone())
        );
        let settings = crate::maps::read::PinnedMaps::open(pins).unwrap();
        let settings = settings.mapped::<Settings>(lb_common::tables::names::SETTINGS).unwrap().get(0);
        assert_eq!(settings, Settings { max_flows, snat_ports: 5, seed: 7, flags: 0 });
        assert_eq!(kernel.live_flows(0), 1000, "counted anew");
        require_no_next(pins);
    }
}

#[test]
#[ignore = "needs root"]
fn too_many_flows_stay_where_they_are() {
    let (pinned, kernel) = pinned("stay");
    let pins = &pinned.0;
    fill(&kernel.v4.flows, 0..1100, mark::ESTABLISHED);
    let before = entries(&kernel.v4.flows);
    let error = resize(pins, &[], 1024).err().unwrap().to_string();
    assert!(error.contains("1100 IPv4 flows are open"), "{error}");
    assert_eq!(object::pinned_tables(pins).unwrap(), Some((4096, 7)));
    assert_eq!(entries(&kernel.v4.flows), before);
    require_no_next(pins);
    // Ended ones may be left behind.
    for entry in kernel.v4.flows.entries().unwrap() {
        assert!(kernel.v4.flows.look().remove(&entry).unwrap());
    }
    fill(&kernel.v4.flows, 0..500, mark::ESTABLISHED);
    let live = entries(&kernel.v4.flows);
    fill(&kernel.v4.flows, 500..3500, mark::ESTABLISHED | state::RESET);
    let resized = Kernel::new(resize(pins, &[], 1024).unwrap().loaded).unwrap();
    let after = entries(&resized.v4.flows);
    assert!(live.iter().all(|(word, packets)| after.get(word) == Some(packets)));
}

/// An agent that died: before anything was copied, with one table renamed and the other not, with one table made.
#[test]
#[ignore = "needs root"]
fn what_was_left_half_way_is_completed() {
    let (pinned, kernel) = pinned("resume");
    let pins = &pinned.0;
    fill(&kernel.v4.flows, 0..300, mark::ESTABLISHED);
    fill(&kernel.v6.flows, 0..300, mark::ESTABLISHED);
    let before = (entries(&kernel.v4.flows), entries(&kernel.v6.flows));
    let all = |kernel: &Kernel| (entries::<V4>(&kernel.v4.flows), entries::<V6>(&kernel.v6.flows));
    assert!(resume(pins, &[]).unwrap().is_none());

    drop(object::load_beside(8192, 7, pins).unwrap());
    let resumed = Kernel::new(resume(pins, &[]).unwrap().unwrap().loaded).unwrap();
    assert_eq!((resumed.v4.flows.max_flows(), all(&resumed)), (8192, before.clone()));
    require_no_next(pins);

    let [flows4, flows6] = FLOW_TABLES;
    for (first, second) in [(flows4, flows6), (flows6, flows4)] {
        let max_flows = 2 * object::pinned_tables(pins).unwrap().unwrap().0;
        drop(object::load_beside(max_flows, 7, pins).unwrap());
        std::fs::rename(pins.next(first), pins.map(first)).unwrap();
        assert!(resume(pins, &[]).unwrap().is_none());
        require_no_next(pins);
        assert_eq!(object::pinned_tables(pins).unwrap(), Some((max_flows, 7)));

        drop(object::load_beside(2 * max_flows, 7, pins).unwrap());
        std::fs::remove_file(pins.next(second)).unwrap();
        assert!(resume(pins, &[]).unwrap().is_none());
        require_no_next(pins);
        assert_eq!(object::pinned_tables(pins).unwrap(), Some((max_flows, 7)));
    }
}
