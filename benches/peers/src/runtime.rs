//! The tokio runtime of peers whose client is asynchronous.

use std::sync::LazyLock;
use tokio::runtime::{Builder, Runtime};

/// One thread: the client's tasks and the loop of the measurement hand over to each other without a wake of another
/// thread. With two cores that is faster than `#[tokio::main]`.
static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_current_thread().enable_all().build().expect("a runtime"));

pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    RUNTIME.block_on(future)
}
