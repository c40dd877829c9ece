//! Runs correlations by Winograd's filtering: the loops around the micro-kernel.

use super::{Axis, OUTPUTS, Piece, Winograd};
use crate::kernel::{
    Kernel, Onto, OutRun, POSITIONS, Pack, PackTiles, SIDE, Scatter, Tap, Tile, TransformInputs,
    TransformOutputs, TransformWeights, Vector,
};
use crate::strip::buffer::Workspace;
use crate::strip::correlation::Correlation;
use crate::strip::engine::Operands;
use crate::strip::panel::{List, inside_columns};
use crate::strip::workers::{for_each_worker, spread};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// Runs all tasks on at most `threads` threads of the current rayon pool. Whether all results are finite:
/// where one is not, those beside it may be none either, and the plain correlation must be run instead.
///
/// # Safety
///
/// As [`engine::run`](crate::strip::engine::run).
pub(crate) unsafe fn run<T: Vector + Send + Sync>(
    kernel: &Kernel<T>,
    c: &Correlation,
    plan: &Winograd,
    operands: &Operands<T>,
    threads: usize,
) -> bool {
    let tasks = plan.tasks(c.groups);
    let finite = AtomicBool::new(true);
    for_each_worker(threads, tasks, |numbers| {
        let memory = Workspace::new(plan.workspace_len());
        let strips = Vec::with_capacity(plan.panel_strips());
        let runs = Vec::with_capacity(most_runs(plan));
        let mut worker = Worker { kernel, c, plan, operands, memory, strips, runs };
        for number in numbers {
            if !finite.load(Ordering::Relaxed) {
                return;
            }
            // SAFETY: the caller vouches for the tensors, the plan for the memory.
            if !unsafe { worker.task(spread(number, tasks, threads)) } {
                finite.store(false, Ordering::Relaxed);
            }
        }
    });
    finite.into_inner()
}

/// Tiles of a strip that lie in one row.
#[derive(Debug, Clone, Copy)]
struct Run {
    /// First lane.
    lane: usize,
    /// Tiles.
    tiles: usize,
    /// Image.
    image: usize,
    /// First output row of the tiles.
    row: usize,
    /// First output column of the first tile.
    column: usize,
}

/// Some tiles, in the lanes of some registers.
struct Strip {
    vectors: usize,
    runs: List<Run>,
}

/// A strip that is packed: its registers, and which of the worker's runs are those of the tiles' upper
/// and lower outputs.
struct Packed {
    vectors: usize,
    runs: [Range<usize>; OUTPUTS],
}

/// Bytes that a thread takes beside the elements: what it keeps of the strips of a panel.
pub(crate) fn list_bytes(plan: &Winograd) -> usize {
    let strips = plan.panel_strips();
    strips * size_of::<Packed>() + most_runs(plan) * size_of::<OutRun>()
}

/// Most runs of outputs of a panel.
fn most_runs(plan: &Winograd) -> usize {
    let tiles = plan.panel_strips() * plan.vectors * plan.lanes;
    // Each row of tiles that begins in a panel, and for each strip one that began before.
    OUTPUTS * (tiles / plan.width.tiles + 1 + plan.panel_strips()).min(tiles)
}

/// The channels of a group that a panel holds.
struct Block {
    group: usize,
    first: usize,
    channels: usize,
}

struct Worker<'a, T: Copy + 'static> {
    kernel: &'a Kernel<T>,
    c: &'a Correlation,
    plan: &'a Winograd,
    operands: &'a Operands<T>,
    /// The panel, transformed weights, sums, outputs.
    memory: Workspace<T>,
    /// The strips of the panel.
    strips: Vec<Packed>,
    /// Where their outputs belong.
    runs: Vec<OutRun>,
}

