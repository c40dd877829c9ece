//! Runs correlations by Winograd's filtering: the loops around the micro-kernel.

use super::tiling::{Additions, GAP, MAX_PIECES, Strip};
use super::{Job, Winograd, together};
use crate::kernel::{
    Kernel, KernelPiece, LINE, Multiply, OUTPUTS, Onto, OutRun, Overlap, POSITIONS, Places,
    Scatter, TransformOutputs, TransformWeights, Vector, prefetch,
};
use crate::strip::buffer::Workspace;
use crate::strip::correlation::Correlation;
use crate::strip::engine::Operands;
use crate::strip::panel::{List, Source};
use crate::strip::workers::{for_each_worker, locate};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// Runs all tasks on at most `threads` threads. Whether all results are finite:
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
    jobs.chunks(together(jobs)).all(|jobs| match jobs {
        [job @ (c, plan)] if plan.kept => {
            let kept = Workspace::new(plan.kept_len(c));
            (0..c.channels).step_by(plan.channels).all(|first| {
                let block = first..(first + plan.channels).min(c.channels);
                // SAFETY: the caller vouches for the tensors, and there is room for the weights of any block.
                unsafe {
                    keep(kernel, job, operands, &block, &kept, threads);
                    run_tasks(kernel, jobs, operands, Some((&kept, block)), threads)
                }
            })
        }
        // SAFETY: as above.
        _ => unsafe { run_tasks(kernel, jobs, operands, None, threads) },
    })
}

/// Transforms the weights of some channels of a job.
///
/// # Safety
///
/// As [`run`]; `kept` has room for them.
unsafe fn keep<T: Vector + Send + Sync>(
    kernel: &Kernel<T>,
    (c, plan): &Job,
    operands: &Operands<T>,
    channels: &Range<usize>,
    kept: &Workspace<T>,
    threads: usize,
) {
    let tiles = c.outputs.div_ceil(plan.outputs);
    for_each_worker(threads, c.groups * tiles, |numbers| {
        for number in numbers {
            let (group, first) = (number / tiles, number % tiles * plan.outputs);
            let block = Block { group, first: channels.start, channels: channels.len() };
            let outputs = first..(first + plan.outputs).min(c.outputs);
            let to = kept.as_ptr().wrapping_add(plan.kept_place(c, group, first));
            // SAFETY: the caller vouches for the tensors and the room; each tile has its own.
            unsafe { transform_weights(kernel, plan, operands, &block, &outputs, to) };
        }
    });
}

