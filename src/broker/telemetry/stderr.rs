//! The thread that writes to stderr.
//!
//! A write to stderr blocks while a terminal is paused or the reader of a pipe does not read. So only this thread
//! writes. Lines go through a bounded queue; when it is full, they are dropped and counted, and the count is logged
//! once the queue has space again. The watchdog queues its lines, too, so it needs no lock that a stuck thread could
//! hold.

use crate::sync::{AtomicU64, Ordering};
use crossbeam_queue::ArrayQueue;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use std::io;
use std::sync::{Arc, OnceLock};
use std::thread::Thread;
use std::time::{Duration, Instant};

/// The capacity of the queue, in lines.
const LINES: usize = 1024;
/// The longest line in bytes, which bounds the memory of the queue.
const LINE_MAX: usize = 16 * 1024;
/// How long an ending process waits for the thread to write its last lines.
const LAST_LINES: Duration = Duration::from_millis(500);
/// How long a patient writer waits for a blocked reader.
const PATIENCE: Duration = Duration::from_millis(250);

/// The queue of this process.
static STDERR: OnceLock<Arc<Lines>> = OnceLock::new();

/// Starts the thread that writes to stderr. It calls `dropped` with the number of lines that were dropped since the
/// last call.
///
/// # Errors
///
/// If the system refuses a thread.
pub(crate) fn start(dropped: fn(u64)) -> io::Result<()> {
    if STDERR.get().is_none() {
        let lines = Lines::start(LINES, to_stderr, dropped)?;
        // If another caller was faster, this thread waits for lines that never come.
        let _ = STDERR.set(lines);
    }
    Ok(())
}

/// Writes a line with its newline. Does not block, unless [`start`] was never called.
pub(crate) fn write(line: &[u8]) {
    match STDERR.get() {
        Some(lines) => lines.push(line),
        None => to_stderr(line),
    }
}

/// Writes a part of a long text. Waits for space in the queue, but gives up if the reader does not read.
pub(crate) fn write_patiently(part: &[u8]) {
    match STDERR.get() {
        Some(lines) => lines.push_patiently(part),
        None => to_stderr(part),
    }
}

/// Waits until all lines are written, for a limited time.
pub(crate) fn flush() {
    if let Some(lines) = STDERR.get() {
        lines.flush(LAST_LINES);
    }
}

/// Whether the thread was started.
pub(in crate::broker) fn is_started() -> bool {
    STDERR.get().is_some()
}

/// The number of lines dropped so far.
pub(in crate::broker) fn dropped() -> u64 {
    STDERR.get().map_or(0, |lines| lines.dropped.load(Ordering::Relaxed))
}

/// Writes without the lock of `std::io::Stderr`, which a blocked thread could hold.
fn to_stderr(mut bytes: &[u8]) {
    let stderr = io::stderr();
    while !bytes.is_empty() {
        match rustix::io::write(&stderr, bytes) {
            Ok(0) => return,
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let _ = poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], None);
            }
            // The error cannot be reported anywhere.
            Err(_) => return,
        }
    }
}

/// The queue of lines to the thread that writes them. The counters are independent, so their order does not matter.
#[derive(Debug)]
struct Lines {
    queue: ArrayQueue<Vec<u8>>,
    taken: AtomicU64,
    written: AtomicU64,
    dropped: AtomicU64,
    /// The count of written lines when a patient writer gave up.
    stuck_at: AtomicU64,
    writer: OnceLock<Thread>,
}

impl Lines {
    fn start(room: usize, write: fn(&[u8]), dropped: fn(u64)) -> io::Result<Arc<Lines>> {
        let lines = Arc::new(Lines {
            queue: ArrayQueue::new(room),
            taken: AtomicU64::new(0),
            written: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            stuck_at: AtomicU64::new(u64::MAX),
            writer: OnceLock::new(),
        });
        let writes = lines.clone();
        let thread = std::thread::Builder::new().name("stderr".to_owned()).spawn(move || writes.run(write, dropped))?;
        let _ = lines.writer.set(thread.thread().clone());
        Ok(lines)
    }

