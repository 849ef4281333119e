//! What is dropped half way: futures, services, requests, streams. Nothing stays behind, nobody is left without an
//! outcome, and no drop waits.

mod support;

use lapce_ipc::client::asynchronous::{AsyncClient, AsyncReplyStream, AsyncRequest, AsyncService};
use lapce_ipc::client::{ConnectionStatus, Error, StatusReport};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use support::probe::{counter, pattern};
use support::{Broker, wait_until};

/// Here responders fail on purpose.
const NO_BREAKER: (&str, &str) = ("circuit_breaker.failure_threshold", "1000000");

async fn connect(broker: &Broker) -> AsyncClient {
    AsyncClient::connect_with(broker.builder().no_reconnect()).await.unwrap()
}

/// Begins something, and drops it before it has come to its end.
async fn begin<F: Future>(future: F) {
    let mut future = pin!(future);
    poll_fn(|context| {
        assert!(future.as_mut().poll(context).is_pending(), "it is over at once");
        Poll::Ready(())
    })
    .await;
}

/// Begins to send something of several records, for which there is no room, and drops it when a part of it has gone.
async fn begin_parts<F: Future>(future: F, client: &AsyncClient) {
    let parts = async || counter(&client.status().await.unwrap(), "fragments");
    let before = parts().await;
    tokio::select! {
        _ = future => panic!("there is room for it"),
        () = async { while parts().await == before {} } => {}
    }
}

fn connection(status: &StatusReport, id: u32) -> &ConnectionStatus {
    status.connections.iter().find(|connection| connection.id == id).unwrap()
}

#[tokio::test]
async fn a_subscribe_that_is_dropped_leaves_no_subscription() {
    let broker = Broker::start();
    let client = connect(&broker).await;
    for _ in 0..10 {
        begin(client.subscribe("a.*")).await;
    }
    // Answers come in the order of the questions: when this one is here, those were told to be ended.
    assert_eq!(connection(&client.status().await.unwrap(), client.id()).subscriptions, 10);
    assert_eq!(connection(&client.status().await.unwrap(), client.id()).subscriptions, 0);
    // Nor is anything kept that nobody reads.
    let before = format!("{client:?}").len();
    client.publish("a.b", [1; 1024]).await.unwrap();
    client.flush().await.unwrap();
    assert!(format!("{client:?}").len() < before + 1024);
    let mut kept = client.subscribe("a.*").await.unwrap();
    client.publish("a.b", "x").await.unwrap();
    assert_eq!(kept.next().await.unwrap().unwrap().payload(), b"x");
}

#[tokio::test]
async fn a_serve_that_is_dropped_leaves_no_service() {
    let broker = Broker::start();
    let client = connect(&broker).await;
    for n in 0..10 {
        begin(client.serve(&format!("svc{n}"))).await;
    }
    assert_eq!(connection(&client.status().await.unwrap(), client.id()).services.len(), 10);
    assert_eq!(connection(&client.status().await.unwrap(), client.id()).services.len(), 0);
    assert!(client.request("svc0", "").await.unwrap_err().is_no_responders());
    let mut service = client.serve("svc0").await.unwrap();
    let serves = async { service.next().await.unwrap().unwrap().reply("x").await.unwrap() };
    assert_eq!(tokio::join!(client.request("svc0", "hi"), serves).0.unwrap(), b"x");
}

#[tokio::test]
async fn questions_that_are_dropped_leave_nothing() {
    let broker = Broker::start();
    let client = connect(&broker).await;
    client.status().await.unwrap();
    let before = format!("{client:?}").len();
    for n in 0..20_000 {
        begin(client.status()).await;
        begin(client.subscribe(&format!("a.{n}"))).await;
        begin(client.serve(&format!("svc{n}"))).await;
    }
    client.status().await.unwrap();
    let after = format!("{client:?}").len();
    assert!(after < before + 20_000, "{before} characters of memory, then {after}");
    let status = client.status().await.unwrap();
    let own = connection(&status, client.id());
    assert_eq!((own.subscriptions, own.services.len()), (0, 0));
}

/// A service that one async client offers and another asks: the streamed request, and its answer.
async fn asked(requester: &AsyncClient, service: &mut AsyncService, name: &str) -> (AsyncReplyStream, AsyncRequest) {
    let stream = requester.request_stream(name, "go").await.unwrap();
    (stream, service.next().await.unwrap().unwrap())
}

