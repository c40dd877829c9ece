//! Tiles and pieces: how a correlation is cut for Winograd's filtering. `packing` brings its input into them.

mod packing;

use crate::kernel::{
    InputPiece, MAX_COLUMNS, OUTPUTS, POSITIONS, Places, SIDE, has_product, product_positions,
    taps_before,
};
use crate::plan::Piece as Shown;
use crate::strip::correlation::{Correlation, Reach};
use crate::strip::panel::List;
use std::ops::Range;

/// Most taps of a piece.
const TAPS: usize = 3;

/// Most pieces along one axis: 11 taps at stride 4 and 7 taps at any stride have fewer.
const MAX_AXIS_PIECES: usize = 4;

/// Most pieces.
pub(super) const MAX_PIECES: usize = MAX_AXIS_PIECES * MAX_AXIS_PIECES;

/// Most tiles of an image where they are of inputs: a panel holds whole images.
const MAX_IMAGE_TILES: usize = 128;

/// Elements between the positions of a panel, and of sums, beyond what they hold: a cache line at least, so that
/// positions do not all begin in the same set of the first-level cache.
pub(super) const GAP: usize = 16;

/// Up to three taps at the distance of two neighbouring outputs of a tile.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Piece {
    /// First tap of the correlation.
    pub tap: usize,
    /// Taps.
    pub taps: usize,
    /// Input positions from the correlation's first tap to the first of the three of which this piece has some.
    offset: isize,
}

/// One axis of a correlation, cut into tiles and its kernel into pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Axis {
    pub reach: Reach,
    /// Outputs from one of a tile to the other: the dilation.
    pub distance: usize,
    /// Input positions from a position of a tile to the next.
    unit: usize,
    /// Taps of the correlation from a tap of a piece to the next.
    pub tap_step: usize,
    /// Tiles of outputs that leave the same remainder by the distance.
    pub tiles: usize,
    /// Those with the most taps come first. The others have one tap less, and so fewer products.
    pieces: [Piece; MAX_AXIS_PIECES],
    /// How many pieces have the most taps.
    larger: usize,
    /// How many pieces there are.
    pub count: usize,
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
        let mut pieces = [Piece::default(); MAX_AXIS_PIECES];
        let mut count = 0;
        for first in 0..reach.step.min(reach.taps) {
            let mut taps = (reach.taps - first).div_ceil(reach.step);
            let mut tap = first;
            while taps > 0 {
                // Four taps are two and two: six products for two outputs, where three and one take seven.
                let these = if taps == 4 { 2 } else { taps.min(TAPS) };
                let offset = (tap * reach.tap_step) as isize - (taps_before(these) * unit) as isize;
                *pieces.get_mut(count)? = Piece { tap, taps: these, offset };
                count += 1;
                tap += these * reach.step;
                taps -= these;
            }
        }
        pieces[..count].sort_by_key(|piece| TAPS - piece.taps);
        let larger = pieces[..count].partition_point(|piece| piece.taps == pieces[0].taps);
        let tiles = reach.output.div_ceil(distance).div_ceil(OUTPUTS);
        Some(Self {
            reach: *reach,
            distance,
            unit,
            tap_step: reach.step,
            tiles,
            pieces,
            larger,
            count,
        })
    }

    /// Pieces with the most taps, and the others.
    fn classes(&self) -> [&[Piece]; 2] {
        let (larger, others) = self.pieces[..self.count].split_at(self.larger);
        [larger, others]
    }

    /// The number of a piece.
    fn number(&self, piece: Piece) -> usize {
        self.pieces[..self.count].iter().take_while(|other| other.tap != piece.tap).count()
    }

    /// The pieces as packing meets them.
    fn input_pieces(&self) -> [InputPiece; MAX_AXIS_PIECES] {
        self.pieces.map(|Piece { offset, taps, .. }| InputPiece { offset, taps })
    }

    /// How many pieces have a product at `position`: none, the first ones or all.
    fn pieces_at(&self, position: usize) -> usize {
        let has = |piece: &&Piece| product_positions(piece.taps).contains(&position);
        self.pieces[..self.count].iter().filter(has).count()
    }

    /// Whether each position of a tile, whose first one is input `first`, is inside the input.
    fn meets(&self, first: isize) -> [bool; SIDE] {
        let at = |position| first + (position * self.unit) as isize;
        std::array::from_fn(|position| (0..self.reach.input as isize).contains(&at(position)))
    }

    /// Tiles of one image along this axis.
    pub fn all_tiles(&self) -> usize {
        self.distance * self.tiles
    }

    /// First output of tile `tile` of those that leave remainder `remainder`.
    fn output(&self, remainder: usize, tile: usize) -> usize {
        remainder + tile * OUTPUTS * self.distance
    }
}

