//! Probes by a mere TCP connection.

use std::io;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::Failure;
use super::matching::Matching;
use crate::model::TcpProbe;

/// Bytes of the answer that are looked at.
const MAX_ANSWER: usize = 64 << 10;

/// Sends and receives what the probe says over a new connection.
pub(super) async fn exchange(probe: &TcpProbe, mut stream: TcpStream) -> Result<(), Failure> {
    if !probe.send.is_empty() {
        stream.write_all(&probe.send).await.map_err(|error| Failure::io(&error))?;
    }
    if probe.receive.is_empty() {
        return Ok(());
    }
    let mut matching = Matching::new(&probe.receive);
    let mut seen = 0;
    loop {
        stream.readable().await.map_err(|error| Failure::io(&error))?;
        match read(&stream, &mut matching, MAX_ANSWER - seen) {
            Ok((_, true)) => return Ok(()),
            Ok((0, false)) => {
                return Err(Failure::network(format!(
                    "closed after {seen} bytes without the expected answer"
                )));
            }
            Ok((bytes, false)) => seen += bytes,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(Failure::io(&error)),
        }
        if seen == MAX_ANSWER {
            return Err(Failure::network("the expected answer is not in the first 64 KiB"));
        }
    }
}

/// Reads what there is: how many bytes, and whether all is found by now. A function of its own, so that a probe
/// that waits has no buffer.
fn read(stream: &TcpStream, matching: &mut Matching<'_>, max: usize) -> io::Result<(usize, bool)> {
    let mut buffer = [0; 4096];
    let max = buffer.len().min(max);
    let bytes = stream.try_read(&mut buffer[..max])?;
    Ok((bytes, matching.feed(&buffer[..bytes])))
}
