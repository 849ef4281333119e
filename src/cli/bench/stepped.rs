//! `bench-stepped`: a scenario of the hot path on one thread, for `.ci/instructions` and `.ci/breakdown`.

use crate::broker::stepped::{MESSAGES, Meter, SCENARIOS};
use crate::cli::failure::{Code, Failure};
use crate::cli::output::Out;

/// Runs of a scenario for one time: the median counts.
const RUNS: usize = 51;

#[derive(clap::Args, Debug)]
pub(crate) struct SteppedArgs {
    /// The scenario
    scenario: String,
    /// Print the nanoseconds of a message: the median of many runs
    #[arg(long)]
    time: bool,
    /// Print the updates, fences and locks of all messages
    #[cfg(feature = "count-sync")]
    #[arg(long, conflicts_with = "time")]
    counts: bool,
}

/// Runs a scenario, and prints how many messages of it are measured, or what they cost.
///
/// # Errors
///
/// If the scenario is unknown, or a message is not delivered.
pub(crate) fn run(args: &SteppedArgs) -> Result<(), Failure> {
    let name = &args.scenario;
    let Some((_, scenario)) = SCENARIOS.iter().find(|(known, _)| known == name) else {
        let known: Vec<&str> = SCENARIOS.iter().map(|(known, _)| *known).collect();
        return Err(Failure::new(Code::Usage, format!("unknown scenario {name:?}; scenarios: {}", known.join(", "))));
    };
    let failure = |error| Failure::new(Code::Protocol, format!("scenario {name}: {error}"));
    let mut text = MESSAGES.to_string();
    if args.time {
        let runs: Result<Vec<f64>, _> = (0..RUNS).map(|_| Meter::time(*scenario)).collect();
        let mut times = runs.map_err(failure)?;
        times.sort_by(f64::total_cmp);
        text = format!("{:.1}", times[RUNS / 2]);
    } else {
        let mut meter = Meter::default();
        scenario(&mut meter).map_err(failure)?;
        #[cfg(feature = "count-sync")]
        if args.counts {
            text = format!("{} {} {}", meter.counts.updates, meter.counts.fences, meter.counts.locks);
        }
    }
    let mut out = Out::new()?;
    out.write(format!("{text}\n").as_bytes())?;
    out.flush()
}
