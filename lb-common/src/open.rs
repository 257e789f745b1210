//! A SYN to a served address that belongs to no flow yet.

use crate::address::Address;
use crate::balance::{self, policy};
use crate::decide::{Env, Output, Rung, Verdict};
use crate::established;
use crate::flow::{FlowRef, Key, generation_at, mark};
use crate::half_open;
use crate::parse::{Segment, TCP};
use crate::reason::Reason;
use crate::table::{self, inserted, which};
use crate::tables::{NextHop, Service, ServiceKey, Step, Tables, backend, hop, service};
use crate::work::Work;

/// SNAT ports that are tried before the SYN goes up to the proxy. At a table half full, 1 SYN in 65,536 fails.
///
/// Counted in 64 bits: the compiler may spill half a stack slot, and the verifier then forgets the count.
const PORT_PROBES: u64 = 16;
/// Draws for an attempt that should go to another backend than the one before.
const DRAWS: u32 = 4;

impl<A: Address> ServiceKey<A> {
    /// The service that a packet is addressed to.
    #[inline(always)]
    pub fn of(key: &Key<A>) -> Self {
        Self { address: key.destination, port: key.destination_port, protocol: [TCP, 0] }
    }
}

/// A segment of no flow that opens none.
#[inline(always)]
pub(crate) fn not_opening<'t, A: Address, T: Tables<A>>(
    segment: &Segment<A>,
    tables: &'t T,
) -> Verdict<'t, A> {
    // The rest of the packet passes up, but without this fragment the stack never has a segment to answer.
    if segment.fragment && tables.service(&ServiceKey::of(&segment.key)).is_some() {
        return Verdict::drop(Reason::FRAGMENT);
    }
    Verdict::pass(Reason::NO_FLOW)
}

/// Whether the connection may be tried at another backend.
#[inline(always)]
pub(crate) fn may_retry<A: Address, T: Tables<A>>(
    tables: &T,
    client_key: &Key<A>,
    forward: FlowRef<'_, A>,
) -> bool {
    match tables.service(&ServiceKey::of(client_key)) {
        // Payload in the SYN (TCP Fast Open) may have been delivered already: not to another backend.
        Some(service) => {
            forward.get().syn_payload == 0 && forward.get().attempts_made() < service.attempts as u64
        }
        None => false,
    }
}

/// What is asked of [`Tables::choose`].
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct Request {
    /// The service that the SYN is addressed to.
    pub service: Service,
    /// SYNs of this connection that were sent to backends before.
    pub attempts: u32,
    /// The backend of the last attempt.
    pub avoid: u32,
}

/// What [`Tables::choose`] answers.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct Choice {
    /// Index of the next hop to the backend.
    pub hop: u32,
    /// Whether to leave by the kernel's neighbour table.
    pub by_neighbour: u32,
    /// Index of the first of the backend's SNAT addresses.
    pub snat_first: u32,
    /// How many they are.
    pub snat_count: u32,
    /// Round_robin's next position.
    pub cursor: u32,
}

/// A choice was made; any other value of [`Tables::choose`] is the number of the reason why not.
const CHOSEN: u32 = 0xff;

/// Whether another CPU has just completed the handshake that this SYN is a copy from.
#[inline(always)]
fn is_live<A: Address>(segment: &Segment<A>, flow: FlowRef<'_, A>) -> bool {
    flow.seen() & mark::ESTABLISHED != 0 && !established::is_reused(segment, flow)
}

