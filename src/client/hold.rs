//! Holding topics and services: a name is asked for once and used by all; when nobody uses it any more its number is
//! given back.

use super::error::Result;
use super::inner::{Inner, Table, lock, unexpected};
use super::lane::Lane;
use super::names::{NONE, Names, Place};
use super::{Name, Topic};
use crate::sync::Ordering;
use crate::wire::control::{BrokerFrame, ClientFrame, FailedCode, InternKind};
use crate::wire::record::{Header, Kind as RecordKind};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Names without users that keep their numbers, those that were used last.
const KEPT_TOPICS: usize = 256;
const KEPT_SERVICES: usize = 64;

/// How often, and how long each time, the broker is waited for to hear of releases when a limit is reached.
pub(super) const LOOKS: usize = 400;
pub(super) const LOOK: Duration = Duration::from_millis(5);

/// A use of a name: while this is there, its number stays.
#[derive(Debug)]
pub(super) struct Hold {
    inner: Arc<Inner>,
    kind: InternKind,
    pub(super) place: Place,
    /// The name keeps its number for a while.
    keep: bool,
}

impl Drop for Hold {
    fn drop(&mut self) {
        if !self.inner.is_ours() {
            return;
        }
        self.inner.names(&mut lock(&self.inner.table), self.kind).leave(self.place, self.keep);
        if !self.keep {
            self.inner.release(self.kind, usize::MAX);
        }
    }
}

impl Inner {
    fn names<'a>(&self, table: &'a mut Table, kind: InternKind) -> &'a mut Names {
        match kind {
            InternKind::Topic => &mut table.topics,
            InternKind::Service => &mut table.services,
        }
    }

    fn lane_of(&self, kind: InternKind) -> &Lane {
        match kind {
            InternKind::Topic => self.bulk(),
            InternKind::Service => self.express(),
        }
    }

    /// A use of a name, if the broker has given it a number already.
    pub(super) fn held(self: &Arc<Inner>, kind: InternKind, name: &str, keep: bool) -> Result<Option<Hold>> {
        self.check_fork()?;
        let mut table = lock(&self.table);
        let session = table.session;
        let place = self.names(&mut table, kind).find(name, session);
        Ok(place.map(|place| Hold { inner: self.clone(), kind, place, keep }))
    }

    /// How to ask for the number of a name. Room for it is made first.
    pub(super) fn to_hold(&self, kind: InternKind, name: &str) -> Result<impl FnOnce(u32) -> ClientFrame + use<>> {
        let name = match kind {
            InternKind::Topic => Topic::parse(name)?,
            InternKind::Service => Topic::from(&Name::parse(name)?),
        };
        let kept = if kind == InternKind::Topic { KEPT_TOPICS } else { KEPT_SERVICES };
        self.release(kind, kept - 1);
        Ok(move |serial| ClientFrame::Intern { serial, kind, name })
    }

    /// What the broker has said. `false`: a limit is reached, but names without users were released, and it may be
    /// asked once more when it has heard of that.
    pub(super) fn took_hold(&self, kind: InternKind, answer: &BrokerFrame, is_last: bool) -> Result<bool> {
        if matches!(answer, BrokerFrame::Interned { .. }) {
            return Ok(true);
        }
        let is_limit = matches!(answer, BrokerFrame::Failed { code: FailedCode::Limit, .. });
        if is_limit && !is_last {
            self.release(kind, 0);
            if self.names(&mut lock(&self.table), kind).has_retired() {
                return Ok(false);
            }
        }
        Err(unexpected(answer))
    }

    /// Whether the broker has heard of all releases.
    pub(super) fn has_heard(&self, kind: InternKind) -> bool {
        let mut table = lock(&self.table);
        let names = self.names(&mut table, kind);
        if let Some(consumed) = self.lane_of(kind).try_claim().and_then(|mut lane| lane.producer.look().ok()) {
            names.consumed(consumed);
        }
        !names.has_retired()
    }

    /// A use of a topic. `keep`: its number stays for a while when nobody uses it.
    pub(super) fn topic(self: &Arc<Inner>, name: &str, keep: bool) -> Result<Hold> {
        self.hold(InternKind::Topic, name, keep, || None)
    }

    /// A use of a service.
    pub(super) fn service(self: &Arc<Inner>, name: &str, deadline: impl FnOnce() -> Option<Instant>) -> Result<Hold> {
        self.hold(InternKind::Service, name, true, deadline)
    }

    #[inline]
    fn hold(
        self: &Arc<Inner>,
        kind: InternKind,
        name: &str,
        keep: bool,
        deadline: impl FnOnce() -> Option<Instant>,
    ) -> Result<Hold> {
        match self.held(kind, name, keep)? {
            Some(held) => Ok(held),
            None => self.hold_new(kind, name, keep, deadline()),
        }
    }

    #[cold]
    fn hold_new(
        self: &Arc<Inner>,
        kind: InternKind,
        name: &str,
        keep: bool,
        deadline: Option<Instant>,
    ) -> Result<Hold> {
        let mut is_last = false;
        loop {
            let answer = self.ask_until(deadline, self.to_hold(kind, name)?)?;
            if !self.took_hold(kind, &answer, is_last)? {
                is_last = true;
                for _ in 0..LOOKS {
                    if self.has_heard(kind) {
                        break;
                    }
                    let until = Instant::now() + LOOK;
                    let until = deadline.map_or(until, |deadline| deadline.min(until));
                    match self.wait_for_bell_until(Some(until), || None::<()>) {
                        Err(error) if !error.is_timeout() => return Err(error),
                        _ => {}
                    }
                }
            } else if let Some(held) = self.held(kind, name, keep)? {
                return Ok(held);
            }
        }
    }

    /// Releases topics that are to be released, as far as that is possible now. Never waits.
    pub(super) fn release_leaving(&self) {
        if self.has_leaving.load(Ordering::Relaxed) != 0 {
            self.has_leaving.store(0, Ordering::Relaxed);
            self.release(InternKind::Topic, KEPT_TOPICS);
            self.release(InternKind::Service, KEPT_SERVICES);
        }
    }

    /// Releases names without users, but the `kept` ones that were used last. What cannot be released now, because
    /// another thread has the lane, or there is no space, is released when somebody waits, or asks for a name.
    fn release(&self, kind: InternKind, kept: usize) {
        let mut table = lock(&self.table);
        let session = table.session;
        let names = self.names(&mut table, kind);
        while let Some((at, id, number)) = names.to_release(kept) {
            let Some(mut lane) =
                self.lane_of(kind).try_claim().filter(|lane| lane.is_free() && lane.session == session)
            else {
                return self.has_leaving.store(1, Ordering::Relaxed);
            };
            let seq = lane.last_sequence(at, id);
            if number == NONE {
                names.released(at, seq, 0, 0);
                continue;
            }
            let header = match kind {
                InternKind::Topic => Header { id: number, ..Header::new(RecordKind::Release) },
                InternKind::Service => Header { arg: number, ..Header::new(RecordKind::ReleaseService) },
            };
            // Noted before the lane asks to be woken.
            self.has_leaving.store(1, Ordering::Relaxed);
            let Ok(true) = lane.try_push(&header, &[]) else { return };
            self.has_leaving.store(0, Ordering::Relaxed);
            let (end, consumed) = (lane.producer.claimed(), lane.producer.look().unwrap_or(0));
            names.released(at, seq, end, consumed);
        }
    }
}
