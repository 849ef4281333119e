//! `BreakerActor`: the time of the breakers, what is told of them, and the orders that people give them.
//!
//! How a breaker stands is kept where the router asks it (`routing::services`), so that the last failure counts before
//! the next request. The router tells this actor of changes only, through a queue; the actor writes a line to the log
//! and publishes an event for each. A state that ends by itself is looked at when its time is over, by one timer for
//! all; the router notices by itself, too, so nothing but the news depends on that timer. Since the actor keeps
//! nothing that it could not ask for, a new one takes over at once.

use super::events::{BreakerChange, Queue};
use super::fault;
use super::router::{Announce, RouterHandle, SetBreaker, TickBreakers, breaker_state};
use super::supervisor::Stop;
use crate::wire::control::{BreakerOrder, BreakerState, BreakerStatus, BrokerFrame, FailedCode};
use crate::wire::name::{Name, Topic};
use actix::prelude::*;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Somebody sets a breaker by hand. Answers how it stands then, or why it cannot be.
#[derive(Message)]
#[rtype(result = "Result<BreakerStatus, (FailedCode, String)>")]
pub(super) struct Order {
    connection: u32,
    service: Name,
    order: BreakerOrder,
    /// 0: without end.
    for_ms: u64,
}

/// The actor of all breakers.
pub(super) struct BreakerActor {
    changes: Queue<BreakerChange>,
    router: RouterHandle,
    /// When it is looked next, and the timer that does it.
    next: Option<(Instant, SpawnHandle)>,
}

impl BreakerActor {
    pub(super) fn new(changes: Queue<BreakerChange>, router: RouterHandle) -> BreakerActor {
        BreakerActor { changes, router, next: None }
    }

    /// Passes on what comes, in order, and goes on so.
    fn listen(&mut self, ctx: &mut Context<Self>) {
        let changes = self.changes.clone();
        let pass_on = async move { changes.came().await }
            .into_actor(self)
            .then(|(), actor, ctx| {
                let (news, router) = (actor.take_news(ctx), actor.router.clone());
                async move {
                    if !news.is_empty() {
                        // Without a router there is nobody to hear it.
                        let _ = router.send(Announce(news)).await;
                    }
                }
                .into_actor(actor)
            })
            .map(|(), actor, ctx| actor.listen(ctx));
        ctx.spawn(pass_on);
    }

    /// Logs what has come, and answers what is to be published.
    fn take_news(&mut self, ctx: &mut Context<Self>) -> Vec<(String, String)> {
        let mut news = Vec::new();
        while let Some(change) = self.changes.pop() {
            fault::point("breaker.event", 0);
            if change.transition.to == crate::routing::breaker::Stand::Open {
                log::warn!("{}", log_line(&change));
            } else {
                log::info!("{}", log_line(&change));
            }
            if let Some(lasts) = change.transition.lasts {
                self.look_after(Duration::from_nanos(lasts), ctx);
            }
            news.push((topic(&change.service), event(&change)));
        }
        let missed = self.changes.take_missed();
        if missed > 0 {
            log::warn!("breaker events lost count={missed} reason=queue_full");
            self.look(ctx);
        }
        news
    }

    /// Looks after so long, or before.
    fn look_after(&mut self, time: Duration, ctx: &mut Context<Self>) {
        // Longer than any timer takes; then it is looked once in vain.
        let time = time.min(Duration::from_secs(86_400));
        let at = Instant::now() + time;
        if self.next.is_some_and(|(next, _)| next <= at) {
            return;
        }
        if let Some((_, later)) = self.next.take() {
            ctx.cancel_future(later);
        }
        let timer = ctx.run_later(time, |actor, ctx| {
            actor.next = None;
            actor.look(ctx);
        });
        self.next = Some((at, timer));
    }

    /// Has the router look whose time is over.
    fn look(&mut self, ctx: &mut Context<Self>) {
        let router = self.router.clone();
        let look = async move { router.send(TickBreakers).await };
        ctx.spawn(look.into_actor(self).map(|next, actor, ctx| {
            if let Ok(Some(next)) = next {
                actor.look_after(next, ctx);
            }
        }));
    }
}

impl Actor for BreakerActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        fault::point("breaker.started", 0);
        self.listen(ctx);
        // One before it may have known of times.
        self.look(ctx);
    }
}

impl Handler<Stop> for BreakerActor {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Self::Context) {
        ctx.stop();
    }
}

impl Handler<Order> for BreakerActor {
    type Result = ResponseFuture<Result<BreakerStatus, (FailedCode, String)>>;

    fn handle(&mut self, message: Order, _: &mut Self::Context) -> Self::Result {
        let Order { connection, service, order, for_ms } = message;
        let router = self.router.clone();
        Box::pin(async move {
            if order == BreakerOrder::Auto && for_ms > 0 {
                return Err((FailedCode::Invalid, "auto is not for a time".to_owned()));
            }
            let time = (for_ms > 0).then(|| Duration::from_millis(for_ms));
            match router.send(SetBreaker { service, order, time, by: connection }).await {
                Ok(set) => set.map_err(|why| (FailedCode::Unknown, why)),
                Err(_) => Err((FailedCode::Limit, "the router does not answer".to_owned())),
            }
        })
    }
}

