//! The weight gradient, and the bias gradient with it.
//!
//! ```text
//! for task in (part of the strips, group, block of input channels, block of output channels)
//!   for strip of the part, rows of a panel
//!     pack the panel of x, as the forward pass does     [kernel element][row][column]
//!     transpose the same columns of dy                  [row][column][output channel]
//!     for tile of output channels, tile of kernel elements
//!       micro-kernel: sums[kernel element][output channel] += panel * dy over rows and columns
//!   add the sums, transposed, to the result
//! ```
//!
//! Tasks share no result but through their parts, which are added in order: the number of parts
//! depends on the problem alone, so the result does not depend on the number of threads. The bias
//! gradient is the sum for one more kernel element, whose panel row holds ones.

use super::blocks::Blocks;
use super::buffer::Workspace;
use super::correlation::Correlation;
use super::panel::{self, Source, Strip};
use super::workers::for_each_worker;
use crate::kernel::{Kernel, Outer, STEPS, Stretch, Transpose, Vector};
use std::sync::{Condvar, Mutex};

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

/// How many parts of each block have been added to the result.
pub(super) struct Turns {
    done: Mutex<Vec<usize>>,
    changed: Condvar,
}

impl Turns {
    /// For `blocks` of several parts each; none where they have one.
    pub fn new(blocks: usize) -> Self {
        Self { done: Mutex::new(vec![0; blocks]), changed: Condvar::new() }
    }

    /// Waits until all parts of `block` before `part` have been added, then runs `add`.
    ///
    /// Tasks are dealt part by part, so the one waited for is always running already.
    pub fn take(&self, block: usize, part: usize, add: impl FnOnce()) {
        let unpoisoned = "no task panics while it holds the lock";
        let mut done = self.done.lock().expect(unpoisoned);
        if done.is_empty() {
            drop(done);
            return add();
        }
        while done[block] < part {
            done = self.changed.wait(done).expect(unpoisoned);
        }
        drop(done);
        add();
        self.done.lock().expect(unpoisoned)[block] += 1;
        self.changed.notify_all();
    }
}

/// Runs the plan on at most `threads` threads of the current rayon pool.
///
/// # Safety
///
/// The whole input and output gradient can be read through `operands`; the weight gradient and a
/// bias gradient that is not null can be written. The problem has at least one position.
pub(crate) unsafe fn run<T: Vector + Send + Sync>(
    kernel: &Kernel<T>,
    c: &Correlation,
    plan: &Blocks,
    operands: &Operands<T>,
    threads: usize,
) {
    let blocks = plan.blocks(c);
    let waiting = if plan.parts > 1 { blocks } else { 0 };
    let turns = Turns::new(waiting);
    for_each_worker(threads, blocks * plan.parts, |numbers| {
        let memory = Workspace::new(plan.workspace_len());
        let mut places = Places {
            stretches: Vec::with_capacity(plan.stretches),
            taps: Vec::with_capacity(plan.taps),
        };
        for number in numbers {
            let (part, block) = (number / blocks, number % blocks);
            let worker = Worker::new(kernel, c, plan, operands, &memory, block);
            // SAFETY: the caller vouches for the tensors; the turns keep parts apart.
            unsafe {
                worker.sum(part, &mut places);
                turns.take(block, part, || worker.add(part > 0));
            }
        }
    });
}

/// Where the micro-kernel finds its operands in a panel.
struct Places {
    /// The columns of each row.
    stretches: Vec<Stretch>,
    /// The kernel elements, from a channel's start.
    taps: Vec<usize>,
}

/// One task: a block of the result and the memory to sum it in.
struct Worker<'a, T: Copy + 'static> {
    kernel: &'a Kernel<T>,
    c: &'a Correlation,
    plan: &'a Blocks,
    operands: &'a Operands<T>,
    panel: *mut T,
    ones: *mut T,
    dy: *mut T,
    sums: *mut T,
    group: usize,
    /// First input channel and how many.
    channels: (usize, usize),
    /// First output channel and how many.
    outputs: (usize, usize),
    /// Whether this block sums the bias gradient too.
    bias: bool,
}

