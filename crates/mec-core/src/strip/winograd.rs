//! Correlations by Winograd's minimal filtering, with the transformed input one panel at a time.
//!
//! ```text
//! tiles     2 x 2 outputs each, numbered (image, row, column) and dealt to strips, one in a lane
//! panel     [strip][position][piece][channel][tile]: some strips, some channels
//! weights   [output channel][position][piece][channel]    of a tile of output channels, or kept: of all
//!
//! transform the weights, if they are kept                 in parallel, for one block after the other
//! task      (group, part of the channels, panel)          in parallel, for that block or all
//!   for block of input channels
//!     pack and transform the panel                        once for all output channels of the part
//!     for tile of output channels
//!       transform the weights, unless they are kept       once for all strips of the panel
//!       for strip
//!         micro-kernel for each of 16 positions           -> sums of products
//!         transform and store                             -> 2 rows of the output
//! ```
//!
//! `F(2x2, 3x3)` wants three taps at the distance of two neighbouring outputs. Any kernel is a sum of
//! such *pieces*, which the micro-kernel meets as further channels: of 5 taps one piece has 3 and one 2;
//! at a stride, taps with one remainder by the stride are pieces of their own (of 11 taps at stride 4:
//! 3, 3, 3 and 2; of 3 taps at stride 2: 2 and 1). A piece of fewer taps has products at fewer positions, and
//! panel, weights and sums have room for those alone. At a dilation it is outputs that far apart that share a
//! tile.
//!
//! Where the kernel reaches beyond the input, as in the input gradient of an unpadded layer, there are fewer
//! tiles of inputs than of outputs. The transposed filtering takes those: each adds to 4 x 4 outputs, by each piece of
//! the kernel to others. A panel is then of whole images, once for all pieces, and `store` of the loops above adds up, piece
//! after piece, what neighbouring tiles add.
//!
//! `tiling` is the problem, this file the plan, `engine` runs it; `blocks` and `weight_gradient` are the same of
//! the weight gradient.

mod blocks;
mod engine;
mod tiling;
mod weight_gradient;

use super::correlation::Correlation;
use super::space;
use super::strips::TileSize;
use super::{more_parts, planned};
use crate::WORKSPACE_PER_THREAD;
use crate::kernel::{OUTPUTS, POSITIONS};
use crate::plan::Piece as Shown;
pub(crate) use blocks::Blocks;
use engine::list_bytes;
pub(crate) use engine::run;
use std::iter;
use std::ops::Range;
use tiling::{GAP, Tiling};
pub(crate) use weight_gradient::run as run_weight_gradient;

/// The plan of one correlation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Winograd {
    tiling: Tiling,
    /// What panels have a whole number of: strips of registers or, where tiles are of inputs, images.
    units: usize,
    /// Most registers of a strip: at most as many as a tile of the micro-kernel has.
    vectors: usize,
    /// Panels the units are dealt to.
    panels: usize,
    /// Channels of a panel.
    channels: usize,
    /// Parts the output channels are divided into, as tasks of their own.
    parts: usize,
    /// Whether the weights of a block of channels are transformed before all panels, for all threads.
    kept: bool,
    lanes: usize,
    /// Output channels that are multiplied and stored together: those of a tile of the micro-kernel or, where
    /// they are dealt to space, of a row phase.
    outputs: usize,
}

