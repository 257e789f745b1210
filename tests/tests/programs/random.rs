//! Random frames, and random sequences of segments that know enough of the flows to reach deep into them.

use std::hash::Hash;
use std::net::IpAddr;

use lb_common::flow::Flow;
use lb_common::host::FamilyTables;
use lb_common::host_packets::{PacketBuilder, extension};
use lb_common::parse::Tags;
use lb_common::table::{WAYS, sets};
use lb_common::tables::names;
use lb_common::tcp::flags::{ACK, FIN, RST, SYN};
use lb_common::{Address, Reason, Rung, V4, V6};
use lb_tests::packet::{of_key, tagged};
use lb_tests::prog::{Bed, is_runnable};
use lb_tests::{maps, sample};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};

use crate::handshake::client;
use crate::lockstep::Lockstep;

/// Sequences of each rung, and steps of the longest.
const SEQUENCES: u32 = 150;
const STEPS: usize = 100;
/// Random frames of each rung.
const FRAMES: u32 = 3_000;

/// Outcomes that the sequences have to reach: each comes up dozens of times.
const REACHED: [Reason; 13] = [
    Reason::FORWARD,
    Reason::REVERSE,
    Reason::NEW_FLOW,
    Reason::SYN_REPEATED,
    Reason::SYN_RETRIED,
    Reason::SYN_ACK,
    Reason::ESTABLISHED,
    Reason::CHALLENGE,
    Reason::HALF_OPEN_RESET,
    Reason::NO_FLOW,
    Reason::ABANDONED,
    Reason::FRAGMENT,
    Reason::REFUSED_RETRY,
];

/// One step of a sequence. Numbers that choose among what there is are taken modulo how much there is.
#[derive(Clone, Debug)]
enum Step {
    /// A SYN of a client, or any other first segment.
    Open { v6: bool, network: u8, client: u16, port: u16, isn: u32, flags: u8 },
    /// A segment on an entry that exists, in either direction.
    On { v6: bool, entry: usize, seq: Number, ack: Number, flags: u8, odd: Odd, wrong_side: bool },
    /// A half-open entry vanishes, as it may when the table is full.
    Evict { v6: bool, entry: usize },
}

/// A sequence number, from what an entry knows.
#[derive(Clone, Copy, Debug)]
enum Number {
    /// Of this entry's own initial sequence number.
    Isn(u32),
    /// Of the other entry's.
    PeerIsn(u32),
    /// Of the end of what this direction sent.
    End(u32),
    Any(u32),
}

/// What is odd about a segment.
#[derive(Clone, Copy, Debug)]
enum Odd {
    Nothing,
    Payload(u8),
    Ttl(u8),
    Tag(u16),
    Fragment,
    Extension,
    Options(u8),
}

fn number() -> impl Strategy<Value = Number> {
    let near = || prop_oneof![4 => 0u32..3, 1 => 0u32..100, 1 => select(vec![u32::MAX, 1 << 20, 1 << 31])];
    prop_oneof![
        4 => near().prop_map(Number::Isn),
        4 => near().prop_map(Number::PeerIsn),
        3 => near().prop_map(Number::End),
        1 => any::<u32>().prop_map(Number::Any),
    ]
}

fn odd() -> impl Strategy<Value = Odd> {
    prop_oneof![
        12 => Just(Odd::Nothing),
        5 => any::<u8>().prop_map(Odd::Payload),
        1 => (0u8..3).prop_map(Odd::Ttl),
        1 => any::<u16>().prop_map(Odd::Tag),
        1 => Just(Odd::Fragment),
        1 => Just(Odd::Extension),
        1 => (0u8..40).prop_map(Odd::Options),
    ]
}

/// Flags and numbers of a segment: mostly what belongs at some point of a connection, sometimes any.
fn segment_fields() -> impl Strategy<Value = (u8, Number, Number)> {
    let proper = vec![
        (SYN, Number::Isn(0), Number::Any(0)),
        (SYN | ACK, Number::Any(5_000_000), Number::PeerIsn(1)),
        (SYN | ACK, Number::Any(5_000_000), Number::PeerIsn(1)),
        (ACK, Number::Isn(1), Number::PeerIsn(1)),
        (ACK, Number::End(0), Number::PeerIsn(1)),
        (ACK, Number::End(0), Number::PeerIsn(1)),
        (FIN | ACK, Number::End(0), Number::PeerIsn(1)),
        (RST, Number::End(0), Number::Any(0)),
        (RST | ACK, Number::Any(0), Number::PeerIsn(1)),
    ];
    let flags =
        prop_oneof![4 => select(vec![ACK, SYN | ACK, FIN | ACK, SYN, RST, RST | ACK]), 1 => any::<u8>()];
    prop_oneof![4 => select(proper), 1 => (flags, number(), number())]
}

