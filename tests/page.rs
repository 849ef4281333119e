//! The status page in a real browser, over a real broker under the load of real processes.
//!
//! With `LAPCE_IPC_SCREENSHOTS` set to a folder, pictures of the page are left there.

#[path = "support/browser.rs"]
mod browser;
mod support;

use browser::Browser;
use lapce_ipc::client::{Builder, Client};
use serde_json::json;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::sync::mpsc::sync_channel;
use std::time::Duration;
use support::Broker;
use support::role::{Child, role, tell};

/// Restarts follow at once; a breaker that is open stays so.
const KEYS: &[(&str, &str)] = &[
    ("restart.initial_delay_ms", "0"),
    ("restart.max_delay_ms", "0"),
    ("circuit_breaker.timeout_secs", "3600"),
    ("circuit_breaker.max_timeout_secs", "3600"),
];
/// Who works: a role, a name, and what with.
const CREW: [&str; 11] = [
    "serve ai-engine-1 ai.complete",
    "serve ai-engine-2 ai.complete",
    "serve chat-engine ai.chat",
    "serve rust-analyzer lsp.rust.hover",
    "serve plugin-spellcheck text.spelling",
    "read session-recorder lapce.>",
    "read plugin-git lapce.editor.>",
    "edit lapce-editor lapce.editor.changed",
    "ask lapce-editor-ui ai.complete",
    "ask lapce-hover lsp.rust.hover",
    "stream lapce-chat-panel ai.chat",
];

fn crew(broker: &Broker) -> Vec<Child> {
    CREW.iter().map(|role| Child::ready(broker, role)).collect()
}

/// The page of a broker, when it shows something.
#[track_caller]
fn page_of(broker: &mut Broker) -> Browser {
    let mut browser = Browser::start();
    browser.look(1280, 900, false);
    browser.open(&format!("http://{}/", broker.health()));
    is_live(&mut browser);
    browser
}

#[track_caller]
fn is_live(browser: &mut Browser) {
    browser.wait("the page to show the broker", "document.body.dataset.link === 'live'");
}

/// An expression: the row of a table whose name is this.
fn row(table: &str, name: &str) -> String {
    let is_it = format!("(row) => row.querySelector('.name').textContent === {}", json!(name));
    format!("[...document.querySelectorAll('#{table} tbody tr')].find({is_it})")
}

fn background(row: &str) -> String {
    format!("getComputedStyle({row}.cells[0]).backgroundColor")
}

#[test]
#[ignore = "needs Chromium: .ci/run observe"]
fn the_page_shows_what_happens_as_it_happens() {
    let mut broker = Broker::start_faulty("router.found@777=panic*1", KEYS);
    let mut crew = crew(&broker);
    let mut browser = page_of(&mut broker);
    assert_eq!(browser.text("#pid"), broker.process().pid().to_string());

    // The charts move.
    let line = "document.querySelector('#chart-traffic path.line').getAttribute('d')";
    browser.wait("traffic", "charts.traffic.series.every((one) => one.values.at(-1) > 0)");
    let first = browser.eval(line);
    browser.wait("another line", &format!("{line} !== {first}"));
    let values = "new Set(charts.traffic.series[0].values.filter(isNumber))";
    browser.wait("other values", &format!("{values}.size > 1"));
    assert!(browser.text("#chart-traffic .legend").contains("/s"), "{}", browser.text("#chart-traffic"));

    // Who is killed is gone.
    let git = row("connections", "plugin-git");
    browser.wait("a client", &git);
    assert_eq!(browser.eval(&format!("{git}.cells[2].textContent")), crew[6].pid().to_string());
    crew[6].kill();
    browser.wait("the client to be gone", &format!("!({git})"));
    browser.wait(
        "the event of it",
        "[...document.querySelectorAll('#events li')].some((event) => event.querySelector('.topic').textContent === \
         'connection.closed' && event.textContent.includes('plugin-git'))",
    );

    // A breaker opens, in words and in colour.
    let spelling = row("services", "text.spelling");
    browser.wait("a breaker that is closed", &format!("{spelling}.cells[1].textContent === 'closed'"));
    let before = browser.eval(&background(&spelling));
    let badge = format!("getComputedStyle({spelling}.querySelector('.badge')).color");
    let closed = browser.eval(&badge);
    let client = broker.client();
    for _ in 0..5 {
        client.request("text.spelling", "fail").unwrap_err();
    }
    browser.wait("a breaker that is open", &format!("{spelling}.cells[1].textContent === 'open'"));
    assert_ne!(browser.eval(&background(&spelling)), before, "the row has another colour");
    assert_ne!(browser.eval(&badge), closed, "so has the word");
    assert_eq!(browser.text("#state"), "degraded");
    assert!(browser.text("#reasons").contains("the breaker of text.spelling is open"));
    browser.wait("the event of it", "document.querySelector('#events').textContent.includes('breaker.text.spelling')");

    // The router dies, and is started again.
    client.publish("lapce.saved", [0; 777]).unwrap();
    client.flush().unwrap();
    let router =
        "[...document.querySelectorAll('#tree .node')].find((node) => node.firstChild.textContent === 'router')";
    browser.wait("a restart", &format!("{router}.dataset.fresh === 'true'"));
    let text = browser.eval(&format!("{router}.textContent"));
    let text = text.as_str().unwrap();
    assert!(text.contains("restarted just now · 1 restart") && text.contains("injected at router.found"), "{text}");
    browser.wait("the event of it", "document.querySelector('#events').textContent.includes('actor.restarted')");

    // Nothing else was asked for, and nothing went wrong.
    let origin = format!("http://{}/", broker.health());
    let requests = browser.requests();
    assert!(requests.len() >= 4 && requests.iter().all(|request| request.starts_with(&origin)), "{requests:?}");
    assert_eq!(browser.errors(), [""; 0]);
}