/// What a step takes, in cycles of a core that starts two multiply-adds in each, by measuring (Zen 2 with AVX2; from
/// [`WEIGHT`] to [`SUM`] Sapphire Rapids with AVX-512): a multiply-add of registers, with what loads and loops add.
const PRODUCT: f64 = 0.6;
/// The same in the plain correlation.
const PLAIN_PRODUCT: f64 = 0.66;
/// The same where inputs or outputs are a stride apart: packing and storing take longer (Zen 3).
const STRIDED_PRODUCT: f64 = 0.8;
/// Packing and transforming a register of tiles at one position, of one piece and channel.
const INPUT: f64 = 5.6;
/// Transforming the weights of one position, piece, channel and output.
const WEIGHT: f64 = 0.45;
/// The same in the input gradient, whose channels are the tensor's outputs: their weights lie far apart.
const FAR_WEIGHT: f64 = 0.9;
/// The same of [`MANY`] weights: they come from the third-level cache or memory.
const MANY_FAR_WEIGHT: f64 = 1.4;
/// Between cv6's, 1.2 million, for which tiles of inputs then were not taken (1.2), and cv12's, 2.4 million, which were
/// transformed five times as often (0.82 with [`FAR_WEIGHT`]).
const MANY: usize = 1 << 21;
/// What packing a weight that lies far apart takes in the plain correlation, in what transforming it to a position does (cv12's
/// input gradient at batch 1, by this alone 1.7 times as long as by tiles).
const PLAIN_WEIGHT: f64 = 2.4;
/// Transforming a register of tiles of one output.
const OUTPUT: f64 = 50.0;
/// Storing both rows of outputs of one run of tiles: narrow images have several in a register.
const RUN: f64 = 24.0;
/// Storing the sums of a register of tiles at one position, of one output and block of channels.
const SUM: f64 = 1.5;
/// Transforming a register of a row of tiles of inputs, and adding up what they add to one output (Sapphire Rapids).
const ADDITION: f64 = 85.0;
/// The same where four rows fill a register.
const NARROW_ADDITION: f64 = 47.0;

/// Transforming the kept weights of a block before its panels: threads come together twice more (0.04 ms for 3 x 3 on 28 x 28
/// with 128 channels, a tenth of its time at batch 1).
const BLOCK: f64 = 60e3;

/// Bytes of a thread's workspace that cost nothing.
const FREE_BYTES: usize = 384 << 10;
/// By what share of its time a plan must be sooner to be worth [`WORKSPACE_PER_THREAD`] bytes more: a larger panel always
/// saves some work, the last hundredths for half of the memory. With AVX-512 the catalogue's workspace sums to 25.6, 27.3 and 30.6 MB
/// forward at 0.4, 0.25 and 0.2, and to 28.6, 29.3 and 30.6 MB in the input gradient; at 0.4 3 x 3 input gradients of 64 to 128
/// channels take 1.05 to 1.1 times as long, at 0.2 5 x 5 forward 0.9.
const PRICE: f64 = 0.25;
/// The same where tiles are of inputs: with 0.6, cv6's input gradient at batch 32 takes 1.14 times as long.
const WHOLE_PRICE: f64 = 0.4;
/// Most bytes of a panel of whole images, with what it is multiplied with, for kernels of several pieces. With 80 KiB less,
/// cv5's input gradient takes 1.07 times as long.
const MOST_BYTES_IN_PIECES: usize = 640 << 10;
/// Most bytes of transformed weights that are kept: 64 channels of 128 outputs of 3 x 3 at stride 2. With 600 KiB, where 3 x 3
/// at stride 1 has 43, forward passes and input gradients of 128 channels take 1.05 to 1.12 times as long.
const KEPT: usize = 832 << 10;

/// A correlation with its plan.
pub(crate) type Job = (Correlation, Winograd);

/// Plans all of `correlations` or, where it is sooner, the one that does their work `to_space`, each for at most so many
/// bytes of panel and of workspace, if that is sooner than the plain correlations, or `forced`; `None` too if neither
/// can be.
pub(crate) fn jobs(
    correlations: &[Correlation],
    size: TileSize,
    to_space: Option<(Correlation, TileSize)>,
    threads: usize,
    limits: [usize; 2],
    forced: bool,
) -> Option<Vec<Job>> {
    // Weights of its own take some of the room.
    let room = |c: &Correlation| limits[1].saturating_sub(space::weights_len(c) * size.bytes);
    let timed = |correlations: &[Correlation], size| {
        let plan = |c: &Correlation| Winograd::new(c, size, [limits[0].min(room(c)), room(c)]);
        let jobs = planned(correlations, plan)?;
        Some((jobs.iter().map(|(c, plan)| plan.cycles(c, 1)).sum::<f64>(), jobs))
    };
    let together = to_space.and_then(|(c, size)| timed(&[c], size));
    let (cycles, mut jobs) = timed(correlations, size)
        .into_iter()
        .chain(together)
        .min_by(|(one, _), (other, _)| one.total_cmp(other))?;
    let plain: f64 = correlations.iter().map(|c| plain_cycles(c, size)).sum();
    if cycles > 0.95 * plain && !forced {
        return None;
    }
    for (c, plan) in &mut jobs {
        plan.divide(c, threads);
    }
    Some(jobs)
}