/// Passes an order of a connection on, and answers the frame for it.
pub(super) async fn set(
    breaker: &watch::Receiver<Option<Addr<BreakerActor>>>,
    connection: u32,
    serial: u32,
    service: Name,
    order: BreakerOrder,
    for_ms: u64,
) -> BrokerFrame {
    let breaker = breaker.borrow().clone();
    let set = match breaker {
        Some(breaker) => breaker.send(Order { connection, service, order, for_ms }).await,
        // It waits for its restart.
        None => Err(MailboxError::Closed),
    };
    match set {
        Ok(Ok(status)) => BrokerFrame::Breakers { serial, breakers: vec![status] },
        Ok(Err((code, message))) => BrokerFrame::Failed { serial, code, message },
        Err(error) => {
            let message = format!("breakers cannot be set now: {error}");
            BrokerFrame::Failed { serial, code: FailedCode::Limit, message }
        }
    }
}

/// A change as pairs of a key and a value.
fn pairs(change: &BreakerChange) -> Vec<(&'static str, String)> {
    let BreakerChange { service, transition, by } = change;
    let to = breaker_state(transition.to);
    let mut pairs = vec![
        ("service", service.to_string()),
        ("from", breaker_state(transition.from).as_str().to_owned()),
        ("to", to.as_str().to_owned()),
        ("reason", transition.reason.as_str().to_owned()),
    ];
    if to == BreakerState::Open {
        pairs.push(("failures", transition.failures.to_string()));
    }
    if let Some(lasts) = transition.lasts {
        let key = if to == BreakerState::ForcedClosed { "for_ms" } else { "retry_after_ms" };
        pairs.push((key, lasts.div_ceil(1_000_000).to_string()));
    }
    pairs.extend(by.map(|connection| ("connection", connection.to_string())));
    pairs
}

fn log_line(change: &BreakerChange) -> String {
    let pairs = pairs(change).into_iter().map(|(key, value)| format!(" {key}={value}"));
    pairs.fold("breaker".to_owned(), |line, pair| line + &pair)
}

/// The event as JSON. Names need no escaping.
fn event(change: &BreakerChange) -> String {
    let member = |(key, value): (&str, String)| match value.parse::<u64>() {
        Ok(number) if key != "service" => format!(r#""{key}":{number}"#),
        _ => format!(r#""{key}":"{value}""#),
    };
    format!("{{{}}}", pairs(change).into_iter().map(member).collect::<Vec<_>>().join(","))
}

/// `$sys.breaker.SERVICE`. A name that is too long for that loses its last tokens; the event has all of it.
fn topic(service: &Name) -> String {
    let mut name = service.as_str();
    loop {
        let topic = format!("$sys.breaker.{name}");
        match name.rsplit_once('.') {
            Some((shorter, _)) if Topic::parse_system(&topic).is_err() => name = shorter,
            _ => return topic,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::breaker::{Failure, Reason, Stand, Transition};

    fn change(service: &str, to: Stand, lasts: Option<u64>, by: Option<u32>) -> BreakerChange {
        let reason = if by.is_some() { Reason::Manual } else { Reason::Failed(Failure::Deadline) };
        let transition = Transition { from: Stand::Closed, to, reason, failures: 5, lasts };
        BreakerChange { service: service.parse().unwrap(), transition, by }
    }

    #[test]
    fn a_line_and_an_event_say_the_same() {
        let opened = change("a.b", Stand::Open, Some(29_999_000_001), None);
        assert_eq!(
            log_line(&opened),
            "breaker service=a.b from=closed to=open reason=deadline_exceeded failures=5 retry_after_ms=30000"
        );
        let json: serde_json::Value = serde_json::from_str(&event(&opened)).unwrap();
        assert_eq!((&json["service"], &json["retry_after_ms"]), (&"a.b".into(), &30_000.into()));
        let forced = change("7", Stand::ForcedClosed, Some(5_000_000), Some(3));
        assert_eq!(
            event(&forced),
            r#"{"service":"7","from":"closed","to":"forced_closed","reason":"manual","for_ms":5,"connection":3}"#
        );
    }

    #[test]
    fn the_longest_names_have_a_topic() {
        assert_eq!(topic(&"a.b".parse().unwrap()), "$sys.breaker.a.b");
        let many = ["t"; 16].join(".");
        assert_eq!(topic(&many.parse().unwrap()), format!("$sys.breaker.{}", ["t"; 14].join(".")));
        let long = ["x".repeat(63), "x".repeat(63), "x".repeat(63), "x".repeat(63)].join(".");
        assert!(Topic::parse_system(&topic(&long.parse().unwrap())).is_ok());
    }
}
