//! Random frames and random conversations: what holds for all of them.

use std::net::SocketAddr;

use lb_common::balance::policy::{MAGLEV, RANDOM, ROUND_ROBIN};
use lb_common::host::Frame;
use lb_common::host_packets::{PacketBuilder, extension, packet, verify_checksums};
use lb_common::host_scenario::{BACKEND_SIDE, CLIENT_SIDE, client};
use lb_common::reason::Fate;
use lb_common::tcp::flags::{ACK, FIN, RST, SYN};
use lb_common::tcp::{is_before, is_closing, lifetime, state, transition};
use lb_common::{Flow, Reason, Rung};
use proptest::prelude::*;

use crate::world::{Connection, SECOND, World, client_packet};

/// A packet of each kind that a flow may see.
fn some_packet(world: &World, v6: bool, kind: usize) -> PacketBuilder {
    let connection = world.connect(client(v6, 1), 1);
    let data = connection.of_client().payload(b"some payload, odd");
    match kind {
        0 => data,
        1 => data.ip_options(&[1, 1, 1, 1, 1]).extension(extension::HOP_BY_HOP, &[1, 4]),
        2 => data.tag(7).service_tag(9),
        3 => client_packet(client(v6, 2)).flags(SYN).mss(9000),
        4 => client_packet(client(v6, 2)).flags(SYN).tcp_options(&[1, 2, 4, 0xff, 0xff, 4, 2]),
        5 => data.fragment(0, false),
        _ => connection.of_client().flags(FIN | ACK),
    }
}

fn rung() -> impl Strategy<Value = Rung> {
    prop_oneof![Just(Rung::Xdp), Just(Rung::Tc)]
}

/// Checksums are right behind us exactly if they were right before, and what is not forwarded is not touched.
fn check_frame(world: &World, frame: Frame) -> Result<(), TestCaseError> {
    let right = verify_checksums(&frame.0);
    let outcome = world.receive(CLIENT_SIDE, frame);
    if outcome.reason.fate() == Fate::Forwarded {
        let after = verify_checksums(&outcome.frame.0);
        prop_assert_eq!(right.is_ok(), after.is_ok(), "{:?} and then {:?}", right, after);
    } else {
        outcome.left_any()?;
    }
    Ok(())
}

proptest! {
    #[test]
    fn noise(bytes in proptest::collection::vec(any::<u8>(), 0..200), rung in rung()) {
        check_frame(&World::new(rung, ROUND_ROBIN, 2), Frame(bytes))?;
    }

    #[test]
    fn packets_with_errors(
        kind in 0usize..7,
        v6 in any::<bool>(),
        rung in rung(),
        errors in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let world = World::new(rung, ROUND_ROBIN, 2);
        let mut frame = some_packet(&world, v6, kind).build();
        for (at, value) in errors {
            let at = at.index(frame.0.len());
            frame.0[at] = value;
        }
        if let Some(cut) = cut {
            let length = cut.index(frame.0.len());
            frame.0.truncate(length);
        }
        check_frame(&world, frame)?;
    }

    /// Addresses, ports and numbers of any value go through the arithmetic.
    #[test]
    fn any_numbers(
        v6 in any::<bool>(),
        rung in rung(),
        n in 0u16..20_000,
        isn in any::<u32>(),
        mss in any::<u16>(),
        ttl in 2u8..,
        payload in proptest::collection::vec(any::<u8>(), 0..64),
    ) {
        let world = World::new(rung, MAGLEV, 20);
        let client = client(v6, n);
        let syn = client_packet(client).flags(SYN).seq(isn).mss(mss).ttl(ttl);
        let frame = world.on_client_side(&syn).forwarded(Reason::NEW_FLOW);
        let connection = Connection::of_syn(client, isn, &frame);
        let clamped = mss.min(crate::world::clamp(v6));
        prop_assert_eq!(&frame, &connection.at_backend(&syn).mss(clamped).ttl(ttl - 1).build());
        let syn_ack = connection.of_backend().flags(SYN).seq(connection.backend_isn);
        world.backend_sends(&connection, syn_ack, Reason::SYN_ACK);
        world.client_sends(&connection, connection.of_client().payload(&payload), Reason::ESTABLISHED);
        world.backend_sends(&connection, connection.of_backend().payload(&payload), Reason::REVERSE);
    }
}

/// What a conversation does next.
#[derive(Clone, Debug)]
enum Event {
    Client {
        n: u16,
        flags: u8,
        seq: i32,
        ack: i32,
        payload: usize,
        ttl: u8,
    },
    /// Of the connection at this place among those that were opened.
    Backend {
        which: prop::sample::Index,
        flags: u8,
        seq: i32,
        ack: i32,
        payload: usize,
    },
    Wait(u64),
}

