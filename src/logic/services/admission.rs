//! Requests as probes of a half-open breaker: which are admitted, and which late ones give their probe back.

use super::probes::{Probe, Probes};
use super::{ServiceId, Services};
use crate::logic::breaker::{Admission, BreakerOutcome, Rejected};
use crate::logic::routing::arena::Key;
use crate::logic::shares::Principal;

impl Services {
    /// A call begins as a probe.
    #[cold]
    pub(crate) fn begin_probe(&mut self, id: ServiceId, probe: Probe) {
        if let Some(service) = self.get_mut(id) {
            service.probes.begin(probe);
        }
    }

    /// A half-open breaker admits a request of `user`, or rejects it. `is_out` tells whether a call still holds its
    /// permit, `is_late` whether its requester has held it up for so long. Also returns the call that has given its
    /// probe back.
    pub(crate) fn admit_probe(
        &mut self,
        id: ServiceId,
        user: Principal,
        now: u64,
        is_out: impl Fn(&Probe) -> bool,
        is_late: impl Fn(&Probe, u64) -> bool,
    ) -> (Admission, Option<Key>) {
        let sharing = self.users.sharing();
        let Services { table, users, .. } = self;
        let Some(service) = table.get_mut(id as usize).and_then(Option::as_mut) else {
            return ((Err(Rejected { retry_after: None }), None), None);
        };
        let (gate, probes) = (&service.gate, &mut service.probes);
        probes.outstanding.retain(|probe| gate.is_current(probe.permit) && is_out(probe));
        let may_take = |probes: &Probes| {
            let (all, (used, successes)) = (gate.rules().half_open_max_requests, gate.trial());
            used < all && probes.may_take(user, all.saturating_sub(successes) as usize, sharing, now)
        };
        let mut given_back = None;
        if !may_take(probes)
            && let Some(late) =
                probes.outstanding.iter().position(|probe| is_late(probe, users.body_time(probe.user, now)))
        {
            let probe = probes.outstanding.swap_remove(late);
            given_back = Some(probe.call);
            // An ignored outcome changes no state: it only makes room.
            let _ = gate.record(probe.permit, BreakerOutcome::Ignored, now);
        }
        if may_take(probes) {
            return (gate.admit(now), given_back);
        }
        probes.refuse(user, sharing, now);
        ((Err(gate.reject_probe()), None), given_back)
    }
}
