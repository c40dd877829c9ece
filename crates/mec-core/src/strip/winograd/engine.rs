//! Runs correlations by Winograd's filtering: the loops around the micro-kernel.

use super::tiling::{Axis, OUTPUTS, Panel, Piece, Strip};
use super::{Job, Winograd};
use crate::kernel::{
    Kernel, Multiply, Onto, OutRun, POSITIONS, Scatter, TransformOutputs, TransformWeights, Vector,
};
use crate::strip::buffer::Workspace;
use crate::strip::correlation::Correlation;
use crate::strip::engine::Operands;
use crate::strip::panel::Source;
use crate::strip::workers::{for_each_worker, locate, spread};
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
    jobs: &[Job],
    operands: &Operands<T>,
    threads: usize,
) -> bool {
    let tasks: usize = jobs.iter().map(|(c, plan)| plan.tasks(c.groups)).sum();
    let most = |of: fn(&Winograd) -> usize| jobs.iter().map(|(_, p)| of(p)).max().unwrap_or(0);
    let finite = AtomicBool::new(true);
    for_each_worker(threads, tasks, |numbers| {
        let memory = Workspace::new(most(Winograd::workspace_len));
        let mut strips = Vec::with_capacity(most(Winograd::panel_strips));
        let mut runs = Vec::with_capacity(most(most_runs));
        let mut kept = None;
        for number in numbers {
            let number = spread(number, tasks, threads);
            let (job, number) = locate(jobs.iter().map(|(c, plan)| plan.tasks(c.groups)), number);
            let (c, plan) = &jobs[job];
            let (memory, strips, runs) = (memory.as_ptr(), &mut strips, &mut runs);
            let mut worker = Worker { kernel, c, plan, operands, memory, strips, runs };
            // SAFETY: the caller vouches for the tensors, the plan for the memory.
            if !unsafe { worker.task(number, job, &mut kept) } {
                finite.store(false, Ordering::Relaxed);
            }
            if !finite.load(Ordering::Relaxed) {
                return;
            }
        }
    });
    finite.into_inner()
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
    OUTPUTS * (tiles / plan.tiling.width.tiles + 1 + plan.panel_strips()).min(tiles)
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
    memory: *mut T,
    /// The strips of the panel.
    strips: &'a mut Vec<Packed>,
    /// Where their outputs belong.
    runs: &'a mut Vec<OutRun>,
}

