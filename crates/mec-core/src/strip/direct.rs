//! Correlations of few output channels, straight from the input: the input gradient of a first layer.
//!
//! ```text
//! for task in (group, image, band of rows)                 in parallel
//!   for output row, for block of columns
//!     micro-kernel: all channels and kernel elements       -> a tile of all outputs
//! ```
//!
//! A row is met by as many output rows as the kernel has rows. Where those of all channels stay in the second-level
//! cache meanwhile, each is read from memory once.

use super::buffer::Workspace;
use super::correlation::{Correlation, Phase};
use super::engine::Operands;
use super::workers::{for_each_worker, locate};
use crate::kernel::{
    DIRECT_COLUMNS, DIRECT_OUTPUTS, DIRECT_VECTORS, Direct as Call, DirectTap, FEW, Kernel,
    MAX_LANES, Onto, OutRun, Scatter, Vector, inside_columns,
};
use crate::plan::Piece;
use std::iter;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Bytes of weights that stay in the second-level cache beside what they are multiplied with.
const MOST_WEIGHT_BYTES: usize = 128 << 10;

/// Output rows of a band: each reads the rows above it once more.
const BAND_ROWS: usize = 16;

/// Tasks of each thread that keep them busy evenly, and rows of a band that is made smaller for it.
const TASKS_WANTED: usize = 4;
const FEWEST_ROWS: usize = 4;

/// What packing adds to the time of a panel's sums (cv7).
const PACKING: f64 = 1.5;

/// A correlation with its plan.
pub(crate) type Job = (Correlation, Direct);

/// The plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Direct {
    /// Bands of an image.
    bands: usize,
    /// Most registers of a block of columns, and of one that reaches beyond the input.
    vectors: [usize; 2],
    /// Input columns from the first that an output meets to the last.
    reach: usize,
}

impl Direct {
    /// Plans `c`; `None` where a panel serves better.
    pub fn new<T: Vector>(c: &Correlation, kernel: &Kernel<T>, threads: usize) -> Option<Self> {
        let phases = c.phases().len();
        let outputs = c.outputs * phases;
        let last = |p: &Phase| p.offset + p.taps.saturating_sub(1) * c.width.tap_step;
        let reach = c.phases().iter().map(last).max().unwrap_or(0);
        // One output has too few sums on their way, and rows above and below that the forward pass multiplies are
        // left out.
        if !c.transposed
            || !(2..=2 * FEW).contains(&outputs)
            || c.outputs > FEW
            || phases > 2
            || c.width.step > 1
            || c.space.is_some()
            || c.joined_row.is_some()
            || [c.channels, c.batch, c.groups, c.height.output, c.width.output].contains(&0)
            || reach >= DIRECT_COLUMNS
            || Self::weights_len(c) * size_of::<T>() > MOST_WEIGHT_BYTES
        {
            return None;
        }
        let wanted = (TASKS_WANTED * threads).div_ceil(c.batch * c.groups);
        let plan = Self {
            bands: wanted
                .min(c.height.output.div_ceil(FEWEST_ROWS))
                .max(c.height.output.div_ceil(BAND_ROWS)),
            vectors: [false, true].map(|masked| kernel.direct_vectors(outputs, masked)),
            reach,
        };
        let cycles: f64 = plan
            .blocks(c, kernel.lanes)
            .map(|(columns, masked)| {
                step_cycles(columns.len().div_ceil(kernel.lanes), outputs, masked)
            })
            .sum();
        // Strips have three registers, and of several images if one is narrow.
        let strips = c.width.output as f64 / (3 * kernel.lanes) as f64;
        let panel = strips * phases as f64 * step_cycles(3, c.outputs, false) * PACKING;
        (1.05 * cycles <= panel).then_some(plan)
    }

    /// The blocks of columns of a row, and whether each reaches beyond the input.
    fn blocks(self, c: &Correlation, lanes: usize) -> impl Iterator<Item = (Range<usize>, bool)> {
        let (width, input) = (c.width.output, c.width.input as isize);
        let mut first = 0;
        iter::from_fn(move || {
            let end = |vectors: usize| (first + vectors * lanes).min(width);
            let whole = |end: usize| {
                let at = |column: usize| column as isize + c.width.base;
                at(first) >= 0 && at(end) + (self.reach as isize) <= input
            };
            let most = end(self.vectors[0]);
            let masked = !whole(most);
            let block = first..if masked { end(self.vectors[1]) } else { most };
            first = block.end;
            (!block.is_empty()).then_some((block, masked))
        })
    }

    /// Elements of the weights of a group.
    fn weights_len(c: &Correlation) -> usize {
        c.channels * c.all_taps() * c.outputs
    }

    fn tasks(self, c: &Correlation) -> usize {
        c.groups * c.batch * self.bands
    }

