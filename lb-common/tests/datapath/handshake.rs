//! Handshakes that do not go by the book: lost and repeated SYNs, backends that refuse or remember an older
//! connection, late answers, and packets that only pretend to belong.

use crate::world::{BOTH, Connection, RUNGS, SECOND, World, client_packet};
use lb_common::balance::policy::{MAGLEV, RANDOM, ROUND_ROBIN, SOURCE_IP};
use lb_common::host_packets::PacketBuilder;
use lb_common::host_scenario::{client, vip};
use lb_common::table;
use lb_common::tcp::flags::{ACK, FIN, RST, SYN};
use lb_common::{Reason, V4};

fn worlds(backends: u32) -> impl Iterator<Item = (World, bool)> {
    RUNGS.into_iter().flat_map(move |rung| BOTH.map(|v6| (World::new(rung, ROUND_ROBIN, backends), v6)))
}

fn syn(v6: bool, isn: u32) -> PacketBuilder {
    client_packet(client(v6, 1)).flags(SYN).seq(isn)
}

/// Sends a SYN and takes the connection that it makes, which differs by backend or port from the one before.
#[track_caller]
fn open(world: &World, v6: bool, isn: u32, reason: Reason) -> Connection {
    world.open(client(v6, 1), isn, reason)
}

/// What a backend says that refuses.
fn refusal(connection: &Connection) -> PacketBuilder {
    connection.of_backend().seq(0).flags(RST)
}

#[test]
fn strays_pass_untouched() {
    for (world, v6) in worlds(1) {
        let before = world.state();
        for flags in [SYN | ACK, RST, RST | ACK, ACK, FIN, FIN | ACK, SYN | FIN, SYN | RST, 0] {
            world.on_client_side(&client_packet(client(v6, 1)).flags(flags).seq(1)).left(Reason::NO_FLOW);
        }
        // To a port, and an address, that are not served.
        let elsewhere = syn(v6, 1).between(client(v6, 1), (vip(v6).ip(), 81).into());
        world.on_client_side(&elsewhere).left(Reason::NO_FLOW);
        world.on_client_side(&syn(v6, 1).between(client(v6, 1), client(v6, 2))).left(Reason::NO_FLOW);
        assert_eq!(world.state(), before);
        // ECN bits make no difference to a SYN.
        world.on_client_side(&syn(v6, 1).flags(0xc0)).forwarded(Reason::NEW_FLOW);
    }
}

#[test]
fn a_repeated_syn_tries_other_backends_while_attempts_remain() {
    for policy in [ROUND_ROBIN, RANDOM, MAGLEV, SOURCE_IP] {
        for rung in RUNGS {
            for v6 in BOTH {
                let world = World::new(rung, policy, 50);
                let first = open(&world, v6, 10, Reason::NEW_FLOW);
                let second = open(&world, v6, 10, Reason::SYN_RETRIED);
                let third = open(&world, v6, 10, Reason::SYN_RETRIED);
                assert_ne!(first.backend, second.backend);
                assert_ne!(second.backend, third.backend);
                for _ in 0..3 {
                    world.client_sends(&third, syn(v6, 10), Reason::SYN_REPEATED);
                }
                // A late answer of an abandoned backend passes up, to be reset by the stack.
                for abandoned in [first, second] {
                    let late = abandoned.of_backend().flags(SYN).seq(abandoned.backend_isn);
                    world.on_backend_side(&late).left(Reason::ABANDONED);
                    world.on_backend_side(&refusal(&abandoned)).left(Reason::ABANDONED);
                }
                world.answer(&third);
                world.client_sends(&third, third.of_client(), Reason::ESTABLISHED);
                for abandoned in [first, second] {
                    let late = abandoned.of_backend().flags(SYN).seq(abandoned.backend_isn);
                    world.on_backend_side(&late).left(Reason::ABANDONED);
                }
                assert_eq!(world.live(v6), 1);
            }
        }
    }
}

#[test]
fn after_an_answer_the_backend_stays() {
    for (world, v6) in worlds(3) {
        let connection = open(&world, v6, 10, Reason::NEW_FLOW);
        world.answer(&connection);
        world.client_sends(&connection, syn(v6, 10), Reason::SYN_REPEATED);
        world.answer(&connection);
        world.client_sends(&connection, connection.of_client(), Reason::ESTABLISHED);
        // A repeated SYN-ACK, whose acknowledgement was lost behind us.
        let again = connection.of_backend().flags(SYN).seq(connection.backend_isn);
        world.backend_sends(&connection, again, Reason::REVERSE);
        world.client_sends(&connection, syn(v6, 10), Reason::FORWARD);
    }
}