impl<T: Vector> Worker<'_, T> {
    /// `kept` is whose transformed weights lie there (job, group, part), if the plan keeps them.
    ///
    /// # Safety
    ///
    /// As [`run`].
    unsafe fn task(&mut self, number: usize, job: usize, kept: &mut Option<[usize; 3]>) -> bool {
        let (c, o, plan) = (self.c, self.operands, self.plan);
        let (panel, rest) = (number % plan.panels, number / plan.panels);
        let (part, group) = (rest % plan.parts, rest / plan.parts);
        let outputs = part * c.outputs / plan.parts..(part + 1) * c.outputs / plan.parts;
        let strips = panel * plan.strips / plan.panels..(panel + 1) * plan.strips / plan.panels;
        let mut finite = true;
        for first in (0..c.channels).step_by(plan.channels) {
            let block = Block { group, first, channels: plan.channels.min(c.channels - first) };
            let channel = group * c.channels + first;
            let source = Source {
                first: o.x.wrapping_offset(channel as isize * o.x_strides[1]),
                strides: c.strides(o.x_strides),
                channels: block.channels,
            };
            self.strips.clear();
            self.runs.clear();
            for index in strips.clone() {
                let register = |strip: usize| strip * plan.registers / plan.strips;
                let vectors = register(index + 1) - register(index);
                let width = vectors * plan.lanes;
                let first = register(index) * plan.lanes;
                let tiles = first..(first + width).min(plan.tiling.tiles);
                let strip = plan.tiling.strip(tiles, width);
                let to = self.panel(self.strips.len());
                let panel = Panel { to, position: plan.position(width) };
                // SAFETY: the caller vouches for the tensors, the plan for the room.
                unsafe { plan.tiling.pack(self.kernel, &strip, &source, &panel) };
                let runs = [0, 1].map(|y| self.find_runs(&strip, y));
                self.strips.push(Packed { vectors, runs });
            }
            let channels = plan.tiling.channels_at(block.channels);
            let known = plan.kept > 1 && *kept == Some([job, group, part]);
            for (number, tile) in self.kernel.tile_ranges(outputs.clone()).enumerate() {
                let place = number % plan.kept * plan.tile_weights_len();
                let weights = self.memory.wrapping_add(place);
                // SAFETY: the caller vouches for the tensors; all strips are packed.
                unsafe {
                    if !known {
                        self.weights(&block, &tile, weights);
                    }
                    for place in 0..self.strips.len() {
                        finite &= self.outputs(&block, &channels, &tile, weights, place);
                    }
                }
            }
            *kept = Some([job, group, part]);
        }
        finite
    }

    /// Where strip number `place` of the panel is kept.
    fn panel(&self, place: usize) -> *mut T {
        self.memory.wrapping_add(self.plan.beside_len() + place * self.plan.strip_len())
    }

    /// Transforms the weights of some output channels.
    ///
    /// # Safety
    ///
    /// As [`run`].
    unsafe fn weights(&self, block: &Block, outputs: &Range<usize>, to: *mut T) {
        let (o, plan, tiling) = (self.operands, self.plan, &self.plan.tiling);
        let [group, output, channel, row, column] = o.weight_strides;
        let element = |axis: &Axis, piece: Piece| {
            axis.reach.weight_first as isize + piece.tap as isize * axis.reach.weight_step
        };
        let step = |axis: &Axis| axis.tap_step as isize * axis.reach.weight_step;
        let from = block.group as isize * group
            + outputs.start as isize * output
            + block.first as isize * channel;
        for (number, (rows, columns)) in tiling.pieces().enumerate() {
            let at = element(&tiling.height, rows) * row + element(&tiling.width, columns) * column;
            // SAFETY: the caller vouches for the weights, the plan for the room; registers that are not
            // whole reach into what is written next, or that does not count.
            unsafe {
                self.kernel.winograd.transform_weights(&TransformWeights {
                    from: o.weight.wrapping_offset(from + at),
                    output,
                    outputs: outputs.len(),
                    steps: [step(&tiling.height) * row, step(&tiling.width) * column],
                    taps: [rows.taps, columns.taps],
                    channel,
                    channels: block.channels,
                    to: to.wrapping_add(number * block.channels),
                    to_output: plan.weights_pitch(),
                    position: plan.outputs * plan.weights_pitch(),
                });
            }
        }
    }

    /// Multiplies, transforms and stores one strip of some output channels; whether all are finite.
    ///
    /// # Safety
    ///
    /// As [`run`]; the strip is packed at `place` and the weights are transformed.
    unsafe fn outputs(
        &self,
        block: &Block,
        channels: &[Range<usize>; POSITIONS],
        outputs: &Range<usize>,
        weights: *const T,
        place: usize,
    ) -> bool {
        let (c, o, plan) = (self.c, self.operands, self.plan);
        let strip = &self.strips[place];
        let width = strip.vectors * plan.lanes;
        let sums = self.memory.wrapping_add(plan.weights_len());
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
            self.kernel.winograd.multiply(
                strip.vectors,
                &Multiply {
                    inputs: self.panel(place),
                    input_channel: width,
                    input_position: plan.position(width),
                    weights,
                    weight_output: plan.weights_pitch(),
                    weight_position: plan.outputs * plan.weights_pitch(),
                    channels,
                    outputs: outputs.len(),
                    sums,
                    sum_position: plan.outputs * width,
                },
            );
            let finite = self.kernel.winograd.transform_outputs(&TransformOutputs {
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
                    out_column: plan.tiling.width.distance * c.width.out_step * o.y_strides[3],
                    onto,
                });
            }
            finite
        }
    }

    /// Finds where row `y` of the tiles belongs in the output.
    fn find_runs(&mut self, strip: &Strip, y: usize) -> Range<usize> {
        let c = self.c;
        let [image, _, line, column] = c.strides(self.operands.y_strides);
        let first = self.runs.len();
        for run in strip.runs() {
            let (row, columns) = self.plan.tiling.outputs(run, y);
            if columns > 0 {
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
