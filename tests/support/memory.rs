//! The memory of a broker, by the project's one definition.
//!
//! *Memory* is the growth over the idle baseline (the broker listens, no client has connected) of
//!
//! * the resident pages of the process, with the pages that it shares with its clients (`VmRSS`), and
//! * its page tables (`VmPTE`), which are no part of the resident pages.
//!
//! `lapce-ipc bench connections` reads the same two lines of `/proc/PID/status` (`src/metrics/memory.rs`). A page of a
//! segment that only the client has touched is no resident page of the broker, but the broker's segment keeps it: the
//! pages that all segments hold are counted by their files, and what the broker has not mapped of them is added.
//! [`private`] is the part that no file and no segment backs (`smaps_rollup`): the heap and the stacks.

use super::Broker;
use super::ledger::Ends;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Resident pages, shared ones included.
    pub rss: u64,
    /// Page tables.
    pub page_tables: u64,
    /// Resident pages of shared memory.
    pub shared: u64,
    /// Pages that the segments hold, touched by either side.
    pub segments: u64,
}

/// A field in KiB, in bytes.
fn field(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(value.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

impl Memory {
    /// Of a process that runs.
    ///
    /// # Panics
    ///
    /// If it does not run, or is another user's.
    #[track_caller]
    pub fn of(pid: u32) -> Memory {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        let field = |text: &str, name: &str| field(text, name).unwrap_or_else(|| panic!("no {name} in {text}"));
        Memory {
            rss: field(&status, "VmRSS"),
            page_tables: field(&status, "VmPTE"),
            shared: field(&status, "RssShmem"),
            segments: segments(pid),
        }
    }

    /// What is compared with a limit: all that the broker's process and its segments hold.
    pub fn total(self) -> u64 {
        self.rss + self.page_tables + self.segments.saturating_sub(self.shared)
    }

    /// As `lapce-ipc bench connections` counts.
    pub fn as_bench(self) -> u64 {
        self.rss + self.page_tables
    }
}

/// Pages of the segments that a process has open, in bytes. Each counts once.
fn segments(pid: u32) -> u64 {
    let mut seen = BTreeSet::new();
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs");
    let is_segment = |entry: &fs::DirEntry| {
        fs::read_link(entry.path()).is_ok_and(|target| target.to_string_lossy().starts_with("/memfd:lapce-ipc"))
    };
    let files = entries.flatten().filter(is_segment).filter_map(|entry| fs::metadata(entry.path()).ok());
    files.filter(|file| seen.insert(file.ino())).map(|file| file.blocks() * 512).sum()
}

/// Resident pages of a process that no file and no segment backs, in bytes. The kernel walks all mappings for it.
pub fn private(pid: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("it runs");
    field(&rollup, "Anonymous").expect("a field of that name")
}

/// The largest memory of a process while `work` runs, looked at every 20 ms.
pub fn peak<T>(pid: u32, work: impl FnOnce() -> T) -> (T, Memory) {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let is_over = &is_over;
        let sampler = scope.spawn(move || {
            let mut most = Memory::of(pid);
            while !is_over.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(20));
                let now = Memory::of(pid);
                most = if now.total() > most.total() { now } else { most };
            }
            most
        });
        // Also when the work fails.
        let ends = Ends(is_over);
        let result = work();
        drop(ends);
        (result, sampler.join().expect("the process runs"))
    })
}

/// Segments that a process has mapped. The maps are read, not resident pages, so a mapping counts before it is touched.
pub fn mappings(pid: u32) -> usize {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("it runs");
    maps.lines().filter(|line| line.contains("/memfd:lapce-ipc")).count()
}

/// Bytes of growth as MB, with a sign.
pub fn megabytes(now: u64, before: u64) -> f64 {
    (now as f64 - before as f64) / 1e6
}

impl Broker {
    /// Its memory now.
    #[track_caller]
    pub fn memory(&self) -> Memory {
        Memory::of(self.process.pid())
    }
}
