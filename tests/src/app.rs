//! The application behind an ingress gateway: a small HTTP/1.1 server in the gateway's own namespace.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::netns::Namespace;

/// Where it listens, on the loopback address.
pub const PORT: u16 = 9000;

/// What a slow answer sends at a time, and how long it rests after that.
const SIP: [u8; 1000] = [b'.'; 1000];
const REST: Duration = Duration::from_millis(100);

/// A running application. It answers `GET` of
/// - `/` with its name,
/// - `/stream/MIB` with [`Stream`],
/// - `/slow/SIPS` with so many times a thousand bytes, ten times a second.
///
/// Dropping it takes no new connections; the open ones end with their peer.
#[derive(Debug)]
pub struct App {
    listener: TcpListener,
}

impl App {
    pub fn start(namespace: &Namespace, name: &str) -> Result<Self> {
        let listener = namespace.within(|| TcpListener::bind((Ipv4Addr::LOCALHOST, PORT)))??;
        let (accepting, name) = (listener.try_clone()?, name.to_owned());
        std::thread::spawn(move || {
            while let Ok((stream, _)) = accepting.accept() {
                let name = name.clone();
                // A gateway that goes away in the middle is its own affair.
                std::thread::spawn(move || answer(stream, &name));
            }
        });
        Ok(Self { listener })
    }
}

impl Drop for App {
    fn drop(&mut self) {
        stop(&self.listener);
    }
}

/// Ends the `accept` of another thread: on Linux a listening socket that is shut down accepts nothing more.
pub(crate) fn stop(listener: &TcpListener) {
    if let Err(error) = rustix::net::shutdown(listener, rustix::net::Shutdown::Both) {
        eprintln!("a server's thread stays: {error}");
    }
}

/// The bytes a slow answer of so many sips has.
pub fn slow_bytes(sips: u64) -> u64 {
    sips * SIP.len() as u64
}

fn answer(mut stream: TcpStream, name: &str) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let mut request = String::new();
        if reader.read_line(&mut request)? == 0 {
            break;
        }
        let mut header = String::new();
        while reader.read_line(&mut header)? > 2 {
            header.clear();
        }
        let path = request.split(' ').nth(1).context("a request without a path")?;
        let mut head = |length: u64| write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
        if path == "/" {
            head(name.len() as u64 + 1)?;
            writeln!(stream, "{name}")?;
        } else if let Some(mib) = path.strip_prefix("/stream/") {
            let mut content = Stream::new(mib.parse()?);
            head(content.length())?;
            let mut buffer = vec![0; Stream::BLOCK];
            while let length @ 1.. = content.read(&mut buffer)? {
                stream.write_all(&buffer[..length])?;
            }
        } else if let Some(sips) = path.strip_prefix("/slow/") {
            let sips = sips.parse()?;
            head(slow_bytes(sips))?;
            for _ in 0..sips {
                stream.write_all(&SIP)?;
                std::thread::sleep(REST);
            }
        } else {
            write!(stream, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?;
            stream.shutdown(Shutdown::Write)?;
            bail!("no such path: {path}");
        }
    }
    Ok(())
}

/// So many mebibytes that take no memory: the same noise again and again, but with its place in each 4 KiB, so that
/// nothing can be lost, doubled or exchanged without notice.
#[derive(Debug)]
pub struct Stream {
    block: Vec<u8>,
    /// Blocks in all, and what was read so far.
    blocks: u64,
    block_index: u64,
    offset: usize,
}

impl Stream {
    const BLOCK: usize = 1 << 20;
    const PAGE: usize = 4096;

    pub fn new(mib: u64) -> Self {
        // xorshift64 (G. Marsaglia, "Xorshift RNGs", 2003): noise that is the same in every process.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut noise = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        };
        let block = (0..Self::BLOCK / 8).flat_map(|_| noise()).collect();
        let mut stream = Self { block, blocks: mib, block_index: 0, offset: 0 };
        stream.stamp();
        stream
    }

    /// Bytes in all.
    pub fn length(&self) -> u64 {
        self.blocks * Self::BLOCK as u64
    }

    fn stamp(&mut self) {
        for page in self.block.chunks_exact_mut(Self::PAGE) {
            page[..8].copy_from_slice(&self.block_index.to_le_bytes());
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.block_index == self.blocks {
            return Ok(0);
        }
        let length = buffer.len().min(Self::BLOCK - self.offset);
        buffer[..length].copy_from_slice(&self.block[self.offset..][..length]);
        self.offset += length;
        if self.offset == Self::BLOCK {
            self.offset = 0;
            self.block_index += 1;
            self.stamp();
        }
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::Stream;

    #[test]
    fn a_stream_has_its_length_and_no_two_equal_blocks() {
        let mut bytes = Vec::new();
        let mut stream = Stream::new(3);
        assert_eq!(stream.read_to_end(&mut bytes).unwrap(), 3 << 20);
        assert_eq!(stream.length(), 3 << 20);
        let blocks: Vec<_> = bytes.chunks(1 << 20).collect();
        assert!(blocks[0] != blocks[1] && blocks[1] != blocks[2]);
        let mut again = Vec::new();
        Stream::new(3).read_to_end(&mut again).unwrap();
        assert!(bytes == again);
    }
}
