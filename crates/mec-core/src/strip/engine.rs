//! Runs correlations: the loops around the micro-kernel.
//!
//! ```text
//! for task in (group, part of the channels, strip)       in parallel
//!   for rows of a panel, for block of input channels
//!     pack the panel                                     once for all output channels of the part
//!     for tile of output channels
//!       pack or find the weights
//!       for row of the panel
//!         micro-kernel: a window of the panel x the weights -> a tile of the output
//! ```
//!
//! Every output element is summed in one fixed order by one task, so results do not depend on the
//! number of threads.

use super::buffer::Workspace;
use super::correlation::Correlation;
use super::panel::{self, Source, Strip};
use super::strips::{Packing, Strips};
use crate::kernel::{Kernel, Loop, MAX_CHANNELS, MAX_COLUMNS, Onto, Scatter, Tile, Vector};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A correlation with its plan.
pub(crate) type Job = (Correlation, Strips);

/// The tensors of a correlation.
#[derive(Clone, Copy)]
pub(crate) struct Operands<T> {
    /// Input at index zero.
    pub x: *const T,
    /// Strides of image, channel, row, column; a group's channels follow the last group's.
    pub x_strides: [isize; 4],
    /// Weight at index zero.
    pub weight: *const T,
    /// Strides of group, output channel, summed channel, kernel row, kernel column.
    pub weight_strides: [isize; 5],
    /// One value for each output channel of all groups, or null.
    pub bias: *const T,
    /// Output at index zero.
    pub y: *mut T,
    /// Strides of image, channel, row, column.
    pub y_strides: [usize; 4],
}

// SAFETY: the tensors are read only, or written at places no two tasks share.
unsafe impl<T: Send + Sync> Send for Operands<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for Operands<T> {}

/// Runs all tasks of all jobs, on at most `threads` threads of the current rayon pool.
///
/// # Safety
///
/// The whole input and weight of every job can be read through `operands`, a bias that is not null
/// has a value for every output channel, and every output position can be written. No two jobs
/// write the same position.
pub(crate) unsafe fn run<T: Vector + Send + Sync>(
    kernel: &Kernel<T>,
    jobs: &[Job],
    operands: &Operands<T>,
    threads: usize,
) {
    let tasks: usize = jobs.iter().map(|(c, s)| s.tasks(c.groups)).sum();
    let workspace = jobs.iter().map(|(_, s)| s.workspace_len()).max().unwrap_or(0);
    for_each_worker(threads, tasks, |first, next| {
        let mut worker =
            Worker { kernel, operands, memory: Workspace::new(workspace), packed: None };
        let mut task = Some(first);
        while let Some(number) = task {
            // SAFETY: the caller vouches for the tensors; the memory fits the largest plan.
            unsafe { worker.run(jobs, number) };
            task = next();
        }
    });
}

/// Deals the numbers below `tasks`, in order, to at most `threads` workers: each starts with its
/// first number and asks for more. A worker that comes too late is not started, so that it takes
/// no memory.
pub(crate) fn for_each_worker(
    threads: usize,
    tasks: usize,
    work: impl Fn(usize, &dyn Fn() -> Option<usize>) + Sync,
) {
    let taken = AtomicUsize::new(0);
    let next = || Some(taken.fetch_add(1, Ordering::Relaxed)).filter(|&task| task < tasks);
    let start = || {
        if let Some(first) = next() {
            work(first, &next);
        }
    };
    if threads.min(tasks) <= 1 {
        start();
    } else {
        rayon::scope(|scope| {
            for _ in 1..threads.min(tasks) {
                scope.spawn(|_| start());
            }
            start();
        });
    }
}

/// One thread's memory, and which weights it holds packed.
struct Worker<'a, T: Copy + 'static> {
    kernel: &'a Kernel<T>,
    operands: &'a Operands<T>,
    memory: Workspace<T>,
    /// Job, group and part whose weights are resident, and how many of its channels are packed.
    packed: Option<([usize; 3], usize)>,
}

/// One task, resolved.
struct Task<'a> {
    c: &'a Correlation,
    plan: &'a Strips,
    strip: Strip,
    group: usize,
    outputs: Range<usize>,
}

/// What a panel holds: rows of output it serves, and channels.
struct Panel {
    row: usize,
    rows: usize,
    channel: usize,
    channels: usize,
}