/// Runs all tasks: for all channels, or of one job for some, whose weights are kept. Whether all results are finite.
///
/// # Safety
///
/// As [`run`].
unsafe fn run_tasks<T: Vector + Send + Sync>(
    kernel: &Kernel<T>,
    jobs: &[Job],
    operands: &Operands<T>,
    kept: Option<(&Workspace<T>, Range<usize>)>,
    threads: usize,
) -> bool {
    let tasks: usize = jobs.iter().map(|(c, plan)| plan.tasks(c.groups)).sum();
    let most = |of: fn(&Winograd) -> usize| jobs.iter().map(|(_, p)| of(p)).max().unwrap_or(0);
    let finite = AtomicBool::new(true);
    for_each_worker(threads, tasks, |numbers| {
        let memory = Workspace::new(most(Winograd::workspace_len));
        let mut strips = Vec::with_capacity(most(Winograd::panel_strips));
        let mut runs = Vec::with_capacity(most(most_runs));
        let mut held = None;
        for number in numbers {
            let (job, number) = locate(jobs.iter().map(|(c, plan)| plan.tasks(c.groups)), number);
            let (c, plan) = &jobs[job];
            let (kept, block) = match &kept {
                Some((kept, block)) => (Some(kept.as_ptr().cast_const()), block.clone()),
                None => (None, 0..c.channels),
            };
            let (memory, strips, runs) = (memory.as_ptr(), &mut strips, &mut runs);
            let mut worker = Worker { kernel, c, plan, operands, kept, memory, strips, runs };
            // SAFETY: the caller vouches for the tensors, the plan for the memory.
            if !unsafe { worker.task(number, job, block, &mut held) } {
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
    /// First lane, of the panel's.
    lane: usize,
    vectors: usize,
    runs: [Runs; OUTPUTS],
}

/// Some of the worker's runs.
#[derive(Clone, Copy, Default)]
struct Runs {
    first: usize,
    /// End of those in rows whose phases all have a place in the output.
    whole: usize,
    end: usize,
}

/// Where some computed channels belong in the output, beside where a run does.
struct Outputs {
    /// Elements from the output's start.
    offset: usize,
    /// The tensor's channels.
    channels: usize,
    /// Which rows they are of those whose phases are computed.
    row_phase: usize,
    /// Columns that are stored in turns, and those of the last one.
    column_phases: usize,
    last_phases: usize,
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

/// Products that are summed, at each position: of all pieces of the kernel, or of one.
struct Products {
    /// Of how many channels.
    channels: [usize; POSITIONS],
    /// Where their weights are.
    weights: Places,
}

/// Transforms the weights of some output channels.
///
/// # Safety
///
/// As [`run`].
unsafe fn transform_weights<T: Vector>(
    kernel: &Kernel<T>,
    plan: &Winograd,
    operands: &Operands<T>,
    block: &Block,
    outputs: &Range<usize>,
    to: *mut T,
) {
    let (o, tiling) = (operands, &plan.tiling);
    let [group, output, channel, row, column] = o.weight_strides;
    let (h, w) = (&tiling.height, &tiling.width);
    let from = block.group as isize * group
        + outputs.start as isize * output
        + block.first as isize * channel
        + h.reach.weight_first as isize * row
        + w.reach.weight_first as isize * column;
    let mut pieces = List::<_, MAX_PIECES>::new();
    for (number, (rows, columns)) in tiling.pieces().enumerate() {
        pieces.push(KernelPiece {
            first: [rows.tap, columns.tap],
            taps: [rows.taps, columns.taps],
            places: tiling.weights.places(number, block.channels, plan.lanes),
        });
    }
    // SAFETY: the caller vouches for the weights, the plan for the room; registers that are not whole
    // reach into what is written next, or that does not count.
    unsafe {
        kernel.winograd.transform_weights(&TransformWeights {
            from: o.weight.wrapping_offset(from),
            output,
            outputs: outputs.len(),
            steps: [h.reach.weight_step * row, w.reach.weight_step * column],
            apart: [h.tap_step, w.tap_step],
            pieces: pieces.as_slice(),
            channel,
            channels: block.channels,
            to,
            to_output: plan.weights_pitch(),
        });
    }
}

struct Worker<'a, T: Copy + 'static> {
    kernel: &'a Kernel<T>,
    c: &'a Correlation,
    plan: &'a Winograd,
    operands: &'a Operands<T>,
    /// The transformed weights of all output channels, if they are kept.
    kept: Option<*const T>,
    /// Transformed weights of a tile of output channels, sums, outputs, the panel.
    memory: *mut T,
    /// The strips of the panel.
    strips: &'a mut Vec<Packed>,
    /// Where their outputs belong.
    runs: &'a mut Vec<OutRun>,
}

impl<T: Vector> Worker<'_, T> {
    /// Runs a task for some channels. `held` is which panel is packed (job, group, panel, first channel), if one is.
    ///
    /// # Safety
    ///
    /// As [`run`].
    unsafe fn task(
        &mut self,
        number: usize,
        job: usize,
        block: Range<usize>,
        held: &mut Option<[usize; 4]>,
    ) -> bool {
        let (c, o, plan) = (self.c, self.operands, self.plan);
        let (panel, rest) = (number % plan.panels, number / plan.panels);
        let (part, group) = (rest % plan.parts, rest / plan.parts);
        let outputs = part * c.outputs / plan.parts..(part + 1) * c.outputs / plan.parts;
        let (units, tiles) = plan.panel(panel);
        let mut finite = true;
        for first in block.clone().step_by(plan.channels) {
            let channels = plan.channels.min(block.end - first);
            let block = Block { group, first, channels };
            let all = Products {
                channels: plan.tiling.weights.channels(channels),
                weights: plan.tiling.weights.starts(channels, plan.lanes),
            };
            let channel = group * c.channels + first;
            let source = Source {
                first: o.x.wrapping_offset(channel as isize * o.x_strides[1]),
                strides: c.strides(o.x_strides),
                channels: block.channels,
            };
            let this = Some([job, group, panel, first]);
            if *held != this {
                *held = this;
                // SAFETY: the caller vouches for the tensors, the plan for the room.
                unsafe { self.pack(&source, tiles.clone()) };
            }
            for tile in self.kernel.ranges(outputs.clone(), plan.outputs) {
                // SAFETY: the caller vouches for the tensors; all strips are packed.
                unsafe {
                    let weights = match self.kept {
                        Some(kept) => kept.wrapping_add(plan.kept_place(c, group, tile.start)),
                        None => {
                            transform_weights(self.kernel, plan, o, &block, &tile, self.memory);
                            self.memory.cast_const()
                        }
                    };
                    if let Some(additions) = &plan.tiling.additions {
                        finite &= self.add(&block, &tile, weights, &units, additions);
                        continue;
                    }
                    for place in 0..self.strips.len() {
                        self.ask_for_outputs(&block, &tile, place);
                        self.multiply(&block, &all, &tile, weights, place);
                        finite &= self.outputs(&block, &tile, place);
                    }
                }
            }
        }
        finite
    }

    /// Packs and transforms a panel.
    ///
    /// # Safety
    ///
    /// As [`run`].
    unsafe fn pack(&mut self, source: &Source<T>, tiles: Range<usize>) {
        let plan = self.plan;
        self.strips.clear();
        self.runs.clear();
        for (lane, vectors) in plan.strips(tiles.len()) {
            let width = vectors * plan.lanes;
            let first = tiles.start + lane;
            let strip = plan.tiling.strip(first..(first + width).min(tiles.end), width);
            let panel = self.panel(self.strips.len(), lane);
            // SAFETY: the caller vouches for the tensors, the plan for the room.
            unsafe { plan.tiling.pack(self.kernel, &strip, source, panel) };
            let runs = match plan.whole_images() {
                true => [Runs::default(); 2],
                false => [0, 1].map(|y| self.find_runs(&strip, y)),
            };
            self.strips.push(Packed { lane, vectors, runs });
        }
    }

    /// Where strip number `place` of the panel is kept, whose first lane is number `lane`.
    fn panel(&self, place: usize, lane: usize) -> *mut T {
        self.memory.wrapping_add(self.plan.beside_len() + self.plan.strip_offset(place, lane))
    }

    /// The sums of products: where they are, and from a position's to the next's and an output's to the
    /// next's.
    fn sums(&self, strip: &Packed) -> (*mut T, usize, usize) {
        let plan = self.plan;
        let sums = self.memory.wrapping_add(plan.weights_len());
        if plan.whole_images() {
            // A panel's strips lie beside each other.
            let width = plan.panel_registers() * plan.lanes;
            (sums.wrapping_add(strip.lane), plan.outputs * width + GAP, width)
        } else {
            let width = strip.vectors * plan.lanes;
            (sums, plan.outputs * width, width)
        }
    }

    /// Multiplies one strip with the weights of some output channels.
    ///
    /// # Safety
    ///
    /// As [`run`]; the strip is packed at `place` and the weights are transformed.
    unsafe fn multiply(
        &self,
        block: &Block,
        products: &Products,
        outputs: &Range<usize>,
        weights: *const T,
        place: usize,
    ) {
        let (plan, strip) = (self.plan, &self.strips[place]);
        let width = strip.vectors * plan.lanes;
        let (sums, sum_position, sum_output) = self.sums(strip);
        let input_places = plan.tiling.inputs.starts(block.channels * width, GAP);
        for tile in self.kernel.tile_ranges(0..outputs.len()) {
            // SAFETY: panel and weights hold what the tiles read, the plan has room for the sums.
            unsafe {
                self.kernel.winograd.multiply(
                    strip.vectors,
                    &Multiply {
                        channels: &products.channels,
                        inputs: self.panel(place, strip.lane),
                        input_places: &input_places,
                        input_channel: width,
                        weights: weights.add(tile.start * plan.weights_pitch()),
                        weight_places: &products.weights,
                        weight_output: plan.weights_pitch(),
                        outputs: tile.len(),
                        sums: sums.add(tile.start * sum_output),
                        sum_position,
                        sum_output,
                    },
                );
            }
        }
    }

    /// What the sums of a block are added to: outputs from `output` on.
    fn onto(&self, block: &Block, output: usize) -> Onto<T> {
        match (block.first, self.operands.bias.is_null()) {
            (0, true) => Onto::Nothing,
            (0, false) => Onto::Bias(self.operands.bias.wrapping_add(output)),
            _ => Onto::Output,
        }
    }

    /// Adds what the tiles of a panel of whole images add to some output channels, piece by piece of the kernel; whether
    /// all of it is finite.
    ///
    /// # Safety
    ///
    /// As [`run`]; all strips of the panel, of images `images`, are packed and the weights are transformed.
    unsafe fn add(
        &self,
        block: &Block,
        outputs: &Range<usize>,
        weights: *const T,
        images: &Range<usize>,
        additions: &Additions,
    ) -> bool {
        let plan = self.plan;
        let mut onto = self.onto(block, block.group * self.c.outputs + outputs.start);
        if !additions.complete && block.first == 0 {
            // SAFETY: the same contract.
            unsafe { self.begin(block, outputs, images) };
            onto = Onto::Output;
        }
        let mut finite = true;
        for (number, piece) in plan.tiling.pieces().enumerate() {
            let products = Products {
                channels: plan.tiling.channels_of(piece, block.channels),
                weights: plan.tiling.weights.places(number, block.channels, plan.lanes),
            };
            // SAFETY: the same contract; then the sums of all strips are there.
            unsafe {
                for place in 0..self.strips.len() {
                    self.multiply(block, &products, outputs, weights, place);
                }
                finite &= self.overlap(block, outputs, images, additions.first(piece), onto);
            }
        }
        finite
    }

    /// Begins some output channels of some images with their bias: a piece of the kernel may not reach all of them.
    ///
    /// # Safety
    ///
    /// As [`run`].
    unsafe fn begin(&self, block: &Block, outputs: &Range<usize>, images: &Range<usize>) {
        let (c, o) = (self.c, self.operands);
        let [image, channel, row, column] = c.strides(o.y_strides);
        let first = o.y.wrapping_add(c.height.out_base * row + c.width.out_base * column);
        for output in outputs.clone().map(|r| block.group * c.outputs + r) {
            // SAFETY: there is one for each output channel.
            let bias = if o.bias.is_null() { T::ZERO } else { unsafe { *o.bias.add(output) } };
            for (n, q) in images.clone().flat_map(|n| (0..c.height.output).map(move |q| (n, q))) {
                let to = n * image + output * channel + q * c.height.out_step * row;
                for p in 0..c.width.output {
                    // SAFETY: this is an output of the correlation.
                    unsafe { first.wrapping_add(to + p * c.width.out_step * column).write(bias) };
                }
            }
        }
    }

    /// Transforms the sums of a panel of whole images, adds up what they add to some output channels from row and
    /// column `first` on and stores it; whether all are finite.
    ///
    /// # Safety
    ///
    /// As [`run`]; all strips of the panel, of images `images`, are multiplied.
    unsafe fn overlap(
        &self,
        block: &Block,
        outputs: &Range<usize>,
        images: &Range<usize>,
        first: [isize; 2],
        onto: Onto<T>,
    ) -> bool {
        let (c, o, plan) = (self.c, self.operands, self.plan);
        let Some(first_strip) = self.strips.first() else { return true };
        let (sums, position, from_channel) = self.sums(first_strip);
        let output = block.group * c.outputs + outputs.start;
        let [image, channel, row, column] = o.y_strides;
        let strides = c.strides([image, channel, row, column]);
        let base = c.height.out_base * strides[2] + c.width.out_base * strides[3];
        // SAFETY: the sums of all strips are there; each tile of an image adds to its outputs.
        unsafe {
            self.kernel.winograd.overlap(&Overlap {
                from: sums,
                position,
                from_channel,
                tiles: [plan.tiling.height.tiles, plan.tiling.width.tiles],
                images: images.len(),
                channels: outputs.len(),
                first,
                size: [c.height.output, c.width.output],
                out: o.y.wrapping_add(images.start * image + output * channel + base),
                strides: [
                    image,
                    channel,
                    c.height.out_step * strides[2],
                    c.width.out_step * strides[3],
                ],
                onto,
            })
        }
    }

    /// Elements from a column of a run to the next, in the output.
    fn out_column(&self) -> usize {
        self.plan.tiling.width.distance * self.c.width.out_step * self.operands.y_strides[3]
    }

    /// Where some computed channels belong.
    fn place(&self, block: &Block, outputs: &Range<usize>) -> Outputs {
        let strides = self.operands.y_strides;
        match self.c.space {
            None => Outputs {
                offset: (block.group * self.c.outputs + outputs.start) * strides[1],
                channels: outputs.len(),
                row_phase: 0,
                column_phases: 1,
                last_phases: 1,
            },
            Some(space) => {
                let channels = space.row_outputs / space.phases[1];
                let row_phase = outputs.start / space.row_outputs;
                Outputs {
                    offset: block.group * channels * strides[1] + row_phase * strides[2],
                    channels,
                    row_phase,
                    column_phases: space.phases[1],
                    last_phases: space.last[1],
                }
            }
        }
    }

    /// The runs among `runs` that `to` has.
    fn runs_of(&self, runs: &Runs, to: &Outputs) -> &[OutRun] {
        let all = self.c.space.is_none_or(|space| to.row_phase < space.last[0]);
        &self.runs[runs.first..if all { runs.end } else { runs.whole }]
    }

    /// Asks for the lines of the output to which one strip of some output channels goes: what is stored waits for its
    /// line, and products take long enough to fetch it. Layers at large batches took 1.02 to 1.08 times as long
    /// without, those at batch 1 up to 1.07 (Zen 3, two threads).
    fn ask_for_outputs(&self, block: &Block, outputs: &Range<usize>, place: usize) {
        let o = self.operands;
        let line = LINE / size_of::<T>();
        let to = self.place(block, outputs);
        for runs in &self.strips[place].runs {
            for run in self.runs_of(runs, &to) {
                for channel in 0..to.channels {
                    let first = run.offset + to.offset + channel * o.y_strides[1];
                    let last = first + (run.columns - 1) * self.out_column();
                    for at in (first..last).step_by(line) {
                        prefetch(o.y.wrapping_add(at));
                    }
                    prefetch(o.y.wrapping_add(last));
                }
            }
        }
    }

    /// Transforms and stores one strip of some output channels; whether all are finite.
    ///
    /// # Safety
    ///
    /// As [`run`]; the strip at `place` is multiplied.
    unsafe fn outputs(&self, block: &Block, outputs: &Range<usize>, place: usize) -> bool {
        let (o, plan) = (self.operands, self.plan);
        let strip = &self.strips[place];
        let width = strip.vectors * plan.lanes;
        let (sums, position, _) = self.sums(strip);
        let finished = self.memory.wrapping_add(plan.weights_len() + plan.sums_len());
        let to = self.place(block, outputs);
        let onto = self.onto(block, block.group * self.c.outputs + outputs.start);
        // SAFETY: the sums are there; the runs are places of the output.
        unsafe {
            let finite = self.kernel.winograd.transform_outputs(&TransformOutputs {
                from: sums,
                position,
                width,
                channels: outputs.len(),
                to: finished,
            });
            for (y, runs) in strip.runs.iter().enumerate() {
                self.kernel.scatter(&Scatter {
                    tile: finished.wrapping_add(y * outputs.len() * OUTPUTS * width),
                    tile_phase: OUTPUTS * width,
                    phases: to.column_phases,
                    channels: to.channels,
                    runs: self.runs_of(runs, &to),
                    last_phases: to.last_phases,
                    out: o.y.wrapping_add(to.offset),
                    out_channel: o.y_strides[1],
                    out_column: self.out_column(),
                    onto,
                });
            }
            finite
        }
    }

    /// Finds where row `y` of the tiles belongs in the output.
    fn find_runs(&mut self, strip: &Strip, y: usize) -> Runs {
        let c = self.c;
        let [image, _, line, column] = c.strides(self.operands.y_strides);
        let mut found = Runs { first: self.runs.len(), ..Runs::default() };
        // Of the phases of the last row some may have no place: it comes behind the others.
        for last in [false, true] {
            found.whole = self.runs.len();
            for run in strip.runs() {
                let (row, columns) = self.plan.tiling.outputs(run, y);
                if columns > 0 && last == (row + 1 == c.height.output) {
                    self.runs.push(OutRun {
                        lane: run.lane * OUTPUTS,
                        columns,
                        offset: run.image * image
                            + (row * c.height.out_step + c.height.out_base) * line
                            + (run.column * c.width.out_step + c.width.out_base) * column,
                        ends: run.column + columns == c.width.output,
                    });
                }
            }
        }
        found.end = self.runs.len();
        found
    }
}
