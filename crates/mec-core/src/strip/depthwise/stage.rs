//! Planes that are copied, some rows at a time, to where no stride is left in a row and padding is there.
//!
//! ```text
//! for task in planes, several where they are small     in parallel
//!   for correlation (one, or one for each row phase of an input gradient)
//!     for rows, columns of the output
//!       copy the rows that they meet                   [plane][row][residue by the stride][column]
//!       for plane
//!         micro-kernel: all kernel elements x whole registers
//! ```

use super::Sets;
use crate::kernel::{
    Kernel, Onto, OutRun, Pack, Plane, Scatter, Staged, StagedSums, StagedTap, Vector,
    inside_columns,
};
use crate::strip::buffer::Workspace;
use crate::strip::correlation::{Correlation, Lowering, Phase};
use crate::strip::engine::Operands;
use crate::strip::weight_gradient::Operands as GradientOperands;
use crate::strip::workers::for_each_worker;
use std::ops::Range;

/// Bytes of a stage that stays in the first-level cache beside what it is multiplied into.
const STAGE: usize = 20 << 10;

/// How the plane of a correlation is staged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stage {
    lowering: Lowering,
    /// Most output rows, and columns, that a stage serves.
    rows: usize,
    columns: usize,
    /// Elements of a plane of a row, in whole registers: they are read whole at every kernel element.
    plane_len: usize,
    /// Elements of a phase's outputs of a row, where they are put together afterwards.
    aside: usize,
    /// Input rows from a row of the stage to the next.
    unit: usize,
    /// Elements of one plane's stage.
    len: usize,
    /// Most planes that are staged together: several where whole ones have room. What is found once for all of them
    /// took longer than a small plane's sums (14 x 14, stride 2).
    planes: usize,
}

/// A correlation of one channel with one, and how it is staged.
pub(crate) type Job = (Correlation, Stage);

impl Stage {
    /// Plans for at most `limit` bytes; `None` if not even a row of one register fits.
    pub fn new<T: Vector>(c: &Correlation, kernel: &Kernel<T>, limit: usize) -> Option<Self> {
        let [height, width] = [c.height.output, c.width.output].map(|n| n.max(1));
        let lowering = c.lowering(false);
        let with = |rows, columns: usize| {
            let registers = columns.next_multiple_of(kernel.lanes);
            let plane_len = lowering.plane_len(registers, kernel.lanes);
            Self {
                lowering,
                rows,
                columns,
                plane_len,
                aside: registers,
                unit: c.height.unit(),
                len: c.height.panel_rows(rows) * lowering.planes * plane_len,
                planes: 1,
            }
        };
        let fits = |stage: &Self, most: usize| stage.bytes::<T>(c) <= limit.min(most);
        // As many whole rows as stay in the cache, else pieces of one row, down to a register.
        let rows = (1..=height).map(|n| with(height.div_ceil(n), width));
        let pieces = (1..=width.div_ceil(kernel.lanes)).map(|n| with(1, width.div_ceil(n)));
        let smallest = with(1, width.min(kernel.lanes));
        let mut stage = rows
            .chain(pieces)
            .find(|stage| fits(stage, STAGE))
            .or(Some(smallest).filter(|stage| fits(stage, usize::MAX)))?;
        if [stage.rows, stage.columns] == [height, width] {
            let room = limit.min(STAGE).saturating_sub(stage.aside_len(c) * size_of::<T>());
            let taps = c.all_taps() * size_of::<StagedTap<T>>();
            stage.planes = (room / (stage.len * size_of::<T>() + taps).max(1)).max(1);
        }
        Some(stage)
    }

    /// Elements of a row.
    fn line_len(&self) -> usize {
        self.lowering.planes * self.plane_len
    }

    /// Elements of a phase's outputs, where they are put together afterwards.
    fn aside_len(&self, c: &Correlation) -> usize {
        if is_direct(c) { 0 } else { self.rows * self.aside_row(c) }
    }

    fn aside_row(&self, c: &Correlation) -> usize {
        c.phases().len() * self.aside
    }

    /// Bytes of the stages and of outputs aside.
    fn bytes<T>(&self, c: &Correlation) -> usize {
        (self.planes * self.len + self.aside_len(c)) * size_of::<T>()
    }

    /// Output rows and columns, a stage at a time.
    fn pieces(&self, c: &Correlation) -> impl Iterator<Item = [Range<usize>; 2]> {
        let [height, width] = [c.height.output, c.width.output];
        let (rows, columns) = (self.rows, self.columns);
        (0..height).step_by(rows).flat_map(move |y| {
            let rows = y..(y + rows).min(height);
            (0..width).step_by(columns).map(move |x| [rows.clone(), x..(x + columns).min(width)])
        })
    }