impl<'a, T: Vector> Worker<'a, T> {
    fn new(
        kernel: &'a Kernel<T>,
        c: &'a Correlation,
        plan: &'a Blocks,
        operands: &'a Operands<T>,
        memory: &Workspace<T>,
        block: usize,
    ) -> Self {
        let channel_blocks = c.channels.div_ceil(plan.channels);
        let output_blocks = c.outputs.div_ceil(plan.outputs);
        let channel = block % channel_blocks * plan.channels;
        let rest = block / channel_blocks;
        let output = rest % output_blocks * plan.outputs;
        let panel = memory.as_ptr();
        let ones = panel.wrapping_add(plan.panel_len);
        let dy = ones.wrapping_add(plan.ones_len);
        Self {
            kernel,
            c,
            plan,
            operands,
            panel,
            ones,
            dy,
            sums: dy.wrapping_add(plan.dy_len),
            group: rest / output_blocks,
            channels: (channel, plan.channels.min(c.channels - channel)),
            outputs: (output, plan.outputs.min(c.outputs - output)),
            bias: channel == 0 && !operands.db.is_null(),
        }
    }

    /// Kernel elements this block sums, the bias as one more.
    fn steps(&self) -> usize {
        self.channels.1 * self.c.taps() + usize::from(self.bias)
    }

    /// Tiles of output channels: first register and registers.
    fn tiles(&self) -> impl Iterator<Item = (usize, usize)> {
        let most = self.kernel.outer_vectors;
        let registers = self.outputs.1.div_ceil(self.kernel.lanes);
        (0..registers).step_by(most).map(move |first| (first, most.min(registers - first)))
    }

    /// Sums one part of the strips.
    ///
    /// # Safety
    ///
    /// As [`run`].
    unsafe fn sum(&self, part: usize, places: &mut Places) {
        let plan = self.plan;
        // SAFETY: the plan made room for each piece; the caller vouches for the tensors.
        unsafe {
            // Lanes without a channel are multiplied too; what was left there could be slow.
            fill(self.dy, plan.dy_len, T::ZERO);
            fill(self.ones, plan.ones_len, T::ONE);
            let strips = plan.columns.strips;
            let mut onto = false;
            for strip in part * strips / plan.parts..(part + 1) * strips / plan.parts {
                let strip = Strip::new(self.c, &plan.columns, 1, strip);
                for row in (0..plan.columns.band_rows).step_by(plan.rows) {
                    let rows = plan.rows.min(plan.columns.band_rows - row);
                    self.find(&strip, rows, places);
                    self.pack(&strip, row, rows);
                    self.multiply(&strip, rows, places, onto);
                    onto = true;
                }
            }
        }
    }

    /// Where columns and kernel elements lie in the panel: gaps between rows have no `dy`.
    fn find(&self, strip: &Strip, rows: usize, Places { stretches, taps }: &mut Places) {
        let c = self.c;
        let row_len = c.height.step / c.height.unit() * strip.line_len;
        let (across, phase) = (c.width.taps, &c.phases()[0]);
        taps.clear();
        taps.extend((0..c.taps()).map(|tap| strip.tap(c, phase, tap / across, tap % across)));
        stretches.clear();
        for row in 0..rows {
            for run in strip.runs().iter().filter(|run| run.columns > 0) {
                let panel = row * row_len + run.lane;
                stretches.push(Stretch { panel, columns: run.columns });
            }
        }
    }