/// Estimated cycles of the plain correlation, with one thread.
fn plain_cycles(c: &Correlation, size: TileSize) -> f64 {
    let positions = c.batch * c.height.output * c.width.output;
    let products = weights(c) as f64;
    let strided = [&c.height, &c.width].iter().any(|axis| axis.step > 1 || axis.out_step > 1);
    let product = if strided { STRIDED_PRODUCT } else { PLAIN_PRODUCT };
    let packing = if lies_apart(c) { products * PLAIN_WEIGHT * weight(c) } else { 0.0 };
    products * positions.div_ceil(size.lanes) as f64 * product + packing
}

/// Elements of the weights of `c`, each of which is one product for each position.
fn weights(c: &Correlation) -> usize {
    c.groups * c.outputs * c.channels * c.all_taps()
}

/// Whether the weights of a channel's outputs lie far apart: in the input gradient, unless they have been rearranged.
fn lies_apart(c: &Correlation) -> bool {
    c.height.weight_step < 0 && c.space.is_none()
}

/// Transforming the weights of one position, piece, channel and output of `c`.
fn weight(c: &Correlation) -> f64 {
    match lies_apart(c) {
        true if weights(c) >= MANY => MANY_FAR_WEIGHT,
        true => FAR_WEIGHT,
        false => WEIGHT,
    }
}

/// Bytes of the list of so many jobs, and of that of correlations from which it is made.
pub(crate) fn jobs_bytes(count: usize) -> usize {
    count * (size_of::<Job>() + size_of::<Correlation>())
}

/// Bytes that [`run`] takes at a time, for all threads and for each: for all jobs together or, where weights are kept, for
/// one after the other.
pub(crate) fn takes<T>(jobs: &[Job]) -> impl Iterator<Item = (usize, usize)> {
    jobs.chunks(together(jobs)).map(|jobs| {
        let kept: usize = jobs.iter().map(|(c, plan)| plan.kept_len(c)).sum();
        let most = |of: fn(&Winograd) -> usize| jobs.iter().map(|(_, p)| of(p)).max().unwrap_or(0);
        let each = most(Winograd::workspace_len) * size_of::<T>() + most(list_bytes);
        (kept * size_of::<T>(), each)
    })
}

/// How many jobs are run at a time.
fn together(jobs: &[Job]) -> usize {
    if jobs.iter().any(|(_, plan)| plan.kept) { 1 } else { jobs.len().max(1) }
}

impl Winograd {
    /// Plans `c` for one thread: for at most so many bytes of panel and what it is multiplied with, and of workspace
    /// where it keeps the weights.
    fn new(c: &Correlation, size: TileSize, limits: [usize; 2]) -> Option<Self> {
        let tiling = Tiling::new(c)?;
        let of_inputs =
            Tiling::of_inputs(c).filter(|inputs| inputs.tiles < tiling.tiles && c.space.is_none());
        let best = Self::in_panels(c, tiling, size, limits);
        match of_inputs.and_then(|tiling| Self::in_panels(c, tiling, size, limits)) {
            Some(other) if best.is_none_or(|best| other.cycles(c, 1) < best.cycles(c, 1)) => {
                Some(other)
            }
            _ => best,
        }
    }

    /// The same that keeps weights, if panels meet them again and `room` bytes are enough.
    fn keeping(self, c: &Correlation, size: TileSize, room: usize) -> Option<Self> {
        let keeping = Self { kept: true, ..self };
        let bytes = keeping.kept_len(c) * size.bytes;
        let fits = bytes <= KEPT && bytes + keeping.worker_bytes(size) <= room;
        (self.panels > 1 && fits).then_some(keeping)
    }

