//! What the client sends.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;
use lb_common::V4;
use lb_common::host_packets::packet;
use lb_common::tcp::flags::SYN;

use super::lane::Lane;
use super::subject::{FLOWS, Subject, world};
use crate::driver::{Driver, Sources};
use crate::flows::{BACKEND_ISN, ISN, key};
use crate::tuple::Pattern;
use crate::world::{NEIGHBOUR, World, client};

/// Flows of which little memory is touched.
pub(crate) const FEW: usize = 64;

/// A kind of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Traffic {
    /// Segments without payload of [`FLOWS`] flows, in random order.
    Established,
    /// The same of [`FEW`] of them, whose entries stay in the nearest cache.
    Few,
    /// SYNs, each from a source of its own.
    Flood,
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Established => "established",
            Self::Few => "established, few",
            Self::Flood => "SYN flood",
        })
    }
}

impl Traffic {
    /// What sends it through a subject.
    pub(crate) fn sender(self, lane: &Lane, subject: Subject) -> Result<Driver> {
        let destination = match subject {
            Subject::Forwarding => World::some_backend(false),
            _ => world().vip(false, 0),
        };
        let near = lane.devices.client.mac;
        match self {
            Self::Established | Self::Few => {
                let flows = if self == Self::Few { FEW } else { FLOWS };
                let segment = packet(client(false, 0), destination).macs(NEIGHBOUR, near);
                let (sequence, acknowledgement) = (ISN + 1, BACKEND_ISN + 1);
                let pattern = Pattern::new(false, &segment.seq(sequence).ack(acknowledgement));
                let mut clients: Vec<_> = (0..FLOWS as u32).map(|number| client(false, number)).collect();
                fastrand::Rng::with_seed(1).shuffle(&mut clients);
                let tuples: Vec<_> = clients
                    .into_iter()
                    .take(flows)
                    .map(|client| pattern.tuple(&key::<V4>(client, destination), sequence, acknowledgement))
                    .collect();
                let mut driver = Driver::sender(Sources::Listed, &pattern.frame, lane.c0, tuples.len())?;
                driver.set_tuples(&tuples)?;
                Ok(driver)
            }
            Self::Flood => {
                // The network of the clients and the upper half of the ports: no flow that is established has such a one.
                let base = SocketAddr::from((Ipv4Addr::new(198, 18, 0, 0), 0x8000));
                let syn = packet(base, destination).macs(NEIGHBOUR, near).flags(SYN).seq(ISN).mss(1460);
                let pattern = Pattern::new(false, &syn);
                let mut driver = Driver::sender(Sources::Random, &pattern.frame, lane.c0, 1)?;
                driver.set_tuples(&[pattern.first()])?;
                Ok(driver)
            }
        }
    }
}
