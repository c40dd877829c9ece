//! The weight gradient by Winograd's filtering: the transpose of the forward pass, `G' [(B' d B) * (A dy A')] G`
//! with the products summed over all tiles before they are transformed.
//!
//! ```text
//! for task in (part of the strips, group, block of input channels, block of output channels)
//!   for strip of the part
//!     pack and transform x, as the forward pass does        [position][piece][channel][tile]
//!     for tile of output channels
//!       transpose and transform dy                          [position][tile][output channel]
//!       for position, tile of input channels
//!         micro-kernel: sums[position][channel][output channel] += x * dy over the tiles
//!   transform the sums, and add them, transposed, to the result
//! ```

use super::tiling::{Axis, GAP, MAX_TILES, OUTPUTS, Panel, Strip, Tiling};
use crate::kernel::{
    Accumulate, Kernel, POSITIONS, SIDE, STEPS, TransformGradients, TransformSums, Transpose,
    Vector,
};
use crate::plan::Piece as Shown;
use crate::strip::buffer::Workspace;
use crate::strip::correlation::Correlation;
use crate::strip::panel::Source;
use crate::strip::weight_gradient::{Operands, Turns, fill};
use crate::strip::workers::for_each_worker;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// The position at which `A dy A'` is the sum of a tile's gradients: the bias gradient's.
const SUM: usize = SIDE + 1;

/// Tasks that keep a handful of threads busy evenly. A constant, so that results do not depend on the
/// number of threads.
const TASKS_WANTED: usize = 16;

/// Tiles a part should sum over: transforming and adding a part costs about as much as 20.
const TILES_WANTED: usize = 128;

/// Bytes of a thread's workspace, at most: larger blocks gain a few hundredths.
const BYTES: usize = 512 << 10;

/// Cycles, as in the forward pass's estimate: a multiply-add of registers.
const PRODUCT: f64 = 0.53;
/// Loading and storing the sums of one channel and output channel at one position.
const CALL: f64 = 0.5;
/// The same in the plain weight gradient.
const PLAIN_PRODUCT: f64 = 0.66;
/// Packing and transforming a register of tiles, of one piece and channel.
const INPUT: f64 = 90.0;
/// Transposing and transforming a register of tiles' gradients of one output channel.
const GRADIENT: f64 = 35.0;
/// Transforming and adding one piece's sums, for one channel and output channel of each part.
const SUMS: f64 = 8.0;

/// The plan of a weight gradient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Blocks {
    tiling: Tiling,
    /// Strips the tiles are dealt to, evenly.
    strips: usize,
    /// Lanes of the widest strip.
    width: usize,
    /// Input channels of a block.
    channels: usize,
    /// Output channels of a block: whole registers.
    outputs: usize,
    /// Parts the strips are divided into.
    parts: usize,
    /// Output channels of a tile of the micro-kernel.
    tile: usize,
}

impl Blocks {
    /// Plans the weight gradient of forward correlation `c` for at most `limit` bytes in each thread, if
    /// that is sooner than the plain one, or `forced`. It depends on the problem and the limit alone.
    pub fn new<T: Vector>(
        c: &Correlation,
        kernel: &Kernel<T>,
        limit: usize,
        forced: bool,
    ) -> Option<Self> {
        let tiling = Tiling::new(c)?;
        let tile = kernel.outer_vectors * kernel.lanes;
        let all = c.outputs.next_multiple_of(kernel.lanes);
        let registers = (tiling.tiles as f64) / kernel.lanes as f64;
        let pieces = tiling.count() as f64;
        let pairs = (c.groups * c.channels * c.outputs) as f64;
        let mut best = (f64::INFINITY, None);
        let output_blocks = (1..=all / kernel.lanes).map(|n| all.div_ceil(n));
        for outputs in output_blocks.map(|outputs| outputs.next_multiple_of(kernel.lanes)) {
            for most in [MAX_TILES, MAX_TILES / 2] {
                let strips = tiling.tiles.div_ceil(most);
                let width = tiling.tiles.div_ceil(strips).next_multiple_of(kernel.lanes);
                let fits = |plan: &Self| plan.worker_bytes::<T>(c) <= limit.min(BYTES);
                let plans = (1..=c.channels).map(|n| {
                    let channels = c.channels.div_ceil(n);
                    Self { tiling, strips, width, channels, outputs, parts: 1, tile }
                });
                let Some(mut plan) = plans.into_iter().find(fits) else { continue };
                let most = (tiling.tiles / TILES_WANTED).min(strips).max(1);
                plan.parts = TASKS_WANTED.div_ceil(plan.blocks(c)).min(most);
                let [output_blocks, channel_blocks] =
                    [c.outputs.div_ceil(outputs), c.channels.div_ceil(plan.channels)];
                // Channels of which a tile of the micro-kernel has too few are multiplied all the same.
                let channels = c.channels.next_multiple_of(STEPS);
                let products = (c.groups * channels * c.outputs * tiling.products()) as f64;
                let cycles = products * (registers * PRODUCT + strips as f64 * CALL)
                    + (c.groups * c.channels * output_blocks) as f64 * pieces * registers * INPUT
                    + (c.groups * c.outputs * channel_blocks) as f64 * registers * GRADIENT
                    + plan.parts as f64 * pairs * pieces * SUMS;
                if cycles < best.0 {
                    best = (cycles, Some(plan));
                }
            }
        }
        let positions = (c.batch * c.height.output * c.width.output) as f64;
        let plain = pairs * c.taps() as f64 * positions / kernel.lanes as f64 * PLAIN_PRODUCT;
        best.1.filter(|_| forced || best.0 < 0.95 * plain)
    }

