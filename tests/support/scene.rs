//! The scene of the tests with hostile peers: a real broker, and a client that behaves and works all the while. In each
//! test the offender gets a clear error, the log has a line, and that client notices nothing.

#![allow(dead_code, reason = "each test program uses its part")]

use super::raw::{Control, Raw};
use super::support::{Broker, DEADLINE, wait_until};
use lapce_ipc::client::{Client, DeliveryPolicy, WaitStrategy};
use lapce_ipc::wire::control::{ClosingCode, InternKind, RefusedCode};
use lapce_ipc::wire::{BrokerFrame, ClientFrame, Name, Pattern, Topic};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, TryRecvError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Two clients that behave: one publishes, subscribes and requests, the other serves. They count, and every message,
/// answer and number is checked.
pub(crate) struct Good {
    rounds: Arc<AtomicU64>,
    stop: [mpsc::SyncSender<()>; 2],
    asks: JoinHandle<u64>,
    serves: JoinHandle<u64>,
}

impl Good {
    pub(crate) fn start(socket: &Path) -> Good {
        let connect = |name: &str| {
            let builder = Client::builder().socket(socket).wait(WaitStrategy::Block).name(name).expect("a name");
            builder.connect().expect("the broker takes us")
        };
        let rounds = Arc::new(AtomicU64::new(0));
        let (stop_asking, stopped_asking) = mpsc::sync_channel(1);
        let (stop_serving, stopped_serving) = mpsc::sync_channel(1);
        let responder = connect("good-responder");
        let mut service = responder.serve("reverse").expect("a service");
        let serves = std::thread::spawn(move || {
            let mut served = 0;
            while stopped_serving.try_recv() == Err(TryRecvError::Empty) {
                let asked = service.next_timeout(Duration::from_millis(50)).expect("the responder is left in peace");
                if let Some(request) = asked {
                    let reversed: Vec<u8> = request.payload().iter().rev().copied().collect();
                    request.reply(reversed).expect("the reply is taken");
                    served += 1;
                }
            }
            served
        });
        let (client, counted) = (connect("good"), rounds.clone());
        let asks = std::thread::spawn(move || {
            let mut subscription = client.subscribe("good.>").expect("a subscription");
            let mut round = 0u64;
            // A breath between two rounds leaves the machine to the others.
            while stopped_asking.recv_timeout(Duration::from_millis(1)) == Err(RecvTimeoutError::Timeout) {
                let mut payload = round.to_le_bytes().to_vec();
                payload.resize(if round % 8 == 7 { 5000 } else { 8 + round as usize % 200 }, round as u8);
                client.publish("good.news", &payload).expect("the publish is taken");
                let message =
                    subscription.next_timeout(DEADLINE).expect("the subscription stands").expect("the message comes");
                assert_eq!((message.sequence(), message.publisher()), (round + 1, client.id()));
                assert_eq!(message.payload(), payload);
                assert_eq!(client.request("echo", &payload).expect("the echo"), payload);
                let mut reversed = client.request("reverse", &payload).expect("the other's reply");
                reversed.reverse();
                assert_eq!(reversed, payload);
                round += 1;
                counted.store(round, Ordering::Relaxed);
            }
            client.flush().expect("the flush");
            assert!(subscription.try_next().expect("the subscription stands").is_none(), "nothing came twice");
            assert_eq!(subscription.dropped(), 0);
            round
        });
        Good { rounds, stop: [stop_asking, stop_serving], asks, serves }
    }

    /// Waits until the neighbour has done two whole rounds from now on.
    #[track_caller]
    pub(crate) fn goes_on(&self) {
        let now = self.rounds.load(Ordering::Relaxed);
        wait_until("two rounds of the good client", || {
            let has_failed = self.asks.is_finished() || self.serves.is_finished();
            assert!(!has_failed, "the good client has failed, see above");
            self.rounds.load(Ordering::Relaxed) >= now + 2
        });
    }

    /// Ends it, and checks what it has counted.
    #[track_caller]
    pub(crate) fn finish(self) {
        self.goes_on();
        let Good { stop: [asking, serving], asks, serves, .. } = self;
        asking.send(()).expect("it still asks");
        let asked = asks.join().expect("the good client noticed nothing");
        serving.send(()).expect("it still serves");
        assert_eq!(serves.join().expect("the good responder noticed nothing"), asked);
    }

