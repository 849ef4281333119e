//! A real browser without a window, driven over the DevTools protocol.
//!
//! ```text
//! test                                     sh -c 'exec chromium … 3<in 4>out'
//!   call("Page.navigate", …) ── in ──►     messages are JSON, each with a zero byte behind it
//!   answers and events      ◄── out ──
//! ```
//!
//! So nothing is needed but two FIFOs. The program is `CHROMIUM`, or `chromium` in the path.

use super::support::{DEADLINE, wait_until};
use base64::Engine;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::{Value, json};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

/// Events that may wait to be read.
const EVENTS: usize = 100_000;
/// How long it may take to end by itself.
const END: Duration = Duration::from_secs(5);

/// A browser with one page; ended when it goes out of scope.
pub(crate) struct Browser {
    process: Child,
    to: File,
    from: Receiver<Value>,
    session: Option<String>,
    number: u64,
    events: Vec<Value>,
    _folder: tempfile::TempDir,
}

impl Browser {
    /// Starts one, with an empty page.
    #[track_caller]
    pub(crate) fn start() -> Browser {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        for name in ["in", "out"] {
            mknodat(CWD, path(name), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a FIFO");
        }
        // Open at both ends from the start, so that nobody waits for the other.
        let open = |name: &str| OpenOptions::new().read(true).write(true).open(path(name)).expect("a FIFO");
        let (to, out) = (open("in"), open("out"));
        let program = std::env::var("CHROMIUM").unwrap_or_else(|_| "chromium".to_owned());
        let process = Command::new("sh")
            .args(["-c", r#"folder=$1; shift; exec "$@" 3<"$folder/in" 4>"$folder/out""#, "sh"])
            .arg(folder.path())
            .arg(program)
            .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run"])
            .args(["--disable-dev-shm-usage", "--disable-extensions", "--disable-background-networking"])
            .args(["--hide-scrollbars", "--force-device-scale-factor=1", "--lang=en-GB"])
            .arg(format!("--user-data-dir={}", path("profile").display()))
            .arg("about:blank")
            .env("HOME", folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(path("log")).expect("a file"))
            .spawn()
            .expect("a shell");
        let (tell, from) = sync_channel(EVENTS);
        std::thread::spawn(move || {
            for message in BufReader::new(out).split(0).map_while(Result::ok) {
                let Ok(message) = serde_json::from_slice(&message) else { return };
                if tell.send(message).is_err() {
                    return;
                }
            }
        });
        let mut browser = Browser { process, to, from, session: None, number: 0, events: Vec::new(), _folder: folder };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let session = browser.call("Target.attachToTarget", attach);
        browser.session = session["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Network", "Log"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        browser
    }

    /// Asks the browser for something.
    ///
    /// # Panics
    ///
    /// If it refuses, or does not answer.
    #[track_caller]
    pub(crate) fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.number += 1;
        let mut message = json!({ "id": self.number, "method": method, "params": parameters });
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.to.write_all(&bytes).expect("the browser's pipe");
        let until = Instant::now() + DEADLINE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let message =
                self.from.recv_timeout(left).unwrap_or_else(|_| panic!("no answer to {method}: {}", self.log()));
            if message["id"] == self.number {
                assert!(message["error"].is_null(), "{method}: {}", message["error"]);
                return message["result"].clone();
            }
            if message["method"].is_string() {
                self.events.push(message);
            }
        }
    }

    /// Goes to an address, and waits until the page is there.
    #[track_caller]
    pub(crate) fn open(&mut self, address: &str) {
        self.call("Page.navigate", json!({ "url": address }));
        self.wait(
            "the page to be there",
            &format!("location.href === {} && document.readyState === 'complete'", json!(address)),
        );
    }

    /// The value of an expression in the page.
    #[track_caller]
    pub(crate) fn eval(&mut self, expression: &str) -> Value {
        let message = self
            .call("Runtime.evaluate", json!({ "expression": expression, "returnByValue": true, "awaitPromise": true }));
        assert!(message["exceptionDetails"].is_null(), "{expression}: {}", message["exceptionDetails"]);
        message["result"]["value"].clone()
    }

    /// Waits until an expression is true.
    #[track_caller]
    pub(crate) fn wait(&mut self, what: &str, expression: &str) {
        let safe = format!("(() => {{ try {{ return !!({expression}); }} catch {{ return false; }} }})()");
        wait_until(&format!("{what}: {expression}"), || self.eval(&safe) == true);
    }

    /// The text of an element.
    #[track_caller]
    pub(crate) fn text(&mut self, selector: &str) -> String {
        let text = self.eval(&format!("document.querySelector({}).textContent", json!(selector)));
        text.as_str().unwrap_or_else(|| panic!("no text in {selector}")).to_owned()
    }

    /// How large the window is, and whether it is dark.
    #[track_caller]
    pub(crate) fn look(&mut self, width: u32, height: u32, dark: bool) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.call("Emulation.setDeviceMetricsOverride", size);
        let scheme = if dark { "dark" } else { "light" };
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.call("Emulation.setEmulatedMedia", json!({ "features": features }));
        // It is drawn anew by then.
        self.eval("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))");
    }

    /// A picture of what the window shows, or of the whole page, as PNG.
    #[track_caller]
    pub(crate) fn picture(&mut self, whole: bool) -> Vec<u8> {
        let shot = self.call("Page.captureScreenshot", json!({ "format": "png", "captureBeyondViewport": whole }));
        base64::engine::general_purpose::STANDARD.decode(shot["data"].as_str().expect("data")).expect("base64")
    }

    /// Writes a picture, of the window or the whole page, into the folder that `LAPCE_IPC_SCREENSHOTS` names, if any.
    #[track_caller]
    pub(crate) fn keep_picture(&mut self, name: &str, whole: bool) {
        let Some(folder) = std::env::var_os("LAPCE_IPC_SCREENSHOTS") else { return };
        std::fs::create_dir_all(&folder).expect("a folder");
        let picture = self.picture(whole);
        std::fs::write(Path::new(&folder).join(format!("{name}.png")), picture).expect("a file");
    }

    /// The addresses of everything that was asked for so far.
    #[track_caller]
    pub(crate) fn requests(&mut self) -> Vec<String> {
        self.catch_up();
        let sent = self.events.iter().filter(|event| event["method"] == "Network.requestWillBeSent");
        sent.filter_map(|event| event["params"]["request"]["url"].as_str()).map(str::to_owned).collect()
    }

    /// What went wrong so far: exceptions, and errors and warnings of the console.
    #[track_caller]
    pub(crate) fn errors(&mut self) -> Vec<String> {
        self.catch_up();
        let is_bad = |event: &&Value| match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => true,
            Some("Runtime.consoleAPICalled") => true,
            Some("Log.entryAdded") => event["params"]["entry"]["level"] != "verbose",
            _ => false,
        };
        self.events.iter().filter(is_bad).map(|event| event["params"].to_string()).collect()
    }

    /// All events until now are here when something that was asked later is answered.
    #[track_caller]
    fn catch_up(&mut self) {
        self.eval("0");
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self._folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // So that its own children end with it.
        let _ = self.to.write_all(b"{\"id\":0,\"method\":\"Browser.close\"}\0");
        let until = Instant::now() + END;
        while matches!(self.process.try_wait(), Ok(None)) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
