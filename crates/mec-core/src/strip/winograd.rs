//! Correlations by Winograd's minimal filtering, with the transformed input one panel at a time.
//!
//! ```text
//! tiles     2 x 2 outputs each, numbered (image, row, column) and dealt to strips, one in a lane
//! panel     [strip][position][piece][channel][tile]: some strips, some channels
//! task      (group, part of the channels, panel)          in parallel
//!   for block of input channels
//!     pack and transform the panel                        once for all output channels of the part
//!     for tile of output channels
//!       transform the weights                             once for all strips of the panel
//!       for strip
//!         micro-kernel for each of 16 positions           -> sums of products
//!         transform and store                             -> 2 rows of the output
//! ```
//!
//! `F(2x2, 3x3)` wants three taps at the distance of two neighbouring outputs. Any kernel is a sum of
//! such *pieces*, which the micro-kernel meets as further channels: of 5 taps one piece has 3 and one 2;
//! at a stride, taps with one remainder by the stride are pieces of their own (of 11 taps at stride 4:
//! 3, 3, 3 and 2). At a dilation it is outputs that far apart that share a tile.
//!
//! This file is the problem and the plan, as plain data; `engine` runs it.

mod engine;

use super::correlation::{Correlation, Reach};
use super::strips::TileSize;
use crate::kernel::{POSITIONS, SIDE};
use crate::plan::Piece as Shown;
pub(crate) use engine::{list_bytes, run};

/// Outputs of a tile along one axis.
const OUTPUTS: usize = 2;

/// Most taps of a piece.
const TAPS: usize = 3;

/// Most pieces along one axis: 11 taps at stride 4 and 7 taps at any stride have fewer.
const MAX_PIECES: usize = 4;

/// Elements between the positions of a panel beyond what they hold: a cache line at least, so that
/// positions do not all begin in the same set of the first-level cache.
const GAP: usize = 16;

/// Up to three taps at the distance of two neighbouring outputs of a tile.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Piece {
    /// First tap of the correlation.
    tap: usize,
    /// Taps.
    taps: usize,
    /// Input positions from the correlation's first tap to this piece's.
    offset: usize,
}

/// One axis of a correlation, cut into tiles and its kernel into pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Axis {
    reach: Reach,
    /// Outputs from one of a tile to the other: the dilation.
    distance: usize,
    /// Input positions from a position of a tile to the next.
    unit: usize,
    /// Taps of the correlation from a tap of a piece to the next.
    tap_step: usize,
    /// Tiles of outputs that leave the same remainder by the distance.
    tiles: usize,
    pieces: [Piece; MAX_PIECES],
    /// How many pieces have all taps: those come first.
    whole: usize,
    /// How many pieces there are.
    count: usize,
}

impl Axis {
    /// `None` where the pieces are too many, or where stride and dilation meet.
    fn new(reach: &Reach) -> Option<Self> {
        let dilated = reach.taps > 1 && reach.tap_step > 1;
        if dilated && reach.step > 1 {
            return None;
        }
        let (distance, unit) =
            if dilated { (reach.tap_step, reach.tap_step) } else { (1, reach.step) };
        let mut pieces = [Piece::default(); MAX_PIECES];
        let mut count = 0;
        for first in 0..reach.step.min(reach.taps) {
            let mut taps = (reach.taps - first).div_ceil(reach.step);
            let mut tap = first;
            while taps > 0 {
                // Four taps are two and two: six products for two outputs, where three and one take seven.
                let these = if taps == 4 { 2 } else { taps.min(TAPS) };
                *pieces.get_mut(count)? = Piece { tap, taps: these, offset: tap * reach.tap_step };
                count += 1;
                tap += these * reach.step;
                taps -= these;
            }
        }
        pieces[..count].sort_by_key(|piece| TAPS - piece.taps.max(TAPS - 1));
        let whole = pieces[..count].iter().filter(|piece| piece.taps == TAPS).count();
        let tiles = reach.output.div_ceil(distance).div_ceil(OUTPUTS);
        Some(Self {
            reach: *reach,
            distance,
            unit,
            tap_step: reach.step,
            tiles,
            pieces,
            whole,
            count,
        })
    }

    /// Pieces that have products at the last position, and the others.
    fn classes(&self) -> [&[Piece]; 2] {
        let (whole, others) = self.pieces[..self.count].split_at(self.whole);
        [whole, others]
    }

    /// Tiles of one image along this axis.
    fn all_tiles(&self) -> usize {
        self.distance * self.tiles
    }

    /// First output of tile `tile` of those that leave remainder `remainder`.
    fn output(&self, remainder: usize, tile: usize) -> usize {
        remainder + tile * OUTPUTS * self.distance
    }