    /// Input channels times pieces of a block.
    fn depth(&self) -> usize {
        self.tiling.count() * self.channels
    }

    /// Elements from a position to the next: in the panel, in a transformed tile of `dy`, in the sums. The
    /// sums have room for the bias behind the channels.
    fn positions(&self) -> [usize; 3] {
        [
            self.depth() * self.width + GAP,
            self.width * self.tile + GAP,
            (self.depth() + 1) * self.outputs + GAP,
        ]
    }

    /// Elements of the panel, of a tile of `dy` before and after it is transformed, of the sums and of the
    /// ones.
    fn lens(&self) -> [usize; 5] {
        let [panel, dy, sums] = self.positions().map(|position| POSITIONS * position);
        [panel, OUTPUTS * OUTPUTS * self.width * self.tile, dy, sums, self.width]
    }

    /// Elements of workspace for each thread. The result lies where panel and `dy` were.
    fn workspace_len(&self, c: &Correlation) -> usize {
        let [panel, raw, dy, sums, ones] = self.lens();
        (panel + raw + dy).max(self.channels * c.taps() * self.outputs) + sums + ones
    }

    /// Bytes that [`run`] takes for each thread.
    pub fn worker_bytes<T>(&self, c: &Correlation) -> usize {
        self.workspace_len(c) * size_of::<T>()
    }

    /// Blocks of the result.
    fn blocks(&self, c: &Correlation) -> usize {
        c.groups * c.channels.div_ceil(self.channels) * c.outputs.div_ceil(self.outputs)
    }

    /// Independent tasks.
    pub fn tasks(&self, c: &Correlation) -> usize {
        self.blocks(c) * self.parts
    }

    /// Bytes of the list of parts that are done: none where blocks have a single part.
    pub fn shared_bytes(&self, c: &Correlation) -> usize {
        if self.parts > 1 { self.blocks(c) * size_of::<usize>() } else { 0 }
    }

    /// What a reader of the plan sees of it.
    pub fn piece(&self, c: &Correlation) -> Shown {
        Shown {
            row_phase: 0,
            column_phase: 0,
            column_phases: 1,
            output: [c.height.output, c.width.output],
            bands: self.tiling.height.all_tiles(),
            strips: self.strips,
            panel_rows: OUTPUTS,
            panel_channels: self.channels,
            planes: SIDE,
            tasks: self.tasks(c),
        }
    }
}

