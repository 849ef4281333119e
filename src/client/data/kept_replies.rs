//! Replies that wait for their requesters, in a bounded queue, while the service handles further requests.
//!
//! A reply *moves* from when it is kept, and as long as a part of [`MOVES`] bytes of it goes within the grace; then it
//! *rests*. The service takes no request while a reply moves: the reply of a requester that reads is not left behind
//! by a slow handler, and many such requesters fill no memory. So a requester delays the others by one grace, or by
//! one grace for each such part; and while a reply of it rests, its further replies get no grace.
//!
//! Beyond the bound, the oldest reply ends that got no grace, or has not moved for the patience. Until there is one, no
//! request is taken. So the many replies of one requester end at its own cost, and a stopped one gives way to others.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// A reply moves by parts of so many bytes. Smaller than the credit, or a requester could not take one at a time.
const MOVES: usize = 32 * 1024;

/// How a service keeps the replies that their requesters do not take, while it handles further requests.
///
/// A kept reply is still an outstanding request: it counts towards
/// [`max_in_flight`](crate::client::Client::serve_up_to), and its deadline goes on. It moves on when its requester
/// takes more of it, while a thread waits for the next request.
///
/// ```no_run
/// use lapce_ipc::client::{Client, KeepOptions};
///
/// # let client = Client::connect()?;
/// let options = KeepOptions { max_bytes: 4 << 20, ..KeepOptions::default() };
/// client.serve("upper")?.keep(options).run(|request| Ok::<_, String>(request.payload().to_ascii_uppercase()))?;
/// # Ok::<(), lapce_ipc::client::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepOptions {
    /// The number of replies that are kept; 256 by default. It is lowered to one less than the `max_in_flight` of the
    /// service, but to 1 at least, so that kept replies leave a place for a request.
    pub max_replies: usize,
    /// The bytes of the replies that are kept; 64 MiB by default. One reply may be larger.
    pub max_bytes: usize,
    /// How long a requester that takes nothing of its reply delays further requests; 5 ms by default. One that takes
    /// at least 32 KiB in this time gets its whole reply first.
    pub grace: Duration,
    /// How long a reply must have waited for its requester before its call ends because there are more kept replies
    /// than the bounds allow; 1 second by default. Until then the service takes no further request. A reply to a
    /// requester that had taken nothing of another one ends at once. The call ends with an error that does not count
    /// towards the service's breaker.
    pub patience: Duration,
}

impl Default for KeepOptions {
    fn default() -> KeepOptions {
        KeepOptions {
            max_replies: 256,
            max_bytes: 64 << 20,
            grace: Duration::from_millis(5),
            patience: Duration::from_secs(1),
        }
    }
}

impl KeepOptions {
    /// For a service with so many places; 0: the number is not known.
    pub(crate) fn within(self, max_in_flight: u32) -> KeepOptions {
        let places = match max_in_flight {
            0 => usize::MAX,
            places => places as usize - 1,
        };
        KeepOptions { max_replies: self.max_replies.min(places).max(1), ..self }
    }
}

#[derive(Debug)]
struct Kept<T> {
    reply: T,
    requester: u32,
    bytes: usize,
    /// Bytes that were sent when it last moved.
    sent: usize,
    /// When it last moved.
    moved_at: Instant,
    has_grace: bool,
}

/// The queue. A reply that it drops has ended.
#[derive(Debug)]
pub(crate) struct KeptReplies<T> {
    /// Those that have not moved for longest first.
    queue: VecDeque<Kept<T>>,
    bytes: usize,
    options: KeepOptions,
}

impl<T> KeptReplies<T> {
    pub(crate) fn new(options: KeepOptions) -> KeptReplies<T> {
        KeptReplies { queue: VecDeque::new(), bytes: 0, options }
    }