    /// Products of one tile along this axis.
    fn products(&self) -> usize {
        self.whole * SIDE + (self.count - self.whole) * (SIDE - 1)
    }
}

/// The plan of one correlation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Winograd {
    height: Axis,
    width: Axis,
    /// Registers of tiles, dealt evenly to the strips.
    registers: usize,
    /// Strips of at most as many registers as a tile of the micro-kernel has.
    strips: usize,
    /// Most registers of a strip.
    vectors: usize,
    /// Panels the strips are dealt to.
    panels: usize,
    /// Channels of a panel.
    channels: usize,
    /// Parts the output channels are divided into, as tasks of their own.
    parts: usize,
    lanes: usize,
    /// Output channels of a tile of the micro-kernel.
    outputs: usize,
}

/// What a step takes, in cycles of a core that starts two multiply-adds in each (Zen 2, AVX2, by
/// measuring): a multiply-add of registers, with what loads and loops add.
const PRODUCT: f64 = 0.6;
/// The same in the plain correlation.
const PLAIN_PRODUCT: f64 = 0.66;
/// Packing and transforming a register of tiles, of one piece and channel.
const INPUT: f64 = 90.0;
/// Transforming the weights of one piece, channel and output.
const WEIGHT: f64 = 9.0;
/// Transforming and storing a register of tiles of one output.
const OUTPUT: f64 = 100.0;

impl Winograd {
    /// Plans `c` for at most `limit` bytes of workspace in each of `threads` threads, if that is sooner
    /// than the plain correlation. Neither that nor the channel block depends on the threads.
    ///
    /// `forced` asks for it wherever it can be, sooner or not.
    pub fn new(
        c: &Correlation,
        size: TileSize,
        threads: usize,
        limit: usize,
        forced: bool,
    ) -> Option<Self> {
        if c.phases().len() != 1 || c.channels == 0 || c.outputs == 0 || c.batch == 0 {
            return None;
        }
        let (height, width) = (Axis::new(&c.height)?, Axis::new(&c.width)?);
        let tiles = c.batch * height.all_tiles() * width.all_tiles();
        let registers = tiles.div_ceil(size.lanes);
        let strips = registers.div_ceil(size.vectors);
        let mut plan = Self {
            height,
            width,
            registers,
            strips,
            vectors: registers.div_ceil(strips),
            panels: 1,
            channels: c.channels,
            parts: 1,
            lanes: size.lanes,
            outputs: size.channels,
        };
        let mut best = (f64::INFINITY, 0, 0);
        for blocks in 1..=c.channels {
            plan.channels = c.channels.div_ceil(blocks);
            let held = (limit / size.bytes).checked_sub(plan.beside_len());
            let most = held.map_or(0, |held| held / plan.strip_len()).min(strips);
            if most > 0 {
                plan.panels = strips.div_ceil(most);
                let cycles = plan.cycles(c, 1);
                if cycles < best.0 {
                    best = (cycles, plan.channels, plan.panels);
                }
            }
            if plan.channels <= size.lanes {
                break;
            }
        }
        let positions = c.batch * c.height.output * c.width.output;
        let plain = (c.outputs * c.channels * c.all_taps()) as f64
            * positions.div_ceil(size.lanes) as f64
            * PLAIN_PRODUCT;
        if best.1 == 0 || (best.0 > 0.95 * plain && !forced) {
            return None;
        }
        (_, plan.channels, plan.panels) = best;
        plan.divide(c, threads);
        Some(plan)
    }

    /// Chooses the panels and parts with the least estimated time of the slowest thread.
    fn divide(&mut self, c: &Correlation, threads: usize) {
        let fewest = self.panels;
        let tiles = c.outputs.div_ceil(self.outputs);
        let mut best = (f64::INFINITY, *self);
        for panels in fewest..=self.strips.min(fewest + 4 * threads) {
            for parts in 1..=tiles.min(2 * threads) {
                (self.panels, self.parts) = (panels, parts);
                let cycles = self.cycles(c, threads);
                if cycles < best.0 * 0.99 {
                    best = (cycles, *self);
                }
            }
        }
        *self = best.1;
    }

    /// Estimated cycles of the slowest thread.
    fn cycles(&self, c: &Correlation, threads: usize) -> f64 {
        let outputs = c.outputs.div_ceil(self.parts) as f64;
        let registers = (self.panel_strips() * self.vectors) as f64;
        let blocks = c.channels.div_ceil(self.channels) as f64;
        let channels = c.channels as f64;
        let pieces = (self.height.count * self.width.count) as f64;
        let products = (self.height.products() * self.width.products()) as f64;
        let task = channels * outputs * products * registers * PRODUCT
            + channels * pieces * registers * INPUT
            + channels * pieces * outputs * WEIGHT
            + blocks * outputs * registers * OUTPUT;
        let tasks = self.tasks(c.groups);
        // With one thread, the last panel may have less to do.
        let rounds = if threads == 1 {
            tasks as f64 * self.strips as f64 / (self.strips.next_multiple_of(self.panels)) as f64
        } else {
            tasks.div_ceil(threads) as f64
        };
        rounds * task
    }

