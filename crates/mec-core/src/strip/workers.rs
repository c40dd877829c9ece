//! Dealing tasks to threads.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Deals the numbers below `tasks`, in order, to at most `threads` workers, each of which takes its
/// numbers from an iterator. A worker that comes too late is not started, so that it takes no memory.
pub(crate) fn for_each_worker(
    threads: usize,
    tasks: usize,
    work: impl Fn(&mut dyn Iterator<Item = usize>) + Sync,
) {
    let taken = AtomicUsize::new(0);
    let next = || Some(taken.fetch_add(1, Ordering::Relaxed)).filter(|&task| task < tasks);
    let start = || {
        if let Some(first) = next() {
            work(&mut std::iter::once(first).chain(std::iter::from_fn(next)));
        }
    };
    if threads.min(tasks) <= 1 {
        start();
    } else {
        rayon::in_place_scope(|scope| {
            for _ in 1..threads.min(tasks) {
                scope.spawn(|_| start());
            }
            start();
        });
    }
}

/// The task that is dealt as number `number`: threads work in ranges of their own.
///
/// Neighbouring strips share cache lines of the output. Two threads that write them at a time take
/// them from each other: m1 and cv7 then ran no faster on two threads than on one.
pub(crate) fn spread(number: usize, tasks: usize, threads: usize) -> usize {
    let (range, place) = (number % threads, number / threads);
    range * (tasks / threads) + range.min(tasks % threads) + place
}

/// Which of several pieces of work the task with number `number` belongs to, and its number there: the pieces
/// have `tasks` tasks each, one piece's behind the other's.
pub(crate) fn locate(tasks: impl Iterator<Item = usize>, mut number: usize) -> (usize, usize) {
    for (piece, tasks) in tasks.enumerate() {
        if number < tasks {
            return (piece, number);
        }
        number -= tasks;
    }
    unreachable!("no task has a number beyond the last")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_is_dealt_once() {
        for tasks in 1..40 {
            for threads in 1..7 {
                let mut dealt: Vec<_> = (0..tasks).map(|n| spread(n, tasks, threads)).collect();
                dealt.sort_unstable();
                assert!(dealt.into_iter().eq(0..tasks), "{tasks} tasks, {threads} threads");
            }
        }
    }
}