/// What [`Tables::open`] does: chooses a backend. `None`: that is done, and [`finish`] is to follow; else the SYN goes
/// another way.
#[inline(always)]
pub(crate) fn begin<'t, A: Address, T: Tables<A>>(
    tables: &'t T,
    work: &'t Work<A>,
) -> Option<Verdict<'t, A>> {
    let (segment, env) = (work.segment.get(), work.env.get());
    // What this SYN takes the place of: an earlier attempt, which it may go on from, or what has ended.
    let old = table::look_up(tables, &segment.key);
    if let Some(flow) = old
        && is_live(segment, flow)
    {
        return Some(Verdict::drop(Reason::SYN_RACED));
    }
    // Looked at here and not where it is needed: behind the next look-up the verifier of Linux 6.1 does not know any more
    // that there is an entry. A retransmission goes on counting; a SYN with another sequence number is a new connection.
    let (mut attempts, mut avoid, mut is_tombstone) = (0, 0, false);
    if let Some(entry) = old
        && is_attempt(env, entry)
    {
        is_tombstone = entry.seen() & mark::TOMBSTONE != 0;
        if entry.get().isn == segment.seq {
            attempts = entry.get().attempts_made() as u32;
            avoid = entry.get().backend as u32;
        }
    }
    let Some(service) = tables.service(&ServiceKey::of(&segment.key)) else {
        tables.note(Step::NotServed);
        return Some(Verdict::pass(Reason::NO_FLOW));
    };
    tables.note(Step::Service(service.id, service.cluster));
    if let Some(ended) = old
        && ended.get().is_established()
    {
        tables.note(Step::ReplacesEnded);
    }
    if segment.fragment {
        return Some(Verdict::drop(Reason::FRAGMENT));
    }
    if segment.ttl <= 1 {
        return Some(established::expired(env));
    }
    if is_tombstone {
        return Some(Verdict::pass(Reason::TOMBSTONE));
    }
    *work.request.get_mut() = Request { service, attempts, avoid };
    draw(tables, work, old)
}

/// The second half of [`begin`]: for the request in the work room.
#[inline(always)]
pub(crate) fn draw<'t, A: Address, T: Tables<A>>(
    tables: &'t T,
    work: &'t Work<A>,
    old: Option<FlowRef<'t, A>>,
) -> Option<Verdict<'t, A>> {
    let request = *work.request.get();
    let service = request.service;
    let draining = service.flags & service::DRAINING != 0;
    // Another CPU may just have made the last attempt.
    let drawing = !draining && (request.attempts == 0 || request.attempts < service.attempts as u32);
    let chosen = if drawing {
        tables.choose()
    } else if draining {
        Reason::DRAINING.number()
    } else {
        Reason::SYN_REPEATED.number()
    };
    if chosen == Reason::TO_TC.number() {
        return Some(Verdict::pass(Reason::TO_TC));
    }
    // What was drawn has had its turn, even if the SYN goes another way.
    if drawing && service.policy == policy::ROUND_ROBIN {
        tables.set_cursor(service.cluster, work.choice.get().cursor);
    }
    if chosen == CHOSEN { None } else { Some(not_opened(tables, work, old, Reason::from_number(chosen))) }
}

/// Whether an entry stands for an attempt that still counts, or for a SYN that went up.
#[inline(always)]
fn is_attempt<A: Address>(env: &Env, entry: FlowRef<'_, A>) -> bool {
    entry.seen() & mark::ESTABLISHED == 0 && !half_open::is_expired(env, entry)
}

/// What becomes of a SYN that no flow is opened for.
#[inline(always)]
fn not_opened<'t, A: Address, T: Tables<A>>(
    tables: &'t T,
    work: &'t Work<A>,
    old: Option<FlowRef<'t, A>>,
    reason: Reason,
) -> Verdict<'t, A> {
    let (segment, env) = (work.segment.get(), work.env.get());
    match old {
        // A SYN that was sent on before is not for the proxy: its backend may yet answer.
        Some(entry) if work.request.get().attempts > 0 => half_open::again(env, segment, tables, entry),
        _ => pass_up(tables, work, old, reason),
    }
}

/// What [`Tables::finish`] does: publishes the forward entry of the flow whose port was reserved, or finds another way for
/// the SYN.
#[inline(always)]
pub(crate) fn finish<'t, A: Address, T: Tables<A>>(
    tables: &'t T,
    work: &'t Work<A>,
    reserved: bool,
) -> Verdict<'t, A> {
    let segment = work.segment.get();
    let old = table::look_up(tables, &segment.key);
    if let Some(flow) = old
        && is_live(segment, flow)
    {
        if reserved {
            give_back(tables, work);
        }
        return Verdict::drop(Reason::SYN_RACED);
    }
    match publish(tables, work, old, reserved) {
        Ok(verdict) => verdict,
        Err(reason) => not_opened(tables, work, old, reason),
    }
}

/// The same where there was no entry when the packet was looked at.
#[inline(always)]
pub(crate) fn finish_fresh<'t, A: Address, T: Tables<A>>(
    tables: &'t T,
    work: &'t Work<A>,
    reserved: bool,
) -> Verdict<'t, A> {
    match publish(tables, work, None, reserved) {
        Ok(verdict) => verdict,
        Err(reason) => pass_up(tables, work, None, reason),
    }
}

