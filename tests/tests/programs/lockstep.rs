//! The kernel's program and the host's code side by side, over tables in the same state.

use std::collections::BTreeMap;

use lb_common::host::{FamilyTables, Frame, HostTables, Result as HostResult, run};
use lb_common::host_packets::PacketBuilder;
use lb_common::parse::parse_link;
use lb_common::reason::Fate;
use lb_common::tables::{Tables, names};
use lb_common::{Env, Reason, Rung, V4, V6};
use lb_tests::maps;
use lb_tests::packet::answer_to;
use lb_tests::prog::{Bed, Device, Devices, coarse_now};
use lb_tests::sample;

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
const XDP_REDIRECT: u32 = 4;
const TC_ACT_UNSPEC: u32 = u32::MAX;
const TC_ACT_SHOT: u32 = 2;
const TC_ACT_REDIRECT: u32 = 7;

/// Both, and the tables.
pub(crate) struct Lockstep {
    pub(crate) bed: Bed,
    pub(crate) host: HostTables,
    /// On which rung packets run.
    pub(crate) rung: Rung,
    /// TC: payload bytes of each segment of the super-packets that come in; 0: they are none.
    pub(crate) gso_size: u32,
    /// How often each outcome was seen so far.
    pub(crate) seen: BTreeMap<&'static str, u32>,
}

/// What both agreed on.
#[derive(Debug)]
pub(crate) struct Agreed {
    pub(crate) reason: Reason,
    /// The interface that the packet leaves by.
    pub(crate) sent: Option<u32>,
    /// The frame afterwards, all its tags in it.
    pub(crate) frame: Vec<u8>,
}

/// Runs `work` once on each rung, with the sample tables.
pub(crate) fn on_each_rung(work: impl Fn(&mut Lockstep) + Sync) {
    Bed::run(sample::MAX_FLOWS, |bed| {
        let mut lockstep = Lockstep::new(bed);
        for rung in [Rung::Xdp, Rung::Tc] {
            lockstep.start(rung);
            work(&mut lockstep);
            lockstep.compare_tables();
        }
    });
}

impl Lockstep {
    pub(crate) fn new(bed: Bed) -> Self {
        let host = sample::tables(&bed.devices);
        Self { bed, host, rung: Rung::Xdp, gso_size: 0, seen: BTreeMap::new() }
    }

    /// Begins anew with the sample tables and no flows.
    pub(crate) fn start(&mut self, rung: Rung) {
        self.start_with(rung, sample::tables(&self.bed.devices));
    }

    /// Begins anew with these tables. Those of the flows become as large as the kernel's: each entry then has the
    /// same place, and has to give way to the same ones.
    pub(crate) fn start_with(&mut self, rung: Rung, mut tables: HostTables) {
        let max_flows = maps::max_flows(&self.bed.ebpf).expect("flow tables");
        tables.v4.resize(max_flows);
        tables.v6.resize(max_flows);
        maps::fill(&mut self.bed.ebpf, &tables).expect("the tables fit the maps");
        self.host = tables;
        self.rung = rung;
    }

    pub(crate) fn devices(&self) -> Devices {
        self.bed.devices
    }

    /// A segment that comes in by the clients' interface.
    pub(crate) fn client_sends(&mut self, segment: &PacketBuilder) -> Agreed {
        self.frame(self.devices().client, &segment.build().0)
    }

    /// A segment that comes in by the backends' interface.
    pub(crate) fn backend_sends(&mut self, segment: &PacketBuilder) -> Agreed {
        self.frame(self.devices().backend, &segment.build().0)
    }

    /// Any frame, made out to the interface that it comes in by. Panics where the two differ.
    pub(crate) fn frame(&mut self, ingress: Device, frame: &[u8]) -> Agreed {
        let mut frame = frame.to_vec();
        frame[..6].copy_from_slice(&ingress.mac);
        self.frame_as_it_is(ingress, &frame)
    }

    /// Any frame, whomever it is to.
    pub(crate) fn frame_as_it_is(&mut self, ingress: Device, frame: &[u8]) -> Agreed {
        let host = self.on_host(ingress, frame);
        let kernel = self
            .bed
            .super_packet(self.rung, ingress.ifindex, self.gso_size, frame)
            .expect("the kernel runs the program");
        let (action, reason) = self.wanted(ingress, &host);
        let context = || {
            format!(
                "{:?} on {:?}\nframe  {}\nhost   {host:?}\nkernel {kernel:?}",
                self.rung,
                ingress,
                hex(frame)
            )
        };
        assert_eq!(kernel.reasons, [(self.rung, reason, 1)], "counters: {}", context());
        assert_eq!(kernel.action, action, "action: {}", context());
        let bytes = self.wanted_bytes(frame, &host);
        assert_eq!(hex(&kernel.frame), hex(&bytes), "bytes: {}", context());
        assert_ne!(reason, Reason::REWRITE_FAILED, "{}", context());
        *self.seen.entry(reason.name()).or_default() += 1;
        Agreed { reason, sent: host.0.sent.map(|(ifindex, _)| ifindex), frame: host.1 }
    }

