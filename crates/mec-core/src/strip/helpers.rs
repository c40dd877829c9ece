//! The threads that help a caller from outside any rayon pool.
//!
//! Rayon's workers sleep some microseconds after a job, so that each call woke one through the system: 40 us on a virtual
//! machine, a tenth of a 3 x 3 layer at batch 1. That one woke another, which found nothing to do and took turns with it.
//! And a system that packs threads on few cores to let the others sleep left it on the caller's: calls below 1 ms then took
//! as long as on one thread. So there are helpers, as many as rayon's threads but one, which stay awake for a network's
//! next layer and keep off the caller's core. Two cores, Sapphire Rapids, batch 1: 1.05 to 1.15 where each thread had a core
//! of its own before, 1.7 to 2 where the system packs them.

use super::cores;
use std::any::Any;
use std::hint;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// How long one that waits stays awake: a caller for its helpers, a helper for the next call, a sum for its turn. Calls of
/// 0.4 ms one behind the other take 1.15 times as long with none, 1.04 with 20 us, 1.01 with 50 us, and no less with 1 ms.
const AWAKE: Duration = Duration::from_micros(200);

/// How often one that waits looks between looks at the clock: 2 us or so.
const LOOKS: u32 = 64;

/// Runs `work` on this thread and, at the same time, on up to `others` helpers that no other caller has; returns when all
/// are done. Each is given a number, this thread 0, and has the same one in the next call. A helper that has not begun when
/// this thread is done does not begin.
///
/// # Panics
///
/// Where `work` does, on whichever thread.
pub(crate) fn run(others: usize, work: &(dyn Fn(usize) + Sync)) {
    run_on(&HELPERS, others, work);
}

/// One fewer than the threads of rayon's global pool, or what the system grants.
static HELPERS: LazyLock<Vec<Helper>> =
    LazyLock::new(|| (1..rayon::current_num_threads()).map_while(Helper::start).collect());

fn run_on(helpers: &[Helper], others: usize, work: &(dyn Fn(usize) + Sync)) {
    let taken: Vec<_> = helpers.iter().filter(|helper| helper.post.take()).take(others).collect();
    let begun = AtomicUsize::new(0);
    let panic: Mutex<Option<Box<dyn Any + Send>>> = Mutex::new(None);
    let job = |number| {
        // Waking takes long: the caller wakes two, and each that begins two more.
        let wakes = 2 * begun.fetch_add(1, Ordering::Relaxed);
        taken.iter().skip(wakes).take(2).for_each(|helper| helper.thread.unpark());
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| work(number))) {
            *lock(&panic) = Some(payload);
        }
    };
    let job: Job = &job;
    let core = cores::current();
    taken.iter().zip(1..).for_each(|(helper, number)| helper.post.give(&job, number, core));
    job(0);
    taken.iter().for_each(|helper| helper.post.end());
    if let Some(payload) = lock(&panic).take() {
        resume_unwind(payload);
    }
}

/// What a thread does with the number it is given. It does not panic.
type Job<'a> = &'a (dyn Fn(usize) + Sync);

struct Helper {
    thread: Thread,
    post: Arc<Post>,
}

impl Helper {
    fn start(number: usize) -> Option<Self> {
        let post = Arc::new(Post::default());
        let theirs = Arc::clone(&post);
        let thread = thread::Builder::new().name(format!("mec-{number}"));
        let handle = thread.spawn(move || theirs.serve()).ok()?;
        Some(Self { thread: handle.thread().clone(), post })
    }
}

/// Where a caller leaves a helper its job.
#[derive(Default)]
struct Post {
    state: AtomicU8,
    /// A [`Job`], there while the state is `GIVEN` or `AT_WORK`.
    job: AtomicPtr<()>,
    number: AtomicUsize,
    caller: Mutex<Option<Thread>>,
    /// The helper, once it runs.
    helper: OnceLock<cores::Thread>,
}

const FREE: u8 = 0;
/// A caller has the helper, and no job is left or it is done.
const TAKEN: u8 = 1;
const GIVEN: u8 = 2;
const AT_WORK: u8 = 3;

impl Post {
    /// Whether the helper is the caller's from now on.
    fn take(&self) -> bool {
        self.turn(FREE, TAKEN)
    }

    /// Leaves a job, which must live until [`Post::end`] has returned, of a caller on `core`.
    fn give(&self, job: &Job, number: usize, core: usize) {
        self.keep_off(core);
        *lock(&self.caller) = Some(thread::current());
        self.job.store(ptr::from_ref(job).cast_mut().cast(), Ordering::Relaxed);
        self.number.store(number, Ordering::Relaxed);
        self.state.store(GIVEN, Ordering::Release);
    }

