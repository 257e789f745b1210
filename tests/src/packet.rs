//! Segments that answer others; how to build the first one is in [`lb_common::host_packets`].

use std::net::SocketAddr;

use lb_common::host::Frame;
use lb_common::host_packets::{PacketBuilder, packet};
use lb_common::parse::{Link, Tags, ethertype, parse, parse_link};
use lb_common::{Address, Key, V4, V6};

/// A bare segment from whom `frame` is to, to whom it is from: addresses, ports and MAC addresses swapped, the same tags.
pub fn answer_to(frame: &[u8]) -> PacketBuilder {
    let frame = Frame(frame.to_vec());
    let link = parse_link(&frame).expect("a frame that was built here or forwarded");
    let answer = if link.ethertype == ethertype::IPV6 {
        swapped::<V6>(&frame, link)
    } else {
        swapped::<V4>(&frame, link)
    };
    let [a, b, c, d, e, f, ..] = frame.0[..] else { unreachable!("a frame with an Ethernet header") };
    tagged(answer.macs([a, b, c, d, e, f], link.source), link.tags)
}

/// A bare segment that arrives with the 5-tuple `key`.
pub fn of_key<A: Address>(key: &Key<A>) -> PacketBuilder
where
    std::net::IpAddr: From<A>,
{
    let address = |address: A, port: u16| SocketAddr::new(address.into(), u16::from_be(port));
    packet(address(key.source, key.source_port), address(key.destination, key.destination_port))
}

/// `builder` with these tags besides its own.
pub fn tagged(builder: PacketBuilder, tags: Tags) -> PacketBuilder {
    let list = [tags.outer, ethertype::VLAN].into_iter().zip(tags.tci).take(tags.count.into());
    list.fold(builder, |builder, (ethertype, tci)| match ethertype {
        ethertype::QINQ => builder.service_tag(tci),
        _ => builder.tag(tci),
    })
}

fn swapped<A: Address>(frame: &Frame, link: Link) -> PacketBuilder
where
    std::net::IpAddr: From<A>,
{
    of_key(&parse::<A, _>(frame, link).expect("a TCP segment").key.reversed())
}
