//! What there is on this machine.

use super::super::failure::{Code, Failure};
use super::super::target::BrokerTarget;
use crate::broker::processes::path::programs;
use crate::broker::supervision::resources::descriptors_needed;
use crate::client::{BreakerStatus, Client, RequestOptions, StatusReport, WaitStrategy};
use crate::config::Env;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// The longest time for a round trip, and for an engine's own status.
const PATIENCE: Duration = Duration::from_secs(5);
/// Round trips; the fastest counts.
const ROUND_TRIPS: usize = 20;

#[derive(Debug)]
pub(super) struct Facts {
    pub(super) own_version: &'static str,
    pub(super) programs: Vec<Program>,
    pub(super) configuration: Result<Option<PathBuf>, String>,
    pub(super) broker: Result<Broker, Refusal>,
    pub(super) service: String,
    /// The folders of Lapce, and of the plugin in each.
    pub(super) lapce: Vec<(PathBuf, Option<PathBuf>)>,
}

/// A program on `PATH`.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) name: &'static str,
    pub(super) path: Option<PathBuf>,
    pub(super) version: Option<String>,
}

/// Why there is no connection.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) code: Code,
    pub(super) message: String,
    pub(super) hint: Option<String>,
}

#[derive(Debug)]
pub(super) struct Broker {
    pub(super) report: StatusReport,
    pub(super) breakers: Vec<BreakerStatus>,
    pub(super) round_trip: Result<Duration, String>,
    /// The limit of open descriptors of its process, if it is known.
    pub(super) descriptors: Option<u64>,
    /// As many as its configuration needs.
    pub(super) descriptors_needed: Option<u64>,
    /// What the engine says of itself.
    pub(super) engine: Option<Result<Value, String>>,
}

impl Facts {
    pub(super) fn find(target: &BrokerTarget, service: &str) -> Facts {
        let configuration = target.load();
        let needed = configuration.as_ref().ok().map(|loaded| descriptors_needed(&loaded.config));
        Facts {
            own_version: env!("CARGO_PKG_VERSION"),
            programs: ["lapce-ipc", "ipc_server_main"].map(program).into(),
            configuration: configuration.map(|loaded| loaded.source.clone()).map_err(|error| error.to_string()),
            broker: broker(target, service, needed).map_err(|failure| {
                let Failure { code, message, hint } = failure;
                Refusal { code, message, hint }
            }),
            service: service.to_owned(),
            lapce: lapce(),
        }
    }
}

fn program(name: &'static str) -> Program {
    let path = std::env::var_os("PATH").and_then(|path| programs(name.as_ref(), &path).next());
    let version = path.as_ref().and_then(|path| Command::new(path).arg("--version").output().ok());
    let version = version.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    Program { name, path, version: version.and_then(|text| text.rsplit(' ').next().map(str::to_owned)) }
}

fn broker(target: &BrokerTarget, service: &str, descriptors_needed: Option<u64>) -> Result<Broker, Failure> {
    let client = target.connect("doctor", WaitStrategy::Adaptive)?;
    let (report, breakers) = (client.status()?, client.breakers()?);
    Ok(Broker {
        round_trip: round_trip(&client),
        descriptors: descriptors(report.pid),
        descriptors_needed,
        engine: engine(&client, &report, service),
        report,
        breakers,
    })
}

fn round_trip(client: &Client) -> Result<Duration, String> {
    let options = RequestOptions { timeout: Some(PATIENCE), ..RequestOptions::default() };
    let mut fastest = PATIENCE;
    for _ in 0..ROUND_TRIPS {
        let from = Instant::now();
        let reply = client.request_with("echo", "doctor", options).map_err(|error| error.to_string())?;
        if reply != b"doctor" {
            return Err("the reply is not the request".to_owned());
        }
        fastest = fastest.min(from.elapsed());
    }
    Ok(fastest)
}

/// The soft limit out of `/proc`.
fn descriptors(pid: u32) -> Option<u64> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The service that an engine of `lapce-ipc engine` has beside its own.
fn engine(client: &Client, report: &StatusReport, service: &str) -> Option<Result<Value, String>> {
    let name = format!("{service}.status");
    report.services.iter().find(|known| known.name.as_str() == name && known.responders > 0)?;
    let options = RequestOptions { timeout: Some(PATIENCE), ..RequestOptions::default() };
    let reply = client.request_with(&name, "", options).map_err(|error| error.to_string());
    Some(reply.and_then(|reply| serde_json::from_slice(&reply).map_err(|error| error.to_string())))
}

/// The folders in which Lapce's builds keep their data, with the plugin.
fn lapce() -> Vec<(PathBuf, Option<PathBuf>)> {
    let env = Env::of_process();
    let folder = |name: &str| env.get(name).map(PathBuf::from);
    let Some(data) = folder("XDG_DATA_HOME").or_else(|| Some(folder("HOME")?.join(".local/share"))) else {
        return Vec::new();
    };
    let builds = ["lapce-stable", "lapce-nightly", "lapce-debug"].map(|build| data.join(build));
    let with_plugin = |folder: PathBuf| {
        let plugin = plugin(&folder);
        (folder, plugin)
    };
    builds.into_iter().filter(|folder| folder.is_dir()).map(with_plugin).collect()
}

/// The folder of the plugin, whatever it is called.
fn plugin(build: &Path) -> Option<PathBuf> {
    let plugins = fs::read_dir(build.join("plugins")).ok()?;
    let is_ours = |folder: &PathBuf| {
        let volt = fs::read_to_string(folder.join("volt.toml")).unwrap_or_default();
        let volt: Option<toml::Table> = volt.parse().ok();
        let text = |key: &str| volt.as_ref().and_then(|volt| volt.get(key)?.as_str().map(str::to_owned));
        text("name").as_deref() == Some("lapce-ipc") && text("wasm").is_some_and(|wasm| folder.join(wasm).is_file())
    };
    plugins.flatten().map(|entry| entry.path()).find(is_ours)
}
