//! One netlink socket that asks one question at a time.
//!
//! Sequential on purpose: no background task to start or lose, and every error reaches the caller that asked.
//! Message layouts come from the `netlink-packet-*` crates; this file knows only the envelope (netlink(7)).

use std::io;

use netlink_packet_core::{
    DoneBuffer, ErrorBuffer, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR,
    NLMSG_OVERRUN, NetlinkBuffer, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable,
};
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};

/// Bytes for one datagram. The kernel builds dumps in buffers of at most 32 KiB, unless it is asked for the
/// virtual functions of a device, which nothing here does.
const DATAGRAM: usize = 64 * 1024;

/// How often a dump that a change ran into is repeated. A namespace that changes all the time gets the last
/// one: whoever watches it has a notice of the change already.
const DUMP_ATTEMPTS: usize = 4;

/// A netlink socket of the calling thread's network namespace.
pub(super) struct Netlink {
    socket: TokioSocket,
    sequence: u32,
    datagram: Vec<u8>,
}

impl Netlink {
    /// A socket of a netlink protocol (`NETLINK_ROUTE`, `NETLINK_GENERIC`). Needs a tokio runtime around it.
    pub(super) fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = TokioSocket::new(protocol)?;
        socket.socket_mut().bind_auto()?;
        // Strict: filters of a dump are obeyed instead of ignored.
        socket.socket_ref().set_netlink_get_strict_chk(true)?;
        Ok(Self { socket, sequence: 0, datagram: Vec::new() })
    }

    /// A socket that receives the messages of multicast groups, given as a mask of `1 << (RTNLGRP_* - 1)`.
    pub(super) fn subscribe(protocol: isize, groups: u32, receive_buffer: i32) -> io::Result<Self> {
        let mut socket = TokioSocket::new(protocol)?;
        // The kernel takes what net.core.rmem_max allows; less only means that bursts overrun sooner.
        socket.socket_ref().set_rx_buf_sz(receive_buffer)?;
        socket.socket_mut().bind(&SocketAddr::new(0, groups))?;
        Ok(Self { socket, sequence: 0, datagram: Vec::new() })
    }

    /// One request and its answers: none for a command, one for a question about one object. `flags` are
    /// added to those of every request.
    pub(super) async fn request<T>(&mut self, payload: T, flags: u16) -> io::Result<Vec<T>>
    where
        T: NetlinkSerializable + NetlinkDeserializable,
    {
        self.send(payload, flags | NLM_F_ACK).await?;
        let mut answers = Vec::new();
        self.receive(|answer| answers.push(answer)).await?;
        Ok(answers)
    }

    /// Everything that a dump lists and `decode` keeps.
    pub(super) async fn dump<T, R>(&mut self, payload: T, decode: fn(T) -> Option<R>) -> io::Result<Vec<R>>
    where
        T: NetlinkSerializable + NetlinkDeserializable + Clone,
    {
        let mut kept = Vec::new();
        for _ in 0..DUMP_ATTEMPTS {
            kept.clear();
            self.send(payload.clone(), NLM_F_DUMP).await?;
            let interrupted = self.receive(|answer| kept.extend(decode(answer))).await?;
            if !interrupted {
                break;
            }
        }
        Ok(kept)
    }

    /// The message types of the next datagram of a subscription. `ENOBUFS` says that messages were lost.
    pub(super) async fn next_types(&mut self) -> io::Result<Vec<u16>> {
        self.read_datagram().await?;
        Messages(&self.datagram).map(|message| Ok(message?.0.message_type)).collect()
    }

    async fn send<T: NetlinkSerializable>(&mut self, payload: T, flags: u16) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(payload));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send_to(&bytes, &SocketAddr::new(0, 0)).await?;
        Ok(())
    }

    /// Feeds the answers to the last request to `each`, up to the acknowledgement or the end of the dump.
    /// True if the kernel says that something changed during the dump.
    async fn receive<T: NetlinkDeserializable>(&mut self, mut each: impl FnMut(T)) -> io::Result<bool> {
        let mut interrupted = false;
        loop {
            self.read_datagram().await?;
            for message in Messages(&self.datagram) {
                let (header, payload) = message?;
                // Left over from a request whose future was dropped.
                if header.sequence_number != self.sequence {
                    continue;
                }
                interrupted |= header.flags & NLM_F_DUMP_INTR != 0;
                match header.message_type {
                    NLMSG_ERROR => {
                        let error = ErrorBuffer::new_checked(payload).map_err(invalid)?;
                        return error.code().map_or(Ok(interrupted), |code| Err(from_kernel(code.get())));
                    }
                    NLMSG_DONE => {
                        let code = DoneBuffer::new_checked(payload).map_err(invalid)?.code();
                        return if code < 0 { Err(from_kernel(code)) } else { Ok(interrupted) };
                    }
                    NLMSG_OVERRUN => return Err(io::Error::from_raw_os_error(libc::ENOBUFS)),
                    kind => match T::deserialize(&header, payload) {
                        Ok(answer) => each(answer),
                        // One object that a newer kernel describes in an unknown way must not hide the rest.
                        Err(error) => {
                            log::warn!("netlink: a message of type {kind} is not understood: {error}")
                        }
                    },
                }
            }
        }
    }

    async fn read_datagram(&mut self) -> io::Result<()> {
        loop {
            self.datagram.clear();
            self.datagram.reserve(DATAGRAM);
            let room = self.datagram.capacity();
            let sender = self.socket.recv_from(&mut self.datagram).await?;
            if self.datagram.len() == room {
                return Err(invalid("a netlink datagram larger than the kernel is known to send"));
            }
            // Port 0 is the kernel; another process can send here too.
            if sender.port_number() == 0 {
                return Ok(());
            }
        }
    }
}

