//! Messages of several records that are being received.
//!
//! Records of one message mostly follow each other, so the message that was received last is found without a table.

use std::collections::HashMap;

/// Where a message belongs: the subscription and the publisher's connection.
pub(crate) type Place = (u32, u32);

/// The parts of messages that have arrived.
#[derive(Debug, Default)]
pub(crate) struct Partials {
    latest: Option<(Place, Vec<u8>)>,
    others: HashMap<Place, Vec<u8>>,
}

impl Partials {
    /// The bytes of a message that begins, none yet. Its memory grows with what arrives, not with what is announced.
    pub(crate) fn begin(&mut self, place: Place) -> &mut Vec<u8> {
        let mut bytes = self.take(place).unwrap_or_default();
        bytes.clear();
        self.others.extend(self.latest.take());
        &mut self.latest.insert((place, bytes)).1
    }

    /// The bytes of a message so far, if it has begun. It is the latest one then.
    pub(crate) fn get(&mut self, place: Place) -> Option<&mut Vec<u8>> {
        if self.latest.as_ref().is_none_or(|(its, _)| *its != place) {
            let found = (place, self.others.remove(&place)?);
            self.others.extend(self.latest.replace(found));
        }
        self.latest(place)
    }

    /// The same, if it is the one that was received last.
    #[inline]
    pub(crate) fn latest(&mut self, place: Place) -> Option<&mut Vec<u8>> {
        self.latest.as_mut().filter(|(its, _)| *its == place).map(|(_, bytes)| bytes)
    }

    /// Takes the bytes of a message out, if it has begun.
    pub(crate) fn take(&mut self, place: Place) -> Option<Vec<u8>> {
        let latest = self.latest.take_if(|(its, _)| *its == place).map(|(_, bytes)| bytes);
        latest.or_else(|| self.others.remove(&place))
    }

    /// Keeps the messages for these subscriptions, and forgets all others.
    pub(crate) fn keep(&mut self, subscriptions: impl Fn(u32) -> bool) {
        self.latest.take_if(|((its, _), _)| !subscriptions(*its));
        self.others.retain(|(its, _), _| subscriptions(*its));
    }

    /// The session has ended.
    pub(crate) fn clear(&mut self) {
        *self = Partials::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parts_of_messages_are_kept_apart(
            steps in prop::collection::vec((0u32..3, 0u32..3, 0u8..6, any::<u8>()), 0..60)
        ) {
            let (mut partials, mut model) = (Partials::default(), HashMap::<Place, Vec<u8>>::new());
            let mut last = None;
            for (subscription, publisher, action, byte) in steps {
                let place = (subscription, publisher);
                match action {
                    0 => {
                        partials.begin(place).push(byte);
                        model.insert(place, vec![byte]);
                        last = Some(place);
                    }
                    1 | 2 => {
                        let (found, expected) = (partials.get(place), model.get_mut(&place));
                        prop_assert_eq!(&found, &expected);
                        if let (Some(found), Some(expected)) = (found, expected) {
                            found.push(byte);
                            expected.push(byte);
                            last = Some(place);
                        }
                    }
                    3 => {
                        let found = partials.latest(place).cloned();
                        prop_assert_eq!(found, model.get(&place).filter(|_| last == Some(place)).cloned());
                    }
                    4 => {
                        prop_assert_eq!(partials.take(place), model.remove(&place));
                        last = last.filter(|last| *last != place);
                    }
                    _ => {
                        partials.keep(|its| its != subscription);
                        model.retain(|(its, _), _| *its != subscription);
                        last = last.filter(|(its, _)| *its != subscription);
                    }
                }
            }
            for (place, bytes) in model {
                prop_assert_eq!(partials.take(place), Some(bytes));
            }
            partials.clear();
            prop_assert!(partials.latest.is_none() && partials.others.is_empty());
        }
    }
}
