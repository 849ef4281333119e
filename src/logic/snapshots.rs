//! Snapshots that all share that ask at the same time, and that are kept while they are read page by page.
//!
//! 1. A request gets a snapshot that was begun after the request came. So it shows all that its client has done before.
//! 2. A pause follows each snapshot, so that making them takes [`PART`] of the router's time at most, however many ask.
//!    The requests that come meanwhile share the next one.
//! 3. A snapshot of several pages is kept for [`KEPT_FOR`], however slowly it is read. The pause after it is
//!    so long that no more than [`KEPT_MAX`] are kept at a time. So readers hold no memory, and need no accounts.

use std::collections::VecDeque;

/// The shortest pause, in nanoseconds.
const PAUSE_MIN: u64 = 10_000_000;
/// Making a snapshot takes one of so many parts of the router's time.
const PART: u64 = 50;
/// How long a snapshot of several pages is kept, in nanoseconds.
pub(crate) const KEPT_FOR: u64 = 2_000_000_000;
/// So many of them are kept at a time.
const KEPT_MAX: u64 = 8;

/// The snapshots that are kept. Times are nanoseconds.
#[derive(Debug)]
pub(crate) struct Snapshots<T> {
    /// The oldest first.
    kept: VecDeque<Kept<T>>,
    /// No other one may be begun before.
    next_at: u64,
}

#[derive(Debug)]
struct Kept<T> {
    number: u64,
    begun_at: u64,
    /// When it may be dropped; `None`: when another one is there.
    until: Option<u64>,
    snapshot: T,
}

/// What a snapshot took, and what it takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Made {
    pub(crate) number: u64,
    pub(crate) begun_at: u64,
    /// Of the router's time.
    pub(crate) cost: u64,
    pub(crate) has_pages: bool,
}

impl<T: Clone> Snapshots<T> {
    pub(crate) fn new() -> Snapshots<T> {
        Snapshots { kept: VecDeque::new(), next_at: 0 }
    }

    /// The snapshot for a request that came at `asked`, if it is made already.
    pub(crate) fn of_request(&self, asked: u64) -> Option<T> {
        let newest = self.kept.back().filter(|newest| newest.begun_at >= asked);
        newest.map(|newest| newest.snapshot.clone())
    }

    /// When the next one may be begun.
    pub(crate) fn next_at(&self) -> u64 {
        self.next_at
    }

    /// One was made; it is kept.
    pub(crate) fn keep(&mut self, made: Made, snapshot: T, now: u64) {
        let Made { number, begun_at, cost, has_pages } = made;
        self.kept.retain(|kept| kept.until.is_some());
        self.expire(now);
        self.kept.push_back(Kept { number, begun_at, until: has_pages.then_some(now + KEPT_FOR), snapshot });
        let pause = if has_pages { KEPT_FOR.div_ceil(KEPT_MAX) } else { PAUSE_MIN };
        self.next_at = now + pause.max(cost.saturating_mul(PART - 1));
    }

    /// The snapshot with this number, while it is kept.
    pub(crate) fn find(&self, number: u64) -> Option<T> {
        self.kept.iter().find(|kept| kept.number == number).map(|kept| kept.snapshot.clone())
    }

    /// Drops those whose time is over.
    pub(crate) fn expire(&mut self, now: u64) {
        self.kept.retain(|kept| kept.until.is_none_or(|until| now < until));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn made(number: u64, begun_at: u64, has_pages: bool) -> Made {
        Made { number, begun_at, cost: 0, has_pages }
    }

    #[test]
    fn a_request_gets_what_was_begun_after_it_came() {
        let mut snapshots = Snapshots::new();
        assert_eq!(snapshots.of_request(0), None);
        snapshots.keep(made(1, 100, false), 'a', 120);
        assert_eq!((snapshots.of_request(90), snapshots.of_request(100)), (Some('a'), Some('a')));
        assert_eq!(snapshots.of_request(101), None, "it may not show what was done before");
        assert_eq!(snapshots.next_at(), 120 + PAUSE_MIN);
    }

    #[test]
    fn one_of_several_pages_is_kept_and_another_one_is_not() {
        let mut snapshots = Snapshots::new();
        snapshots.keep(made(1, 0, true), 'a', 10);
        snapshots.keep(made(2, 20, false), 'b', 30);
        snapshots.keep(made(3, 40, true), 'c', 50);
        assert_eq!([1, 2, 3].map(|number| snapshots.find(number)), [Some('a'), None, Some('c')]);
        snapshots.expire(KEPT_FOR + 9);
        assert_eq!(snapshots.find(1), Some('a'));
        snapshots.expire(KEPT_FOR + 10);
        assert_eq!([1, 3].map(|number| snapshots.find(number)), [None, Some('c')]);
        snapshots.expire(KEPT_FOR + 50);
        assert_eq!((snapshots.find(3), snapshots.of_request(40)), (None, None), "nothing is held for ever");
    }

    proptest! {
        /// However many ask, and however large the snapshots are, the router has its time and the memory a bound.
        #[test]
        fn time_and_memory_are_bounded(
            steps in prop::collection::vec((0u64..40_000_000, 1u64..30_000_000, any::<bool>()), 1..200),
        ) {
            let (mut snapshots, mut now, mut cost_before) = (Snapshots::new(), 0u64, 0u64);
            for (number, (wait, cost, has_pages)) in (1..).zip(steps) {
                now = snapshots.next_at().max(now + wait);
                prop_assert!(cost_before * PART <= now, "{cost_before} of {now}");
                let begun_at = now;
                now += cost;
                snapshots.keep(Made { number, begun_at, cost, has_pages }, number, now);
                cost_before += cost;
                prop_assert_eq!(snapshots.of_request(begun_at), Some(number));
                prop_assert!(snapshots.kept.len() as u64 <= KEPT_MAX + 1, "{} are kept", snapshots.kept.len());
                for kept in &snapshots.kept {
                    prop_assert!(kept.until.is_none() || now < kept.begun_at + KEPT_FOR + 30_000_000);
                }
            }
        }
    }
}
