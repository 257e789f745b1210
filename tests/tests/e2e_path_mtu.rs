//! Path MTU discovery through the balancer, both ways: a link grows narrow after the handshake, when no clamped
//! segment size can help, and what the sender needs to know reaches it: from the balancer itself, from a router
//! behind it, from one in front of it. And the other error that routers send, of a packet that was on its way too
//! long.
//!
//! Links that are narrow from the start are in `e2e_bulk`.
#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use lb_tests::cmd::wait_for;
use lb_tests::http::Connection;
use lb_tests::lan::{LB, Lan, Site, backends, vip};
use lb_tests::netns::Namespace;
use lb_tests::payload::Payload;
use lb_tests::scenario::{Setup, require_uploaded};
use lb_tests::topology::Family;
use rustix::net::sockopt::{Timeout, set_ip_ttl, set_ipv6_unicast_hops, set_socket_timeout};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketType, ipproto, recvfrom, sendto, socket,
};
use serde_json::Value;

/// Of each transfer.
const MIB: u64 = 8;
/// What every link begins with, and what one of them comes to.
const WIDE: u32 = 1500;
const NARROW: u32 = 1400;

#[test]
fn a_link_of_the_balancer_on_xdp() {
    a_link_of_the_balancer(Setup::Xdp);
}

#[test]
fn a_link_of_the_balancer_on_tc() {
    a_link_of_the_balancer(Setup::Tc);
}

#[test]
fn a_link_of_the_balancer_on_tc_with_software_checksums() {
    a_link_of_the_balancer(Setup::TcEgressTxOff);
}

/// The balancer's own way out is too narrow: it answers as a router would.
fn a_link_of_the_balancer(setup: Setup) {
    let payload = Payload::random(MIB).unwrap();
    let lan = Lan::new(&["client", LB, "b1"]).unwrap();
    lan.network(0, (LB, "lc0"), ("client", "c0")).unwrap();
    lan.network(1, (LB, "lb1"), ("b1", "e0")).unwrap();
    lan.face_xdp(setup, &[("client", "c0"), ("b1", "e0")]).unwrap();
    if setup == Setup::TcEgressTxOff {
        for device in ["lc0", "lb1"] {
            lan[LB].run("ethtool", &["-K", device, "tx", "off"]).unwrap();
        }
    }
    let site = Site::start(lan, setup, &["b1"], &backends(&[(1, 2)]), &payload).unwrap();
    site.require_rung(&["lc0", "lb1"], setup.rung()).unwrap();

    let mut answered = 0;
    for family in Family::ALL {
        let before = site.agent.totals().unwrap();
        let [mut upload, mut download] = open_both(&site, vip(family, 0));
        set_link(&site, "lb1", NARROW);
        upload.upload(&payload, "copy").unwrap();
        require_uploaded(&site.nginx, "copy", &payload).unwrap();
        require_path_mtu(&site.lan["client"], family.address(0, 1));
        answered = require_more(&site, "too_big", answered);
        set_link(&site, "lb1", WIDE);

        set_link(&site, "lc0", NARROW);
        download.download(&payload).unwrap();
        require_path_mtu(&site.lan["b1"], family.address(1, 1));
        answered = require_more(&site, "too_big", answered);
        set_link(&site, "lc0", WIDE);
        site.agent.require_carried(&before, setup.rung(), 2).unwrap();
    }
    assert_eq!(site.agent.reason("icmp_translated").unwrap(), 0);
}