/// The messages of one datagram: header and payload.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = io::Result<(NetlinkHeader, &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let buffer = match NetlinkBuffer::new_checked(self.0) {
            Ok(buffer) => buffer,
            Err(error) => {
                self.0 = &[];
                return Some(Err(invalid(error)));
            }
        };
        let mut header = NetlinkHeader::default();
        header.length = buffer.length();
        header.message_type = buffer.message_type();
        header.flags = buffer.flags();
        header.sequence_number = buffer.sequence_number();
        header.port_number = buffer.port_number();
        let aligned = (buffer.length() as usize).next_multiple_of(4);
        self.0 = self.0.get(aligned..).unwrap_or_default();
        Some(Ok((header, buffer.payload())))
    }
}

fn from_kernel(code: i32) -> io::Error {
    io::Error::from_raw_os_error(-code)
}

fn invalid(error: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&(16 + payload.len() as u32).to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&0_u16.to_ne_bytes());
        bytes.extend_from_slice(&sequence.to_ne_bytes());
        bytes.extend_from_slice(&0_u32.to_ne_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }

    #[test]
    fn a_datagram_is_split_at_aligned_messages() {
        let mut datagram = message(16, 7, &[1, 2, 3]);
        datagram.push(0);
        datagram.extend(message(20, 8, &[]));
        let messages: Vec<_> = Messages(&datagram)
            .map(|message| {
                message.map(|(header, payload)| (header.message_type, header.sequence_number, payload))
            })
            .collect::<io::Result<_>>()
            .unwrap();
        assert_eq!(messages, [(16, 7, &[1, 2, 3][..]), (20, 8, &[])]);
    }

    #[test]
    fn the_last_message_needs_no_padding() {
        assert_eq!(Messages(&message(16, 7, &[1])).filter_map(Result::ok).count(), 1);
    }

    #[test]
    fn a_cut_message_is_an_error_and_the_end() {
        let datagram = message(16, 7, &[1, 2, 3, 4]);
        for length in 1..datagram.len() {
            let messages: Vec<_> = Messages(&datagram[..length]).collect();
            assert_eq!(messages.len(), 1, "{length} bytes");
            assert!(messages[0].is_err(), "{length} bytes");
        }
    }

    #[test]
    fn a_length_shorter_than_the_header_is_an_error() {
        let mut datagram = message(16, 7, &[]);
        datagram[0] = 3;
        assert!(Messages(&datagram).next().unwrap().is_err());
    }
}
