//! Servers of bytes alone: one sends back what it gets and tells how each connection ended, one sends as much as is asked for.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::app::stop;
use crate::netns::Namespace;

/// How a connection ended, as one end of it saw that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By a FIN.
    Closed,
    /// By a RST.
    Reset,
}

/// A running server. Dropping it takes no new connections; the open ones end with their peer.
#[derive(Debug)]
pub struct Echo {
    listener: TcpListener,
    ends: Mutex<Receiver<End>>,
}

impl Echo {
    pub fn start(host: &Namespace, address: SocketAddr) -> Result<Self> {
        let listener =
            host.within(|| TcpListener::bind(address))?.with_context(|| format!("at {address}"))?;
        let accepting = listener.try_clone()?;
        let (tell, ends) = channel();
        std::thread::spawn(move || {
            while let Ok((stream, _)) = accepting.accept() {
                let tell: Sender<End> = tell.clone();
                std::thread::spawn(move || echo(stream).map(|end| tell.send(end)));
            }
        });
        Ok(Self { listener, ends: Mutex::new(ends) })
    }

    /// How the next connection that ends has ended, of those that were used.
    pub fn end(&self, limit: Duration) -> Result<End> {
        self.ends
            .lock()
            .expect("no panic while locked")
            .recv_timeout(limit)
            .context("no connection has ended at the backend")
    }
}

/// A server that sends as many bytes as it is asked for: 8 bytes, little endian.
#[derive(Debug)]
pub struct Source {
    listener: TcpListener,
}

impl Source {
    pub fn start(host: &Namespace, address: SocketAddr) -> Result<Self> {
        let listener =
            host.within(|| TcpListener::bind(address))?.with_context(|| format!("at {address}"))?;
        let accepting = listener.try_clone()?;
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = accepting.accept() {
                std::thread::spawn(move || {
                    let mut asked = [0; 8];
                    stream.read_exact(&mut asked)?;
                    std::io::copy(&mut std::io::repeat(7).take(u64::from_le_bytes(asked)), &mut stream)
                });
            }
        });
        Ok(Self { listener })
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        stop(&self.listener);
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        stop(&self.listener);
    }
}

/// `None`: nothing was ever said, as where somebody only wanted to know whether there is a server.
fn echo(mut stream: TcpStream) -> Option<End> {
    let mut buffer = vec![0; 64 << 10];
    let mut used = false;
    loop {
        let end = match stream.read(&mut buffer) {
            Ok(0) => End::Closed,
            Ok(bytes) if stream.write_all(&buffer[..bytes]).is_ok() => {
                used = true;
                continue;
            }
            Ok(_) | Err(_) => End::Reset,
        };
        return used.then_some(end);
    }
}
