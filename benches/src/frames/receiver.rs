//! The end of a packet's way: `benches/ebpf/src/receive.rs`.

use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, MapData};
use aya::{Ebpf, EbpfLoader, Pod};
use lb_common::Rung;
use lb_common::host_packets::verify_checksums;
use lb_tests::netns::Namespace;

use super::attach_xdp;
use crate::driver::{OBJECT, load};

const PROGRAM: &str = "bench_receive";
/// Frames of which the headers are kept; Ethernet, IPv4 and TCP with an MSS option are in so many bytes.
const SAMPLES: u64 = 64;
const HEADERS: usize = 58;

/// `Received` of the program.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Received {
    right: u64,
    wrong: u64,
    destination: u32,
    mask: u32,
    destination_port: u32,
    zero: u32,
}

// SAFETY: integers only, no padding.
unsafe impl Pod for Received {}

/// Where packets should be addressed to when they arrive: a block of that many addresses, a power of two.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) first: SocketAddrV4,
    pub(crate) addresses: u32,
}

/// The program on an interface.
pub(crate) struct Receiver {
    /// Holds the attachment.
    _ebpf: Ebpf,
    received: Array<MapData, Received>,
    samples: Array<MapData, [u8; 64]>,
    wanted: Wanted,
}

impl Receiver {
    pub(crate) fn new(host: &Namespace, ifindex: u32, wanted: Wanted) -> Result<Self> {
        let mut ebpf = EbpfLoader::new().load(OBJECT)?;
        load(&mut ebpf, PROGRAM, Rung::Xdp)?;
        let mut take = |name: &str| ebpf.take_map(name).with_context(|| format!("no map {name}"));
        let (received, samples) = (take("RECEIVED")?.try_into()?, take("SAMPLE")?.try_into()?);
        attach_xdp(host, &mut ebpf, PROGRAM, ifindex)?;
        Ok(Self { _ebpf: ebpf, received, samples, wanted })
    }

    /// Counts from 0.
    pub(crate) fn begin(&mut self) -> Result<()> {
        let Wanted { first, addresses } = self.wanted;
        let received = Received {
            right: 0,
            wrong: 0,
            destination: u32::from_ne_bytes(first.ip().octets()),
            mask: (!(addresses - 1)).to_be(),
            destination_port: first.port().to_be().into(),
            zero: 0,
        };
        Ok(self.received.set(0, received, 0)?)
    }

    /// Frames that have come since, all of them as expected: waits a little for `packets`.
    pub(crate) fn end(&self, packets: u64) -> Result<u64> {
        let mut received = self.received.get(&0, 0)?;
        for _ in 0..20 {
            if received.right + received.wrong >= packets {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
            received = self.received.get(&0, 0)?;
        }
        ensure!(received.wrong == 0, "{} frames are not as expected: {:?}", received.wrong, self.wanted);
        for sample in self.samples(received.right)? {
            verify_checksums(&sample).map_err(anyhow::Error::msg)?;
        }
        Ok(received.right)
    }

    /// Headers of the first of so many frames.
    pub(crate) fn samples(&self, frames: u64) -> Result<Vec<Vec<u8>>> {
        (0..frames.min(SAMPLES) as u32).map(|at| Ok(self.samples.get(&at, 0)?[..HEADERS].to_vec())).collect()
    }
}
