//! The records of calls: requests, replies, streams, cancels and credit, all in the express lane.
//!
//! The router consumes a record of the express lane at once: it sends the record on to the other side (into the ring,
//! or into the bounded backlog behind it), or gives the sender an outcome. So no express lane waits for another
//! connection. Credit bounds the backlog: neither side sends more of a body or a reply than the other side has granted.
//!
//! The ends of calls are in `outcomes`.

use super::Call;
use super::Calls;
use crate::broker::router::connection::CloseReason;
use crate::broker::router::ports::Ports;
use crate::broker::supervision::fault;
use crate::logic::breaker::{BreakerOutcome, Failure, Permit};
use crate::logic::routing::arena::Key;
use crate::logic::services::{OfferId, ServiceId};
use crate::shm::layout::cells_for;
use crate::shm::ring::{Payload, Record};
use crate::wire::record::{Flags, Header, Kind, Outcome};

/// The flags of a response that are passed on to the requester.
const ANSWER_FLAGS: Flags = Flags::WHOLE.with(Flags::END).with(Flags::ERROR).with(Flags::STREAM);

impl Calls {
    /// Routes one record of the express lane, and consumes it.
    #[inline]
    pub(in crate::broker::router) fn route(
        &mut self,
        ports: &mut Ports,
        key: u32,
        record: &Record,
        header: &Header,
    ) -> Result<(), CloseReason> {
        match header.kind {
            Kind::Request if header.flags.has(Flags::FIRST) => self.request(ports, key, record, header)?,
            Kind::Request => self.body(ports, key, record, header)?,
            Kind::Response => self.response(ports, key, record, header)?,
            Kind::Cancel => {
                ports.decided(record);
                self.cancel(ports, key, header);
            }
            Kind::ResponseCredit => self.response_credit(ports, key, record, header)?,
            Kind::BodyCredit => self.body_credit(ports, key, record, header)?,
            Kind::ReleaseService => {
                ports.decided(record);
                self.release_service_number(ports, key, header);
            }
            kind => return Err(CloseReason::violation(format_args!("record of kind {kind:?} in the express lane"))),
        }
        Ok(())
    }

    #[inline]
    pub(super) fn request(
        &mut self,
        ports: &mut Ports,
        key: u32,
        record: &Record,
        header: &Header,
    ) -> Result<(), CloseReason> {
        let (len, is_whole) = (record.len, header.flags.has(Flags::LAST));
        let max_requests = ports.settings.max_requests_per_connection;
        let Some(ingress) = ports.ingress_mut(key) else { return Ok(()) };
        let principal = ingress.info.principal;
        if len > header.total || is_whole != (len == header.total) {
            return Err(CloseReason::violation(format_args!(
                "first record of a request of {} bytes has {len} bytes",
                header.total
            )));
        }
        let Some(service) = ingress.services.get(header.arg).copied() else {
            return Err(CloseReason::violation(format_args!("request to unknown service number {}", header.arg)));
        };
        if header.id >= max_requests {
            return Err(CloseReason::violation(format_args!("request slot {} is not below {max_requests}", header.id)));
        }
        if ingress.requests.get(header.id as usize).is_some_and(|slot| slot.call.is_some()) {
            return Err(CloseReason::violation(format_args!("request slot {} is in use", header.id)));
        }
        ports.decided(record);
        let Some(ingress) = ports.ingress_mut(key) else { return Ok(()) };
        if ingress.requests.len() <= header.id as usize {
            ingress.requests.resize(header.id as usize + 1, Default::default());
        }
        ingress.requests[header.id as usize].generation = header.id2;
        ingress.messages += 1;
        ports.counters.requests += 1;
        ports.counters.fragments += u64::from(!is_whole);
        if let Some(service) = self.services.get_mut(service) {
            service.requests += 1;
        }
        if header.total > ports.settings.max_message_size {
            self.fail(ports, key, header.id, header.id2, service, Outcome::TooLarge);
            return Ok(());
        }
        if service == self.echo {
            if is_whole {
                self.answer_echo(ports, key, record, header);
            } else {
                self.begin(ports, key, record, header, service, None);
            }
            return Ok(());
        }
        let permit = match self.admit(ports, service, principal) {
            Ok(permit) => permit,
            Err(rejected) => {
                let nanos = rejected.retry_after.unwrap_or(0);
                self.fail_until(ports, key, (header.id, header.id2), service, Outcome::BreakerOpen, nanos);
                return Ok(());
            }
        };
        match self.place_for(ports, service, principal) {
            Ok(offer) => self.begin(ports, key, record, header, service, Some((offer, permit))),
            Err(outcome) => {
                self.record_outcome(ports, service, Some(permit), BreakerOutcome::Ignored);
                self.fail(ports, key, header.id, header.id2, service, outcome);
            }
        }
        Ok(())
    }

