//! The broker.

use std::process::ExitCode;

fn main() -> ExitCode {
    lapce_ipc::cli::ipc_server_main()
}
