//! The TC programs attached to devices, with packets that `BPF_PROG_TEST_RUN` cannot make: super-packets, checksums that
//! the device is to complete, and devices without an Ethernet header. What arrives at the far ends has to be what the
//! host's code says.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::process::Command;
use std::time::Duration;

use aya::programs::TcAttachType;
use lb_common::host::{Frame, HostTables, run, run_bare};
use lb_common::host_packets::{PacketBuilder, verify_checksums};
use lb_common::parse::ethertype;
use lb_common::tables::hop;
use lb_common::tcp::flags::SYN;
use lb_common::{Env, Reason, Rung};
use lb_tests::prog::{Bed, Device, coarse_now};
use lb_tests::sample::{self, network, port};
use lb_tests::{maps, packet};
use lb_userspace::datapath::object::{TC_L3_PROGRAM, TC_PROGRAM, tc_program};

use crate::handshake::{client, client_ack, syn};
use crate::lockstep::hex;

/// Frames of others (neighbour discovery) that may arrive before the one that is waited for.
const STRAYS: usize = 50;
/// How long a frame may take; it is there at once, so only a failure waits that long.
const PATIENCE: Duration = Duration::from_secs(5);

/// `struct virtio_net_hdr` (linux/virtio_net.h): what the device is to do with a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Offload {
    /// Where the sum begins and its field lies behind that, if the device is to complete it.
    checksum: Option<(u16, u16)>,
    /// Payload bytes of each segment, and the bytes of headers.
    segments: Option<(u16, u16)>,
    v6: bool,
}

impl Offload {
    const LENGTH: usize = 10;

    fn to_bytes(self) -> [u8; Self::LENGTH] {
        const NEEDS_CHECKSUM: u8 = 1;
        let mut bytes = [0; Self::LENGTH];
        if let Some((start, offset)) = self.checksum {
            bytes[0] = NEEDS_CHECKSUM;
            bytes[6..8].copy_from_slice(&start.to_ne_bytes());
            bytes[8..10].copy_from_slice(&offset.to_ne_bytes());
        }
        if let Some((size, headers)) = self.segments {
            bytes[1] = if self.v6 { 4 } else { 1 };
            bytes[2..4].copy_from_slice(&headers.to_ne_bytes());
            bytes[4..6].copy_from_slice(&size.to_ne_bytes());
        }
        bytes
    }
}

/// A packet socket on one device: all that arrives there, nothing that leaves.
struct Port(OwnedFd);

impl Port {
    fn open(device: &str) -> Self {
        const PACKET_VNET_HDR: libc::c_int = 15;
        const PACKET_IGNORE_OUTGOING: libc::c_int = 23;
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: system calls with integers, and pointers to values that live until they return.
        unsafe {
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol.into());
            assert!(fd >= 0, "a packet socket: {}", std::io::Error::last_os_error());
            let socket = OwnedFd::from_raw_fd(fd);
            let set = |level: libc::c_int, option: libc::c_int, value: &[u8]| {
                let result = libc::setsockopt(
                    fd,
                    level,
                    option,
                    value.as_ptr().cast(),
                    value.len() as libc::socklen_t,
                );
                assert_eq!(result, 0, "option {option}: {}", std::io::Error::last_os_error());
            };
            set(libc::SOL_PACKET, PACKET_VNET_HDR, &1u32.to_ne_bytes());
            set(libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, &1u32.to_ne_bytes());
            let mut patience = PATIENCE.as_secs().to_ne_bytes().to_vec();
            patience.extend(0u64.to_ne_bytes());
            set(libc::SOL_SOCKET, libc::SO_RCVTIMEO, &patience);
            let name = std::ffi::CString::new(device).expect("a name without a zero");
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = protocol;
            address.sll_ifindex = libc::if_nametoindex(name.as_ptr()) as i32;
            assert_ne!(address.sll_ifindex, 0, "no device {device}");
            let size = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            let result = libc::bind(fd, (&raw const address).cast(), size);
            assert_eq!(result, 0, "bound to {device}: {}", std::io::Error::last_os_error());
            Self(socket)
        }
    }

    fn send(&self, offload: Offload, frame: &[u8]) {
        let bytes = [&offload.to_bytes()[..], frame].concat();
        // SAFETY: a pointer to `bytes` and their length.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        assert_eq!(sent, bytes.len() as isize, "{}", std::io::Error::last_os_error());
    }

    /// The next frame that `wanted` knows, and whether its checksum was left to the device; it is complete here.
    #[track_caller]
    fn receive(&self, wanted: impl Fn(&[u8]) -> bool) -> (Vec<u8>, bool) {
        for _ in 0..STRAYS {
            let mut bytes = vec![0u8; 70_000];
            // SAFETY: a pointer to `bytes` and their length.
            let got = unsafe { libc::recv(self.0.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), 0) };
            assert!(got >= 0, "nothing arrived: {}", std::io::Error::last_os_error());
            let mut frame = bytes[Offload::LENGTH..got as usize].to_vec();
            if !wanted(&frame) {
                continue;
            }
            let partial = bytes[0] & 1 != 0;
            if partial {
                let [start, offset] =
                    [6, 8].map(|at| u16::from_ne_bytes([bytes[at], bytes[at + 1]]) as usize);
                complete(&mut frame, start, offset);
            }
            return (frame, partial);
        }
        panic!("{STRAYS} frames of others");
    }
}

