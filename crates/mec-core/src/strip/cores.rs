//! Which cores threads run on. Nothing is known or done where the system is not Linux.

#[cfg(target_os = "linux")]
pub(crate) use linux::{Thread, current};
#[cfg(not(target_os = "linux"))]
pub(crate) use other::{Thread, current};

#[cfg(target_os = "linux")]
mod linux {
    use rustix::thread::{CpuSet, Pid, gettid, sched_getaffinity, sched_getcpu, sched_setaffinity};
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// The core that the calling thread is on.
    pub(crate) fn current() -> usize {
        sched_getcpu()
    }

    /// A thread, the cores it may run on, and the one of them it was last kept off.
    pub(crate) struct Thread {
        thread: Pid,
        cores: CpuSet,
        avoids: AtomicUsize,
    }

    impl Thread {
        /// The calling thread.
        pub(crate) fn current() -> Self {
            let cores = sched_getaffinity(None).unwrap_or_default();
            Self { thread: gettid(), cores, avoids: AtomicUsize::new(usize::MAX) }
        }

        /// Keeps the thread off `core` from now on, and off no other; does nothing where it has no other. Never panics:
        /// callers have jobs out.
        pub(crate) fn avoid(&self, core: usize) {
            if core < CpuSet::MAX_CPU && self.avoids.swap(core, Ordering::Relaxed) != core {
                let mut cores = self.cores;
                cores.unset(core);
                // An error, as from an empty set, leaves the thread where it was.
                let _ = sched_setaffinity(Some(self.thread), &cores);
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod other {
    pub(crate) fn current() -> usize {
        0
    }

    pub(crate) struct Thread;

    impl Thread {
        pub(crate) fn current() -> Self {
            Self
        }

        pub(crate) fn avoid(&self, _core: usize) {}
    }
}
