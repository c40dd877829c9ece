//! The weight gradient, and the bias gradient with it: what its forms have in common.
//!
//! - `outer`: output channels in SIMD lanes, `dy` transposed;
//! - `dots`: positions in SIMD lanes, `dy` where it lies: for few input channels, and kernels of 1 x 1;
//! - [`winograd`](super::winograd): fewer multiplications.
//!
//! Each divides the result into blocks of input and output channels, and the positions into parts. Tasks
//! share no result but through their parts, which are added in order: the number of parts depends on the
//! problem alone, so the result does not depend on the number of threads.

pub(super) mod dots;
pub(super) mod outer;

use super::correlation::Correlation;
use super::helpers::awake;
use super::panel::Source;
use super::workers::for_each_worker_in_turns;
use crate::kernel::{Kernel, Transpose, Vector};
use crate::plan::Piece;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};
use std::thread;

/// The tensors of a weight gradient.
#[derive(Clone, Copy)]
pub(crate) struct Operands<T> {
    /// Input at index zero.
    pub x: *const T,
    /// Strides of image, channel, row, column.
    pub x_strides: [isize; 4],
    /// Gradient of the output at index zero.
    pub dy: *const T,
    /// Strides of image, channel, row, column.
    pub dy_strides: [isize; 4],
    /// Weight gradient, row-major.
    pub dw: *mut T,
    /// Bias gradient, or null.
    pub db: *mut T,
}

// SAFETY: the tensors are read only, or written at places no two tasks share at a time.
unsafe impl<T: Send + Sync> Send for Operands<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for Operands<T> {}

/// How the result is divided into tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Division {
    groups: usize,
    /// Input channels of a group, and of a block.
    channels: [usize; 2],
    /// Output channels of a group, and of a block.
    outputs: [usize; 2],
    /// Parts the positions are divided into.
    parts: usize,
}

/// A block of the result.
#[derive(Clone)]
pub(super) struct Block {
    pub group: usize,
    /// Input channels of the group.
    pub channels: Range<usize>,
    /// Output channels of the group.
    pub outputs: Range<usize>,
}

impl Block {
    /// The input channels, to be packed.
    pub fn source<T>(&self, c: &Correlation, o: &Operands<T>) -> Source<T> {
        let channel = self.group * c.channels + self.channels.start;
        Source {
            first: o.x.wrapping_offset(channel as isize * o.x_strides[1]),
            strides: c.strides(o.x_strides),
            channels: self.channels.len(),
        }
    }

    /// The first output channel, among those of all groups.
    pub fn output(&self, c: &Correlation) -> usize {
        self.group * c.outputs + self.outputs.start
    }

    /// Whether this block sums the bias gradient too.
    pub fn has_bias<T>(&self, o: &Operands<T>) -> bool {
        self.channels.start == 0 && !o.db.is_null()
    }

    /// Writes sums, `[channel, kernel element][output channel]` with rows `width` apart, and those of the bias
    /// where there are any, to the result, or adds them `onto` it.
    ///
    /// # Safety
    ///
    /// All the sums can be read. As [`Plain::run`]; no other task is adding to this block.
    pub unsafe fn add<T: Vector>(
        &self,
        kernel: &Kernel<T>,
        c: &Correlation,
        o: &Operands<T>,
        (sums, width): (*const T, usize),
        bias: Option<*const T>,
        onto: bool,
    ) {
        let output = self.output(c);
        // SAFETY: the caller vouches for both sides.
        unsafe {
            kernel.transpose(&Transpose {
                from: sums,
                from_row: width as isize,
                from_column: 1,
                rows: self.channels.len() * c.taps(),
                columns: self.outputs.len(),
                to: o.dw.add((output * c.channels + self.channels.start) * c.taps()),
                to_row: c.channels * c.taps(),
                onto,
                ahead: 0,
            });
            let Some(bias) = bias else { return };
            for i in 0..self.outputs.len() {
                let to = o.db.add(output + i);
                *to = if onto { *to + *bias.add(i) } else { *bias.add(i) };
            }
        }
    }
}

