//! The forward pass of few positions: the elements of a sum lie in SIMD lanes, as the weights do in memory.
//!
//! ```text
//! for task in (group, part of the output channels)           in parallel
//!   for block of input channels
//!     pack the patches                                       [position][channel][kernel row][kernel column]
//!     for tile of output channels, of positions
//!       micro-kernel: sums[position][output channel] += patch . weights
//!   store the sums
//! ```
//!
//! Strips have positions in the lanes: those of one small image leave most of a register empty.

use super::buffer::Workspace;
use super::correlation::{Correlation, Reach};
use super::engine::Operands;
use super::strips::step_cycles;
use super::workers::for_each_worker;
use crate::kernel::{Dots, ELEMENTS, Kernel, Span, Transpose, Vector};
use crate::plan::Piece;
use std::ops::Range;

/// Bytes of a patch: the weights of a tile of output channels stay in the first-level cache while all positions meet
/// them, also where another core shares it. 4 KiB took 1.3 times as long, 1 KiB 1.1 (3 x 3 on 7 x 7 x 512, Sapphire Rapids).
const PATCH: usize = 2304;

/// Most positions, in quarters of a register: of a kernel of one element, and of several, where more fill Winograd's tiles.
const MOST_QUARTERS: [usize; 2] = [16, 5];

/// Cycles of adding up a register's lanes, a block's sum of one position and output channel.
const SUM: f64 = 2.5;

/// Cycles of packing an element: by a transposition, and one by one.
const PACK: [f64; 2] = [0.3, 0.6];

/// The plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Patches {
    /// Input channels of a block.
    channels: usize,
    /// Parts of the output channels, tasks of their own.
    parts: usize,
    /// Output channels of the largest part, in whole tiles.
    outputs: usize,
    /// Elements from a patch to the next.
    patch_len: usize,
    /// Elements of a register: patches begin so many behind a line at most.
    lanes: usize,
}

impl Patches {
    /// Plans forward correlation `c` for at most `limit` bytes in each thread; `None` where strips serve better
    /// or need less.
    pub fn new<T: Vector>(
        c: &Correlation,
        kernel: &Kernel<T>,
        threads: usize,
        limit: usize,
    ) -> Option<Self> {
        let none = [c.channels, c.outputs, c.groups, positions(c)].contains(&0);
        let most = MOST_QUARTERS[usize::from(c.taps() > 1)] * kernel.lanes / 4;
        if none || positions(c) > most {
            return None;
        }
        let blocks = (c.channels * c.taps() * size_of::<T>()).div_ceil(PATCH);
        let channels = c.channels.div_ceil(blocks);
        let tiles = c.outputs.div_ceil(kernel.dot_outputs);
        let of_parts = |parts: usize| Self {
            channels,
            parts,
            outputs: tiles.div_ceil(parts) * kernel.dot_outputs,
            patch_len: (channels * c.taps()).next_multiple_of(kernel.lanes),
            lanes: kernel.lanes,
        };
        // Neither the number of threads nor what they take decides, or sums would be rounded differently.
        let sooner = of_parts(2).cycles(c, kernel) < strip_cycles(c, kernel);
        let fits = of_parts(1).worker_bytes::<T>(c) <= limit;
        (sooner && fits).then(|| of_parts(threads.div_ceil(c.groups).min(tiles)))
    }

    /// Cycles for an element of the sums of one output channel.
    fn cycles<T: Vector>(&self, c: &Correlation, kernel: &Kernel<T>) -> f64 {
        let strided = c.taps() > 1 || c.width.output == 1;
        let pack = PACK[usize::from(strided)] / self.outputs as f64;
        let sum = SUM / (self.channels * c.taps()) as f64;
        positions(c) as f64 * (0.5 / kernel.lanes as f64 + sum + pack)
    }

    /// Elements of the patches and of the sums.
    fn lens(&self, c: &Correlation) -> [usize; 2] {
        let positions = positions(c);
        [self.patch_len * positions + self.lanes, self.outputs * positions]
    }