impl<T: Vector> Worker<'_, T> {
    /// # Safety
    ///
    /// As [`run`].
    unsafe fn task(&mut self, number: usize) -> bool {
        let (c, plan) = (self.c, self.plan);
        let (panel, rest) = (number % plan.panels, number / plan.panels);
        let (part, group) = (rest % plan.parts, rest / plan.parts);
        let outputs = part * c.outputs / plan.parts..(part + 1) * c.outputs / plan.parts;
        let strips = panel * plan.strips / plan.panels..(panel + 1) * plan.strips / plan.panels;
        let mut finite = true;
        for first in (0..c.channels).step_by(plan.channels) {
            let block = Block { group, first, channels: plan.channels.min(c.channels - first) };
            self.strips.clear();
            self.runs.clear();
            for index in strips.clone() {
                let strip = self.strip(index);
                // SAFETY: the caller vouches for the tensors.
                unsafe { self.pack(&strip, &block, self.panel(self.strips.len())) };
                let runs = [0, 1].map(|y| self.find_runs(&strip, y));
                self.strips.push(Packed { vectors: strip.vectors, runs });
            }
            for tile in self.kernel.tile_ranges(outputs.clone()) {
                // SAFETY: the caller vouches for the tensors; all strips are packed.
                unsafe {
                    self.weights(&block, &tile);
                    for place in 0..self.strips.len() {
                        finite &= self.outputs(&block, &tile, place);
                    }
                }
            }
        }
        finite
    }

    /// Where strip number `place` of the panel is kept.
    fn panel(&self, place: usize) -> *mut T {
        self.memory.as_ptr().wrapping_add(self.plan.beside_len() + place * self.plan.strip_len())
    }

    /// Strip number `index`.
    fn strip(&self, index: usize) -> Strip {
        let plan = self.plan;
        let (height, width) = (&plan.height, &plan.width);
        let register = |strip: usize| strip * plan.registers / plan.strips;
        let vectors = register(index + 1) - register(index);
        let first = register(index) * plan.lanes;
        let all = self.c.batch * height.all_tiles() * width.all_tiles();
        let end = (first + vectors * plan.lanes).min(all);
        let mut runs = List::new();
        let mut lane = first;
        while lane < end {
            let (rest, column) = (lane / width.tiles, lane % width.tiles);
            let (rest, right) = (rest / width.distance, rest % width.distance);
            let (rest, row) = (rest / height.tiles, rest % height.tiles);
            let (image, down) = (rest / height.distance, rest % height.distance);
            let tiles = (width.tiles - column).min(end - lane);
            runs.push(Run {
                lane: lane - first,
                tiles,
                image,
                row: height.output(down, row),
                column: width.output(right, column),
            });
            lane += tiles;
        }
        Strip { vectors, runs }
    }

    /// The pieces of the kernel, by rows and columns, in the panel's order: (whole, not), (whole, whole),
    /// (not, whole), (not, not). Those with a product at a position then follow each other, whichever it is.
    fn pieces(&self) -> impl Iterator<Item = (Piece, Piece)> {
        let [rows, other_rows] = self.plan.height.classes();
        let [columns, other_columns] = self.plan.width.classes();
        let classes = [
            (rows, other_columns),
            (rows, columns),
            (other_rows, columns),
            (other_rows, other_columns),
        ];
        classes.into_iter().flat_map(|(rows, columns)| {
            rows.iter().flat_map(move |&row| columns.iter().map(move |&column| (row, column)))
        })
    }

    /// The pieces with a product at position (`i`, `j`), by their number: of two rows of the kernel
    /// nothing is left at the last position.
    fn pieces_at(&self, i: usize, j: usize) -> Range<usize> {
        let (h, w) = (&self.plan.height, &self.plan.width);
        let columns_missing = h.whole * (w.count - w.whole);
        let first = if j == SIDE - 1 { columns_missing } else { 0 };
        let end = match (i == SIDE - 1, j == SIDE - 1) {
            (true, _) => h.whole * w.count,
            (false, true) => columns_missing + h.count * w.whole,
            (false, false) => h.count * w.count,
        };
        first..end
    }

    /// Packs and transforms one strip of some channels.
    ///
    /// # Safety
    ///
    /// As [`run`]; `to` has room for a strip.
    unsafe fn pack(&self, strip: &Strip, block: &Block, to: *mut T) {
        let (o, plan) = (self.operands, self.plan);
        let strides = self.c.strides(o.x_strides);
        let (h, w) = (&plan.height, &plan.width);
        let width = strip.vectors * plan.lanes;
        let position = plan.position(width);
        let runs = strip.runs.as_slice();
        let used = runs.last().map_or(0, |run| run.lane + run.tiles);
        let channel = block.group * self.c.channels + block.first;
        let source = o.x.wrapping_offset(channel as isize * strides[1]);
        if self.kernel.packs_tiles() {
            let idle = position * POSITIONS;
            if used < width {
                // SAFETY: the caller vouches for the room.
                unsafe { to.write_bytes(0, idle) };
            }
            for (number, (rows, columns)) in self.pieces().enumerate() {
                for run in runs {
                    let top = first_input(h, run.row, rows);
                    let left = first_input(w, run.column, columns);
                    let across = OUTPUTS * (run.tiles - 1) + SIDE;
                    let (above, inside_rows) = inside_columns(top, h.unit, h.reach.input, SIDE);
                    let (before, inside) = inside_columns(left, w.unit, w.reach.input, across);
                    let offset =
                        run.image as isize * strides[0] + top * strides[2] + left * strides[3];
                    // SAFETY: only positions inside the input are named as such; the strip has the lanes.
                    unsafe {
                        self.kernel.pack_tiles(&PackTiles {
                            from: source.wrapping_offset(offset),
                            from_channel: strides[1],
                            from_row: h.unit as isize * strides[2],
                            from_column: w.unit as isize * strides[3],
                            rows: above..above + inside_rows,
                            columns: before..before + inside,
                            tiles: run.tiles,
                            channels: block.channels,
                            to: to.wrapping_add(number * block.channels * width),
                            lane: run.lane,
                            width,
                            to_channel: width,
                            position,
                        });
                    }
                }
            }
            return;
        }
        for (number, (rows, columns)) in self.pieces().enumerate() {
            let to = to.wrapping_add(number * block.channels * width);
            for (index, run) in runs.iter().enumerate() {
                let idle = if index + 1 == runs.len() { width - used } else { 0 };
                let top = first_input(h, run.row, rows);
                let (above, inside) = inside_columns(top, h.unit, h.reach.input, SIDE);
                for j in 0..SIDE {
                    let left = first_input(w, run.column, columns) + (j * w.unit) as isize;
                    let step = OUTPUTS * w.unit;
                    let (before, columns) = inside_columns(left, step, w.reach.input, run.tiles);
                    let start = left + (before * step) as isize;
                    let parts =
                        [(0, above, 0), (above, inside, columns), (above + inside, SIDE, 0)];
                    for (from_row, rows, columns) in parts {
                        let rows = rows.min(SIDE - from_row);
                        let y = top + (from_row * h.unit) as isize;
                        let offset =
                            run.image as isize * strides[0] + y * strides[2] + start * strides[3];
                        let at = (from_row * SIDE + j) * position + run.lane;
                        // SAFETY: only rows and columns inside the input are read; the lanes written
                        // are this run's, and the idle ones behind the last run.
                        unsafe {
                            self.kernel.pack(&Pack {
                                from: source.wrapping_offset(offset),
                                from_channel: strides[1],
                                from_row: h.unit as isize * strides[2],
                                from_column: step as isize * strides[3],
                                to: to.wrapping_add(at),
                                to_channel: width,
                                to_row: SIDE * position,
                                channels: block.channels,
                                rows,
                                before,
                                columns,
                                after: run.tiles - before - columns + idle,
                            });
                        }
                    }
                }
            }
        }
        let pieces = h.count * w.count;
        // SAFETY: every lane of every channel has been written.
        unsafe {
            self.kernel.transform_inputs(&TransformInputs {
                at: to,
                position,
                len: pieces * block.channels * width,
            });
        }
    }

    /// Transforms the weights of some output channels.
    ///
    /// # Safety
    ///
    /// As [`run`].
    unsafe fn weights(&self, block: &Block, outputs: &Range<usize>) {
        let (o, plan) = (self.operands, self.plan);
        let [group, output, channel, row, column] = o.weight_strides;
        let element = |axis: &Axis, piece: Piece| {
            axis.reach.weight_first as isize + piece.tap as isize * axis.reach.weight_step
        };
        let step = |axis: &Axis| axis.tap_step as isize * axis.reach.weight_step;
        // What is read next: another output's, or where outputs lie beside each other, another tile's.
        let ahead = if self.c.transposed { outputs.len() as isize * output } else { output };
        for (r, output_channel) in outputs.clone().enumerate() {
            let from = block.group as isize * group
                + output_channel as isize * output
                + block.first as isize * channel;
            for (number, (rows, columns)) in self.pieces().enumerate() {
                let at = element(&plan.height, rows) * row + element(&plan.width, columns) * column;
                let to = r * plan.weights_pitch() + number * block.channels;
                // SAFETY: the caller vouches for the weights, the plan for the room; registers that are
                // not whole reach into what is written next.
                unsafe {
                    self.kernel.transform_weights(&TransformWeights {
                        from: o.weight.wrapping_offset(from + at),
                        steps: [step(&plan.height) * row, step(&plan.width) * column],
                        taps: [rows.taps, columns.taps],
                        channel,
                        channels: block.channels,
                        ahead,
                        to: self.memory.as_ptr().wrapping_add(to),
                        position: plan.outputs * plan.weights_pitch(),
                    });
                }
            }
        }
    }

    /// Multiplies, transforms and stores one strip of some output channels; whether all are finite.
    ///
    /// # Safety
    ///
    /// As [`run`]; the strip is packed at `place` and the weights are transformed.
    unsafe fn outputs(&self, block: &Block, outputs: &Range<usize>, place: usize) -> bool {
        let (c, o, plan) = (self.c, self.operands, self.plan);
        let strip = &self.strips[place];
        let width = strip.vectors * plan.lanes;
        let weights = self.memory.as_ptr();
        let sums = weights.wrapping_add(plan.weights_len());
        let finished = sums.wrapping_add(plan.sums_len());
        let output = block.group * c.outputs + outputs.start;
        let out = o.y.wrapping_add(output * o.y_strides[1]);
        let runs = strip.runs.clone().map(|runs| &self.runs[runs]);
        let onto = match (block.first, o.bias.is_null()) {
            (0, true) => Onto::Nothing,
            (0, false) => Onto::Bias(o.bias.wrapping_add(output)),
            _ => Onto::Output,
        };
        // SAFETY: panel and weights hold what the tiles read; the runs are places of the output.
        unsafe {
            for i in 0..SIDE {
                for j in 0..SIDE {
                    let position = i * SIDE + j;
                    let panel = self.panel(place).wrapping_add(position * plan.position(width));
                    let weights =
                        weights.wrapping_add(position * plan.outputs * plan.weights_pitch());
                    let to = sums.wrapping_add(position * plan.outputs * width);
                    let pieces = self.pieces_at(i, j);
                    let first = pieces.start * block.channels;
                    self.kernel.tile(
                        strip.vectors,
                        &Tile {
                            panel: panel.wrapping_add(first * width),
                            panel_channel: width,
                            weight: weights.wrapping_add(first),
                            weight_channel: 1,
                            weight_output: plan.weights_pitch() as isize,
                            weight_step: Some(1),
                            channels: pieces.len() * block.channels,
                            taps: &[Tap { panel: 0, weight: 0 }],
                            out: [0, 1, 2].map(|v| to.wrapping_add(v * plan.lanes)),
                            out_channel: width,
                            outputs: outputs.len(),
                            onto: Onto::Nothing,
                        },
                    );
                }
            }
            let finite = self.kernel.transform_outputs(&TransformOutputs {
                from: sums,
                position: plan.outputs * width,
                width,
                channels: outputs.len(),
                to: finished,
            });
            for (y, runs) in runs.into_iter().enumerate() {
                self.kernel.scatter(&Scatter {
                    tile: finished.wrapping_add(y * outputs.len() * OUTPUTS * width),
                    tile_phase: OUTPUTS * width,
                    phases: 1,
                    channels: outputs.len(),
                    runs,
                    last_phases: 1,
                    out,
                    out_channel: o.y_strides[1],
                    out_column: plan.width.distance * c.width.out_step * o.y_strides[3],
                    onto,
                });
            }
            finite
        }
    }

    /// Finds where row `y` of the tiles belongs in the output.
    fn find_runs(&mut self, strip: &Strip, y: usize) -> Range<usize> {
        let (c, h, w) = (self.c, &self.plan.height, &self.plan.width);
        let [image, _, line, column] = c.strides(self.operands.y_strides);
        let first = self.runs.len();
        for run in strip.runs.as_slice() {
            let row = run.row + y * h.distance;
            let columns = c.width.output.saturating_sub(run.column).div_ceil(w.distance);
            let columns = columns.min(run.tiles * OUTPUTS);
            if row < c.height.output && columns > 0 {
                self.runs.push(OutRun {
                    lane: run.lane * OUTPUTS,
                    columns,
                    offset: run.image * image
                        + (row * c.height.out_step + c.height.out_base) * line
                        + (run.column * c.width.out_step + c.width.out_base) * column,
                    ends: false,
                });
            }
        }
        first..self.runs.len()
    }
}

/// The input position of a tile's position 0: of the tile that begins at `output`, for `piece`.
fn first_input(axis: &Axis, output: usize, piece: Piece) -> isize {
    (output * axis.reach.step + piece.offset) as isize + axis.reach.base
}
