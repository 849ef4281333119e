//! An index of patterns by their tokens: it finds the subscriptions that match a topic without a look at the others.
//!
//! A tree with one level per token, as NATS' sublist has (`server/sublist.go`). The wildcards are children like any
//! other token, since no topic has such a token. A change costs the tokens of the pattern; a match visits at most the
//! nodes whose path matches a beginning of the topic.

use super::arena::Key;
use crate::wire::name::Topic;
use crate::wire::pattern::Pattern;
use std::collections::HashMap;
use std::str::Split;

/// The index.
#[derive(Debug, Default)]
pub(crate) struct PatternIndex {
    root: Node,
}

#[derive(Debug, Default)]
struct Node {
    children: HashMap<Box<str>, Node>,
    /// The subscriptions whose pattern ends here.
    keys: Vec<Key>,
}

impl PatternIndex {
    /// Adds a subscription. Returns its place among those with the same pattern.
    pub(crate) fn insert(&mut self, pattern: &Pattern, key: Key) -> usize {
        let mut node = &mut self.root;
        for token in pattern.as_str().split('.') {
            // Looked up twice, because an entry would need a copy of each token.
            if !node.children.contains_key(token) {
                node.children.insert(token.into(), Node::default());
            }
            node = node.children.get_mut(token).expect("it was just inserted");
        }
        node.keys.push(key);
        node.keys.len() - 1
    }

    /// Removes the subscription at `place`. The returned one is at this place from now on.
    pub(crate) fn remove(&mut self, pattern: &Pattern, place: usize) -> Option<Key> {
        self.root.remove(pattern.as_str().split('.'), place)
    }

    /// Adds the subscriptions that match `topic` to `found`. Returns how many nodes were visited.
    pub(crate) fn find(&self, topic: &Topic, found: &mut Vec<Key>) -> usize {
        self.root.find(topic.as_str().split('.'), !topic.is_system(), found)
    }

    /// Whether no subscription is left.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.root.is_empty()
    }
}

impl Node {
    fn is_empty(&self) -> bool {
        self.children.is_empty() && self.keys.is_empty()
    }

    fn remove(&mut self, mut tokens: Split<'_, char>, place: usize) -> Option<Key> {
        let Some(token) = tokens.next() else {
            self.keys.swap_remove(place);
            return self.keys.get(place).copied();
        };
        let child = self.children.get_mut(token)?;
        let moved = child.remove(tokens, place);
        if child.is_empty() {
            self.children.remove(token);
        }
        moved
    }

    fn find(&self, mut tokens: Split<'_, char>, may_be_wild: bool, found: &mut Vec<Key>) -> usize {
        let Some(token) = tokens.next() else {
            found.extend_from_slice(&self.keys);
            return 1;
        };
        let mut visited = 1;
        if may_be_wild {
            if let Some(rest) = self.children.get(">") {
                found.extend_from_slice(&rest.keys);
                visited += 1;
            }
            if let Some(any) = self.children.get("*") {
                visited += any.find(tokens.clone(), true, found);
            }
        }
        if let Some(child) = self.children.get(token) {
            visited += child.find(tokens, true, found);
        }
        visited
    }
}

#[cfg(test)]
mod tests {
    use super::super::arena::Arena;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Adds and removes patterns at random, beside a list that is looked through.
        #[test]
        fn agrees_with_a_look_at_each_pattern(
            patterns in proptest::collection::vec(("(\\$?[ab]|\\*|>)(\\.([ab]|\\*)){0,2}(\\.>)?", any::<u16>()), 1..60),
            topics in proptest::collection::vec("\\$?[ab](\\.[ab]){0,3}", 1..10),
        ) {
            let (mut index, mut arena) = (PatternIndex::default(), Arena::new(1000));
            let mut all: Vec<(Key, Pattern)> = Vec::new();
            for (text, pick) in patterns {
                if let Ok(pattern) = Pattern::parse(&text) {
                    let key = arena.insert(0).unwrap();
                    *arena.get_mut(key).unwrap() = index.insert(&pattern, key);
                    all.push((key, pattern));
                }
                if pick % 3 == 0 && !all.is_empty() {
                    let (key, pattern) = all.swap_remove(usize::from(pick) % all.len());
                    let place = arena.remove(key).unwrap();
                    if let Some(moved) = index.remove(&pattern, place) {
                        *arena.get_mut(moved).unwrap() = place;
                    }
                }
                for topic in &topics {
                    let topic = Topic::parse_system(topic).unwrap();
                    let mut found = Vec::new();
                    index.find(&topic, &mut found);
                    found.sort_by_key(|key| key.to_u64());
                    let mut expected: Vec<Key> =
                        all.iter().filter(|(_, pattern)| pattern.matches(&topic)).map(|(key, _)| *key).collect();
                    expected.sort_by_key(|key| key.to_u64());
                    prop_assert_eq!(found, expected);
                }
            }
            for (key, pattern) in all {
                let place = arena.remove(key).unwrap();
                if let Some(moved) = index.remove(&pattern, place) {
                    *arena.get_mut(moved).unwrap() = place;
                }
            }
            prop_assert!(index.is_empty());
        }
    }
}