    /// Elements from the stage's start to what kernel element (`y`, `x`) of a phase meets first.
    fn tap(&self, c: &Correlation, phase: &Phase, y: usize, x: usize) -> usize {
        y * c.height.tap_step / self.unit * self.line_len()
            + self.lowering.tap(phase, x, self.plane_len)
    }

    /// Elements from what an output row meets to what the next does.
    fn row(&self, c: &Correlation) -> usize {
        c.height.step / self.unit * self.line_len()
    }

    /// Copies what some rows and columns of the output meet in some planes.
    ///
    /// # Safety
    ///
    /// The planes from `from` on can be read, which are, with their rows and columns, `steps` apart; `to` has room for
    /// the stage of each.
    unsafe fn copy<T: Vector>(
        &self,
        kernel: &Kernel<T>,
        c: &Correlation,
        (from, planes): (*const T, usize),
        steps: [isize; 3],
        [rows, columns]: &[Range<usize>; 2],
        to: *mut T,
    ) {
        let (h, w) = (&c.height, &c.width);
        let all = h.panel_rows(rows.len());
        let top = (rows.start * h.step) as isize + h.base;
        let (above, inside) = inside_columns(top, self.unit, h.input, all);
        let lanes = columns.len() + self.lowering.halo;
        for plane in 0..self.lowering.planes {
            let left = (columns.start * w.step + plane * w.tap_step) as isize + w.base;
            let (before, read) = inside_columns(left, w.step, w.input, lanes);
            // Rows above the input, rows of it, and rows below.
            let below = above + inside;
            for (row, rows, read) in [(0, above, 0), (above, inside, read), (below, all - below, 0)]
            {
                if rows == 0 {
                    continue;
                }
                let offset = (top + (row * self.unit) as isize) * steps[1]
                    + (left + (before * w.step) as isize) * steps[2];
                // SAFETY: only rows and columns inside the input are read; the caller made room.
                unsafe {
                    kernel.pack(&Pack {
                        from: from.wrapping_offset(offset),
                        from_channel: steps[0],
                        from_row: self.unit as isize * steps[1],
                        from_column: w.step as isize * steps[2],
                        to: to.wrapping_add(row * self.line_len() + plane * self.plane_len),
                        to_channel: self.len,
                        to_row: self.line_len(),
                        channels: planes,
                        rows,
                        before,
                        columns: read,
                        after: self.plane_len - before - read,
                    });
                }
            }
        }
    }
}

/// Whether outputs lie beside each other.
fn is_direct(c: &Correlation) -> bool {
    c.phases().len() == 1 && c.width.out_step == 1
}

/// Most planes that all jobs stage together.
fn together(jobs: &[Job]) -> usize {
    jobs.iter().map(|(_, stage)| stage.planes).min().unwrap_or(1)
}

/// Kernel elements of all jobs.
fn all_taps(jobs: &[Job]) -> usize {
    jobs.iter().map(|(c, _)| c.all_taps()).sum()
}

/// Bytes that [`run`] takes for each thread: stages, outputs aside, kernel elements of each plane.
pub(crate) fn worker_bytes<T>(jobs: &[Job]) -> usize {
    let memory = jobs.iter().map(|(c, stage)| stage.bytes::<T>(c)).max().unwrap_or(0);
    let taps = all_taps(jobs) * (together(jobs) * size_of::<StagedTap<T>>() + size_of::<isize>());
    memory + taps
}

