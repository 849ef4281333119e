//! Fault injection for tests of the real binary: feature `fault-injection`. Without it fault points compile to nothing.
//!
//! `LAPCE_IPC_FAULTS` is a list of faults, separated by `;`:
//!
//! ```text
//! POINT[@ARGUMENT]=panic|stall:MILLISECONDS[#EVERY][*TIMES]
//!
//! router.target@3=panic#97*100     panic before the 4th subscriber, each 97th time, 100 times at most
//! router.timer=stall:5000*1        once, hang for 5 seconds before a timer's work
//! ```
//!
//! A point without `@` means every argument; `#1` and no limit are the defaults.

/// The fault points: name, and the meaning of the argument.
#[cfg_attr(not(feature = "fault-injection"), allow(dead_code, reason = "a table for the feature"))]
pub(crate) const POINTS: &[(&str, &str)] = &[
    ("router.started", "nothing"),
    ("router.found", "the record's payload bytes; nothing is decided"),
    ("router.decided", "the record's payload bytes; nothing is changed"),
    ("router.target", "which subscriber, from 0; those before it have the record"),
    ("router.delivered", "which subscriber, from 0; it has the record, and that is not written down"),
    ("router.express", "the record's kind; half of its work is done"),
    ("router.committed", "the record's kind; all is done but the source's position"),
    ("router.advanced", "the record's kind; its batch has not ended"),
    ("router.flush", "connections that are to be woken"),
    ("router.ring", "the connection that is to be woken"),
    ("router.bell", "the connection that has rung; nothing was done about it"),
    ("router.park", "the connection that is waited for; its lane is not parked yet"),
    ("router.timer", "nothing; a timer is due"),
    ("router.timed", "nothing; a timer's work is done"),
    ("router.message", "nothing; a message of another actor has come"),
    ("router.answering", "nothing; what it asks for is done, but not answered"),
    ("router.ending", "0 to 3: a connection ends, and so many steps of it are done"),
    ("router.queued", "which subscriber, from 0; its overflow queue has the record, and that is not noted yet"),
    ("router.pumped", "the connection whose ring has a record of an overflow queue, and that is not noted yet"),
    ("acceptor.started", "nothing"),
    ("acceptor.accepted", "nothing; a socket was accepted, and has no owner yet"),
    ("connection.started", "nothing"),
    ("connection.welcomed", "nothing; the Welcome is sent"),
    ("connection.awaits", "nothing; the session can be claimed, and its socket is waited for"),
    ("connection.received", "nothing; a frame was read and not handled yet"),
    ("connection.answered", "nothing; the router has answered, and the client was not told"),
    ("breaker.started", "nothing"),
    ("breaker.event", "nothing; a transition is to be told"),
    ("breaker.timer", "nothing; the time of a state may be over, and nothing was done about it"),
    ("breaker.ordered", "0: an order has come; 1: it is obeyed, and that was not told"),
    ("upstream.started", "nothing"),
    ("upstream.dialled", "nothing; the socket is connected"),
    ("health.started", "nothing"),
    ("health.asked", "nothing; a request has come, on the thread that serves"),
];

/// A point that may panic or stall.
#[inline(always)]
pub(crate) fn point(name: &'static str, argument: u64) {
    #[cfg(any(test, fuzzing))]
    armed::reach(name);
    #[cfg(feature = "fault-injection")]
    injected::reach(name, argument);
    #[cfg(not(feature = "fault-injection"))]
    let _ = (name, argument);
}

/// Parses `LAPCE_IPC_FAULTS`. Call it before all other functions here.
///
/// # Errors
///
/// If it is invalid, or this build cannot inject faults.
pub(crate) fn check() -> Result<(), String> {
    let Some(faults) = std::env::var_os(VARIABLE).filter(|faults| !faults.is_empty()) else { return Ok(()) };
    #[cfg(feature = "fault-injection")]
    {
        let faults = faults.to_str().ok_or_else(|| format!("{VARIABLE} is not UTF-8"))?;
        let rules = injected::parse(faults).map_err(|error| format!("{VARIABLE}: {error}"))?;
        injected::RULES.get_or_init(|| rules);
        Ok(())
    }
    #[cfg(not(feature = "fault-injection"))]
    {
        let _ = faults;
        Err(format!("{VARIABLE} is set, and this build has no feature `fault-injection`"))
    }
}

/// For unit tests and the fuzzer: a panic at the n-th time that this thread comes to a point.
#[cfg(any(test, fuzzing))]
pub(crate) mod armed {
    use std::cell::Cell;

    /// The payload of such a panic.
    pub(crate) const INJECTED: &str = "injected";

