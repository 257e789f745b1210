//! The messages of `grpc.health.v1.Health/Check`, in the framing of gRPC: a byte that tells whether the message is
//! compressed, its length as 32 bits, big-endian, and the message in protobuf.
//!
//! ```proto
//! message HealthCheckRequest { string service = 1; }
//! message HealthCheckResponse { ServingStatus status = 1; }
//! enum ServingStatus { UNKNOWN = 0; SERVING = 1; NOT_SERVING = 2; SERVICE_UNKNOWN = 3; }
//! ```

/// Bytes before a message.
const PREFIX: usize = 5;
/// Bytes of a message: the one field takes two.
const MAX_MESSAGE: usize = 4 << 10;

/// The request: tag 0x0a (field 1, length-delimited), the length of the service's name as a varint, the name. An
/// empty name is left out.
pub(super) fn request(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.push(length as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(service.as_bytes());
    }
    let mut frame = vec![0];
    frame.extend_from_slice(&(message.len() as u32).to_be_bytes());
    frame.append(&mut message);
    frame
}

/// An answer as it comes in.
#[derive(Default)]
pub(super) struct Answer {
    frame: Vec<u8>,
}

impl Answer {
    /// Takes a piece of the body; an error is the reason why it is no answer.
    pub(super) fn add(&mut self, bytes: &[u8]) -> Result<(), String> {
        let room = PREFIX + MAX_MESSAGE - self.frame.len();
        self.frame.extend_from_slice(&bytes[..bytes.len().min(room)]);
        let Some((&[compressed, ref length @ ..], _)) = self.frame.split_first_chunk::<PREFIX>() else {
            return Ok(());
        };
        let length = u32::from_be_bytes(*length) as usize;
        if compressed != 0 {
            return Err("the message is compressed".into());
        }
        if length > MAX_MESSAGE {
            return Err(format!("the message has {length} bytes"));
        }
        if bytes.len() > room || self.frame.len() > PREFIX + length {
            return Err("more than one message".into());
        }
        Ok(())
    }

    /// The serving status when all came.
    pub(super) fn status(&self) -> Result<u64, &'static str> {
        let Some((&[_, ref length @ ..], message)) = self.frame.split_first_chunk::<PREFIX>() else {
            return Err("no message in the answer");
        };
        if message.len() < u32::from_be_bytes(*length) as usize {
            return Err("only a part of a message in the answer");
        }
        status(message).ok_or("the message is no answer to a health check")
    }
}

/// The last field 1 of a message; 0 if there is none, as protobuf leaves out zeros.
fn status(mut message: &[u8]) -> Option<u64> {
    const VARINT: u64 = 0;
    let mut status = 0;
    while !message.is_empty() {
        let tag = varint(&mut message)?;
        match (tag >> 3, tag & 7) {
            (0, _) => return None,
            (1, VARINT) => status = varint(&mut message)?,
            (_, VARINT) => {
                varint(&mut message)?;
            }
            (_, 1) => message = message.get(8..)?,
            (_, 2) => {
                let length = usize::try_from(varint(&mut message)?).ok()?;
                message = message.get(length..)?;
            }
            (_, 5) => message = message.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

/// Takes a number of 7 bits a byte, the lowest first, off the message.
fn varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = message.split_first()?;
        *message = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests() {
        assert_eq!(request(""), [0, 0, 0, 0, 0]);
        assert_eq!(request("ab"), *b"\0\0\0\0\x04\x0a\x02ab");
        let long = request(&"x".repeat(300));
        assert_eq!(long[..8], *b"\0\0\0\x01\x2f\x0a\xac\x02");
        assert_eq!(long.len(), 5 + 303);
    }

    #[test]
    fn statuses() {
        assert_eq!(status(b""), Some(0));
        assert_eq!(status(b"\x08\x01"), Some(1));
        assert_eq!(status(b"\x08\x01\x08\x02"), Some(2), "the last one counts");
        let unknown_fields = b"\x10\x80\x01\x19--------\x22\x03abc\x2d----\x08\x01";
        assert_eq!(status(unknown_fields), Some(1));
    }

    #[test]
    fn no_message_panics() {
        for message in
            [&b"\x08"[..], b"\x08\x80", b"\x22\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x0b", b"\x00\x00"]
        {
            assert_eq!(status(message), None, "{message:?}");
        }
        assert_eq!(status(&[0xff; 100]), None);
        for first in 0..=255 {
            for second in 0..=255 {
                status(&[first, second, 1]);
            }
        }
    }

    #[test]
    fn an_answer_is_bounded() {
        let mut answer = Answer::default();
        assert_eq!(answer.add(b"\0\xff\xff\xff\xff"), Err("the message has 4294967295 bytes".into()));
        let mut answer = Answer::default();
        for _ in 0..10 {
            let _ = answer.add(&[0; 1 << 20]);
        }
        assert!(answer.frame.len() <= PREFIX + MAX_MESSAGE);
    }
}
