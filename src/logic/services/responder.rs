//! A connection that serves a service: its places, and whether it is suspect.

use super::ServiceId;
use super::places::Places;

/// The backoff before a suspect responder is probed, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProbeDelays {
    /// After the first deadline; each further one doubles it.
    pub(crate) first: u64,
    /// The longest.
    pub(crate) max: u64,
}

impl Default for ProbeDelays {
    fn default() -> ProbeDelays {
        ProbeDelays { first: 1_000_000_000, max: 60_000_000_000 }
    }
}

/// A connection that serves a service.
#[derive(Debug)]
pub(crate) struct Responder {
    /// The connection.
    pub(crate) connection: u32,
    /// The connection's own number of the service.
    pub(crate) number: u32,
    pub(super) service: ServiceId,
    /// Where it is in the list of its service.
    pub(super) at: usize,
    pub(super) places: Places,
    /// Whether it takes new calls; otherwise it only finishes outstanding ones.
    pub(super) accepts: bool,
    /// Deadlines that passed since its last reply.
    missed: u32,
    /// The time of the next probe, if it is suspect.
    probe_at: u64,
}

impl Responder {
    pub(super) fn new(service: ServiceId, at: usize, connection: u32, number: u32, max_in_flight: u32) -> Responder {
        let places = Places::new(max_in_flight);
        Responder { connection, number, service, at, places, accepts: true, missed: 0, probe_at: 0 }
    }

    /// It serves again before its last call has ended.
    pub(super) fn resume(&mut self, number: u32, max_in_flight: u32) {
        (self.accepts, self.number, self.missed) = (true, number, 0);
        self.places.adopt(max_in_flight);
    }

    pub(super) fn is_suspect(&self, now: u64) -> bool {
        self.missed > 0 && now < self.probe_at
    }

    /// It gets a call. If that is the probe of a suspect one, the others do not wait for its end.
    pub(super) fn chosen(&mut self, now: u64, delays: ProbeDelays) {
        if self.missed > 0 && !self.is_suspect(now) {
            self.back_off(now, delays);
        }
    }

    /// It missed a deadline although it could have replied.
    pub(super) fn missed(&mut self, now: u64, delays: ProbeDelays) {
        self.missed = self.missed.saturating_add(1);
        self.back_off(now, delays);
    }

    /// It has replied, or has begun to.
    pub(super) fn replied(&mut self) {
        self.missed = 0;
    }

    /// The next probe is a backoff away.
    fn back_off(&mut self, now: u64, delays: ProbeDelays) {
        let doubled = delays.first.saturating_mul(1 << self.missed.saturating_sub(1).min(16));
        self.probe_at = now.saturating_add(doubled.min(delays.max));
    }
}
