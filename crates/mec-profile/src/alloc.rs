//! The counting allocator, and measuring with it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Bytes live now.
static CURRENT: AtomicUsize = AtomicUsize::new(0);
/// Most bytes live at once since the last [`measure`] began.
static PEAK: AtomicUsize = AtomicUsize::new(0);
/// Calls that returned new memory.
static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, with every call counted.
#[derive(Debug, Clone, Copy, Default)]
pub struct PeakAlloc;

impl PeakAlloc {
    /// Bytes that are live now.
    pub fn current() -> usize {
        CURRENT.load(Relaxed)
    }

    /// Most bytes that were live at once since the program, or the latest [`measure`], began.
    pub fn peak() -> usize {
        PEAK.load(Relaxed)
    }

    /// Begins [`PeakAlloc::peak`] anew, from what is live now.
    pub fn reset_peak() {
        PEAK.store(CURRENT.load(Relaxed), Relaxed);
    }

    /// Whether this is the program's global allocator.
    pub fn is_installed() -> bool {
        let before = Self::allocations();
        drop(black_box(Box::new(0u8)));
        Self::allocations() > before
    }

    /// Allocations and reallocations since the program began.
    pub fn allocations() -> usize {
        ALLOCATIONS.load(Relaxed)
    }
}

fn add(bytes: usize) {
    let now = CURRENT.fetch_add(bytes, Relaxed) + bytes;
    PEAK.fetch_max(now, Relaxed);
    ALLOCATIONS.fetch_add(1, Relaxed);
}

fn remove(bytes: usize) {
    CURRENT.fetch_sub(bytes, Relaxed);
}

// SAFETY: every call goes to `System`, which keeps the contract; counting touches atomics only.
unsafe impl GlobalAlloc for PeakAlloc {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps `alloc`'s contract.
        let pointer = unsafe { System.alloc(layout) };
        if !pointer.is_null() {
            add(layout.size());
        }
        pointer
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps `alloc_zeroed`'s contract.
        let pointer = unsafe { System.alloc_zeroed(layout) };
        if !pointer.is_null() {
            add(layout.size());
        }
        pointer
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `System` by one of these methods, with this layout.
        unsafe { System.dealloc(pointer, layout) };
        remove(layout.size());
    }

    /// Counts the old and the new block as live together: whether a block can grow in place is the
    /// system's luck of the day, and a promise must not rest on it.
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: `pointer` came from `System` by one of these methods, with this layout, and the
        // caller keeps `realloc`'s contract for `new_size`.
        let new = unsafe { System.realloc(pointer, layout, new_size) };
        if !new.is_null() {
            add(new_size);
            remove(layout.size());
        }
        new
    }
}

/// What [`measure`] saw, in bytes beyond those that were live when it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryUse {
    /// Most that was live at once.
    pub peak: usize,
    /// What is still live at the end, the result included; negative if more was freed than taken.
    pub retained: isize,
    /// Number of allocations and reallocations.
    pub allocations: usize,
}

/// Runs `f` and reports the memory that the whole process took meanwhile.
///
/// `peak` contains what `f` returns: take the size of the result off to get what was held beside it.
/// Measurements do not nest: an inner one begins [`PeakAlloc::peak`] anew.
///
/// # Panics
///
/// If [`PeakAlloc`] is not the program's global allocator: nothing would be counted.
pub fn measure<R>(f: impl FnOnce() -> R) -> (R, MemoryUse) {
    assert!(
        PeakAlloc::is_installed(),
        "nothing is counted: make `mec_profile::PeakAlloc` the program's #[global_allocator]"
    );
    let start = PeakAlloc::current();
    let allocations = PeakAlloc::allocations();
    PeakAlloc::reset_peak();
    let result = f();
    let memory = MemoryUse {
        peak: PeakAlloc::peak() - start,
        retained: PeakAlloc::current() as isize - start as isize,
        allocations: PeakAlloc::allocations() - allocations,
    };
    (result, memory)
}

#[cfg(test)]
mod tests {
    #[test]
    #[should_panic(expected = "global_allocator")]
    fn a_program_without_the_allocator_is_told() {
        super::measure(|| ());
    }
}
