//! Runs of echoes: whole requests of one client to the broker's own service, of one shape, that are replied to with one
//! decision.
//!
//! What is the same for all of them is checked and looked up once: the service, the size, the egress, the header of the
//! reply. Each request is then placed in the egress ring of its own client, and the lane advances; what it adds to the
//! counters is settled at the end. Everything else, and the first request that does not fit into the run, is left to
//! `express`: one in an invalid slot, or one without space.
//!
//! A router that dies within a run leaves two positions: the lane's says how many requests are done, the egress ring's
//! whether the next one has its reply. `settle_run` settles these; any other is routed by itself.

use super::Calls;
use crate::broker::router::journal::{Echoes, Journal, Work};
use crate::broker::router::ports::Ports;
use crate::broker::router::runs::Source;
use crate::broker::supervision::fault;
use crate::shm::layout::{RingName, cells_for};
use crate::shm::ring::{Payload, Record};
use crate::wire::record::{Flags, HEADER_WORDS, Header, Kind};

/// The word of a header with slot and generation.
const PLACE: usize = 1;

impl Calls {
    /// Replies to `record`, the next one of the express lane of `key`, and to those behind it that are like it, at most
    /// `most`. Returns how many, and whether none is behind them; 0: it is to be routed by itself.
    #[inline]
    pub(in crate::broker::router) fn route_run(
        &mut self,
        ports: &mut Ports,
        key: u32,
        record: &Record,
        most: u32,
    ) -> (u32, bool) {
        // A look at one byte is all that other records cost.
        if (record.header[0] >> 32) as u8 != Kind::Request as u8 {
            return (0, false);
        }
        self.reply_to_run(ports, key, record, most)
    }

    /// The rest of it, which keeps no register from the loop over other records.
    #[inline(never)]
    fn reply_to_run(&mut self, ports: &mut Ports, key: u32, record: &Record, most: u32) -> (u32, bool) {
        let Some(mut reply) = self.begin_run(ports, key, record) else { return (0, false) };
        let Ports { ingresses, egresses, journal, settings, .. } = ports;
        let Some(ingress) = ingresses.get_mut(key as usize).and_then(Option::as_deref_mut) else { return (0, false) };
        let Some(mut ring) = egresses.ring_of(key) else { return (0, false) };
        let Journal { work, echoes, .. } = journal;
        let (max, requests) = (settings.max_requests_per_connection, &mut ingress.requests);
        let source = Source::<PLACE> { lane: &mut ingress.express, work, kind: Kind::Request };
        let follows = |next: &Record, _| echoes.continues_with(next);
        let deliver = |place: u64, payload: Payload<'_>| {
            let (id, generation) = (place as u32, (place >> 32) as u32);
            let slot = requests.get_mut(id as usize).filter(|slot| slot.call.is_none() && id < max);
            let Some(slot) = slot else { return false };
            fault::point("router.target", 0);
            reply[PLACE] = place;
            if !ring.push(&reply, payload) {
                return false;
            }
            fault::point("router.delivered", 0);
            slot.generation = generation;
            true
        };
        let (routed, is_dry) = source.each(record, most, follows, deliver, |_| ());
        self.end_run(ports, key);
        (routed, is_dry)
    }

    /// Decides for a run that begins with `record`. Returns the header of its replies, but for the slot; `None`: there
    /// is no run.
    #[inline]
    fn begin_run(&self, ports: &mut Ports, key: u32, record: &Record) -> Option<[u64; HEADER_WORDS]> {
        let header = Header::from_words(&record.header).ok()?;
        let is_whole = header.flags.has(Flags::WHOLE) && header.total == record.len;
        if !is_whole || header.total > ports.settings.max_message_size {
            return None;
        }
        let ingress = ports.ingress(key).filter(|ingress| ingress.services.get(header.arg) == Some(&self.echo))?;
        let begins_at = ingress.express.consumed();
        if ports.journal.suspects(ingress.info.id, RingName::Express, begins_at) {
            return None;
        }
        let replies_at = ports.egresses.get(key).filter(|egress| !egress.has_backlog())?.position();
        ports.journal.echoes = Echoes { begins_at, replies_at, shape: [record.header[0], record.header[2]] };
        let (flags, total) = (Flags::WHOLE.with(Flags::END), header.total);
        Some(Header { flags, total, ..Header::new(Kind::RoutedResponse) }.to_words())
    }

    /// Counts the requests of the run that are done.
    #[inline]
    fn end_run(&mut self, ports: &mut Ports, key: u32) {
        let Ports { ingresses, egresses, journal, counters, .. } = ports;
        (journal.source, journal.work) = (None, Work::Undecided);
        let Some(ingress) = ingresses.get_mut(key as usize).and_then(Option::as_deref_mut) else { return };
        let (run, len) = (&journal.echoes, journal.echoes.len());
        let count = (ingress.express.consumed() - run.begins_at) / u64::from(cells_for(len));
        if count == 0 {
            return;
        }
        let bytes = count * u64::from(len);
        egresses.received(key, (count, bytes), false);
        if let Some(echo) = self.services.get_mut(self.echo) {
            echo.requests += count;
        }
        counters.requests += count;
        counters.replies += count;
        counters.records += count;
        counters.bytes += bytes;
        ingress.messages += count;
        ingress.bytes += bytes;
    }

    /// The last router died within a run: settles the requests that have their reply.
    pub(in crate::broker::router) fn settle_run(&mut self, ports: &mut Ports) {
        let (Some((key, RingName::Express)), Work::Run(extent, _)) = (ports.journal.source, ports.journal.work) else {
            return;
        };
        let position = ports.egresses.get(key).map(|egress| egress.position());
        let run = &ports.journal.echoes;
        let (begins_at, replies_at) = (run.begins_at, run.replies_at);
        let Some(ingress) = ports.ingress_mut(key) else { return };
        let done = ingress.express.consumed() - begins_at;
        let has_reply = position.is_some_and(|position| position > replies_at + done);
        if has_reply {
            ingress.express.advance_behind(extent);
        }
        self.end_run(ports, key);
        // Otherwise it is the next record of which the router may have died.
        ports.journal.source = (!has_reply).then_some((key, RingName::Express));
    }
}