    #[inline]
    fn answer_echo(&mut self, ports: &mut Ports, key: u32, record: &Record, header: &Header) {
        ports.counters.replies += 1;
        let answer = Header {
            flags: Flags::WHOLE.with(Flags::END),
            id: header.id,
            id2: header.id2,
            total: record.len,
            ..Header::new(Kind::RoutedResponse)
        };
        let Ports { ingresses, egresses, .. } = ports;
        let Some(ingress) = ingresses[key as usize].as_deref() else { return };
        egresses.send(key, &answer, Payload::Words(record.len, ingress.express.payload(record)));
        if let Some(egress) = egresses.get_mut(key) {
            egress.messages += 1;
        }
    }

    fn begin(
        &mut self,
        ports: &mut Ports,
        key: u32,
        record: &Record,
        header: &Header,
        service: ServiceId,
        offer: Option<(OfferId, Permit)>,
    ) {
        let (offer, permit) = offer.unzip();
        let (settings, is_stream) = (&ports.settings, header.flags.has(Flags::STREAM));
        let total = match header.nanos {
            0 if is_stream => None,
            0 => Some(settings.default_request_timeout),
            nanos => Some(nanos.min(settings.max_request_timeout)),
        };
        let step = |ms: u32, default| match ms {
            0 => default,
            ms => (u64::from(ms) * 1_000_000).min(settings.max_request_timeout),
        };
        let idle_limit = is_stream.then(|| step(header.origin, settings.stream_first_chunk));
        let chunk_limit = step(header.dropped, settings.stream_idle);
        let ends_at = total.map(|total| ports.now + total);
        let responder = offer.and_then(|offer| self.services.offer(offer));
        let (responder, number) = responder.map(|found| (found.connection, found.number)).unzip();
        let credit = ports.settings.stream_credit;
        let Some(ingress) = ports.ingress_mut(key) else { return };
        let (user, principal) = (ingress.user, ingress.info.principal);
        let body_left = header.total - record.len;
        let call = Call {
            requester: key,
            user,
            principal,
            slot: header.id,
            generation: header.id2,
            responder,
            offer,
            service,
            permit,
            number: number.unwrap_or(0),
            idle_limit,
            chunk_limit,
            ends_at,
            progress_at: ports.now,
            ready_at: ports.now,
            stream: header.flags.has(Flags::STREAM),
            has_chunk: false,
            began: ports.now,
            total: header.total,
            body_left,
            body_at: ports.now,
            part_at: ports.now,
            part_left: body_left,
            body_credit: credit.saturating_sub(cells_for(record.len)),
            answer_left: 0,
            answer_credit: credit,
        };
        let look_at = call.look_at(ports.settings.request_body_idle);
        let Some(call) = self.insert(call) else {
            self.record_outcome(ports, service, permit, BreakerOutcome::Ignored);
            self.fail(ports, key, header.id, header.id2, service, Outcome::Overloaded);
            return;
        };
        self.timers.look_by(&mut ports.wheel, call, look_at);
        if let Some(ingress) = ports.ingress_mut(key) {
            ingress.requests[header.id as usize].call = Some(call);
            ingress.outstanding += 1;
        }
        fault::point("router.express", header.kind as u64);
        // A stream without a total timeout has no deadline that its responder could know.
        self.forward_body(ports, key, record, header, call, total.unwrap_or(0));
    }