/// Takes the reverse entry out again.
#[inline(always)]
fn give_back<A: Address, T: Tables<A>>(tables: &T, work: &Work<A>) {
    let reverse = work.reverse.get();
    let _ = table::remove(tables, &reverse.key, reverse.word, mark::GENERATION);
}

/// What [`Tables::choose`] does: draws a backend, finds the ways to it and back to the client, and prepares the
/// reverse entry for all that does not depend on the port. Changes nothing that others see.
#[inline(always)]
pub fn choose<A: Address, T: Tables<A>>(tables: &T) -> u32 {
    let Some(work) = tables.work() else { return Reason::TABLE_FULL.number() };
    match try_choose(tables, work) {
        Ok(()) => CHOSEN,
        Err(reason) => reason.number(),
    }
}

#[inline(always)]
fn try_choose<A: Address, T: Tables<A>>(tables: &T, work: &Work<A>) -> Result<(), Reason> {
    let (segment, env, request) = (work.segment.get(), work.env.get(), work.request.get());
    let service = &request.service;
    let mut cursor = tables.cursor(service.cluster);
    work.choice.get_mut().cursor = cursor;
    let Some(settings) = tables.settings() else { return Err(Reason::TABLE_FULL) };
    if tables.live() >= settings.max_flows as u64 {
        return Err(Reason::TABLE_FULL);
    }
    let Some(window) = tables.window(service.cluster) else { return Err(Reason::NO_BACKEND) };
    if window.count == 0 {
        return Err(Reason::NO_BACKEND);
    }
    let mut index = 0;
    let mut draws = 0;
    while draws < DRAWS {
        let attempt = request.attempts * DRAWS + draws;
        let is_random = service.policy == policy::RANDOM || service.policy == policy::LEAST_REQUEST;
        let random = if is_random { tables.random() } else { 0 };
        let position = balance::draw(service.policy, &segment.key, window.count, attempt, cursor, random);
        if service.policy == policy::ROUND_ROBIN {
            cursor = balance::advance(position, window.count);
        }
        let Some(drawn) = tables.slot(window.first + position) else { return Err(Reason::NO_BACKEND) };
        tables.note(Step::Backend(window.first + position, drawn));
        index = drawn;
        if drawn != request.avoid && !is_out(tables, drawn) {
            break;
        }
        draws += 1;
    }
    work.choice.get_mut().cursor = cursor;
    if draws == DRAWS {
        return Err(if request.attempts > 0 { Reason::SYN_REPEATED } else { Reason::NO_BACKEND });
    }
    // After the loop, whose ways the verifier would follow once more for each draw.
    if service.policy == policy::LEAST_REQUEST {
        let position = balance::scale(tables.random(), window.count);
        let Some(other) = tables.slot(window.first + position) else { return Err(Reason::NO_BACKEND) };
        if other != request.avoid
            && !is_out(tables, other)
            && tables.active(other) < tables.active(index)
            && cluster_of(tables, other) == cluster_of(tables, index)
        {
            tables.note(Step::Backend(window.first + position, other));
            index = other;
        }
    }
    let Some(backend) = tables.backend(index) else { return Err(Reason::NO_BACKEND) };
    if backend.flags & backend::USED == 0 {
        return Err(Reason::NO_BACKEND);
    }
    if backend.flags & backend::PROXY_ONLY != 0 || (backend.flags & backend::V6 != 0) != A::V6 {
        return Err(Reason::PROXY_BACKEND);
    }
    if tables.is_full(backend) {
        return Err(Reason::OVERFLOW);
    }
    tables.note(Step::HopToBackend(backend.hop));
    let Some(to_backend) = tables.next_hop(backend.hop) else { return Err(Reason::NO_NEXT_HOP) };
    let by_neighbour = match established::output(env, to_backend, false) {
        Ok(Output::Hop(_)) => 0,
        Ok(Output::Neighbour(_)) => 1,
        Err(Reason::TO_TC) => return Err(Reason::TO_TC),
        Err(_) => return Err(Reason::NO_NEXT_HOP),
    };
    let Some(hop_to_client) = tables.route(segment.key.source) else { return Err(Reason::NO_ROUTE) };
    tables.note(Step::HopToClient(hop_to_client));
    let Some(client) = tables.next_hop(hop_to_client) else { return Err(Reason::NO_ROUTE) };
    if client.flags & hop::USED == 0 {
        return Err(Reason::NO_ROUTE);
    }

    let reverse = work.reverse.get_mut();
    let word = generation_at(tables.precise_now()) | mark::REVERSE | by(env.rung);
    reverse.init(word, env.now, index, service.id, hop_to_client);
    reverse.mss = mss::<A>(to_backend, client);
    reverse.attempts = request.attempts as u16 + 1;
    reverse.out = segment.key.reversed();
    // On-link clients are answered at the MAC address they wrote from, if they came the way the route goes back.
    if client.flags & (hop::ON_LINK | hop::L3) == hop::ON_LINK
        && client.ifindex == env.ingress
        && client.tags.same_vlan(segment.link.tags)
    {
        reverse.word |= mark::LEARNED;
        reverse.mac = segment.link.source;
        reverse.tags = segment.link.tags;
    }
    reverse.key.source = A::load(&backend.address);
    reverse.key.source_port = backend.port;
    *work.choice.get_mut() = Choice {
        hop: backend.hop,
        by_neighbour,
        snat_first: backend.snat_first,
        snat_count: backend.snat_count,
        cursor,
    };
    Ok(())
}