    /// The panels that are soonest with one thread, their workspace counted; `None` if none fits. See [`Winograd::new`].
    fn in_panels(
        c: &Correlation,
        tiling: Tiling,
        size: TileSize,
        [limit, room]: [usize; 2],
    ) -> Option<Self> {
        let registers = tiling.tiles.div_ceil(size.lanes);
        let strips = registers.div_ceil(size.vectors);
        let whole_images = tiling.additions.is_some();
        let in_pieces = whole_images && tiling.count() > 1;
        let limit = if in_pieces { limit.min(MOST_BYTES_IN_PIECES) } else { limit };
        let mut plan = Self {
            tiling,
            units: if whole_images { c.batch } else { strips },
            vectors: if whole_images { size.vectors } else { registers.div_ceil(strips) },
            panels: 1,
            channels: c.channels,
            parts: 1,
            kept: false,
            lanes: size.lanes,
            outputs: c.space.map_or(size.channels, |space| space.row_outputs),
        };
        let mut best = (f64::INFINITY, None);
        for blocks in 1..=c.channels {
            let even = c.channels.div_ceil(blocks);
            // Weights are transformed in whole registers of channels.
            let whole = even.next_multiple_of(size.lanes).min(c.channels);
            let mut enough = false;
            for channels in iter::once(even).chain((whole > even).then_some(whole)) {
                plan.channels = channels;
                let fits = |units: &usize| {
                    let plan = Self { panels: plan.units.div_ceil(*units), ..plan };
                    plan.worker_bytes(size) <= limit
                };
                let most = plan.most_units(size, limit).min(plan.units);
                let Some(most) = (1..=most).rev().find(fits) else { continue };
                plan.panels = plan.units.div_ceil(most);
                // Of a panel of all tiles that costs nothing, smaller blocks gain nothing.
                enough |= plan.panels == 1 && plan.worker_bytes(size) <= FREE_BYTES;
                // The largest panel that fits, and some smaller ones: this is done in every call.
                let mut last = 0;
                for units in [most, most - most / 4, most / 2, most / 4] {
                    if units == 0 || units == last {
                        continue;
                    }
                    last = units;
                    plan.panels = plan.units.div_ceil(units);
                    for plan in iter::once(plan).chain(plan.keeping(c, size, room)) {
                        let score = plan.cycles(c, 1) * plan.price(c, size);
                        if score < best.0 {
                            best = (score, Some(plan));
                        }
                    }
                }
            }
            if even <= size.lanes || enough {
                break;
            }
        }
        best.1
    }

    /// Has it keep the weights of blocks of a third of the channels, for two panels and more where there can be.
    #[cfg(test)]
    pub fn keep(&mut self, c: &Correlation) {
        self.kept = true;
        self.channels = c.channels.div_ceil(3);
        self.panels = self.panels.max(2).min(self.units);
    }

    /// What its time is multiplied with when plans of different workspace are compared.
    fn price(&self, c: &Correlation, size: TileSize) -> f64 {
        // Two threads or more share what is kept. How many must not matter: channels of a panel decide the order of sums.
        let kept = self.kept_len(c) * size.bytes / 2;
        let beyond = (self.worker_bytes(size) + kept).saturating_sub(FREE_BYTES);
        let price = if self.whole_images() { WHOLE_PRICE } else { PRICE };
        1.0 + price * beyond as f64 / WORKSPACE_PER_THREAD as f64
    }

    /// Bytes of workspace for each thread.
    fn worker_bytes(&self, size: TileSize) -> usize {
        self.workspace_len() * size.bytes + list_bytes(self)
    }

    /// Most units of a panel of at most `limit` bytes, with what it is multiplied with but without lists.
    fn most_units(&self, size: TileSize, limit: usize) -> usize {
        let held = |beside: usize| (limit / size.bytes).saturating_sub(beside);
        if self.whole_images() {
            let register = self.strip_offset(0, self.lanes) + POSITIONS * self.outputs * self.lanes;
            let registers = held(self.weights_len() + POSITIONS * GAP) / register;
            registers * self.lanes / self.tiling.image_tiles()
        } else {
            held(self.beside_len()) / self.strip_offset(1, self.vectors * self.lanes)
        }
    }

    /// Whether tiles are of inputs, and panels of whole images.
    fn whole_images(&self) -> bool {
        self.tiling.additions.is_some()
    }

    /// The units of panel `panel`, and its tiles.
    fn panel(&self, panel: usize) -> (Range<usize>, Range<usize>) {
        let first = |panel: usize| panel * self.units / self.panels;
        let units = first(panel)..first(panel + 1);
        let registers = self.tiling.tiles.div_ceil(self.lanes);
        let tiles = |unit: usize| match self.whole_images() {
            true => unit * self.tiling.image_tiles(),
            // Registers are dealt evenly to strips.
            false => (unit * registers / self.units * self.lanes).min(self.tiling.tiles),
        };
        let tiles = tiles(units.start)..tiles(units.end);
        (units, tiles)
    }