    /// Bytes that [`Patches::run`] takes for each thread.
    pub fn worker_bytes<T>(&self, c: &Correlation) -> usize {
        self.lens(c).iter().sum::<usize>() * size_of::<T>()
    }

    /// Independent tasks.
    pub fn tasks(&self, c: &Correlation) -> usize {
        c.groups * self.parts
    }

    /// What a reader of the plan sees of it.
    pub fn piece(&self, c: &Correlation) -> Piece {
        Piece {
            row_phase: 0,
            row_phases: 1,
            column_phase: 0,
            column_phases: 1,
            output: [c.height.output, c.width.output],
            bands: 1,
            strips: 1,
            panel_rows: c.height.output,
            panel_channels: self.channels,
            planes: 0,
            tasks: self.tasks(c),
        }
    }

    /// Runs the plan on at most `threads` threads.
    ///
    /// # Safety
    ///
    /// As [`engine::run`](super::engine::run), for one correlation, that of a forward pass; the weights of an output
    /// channel follow each other.
    pub unsafe fn run<T: Vector + Send + Sync>(
        &self,
        kernel: &Kernel<T>,
        c: &Correlation,
        operands: &Operands<T>,
        threads: usize,
    ) {
        for_each_worker(threads, self.tasks(c), |numbers| {
            let lens = self.lens(c);
            let memory = Workspace::<T>::new(lens.iter().sum());
            let [patches, sums] = [0, lens[0]].map(|at| memory.as_ptr().wrapping_add(at));
            let worker = Worker { kernel, c, plan: self, operands, patches, sums };
            for number in numbers {
                let (group, part) = (number / self.parts, number % self.parts);
                let tiles = c.outputs.div_ceil(kernel.dot_outputs);
                let first =
                    |part: usize| (part * tiles / self.parts * kernel.dot_outputs).min(c.outputs);
                // SAFETY: the caller vouches for the tensors; the memory has room for patches and sums.
                unsafe { worker.part(group, first(part)..first(part + 1)) };
            }
        });
    }
}

/// Positions of all images.
fn positions(c: &Correlation) -> usize {
    c.batch * c.height.output * c.width.output
}

/// What a strip's sums take instead, the fewest registers of positions at once.
fn strip_cycles<T: Vector>(c: &Correlation, kernel: &Kernel<T>) -> f64 {
    let registers = positions(c).div_ceil(kernel.lanes);
    let strips = registers.div_ceil(kernel.vectors);
    let of = |strip| (strip + 1) * registers / strips - strip * registers / strips;
    let cycles: f64 = (0..strips).map(|strip| step_cycles(of(strip), kernel.channels)).sum();
    cycles / kernel.channels as f64
}

/// Whether the one tap of an axis lies inside for every output.
fn meets_inside(axis: &Reach) -> bool {
    let last = axis.output.saturating_sub(1) * axis.step;
    axis.base >= 0 && axis.base as usize + last < axis.input
}

/// One thread's view of the work.
struct Worker<'a, T: 'static> {
    kernel: &'a Kernel<T>,
    c: &'a Correlation,
    plan: &'a Patches,
    operands: &'a Operands<T>,
    /// `[position][channel][kernel row][kernel column]`.
    patches: *mut T,
    /// `[position][output channel]`.
    sums: *mut T,
}

