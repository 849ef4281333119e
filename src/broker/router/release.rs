//! A client gives the numbers of topics and services back. The record that does so lies behind the last message with
//! the number, in the same lane, so nothing that is under way still has it.

use super::outlet::Doom;
use super::state::RouterState;
use crate::wire::record::Header;

impl RouterState {
    /// The topic's number is free again, and the topic has a user less. A number that stands for nothing is ignored:
    /// so a router that died within this carries it out once.
    pub(super) fn release_number(&mut self, key: u32, header: &Header) -> Result<(), Doom> {
        let Some(inlet) = self.inlet_mut(key) else { return Ok(()) };
        if inlet.partial.as_ref().is_some_and(|partial| partial.id == header.id) {
            return Err(Doom::violation("a topic was released within a message on it"));
        }
        if let Some(published) = inlet.topics.take(header.id) {
            self.release_topic(published.topic);
        }
        Ok(())
    }

    /// The same of a service. Calls that are under way go on.
    pub(super) fn release_service_number(&mut self, key: u32, header: &Header) {
        if let Some(service) = self.inlet_mut(key).and_then(|inlet| inlet.services.take(header.arg)) {
            self.services.release(service);
        }
    }
}