/// Whether a backend takes no new flows.
#[inline(always)]
fn is_out<A: Address, T: Tables<A>>(tables: &T, backend: u32) -> bool {
    match tables.backend(backend) {
        Some(backend) => backend.flags & backend::OUT != 0,
        None => true,
    }
}

/// Of clusters that share a window by their weights each has its share, however busy it is.
#[inline(always)]
fn cluster_of<A: Address, T: Tables<A>>(tables: &T, backend: u32) -> u32 {
    match tables.backend(backend) {
        Some(backend) => backend.cluster,
        None => u32::MAX,
    }
}

/// The mark of the rung that carries the SYN.
#[inline(always)]
fn by(rung: Rung) -> u64 {
    match rung {
        Rung::Xdp => 0,
        Rung::Tc => mark::BY_TC,
    }
}

/// The largest segment that fits both ways out, bytes.
#[inline(always)]
fn mss<A: Address>(to_backend: &NextHop, to_client: &NextHop) -> u16 {
    let mtu = if to_backend.mtu < to_client.mtu { to_backend.mtu } else { to_client.mtu };
    let mss = mtu.saturating_sub(A::MIN_HEADERS as u32);
    if mss > u16::MAX as u32 { u16::MAX } else { mss as u16 }
}

/// What [`Tables::reserve_port`] does: publishes the prepared reverse entry under the first free key. The first change that
/// a SYN makes.
#[inline(always)]
pub fn reserve_port<A: Address, T: Tables<A>>(tables: &T) -> u32 {
    let Some(settings) = tables.settings() else { return 0 };
    let Some(work) = tables.work() else { return 0 };
    let reverse = work.reverse.get_mut();
    let Choice { snat_first, snat_count, .. } = *work.choice.get();
    let client = &work.segment.get().key;
    if settings.snat_ports == 0 || snat_count == 0 {
        return 0;
    }
    let ports = (client.source_port as u64) << 32 | (reverse.attempts as u64) << 48;
    let mut hash = balance::mix(client.source.mixed() ^ ports);
    let mut probe = 0u64;
    while probe < PORT_PROBES {
        let port_index = balance::scale(hash as u32, settings.snat_ports);
        let address_index = balance::scale((hash >> 32) as u32, snat_count);
        let Some(port) = tables.snat_port(port_index) else { return 0 };
        let Some(address) = tables.snat_address(snat_first + address_index) else { return 0 };
        reverse.key.destination = address;
        reverse.key.destination_port = port;
        reverse.set_deltas();
        if tables.insert(which::REVERSE) == inserted::DONE {
            tables.note(Step::Port(port, probe as u32));
            return 1;
        }
        hash = balance::mix(hash);
        probe += 1;
    }
    0
}

