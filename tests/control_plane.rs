//! Control requests cost what they cost to the one that asks: a status of any size is read in pages, all that ask
//! share one snapshot, and the requests of each user take its share of the router's time.

#[path = "support/raw.rs"]
mod raw;
mod support;

use lapce_ipc::client::asynchronous::AsyncClient;
use lapce_ipc::client::{Client, StatusReport};
use lapce_ipc::wire::control::{FailedCode, InternKind, PAGE_BYTES_MAX, PageToken};
use lapce_ipc::wire::record::{Header, Kind};
use lapce_ipc::wire::{BrokerFrame, ClientFrame, Name, Topic};
use raw::{Lane, Raw};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};
use support::role::{Child, heard, role, tell};
use support::users::{OTHER_USER, are_root, open_folder};
use support::{Broker, DEADLINE, wait_until};

/// Services whose names are as long as they may be, and whose entries do not fit one page.
const MANY: usize = 1_000;

fn long_name(number: usize) -> Name {
    let token = "x".repeat(60);
    Name::parse(&format!("{token}.{token}.{token}.{token}.{number}")).unwrap()
}

fn serve(raw: &mut Raw, names: impl Iterator<Item = Name>) -> usize {
    raw.ask_all(names.map(|service| move |serial| ClientFrame::Serve { serial, service, max_in_flight: 0 }))
}