    /// Panics if the flow tables are not the same.
    pub(crate) fn compare_tables(&self) {
        let (ebpf, host) = (&self.bed.ebpf, &self.host);
        let v4 = maps::differences(ebpf, names::FLOWS4, &host.v4).expect("readable maps");
        let v6 = maps::differences(ebpf, names::FLOWS6, &host.v6).expect("readable maps");
        let live = maps::live(&self.bed.ebpf).expect("a readable map");
        let live = live.map(|live| live.opened.wrapping_sub(live.closed));
        assert_eq!(live, [Tables::<V4>::live(host), Tables::<V6>::live(host)], "flows that are counted");
        let active = host.active.lock().expect("no panic while locked");
        let active = active.iter().filter(|(_, active)| active.both != 0);
        let active: BTreeMap<u32, u64> = active.map(|(index, active)| (*index, active.both)).collect();
        assert_eq!(maps::active(ebpf).expect("a readable map"), active, "open connections");
        let told = [kinds(&host.v4), kinds(&host.v6)];
        assert_eq!(maps::events(ebpf).expect("a readable map"), told, "what the agent is told");
        let differences = [v4, v6].concat();
        assert!(
            differences.is_empty(),
            "flow tables differ after packets on {:?}:\n{}",
            self.rung,
            differences.join("\n")
        );
    }

    fn on_host(&self, ingress: Device, frame: &[u8]) -> (HostResult, Vec<u8>) {
        // On TC the kernel has said already whose the packet is.
        if self.rung == Rung::Tc && frame[..6] != ingress.mac {
            return (HostResult { reason: Reason::NOT_UNICAST, sent: None }, frame.to_vec());
        }
        let mut env = Env::new(self.rung, ingress.ifindex, coarse_now());
        env.gso_size = self.gso_size;
        let mut after = Frame(frame.to_vec());
        let result = run(&env, &mut after, &self.host);
        (result, after.0)
    }

    /// The action that the kernel has to take, and the reason.
    fn wanted(&self, ingress: Device, (result, _): &(HostResult, Vec<u8>)) -> (u32, Reason) {
        let reason = result.reason;
        assert_eq!(
            result.sent.is_some(),
            matches!(reason.fate(), Fate::Forwarded | Fate::Answered),
            "{reason:?} and {:?}",
            result.sent
        );
        let action = match (self.rung, result.sent, reason.fate()) {
            (Rung::Xdp, Some((out, _)), _) if out == ingress.ifindex => XDP_TX,
            // The host has no device map.
            (Rung::Xdp, Some((out, _)), _) if out == self.devices().unmapped.ifindex => {
                return (XDP_DROP, Reason::HOP_GONE);
            }
            (Rung::Xdp, Some(_), _) => XDP_REDIRECT,
            (Rung::Xdp, None, Fate::Dropped) => XDP_DROP,
            (Rung::Xdp, None, _) => XDP_PASS,
            (Rung::Tc, Some(_), _) => TC_ACT_REDIRECT,
            (Rung::Tc, None, Fate::Dropped) => TC_ACT_SHOT,
            (Rung::Tc, None, _) => TC_ACT_UNSPEC,
        };
        (action, reason)
    }

    /// The bytes that the kernel has to show: the host's, but an outer tag that TC pushes goes into the skb's metadata.
    fn wanted_bytes(&self, before: &[u8], (result, after): &(HostResult, Vec<u8>)) -> Vec<u8> {
        if self.rung == Rung::Xdp || result.sent.is_none() {
            return after.clone();
        }
        let tags =
            |frame: &[u8]| parse_link(&Frame(frame.to_vec())).expect("a frame that was forwarded").tags;
        // An answer's tags are taken off and put on again in any case.
        let kept = tags(before) == tags(after) && result.reason.fate() != Fate::Answered;
        if kept || tags(after).count == 0 {
            return after.clone();
        }
        [&after[..12], &after[16..]].concat()
    }
}

impl Agreed {
    /// A bare segment of whoever gets the frame, to whoever it seems to come from.
    pub(crate) fn answer(&self) -> PacketBuilder {
        assert!(self.sent.is_some(), "nobody gets the frame: {:?}", self.reason);
        answer_to(&self.frame)
    }
}

/// What the agent was told since the last call.
fn kinds<A>(of: &FamilyTables<A>) -> Vec<(u32, u32)> {
    let told = std::mem::take(&mut *of.events.lock().expect("no panic while locked"));
    told.iter().map(|event| (event.kind, event.by)).collect()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
