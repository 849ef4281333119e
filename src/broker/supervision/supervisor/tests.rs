//! Actors that end in every way there is, under both kinds of supervisor.

use super::single::Outcome;
use super::*;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// What a test actor does with its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Runs until it is stopped.
    Run,
    /// Ends at once.
    End,
    /// Ends at once, with an error.
    Fail,
    PanicInStarted,
    PanicInHandler,
    PanicInTimer,
    PanicInFuture,
    /// Panics, and once more in `stopped`, which actix calls while it is dropped.
    PanicTwice,
    /// Does not hear that it is to stop.
    Deaf,
}

/// What became of the actors of a test.
#[derive(Clone, Default)]
struct Record {
    started: Rc<RefCell<Vec<&'static str>>>,
    stopped: Rc<RefCell<Vec<&'static str>>>,
    alive: Rc<Cell<usize>>,
}

struct Actor_ {
    name: &'static str,
    fate: Fate,
    exit: Exit,
    record: Record,
}

impl Actor_ {
    fn new(name: &'static str, fate: Fate, exit: Exit, record: &Record) -> Actor_ {
        record.alive.set(record.alive.get() + 1);
        Actor_ { name, fate, exit, record: record.clone() }
    }
}

impl Drop for Actor_ {
    fn drop(&mut self) {
        self.record.alive.set(self.record.alive.get() - 1);
    }
}

impl Actor for Actor_ {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.record.started.borrow_mut().push(self.name);
        match self.fate {
            Fate::Run | Fate::Deaf => {}
            Fate::End => ctx.stop(),
            Fate::Fail => {
                self.exit.fail("out of luck");
                ctx.stop();
            }
            Fate::PanicInStarted | Fate::PanicTwice => panic!("in started"),
            Fate::PanicInHandler => ctx.notify(Panic),
            Fate::PanicInTimer => {
                ctx.run_later(Duration::from_millis(1), |_, _| panic!("in a timer"));
            }
            Fate::PanicInFuture => {
                ctx.spawn(async { panic!("in a {}", "future") }.into_actor(self));
            }
        }
    }

    fn stopped(&mut self, _: &mut Self::Context) {
        self.record.stopped.borrow_mut().push(self.name);
        assert!(self.fate != Fate::PanicTwice, "in stopped");
    }
}

#[derive(Message)]
#[rtype(result = "()")]
struct Panic;

impl Handler<Panic> for Actor_ {
    type Result = ();

    fn handle(&mut self, _: Panic, _: &mut Self::Context) {
        panic!("in a handler");
    }
}

impl Handler<Stop> for Actor_ {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Self::Context) {
        if self.fate != Fate::Deaf {
            ctx.stop();
        }
    }
}

const FAST: Limits =
    Limits { initial_delay: 1, max_delay: 1, jitter: 0.0, max_restarts: 3, period: u64::MAX, stable: u64::MAX };

fn spec(name: &'static str, restart: Restart, limits: Limits) -> Spec {
    Spec { name, restart, limits, mailbox: 4, stop_within: Duration::from_millis(20) }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), wait).await.unwrap_or_else(|_| panic!("waited for {what}"));
}

/// A child on its own that is permanent, restarts fast and need not stop in order.
fn child(tree: &Tree, node: NodeId) -> Child<'_> {
    Child {
        name: "test",
        restart: Restart::Permanent,
        limits: FAST,
        mailbox: 4,
        stop_within: Duration::ZERO,
        tree,
        node,
        retry_now: None,
        can_continue: None,
        limited: None,
    }
}

/// A child on its own whose lives have the fates given, and then run; answers the outcome and the tree.
async fn alone(restart: Restart, limits: Limits, fates: &[Fate], record: &Record) -> (Outcome, Tree) {
    let tree = Tree::default();
    let node = tree.add("test", "root", None);
    let lives = Cell::new(0);
    let (ran, stop) = (Cell::new(false), tokio::sync::Notify::new());
    let child = Child { restart, limits, stop_within: Duration::from_millis(20), ..child(&tree, node) };
    let factory = |exit| {
        let incarnation = lives.replace(lives.get() + 1);
        let fate = fates.get(incarnation).copied().unwrap_or(Fate::Run);
        ran.set(incarnation >= fates.len());
        Actor_::new("test", fate, exit, record)
    };
    let stopped = std::pin::pin!(stop.notified());
    let supervised = supervise(&child, || "7".to_owned(), stopped, factory);
    let stopper = async {
        until("the last life", || ran.get()).await;
        stop.notify_one();
        std::future::pending::<()>().await;
    };
    let outcome = tokio::select! {
        outcome = supervised => outcome,
        () = stopper => unreachable!(),
    };
    (outcome, tree)
}