/// Tasks that keep a handful of threads busy evenly. A constant, so that results do not depend on
/// the number of threads.
const TASKS_WANTED: usize = 16;

impl Division {
    /// The most that [`Division::shared_bytes`] can be: only so few blocks come in parts.
    pub const MOST_SHARED_BYTES: usize = TASKS_WANTED * size_of::<usize>();

    /// Blocks of at most so many channels each way, in one part.
    pub fn new(c: &Correlation, channels: usize, outputs: usize) -> Self {
        let groups = c.groups;
        Self { groups, channels: [c.channels, channels], outputs: [c.outputs, outputs], parts: 1 }
    }

    /// The same in as many parts as make enough tasks, at most `most` and at least one: a power of two, for few tasks
    /// keep the usual numbers of threads busy evenly only so.
    pub fn in_parts(self, most: usize) -> Self {
        let parts = TASKS_WANTED.div_ceil(self.blocks()).min(most).max(1);
        Self { parts: 1 << parts.ilog2(), ..self }
    }

    /// Parts the positions are divided into.
    pub fn parts(&self) -> usize {
        self.parts
    }

    /// Whether threads may be left without work.
    pub fn has_few_tasks(&self) -> bool {
        self.tasks() < TASKS_WANTED / 2
    }

    /// Most input and output channels of a block.
    pub fn most(&self) -> [usize; 2] {
        [self.channels(), self.outputs()]
    }

    /// Most input channels of a block.
    pub fn channels(&self) -> usize {
        self.channels[1]
    }

    /// Most output channels of a block.
    pub fn outputs(&self) -> usize {
        self.outputs[1]
    }

    /// Blocks of the input channels of a group, and of its output channels.
    pub fn each_way(&self) -> [usize; 2] {
        [self.channels, self.outputs].map(|[all, most]| all.div_ceil(most))
    }

    /// Blocks of the result.
    pub fn blocks(&self) -> usize {
        let [channels, outputs] = self.each_way();
        self.groups * channels * outputs
    }

    /// Independent tasks.
    pub fn tasks(&self) -> usize {
        self.blocks() * self.parts
    }

    /// Bytes of the list of parts that are done: none where blocks have a single part.
    pub fn shared_bytes(&self) -> usize {
        if self.parts > 1 { self.blocks() * size_of::<usize>() } else { 0 }
    }

    fn block(&self, number: usize) -> Block {
        let [channel_blocks, output_blocks] = self.each_way();
        let rest = number / channel_blocks;
        let range =
            |index: usize, [all, most]: [usize; 2]| index * most..((index + 1) * most).min(all);
        Block {
            group: rest / output_blocks,
            channels: range(number % channel_blocks, self.channels),
            outputs: range(rest % output_blocks, self.outputs),
        }
    }

    /// The pieces of `all` that belong to `part`.
    pub fn part(&self, all: usize, part: usize) -> Range<usize> {
        part * all / self.parts..(part + 1) * all / self.parts
    }

    /// Runs all tasks on at most `threads` threads, each thread with memory of its
    /// own: `sum` for each part of each block, in any order, then `add` in the order of the parts.
    pub fn run<M>(
        &self,
        threads: usize,
        memory: impl Fn() -> M + Sync,
        sum: impl Fn(&mut M, &Block, usize) + Sync,
        add: impl Fn(&M, &Block, usize) + Sync,
    ) {
        let blocks = self.blocks();
        let turns = Turns::new(if self.parts > 1 { blocks } else { 0 });
        for_each_worker_in_turns(threads, self.tasks(), |numbers| {
            let mut memory = memory();
            for number in numbers {
                let (part, number) = (number / blocks, number % blocks);
                let block = self.block(number);
                sum(&mut memory, &block, part);
                turns.take(number, part, || add(&memory, &block, part));
            }
        });
    }
}

/// How many parts of each block have been added to the result.
struct Turns {
    done: Vec<AtomicUsize>,
    /// Held while one of them changes, for those that sleep until it does.
    changes: Mutex<()>,
    changed: Condvar,
}