/// Sets the MTU of one of the balancer's devices and waits until the datapath knows.
fn set_link(site: &Site, device: &str, bytes: u32) {
    site.lan.mtu((LB, device), bytes).unwrap();
    wait_for(&format!("{device} has {bytes} in the maps"), Duration::from_secs(10), || {
        let text = site.agent.headgate(&["maps", "dump", "next_hops", "--json"])?;
        let hops: Vec<Value> = serde_json::from_str(&text)?;
        let mut hops = hops.iter().filter(|hop| hop["device"] == device);
        ensure!(hops.all(|hop| hop["mtu"] == bytes), "{text}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn routers_behind_and_in_front_on_xdp() {
    routers_behind_and_in_front(Setup::Xdp);
}

#[test]
fn routers_behind_and_in_front_on_tc() {
    routers_behind_and_in_front(Setup::Tc);
}

/// The narrow link is beyond a router: its error is about the packet that the balancer sent, and has to be made one
/// about the packet that the sender knows.
fn routers_behind_and_in_front(setup: Setup) {
    let payload = Payload::random(MIB).unwrap();
    let site = routed_site(setup, &payload);
    let mut translated = 0;
    for family in Family::ALL {
        let before = site.agent.totals().unwrap();
        let [mut upload, mut download] = open_both(&site, vip(family, 0));
        site.lan.mtu(("behind", "far"), NARROW).unwrap();
        upload.upload(&payload, "copy").unwrap();
        require_uploaded(&site.nginx, "copy", &payload).unwrap();
        require_path_mtu(&site.lan["client"], family.address(0, 1));
        translated = require_more(&site, "icmp_translated", translated);
        site.lan.mtu(("behind", "far"), WIDE).unwrap();

        site.lan.mtu(("front", "far"), NARROW).unwrap();
        download.download(&payload).unwrap();
        require_path_mtu(&site.lan["b1"], family.address(1, 1));
        translated = require_more(&site, "icmp_translated", translated);
        site.lan.mtu(("front", "far"), WIDE).unwrap();
        site.agent.require_carried(&before, setup.rung(), 2).unwrap();
    }
    assert_eq!(site.agent.reason("too_big").unwrap(), 0);
}

#[test]
fn a_packet_that_expires_behind_on_xdp() {
    a_packet_that_expires_behind(Setup::Xdp);
}

#[test]
fn a_packet_that_expires_behind_on_tc() {
    a_packet_that_expires_behind(Setup::Tc);
}

/// A client's segment has no hops left at the router behind the balancer. The client is told, by whom it talks to.
fn a_packet_that_expires_behind(setup: Setup) {
    /// The router in front, the balancer, and none for the router behind.
    const HOPS: u8 = 3;
    let payload = Payload::random(1).unwrap();
    let site = routed_site(setup, &payload);
    for family in Family::ALL {
        let vip = vip(family, 0);
        let errors = site.lan["client"].within(|| icmp_socket(family)).unwrap().unwrap();
        let mut connection = open(&site, vip);
        let socket = connection.socket().as_fd();
        match family {
            Family::V4 => set_ip_ttl(socket, HOPS.into()).unwrap(),
            Family::V6 => set_ipv6_unicast_hops(socket, Some(HOPS)).unwrap(),
        }
        report_errors(family, connection.socket()).unwrap();
        let error = connection.get().unwrap_err();
        let error = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        assert_eq!(error, Some(ErrorKind::HostUnreachable), "{family}");
        let reporter = time_exceeded(family, &errors, connection.local().unwrap(), vip).unwrap();
        assert_eq!(reporter, vip.ip(), "{family}");
    }
    assert!(site.agent.reason("icmp_translated").unwrap() >= 2);
}

#[test]
fn an_error_that_quotes_eight_bytes_on_xdp() {
    an_error_that_quotes_eight_bytes(Setup::Xdp);
}

#[test]
fn an_error_that_quotes_eight_bytes_on_tc() {
    an_error_that_quotes_eight_bytes(Setup::Tc);
}

/// A router need not quote more of a packet than its IP header and eight bytes (RFC 792), here of the segment that
/// the client would send next.
fn an_error_that_quotes_eight_bytes(setup: Setup) {
    let payload = Payload::random(1).unwrap();
    let site = routed_site(setup, &payload);
    for family in Family::ALL {
        let backend = family.address(2, 2);
        let segments = site.lan["b1"].within(|| raw_socket(family, ipproto::TCP)).unwrap().unwrap();
        let mut connection = open(&site, vip(family, 0));
        let client = connection.local().unwrap().to_string();
        let flows = site.agent.flows().unwrap();
        let flow = flows.iter().find(|flow| flow["client"] == client).unwrap();
        let snat: SocketAddr = flow["snat"].as_str().unwrap().parse().unwrap();

        let segment = last_segment(family, &segments, snat.port()).unwrap();
        let error = too_big_about(snat.ip(), backend, &segment);
        let router = site.lan["behind"].within(|| icmp_socket(family)).unwrap().unwrap();
        sendto(&router, &error, SendFlags::empty(), &SocketAddr::new(snat.ip(), 0)).unwrap();
        require_path_mtu(&site.lan["client"], family.address(0, 1));
        assert_eq!(connection.get().unwrap(), "b1", "{family}: the connection goes on");
    }
    assert_eq!(site.agent.reason("icmp_translated").unwrap(), 2);
}

/// The first eight bytes of the TCP header that would follow the last segment with payload from this port: waits
/// for that one.
fn last_segment(family: Family, socket: &OwnedFd, port: u16) -> Result<[u8; 8]> {
    let mut buffer = [0; 2048];
    for _ in 0..100 {
        let (length, _, _) = recvfrom(socket, &mut buffer[..], RecvFlags::empty())?;
        // A raw IPv4 socket shows the IP header, an IPv6 one does not.
        let tcp = buffer[..length].get(if family == Family::V4 { 20 } else { 0 }..).context("a header")?;
        let header = usize::from(tcp[12] >> 4) * 4;
        if tcp[..2] != port.to_be_bytes() || tcp.len() == header {
            continue;
        }
        let mut first: [u8; 8] = tcp[..8].try_into()?;
        let payload: u32 = (tcp.len() - header).try_into()?;
        let sequence = u32::from_be_bytes(tcp[4..8].try_into()?).wrapping_add(payload);
        first[4..].copy_from_slice(&sequence.to_be_bytes());
        return Ok(first);
    }
    bail!("no segment with payload among a hundred")
}

/// Fragmentation needed (RFC 1191), or packet too big (RFC 4443 section 3.2), about a full-sized packet.
fn too_big_about(source: IpAddr, destination: IpAddr, tcp: &[u8; 8]) -> Vec<u8> {
    let (size, mtu) = (u16::try_from(WIDE).unwrap(), u16::try_from(NARROW).unwrap());
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut inner = vec![0x45, 0];
            inner.extend(size.to_be_bytes());
            inner.extend([0, 1, 0x40, 0, 62, 6, 0, 0]);
            inner.extend(source.octets());
            inner.extend(destination.octets());
            let sum = checksum(&inner);
            inner[10..12].copy_from_slice(&sum);
            let mut message = vec![3, 4, 0, 0, 0, 0];
            message.extend(mtu.to_be_bytes());
            message.extend(inner);
            message.extend(tcp);
            let sum = checksum(&message);
            message[2..4].copy_from_slice(&sum);
            message
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            // The kernel sums up what a raw ICMPv6 socket sends.
            let mut message = vec![2, 0, 0, 0, 0, 0];
            message.extend(mtu.to_be_bytes());
            message.extend([0x60, 0, 0, 0]);
            message.extend((size - 40).to_be_bytes());
            message.extend([6, 62]);
            message.extend(source.octets());
            message.extend(destination.octets());
            message.extend(tcp);
            message
        }
        _ => panic!("addresses of two families"),
    }
}

/// RFC 1071, of an even number of bytes.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum = words.fold(0, |sum, word| {
        let sum = sum + word;
        (sum & 0xffff) + (sum >> 16)
    });
    (!u16::try_from(sum).unwrap()).to_be_bytes()
}

