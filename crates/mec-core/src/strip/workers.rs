//! Dealing tasks to threads.

use super::helpers;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Deals the numbers below `tasks` to at most `threads` workers, each of which takes its numbers from an iterator: a range
/// of its own in order, and then what is left of the others'. A worker that comes too late is not started, so that it
/// takes no memory.
///
/// Neighbouring tasks share cache lines and pages of the output, and a thread asks ahead for what its next task meets.
/// Two threads that take neighbours at a time take those lines from each other: m1 and cv7 then ran no faster on two
/// threads than on one, dw1 half as fast. And what a worker keeps for its next task, neighbours have in common: dealt
/// in turns, the ranges were swapped whenever one worker was late, and cv1 transformed its weights again for each panel.
pub(crate) fn for_each_worker(
    threads: usize,
    tasks: usize,
    work: impl Fn(&mut dyn Iterator<Item = usize>) + Sync,
) {
    let ranges = threads.min(tasks);
    let first = |range: usize| range * tasks / ranges;
    let taken: Vec<_> = (0..ranges).map(|range| AtomicUsize::new(first(range))).collect();
    let take = |range: usize| {
        Some(taken[range].fetch_add(1, Ordering::Relaxed)).filter(|&task| task < first(range + 1))
    };
    let next = |worker: usize| (0..ranges).find_map(|n| take((worker + n) % ranges));
    start(ranges, next, work);
}

/// The same, but that all take the numbers in order: for tasks that wait for those before them.
pub(crate) fn for_each_worker_in_turns(
    threads: usize,
    tasks: usize,
    work: impl Fn(&mut dyn Iterator<Item = usize>) + Sync,
) {
    let taken = AtomicUsize::new(0);
    let next = |_| Some(taken.fetch_add(1, Ordering::Relaxed)).filter(|&task| task < tasks);
    start(threads.min(tasks), next, work);
}

/// Starts up to so many workers: threads of the pool that the caller is a worker of, or helpers. `next` gives a worker, by
/// its number, its next task.
fn start(
    workers: usize,
    next: impl Fn(usize) -> Option<usize> + Sync,
    work: impl Fn(&mut dyn Iterator<Item = usize>) + Sync,
) {
    let start = |worker| {
        let mut tasks = std::iter::from_fn(|| next(worker));
        if let Some(first) = tasks.next() {
            work(&mut std::iter::once(first).chain(tasks));
        }
    };
    let others = workers.saturating_sub(1);
    if others == 0 {
        start(0);
    } else if rayon::current_thread_index().is_none() {
        helpers::run(others, &start);
    } else {
        let start = &start;
        rayon::in_place_scope(|scope| {
            for worker in 1..workers {
                scope.spawn(move |_| start(worker));
            }
            start(0);
        });
    }
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
    use std::sync::Mutex;

    #[test]
    fn every_task_is_dealt_once() {
        for tasks in 0..40 {
            for threads in 1..7 {
                let dealt = Mutex::new(Vec::new());
                for_each_worker(threads, tasks, |numbers| {
                    for number in numbers {
                        dealt.lock().unwrap().push(number);
                    }
                });
                let mut dealt = dealt.into_inner().unwrap();
                dealt.sort_unstable();
                assert!(dealt.into_iter().eq(0..tasks), "{tasks} tasks, {threads} threads");
            }
        }
    }
}