/// Does what the device would: sums up from `start`, complements, and stores that `offset` behind it.
fn complete(frame: &mut [u8], start: usize, offset: usize) {
    let mut sum = 0u64;
    for pair in frame[start..].chunks(2) {
        sum += u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]) as u64;
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    frame[start + offset..start + offset + 2].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

/// TCP or an ICMP error: what the kernel sends of its own accord here is neighbour and router discovery.
fn ours(frame: &[u8]) -> bool {
    match frame.get(12..14) {
        Some([0x08, 0x00]) => matches!(frame.get(23), Some(1 | 6)),
        Some([0x86, 0xdd]) => match (frame.get(20), frame.get(54)) {
            (Some(6), _) => true,
            (Some(58), Some(kind)) => *kind < 128,
            _ => false,
        },
        _ => false,
    }
}

/// The programs on the devices, the same tables in the host's hands, and the far ends.
struct Wires {
    bed: Bed,
    host: HostTables,
    client: Port,
    backend: Port,
}

impl Wires {
    /// `offload`: whether the clients' device leaves checksums to its far end.
    fn new(mut bed: Bed, change: impl Fn(&mut HostTables), offload: bool) -> Self {
        let switch = |device: &str, value: &str| {
            let status = Command::new("ethtool").args(["-K", device, "tx", value]).status();
            assert!(status.expect("ethtool runs").success(), "{device} tx {value}");
        };
        for device in ["client", "backend"] {
            switch(device, if offload { "on" } else { "off" });
        }
        for device in ["client-far", "backend-far"] {
            let status = Command::new("ip").args(["link", "set", device, "up"]).status();
            assert!(status.expect("ip runs").success());
        }
        let mut host = sample::tables(&bed.devices);
        change(&mut host);
        maps::fill(&mut bed.ebpf, &host).expect("the tables fit the maps");
        for device in ["client", "backend"] {
            attach(&mut bed, TC_PROGRAM, device);
        }
        Self { bed, host, client: Port::open("client-far"), backend: Port::open("backend-far") }
    }

    fn env(&self, ingress: u32) -> Env {
        Env::new(Rung::Tc, ingress, coarse_now())
    }

    /// What the host makes of a packet that comes in by `ingress`.
    fn on_host(&self, ingress: Device, packet: &PacketBuilder) -> (Vec<u8>, Frame, Reason) {
        let mut frame = packet.build();
        frame.0[..6].copy_from_slice(&ingress.mac);
        let sent = frame.0.clone();
        let result = run(&self.env(ingress.ifindex), &mut frame, &self.host);
        (sent, frame, result.reason)
    }

    /// A packet of the client that arrives at the backends' side as the host says.
    #[track_caller]
    fn client_sends(&self, packet: &PacketBuilder) -> Vec<u8> {
        let (sent, wanted, reason) = self.on_host(self.bed.devices.client, packet);
        self.client.send(Offload::default(), &sent);
        let (got, _) = self.backend.receive(ours);
        assert_eq!(hex(&got), hex(&wanted.0), "{reason:?}");
        got
    }

    /// The reverse.
    #[track_caller]
    fn backend_sends(&self, packet: &PacketBuilder) {
        let (sent, wanted, reason) = self.on_host(self.bed.devices.backend, packet);
        self.backend.send(Offload::default(), &sent);
        let (got, _) = self.client.receive(ours);
        assert_eq!(hex(&got), hex(&wanted.0), "{reason:?}");
    }