/// A step; `opening` of some thirty open something.
fn step(opening: u32) -> impl Strategy<Value = Step> {
    use sample::{network, port};
    let networks = prop_oneof![
        8 => select(vec![network::LINK, network::ROUTER, network::VLAN, network::QINQ, network::ROUTER_QINQ]),
        1 => select(vec![network::GONE, network::NOWHERE]),
    ];
    let carried = vec![port::HAIRPIN, port::VLAN, port::QINQ, port::SERVICE_TAG];
    let ports = prop_oneof![4 => port::ROUND_ROBIN..=port::RANDOM, 2 => select(carried), 1 => port::ALL];
    let first = prop_oneof![9 => Just(SYN), 1 => any::<u8>()];
    let isn = prop_oneof![Just(1000u32), Just(u32::MAX), Just(70_000)];
    prop_oneof![
        opening => (any::<bool>(), networks, 1u16..3, ports, isn, first)
            .prop_map(|(v6, network, client, port, isn, flags)| Step::Open { v6, network, client, port, isn, flags }),
        30 => (any::<bool>(), any::<usize>(), segment_fields(), odd(), prop::bool::weighted(0.05)).prop_map(
            |(v6, entry, (flags, seq, ack), odd, wrong_side)| Step::On { v6, entry, seq, ack, flags, odd, wrong_side }
        ),
        1 => (any::<bool>(), any::<usize>()).prop_map(|(v6, entry)| Step::Evict { v6, entry }),
    ]
}

#[test]
fn random_sequences() {
    Bed::run(sample::MAX_FLOWS, |bed| {
        let mut world = Lockstep::new(bed);
        for rung in [Rung::Xdp, Rung::Tc] {
            world.seen.clear();
            check(SEQUENCES, prop::collection::vec(step(3), 1..STEPS), |steps| {
                world.start(rung);
                for step in steps {
                    take(&mut world, step);
                }
                world.compare_tables();
            });
            let expired = if rung == Rung::Xdp { Reason::TO_TC } else { Reason::TTL_ANSWERED };
            for reason in REACHED.into_iter().chain([expired]) {
                assert!(
                    world.seen.contains_key(reason.name()),
                    "{rung:?}: no {} in {:?}",
                    reason.name(),
                    world.seen
                );
            }
        }
    });
}

/// In tables for a fraction of the flows: most of what opens one takes the place of another.
#[test]
fn random_sequences_in_a_full_table() {
    const FLOWS: u32 = 8;
    Bed::run(FLOWS, |bed| {
        let mut world = Lockstep::new(bed);
        for rung in [Rung::Xdp, Rung::Tc] {
            let (mut overflowed, mut closed) = (0, 0);
            world.seen.clear();
            check(SEQUENCES, prop::collection::vec(step(20), STEPS..3 * STEPS), |steps| {
                world.start(rung);
                let opened = |world: &Lockstep| world.seen.get("new_flow").copied().unwrap_or_default();
                let before = opened(&world);
                for step in steps {
                    take(&mut world, step);
                }
                world.compare_tables();
                // Both families' tables together hold fewer.
                overflowed += u32::from(opened(&world) - before > sets(FLOWS) * WAYS as u32);
                let live = maps::live(&world.bed.ebpf).expect("a readable map");
                closed += live.iter().map(|live| live.closed).sum::<u64>();
            });
            assert!(overflowed > SEQUENCES / 2, "{rung:?}: {overflowed}");
            // Established flows that had ended gave way: nothing else counts them here.
            assert!(closed > 0, "{rung:?}");
            for reason in [Reason::FORWARD, Reason::REVERSE, Reason::ESTABLISHED] {
                assert!(world.seen.contains_key(reason.name()), "{rung:?}: {:?}", world.seen);
            }
        }
    });
}

#[test]
fn random_frames() {
    Bed::run(sample::MAX_FLOWS, |bed| {
        let mut world = Lockstep::new(bed);
        for rung in [Rung::Xdp, Rung::Tc] {
            world.start(rung);
            check(FRAMES, frame(), |frame| {
                if is_runnable(rung, &frame) {
                    world.frame(world.devices().client, &frame);
                }
            });
            world.compare_tables();
        }
    });
}

/// A SYN with some bytes of its headers replaced and its end cut off, or bytes alone.
fn frame() -> impl Strategy<Value = Vec<u8>> {
    let faults = prop::collection::vec((0usize..90, any::<u8>()), 0..4);
    let damaged = (any::<bool>(), 1u16..50, any::<bool>(), faults, 0usize..20).prop_map(
        |(v6, n, tagged, faults, cut)| {
            let network = if tagged { sample::network::QINQ } else { sample::network::LINK };
            let segment = client(v6, network, n, sample::port::MAGLEV).flags(SYN).seq(9).mss(1460);
            let mut frame = segment.build().0;
            for (at, value) in faults {
                if let Some(byte) = frame.get_mut(12 + at) {
                    *byte = value;
                }
            }
            frame.truncate(frame.len() - cut);
            frame
        },
    );
    let any_bytes = prop::collection::vec(any::<u8>(), 14..200).prop_map(|mut frame| {
        if frame[0] & 4 != 0 {
            let ethertype: [u8; 2] = if frame[0] & 8 != 0 { [8, 0] } else { [0x86, 0xdd] };
            frame[12..14].copy_from_slice(&ethertype);
        }
        frame
    });
    prop_oneof![3 => damaged, 1 => any_bytes]
}

