//! The queue in front of an engine.
//!
//! An engine that is sent several requests queues them itself, and cancelling what it has queued has killed other
//! clients' replies. So at most `slots` requests are sent, and the others wait here, where a newer request of the same
//! document supersedes an older one before it costs anything. The newest completion goes first: the older ones are for
//! documents that are edited less. Chats go in order of arrival, and take turns with completions.
//!
//! A pure state machine: the caller sends what [`Queue::start`] returns, and stops what [`Queue::arrive`] returns.

use std::collections::VecDeque;

/// The number of a request, in order of arrival.
pub(super) type Ticket = u64;

/// What a request is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    /// A completion in a document.
    Document(String),
    /// A turn of a conversation.
    Chat,
}

/// Requests that wait, and requests that the engine has.
#[derive(Debug)]
pub(super) struct Queue {
    slots: usize,
    next: Ticket,
    /// In order of arrival.
    waiting: VecDeque<(Ticket, Subject)>,
    running: Vec<(Ticket, Subject)>,
    is_chats_turn: bool,
}

impl Queue {
    /// A queue for an engine that takes `slots` requests at a time.
    pub(super) fn new(slots: usize) -> Queue {
        Queue { slots, next: 0, waiting: VecDeque::new(), running: Vec::new(), is_chats_turn: false }
    }

    /// A request waits. Returns its number, and the requests that it supersedes: those that waited are out of the
    /// queue; one that the engine has stays until [`Queue::end`].
    pub(super) fn arrive(&mut self, subject: Subject) -> (Ticket, Vec<Ticket>) {
        let ticket = self.next;
        self.next += 1;
        let mut superseded = Vec::new();
        if matches!(subject, Subject::Document(_)) {
            self.waiting.retain(|(old, other)| {
                let stays = *other != subject;
                if !stays {
                    superseded.push(*old);
                }
                stays
            });
            superseded.extend(self.running.iter().filter(|(_, other)| *other == subject).map(|(old, _)| *old));
        }
        self.waiting.push_back((ticket, subject));
        (ticket, superseded)
    }

    /// The next request for the engine, if it has a slot.
    pub(super) fn start(&mut self) -> Option<Ticket> {
        if self.running.len() >= self.slots {
            return None;
        }
        // The engine may still have the superseded request of the same document.
        let is_free = |subject: &Subject| {
            *subject == Subject::Chat || !self.running.iter().any(|(_, running)| running == subject)
        };
        let chat = self.waiting.iter().position(|(_, subject)| *subject == Subject::Chat);
        let completion = self.waiting.iter().enumerate().rev();
        let completion = completion
            .filter(|(_, (_, subject))| *subject != Subject::Chat && is_free(subject))
            .max_by_key(|(_, (ticket, _))| *ticket)
            .map(|(at, _)| at);
        let at = if self.is_chats_turn { chat.or(completion) } else { completion.or(chat) }?;
        let started = self.waiting.remove(at)?;
        self.is_chats_turn = started.1 != Subject::Chat;
        let ticket = started.0;
        self.running.push(started);
        Some(ticket)
    }

    /// The engine was busy: the request waits again.
    pub(super) fn again(&mut self, ticket: Ticket) {
        if let Some(at) = self.running.iter().position(|(running, _)| *running == ticket) {
            self.waiting.push_front(self.running.swap_remove(at));
        }
    }

    /// The request is over, whether it waited or ran.
    pub(super) fn end(&mut self, ticket: Ticket) {
        self.waiting.retain(|(waiting, _)| *waiting != ticket);
        self.running.retain(|(running, _)| *running != ticket);
    }

    /// Requests that wait.
    pub(super) fn queued(&self) -> usize {
        self.waiting.len()
    }

    /// Requests that the engine has.
    pub(super) fn in_flight(&self) -> usize {
        self.running.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(name: &str) -> Subject {
        Subject::Document(name.to_owned())
    }

    #[test]
    fn a_newer_request_of_a_document_supersedes_the_older_before_it_is_sent() {
        let mut queue = Queue::new(1);
        let (other, _) = queue.arrive(document("b"));
        assert_eq!(queue.start(), Some(other));
        let (old, none) = queue.arrive(document("a"));
        assert!(none.is_empty());
        let (new, superseded) = queue.arrive(document("a"));
        assert_eq!(superseded, [old]);
        assert_eq!((queue.queued(), queue.in_flight(), queue.start()), (1, 1, None));
        queue.end(other);
        assert_eq!((queue.start(), queue.start()), (Some(new), None));
    }

    #[test]
    fn a_running_request_is_superseded_and_ends_before_the_newer_one_starts() {
        let mut queue = Queue::new(4);
        let (old, _) = queue.arrive(document("a"));
        assert_eq!(queue.start(), Some(old));
        let (new, superseded) = queue.arrive(document("a"));
        assert_eq!(superseded, [old]);
        assert_eq!(queue.start(), None, "one request per document");
        queue.end(old);
        assert_eq!(queue.start(), Some(new));
    }

    #[test]
    fn the_newest_document_goes_first_and_chats_take_turns_in_order() {
        let mut queue = Queue::new(1);
        let tickets: Vec<_> = ["a", "b", "c"].map(|name| queue.arrive(document(name)).0).into();
        let chats: Vec<_> = (0..2).map(|_| queue.arrive(Subject::Chat).0).collect();
        let mut order = Vec::new();
        while let Some(ticket) = queue.start() {
            queue.end(ticket);
            order.push(ticket);
        }
        assert_eq!(order, [tickets[2], chats[0], tickets[1], chats[1], tickets[0]]);
    }

    #[test]
    fn the_engine_has_at_most_its_slots() {
        let mut queue = Queue::new(2);
        for name in ["a", "b", "c"] {
            queue.arrive(document(name));
        }
        assert!(queue.start().is_some() && queue.start().is_some());
        assert_eq!((queue.start(), queue.in_flight(), queue.queued()), (None, 2, 1));
    }

    #[test]
    fn a_request_that_found_the_engine_busy_waits_again_and_can_be_superseded() {
        let mut queue = Queue::new(1);
        let (first, _) = queue.arrive(document("a"));
        queue.start();
        queue.again(first);
        assert_eq!((queue.in_flight(), queue.queued()), (0, 1));
        assert_eq!(queue.arrive(document("a")).1, [first]);
        // Of another document: the newer one first.
        let (newer, _) = queue.arrive(document("b"));
        assert_eq!(queue.start(), Some(newer));
        queue.again(77);
        assert_eq!((queue.in_flight(), queue.queued()), (1, 1));
    }

    #[test]
    fn a_cancelled_request_leaves_the_queue() {
        let mut queue = Queue::new(1);
        let (first, _) = queue.arrive(Subject::Chat);
        queue.end(first);
        assert_eq!((queue.start(), queue.queued()), (None, 0));
    }
}