    /// What a reader of the plan sees of it.
    pub fn piece(&self, c: &Correlation) -> Piece {
        Piece {
            row_phase: c.height.out_base,
            row_phases: 1,
            column_phase: c.width.out_base,
            column_phases: c.phases().len(),
            output: [c.height.output, c.width.output],
            bands: self.bands,
            strips: c.batch * self.bands,
            panel_rows: 0,
            panel_channels: c.channels,
            planes: 0,
            tasks: self.tasks(c),
        }
    }
}

/// Cycles of a step of the sums of `registers` by `outputs`: half a cycle for each multiply-add and for each load, but
/// never less than a multiply-add's latency.
fn step_cycles(registers: usize, outputs: usize, masked: bool) -> f64 {
    let loads = registers * (1 + usize::from(masked)) + outputs + 2;
    (registers * outputs).max(loads).max(8) as f64 / 2.0
}

/// The most of any job: elements of weights, and kernel elements of all phases.
fn most(jobs: &[Job]) -> [usize; 2] {
    let weights = jobs.iter().map(|(c, _)| Direct::weights_len(c)).max();
    let taps = jobs.iter().map(|(c, plan)| c.height.taps * (plan.reach + 1)).max();
    [weights, taps].map(|most| most.unwrap_or(0))
}

/// Bytes that [`run`] takes for each thread.
pub(crate) fn worker_bytes<T>(jobs: &[Job]) -> usize {
    let [weights, taps] = most(jobs);
    weights * size_of::<T>() + taps * size_of::<DirectTap>()
}

/// Independent tasks.
pub(crate) fn tasks(jobs: &[Job]) -> usize {
    jobs.iter().map(|(c, plan)| plan.tasks(c)).sum()
}

/// Runs all tasks of all jobs, on at most `threads` threads.
///
/// # Safety
///
/// As [`engine::run`](super::engine::run); the columns of each row of the input follow each other.
pub(crate) unsafe fn run<T: Vector + Send + Sync>(
    kernel: &Kernel<T>,
    jobs: &[Job],
    operands: &Operands<T>,
    threads: usize,
) {
    let all = tasks(jobs);
    let [most_weights, most_taps] = most(jobs);
    for_each_worker(threads, all, |numbers| {
        let memory = Workspace::new(most_weights);
        let mut taps = Taps { taps: Vec::with_capacity(most_taps), columns: [0; 3] };
        let mut held = None;
        for number in numbers {
            let (job, number) = locate(jobs.iter().map(|(c, plan)| plan.tasks(c)), number);
            let (c, plan) = &jobs[job];
            let (group, number) =
                (number / (c.batch * plan.bands), number % (c.batch * plan.bands));
            let weights = memory.as_ptr();
            let these = Group { kernel, c, plan, operands, group, weights };
            // SAFETY: the caller vouches for the tensors, the plan for the memory.
            unsafe {
                if held != Some([job, group]) {
                    these.prepare(&mut taps);
                    held = Some([job, group]);
                }
                these.band(&taps, number / plan.bands, number % plan.bands);
            }
        }
    });
}

/// The kernel elements of a correlation, row by row: those that all outputs meet, then those of one phase alone.
struct Taps {
    taps: Vec<DirectTap>,
    /// How many each row has of each kind.
    columns: [usize; 3],
}

impl Taps {
    /// Those of some kernel rows.
    fn of_rows(&self, rows: Range<usize>, all_rows: usize) -> [&[DirectTap]; 3] {
        let mut rest = &self.taps[..];
        self.columns.map(|columns| {
            let (these, others) = rest.split_at(columns * all_rows);
            rest = others;
            &these[rows.start * columns..rows.end * columns]
        })
    }
}

/// One thread's view of a group of a correlation.
struct Group<'a, T: Copy + 'static> {
    kernel: &'a Kernel<T>,
    c: &'a Correlation,
    plan: &'a Direct,
    operands: &'a Operands<T>,
    group: usize,
    /// The weights, `[channel][kernel element][output]`.
    weights: *mut T,
}

