//! The async client, over a real broker.

mod support;

use futures_util::StreamExt;
use lapce_ipc::client::asynchronous::AsyncClient;
use lapce_ipc::client::{
    BreakerOrder, BreakerState, ConnectionState, DeliveryPolicy, RequestOptions, SubscribeOptions,
};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};
use support::cut::cut_own;
use support::{Broker, DEADLINE, wait_until};

async fn connect(broker: &Broker) -> AsyncClient {
    AsyncClient::connect_with(broker.builder().no_reconnect()).await.unwrap()
}

#[tokio::test]
async fn requests_of_all_sizes_are_answered() {
    let broker = Broker::start();
    let client = connect(&broker).await;
    for size in [0, 1, 64, 1024, 1025, 100_000, 3 << 20] {
        let body = vec![size as u8; size];
        assert_eq!(client.request("echo", &body).await.unwrap(), body);
    }
    assert!(client.request("nobody", "x").await.unwrap_err().is_no_responders());
    let too_large = vec![0; client.status().await.map(|_| 10_485_761).unwrap()];
    assert!(client.request("echo", too_large).await.unwrap_err().is_too_large());
}

#[tokio::test]
async fn names_that_are_used_one_after_the_other_need_few_numbers() {
    let broker = Broker::start_with(&[("limits.max_topics_per_connection", "20"), ("limits.max_services", "30")]);
    let client = connect(&broker).await;
    for number in 0..200 {
        client.publish(&format!("n.{number}"), vec![7; number * 20]).await.unwrap();
        client.publisher(&format!("p.{number}")).await.unwrap().publish(b"x").await.unwrap();
        assert!(client.request(&format!("s{number}"), b"").await.unwrap_err().is_no_responders());
    }
    client.flush().await.unwrap();
    let published = client.status().await.unwrap().counters.into_iter().find(|(name, _)| name == "published");
    assert_eq!(published.map(|(_, count)| count), Some(400));
}

#[tokio::test]
async fn many_tasks_share_a_connection() {
    let broker = Broker::start();
    let client = connect(&broker).await;
    let tasks: Vec<_> = (0..200u32)
        .map(|n| {
            let client = client.clone();
            tokio::spawn(async move { client.request("echo", n.to_le_bytes()).await.unwrap() == n.to_le_bytes() })
        })
        .collect();
    for task in tasks {
        assert!(task.await.unwrap());
    }
}

#[tokio::test]
async fn messages_arrive_in_order_and_large_ones_whole() {
    let broker = Broker::start();
    let (publisher, subscriber) = (connect(&broker).await, connect(&broker).await);
    let mut subscription = subscriber.subscribe("a.*").await.unwrap();
    let sends = async {
        for n in 0..5000u32 {
            publisher.publish("a.b", n.to_le_bytes()).await.unwrap();
        }
        publisher.publish("a.b", vec![7; 2 << 20]).await.unwrap();
        publisher.flush().await.unwrap();
    };
    let receives = async {
        for n in 0..5000u32 {
            let message = subscription.next().await.unwrap().unwrap();
            assert_eq!((message.payload(), message.sequence()), (&n.to_le_bytes()[..], u64::from(n) + 1));
        }
        assert_eq!(subscription.next().await.unwrap().unwrap().payload(), vec![7; 2 << 20]);
    };
    tokio::join!(sends, receives);
}

#[tokio::test]
async fn a_stream_is_served_and_a_dropped_one_is_cancelled() {
    let broker = Broker::start();
    let (requester, responder) = (connect(&broker).await, connect(&broker).await);
    let mut service = responder.serve("count").await.unwrap();
    let serves = tokio::spawn(async move {
        let mut request = service.next().await.unwrap().unwrap();
        for n in 0..1000u32 {
            request.chunk(n.to_le_bytes()).await.unwrap();
        }
        request.finish().await.unwrap();
        let mut request = service.next().await.unwrap().unwrap();
        loop {
            if let Err(error) = request.chunk([1; 500]).await {
                return error.is_cancelled();
            }
        }
    });
    let mut stream = requester.request_stream("count", "go").await.unwrap();
    for n in 0..1000u32 {
        assert_eq!(stream.next().await.unwrap().unwrap(), n.to_le_bytes());
    }
    assert!(stream.next().await.is_none());
    let mut stream = requester.request_stream("count", "go").await.unwrap();
    for _ in 0..10 {
        stream.next().await.unwrap().unwrap();
    }
    drop(stream);
    assert!(serves.await.unwrap(), "the responder learns of the cancel");
}

#[tokio::test]
async fn an_unread_subscription_delays_no_request() {
    let broker = Broker::start();
    let (publisher, client) = (connect(&broker).await, connect(&broker).await);
    let options = SubscribeOptions { policy: DeliveryPolicy::DropNewest, capacity_bytes: 4096 };
    let subscription = client.subscribe_with("t", options).await.unwrap();
    for _ in 0..1000 {
        publisher.publish("t", [0; 100]).await.unwrap();
    }
    publisher.flush().await.unwrap();
    assert_eq!(client.request("echo", "hi").await.unwrap(), b"hi");
    drop(subscription);
}

