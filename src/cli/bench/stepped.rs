//! `bench-stepped`: a scenario of the hot path on one thread, for `.ci/instructions`, which counts its instructions.

use crate::broker::stepped::{MESSAGES, SCENARIOS};
use crate::cli::failure::{Code, Failure};
use crate::cli::output::Out;

/// Runs a scenario, and prints how many messages of it are measured.
///
/// # Errors
///
/// If the scenario is unknown, or a message is not delivered.
pub(crate) fn run(name: &str) -> Result<(), Failure> {
    let Some((_, scenario)) = SCENARIOS.iter().find(|(known, _)| *known == name) else {
        let known: Vec<&str> = SCENARIOS.iter().map(|(known, _)| *known).collect();
        return Err(Failure::new(Code::Usage, format!("unknown scenario {name:?}; scenarios: {}", known.join(", "))));
    };
    scenario().map_err(|error| Failure::new(Code::Protocol, format!("scenario {name}: {error}")))?;
    let mut out = Out::new()?;
    out.write(format!("{MESSAGES}\n").as_bytes())?;
    out.flush()
}