/// client - front - lb - behind - b1; a router's device `near` faces the balancer.
fn routed_site(setup: Setup, payload: &Payload) -> Site {
    let lan = Lan::new(&["client", "front", LB, "behind", "b1"]).unwrap();
    lan.network(3, ("front", "far"), ("client", "c0")).unwrap();
    lan.network(0, (LB, "lc0"), ("front", "near")).unwrap();
    lan.network(1, (LB, "lb1"), ("behind", "near")).unwrap();
    lan.network(2, ("behind", "far"), ("b1", "e0")).unwrap();
    for router in ["front", "behind"] {
        lan.forward(router).unwrap();
    }
    lan.route("client", 0, (3, 1)).unwrap();
    lan.route(LB, 3, (0, 2)).unwrap();
    lan.route(LB, 2, (1, 2)).unwrap();
    lan.route("b1", 1, (2, 1)).unwrap();
    lan.face_xdp(setup, &[("front", "near"), ("behind", "near")]).unwrap();
    let site = Site::start(lan, setup, &["b1"], &backends(&[(2, 2)]), payload).unwrap();
    site.require_rung(&["lc0", "lb1"], setup.rung()).unwrap();
    site
}

/// A connection that has had an answer.
fn open(site: &Site, vip: SocketAddr) -> Connection {
    let mut connection = Connection::open_in(&site.lan["client"], vip).unwrap();
    assert_eq!(connection.get().unwrap(), "b1");
    connection
}

