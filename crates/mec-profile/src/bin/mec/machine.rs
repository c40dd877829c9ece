//! What is asked of the machine and of the terminal.

use std::fs;

use indicatif::{ProgressBar, ProgressStyle};

use crate::Failure;

/// Makes the pool that all kernels use one of this many threads.
pub fn set_threads(threads: Option<usize>) -> Result<(), Failure> {
    match threads {
        None => Ok(()),
        Some(threads) => Ok(rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?),
    }
}

/// Bytes that a program can still take, where the system says so.
pub fn free_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

/// A bar on standard error, where that is a terminal.
pub fn progress(steps: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg} ({elapsed})");
    ProgressBar::new(steps).with_style(style.expect("a template that is right"))
}
