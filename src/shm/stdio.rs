//! Which of stdin and stdout were closed when the program started.
//!
//! `main` cannot tell: before it, Rust's runtime opens `/dev/null` for each closed standard descriptor. That looks
//! exactly like the `/dev/null` that Python and Node.js pass for an ignored stream. So the loader calls a function
//! before the runtime starts, which reads the flags of the descriptors.

use crate::sync::{AtomicU64, Ordering};
use rustix::io::{Errno, fcntl_getfd};

const STDIN: u64 = 1;
const STDOUT: u64 = 2;

static CLOSED: AtomicU64 = AtomicU64::new(0);

// SAFETY of the section: the loader calls each entry once with the C calling convention, before any thread starts. The
// function makes two system calls and cannot panic.
#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = note_closed;

extern "C" fn note_closed() {
    let stdin = if fcntl_getfd(std::io::stdin()) == Err(Errno::BADF) { STDIN } else { 0 };
    let stdout = if fcntl_getfd(std::io::stdout()) == Err(Errno::BADF) { STDOUT } else { 0 };
    CLOSED.store(stdin | stdout, Ordering::Relaxed);
}

/// Whether stdin was closed when the program started.
pub(crate) fn stdin_was_closed() -> bool {
    CLOSED.load(Ordering::Relaxed) & STDIN != 0
}

/// Whether stdout was closed when the program started.
pub(crate) fn stdout_was_closed() -> bool {
    CLOSED.load(Ordering::Relaxed) & STDOUT != 0
}
