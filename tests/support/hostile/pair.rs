//! The well-behaved pair as the table sees it: its processes, its figures, and its ledger at the end.

use super::stage::Stage;
use crate::support::DEADLINE;
use crate::support::criteria::{MEASURES, injected};
use crate::support::role::Child;
use serde_json::Value;
use std::time::Duration;

/// Messages a second of the paced publisher.
const PACED: u64 = 2_000;

/// The processes of the pair.
pub(crate) struct Pair {
    full: Flow,
    paced: Flow,
    requester: Child,
    responder: Child,
}

/// One publisher and its `block` subscriber.
struct Flow {
    publisher: Child,
    subscriber: Child,
}

/// What the pair got done.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures {
    /// Delivered messages a second, at full rate and paced.
    pub(crate) full: f64,
    pub(crate) paced: f64,
    /// Round trips in microseconds: the median, 99 %, the longest.
    pub(crate) round_trips: [f64; 3],
    pub(crate) answered: u64,
    /// Requests without a reply, as JSON: by their outcomes.
    pub(crate) failed: Value,
}

/// What a process of the pair says, or its fault.
fn says(child: &mut Child, word: &str) -> Result<String, String> {
    child.may_hear(word, DEADLINE).ok_or_else(|| {
        let fault = child.said("fault ");
        fault.unwrap_or_else(|| if child.has_ended() { "it has ended".into() } else { format!("no {word} in time") })
    })
}

impl Flow {
    fn start(stage: &Stage, topic: &str, size: usize, rate: u64) -> Result<Flow, String> {
        let mut subscriber = stage.member(&format!("subscriber {topic}"));
        says(&mut subscriber, "ready")?;
        let mut publisher = stage.member(&format!("publisher {topic} {size} {rate} {}", injected()));
        says(&mut publisher, "ready")?;
        Ok(Flow { publisher, subscriber })
    }

    /// Messages so far, and the seconds since the subscriber's start.
    fn mark(&mut self) -> Result<(f64, f64), String> {
        self.subscriber.may_say("mark");
        let said = says(&mut self.subscriber, "mark")?;
        let (came, at) = said.split_once(' ').ok_or("no mark")?;
        let number = |text: &str| text.parse::<f64>().map_err(|error| error.to_string());
        Ok((number(came)?, number(at)? / 1e9))
    }

    /// Runs `during` with the publisher at work; answers the messages a second that came.
    fn rate<T>(&mut self, during: impl FnOnce() -> T) -> Result<(f64, T), String> {
        self.publisher.may_say("go");
        let (before, from) = self.mark()?;
        let done = during();
        let (after, until) = self.mark()?;
        self.publisher.may_say("halt");
        Ok(((after - before) / (until - from), done))
    }

    /// Whether each message that was published came.
    fn settle(&mut self) -> Result<(), String> {
        let published = says(&mut self.publisher, "published").map_err(|fault| format!("publisher: {fault}"));
        let came = says(&mut self.subscriber, "end").map_err(|fault| format!("subscriber: {fault}"));
        match (published?, came?) {
            (published, came) if published == came => Ok(()),
            (published, came) => Err(format!("{published} messages published, {came} delivered")),
        }
    }
}

impl Pair {
    /// Starts it. The error: what was refused, and why.
    pub(crate) fn start(stage: &Stage, size: usize) -> Result<Pair, String> {
        let mut responder = stage.member("responder");
        says(&mut responder, "ready")?;
        let mut requester = stage.member("requester");
        says(&mut requester, "ready")?;
        let full = Flow::start(stage, "pair.full", size, 0)?;
        Ok(Pair { full, paced: Flow::start(stage, "pair.paced", size, PACED)?, requester, responder })
    }

    /// Measures for so long: the full rate in the first half, the paced publisher and the requests in the second.
    pub(crate) fn measure(&mut self, time: Duration) -> Result<Figures, String> {
        let half = time / 2;
        let warm_up = if MEASURES { half / 8 } else { Duration::ZERO };
        let (full, ()) = self.full.rate(|| super::pause(half + warm_up))?;
        let requester = &mut self.requester;
        let (paced, calls) = self.paced.rate(|| {
            requester.may_say("go");
            super::pause(half);
            requester.may_say("halt");
            says(requester, "calls")
        })?;
        let calls: Value = serde_json::from_str(&calls?).map_err(|error| error.to_string())?;
        let micros = |at: usize| calls["quantiles_ns"][at].as_f64().unwrap_or_default() / 1e3;
        Ok(Figures {
            full,
            paced,
            round_trips: [micros(0), micros(1), micros(2)],
            answered: calls["answered"].as_u64().unwrap_or_default(),
            failed: calls["failed"].clone(),
        })
    }

    /// Ends it, and checks its ledger: each message once and in order, and no request carried out twice.
    pub(crate) fn finish(mut self) -> Result<(), String> {
        for flow in [&mut self.full, &mut self.paced] {
            flow.publisher.may_say("end");
        }
        self.full.settle()?;
        self.paced.settle()?;
        self.requester.may_say("end");
        let answered = says(&mut self.requester, "answered").map_err(|fault| format!("requester: {fault}"))?;
        self.responder.may_say("end");
        let served = says(&mut self.responder, "served").map_err(|fault| format!("responder: {fault}"))?;
        let (answered, served) = (answered.parse::<u64>().unwrap_or_default(), served.parse().unwrap_or_default());
        if answered > served {
            return Err(format!("{answered} requests answered, but {served} served"));
        }
        Ok(())
    }
}
