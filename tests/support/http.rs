//! HTTP/1.1 over a plain socket: what a test says is what goes over the wire.

use super::{Broker, DEADLINE, wait_until};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

/// An answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The status code.
    pub code: u16,
    /// Names in small letters, and values.
    pub headers: Vec<(String, String)>,
    /// The body as text.
    pub body: String,
}

impl Answer {
    /// Reads what a server has sent; `None` if it is no whole head.
    pub fn parse(bytes: &[u8]) -> Option<Answer> {
        let text = String::from_utf8_lossy(bytes);
        let (head, body) = text.split_once("\r\n\r\n")?;
        let mut lines = head.lines();
        let code = lines.next()?.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
        let headers = lines.filter_map(|line| line.split_once(": "));
        let headers = headers.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
        Some(Answer { code, headers, body: body.to_owned() })
    }

    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// A sample out of metrics, by its name and labels as they are written.
    #[track_caller]
    pub fn sample(&self, name: &str) -> f64 {
        let line = self.body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let value = line.unwrap_or_else(|| panic!("no {name} in {}", self.body));
        value.parse().unwrap_or_else(|error| panic!("{name} {value}: {error}"))
    }
}

/// Sends bytes to a server and reads until it closes: all that it has sent.
#[track_caller]
pub fn talk(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = connect(address);
    // It may close before it has read all.
    let _ = stream.write_all(bytes);
    read(&mut stream)
}

/// A connection that does not wait for ever.
#[track_caller]
pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the server listens");
    stream.set_read_timeout(Some(DEADLINE)).expect("a socket");
    stream.set_write_timeout(Some(DEADLINE)).expect("a socket");
    stream
}

/// Everything until the other side closes.
#[track_caller]
pub fn read(stream: &mut TcpStream) -> Vec<u8> {
    let mut answer = Vec::new();
    let mut bytes = [0; 4096];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return answer,
            Ok(read) => answer.extend_from_slice(&bytes[..read]),
            // It had something of ours unread.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return answer,
            Err(error) => panic!("no end after {:?}: {error}", String::from_utf8_lossy(&answer)),
        }
    }
}

/// Where a broker's endpoints listen, out of its log.
pub fn address_in(log: &str) -> Option<SocketAddr> {
    let rest = log.split("health endpoint listening address=").nth(1)?;
    // A line that is half written is none.
    rest.split_once('\n')?.0.trim().parse().ok()
}

impl Broker {
    /// Where its endpoints listen, as soon as they do.
    #[track_caller]
    pub fn health(&mut self) -> SocketAddr {
        let mut address = None;
        wait_until("the health endpoints to listen", || {
            address = address_in(&self.process().stderr());
            address.is_some()
        });
        address.expect("an address")
    }

    /// Asks for a path, with headers, each with its end of line.
    #[track_caller]
    pub fn ask(&mut self, method: &str, path: &str, headers: &str) -> Answer {
        let request = format!("{method} {path} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n");
        let answer = talk(self.health(), request.as_bytes());
        Answer::parse(&answer).unwrap_or_else(|| panic!("no answer but {:?}", String::from_utf8_lossy(&answer)))
    }

    /// Gets a path.
    #[track_caller]
    pub fn get(&mut self, path: &str) -> Answer {
        self.ask("GET", path, "Host: localhost\r\n")
    }
}
