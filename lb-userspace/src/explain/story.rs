//! From the steps of a decision to sentences.

use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};

use lb_common::balance::policy;
use lb_common::decide::Output;
use lb_common::flow::mark;
use lb_common::host::HostTables;
use lb_common::tables::{ServiceKey, Step, backend, service};
use lb_common::tcp::{self, is_closing};
use lb_common::{Action, Address, Env, Flow, Key, Reason, Rung, Segment, Tables, decide};

use super::overlay::{Overlay, Source};
use super::segment::next_segment;
use super::{Explanation, Names};
use crate::flows::{seconds_since, socket};
use crate::maps::{backend_address, describe_hop, fate_name, mac, policy_name};
use crate::table::{bytes, duration};

/// What is to be explained.
pub(super) struct Question<'q, A> {
    pub(super) key: Key<A>,
    pub(super) ingress: Option<u32>,
    /// The rung that sees the packet first. What XDP cannot do comes to TC.
    pub(super) first: Rung,
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub(super) now: u64,
    /// Name of an interface.
    pub(super) device: &'q dyn Fn(u32) -> String,
}

/// Decides, and tells how.
pub(super) fn tell<A, S>(source: &S, question: &Question<'_, A>, names: &Names<'_>) -> Explanation
where
    A: Address + Hash + Into<IpAddr>,
    S: Source<A>,
    HostTables: Tables<A>,
{
    let (segment, packet) = next_segment(source, question);
    let mut story = Story { source, question, names, explanation: Explanation::default() };
    story.explanation.packet = packet;
    story.explanation.interface = question.ingress.map(question.device);
    story.introduce(packet);
    if story.run(question.first, &segment) == Reason::TO_TC {
        story.run(Rung::Tc, &segment);
    }
    story.explanation
}

struct Story<'s, A, S> {
    source: &'s S,
    question: &'s Question<'s, A>,
    names: &'s Names<'s>,
    explanation: Explanation,
}