#[tokio::test]
async fn a_chunk_that_is_dropped_half_way_costs_nothing() {
    let broker = Broker::start();
    let (requester, responder) = (connect(&broker).await, connect(&broker).await);
    let mut service = responder.serve("svc").await.unwrap();
    let large = pattern(300_000, 1);
    for _ in 0..3 {
        let (mut stream, mut request) = asked(&requester, &mut service, "svc").await;
        request.chunk("first").await.unwrap();
        begin_parts(request.chunk(&large), &requester).await;
        // The rest is sent with whatever comes next.
        let sends = async {
            request.chunk("next").await.unwrap();
            request.finish().await.unwrap();
        };
        let receives = async {
            let mut chunks = Vec::new();
            while let Some(chunk) = stream.next().await {
                chunks.push(chunk.unwrap());
            }
            chunks
        };
        let ((), chunks) = tokio::join!(sends, receives);
        assert!(chunks == [b"first".to_vec(), large.clone(), b"next".to_vec()], "{} chunks", chunks.len());
    }
    // What was broken off is not waited for by an error, nor when the request is dropped.
    for text in ["no go", ""] {
        let (mut stream, mut request) = asked(&requester, &mut service, "svc").await;
        begin_parts(request.chunk(&large), &requester).await;
        match text {
            "" => drop(request),
            _ => {
                let fails = async { request.fail(text).await.unwrap() };
                let error = tokio::join!(fails, stream.next()).1.unwrap().unwrap_err();
                assert_eq!((error.is_error_reply(), error.to_string().contains(text)), (true, true), "{error}");
                continue;
            }
        }
        assert!(stream.next().await.unwrap().unwrap_err().is_error_reply());
        assert!(stream.next().await.is_none());
    }
    assert_eq!(broker.counter("violations"), 0);
}

#[tokio::test]
async fn chunks_that_are_dropped_before_they_have_begun_cost_no_room() {
    let broker = Broker::start();
    let (requester, responder) = (connect(&broker).await, connect(&broker).await);
    let mut service = responder.serve("svc").await.unwrap();
    let (mut stream, mut request) = asked(&requester, &mut service, "svc").await;
    broker.stop();
    let mut sent = Vec::new();
    // The lane is soon full. All of them together are more than the requester has room for.
    for number in 0..100 {
        if at_once(request.chunk([number; 1000])).await {
            sent.push(number);
        }
    }
    assert!(sent.len() < 100, "all were sent");
    broker.go_on();
    request.reply([255; 1000]).await.unwrap();
    for number in sent {
        assert_eq!(stream.next().await.unwrap().unwrap(), [number; 1000]);
    }
    assert_eq!(stream.next().await.unwrap().unwrap(), [255; 1000]);
    assert!(stream.next().await.is_none());
}

#[tokio::test]
async fn an_answer_that_is_dropped_half_way_is_an_error() {
    let broker = Broker::start_with(&[NO_BREAKER]);
    let (requester, responder) = (connect(&broker).await, connect(&broker).await);
    let mut service = responder.serve("svc").await.unwrap();
    // With no room for it, and with room for a part of it.
    for fills in [true, false] {
        for way in 0..4 {
            let (mut stream, mut request) = asked(&requester, &mut service, "svc").await;
            let mut chunks = 0;
            while fills && at_once(request.chunk([7; 1000])).await {
                chunks += 1;
            }
            let large = vec![b'x'; 300_000];
            let text = std::str::from_utf8(&large).unwrap();
            match way {
                0 => begin(request.reply(&large)).await,
                1 => begin(request.fail(text)).await,
                2 => begin(request.refuse(text)).await,
                _ if fills => begin(request.reply([0; 1000])).await,
                _ => drop(request),
            }
            for _ in 0..chunks {
                assert_eq!(stream.next().await.unwrap().unwrap(), [7; 1000]);
            }
            let error = stream.next().await.unwrap().unwrap_err();
            assert!(error.is_error_reply() && error.to_string().contains("dropped"), "{error}");
        }
    }
    let (mut stream, request) = asked(&requester, &mut service, "svc").await;
    request.reply("whole").await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), b"whole");
    assert_eq!(broker.counter("violations"), 0);
}

/// Begins something, and drops it if it is not over at once. Answers whether it was.
async fn at_once<T>(future: impl Future<Output = Result<T, Error>>) -> bool {
    let mut future = pin!(future);
    poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(result) => Poll::Ready(result.is_ok()),
        Poll::Pending => Poll::Ready(false),
    })
    .await
}

#[test]
fn an_error_text_that_is_too_large_is_an_error_too() {
    let broker = Broker::start_with(&[("ipc.max_message_size", "65536")]);
    let (client, other) = (broker.client(), broker.client());
    let mut service = other.serve("svc").unwrap();
    let text = "x".repeat(65_537);
    for fails in [true, false] {
        let mut stream = client.request_stream("svc", "").unwrap();
        let request = service.next().unwrap().unwrap();
        let result = if fails { request.fail(&text) } else { request.refuse(&text) };
        assert!(result.unwrap_err().is_too_large());
        assert!(stream.next().unwrap().unwrap_err().is_error_reply());
    }
}

