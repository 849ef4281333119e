//! The outstanding probes of a half-open breaker, by user.

use super::claim::Claim;
use super::users::Sharing;
use crate::logic::breaker::Permit;
use crate::logic::routing::arena::Key;
use crate::logic::shares::Principal;

/// A call that is a probe.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Probe {
    pub(crate) call: Key,
    pub(crate) user: Principal,
    pub(crate) permit: Permit,
}

/// Probes of a breaker (rule 5 of `services`).
#[derive(Debug, Default)]
pub(super) struct Probes {
    /// Of one generation of the breaker. Some may have ended.
    pub(super) outstanding: Vec<Probe>,
    claim: Claim,
}

impl Probes {
    pub(super) fn begin(&mut self, probe: Probe) {
        self.claim.meet(probe.user);
        self.outstanding.retain(|other| other.permit == probe.permit);
        self.outstanding.push(probe);
    }

    /// Whether `user` may have one probe more, of `left` that are outstanding or may follow.
    pub(super) fn may_take(&self, user: Principal, left: usize, sharing: Sharing, now: u64) -> bool {
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
    pub(super) fn refuse(&mut self, user: Principal, sharing: Sharing, now: u64) {
        if sharing.is_shared() && self.outstanding.iter().all(|probe| probe.user != user) {
            self.claim.make(user, now);
        }
    }
}
