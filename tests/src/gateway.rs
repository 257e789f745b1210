//! The demo's stand-in for an ingress gateway: answers every HTTP request with its name.

use std::io::{BufRead as _, BufReader, Result, Write as _};
use std::net::{Ipv6Addr, TcpListener, TcpStream};

/// Serves `port` on every address of both families, for as long as the process lives.
pub fn serve(name: &str, port: u16) -> Result<()> {
    // Linux listens for IPv4 on a wildcard IPv6 socket too, unless net.ipv6.bindv6only says otherwise.
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?;
    for stream in listener.incoming() {
        let (stream, name) = (stream?, name.to_owned());
        // A client that goes away in the middle is its own affair.
        std::thread::spawn(move || answer(stream, &name));
    }
    Ok(())
}

fn answer(stream: TcpStream, name: &str) -> Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let mut stream = stream;
    let mut last = false;
    while let Some(line) = lines.next().transpose()? {
        last |= line.eq_ignore_ascii_case("connection: close");
        if line.is_empty() {
            let length = name.len() + 1;
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{name}\n")?;
            if last {
                break;
            }
        }
    }
    Ok(())
}