    /// An established flow; gives the client's segment.
    #[track_caller]
    fn establish(&self, v6: bool) -> PacketBuilder {
        let segment = client(v6, network::ROUTER, 1, port::RANDOM);
        let forwarded = self.client_sends(&syn(&segment));
        let syn_ack = packet::answer_to(&forwarded).flags(SYN).seq(7_000_000).ack(0xffff_fff1);
        self.backend_sends(&syn_ack);
        self.client_sends(&client_ack(&segment));
        client_ack(&segment)
    }
}

fn attach(bed: &mut Bed, program: &str, device: &str) {
    let program = tc_program(&mut bed.ebpf, program).expect("a program of the object");
    program.attach(device, TcAttachType::Ingress).expect("the program can be attached");
}

/// A smaller MTU towards the backends.
const MTU: u32 = 1000;

#[test]
fn what_is_too_big_is_answered_whatever_its_checksum() {
    for offload in [true, false] {
        Bed::run(sample::MAX_FLOWS, |bed| {
            let wires =
                Wires::new(bed, |host| host.next_hops.iter_mut().for_each(|hop| hop.mtu = MTU), offload);
            for v6 in [false, true] {
                let segment = wires.establish(v6);
                let headers: u16 = if v6 { 74 } else { 54 };
                let partial = Some((headers - 20, 16));
                let too_big = (MTU as u16 - headers + 14 + 1, headers);
                let cases = [
                    // Complete; left to the device; and super-packets of both kinds.
                    (1200, Offload::default()),
                    (1200, Offload { checksum: partial, segments: None, v6 }),
                    (9000, Offload { checksum: partial, segments: Some(too_big), v6 }),
                    (60_000, Offload { checksum: partial, segments: Some(too_big), v6 }),
                ];
                for (length, offload_of_frame) in cases {
                    let big = segment.clone().payload(&vec![0x5a; length]);
                    let (mut sent, wanted, reason) = wires.on_host(wires.bed.devices.client, &big);
                    assert_eq!(reason, Reason::TOO_BIG);
                    if offload_of_frame.checksum.is_some() {
                        // What a sender leaves there: the sum of the pseudo-header.
                        leave_to_device(&mut sent, v6);
                    }
                    wires.client.send(offload_of_frame, &sent);
                    let (got, _) = wires.client.receive(ours);
                    let context = format!("{length} bytes, {offload_of_frame:?}, v6 {v6}, offload {offload}");
                    verify_checksums(&got).unwrap_or_else(|error| panic!("{context}: {error}"));
                    // The quoted TCP checksum is made up where the device completes it, and the message's with it.
                    let ip = headers as usize - 34;
                    let masked = |frame: &[u8]| {
                        let mut frame = frame.to_vec();
                        let end = frame.len();
                        frame[14 + ip + 2..14 + ip + 4].fill(0);
                        frame[end - 4..end - 2].fill(0);
                        hex(&frame)
                    };
                    if offload_of_frame.checksum.is_some() {
                        assert_eq!(masked(&got), masked(&wanted.0), "{context}");
                    } else {
                        assert_eq!(hex(&got), hex(&wanted.0), "{context}");
                    }
                }
                // The flow goes on; and a super-packet of segments that fit does, too.
                wires.client_sends(&segment.clone().payload(b"small"));
                let big = segment.clone().payload(&[0x5a; 9000]);
                let fits = Offload { checksum: partial, segments: Some((too_big.0 - 1, headers)), v6 };
                let (mut sent, _, _) = wires.on_host(wires.bed.devices.client, &big);
                leave_to_device(&mut sent, v6);
                wires.client.send(fits, &sent);
                wires.backend.receive(|frame| ours(frame) && frame.len() > 500);
                drain(&wires.backend, 9000, headers as usize);
            }
        });
    }
}

/// Takes what is left of a super-packet that the egress device may have cut up.
fn drain(port: &Port, payload: usize, headers: usize) {
    const MSG_DONTWAIT: libc::c_int = libc::MSG_DONTWAIT;
    let mut bytes = vec![0u8; 70_000];
    for _ in 0..payload / (MTU as usize - headers) + STRAYS {
        // SAFETY: a pointer to `bytes` and their length.
        let got =
            unsafe { libc::recv(port.0.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), MSG_DONTWAIT) };
        if got < 0 {
            return;
        }
    }
}