    /// Sends a record of a request's body to its responder.
    fn forward_body(&mut self, ports: &mut Ports, key: u32, record: &Record, header: &Header, call: Key, timeout: u64) {
        let Ports { ingresses, egresses, .. } = ports;
        let Calls { table: calls, .. } = self;
        let (Some(ingress), Some(found)) = (ingresses[key as usize].as_deref(), calls.get_mut(call)) else { return };
        let payload = Payload::Words(record.len, ingress.express.payload(record));
        let flags = Flags(header.flags.0 & Flags::WHOLE.0);
        let Some(responder) = found.responder else {
            let answer = Header {
                flags: flags.with_if(Flags::END, flags.has(Flags::LAST)),
                id: found.slot,
                id2: found.generation,
                total: found.total,
                ..Header::new(Kind::RoutedResponse)
            };
            found.answer_credit = found.answer_credit.saturating_sub(cells_for(record.len));
            egresses.send(key, &answer, payload);
            if flags.has(Flags::LAST) {
                ports.counters.replies += 1;
                self.finish(ports, call, |_| ());
            }
            return;
        };
        let forwarded = Header {
            flags: flags.with_if(Flags::STREAM, found.stream),
            id: found.number,
            total: found.total,
            seq: call.to_u64(),
            origin: ingress.info.id,
            nanos: timeout,
            ..Header::new(Kind::RoutedRequest)
        };
        egresses.send(responder, &forwarded, payload);
        if flags.has(Flags::LAST)
            && let Some(egress) = egresses.get_mut(responder)
        {
            egress.messages += 1;
        }
    }

    fn body(&mut self, ports: &mut Ports, key: u32, record: &Record, header: &Header) -> Result<(), CloseReason> {
        let Some(call) = self.call_in(ports, key, header) else {
            ports.counters.late += 1;
            return Ok(());
        };
        let Some(found) = self.table.get_mut(call) else { return Ok(()) };
        let (len, is_last) = (record.len, header.flags.has(Flags::LAST));
        if len == 0 || len > found.body_left || is_last != (len == found.body_left) {
            return Err(CloseReason::violation(format_args!(
                "request with {} bytes left has a record of {len} bytes",
                found.body_left
            )));
        }
        let Some(credit) = found.body_credit.checked_sub(cells_for(len)) else {
            return Err(CloseReason::violation("request body exceeds its credit"));
        };
        ports.decided(record);
        let Some(found) = self.table.get_mut(call) else { return Ok(()) };
        found.body_credit = credit;
        found.add_to_body(len, ports.now);
        ports.counters.fragments += 1;
        if let Some(responder) = found.responder
            && !self.takes_more(ports, responder, call)
        {
            return Ok(());
        }
        self.forward_body(ports, key, record, header, call, 0);
        Ok(())
    }

