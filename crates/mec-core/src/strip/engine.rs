//! Runs correlations: the loops around the micro-kernel.
//!
//! ```text
//! for task in (group, part of the channels, strip)       in parallel
//!   for rows of a panel, for block of input channels
//!     pack the panel                                     once for all output channels of the part
//!     for tile of output channels
//!       for row of the panel
//!         micro-kernel: a window of the panel x the weights, where they lie -> a tile of the output
//! ```
//!
//! Every output element is summed in one fixed order by one task, so results do not depend on the
//! number of threads.

mod weights;

use super::buffer::Workspace;
use super::correlation::{Correlation, MAX_PHASES, Phase};
use super::panel::{self, List, Source, Steps, Strip};
use super::strips::Strips;
use super::workers::{for_each_worker, locate};
use crate::kernel::{
    Kernel, MAX_CHANNELS, MAX_COLUMNS, MAX_VECTORS, Onto, OutRun, Scatter, Tap, Tile, Vector,
    prefetch,
};
use std::cell::Cell;
use std::mem::MaybeUninit;
use std::ops::Range;
pub(crate) use weights::taps_bytes;
use weights::{Packed, Weights};

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

/// Runs all tasks of all jobs, on at most `threads` threads.
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
    for_each_worker(threads, tasks, |numbers| {
        let memory = Workspace::new(memory_len(jobs));
        let most_taps = jobs.iter().map(|(c, _)| c.all_taps()).max().unwrap_or(0);
        let taps = Vec::with_capacity(2 * most_taps);
        let packed = Cell::new(None);
        let held = Cell::new(None);
        let mut worker = Worker { kernel, operands, memory, held, taps, packed };
        for number in numbers {
            // SAFETY: the caller vouches for the tensors; the panel fits the largest plan.
            unsafe { worker.run(jobs, number) };
        }
    });
}

/// Elements of panel and weights, at least one, that serve every job.
fn memory_len(jobs: &[Job]) -> usize {
    jobs.iter().map(|(_, s)| s.workspace_len()).max().unwrap_or(0).max(1)
}

/// Bytes that [`run`] takes for each thread.
pub(crate) fn worker_bytes<T>(jobs: &[Job]) -> usize {
    let taps = jobs.iter().map(|(c, _)| taps_bytes(c)).max().unwrap_or(0);
    memory_len(jobs) * size_of::<T>() + taps
}

/// Bytes of an image's output from which its lines are asked for ahead of each window: cv7 took 1.4
/// times as long without, and c1, of a quarter of this size, 1.15 times as long with it (Zen 2).
const FAR: usize = 1 << 20;

/// Windows that are computed at once, of all phases together.
const AT_ONCE: usize = MAX_PHASES;

/// One thread's memory.
struct Worker<'a, T: Copy + 'static> {
    kernel: &'a Kernel<T>,
    operands: &'a Operands<T>,
    /// A panel, and packed weights behind it.
    memory: Workspace<T>,
    /// Which panel is packed: the next task may want the same.
    held: Cell<Option<Held>>,
    /// The taps of each phase, one phase after the other; then, where weights are packed, the same
    /// taps with their places there.
    taps: Vec<Tap>,
    /// Whose weights are packed: the next panel may want the same.
    packed: Cell<Option<Packed>>,
}

/// What tells a panel from others: its job, group and strip, its first row and channel.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Held {
    job: usize,
    group: usize,
    strip: usize,
    row: usize,
    channel: usize,
}

/// One task, resolved.
struct Task<'a> {
    job: usize,
    strip_number: usize,
    c: &'a Correlation,
    plan: &'a Strips,
    strip: Strip,
    group: usize,
    outputs: Range<usize>,
    /// Where row 0 of the strip lies in the output, and how many rows lie likewise.
    runs: List<OutRun>,
    /// Where each register of row 0 lies, if they can be stored as they are.
    registers: Option<[usize; MAX_VECTORS]>,
    common_rows: usize,
    /// Elements from an output row to the next.
    out_row: usize,
    /// Whether the output comes from further away than the second-level cache.
    far: bool,
    /// Whether each window is stored right behind the last: memory that a CPU asks for by itself.
    stream: bool,
    /// Elements from each tap's weight to the next's, if that is one distance.
    weight_step: Option<isize>,
}

/// What a panel holds: rows of output it serves, and channels.
struct Panel {
    row: usize,
    rows: usize,
    channel: usize,
    channels: usize,
}

