//! L, the limit: a full NAT of a few lines with one look-up in a BPF LRU map (`benches/ebpf/src/limit.rs`).

use anyhow::{Context as _, Result, ensure};
use aya::maps::HashMap;
use aya::programs::ProgramFd;
use aya::{Ebpf, EbpfLoader, Pod};
use lb_common::parse::TCP;
use lb_common::{Address as _, Key, Rung, V4, checksum};
use lb_userspace::datapath::batch;

use crate::driver::{OBJECT, load};
use crate::entries::data;
use crate::flows::Opened;

const PROGRAM: &str = "bench_limit";
const MAP: &str = "LIMIT_FLOWS";

/// `Key` of the program: the 5-tuple in 16 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct FiveTuple {
    source: u32,
    destination: u32,
    ports: [u16; 2],
    protocol: u32,
}

// SAFETY: integers only, no padding.
unsafe impl Pod for FiveTuple {}

impl From<&Key<V4>> for FiveTuple {
    fn from(key: &Key<V4>) -> Self {
        Self {
            source: key.source.0,
            destination: key.destination.0,
            ports: [key.source_port, key.destination_port],
            protocol: TCP.into(),
        }
    }
}

/// `Nat` of the program.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Nat {
    source: u32,
    destination: u32,
    ports: [u16; 2],
    ip_delta: u32,
    tcp_delta: u32,
}

// SAFETY: integers only, no padding.
unsafe impl Pod for Nat {}

/// The program with a map of its own.
pub(crate) struct Limit {
    ebpf: Ebpf,
}

impl Limit {
    /// With both entries of each of these flows.
    pub(crate) fn new(flows: &[Opened<V4>]) -> Result<Self> {
        // Below a load that makes the LRU evict early; the half-open flows of the other programs have room as well.
        let room = (flows.len() * 5 / 2).max(4096);
        let mut ebpf = EbpfLoader::new().map_max_entries(MAP, room.try_into()?).load(OBJECT)?;
        load(&mut ebpf, PROGRAM, Rung::Xdp)?;
        let mut map: HashMap<_, FiveTuple, Nat> = ebpf.map_mut(MAP).context("no map of L")?.try_into()?;
        for flow in flows {
            map.insert(FiveTuple::from(&flow.forward), nat(&flow.forward, &flow.reverse.reversed()), 0)?;
            map.insert(FiveTuple::from(&flow.reverse), nat(&flow.reverse, &flow.forward.reversed()), 0)?;
        }
        let mut entries = 0;
        batch::for_each::<FiveTuple, Nat>(data(&ebpf, MAP)?, |_, _| entries += 1)?;
        ensure!(entries == 2 * flows.len(), "L has {entries} entries of {} flows", flows.len());
        Ok(Self { ebpf })
    }

    pub(crate) fn program(&self) -> Result<ProgramFd> {
        Ok(self.ebpf.program(PROGRAM).context("no L")?.fd()?.try_clone()?)
    }
}

fn nat(arrives: &Key<V4>, leaves: &Key<V4>) -> Nat {
    let addresses = |key: &Key<V4>| key.source.sum() + key.destination.sum();
    let ports = |key: &Key<V4>| u32::from(key.source_port) + u32::from(key.destination_port);
    let delta = checksum::delta(addresses(arrives), addresses(leaves));
    Nat {
        source: leaves.source.0,
        destination: leaves.destination.0,
        ports: [leaves.source_port, leaves.destination_port],
        ip_delta: u32::from(delta) + u32::from(checksum::TTL_DELTA),
        tcp_delta: u32::from(delta) + u32::from(checksum::delta(ports(arrives), ports(leaves))),
    }
}