impl<T: Vector> Worker<'_, T> {
    /// Computes some output channels of a group.
    ///
    /// # Safety
    ///
    /// As [`Patches::run`]; patches and sums have room.
    unsafe fn part(&self, group: usize, outputs: Range<usize>) {
        let (c, o, plan) = (self.c, self.operands, self.plan);
        let first_output = group * c.outputs + outputs.start;
        let weights = o.weight.wrapping_offset(
            group as isize * o.weight_strides[0] + outputs.start as isize * o.weight_strides[1],
        );
        // SAFETY: the caller vouches for tensors and memory.
        unsafe {
            for position in 0..positions(c) {
                for output in 0..plan.outputs {
                    let biased = !o.bias.is_null() && output < outputs.len();
                    let bias = if biased { *o.bias.add(first_output + output) } else { T::ZERO };
                    self.sums.add(position * plan.outputs + output).write(bias);
                }
            }
            for first in (0..c.channels).step_by(plan.channels) {
                let channels = first..(first + plan.channels).min(c.channels);
                let len = channels.len() * c.taps();
                let weights = weights.wrapping_add(first * c.taps());
                let steps = &o.weight_strides[1..2];
                let skipped = Dots::lanes_to_skip(self.kernel.lanes, weights, steps);
                let patches = self.patches.wrapping_add(skipped);
                self.pack(patches, group, channels);
                self.multiply((patches, skipped), weights, len, outputs.len());
            }
            self.store(first_output, outputs.len());
        }
    }

    /// Packs the patches of some channels.
    ///
    /// # Safety
    ///
    /// As [`Worker::part`].
    unsafe fn pack(&self, patches: *mut T, group: usize, channels: Range<usize>) {
        let c = self.c;
        // SAFETY: the same contract; so many columns as the kernel has.
        unsafe {
            match c.width.taps {
                1 if c.taps() == 1 && meets_inside(&c.height) && meets_inside(&c.width) => {
                    self.transpose(patches, group, channels);
                }
                1 => self.pack_rows::<1>(patches, group, channels),
                3 => self.pack_rows::<3>(patches, group, channels),
                5 => self.pack_rows::<5>(patches, group, channels),
                7 => self.pack_rows::<7>(patches, group, channels),
                _ => self.pack_rows::<0>(patches, group, channels),
            }
        }
    }

    /// Packs patches of one element a channel, none of which lies outside.
    ///
    /// # Safety
    ///
    /// As [`Worker::part`].
    unsafe fn transpose(&self, mut to: *mut T, group: usize, channels: Range<usize>) {
        let (c, o) = (self.c, self.operands);
        let [image_step, channel_step, row_step, column_step] = c.strides(o.x_strides);
        for image in 0..c.batch as isize {
            for y in 0..c.height.output {
                let row = (y * c.height.step) as isize + c.height.base;
                let first = image * image_step
                    + (group * c.channels + channels.start) as isize * channel_step
                    + row * row_step
                    + c.width.base * column_step;
                let transpose = Transpose {
                    from: o.x.wrapping_offset(first),
                    from_row: channel_step,
                    from_column: c.width.step as isize * column_step,
                    rows: channels.len(),
                    columns: c.width.output,
                    to,
                    to_row: self.plan.patch_len,
                    onto: false,
                    ahead: 0,
                };
                // SAFETY: the caller vouches for input and patches.
                unsafe { self.kernel.transpose(&transpose) };
                to = to.wrapping_add(c.width.output * self.plan.patch_len);
            }
        }
    }

    /// Packs the patches of some channels, where the kernel has `K` columns or `K` is 0.
    ///
    /// # Safety
    ///
    /// As [`Worker::part`].
    unsafe fn pack_rows<const K: usize>(&self, to: *mut T, group: usize, channels: Range<usize>) {
        let c = self.c;
        let [image_step, channel_step, row_step, column_step] = c.strides(self.operands.x_strides);
        let taps = if K == 0 { c.width.taps } else { K };
        let tap_step = c.width.tap_step as isize;
        let within =
            |columns: Range<isize>| columns.start >= 0 && columns.end <= c.width.input as isize;
        for (number, channel) in channels.enumerate() {
            let channel = (group * c.channels + channel) as isize * channel_step;
            let mut patch = to.wrapping_add(number * c.taps());
            for position in 0..positions(c) {
                let (rest, x) = (position / c.width.output, position % c.width.output);
                let (image, y) = (rest / c.height.output, rest % c.height.output);
                let plane = channel + image as isize * image_step;
                let left = (x * c.width.step) as isize + c.width.base;
                let inside = within(left..left + (taps as isize - 1) * tap_step + 1);
                for tap_row in 0..c.height.taps {
                    let row =
                        (y * c.height.step + tap_row * c.height.tap_step) as isize + c.height.base;
                    let there = (0..c.height.input as isize).contains(&row);
                    for tap in 0..taps {
                        let column = left + tap as isize * tap_step;
                        // SAFETY: the caller vouches for what lies inside, the plan for the patch.
                        unsafe {
                            let value = if there && (inside || within(column..column + 1)) {
                                let at = plane + row * row_step + column * column_step;
                                *self.operands.x.wrapping_offset(at)
                            } else {
                                T::ZERO
                            };
                            *patch.wrapping_add(tap_row * taps + tap) = value;
                        }
                    }
                }
                patch = patch.wrapping_add(self.plan.patch_len);
            }
        }
    }

    /// Adds the patches times the weights of some outputs to the sums.
    ///
    /// # Safety
    ///
    /// As [`Worker::part`]; the patches are packed, so many lanes behind where a line begins and `len` elements each.
    unsafe fn multiply(
        &self,
        (patches, skipped): (*const T, usize),
        weights: *const T,
        len: usize,
        outputs: usize,
    ) {
        let (plan, tile) = (self.plan, self.kernel.dot_outputs);
        let output_step = self.operands.weight_strides[1];
        let spans = [Span { panel: 0, dy: 0, len }];
        let positions = positions(self.c);
        for output in (0..outputs).step_by(tile) {
            let dy = weights.wrapping_offset(output as isize * output_step);
            // While this tile is multiplied, the weights of the next are on their way, an output with each call.
            let next = outputs.saturating_sub(output + tile).min(tile);
            for first in (0..positions).step_by(ELEMENTS) {
                let number = first / ELEMENTS;
                let ahead = match number < next {
                    true => dy.wrapping_offset((tile + number) as isize * output_step),
                    false => std::ptr::null(),
                };
                let mut panel = [patches; ELEMENTS];
                for (k, panel) in panel.iter_mut().enumerate() {
                    *panel = panel.wrapping_add((first + k) * plan.patch_len);
                }
                let dots = Dots {
                    panel,
                    spans: &spans,
                    skipped,
                    dy,
                    dy_output: output_step,
                    outputs: tile.min(outputs - output),
                    ahead,
                    sums: self.sums.wrapping_add(first * plan.outputs + output),
                    sums_element: plan.outputs,
                };
                // SAFETY: the caller vouches for patches, sums and weights.
                unsafe { self.kernel.dots(ELEMENTS.min(positions - first), &dots) };
            }
        }
    }

    /// Stores the sums of some outputs, the first of which is channel `first` of the tensor.
    ///
    /// # Safety
    ///
    /// As [`Worker::part`].
    unsafe fn store(&self, first: usize, outputs: usize) {
        let (c, o) = (self.c, self.operands);
        let positions = c.height.output * c.width.output;
        for image in 0..c.batch {
            let transpose = Transpose {
                from: self.sums.wrapping_add(image * positions * self.plan.outputs).cast_const(),
                from_row: self.plan.outputs as isize,
                from_column: 1,
                rows: positions,
                columns: outputs,
                to: o.y.wrapping_add(image * o.y_strides[0] + first * o.y_strides[1]),
                to_row: o.y_strides[1],
                onto: false,
                ahead: 0,
            };
            // SAFETY: the caller vouches for sums and output, whose positions follow each other.
            unsafe { self.kernel.transpose(&transpose) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ConvOptions, Geometry};

    #[test]
    fn few_positions_are_taken_whatever_the_threads() {
        let cases = [
            ([1, 128, 3, 3], [64, 128, 3, 3], true),
            ([2, 256, 1, 1], [64, 256, 1, 1], true),
            ([1, 64, 14, 14], [64, 64, 3, 3], false),
            ([1, 64, 14, 14], [64, 64, 1, 1], false),
        ];
        for kernel in Kernel::<f32>::available() {
            for (input, weight, taken) in cases {
                let g = Geometry::new(input, weight, &ConvOptions::default()).unwrap();
                let c = Correlation::forward(&g, true, kernel.lanes);
                for threads in [1, 2, 16] {
                    let plan = Patches::new(&c, kernel, threads, 1 << 20);
                    assert_eq!(
                        plan.is_some(),
                        taken,
                        "{}: {input:?}, {threads} threads",
                        kernel.name
                    );
                }
            }
        }
    }
}