#[tokio::test]
async fn what_arrived_before_the_end_is_read_and_then_the_end_is_told() {
    let mut broker = Broker::start();
    let (publisher, subscriber) = (connect(&broker).await, connect(&broker).await);
    let mut subscription = subscriber.subscribe("t").await.unwrap();
    for n in 0..100u8 {
        publisher.publish("t", [n]).await.unwrap();
    }
    publisher.flush().await.unwrap();
    broker.process().signal("TERM");
    for n in 0..100u8 {
        assert_eq!(subscription.next().await.unwrap().unwrap().payload(), [n]);
    }
    assert!(subscription.next().await.unwrap().unwrap_err().is_disconnected());
    assert!(subscription.next().await.is_none());
    // The broker ends one connection after the other.
    assert!(publisher.closed().await.unwrap_err().is_disconnected());
    assert!(publisher.request("echo", "x").await.unwrap_err().is_disconnected());
}

#[tokio::test]
async fn an_async_client_comes_back_too() {
    let broker = Broker::start();
    let client = AsyncClient::connect_with(broker.builder()).await.unwrap();
    let mut events = client.events();
    let mut messages = client.subscribe("t").await.unwrap();
    for round in 0..10u32 {
        assert!(events.next().await.unwrap().is_connected());
        assert_eq!(cut_own(&broker.socket()), 1);
        client.publish("t", round.to_le_bytes()).await.unwrap();
        let topic = format!("new.{round}");
        client.publish(&topic, "an answer over the new socket").await.unwrap();
        assert_eq!(messages.next().await.unwrap().unwrap().payload(), round.to_le_bytes());
        assert_eq!(client.request("echo", "hi").await.unwrap(), b"hi");
        while !matches!(events.next().await.unwrap(), ConnectionState::Connecting) {}
    }
    assert!(events.next().await.unwrap().is_connected() && client.state().is_connected());
}

#[tokio::test]
async fn what_the_blocking_client_can_do_the_async_one_can_too() {
    let mut broker = Broker::start_with(&[("ipc.max_message_size", "70000")]);
    let (client, other) = (connect(&broker).await, connect(&broker).await);
    assert_eq!(client.limits().max_message_size, 70_000);

    let mut messages = other.subscribe("a.b").await.unwrap();
    let publisher = client.publisher("a.b").await.unwrap();
    for payload in [vec![1; 10], vec![2; 70_000]] {
        publisher.publish(&payload).await.unwrap();
        assert_eq!(messages.next().await.unwrap().unwrap().payload(), payload);
    }
    assert!(publisher.publish(vec![0; 70_001]).await.unwrap_err().is_too_large());
    assert!(client.publisher("a b").await.unwrap_err().is_invalid_name());
    assert_eq!(client.quarantined(), 0);

    let mut service = other.serve("svc").await.unwrap();
    let options = RequestOptions { timeout: Some(Duration::from_secs(3600)), ..RequestOptions::default() };
    // The longest that the broker allows is ten minutes. A stream without a timeout has no deadline.
    for (options, seconds) in [(options, Some(600)), (RequestOptions::default(), None)] {
        let mut stream = client.request_stream_with("svc", "", options).await.unwrap();
        let request = service.next().await.unwrap().unwrap();
        let left = request.deadline().map(|deadline| deadline.duration_since(Instant::now()).as_secs());
        assert_eq!(left.is_some(), seconds.is_some());
        assert!(left.zip(seconds).is_none_or(|(left, most)| (most - 30..=most).contains(&left)), "{left:?} s");
        assert!(request.wants_stream());
        request.finish().await.unwrap();
        assert!(stream.next().await.is_none());
    }
    assert_eq!(client.breakers().await.unwrap()[0].state, BreakerState::Closed);
    let set = client.set_breaker("svc", BreakerOrder::Open, Some(Duration::from_secs(60))).await.unwrap();
    assert_eq!(set.state, BreakerState::ForcedOpen);
    assert!(client.request("svc", "").await.unwrap_err().is_breaker_open());
    assert!(client.set_breaker("none", BreakerOrder::Open, None).await.unwrap_err().is_unknown());

    let closed = tokio::spawn(async move { client.closed().await.unwrap_err() });
    broker.process().signal("TERM");
    assert!(closed.await.unwrap().is_disconnected());
}

