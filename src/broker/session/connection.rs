//! `ConnectionActor`: one per session. It serves the session's socket, and after a lost socket the resumed one. The
//! rings belong to the router.

use super::control_time::Customer;
use super::handshake::{self, handshake};
use super::state::{ConnectionContext, Session};
use super::status::PageRequest;
use super::stream::{FINAL_FRAME_TIMEOUT, FrameStream, ReadError, send, send_final_frame};
use super::table::ResumeSocket;
use super::upstream::{self, Dialled};
use crate::broker::context::{Broker, Phase};
use crate::broker::reload;
use crate::broker::router::{CloseReason, ControlRequest, Handled};
use crate::broker::supervision::fault;
use crate::broker::supervision::supervisor::{Exit, Stop};
use crate::broker::telemetry::log_limit::{Kind, may_log};
use crate::logic::control_time::cost_of_page;
use crate::logic::session::lifecycle::{Begin, Lost};
use crate::shm::peer::Process;
use crate::wire::control::{BrokerFrame, ClientFrame, ClosingCode, FailedCode};
use actix::prelude::*;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// One incarnation of a session's actor. A lost socket and a panic are failures; the next incarnation is built over the
/// shared context, and waits for the client to reconnect.
pub(in crate::broker) struct ConnectionActor {
    context: Rc<ConnectionContext>,
    broker: Arc<Broker>,
    exit: Exit,
    /// Receives the resumed socket while the session waits for its client.
    waiter: Option<oneshot::Sender<ResumeSocket>>,
}

impl ConnectionActor {
    pub(in crate::broker) fn new(context: Rc<ConnectionContext>, broker: Arc<Broker>, exit: Exit) -> ConnectionActor {
        ConnectionActor { context, broker, exit, waiter: None }
    }
}

impl Actor for ConnectionActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        fault::point("connection.started", 0);
        let (context, broker, exit) = (self.context.clone(), self.broker.clone(), self.exit.clone());
        let over = |result: Result<(), String>, this: &mut Self, ctx: &mut Context<Self>| {
            if let Err(reason) = result {
                this.exit.fail(reason);
            }
            ctx.stop();
        };
        match context.begin() {
            Begin::Handshake => {
                let run = async move { run_first(&context, &broker).await };
                ctx.spawn(run.into_actor(self).map(over));
            }
            Begin::Await(until) => {
                let (awaits, resumed) = oneshot::channel();
                self.waiter = Some(awaits);
                let actor = ctx.address().recipient();
                let run = async move { await_peer(&context, &broker, until, actor, resumed, &exit).await };
                ctx.spawn(run.into_actor(self).map(over));
            }
            Begin::Nothing => ctx.stop(),
        }
    }
}

impl Handler<ResumeSocket> for ConnectionActor {
    type Result = ();

    /// If this incarnation does not wait, the socket is closed, and its client tries again.
    fn handle(&mut self, message: ResumeSocket, _: &mut Self::Context) {
        if let Some(awaits) = self.waiter.take() {
            let _ = awaits.send(message);
        }
    }
}

impl Handler<Stop> for ConnectionActor {
    type Result = ();

    /// Does nothing: the session follows the phase, and notifies its client. After this message the supervisor does not
    /// restart the actor.
    fn handle(&mut self, _: Stop, _: &mut Self::Context) {}
}

/// The first incarnation: performs the handshake, and serves the session while its first socket lasts.
///
/// Most connections are idle in `serve` most of the time. The futures of the handshake, of a request and of the end are
/// boxed, so that an idle connection does not hold their memory.
async fn run_first(context: &ConnectionContext, broker: &Arc<Broker>) -> Result<(), String> {
    // A refusal was sent to the client and logged.
    let Ok(Some(mut stream)) = Box::pin(handshake(context, None, broker)).await else { return Ok(()) };
    serve_session(&mut stream, context, broker).await
}

/// A later incarnation: waits for the client to reconnect, and serves the session while the new socket lasts.
async fn await_peer(
    context: &ConnectionContext,
    broker: &Arc<Broker>,
    until: Instant,
    actor: Recipient<ResumeSocket>,
    resumed: oneshot::Receiver<ResumeSocket>,
    exit: &Exit,
) -> Result<(), String> {
    let Some(mut stream) = Box::pin(handshake::await_client(context, broker, until, actor, resumed)).await? else {
        return Ok(());
    };
    if let Some(attempt) = exit.hold()
        && may_log(Kind::Restarted, context.principal())
    {
        log::info!("actor stable actor=connection id={} attempt={attempt}", context.id());
    }
    serve_session(&mut stream, context, broker).await
}

