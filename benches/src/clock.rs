//! Time by the wall and by the processor.

#[cfg(unix)]
use rustix::time::{ClockId, clock_gettime};
use std::time::{Duration, Instant};

/// How long something took.
#[derive(Debug, Clone, Copy)]
pub struct Took {
    /// By the wall.
    pub wall: Duration,
    /// On the processor, summed over the threads of this process. Being preempted does not count, so
    /// that it holds on a busy machine; a thread that spins while it waits for work does.
    pub cpu: Duration,
}

/// Runs `f` and says how long it took; its result is dropped by the caller, off the clock.
pub fn timed<R>(f: impl FnOnce() -> R) -> (R, Took) {
    let (wall, cpu) = (Instant::now(), process_cpu());
    let result = f();
    // In the reverse order, so that the wall holds no more than `f` and one reading of the other.
    let cpu = process_cpu().saturating_sub(cpu);
    (result, Took { wall: wall.elapsed(), cpu })
}

/// Processor time of this process so far.
pub fn process_cpu() -> Duration {
    #[cfg(unix)]
    return read(ClockId::ProcessCPUTime);
    #[cfg(not(unix))]
    return since_start();
}

/// Processor time of this thread so far.
pub fn thread_cpu() -> Duration {
    #[cfg(unix)]
    return read(ClockId::ThreadCPUTime);
    #[cfg(not(unix))]
    return since_start();
}

#[cfg(unix)]
fn read(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The wall stands in where the processor's clock is not to be had.
#[cfg(not(unix))]
fn since_start() -> Duration {
    static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    START.elapsed()
}

/// Time that this process's threads have spent ready to run but not running, so far: others had the
/// processors. Zero where the system does not tell (it is Linux's schedstat).
pub fn waited() -> Duration {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return Duration::ZERO };
    let waited = |task: std::io::Result<std::fs::DirEntry>| -> Option<u64> {
        let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        text.split_whitespace().nth(1)?.parse().ok()
    };
    Duration::from_nanos(tasks.filter_map(waited).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_takes_processor_time_and_sleep_does_not() {
        let (_, asleep) = timed(|| std::thread::sleep(Duration::from_millis(30)));
        assert!(asleep.wall >= Duration::from_millis(30));
        let before = thread_cpu();
        let (_, busy) = timed(|| {
            while thread_cpu() - before < Duration::from_millis(20) {
                std::hint::black_box(0);
            }
        });
        assert!(busy.cpu >= Duration::from_millis(19) && busy.wall >= Duration::from_millis(19));
    }
}