impl<T: Vector> Worker<'_, T> {
    /// # Safety
    ///
    /// As [`run`].
    unsafe fn run(&mut self, jobs: &[Job], number: usize) {
        let (job, number) = locate(jobs.iter().map(|(c, plan)| plan.tasks(c.groups)), number);
        let (c, plan) = &jobs[job];
        let (strip_number, rest) = (number % plan.columns.strips, number / plan.columns.strips);
        let (part, group) = (rest % plan.parts, rest / plan.parts);
        let outputs = part * c.outputs / plan.parts..(part + 1) * c.outputs / plan.parts;
        let strip = Strip::new(c, &plan.columns, self.kernel.lanes, strip_number);
        let mut runs = List::new();
        strip.out_runs(c, 0, &c.strides(self.operands.y_strides), &mut runs);
        self.find_taps(c, &strip);
        let weight_step = Tap::weight_step(&self.taps);
        // What no window changes is found here: with few channels a window is short.
        if self.packed.get().is_some_and(|packed| packed.job != job) {
            // Another job's panel may be larger and lie where they were.
            self.packed.set(None);
        }
        let registers = self.registers(c, runs.as_slice(), strip.bundles);
        let out_row = c.height.out_step * c.strides(self.operands.y_strides)[2];
        let task = Task {
            job,
            strip_number,
            c,
            plan,
            group,
            outputs,
            registers,
            runs,
            common_rows: strip.common_rows(c),
            out_row,
            stream: registers.is_some() && out_row == strip.width,
            far: c.outputs * c.height.output * c.width.output * size_of::<T>() >= FAR,
            weight_step,
            strip,
        };
        if plan.kept_tiles > 0 {
            self.find_packed_taps(&task);
        }
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

    /// Where each of `vectors` registers belongs in the output, if the runs are whole registers: then
    /// tiles can be stored from where they are summed.
    fn registers(
        &self,
        c: &Correlation,
        runs: &[OutRun],
        vectors: usize,
    ) -> Option<[usize; MAX_VECTORS]> {
        if c.width.out_step * self.operands.y_strides[3] != 1 || c.phases().len() != 1 {
            return None;
        }
        let lanes = self.kernel.lanes;
        let mut offsets = [0; MAX_VECTORS];
        let mut next = 0;
        for run in runs {
            if run.lane != next * lanes || !run.columns.is_multiple_of(lanes) {
                return None;
            }
            for place in (0..run.columns).step_by(lanes) {
                offsets[next] = run.offset + place;
                next += 1;
            }
        }
        (next == vectors).then_some(offsets)
    }

    /// Packs a panel and multiplies it with the weights of all its output channels.
    ///
    /// # Safety
    ///
    /// As [`run`].
    unsafe fn panel(&self, task: &Task, panel: &Panel) {
        let o = self.operands;
        let channel = task.group * task.c.channels + panel.channel;
        let source = Source {
            first: o.x.wrapping_offset(channel as isize * o.x_strides[1]),
            strides: task.c.strides(o.x_strides),
            channels: panel.channels,
        };
        let rows = (panel.row, panel.rows);
        let steps = task.strip.steps(task.c, panel.rows, panel.channels);
        let (job, group, strip) = (task.job, task.group, task.strip_number);
        let held = Some(Held { job, group, strip, row: panel.row, channel: panel.channel });
        // SAFETY: the caller vouches for the tensors; the plan made room for panel and weights.
        unsafe {
            if self.held.replace(held) != held {
                panel::pack(
                    self.kernel,
                    task.c,
                    &task.strip,
                    rows,
                    &source,
                    steps,
                    self.memory.as_ptr(),
                );
            }
            for (tile, outputs) in self.kernel.tile_ranges(task.outputs.clone()).enumerate() {
                let weights = self.weights(task, panel, tile, &outputs);
                let mut row = 0;
                while row < panel.rows {
                    let rows = row..row + self.alike(task, panel, row);
                    row = rows.end;
                    self.windows(task, panel, steps, rows, &outputs, &weights);
                }
            }
        }
    }

    /// How many windows from `row` on differ only by where they begin, and are computed at once.
    fn alike(&self, task: &Task, panel: &Panel, row: usize) -> usize {
        let common = task.common_rows.saturating_sub(panel.row + row);
        // The same taps take part in each, and the sums of all have room beside each other.
        let same_taps = !task.c.transposed || task.c.height.is_pointwise();
        let most = match (same_taps, task.stream) {
            (false, _) => 1,
            (true, true) => panel.rows,
            (true, false) => AT_ONCE / task.c.phases().len(),
        };
        most.min(common).min(panel.rows - row).max(1)
    }

    /// Some windows of the panel that are alike, times some output channels: a tile for each phase.
    ///
    /// # Safety
    ///
    /// As [`run`]; the panel is packed.
    unsafe fn windows<'t>(
        &self,
        task: &Task,
        panel: &Panel,
        steps: Steps,
        rows: Range<usize>,
        outputs: &Range<usize>,
        weights: &Weights<'t, T>,
    ) {
        let (c, o, strip) = (task.c, self.operands, &task.strip);
        let row = rows.start;
        let window_step = c.height.step / c.height.unit() * steps.row;
        // Rows differ by where they begin, but where a band has fewer rows than the others.
        let mut fewer;
        let (runs, registers, shift) = if panel.row + row < task.common_rows {
            (task.runs.as_slice(), task.registers, (panel.row + row) * task.out_row)
        } else {
            fewer = List::new();
            strip.out_runs(c, panel.row + row, &c.strides(o.y_strides), &mut fewer);
            let runs = fewer.as_slice();
            (runs, self.registers(c, runs, strip.bundles), 0)
        };
        if runs.is_empty() {
            return;
        }
        let output = task.group * c.outputs + outputs.start;
        let onto = match (panel.channel, o.bias.is_null()) {
            (0, true) => Onto::Nothing,
            (0, false) => Onto::Bias(o.bias.wrapping_add(output)),
            _ => Onto::Output,
        };
        let out = o.y.wrapping_add(output * o.y_strides[1] + shift);
        let out_column = c.width.out_step * o.y_strides[3];
        // What is stored waits for its line, and lines are far apart: ask for those of the next window.
        if task.far && !task.stream {
            for run in runs {
                let last = run.offset + (run.columns - 1) * out_column;
                for r in 0..outputs.len() {
                    for next in rows.len()..2 * rows.len() {
                        let row = next * task.out_row;
                        prefetch(out.wrapping_add(last + row + r * o.y_strides[1]));
                    }
                }
            }
        }
        // Kernel rows that meet no row of `dy` add nothing. In the forward pass they multiply padding,
        // which is there: a weight that is not finite makes a product with it that is none either.
        let tap_rows =
            if c.transposed { strip.tap_rows(c, panel.row + row) } else { 0..c.height.taps };
        let taps_of = |phase: &Phase, taps: &'t [Tap]| {
            &taps[tap_rows.start * phase.taps..tap_rows.end * phase.taps]
        };
        let mut tile = Tile {
            panel: self.memory.as_ptr().wrapping_add(row * window_step),
            panel_channel: steps.channel,
            weight: weights.first,
            weight_channel: weights.channel_of(weights.taps),
            weight_output: weights.output,
            weight_step: weights.step,
            channels: panel.channels,
            taps: &[],
            out: [out; MAX_VECTORS],
            out_channel: o.y_strides[1],
            outputs: outputs.len(),
            onto,
            rows: rows.len(),
            panel_row: window_step,
            out_row: task.out_row,
        };
        // SAFETY: the panel holds every row the window reads; the runs are places of the output.
        unsafe {
            if let Some(offsets) = registers {
                tile.out = offsets.map(|offset| out.wrapping_add(offset));
                tile.taps = taps_of(&c.phases()[0], weights.taps);
                self.kernel.tile(strip.bundles, &tile);
                return;
            }
            let mut aside = MaybeUninit::<[T; AT_ONCE * MAX_COLUMNS * MAX_CHANNELS]>::uninit();
            let aside = aside.as_mut_ptr().cast::<T>();
            tile.out_channel = c.phases().len() * strip.width;
            tile.out_row = outputs.len() * tile.out_channel;
            // A sum begins with its bias wherever it is stored: which way depends on how many threads divide the work.
            let scattered_onto;
            (tile.onto, scattered_onto) = match onto {
                Onto::Bias(_) => (onto, Onto::Nothing),
                Onto::Nothing | Onto::Output => (Onto::Nothing, onto),
            };
            let mut taps = weights.taps;
            for (number, phase) in c.phases().iter().enumerate() {
                let these;
                (these, taps) = taps.split_at(c.height.taps * phase.taps);
                tile.taps = taps_of(phase, these);
                tile.weight_channel = weights.channel_of(these);
                let phase_out = aside.add(number * strip.width);
                tile.out = [0, 1, 2].map(|v| phase_out.wrapping_add(v * self.kernel.lanes));
                self.kernel.tile(strip.bundles, &tile);
                tile.weight = tile.weight.wrapping_add(weights.phase * these.len());
            }
            for number in 0..rows.len() {
                self.kernel.scatter(&Scatter {
                    tile: aside.add(number * tile.out_row),
                    tile_phase: strip.width,
                    phases: c.phases().len(),
                    channels: outputs.len(),
                    runs,
                    last_phases: c.last_phases(),
                    out: out.wrapping_add(number * task.out_row),
                    out_channel: o.y_strides[1],
                    out_column,
                    onto: scattered_onto,
                });
            }
        }
    }
}