    /// Calls the job off or, where it has begun, waits for it; the helper is free then.
    fn end(&self) {
        if !self.turn(GIVEN, TAKEN) {
            // The system may have put this thread where the helper is.
            self.wait_for(TAKEN, || self.keep_off(cores::current()));
        }
        self.state.store(FREE, Ordering::Release);
    }

    fn keep_off(&self, core: usize) {
        self.helper.get().inspect(|helper| helper.avoid(core));
    }

    fn turn(&self, from: u8, to: u8) -> bool {
        self.state.compare_exchange(from, to, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// The helper's life.
    fn serve(&self) -> ! {
        self.helper.get_or_init(cores::Thread::current);
        loop {
            self.wait_for(GIVEN, thread::yield_now);
            if !self.turn(GIVEN, AT_WORK) {
                continue;
            }
            let caller = lock(&self.caller).take();
            // SAFETY: the state was `GIVEN`, so `give` has left a job, and its caller is not past `end`, where it waits
            // while the state is `AT_WORK`.
            let job: Job = unsafe { *self.job.load(Ordering::Relaxed).cast() };
            job(self.number.load(Ordering::Relaxed));
            self.state.store(TAKEN, Ordering::Release);
            caller.inspect(Thread::unpark);
        }
    }

    /// Waits for `state`, awake at first and then asleep; see [`awake`].
    fn wait_for(&self, state: u8, meanwhile: impl Fn()) {
        let ready = || self.state.load(Ordering::Acquire) == state;
        if !awake(ready, meanwhile) {
            while !ready() {
                thread::park();
            }
        }
    }
}

/// Looks whether something is `ready` for as long as one that waits stays awake; whether it was. `meanwhile` is done with each
/// look at the clock.
pub(crate) fn awake(ready: impl Fn() -> bool, meanwhile: impl Fn()) -> bool {
    let since = Instant::now();
    for looks in 1.. {
        if ready() {
            return true;
        }
        if looks % LOOKS != 0 {
            hint::spin_loop();
        } else if since.elapsed() < AWAKE {
            meanwhile();
        } else {
            break;
        }
    }
    false
}

/// No panic leaves a mutex of these in a state that another thread could not go on from.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::sync::Barrier;

    /// As if rayon had four threads, whatever this machine has.
    fn three() -> Vec<Helper> {
        (1..4).map_while(Helper::start).collect()
    }

    #[test]
    fn all_take_part_each_with_its_number() {
        let helpers = three();
        let mut seen = HashSet::new();
        for call in 0..50 {
            // Nobody goes on before everybody is here.
            let met = Barrier::new(4);
            let numbers = Mutex::new(Vec::new());
            run_on(&helpers, 3, &|number| {
                met.wait();
                numbers.lock().unwrap().push((number, thread::current().id()));
            });
            let mut numbers = numbers.into_inner().unwrap();
            numbers.sort_by_key(|(number, _)| *number);
            assert!(numbers.iter().map(|(number, _)| *number).eq(0..4));
            assert_eq!(numbers[0].1, thread::current().id());
            seen.extend(numbers);
            if call % 10 == 0 {
                // Long enough for all to fall asleep.
                thread::sleep(4 * AWAKE);
            }
        }
        assert_eq!(seen.len(), 4);
    }

    #[test]
    fn a_caller_has_only_helpers_that_nobody_has() {
        let helpers = three();
        let most = AtomicUsize::new(0);
        run_on(&helpers, 2, &|_| {
            let inner = AtomicUsize::new(0);
            run_on(&helpers, 3, &|number| {
                inner.fetch_max(number, Ordering::Relaxed);
            });
            most.fetch_max(inner.into_inner(), Ordering::Relaxed);
        });
        assert!(most.into_inner() <= 1);
        run_on(&[], 3, &|number| assert_eq!(number, 0));
    }

    #[test]
    fn a_panic_comes_to_the_caller_and_the_helpers_live() {
        let helpers = three();
        for panics in [0, 2] {
            let met = Barrier::new(4);
            let caught = catch_unwind(|| {
                run_on(&helpers, 3, &|number| {
                    met.wait();
                    assert_ne!(number, panics, "on purpose");
                });
            });
            assert!(caught.unwrap_err().downcast::<String>().unwrap().contains("on purpose"));
        }
        let met = Barrier::new(4);
        run_on(&helpers, 3, &|_| {
            met.wait();
        });
    }

    #[test]
    fn callers_at_the_same_time() {
        let helpers = three();
        let done = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        let tasks = AtomicUsize::new(0);
                        run_on(&helpers, 3, &|_| {
                            while tasks.fetch_add(1, Ordering::Relaxed) < 20 {
                                done.fetch_add(1, Ordering::Relaxed);
                            }
                        });
                        assert!(tasks.into_inner() >= 20);
                    }
                });
            }
        });
        assert_eq!(done.into_inner(), 4 * 500 * 20);
    }
}