/// Most tiles of a strip.
pub(super) const MAX_TILES: usize = MAX_COLUMNS;

/// Tiles of a strip that lie in one row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    /// First lane.
    pub lane: usize,
    /// Tiles.
    pub tiles: usize,
    /// Image.
    pub image: usize,
    /// First output row of the tiles.
    pub row: usize,
    /// First output column of the first tile.
    pub column: usize,
}

/// Some tiles, in the lanes of some registers.
pub(super) struct Strip {
    /// Lanes: whole registers.
    pub width: usize,
    runs: List<Run, MAX_TILES>,
}

impl Strip {
    /// The tiles, by rows.
    pub fn runs(&self) -> &[Run] {
        self.runs.as_slice()
    }

    /// Those with tiles in `lanes`, and which lanes these are.
    fn runs_in(&self, lanes: Range<usize>) -> impl Iterator<Item = (&Run, Range<usize>)> {
        let these =
            move |run: &Run| run.lane.max(lanes.start)..(run.lane + run.tiles).min(lanes.end);
        self.runs().iter().map(move |run| (run, these(run))).filter(|(_, these)| !these.is_empty())
    }
}

/// How what belongs to positions and pieces is laid out: `[position][piece][what a piece has]`. Only pieces with a product
/// at a position are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    /// The first piece at each position; those that are there follow each other.
    first: [usize; POSITIONS],
    /// How many there are.
    at: [usize; POSITIONS],
}

impl Layout {
    /// Where each position begins. A piece has `each` elements, and `gap` more are behind each position.
    pub fn starts(&self, each: usize, gap: usize) -> Places {
        let mut before = 0;
        self.at.map(|pieces| {
            let start = before;
            before += pieces * each + gap;
            start
        })
    }

    /// Where piece number `piece` is at each position where it is, see [`Layout::starts`].
    pub fn places(&self, piece: usize, each: usize, gap: usize) -> Places {
        let mut places = self.starts(each, gap);
        for (place, first) in places.iter_mut().zip(self.first) {
            *place = place.wrapping_add(piece.wrapping_sub(first).wrapping_mul(each));
        }
        places
    }

    /// Elements of all positions, see [`Layout::starts`].
    pub fn len(&self, each: usize, gap: usize) -> usize {
        self.count() * each + POSITIONS * gap
    }

    /// Pieces of all positions.
    pub fn count(&self) -> usize {
        self.at.iter().sum()
    }

    /// How many of the channels of all pieces, of `channels` each, are there at each position.
    pub fn channels(&self, channels: usize) -> [usize; POSITIONS] {
        self.at.map(|pieces| pieces * channels)
    }
}

/// A correlation, cut into tiles and pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tiling {
    pub height: Axis,
    pub width: Axis,
    /// Tiles of all images.
    pub tiles: usize,
    /// Where tiles are of inputs: what they add to.
    pub additions: Option<Additions>,
    pieces: [(Piece, Piece); MAX_PIECES],
    /// Of the weights.
    pub weights: Layout,
    /// Of a panel: the same unless tiles are of inputs, which are the same for all pieces.
    pub inputs: Layout,
}

