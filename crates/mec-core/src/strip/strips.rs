//! How a correlation is cut into strips, bands, panels and blocks: plain data.
//!
//! ```text
//! columns   (image, band, x), numbered in that order           |<- strip ->|<- strip ->| ...
//! panel     [channel][row][tap x][lane]: one strip, the input rows of some output rows
//! tile      one output row of the panel, some channels: one call of the micro-kernel
//! ```
//!
//! What decides the order in which a sum is taken (the channel block) depends on the problem and on
//! the byte limit alone, never on the number of threads.

use super::correlation::Correlation;
use std::ops::Range;

/// Where the micro-kernel reads the weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    /// Where it lies: right when each weight is used once or twice.
    InPlace,
    /// Copied block by block, for the rows of one panel.
    Block,
    /// Copied once by each thread, for all its panels of one group and one part.
    Resident,
}

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
}

/// The columns (image, band, x) of a correlation, numbered in that order and dealt to strips.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Columns {
    /// Bands an image is divided into: 1 is the paper's algorithm, `out_h` is im2col.
    pub bands: usize,
    /// Output rows of a band (the last may have fewer).
    pub band_rows: usize,
    /// Columns that stay together.
    pub lanes: usize,
    /// How many such bundles there are; only the last may have fewer columns.
    pub bundles: usize,
    /// Strips the bundles are dealt to.
    pub strips: usize,
}

impl Columns {
    /// Deals the columns of `c`, in bundles of `lanes`, to strips of at most `most` bundles.
    pub fn new(c: &Correlation, bands: usize, lanes: usize, most: usize) -> Self {
        let band_rows = c.height.output.div_ceil(bands);
        let bands = c.height.output.div_ceil(band_rows);
        let bundles = (c.batch * bands * c.width.output).div_ceil(lanes);
        Self { bands, band_rows, lanes, bundles, strips: bundles.div_ceil(most) }
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
    /// Parts the output channels are divided into, as tasks of their own.
    pub parts: usize,
    /// Output channels of a part (the last may have fewer): whole tiles.
    pub part_outputs: usize,
    /// Where weights are read.
    pub packing: Packing,
    /// Elements of a panel.
    pub panel_len: usize,
    /// Elements of packed weights.
    pub weight_len: usize,
}

/// Rows a panel should serve before it takes all channels: with fewer, packing shows.
const ROWS_WANTED: usize = 4;

/// Steps of a sum below which cutting it into channel blocks costs more than it gains: each cut
/// reads and writes the tile's output once more.
const STEPS_WANTED: usize = 512;

/// Uses of a packed weight from which the copy pays for itself (a copy takes about a quarter of
/// one use; reading in place costs up to a tenth of each).
const USES_WANTED: usize = 4;

impl Strips {
    /// Plans `c` for at most `limit` bytes of workspace in each of `threads` threads; `None` if even
    /// the smallest panel does not fit.
    pub fn new(c: &Correlation, size: TileSize, threads: usize, limit: usize) -> Option<Self> {
        let elements = limit / size.bytes;
        let row_len = |vectors: usize| c.width.taps * vectors * size.lanes;
        // The widest strip whose smallest panel fits.
        let smallest = c.height.panel_rows(1);
        let vectors = (1..=size.vectors).rev().find(|&v| smallest * row_len(v) <= elements)?;
        let row_len = row_len(vectors);

        // Three eighths at most for weights, so that the panel keeps the larger part.
        let panel_room = (elements - elements * 3 / 8).max(smallest * row_len);
        let channels = Self::channel_block(c, panel_room / row_len);

        let (bands, parts) = Self::bands_and_parts(c, size, vectors, threads);
        let columns = Columns::new(c, bands, size.lanes, vectors);
        let Columns { band_rows, strips, .. } = columns;
        let part_outputs = c.outputs.div_ceil(parts).next_multiple_of(size.channels);
        let parts = c.outputs.div_ceil(part_outputs);

        let per_output = c.channels * c.taps();
        let resident = part_outputs * per_output;
        let block = size.channels * channels * c.taps();
        // Rows that fit beside weights of `weight_len`.
        let rows = |weight_len: usize| {
            let room = elements.checked_sub(weight_len)? / (channels.max(1) * row_len);
            (1..=band_rows).rev().find(|&r| c.height.panel_rows(r) <= room)
        };
        let uses = band_rows * strips.div_ceil(threads.max(1));
        let (packing, weight_len, rows) = match (rows(resident), rows(block), rows(0)) {
            (Some(rows), _, _) if uses >= USES_WANTED && resident <= elements * 3 / 8 => {
                (Packing::Resident, resident, rows)
            }
            (_, Some(rows), _) if rows >= USES_WANTED => (Packing::Block, block, rows),
            (_, _, rows) => (Packing::InPlace, 0, rows?),
        };
        Some(Self {
            columns,
            rows,
            channels,
            parts,
            part_outputs,
            packing,
            panel_len: channels * c.height.panel_rows(rows) * row_len,
            weight_len,
        })
    }