#[test]
fn a_syn_with_payload_stays_with_its_backend() {
    for (world, v6) in worlds(3) {
        let early = syn(v6, 10).payload(b"early");
        let frame = world.on_client_side(&early).forwarded(Reason::NEW_FLOW);
        let connection = Connection::of_syn(client(v6, 1), 10, &frame);
        world.client_sends(&connection, syn(v6, 10), Reason::SYN_REPEATED);
        // Payload accepted or not, both are an answer.
        let syn_ack = connection.of_backend().flags(SYN).seq(connection.backend_isn);
        world.backend_sends(&connection, syn_ack.clone().ack(11), Reason::SYN_ACK);
        world.backend_sends(&connection, syn_ack.clone().ack(16), Reason::SYN_ACK);
        world.backend_sends(&connection, syn_ack.ack(17), Reason::CHALLENGE);
    }
}

#[test]
fn a_refusal_is_kept_from_the_client_while_attempts_remain() {
    for (world, v6) in worlds(5) {
        let first = open(&world, v6, 10, Reason::NEW_FLOW);
        let before = world.half_open(v6);
        world.on_backend_side(&refusal(&first)).left(Reason::REFUSED_RETRY);
        assert_eq!(world.half_open(v6), before);
        let second = open(&world, v6, 10, Reason::SYN_RETRIED);
        world.on_backend_side(&refusal(&second)).left(Reason::REFUSED_RETRY);
        let third = open(&world, v6, 10, Reason::SYN_RETRIED);
        world.backend_sends(&third, refusal(&third), Reason::HALF_OPEN_RESET);
        // A new connection has all attempts again.
        let first = open(&world, v6, 99, Reason::NEW_FLOW);
        world.on_backend_side(&refusal(&first)).left(Reason::REFUSED_RETRY);
    }
}

/// With nowhere else to go the attempts count all the same: in the end the client learns that it is refused.
#[test]
fn a_refusal_by_the_only_backend_reaches_the_client() {
    for policy in [ROUND_ROBIN, RANDOM, MAGLEV, SOURCE_IP] {
        for rung in RUNGS {
            for v6 in BOTH {
                let world = World::new(rung, policy, 1);
                let connection = open(&world, v6, 10, Reason::NEW_FLOW);
                world.on_backend_side(&refusal(&connection)).left(Reason::REFUSED_RETRY);
                world.client_sends(&connection, syn(v6, 10), Reason::SYN_REPEATED);
                world.on_backend_side(&refusal(&connection)).left(Reason::REFUSED_RETRY);
                world.client_sends(&connection, syn(v6, 10), Reason::SYN_REPEATED);
                world.backend_sends(&connection, refusal(&connection), Reason::HALF_OPEN_RESET);
            }
        }
    }
}

/// One attempt, as an imported Envoy file has it: a refusal is passed on at once.
#[test]
fn without_further_attempts_a_refusal_is_passed_on() {
    for (mut world, v6) in worlds(3) {
        world.tables.v4.services.values_mut().for_each(|service| service.attempts = 1);
        world.tables.v6.services.values_mut().for_each(|service| service.attempts = 1);
        let connection = open(&world, v6, 10, Reason::NEW_FLOW);
        world.client_sends(&connection, syn(v6, 10), Reason::SYN_REPEATED);
        world.backend_sends(&connection, refusal(&connection), Reason::HALF_OPEN_RESET);
    }
}

#[test]
fn a_reset_that_answers_no_syn_is_not_a_refusal() {
    for (world, v6) in worlds(3) {
        let connection = open(&world, v6, 10, Reason::NEW_FLOW);
        let before = world.state();
        for packet in [refusal(&connection).ack(10), refusal(&connection).ack(12)] {
            world.on_backend_side(&packet).left(Reason::NO_FLOW);
        }
        assert_eq!(world.state(), before);
        // Once it has answered, whatever it says goes to the client.
        world.answer(&connection);
        world.backend_sends(&connection, refusal(&connection).ack(500), Reason::HALF_OPEN_RESET);
    }
}