/// What tiles of inputs add to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Additions {
    /// The output row and column to which an image's first tile adds first, by the kernel's first tap. It may lie outside.
    first: [isize; 2],
    /// Whether all of a kernel is one piece, whose tiles meet every output.
    pub complete: bool,
}

impl Additions {
    /// The output row and column to which an image's first tile adds first, by a piece of the kernel.
    pub fn first(&self, (rows, columns): (Piece, Piece)) -> [isize; 2] {
        [self.first[0] + rows.offset, self.first[1] + columns.offset]
    }
}

impl Tiling {
    /// In tiles of outputs; `None` where it cannot be.
    pub fn new(c: &Correlation) -> Option<Self> {
        Self::with(c, &c.height, &c.width)
    }

    /// In tiles of inputs, which are outputs to the tiling: each adds to [`SIDE`] rows and columns of the
    /// correlation's. `None` where it cannot be.
    pub fn of_inputs(c: &Correlation) -> Option<Self> {
        let turned = |reach: &Reach| {
            let last = reach.taps.checked_sub(1)?;
            (reach.step == 1 && last > 0 && reach.tap_step == 1).then_some(Reach {
                output: reach.input,
                base: 0,
                weight_first: reach
                    .weight_first
                    .checked_add_signed(last as isize * reach.weight_step)?,
                weight_step: -reach.weight_step,
                ..*reach
            })
        };
        let tiling = Self::with(c, &turned(&c.height)?, &turned(&c.width)?)?;
        let first = |reach: &Reach| 1 - reach.base - reach.taps as isize;
        let reached = |axis: &Axis, reach: &Reach| {
            let end = first(reach) + ((axis.tiles + 1) * OUTPUTS) as isize;
            first(reach) <= 0 && end >= reach.output as isize
        };
        let all = reached(&tiling.height, &c.height) && reached(&tiling.width, &c.width);
        let additions = Additions {
            first: [first(&c.height), first(&c.width)],
            complete: all && tiling.count() == 1,
        };
        let inputs =
            Layout { first: [0; POSITIONS], at: tiling.weights.at.map(|pieces| pieces.min(1)) };
        (tiling.image_tiles() <= MAX_IMAGE_TILES).then_some(Self {
            additions: Some(additions),
            inputs,
            ..tiling
        })
    }

    fn with(c: &Correlation, height: &Reach, width: &Reach) -> Option<Self> {
        if c.phases().len() != 1 || c.channels == 0 || c.outputs == 0 || c.batch == 0 {
            return None;
        }
        let (height, width) = (Axis::new(height)?, Axis::new(width)?);
        let tiles = c.batch * height.all_tiles() * width.all_tiles();
        if tiles == 0 {
            return None;
        }
        let ([rows, other_rows], [columns, other_columns]) = (height.classes(), width.classes());
        let classes = [
            (rows, other_columns),
            (rows, columns),
            (other_rows, columns),
            (other_rows, other_columns),
        ];
        let pairs = classes.into_iter().flat_map(|(rows, columns)| {
            rows.iter().flat_map(move |&row| columns.iter().map(move |&column| (row, column)))
        });
        let mut pieces = [Default::default(); MAX_PIECES];
        pieces.iter_mut().zip(pairs).for_each(|(piece, pair)| *piece = pair);
        let others = height.larger * (width.count - width.larger);
        let (mut first, mut at) = ([0; POSITIONS], [0; POSITIONS]);
        for position in 0..POSITIONS {
            let rows = height.pieces_at(position / SIDE);
            let columns = width.pieces_at(position % SIDE);
            first[position] = if columns > width.larger { 0 } else { others };
            at[position] = rows * columns;
        }
        let layout = Layout { first, at };
        Some(Self {
            height,
            width,
            tiles,
            additions: None,
            pieces,
            weights: layout,
            inputs: layout,
        })
    }