impl<A, S> Story<'_, A, S>
where
    A: Address + Hash + Into<IpAddr>,
    S: Source<A>,
    HostTables: Tables<A>,
{
    fn say(&mut self, sentence: impl Into<String>) {
        self.explanation.steps.push(sentence.into());
    }

    fn from(&self) -> SocketAddr {
        socket(self.question.key.source, self.question.key.source_port)
    }

    fn to(&self) -> SocketAddr {
        socket(self.question.key.destination, self.question.key.destination_port)
    }

    fn device(&self, index: u32) -> String {
        (self.question.device)(index)
    }

    fn introduce(&mut self, packet: &str) {
        let by = match self.question.ingress {
            Some(index) => format!("comes in by {}", self.device(index)),
            None => "comes in".to_owned(),
        };
        let article = if packet.starts_with('A') { "An" } else { "A" };
        let (from, to) = (self.from(), self.to());
        self.say(format!(
            "{article} {packet} from {from} to {to} {by}; {} sees it first.",
            self.question.first.name()
        ));
    }

    /// One rung's decision.
    fn run(&mut self, rung: Rung, segment: &Segment<A>) -> Reason {
        let overlay = Overlay::new(self.source, self.question.now);
        let env = Env::new(rung, self.question.ingress.unwrap_or(0), self.question.now);
        let verdict = decide(&env, segment, &overlay);
        let steps = overlay.take_steps();
        let sent = match verdict.action {
            Action::Forward(flow, output) => Some((*flow.get(), output)),
            Action::Answer | Action::Pass | Action::Drop => None,
        };
        // What TC finds after XDP's hand-over is what XDP found.
        if rung == self.question.first || verdict.reason == Reason::TO_TC {
            for step in &steps {
                self.tell_step(*step, sent.map(|(flow, _)| flow).as_ref());
            }
        } else {
            for step in steps.iter().filter(|step| matches!(step, Step::Port(..) | Step::HopToClient(_))) {
                self.tell_step(*step, sent.map(|(flow, _)| flow).as_ref());
            }
        }
        self.explanation.rung = Some(rung.name());
        self.explanation.verdict = fate_name(verdict.reason.fate());
        self.explanation.reason = verdict.reason.name();
        if let Some((flow, output)) = &sent {
            self.tell_rewrite(flow);
            self.tell_output(rung, segment, flow, output);
        }
        let not_served = steps.contains(&Step::NotServed);
        self.tell_verdict(rung, verdict.reason, not_served);
        verdict.reason
    }

    fn tell_step(&mut self, step: Step, sent: Option<&Flow<A>>) {
        let key = self.question.key;
        match step {
            Step::FoundEstablished => {
                if let Some(flow) = self.source.established(&key) {
                    self.tell_established(&flow);
                }
            }
            Step::FoundHalfOpen => {
                if let Some(flow) = self.source.half_open(&key) {
                    self.tell_half_open(&flow);
                }
            }
            Step::FoundTombstone => {
                let idle = self.source.half_open(&key).map_or(0.0, |flow| self.seconds_since(flow.last_seen));
                self.say(format!(
                    "A SYN from {} to {} was left to the proxy {} ago; what follows it goes the same way.",
                    self.from(),
                    self.to(),
                    duration(idle)
                ));
            }
            Step::FoundNothing => {
                self.say(format!("There is no flow from {} to {} yet.", self.from(), self.to()))
            }
            Step::ReplacesEnded => self.say("The flow that was there before has ended and makes room."),
            Step::Service(id, cluster) => self.tell_service(id, cluster),
            Step::NotServed => self.say(format!(
                "{} is no address that Headgate serves (`headgate maps dump services` lists those).",
                self.to()
            )),
            Step::Backend(slot, index) => self.tell_backend(slot, index),
            Step::HopToBackend(0) => self.say("There is no known way to that backend."),
            Step::HopToBackend(hop) => self.tell_hop("To the backend", hop),
            Step::HopToClient(hop) => self.tell_hop("Back to the client", hop),
            Step::Rerouted(0) => {
                self.say("The route that the flow was opened with has moved, and there is no other.");
            }
            Step::Rerouted(hop) => self
                .tell_hop("The route that the flow was opened with has moved. Back to the client now", hop),
            Step::Port(port, tries) => {
                let port = u16::from_be(port);
                let source = match sent {
                    Some(flow) => socket(flow.out.source, flow.out.source_port).to_string(),
                    None => format!("port {port}"),
                };
                let free = match tries {
                    0 => "the first one tried was free".to_owned(),
                    1 => "the first one tried was taken".to_owned(),
                    taken => format!("the first {taken} tried were taken"),
                };
                self.say(format!("SNAT: towards the backend the connection comes from {source} ({free})."));
            }
        }
    }

    fn seconds_since(&self, then: u64) -> f64 {
        seconds_since(then, self.question.now)
    }

    /// Client, VIP, SNAT and backend of a flow by either of its entries, whose key is the question's.
    fn ends(&self, flow: &Flow<A>) -> [SocketAddr; 4] {
        let key = self.question.key;
        let (arrives, leaves) =
            if flow.is_forward() { (key, flow.out) } else { (flow.out.reversed(), key.reversed()) };
        [
            socket(arrives.source, arrives.source_port),
            socket(arrives.destination, arrives.destination_port),
            socket(leaves.source, leaves.source_port),
            socket(leaves.destination, leaves.destination_port),
        ]
    }

    /// The flow by its ends, which are noted for scripts too.
    fn name_flow(&mut self, flow: &Flow<A>) -> String {
        let [client, vip, snat, backend] = self.ends(flow);
        self.note_ends(flow, snat, backend);
        let side = if flow.is_forward() {
            "This belongs to the flow"
        } else {
            "This is the backend's side of the flow"
        };
        let listener = self.explanation.listener.as_ref();
        let listener = listener.map_or_else(String::new, |name| format!(" (listener \"{name}\")"));
        format!("{side} from client {client} to {vip}{listener}, which goes from {snat} to backend {backend}")
    }

    fn note_ends(&mut self, flow: &Flow<A>, snat: SocketAddr, backend: SocketAddr) {
        self.explanation.snat = Some(snat);
        self.explanation.backend = Some(backend);
        self.explanation.service = Some(flow.service.into());
        self.explanation.listener = (self.names.listener)(flow.service.into());
    }

    fn tell_established(&mut self, flow: &Flow<A>) {
        let peer = self
            .source
            .established(&flow.out.reversed())
            .filter(|peer| peer.generation() == flow.generation());
        let state = flow.word | peer.map_or(0, |peer| peer.word);
        let last_seen = flow.last_seen.max(peer.map_or(0, |peer| peer.last_seen));
        let here = flow.payload_bytes();
        let there = peer.map_or(0, |peer| peer.payload_bytes());
        let (inwards, outwards) = if flow.is_forward() { (here, there) } else { (there, here) };
        let name = self.name_flow(flow);
        self.say(format!(
            "{name}. It is {}: opened {} ago by {}, last packet {} ago, {} from the client and {} to it.",
            if is_closing(state) { "closing (a new SYN would open another)" } else { "established" },
            duration(self.seconds_since(flow.opened_at())),
            flow.rung().name(),
            duration(self.seconds_since(last_seen)),
            bytes(inwards),
            bytes(outwards),
        ));
    }

    fn tell_half_open(&mut self, flow: &Flow<A>) {
        let forward =
            if flow.is_forward() { Some(*flow) } else { self.source.half_open(&flow.out.reversed()) };
        let answered = forward.is_some_and(|forward| forward.word & mark::ANSWERED != 0);
        let name = self.name_flow(flow);
        self.say(format!(
            "{name}. It is half open: attempt {}, {} ago by {}; the backend has {}.",
            flow.attempts,
            duration(self.seconds_since(flow.opened_at())),
            flow.rung().name(),
            if answered { "answered, the client's acknowledgement is missing" } else { "not answered yet" },
        ));
    }

    fn tell_service(&mut self, id: u32, cluster: u32) {
        self.explanation.service = Some(id);
        self.explanation.listener = (self.names.listener)(id);
        self.explanation.cluster = Some(cluster);
        let listener = match &self.explanation.listener {
            Some(name) => format!("listener \"{name}\" (service {id})"),
            None => format!("a served address (service {id})"),
        };
        let cluster_name = match (self.names.cluster)(cluster) {
            Some(name) => format!("cluster \"{name}\" ({cluster})"),
            None => format!("cluster {cluster}"),
        };
        let mut sentence = format!("{} is {listener}, {cluster_name}", self.to());
        if let Some(service) = self.source.service(&ServiceKey::of(&self.question.key)) {
            sentence += &format!(
                ", {}, at most {} attempt{} for a connection",
                policy_name(service.policy),
                service.attempts,
                if service.attempts == 1 { "" } else { "s" }
            );
            if service.flags & service::DRAINING != 0 {
                sentence += "; it is draining";
            }
        }
        self.say(sentence + ".");
    }

    fn tell_backend(&mut self, slot: u32, index: u32) {
        let service = self.source.service(&ServiceKey::of(&self.question.key));
        let how = match service.map(|service| (service.policy, service.cluster)) {
            Some((policy::ROUND_ROBIN, cluster)) => {
                let cursor = self.source.cursor(cluster);
                let slots = self.source.window(cluster).map_or(0, |window| window.count);
                format!("round_robin (CPU 0 is at position {cursor} of {slots}, other CPUs elsewhere)")
            }
            Some((policy::RANDOM, _)) => "a random slot, for instance".to_owned(),
            Some((policy::MAGLEV, _)) => "maglev, by the hash of addresses and ports".to_owned(),
            Some((policy::SOURCE_IP, _)) => "source_ip, by the hash of the client's address".to_owned(),
            _ => "the policy".to_owned(),
        };
        let backend = self.source.backend(index);
        let name = match backend.as_ref().and_then(backend_address) {
            Some(address) => format!("backend {address} ({index})"),
            None => format!("backend {index}, which is gone"),
        };
        let flags = backend.map_or(0, |backend| backend.flags);
        let note = if flags & backend::OUT != 0 {
            "; that takes no new connections: another draw"
        } else if flags & backend::PROXY_ONLY != 0 {
            "; only the proxy can reach that"
        } else {
            ""
        };
        self.say(format!("Choice: {how}: slot {slot} holds {name}{note}."));
    }

    fn tell_hop(&mut self, whither: &str, index: u32) {
        let now = self.question.now;
        let words = match self.source.next_hop(index) {
            Some(hop) => describe_hop(&hop, now, self.question.device),
            None => "the route is gone".to_owned(),
        };
        self.say(format!("{whither}: next hop {index}, {words}."));
    }

    fn tell_rewrite(&mut self, flow: &Flow<A>) {
        let from = socket(flow.out.source, flow.out.source_port);
        let to = socket(flow.out.destination, flow.out.destination_port);
        let [_, _, snat, backend] = self.ends(flow);
        self.note_ends(flow, snat, backend);
        self.explanation.leaves_from = Some(from);
        self.explanation.leaves_to = Some(to);
        let what = if flow.is_forward() { "to backend" } else { "to client" };
        self.say(format!("Rewrite: it leaves from {from} {what} {to}."));
    }

    fn tell_output(&mut self, rung: Rung, segment: &Segment<A>, flow: &Flow<A>, output: &Output<'_>) {
        let (index, way) = match (output, rung) {
            (Output::Neighbour(hop), _) => {
                (hop.device, "the kernel's neighbour table fills in the MAC address (bpf_redirect_neigh)")
            }
            (Output::Hop(hop), Rung::Xdp) if Some(hop.ifindex) == self.question.ingress => {
                (hop.ifindex, "back out of the interface it came in by (XDP_TX)")
            }
            (Output::Hop(hop), Rung::Xdp) => (hop.ifindex, "by redirect (XDP_REDIRECT)"),
            (Output::Hop(hop), Rung::Tc) => (hop.ifindex, "by redirect (bpf_redirect)"),
        };
        let device = self.device(index);
        let mut sentence = format!("Transmit: device {device}, {way}");
        if flow.is_learned() && matches!(output, Output::Hop(_)) {
            sentence += &format!(", to MAC {}, learned from the client's SYN", mac(flow.mac));
        }
        if segment.has(tcp::flags::SYN) {
            sentence += &format!("; its MSS is limited to {} bytes", flow.mss);
        }
        self.explanation.leaves_by = Some(device);
        self.say(sentence + ".");
    }

    fn tell_verdict(&mut self, rung: Rung, reason: Reason, not_served: bool) {
        let (name, help, rung) = (reason.name(), reason.help().trim_end_matches('.'), rung.name());
        let to = self.to();
        let sentence = match reason {
            Reason::TO_TC => {
                format!(
                    "{rung}: {help}. It hands the packet as it is to the TC program of the same interface."
                )
            }
            _ if not_served => format!(
                "Verdict: {name}, passed: the packet goes up to the network stack untouched, as if Headgate were not \
                 there."
            ),
            Reason::TABLE_FULL => {
                let (live, max) = (self.source.live(), self.source.settings().map_or(0, |s| s.max_flows));
                format!(
                    "Verdict: {name}, passed: {live} of {max} flows are in the table. {}",
                    served_by_the_proxy(to)
                )
            }
            _ if is_for_the_proxy(reason) => {
                format!("Verdict: {name}, passed: {help}. {}", served_by_the_proxy(to))
            }
            _ => match fate_name(reason.fate()) {
                "forwarded" => format!(
                    "Verdict: {name}, forwarded by {rung} on {}: {help}.",
                    self.explanation.leaves_by.as_deref().unwrap_or("?")
                ),
                fate => format!("Verdict: {name}, {fate} by {rung}: {help}."),
            },
        };
        self.say(sentence);
    }
}

/// Whether the proxy takes what passes up for this reason.
fn is_for_the_proxy(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::TOMBSTONE
            | Reason::DRAINING
            | Reason::NO_BACKEND
            | Reason::PROXY_BACKEND
            | Reason::NO_NEXT_HOP
            | Reason::NO_ROUTE
            | Reason::NO_PORT
    )
}

fn served_by_the_proxy(to: SocketAddr) -> String {
    format!("It goes up to the network stack, and the proxy that listens on {to} serves the connection.")
}
