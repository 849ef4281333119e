//! The places of one responder: how many calls it takes at a time, and which users hold how many.

use super::claim::Claim;
use super::users::Sharing;
use crate::logic::routing::arena::Key;
use crate::logic::shares::{Principal, ShareLimits};
use std::collections::VecDeque;

/// Places of a responder (rules 1 to 4 of `services`).
#[derive(Debug)]
pub(crate) struct Places {
    most: u32,
    taken: u32,
    /// The users that hold some, and entries of users that hold none any more, which are used again.
    holders: Vec<Holder>,
    claim: Claim,
}

#[derive(Debug)]
struct Holder {
    user: Principal,
    taken: u32,
    /// Calls whose requests were incomplete when they began, also those that have ended or are whole now.
    incomplete: VecDeque<Key>,
}

/// The body of a request, as far as it matters to its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    /// The request is whole, or the call has ended.
    Whole,
    /// Parts are missing, and may take a while yet.
    Coming,
    /// The requester is too slow.
    Late,
}

impl Places {
    pub(super) fn new(most: u32) -> Places {
        Places { most, taken: 0, holders: Vec::new(), claim: Claim::default() }
    }

    /// Sets another limit. Calls beyond it go on.
    pub(super) fn adopt(&mut self, most: u32) {
        self.most = most;
    }

    /// Places that are taken.
    pub(crate) fn taken(&self) -> u32 {
        self.taken
    }

    pub(super) fn held_by(&self, user: Principal) -> u32 {
        self.holders.iter().find(|holder| holder.user == user).map_or(0, |holder| holder.taken)
    }

    /// Whether there is a place for one more call of `user`.
    #[inline]
    pub(super) fn has_place(&self, user: Principal, sharing: Sharing, now: u64) -> bool {
        self.taken < self.most && (!sharing.is_shared() || self.is_within_share(user, sharing, now))
    }

    fn is_within_share(&self, user: Principal, sharing: Sharing, now: u64) -> bool {
        let limits = ShareLimits::of_all(self.most as usize, sharing.percent);
        // Then no user has reached its share, and one place stays free for a claim.
        if limits.leaves_plenty(self.taken as usize) && self.taken + 2 <= self.most {
            return true;
        }
        let held = self.held_by(user);
        let left = self.most.saturating_sub(self.taken - held);
        let part = self.share(self.taken - held, sharing);
        // The only place cannot be left to another.
        let leaves_one = self.most > 1 && self.claim.is_of_another(user, now);
        held < if leaves_one { part.min(left.saturating_sub(1)) } else { part }
    }

    /// The most that a user may hold while the others hold so many.
    fn share(&self, others: u32, sharing: Sharing) -> u32 {
        ShareLimits::of_all(self.most as usize, sharing.percent).most_of(others as usize) as u32
    }

    /// `user` takes a place.
    #[inline]
    pub(super) fn take(&mut self, user: Principal) {
        self.claim.meet(user);
        self.taken += 1;
        match self.holders.iter_mut().find(|holder| holder.user == user) {
            Some(holder) => holder.taken += 1,
            None => self.add(user),
        }
    }

    #[cold]
    fn add(&mut self, user: Principal) {
        match self.holders.iter_mut().find(|holder| holder.taken == 0) {
            Some(holder) => {
                (holder.user, holder.taken) = (user, 1);
                holder.incomplete.clear();
            }
            None => self.holders.push(Holder { user, taken: 1, incomplete: VecDeque::new() }),
        }
    }

    /// `user` gives a place back.
    #[inline]
    pub(super) fn give_back(&mut self, user: Principal) {
        if let Some(holder) = self.holders.iter_mut().find(|holder| holder.user == user) {
            holder.taken -= 1;
            self.taken -= 1;
        }
    }

    /// A call of `user`, which has a place, begins without its whole body.
    pub(super) fn note_incomplete(&mut self, user: Principal, call: Key, mut is_incomplete: impl FnMut(Key) -> bool) {
        let Some(holder) = self.holders.iter_mut().find(|holder| holder.user == user) else { return };
        // Those that are whole or have ended go when they are as many as the others may be.
        if holder.incomplete.len() >= 2 * holder.taken as usize + 16 {
            holder.incomplete.retain(|call| is_incomplete(*call));
        }
        holder.incomplete.push_back(call);
    }

    /// `user` was refused. It claims a place if it holds none.
    pub(super) fn refuse(&mut self, user: Principal, sharing: Sharing, now: u64) {
        if sharing.is_shared() && self.held_by(user) == 0 {
            self.claim.make(user, now);
        }
    }

    /// The late request that yields its place to a request of `user`. Looks at `looks` that are not, at most.
    pub(super) fn yields(
        &mut self,
        user: Principal,
        sharing: Sharing,
        looks: &mut u32,
        mut look: impl FnMut(Principal, Key) -> Body,
    ) -> Option<Key> {
        let (held, taken, most) = (self.held_by(user), self.taken, self.most);
        // Its share without the place that becomes free.
        let others = (taken - held).saturating_sub(1);
        if !sharing.is_shared() || held >= self.share(others, sharing) || taken > most {
            return None;
        }
        for holder in self.holders.iter_mut().filter(|holder| holder.user != user && holder.taken > 0) {
            for _ in 0..holder.incomplete.len() {
                if *looks == 0 {
                    return None;
                }
                let Some(call) = holder.incomplete.pop_front() else { break };
                match look(holder.user, call) {
                    // Its beginning has paid for this look.
                    Body::Whole => {}
                    Body::Late => return Some(call),
                    Body::Coming => {
                        holder.incomplete.push_back(call);
                        *looks -= 1;
                    }
                }
            }
        }
        None
    }
}