/// Runs the plan on at most `threads` threads of the current rayon pool. Whether all of the weight
/// gradient is finite: if not, the plain one must be run instead.
///
/// # Safety
///
/// As [`weight_gradient::run`](crate::strip::weight_gradient::run).
pub(crate) unsafe fn run<T: Vector + Send + Sync>(
    kernel: &Kernel<T>,
    c: &Correlation,
    plan: &Blocks,
    operands: &Operands<T>,
    threads: usize,
) -> bool {
    let blocks = plan.blocks(c);
    let turns = Turns::new(if plan.parts > 1 { blocks } else { 0 });
    let finite = AtomicBool::new(true);
    for_each_worker(threads, blocks * plan.parts, |numbers| {
        let memory = Workspace::new(plan.workspace_len(c));
        for number in numbers {
            let (part, block) = (number / blocks, number % blocks);
            let worker = Worker::new(kernel, c, plan, operands, memory.as_ptr(), block);
            // SAFETY: the caller vouches for the tensors; the turns keep parts apart.
            unsafe {
                worker.sum(part);
                if !worker.transform() {
                    finite.store(false, Ordering::Relaxed);
                }
                turns.take(block, part, || worker.add(part > 0));
            }
        }
    });
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
    /// The same transformed: `[position][tile][output channel]`.
    dy: *mut T,
    sums: *mut T,
    ones: *mut T,
    /// The result, where panel and `dy` were: `[channel][kernel element][output channel]`.
    result: *mut T,
    group: usize,
    channels: Range<usize>,
    outputs: Range<usize>,
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
        block: usize,
    ) -> Self {
        let channel_blocks = c.channels.div_ceil(plan.channels);
        let output_blocks = c.outputs.div_ceil(plan.outputs);
        let channel = block % channel_blocks * plan.channels;
        let rest = block / channel_blocks;
        let output = rest % output_blocks * plan.outputs;
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
            group: rest / output_blocks,
            channels: channel..(channel + plan.channels).min(c.channels),
            outputs: output..(output + plan.outputs).min(c.outputs),
            bias: channel == 0 && !operands.db.is_null(),
        }
    }

    /// Tiles of output channels of the block: first channel and whole registers.
    fn tiles(&self) -> impl Iterator<Item = (usize, usize)> {
        let (lanes, most) = (self.kernel.lanes, self.plan.tile);
        let all = self.outputs.len().next_multiple_of(lanes);
        (0..all).step_by(most).map(move |first| (first, most.min(all - first)))
    }

    /// Sums one part of the strips.
    ///
    /// # Safety
    ///
    /// As [`run`].
    unsafe fn sum(&self, part: usize) {
        let (c, o, plan) = (self.c, self.operands, self.plan);
        let channel = self.group * c.channels + self.channels.start;
        let source = Source {
            first: o.x.wrapping_offset(channel as isize * o.x_strides[1]),
            strides: c.strides(o.x_strides),
            channels: self.channels.len(),
        };
        let place = |strip: usize| strip * plan.tiling.tiles / plan.strips;
        let strips = part * plan.strips / plan.parts..(part + 1) * plan.strips / plan.parts;
        // SAFETY: the plan made room for each piece; the caller vouches for the tensors.
        unsafe {
            fill(self.ones, plan.width, T::ONE);
            for (number, index) in strips.enumerate() {
                let tiles = place(index)..place(index + 1);
                let count = tiles.len();
                let width = count.next_multiple_of(self.kernel.lanes);
                let strip = plan.tiling.strip(tiles, width);
                let panel = Panel { to: self.panel, position: plan.positions()[0] };
                plan.tiling.pack(self.kernel, &strip, &source, &panel);
                for (first, width) in self.tiles() {
                    self.pack_gradients(&strip, count, (first, width));
                    self.multiply(&strip, count, (first, width), number > 0);
                }
            }
        }
    }

    /// Transposes and transforms the gradients of a strip's outputs, of `width` channels from `first` on.
    ///
    /// # Safety
    ///
    /// As [`run`].
    unsafe fn pack_gradients(&self, strip: &Strip, tiles: usize, (first, width): (usize, usize)) {
        let (c, o, plan) = (self.c, self.operands, self.plan);
        let [image, channel, line, column] = c.strides(o.dy_strides);
        let (h, w) = (&plan.tiling.height, &plan.tiling.width);
        let output = self.outputs.start + first;
        let outputs = width.min(self.outputs.end - output);
        let row_len = OUTPUTS * tiles * width;
        // SAFETY: the caller vouches for the tensors, the plan for the room.
        unsafe {
            if outputs < width {
                fill(self.raw, OUTPUTS * row_len, T::ZERO);
            }
            for y in 0..OUTPUTS {
                for run in strip.runs() {
                    let row = run.row + y * h.distance;
                    let inside = c.width.output.saturating_sub(run.column).div_ceil(w.distance);
                    let all = OUTPUTS * run.tiles;
                    let inside = if row < c.height.output { inside.min(all) } else { 0 };
                    let to = self.raw.add(y * row_len + OUTPUTS * run.lane * width);
                    let offset = run.image as isize * image
                        + (self.group * c.outputs + output) as isize * channel
                        + row as isize * line
                        + run.column as isize * column;
                    self.kernel.transpose(&Transpose {
                        from: o.dy.wrapping_offset(offset),
                        from_row: channel,
                        from_column: w.distance as isize * column,
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
            self.kernel.transform_gradients(&TransformGradients {
                from: self.raw,
                row: row_len,
                width,
                tiles,
                to: self.dy,
                position: plan.positions()[1],
            });
        }
    }

    /// Adds the products of the packed strip to the sums of `width` output channels from `first` on.
    ///
    /// # Safety
    ///
    /// As [`run`], after both sides are packed.
    unsafe fn multiply(
        &self,
        strip: &Strip,
        tiles: usize,
        (first, width): (usize, usize),
        onto: bool,
    ) {
        let plan = self.plan;
        let [panel_position, dy_position, sums_position] = plan.positions();
        let vectors = width / self.kernel.lanes;
        for (position, channels) in
            plan.tiling.channels_at(self.channels.len()).into_iter().enumerate()
        {
            let panel = self.panel.wrapping_add(position * panel_position);
            let sums = self.sums.wrapping_add(position * sums_position + first);
            let mut sum = Accumulate {
                inputs: panel.wrapping_add(channels.start * strip.width),
                input_channel: strip.width,
                channels: channels.len(),
                gradients: self.dy.wrapping_add(position * dy_position),
                tiles,
                sums: sums.wrapping_add(channels.start * plan.outputs),
                sum_channel: plan.outputs,
                onto,
            };
            // SAFETY: panel, `dy`, sums and ones have room for what the plan says.
            unsafe {
                self.kernel.accumulate(vectors, &sum);
                if self.bias && position == SUM {
                    // One more channel behind the others, of ones.
                    (sum.inputs, sum.channels) = (self.ones, 1);
                    sum.sums = sums.wrapping_add(channels.end * plan.outputs);
                    self.kernel.accumulate(vectors, &sum);
                }
            }
        }
    }

    /// Transforms the sums into the block's part of the result; whether all of it is finite.
    ///
    /// # Safety
    ///
    /// As [`run`], after [`Worker::sum`].
    unsafe fn transform(&self) -> bool {
        let (c, plan) = (self.c, self.plan);
        let position = plan.positions()[2];
        let mut finite = true;
        for (number, (rows, columns)) in plan.tiling.pieces().enumerate() {
            let step = |axis: &Axis| axis.tap_step;
            let [row, column] = [c.width.taps * plan.outputs, plan.outputs];
            let to = self.result.wrapping_add(rows.tap * row + columns.tap * column);
            // SAFETY: the sums at the positions of the piece's taps are there, the plan made room.
            unsafe {
                finite &= self.kernel.transform_sums(&TransformSums {
                    from: self.sums.wrapping_add(number * self.channels.len() * plan.outputs),
                    position,
                    channels: self.channels.len(),
                    width: plan.outputs,
                    taps: [rows.taps, columns.taps],
                    to,
                    steps: [step(&plan.tiling.height) * row, step(&plan.tiling.width) * column],
                    to_channel: c.taps() * plan.outputs,
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
        let (c, o, plan) = (self.c, self.operands, self.plan);
        let output = self.group * c.outputs + self.outputs.start;
        // SAFETY: the caller vouches for the result.
        unsafe {
            self.kernel.transpose(&Transpose {
                from: self.result,
                from_row: plan.outputs as isize,
                from_column: 1,
                rows: self.channels.len() * c.taps(),
                columns: self.outputs.len(),
                to: o.dw.add((output * c.channels + self.channels.start) * c.taps()),
                to_row: c.channels * c.taps(),
                onto,
                ahead: 0,
            });
            if self.bias {
                // Behind all channels of its position.
                let at = &plan.tiling.channels_at(self.channels.len())[SUM];
                let sums = self.sums.add(SUM * plan.positions()[2] + at.end * plan.outputs);
                for i in 0..self.outputs.len() {
                    let to = o.db.add(output + i);
                    *to = if onto { *to + *sums.add(i) } else { *sums.add(i) };
                }
            }
        }
    }
}