/// RFC 9293 section 3.10.7.4, and what Linux does: a backend in TIME_WAIT answers with the ACK of the old connection,
/// the client's RST ends it, the client's next SYN finds the backend ready.
#[test]
fn time_wait_at_the_backend_is_resolved() {
    for (world, v6) in worlds(3) {
        let connection = open(&world, v6, 10, Reason::NEW_FLOW);
        let challenge = connection.of_backend().seq(0x5000_0000).ack(0x6000_0000);
        world.backend_sends(&connection, challenge.clone(), Reason::CHALLENGE);
        // Not an answer to the SYN, but it counts: the backend lives, so the SYN goes there again.
        let reset = client_packet(connection.client).flags(RST).seq(0x6000_0000);
        world.client_sends(&connection, reset, Reason::HALF_OPEN_RESET);
        world.client_sends(&connection, syn(v6, 10), Reason::SYN_REPEATED);
        world.answer(&connection);
        world.client_sends(&connection, connection.of_client(), Reason::ESTABLISHED);
        assert_eq!(world.live(v6), 1);
    }
}

#[test]
fn only_the_reset_that_the_challenge_asks_for_is_relayed() {
    for (world, v6) in worlds(3) {
        let connection = open(&world, v6, 10, Reason::NEW_FLOW);
        let reset = |seq: u32| client_packet(connection.client).flags(RST).seq(seq);
        world.on_client_side(&reset(0x6000_0000)).left(Reason::NO_FLOW);
        world.backend_sends(&connection, connection.of_backend().seq(5).ack(0x6000_0000), Reason::CHALLENGE);
        world.on_client_side(&reset(0x6000_0001)).left(Reason::NO_FLOW);
        // The client's giving up.
        world.client_sends(&connection, reset(11), Reason::HALF_OPEN_RESET);
    }
}

#[test]
fn a_syn_with_another_number_is_another_connection() {
    for (world, v6) in worlds(3) {
        let old = open(&world, v6, 10, Reason::NEW_FLOW);
        world.answer(&old);
        let new = open(&world, v6, 11, Reason::NEW_FLOW);
        assert_ne!((old.backend, old.snat), (new.backend, new.snat));
        world.on_client_side(&old.of_client()).left(Reason::NO_FLOW);
        let late = old.of_backend().flags(SYN).seq(old.backend_isn);
        world.on_backend_side(&late).left(Reason::ABANDONED);
        world.answer(&new);
        world.client_sends(&new, new.of_client(), Reason::ESTABLISHED);
    }
}

#[test]
fn only_the_right_numbers_complete_a_handshake() {
    for (world, v6) in worlds(1) {
        let connection = open(&world, v6, 10, Reason::NEW_FLOW);
        // Before the backend answered nobody can know its number.
        world.on_client_side(&connection.of_client()).left(Reason::NO_FLOW);
        world.answer(&connection);
        let before = world.state();
        let ack = connection.backend_isn + 1;
        for (seq, ack) in [(10, ack), (11, ack - 1), (11, ack + (1 << 20)), (11 + (1 << 20), ack), (11, 0)] {
            world.on_client_side(&client_packet(connection.client).seq(seq).ack(ack)).left(Reason::NO_FLOW);
        }
        world.on_client_side(&client_packet(connection.client).seq(11).flags(FIN)).left(Reason::NO_FLOW);
        assert_eq!(world.state(), before);
        world.client_sends(&connection, connection.of_client(), Reason::ESTABLISHED);
    }
}

/// The proxy carries a connection whose tombstone has run out; somebody forges a SYN on its tuple.
#[test]
fn a_forged_syn_captures_nothing() {
    for (world, v6) in worlds(2) {
        let forged = open(&world, v6, 0x1111_1111, Reason::NEW_FLOW);
        world.answer(&forged);
        let proxied = client_packet(forged.client).seq(0x9000_0000).ack(0x7000_0000);
        for packet in [
            proxied.clone(),
            proxied.clone().payload(b"data"),
            proxied.clone().flags(FIN),
            proxied.clone().flags(RST),
            // The client's answer to the SYN-ACK that it did not ask for (RFC 5961 section 4).
            proxied.clone(),
        ] {
            world.on_client_side(&packet).left(Reason::NO_FLOW);
        }
        assert_eq!(world.established(v6), 0);
        // The forger, who cannot see the backend's number, does not get on either.
        world.on_client_side(&forged.of_client().ack(0x1234_5678)).left(Reason::NO_FLOW);
        assert_eq!(world.established(v6), 0);
    }
}

