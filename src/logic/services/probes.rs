//! The outstanding probes of a half-open breaker, by user.

use super::claim::Claim;
use super::users::Sharing;
use super::{ServiceId, Services};
use crate::logic::breaker::{Admission, BreakerOutcome, Permit, Rejected};
use crate::logic::routing::arena::Key;
use crate::logic::shares::Uid;

/// A call that is a probe.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Probe {
    pub(crate) call: Key,
    pub(crate) user: Uid,
    pub(crate) permit: Permit,
}

/// Probes of a breaker (rule 5 of `services`).
#[derive(Debug, Default)]
pub(super) struct Probes {
    /// Of one generation of the breaker. Some may have ended.
    outstanding: Vec<Probe>,
    claim: Claim,
}

impl Probes {
    fn begin(&mut self, probe: Probe) {
        self.claim.meet(probe.user);
        self.outstanding.retain(|other| other.permit == probe.permit);
        self.outstanding.push(probe);
    }

    /// Whether `user` may have one probe more, of `left` that are outstanding or may follow.
    fn may_take(&self, user: Uid, left: usize, sharing: Sharing, now: u64) -> bool {
        let of = |mine: bool| self.outstanding.iter().filter(|probe| (probe.user == user) == mine).count();
        let left = left.saturating_sub(of(false));
        let most = match (sharing.is_shared(), self.claim.is_of_another(user, now)) {
            (false, _) => left,
            (true, false) => left.min(2.max(left) - 1),
            (true, true) => left.saturating_sub(1),
        };
        of(true) < most
    }

    /// `user` was rejected. It claims a probe if it has none.
    fn refuse(&mut self, user: Uid, sharing: Sharing, now: u64) {
        if sharing.is_shared() && self.outstanding.iter().all(|probe| probe.user != user) {
            self.claim.make(user, now);
        }
    }
}

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
        user: Uid,
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