    /// The strips of a panel of so many tiles: where each begins, and its registers.
    fn strips(&self, tiles: usize) -> impl Iterator<Item = (usize, usize)> {
        let registers = tiles.div_ceil(self.lanes);
        let strips = registers.div_ceil(self.vectors);
        let first = move |strip: usize| strip * registers / strips;
        let lanes = self.lanes;
        (0..strips).map(move |s| (first(s) * lanes, first(s + 1) - first(s)))
    }

    /// Chooses the panels and parts with the least estimated time of the slowest thread.
    fn divide(&mut self, c: &Correlation, threads: usize) {
        let fewest = self.panels;
        let tiles = c.outputs.div_ceil(self.outputs);
        let mut best = (f64::INFINITY, *self);
        // Some of each, however many threads there are: this is done in every call.
        let panels = (0..=16).map(|n| (fewest + n * threads / 4).min(self.units));
        for panels in panels {
            let most = if c.space.is_some() { 1 } else { tiles.min(2 * threads) };
            for parts in (1..=most).step_by(threads.div_ceil(8)) {
                (self.panels, self.parts) = (panels, parts);
                let cycles = self.cycles(c, threads);
                // It must be clearly better: panels transform the weights anew, and parts the input, which each thread then
                // reads from memory (r2's input gradient 1.08 on two threads with 0.9 instead of 0.97, others the same).
                if cycles < best.0 * if parts > 1 { 0.9 } else { 0.99 } {
                    best = (cycles, *self);
                }
            }
        }
        *self = best.1;
        // A thread packs a panel that all parts share once.
        if self.panels == 1 && self.channels >= c.channels {
            self.parts = more_parts(self.parts, tiles, c.groups, threads);
        }
    }

    /// Estimated cycles of the slowest thread.
    fn cycles(&self, c: &Correlation, threads: usize) -> f64 {
        let outputs = c.outputs.div_ceil(self.parts) as f64;
        let blocks = c.channels.div_ceil(self.channels) as f64;
        let channels = c.channels as f64;
        let products = self.tiling.weights.count() as f64;
        let output = match self.whole_images() {
            // Each row of tiles of an image, and the row of outputs below the last, is added up by itself.
            true => {
                let axes = [&self.tiling.height, &self.tiling.width];
                let [rows, columns] = axes.map(|axis| axis.tiles + 1);
                let row = match 4 * columns <= self.lanes {
                    true => NARROW_ADDITION,
                    false => ADDITION * columns.div_ceil(self.lanes) as f64,
                };
                row * (rows * self.lanes) as f64 / self.tiling.image_tiles() as f64
            }
            // A register's runs: those that begin in it, and one that began before.
            false => OUTPUT + RUN * (1.0 + self.lanes as f64 / self.tiling.width.tiles as f64),
        };
        let sums = if self.whole_images() { self.tiling.count() } else { 1 };
        let register = channels * outputs * products * PRODUCT
            + channels * self.tiling.inputs.count() as f64 * INPUT
            + blocks * outputs * sums as f64 * (POSITIONS as f64 * SUM + output);
        // Weights are transformed in whole registers of channels.
        let whole = |channels: usize| channels.next_multiple_of(self.lanes);
        let transformed =
            c.channels / self.channels * whole(self.channels) + whole(c.channels % self.channels);
        let task = transformed as f64 * products * outputs * weight(c);
        let tasks = self.tasks(c.groups).div_ceil(threads);
        let transforms = match self.kept {
            true => task * (c.groups * self.parts) as f64 / threads as f64 + blocks * BLOCK,
            false => task * tasks as f64,
        };
        if threads == 1 {
            // The last panel may have less to do.
            let even = self.units as f64 / self.units.next_multiple_of(self.panels) as f64;
            let registers = self.panel_registers() as f64 * tasks as f64;
            return registers * register * even + transforms;
        }
        // Of a thread's panels, one after the other, the last ones may be the largest.
        let registers = tasks / self.panels * self.all_registers()
            + tasks % self.panels * self.panel_registers();
        registers as f64 * register + transforms
    }

    /// Where strip number `strip` begins in a panel, in elements, if its first lane is number `lane` of the panel.
    fn strip_offset(&self, strip: usize, lane: usize) -> usize {
        self.tiling.inputs.count() * self.channels * lane + strip * POSITIONS * GAP
    }

    /// Elements from an output's transformed weights to the next's.
    fn weights_pitch(&self) -> usize {
        // Whole registers are written.
        self.tiling.weights.len(self.channels, self.lanes)
    }

