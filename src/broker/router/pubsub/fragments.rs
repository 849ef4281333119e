//! Runs within a message: fragments of one message that are routed with one decision.
//!
//! The receivers were chosen with the message's first fragment, and credit was charged for the whole message. So a run
//! needs no more than that each receiver is there, with a ring that no other receiver shares, and without a backlog.
//! The first fragment and the last one are routed by themselves, and so is one that does not fit into a ring.

use super::PubSub;
use super::run::MAX_RECEIVERS;
use crate::broker::router::journal::{Receiver, Work};
use crate::broker::router::ports::Ports;
use crate::shm::layout::{RingName, cells_for};
use crate::shm::ring::{Extent, Record};
use crate::wire::record::{Header, Kind};

impl PubSub {
    /// Decides for a run that begins with `record`, a fragment of the begun message. Returns how many fragments it may
    /// have; `None`: there is no run.
    pub(super) fn begin_fragments(&self, ports: &mut Ports, key: u32, record: &Record) -> Option<u32> {
        let Ports { ingresses, egresses, journal, .. } = ports;
        let ingress = ingresses.get_mut(key as usize).and_then(Option::as_deref_mut)?;
        let header = Header::from_words(&record.header).ok()?;
        let partial = ingress.partial.as_ref()?;
        let message = partial.message(&ingress.info, record.len, header.flags);
        let is_inner = header.kind == Kind::Publish && header.flags.is_inner();
        let is_next = is_inner && header.id == partial.id && header.seq == partial.seq;
        // The last one is no part of the run.
        let most = partial.left.saturating_sub(1).checked_div(record.len).filter(|most| *most > 0)?;
        let position = ingress.bulk.consumed();
        if !is_next || journal.suspects(message.origin, RingName::Bulk, position) {
            return None;
        }
        // Those that have left would end each run.
        ingress.partial_targets.retain(|subscription| self.topics.subscriptions.get(*subscription).is_some());
        if ingress.partial_targets.len() > MAX_RECEIVERS {
            return None;
        }
        let run = &mut journal.run;
        run.begin(position, header.id, message.topic, *record.header.first_chunk()?);
        run.is_within = true;
        egresses.start_plan();
        for subscription in &ingress.partial_targets {
            let found = self.topics.subscriptions.get(*subscription)?;
            if found.puts_together(message.origin) {
                return None;
            }
            let begins_at = egresses.join_run(found.owner)?;
            let header = message.deliver(*subscription, found.dropped).to_words();
            let (subscription, owner) = (*subscription, found.owner);
            run.receivers.push(Receiver { subscription, owner, begins_at, cost: 0, header });
        }
        Some(most)
    }

    /// Counts the fragments of the run that are done. `more_comes`: its receivers can expect further ones soon.
    pub(super) fn end_fragments(&mut self, ports: &mut Ports, key: u32, more_comes: bool) {
        let Ports { ingresses, egresses, journal, counters, .. } = ports;
        (journal.source, journal.work) = (None, Work::Undecided);
        let Some(ingress) = ingresses.get_mut(key as usize).and_then(Option::as_deref_mut) else { return };
        let (run, len) = (&journal.run, journal.run.len());
        let count = (ingress.bulk.consumed() - run.begins_at) / u64::from(cells_for(len));
        if count == 0 {
            return;
        }
        let bytes = count * u64::from(len);
        for receiver in &run.receivers {
            // The message is counted with its first fragment.
            egresses.received(receiver.owner, (0, bytes), more_comes);
        }
        counters.fragments += count;
        counters.records += count;
        counters.bytes += bytes;
        ingress.bytes += bytes;
        if let Some(partial) = &mut ingress.partial {
            partial.left = partial.left.saturating_sub(bytes as u32);
        }
        if ingress.waiting_on.is_some() {
            ports.passed_after_wait(key, bytes as u32);
        }
    }

    /// The last router died within the run, at the fragment at `extent`, which the first `have_it` receivers have: it
    /// goes on as if it had been routed by itself.
    pub(super) fn settle_fragments(
        &mut self,
        ports: &mut Ports,
        key: u32,
        (extent, seq): (Extent, u64),
        have_it: usize,
    ) {
        let (source, record) = (ports.journal.source, ports.journal.run.message(extent, seq));
        self.end_fragments(ports, key, false);
        ports.journal.source = source;
        if let Ok(header) = Header::from_words(&record.header).as_ref()
            && have_it > 0
        {
            for receiver in ports.journal.run.receivers.iter().take(have_it) {
                ports.egresses.received(receiver.owner, (0, u64::from(extent.len)), false);
            }
            (ports.journal.step, ports.journal.before) = (have_it, None);
            ports.journal.work = Work::Further(record, *header);
        }
    }
}
