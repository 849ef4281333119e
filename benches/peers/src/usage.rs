//! CPU time and memory of processes, from `/proc`.

use crate::error::Result;
use std::fs;

/// The CPU time that processes have used, in seconds; their ended threads count.
pub(crate) fn cpu_seconds(pids: &[u32]) -> Result<f64> {
    let mut ticks = 0;
    for pid in pids {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // Behind the name, which may contain anything, utime and stime are the 12th and 13th field.
        let fields = stat.rsplit_once(')').ok_or("an unknown form of /proc/PID/stat")?.1.split_whitespace();
        ticks += fields.skip(11).take(2).map(str::parse::<u64>).sum::<std::result::Result<u64, _>>()?;
    }
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// The resident memory of processes in KiB; a page that several of them map counts once.
pub(crate) fn memory_kib(pids: &[u32]) -> Result<f64> {
    let mut kib = 0;
    for pid in pids {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).ok_or("no Pss in smaps_rollup")?;
        kib += line.trim_end_matches("kB").trim().parse::<u64>()?;
    }
    Ok(kib as f64)
}

/// The load average of the last minute.
pub(crate) fn load_average() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|load| load.parse().ok()).unwrap_or(f64::NAN)
}

/// Processor and kernel.
pub(crate) fn machine() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split_once(": "));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{}, {cores} cores, Linux {}", model.map_or("unknown processor", |(_, model)| model), kernel.trim())
}
