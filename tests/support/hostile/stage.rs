//! A broker with users, and what is looked at beside the pair: whether others are served, memory, log, probes.

use super::rows::Row;
use crate::support::Broker;
use crate::support::criteria::MEASURES;
use crate::support::http::{Answer, talk};
use crate::support::ledger::PATIENT;
use crate::support::memory::{Memory, megabytes};
use crate::support::role::Child;
use crate::support::users::open_folder;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long anything may take that others do beside an attack.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long an attack may take to be in force.
const IN_FORCE: Duration = Duration::from_secs(90);
const PAIR: u32 = 65_532;
const INNOCENT: u32 = 65_533;
const ATTACKER: u32 = 65_534;
/// A user that may not connect.
const STRANGER: u32 = 65_531;

/// Whose the attacker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Users {
    /// A user of its own.
    Other,
    /// The user of the pair.
    Same,
}

impl Users {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Users::Other => "other",
            Users::Same => "same",
        }
    }
}

/// The program of all processes, where each user may run it. Only root can be several users.
pub(crate) struct Company {
    _folder: tempfile::TempDir,
    program: PathBuf,
    pub(crate) is_root: bool,
}

impl Company {
    pub(crate) fn new() -> Company {
        let (folder, program) = open_folder(std::env::current_exe().expect("this program").to_str().expect("a path"));
        Company { _folder: folder, program, is_root: rustix::process::geteuid().is_root() }
    }
}

/// The broker of one row.
pub(crate) struct Stage<'a> {
    company: &'a Company,
    test: &'static str,
    pub(crate) broker: Broker,
    health: SocketAddr,
}

/// What is seen beside the pair.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// What a user of its own could do during the attack, in milliseconds, or what was refused.
    pub(crate) innocent: Result<f64, String>,
    /// The status and `/live`, in milliseconds.
    pub(crate) status: Result<f64, String>,
    pub(crate) live: Result<f64, String>,
    /// Breakers that are not closed.
    pub(crate) open_breakers: Vec<String>,
    /// Log lines of the broker so far, in bytes.
    pub(crate) log_bytes: usize,
}

impl<'a> Stage<'a> {
    pub(crate) fn start(company: &'a Company, test: &'static str, row: &Row) -> Stage<'a> {
        let users = [PAIR, INNOCENT, ATTACKER].map(|uid| uid.to_string()).join(",");
        let mut keys = vec![("shared_memory.permissions", "0o666"), ("ipc.allowed_uids", users.as_str())];
        if !MEASURES {
            // A debug build has no verdicts, and runs beside other tests.
            keys.extend(PATIENT);
        }
        keys.extend(row.keys);
        let mut broker = Broker::start_with(&keys);
        broker.without_limit();
        std::fs::set_permissions(broker.folder(), std::fs::Permissions::from_mode(0o755)).expect("our folder");
        let health = broker.health();
        Stage { company, test, broker, health }
    }

    fn spawn(&self, uid: u32, role: &str) -> Child {
        if self.company.is_root {
            Child::spawn_as(&self.broker, &self.company.program, uid, self.test, role)
        } else {
            Child::spawn_in(&self.broker, self.test, role)
        }
    }

    /// A process of the pair.
    pub(crate) fn member(&self, role: &str) -> Child {
        self.spawn(PAIR, role)
    }

    /// The attack, when it is in force; after that time it is as far as it will be.
    pub(crate) fn attack(&self, row: &Row, users: Users) -> Child {
        let uid = match users {
            _ if row.name == "refused" && users == Users::Other => STRANGER,
            Users::Other => ATTACKER,
            Users::Same => PAIR,
        };
        let mut attacker = self.spawn(uid, &format!("attack {} {}", row.name, self.health));
        if attacker.may_hear("ready", IN_FORCE).is_none() {
            crate::support::probe::note(&format!("{}: not in force within {IN_FORCE:?}", row.name));
        }
        attacker
    }

    /// Looks at everything beside the pair.
    pub(crate) fn look(&mut self) -> Seen {
        // All users of a test without root are one.
        let innocent = if self.company.is_root { self.newcomer(INNOCENT) } else { Ok(0.0) };
        let (status, open_breakers) = self.operator();
        Seen { innocent, status, live: self.live(), open_breakers, log_bytes: self.broker.process().stderr().len() }
    }

    /// A user that comes now. Answers the milliseconds that everything took, or what was refused.
    fn newcomer(&self, uid: u32) -> Result<f64, String> {
        let mut child = self.spawn(uid, "newcomer");
        match child.may_hear("done", PATIENCE) {
            Some(millis) => millis.parse().map_err(|_| millis),
            None => Err(child.said("fault ").unwrap_or_else(|| format!("nothing within {PATIENCE:?}"))),
        }
    }

    /// Status and breakers, asked by the broker's own user.
    fn operator(&self) -> (Result<f64, String>, Vec<String>) {
        let started = Instant::now();
        let asked = self.broker.builder().no_reconnect().timeout(PATIENCE).connect().and_then(|client| {
            client.status()?;
            Ok((started.elapsed().as_secs_f64() * 1e3, client.breakers()?))
        });
        match asked {
            Ok((millis, breakers)) => {
                let open = breakers.iter().filter(|one| one.state != lapce_ipc::wire::control::BreakerState::Closed);
                (Ok(millis), open.map(|one| one.service.to_string()).collect())
            }
            Err(error) => (Err(error.to_string()), Vec::new()),
        }
    }

    fn live(&self) -> Result<f64, String> {
        let (started, health) = (Instant::now(), self.health);
        let request = b"GET /live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        let asked = std::thread::spawn(move || Answer::parse(&talk(health, request))).join();
        match asked {
            Ok(Some(Answer { code: 200, .. })) => Ok(started.elapsed().as_secs_f64() * 1e3),
            Ok(answer) => Err(format!("{answer:?}")),
            Err(_) => Err("no answer".to_owned()),
        }
    }

    /// The broker's memory, if it lives.
    pub(crate) fn memory(&mut self) -> Memory {
        if self.broker.process().has_ended() { Memory::default() } else { self.broker.memory() }
    }

    /// Megabytes beyond `before`.
    pub(crate) fn grown(&mut self, before: Memory) -> f64 {
        megabytes(self.memory().total(), before.total())
    }

    /// Whether the broker is as it should be: it runs, and its log has no panic and no thread that hangs.
    pub(crate) fn check(&mut self) -> Result<(), String> {
        if self.broker.process().has_ended() {
            let (code, log) = (self.broker.process().code(), self.broker.process().stderr());
            let last: Vec<&str> = log.lines().rev().take(5).collect();
            return Err(format!("the broker has ended with {code}; its last lines, the last first: {last:?}"));
        }
        let log = self.broker.process().stderr();
        match log.lines().find(|line| line.contains("panicked") || line.contains("thread hangs")) {
            Some(line) => Err(line.chars().take(120).collect()),
            None => Ok(()),
        }
    }
}
