//! `ConnectionActor`: one for each session, from the Hello to the end, with the sockets that the session has one after
//! the other. The rings are the router's.

use super::greeting::{self, let_in};
use super::kept::{Kept, Session, ended};
use super::stream::{FrameStream, LAST_WORDS, ReadError, last_words, send};
use super::table::TakeUp;
use super::upstream::{self, Dialled};
use crate::broker::context::{Broker, Phase};
use crate::broker::reload;
use crate::broker::router::{Ask, CloseReason};
use crate::broker::supervision::fault;
use crate::broker::supervision::supervisor::{Exit, Stop};
use crate::broker::telemetry::log_limit::{Kind, may_log};
use crate::broker::telemetry::report;
use crate::logic::life::{Begin, Lost};
use crate::shm::peer::Process;
use crate::wire::control::{BrokerFrame, ClientFrame, ClosingCode, FailedCode};
use actix::prelude::*;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// The actor of a session, one incarnation of it. A lost socket and a panic are failures; the next incarnation is built
/// over what they keep, and awaits the peer.
pub(in crate::broker) struct ConnectionActor {
    kept: Rc<Kept>,
    broker: Arc<Broker>,
    exit: Exit,
    /// Where a socket with the session's token is waited for.
    awaits: Option<oneshot::Sender<TakeUp>>,
}

impl ConnectionActor {
    pub(in crate::broker) fn new(kept: Rc<Kept>, broker: Arc<Broker>, exit: Exit) -> ConnectionActor {
        ConnectionActor { kept, broker, exit, awaits: None }
    }
}

impl Actor for ConnectionActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        fault::point("connection.started", 0);
        let (kept, broker, exit) = (self.kept.clone(), self.broker.clone(), self.exit.clone());
        let over = |result: Result<(), String>, this: &mut Self, ctx: &mut Context<Self>| {
            if let Err(reason) = result {
                this.exit.fail(reason);
            }
            ctx.stop();
        };
        match kept.begin() {
            Begin::Handshake => {
                let run = async move { handshake(&kept, &broker).await };
                ctx.spawn(run.into_actor(self).map(over));
            }
            Begin::Await(until) => {
                let (awaits, taken_up) = oneshot::channel();
                self.awaits = Some(awaits);
                let actor = ctx.address().recipient();
                let run = async move { await_peer(&kept, &broker, until, actor, taken_up, &exit).await };
                ctx.spawn(run.into_actor(self).map(over));
            }
            Begin::Nothing => ctx.stop(),
        }
    }
}

impl Handler<TakeUp> for ConnectionActor {
    type Result = ();

    /// Without a waiting incarnation the socket is closed, and its client tries again.
    fn handle(&mut self, message: TakeUp, _: &mut Self::Context) {
        if let Some(awaits) = self.awaits.take() {
            let _ = awaits.send(message);
        }
    }
}

impl Handler<Stop> for ConnectionActor {
    type Result = ();

    /// Nothing: the session sees for itself that the broker ends, and says so to its client. From now on its end is not
    /// followed by another incarnation.
    fn handle(&mut self, _: Stop, _: &mut Self::Context) {}
}

/// The first incarnation: until there is a session, and then that, while its first socket lasts.
///
/// Most connections rest most of the time, in `serve`. What the way in, the way out and a question need besides is on
/// the heap as long as they last, so that a connection at rest does not hold that memory.
async fn handshake(kept: &Kept, broker: &Arc<Broker>) -> Result<(), String> {
    // Who was refused has been told why, and so has the log.
    let Ok(Some(mut stream)) = Box::pin(let_in(kept, None, broker)).await else { return Ok(()) };
    serve_session(&mut stream, kept, broker).await
}

/// A later incarnation: until the peer is back, and then while its socket lasts.
async fn await_peer(
    kept: &Kept,
    broker: &Arc<Broker>,
    until: Instant,
    actor: Recipient<TakeUp>,
    taken_up: oneshot::Receiver<TakeUp>,
    exit: &Exit,
) -> Result<(), String> {
    let Some(mut stream) = Box::pin(greeting::back(kept, broker, until, actor, taken_up)).await? else {
        return Ok(());
    };
    if let Some(attempt) = exit.hold()
        && may_log(Kind::Restarted)
    {
        log::info!("actor stable actor=connection id={} attempt={attempt}", kept.id());
    }
    serve_session(&mut stream, kept, broker).await
}

/// Serves the session while its socket lasts. The error is the reason why another incarnation is to await the peer.
#[allow(clippy::await_holding_refcell_ref, reason = "one incarnation runs at a time, and is the only borrower")]
async fn serve_session(stream: &mut FrameStream, kept: &Kept, broker: &Broker) -> Result<(), String> {
    let end = match kept.session.borrow_mut().as_mut() {
        Some(session) => serve(stream, broker, None, session).await,
        None => return Ok(()),
    };
    let may_return = match &*kept.session.borrow() {
        Some(session) => !matches!(session.process, Process::Ended) && !broker.phase.borrow().is_ending(),
        None => false,
    };
    if let End::Lost(reason) = &end
        && kept.life.borrow_mut().socket_lost(may_return) == Lost::Fails
    {
        return Err(format!("socket lost: {reason}"));
    }
    // What it ends with is in the log already.
    let _ = Box::pin(leave(stream, kept, broker, end)).await;
    Ok(())
}