#[test]
fn a_call_that_crosses_the_end_of_its_service_is_answered() {
    let broker = Broker::start();
    let (client, other, third) = (broker.client(), broker.client(), broker.client());
    // One that is whole, one that needs room for its body.
    for body in [vec![1; 10], vec![2; 300_000]] {
        let service = other.serve("svc").unwrap();
        std::thread::scope(|scope| {
            let asks = scope.spawn(|| client.request("svc", &body));
            wait_until("the call to be at its responder's", || {
                third.status().unwrap().services.iter().any(|service| service.outstanding == 1)
            });
            // It lies in the ring; nobody has sorted it.
            drop(service);
            while !asks.is_finished() {
                other.status().unwrap();
            }
            let error = asks.join().unwrap().unwrap_err();
            assert!(error.is_error_reply() && error.to_string().contains("dropped"), "{error}");
        });
        assert!(client.request("svc", "").unwrap_err().is_no_responders());
    }
}

#[tokio::test]
async fn a_call_that_comes_for_a_serve_that_was_dropped_is_answered() {
    let broker = Broker::start();
    let (client, responder) = (broker.client(), connect(&broker).await);
    begin(responder.serve("svc")).await;
    // This thread is the responder's only one, so it reads nothing yet.
    wait_until("the service", || client.status().unwrap().services.iter().any(|service| service.responders == 1));
    let asks = std::thread::spawn({
        let client = client.clone();
        move || client.request("svc", "x")
    });
    wait_until("the call", || client.status().unwrap().services.iter().any(|service| service.outstanding == 1));
    while !asks.is_finished() {
        responder.status().await.unwrap();
    }
    assert!(asks.join().unwrap().unwrap_err().is_error_reply());
}

#[test]
fn a_request_is_dropped_without_waiting_for_room() {
    let broker = Broker::start_with(&[("delivery.stream_credit_bytes", "4096"), NO_BREAKER]);
    let (client, other) = (broker.client(), broker.client());
    let mut service = other.serve("svc").unwrap();
    for _ in 0..10 {
        let mut stream = client.request_stream("svc", "").unwrap();
        let mut request = service.next().unwrap().unwrap();
        for _ in 0..32 {
            request.chunk("x").unwrap();
        }
        drop(request);
        for _ in 0..32 {
            assert_eq!(stream.next().unwrap().unwrap(), b"x");
        }
        assert!(stream.next().unwrap().unwrap_err().is_error_reply());
    }
}

#[tokio::test]
async fn requests_are_dropped_while_the_broker_takes_nothing() {
    const REQUESTS: usize = 200;
    let broker = Broker::start_with(&[NO_BREAKER]);
    let (requester, responder) = (connect(&broker).await, connect(&broker).await);
    let mut service = responder.serve("svc").await.unwrap();
    let mut asks = tokio::task::JoinSet::new();
    let mut requests = Vec::new();
    for _ in 0..REQUESTS {
        let requester = requester.clone();
        asks.spawn(async move { requester.request("svc", "x").await.unwrap_err().is_error_reply() });
    }
    while requests.len() < REQUESTS {
        requests.push(service.next().await.unwrap().unwrap());
    }
    broker.stop();
    // This is the runtime's only thread.
    drop(requests);
    broker.go_on();
    let answers = asks.join_all().await;
    assert_eq!(answers, [true; REQUESTS]);
}

#[tokio::test]
async fn calls_are_dropped_while_the_broker_takes_nothing() {
    // Twice as many as there are places for.
    const REQUESTS: usize = 1000;
    let broker = Broker::start_with(&[("limits.max_requests_per_connection", "500")]);
    let (requester, responder) = (connect(&broker).await, connect(&broker).await);
    let mut service = responder.serve("svc").await.unwrap();
    let (stream, request) = asked(&requester, &mut service, "svc").await;
    broker.stop();
    for _ in 0..REQUESTS {
        begin(requester.request("svc", "x")).await;
    }
    drop(stream);
    broker.go_on();
    // The places are free again, and nobody works for nothing.
    let answers = async {
        loop {
            let mut other = service.next().await.unwrap().unwrap();
            if other.take_payload() == b"last" {
                return other.reply("there").await.unwrap();
            }
        }
    };
    assert_eq!(tokio::join!(requester.request("svc", "last"), answers).0.unwrap(), b"there");
    let mut status = requester.status().await.unwrap();
    let ends = async {
        // Cancels that found no space are placed when there is some, not before what is asked next.
        while !request.is_cancelled() || connection(&status, requester.id()).requests_outstanding > 0 {
            status = requester.status().await.unwrap();
        }
    };
    tokio::time::timeout(support::DEADLINE, ends).await.expect("the first call is cancelled");
    // No more than had places; the others were never heard of.
    let cancels = counter(&status, "cancels");
    assert!((1..=500).contains(&cancels), "{cancels}");
}
