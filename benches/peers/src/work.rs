//! The messages: making them, checking every byte, and the times.
//!
//! ```text
//! request   | number, 8 bytes | tokens wanted, 4 bytes; 0: an echo | body |
//! token     | index, 8 bytes  | " token  "                         |
//! one way   | number, 8 bytes; the highest bit: the last message    | body |
//! ```
//!
//! Each end expects exactly the next number and the known body. A lost, doubled, reordered or changed message is an
//! error, also while times are taken.

use crate::error::Result;
use crate::peer::say;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// Tokens of one streamed reply.
pub(crate) const TOKENS: u32 = 1000;
const TOKEN_TEXT: &[u8; 8] = b" token  ";
const LAST: u64 = 1 << 63;
const HEADER: usize = 12;
/// Messages between two looks at the clock.
const CLOCK_STEP: u64 = 64;

/// What an end reports to the driver.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Figures {
    pub(crate) messages: u64,
    pub(crate) seconds: f64,
    #[serde(default)]
    pub(crate) p50_us: f64,
    #[serde(default)]
    pub(crate) p99_us: f64,
}

fn message(size: usize) -> Vec<u8> {
    (0..size).map(|index| (index * 31 + 7) as u8).collect()
}

fn set_number(message: &mut [u8], number: u64) {
    message[..8].copy_from_slice(&number.to_le_bytes());
}

fn number(message: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(message.get(..8)?.try_into().ok()?))
}

/// The part of a measurement that is not counted.
pub(crate) fn warm_up(time: Duration) -> Duration {
    time / 4
}

// ---------------------------------------------------------------------------------------------------------- one way

/// The messages that a sender sends: for the given time and its warm-up, and then the last one.
pub(crate) struct Source {
    message: Vec<u8>,
    time: Duration,
    started: Option<Instant>,
    sent: u64,
    finished: bool,
}

impl Source {
    pub(crate) fn new(size: usize, time: Duration) -> Self {
        Self { message: message(size), time: time + warm_up(time), started: None, sent: 0, finished: false }
    }

    pub(crate) fn next(&mut self) -> Option<&[u8]> {
        if self.finished {
            return None;
        }
        if self.sent.is_multiple_of(CLOCK_STEP) {
            self.finished = self.started.get_or_insert_with(Instant::now).elapsed() >= self.time;
        }
        set_number(&mut self.message, if self.finished { self.sent | LAST } else { self.sent });
        self.sent += 1;
        Some(&self.message)
    }
}

/// What a receiver received.
pub(crate) struct Sink {
    expected: Vec<u8>,
    warm_up: Duration,
    first: Option<Instant>,
    /// The end of the warm-up, and the messages until then.
    started: Option<(Instant, u64)>,
    received: u64,
    figures: Option<Figures>,
}

impl Sink {
    pub(crate) fn new(size: usize, time: Duration) -> Self {
        let (expected, warm_up) = (message(size), warm_up(time));
        Self { expected, warm_up, first: None, started: None, received: 0, figures: None }
    }

    /// Whether the last message has arrived.
    pub(crate) fn is_done(&self) -> bool {
        self.figures.is_some()
    }

    /// The messages so far.
    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    pub(crate) fn figures(&self) -> Option<Figures> {
        self.figures
    }

    pub(crate) fn take(&mut self, message: &[u8]) -> Result<()> {
        set_number(&mut self.expected, self.received);
        if message == self.expected {
            self.received += 1;
            if self.started.is_none() && self.received.is_multiple_of(CLOCK_STEP) {
                let first = self.first.get_or_insert_with(Instant::now);
                if first.elapsed() >= self.warm_up {
                    say("start");
                    self.started = Some((Instant::now(), self.received));
                }
            }
            return Ok(());
        }
        set_number(&mut self.expected, self.received | LAST);
        if message != self.expected {
            let got = number(message).map_or(-1, |number| (number & !LAST) as i64);
            return Err(format!("message {} expected, {got} of {} bytes received", self.received, message.len()).into());
        }
        let (started, before) = self.started.ok_or("all messages arrived before the warm-up ended")?;
        let seconds = started.elapsed().as_secs_f64();
        say("end");
        self.figures = Some(Figures { messages: self.received - before, seconds, ..Figures::default() });
        Ok(())
    }
}

// ----------------------------------------------------------------------------------------------------- round trips

/// The requests of a requester, one at a time, and their replies.
pub(crate) struct Caller {
    request: Vec<u8>,
    tokens: u32,
    time: Duration,
    /// Of the requests so far; `limit` ends them before their time.
    number: u64,
    limit: u64,
    sent: Instant,
    /// Replies that the present request still waits for.
    left: u32,
    first: Option<Instant>,
    started: Option<Instant>,
    times_ns: Vec<u64>,
}

impl Caller {
    /// Echoes of `size` bytes; or with `tokens` a stream of them as the reply to each request.
    pub(crate) fn new(size: usize, tokens: u32, time: Duration) -> Self {
        let mut request = message(size);
        request[8..HEADER].copy_from_slice(&tokens.to_le_bytes());
        let (now, times_ns) = (Instant::now(), Vec::with_capacity(1 << 20));
        Self { request, tokens, time, number: 0, limit: LAST, sent: now, left: 0, first: None, started: None, times_ns }
    }

    /// One echo, without figures.
    pub(crate) fn once(size: usize) -> Self {
        Self { limit: 1, times_ns: Vec::new(), ..Self::new(size, 0, Duration::MAX / 8) }
    }

    /// Whether the reply to a request is a stream.
    pub(crate) fn wants_stream(&self) -> bool {
        self.tokens > 0
    }

