//! How a weight gradient by Winograd's filtering is cut into blocks of the result and strips: plain data.

use super::tiling::{GAP, MAX_TILES, Tiling};
use crate::kernel::{Kernel, OUTPUTS, SIDE, STEPS, Vector};
use crate::plan::Piece;
use crate::strip::correlation::Correlation;
use crate::strip::weight_gradient::{Division, Plain};

/// Tiles a part should sum over: transforming and adding a part costs about as much as 20.
const TILES_WANTED: usize = 128;

/// Most tiles of a strip, to choose from: of 48 the gradients at a row of positions, 64 output channels wide, are as
/// large as the first-level cache. Of 96, cv10 takes 1.1 times as long (Sapphire Rapids).
const STRIP_TILES: [usize; 2] = [MAX_TILES, 32];

/// Bytes of a thread's workspace, at most: twelve layers take 1.04 to 1.1 times as long with 512 KiB, and larger blocks
/// gain a few hundredths.
const BYTES: usize = 576 << 10;

/// Cycles, by measuring (Sapphire Rapids with AVX-512): a multiply-add of registers.
const PRODUCT: f64 = 0.53;
/// The same in the plain weight gradient.
const PLAIN_PRODUCT: f64 = 0.66;
/// Loading and storing the sums of one channel and output channel at one position.
const CALL: f64 = 0.15;
/// Packing and transforming a register of tiles at one position, of one piece and channel.
const INPUT: f64 = 12.0;
/// Transposing and transforming a register of tiles' gradients of one output channel.
const GRADIENT: f64 = 120.0;
/// Transposing a register of positions' gradients of one output channel, in the plain weight gradient.
const TRANSPOSE: f64 = 24.0;
/// Transforming and adding the sums of one piece at one position, for one channel and output channel of each part.
const SUMS: f64 = 0.5;

/// What the time of a single task is multiplied with: a second thread would have nothing to do.
fn alone(division: Division) -> f64 {
    if division.tasks() > 1 { 1.0 } else { 2.0 }
}

/// The plan of a weight gradient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Blocks {
    pub(super) tiling: Tiling,
    /// Strips the tiles are dealt to, evenly.
    pub(super) strips: usize,
    /// Lanes of the widest strip.
    pub(super) width: usize,
    /// Blocks, of whole registers of output channels.
    pub division: Division,
    /// Output channels of a tile of the micro-kernel.
    pub(super) tile: usize,
}

impl Blocks {
    /// Plans the weight gradient of forward correlation `c` for at most `limit` bytes in each thread, if
    /// that is sooner than the `plain` one, or `forced`. It depends on the problem and the limit alone.
    pub fn new<T: Vector>(
        c: &Correlation,
        kernel: &Kernel<T>,
        limit: usize,
        plain: &Plain,
        forced: bool,
    ) -> Option<Self> {
        let tiling = Tiling::new(c)?;
        let tile = kernel.outer_vectors * kernel.lanes;
        let all = c.outputs.next_multiple_of(kernel.lanes);
        let registers = (tiling.tiles as f64) / kernel.lanes as f64;
        let slots = tiling.weights.count() as f64;
        let pairs = (c.groups * c.channels * c.outputs) as f64;
        // Channels of which a tile of the micro-kernel has too few are multiplied all the same.
        let multiplied = |channels: usize| -> usize {
            tiling.weights.channels(channels).iter().map(|at| at.next_multiple_of(STEPS)).sum()
        };
        let mut best = (f64::INFINITY, None);
        let output_blocks = (1..=all / kernel.lanes).map(|n| all.div_ceil(n));
        for outputs in output_blocks.map(|outputs| outputs.next_multiple_of(kernel.lanes)) {
            for most in STRIP_TILES {
                let strips = tiling.tiles.div_ceil(most);
                let width = tiling.tiles.div_ceil(strips).next_multiple_of(kernel.lanes);
                let fits = |plan: &Self| plan.worker_bytes::<T>(c) <= limit.min(BYTES);
                let plans = (1..=c.channels).map(|n| {
                    let even = c.channels.div_ceil(n);
                    // Whole tiles of the micro-kernel, unless there is room for less than one.
                    let whole = even.next_multiple_of(STEPS).min(c.channels);
                    let channels = if even < STEPS { even } else { whole };
                    let division = Division::new(c, channels, outputs);
                    Self { tiling, strips, width, division, tile }
                });
                let Some(mut plan) = plans.into_iter().find(fits) else { continue };
                let most = (tiling.tiles / TILES_WANTED).min(strips);
                plan.division = plan.division.in_parts(most);
                let [channel_blocks, output_blocks] = plan.division.each_way();
                let block = plan.division.channels();
                let last = c.channels - (channel_blocks - 1) * block;
                let sums = (channel_blocks - 1) * multiplied(block) + multiplied(last);
                let products = (c.groups * sums * c.outputs) as f64;
                let cycles = products * (registers * PRODUCT + strips as f64 * CALL)
                    + (c.groups * c.channels * output_blocks) as f64 * slots * registers * INPUT
                    + (c.groups * c.outputs * channel_blocks) as f64 * registers * GRADIENT
                    + plan.division.parts() as f64 * pairs * slots * SUMS;
                let cycles = cycles * alone(plan.division);
                if cycles < best.0 {
                    best = (cycles, Some(plan));
                }
            }
        }
        let positions = (c.batch * c.height.output * c.width.output) as f64 / kernel.lanes as f64;
        let transposed = if matches!(plain, Plain::Outer(_)) { c.groups * c.outputs } else { 0 };
        let plain_cycles = pairs * c.taps() as f64 * positions * PLAIN_PRODUCT
            + transposed as f64 * positions * TRANSPOSE;
        let plain = plain_cycles * alone(*plain.division());
        best.1.filter(|_| forced || best.0 < 0.95 * plain)
    }

    /// Elements of the panel and of the sums of all channels, to which those of the bias come.
    pub(super) fn places_lens(&self) -> [usize; 2] {
        let channels = self.division.channels();
        [self.width, self.division.outputs()]
            .map(|each| self.tiling.inputs.len(channels * each, GAP))
    }

    /// Elements from a position to the next in a transformed tile of `dy`.
    pub(super) fn dy_position(&self) -> usize {
        self.width * self.tile + GAP
    }

    /// Elements of the panel, of a tile of `dy` before it is transformed and of a row of positions after it, of the sums
    /// and of the ones.
    pub(super) fn lens(&self) -> [usize; 5] {
        let [panel, sums] = self.places_lens();
        let raw = OUTPUTS * OUTPUTS * self.width * self.tile;
        let dy = SIDE * self.dy_position();
        [panel, raw, dy, sums + self.division.outputs(), self.width]
    }

    /// Elements of workspace for each thread. The result lies where panel and `dy` were.
    pub(super) fn workspace_len(&self, c: &Correlation) -> usize {
        let [panel, raw, dy, sums, ones] = self.lens();
        let result = self.division.channels() * c.taps() * self.division.outputs();
        (panel + raw + dy).max(result) + sums + ones
    }

    /// Bytes that [`run`] takes for each thread.
    pub fn worker_bytes<T>(&self, c: &Correlation) -> usize {
        self.workspace_len(c) * size_of::<T>()
    }

    /// What a reader of the plan sees of it.
    pub fn piece(&self, c: &Correlation) -> Piece {
        self.tiling.piece(c, self.strips, self.division.channels(), self.division.tasks())
    }
}