fn flags() -> impl Strategy<Value = u8> {
    prop_oneof![
        3 => Just(SYN),
        3 => Just(SYN | ACK),
        6 => Just(ACK),
        2 => Just(FIN | ACK),
        1 => Just(RST),
        1 => Just(RST | ACK),
        1 => any::<u8>(),
    ]
}

fn offset() -> impl Strategy<Value = i32> {
    prop_oneof![8 => Just(0), 2 => -2i32..3, 1 => any::<i32>()]
}

fn event() -> impl Strategy<Value = Event> {
    let ttl = prop_oneof![9 => Just(64u8), 1 => 0u8..3];
    let payload = prop_oneof![2 => Just(0usize), 1 => 1usize..100];
    prop_oneof![
        10 => (0u16..3, flags(), offset(), offset(), payload.clone(), ttl)
            .prop_map(|(n, flags, seq, ack, payload, ttl)| Event::Client { n, flags, seq, ack, payload, ttl }),
        10 => (any::<prop::sample::Index>(), flags(), offset(), offset(), payload)
            .prop_map(|(which, flags, seq, ack, payload)| Event::Backend { which, flags, seq, ack, payload }),
        1 => (1u64..50).prop_map(Event::Wait),
    ]
}

/// The newest connection of each client, and all that there ever were.
struct Talk {
    world: World,
    v6: bool,
    all: Vec<Connection>,
}

impl Talk {
    fn newest(&self, client: SocketAddr) -> Option<&Connection> {
        self.all.iter().rev().find(|connection| connection.client == client)
    }

    fn step(&mut self, event: Event) -> Result<(), TestCaseError> {
        match event {
            Event::Wait(seconds) => self.world.wait(seconds),
            Event::Client { n, flags, seq, ack, payload, ttl } => {
                let client = client(self.v6, n);
                let isn = 1_000 + n as u32;
                let (first, acknowledged) = match self.newest(client) {
                    Some(newest) if flags & SYN == 0 => (newest.isn + 1, newest.backend_isn + 1),
                    Some(newest) => (newest.isn, 0),
                    None => (isn, 0),
                };
                let mut packet = client_packet(client)
                    .seq(first.wrapping_add_signed(seq))
                    .payload(&vec![0x5a; payload])
                    .ttl(ttl);
                if flags & ACK != 0 {
                    packet = packet.ack(acknowledged.wrapping_add_signed(ack));
                }
                let packet = packet.flags(flags);
                let outcome = self.world.receive(CLIENT_SIDE, packet.build());
                if outcome.reason.fate() != Fate::Forwarded {
                    outcome.left_any()?;
                    return Ok(());
                }
                prop_assert!(ttl > 1);
                verify_checksums(&outcome.frame.0).map_err(TestCaseError::fail)?;
                let mut connection =
                    Connection::of_syn(client, first.wrapping_add_signed(seq), &outcome.frame);
                let expected = connection.at_backend(&packet).ttl(ttl - 1);
                prop_assert_eq!(&outcome.frame, &expected.build());
                let known = self.all.iter().rev().find(|known| {
                    (known.client, known.backend, known.snat) == (client, connection.backend, connection.snat)
                });
                match outcome.reason {
                    Reason::NEW_FLOW | Reason::SYN_RETRIED => self.all.push(connection),
                    // Only to where a SYN of this client went before.
                    _ => prop_assert!(known.is_some(), "{:?}", outcome.reason.name()),
                }
                // The way back: whatever the backend's answer is, the client alone gets it, from the VIP.
                connection.backend_isn = 77;
                let echo = connection.of_backend();
                let before = self.world.state();
                let reached = self.world.receive(BACKEND_SIDE, echo.clone().ttl(1).build());
                prop_assert!(reached.reason.fate() != Fate::Forwarded);
                prop_assert_eq!(self.world.state(), before, "an expired TTL changed something");
            }
            Event::Backend { which, flags, seq, ack, payload } => {
                if self.all.is_empty() {
                    return Ok(());
                }
                let connection = self.all[which.index(self.all.len())];
                let number = connection.backend_isn.wrapping_add((flags & SYN == 0) as u32);
                let mut packet = packet(connection.backend_address(), connection.snat)
                    .macs([2; 6], [2; 6])
                    .seq(number.wrapping_add_signed(seq))
                    .payload(&vec![0xa5; payload])
                    .flags(flags);
                if flags & ACK != 0 {
                    packet = packet.ack(connection.isn.wrapping_add(1).wrapping_add_signed(ack));
                }
                let outcome = self.world.receive(BACKEND_SIDE, packet.build());
                if outcome.reason.fate() != Fate::Forwarded {
                    outcome.left_any()?;
                    return Ok(());
                }
                // Of flows that took over this port one after the other the newest client gets it.
                let owner = self
                    .all
                    .iter()
                    .rev()
                    .find(|other| (other.backend, other.snat) == (connection.backend, connection.snat));
                let owner = owner.expect("itself, if no other");
                prop_assert_eq!(&outcome.frame, &owner.at_client(&packet).build());
            }
        }
        self.check()
    }