    std::thread_local!(static ARMED: Cell<Option<(&'static str, u32)>> = const { Cell::new(None) });

    /// Arms `name`: the `n`-th time from now, from 1.
    pub(crate) fn arm(name: &'static str, n: u32) {
        assert!(super::POINTS.iter().any(|(point, _)| *point == name), "{name}");
        ARMED.set(Some((name, n)));
    }

    /// Disarms. Returns whether the point was not reached.
    pub(crate) fn disarm() -> bool {
        ARMED.take().is_some()
    }

    pub(in crate::broker) fn reach(name: &str) {
        match ARMED.get() {
            Some((armed, 1)) if armed == name => {
                ARMED.set(None);
                // Not `panic!`: hundreds of them on purpose would fill the output with traces.
                std::panic::resume_unwind(Box::new(INJECTED));
            }
            Some((armed, n)) if armed == name => ARMED.set(Some((armed, n - 1))),
            _ => {}
        }
    }
}

const VARIABLE: &str = "LAPCE_IPC_FAULTS";

#[cfg(feature = "fault-injection")]
mod injected {
    use super::POINTS;
    use crate::sync::{AtomicU64, Ordering};
    use std::sync::OnceLock;
    use std::time::Duration;

    pub(in crate::broker) static RULES: OnceLock<Vec<Rule>> = OnceLock::new();

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(in crate::broker) enum Action {
        Panic,
        Stall(Duration),
    }

    #[derive(Debug)]
    pub(in crate::broker) struct Rule {
        pub(in crate::broker) point: &'static str,
        pub(in crate::broker) argument: Option<u64>,
        pub(in crate::broker) action: Action,
        pub(in crate::broker) every: u64,
        pub(in crate::broker) times: u64,
        reached: AtomicU64,
    }

    /// Injects the faults of this point.
    pub(in crate::broker) fn reach(name: &str, argument: u64) {
        let rules = RULES.get().into_iter().flatten();
        for rule in rules.filter(|rule| rule.point == name && rule.argument.is_none_or(|a| a == argument)) {
            let reached = rule.reached.fetch_add(1, Ordering::Relaxed) + 1;
            if reached % rule.every != 0 || reached / rule.every > rule.times {
                continue;
            }
            match rule.action {
                Action::Panic => panic!("injected at {name}@{argument}"),
                #[allow(clippy::disallowed_methods)] // To hang is what is asked for.
                Action::Stall(time) => std::thread::sleep(time),
            }
        }
    }

    pub(in crate::broker) fn parse(faults: &str) -> Result<Vec<Rule>, String> {
        faults.split(';').map(str::trim).filter(|fault| !fault.is_empty()).map(rule).collect()
    }

    fn rule(fault: &str) -> Result<Rule, String> {
        let number = |text: &str| text.parse::<u64>().map_err(|_| format!("{text:?} in {fault:?} is not a number"));
        let (place, action) = fault.split_once('=').ok_or_else(|| format!("{fault:?} has no ="))?;
        let (name, argument) = match place.split_once('@') {
            Some((name, argument)) => (name, Some(number(argument)?)),
            None => (place, None),
        };
        let point =
            POINTS.iter().find(|(point, _)| *point == name).ok_or_else(|| format!("unknown fault point {name:?}"))?.0;
        let (action, times) = match action.split_once('*') {
            Some((action, times)) => (action, number(times)?),
            None => (action, u64::MAX),
        };
        let (action, every) = match action.split_once('#') {
            Some((action, every)) => (action, number(every)?.max(1)),
            None => (action, 1),
        };
        let action = match action.split_once(':') {
            None if action == "panic" => Action::Panic,
            Some(("stall", ms)) => Action::Stall(Duration::from_millis(number(ms)?)),
            _ => return Err(format!("unknown action {action:?} in {fault:?}, expected panic or stall:MS")),
        };
        Ok(Rule { point, argument, action, every, times, reached: AtomicU64::new(0) })
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn faults_are_read_and_mistakes_are_named() {
            let rules = parse("router.target@3=panic#97*100; router.timer=stall:50*1;").unwrap();
            assert_eq!((rules[0].point, rules[0].argument, rules[0].action), ("router.target", Some(3), Action::Panic));
            assert_eq!((rules[0].every, rules[0].times), (97, 100));
            assert_eq!(rules[1].action, Action::Stall(Duration::from_millis(50)));
            for (faults, mistake) in [
                ("router.target", "has no ="),
                ("router.nowhere=panic", "router.nowhere"),
                ("router.target@x=panic", "\"x\""),
                ("router.target=explode", "explode"),
            ] {
                assert!(parse(faults).unwrap_err().contains(mistake), "{faults}");
            }
        }
    }
}
