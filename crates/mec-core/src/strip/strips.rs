//! How a correlation is cut into strips, bands, panels and blocks: plain data.
//!
//! ```text
//! lanes     (image, band, x), numbered in that order           |<- strip ->|<- strip ->| ...
//! panel     [channel][row][plane][lane]: one strip, the input rows of some output rows
//! tile      one output row of the panel, some channels: one call of the micro-kernel
//! ```
//!
//! What decides the order in which a sum is taken (the channel block) depends on the problem and on
//! the byte limit alone, never on the number of threads.

use super::correlation::{Correlation, Lowering};
use super::more_parts;
use crate::plan::Piece;
use std::ops::Range;

/// Most bytes of packed weights that are kept rather than packed for each panel: though they come from the third-level cache
/// then, transformed ones of 345 KiB (cv1) took 0.82 and of 576 KiB (cv8) 0.93 of the time.
const KEPT: usize = 600 << 10;

/// Sizes of the kernel that a plan is made for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TileSize {
    /// Elements in a register.
    pub lanes: usize,
    /// Most registers of columns.
    pub vectors: usize,
    /// Most channels.
    pub channels: usize,
    /// Bytes of an element.
    pub bytes: usize,
    /// Whether channels are dealt to tiles evenly.
    pub even_tiles: bool,
    /// Rows a panel should serve where weights are packed for it.
    pub packed_rows: usize,
}

/// The lanes (image, band, x) of a correlation, numbered in that order and dealt to strips; where
/// the lowering has a halo, each row of x ends in a gap of as many lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Columns {
    /// How they lie in a panel.
    pub lowering: Lowering,
    /// Bands an image is divided into: 1 is the paper's algorithm, `out_h` is im2col.
    pub bands: usize,
    /// Output rows of a band (the last may have fewer).
    pub band_rows: usize,
    /// Lanes that stay together.
    pub bundle: usize,
    /// How many such bundles there are; only the last may have fewer lanes.
    pub bundles: usize,
    /// Strips the bundles are dealt to.
    pub strips: usize,
}

impl Columns {
    /// Deals the lanes of `c` to strips of at most `most` bundles.
    pub fn new(
        c: &Correlation,
        lowering: Lowering,
        bands: usize,
        bundle: usize,
        most: usize,
    ) -> Self {
        let band_rows = c.height.output.div_ceil(bands);
        let bands = c.height.output.div_ceil(band_rows);
        let rows = c.batch * bands;
        let lanes = (rows * (c.width.output + lowering.halo)).saturating_sub(lowering.halo);
        let bundles = lanes.div_ceil(bundle);
        Self { lowering, bands, band_rows, bundle, bundles, strips: bundles.div_ceil(most) }
    }

    /// Bundles of the widest strip.
    pub fn widest(&self) -> usize {
        self.bundles.div_ceil(self.strips.max(1))
    }

    /// Bundles of strip `strip`: as evenly dealt as they can be.
    pub fn bundles_of(&self, strip: usize) -> Range<usize> {
        strip * self.bundles / self.strips..(strip + 1) * self.bundles / self.strips
    }
}

/// The plan of one correlation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Strips {
    /// The columns of each strip, in bundles of a register.
    pub columns: Columns,
    /// Output rows a panel serves.
    pub rows: usize,
    /// Input channels of a panel.
    pub channels: usize,
    /// Parts the output channels are divided into, as evenly as can be, as tasks of their own.
    pub parts: usize,
    /// Elements of a panel.
    pub panel_len: usize,
    /// Elements of a tile's weights where they are packed.
    pub tile_weights: usize,
    /// Tiles whose packed weights are kept: none where weights are read in place, one, or all of a part.
    pub kept_tiles: usize,
}

/// Rows a panel should serve before it takes all channels: with fewer, packing it shows.
const ROWS_WANTED: usize = 4;

/// Steps of a sum below which cutting it into channel blocks costs more than it gains: each cut
/// reads and writes the tile's output once more.
const STEPS_WANTED: usize = 512;

/// Bytes of output that stay in a second-level cache of 2 MiB beside a panel. More (cv3, cv7, cv8),
/// and each line goes to memory and back for every strip that it belongs to.
const OUTPUT_WANTED: usize = 1 << 20;

/// Uses of a packed weight from which the copy pays for itself.
const USES_WANTED: usize = 2;

