//! The rows of the table.

/// A row: an attack beside which the pair is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// What the hostile client does.
    pub(crate) about: &'static str,
    /// Whether the pair starts when the attack is in force, so that the question is whether it can.
    pub(crate) comes_late: bool,
    /// Bytes of a message of the pair.
    pub(crate) size: usize,
    /// Keys of the configuration, beside the shipped ones.
    pub(crate) keys: &'static [(&'static str, &'static str)],
    /// Whether a debug build has it, which is not to take long and loses nothing today.
    pub(crate) in_debug: bool,
}

impl Row {
    /// Whether it is one of [`ROWS`].
    pub(crate) fn is_attack(&self) -> bool {
        ![ALONE.name, CONTROL.name].contains(&self.name)
    }
}

const ROW: Row = Row { name: "", about: "", comes_late: false, size: 64, keys: &[], in_debug: false };

const fn row(name: &'static str, about: &'static str) -> Row {
    Row { name, about, ..ROW }
}

const fn late(name: &'static str, about: &'static str) -> Row {
    Row { name, about, comes_late: true, ..ROW }
}

const fn also_in_debug(row: Row) -> Row {
    Row { in_debug: true, ..row }
}

/// The pair beside no attack, and beside a busy loop: what the others are compared with.
pub(crate) const ALONE: Row = row("alone", "no attack");
pub(crate) const CONTROL: Row = row("control", "a busy loop on the other core");

/// All attacks, in the order of the table.
pub(crate) const ROWS: &[Row] = &[
    row("block-once", "subscribes to > with block, never reads"),
    row("block-again", "the same with the least credit, again after each eviction"),
    row("block-again-20", "the same from 20 connections"),
    row("forged-credit", "a block subscriber that grants credit and does not read"),
    also_in_debug(row("many-subscriptions", "1,024 subscriptions to > (drop_newest)")),
    row("many-subscriptions-10", "the same from 10 connections"),
    row("subscribe-storm", "subscribes and unsubscribes while 64,800 topics are known"),
    row("intern-storm", "interns topics while 61,440 subscriptions are held"),
    row("intern-storm-690", "the same while 690 connections ask for 706,560"),
    also_in_debug(late("services-all", "interns 1,100 services")),
    late("topics-all", "interns 65,536 topics over 8 connections"),
    late("routes-all", "1,024 subscriptions that match 1,024 own topics"),
    row("waiting-publishers", "300 own publishers wait for an own subscriber that grants credit of 0"),
    row("status-loop", "50 connections ask for the status in a loop"),
    Row { size: 1_000, ..row("budget", "13 connections lease all slots and do not read") },
    row("ringers", "30 connections ring below the limit"),
    row("come-and-go", "connections come and go"),
    late("connections-all", "takes all connections"),
    also_in_debug(row("garbage", "garbage frames")),
    also_in_debug(row("half-requests", "requests whose bodies never come")),
    Row {
        keys: &[("circuit_breaker.timeout_secs", "1")],
        ..row("half-probes", "the same, as the probes of a breaker that is half open")
    },
    row("no-credit", "a requester that gives no credit for its reply"),
    row("stopped-requester", "a requester that is stopped within its reply"),
    row("tiny-deadlines", "deadlines of 1 ms at a service that takes 20 ms"),
    row("linger", "passes descriptors whose close lingers"),
    row("http-pipelining", "scrapes over HTTP, never read"),
    row("half-frames", "900 sessions that hold all but the last byte of a 64 KiB frame"),
    row("echo-unread", "100 connections ask the echo and do not read"),
    row("offers", "36,000 offers to serve, and requests to one of them"),
    row("status-size", "72 connections serve 900 long names each"),
    row("refused", "connections that are refused"),
];