#[test]
fn a_handshake_expires() {
    for (mut world, v6) in worlds(2) {
        let old = open(&world, v6, 10, Reason::NEW_FLOW);
        world.wait(41);
        world.on_backend_side(&old.of_backend().flags(SYN).seq(old.backend_isn)).left(Reason::ABANDONED);
        world.on_client_side(&client_packet(old.client).flags(RST).seq(11)).left(Reason::NO_FLOW);
        // The same number again is a new connection by now.
        let new = open(&world, v6, 10, Reason::NEW_FLOW);
        world.answer(&new);
        world.client_sends(&new, new.of_client(), Reason::ESTABLISHED);
    }
}

/// Linux repeats a SYN after 1, 3, 7, 15, 31 and 63 s. A backend that comes up late is still heard.
#[test]
fn a_backend_may_answer_the_last_syn() {
    for (mut world, v6) in worlds(1) {
        let connection = open(&world, v6, 10, Reason::NEW_FLOW);
        let start = world.now;
        for second in [1, 3, 7, 15, 31, 63] {
            world.now = start + second * SECOND;
            world.client_sends(&connection, syn(v6, 10), Reason::SYN_REPEATED);
        }
        world.answer(&connection);
        world.client_sends(&connection, connection.of_client(), Reason::ESTABLISHED);
    }
}

#[test]
fn an_evicted_half_leaves_nothing_half_open() {
    for rung in RUNGS {
        // The reverse entry went: the client's ACK passes up, and the stack resets it.
        let world = World::new(rung, ROUND_ROBIN, 2);
        let connection = world.open(client(false, 1), 10, Reason::NEW_FLOW);
        world.answer(&connection);
        let reverse = entry(&world, true).key;
        world.tables.evict_half_open(&reverse);
        world.on_client_side(&connection.of_client()).left(Reason::ABANDONED);
        assert_eq!(world.established(false), 0);
        // A new SYN starts anew.
        world.connect(client(false, 1), 500);

        // The same, and another client has its port by now, which is still the other client's afterwards.
        let mut world = World::new(rung, ROUND_ROBIN, 1);
        world.tables.settings.snat_ports = 1;
        let connection = world.open(client(false, 1), 10, Reason::NEW_FLOW);
        world.answer(&connection);
        world.tables.evict_half_open(&entry(&world, true).key);
        let other = world.open(client(false, 2), 10, Reason::NEW_FLOW);
        assert_eq!(connection.snat, other.snat);
        world.on_client_side(&connection.of_client()).left(Reason::ABANDONED);
        world.answer(&other);
        world.client_sends(&other, other.of_client(), Reason::ESTABLISHED);

        // The forward entry went: so does the backend's answer.
        let world = World::new(rung, ROUND_ROBIN, 2);
        let connection = world.open(client(false, 1), 10, Reason::NEW_FLOW);
        let forward = entry(&world, false).key;
        world.tables.evict_half_open(&forward);
        world.on_backend_side(&connection.of_backend().flags(SYN).seq(0)).left(Reason::ABANDONED);
        world.on_client_side(&connection.of_client()).left(Reason::NO_FLOW);
        world.connect(client(false, 1), 10);
    }
}

fn entry(world: &World, reverse: bool) -> lb_common::Flow<V4> {
    let entries = world.tables.v4.half_open_entries();
    entries.into_iter().find(|flow| flow.is_forward() != reverse).expect("such an entry")
}

/// The reverse entry is reserved, but not where another flow, half-open or established, has it.
#[test]
fn a_port_belongs_to_one_flow() {
    for rung in RUNGS {
        let mut world = World::new(rung, ROUND_ROBIN, 1);
        world.tables.settings.snat_ports = 2;
        let first = world.connect(client(false, 1), 10);
        let second = world.open(client(false, 2), 10, Reason::NEW_FLOW);
        assert_ne!(first.snat, second.snat);
        let third = client_packet(client(false, 3)).flags(SYN).seq(10);
        world.on_client_side(&third).left(Reason::NO_PORT);
        assert!(table::find(&world.tables, &entry(&world, true).key).is_some());
        assert_eq!(world.half_open(false), 3, "two entries of the second, the tombstone of the third");
    }
}
