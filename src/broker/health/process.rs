//! The kernel's data about this process, as far as it is cheap to read.

use crate::broker::supervision::resources;
use crate::metrics::memory::Memory;
use rustix::param::clock_ticks_per_second;
use std::fs;

/// CPU, memory, threads and descriptors of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Usage {
    pub(super) cpu_seconds: f64,
    pub(super) virtual_bytes: f64,
    pub(super) threads: f64,
    pub(super) descriptors: f64,
    pub(super) descriptors_limit: f64,
    /// Resident memory and page tables, if the kernel reports both.
    pub(super) memory: Option<Memory>,
}

impl Usage {
    /// Of this process; `None` where there is no `/proc`.
    pub(super) fn read() -> Option<Usage> {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        let usage = parse(&stat, clock_ticks_per_second() as f64)?;
        let descriptors = descriptors()?;
        let limit = resources::soft(resources::Resource::RLIMIT_NOFILE).unwrap_or(u64::MAX);
        let memory = fs::read_to_string("/proc/self/status").ok().and_then(|status| Memory::parse(&status));
        Some(Usage { descriptors: descriptors as f64, descriptors_limit: limit as f64, memory, ..usage })
    }
}

/// Open descriptors. Since Linux 6.2 the folder's size is their number; listing thousands takes milliseconds.
fn descriptors() -> Option<u64> {
    match fs::metadata("/proc/self/fd").ok()?.len() {
        // Without the descriptor that reads the folder.
        0 => Some(fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1) as u64),
        counted => Some(counted),
    }
}

/// Reads `/proc/PID/stat`. The name in parentheses may hold anything, so it is counted from the last parenthesis.
fn parse(stat: &str, ticks_per_second: f64) -> Option<Usage> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    // proc(5) counts the state, which is first here, as 3.
    let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
    Some(Usage {
        cpu_seconds: (field(14)? + field(15)?) / ticks_per_second,
        threads: field(20)?,
        virtual_bytes: field(23)?,
        ..Usage::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_are_the_right_ones() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 5 0 12345 1048576 256 184467 1 1 0";
        let usage = parse(stat, 100.0).unwrap();
        assert_eq!((usage.cpu_seconds, usage.threads), (3.0, 5.0));
        assert_eq!(usage.virtual_bytes, 1_048_576.0);
        assert_eq!(parse("7 (a) S 1", 100.0), None);
        let own = Usage::read().unwrap();
        let memory = own.memory.unwrap();
        assert!(memory.rss > 100_000 && (memory.rss as f64) < own.virtual_bytes && memory.page_tables > 0, "{own:?}");
        assert!(own.threads >= 1.0 && own.descriptors >= 3.0 && own.descriptors <= own.descriptors_limit, "{own:?}");
    }
}
