//! lapce-ipc beside other ways to exchange messages on one machine, measured in one run: `benches/peers/run`.
//!
//! | module | holds |
//! |---|---|
//! | `peer` | the trait of a peer |
//! | `peers` | the peers, one file each |
//! | `work` | the messages, their check, and the times |
//! | `role` | one end, in a process of its own |
//! | `runtime` | tokio, for asynchronous clients |
//! | `process`, `usage` | child processes, their CPU and memory |
//! | `driver` | the order of the measurements |
//! | `report` | the tables, the JSON file and the plot |

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for the command line")]

mod driver;
mod error;
mod peer;
mod peers;
mod process;
mod report;
mod role;
mod runtime;
mod usage;
mod work;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure all peers in turn, and write the report
    Measure(driver::Options),
    /// Write the report again, from the JSON file of a run
    Report(report::Options),
    /// Be one end of a measurement (used by `measure`)
    #[command(hide = true)]
    Role(role::Options),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Measure(options) => driver::measure(&options),
        Command::Report(options) => report::rewrite(&options),
        Command::Role(options) => role::run(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
