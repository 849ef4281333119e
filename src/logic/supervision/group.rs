//! A supervisor's children in their order: which are stopped and restarted when one of them has ended.
//!
//! ```text
//!              next: Start                    next: Stop
//!   stopped ─────────────────► running ──────────────────► stopping ─┐
//!      ▲  (after the delay)       │ ended: a decision                │ ended: as requested
//!      ├──────────────────────────┤                                  │
//!      └──────────────────────────┼──────────────────────────────────┘
//!                                 ▼ need not come back, or gave up
//!                                done
//! ```
//!
//! *Rest-for-one*: those after a child that ended are stopped, the last one first and each only after the one behind
//! it, and started again in order, each after those before it run. Children that depend on no other have a supervisor
//! of their own.
//! When a child is given up, all others are stopped likewise, and then the group *escalates* to its owner.

use super::restart::{Decision, Limits, Restart, Restarts};

/// The tree's name of the supervisor whose actors are vital.
pub(crate) const ROOT: &str = "root";

/// An action for the owner of the children.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Start(usize),
    Stop(usize),
    /// All retired children have stopped.
    Retired,
    /// This child was given up, and all have stopped.
    Escalate(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Stopped,
    Running,
    Stopping,
    Done,
}

#[derive(Debug)]
struct Member {
    restarts: Restarts,
    state: State,
    /// When it is to be started, if it is stopped.
    due: Option<u64>,
    /// It runs, and must be stopped.
    must_stop: bool,
}

/// The children, in the order in which they are started.
#[derive(Debug)]
pub(crate) struct Group {
    members: Vec<Member>,
    /// Children from this number on are not restarted.
    retired_from: usize,
    retiring: bool,
    given_up: Option<usize>,
    escalated: bool,
}

impl Group {
    pub(crate) fn new() -> Group {
        let members = Vec::new();
        Group { members, retired_from: usize::MAX, retiring: false, given_up: None, escalated: false }
    }

    /// Adds a child, the last one; it is to be started now. Returns its number.
    pub(crate) fn add(&mut self, restart: Restart, limits: Limits, now: u64) -> usize {
        let restarts = Restarts::new(restart, limits);
        self.members.push(Member { restarts, state: State::Stopped, due: Some(now), must_stop: false });
        self.members.len() - 1
    }

    /// Stops the children from `first` on, for good. [`Action::Retired`] reports the end.
    pub(crate) fn retire(&mut self, first: usize) {
        self.retired_from = self.retired_from.min(first);
        self.retiring = true;
        self.stop_from(first);
    }

    fn stop_from(&mut self, first: usize) {
        for member in self.members.iter_mut().skip(first) {
            member.due = None;
            member.must_stop = member.state == State::Running;
        }
    }

    /// A child has ended. Returns the decision about it, unless it was to be stopped anyway.
    pub(crate) fn ended(&mut self, child: usize, failed: bool, now: u64, random: f64) -> Option<Decision> {
        let member = self.members.get_mut(child)?;
        match member.state {
            State::Running if !member.must_stop => {}
            State::Running | State::Stopping => {
                (member.state, member.must_stop) = (State::Stopped, false);
                member.restarts.stopped();
                return None;
            }
            State::Stopped | State::Done => return None,
        }
        let decision = member.restarts.ended(failed, now, random);
        match decision {
            Decision::Done => member.state = State::Done,
            Decision::Restart { delay, .. } => {
                let due = now.saturating_add(delay);
                (member.state, member.due) = (State::Stopped, Some(due));
                self.rest_follows(child, due);
            }
            Decision::GiveUp { .. } => {
                member.state = State::Done;
                self.given_up.get_or_insert(child);
                self.stop_from(0);
            }
        }
        Some(decision)
    }

    /// Those after `child` are stopped, and started again not before it.
    fn rest_follows(&mut self, child: usize, due: u64) {
        for (index, member) in self.members.iter_mut().enumerate().skip(child + 1) {
            if index >= self.retired_from || member.state == State::Done {
                continue;
            }
            member.must_stop = member.state == State::Running;
            member.due = Some(member.due.map_or(due, |own| own.max(due)));
        }
    }

    /// The next action. Call it until it returns none.
    pub(crate) fn next(&mut self, now: u64) -> Option<Action> {
        if self.members.iter().any(|member| member.state == State::Stopping) {
            return None;
        }
        if let Some(child) = self.members.iter().rposition(|member| member.must_stop) {
            (self.members[child].state, self.members[child].must_stop) = (State::Stopping, false);
            return Some(Action::Stop(child));
        }
        if std::mem::take(&mut self.retiring) {
            return Some(Action::Retired);
        }
        if let Some(child) = self.given_up {
            let had_escalated = std::mem::replace(&mut self.escalated, true);
            return (!had_escalated).then_some(Action::Escalate(child));
        }
        let child = self.startable().filter(|child| self.members[*child].due.is_some_and(|due| due <= now))?;
        let member = &mut self.members[child];
        (member.state, member.due) = (State::Running, None);
        member.restarts.started(now);
        Some(Action::Start(child))
    }

    /// The child that waits only for its restart time: the first stopped one.
    fn startable(&self) -> Option<usize> {
        self.members.iter().position(|member| member.state == State::Stopped)
    }

    /// The time of the next action, if no child ends before.
    pub(crate) fn wake_at(&self) -> Option<u64> {
        let stable = self.members.iter().filter_map(|member| member.restarts.stable_at());
        let stops = self.members.iter().any(|member| member.must_stop || member.state == State::Stopping);
        let starts = self.startable().filter(|_| !stops).and_then(|child| self.members[child].due);
        stable.chain(starts).min()
    }

    /// A child that became stable, and its attempts. Call it until it returns none.
    pub(crate) fn became_stable(&mut self, now: u64) -> Option<(usize, u32)> {
        let members = self.members.iter_mut().enumerate();
        members.filter_map(|(child, member)| Some((child, member.restarts.became_stable(now)?))).next()
    }

    /// Whether all children that are not retired are running.
    pub(crate) fn is_whole(&self) -> bool {
        let kept = self.members.iter().take(self.retired_from);
        self.given_up.is_none()
            && kept
                .into_iter()
                .all(|member| member.state == State::Done || (member.state == State::Running && !member.must_stop))
    }

    /// Whether a child has reached its restart limit.
    pub(crate) fn has_given_up(&self) -> bool {
        self.given_up.is_some()
    }

    /// When a stopped child is to be started.
    pub(crate) fn due(&self, child: usize) -> Option<u64> {
        self.members.get(child)?.due
    }

    /// The period in which a child's restarts are counted.
    pub(crate) fn period(&self, child: usize) -> u64 {
        self.members.get(child).map_or(0, |member| member.restarts.period())
    }
}

#[cfg(test)]
mod tests;