    fn check(&self) -> Result<(), TestCaseError> {
        fn reverse<A: lb_common::Address>(entries: Vec<Flow<A>>) -> Result<usize, TestCaseError> {
            for flow in &entries {
                if flow.is_forward() {
                    let peer = entries.iter().find(|other| other.key == flow.out.reversed());
                    let Some(peer) = peer else {
                        return Err(TestCaseError::fail("a forward entry without its reverse one"));
                    };
                    prop_assert_eq!(peer.generation(), flow.generation());
                    prop_assert!(peer.out.reversed() == flow.key);
                    // What the handshake left behind aside.
                    let state = flow.word & state::ALL & !state::CHALLENGED;
                    prop_assert_eq!(peer.word & state::ALL, state);
                }
                prop_assert!(!flow.is_tombstone());
            }
            Ok(entries.iter().filter(|flow| !flow.is_forward()).count())
        }
        let flows = if self.v6 {
            reverse(self.world.tables.v6.established_entries())?
        } else {
            reverse(self.world.tables.v4.established_entries())?
        };
        prop_assert_eq!(self.world.live(self.v6), flows as u64);
        let opened = self.world.tables.opened.lock().expect("no panic while locked");
        prop_assert_eq!(opened.values().map(|opened| opened.xdp + opened.tc).sum::<u64>(), flows as u64);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn conversations(
        events in proptest::collection::vec(event(), 1..80),
        v6 in any::<bool>(),
        rung in rung(),
        policy in prop_oneof![Just(ROUND_ROBIN), Just(RANDOM)],
        ports in 1u32..6,
    ) {
        let mut world = World::new(rung, policy, 3);
        world.tables.settings.snat_ports = ports;
        let mut talk = Talk { world, v6, all: Vec::new() };
        for event in events {
            talk.step(event)?;
        }
    }

    #[test]
    fn transitions(
        before in 0u64..16,
        from_client in any::<bool>(),
        flags in any::<u8>(),
        seq in any::<u32>(),
        seq_end in any::<u32>(),
        payload in 0u32..3,
    ) {
        let (set, clear) = transition(before, from_client, flags, seq, seq_end, payload);
        let after = before & !clear | set;
        prop_assert_eq!(set & clear, 0);
        prop_assert_eq!(clear & !state::RESET, 0, "a FIN is for good");
        if flags & RST != 0 {
            let near = seq.wrapping_sub(seq_end) as i32;
            prop_assert_eq!(set != 0, (-0xffff..=0xffff).contains(&near));
            prop_assert_eq!(set & !state::RESET, 0);
        } else {
            let fin = if from_client { state::CLIENT_FIN } else { state::BACKEND_FIN };
            prop_assert_eq!(set & fin != 0, flags & FIN != 0);
            let first = !from_client && flags & FIN != 0 && before & state::CLIENT_FIN == 0;
            prop_assert_eq!(set & state::BACKEND_FIN_FIRST != 0, first);
            prop_assert_eq!(after & state::RESET != 0, before & state::RESET != 0 && payload == 0);
        }
        const BOTH_FINS: u64 = state::CLIENT_FIN | state::BACKEND_FIN;
        prop_assert_eq!(is_closing(after), after & state::RESET != 0 || after & BOTH_FINS == BOTH_FINS);
        let idle = 3_600 * SECOND;
        let expected = match after {
            state if state & state::RESET != 0 => 10 * SECOND,
            state if !is_closing(state) => idle,
            state if state & state::BACKEND_FIN_FIRST != 0 => 60 * SECOND,
            _ => 10 * SECOND,
        };
        prop_assert_eq!(lifetime(after, idle), expected);
    }

    #[test]
    fn sequence_order(a in any::<u32>(), distance in 1u32..0x8000_0000) {
        prop_assert!(is_before(a, a.wrapping_add(distance)));
        prop_assert!(!is_before(a.wrapping_add(distance), a));
        prop_assert!(!is_before(a, a));
    }
}
