//! WebSocket, RFC 6455, by a real library: an echo server behind the gateway, and a client in front of it.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use tungstenite::{Message, WebSocket, accept};

use crate::app::stop;
use crate::netns::Namespace;

/// Where the echo server listens, on the loopback address.
pub const PORT: u16 = 9001;

/// For one connect, read or write; far above what any takes.
const TIME_LIMIT: Duration = Duration::from_secs(30);

/// A running server that sends every message back. Dropping it takes no new connections.
#[derive(Debug)]
pub struct EchoServer {
    listener: TcpListener,
}

impl EchoServer {
    pub fn start(namespace: &Namespace) -> Result<Self> {
        let listener = namespace.within(|| TcpListener::bind((Ipv4Addr::LOCALHOST, PORT)))??;
        let accepting = listener.try_clone()?;
        std::thread::spawn(move || {
            while let Ok((stream, _)) = accepting.accept() {
                std::thread::spawn(move || echo(stream));
            }
        });
        Ok(Self { listener })
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        stop(&self.listener);
    }
}

/// Until the peer closes.
fn echo(stream: TcpStream) -> Result<()> {
    let mut socket = accept(stream)?;
    loop {
        let message = socket.read()?;
        if message.is_binary() || message.is_text() {
            socket.send(message)?;
        }
    }
}

/// A client's connection through TLS.
#[derive(Debug)]
pub struct Client {
    socket: WebSocket<StreamOwned<ClientConnection, TcpStream>>,
}

impl Client {
    /// Connects from `host`, checks the certificate for `name` and upgrades.
    pub fn open(host: &Namespace, vip: SocketAddr, name: &str, config: Arc<ClientConfig>) -> Result<Self> {
        let stream = host.within(|| TcpStream::connect_timeout(&vip, TIME_LIMIT))?;
        let stream = stream.with_context(|| format!("connect to {vip}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIME_LIMIT))?;
        stream.set_write_timeout(Some(TIME_LIMIT))?;
        let tls = ClientConnection::new(config, ServerName::try_from(name.to_owned())?)?;
        let stream = StreamOwned::new(tls, stream);
        let (socket, response) =
            tungstenite::client(format!("wss://{name}/echo"), stream).context("the upgrade")?;
        ensure!(response.status() == 101, "answered with {}", response.status());
        Ok(Self { socket })
    }

    /// Sends a message and waits until the same comes back.
    pub fn echo(&mut self, content: Vec<u8>) -> Result<()> {
        let message = Message::binary(content);
        self.socket.send(message.clone()).context("send")?;
        let answer = self.socket.read().context("the echo")?;
        ensure!(answer == message, "{} bytes came back changed, as {}", message.len(), answer.len());
        Ok(())
    }

    /// The closing handshake.
    pub fn close(mut self) -> Result<()> {
        self.socket.close(None)?;
        loop {
            match self.socket.read() {
                Ok(_) => {}
                Err(tungstenite::Error::ConnectionClosed) => return Ok(()),
                Err(error) => return Err(error).context("the closing handshake"),
            }
        }
    }
}