    /// Tiles of an image.
    pub fn image_tiles(&self) -> usize {
        self.height.all_tiles() * self.width.all_tiles()
    }

    /// Pieces of the kernel.
    pub fn count(&self) -> usize {
        self.height.count * self.width.count
    }

    /// The strip of the tiles `first..end`, in `width` lanes, whole registers.
    pub fn strip(&self, Range { start: first, end }: Range<usize>, width: usize) -> Strip {
        let (h, w) = (&self.height, &self.width);
        let mut runs = List::new();
        let mut tile = first;
        while tile < end {
            let (rest, column) = (tile / w.tiles, tile % w.tiles);
            let (rest, right) = (rest / w.distance, rest % w.distance);
            let (rest, row) = (rest / h.tiles, rest % h.tiles);
            let (image, down) = (rest / h.distance, rest % h.distance);
            let tiles = (w.tiles - column).min(end - tile);
            runs.push(Run {
                lane: tile - first,
                tiles,
                image,
                row: h.output(down, row),
                column: w.output(right, column),
            });
            tile += tiles;
        }
        Strip { width, runs }
    }

    /// Row `y` of the outputs of a run of tiles: which row it is, and how many columns of it there are.
    pub fn outputs(&self, run: &Run, y: usize) -> (usize, usize) {
        let (h, w) = (&self.height, &self.width);
        let row = run.row + y * h.distance;
        let columns = w.reach.output.saturating_sub(run.column).div_ceil(w.distance);
        let columns = columns.min(run.tiles * OUTPUTS);
        (row, if row < h.reach.output { columns } else { 0 })
    }

    /// The pieces of the kernel, by rows and columns, in the panel's order: (larger, not), (larger, larger),
    /// (not, larger), (not, not). Those with a product at a position then follow each other, whichever it is.
    pub fn pieces(&self) -> impl Iterator<Item = (Piece, Piece)> {
        self.pieces[..self.count()].iter().copied()
    }

    /// How many of `channels` have a product of one piece at each position.
    pub fn channels_of(
        &self,
        (rows, columns): (Piece, Piece),
        channels: usize,
    ) -> [usize; POSITIONS] {
        std::array::from_fn(|position| {
            let taps = [rows.taps, columns.taps];
            if has_product(taps, position / SIDE, position % SIDE) { channels } else { 0 }
        })
    }

    /// What a reader of the plan sees of correlation `c`, cut so.
    pub fn piece(&self, c: &Correlation, strips: usize, channels: usize, tasks: usize) -> Shown {
        let [row_phases, column_phases] = c.space.map_or([1, 1], |space| space.phases);
        Shown {
            row_phase: c.height.out_base,
            row_phases,
            column_phase: c.width.out_base,
            column_phases,
            output: [c.height.output, c.width.output],
            bands: self.height.all_tiles(),
            strips,
            panel_rows: OUTPUTS,
            panel_channels: channels,
            planes: SIDE,
            tasks,
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
            (3, 2, 1),
            (5, 4, 1),
        ] {
            let axis = Axis::new(&reach(taps, step, tap_step)).unwrap();
            let mut met = Vec::new();
            for piece in axis.pieces.iter().take(axis.count) {
                for j in 0..piece.taps {
                    met.push(piece.tap + j * axis.tap_step);
                    let place = (j + taps_before(piece.taps)) * axis.unit;
                    let position = piece.offset + place as isize;
                    assert_eq!(position, (met.last().unwrap() * tap_step) as isize);
                }
            }
            met.sort_unstable();
            assert!(met.into_iter().eq(0..taps));
            let [larger, others] = axis.classes();
            let most = larger[0].taps;
            assert!(larger.iter().all(|p| p.taps == most));
            assert!(others.iter().all(|p| p.taps + 1 == most));
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
