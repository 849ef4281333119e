//! What the facts mean.

use super::facts::{Broker, Facts, Program, Refusal};
use crate::cli::failure::Code;
use crate::client::{ActorState, ActorStatus, BreakerState, age};
use serde::Serialize;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A round trip that takes longer says that the machine is overloaded, or the broker stopped.
const SLOW: Duration = Duration::from_millis(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Grade {
    Ok,
    /// Something is not set up, which may be as it should.
    Note,
    Fault,
}

impl Grade {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Grade::Ok => "ok",
            Grade::Note => "note",
            Grade::Fault => "fault",
        }
    }
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    pub(super) grade: Grade,
    pub(super) subject: &'static str,
    pub(super) found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) advice: Option<String>,
}

fn ok(subject: &'static str, found: impl Into<String>) -> Finding {
    Finding { grade: Grade::Ok, subject, found: found.into(), advice: None }
}

fn note(subject: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Finding {
    Finding { grade: Grade::Note, subject, found: found.into(), advice: Some(advice.into()) }
}

fn fault(subject: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Finding {
    Finding { grade: Grade::Fault, subject, found: found.into(), advice: Some(advice.into()) }
}

/// All findings, in the order in which they depend on each other.
pub(super) fn all(facts: &Facts) -> Vec<Finding> {
    let mut findings: Vec<_> = facts.programs.iter().map(|found| program(found, facts.own_version)).collect();
    findings.push(configuration(&facts.configuration));
    match &facts.broker {
        Ok(found) => findings.extend(broker(found, &facts.service, facts.own_version)),
        // It is the fault of the configuration, which is there already.
        Err(refusal) if refusal.code == Code::Config && facts.configuration.is_err() => {}
        Err(refusal) => findings.push(refused(refusal)),
    }
    findings.extend(facts.lapce.iter().map(|(folder, plugin)| plugin_in(folder, plugin.as_ref())));
    if facts.lapce.is_empty() {
        let advice = "only if you use it: start it once, then install the plugin as editors/lapce/README.md says";
        findings.push(note("Lapce", "no data folder of Lapce", advice));
    }
    findings
}

fn program(Program { name, path, version }: &Program, own: &str) -> Finding {
    match (path, version.as_deref()) {
        (Some(path), Some(version)) if version == own => ok("program", format!("{} {version}", path.display())),
        (Some(path), version) => fault(
            "program",
            format!("{} is version {}, this one is {own}", path.display(), version.unwrap_or("unknown")),
            "remove the older one, or put the folder of the newer one first in PATH",
        ),
        (None, _) => note(
            "program",
            format!("{name} is not on PATH"),
            format!("editors look for lapce-ipc there, and units for the broker: add the folder of {name} to PATH"),
        ),
    }
}

fn configuration(source: &Result<Option<PathBuf>, String>) -> Finding {
    match source {
        Ok(Some(path)) => ok("configuration", path.display().to_string()),
        Ok(None) => ok("configuration", "built-in defaults"),
        Err(error) => {
            let advice = "lapce-ipc serve --check-config, with the same --config, lists all errors";
            fault("configuration", error.replace('\n', "; "), advice)
        }
    }
}

fn refused(Refusal { code, message, hint }: &Refusal) -> Finding {
    let advice = match code {
        Code::NotAllowed => {
            "the modes of the socket and its folders, and ipc.allowed_uids of the broker, say which users may connect"
        }
        Code::Protocol => "another program, or another version of the broker, listens there",
        Code::Config => "correct the configuration",
        _ => "start a broker (lapce-ipc serve), or restart one that is stopped or stuck",
    };
    fault("broker", message.clone(), hint.as_deref().unwrap_or(advice))
}

fn broker(found: &Broker, service: &str, own: &str) -> Vec<Finding> {
    let report = &found.report;
    let head =
        format!("lapce-ipc {}, pid {}, up {}, {}", report.version, report.pid, age(report.uptime_ms), report.socket);
    let mut findings = vec![if report.version == own {
        ok("broker", head)
    } else {
        note("broker", head, format!("it was started before {own} was installed: restart it"))
    }];
    if report.draining {
        findings.push(note("broker", "it is draining", "it ends as soon as its work is done"));
    }
    if let Some(reason) = &report.socket_lost {
        findings.push(fault("socket", format!("{} is lost: {reason}", report.socket), "restart the broker"));
    }
    findings.push(match &found.round_trip {
        Ok(time) if *time > SLOW => {
            note("round trip", format!("{time:.1?}"), "the machine is busy, or the broker has been stopped")
        }
        Ok(time) => ok("round trip", format!("{time:.1?}")),
        Err(error) => fault("round trip", error.clone(), "lapce-ipc status and the broker's log say more"),
    });
    findings.extend(descriptors(found));
    findings.extend(report.actors.iter().filter_map(actor));
    for breaker in found.breakers.iter().filter(|breaker| breaker.state != BreakerState::Closed) {
        findings.push(note(
            "breaker",
            format!("{} is {}", breaker.service, breaker.state.as_str()),
            format!(
                "its requests are rejected until it recovers: see its log; to try now: lapce-ipc breaker close {} \
                 --for 1s",
                breaker.service
            ),
        ));
    }
    findings.push(engine(found, service));
    findings
}

fn actor(actor: &ActorStatus) -> Option<Finding> {
    let (name, reason) = (&actor.name, actor.last_reason.as_deref().unwrap_or("unknown reason"));
    match actor.state {
        ActorState::GaveUp => {
            let advice = match name.starts_with("engine ") {
                true => "correct its [[engine]], then: lapce-ipc reload",
                false => "mend the reason, restart the broker",
            };
            Some(fault("actor", format!("{name} gave up: {reason}"), advice))
        }
        ActorState::Restarting { .. } => {
            Some(note("actor", format!("{name} is restarting: {reason}"), "the broker's log has what it wrote"))
        }
        ActorState::Running | ActorState::Stopped => None,
    }
}

fn descriptors(found: &Broker) -> Option<Finding> {
    let (limit, needed) = (found.descriptors?, found.descriptors_needed?);
    let text = format!("the broker may open {limit}; ipc.max_connections and the endpoints need {needed}");
    Some(if limit >= needed {
        ok("descriptors", text)
    } else {
        note("descriptors", text, "raise LimitNOFILE, or `ulimit -n` of its shell, or lower ipc.max_connections")
    })
}

fn engine(found: &Broker, service: &str) -> Finding {
    let responders = found.report.services.iter().find(|known| known.name.as_str() == service);
    let responders = responders.map_or(0, |known| known.responders);
    if responders == 0 {
        let advice =
            "start one: lapce-ipc engine openai --base-url URL --model NAME, or an [[engine]] of the configuration";
        return note("engine", format!("no engine serves {service}"), advice);
    }
    let text = |status: &Value, key: &str| status[key].as_str().map(str::to_owned);
    match &found.engine {
        None => ok("engine", format!("{service}: {responders} responder{}", if responders == 1 { "" } else { "s" })),
        Some(Err(error)) => fault("engine", format!("{service}.status: {error}"), "see the engine's log"),
        Some(Ok(status)) => {
            let of = |key: &str| text(status, key).unwrap_or_else(|| "unknown".to_owned());
            let way = text(status, "way")
                .map_or_else(|| "no completion so far".to_owned(), |way| format!("fill-in-the-middle by {way}"));
            let head = format!("{service}: {} at {}, {way}", of("model"), of("base_url"));
            if let Some(error) = text(status, "unreachable") {
                return fault("engine", format!("{head}; {error}"), "start the engine there, or correct --base-url");
            }
            match text(status, "last_error") {
                None => ok("engine", head),
                Some(error) => note("engine", format!("{head}; last error: {error}"), "see the engine's log"),
            }
        }
    }
}

fn plugin_in(folder: &Path, plugin: Option<&PathBuf>) -> Finding {
    match plugin {
        Some(plugin) => ok("Lapce", format!("plugin in {}", plugin.display())),
        None => note(
            "Lapce",
            format!("no plugin lapce-ipc in {}", folder.join("plugins").display()),
            "editors/lapce/README.md says how to install it",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(broker: Result<Broker, Refusal>) -> Facts {
        let path = |name: &str| Some(PathBuf::from(format!("/usr/bin/{name}")));
        let program = |name, version: &str| Program { name, path: path(name), version: Some(version.to_owned()) };
        Facts {
            own_version: "2.0.0",
            programs: vec![
                program("lapce-ipc", "2.0.0"),
                program("ipc_server_main", "1.0.0"),
                Program { name: "absent", path: None, version: None },
            ],
            configuration: Err("line 1: a\nline 2: b".to_owned()),
            broker,
            service: "ai".to_owned(),
            lapce: vec![("/d/lapce-stable".into(), None), ("/d/lapce-nightly".into(), Some("/d/x".into()))],
        }
    }

    #[test]
    fn every_fault_has_its_advice() {
        let (code, hint) = (Code::Unavailable, Some("start it".to_owned()));
        let refusal = Refusal { code, message: "no broker".to_owned(), hint };
        let found = all(&facts(Err(refusal)));
        let short: Vec<_> =
            found.iter().map(|finding| (finding.grade, finding.subject, finding.found.as_str())).collect();
        assert_eq!(
            short,
            [
                (Grade::Ok, "program", "/usr/bin/lapce-ipc 2.0.0"),
                (Grade::Fault, "program", "/usr/bin/ipc_server_main is version 1.0.0, this one is 2.0.0"),
                (Grade::Note, "program", "absent is not on PATH"),
                (Grade::Fault, "configuration", "line 1: a; line 2: b"),
                (Grade::Fault, "broker", "no broker"),
                (Grade::Note, "Lapce", "no plugin lapce-ipc in /d/lapce-stable/plugins"),
                (Grade::Ok, "Lapce", "plugin in /d/x"),
            ]
        );
        assert!(found.iter().all(|finding| (finding.grade == Grade::Ok) == finding.advice.is_none()));
        assert_eq!(found[4].advice.as_deref(), Some("start it"));
    }
}
