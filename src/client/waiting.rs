//! How anybody waits.
//!
//! Whoever waits looks for its own thing; if it is not there it tries to become the reader. The one that succeeds sorts
//! what arrives into everybody's queues, spins and sleeps; the others sleep on a condition variable. When the reader
//! has got what it wanted it wakes them, and one of them becomes the reader.

use super::error::{Kind, Result};
use super::inner::{Inner, lock, try_lock};
#[cfg(feature = "tokio")]
use super::link::Step;
use super::reader::Reader;
use super::roles::{Following, Lead, Viewing};
use crate::sync::{Ordering, Site, fence};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

/// What somebody waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// Something that a record in the egress ring brings.
    Record,
    /// Something else, of which a bell tells.
    Bell,
}

impl Inner {
    /// The reader role, if nobody has it.
    fn try_lead(&self) -> Option<Lead<'_>> {
        Some(Lead::new(try_lock(&self.reader)?, self))
    }

    /// Notes, until the guard is dropped, that this thread looks at a record in the ring: what the user does meanwhile
    /// must not wait, for it would wait for itself.
    pub(super) fn view(&self) -> Viewing<'_> {
        Viewing::new(&self.viewer)
    }

    /// An error if this thread would wait for itself.
    pub(super) fn may_wait(&self) -> Result<()> {
        match Viewing::is_of_this_thread(&self.viewer) {
            true => Err(Kind::ViewOutstanding.into()),
            false => Ok(()),
        }
    }

    /// Waits until `ready` gives something, the connection ends, or `deadline` is past. `ready` is called often, with
    /// no lock held but perhaps the reader role; it may place records, and must not wait.
    pub(super) fn wait_until<T>(&self, deadline: Option<Instant>, mut ready: impl FnMut() -> Option<T>) -> Result<T> {
        self.wait_for(What::Record, deadline, |_| ready())
    }

    /// As [`Inner::wait_until`], for what no record brings but a bell: space in a lane, or an answer over the socket.
    /// To spin for that would be in vain.
    pub(super) fn wait_for_bell<T>(&self, ready: impl FnMut() -> Option<T>) -> Result<T> {
        self.wait_for_bell_until(None, ready)
    }

    pub(super) fn wait_for_bell_until<T>(
        &self,
        deadline: Option<Instant>,
        mut ready: impl FnMut() -> Option<T>,
    ) -> Result<T> {
        self.wait_for(What::Bell, deadline, |_| ready())
    }

    /// As [`Inner::wait_until`]; when the caller has the reader role, `ready` gets it, to take a record out of the ring
    /// itself.
    pub(super) fn wait_reading<T>(&self, ready: impl FnMut(Option<&mut Reader>) -> Option<T>) -> Result<T> {
        self.wait_for(What::Record, None, ready)
    }

    fn wait_for<T>(
        &self,
        what: What,
        deadline: Option<Instant>,
        mut ready: impl FnMut(Option<&mut Reader>) -> Option<T>,
    ) -> Result<T> {
        self.check_fork()?;
        loop {
            if let Some(mut lead) = self.try_lead() {
                return self.read(&mut lead.reader, what, deadline, &mut ready);
            }
            // Counted before anything is looked at, so that a reader that finds nobody is seen to have left.
            let _following = Following::new(&self.followers);
            fence(Site::Sleep);
            let seen = *lock(&self.turns);
            if let Some(mut lead) = self.try_lead() {
                return self.read(&mut lead.reader, what, deadline, &mut ready);
            }
            if let Some(found) = ready(None) {
                return Ok(found);
            }
            if let Some(closed) = self.closed() {
                // What arrived before the end was sorted before the end was told: it may be ours.
                return ready(None).ok_or(closed);
            }
            if deadline.is_none_or(|deadline| Instant::now() < deadline) {
                self.may_wait()?;
            }
            if let Some(result) = self.follow(seen, deadline) {
                return result;
            }
        }
    }

    fn read<T>(
        &self,
        reader: &mut Reader,
        what: What,
        deadline: Option<Instant>,
        ready: &mut impl FnMut(Option<&mut Reader>) -> Option<T>,
    ) -> Result<T> {
        let mut last_look = false;
        loop {
            // Its own thing may be in the ring: taken there, it need not pass through a queue.
            if let Some(found) = ready(Some(reader)) {
                return Ok(found);
            }
            if reader.sort(self) > 0 {
                if let Some(found) = ready(Some(reader)) {
                    return Ok(found);
                }
                self.pass_on();
                continue;
            }
            if let Some(closed) = self.closed() {
                return Err(closed);
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                if std::mem::replace(&mut last_look, true) {
                    return Err(Kind::Timeout.into());
                }
                // Who never waits long enough to sleep must learn of the socket, too.
                reader.look_at_bells(self, Some(Duration::ZERO));
                reader.step(self);
                continue;
            }
            if reader.wait(self, what, deadline) {
                // Whom the bell was for is not known: a lane may have space.
                self.pass_on();
            }
        }
    }

    /// Sleeps until the reader has sorted something or left. `None`: look again.
    fn follow<T>(&self, seen: u64, deadline: Option<Instant>) -> Option<Result<T>> {
        let mut turns = lock(&self.turns);
        while *turns == seen {
            turns = match deadline {
                None => self.turn.wait(turns).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Some(Err(Kind::Timeout.into()));
                    }
                    self.turn.wait_timeout(turns, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        None
    }

    /// The reader has sorted something, or leaves: the others look.
    pub(super) fn pass_on(&self) {
        fence(Site::Wake);
        if self.followers.load(Ordering::SeqCst) > 0 {
            *lock(&self.turns) += 1;
            self.turn.notify_all();
        }
    }

    /// Sorts what has arrived, without waiting.
    pub(super) fn sort_now(&self) {
        if !self.is_ours() {
            return;
        }
        if let Some(mut lead) = self.try_lead() {
            while lead.reader.sort(self) > 0 {}
        }
    }

    /// For an event loop that found the descriptor readable: sorts what has arrived, asks to be woken and looks once
    /// more.
    #[cfg(feature = "tokio")]
    pub(super) fn drive(&self) -> Step {
        if !self.is_ours() {
            return Step::Rest;
        }
        let Some(mut lead) = self.try_lead() else { return Step::Changed };
        let reader = &mut lead.reader;
        reader.look_at_bells(self, Some(Duration::ZERO));
        let mut step = reader.step(self);
        while reader.sort(self) > 0 {}
        if !reader.arm(self) {
            step = Step::Changed;
        }
        drop(lead);
        // Whom the bell was for is not known: a lane may have space.
        let wakers = std::mem::take(&mut lock(&self.table).wakers);
        wakers.into_iter().for_each(std::task::Waker::wake);
        step
    }

    /// For who does not wait: notices that the broker has gone, and goes on looking for it. Another thread that waits
    /// does so anyway.
    #[cold]
    pub(super) fn look_after_link(&self) {
        let Some(mut lead) = self.try_lead() else { return };
        let reader = &mut lead.reader;
        reader.look_at_bells(self, Some(Duration::ZERO));
        let _ = reader.step(self);
        let table = lock(&self.table);
        if table.closed.is_none() {
            self.down.set_away(reader.is_away());
        }
    }
}
