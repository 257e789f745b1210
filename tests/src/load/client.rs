//! A client of a load, and when it tries again.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::{Ended, Shared};
use crate::http::{Connection, Unanswered};

/// Between two requests of one client unless it is told otherwise, so that all of them together leave the machine some time for other things.
pub(super) const REST: Duration = Duration::from_millis(2);

/// One of them.
#[derive(Debug)]
pub(super) struct Client {
    shared: Arc<Shared>,
    address: SocketAddr,
    /// Requests that it makes on a connection.
    kept: u32,
    ended: Ended,
    /// Between two requests.
    rest: Duration,
    /// The connection that it keeps, and how many more requests that one may have.
    idle: Option<(Connection, u32)>,
    /// Its end of the last connection.
    local: Option<SocketAddr>,
}

impl Client {
    /// Asks `address`, up to `kept` times on a connection.
    pub(super) fn new(shared: Arc<Shared>, address: SocketAddr, kept: u32, ended: Ended) -> Self {
        Self { shared, address, kept, ended, rest: REST, idle: None, local: None }
    }

    /// The same with so long a rest between two requests.
    pub(super) fn resting(self, rest: Duration) -> Self {
        Self { rest, ..self }
    }

    /// One request after the other, until it is told to stop.
    pub(super) fn ask(mut self) {
        while !self.shared.stop.load(Ordering::Relaxed) {
            let began = Instant::now();
            let answer = self.request();
            self.shared.record().note(began, self.local, answer);
            std::thread::sleep(self.rest);
        }
    }

    /// A request on the connection that it keeps, or else on a new one.
    fn request(&mut self) -> Result<String> {
        if let Some((mut connection, left)) = self.idle.take() {
            match connection.get() {
                Err(error) if self.ended == Ended::IsRetried && error.is::<Unanswered>() => {
                    self.shared.record().retried += 1;
                }
                Err(error) => return Err(error),
                Ok(name) => {
                    self.keep(connection, left);
                    return Ok(name);
                }
            }
        }
        self.shared.record().connections += 1;
        self.local = None;
        let mut connection = Connection::open(self.address)?;
        self.local = Some(connection.local()?);
        if self.kept == 1 {
            return connection.get_last();
        }
        let name = connection.get()?;
        self.keep(connection, self.kept);
        Ok(name)
    }

    /// A connection of which `left` requests were left has had one more.
    fn keep(&mut self, connection: Connection, left: u32) {
        self.idle = (left > 1).then(|| (connection, left - 1));
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nb1\n";

    /// A server that answers each connection of a list so many requests and ends it at the next one, after these bytes.
    fn serve(connections: Vec<(u32, &'static [u8])>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for (answers, last) in connections {
                let (mut stream, _) = listener.accept().unwrap();
                for _ in 0..answers {
                    hear(&mut stream);
                    stream.write_all(ANSWER).unwrap();
                }
                hear(&mut stream);
                stream.write_all(last).unwrap();
            }
        });
        address
    }

    /// A request is one segment here.
    fn hear(stream: &mut TcpStream) {
        assert!(stream.read(&mut [0; 1024]).unwrap() > 0);
    }

    fn client(address: SocketAddr, kept: u32, ended: Ended) -> Client {
        Client::new(Arc::default(), address, kept, ended)
    }

    fn retried(client: &Client) -> u64 {
        client.shared.record().retried
    }

    #[test]
    fn a_kept_connection_that_ends_unanswered_is_retried_once() {
        let mut client = client(serve(vec![(2, b""), (1, b""), (0, b"")]), u32::MAX, Ended::IsRetried);
        for retries in [0, 0, 1] {
            assert_eq!(client.request().unwrap(), "b1");
            assert_eq!(retried(&client), retries);
        }
        // The second try is the first request of its connection.
        assert!(client.request().unwrap_err().is::<Unanswered>());
        assert_eq!(retried(&client), 2);
    }

    #[test]
    fn a_reset_is_retried_like_a_close() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = client(listener.local_addr().unwrap(), u32::MAX, Ended::IsRetried);
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            hear(&mut stream);
            stream.write_all(ANSWER).unwrap();
            // Closed with something unread, it sends a RST.
            stream.peek(&mut [0]).unwrap();
            drop(stream);
            let (mut stream, _) = listener.accept().unwrap();
            hear(&mut stream);
            stream.write_all(ANSWER).unwrap();
        });
        assert_eq!(client.request().unwrap(), "b1");
        assert_eq!(client.request().unwrap(), "b1");
        assert_eq!(retried(&client), 1);
        server.join().unwrap();
    }

    #[test]
    fn neither_a_first_request_nor_a_begun_answer_nor_a_strict_client_is_retried() {
        for (connections, kept, ended, good) in [
            (vec![(0, &b""[..])], u32::MAX, Ended::IsRetried, 0),
            (vec![(0, b"")], 1, Ended::IsRetried, 0),
            (vec![(1, b"HTTP/1.1 2")], u32::MAX, Ended::IsRetried, 1),
            (vec![(1, b"")], u32::MAX, Ended::Fails, 1),
        ] {
            let mut client = client(serve(connections), kept, ended);
            for _ in 0..good {
                client.request().unwrap();
            }
            let error = client.request().unwrap_err();
            assert_eq!(retried(&client), 0, "{error:#}");
        }
    }

    #[test]
    fn connections_are_kept_for_as_many_requests_as_they_should() {
        let mut client = client(serve(vec![(3, b""), (3, b"")]), 3, Ended::Fails);
        for _ in 0..3 {
            client.request().unwrap();
        }
        assert!(client.idle.is_none());
    }
}
