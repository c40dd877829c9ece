//! The weight gradient by Winograd's filtering: the transpose of the forward pass, `G' [(B' d B) * (A dy A')] G`
//! with the products summed over all tiles before they are transformed.
//!
//! ```text
//! for task in (part of the strips, group, block of input channels, block of output channels)
//!   for strip of the part
//!     pack and transform x, as the forward pass does        [position][piece][channel][tile]
//!     for tile of output channels
//!       transpose dy                                        [row][tile, column][output channel]
//!       for row of positions
//!         transform dy                                      [position][tile][output channel]
//!         for position of the row, tile of input channels
//!           micro-kernel: sums[position][channel][output channel] += x * dy over the tiles
//!   transform the sums, and add them, transposed, to the result
//! ```

use super::blocks::Blocks;
use super::tiling::{GAP, Strip};
use crate::kernel::{
    Accumulate, Kernel, OUTPUTS, SIDE, TransformGradients, TransformSums, Transpose, Vector,
};
use crate::strip::buffer::Workspace;
use crate::strip::correlation::Correlation;
use crate::strip::weight_gradient::{Block, Operands, fill};
use std::sync::atomic::{AtomicBool, Ordering};

/// The position at which `A dy A'` is the sum of a tile's gradients: the bias gradient's.
const SUM: usize = SIDE + 1;

/// Elements of a row of the outputs' gradients of some tiles, `width` channels each.
fn raw_row(tiles: usize, width: usize) -> usize {
    OUTPUTS * tiles * width
}

/// Runs the plan on at most `threads` threads. Whether all of the weight
/// gradient is finite: if not, the plain one must be run instead.
///
/// # Safety
///
/// As [`Plain::run`](crate::strip::weight_gradient::Plain::run).
pub(crate) unsafe fn run<T: Vector + Send + Sync>(
    kernel: &Kernel<T>,
    c: &Correlation,
    plan: &Blocks,
    operands: &Operands<T>,
    threads: usize,
) -> bool {
    let finite = AtomicBool::new(true);
    let worker = |memory: &Workspace<T>, block: &Block| {
        Worker::new(kernel, c, plan, operands, memory.as_ptr(), block)
    };
    plan.division.run(
        threads,
        || Workspace::new(plan.workspace_len(c)),
        |memory, block, part| {
            let worker = worker(memory, block);
            // SAFETY: the caller vouches for the tensors.
            unsafe {
                worker.sum(part);
                if !worker.transform() {
                    finite.store(false, Ordering::Relaxed);
                }
            }
        },
        // SAFETY: the division keeps parts apart.
        |memory, block, part| unsafe { worker(memory, block).add(part > 0) },
    );
    finite.into_inner()
}