/// Serves the session while its socket lasts. An error makes the supervisor build the next incarnation.
#[allow(clippy::await_holding_refcell_ref, reason = "one incarnation runs at a time, and is the only borrower")]
async fn serve_session(stream: &mut FrameStream, context: &ConnectionContext, broker: &Broker) -> Result<(), String> {
    let end = match context.session.borrow_mut().as_mut() {
        Some(session) => serve(stream, broker, None, session).await,
        None => return Ok(()),
    };
    let may_return = match &*context.session.borrow() {
        Some(session) => !matches!(session.process, Process::Ended) && !broker.phase.borrow().is_ending(),
        None => false,
    };
    if let End::Lost(reason) = &end
        && context.lifecycle.borrow_mut().socket_lost(may_return) == Lost::Fails
    {
        return Err(format!("socket lost: {reason}"));
    }
    // The reason is logged already.
    let _ = Box::pin(close_session(stream, context, broker, end)).await;
    Ok(())
}

/// The session of a dialled upstream, from handshake to end. The error is logged already; it is the reason of the next
/// dial.
#[allow(clippy::await_holding_refcell_ref, reason = "the only borrower until the next dial")]
pub(super) async fn serve_dialled(
    context: &ConnectionContext,
    dialled: &Dialled,
    broker: &Arc<Broker>,
) -> Result<(), String> {
    if context.begin() != Begin::Handshake {
        return Ok(());
    }
    let Some(mut stream) = Box::pin(handshake(context, Some(dialled), broker)).await? else {
        return Err("the upstream tried to resume a session".to_owned());
    };
    let end = match context.session.borrow_mut().as_mut() {
        Some(session) => serve(&mut stream, broker, Some(dialled), session).await,
        None => return Ok(()),
    };
    Box::pin(close_session(&mut stream, context, broker, end)).await
}

/// Ends a session for good.
async fn close_session(
    stream: &mut FrameStream,
    context: &ConnectionContext,
    broker: &Broker,
    end: End,
) -> Result<(), String> {
    let Some(mut session) = context.take_session() else { return Ok(()) };
    let is_announced = session.is_announced();
    let Session { id, name, listing, .. } = &mut session;
    let (mut close, mut result) = (None, Ok(()));
    match end {
        End::Left => {
            listing.left();
            let level = if is_announced { log::Level::Info } else { log::Level::Debug };
            if log::log_enabled!(level) && may_log(Kind::Closed, context.principal()) {
                log::log!(level, "connection closed connection={id} name={name}");
            }
        }
        End::Lost(reason) => {
            if may_log(Kind::Lost, context.principal()) {
                log::warn!("connection lost connection={id} name={name} reason={reason:?}");
            }
            result = Err(reason);
        }
        End::Closed(closed) => {
            result = Err(closed.reason.clone());
            let CloseReason { code, reason } = closed.clone();
            if may_log(Kind::Lost, context.principal()) {
                log::warn!("connection ended connection={id} name={name} code={code:?} reason={reason:?}");
            }
            close = Some(closed);
            send_final_frame(stream, &BrokerFrame::Closing { code, message: reason }).await;
        }
        End::Shutdown => {
            let message = "the broker is shutting down".to_owned();
            send_final_frame(stream, &BrokerFrame::Closing { code: ClosingCode::Shutdown, message }).await;
        }
    }
    session.end(broker, close).await;
    result
}

/// Why a socket is no longer served.
enum End {
    /// The client sent `Bye`.
    Left,
    /// The socket ended or failed.
    Lost(String),
    /// The router closed the connection, or a frame was invalid.
    Closed(CloseReason),
    /// The broker is shutting down.
    Shutdown,
}

