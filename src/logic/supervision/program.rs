//! The life of a program that the broker runs: it starts, it is asked to stop by SIGTERM, then killed, and it ends.
//!
//! | state | event | action |
//! |---|---|---|
//! | starting | it runs; it cannot be started | SIGTERM if it was stopped meanwhile; finish |
//! | running | stop | SIGTERM |
//! | stopping | its time is over | SIGKILL |
//! | running, stopping, killed | it ended | finish |

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The program runs.
    Started,
    /// It cannot be started.
    NotStarted,
    /// It is to stop.
    Stop,
    /// The time of [`Program::wake_at`] has come.
    Time,
    /// Its process has ended.
    Ended,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Wait for the next event.
    Wait,
    /// Send SIGTERM to its process group.
    Terminate,
    /// Send SIGKILL to its process group.
    Kill,
    /// It is over: kill what is left of its group, and report.
    Finish,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Starting { is_stopped: bool },
    Running,
    Stopping { until: u64 },
    Killed,
    Over,
}

/// The life of one process. Times in nanoseconds.
#[derive(Debug)]
pub(crate) struct Program {
    state: State,
    /// The time between SIGTERM and SIGKILL.
    patience: u64,
}

impl Program {
    /// A program that is being started.
    pub(crate) fn new(patience: u64) -> Program {
        Program { state: State::Starting { is_stopped: false }, patience }
    }

    /// Takes an event, and returns what to do.
    pub(crate) fn on(&mut self, event: Event, now: u64) -> Action {
        let stopping = State::Stopping { until: now.saturating_add(self.patience) };
        let (state, action) = match (self.state, event) {
            (State::Starting { is_stopped: false }, Event::Started) => (State::Running, Action::Wait),
            (State::Starting { is_stopped: true }, Event::Started) | (State::Running, Event::Stop) => {
                (stopping, Action::Terminate)
            }
            (State::Starting { .. }, Event::NotStarted) => (State::Over, Action::Finish),
            (State::Starting { .. }, Event::Stop) => (State::Starting { is_stopped: true }, Action::Wait),
            (State::Stopping { until }, Event::Time) if now >= until => (State::Killed, Action::Kill),
            (State::Running | State::Stopping { .. } | State::Killed, Event::Ended) => (State::Over, Action::Finish),
            (state, _) => (state, Action::Wait),
        };
        self.state = state;
        action
    }

    /// When [`Event::Time`] is due.
    pub(crate) fn wake_at(&self) -> Option<u64> {
        if let State::Stopping { until } = self.state { Some(until) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(events: &[(Event, u64)]) -> Vec<Action> {
        let mut program = Program::new(100);
        events.iter().map(|(event, now)| program.on(*event, *now)).collect()
    }

    #[test]
    fn an_end_finishes_at_any_time() {
        use Action::{Finish, Kill, Terminate, Wait};
        use Event::{Ended, NotStarted, Started, Stop, Time};
        assert_eq!(run(&[(Started, 0), (Ended, 5)]), [Wait, Finish]);
        assert_eq!(run(&[(NotStarted, 0)]), [Finish]);
        assert_eq!(run(&[(Stop, 0), (NotStarted, 1)]), [Wait, Finish]);
        assert_eq!(run(&[(Started, 0), (Stop, 1), (Ended, 2)]), [Wait, Terminate, Finish]);
        assert_eq!(
            run(&[(Started, 0), (Stop, 1), (Time, 101), (Ended, 102), (Ended, 103)]),
            [Wait, Terminate, Kill, Finish, Wait]
        );
    }

    #[test]
    fn a_stop_while_it_starts_terminates_it_once_it_runs() {
        use Action::{Terminate, Wait};
        assert_eq!(run(&[(Event::Stop, 0), (Event::Stop, 1), (Event::Started, 2)]), [Wait, Wait, Terminate]);
    }

    #[test]
    fn it_is_killed_once_and_not_before_its_time() {
        let mut program = Program::new(100);
        assert_eq!(program.on(Event::Started, 0), Action::Wait);
        assert_eq!(program.wake_at(), None);
        assert_eq!(program.on(Event::Time, 5000), Action::Wait);
        assert_eq!(program.on(Event::Stop, 5000), Action::Terminate);
        assert_eq!(program.wake_at(), Some(5100));
        assert_eq!(program.on(Event::Stop, 5050), Action::Wait, "a second stop does not extend its time");
        assert_eq!(program.on(Event::Time, 5099), Action::Wait);
        assert_eq!(program.on(Event::Time, 5100), Action::Kill);
        assert_eq!(program.wake_at(), None);
        assert_eq!(program.on(Event::Time, 9000), Action::Wait);
    }
}