    #[inline]
    fn response(&mut self, ports: &mut Ports, key: u32, record: &Record, header: &Header) -> Result<(), CloseReason> {
        let call = Key::from_u64(header.seq);
        let Some(found) = self.table.get_mut(call).filter(|found| found.responder == Some(key)) else {
            ports.counters.late += 1;
            return Ok(());
        };
        let (len, first, last) = (record.len, header.flags.has(Flags::FIRST), header.flags.has(Flags::LAST));
        let left = if first { header.total } else { found.answer_left };
        // An error that ends the call may abort a begun message, whose rest will not come.
        let is_error = header.flags.has(Flags::END.with(Flags::ERROR));
        let breaks_off = first && is_error;
        let is_misplaced = first == (found.answer_left > 0) && !breaks_off;
        let out_of_order = is_misplaced || len > left || last != (len == left);
        if out_of_order || header.total > ports.settings.max_message_size || (!first && len == 0) {
            return Err(CloseReason::violation(format_args!(
                "reply with {left} bytes left has a record of {len} bytes (message of {})",
                header.total
            )));
        }
        // An error of one cell needs no credit, so a responder can end a call at any time. A call has one such record.
        let is_free = breaks_off && last && cells_for(len) == 1;
        let had_room = found.may_be_answered(ports.settings.geometry.base_cells());
        let credit = match found.answer_credit.checked_sub(cells_for(len)) {
            Some(credit) => credit,
            None if is_free => 0,
            None => return Err(CloseReason::violation("a reply was sent beyond its credit")),
        };
        ports.decided(record);
        found.answer_credit = credit;
        found.answer_left = left - len;
        found.progress_at = ports.now;
        let ends = last && header.flags.has(Flags::END);
        let answer = Header {
            flags: Flags(header.flags.0 & ANSWER_FLAGS.0),
            id: found.slot,
            id2: found.generation,
            total: header.total,
            ..Header::new(Kind::RoutedResponse)
        };
        let (requester, service, offer) = (found.requester, found.service, found.offer);
        let is_first_chunk = found.stream && !found.has_chunk && !header.flags.has(Flags::END);
        let begins = first && !found.has_chunk && !header.flags.has(Flags::ERROR);
        let reply_took = begins.then(|| ports.now.saturating_sub(found.ready_at));
        found.has_chunk |= is_first_chunk;
        let took = ports.now.saturating_sub(found.began);
        if is_first_chunk {
            found.idle_limit = Some(found.chunk_limit);
            let look_at = found.look_at(ports.settings.request_body_idle);
            self.timers.look_by(&mut ports.wheel, call, look_at);
        }
        ports.counters.fragments += u64::from(!(first && last));
        if !self.takes_more(ports, requester, call) {
            return Ok(());
        }
        let Ports { ingresses, egresses, .. } = ports;
        let Some(ingress) = ingresses[key as usize].as_deref_mut() else { return Ok(()) };
        egresses.send(requester, &answer, Payload::Words(len, ingress.express.payload(record)));
        if last {
            ingress.messages += 1;
            if let Some(egress) = egresses.get_mut(requester) {
                egress.messages += 1;
            }
        }
        if (is_first_chunk || (ends && first))
            && let Some(offer) = offer
        {
            self.services.replied(offer);
        }
        if let Some(service) = self.services.get_mut(service) {
            if let Some(took) = reply_took {
                service.pace.replied(took);
            }
            if let Some(times) = service.times.as_deref_mut() {
                if is_first_chunk {
                    times.first_chunk.observe(took, 1);
                }
                if ends {
                    times.round_trip.observe(took, 1);
                }
            }
            service.failures += u64::from(ends && header.flags.has(Flags::ERROR));
        }
        if is_first_chunk {
            self.record_first_chunk(ports, service, call);
        }
        if ends {
            ports.counters.replies += 1;
            let breaker_outcome = match header.flags.has(Flags::ERROR.with(Flags::FAILURE)) {
                true if had_room => BreakerOutcome::Failure(Failure::Reply),
                // A requester that does not take the reply must not open the breaker for others (B2).
                true => BreakerOutcome::Ignored,
                false => BreakerOutcome::Success,
            };
            let permit = self.finish(ports, call, |call| call.permit).flatten();
            self.record_outcome(ports, service, permit, breaker_outcome);
        } else {
            ports.counters.chunks += u64::from(last);
        }
        Ok(())
    }

    pub(super) fn cancel(&mut self, ports: &mut Ports, key: u32, header: &Header) {
        ports.counters.cancels += 1;
        if let Some(call) = self.call_in(ports, key, header) {
            self.end_call(ports, call, Outcome::Cancelled);
        }
    }

