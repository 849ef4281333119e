//! `doctor`: checks an installation, and says for each finding what to do.
//!
//! | file | idea |
//! |---|---|
//! | `facts` | looks: programs, broker, services, plugin |
//! | `findings` | judges what was found; pure |

mod facts;
mod findings;

use super::failure::{Code, Failure};
use super::output::{Out, plain};
use super::target::BrokerTarget;
use clap::Args;
use facts::Facts;
use findings::{Finding, Grade};

#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// Print the findings as one JSON array
    #[arg(long)]
    json: bool,
    /// The completion service to look for
    #[arg(long, value_name = "NAME", default_value = "ai.inline-completion")]
    service: String,
}

pub(super) const EXAMPLES: &str = "\
Examples:
  lapce-ipc doctor
  lapce-ipc doctor --json | jq '.[] | select(.grade == \"fault\")'

Each line is `ok`, a `note` (something is not set up; perhaps you do not need it), or a `fault` with what to do. The \
exit code is 0 without a fault, otherwise 69.";

/// Looks, and prints the findings.
///
/// # Errors
///
/// If there is a fault, or stdout fails.
pub(super) fn run(target: &BrokerTarget, args: &DoctorArgs) -> Result<(), Failure> {
    let findings = findings::all(&Facts::find(target, &args.service));
    let mut out = Out::new()?;
    if args.json {
        // Texts always serialise.
        out.write(&serde_json::to_vec_pretty(&findings).unwrap_or_default())?;
        out.write(b"\n")?;
    } else {
        out.write(text(&findings).as_bytes())?;
    }
    out.flush()?;
    match findings.iter().filter(|finding| finding.grade == Grade::Fault).count() {
        0 => Ok(()),
        count => Err(Failure::new(Code::Unavailable, format!("{count} fault{}", if count == 1 { "" } else { "s" }))),
    }
}

fn text(findings: &[Finding]) -> String {
    let mut text = String::new();
    for Finding { grade, subject, found, advice } in findings {
        text += &format!("{:<6} {subject:<12} {}\n", grade.as_str(), plain(found));
        if let Some(advice) = advice {
            text += &format!("{:<19} {}\n", "", plain(advice));
        }
    }
    text
}