/// One task: a block of the result and the memory to sum it in.
struct Worker<'a, T: Copy + 'static> {
    kernel: &'a Kernel<T>,
    c: &'a Correlation,
    plan: &'a Blocks,
    operands: &'a Operands<T>,
    panel: *mut T,
    /// A tile of output channels of `dy`, transposed: `[row][tile, column][output channel]`.
    raw: *mut T,
    /// The same transformed, a row of positions: `[position][tile][output channel]`.
    dy: *mut T,
    sums: *mut T,
    ones: *mut T,
    /// The result, where panel and `dy` were: `[channel][kernel element][output channel]`.
    result: *mut T,
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
        memory: *mut T,
        block: &Block,
    ) -> Self {
        let [panel_len, raw_len, _, sums_len, ones_len] = plan.lens();
        let (sums, ones) = (memory, memory.wrapping_add(sums_len));
        let panel = ones.wrapping_add(ones_len);
        let raw = panel.wrapping_add(panel_len);
        Self {
            kernel,
            c,
            plan,
            operands,
            panel,
            raw,
            dy: raw.wrapping_add(raw_len),
            sums,
            ones,
            result: panel,
            block: block.clone(),
            bias: block.has_bias(operands),
        }
    }

    /// Tiles of output channels of the block: first channel and whole registers.
    fn tiles(&self) -> impl Iterator<Item = (usize, usize)> {
        let (lanes, most) = (self.kernel.lanes, self.plan.tile);
        let all = self.block.outputs.len().next_multiple_of(lanes);
        (0..all).step_by(most).map(move |first| (first, most.min(all - first)))
    }

    /// Sums one part of the strips.
    ///
    /// # Safety
    ///
    /// As [`run`].
    unsafe fn sum(&self, part: usize) {
        let (c, o, plan) = (self.c, self.operands, self.plan);
        let source = self.block.source(c, o);
        let place = |strip: usize| strip * plan.tiling.tiles / plan.strips;
        let strips = plan.division.part(plan.strips, part);
        // SAFETY: the plan made room for each piece; the caller vouches for the tensors.
        unsafe {
            fill(self.ones, plan.width, T::ONE);
            for (number, index) in strips.enumerate() {
                let tiles = place(index)..place(index + 1);
                let count = tiles.len();
                let width = count.next_multiple_of(self.kernel.lanes);
                let strip = plan.tiling.strip(tiles, width);
                plan.tiling.pack(self.kernel, &strip, &source, self.panel);
                for (first, width) in self.tiles() {
                    self.transpose_gradients(&strip, count, (first, width));
                    self.multiply(&strip, count, (first, width), number > 0);
                }
            }
        }
    }

    /// Transposes the gradients of a strip's outputs, of `width` channels from `first` on.
    ///
    /// # Safety
    ///
    /// As [`run`].
    unsafe fn transpose_gradients(
        &self,
        strip: &Strip,
        tiles: usize,
        (first, width): (usize, usize),
    ) {
        let (c, o, plan) = (self.c, self.operands, self.plan);
        let [image, channel, line, column] = c.strides(o.dy_strides);
        let distance = plan.tiling.width.distance;
        let output = self.block.outputs.start + first;
        let outputs = width.min(self.block.outputs.end - output);
        let row_len = raw_row(tiles, width);
        // SAFETY: the caller vouches for the tensors, the plan for the room.
        unsafe {
            if outputs < width {
                fill(self.raw, OUTPUTS * row_len, T::ZERO);
            }
            for y in 0..OUTPUTS {
                for run in strip.runs() {
                    let (row, inside) = plan.tiling.outputs(run, y);
                    let all = OUTPUTS * run.tiles;
                    let to = self.raw.add(y * row_len + OUTPUTS * run.lane * width);
                    let offset = run.image as isize * image
                        + (self.block.group * c.outputs + output) as isize * channel
                        + row as isize * line
                        + run.column as isize * column;
                    self.kernel.transpose(&Transpose {
                        from: o.dy.wrapping_offset(offset),
                        from_row: channel,
                        from_column: distance as isize * column,
                        rows: outputs,
                        columns: inside,
                        to,
                        to_row: width,
                        onto: false,
                        ahead: line.max(32),
                    });
                    fill(to.add(inside * width), (all - inside) * width, T::ZERO);
                }
            }
        }
    }

    /// Adds the products of the packed strip to the sums of `width` output channels from `first` on. Their gradients
    /// are transformed for a row of positions at a time, which stays in the first-level cache (cv10 1.1 times as fast).
    ///
    /// # Safety
    ///
    /// As [`run`], after the strip is packed and the gradients are transposed.
    unsafe fn multiply(
        &self,
        strip: &Strip,
        tiles: usize,
        (first, width): (usize, usize),
        onto: bool,
    ) {
        let plan = self.plan;
        let (channels, outputs) = (self.block.channels.len(), plan.division.outputs());
        let vectors = width / self.kernel.lanes;
        let (mut inputs, mut sums) = (self.panel.cast_const(), self.sums.wrapping_add(first));
        let channels_at = plan.tiling.weights.channels(channels);
        for (position, channels) in channels_at.into_iter().enumerate() {
            let (side, column) = (position / SIDE, position % SIDE);
            if column == 0 && channels_at[position..position + SIDE] != [0; SIDE] {
                // SAFETY: the plan made room for a row of positions.
                unsafe {
                    self.kernel.winograd.transform_gradients(&TransformGradients {
                        side,
                        from: self.raw,
                        row: raw_row(tiles, width),
                        width,
                        tiles,
                        to: self.dy,
                        position: plan.dy_position(),
                    });
                }
            }
            let mut sum = Accumulate {
                inputs,
                input_channel: strip.width,
                channels,
                gradients: self.dy.wrapping_add(column * plan.dy_position()),
                tiles,
                sums,
                sum_channel: outputs,
                onto,
            };
            inputs = inputs.wrapping_add(channels * strip.width + GAP);
            sums = sums.wrapping_add(channels * outputs + GAP);
            // SAFETY: panel, `dy`, sums and ones have room for what the plan says.
            unsafe {
                self.kernel.winograd.accumulate(vectors, &sum);
                if self.bias && position == SUM {
                    // One more channel, of ones.
                    (sum.inputs, sum.channels) = (self.ones, 1);
                    sum.sums = self.bias_sums().wrapping_add(first);
                    self.kernel.winograd.accumulate(vectors, &sum);
                }
            }
        }
    }

    /// The sums of the bias gradient, behind those of all channels.
    fn bias_sums(&self) -> *mut T {
        self.sums.wrapping_add(self.plan.places_lens()[1])
    }

    /// Transforms the sums into the block's part of the result; whether all of it is finite.
    ///
    /// # Safety
    ///
    /// As [`run`], after [`Worker::sum`].
    unsafe fn transform(&self) -> bool {
        let (c, plan) = (self.c, self.plan);
        let (h, w) = (&plan.tiling.height, &plan.tiling.width);
        let (channels, width) = (self.block.channels.len(), plan.division.outputs());
        let mut finite = true;
        for (number, (rows, columns)) in plan.tiling.pieces().enumerate() {
            let [row, column] = [c.width.taps * width, width];
            let to = self.result.wrapping_add(rows.tap * row + columns.tap * column);
            // SAFETY: the sums at the positions of the piece's taps are there, the plan made room.
            unsafe {
                finite &= self.kernel.winograd.transform_sums(&TransformSums {
                    from: self.sums,
                    places: plan.tiling.weights.places(number, channels * width, GAP),
                    channels,
                    width,
                    taps: [rows.taps, columns.taps],
                    to,
                    steps: [h.tap_step * row, w.tap_step * column],
                    to_channel: c.taps() * width,
                });
            }
        }
        finite
    }

    /// Writes the block's part to the result, or adds it.
    ///
    /// # Safety
    ///
    /// As [`run`], after [`Worker::transform`]; no other task is adding to this block.
    unsafe fn add(&self, onto: bool) {
        let width = self.plan.division.outputs();
        let bias = self.bias.then(|| self.bias_sums().cast_const());
        let sums = (self.result.cast_const(), width);
        // SAFETY: the caller vouches for the result.
        unsafe { self.block.add(self.kernel, self.c, self.operands, sums, bias, onto) };
    }
}
