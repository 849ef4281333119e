//! What is dropped half way: futures, services, requests, streams. Nothing stays behind, nobody is left without an
//! outcome, and no drop waits.

mod support;

use lapce_ipc::client::asynchronous::AsyncClient;
use lapce_ipc::client::{ConnectionStatus, StatusReport};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use support::Broker;

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