impl Turns {
    /// For `blocks` of several parts each; none where they have one.
    fn new(blocks: usize) -> Self {
        let done = (0..blocks).map(|_| AtomicUsize::new(0)).collect();
        Self { done, changes: Mutex::new(()), changed: Condvar::new() }
    }

    /// Waits until all parts of `block` before `part` have been added, then runs `add`.
    ///
    /// Tasks are dealt part by part, so the one waited for is always running already.
    fn take(&self, block: usize, part: usize, add: impl FnOnce()) {
        let Some(done) = self.done.get(block) else { return add() };
        let unpoisoned = "no task panics while it holds the lock";
        let ready = || done.load(Ordering::Acquire) >= part;
        if !awake(ready, thread::yield_now) {
            let mut changes = self.changes.lock().expect(unpoisoned);
            while !ready() {
                changes = self.changed.wait(changes).expect(unpoisoned);
            }
        }
        add();
        let changes = self.changes.lock().expect(unpoisoned);
        done.store(part + 1, Ordering::Release);
        drop(changes);
        self.changed.notify_all();
    }
}

/// The plan of a weight gradient with as many multiplications as the sum has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plain {
    Outer(outer::Blocks),
    Dots(dots::Blocks),
}

impl Plain {
    /// Plans the weight gradient of forward correlation `c` for at most `limit` bytes in each thread; `None`
    /// if even the smallest blocks do not fit. `joined` says that each plane of `dy` lies in one piece.
    pub fn new<T: Vector>(
        c: &Correlation,
        kernel: &Kernel<T>,
        limit: usize,
        joined: bool,
    ) -> Option<Self> {
        if dots::applies(c) {
            dots::Blocks::new(&c.in_one_row(), kernel, limit, joined).map(Self::Dots)
        } else {
            outer::Blocks::new(c, kernel, limit).map(Self::Outer)
        }
    }

    /// Bytes of the smallest blocks that work for `c`, for each thread.
    pub fn smallest<T: Vector>(c: &Correlation, kernel: &Kernel<T>, joined: bool) -> usize {
        if dots::applies(c) {
            dots::Blocks::smallest(&c.in_one_row(), kernel, joined)
        } else {
            outer::Blocks::smallest::<T>(c, kernel.lanes)
        }
    }

    /// Bytes that [`Plain::run`] takes for each thread.
    pub fn worker_bytes<T>(&self) -> usize {
        match self {
            Self::Outer(blocks) => blocks.worker_bytes::<T>(),
            Self::Dots(blocks) => blocks.worker_bytes::<T>(),
        }
    }

    /// How the result is divided.
    pub fn division(&self) -> &Division {
        match self {
            Self::Outer(blocks) => &blocks.division,
            Self::Dots(blocks) => &blocks.division,
        }
    }

    /// What a reader of the plan sees of it.
    pub fn piece(&self, c: &Correlation) -> Piece {
        match self {
            Self::Outer(blocks) => blocks.piece(c),
            Self::Dots(blocks) => blocks.piece(&c.in_one_row()),
        }
    }

    /// Runs the plan on at most `threads` threads.
    ///
    /// # Safety
    ///
    /// The whole input and output gradient can be read through `operands`; the weight gradient and a
    /// bias gradient that is not null can be written. The problem has at least one position.
    pub unsafe fn run<T: Vector + Send + Sync>(
        &self,
        kernel: &Kernel<T>,
        c: &Correlation,
        operands: &Operands<T>,
        threads: usize,
    ) {
        // SAFETY: the caller vouches for all of it.
        unsafe {
            match self {
                Self::Outer(blocks) => outer::run(kernel, c, blocks, operands, threads),
                Self::Dots(blocks) => {
                    dots::run(kernel, &c.in_one_row(), blocks, operands, threads);
                }
            }
        }
    }
}

/// # Safety
///
/// `len` elements can be written.
pub(super) unsafe fn fill<T: Copy>(to: *mut T, len: usize, value: T) {
    for i in 0..len {
        // SAFETY: the caller vouches for the elements.
        unsafe { *to.add(i) = value };
    }
}
