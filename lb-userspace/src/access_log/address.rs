//! Addresses as text. IPv4 without the formatting machinery, which would take most of a line's time.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};

/// `IP:PORT`, `[v6]:PORT`; without a scope, as in Envoy.
pub(super) fn write(address: SocketAddr, out: &mut Vec<u8>) {
    if address.is_ipv6() {
        out.push(b'[');
    }
    write_ip(address.ip(), out);
    out.extend_from_slice(if address.is_ipv6() { b"]:" } else { b":" });
    out.extend_from_slice(itoa::Buffer::new().format(address.port()).as_bytes());
}

pub(super) fn write_ip(address: IpAddr, out: &mut Vec<u8>) {
    match address {
        IpAddr::V4(address) => {
            for (index, octet) in address.octets().into_iter().enumerate() {
                if index > 0 {
                    out.push(b'.');
                }
                out.extend_from_slice(itoa::Buffer::new().format(octet).as_bytes());
            }
        }
        IpAddr::V6(address) => write!(out, "{address}").expect("writing to memory does not fail"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn are_written_as_by_the_standard_library() {
        for text in ["0.0.0.0:0", "255.255.255.255:65535", "10.82.1.26:5000", "[::1]:80", "[2001:db8::a]:1"] {
            let address: SocketAddr = text.parse().unwrap();
            let mut out = Vec::new();
            write(address, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), text);
            let mut ip = Vec::new();
            write_ip(address.ip(), &mut ip);
            assert_eq!(String::from_utf8(ip).unwrap(), address.ip().to_string());
        }
    }
}