    /// Virtual channels of a block: each piece's.
    fn depth(&self) -> usize {
        self.height.count * self.width.count * self.channels
    }

    /// Elements from a position of a strip to the next, in a strip of `width` tiles.
    fn position(&self, width: usize) -> usize {
        self.depth() * width + GAP
    }

    /// Elements of a strip of a panel.
    fn strip_len(&self) -> usize {
        POSITIONS * self.position(self.vectors * self.lanes)
    }

    /// Elements from an output's transformed weights to the next's.
    fn weights_pitch(&self) -> usize {
        // Whole registers are written.
        self.depth() + self.lanes
    }

    /// Elements of the transformed weights of a tile of output channels.
    fn weights_len(&self) -> usize {
        POSITIONS * self.outputs * self.weights_pitch()
    }

    /// Elements of the sums of a tile, and of its outputs.
    fn sums_len(&self) -> usize {
        POSITIONS * self.outputs * self.vectors * self.lanes
    }

    fn outputs_len(&self) -> usize {
        OUTPUTS * OUTPUTS * self.outputs * self.vectors * self.lanes
    }

    /// Elements of workspace beside the panel.
    fn beside_len(&self) -> usize {
        self.weights_len() + self.sums_len() + self.outputs_len()
    }

    /// Most strips of a panel.
    fn panel_strips(&self) -> usize {
        self.strips.div_ceil(self.panels)
    }

    /// Elements of workspace for each thread.
    pub fn workspace_len(&self) -> usize {
        self.beside_len() + self.panel_strips() * self.strip_len()
    }

    /// Independent pieces of work.
    pub fn tasks(&self, groups: usize) -> usize {
        groups * self.parts * self.panels
    }

    /// What a reader of the plan sees of it.
    pub fn piece(&self, c: &Correlation) -> Shown {
        Shown {
            row_phase: c.height.out_base,
            column_phase: c.width.out_base,
            column_phases: 1,
            output: [c.height.output, c.width.output],
            bands: self.height.all_tiles(),
            strips: self.strips,
            panel_rows: OUTPUTS,
            panel_channels: self.channels,
            planes: SIDE,
            tasks: self.tasks(c.groups),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach(taps: usize, step: usize, tap_step: usize) -> Reach {
        Reach {
            input: 100,
            output: 9,
            step,
            base: 0,
            taps,
            tap_step,
            weight_first: 0,
            weight_step: 1,
            out_step: 1,
            out_base: 0,
        }
    }

    /// Each tap belongs to one piece, at its place in the input.
    #[test]
    fn pieces_partition_the_taps() {
        for (taps, step, tap_step) in [
            (1, 1, 1),
            (3, 1, 1),
            (5, 1, 1),
            (7, 2, 1),
            (11, 4, 1),
            (3, 1, 2),
            (8, 1, 3),
            (2, 3, 1),
        ] {
            let axis = Axis::new(&reach(taps, step, tap_step)).unwrap();
            let mut met = Vec::new();
            for piece in axis.pieces.iter().take(axis.count) {
                for j in 0..piece.taps {
                    met.push(piece.tap + j * axis.tap_step);
                    assert_eq!(piece.offset + j * axis.unit, met.last().unwrap() * tap_step);
                }
            }
            met.sort_unstable();
            assert!(met.into_iter().eq(0..taps));
            let [whole, others] = axis.classes();
            assert!(whole.iter().all(|p| p.taps == 3) && others.iter().all(|p| p.taps < 3));
        }
        assert!(Axis::new(&reach(3, 2, 2)).is_none());
        assert!(Axis::new(&reach(13, 1, 1)).is_none());
    }

    /// Each output belongs to one tile.
    #[test]
    fn tiles_partition_the_outputs() {
        for distance in 1..5 {
            let axis = Axis::new(&reach(3, 1, distance)).unwrap();
            let mut met = Vec::new();
            for remainder in 0..distance {
                for tile in 0..axis.tiles {
                    let first = axis.output(remainder, tile);
                    met.extend([first, first + distance].into_iter().filter(|&q| q < 9));
                }
            }
            met.sort_unstable();
            assert!(met.into_iter().eq(0..9), "{distance}");
        }
    }
}