#[test]
fn every_kind_of_end_is_seen_and_followed_by_a_fresh_actor() {
    for (fate, reason) in [
        (Fate::End, "ended"),
        (Fate::Fail, "out of luck"),
        (Fate::PanicInStarted, "panicked: in started"),
        (Fate::PanicInHandler, "panicked: in a handler"),
        (Fate::PanicInTimer, "panicked: in a timer"),
        (Fate::PanicInFuture, "panicked: in a future"),
        (Fate::PanicTwice, "panicked: in started"),
    ] {
        System::new().block_on(async {
            let record = Record::default();
            let (outcome, tree) = alone(Restart::Permanent, FAST, &[fate; 2], &record).await;
            assert_eq!(outcome, Outcome::Stopped, "{fate:?}");
            let status = tree.report().remove(0);
            assert_eq!(record.started.borrow().len(), 3, "{fate:?}");
            assert_eq!((status.restarts, status.failures), (2, if fate == Fate::End { 0 } else { 2 }), "{fate:?}");
            let last_reason = status.last_reason.unwrap();
            assert!(last_reason.starts_with(reason), "{fate:?}: {last_reason}");
            assert_eq!(record.alive.get(), 0, "{fate:?}");
        });
    }
}

#[test]
fn a_factory_that_panics_is_a_failed_start() {
    System::new().block_on(async {
        let tree = Tree::default();
        let node = tree.add("test", "root", None);
        let child = child(&tree, node);
        let outcome =
            supervise(&child, String::new, std::future::pending(), |_| -> Actor_ { panic!("no actor") }).await;
        assert!(matches!(outcome, Outcome::GaveUp(End::Panicked(message)) if message.starts_with("no actor")));
        assert_eq!(tree.report()[0].failures, 4);
    });
}

#[test]
fn the_policy_says_who_comes_back() {
    System::new().block_on(async {
        let outcome = async |restart, fate| alone(restart, FAST, &[fate], &Record::default()).await.0;
        assert_eq!(outcome(Restart::Transient, Fate::End).await, Outcome::Done(End::Normal));
        assert_eq!(outcome(Restart::Transient, Fate::Fail).await, Outcome::Stopped);
        assert_eq!(outcome(Restart::Permanent, Fate::End).await, Outcome::Stopped);
    });
}

#[test]
fn who_fails_too_often_is_given_up() {
    System::new().block_on(async {
        let record = Record::default();
        let (outcome, tree) = alone(Restart::Permanent, FAST, &[Fate::Fail; 9], &record).await;
        assert_eq!(outcome, Outcome::GaveUp(End::Failed("out of luck".to_owned())));
        assert_eq!(record.started.borrow().len(), 4, "once, and three times again");
        let status = tree.report().remove(0);
        assert_eq!((status.state, status.restarts), (crate::wire::control::ActorState::GaveUp, 3));
    });
}

/// A connection that ends because the broker does was restarted now and then, as chance would have it.
#[test]
fn an_end_that_follows_from_a_stop_is_followed_by_nothing() {
    System::new().block_on(async {
        for round in 0..30 {
            let (record, tree) = (Record::default(), Tree::default());
            let node = tree.add("test", "root", None);
            let child = child(&tree, node);
            // Comes with the end itself: both are there when the supervisor looks.
            let stop = std::future::poll_fn(|_| match record.stopped.borrow().is_empty() {
                true => std::task::Poll::Pending,
                false => std::task::Poll::Ready(()),
            });
            let factory = |exit| Actor_::new("test", Fate::End, exit, &record);
            assert_eq!(supervise(&child, String::new, stop, factory).await, Outcome::Stopped, "round {round}");
            assert_eq!((record.started.borrow().len(), tree.report()[0].restarts), (1, 0), "round {round}");
        }
    });
}

#[test]
fn who_does_not_stop_in_time_is_dropped() {
    System::new().block_on(async {
        let record = Record::default();
        let incarnation = Incarnation::start(4, None, |exit| Actor_::new("deaf", Fate::Deaf, exit, &record)).unwrap();
        assert_eq!(incarnation.stop(Duration::from_millis(5)).await, End::Dropped);
        assert_eq!((record.alive.get(), record.stopped.borrow().len()), (0, 1));
    });
}

/// Three children of a supervisor, of which `name` has the given fates first.
struct Three {
    supervisor: Supervisor,
    record: Record,
    whole: watch::Receiver<bool>,
    addresses: Vec<watch::Receiver<Option<Addr<Actor_>>>>,
}

impl Three {
    fn new(name: &'static str, fates: &'static [Fate]) -> Three {
        let (record, tree) = (Record::default(), Arc::new(Tree::default()));
        let (published, whole) = watch::channel(false);
        let mut supervisor = Supervisor::new("root", tree, published);
        let mut addresses = Vec::new();
        for child in ["a", "b", "c"] {
            let seat = supervisor.add(spec(child, Restart::Permanent, FAST), || {});
            let (published, address) = watch::channel(None);
            addresses.push(address);
            let (record, mut fates) = (record.clone(), if child == name { fates } else { &[] }.iter());
            actix::spawn(seat.host(published, move |exit| {
                Actor_::new(child, fates.next().copied().unwrap_or(Fate::Run), exit, &record)
            }));
        }
        Three { supervisor, record, whole, addresses }
    }