    fn run(&self, write: fn(&[u8]), dropped: fn(u64)) {
        let mut reported = 0;
        loop {
            while let Some(line) = self.queue.pop() {
                write(&line);
                self.written.fetch_add(1, Ordering::Release);
            }
            let all = self.dropped.load(Ordering::Relaxed);
            if all > reported {
                dropped(all - reported);
                reported = all;
            } else {
                // A line that came meanwhile has left a token, so this returns at once.
                std::thread::park();
            }
        }
    }

    fn push(&self, line: &[u8]) {
        if !self.put(line) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn push_patiently(&self, part: &[u8]) {
        let (mut since, mut seen) = (Instant::now(), self.written.load(Ordering::Acquire));
        while !self.put(part) {
            let written = self.written.load(Ordering::Acquire);
            if written != seen {
                (since, seen) = (Instant::now(), written);
            }
            if since.elapsed() > PATIENCE || self.stuck_at.load(Ordering::Relaxed) == written {
                self.stuck_at.store(written, Ordering::Relaxed);
                self.dropped.fetch_add(1, Ordering::Relaxed);
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Queues a line. `false`: the queue is full.
    fn put(&self, line: &[u8]) -> bool {
        self.taken.fetch_add(1, Ordering::Relaxed);
        if self.queue.push(line[..line.len().min(LINE_MAX)].to_vec()).is_err() {
            self.taken.fetch_sub(1, Ordering::Relaxed);
            return false;
        }
        if let Some(writer) = self.writer.get() {
            writer.unpark();
        }
        true
    }

    fn flush(&self, limit: Duration) {
        let until = Instant::now() + limit;
        while self.written.load(Ordering::Acquire) < self.taken.load(Ordering::Relaxed) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Mutex, mpsc};

    /// A reader that does not read until the test lets it; one for each test.
    struct Paused {
        go: Mutex<Option<mpsc::Receiver<()>>>,
        got: Mutex<Vec<Vec<u8>>>,
        reported: AtomicU64,
    }

    impl Paused {
        const fn new() -> Paused {
            Paused { go: Mutex::new(None), got: Mutex::new(Vec::new()), reported: AtomicU64::new(0) }
        }

        fn pause(&self) -> mpsc::SyncSender<()> {
            let (go, paused) = mpsc::sync_channel(1);
            *self.go.lock().unwrap() = Some(paused);
            go
        }

        fn write(&self, bytes: &[u8]) {
            if let Some(paused) = self.go.lock().unwrap().take() {
                paused.recv().unwrap();
            }
            self.got.lock().unwrap().push(bytes.to_vec());
        }
    }

    #[test]
    fn a_reader_that_stops_delays_nobody_and_lines_are_counted() {
        static READER: Paused = Paused::new();
        let go = READER.pause();
        let reported = |count| {
            READER.reported.fetch_add(count, Ordering::Relaxed);
        };
        let lines = Lines::start(4, |bytes| READER.write(bytes), reported).unwrap();
        // The reader has the first line when the others come.
        lines.push(&[0]);
        while !lines.queue.is_empty() {
            std::thread::yield_now();
        }
        for n in 1..100_u8 {
            lines.push(&[n]);
        }
        let dropped = lines.dropped.load(Ordering::Relaxed);
        assert_eq!(dropped, 95);
        let begun = Instant::now();
        lines.push_patiently(b"program");
        lines.push_patiently(b"program");
        assert!(begun.elapsed() < 2 * PATIENCE + Duration::from_secs(5));
        lines.flush(Duration::from_millis(10));
        assert!(READER.got.lock().unwrap().is_empty());
        go.send(()).unwrap();
        while READER.reported.load(Ordering::Relaxed) < dropped + 2 {
            std::thread::yield_now();
        }
        lines.push(b"after");
        lines.flush(Duration::from_secs(30));
        let got = READER.got.lock().unwrap();
        assert_eq!((got[0].as_slice(), got.last().unwrap().as_slice()), (&[0][..], &b"after"[..]));
        assert_eq!(got.len() as u64, 100 - dropped + 1);
    }
}