impl<T: Vector> Group<'_, T> {
    /// Finds the kernel elements and copies their weights.
    ///
    /// # Safety
    ///
    /// As [`run`]; the weights have room.
    unsafe fn prepare(&self, taps: &mut Taps) {
        let (c, o) = (self.c, self.operands);
        let [group, output, channel, row, column] = o.weight_strides;
        let first = o.weight.wrapping_offset(self.group as isize * group);
        let meets = |phase: &Phase, at: usize| {
            let tap = at.checked_sub(phase.offset)?;
            let tap_step = c.width.tap_step.max(1);
            (tap % tap_step == 0 && tap / tap_step < phase.taps).then_some(tap / tap_step)
        };
        let phases = c.phases();
        let all_weights = c.all_taps() * c.outputs;
        taps.taps.clear();
        let mut weights = 0;
        for kind in 0..3 {
            // Of one phase, all outputs are the first kind.
            let these = match (kind, phases.len()) {
                (0, _) => 0..phases.len(),
                (_, 1) => 0..0,
                (kind, _) => kind - 1..kind,
            };
            let of_kind = |at: &usize| {
                let met = (0..phases.len()).filter(|&p| meets(&phases[p], *at).is_some());
                met.eq(these.clone()) && !these.is_empty()
            };
            taps.columns[kind] = (0..DIRECT_COLUMNS).filter(of_kind).count();
            for y in 0..c.height.taps {
                for at in (0..DIRECT_COLUMNS).filter(of_kind) {
                    let below = (y * c.height.tap_step) as isize * o.x_strides[2];
                    taps.taps.push(DirectTap { input: below + at as isize, column: at, weights });
                    for phase in &phases[these.clone()] {
                        let x = meets(phase, at).unwrap_or(0);
                        let from = first.wrapping_offset(c.weight(phase, [y, x], [row, column]));
                        for r in 0..c.outputs {
                            for k in 0..c.channels {
                                let at = r as isize * output + k as isize * channel;
                                // SAFETY: the caller vouches for both sides.
                                unsafe {
                                    *self.weights.add(k * all_weights + weights) =
                                        *from.wrapping_offset(at);
                                }
                            }
                            weights += 1;
                        }
                    }
                }
            }
        }
    }

    /// Computes a band of an image.
    ///
    /// # Safety
    ///
    /// As [`run`]; the group is prepared.
    unsafe fn band(&self, taps: &Taps, image: usize, band: usize) {
        let (c, o) = (self.c, self.operands);
        let (h, w) = (&c.height, &c.width);
        let lanes = self.kernel.lanes;
        let outputs = c.outputs * c.phases().len();
        let channel = (self.group * c.channels) as isize;
        let x = o.x.wrapping_offset(image as isize * o.x_strides[0] + channel * o.x_strides[1]);
        let rows = band * h.output / self.plan.bands..(band + 1) * h.output / self.plan.bands;
        let place = |row: usize, column: usize| {
            let row = (row * h.step) as isize + h.base;
            x.wrapping_offset(row * o.x_strides[2] + column as isize + w.base)
        };
        let last_row = ((h.taps - 1) * h.tap_step) as isize * o.x_strides[2];
        let mut aside = MaybeUninit::<[T; DIRECT_OUTPUTS * DIRECT_VECTORS * MAX_LANES]>::uninit();
        let aside = aside.as_mut_ptr().cast::<T>();
        let out_channel = (self.group * c.outputs) * o.y_strides[1];
        for row in rows {
            let top = (row * h.step) as isize + h.base;
            let (above, inside) = inside_columns(top, h.tap_step.max(1), h.input, h.taps);
            let taps = taps.of_rows(above..above + inside, h.taps);
            for (columns, _) in self.plan.blocks(c, lanes) {
                let vectors = columns.len().div_ceil(lanes);
                let width = vectors * lanes;
                // The next block's last row; the others have been met.
                let ahead = match columns.end < w.output {
                    true => place(row, columns.end + self.plan.reach).wrapping_offset(last_row),
                    false => place(row + 1, 0).wrapping_offset(last_row),
                };
                // SAFETY: the caller vouches for the tensors; what is read lies inside them.
                unsafe {
                    self.kernel.direct(
                        vectors,
                        outputs,
                        &Call {
                            from: place(row, columns.start),
                            from_channel: o.x_strides[1],
                            channels: c.channels,
                            taps,
                            column: columns.start as isize + w.base,
                            columns: w.input,
                            kernel_columns: self.plan.reach + 1,
                            weights: self.weights,
                            weights_channel: c.all_taps() * c.outputs,
                            ahead,
                            // A channel's phases follow each other.
                            to: std::array::from_fn(|r| {
                                let (phase, channel) = (r / c.outputs, r % c.outputs);
                                aside.add((channel * c.phases().len() + phase) % outputs * width)
                            }),
                        },
                    );
                    self.kernel.scatter(&Scatter {
                        tile: aside,
                        tile_phase: width,
                        phases: c.phases().len(),
                        last_phases: c.last_phases(),
                        channels: c.outputs,
                        runs: &[OutRun {
                            lane: 0,
                            columns: columns.len(),
                            offset: image * o.y_strides[0]
                                + out_channel
                                + (row * h.out_step + h.out_base) * o.y_strides[2]
                                + (columns.start * w.out_step + w.out_base) * o.y_strides[3],
                            ends: columns.end == w.output,
                        }],
                        out: o.y,
                        out_channel: o.y_strides[1],
                        out_column: w.out_step * o.y_strides[3],
                        onto: Onto::Nothing,
                    });
                }
            }
        }
    }
}
