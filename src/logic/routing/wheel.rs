//! A hashed timer wheel (Varghese and Lauck, "Hashed and Hierarchical Timing Wheels", 1987, scheme 6): 1,024 spokes of
//! one millisecond; a timer that is further away stays in its spoke for several turns. Setting and cancelling a timer
//! takes constant time and, once the nodes exist, no allocation: every request sets one and nearly all cancel it.

const SPOKES: u64 = 1024;
const TICK_NS: u64 = 1_000_000;
const NONE: u32 = u32::MAX;

/// A timer that is set. It names nothing after it has fired or was cancelled: its node may be another's then, so it
/// says which of the node's timers it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TimerId {
    node: u32,
    generation: u32,
}

/// Timers that carry a `T`. Times are nanoseconds since any fixed moment.
#[derive(Debug)]
pub(crate) struct Wheel<T> {
    heads: Vec<u32>,
    nodes: Vec<Node<T>>,
    free: u32,
    /// Every spoke up to this tick has been looked at.
    tick: u64,
    set: usize,
}

#[derive(Debug)]
struct Node<T> {
    item: Option<T>,
    generation: u32,
    tick: u64,
    before: u32,
    behind: u32,
}

impl<T: Copy> Wheel<T> {
    pub(crate) fn new(now: u64) -> Wheel<T> {
        Wheel { heads: vec![NONE; SPOKES as usize], nodes: Vec::new(), free: NONE, tick: now / TICK_NS, set: 0 }
    }

    /// Sets a timer: it fires at the first `advance` that is at or after `at`, at most a tick late.
    pub(crate) fn set(&mut self, at: u64, item: T) -> TimerId {
        let tick = at.div_ceil(TICK_NS).max(self.tick + 1);
        let head = self.heads[(tick % SPOKES) as usize];
        let mut node = Node { item: Some(item), generation: 0, tick, before: NONE, behind: head };
        let id = if self.free == NONE {
            self.nodes.push(node);
            (self.nodes.len() - 1) as u32
        } else {
            let id = self.free;
            let was = &mut self.nodes[id as usize];
            self.free = was.behind;
            node.generation = was.generation.wrapping_add(1);
            *was = node;
            id
        };
        if head != NONE {
            self.nodes[head as usize].before = id;
        }
        self.heads[(tick % SPOKES) as usize] = id;
        self.set += 1;
        TimerId { node: id, generation: self.nodes[id as usize].generation }
    }

    /// Cancels a timer. One that has fired, or was cancelled, is none any more, and nothing happens.
    pub(crate) fn cancel(&mut self, TimerId { node: id, generation }: TimerId) {
        let node = &mut self.nodes[id as usize];
        if node.item.is_none() || node.generation != generation {
            return;
        }
        let (tick, before, behind) = (node.tick, node.before, node.behind);
        node.item = None;
        match before {
            NONE => self.heads[(tick % SPOKES) as usize] = behind,
            before => self.nodes[before as usize].behind = behind,
        }
        if behind != NONE {
            self.nodes[behind as usize].before = before;
        }
        self.nodes[id as usize].behind = self.free;
        self.free = id;
        self.set -= 1;
    }

    /// Goes on to `now`; what is due is added to `due` and is no longer set.
    pub(crate) fn advance(&mut self, now: u64, due: &mut Vec<T>) {
        let target = now / TICK_NS;
        if target <= self.tick {
            return;
        }
        if self.set == 0 {
            self.tick = target;
            return;
        }
        // After a long sleep one turn over all spokes sees every timer.
        let from = self.tick.max(target.saturating_sub(SPOKES));
        self.tick = target;
        for spoke in from + 1..=target {
            let mut id = self.heads[(spoke % SPOKES) as usize];
            while id != NONE {
                let Node { item, generation, tick, behind, .. } = self.nodes[id as usize];
                if tick <= target
                    && let Some(item) = item
                {
                    due.push(item);
                    self.cancel(TimerId { node: id, generation });
                }
                id = behind;
            }
        }
    }

    /// The number of timers that are set.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn len(&self) -> usize {
        self.set
    }

    /// When to call `advance` next, if anything is set: never too late, too early by whole turns of the wheel at most.
    pub(crate) fn next(&self) -> Option<u64> {
        if self.set == 0 {
            return None;
        }
        (self.tick + 1..=self.tick + SPOKES)
            .find(|tick| self.heads[(tick % SPOKES) as usize] != NONE)
            .map(|tick| tick * TICK_NS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: u64 = TICK_NS;

    #[test]
    fn a_timer_fires_once_and_not_early() {
        let (mut wheel, mut due) = (Wheel::new(0), Vec::new());
        wheel.set(5 * MS + 1, 'a');
        wheel.advance(5 * MS, &mut due);
        assert_eq!(due, ['x'; 0]);
        wheel.advance(6 * MS, &mut due);
        assert_eq!(due, ['a']);
        wheel.advance(5000 * MS, &mut due);
        assert_eq!(due, ['a']);
        assert_eq!(wheel.next(), None);
    }

    #[test]
    fn a_timer_that_has_fired_cannot_be_cancelled_nor_can_another_in_its_place() {
        let mut wheel = Wheel::new(0);
        let (first, mut due) = (wheel.set(TICK_NS, 1), Vec::new());
        wheel.advance(TICK_NS, &mut due);
        wheel.cancel(first);
        let ids: Vec<_> = (2..5).map(|item| wheel.set(2 * TICK_NS, item)).collect();
        wheel.cancel(first);
        wheel.cancel(ids[1]);
        wheel.cancel(ids[1]);
        wheel.advance(2 * TICK_NS, &mut due);
        due[1..].sort_unstable();
        assert_eq!((due, wheel.next()), (vec![1, 2, 4], None));
    }

    proptest! {
        /// Against a plain list.
        #[test]
        fn it_fires_what_a_list_would(steps in prop::collection::vec((0u64..5000, 0u64..700, any::<bool>()), 1..200)) {
            let (mut wheel, mut list, mut now) = (Wheel::new(0), Vec::<(u64, usize, TimerId)>::new(), 0);
            for (number, (delay, pass, cancel)) in steps.into_iter().enumerate() {
                let at = now + delay * MS;
                let id = wheel.set(at, number);
                list.push((at.max(now + MS), number, id));
                if cancel {
                    let (_, _, id) = list.swap_remove(list.len() / 2);
                    wheel.cancel(id);
                }
                let first = list.iter().map(|t| t.0).min();
                prop_assert_eq!(wheel.next().is_some(), first.is_some());
                prop_assert!(wheel.next() <= first.map(|t| t.div_ceil(MS) * MS));
                now += pass * MS;
                let mut due = Vec::new();
                wheel.advance(now, &mut due);
                due.sort_unstable();
                let mut expected: Vec<_> = list.iter().filter(|t| t.0 <= now).map(|t| t.1).collect();
                expected.sort_unstable();
                prop_assert_eq!(due, expected);
                list.retain(|t| t.0 > now);
            }
        }
    }
}
