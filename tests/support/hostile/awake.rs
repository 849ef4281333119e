//! Keeps the cores awake, so that the latencies of all rows compare.
//!
//! Beside a busy loop a core never sleeps, and a process on it is woken in a fraction of the time that a sleeping core
//! takes (a factor of four to seven in the p99 of a request in a virtual machine). So the control row would be the
//! fastest, and an attack would seem to slow the pair by not using the processor. Therefore each core has a loop of the
//! scheduling class `SCHED_IDLE` in all rows: it runs only while the core has nothing else to do.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Loops that run while a core is idle, until this is dropped.
pub(crate) struct Awake(Arc<AtomicBool>);

impl Awake {
    /// A loop for each core.
    ///
    /// # Errors
    ///
    /// If `chrt` (of util-linux) cannot change the scheduling class of a thread.
    pub(crate) fn start() -> Result<Awake, String> {
        let awake = Awake(Arc::new(AtomicBool::new(false)));
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            let is_over = awake.0.clone();
            let (says, heard) = std::sync::mpsc::sync_channel(1);
            std::thread::spawn(move || {
                let is_idle_class = idle_class();
                let spins = is_idle_class.is_ok();
                let _ = says.send(is_idle_class);
                while spins && !is_over.load(Relaxed) {
                    std::hint::spin_loop();
                }
            });
            heard.recv().map_err(|_| "a thread has ended".to_owned())??;
        }
        Ok(awake)
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Puts this thread into the class that runs when nothing else does.
fn idle_class() -> Result<(), String> {
    let thread = rustix::thread::gettid().as_raw_nonzero().to_string();
    let mut command = Command::new("chrt");
    command.args(["--idle", "--pid", "0", &thread]).stdin(Stdio::null()).stdout(Stdio::null());
    match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Err(format!("chrt: {error}")),
    }
}