    /// Elements of a thread's transformed weights: of a tile of output channels.
    fn weights_len(&self) -> usize {
        if self.kept { 0 } else { self.outputs * self.weights_pitch() }
    }

    /// Elements of the transformed weights that are kept for all threads, of a block of channels.
    fn kept_len(&self, c: &Correlation) -> usize {
        if self.kept { self.kept_place(c, c.groups, 0) } else { 0 }
    }

    /// Where the kept weights of an output channel of a group begin.
    fn kept_place(&self, c: &Correlation, group: usize, output: usize) -> usize {
        (group * c.outputs + output) * self.weights_pitch()
    }

    /// Elements of the sums that are held: a strip's or, where tiles are of inputs, a panel's.
    fn sums_len(&self) -> usize {
        let (registers, gap) = match self.whole_images() {
            true => (self.panel_registers(), GAP),
            false => (self.vectors, 0),
        };
        POSITIONS * (self.outputs * registers * self.lanes + gap)
    }

    /// Elements of a strip's outputs, where they do not go straight to their places.
    fn outputs_len(&self) -> usize {
        match self.whole_images() {
            true => 0,
            false => OUTPUTS * OUTPUTS * self.outputs * self.vectors * self.lanes,
        }
    }

    /// Elements of workspace beside the panel.
    fn beside_len(&self) -> usize {
        self.weights_len() + self.sums_len() + self.outputs_len()
    }

    /// Most registers of a panel.
    fn panel_registers(&self) -> usize {
        self.registers_of(self.units.div_ceil(self.panels))
    }

    /// Registers of all panels.
    fn all_registers(&self) -> usize {
        self.registers_of(self.units)
    }

    /// Most registers of so many units.
    fn registers_of(&self, units: usize) -> usize {
        match self.whole_images() {
            true => (units * self.tiling.image_tiles()).div_ceil(self.lanes),
            false => units * self.vectors,
        }
    }

    /// Most strips of a panel.
    fn panel_strips(&self) -> usize {
        self.panel_registers().div_ceil(self.vectors)
    }

    /// Elements of workspace for each thread.
    pub fn workspace_len(&self) -> usize {
        self.beside_len()
            + self.strip_offset(self.panel_strips(), self.panel_registers() * self.lanes)
    }

    /// Independent pieces of work.
    pub fn tasks(&self, groups: usize) -> usize {
        groups * self.parts * self.panels
    }

    /// What a reader of the plan sees of it.
    pub fn piece(&self, c: &Correlation) -> Shown {
        let strips = self.tiling.tiles.div_ceil(self.lanes).div_ceil(self.vectors);
        self.tiling.piece(c, strips, self.channels, self.tasks(c.groups))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ConvOptions, Geometry};

    /// The plan of the input gradient of 32 images of 7 x 7.
    fn plan(padding: usize) -> Option<Winograd> {
        let options = ConvOptions { padding: [(padding, padding); 2], ..ConvOptions::default() };
        let g = Geometry::new([32, 512, 7, 7], [1024, 512, 3, 3], &options).unwrap();
        let [c] = Correlation::input_gradient(&g, true, 8, true)[..] else {
            panic!("stride 1 has one phase");
        };
        let size = TileSize {
            lanes: 8,
            vectors: 2,
            channels: 6,
            bytes: 4,
            even_tiles: false,
            packed_rows: usize::MAX,
        };
        Some(jobs(&[c], size, None, 2, [384 << 10, 1000 << 10], false)?[0].1)
    }

    #[test]
    fn the_fewer_tiles_are_taken() {
        assert!(plan(0).unwrap().whole_images());
        assert!(!plan(1).unwrap().whole_images());
    }

    #[test]
    fn panels_have_whole_images_and_all_tiles() {
        let plan = plan(0).unwrap();
        let mut next = 0;
        for panel in 0..plan.panels {
            let (images, tiles) = plan.panel(panel);
            assert_eq!((tiles.start, tiles.end), (next, images.end * 9));
            let strips: Vec<_> = plan.strips(tiles.len()).collect();
            assert!(strips.len() <= plan.panel_strips());
            let registers: usize = strips.iter().map(|(_, vectors)| vectors).sum();
            assert_eq!(registers, tiles.len().div_ceil(8));
            next = tiles.end;
        }
        assert_eq!(next, 32 * 9);
    }
}