    /// Packs the panel of `x` and transposes the same columns of `dy`.
    ///
    /// # Safety
    ///
    /// As [`run`].
    unsafe fn pack(&self, strip: &Strip, row: usize, rows: usize) {
        let (c, o, lanes) = (self.c, self.operands, self.kernel.lanes);
        let channel = self.group * c.channels + self.channels.0;
        let source = Source {
            first: o.x.wrapping_offset(channel as isize * o.x_strides[1]),
            strides: c.strides(o.x_strides),
            channels: self.channels.1,
        };
        let [image, channel, line, column] = c.strides(o.dy_strides);
        // SAFETY: the caller vouches for the tensors; the plan made room.
        unsafe {
            panel::pack(self.kernel, c, strip, (row, rows), &source, self.panel);
            for (first, registers) in self.tiles() {
                let to = self.tile(first, strip, rows);
                let output = self.outputs.0 + first * lanes;
                let outputs = (registers * lanes).min(self.outputs.1 - first * lanes);
                let mut position = 0;
                for row_in_panel in 0..rows {
                    for run in strip.runs() {
                        let offset = run.image as isize * image
                            + (self.group * c.outputs + output) as isize * channel
                            + (run.row + row + row_in_panel) as isize * line
                            + run.x as isize * column;
                        self.kernel.transpose(&Transpose {
                            from: o.dy.wrapping_offset(offset),
                            from_row: channel,
                            from_column: column,
                            rows: outputs,
                            columns: run.columns,
                            to: to.add(position * registers * lanes),
                            to_row: registers * lanes,
                            onto: false,
                            // The next row, or two lines: those of so many channels are more than a
                            // CPU follows by itself (cv7 took 1.25 times as long with two lines).
                            ahead: line.max(32),
                        });
                        position += run.columns;
                    }
                }
            }
        }
    }

    /// Where the tile that starts at register `first` has its columns of `dy`.
    fn tile(&self, first: usize, strip: &Strip, rows: usize) -> *mut T {
        self.dy.wrapping_add(first * self.kernel.lanes * rows * strip.width)
    }

    /// Adds the packed panel times the transposed `dy` to the sums.
    ///
    /// # Safety
    ///
    /// As [`run`], after [`Worker::pack`].
    unsafe fn multiply(&self, strip: &Strip, rows: usize, places: &Places, onto: bool) {
        let lanes = self.kernel.lanes;
        let channel_len = self.c.height.panel_rows(rows) * strip.line_len;
        let steps = self.steps();
        for (first, registers) in self.tiles() {
            // Where each kernel element (channel, row, column) has its first column in the panel: the
            // bias last, and again in the places of those missing.
            let (mut channel, mut tap) = (0, 0);
            let mut start = || {
                if channel == self.channels.1 {
                    return if self.bias { self.ones } else { self.panel };
                }
                let at = self.panel.wrapping_add(channel * channel_len + places.taps[tap]);
                tap += 1;
                if tap == places.taps.len() {
                    (channel, tap) = (channel + 1, 0);
                }
                at
            };
            for step in (0..steps).step_by(STEPS) {
                let outer = Outer {
                    panel: std::array::from_fn(|_| start().cast_const()),
                    stretches: &places.stretches,
                    dy: self.tile(first, strip, rows),
                    out: self.sums.wrapping_add(step * self.plan.outputs + first * lanes),
                    out_step: self.plan.outputs,
                    steps: STEPS.min(steps - step),
                    onto,
                };
                // SAFETY: panel, ones, `dy` and sums have room for what the plan says.
                unsafe { self.kernel.outer(registers, &outer) };
            }
        }
    }

    /// Writes the sums to the result, or adds them.
    ///
    /// # Safety
    ///
    /// As [`run`], after [`Worker::sum`]; no other task is adding to this block.
    unsafe fn add(&self, onto: bool) {
        let (c, o) = (self.c, self.operands);
        let output = self.group * c.outputs + self.outputs.0;
        let elements = self.channels.1 * c.taps();
        // SAFETY: the caller vouches for the result.
        unsafe {
            self.kernel.transpose(&Transpose {
                from: self.sums,
                from_row: self.plan.outputs as isize,
                from_column: 1,
                rows: elements,
                columns: self.outputs.1,
                to: o.dw.add((output * c.channels + self.channels.0) * c.taps()),
                to_row: c.channels * c.taps(),
                onto,
                ahead: 0,
            });
            if self.bias {
                for i in 0..self.outputs.1 {
                    let sum = *self.sums.add(elements * self.plan.outputs + i);
                    let to = o.db.add(output + i);
                    *to = if onto { *to + sum } else { sum };
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