/// Computes the outputs of all jobs.
///
/// # Safety
///
/// As [`engine::run`](crate::strip::engine::run), for correlations of one channel with one.
pub(crate) unsafe fn run<T: Vector + Send + Sync>(
    kernel: &Kernel<T>,
    jobs: &[Job],
    operands: &Operands<T>,
    threads: usize,
) {
    let Some((first, _)) = jobs.first() else { return };
    let sets = Sets::new(first.batch, first.groups, together(jobs), threads);
    let together = sets.most();
    let memory_of = |(c, stage): &Job| together * stage.len + stage.aside_len(c);
    let len = jobs.iter().map(memory_of).max().unwrap_or(0);
    let all_taps = all_taps(jobs);
    for_each_worker(threads, sets.tasks(), |numbers| {
        let memory = Workspace::<T>::new(len);
        let mut taps = Vec::with_capacity(all_taps * together);
        let mut weights = Vec::with_capacity(all_taps);
        for job in jobs {
            find_taps(job, operands, &mut taps, &mut weights);
        }
        let taps_len = taps.len();
        for _ in 1..together {
            taps.extend_from_within(..taps_len);
        }
        for number in numbers {
            let (image, planes) = sets.planes(number);
            for (plane, taps) in planes.clone().zip(taps.chunks_mut(taps_len.max(1))) {
                let weight =
                    operands.weight.wrapping_offset(plane as isize * operands.weight_strides[0]);
                for (tap, offset) in taps.iter_mut().zip(&weights) {
                    // SAFETY: the caller vouches for the weights.
                    tap.weight = unsafe { *weight.wrapping_offset(*offset) };
                }
            }
            let mut before = 0;
            for (c, stage) in jobs {
                let these = before..before + if c.channels == 0 { 0 } else { c.all_taps() };
                before = these.end;
                let set = Planes { image, channels: planes.clone(), taps: &taps, taps_len, these };
                // SAFETY: the caller vouches for the tensors; the memory serves every job.
                unsafe { outputs(kernel, c, stage, operands, &set, memory.as_ptr()) };
            }
        }
    });
}

/// Some planes that are staged together.
struct Planes<'a, T> {
    image: usize,
    channels: Range<usize>,
    /// The kernel elements of all jobs, for each plane.
    taps: &'a [StagedTap<T>],
    taps_len: usize,
    /// Those of this job.
    these: Range<usize>,
}

/// Adds the kernel elements of each phase, one phase after the other: where they meet the stage, and where their
/// weights lie, from the channel's first.
fn find_taps<T: Vector>(
    (c, stage): &Job,
    o: &Operands<T>,
    taps: &mut Vec<StagedTap<T>>,
    weights: &mut Vec<isize>,
) {
    if c.channels == 0 {
        return;
    }
    let [.., row, column] = o.weight_strides;
    for phase in c.phases() {
        for y in 0..c.height.taps {
            for x in 0..phase.taps {
                weights.push(c.weight(phase, [y, x], [row, column]));
                taps.push(StagedTap { at: stage.tap(c, phase, y, x), weight: T::ZERO });
            }
        }
    }
}

/// The outputs of some planes.
///
/// # Safety
///
/// As [`run`]; `memory` has room for the stage of each and for what is put aside.
unsafe fn outputs<T: Vector>(
    kernel: &Kernel<T>,
    c: &Correlation,
    stage: &Stage,
    o: &Operands<T>,
    planes: &Planes<T>,
    memory: *mut T,
) {
    let [x_image, x_channel, x_row, x_column] = c.strides(o.x_strides);
    let first = planes.channels.start;
    let x = planes.image as isize * x_image + first as isize * x_channel;
    let x = (o.x.wrapping_offset(x), planes.channels.len());
    let [y_image, y_channel, y_row, y_column] = c.strides(o.y_strides);
    let y = o.y.wrapping_add(planes.image * y_image + first * y_channel);
    let aside = memory.wrapping_add(planes.channels.len() * stage.len);
    let (aside_row, aside_phase) = (stage.aside_row(c), stage.aside);
    for piece in stage.pieces(c) {
        // SAFETY: the caller vouches for the planes and the memory.
        unsafe { stage.copy(kernel, c, x, [x_channel, x_row, x_column], &piece, memory) };
        let [rows, columns] = piece;
        let place = |row: usize| {
            (row * c.height.out_step + c.height.out_base) * y_row
                + (columns.start * c.width.out_step + c.width.out_base) * y_column
        };
        let mut row = rows.start;
        while row < rows.end {
            let (met, alike) = alike(c, row..rows.end);
            for (number, channel) in planes.channels.clone().enumerate() {
                let y = y.wrapping_add(number * y_channel);
                let stage_of = memory.wrapping_add(number * stage.len);
                // SAFETY: there is one for each channel.
                let bias = if o.bias.is_null() { T::ZERO } else { unsafe { *o.bias.add(channel) } };
                let taps = &planes.taps[number * planes.taps_len..][planes.these.clone()];
                let mut all = taps;
                for (phase_number, phase) in c.phases().iter().enumerate() {
                    let these;
                    (these, all) = all.split_at(all.len().min(c.height.taps * phase.taps));
                    let these = match these {
                        [] => these,
                        _ => &these[met.start * phase.taps..met.end * phase.taps],
                    };
                    let (out, out_row) = match is_direct(c) {
                        true => (y.wrapping_add(place(row)), c.height.out_step * y_row),
                        false => (aside.wrapping_add(phase_number * aside_phase), aside_row),
                    };
                    // SAFETY: the stage holds what the rows meet; the caller vouches for the output.
                    unsafe {
                        kernel.staged(&Staged {
                            stage: stage_of.wrapping_add((row - rows.start) * stage.row(c)),
                            stage_row: stage.row(c),
                            taps: these,
                            bias,
                            out,
                            out_row,
                            size: [alike, columns.len()],
                        });
                    }
                }
                if is_direct(c) {
                    continue;
                }
                // What is not at its place yet is brought there.
                let mut runs = [OutRun::default(); RUNS];
                for first in (0..alike).step_by(RUNS) {
                    let these = first..(first + RUNS).min(alike);
                    for (run, i) in runs.iter_mut().zip(these.clone()) {
                        *run = OutRun {
                            lane: i * aside_row,
                            columns: columns.len(),
                            offset: place(row + i),
                            ends: columns.end == c.width.output,
                        };
                    }
                    // SAFETY: as above.
                    unsafe {
                        kernel.scatter(&Scatter {
                            tile: aside,
                            tile_phase: aside_phase,
                            phases: c.phases().len(),
                            last_phases: c.last_phases(),
                            channels: 1,
                            runs: &runs[..these.len()],
                            out: y,
                            out_channel: 0,
                            out_column: c.width.out_step * y_column,
                            onto: Onto::Nothing,
                        });
                    }
                }
            }
            row += alike;
        }
    }
}