/// The session of a process that the broker has dialled, from the first byte to the last. The error, which the log has
/// already, is for the one that dials again.
#[allow(clippy::await_holding_refcell_ref, reason = "the only borrower until the next dial")]
pub(super) async fn serve_dialled(kept: &Kept, dialled: &Dialled, broker: &Arc<Broker>) -> Result<(), String> {
    if kept.begin() != Begin::Handshake {
        return Ok(());
    }
    let Some(mut stream) = Box::pin(let_in(kept, Some(dialled), broker)).await? else {
        return Err("it resumed a session of another connection".to_owned());
    };
    let end = match kept.session.borrow_mut().as_mut() {
        Some(session) => serve(&mut stream, broker, Some(dialled), session).await,
        None => return Ok(()),
    };
    Box::pin(leave(&mut stream, kept, broker, end)).await
}

/// Ends a session for good.
async fn leave(stream: &mut FrameStream, kept: &Kept, broker: &Broker, end: End) -> Result<(), String> {
    let Some(mut session) = kept.take_session() else { return Ok(()) };
    let is_announced = session.is_announced();
    let Session { id, name, listing, .. } = &mut session;
    let (mut close, mut result) = (None, Ok(()));
    match end {
        End::Left => {
            listing.left();
            let level = if is_announced { log::Level::Info } else { log::Level::Debug };
            if log::log_enabled!(level) && may_log(Kind::Closed) {
                log::log!(level, "connection closed connection={id} name={name}");
            }
        }
        End::Lost(reason) => {
            if may_log(Kind::Lost) {
                log::warn!("connection lost connection={id} name={name} reason={reason:?}");
            }
            result = Err(reason);
        }
        End::Closed(closed) => {
            result = Err(closed.reason.clone());
            let CloseReason { code, reason } = closed.clone();
            if may_log(Kind::Lost) {
                log::warn!("connection ended connection={id} name={name} code={code:?} reason={reason:?}");
            }
            close = Some(closed);
            last_words(stream, &BrokerFrame::Closing { code, message: reason }).await;
        }
        End::Shutdown => {
            let message = "the broker ends".to_owned();
            last_words(stream, &BrokerFrame::Closing { code: ClosingCode::Shutdown, message }).await;
        }
    }
    session.end(broker, close).await;
    result
}

/// How it came that a socket is served no more.
enum End {
    /// The client said goodbye.
    Left,
    /// The socket ended or failed.
    Lost(String),
    /// The router ended it, or what came over the socket made no sense.
    Closed(CloseReason),
    /// The broker ends.
    Shutdown,
}

/// Serves a session until it ends or its socket is lost.
async fn serve(stream: &mut FrameStream, broker: &Broker, dialled: Option<&Dialled>, kept: &mut Session) -> End {
    let mut missing = dialled.map(|dialled| Box::pin(dialled.look_for_missing(kept.id)));
    let mut phase = broker.phase.clone();
    // A command of the shell connects, asks and leaves: that is no news.
    let short = Duration::from_millis(broker.config().logging.short_connection_ms);
    let mut lasts = (!kept.is_announced()).then(|| Box::pin(tokio::time::sleep(short)));
    loop {
        let lasting = async {
            match &mut lasts {
                Some(lasts) => lasts.await,
                None => std::future::pending().await,
            }
        };
        let missing = async {
            match &mut missing {
                Some(missing) => missing.await,
                None => std::future::pending().await,
            }
        };
        let body = tokio::select! {
            biased;
            close = ended(&mut kept.ended) => return End::Closed(close),
            Ok(()) = phase.changed() => {
                let now = *phase.borrow_and_update();
                match now {
                    Phase::Running => {}
                    Phase::Closing => return End::Shutdown,
                    Phase::Draining(deadline_ms) => {
                        let told = Box::pin(send(stream, &BrokerFrame::Draining { deadline_ms }, &[])).await;
                        if let Err(error) = told {
                            return End::Lost(error.to_string());
                        }
                    }
                }
                continue;
            }
            never = missing => match never {},
            () = lasting => {
                kept.announce();
                lasts = None;
                continue;
            }
            read = stream.read() => match read {
                Ok(None) => return End::Lost("its socket has ended".to_owned()),
                Err(ReadError::Io(error)) => return End::Lost(error.to_string()),
                Err(ReadError::Codec(error)) => return End::Closed(violation(error)),
                Ok(Some(body)) => body,
            },
        };
        if !std::mem::replace(&mut kept.confirmed, true) {
            broker.sessions.confirm(kept.id);
        }
        if let Some(end) = Box::pin(heed(stream, broker, dialled, kept, body)).await {
            return end;
        }
    }
}

