//! What is asked of the machine and of the terminal.

use std::fs;
use std::panic::{self, AssertUnwindSafe};

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

/// Runs what may panic, as Burn's operations do where they fail, and makes one sentence of it.
pub fn attempt<T>(what: &str, run: impl FnOnce() -> T) -> Result<T, Failure> {
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| ()));
    let result = panic::catch_unwind(AssertUnwindSafe(run));
    panic::set_hook(hook);
    result.map_err(|payload| {
        let reason = payload
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| payload.downcast_ref::<&str>().copied())
            .unwrap_or("for an unknown reason");
        let reason: Vec<_> = reason.split_whitespace().collect();
        format!("{what} failed: {}", reason.join(" ")).into()
    })
}