/// The services on a page of the status, and the next page.
#[track_caller]
fn services(page: BrokerFrame) -> (Vec<Name>, Option<PageToken>) {
    let bytes = page.encode().unwrap().len();
    assert!(bytes <= PAGE_BYTES_MAX + 4, "{bytes} bytes");
    match page {
        BrokerFrame::Status { report, next, .. } => {
            (report.services.into_iter().map(|service| service.name).collect(), next)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_status_of_any_size_is_read_in_pages() {
    let broker = Broker::start();
    let mut raws: Vec<Raw> = (0..3).map(|_| Raw::connect(&broker.socket(), "serves")).collect();
    for raw in &mut raws {
        assert_eq!(serve(raw, (0..MANY).map(long_name)), MANY);
    }
    // One that does not serve reads as well as one that does.
    let (page, next) = services(raws[0].ask(|serial| ClientFrame::Status { serial }));
    assert!(next.is_some() && page.len() < MANY, "{} services on the first page", page.len());

    let client = broker.client();
    let (report, breakers) = (client.status().unwrap(), client.breakers().unwrap());
    assert!(report.services.iter().filter(|service| service.responders == 3).count() == MANY);
    assert_eq!(breakers.len(), MANY);
    let busy: Vec<_> = report.connections.iter().filter(|one| one.services_offered == MANY as u32).collect();
    assert_eq!(busy.len(), 3);
    for connection in busy {
        let first: Vec<Name> = (0..connection.services.len()).map(long_name).collect();
        assert!((1..50).contains(&first.len()) && connection.services == first, "{}", first.len());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = AsyncClient::connect_with(broker.builder()).await.unwrap();
        assert_eq!(client.status().await.unwrap().services.len(), report.services.len());
        assert_eq!(client.breakers().await.unwrap().len(), MANY);
    });

    let json: Value = serde_json::from_slice(&broker.run(&["status", "--json"]).stdout).unwrap();
    assert_eq!(json["services"].as_array().unwrap().len(), report.services.len());
    assert!(json["services"].as_array().unwrap().iter().filter(|one| one["breaker"] == "closed").count() == MANY);
    let text = String::from_utf8(broker.run(&["status"]).stdout).unwrap();
    assert!(text.contains(&format!("services ({})", report.services.len())), "{}", text.len());
    assert!(text.contains(" more "), "not all services of a connection are in its row");
    let doctor = String::from_utf8(broker.run(&["doctor"]).stdout).unwrap();
    assert!(doctor.contains("broker"), "{doctor}");
}

#[test]
fn all_pages_are_of_one_moment_which_is_forgotten_after_a_while() {
    let broker = Broker::start();
    let (mut raw, mut other) = (Raw::connect(&broker.socket(), "reads"), Raw::connect(&broker.socket(), "serves"));
    assert_eq!(serve(&mut other, (0..MANY).map(long_name)), MANY);
    let (mut all, mut next) = services(raw.ask(|serial| ClientFrame::Status { serial }));
    let first = next.expect("a second page");
    assert_eq!(serve(&mut other, std::iter::once("served.meanwhile".parse().unwrap())), 1);
    while let Some(token) = next {
        let (page, more) = services(raw.ask(|serial| ClientFrame::NextPage { serial, token }));
        all.extend(page);
        next = more;
    }
    // The broker's own is the last of them.
    assert_eq!(all.iter().filter(|name| name.as_str() != "echo").count(), MANY);
    assert!(broker.client().status().unwrap().services.iter().any(|one| one.name.as_str() == "served.meanwhile"));

    let mut unknown = |token| match raw.ask(|serial| ClientFrame::NextPage { serial, token }) {
        BrokerFrame::Failed { code, .. } => assert_eq!(code, FailedCode::Unknown),
        other => panic!("{other:?}"),
    };
    unknown(PageToken { snapshot: first.snapshot.wrapping_sub(1), ..first });
    unknown(PageToken { page: 1_000, ..first });
    let mut ask = || raw.ask(|serial| ClientFrame::NextPage { serial, token: first });
    wait_until("the snapshot to be dropped", || matches!(ask(), BrokerFrame::Failed { .. }));
}

#[test]
fn a_status_shows_what_its_client_has_done() {
    let broker = Broker::start();
    let (client, mut watch) = (broker.client(), Raw::connect(&broker.socket(), "watches"));
    for round in 0..20 {
        // Others ask at the same time.
        watch.control.say(&ClientFrame::Status { serial: 1 });
        let service = client.serve("fleeting").unwrap();
        let offered = |report: &StatusReport| {
            let own = report.connections.iter().find(|connection| connection.id == client.id()).unwrap();
            own.services_offered
        };
        assert_eq!(offered(&client.status().unwrap()), 1, "round {round}");
        drop(service);
        assert_eq!(offered(&client.status().unwrap()), 0, "round {round}");
        assert!(watch.control.frame().is_some());
    }
}

#[test]
fn all_that_ask_at_the_same_time_cost_the_router_one_look() {
    const ROUNDS: u64 = 30;
    const CLIENTS: u64 = 40;
    let mut broker = Broker::start();
    let mut raws: Vec<Raw> = (0..CLIENTS).map(|_| Raw::connect(&broker.socket(), "asks")).collect();
    let mut looks = || broker.get("/metrics").sample("lapce_ipc_router_probes_total") as u64;
    let (before, began) = (looks(), Instant::now());
    for round in 0..ROUNDS {
        let ask = if round % 2 == 0 { ClientFrame::Status { serial: 1 } } else { ClientFrame::Breakers { serial: 1 } };
        raws.iter_mut().for_each(|raw| raw.control.say(&ask));
        for raw in &mut raws {
            let reply = raw.control.frame().expect("a reply");
            assert!(matches!(reply, BrokerFrame::Status { serial: 1, .. } | BrokerFrame::Breakers { serial: 1, .. }));
        }
    }
    let (looked, most) = (looks() - before, began.elapsed().as_millis() as u64 / 10 + 3);
    assert!(looked <= most && looked < ROUNDS * CLIENTS / 3, "{looked} looks in {:?}", began.elapsed());
}

/// Topics that a child names, 50 at a time. Each costs its user 5 µs at least.
const NAMES: u64 = 6_000;
/// What they take at least at 1 % of the time, of which the share of two seconds is saved up.
const PACED: Duration = Duration::from_millis(900);

#[test]
fn the_control_requests_of_a_user_take_its_share_while_there_are_others() {
    if !are_root() {
        return;
    }
    let broker = Broker::start_with(&[
        ("shared_memory.permissions", "0o666"),
        ("ipc.allowed_uids", "65534"),
        ("limits.user_control_percent", "1"),
    ]);
    std::fs::set_permissions(broker.folder(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let (_folder, copy) = open_folder(std::env::current_exe().unwrap().to_str().unwrap());
    let mut guest = Child::ready_as_other_user(&broker, &copy, "names");
    let mut names = |beside: &dyn Fn()| {
        guest.say("go");
        beside();
        Duration::from_millis(guest.hears_within("took", DEADLINE * 4).parse().unwrap())
    };
    let client = broker.client();
    let paced = names(&|| {
        // This user does not wait: its requests are few.
        for number in 0..100 {
            drop(client.publisher(&format!("own.{number}")).unwrap());
        }
        let report = client.status().unwrap();
        assert!(report.connections.iter().any(|connection| connection.uid == OTHER_USER));
    });
    assert!(paced >= PACED, "{paced:?}");
    drop(client);
    wait_until("a user that is alone not to wait", || names(&|| ()) < paced / 2);
}

#[test]
fn child() {
    if role().as_deref() != Some("names") {
        return;
    }
    let socket = std::env::var_os("LAPCE_IPC_SOCKET").unwrap();
    let mut raw = Raw::connect(socket.as_ref(), "names");
    tell("ready");
    loop {
        heard();
        let began = Instant::now();
        for first in (0..NAMES).step_by(50) {
            let frames = (first..first + 50).flat_map(|number| {
                let name: Topic = format!("guest.{number}").parse().unwrap();
                ClientFrame::Intern { serial: number as u32, kind: InternKind::Topic, name }.encode().unwrap()
            });
            raw.control.send(&frames.collect::<Vec<u8>>());
            for _ in 0..50 {
                let reply = raw.control.frame();
                let Some(BrokerFrame::Interned { id, .. }) = reply else { panic!("{reply:?}") };
                raw.push(Lane::Bulk, &Header { id, ..Header::new(Kind::Release) }, &[]);
            }
        }
        tell(&format!("took {}", began.elapsed().as_millis()));
    }
}

#[test]
fn a_library_client_names_thousands_of_topics_at_once() {
    let broker = Broker::start();
    let client: Client = broker.client();
    let publishers: Vec<_> = (0..4_000).map(|number| client.publisher(&format!("start.{number}")).unwrap()).collect();
    assert_eq!(client.status().unwrap().topics, publishers.len() as u32);
}