    /// The next request; its time begins.
    pub(crate) fn next(&mut self) -> Option<&[u8]> {
        let now = Instant::now();
        match (self.first, self.started) {
            (None, _) => self.first = Some(now),
            (Some(first), None) if now - first >= warm_up(self.time) => {
                say("start");
                self.started = Some(Instant::now());
            }
            (_, Some(started)) if now - started >= self.time => {
                say("end");
                return None;
            }
            _ => {}
        }
        if self.number == self.limit {
            return None;
        }
        set_number(&mut self.request, self.number);
        self.left = self.tokens.max(1);
        self.sent = Instant::now();
        Some(&self.request)
    }

    /// Whether a reply is outstanding.
    pub(crate) fn waits(&self) -> bool {
        self.left > 0
    }

    /// Takes a reply; with the last one the request's time ends.
    pub(crate) fn take(&mut self, reply: &[u8]) -> Result<()> {
        self.left = self.left.checked_sub(1).ok_or("a reply that no request waits for")?;
        if self.left == 0 && self.started.is_some() {
            self.times_ns.push(self.sent.elapsed().as_nanos() as u64);
        }
        let is_right = if self.tokens == 0 {
            reply == self.request
        } else {
            reply == token(u64::from(self.tokens - self.left - 1))
        };
        if self.left == 0 {
            self.number += 1;
        }
        if is_right { Ok(()) } else { Err(format!("a wrong reply to request {}", self.number).into()) }
    }

    pub(crate) fn figures(mut self) -> Result<Figures> {
        self.times_ns.sort_unstable();
        let at = |part: f64| {
            let index = (self.times_ns.len() as f64 * part) as usize;
            self.times_ns.get(index).map(|ns| *ns as f64 / 1000.0).ok_or("no request was measured")
        };
        let seconds = self.started.map_or(0.0, |started| started.elapsed().as_secs_f64());
        Ok(Figures { messages: self.times_ns.len() as u64, seconds, p50_us: at(0.5)?, p99_us: at(0.99)? })
    }
}

fn token(index: u64) -> [u8; 16] {
    let mut token = [0; 16];
    token[..8].copy_from_slice(&index.to_le_bytes());
    token[8..].copy_from_slice(TOKEN_TEXT);
    token
}

/// The replies to a request: the request itself, or the tokens that it asks for.
pub(crate) fn replies(request: &[u8]) -> Result<impl Iterator<Item = Reply<'_>> + use<'_>> {
    let tokens = request.get(8..HEADER).ok_or("a request without its header")?;
    let tokens = u32::from_le_bytes(tokens.try_into()?);
    Ok((0..tokens.max(1)).map(
        move |index| {
            if tokens == 0 { Reply::Echo(request) } else { Reply::Token(token(u64::from(index))) }
        },
    ))
}

/// Whether a request asks for a stream.
pub(crate) fn asks_for_stream(request: &[u8]) -> bool {
    request.get(8..HEADER).is_some_and(|tokens| tokens != [0; 4])
}

pub(crate) enum Reply<'a> {
    Echo(&'a [u8]),
    Token([u8; 16]),
}

impl AsRef<[u8]> for Reply<'_> {
    fn as_ref(&self) -> &[u8] {
        match self {
            Reply::Echo(bytes) => bytes,
            Reply::Token(bytes) => bytes,
        }
    }
}

// ------------------------------------------------------------------------------------------------------------ window

/// Messages under way, for peers that drop messages of a sender that is faster than its receiver: the receiver
/// acknowledges every [`Window::STEP`]th, and the sender waits while [`Window::MESSAGES`] are not acknowledged.
#[derive(Default)]
pub(crate) struct Window {
    under_way: u64,
}

impl Window {
    pub(crate) const MESSAGES: u64 = 4096;
    pub(crate) const STEP: u64 = 1024;

    /// Before a message is sent: whether an acknowledgement must arrive first.
    pub(crate) fn is_full(&self) -> bool {
        self.under_way >= Self::MESSAGES
    }

    pub(crate) fn sent(&mut self) {
        self.under_way += 1;
    }

    pub(crate) fn acknowledged(&mut self) {
        self.under_way -= Self::STEP;
    }

    /// At the receiver: whether to acknowledge after so many messages.
    pub(crate) fn is_due(received: u64) -> bool {
        received.is_multiple_of(Self::STEP)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sink_of(messages: &[Vec<u8>]) -> Result<()> {
        let mut sink = Sink::new(64, Duration::ZERO);
        messages.iter().try_for_each(|message| sink.take(message))
    }

    #[test]
    fn a_lost_doubled_or_changed_message_is_an_error() {
        let mut source = Source::new(64, Duration::from_secs(60));
        let good: Vec<Vec<u8>> = (0..100).map(|_| source.next().expect("a message").to_vec()).collect();
        assert!(sink_of(&good).is_ok());
        let mut lost = good.clone();
        lost.remove(50);
        assert!(sink_of(&lost).is_err());
        let mut doubled = good.clone();
        doubled.insert(50, good[49].clone());
        assert!(sink_of(&doubled).is_err());
        let mut changed = good.clone();
        changed[50][63] ^= 1;
        assert!(sink_of(&changed).is_err());
        let mut cut = good;
        cut[50].pop();
        assert!(sink_of(&cut).is_err());
    }

    #[test]
    fn a_wrong_or_surplus_reply_is_an_error() {
        let mut caller = Caller::new(64, TOKENS, Duration::from_secs(60));
        let request = caller.next().expect("a request").to_vec();
        for reply in replies(&request).expect("replies") {
            assert!(caller.waits());
            caller.take(reply.as_ref()).expect("the right token");
        }
        assert!(!caller.waits());
        assert!(caller.take(&token(0)).is_err());
        caller.next();
        assert!(caller.take(&token(1)).is_err());
    }
}
