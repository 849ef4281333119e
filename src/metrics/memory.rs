//! The memory of a process by the project's one definition: what is resident, with what it shares with others, and the
//! page tables, which are no part of that. `bench connections` and the broker's own metrics both read it here.
//!
//! Both are counters of the kernel's, so to read them costs the same however many mappings there are. (`smaps_rollup`
//! would walk them all.)

const KIB: u64 = 1024;

/// Memory of a process, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Memory {
    /// Resident, what it shares with others included.
    pub(crate) rss: u64,
    /// Page tables.
    pub(crate) page_tables: u64,
}

impl Memory {
    /// Out of `/proc/PID/status`.
    pub(crate) fn parse(status: &str) -> Option<Memory> {
        let bytes = |name: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            Some(value.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * KIB)
        };
        Some(Memory { rss: bytes("VmRSS")?, page_tables: bytes("VmPTE")? })
    }

    /// The growth since `before`.
    #[cfg_attr(not(feature = "cli"), allow(dead_code, reason = "only a benchmark asks"))]
    pub(crate) fn since(self, before: Memory) -> Memory {
        Memory {
            rss: self.rss.saturating_sub(before.rss),
            page_tables: self.page_tables.saturating_sub(before.page_tables),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read() {
        let status = "Name:\tVmRSS: 7 kB\nVmHWM:\t   9000 kB\nVmRSS:\t    5120 kB\nVmPTE:\t      64 kB\nThreads:\t5\n";
        let memory = Memory::parse(status).unwrap();
        assert_eq!(memory, Memory { rss: 5120 * 1024, page_tables: 64 * 1024 });
        assert_eq!(
            memory.since(Memory { rss: 1024, page_tables: 65 * 1024 }),
            Memory { rss: 5119 * 1024, page_tables: 0 }
        );
        assert_eq!(Memory::parse("VmRSS:\t 5120 kB\n"), None);
        assert_eq!(Memory::parse("VmRSS:\t 5120 MB\nVmPTE:\t 1 kB\n"), None);
    }
}
