//! A model behind an endpoint, and the way in which it fills in the middle.

use super::endpoint::Endpoint;
use super::fault::Fault;
use super::markers::Family;
use super::way::{Verdict, Way, Ways};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A model.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) endpoint: Endpoint,
    pub(super) name: String,
    /// The base URL, for logs.
    pub(super) base_url: String,
    pub(super) family: Option<Family>,
    /// The only way to use.
    pub(super) forced: Option<Way>,
    /// The most bytes before and after the cursor that are sent.
    pub(super) context: (usize, usize),
    /// `None` until the endpoint was reached.
    pub(super) ways: Mutex<Option<Ways>>,
}

impl Model {
    fn ways(&self) -> MutexGuard<'_, Option<Ways>> {
        self.ways.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The way to try first. Asks the endpoint what it is, the first time.
    ///
    /// # Errors
    ///
    /// If it cannot be reached.
    pub(super) async fn best_way(&self) -> Result<Way, Fault> {
        if let Some(ways) = &*self.ways() {
            return Ok(ways.best());
        }
        let owner = match self.forced {
            Some(_) => None,
            None => self.endpoint.owner().await?,
        };
        let new = || Ways::new(self.forced, owner.as_deref(), self.family.is_some());
        Ok(self.ways().get_or_insert_with(new).best())
    }

    /// The endpoint may have another model when it is back.
    pub(super) fn forget_ways(&self) {
        *self.ways() = None;
    }

    /// The way to try after a refusal of `way`, and whether `way` is a suspect only.
    pub(super) fn way_after(&self, way: Way, fault: &Fault) -> Option<(Way, bool)> {
        let mut ways = self.ways();
        let ways = ways.as_mut()?;
        let next = ways.after(way);
        match ways.judge(way, fault.status?, &fault.text) {
            Verdict::Innocent => None,
            Verdict::Suspect => next.map(|next| (next, true)),
            Verdict::Absent => {
                log::info!("fill-in-the-middle way refused way={} reason={:?}", way.as_str(), fault.text);
                ways.give_up(way);
                next.map(|next| (next, false))
            }
        }
    }

    /// `way` took a request that the suspects refused.
    pub(super) fn way_was_taken(&self, suspects: &[Way]) {
        if let Some(ways) = &mut *self.ways() {
            suspects.iter().for_each(|suspect| ways.give_up(*suspect));
        }
    }

    /// A completion by `way` is whole.
    pub(super) fn way_works(&self, way: Way) {
        if self.ways().as_mut().is_some_and(|ways| ways.works(way)) {
            log::info!("fill-in-the-middle way found way={} endpoint={}", way.as_str(), self.base_url);
        }
    }

    /// The way that works, for the status.
    pub(super) fn known_way(&self) -> Option<Way> {
        self.ways().as_ref().and_then(Ways::proven)
    }
}
