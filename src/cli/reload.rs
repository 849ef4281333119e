//! `reload`: has the broker read its configuration again, and shows what came of it.

use super::failure::Failure;
use super::output::{Out, note};
use super::target::BrokerTarget;
use crate::client::WaitStrategy;
use clap::Args;

#[derive(Debug, Args)]
pub(super) struct ReloadArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) const NOTES: &str = "\
The broker reads its configuration file again, by the same lookup order as at its start. Keys that need a restart keep
their values. If the configuration is invalid, nothing changes: exit code 78. Allowed for the broker's user, root and
ipc.operator_uids; otherwise exit code 77. SIGHUP does the same and logs the result.";

/// Orders it and prints the keys.
///
/// # Errors
///
/// If there is no broker, the configuration is invalid, or the user is not permitted.
pub(super) fn run(target: &BrokerTarget, json: bool) -> Result<(), Failure> {
    let report = target.connect("reload", WaitStrategy::Block)?.reload().map_err(Failure::of_order)?;
    let mut out = Out::new()?;
    if json {
        // Strings always serialise.
        out.write(&serde_json::to_vec_pretty(&report).unwrap_or_default())?;
        out.write(b"\n")?;
        return out.flush();
    }
    for key in &report.changed {
        out.write(format!("changed {key}\n").as_bytes())?;
    }
    for key in &report.needs_restart {
        out.write(format!("needs a restart {key}\n").as_bytes())?;
    }
    if report.changed.is_empty() && report.needs_restart.is_empty() {
        note(format_args!("no changes"));
    }
    out.flush()
}

impl ReloadArgs {
    pub(super) fn is_json(&self) -> bool {
        self.json
    }
}
