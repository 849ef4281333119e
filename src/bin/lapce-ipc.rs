//! The command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    lapce_ipc::cli::lapce_ipc()
}