/// Runs `test` on `cases` values. A panic of it is the failure, of which proptest seeks the smallest case.
fn check<S: Strategy>(cases: u32, strategy: S, test: impl FnMut(S::Value)) {
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 2_000, ..Config::default() };
    let test = std::cell::RefCell::new(test);
    let result = TestRunner::new(config).run(&strategy, |value| {
        // A panic leaves the guard behind; the next case begins anew anyway.
        let mut test = test.borrow_mut();
        let run = std::panic::AssertUnwindSafe(|| (*test)(value));
        std::panic::catch_unwind(run).map_err(|panic| {
            let reason = panic.downcast_ref::<String>().cloned();
            TestCaseError::fail(reason.unwrap_or_else(|| "a panic".to_owned()))
        })
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

fn take(world: &mut Lockstep, step: Step) {
    match step {
        Step::Open { v6, network, client: number, port, isn, flags } => {
            let segment = client(v6, network, number, port).flags(flags).seq(isn).mss(9000);
            world.client_sends(&segment);
        }
        Step::On { v6, entry, seq, ack, flags, odd, wrong_side } => {
            let found = if v6 {
                segment(&world.host.v6, entry, flags, seq, ack)
            } else {
                segment(&world.host.v4, entry, flags, seq, ack)
            };
            let Some((segment, forward)) = found else { return };
            let segment = change(segment, odd, v6);
            if forward != wrong_side {
                world.client_sends(&segment);
            } else {
                world.backend_sends(&segment);
            }
        }
        Step::Evict { v6: false, entry } => {
            let entries = sorted(world.host.v4.half_open_entries());
            let Some(Flow { key, .. }) = pick(&entries, entry) else { return };
            world.host.evict_half_open::<V4>(key);
            maps::evict_half_open(&world.bed.ebpf, names::FLOWS4, key).expect("an entry of both");
        }
        Step::Evict { v6: true, entry } => {
            let entries = sorted(world.host.v6.half_open_entries());
            let Some(Flow { key, .. }) = pick(&entries, entry) else { return };
            world.host.evict_half_open::<V6>(key);
            maps::evict_half_open(&world.bed.ebpf, names::FLOWS6, key).expect("an entry of both");
        }
    }
}

/// A segment on one of the family's entries, with the tags its sender has, and whether it is from a client.
fn segment<A>(
    tables: &FamilyTables<A>,
    entry: usize,
    flags: u8,
    seq: Number,
    ack: Number,
) -> Option<(PacketBuilder, bool)>
where
    A: Address + Hash,
    IpAddr: From<A>,
{
    let all = sorted([tables.established_entries(), tables.half_open_entries()].concat());
    let flows: Vec<_> = all.iter().filter(|flow| !flow.is_tombstone()).collect();
    let flow = pick(&flows, entry)?;
    // A half-open forward entry knows what the backend answered; else the other entry does.
    let peer = all.iter().find(|other| other.key == flow.out.reversed());
    let peer_isn = if flow.peer_isn != 0 { flow.peer_isn } else { peer.map_or(0, |peer| peer.isn) };
    let number = |number: Number| match number {
        Number::Isn(offset) => flow.isn.wrapping_add(offset),
        Number::PeerIsn(offset) => peer_isn.wrapping_add(offset),
        Number::End(offset) => (flow.end as u32).wrapping_add(offset),
        Number::Any(number) => number,
    };
    let tags =
        if flow.is_forward() { peer.map_or_else(Tags::default, |peer| peer.tags) } else { Tags::default() };
    let segment = tagged(of_key(&flow.key), tags).flags(flags).seq(number(seq));
    Some((if flags & ACK != 0 { segment.ack(number(ack)) } else { segment }, flow.is_forward()))
}

/// In an order that does not change from run to run.
fn sorted<A: Address>(mut entries: Vec<Flow<A>>) -> Vec<Flow<A>> {
    entries.sort_by_key(|Flow { key, .. }| {
        (key.source.to_words(), key.destination.to_words(), key.source_port, key.destination_port)
    });
    entries
}

fn pick<T>(list: &[T], number: usize) -> Option<&T> {
    list.get(number.checked_rem(list.len())?)
}

fn change(segment: PacketBuilder, odd: Odd, v6: bool) -> PacketBuilder {
    match odd {
        Odd::Nothing => segment,
        Odd::Payload(length) => segment.payload(&vec![length; length.into()]),
        Odd::Ttl(ttl) => segment.ttl(ttl),
        Odd::Tag(tci) => segment.untagged().tag(tci),
        Odd::Fragment => segment.fragment(0, true),
        Odd::Extension if v6 => {
            segment.extension(extension::HOP_BY_HOP, &[]).extension(extension::ROUTING, &[0, 0])
        }
        Odd::Extension => segment.ip_options(&[1; 6]),
        Odd::Options(length) => segment.tcp_options(&vec![length; length.into()]),
    }
}
