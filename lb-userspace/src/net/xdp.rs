//! What a device's driver offers to XDP, by the generic netlink family `netdev`
//! (`Documentation/netlink/specs/netdev.yaml`, Linux 6.3).

use std::io;

use anyhow::{Context, Result};
use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, Nla, NlasIterator, Parseable, ParseableParametrized,
};
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};
use netlink_sys::protocols::NETLINK_GENERIC;

use super::netlink::Netlink;

const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;

/// `enum netdev_xdp_act`. Some drivers offer what the present configuration allows: veth transmits
/// (`ndo_xmit`) only while its other end has a program or GRO.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XdpFeatures {
    /// A program can be attached in driver mode, and pass, drop, abort and transmit.
    pub basic: bool,
    /// A program may redirect what the device received.
    pub redirect: bool,
    /// The device can be the target of a redirect.
    pub ndo_xmit: bool,
    /// Packets in several buffers reach a program that can take them (`xdp.frags`).
    pub rx_sg: bool,
    /// The device can be the target of a redirect of packets in several buffers.
    pub ndo_xmit_sg: bool,
}

impl XdpFeatures {
    fn from_bits(bits: u64) -> Self {
        let has = |bit: u32| bits & (1 << bit) != 0;
        Self { basic: has(0), redirect: has(1), ndo_xmit: has(2), rx_sg: has(5), ndo_xmit_sg: has(6) }
    }
}

/// Asks for a device's features. `None` where the kernel is too old to say: attaching is the only test then.
pub async fn xdp_features(link: u32) -> Result<Option<XdpFeatures>> {
    try_xdp_features(link)
        .await
        .with_context(|| format!("cannot read the XDP features of link {link} through generic netlink"))
}

async fn try_xdp_features(link: u32) -> io::Result<Option<XdpFeatures>> {
    let mut netlink = Netlink::open(NETLINK_GENERIC)?;
    let Some(family) = family_id(&mut netlink).await? else { return Ok(None) };
    let attributes = vec![DefaultNla::new(NETDEV_A_DEV_IFINDEX, link.to_ne_bytes().to_vec())];
    let mut question = GenlMessage::from_payload(Netdev { command: NETDEV_CMD_DEV_GET, attributes });
    question.set_resolved_family_id(family);
    let answers = netlink.request(question, 0).await?;
    Ok(answers.iter().find_map(|answer| features(&answer.payload.attributes)))
}

fn features(attributes: &[DefaultNla]) -> Option<XdpFeatures> {
    let attribute = attributes.iter().find(|attribute| attribute.kind() == NETDEV_A_DEV_XDP_FEATURES)?;
    let mut value = vec![0; attribute.value_len()];
    attribute.emit_value(&mut value);
    Some(XdpFeatures::from_bits(u64::from_ne_bytes(value.try_into().ok()?)))
}

async fn family_id(netlink: &mut Netlink) -> io::Result<Option<u16>> {
    let question = GenlMessage::from_payload(GenlCtrl {
        cmd: GenlCtrlCmd::GetFamily,
        nlas: vec![GenlCtrlAttrs::FamilyName(Netdev::family_name().to_owned())],
    });
    match netlink.request(question, 0).await {
        Ok(answers) => {
            Ok(answers.iter().flat_map(|answer| &answer.payload.nlas).find_map(|attribute| match attribute {
                GenlCtrlAttrs::FamilyId(id) => Some(*id),
                _ => None,
            }))
        }
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A message of the family `netdev`.
#[derive(Clone, Debug)]
struct Netdev {
    command: u8,
    attributes: Vec<DefaultNla>,
}

impl GenlFamily for Netdev {
    fn family_name() -> &'static str {
        "netdev"
    }

    fn command(&self) -> u8 {
        self.command
    }

    fn version(&self) -> u8 {
        1
    }
}

impl Emitable for Netdev {
    fn buffer_len(&self) -> usize {
        self.attributes.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.attributes.as_slice().emit(buffer);
    }
}

impl ParseableParametrized<[u8], GenlHeader> for Netdev {
    fn parse_with_param(buffer: &[u8], header: GenlHeader) -> Result<Self, DecodeError> {
        let attributes = NlasIterator::new(buffer)
            .map(|attribute| DefaultNla::parse(&attribute?))
            .collect::<Result<_, DecodeError>>()?;
        Ok(Self { command: header.cmd, attributes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn feature_bits() {
        let all = XdpFeatures { basic: true, redirect: true, ndo_xmit: true, rx_sg: true, ndo_xmit_sg: true };
        assert_eq!(XdpFeatures::from_bits(0b110_0111), all);
        // Zero copy and hardware offload are of no use here.
        assert_eq!(XdpFeatures::from_bits(0b001_1000), XdpFeatures::default());
        assert_eq!(XdpFeatures::from_bits(1 << 5), XdpFeatures { rx_sg: true, ..XdpFeatures::default() });
    }
}