impl Strips {
    /// Plans `c` for at most `limit` bytes of panel and what it is multiplied with, `single` bytes of a panel that serves all
    /// positions, and `room` bytes of all workspace, in each of `threads` threads; `None` if even the smallest panel
    /// does not fit.
    pub fn new(
        c: &Correlation,
        size: TileSize,
        threads: usize,
        [limit, single, room]: [usize; 3],
    ) -> Option<Self> {
        let within = limit / size.bytes;
        let lowering = c.best_lowering(size.lanes);
        let row_len = |vectors: usize| row_len(&lowering, vectors, size.lanes);
        // The widest strip whose smallest panel fits.
        let smallest = c.height.panel_rows(1);
        let vectors = (1..=size.vectors).rev().find(|&v| smallest * row_len(v) <= within)?;
        // Where one strip serves all positions, with a band for each row, each weight is used once, and is asked for by the
        // CPU itself for as long as its sum goes on: cv12 b1 took 1.07 times as long with a fifth of the channels at a time,
        // and threads have parts to share only where a panel has all.
        let rows = c.height.output.max(1);
        let all = Columns::new(c, lowering, rows, size.lanes, vectors).strips <= 1;
        let (within, channels) = if all && !c.transposed {
            let within = single / size.bytes;
            (within, Self::channel_block(c, within / row_len(vectors), 1))
        } else {
            // A quarter at most for weights.
            let wanted = if c.transposed { size.packed_rows } else { ROWS_WANTED };
            let room = within * 3 / 4 / row_len(vectors);
            (within, Self::channel_block(c, room, wanted.min(rows)))
        };

        let (bands, parts) = Self::bands_and_parts(c, size, &lowering, vectors, threads);
        let columns = Columns::new(c, lowering, bands, size.lanes, vectors);
        let row_len = row_len(columns.widest());
        let rows_beside = |weights: usize| {
            let room = within.checked_sub(weights)?;
            let len = |rows: usize| channels * c.height.panel_rows(rows) * row_len;
            let most = (1..=columns.band_rows).rev().find(|&rows| len(rows) <= room)?;
            // As even as they can be.
            Some(columns.band_rows.div_ceil(columns.band_rows.div_ceil(most)))
        };
        let tile_weights = size.channels * channels * c.all_taps();
        let (rows, packed) = match rows_beside(tile_weights) {
            Some(rows) if c.transposed && rows >= USES_WANTED => (rows, true),
            _ => (rows_beside(0)?, false),
        };
        let panel_len = channels * c.height.panel_rows(rows) * row_len;
        // A thread packs a panel that all parts share once.
        let shared = columns.strips == 1 && rows == columns.band_rows && channels == c.channels;
        let tiles = c.outputs.div_ceil(size.channels);
        let parts = if shared { more_parts(parts, tiles, c.groups, threads) } else { parts };
        // Weights of whole sums, which a thread's next panel meets again, not of a block of channels.
        let panels = columns.strips * columns.band_rows.div_ceil(rows);
        let all = c.outputs.div_ceil(parts).div_ceil(size.channels);
        let weights = all * tile_weights;
        let met_again = channels == c.channels && panels > threads;
        let fits = weights * size.bytes <= KEPT && panel_len + weights <= room / size.bytes;
        let kept_tiles = match packed {
            true if met_again && fits => all,
            true => 1,
            false => 0,
        };
        Some(Self { columns, rows, channels, parts, panel_len, tile_weights, kept_tiles })
    }

    /// Elements of the smallest panel that works for `c`.
    pub fn smallest(c: &Correlation, size: TileSize) -> usize {
        c.height.panel_rows(1) * row_len(&c.best_lowering(size.lanes), 1, size.lanes)
    }

    /// Input channels of a panel that has room for `room` rows of one channel and should serve `rows` of output.
    fn channel_block(c: &Correlation, room: usize, rows: usize) -> usize {
        if c.channels == 0 {
            return 0;
        }
        let most = (room / c.height.panel_rows(1)).max(1);
        let wanted = room / c.height.panel_rows(rows);
        let block = wanted.max(STEPS_WANTED.div_ceil(c.taps())).min(most).min(c.channels);
        let blocks = c.channels.div_ceil(block);
        c.channels.div_ceil(blocks)
    }