    /// Ends it, before the broker does.
    pub(crate) fn leave(self) {
        let Good { stop, asks, serves, .. } = self;
        drop(stop);
        let _ = (asks.join(), serves.join());
    }
}

/// A broker, with its good neighbour at work.
pub(crate) struct Scene {
    pub(crate) broker: Broker,
    pub(crate) good: Good,
}

impl Scene {
    pub(crate) fn new(keys: &[(&str, &str)]) -> Scene {
        // The offenders are threads of this process, which lives: without this their sessions would wait for them.
        let broker = Broker::start_with(&[keys, &[("restart.resume_window_ms", "0")]].concat());
        let good = Good::start(&broker.socket());
        Scene { broker, good }
    }

    pub(crate) fn raw(&self, name: &str) -> Raw {
        Raw::connect(&self.broker.socket(), name)
    }

    pub(crate) fn control(&self) -> Control {
        Control::connect(&self.broker.socket())
    }

    /// Waits for a line of the log that has all of these texts.
    #[track_caller]
    pub(crate) fn logged(&mut self, texts: &[&str]) {
        let process = self.broker.process();
        wait_until(&format!("a log line with {texts:?}"), || {
            assert!(!process.has_ended(), "the broker has ended: {}", process.stderr());
            process.stderr().lines().any(|line| texts.iter().all(|text| line.contains(text)))
        });
    }

    /// The offender `name` is told `text`, so is the log, the violation is counted, and the neighbour goes on.
    #[track_caller]
    pub(crate) fn ended(&mut self, offender: &mut Control, name: &str, code: ClosingCode, text: &str) {
        let (received, message) = offender.closing();
        assert_eq!((received, message.contains(text)), (code, true), "{name}: {message:?} should say {text:?}");
        let (name, code, reason) = (format!("name={name} "), format!("code={code:?}"), format!("reason={message:?}"));
        self.logged(&["WARN", "connection ended", &name, &code, &reason]);
        self.good.goes_on();
    }

    /// The offender is refused with `text`, so is the log, and the neighbour goes on.
    #[track_caller]
    pub(crate) fn refused(&mut self, offender: &mut Control, code: RefusedCode, text: &str) {
        let (received, message) = offender.refused();
        assert_eq!((received, message.contains(text)), (code, true), "{message:?} should say {text:?}");
        self.logged(&["WARN", "connection refused", &format!("reason={message:?}")]);
        self.good.goes_on();
    }

    /// Nobody else's traffic, and no connection, is left.
    #[track_caller]
    pub(crate) fn finish(mut self) {
        self.good.finish();
        let client = self.broker.client();
        wait_until("all offenders to be gone", || client.status().expect("a status").connections.len() == 1);
        drop(client);
        let log = self.broker.process().stderr();
        assert!(!log.contains("panicked") && !log.contains("Z ERROR "), "{log}");
        self.broker.process().signal("TERM");
        assert_eq!(self.broker.process().code(), 0, "{log}");
    }
}

#[track_caller]
pub(crate) fn intern(raw: &mut Raw, kind: InternKind, name: &str) -> u32 {
    let name = Topic::parse(name).expect("a name");
    match raw.ask(|serial| ClientFrame::Intern { serial, kind, name }) {
        BrokerFrame::Interned { id, .. } => id,
        other => panic!("not interned but {other:?}"),
    }
}

#[track_caller]
pub(crate) fn subscribe(raw: &mut Raw, pattern: &str, policy: DeliveryPolicy) -> u32 {
    let pattern = Pattern::parse(pattern).expect("a pattern");
    match raw.ask(|serial| ClientFrame::Subscribe { serial, pattern, policy, credit: 0 }) {
        BrokerFrame::Subscribed { subscription, .. } => subscription,
        other => panic!("not subscribed but {other:?}"),
    }
}

#[track_caller]
pub(crate) fn serve(raw: &mut Raw, service: &str) {
    let service = Name::parse(service).expect("a name");
    let answer = raw.ask(|serial| ClientFrame::Serve { serial, service, max_in_flight: 0 });
    assert!(matches!(answer, BrokerFrame::Serving { .. }), "{answer:?}");
}