#[test]
#[ignore = "needs Chromium: .ci/run observe"]
fn what_comes_from_outside_is_text_and_much_of_it_is_bounded() {
    let mut broker = Broker::start();
    let mut browser = page_of(&mut broker);
    let evil = "</td><script>alert(1)</script><img src=x onerror=alert(2)>\u{1b}[31m\u{202e}\"'&amp;";
    // In one go, so that no true snapshot comes between.
    let text = browser.eval(&format!(
        "(() => {{
            const evil = {};
            const forged = structuredClone(shown.snapshot);
            const connection = {{ id: 1, name: evil, pid: 2, uid: 0, age_ms: 1, state: evil, services: [evil],
                messages_in: 1, messages_out: 1, bytes_in: 1, bytes_out: 1, dropped: 0, backlog_bytes: 0,
                requests_outstanding: 0, credit_used_bytes: 0, credit_bytes: 0 }};
            const service = {{ name: evil, breaker: evil, responders: 1, outstanding: 0, requests: 0, failures: 0 }};
            const actor = {{ name: evil, supervisor: evil + '2', state: evil, restarts: 1, failures: 1,
                last_reason: evil }};
            const elements = document.querySelectorAll('script, img').length;
            Object.assign(forged.status, {{ connections: [connection], services: [service], actors: [actor],
                socket: evil, config_file: evil }});
            forged.health.reasons = [evil];
            forged.health.version = evil;
            render(forged);
            renderEvent(evil, {{ [evil]: evil }});
            renderEvent(evil, evil);
            const places = ['#connections .name', '#services .name', '#tree ul .why', '#socket', '#config', '#version',
                '#reasons li', '#events .topic'];
            const texts = places.filter((place) => document.querySelector(place).textContent !== evil);
            return [texts, document.querySelectorAll('script, img').length - elements];
        }})()",
        json!(evil)
    ));
    assert_eq!(text, json!([[], 0]), "each place has it as it is, and no element has come of it");

    // Latencies are shown when they are told.
    let text = browser.eval(
        "(() => {
            const forged = structuredClone(shown.snapshot);
            const hidden = [document.querySelector('#chart-latency').hidden];
            const points = { count: 5, p50: 4e-7, p95: 1e-6, p99: 2e-5 };
            forged.status.latency = { in_broker: points, round_trip: points, first_chunk: { count: 0 } };
            render(forged);
            hidden.push(document.querySelector('#chart-latency').hidden);
            return [hidden[1], document.querySelector('#chart-latency .legend').textContent.includes('400 ns'),
                document.querySelector('#chart-latency .legend').textContent.includes('20.0 µs')];
        })()",
    );
    assert_eq!(text, json!([false, true, true]));
    browser.keep_picture("latency", false);

    // Of thousands the first are shown, and all are found.
    let text = browser.eval(
        "(() => {
            const forged = structuredClone(shown.snapshot);
            forged.status.connections = Array.from({ length: 5000 }, (_, n) => ({ id: n, name: `client-${n}`, pid: n,
                uid: 0, age_ms: 1, services: [], messages_in: 0, messages_out: 0, bytes_in: 0, bytes_out: 0,
                dropped: 0, backlog_bytes: 0, requests_outstanding: 0 }));
            render(forged);
            const rows = () => document.querySelectorAll('#connections tbody tr').length;
            const all = [rows(), document.querySelector('#connections-rest').textContent];
            const filter = document.querySelector('#filter');
            filter.value = 'client-4321';
            filter.dispatchEvent(new Event('input'));
            const found = [rows(), document.querySelector('#connections .name').textContent];
            filter.value = '';
            return [...all, ...found];
        })()",
    );
    let rest = "Showing the first 200; 4,800 more: use the filter.";
    assert_eq!(text, json!([200, rest, 1, "client-4321"]));
    // True ones go on coming.
    browser.wait("a true snapshot", "shown.snapshot.status.connections.length === 0");
    assert_eq!(browser.errors(), [""; 0]);
}