    fn response_credit(
        &mut self,
        ports: &mut Ports,
        key: u32,
        record: &Record,
        header: &Header,
    ) -> Result<(), CloseReason> {
        let (Some(call), most) = (self.call_in(ports, key, header), ports.settings.stream_credit) else {
            return Ok(());
        };
        let Some(found) = self.table.get(call) else { return Ok(()) };
        let answer_credit = given_back(found.answer_credit, header.arg, most)?;
        // The echo grants as much credit for the body as the requester grants for the reply.
        let body_credit = match found.responder {
            Some(_) => found.body_credit,
            None => given_back(found.body_credit, header.arg, most)?,
        };
        ports.decided(record);
        let Some(found) = self.table.get_mut(call) else { return Ok(()) };
        if !found.may_be_answered(ports.settings.geometry.base_cells()) {
            found.ready_at = ports.now;
        }
        (found.answer_credit, found.body_credit, found.body_at) = (answer_credit, body_credit, ports.now);
        found.progress_at = ports.now;
        let (to, credit) = match found.responder {
            Some(responder) => {
                if !self.takes_more(ports, responder, call) {
                    return Ok(());
                }
                (responder, Header { seq: call.to_u64(), arg: header.arg, ..Header::new(Kind::RoutedResponseCredit) })
            }
            None => {
                let (id, id2, arg) = (header.id, header.id2, header.arg);
                (key, Header { id, id2, arg, ..Header::new(Kind::RoutedBodyCredit) })
            }
        };
        ports.egresses.send(to, &credit, Payload::EMPTY);
        Ok(())
    }

    fn body_credit(
        &mut self,
        ports: &mut Ports,
        key: u32,
        record: &Record,
        header: &Header,
    ) -> Result<(), CloseReason> {
        let (Some(call), most) = (self.call_of(key, header), ports.settings.stream_credit) else { return Ok(()) };
        let Some(found) = self.table.get(call) else { return Ok(()) };
        let body_credit = given_back(found.body_credit, header.arg, most)?;
        ports.decided(record);
        let Some(found) = self.table.get_mut(call) else { return Ok(()) };
        if !found.owes_body(ports.settings.geometry.base_cells()) {
            (found.part_at, found.part_left) = (ports.now, found.body_left);
        }
        (found.body_credit, found.body_at) = (body_credit, ports.now);
        let requester = found.requester;
        let credit =
            Header { id: found.slot, id2: found.generation, arg: header.arg, ..Header::new(Kind::RoutedBodyCredit) };
        if self.takes_more(ports, requester, call) {
            ports.egresses.send(requester, &credit, Payload::EMPTY);
        }
        Ok(())
    }

    /// Whether the backlog of `to` has space for more of the call. Many calls, each within its credit, can together
    /// exceed the backlog of a client that does not read: then this call ends, not the connection.
    #[inline]
    fn takes_more(&mut self, ports: &mut Ports, to: u32, call: Key) -> bool {
        let takes = ports.egresses.takes_calls(to);
        if !takes {
            self.end_call(ports, call, Outcome::Overloaded);
        }
        takes
    }

    /// Frees the connection's number of a service. Outstanding calls continue.
    fn release_service_number(&mut self, ports: &mut Ports, key: u32, header: &Header) {
        if let Some(service) = ports.ingress_mut(key).and_then(|ingress| ingress.services.take(header.arg)) {
            self.services.release(service);
        }
    }
}

/// The credit after `cells` were granted. A side grants no more than it has taken, so credit records never outnumber
/// the records that used credit up, and neither side can flood the other with them.
fn given_back(credit: u32, cells: u32, most: u32) -> Result<u32, CloseReason> {
    match credit.checked_add(cells).filter(|sum| cells > 0 && *sum <= most) {
        Some(sum) => Ok(sum),
        None => Err(CloseReason::violation(format_args!(
            "{cells} cells of credit returned, {} were taken",
            most.saturating_sub(credit)
        ))),
    }
}
