//! The timers of calls, which stay in their places for the next calls.

use super::*;

struct Stage {
    router: Router,
    requester: Peer,
    responder: Peer,
    service: u32,
    generation: u32,
    /// Timers that are none of calls.
    others: usize,
}

impl Stage {
    fn new() -> Stage {
        let mut router = Router::new(|_| {});
        let (requester, responder) = (router.connect(), router.connect());
        router.serve(&responder, "s", 0);
        let service = router.service(&requester, "s");
        let others = router.state.ports.wheel.len();
        Stage { router, requester, responder, service, generation: 0, others }
    }

    fn ask(&mut self, ms: u64) {
        self.generation += 1;
        let (flags, id2, arg, nanos) = (Flags::WHOLE, self.generation, self.service, ms * 1_000_000);
        assert!(self.requester.push(true, Header { flags, id2, arg, nanos, ..Header::new(Kind::Request) }, b""));
        self.router.run();
    }

    fn answer(&mut self) {
        let came = self.responder.take_all(&mut self.router);
        let (call, _) = came.iter().rfind(|(header, _)| header.kind == Kind::RoutedRequest).expect("a call");
        let flags = Flags::WHOLE.with(Flags::END);
        assert!(self.responder.push(true, Header { flags, seq: call.seq, ..Header::new(Kind::Response) }, b""));
        self.router.run();
        assert_eq!(kinds(&self.requester.take_all(&mut self.router)), [Kind::RoutedResponse]);
    }

    /// The outcomes until `ms` milliseconds from now.
    fn failed_in(&mut self, ms: u64) -> Vec<Option<Outcome>> {
        self.router.pass(ms);
        let taken = self.requester.take_all(&mut self.router);
        taken.iter().map(|(header, _)| Outcome::from_u16(header.code)).collect()
    }

    fn timers(&self) -> usize {
        self.router.state.ports.wheel.len() - self.others
    }
}

#[test]
fn a_call_ends_at_its_own_deadline_whatever_timer_is_in_its_place() {
    for died in [false, true] {
        for (first, second) in [(100, 100), (100, 50), (50, 100), (100, 1000)] {
            let mut stage = Stage::new();
            stage.ask(first);
            stage.answer();
            assert_eq!(stage.failed_in(10), []);
            if died {
                fault::armed::arm("router.timer", 1);
            }
            stage.ask(second);
            assert_eq!((stage.failed_in(second - 1), stage.timers()), (vec![], 1), "{first} {second}");
            assert_eq!(stage.failed_in(2), [Some(Outcome::DeadlineExceeded)], "{first} {second}");
            assert_eq!((stage.failed_in(1000), stage.timers()), (vec![], 0));
            assert!(!fault::armed::disarm());
        }
    }
}

#[test]
fn calls_that_end_in_time_leave_one_timer_for_all_and_it_goes_by_itself() {
    let mut stage = Stage::new();
    for _ in 0..100 {
        stage.ask(1000);
        stage.answer();
        assert_eq!((stage.failed_in(1), stage.timers()), (vec![], 1));
    }
    assert_eq!((stage.failed_in(900), stage.timers()), (vec![], 0));
}