/// One for each direction. What a host learns by one connection it would agree upon in the next one's handshake.
fn open_both(site: &Site, vip: SocketAddr) -> [Connection; 2] {
    [open(site, vip), open(site, vip)]
}

/// Waits until a host has learned of the narrow link on its way to that address.
fn require_path_mtu(host: &Namespace, to: IpAddr) {
    wait_for("the path MTU is known", Duration::from_secs(3), || {
        let route = host.ip(&["route", "get", &to.to_string()])?;
        let mtu = route.split_whitespace().skip_while(|word| *word != "mtu").nth(1);
        ensure!(mtu == Some(NARROW.to_string().as_str()), "{}: {route}", host.name());
        Ok(())
    })
    .unwrap();
}

/// Fails unless a counter has moved on from `before`; where it stands.
fn require_more(site: &Site, reason: &str, before: u64) -> u64 {
    let now = site.agent.reason(reason).unwrap();
    assert!(now > before, "{reason} is {now}: {}", site.agent.status().unwrap()["reasons"]);
    now
}

/// A socket that sees the ICMP messages of the thread's namespace, and sends them.
fn icmp_socket(family: Family) -> Result<OwnedFd> {
    raw_socket(family, if family == Family::V4 { ipproto::ICMP } else { ipproto::ICMPV6 })
}

/// The same of any protocol (raw(7)).
fn raw_socket(family: Family, protocol: Protocol) -> Result<OwnedFd> {
    let domain = if family == Family::V4 { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket(domain, SocketType::RAW, Some(protocol))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(Duration::from_secs(5)))?;
    Ok(socket)
}

/// Has the socket fail on an ICMP error at once instead of trying on (`IP_RECVERR`, ip(7)).
fn report_errors(family: Family, socket: &impl std::os::fd::AsRawFd) -> Result<()> {
    let (level, option) = match family {
        Family::V4 => (libc::SOL_IP, libc::IP_RECVERR),
        Family::V6 => (libc::SOL_IPV6, libc::IPV6_RECVERR),
    };
    let on: libc::c_int = 1;
    let (value, length) = (std::ptr::from_ref(&on).cast(), size_of_val(&on) as libc::socklen_t);
    // SAFETY: the kernel reads `length` bytes at `value`, an integer that outlives the call.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value, length) };
    ensure!(result == 0, std::io::Error::last_os_error());
    Ok(())
}

/// The source of the time-exceeded message (RFC 792, RFC 4443 section 3.3) about a segment from `client` to `vip`.
fn time_exceeded(family: Family, socket: &OwnedFd, client: SocketAddr, vip: SocketAddr) -> Result<IpAddr> {
    let mut buffer = [0; 2048];
    // Neighbour discovery and the like come by here too.
    for _ in 0..100 {
        let (length, _, source) = recvfrom(socket, &mut buffer[..], RecvFlags::empty())?;
        // A raw IPv4 socket shows the IP header, an IPv6 one does not.
        let (skip, kind) = if family == Family::V4 { (20, 11) } else { (0, 3) };
        let Some(message) = buffer[..length].get(skip..).filter(|message| message.first() == Some(&kind))
        else {
            continue;
        };
        let (addresses, tcp) =
            if family == Family::V4 { (8 + 12..8 + 20, 8 + 20) } else { (8 + 8..8 + 40, 8 + 40) };
        let octets = [client.ip(), vip.ip()].map(|ip| match ip {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        });
        ensure!(message.get(addresses) == Some(&octets.concat()[..]), "about another packet: {message:02x?}");
        let ports = [client.port().to_be_bytes(), vip.port().to_be_bytes()].concat();
        ensure!(message.get(tcp..tcp + 4) == Some(&ports[..]), "about another segment: {message:02x?}");
        let source = source.context("a source")?;
        return Ok(SocketAddr::try_from(source)?.ip());
    }
    bail!("no time-exceeded among a hundred messages")
}