/// Where a tile finds its weights: the first one, and the strides from an output channel to the
/// next and from a summed channel, a kernel row and a kernel column to the next.
#[derive(Clone, Copy)]
struct Weights<T> {
    first: *const T,
    output: isize,
    sum: [isize; 3],
}

impl<T: Vector> Worker<'_, T> {
    /// # Safety
    ///
    /// As [`run`].
    unsafe fn run(&mut self, jobs: &[Job], mut number: usize) {
        let mut job = 0;
        while number >= jobs[job].1.tasks(jobs[job].0.groups) {
            number -= jobs[job].1.tasks(jobs[job].0.groups);
            job += 1;
        }
        let (c, plan) = &jobs[job];
        let (strip, rest) = (number % plan.columns.strips, number / plan.columns.strips);
        let (part, group) = (rest % plan.parts, rest / plan.parts);
        if self.packed.is_none_or(|(held, _)| held != [job, group, part]) {
            self.packed = Some(([job, group, part], 0));
        }
        let outputs = part * plan.part_outputs..c.outputs.min((part + 1) * plan.part_outputs);
        let task = Task { c, plan, strip: Strip::new(c, &plan.columns, strip), group, outputs };
        for row in (0..plan.columns.band_rows).step_by(plan.rows) {
            // A sum over nothing still writes its output.
            for channel in (0..c.channels.max(1)).step_by(plan.channels.max(1)) {
                let panel = Panel {
                    row,
                    rows: plan.rows.min(plan.columns.band_rows - row),
                    channel,
                    channels: plan.channels.min(c.channels - channel),
                };
                // SAFETY: the caller vouches for the tensors.
                unsafe { self.panel(&task, &panel) };
            }
        }
    }

    /// Packs a panel and multiplies it with the weights of all its output channels.
    ///
    /// # Safety
    ///
    /// As [`run`].
    unsafe fn panel(&mut self, task: &Task, panel: &Panel) {
        let o = self.operands;
        let channel = task.group * task.c.channels + panel.channel;
        let source = Source {
            first: o.x.wrapping_offset(channel as isize * o.x_strides[1]),
            strides: o.x_strides,
            channels: panel.channels,
        };
        let rows = (panel.row, panel.rows);
        // SAFETY: the caller vouches for the tensors; the plan made room for panel and weights.
        unsafe {
            panel::pack(self.kernel, task.c, &task.strip, rows, &source, self.memory.as_ptr());
            for first in task.outputs.clone().step_by(self.kernel.channels) {
                let outputs = first..task.outputs.end.min(first + self.kernel.channels);
                let weights = self.weights(task, panel, outputs.clone());
                for row in 0..panel.rows {
                    self.tile(task, panel, row, outputs.clone(), &weights);
                }
            }
        }
    }

    /// The weights of one tile's channels for one panel.
    ///
    /// # Safety
    ///
    /// As [`run`].
    unsafe fn weights(&mut self, task: &Task, panel: &Panel, outputs: Range<usize>) -> Weights<T> {
        let (c, o) = (task.c, self.operands);
        let [group, output, channel, row, column] = o.weight_strides;
        let first = task.group as isize * group
            + outputs.start as isize * output
            + c.height.weight_first as isize * row
            + c.width.weight_first as isize * column;
        let in_place = Weights {
            first: o.weight.wrapping_offset(first),
            output,
            sum: [channel, row * c.height.weight_step, column * c.width.weight_step],
        };
        let tile = self.kernel.channels;
        let packed = |first| Weights {
            first,
            output: 1,
            sum: [c.taps() * tile, c.width.taps * tile, tile].map(|s| s as isize),
        };
        // SAFETY: the plan made room behind the panel for the weights it wants packed.
        unsafe {
            let room = self.memory.as_ptr().add(task.plan.panel_len);
            match task.plan.packing {
                Packing::InPlace => in_place.channel(panel.channel),
                Packing::Block => {
                    let block = in_place.channel(panel.channel);
                    block.pack(c, panel.channels, outputs.len(), tile, room);
                    packed(room.cast_const())
                }
                Packing::Resident => {
                    let done = outputs.start - task.outputs.start;
                    let to = room.add(done * c.channels * c.taps());
                    let (_, ready) = self.packed.as_mut().expect("set when the task began");
                    if *ready == done {
                        in_place.pack(c, c.channels, outputs.len(), tile, to);
                        *ready += tile;
                    }
                    packed(to.cast_const()).channel(panel.channel)
                }
            }
        }
    }

    /// One window of the panel, one tile of the output.
    ///
    /// # Safety
    ///
    /// As [`run`]; panel and weights are packed.
    unsafe fn tile(
        &self,
        task: &Task,
        panel: &Panel,
        row: usize,
        outputs: Range<usize>,
        weights: &Weights<T>,
    ) {
        let (c, o) = (task.c, self.operands);
        let runs = task.strip.out_runs(c, panel.row + row, &o.y_strides);
        let Some(first) = runs.as_slice().first() else { return };
        let line = c.width.taps * task.strip.width;
        let unit = c.height.unit();
        let channel = task.group * c.outputs + outputs.start;
        let onto = match (panel.channel, o.bias.is_null()) {
            (0, true) => Onto::Nothing,
            (0, false) => Onto::Bias(o.bias.wrapping_add(channel)),
            _ => Onto::Output,
        };
        let out = o.y.wrapping_add(channel * o.y_strides[1]);
        let out_column = c.width.out_step * o.y_strides[3];
        let mut tile = Tile {
            panel: self.memory.as_ptr().wrapping_add(row * c.height.step / unit * line),
            weight: weights.first,
            weight_channel: weights.output,
            sum: joined([
                Loop {
                    count: panel.channels,
                    panel: c.height.panel_rows(panel.rows) * line,
                    weight: weights.sum[0],
                },
                Loop {
                    count: c.height.taps,
                    panel: c.height.tap_step / unit * line,
                    weight: weights.sum[1],
                },
                Loop { count: c.width.taps, panel: task.strip.width, weight: weights.sum[2] },
            ]),
            out: out.wrapping_add(first.offset),
            out_channel: o.y_strides[1],
            columns: first.columns,
            channels: outputs.len(),
            onto,
        };
        // SAFETY: the panel holds every row the window reads; the runs are places of the output.
        unsafe {
            if runs.as_slice().len() == 1 && first.lane == 0 && out_column == 1 {
                self.kernel.tile(task.strip.bundles, &tile);
                return;
            }
            let mut aside = MaybeUninit::<[T; MAX_COLUMNS * MAX_CHANNELS]>::uninit();
            tile.out = aside.as_mut_ptr().cast();
            tile.out_channel = task.strip.width;
            tile.columns = task.strip.width;
            tile.onto = Onto::Nothing;
            self.kernel.tile(task.strip.bundles, &tile);
            self.kernel.scatter(&Scatter {
                tile: tile.out,
                tile_channel: task.strip.width,
                channels: outputs.len(),
                runs: runs.as_slice(),
                out,
                out_channel: o.y_strides[1],
                out_column,
                onto,
            });
        }
    }
}