    fn started(&self) -> String {
        self.record.started.borrow().concat()
    }

    fn stopped(&self) -> String {
        self.record.stopped.borrow().concat()
    }

    /// Lets the supervisor work until a condition holds.
    async fn until(&mut self, what: &str, condition: impl Fn(&Record, bool) -> bool) {
        let (record, whole) = (self.record.clone(), self.whole.clone());
        tokio::select! {
            gave_up = self.supervisor.run() => panic!("{gave_up}"),
            () = until(what, || condition(&record, *whole.borrow())) => {}
        }
    }
}

#[test]
fn rest_for_one_restarts_those_behind_and_publishes_their_new_addresses() {
    System::new().block_on(async {
        let mut three = Three::new("b", &[Fate::Run, Fate::Run]);
        three.until("all to run", |record, whole| whole && record.started.borrow().len() == 3).await;
        assert_eq!(three.started(), "abc");
        let before: Vec<_> = three.addresses.iter().map(|address| address.borrow().clone().unwrap()).collect();
        assert_eq!(before[1].send(Panic).await, Err(MailboxError::Closed));
        three.until("all to run again", |record, whole| whole && record.started.borrow().len() == 5).await;
        assert_eq!((three.started(), three.stopped()), ("abcbc".to_owned(), "bc".to_owned()));
        let after: Vec<_> = three.addresses.iter().map(|address| address.borrow().clone().unwrap()).collect();
        assert!(after[0] == before[0] && after[1] != before[1] && after[2] != before[2]);
        assert!(after.iter().all(Addr::connected));
        three.supervisor.retire(0).await;
        assert_eq!(three.stopped(), "bccba", "the last one first");
        assert!(three.addresses.iter().all(|address| address.borrow().is_none()));
        until("all to be gone", || three.record.alive.get() == 0).await;
    });
}

#[test]
fn a_limit_that_is_exceeded_is_told_first_and_then_all_are_stopped_in_reverse() {
    System::new().block_on(async {
        let mut three = Three::new("b", &[Fate::PanicInFuture; 4]);
        let gave_up = three.supervisor.run().await;
        assert_eq!((gave_up.actor.as_str(), gave_up.restarts), ("b", 3));
        assert!(gave_up.reason.starts_with("panicked: in a future"), "{gave_up}");
        assert!(!*three.whole.borrow());
        assert!(three.stopped().ends_with("bca"), "{}", three.stopped());
        assert_eq!(three.record.alive.get(), 0);
    });
}

#[test]
fn some_are_retired_while_the_others_are_still_supervised() {
    System::new().block_on(async {
        let mut three = Three::new("a", &[Fate::Run]);
        three.until("all to run", |record, whole| whole && record.started.borrow().len() == 3).await;
        three.supervisor.retire(2).await;
        assert_eq!(three.stopped(), "c");
        let address = three.addresses[0].borrow().clone().unwrap();
        let _ = address.send(Panic).await;
        three.until("the others to run again", |record, whole| whole && record.started.borrow().len() == 5).await;
        assert_eq!(three.started(), "abcab", "c does not come back");
    });
}

/// The other thread of a child is gone, as when its arbiter was stopped: that is an end, and not silence.
#[test]
fn a_child_without_a_seat_is_given_up() {
    System::new().block_on(async {
        let (tree, (published, _whole)) = (Arc::new(Tree::default()), watch::channel(false));
        let mut supervisor = Supervisor::new("root", tree, published);
        drop(supervisor.add(spec("a", Restart::Permanent, FAST), || {}));
        assert_eq!(supervisor.run().await.reason, "thread ended");
    });
}

#[test]
fn two_hundred_children_that_panic_leave_nothing() {
    System::new().block_on(async {
        let record = Record::default();
        let tree = Rc::new(Tree::default());
        let node = tree.add_many("connection", "root");
        let over = Rc::new(Cell::new(0));
        for number in 0..200 {
            let (record, tree, over) = (record.clone(), tree.clone(), over.clone());
            let fate = [Fate::PanicInStarted, Fate::PanicInHandler, Fate::Fail, Fate::PanicTwice][number % 4];
            actix::spawn(async move {
                let (name, restart) = ("connection", Restart::Transient);
                let child = Child { name, restart, can_continue: Some(&|| false), ..child(&tree, node) };
                let factory = |exit| Actor_::new("x", fate, exit, &record);
                supervise(&child, || number.to_string(), std::future::pending(), factory).await;
                over.set(over.get() + 1);
            });
        }
        until("all to be over", || over.get() == 200).await;
        assert_eq!(record.alive.get(), 0);
        assert_eq!((Rc::strong_count(&record.alive), Rc::strong_count(&tree)), (1, 1));
        assert_eq!((tree.report().len(), tree.report()[0].failures), (1, 200));
    });
}

#[test]
fn a_reason_of_any_length_is_cut() {
    let end = End::Panicked("é".repeat(10_000));
    assert_eq!(end.reason().chars().count(), 301);
}
