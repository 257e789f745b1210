//! What the node's connection tracking knows of one TCP connection, through ctnetlink
//! (`<linux/netfilter/nfnetlink_conntrack.h>`).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Protocol, Tuple,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::netlink::Netlink;

/// Present in every network namespace once connection tracking is loaded.
const LOADED: &str = "/proc/sys/net/netfilter/nf_conntrack_max";

/// `NFNETLINK_V0`, the only version.
const NFNETLINK_V0: u8 = 0;

/// Who answers a connection that was opened from `source` to `destination`: the source of its reply direction.
/// `None` without an entry, and without connection tracking.
///
/// Fails with `PermissionDenied` without `CAP_NET_ADMIN`, and with `Unsupported` where connections are tracked
/// but not shown.
pub(super) async fn reply_source(
    source: SocketAddr,
    destination: SocketAddr,
) -> io::Result<Option<SocketAddr>> {
    if !Path::new(LOADED).exists() {
        return Ok(None);
    }
    match ask(source, destination).await {
        Ok(answers) => Ok(answers.iter().find_map(read_reply_source)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        // No such protocol, or no such part of it (`nfnetlink_rcv_msg`).
        Err(error) if matches!(error.raw_os_error(), Some(libc::EPROTONOSUPPORT | libc::EINVAL)) => {
            Err(io::ErrorKind::Unsupported.into())
        }
        Err(error) => Err(error),
    }
}

async fn ask(source: SocketAddr, destination: SocketAddr) -> io::Result<Vec<NetfilterMessage>> {
    let mut netlink = Netlink::open(NETLINK_NETFILTER)?;
    netlink.request(question(source, destination), 0).await
}

fn question(source: SocketAddr, destination: SocketAddr) -> NetfilterMessage {
    let family = if source.is_ipv4() { NetfilterProtoFamily::IPv4 } else { NetfilterProtoFamily::IPv6 };
    let original = ConntrackAttribute::CtaTupleOrig(vec![
        Tuple::Ip(vec![IPTuple::SourceAddress(source.ip()), IPTuple::DestinationAddress(destination.ip())]),
        Tuple::Proto(vec![
            ProtoTuple::Protocol(Protocol::Tcp),
            ProtoTuple::SourcePort(source.port()),
            ProtoTuple::DestinationPort(destination.port()),
        ]),
    ]);
    NetfilterMessage::new(
        NetfilterHeader::new(family, NFNETLINK_V0, 0),
        ConntrackMessage::Get(vec![original]),
    )
}

fn read_reply_source(answer: &NetfilterMessage) -> Option<SocketAddr> {
    let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = &answer.inner else {
        return None;
    };
    let reply = attributes.iter().find_map(|attribute| match attribute {
        ConntrackAttribute::CtaTupleReply(tuple) => Some(tuple),
        _ => None,
    })?;
    let mut address: Option<IpAddr> = None;
    let mut port = None;
    for part in reply {
        match part {
            Tuple::Ip(items) => {
                address = items.iter().find_map(|item| match item {
                    IPTuple::SourceAddress(address) => Some(*address),
                    _ => None,
                });
            }
            Tuple::Proto(items) => {
                port = items.iter().find_map(|item| match item {
                    ProtoTuple::SourcePort(port) => Some(*port),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Some(SocketAddr::new(address?, port?))
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader, NetlinkSerializable};

    use super::*;

    fn socket(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// An attribute: length and type in host order, then the value, padded to four bytes.
    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = (4 + value.len() as u16).to_ne_bytes().to_vec();
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    const NESTED: u16 = 0x8000;

    #[test]
    fn the_question_names_the_original_direction() {
        let message = question(socket("192.0.2.1:40000"), socket("10.96.0.1:80"));
        assert_eq!(message.message_type(), 0x0101);
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        let ip = [attribute(1, &[192, 0, 2, 1]), attribute(2, &[10, 96, 0, 1])].concat();
        let proto =
            [attribute(1, &[6]), attribute(2, &40000_u16.to_be_bytes()), attribute(3, &80_u16.to_be_bytes())]
                .concat();
        let tuple = [attribute(1 | NESTED, &ip), attribute(2 | NESTED, &proto)].concat();
        assert_eq!(bytes, [vec![libc::AF_INET as u8, 0, 0, 0], attribute(1 | NESTED, &tuple)].concat());
    }

    fn answer(family: i32, reply: &[u8]) -> NetfilterMessage {
        let bytes = [vec![family as u8, 0, 0, 0], attribute(2 | NESTED, reply)].concat();
        let mut header = NetlinkHeader::default();
        header.message_type = 0x0100;
        NetfilterMessage::deserialize(&header, &bytes).unwrap()
    }

    #[test]
    fn the_answer_is_the_source_of_the_reply() {
        let backend = "2001:db8::7".parse::<std::net::Ipv6Addr>().unwrap();
        let ip = [attribute(3, &backend.octets()), attribute(4, &[0; 16])].concat();
        let proto =
            [attribute(1, &[6]), attribute(2, &8080_u16.to_be_bytes()), attribute(3, &[0; 2])].concat();
        let reply = [attribute(1 | NESTED, &ip), attribute(2 | NESTED, &proto)].concat();
        assert_eq!(read_reply_source(&answer(libc::AF_INET6, &reply)), Some(socket("[2001:db8::7]:8080")));
        // Half a tuple names nobody.
        assert_eq!(read_reply_source(&answer(libc::AF_INET6, &attribute(1 | NESTED, &ip))), None);
    }
}
