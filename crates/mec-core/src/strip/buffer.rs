//! Memory the engine writes: each thread's workspace, and fresh results.

use crate::kernel::LINE;
use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// Uninitialised memory for `len` elements, aligned to a cache line.
pub(crate) struct Workspace<T> {
    start: NonNull<T>,
    layout: Layout,
}

impl<T: Copy> Workspace<T> {
    /// Allocates `len` elements, at least one.
    pub fn new(len: usize) -> Self {
        let layout = Layout::array::<T>(len.max(1))
            .and_then(|l| l.align_to(LINE))
            .expect("plans keep workspaces far below the address space");
        // SAFETY: the layout has at least one element.
        let start = unsafe { alloc(layout) };
        match NonNull::new(start.cast()) {
            Some(start) => Self { start, layout },
            None => handle_alloc_error(layout),
        }
    }

    /// The first element.
    pub fn as_ptr(&self) -> *mut T {
        self.start.as_ptr()
    }
}

// SAFETY: it gives its address away and touches nothing behind it.
unsafe impl<T: Send + Sync> Sync for Workspace<T> {}

impl<T> Drop for Workspace<T> {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.start.as_ptr().cast(), self.layout) }
    }
}

/// A result under construction: allocated but not filled, written by many threads.
pub(crate) struct Fresh<T> {
    data: Vec<T>,
    len: usize,
}

impl<T: Copy> Fresh<T> {
    /// Room for `len` elements, in huge pages where the system gives them.
    pub fn new(len: usize) -> Self {
        let data = Vec::with_capacity(len);
        advise_huge(data.as_ptr() as usize, len * size_of::<T>());
        Self { data, len }
    }

    /// The first element.
    pub fn as_mut_ptr(&mut self) -> *mut T {
        self.data.as_mut_ptr()
    }

    /// The finished result.
    ///
    /// # Safety
    ///
    /// Every element has been written.
    pub unsafe fn finish(mut self) -> Vec<T> {
        // SAFETY: the capacity is at least `len`, and the caller has filled it.
        unsafe { self.data.set_len(self.len) };
        self.data
    }
}

/// From this size on an allocator maps fresh pages, whose faults (one for every 4 KiB) then cost
/// more than the convolution of a layer with few input channels.
const HUGE_FROM: usize = 4 << 20;

#[cfg(target_os = "linux")]
fn advise_huge(start: usize, bytes: usize) {
    use rustix::mm::{Advice, madvise};
    const PAGE: usize = 4096;
    if bytes < HUGE_FROM {
        return;
    }
    let (first, end) = (start.next_multiple_of(PAGE), (start + bytes) / PAGE * PAGE);
    // SAFETY: advice on whole pages inside an allocation that we own; its contents are unchanged,
    // and an error leaves things as they were.
    let _ = unsafe { madvise(first as *mut _, end - first, Advice::LinuxHugepage) };
}

#[cfg(not(target_os = "linux"))]
fn advise_huge(_: usize, _: usize) {}