    /// Bands and parts with the least estimated time.
    ///
    /// The estimate counts cycles of the slowest thread: the steps of its tiles, and the packing of
    /// panels, which bands repeat at their edges and parts repeat whole. More bands fill registers that
    /// one row of columns would leave half empty, and leave fewer strips of a single register.
    fn bands_and_parts(
        c: &Correlation,
        size: TileSize,
        lowering: &Lowering,
        vectors: usize,
        threads: usize,
    ) -> (usize, usize) {
        let out_h = c.height.output.max(1);
        let tiles = c.outputs.div_ceil(size.channels).max(1);
        let steps = c.channels * c.all_taps();
        // With this many strips for each thread, neither registers nor threads are left idle.
        let plenty = 16 * threads * vectors * size.lanes;
        // As many bands at least as keep the output of one in the second-level cache until the
        // neighbouring strips have completed its lines, but not such as pack most rows twice.
        let image = c.outputs * out_h * c.width.output * size.bytes;
        let fewest = (image / OUTPUT_WANTED).clamp(1, (out_h / (4 * c.height.taps)).max(1));
        let mut best = (f64::INFINITY, (fewest, 1));
        let mut bands = fewest;
        loop {
            let columns = Columns::new(c, *lowering, bands, size.lanes, vectors);
            let strips = columns.strips.max(1);
            let narrow = columns.bundles / strips;
            // A register of a panel takes about 1.5 cycles and one more for each run of columns.
            let runs = size.lanes as f64 / c.width.output.max(1) as f64 + 1.0;
            let panel = c.height.panel_rows(columns.band_rows) * lowering.planes * c.channels;
            let pack = columns.bundles as f64 / strips as f64 * panel as f64 * (1.5 + runs);
            let mut parts = 1;
            while parts <= tiles {
                let outputs = c.outputs.div_ceil(parts);
                let tiles = outputs.div_ceil(size.channels);
                let height = if size.even_tiles { outputs.div_ceil(tiles) } else { size.channels };
                // Each step of a tile brings its weights in from a far cache, about four cycles.
                let strip = |registers: usize| {
                    let step = step_cycles(registers, height);
                    (steps * tiles) as f64 * (step * columns.band_rows as f64 + 4.0) + pack
                };
                // The slowest thread's strips, of which the wide ones may be the most.
                let rounds = (c.groups * strips * parts).div_ceil(threads);
                let wide = (c.groups * (columns.bundles % strips) * parts).min(rounds);
                let time = wide as f64 * strip(narrow + 1) + (rounds - wide) as f64 * strip(narrow);
                // A later candidate must be clearly better: fewer bands and parts pack less.
                if time < best.0 * 0.99 {
                    best = (time, (bands, parts));
                }
                if strips * c.groups >= 8 * threads {
                    break;
                }
                parts += 1;
            }
            if bands >= out_h || c.batch * c.width.output >= plenty {
                return best.1;
            }
            bands = (bands + bands.div_ceil(4)).min(out_h);
        }
    }

    /// Elements of workspace for each thread.
    pub fn workspace_len(&self) -> usize {
        self.panel_len + self.kept_tiles * self.tile_weights
    }

    /// What a reader of the plan sees of it.
    pub fn piece(&self, c: &Correlation) -> Piece {
        Piece {
            row_phase: c.height.out_base,
            column_phase: c.width.out_base,
            row_phases: 1,
            column_phases: c.phases().len(),
            output: [c.height.output, c.width.output],
            bands: self.columns.bands,
            strips: self.columns.strips,
            panel_rows: self.rows,
            panel_channels: self.channels,
            planes: self.columns.lowering.planes,
            tasks: self.tasks(c.groups),
        }
    }

    /// Independent pieces of work.
    pub fn tasks(&self, groups: usize) -> usize {
        groups * self.parts * self.columns.strips
    }
}

/// Cycles of a step of a tile of `registers` by `channels`: half a cycle for each multiply-add, or for
/// each load where they are more, but never less than a multiply-add's latency.
pub(super) fn step_cycles(registers: usize, channels: usize) -> f64 {
    let loads = registers + channels + 1;
    (registers * channels).max(loads).max(10) as f64 / 2.0
}

/// Elements of one row of one channel of a panel.
fn row_len(lowering: &Lowering, vectors: usize, lanes: usize) -> usize {
    lowering.planes * lowering.plane_len(vectors * lanes, lanes)
}
