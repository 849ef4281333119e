//! Somebody who follows `/events`, chunk by chunk.

use super::http::{Answer, connect};
use super::{Broker, DEADLINE};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Instant;

/// Somebody who follows.
pub struct Follower {
    stream: BufReader<TcpStream>,
    /// The head of the answer.
    pub head: Answer,
    /// What has come of the body and was not read.
    rest: String,
}

impl Follower {
    /// Asks, and reads the answer's head.
    #[track_caller]
    pub fn asks(broker: &mut Broker, headers: &str) -> Follower {
        let mut stream = connect(broker.health());
        stream.write_all(format!("GET /events HTTP/1.1\r\n{headers}\r\n").as_bytes()).expect("the server reads");
        let mut stream = BufReader::new(stream);
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let read = stream.read_until(b'\n', &mut head).expect("a head");
            assert!(read > 0, "no head but {:?}", String::from_utf8_lossy(&head));
        }
        let head = Answer::parse(&head).expect("a head");
        Follower { stream, head, rest: String::new() }
    }

    /// One who is let in.
    #[track_caller]
    pub fn of(broker: &mut Broker) -> Follower {
        let follower = Follower::asks(broker, "Host: localhost\r\n");
        assert_eq!(follower.head.code, 200, "{:?}", follower.head);
        follower
    }

    /// The next event: its name and data. `None` at the end of the stream.
    #[track_caller]
    pub fn next(&mut self) -> Option<(String, Value)> {
        while !self.rest.contains("\n\n") {
            let mut size = String::new();
            self.stream.read_line(&mut size).expect("a chunk");
            let size = usize::from_str_radix(size.trim(), 16).unwrap_or_else(|error| panic!("{error}: {size:?}"));
            let mut chunk = vec![0; size + 2];
            self.stream.read_exact(&mut chunk).expect("a whole chunk");
            if size == 0 {
                assert_eq!(self.rest, "", "the last event is whole");
                return None;
            }
            self.rest += std::str::from_utf8(&chunk[..size]).expect("text");
        }
        let (event, rest) = self.rest.split_once("\n\n").expect("an event");
        let (name, data) = event.split_once('\n').expect("two lines");
        let (name, data) = (name.strip_prefix("event: ").expect("a name"), data.strip_prefix("data: ").expect("data"));
        let event = (name.to_owned(), serde_json::from_str(data).unwrap_or_else(|error| panic!("{error}: {data}")));
        self.rest = rest.to_owned();
        Some(event)
    }

    /// Goes so that the server notices at once: something that has come is not read, so the kernel resets the
    /// connection.
    #[track_caller]
    pub fn leave(mut self) {
        let stream = self.stream.get_mut();
        stream.peek(&mut [0]).expect("a further event");
    }

    /// The data of the next event with this name that is as wanted; others are passed over.
    #[track_caller]
    pub fn until(&mut self, name: &str, is_wanted: impl Fn(&Value) -> bool) -> Value {
        let until = Instant::now() + DEADLINE;
        loop {
            // Snapshots come for ever.
            assert!(Instant::now() < until, "waited {DEADLINE:?} for {name}");
            let (found, data) = self.next().unwrap_or_else(|| panic!("the stream ended without {name}"));
            if found == name && is_wanted(&data) {
                return data;
            }
        }
    }

    /// The data of the next event of a topic that `is_wanted`.
    #[track_caller]
    pub fn event(&mut self, topic: &str, is_wanted: impl Fn(&Value) -> bool) -> Value {
        self.until("event", |data| data["topic"] == topic && is_wanted(&data["data"]))["data"].clone()
    }

    /// The next snapshot.
    #[track_caller]
    pub fn snapshot(&mut self) -> Value {
        self.until("snapshot", |_| true)
    }
}
