//! A message on its way into the bulk lane, part by part.

use super::lane::{LaneProducer, broken};
use super::names::{NameRef, TopicNumber};
use crate::client::error::{Kind, Result};
use crate::wire::record::{Flags, Header, Kind as RecordKind};

/// A message on its way into the bulk lane, part by part.
#[derive(Debug)]
pub(crate) struct MessageParts {
    topic: NameRef,
    header: Header,
    at: usize,
    /// The session in which it was begun, if it was.
    pub(crate) begun: Option<u64>,
}

impl MessageParts {
    pub(crate) fn new(topic: NameRef, total: u32) -> MessageParts {
        MessageParts { topic, header: Header { total, ..Header::new(RecordKind::Publish) }, at: 0, begun: None }
    }

    /// Places parts as far as there is space. Returns whether it is whole.
    pub(crate) fn place(&mut self, lane: &mut LaneProducer, payload: &[u8], keep: bool) -> Result<bool> {
        if self.begun.is_some_and(|session| session != lane.session) {
            // Its broker has died within it, and so it is begun again at the next.
            self.header.id = lane.topic(&self.topic)?.number;
            (self.at, self.begun) = (0, Some(lane.session));
            self.header.flags = Flags::RESENT;
        }
        if payload.len() > lane.max_message_size {
            let max = u32::try_from(lane.max_message_size).unwrap_or(u32::MAX);
            return Err(Kind::TooLarge { len: payload.len(), max }.into());
        }
        loop {
            if self.begun.is_some() {
                let Some(placed) = lane.try_fragments(&self.header, payload, self.at)? else { return Ok(false) };
                self.at += placed;
            } else {
                let TopicNumber { number, seq, .. } = *lane.topic(&self.topic)?;
                (self.header.id, self.header.seq) = (number, seq + 1);
                let part = &payload[..payload.len().min(lane.slot_size)];
                let flags = Flags::fragment(0, part.len(), payload.len());
                if !lane.try_push(&Header { flags, ..self.header }, part)? {
                    return Ok(false);
                }
                lane.topic(&self.topic)?.seq = self.header.seq;
                (self.at, self.begun) = (part.len(), Some(lane.session));
            }
            if self.at == payload.len() {
                break;
            }
        }
        if keep && payload.len() > lane.slot_size {
            let consumed = lane.producer.look().map_err(broken)?;
            let claimed = lane.producer.claimed();
            lane.resends.keep(&self.header, payload, claimed, consumed);
        }
        Ok(true)
    }
}