#[test]
#[ignore = "needs Chromium: .ci/run observe"]
fn the_page_fits_and_is_seen_in_light_and_dark() {
    let mut broker = Broker::start_faulty("router.found@777=panic*1", KEYS);
    let _crew = crew(&broker);
    let mut browser = page_of(&mut broker);
    browser.wait("the crew to be shown", "document.querySelectorAll('#connections tbody tr').length === 11");
    browser.wait("traffic", "charts.traffic.series.every((one) => one.values.at(-1) > 0)");
    let client = broker.builder().name("lapce-settings").unwrap().no_reconnect().connect().unwrap();
    for _ in 0..5 {
        client.request("text.spelling", "fail").unwrap_err();
    }
    client.publish("lapce.saved", [0; 777]).unwrap();
    client.flush().unwrap();
    drop(client);
    browser.wait("a breaker", "document.querySelector('#services').textContent.includes('open')");
    if let Some(wanted) = std::env::var_os("LAPCE_IPC_SCREENSHOTS") {
        // For pictures the charts are to be full.
        broker.without_limit();
        for seconds in (20..=120).step_by(20) {
            let full = format!("charts.traffic.series[0].values.filter(isNumber).length >= {seconds}");
            browser.wait(&format!("charts for {wanted:?}"), &full);
        }
    }
    let colours = |browser: &mut Browser| {
        browser.eval("[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]")
    };
    let light = colours(&mut browser);
    for (name, width, dark) in [
        ("light", 1280, false),
        ("dark", 1280, true),
        ("tablet", 820, false),
        ("phone", 360, false),
        ("phone-dark", 360, true),
    ] {
        browser.look(width, if width > 400 { 900 } else { 1400 }, dark);
        let wide = browser.eval("document.documentElement.scrollWidth");
        assert!(wide.as_u64().unwrap() <= u64::from(width), "{name}: {wide} is wider than {width}");
        assert_eq!(colours(&mut browser) == light, !dark, "{name}");
        browser.keep_picture(name, width > 400);
    }
    // Everything that can be used has a name, and the keys reach it.
    let nameless = browser.eval(
        "[...document.querySelectorAll('input, button, a, [role], [tabindex], meter, table, section')].filter((one) => \
         !(one.getAttribute('aria-label') || one.getAttribute('aria-labelledby') || one.labels?.length || \
         one.getAttribute('role') === 'status' || one.getAttribute('role') === 'alert' || \
         one.closest('[aria-labelledby]'))).map((one) => one.outerHTML.slice(0, 90))",
    );
    assert_eq!(nameless, json!([]));
    assert_eq!(browser.errors(), [""; 0]);
}

#[test]
#[ignore = "needs Chromium: .ci/run observe"]
fn the_page_says_that_the_broker_is_gone_and_goes_on_when_it_is_back() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let mut broker = Broker::start_with(&[("health_server.port", &port)]);
    let mut browser = page_of(&mut broker);
    browser.wait("the first broker", &format!("element('pid').textContent === '{}'", broker.process().pid()));
    broker.kill();
    browser.wait("the page to say so", "document.body.dataset.link === 'gone'");
    assert_eq!(browser.text("#state"), "gone");
    assert!(
        browser.text("#notice").starts_with("The connection to the broker is lost: "),
        "{}",
        browser.text("#notice")
    );
    assert_eq!(browser.eval("element('notice').checkVisibility()"), true);
    broker.start_again();
    browser.wait("the next broker", &format!("element('pid').textContent === '{}'", broker.process().pid()));
    is_live(&mut browser);
    assert_eq!(browser.eval("element('notice').hidden"), true);
    // One that ends in order says it itself.
    broker.end("TERM");
    browser.wait("the page to say so", "element('notice').textContent.includes('the broker is shutting down')");
}