/// Does what a frame asks for. Answers how it comes that there is nothing more to serve, if so.
async fn heed(
    stream: &mut FrameStream,
    broker: &Broker,
    dialled: Option<&Dialled>,
    kept: &mut Session,
    body: Vec<u8>,
) -> Option<End> {
    let frame = match ClientFrame::decode(&body) {
        Ok(ClientFrame::Bye) => return Some(End::Left),
        Ok(ClientFrame::Resumed) => return None,
        Ok(ClientFrame::Restored) => {
            kept.listing.restored();
            return None;
        }
        Ok(ClientFrame::Hello { .. }) => return Some(End::Closed(violation("a second hello"))),
        Err(error) => return Some(End::Closed(violation(error))),
        Ok(frame) => frame,
    };
    let Some(answer) = answer(broker, dialled, kept, frame).await else {
        // The router has ended the connection, and says so.
        return Some(End::Closed(ended(&mut kept.ended).await));
    };
    // A client that does not read is no reason to miss its end, or the broker's.
    let mut phase = broker.phase.clone();
    let sent = tokio::select! {
        biased;
        close = ended(&mut kept.ended) => return Some(End::Closed(close)),
        Ok(_) = phase.wait_for(|phase| *phase == Phase::Closing) => return Some(End::Shutdown),
        sent = send(stream, &answer, &[]) => sent,
    };
    match sent {
        Ok(()) => None,
        Err(error) => Some(unheard(stream, error).await),
    }
}

/// The peer does not hear us any more. Whether it has said goodbye stands in what it sent before.
async fn unheard(stream: &mut FrameStream, error: std::io::Error) -> End {
    let goodbye = async {
        while let Ok(Some(body)) = stream.read().await {
            if let Ok(ClientFrame::Bye) = ClientFrame::decode(&body) {
                return End::Left;
            }
        }
        End::Lost(error.to_string())
    };
    tokio::time::timeout(LAST_WORDS, goodbye).await.unwrap_or_else(|_| End::Lost(error.to_string()))
}

/// Answers a question: as it was, if it comes again over a later socket (S6); not, if this peer may not ask it.
async fn answer(
    broker: &Broker,
    dialled: Option<&Dialled>,
    kept: &mut Session,
    frame: ClientFrame,
) -> Option<BrokerFrame> {
    let serial = frame.serial()?;
    if let Some(answer) = kept.answers.find(serial) {
        return Some(answer);
    }
    if let Some(refusal) = dialled.and_then(|dialled| dialled.refusal(&frame)) {
        return Some(refusal);
    }
    let offered = match &frame {
        ClientFrame::Serve { service, .. } if dialled.is_some() => Some(service.clone()),
        _ => None,
    };
    if let Some(refusal) = refusal(broker, kept, &frame) {
        return Some(refusal);
    }
    let answer = ask(broker, Ask { key: kept.key, id: kept.id, number: kept.questions, frame }).await?;
    kept.questions += 1;
    if matches!(answer, BrokerFrame::Subscribed { .. }) {
        kept.listing.subscribed();
    }
    kept.answers.keep(serial, &answer);
    if let Some(dialled) = dialled {
        dialled.answered(offered.as_ref(), &answer);
    }
    Some(answer)
}

/// The answer to an order that this user may not give.
fn refusal(broker: &Broker, kept: &Session, frame: &ClientFrame) -> Option<BrokerFrame> {
    let (serial, order) = match frame {
        ClientFrame::SetBreaker { serial, .. } => (*serial, "set breakers"),
        ClientFrame::DialUpstream { serial, .. } => (*serial, "dial upstreams"),
        ClientFrame::Reload { serial } => (*serial, "reload the configuration"),
        _ => return None,
    };
    if broker.is_operator(kept.uid) {
        return None;
    }
    log::warn!("order refused connection={} uid={} order={order:?}", kept.id, kept.uid);
    let message = format!("user {} may not {order} (ipc.operator_uids)", kept.uid);
    Some(BrokerFrame::Failed { serial, code: FailedCode::NotAllowed, message })
}

fn violation(reason: impl ToString) -> CloseReason {
    CloseReason { code: ClosingCode::ProtocolViolation, reason: reason.to_string() }
}

async fn ask(broker: &Broker, question: Ask) -> Option<BrokerFrame> {
    fault::point("connection.asked", 0);
    let question = match question {
        Ask { id, frame: ClientFrame::SetBreaker { serial, service, order, for_ms }, .. } => {
            return Some(broker.breaker.set(id, serial, service, order, for_ms).await);
        }
        Ask { frame: ClientFrame::Upstreams { serial }, .. } => {
            return Some(upstream::list(&broker.upstreams, &broker.tree, serial));
        }
        Ask { id, frame: ClientFrame::DialUpstream { serial, name }, .. } => {
            return Some(upstream::dial((&broker.upstreams, &broker.tree), id, serial, &name));
        }
        Ask { id, frame: ClientFrame::Reload { serial }, .. } => {
            return Some(reload::answer(broker, id, serial).await);
        }
        question => question,
    };
    let mut answer = broker.router.send(question).await.ok()??;
    fault::point("connection.answered", 0);
    if let BrokerFrame::Status { report, .. } = &mut answer {
        report::complete(report, broker);
    }
    Some(answer)
}