/// Joins loops whose steps follow on each other, so that the innermost one is long.
fn joined([outer, middle, inner]: [Loop; 3]) -> [Loop; 3] {
    let once = Loop { count: 1, panel: 0, weight: 0 };
    let mut kept = [once, once, inner];
    let mut last = 2;
    for next in [middle, outer] {
        let inner = &mut kept[last];
        let follows = next.panel == inner.count * inner.panel
            && next.weight == inner.count as isize * inner.weight;
        if next.count == 1 {
            continue;
        } else if inner.count == 1 && next.panel == inner.panel {
            *inner = next;
        } else if follows {
            inner.count *= next.count;
        } else {
            last -= 1;
            kept[last] = next;
        }
    }
    kept
}

impl<T: Copy> Weights<T> {
    /// From summed channel `channel` on.
    fn channel(mut self, channel: usize) -> Self {
        self.first = self.first.wrapping_offset(channel as isize * self.sum[0]);
        self
    }

    /// Copies the weights of `outputs` channels to `to` as `[channel][tap y][tap x][tile]`.
    ///
    /// # Safety
    ///
    /// The weights can be read, and `channels * taps * tile` elements can be written.
    unsafe fn pack(
        &self,
        c: &Correlation,
        channels: usize,
        outputs: usize,
        tile: usize,
        mut to: *mut T,
    ) {
        let [channel, row, column] = self.sum;
        for i in 0..channels as isize {
            for t in 0..c.height.taps as isize {
                for m in 0..c.width.taps as isize {
                    let from = self.first.wrapping_offset(i * channel + t * row + m * column);
                    for r in 0..outputs {
                        // SAFETY: the caller vouches for both sides.
                        unsafe { *to.add(r) = *from.wrapping_offset(r as isize * self.output) };
                    }
                    to = to.wrapping_add(tile);
                }
            }
        }
    }
}