/// Rows that are brought to their places at a time.
const RUNS: usize = 16;

/// The kernel rows that take part in the first of some output rows, and in how many from it on. In an input
/// gradient those that meet no row of `dy` add nothing; in the forward pass they multiply padding, which is there.
fn alike(c: &Correlation, rows: Range<usize>) -> (Range<usize>, usize) {
    let h = &c.height;
    let top = rows.start as isize + h.base;
    let whole = h.input as isize - ((h.taps - 1) * h.tap_step) as isize - top;
    if !c.transposed {
        (0..h.taps, rows.len())
    } else if top >= 0 && whole > 0 {
        (0..h.taps, rows.len().min(whole as usize))
    } else {
        let (before, inside) = inside_columns(top, h.tap_step.max(1), h.input, h.taps);
        (before..before + inside, 1)
    }
}

/// Adds the weight gradient of one channel of some images to `sums`.
///
/// # Safety
///
/// As [`super::weight_gradient`]; `memory` has room for the stage of each image, `taps` names all kernel elements'
/// places in one.
pub(super) unsafe fn sums<T: Vector>(
    kernel: &Kernel<T>,
    (c, stage): &Job,
    o: &GradientOperands<T>,
    (images, channel): (Range<usize>, usize),
    taps: &[usize],
    memory: *mut T,
    sums: *mut T,
) {
    let (x_strides, dy_strides) = (c.strides(o.x_strides), c.strides(o.dy_strides));
    let place = |image: usize, strides: &[isize; 4]| {
        image as isize * strides[0] + channel as isize * strides[1]
    };
    let x = (o.x.wrapping_offset(place(images.start, &x_strides)), images.len());
    let steps = [x_strides[0], x_strides[2], x_strides[3]];
    for piece in stage.pieces(c) {
        let [rows, columns] = &piece;
        let offset = rows.start as isize * dy_strides[2] + columns.start as isize * dy_strides[3];
        // SAFETY: the caller vouches for the planes and the memory.
        unsafe {
            stage.copy(kernel, c, x, steps, &piece, memory);
            for (number, image) in images.clone().enumerate() {
                kernel.staged_sums(&StagedSums {
                    stage: memory.wrapping_add(number * stage.len),
                    stage_row: stage.row(c),
                    taps,
                    dy: Plane {
                        first: o.dy.wrapping_offset(place(image, &dy_strides) + offset),
                        row: dy_strides[2],
                        height: rows.len(),
                        width: columns.len(),
                    },
                    sums,
                });
            }
        }
    }
}

impl Stage {
    /// Most images of a channel that [`sums`] takes at a time.
    pub(super) fn images(&self) -> usize {
        self.planes
    }

    /// Memory for [`sums`].
    pub(super) fn memory<T: Vector>(&self, c: &Correlation) -> (Workspace<T>, Vec<usize>) {
        let mut taps = Vec::with_capacity(c.all_taps());
        for y in 0..c.height.taps {
            taps.extend((0..c.width.taps).map(|x| self.tap(c, &c.phases()[0], y, x)));
        }
        (Workspace::new(self.planes * self.len), taps)
    }
}