/// Publishes the forward entry; the reverse one is there already if it was `reserved`, since it holds the port. An error is
/// why the SYN opens no flow.
#[inline(always)]
fn publish<'t, A: Address, T: Tables<A>>(
    tables: &'t T,
    work: &'t Work<A>,
    old: Option<FlowRef<'t, A>>,
    reserved: bool,
) -> Result<Verdict<'t, A>, Reason> {
    if !reserved {
        return Err(Reason::NO_PORT);
    }
    let (segment, env) = (work.segment.get(), work.env.get());
    let (request, choice) = (work.request.get(), work.choice.get());
    let (forward, reverse) = (work.forward.get_mut(), work.reverse.get());
    let word = reverse.word & !(mark::REVERSE | mark::LEARNED);
    forward.init(word, env.now, reverse.backend as u32, reverse.service as u32, choice.hop);
    forward.key = segment.key;
    forward.mss = reverse.mss;
    forward.attempts = reverse.attempts;
    forward.out = reverse.key.reversed();
    forward.set_deltas();
    forward.isn = segment.seq;
    forward.end = segment.seq as u64 + 1 + segment.payload as u64;
    forward.syn_payload = segment.payload as u16;
    forward.packets = 1;
    let entry = FlowRef::from_mut(forward);

    let (old_word, old_backend) = match old {
        Some(old) => (old.seen(), old.get().backend as u32),
        None => (0, 0),
    };
    let published = match old {
        // Of two copies of this SYN, and of this and the backend's answer, one wins.
        Some(old) => {
            let answered = old.seen() & mark::ANSWERED != 0 && request.attempts > 0;
            if !answered && table::replace(tables, old, entry) { inserted::DONE } else { inserted::TAKEN }
        }
        None => tables.insert(which::FORWARD),
    };
    if published != inserted::DONE {
        give_back(tables, work);
        return if published == inserted::FULL {
            Err(Reason::TABLE_FULL)
        } else {
            Ok(Verdict::drop(Reason::SYN_RACED))
        };
    }
    if request.attempts > 0 && old_word & mark::ENDED == 0 {
        tables.count_failed(old_backend, true);
    }
    replaced(tables, old_word, old_backend);
    let Some(hop) = tables.next_hop(choice.hop) else { return Ok(Verdict::drop(Reason::HOP_GONE)) };
    let output = if choice.by_neighbour == 0 { Output::Hop(hop) } else { Output::Neighbour(hop) };
    let reason = if request.attempts == 0 { Reason::NEW_FLOW } else { Reason::SYN_RETRIED };
    Ok(Verdict::forward(reason, entry, output))
}

/// An entry in the work room that leaves the packets of the one there to the stack.
#[inline(always)]
pub(crate) fn tombstone<'t, A: Address, T: Tables<A>>(tables: &T, work: &'t Work<A>) -> FlowRef<'t, A> {
    let (segment, env, forward) = (work.segment.get(), work.env.get(), work.forward.get_mut());
    let word = generation_at(tables.precise_now()) | mark::TOMBSTONE | by(env.rung);
    forward.init(word, env.now, 0, 0, 0);
    forward.key = segment.key;
    FlowRef::from_mut(forward)
}

/// An entry gave way to another of its key: a flow whose two directions have ended without each other's knowledge is still
/// counted as open.
#[inline(always)]
fn replaced<A: Address, T: Tables<A>>(tables: &T, word: u64, backend: u32) {
    if word & (mark::ESTABLISHED | mark::ENDED) == mark::ESTABLISHED {
        tables.leave(backend);
    }
}

/// Leaves the SYN to the proxy, and its repetitions too.
#[inline(always)]
fn pass_up<'t, A: Address, T: Tables<A>>(
    tables: &'t T,
    work: &'t Work<A>,
    old: Option<FlowRef<'t, A>>,
    reason: Reason,
) -> Verdict<'t, A> {
    let tombstone = tombstone(tables, work);
    // Without room for it the SYN goes up all the same; only its repetition might not.
    let (word, backend) = match old {
        Some(old) => (old.seen(), old.get().backend as u32),
        None => (0, 0),
    };
    let marked = match old {
        Some(old) => table::replace(tables, old, tombstone),
        None => tables.insert(which::FORWARD) != inserted::TAKEN,
    };
    if marked {
        replaced(tables, word, backend);
    }
    // Another copy of it may be on its way to a backend.
    if marked { Verdict::pass(reason) } else { Verdict::drop(Reason::SYN_RACED) }
}