/// Serves a session until it ends or its socket is lost.
async fn serve(stream: &mut FrameStream, broker: &Broker, dialled: Option<&Dialled>, session: &mut Session) -> End {
    let customer = broker.control_accounts.enters(session.principal, broker.config().limits.user_control_percent);
    let mut missing = dialled.map(|dialled| Box::pin(dialled.look_for_missing(session.id)));
    let mut phase = broker.phase.clone();
    // Short connections, as of a shell command, are logged at debug.
    let short = Duration::from_millis(broker.config().logging.short_connection_ms);
    let mut lasts = (!session.is_announced()).then(|| Box::pin(tokio::time::sleep(short)));
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
            close = session.on_close.closed() => return End::Closed(close),
            Ok(()) = phase.changed() => {
                let now = *phase.borrow_and_update();
                match now {
                    Phase::Running => {}
                    Phase::Closing => return End::Shutdown,
                    Phase::Draining(deadline_ms) => {
                        let sent = Box::pin(send(stream, &BrokerFrame::Draining { deadline_ms }, &[])).await;
                        if let Err(error) = sent {
                            return Box::pin(drain_for_bye(stream, error)).await;
                        }
                    }
                }
                continue;
            }
            never = missing => match never {},
            () = lasting => {
                session.announce();
                lasts = None;
                continue;
            }
            read = stream.read() => match read {
                Ok(None) => return End::Lost("connection closed by peer".to_owned()),
                Err(ReadError::Io(error)) => return End::Lost(error.to_string()),
                Err(ReadError::Codec(error)) => return End::Closed(violation(error)),
                Ok(Some(body)) => body,
            },
        };
        if !std::mem::replace(&mut session.confirmed, true) {
            broker.sessions.confirm(session.id);
        }
        if let Some(end) = Box::pin(handle_frame(stream, broker, dialled, (session, &customer), body)).await {
            return end;
        }
    }
}