/// Puts into the TCP checksum what a sender leaves there for the device to complete: the sum of the pseudo-header.
fn leave_to_device(frame: &mut [u8], v6: bool) {
    let (addresses, l4) = if v6 { (22..54, 54) } else { (26..34, 34) };
    let mut sum = 6 + (frame.len() - l4) as u64;
    for pair in frame[addresses].chunks(2) {
        sum += u16::from_be_bytes([pair[0], pair[1]]) as u64;
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    frame[l4 + 16..l4 + 18].copy_from_slice(&(sum as u16).to_be_bytes());
}

#[test]
fn a_tun_device_in_front() {
    Bed::run(sample::MAX_FLOWS, |bed| {
        let (mut tun, ifindex) = tun();
        let mut wires = Wires::new(
            bed,
            |host| {
                // The clients behind the router are behind the tunnel now.
                let client = host.next_hops[3].ifindex;
                for hop in host.next_hops.iter_mut().filter(|hop| hop.ifindex == client) {
                    (hop.ifindex, hop.device, hop.flags) = (ifindex, ifindex, hop::USED | hop::L3);
                }
            },
            true,
        );
        attach(&mut wires.bed, TC_L3_PROGRAM, "tun0");
        for v6 in [false, true] {
            let ethertype = if v6 { ethertype::IPV6 } else { ethertype::IPV4 };
            let send = |tun: &mut File, packet: &PacketBuilder| {
                let mut frame = Frame(packet.build().0.split_off(14));
                tun.write_all(&frame.0).expect("the tunnel takes a packet");
                let result = run_bare(&wires.env(ifindex), ethertype, &mut frame, &wires.host);
                (frame, result.reason)
            };
            let through = |tun: &mut File, packet: &PacketBuilder| {
                let (wanted, reason) = send(tun, packet);
                let (got, _) = wires.backend.receive(ours);
                assert_eq!(hex(&got), hex(&wanted.0), "{reason:?}");
                got
            };
            let segment = client(v6, network::ROUTER, 1, port::RANDOM);
            let forwarded = through(&mut tun, &syn(&segment));
            let syn_ack = packet::answer_to(&forwarded).flags(SYN).seq(7_000_000).ack(0xffff_fff1);
            let (sent, wanted, reason) = wires.on_host(wires.bed.devices.backend, &syn_ack);
            assert_eq!(reason, Reason::SYN_ACK);
            wires.backend.send(Offload::default(), &sent);
            assert_eq!(hex(&from_tun(&mut tun)), hex(&wanted.0[14..]));
            through(&mut tun, &client_ack(&segment));
            through(&mut tun, &client_ack(&segment).payload(b"through the tunnel"));
            // And the answer to what expires goes back into it.
            let (wanted, reason) = send(&mut tun, &client_ack(&segment).ttl(1));
            assert_eq!(reason, Reason::TTL_ANSWERED);
            assert_eq!(hex(&from_tun(&mut tun)), hex(&wanted.0));
        }
    });
}

/// A tun device of this namespace, up, and its interface index.
fn tun() -> (File, u32) {
    const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
    let file = File::options().read(true).write(true).open("/dev/net/tun").expect("/dev/net/tun");
    // SAFETY: a structure of integers, a name that fits, and a pointer to what lives until the call returns.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(b"tun0") {
            *to = *from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
        let result = libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request);
        assert_eq!(result, 0, "a tun device: {}", std::io::Error::last_os_error());
    }
    let status = Command::new("ip").args(["link", "set", "tun0", "up"]).status();
    assert!(status.expect("ip runs").success());
    // SAFETY: a pointer to a name.
    (file, unsafe { libc::if_nametoindex(c"tun0".as_ptr()) })
}

/// The next TCP packet or ICMP error that the tunnel brings.
fn from_tun(tun: &mut File) -> Vec<u8> {
    for _ in 0..STRAYS {
        let mut poll = libc::pollfd { fd: tun.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: a pointer to one structure.
        let ready = unsafe { libc::poll(&raw mut poll, 1, PATIENCE.as_millis() as i32) };
        assert_eq!(ready, 1, "nothing came out of the tunnel");
        let mut packet = vec![0; 70_000];
        let length = tun.read(&mut packet).expect("a packet");
        packet.truncate(length);
        let ethertype = if packet[0] >> 4 == 6 { [0x86, 0xdd] } else { [8, 0] };
        if ours(&[&[0; 12][..], &ethertype, &packet].concat()) {
            return packet;
        }
    }
    panic!("{STRAYS} packets of others");
}
