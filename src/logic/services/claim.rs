//! What a user that was refused may claim: that the others leave one for a while.

use crate::logic::shares::Principal;

/// How long a claim lasts, in nanoseconds.
const CLAIM_TIME: u64 = 1_000_000_000;

/// The claim of one user at a time.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Claim(Option<(Principal, u64)>);

impl Claim {
    /// `user` was refused at `now`. While another user's claim lasts, it has none.
    pub(super) fn make(&mut self, user: Principal, now: u64) {
        if !self.is_of_another(user, now) {
            self.0 = Some((user, now.saturating_add(CLAIM_TIME)));
        }
    }

    /// Whether a user other than `user` has one.
    #[inline]
    pub(super) fn is_of_another(&self, user: Principal, now: u64) -> bool {
        self.0.is_some_and(|(by, until)| by != user && now < until)
    }

    /// `user` has got what it claimed.
    #[inline]
    pub(super) fn meet(&mut self, user: Principal) {
        if self.0.is_some_and(|(by, _)| by == user) {
            self.0 = None;
        }
    }
}