/// Handles a frame. `Some`: the connection has ended.
async fn handle_frame(
    stream: &mut FrameStream,
    broker: &Broker,
    dialled: Option<&Dialled>,
    (session, customer): (&mut Session, &Customer<'_>),
    body: Vec<u8>,
) -> Option<End> {
    let frame = match ClientFrame::decode(&body) {
        Ok(ClientFrame::Bye) => return Some(End::Left),
        Ok(ClientFrame::Resumed) => return None,
        Ok(ClientFrame::Restored) => {
            session.listing.restored();
            return None;
        }
        Ok(ClientFrame::Hello { .. }) => return Some(End::Closed(violation("unexpected second Hello"))),
        Err(error) => return Some(End::Closed(violation(error))),
        Ok(frame) => frame,
    };
    if let Err(end) = unless_over(broker, session, may_ask(broker, customer)).await {
        return Some(end);
    }
    fault::point("connection.received", 0);
    let reply = match PageRequest::of(&frame) {
        Some(request) => match unless_over(broker, session, request.reply(broker)).await {
            Ok(reply) => {
                let bytes = reply.as_ref().and_then(|reply| reply.as_ref().ok()).map_or(0, Vec::len);
                customer.pays(cost_of_page(bytes));
                reply
            }
            Err(end) => return Some(end),
        },
        None => reply_to(broker, dialled, (session, customer), frame).await.map(|reply| encoded(&reply)),
    };
    let Some(reply) = reply else {
        // The router has closed the connection, and reports the reason.
        return Some(End::Closed(session.on_close.closed().await));
    };
    // A client that does not read must not hide its own end, or the broker's.
    let sent = unless_over(broker, session, async { stream.write(&reply?, &[]).await }).await;
    match sent {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(drain_for_bye(stream, error).await),
        Err(end) => Some(end),
    }
}

/// Waits until the client's user may take more of the router's time. When the broker ends, it need not wait. Frames
/// behind the one that waits are not read, so they stay in their order, and the socket's buffer bounds them.
async fn may_ask(broker: &Broker, customer: &Customer<'_>) {
    let mut phase = broker.phase.clone();
    tokio::select! {
        biased;
        () = customer.may_ask(broker.config().limits.user_control_percent) => {}
        _ = phase.wait_for(Phase::is_ending) => {}
    }
}

/// The result of `work`, unless the connection or the broker ends before.
async fn unless_over<T>(broker: &Broker, session: &mut Session, work: impl Future<Output = T>) -> Result<T, End> {
    let mut phase = broker.phase.clone();
    tokio::select! {
        biased;
        close = session.on_close.closed() => Err(End::Closed(close)),
        Ok(_) = phase.wait_for(|phase| *phase == Phase::Closing) => Err(End::Shutdown),
        result = work => Ok(result),
    }
}

fn encoded(reply: &BrokerFrame) -> io::Result<Vec<u8>> {
    reply.encode().map_err(io::Error::other)
}

/// Writing failed: reads the frames that the client sent before, because a `Bye` may be among them.
async fn drain_for_bye(stream: &mut FrameStream, error: io::Error) -> End {
    let goodbye = async {
        while let Ok(Some(body)) = stream.read().await {
            if let Ok(ClientFrame::Bye) = ClientFrame::decode(&body) {
                return End::Left;
            }
        }
        End::Lost(error.to_string())
    };
    tokio::time::timeout(FINAL_FRAME_TIMEOUT, goodbye).await.unwrap_or_else(|_| End::Lost(error.to_string()))
}

/// Returns the reply to a control request: the recorded one if the request was repeated over a later socket (S6), or a
/// refusal if this client may not send it.
async fn reply_to(
    broker: &Broker,
    dialled: Option<&Dialled>,
    (session, customer): (&mut Session, &Customer<'_>),
    frame: ClientFrame,
) -> Option<BrokerFrame> {
    let serial = frame.serial()?;
    if let Some(reply) = session.replies.find(serial) {
        return Some(reply);
    }
    if let Some(refusal) = dialled.and_then(|dialled| dialled.refusal(&frame)) {
        return Some(refusal);
    }
    let offered = match &frame {
        ClientFrame::Serve { service, .. } if dialled.is_some() => Some(service.clone()),
        _ => None,
    };
    if let Some(refusal) = refusal(broker, session, &frame) {
        return Some(refusal);
    }
    let request = ControlRequest { key: session.key, id: session.id, number: session.requests, frame };
    let Handled { reply, took } = dispatch(broker, request).await?;
    customer.pays(took);
    session.requests += 1;
    if matches!(reply, BrokerFrame::Subscribed { .. }) {
        session.listing.subscribed();
    }
    session.replies.keep(serial, &reply);
    if let Some(dialled) = dialled {
        dialled.answered(offered.as_ref(), &reply);
    }
    Some(reply)
}

/// The error reply to an operation that this user is not allowed.
fn refusal(broker: &Broker, session: &Session, frame: &ClientFrame) -> Option<BrokerFrame> {
    let (serial, order) = match frame {
        ClientFrame::SetBreaker { serial, .. } => (*serial, "set breakers"),
        ClientFrame::DialUpstream { serial, .. } => (*serial, "dial upstreams"),
        ClientFrame::Reload { serial } => (*serial, "reload the configuration"),
        _ => return None,
    };
    if broker.is_operator(session.uid) {
        return None;
    }
    if may_log(Kind::Denied, session.principal) {
        log::warn!("operation denied connection={} uid={} operation={order:?}", session.id, session.uid);
    }
    let message = format!("user {} may not {order} (ipc.operator_uids)", session.uid);
    Some(BrokerFrame::Failed { serial, code: FailedCode::NotAllowed, message })
}

fn violation(reason: impl ToString) -> CloseReason {
    CloseReason { code: ClosingCode::ProtocolViolation, reason: reason.to_string() }
}

/// Carries out a request. Only the router's time is counted: requests to other actors are those of operators, or quick.
async fn dispatch(broker: &Broker, request: ControlRequest) -> Option<Handled> {
    let reply = match request {
        ControlRequest { id, frame: ClientFrame::SetBreaker { serial, service, order, for_ms }, .. } => {
            broker.breaker.set(id, serial, service, order, for_ms).await
        }
        ControlRequest { frame: ClientFrame::Upstreams { serial }, .. } => {
            upstream::list(&broker.upstreams, &broker.tree, serial)
        }
        ControlRequest { id, frame: ClientFrame::DialUpstream { serial, name }, .. } => {
            upstream::dial((&broker.upstreams, &broker.tree), id, serial, &name)
        }
        ControlRequest { id, frame: ClientFrame::Reload { serial }, .. } => {
            reload::handle_request(broker, id, serial).await
        }
        request => {
            let handled = broker.router.send(request).await.ok()??;
            fault::point("connection.answered", 0);
            return Some(handled);
        }
    };
    Some(Handled { reply, took: 0 })
}