    pub(crate) fn set_options(&mut self, options: KeepOptions) {
        self.options = options;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Ends all.
    pub(crate) fn clear(&mut self) {
        (self.queue, self.bytes) = (VecDeque::new(), 0);
    }

    /// Keeps a reply of which `sent` of `bytes` were sent.
    pub(crate) fn keep(&mut self, reply: T, requester: u32, (sent, bytes): (usize, usize), now: Instant) {
        let mut of_requester = self.queue.iter().filter(|kept| kept.requester == requester);
        let has_grace = of_requester.all(|kept| self.rests_at(kept) > now);
        self.bytes += bytes;
        self.queue.push_back(Kept { reply, requester, bytes, sent, moved_at: now, has_grace });
    }

    /// Moves the replies on: `send` returns how many bytes of a reply were sent so far, or `None` when it is whole or
    /// its call has ended. Then ends those beyond the bound.
    pub(crate) fn step(&mut self, now: Instant, mut send: impl FnMut(&mut T) -> Option<usize>) {
        let mut moved = Vec::new();
        for _ in 0..self.queue.len() {
            let Some(mut kept) = self.queue.pop_front() else { break };
            match send(&mut kept.reply) {
                None => self.bytes -= kept.bytes,
                Some(sent) if sent >= kept.sent + MOVES => {
                    moved.push(Kept { sent, moved_at: now, has_grace: true, ..kept });
                }
                Some(_) => self.queue.push_back(kept),
            }
        }
        self.queue.extend(moved);
        while self.is_over()
            && let Some(at) = self.queue.iter().position(|kept| self.ends_at(kept) <= now)
            && let Some(kept) = self.queue.remove(at)
        {
            self.bytes -= kept.bytes;
        }
        if self.queue.is_empty() {
            // A time with many gives its memory back.
            self.clear();
        }
    }

    /// Until when no request is taken, unless something moves; `None`: one may be taken.
    pub(crate) fn holds_until(&self, now: Instant) -> Option<Instant> {
        let rests_at = self.queue.iter().map(|kept| self.rests_at(kept)).max();
        let ends_at = self.queue.iter().filter(|_| self.is_over()).map(|kept| self.ends_at(kept)).min();
        rests_at.max(ends_at).filter(|until| *until > now)
    }

    fn rests_at(&self, kept: &Kept<T>) -> Instant {
        if kept.has_grace { kept.moved_at + self.options.grace } else { kept.moved_at }
    }

    /// When it ends if there are too many.
    fn ends_at(&self, kept: &Kept<T>) -> Instant {
        if kept.has_grace { kept.moved_at + self.options.patience } else { kept.moved_at }
    }

    fn is_over(&self) -> bool {
        self.queue.len() > self.options.max_replies || (self.queue.len() > 1 && self.bytes > self.options.max_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::cell::RefCell;
    use std::rc::Rc;

    const OPTIONS: KeepOptions = KeepOptions {
        max_replies: 3,
        max_bytes: 10 * MOVES,
        grace: Duration::from_millis(5),
        patience: Duration::from_millis(100),
    };
    const MS: Duration = Duration::from_millis(1);

    /// A reply of the test: it notes its end.
    #[derive(Debug)]
    struct Reply {
        id: u32,
        sent: usize,
        ended: Rc<RefCell<Vec<u32>>>,
    }

    impl Drop for Reply {
        fn drop(&mut self) {
            self.ended.borrow_mut().push(self.id);
        }
    }

    struct Scene {
        kept: KeptReplies<Reply>,
        ended: Rc<RefCell<Vec<u32>>>,
        now: Instant,
    }

    impl Scene {
        fn new(options: KeepOptions) -> Scene {
            Scene { kept: KeptReplies::new(options), ended: Rc::default(), now: Instant::now() }
        }

        fn keep(&mut self, id: u32, requester: u32, bytes: usize) {
            let reply = Reply { id, sent: 0, ended: self.ended.clone() };
            self.kept.keep(reply, requester, (0, bytes), self.now);
        }

        /// Of the reply `id` so many bytes go.
        fn send(&mut self, id: u32, bytes: usize) {
            self.kept.step(self.now, |reply| {
                reply.sent += if reply.id == id { bytes } else { 0 };
                Some(reply.sent)
            });
        }

        fn holds_for(&self) -> Duration {
            self.kept.holds_until(self.now).map_or(Duration::ZERO, |until| until - self.now)
        }

        fn ended(&self) -> Vec<u32> {
            self.ended.borrow().clone()
        }
    }

    #[test]
    fn a_reply_holds_requests_up_while_it_moves_and_no_longer() {
        let mut scene = Scene::new(OPTIONS);
        assert_eq!(scene.holds_for(), Duration::ZERO);
        scene.keep(1, 1, 20 * MOVES);
        assert_eq!(scene.holds_for(), 5 * MS);
        scene.now += 4 * MS;
        scene.send(1, MOVES - 1);
        assert_eq!(scene.holds_for(), MS, "too little");
        scene.send(1, 1);
        assert_eq!(scene.holds_for(), 5 * MS);
        scene.now += 5 * MS;
        scene.send(1, MOVES - 1);
        assert_eq!(scene.holds_for(), Duration::ZERO, "it rests");
        // One reply may be larger than the bound.
        scene.now += 1000 * MS;
        scene.send(1, 0);
        assert_eq!((scene.ended(), scene.kept.bytes), (vec![], 20 * MOVES));
        scene.send(1, 1);
        assert_eq!(scene.holds_for(), 5 * MS, "it moves again");
        scene.kept.step(scene.now, |_| None);
        assert_eq!((scene.ended(), scene.kept.bytes, scene.holds_for()), (vec![1], 0, Duration::ZERO));
    }

    #[test]
    fn a_requester_gets_one_grace_while_its_reply_rests() {
        let mut scene = Scene::new(OPTIONS);
        scene.keep(1, 7, 1);
        scene.now += 5 * MS;
        scene.keep(2, 7, 1);
        assert_eq!(scene.holds_for(), Duration::ZERO);
        scene.keep(3, 8, 1);
        assert_eq!(scene.holds_for(), 5 * MS, "another requester");
        scene.keep(4, 7, 1);
        assert_eq!(scene.holds_for(), 5 * MS, "it has no patience, either");
        scene.send(0, 0);
        assert_eq!((scene.ended(), scene.holds_for()), (vec![2], 5 * MS));
    }

    #[test]
    fn beyond_the_bound_the_one_that_rested_for_longest_ends_after_the_patience() {
        let mut scene = Scene::new(OPTIONS);
        for id in 1..=4 {
            scene.keep(id, id, 2 * MOVES);
            scene.now += 10 * MS;
        }
        scene.send(1, MOVES);
        assert_eq!((scene.ended(), scene.holds_for()), (vec![], 70 * MS), "the second has 70 ms left");
        scene.now += 70 * MS;
        scene.send(0, 0);
        assert_eq!((scene.ended(), scene.holds_for()), (vec![2], Duration::ZERO));
        // The bytes bound, too.
        scene.keep(5, 5, 8 * MOVES);
        scene.now += 100 * MS;
        scene.send(0, 0);
        assert_eq!((scene.ended(), scene.kept.bytes), (vec![2, 3, 4], 10 * MOVES));
    }

    #[test]
    fn kept_replies_leave_a_place_for_a_request() {
        let places = |max_in_flight| OPTIONS.within(max_in_flight).max_replies;
        assert_eq!([0, 1, 2, 3, 4, 5].map(places), [3, 1, 1, 2, 3, 3]);
        assert_eq!(KeepOptions { max_replies: 0, ..OPTIONS }.within(0).max_replies, 1);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Keep {
            requester: u32,
            bytes: usize,
        },
        /// Of each reply whose number is divisible by `of`, so many bytes go.
        Send {
            of: u32,
            bytes: usize,
        },
        Finish(u32),
        Wait(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..4u32, 1..6 * MOVES).prop_map(|(requester, bytes)| Step::Keep { requester, bytes }),
            (1..4u32, 0..2 * MOVES).prop_map(|(of, bytes)| Step::Send { of, bytes }),
            (0..40u32).prop_map(Step::Finish),
            (0..120u64).prop_map(Step::Wait),
        ]
    }

    proptest! {
        #[test]
        fn each_reply_ends_once_and_resting_ones_fit_the_bounds(steps in prop::collection::vec(step(), 1..80)) {
            let mut scene = Scene::new(OPTIONS);
            let mut last = 0;
            for step in steps {
                match step {
                    Step::Keep { requester, bytes } => {
                        last += 1;
                        scene.keep(last, requester, bytes);
                    }
                    Step::Send { of, bytes } => scene.kept.step(scene.now, |reply| {
                        reply.sent += if reply.id % of == 0 { bytes } else { 0 };
                        Some(reply.sent)
                    }),
                    Step::Finish(id) => {
                        scene.kept.step(scene.now, |reply| (reply.id != id).then_some(reply.sent));
                    }
                    Step::Wait(ms) => {
                        scene.now += Duration::from_millis(ms);
                        scene.send(0, 0);
                    }
                }
                // As the service does it: first a step, then the question whether it may take a request.
                scene.send(0, 0);
                prop_assert!(scene.holds_for() <= OPTIONS.patience);
                prop_assert!(!scene.kept.is_over() || !scene.holds_for().is_zero());
                let kept = &scene.kept;
                prop_assert!(kept.queue.iter().is_sorted_by_key(|kept| kept.moved_at));
                prop_assert_eq!(kept.bytes, kept.queue.iter().map(|kept| kept.bytes).sum::<usize>());
                // In force, or ended once.
                let mut all: Vec<u32> = kept.queue.iter().map(|kept| kept.reply.id).chain(scene.ended()).collect();
                all.sort_unstable();
                prop_assert_eq!(all, (1..=last).collect::<Vec<_>>());
            }
            // Beyond the patience all that is left is within the bounds.
            scene.now += OPTIONS.patience;
            scene.send(0, 0);
            prop_assert!(!scene.kept.is_over() && scene.holds_for().is_zero());
        }
    }
}