#[test]
#[ignore = "needs Chromium: .ci/run observe"]
fn the_page_takes_its_token_out_of_the_fragment_and_says_when_it_is_wrong() {
    let file = |folder: &std::path::Path| {
        let token = folder.join("token");
        std::fs::write(&token, "correct horse+battery".replace(' ', "-")).unwrap();
        std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).unwrap();
        format!("[health_server]\ntoken_file = {token:?}\n")
    };
    let mut broker = Broker::start_configured(file, "", &[]);
    let mut browser = Browser::start();
    let page = format!("http://{}/", broker.health());
    browser.open(&page);
    browser.wait("a token to be asked for", "document.body.dataset.link === 'refused'");
    assert!(browser.text("#notice").starts_with("This broker requires a token."), "{}", browser.text("#notice"));
    browser.eval("location.hash = '#token=wrong-horse'");
    browser.wait("it to be wrong", "element('notice').textContent.startsWith('The token in the address is wrong.')");
    browser.eval("location.hash = '#token=correct-horse%2Bbattery'");
    is_live(&mut browser);
    assert_eq!(browser.eval("element('notice').hidden"), true);
    assert!(browser.requests().iter().all(|request| !request.split('#').next().unwrap().contains("horse")));
    let log = broker.process().stderr();
    assert!(!log.contains("horse"), "{log}");
}

// ------------------------------------------------------------------------------------------------------ the processes

/// The pace of the load: a whole broker, a browser and eleven clients share the machine.
fn breath(time: Duration) {
    let (_never, comes) = sync_channel::<()>(0);
    let _ = comes.recv_timeout(time);
}

/// How much is done in a round: it comes and goes slowly, and is never quite the same.
fn busy(round: u64, most: u64) -> u64 {
    let wave = |period: u64| (round % period).abs_diff(period / 2) as f64 / period as f64 * 2.0;
    let noise = (round.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 60) as f64 / 16.0;
    1 + (most as f64 * (0.15 + 0.35 * wave(2600) + 0.25 * wave(940) + 0.25 * noise)) as u64
}

#[test]
fn child() {
    let Some(role) = role() else { return };
    let [role, name, what] = role.split(' ').collect::<Vec<_>>()[..] else { panic!("no role: {role}") };
    let builder: Builder = Client::builder();
    let client = builder.name(name).unwrap().connect().unwrap();
    match role {
        "serve" => {
            let mut service = client.serve(what).unwrap();
            tell("ready");
            while let Some(Ok(mut request)) = service.next() {
                let _ = if request.payload() == b"fail" {
                    request.fail("the dictionary is missing")
                } else if request.wants_stream() {
                    let all = (0..24).all(|_| {
                        breath(Duration::from_millis(2));
                        request.chunk("token ").is_ok()
                    });
                    if all { request.finish() } else { Ok(()) }
                } else {
                    let reply = request.take_payload();
                    request.reply(reply)
                };
            }
        }
        "read" => {
            let mut subscription = client.subscribe(what).unwrap();
            tell("ready");
            while let Some(Ok(_)) = subscription.next() {}
        }
        "edit" => {
            let publisher = client.publisher(what).unwrap();
            tell("ready");
            for round in 0_u64.. {
                for n in 0..busy(round, 30) {
                    publisher.publish(vec![b'x'; 40 + n as usize * 7]).unwrap();
                }
                if round % 50 == 0 {
                    client.publish("lapce.saved", "src/main.rs").unwrap();
                }
                breath(Duration::from_millis(10));
            }
        }
        "ask" => {
            tell("ready");
            for round in 0_u64.. {
                for _ in 0..busy(round, 10) {
                    client.request(what, "fn main() {").unwrap();
                }
                breath(Duration::from_millis(12));
            }
        }
        "stream" => {
            tell("ready");
            loop {
                let chunks = client.request_stream(what, "why is the sky blue?").unwrap();
                assert!(chunks.count() > 0);
                breath(Duration::from_millis(150));
            }
        }
        other => panic!("no role {other}"),
    }
}