#[tokio::test]
async fn a_requester_calls_one_service_and_follows_its_client_to_the_next_broker() {
    let mut broker = Broker::start();
    let client = AsyncClient::connect_with(broker.builder()).await.unwrap();
    let (echo, none) = (client.requester("echo").await.unwrap(), client.requester("none").await.unwrap());
    assert!(client.requester("a b").await.unwrap_err().is_invalid_name());
    for _ in 0..3 {
        for size in [0, 1, 1024, 1025, 3 << 20] {
            let body = vec![size as u8; size];
            assert_eq!(echo.call(&body).await.unwrap(), body);
        }
        let calls = (0..200_u32).map(|number| {
            let echo = echo.clone();
            tokio::spawn(async move { echo.call(number.to_le_bytes()).await.unwrap() == number.to_le_bytes() })
        });
        for call in calls.collect::<Vec<_>>() {
            assert!(call.await.unwrap());
        }
        assert!(none.call("x").await.unwrap_err().is_no_responders());
        broker.kill();
        broker.start_again();
        let again = RequestOptions { idempotent: true, ..RequestOptions::default() };
        assert_eq!(echo.call_with("after", again).await.unwrap(), b"after");
    }
    // A call that is dropped is cancelled.
    let mut service = client.serve("svc").await.unwrap();
    let svc = client.requester("svc").await.unwrap();
    let request = tokio::select! {
        request = service.next() => request.unwrap().unwrap(),
        outcome = svc.call("x") => panic!("{outcome:?}"),
    };
    request.cancelled().await;
    client.close();
    assert!(svc.call("x").await.unwrap_err().is_disconnected());
}

#[tokio::test]
async fn an_eviction_that_comes_before_its_subscription_is_told_is_not_lost() {
    let broker = Broker::start_with(&[("delivery.slow_consumer_timeout_ms", "100")]);
    let subscriber = connect(&broker).await;
    let publisher = broker.client();
    let options = SubscribeOptions { capacity_bytes: 2048, ..SubscribeOptions::default() };
    let mut subscribes = pin!(subscriber.subscribe_with("t", options));
    let is_pending = poll_fn(|context| Poll::Ready(subscribes.as_mut().poll(context).is_pending())).await;
    assert!(is_pending, "it is asked, and from here on nobody looks at what comes");
    wait_until("the subscription to be in force", || publisher.status().unwrap().subscriptions == 1);
    for _ in 0..100 {
        publisher.publish("t", [0; 100]).unwrap();
    }
    wait_until("its end", || publisher.status().unwrap().subscriptions == 0);
    // What is in memory is looked at first, then what the socket has.
    let mut subscription = subscribes.await.unwrap();
    let mut messages = 0;
    let error = loop {
        match tokio::time::timeout(DEADLINE, subscription.next()).await.expect("the end is told").unwrap() {
            Ok(_) => messages += 1,
            Err(error) => break error,
        }
    };
    assert!(error.is_evicted() && messages > 0, "{error} after {messages} messages");
}

#[tokio::test]
async fn a_stopped_broker_does_not_keep_a_call_beyond_its_time() {
    let mut broker = Broker::start();
    let client = connect(&broker).await;
    client.request("echo", "").await.unwrap();
    broker.process().stop();
    let options = RequestOptions { timeout: Some(Duration::from_millis(50)), ..RequestOptions::default() };
    for (service, body) in [("echo", vec![]), ("echo", vec![0; 1 << 20]), ("unknown", vec![1])] {
        let asked = tokio::time::timeout(DEADLINE, client.request_with(service, &body, options)).await;
        assert!(asked.expect("it ends").unwrap_err().is_deadline_exceeded(), "{service}");
    }
    broker.process().signal("CONT");
    assert_eq!(client.request("echo", "hi").await.unwrap(), b"hi");
    assert_eq!(broker.counter("violations"), 0);
}

#[tokio::test]
async fn subscriptions_replies_services_and_events_are_streams() {
    let broker = Broker::start();
    let (client, responder) = (connect(&broker).await, connect(&broker).await);
    let service = responder.serve("count").await.unwrap();
    let serves = tokio::spawn(service.take(1).for_each(|request| async {
        let mut request = request.unwrap();
        for n in 0..100u8 {
            request.chunk([n]).await.unwrap();
        }
        request.finish().await.unwrap();
    }));
    let chunks = client.request_stream("count", "").await.unwrap().map(|chunk| chunk.unwrap()[0]);
    assert_eq!(chunks.collect::<Vec<u8>>().await, (0..100).collect::<Vec<u8>>());
    serves.await.unwrap();
    let subscription = client.subscribe("a.*").await.unwrap();
    for n in 0..10u8 {
        client.publish("a.b", [n]).await.unwrap();
    }
    let numbers = subscription.map(|message| message.unwrap().payload()[0]).filter(|n| std::future::ready(n % 2 == 0));
    assert_eq!(numbers.take(5).collect::<Vec<u8>>().await, [0, 2, 4, 6, 8]);
    let events = client.events();
    drop(broker);
    let last = events.collect::<Vec<_>>().await.pop();
    assert!(matches!(last, Some(ConnectionState::Closed { .. })), "{last:?}");
}

#[tokio::test]
async fn a_stream_that_gets_nothing_ends_by_its_time() {
    let broker = Broker::start();
    let (client, responder) = (connect(&broker).await, connect(&broker).await);
    let mut service = responder.serve("silent").await.unwrap();
    let options = RequestOptions { timeout: Some(Duration::from_millis(50)), ..RequestOptions::default() };
    let stream = client.request_stream_with("silent", "", options).await.unwrap();
    let _held = service.next().await.unwrap().unwrap();
    let chunks: Vec<_> = stream.collect().await;
    assert!(matches!(&chunks[..], [Err(error)] if error.is_deadline_exceeded()), "{chunks:?}");
}