    /// Elements of the smallest panel that works for `c`.
    pub fn smallest(c: &Correlation, size: TileSize) -> usize {
        c.height.panel_rows(1) * c.width.taps * size.lanes
    }

    /// Input channels of a panel that has room for `room` rows of one channel.
    fn channel_block(c: &Correlation, room: usize) -> usize {
        if c.channels == 0 {
            return 0;
        }
        let most = (room / c.height.panel_rows(1)).max(1);
        let wanted = room / c.height.panel_rows(ROWS_WANTED.min(c.height.output.max(1)));
        let block = wanted.max(STEPS_WANTED.div_ceil(c.taps())).min(most).min(c.channels);
        let blocks = c.channels.div_ceil(block);
        c.channels.div_ceil(blocks)
    }

    /// Bands and parts with the least estimated time.
    ///
    /// The estimate counts cycles of the slowest thread: half a cycle for each fused multiply-add
    /// of a register, and the packing of panels, which bands repeat at their edges and parts repeat
    /// whole. More bands fill registers that one row of columns would leave half empty.
    fn bands_and_parts(
        c: &Correlation,
        size: TileSize,
        vectors: usize,
        threads: usize,
    ) -> (usize, usize) {
        let out_h = c.height.output.max(1);
        let tiles = c.outputs.div_ceil(size.channels).max(1);
        // With this many strips for each thread, neither registers nor threads are left idle.
        let plenty = 16 * threads * vectors * size.lanes;
        let mut best = (f64::INFINITY, (1, 1));
        let mut bands = 1;
        loop {
            let band_rows = out_h.div_ceil(bands);
            let columns = c.batch * bands * c.width.output;
            let strips = columns.div_ceil(size.lanes).div_ceil(vectors).max(1);
            let registers = columns.div_ceil(size.lanes) as f64 / strips as f64;
            let sum = registers * (band_rows * c.channels * c.taps() * tiles * size.channels) as f64;
            // A register of a panel takes about 1.5 cycles and one more for each run of columns.
            let runs = size.lanes as f64 / c.width.output.max(1) as f64 + 1.0;
            let panel = (c.height.panel_rows(band_rows) * c.width.taps * c.channels) as f64;
            let pack = registers * panel * (1.5 + runs);
            let mut parts = 1;
            while parts <= tiles {
                let rounds = (c.groups * strips * parts).div_ceil(threads);
                let part = tiles.div_ceil(parts) as f64 / tiles as f64;
                let time = rounds as f64 * (0.5 * sum * part + pack);
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
        self.panel_len + self.weight_len
    }

    /// Independent pieces of work.
    pub fn tasks(&self, groups: usize) -> usize {
        groups * self.parts * self.columns.strips
    }
}
