//! The weight gradient with output channels in SIMD lanes.
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
//! The bias gradient is the sum for one more kernel element, whose panel row holds ones.

mod blocks;

use super::{Block, Operands, fill};
use crate::kernel::{Kernel, Outer, STEPS, Stretch, Transpose, Vector};
use crate::strip::buffer::Workspace;
use crate::strip::correlation::Correlation;
use crate::strip::panel::{self, Strip};
pub(crate) use blocks::Blocks;

/// Runs the plan on at most `threads` threads.
///
/// # Safety
///
/// As [`Plain::run`](super::Plain::run).
pub(super) unsafe fn run<T: Vector + Send + Sync>(
    kernel: &Kernel<T>,
    c: &Correlation,
    plan: &Blocks,
    operands: &Operands<T>,
    threads: usize,
) {
    let memory = || {
        let places = Places {
            stretches: Vec::with_capacity(plan.stretches),
            taps: Vec::with_capacity(plan.taps),
        };
        (Workspace::new(plan.workspace_len()), places)
    };
    let worker = |memory: &Workspace<T>, block: &Block| {
        Worker::new(kernel, c, plan, operands, memory, block)
    };
    plan.division.run(
        threads,
        memory,
        // SAFETY: the caller vouches for the tensors.
        |(memory, places), block, part| unsafe { worker(memory, block).sum(part, places) },
        // SAFETY: the division keeps parts apart.
        |(memory, _), block, part| unsafe { worker(memory, block).add(part > 0) },
    );
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
    block: Block,
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
        block: &Block,
    ) -> Self {
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
            block: block.clone(),
            bias: block.has_bias(operands),
        }
    }

    /// Kernel elements this block sums, the bias as one more.
    fn steps(&self) -> usize {
        self.block.channels.len() * self.c.taps() + usize::from(self.bias)
    }

    /// Tiles of output channels: first register and registers.
    fn tiles(&self) -> impl Iterator<Item = (usize, usize)> {
        let most = self.kernel.outer_vectors;
        let registers = self.block.outputs.len().div_ceil(self.kernel.lanes);
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
            let mut onto = false;
            for strip in plan.division.part(plan.columns.strips, part) {
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
        let (source, steps) = (self.block.source(c, o), strip.shared_rows(c, rows));
        let [image, channel, line, column] = c.strides(o.dy_strides);
        // SAFETY: the caller vouches for the tensors; the plan made room.
        unsafe {
            panel::pack(self.kernel, c, strip, (row, rows), &source, steps, self.panel);
            for (first, registers) in self.tiles() {
                let to = self.tile(first, strip, rows);
                let output = self.block.outputs.start + first * lanes;
                let outputs = (registers * lanes).min(self.block.outputs.len() - first * lanes);
                let mut position = 0;
                for row_in_panel in 0..rows {
                    for run in strip.runs() {
                        let offset = run.image as isize * image
                            + (self.block.group * c.outputs + output) as isize * channel
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
        let channel_len = strip.shared_rows(self.c, rows).channel;
        let steps = self.steps();
        for (first, registers) in self.tiles() {
            // Where each kernel element (channel, row, column) has its first column in the panel: the
            // bias last, and again in the places of those missing.
            let (mut channel, mut tap) = (0, 0);
            let mut start = || {
                if channel == self.block.channels.len() {
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
                    out: self
                        .sums
                        .wrapping_add(step * self.plan.division.outputs() + first * lanes),
                    out_step: self.plan.division.outputs(),
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
        let width = self.plan.division.outputs();
        let elements = self.block.channels.len() * self.c.taps();
        let bias = self.bias.then(|| self.sums.wrapping_add(elements * width).cast_const());
        let sums = (self.sums.cast_const(), width);
        // SAFETY: the caller vouches for the result.
        unsafe { self.block.add(self.kernel, self.c, self.operands, sums, bias, onto) };
    }
}
