//! Whether a thread is stuck, by a heartbeat counter that it advances on request.
//!
//! Only time during which the watcher itself ran counts: after a stopped process continues or a machine wakes up, no
//! thread is reported as stuck for that.

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ThreadState {
    /// A heartbeat came since the last request.
    Alive,
    /// A heartbeat came after this delay.
    Recovered(u64),
    /// No heartbeat yet.
    Pending,
    /// It is late. Returned once.
    Late(u64),
    /// It is stuck beyond the limit.
    Stuck(u64),
}

/// The watch over one thread. Times in nanoseconds.
#[derive(Debug)]
pub(crate) struct Watch {
    warn: u64,
    abort: u64,
    /// The longest interval between two checks of a running watcher.
    step: u64,
    looked: u64,
    count: Option<u64>,
    late: u64,
    reported: bool,
}

impl Watch {
    /// A thread is late after `warn`, and stuck after `abort`; it is checked about every `every`.
    pub(crate) fn new(warn: u64, abort: u64, every: u64, now: u64) -> Watch {
        Watch { warn, abort, step: every.saturating_mul(2), looked: now, count: None, late: 0, reported: false }
    }

    /// Checks the thread's counter; `None` while the thread is absent.
    pub(crate) fn look(&mut self, count: Option<u64>, now: u64) -> ThreadState {
        let passed = now.saturating_sub(self.looked).min(self.step);
        self.looked = now;
        if count.is_none() || count != self.count {
            let (late, reported) = (std::mem::take(&mut self.late), std::mem::take(&mut self.reported));
            self.count = count;
            return if reported { ThreadState::Recovered(late) } else { ThreadState::Alive };
        }
        self.late = self.late.saturating_add(passed);
        if self.late >= self.abort {
            return ThreadState::Stuck(self.late);
        }
        if self.late >= self.warn && !std::mem::replace(&mut self.reported, true) {
            return ThreadState::Late(self.late);
        }
        ThreadState::Pending
    }

    /// Whether it is late.
    pub(crate) fn is_late(&self) -> bool {
        self.late >= self.warn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch() -> Watch {
        Watch::new(1_000, 5_000, 250, 0)
    }

    #[test]
    fn a_thread_that_answers_is_never_late() {
        let mut watch = watch();
        for tick in 0..1_000 {
            assert_eq!(watch.look(Some(tick), tick * 250), ThreadState::Alive);
        }
    }

    #[test]
    fn a_thread_that_hangs_is_late_once_and_then_too_late() {
        let mut watch = watch();
        let mut reported = Vec::new();
        for tick in 0..=20 {
            match watch.look(Some(7), tick * 250) {
                ThreadState::Alive | ThreadState::Pending => {}
                verdict => reported.push((tick * 250, verdict)),
            }
        }
        assert_eq!(reported, [(1_000, ThreadState::Late(1_000)), (5_000, ThreadState::Stuck(5_000))]);
        assert!(watch.is_late());
    }

    #[test]
    fn a_late_thread_that_turns_again_is_forgiven() {
        let mut watch = watch();
        for tick in 0..=8 {
            watch.look(Some(7), tick * 250);
        }
        assert_eq!(watch.look(Some(8), 2_250), ThreadState::Recovered(2_000));
        assert!(!watch.is_late());
        assert_eq!(watch.look(Some(8), 2_500), ThreadState::Pending);
    }

    #[test]
    fn time_in_which_the_watcher_stood_still_does_not_count() {
        let mut watch = watch();
        watch.look(Some(7), 0);
        for hour in 1..=5 {
            assert_eq!(watch.look(Some(7), hour * 3_600_000).min_late(), 0, "hour {hour}");
            watch.look(Some(7 + hour), hour * 3_600_000 + 1);
            watch.look(Some(7), hour * 3_600_000 + 2);
        }
    }

    impl ThreadState {
        fn min_late(self) -> u64 {
            match self {
                ThreadState::Pending | ThreadState::Alive => 0,
                ThreadState::Recovered(late) | ThreadState::Late(late) | ThreadState::Stuck(late) => late,
            }
        }
    }

    #[test]
    fn nobody_is_not_late() {
        let mut watch = watch();
        watch.look(Some(7), 0);
        for tick in 1..100 {
            assert_eq!(watch.look(None, tick * 250), ThreadState::Alive);
        }
        assert_eq!(watch.look(Some(7), 25_000), ThreadState::Alive, "the next one begins anew");
    }
}
