//! How a weight gradient is cut into blocks of the result, strips and panels: plain data.

use crate::kernel::{Kernel, MAX_COLUMNS, Stretch, Vector};
use crate::plan::Piece;
use crate::strip::correlation::Correlation;
use crate::strip::strips::Columns;
use crate::strip::weight_gradient::Division;

/// The plan of a weight gradient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Blocks {
    /// The columns of each strip.
    pub columns: Columns,
    /// Output rows a panel serves.
    pub rows: usize,
    /// Blocks, of whole registers of output channels.
    pub division: Division,
    /// Elements of a panel.
    pub panel_len: usize,
    /// Elements of a panel row of ones, for the bias.
    pub ones_len: usize,
    /// Elements of the transposed piece of `dy`.
    pub dy_len: usize,
    /// Elements of the sums.
    pub sums_len: usize,
    /// Stretches of columns in a panel.
    pub stretches: usize,
    /// Kernel elements of a channel.
    pub taps: usize,
}

/// Positions a part should sum over: adding a part to the result costs about as much as 20.
const POSITIONS_WANTED: usize = 512;

/// Channels of a block below which transposing `dy` for each block shows.
const CHANNELS_WANTED: usize = 32;

/// Positions of a panel from which loading and storing the sums no longer shows.
const PANEL_POSITIONS: usize = 512;

/// Bytes of the output channels of a block, at most: 128 of `f32`. Each block packs its input anew; with 32
/// of them the weight gradient of r1, r2 and cv12 took 1.15, 1.2 and 1.05 times as long (AVX2, Zen 2).
const OUTPUTS_BYTES: usize = 512;

impl Blocks {
    /// Plans the weight gradient of forward correlation `c` for at most `limit` bytes in each
    /// thread; `None` if even the smallest blocks do not fit.
    pub fn new<T: Vector>(c: &Correlation, kernel: &Kernel<T>, limit: usize) -> Option<Self> {
        let elements = limit / size_of::<T>();
        let lanes = kernel.lanes;
        let most_outputs = c.outputs.next_multiple_of(lanes).min(OUTPUTS_BYTES / size_of::<T>());
        // From the sizes that are wanted down to the smallest: one column, one register, one channel.
        let mut width = MAX_COLUMNS;
        let mut outputs = most_outputs;
        loop {
            let sums = (elements * 3 / 8).max(elements.min((c.taps() + 1) * outputs));
            let channels = (sums / outputs).saturating_sub(1) / c.taps();
            if let Some(plan) = (channels > 0)
                .then(|| Self::with::<T>(c, limit, width, outputs, channels))
                .flatten()
            {
                return Some(plan);
            }
            if width > 1 {
                width = width.div_ceil(2);
            } else if outputs > lanes {
                outputs = (outputs / 2).next_multiple_of(lanes);
            } else {
                return Self::with::<T>(c, limit, 1, lanes, 1);
            }
        }
    }

    /// Bytes of the smallest blocks that work for `c`, for each thread.
    pub fn smallest<T>(c: &Correlation, lanes: usize) -> usize {
        Self::lens(c, 1, 1, 1, lanes).iter().sum::<usize>() * size_of::<T>()
            + Self::stretches(c, 1, 1) * size_of::<Stretch>()
            + c.taps() * size_of::<usize>()
    }

    /// Most stretches of columns that `rows` rows of a strip of `width` lanes have.
    fn stretches(c: &Correlation, width: usize, rows: usize) -> usize {
        let pitch = c.width.output + c.lowering(false).halo;
        rows * width.min(width / pitch + 2)
    }

    /// Elements of panel, ones, `dy` and sums.
    fn lens(
        c: &Correlation,
        width: usize,
        rows: usize,
        channels: usize,
        outputs: usize,
    ) -> [usize; 4] {
        let lowering = c.lowering(false);
        // Any alignment serves a broadcast.
        let line = lowering.planes * lowering.plane_len(width, 1);
        let channel = c.height.panel_rows(rows) * line;
        [channels * channel, channel, rows * width * outputs, (channels * c.taps() + 1) * outputs]
    }

    fn with<T>(
        c: &Correlation,
        limit: usize,
        width: usize,
        outputs: usize,
        most_channels: usize,
    ) -> Option<Self> {
        let mut channel_blocks = c.channels.div_ceil(most_channels).max(1);
        let columns = Columns::new(c, c.lowering(false), Self::bands(c), 1, width);
        let positions = c.batch * c.height.output * c.width.output;
        let divided = |channel_blocks: usize| {
            let most = (positions / POSITIONS_WANTED).min(columns.strips);
            Division::new(c, c.channels.div_ceil(channel_blocks), outputs).in_parts(most)
        };
        while divided(channel_blocks).has_few_tasks()
            && c.channels.div_ceil(channel_blocks * 2) >= CHANNELS_WANTED
        {
            channel_blocks *= 2;
        }
        let division = divided(channel_blocks);
        let width = columns.widest();
        let most_rows = columns.band_rows.min(PANEL_POSITIONS.div_ceil(width.max(1)));
        (1..=most_rows).rev().find_map(|rows| {
            let lens = Self::lens(c, width, rows, division.channels(), outputs);
            let [panel_len, ones_len, dy_len, sums_len] = lens;
            let stretches = Self::stretches(c, width, rows);
            let plan = Self {
                columns,
                rows,
                division,
                panel_len,
                ones_len,
                dy_len,
                sums_len,
                stretches,
                taps: c.taps(),
            };
            (plan.worker_bytes::<T>() <= limit).then_some(plan)
        })
    }

    /// Bands that make rows of columns long enough for the micro-kernel's innermost loop. They
    /// divide the image exactly: a row that does not exist must not be multiplied, even by zero.
    fn bands(c: &Correlation) -> usize {
        let out_h = c.height.output;
        let enough = |bands: &usize| c.batch * c.width.output * bands >= MAX_COLUMNS * 2 / 3;
        (1..=out_h).filter(|b| out_h.is_multiple_of(*b)).find(enough).unwrap_or(out_h.max(1))
    }

    /// Elements of workspace for each thread.
    pub fn workspace_len(&self) -> usize {
        self.panel_len + self.ones_len + self.dy_len + self.sums_len
    }

    /// Bytes that [`run`] takes for each thread.
    pub fn worker_bytes<T>(&self) -> usize {
        self.workspace_len() * size_of::<T>()
            + self.stretches * size_of::<Stretch>()
            + self.taps * size_of::<usize>()
    }

    /// What a reader of the plan sees of it.
    pub fn piece(&self, c: &Correlation) -> Piece {
        Piece {
            row_phase: 0,
            column_phase: 0,
            row_phases: 1,
            column_phases: 1,
            output: [c.height.output, c.width.output],
            bands: self.columns.bands,
            strips: self.columns.strips,
            panel_rows: self.rows,
            panel_channels: self.division.channels(),
            planes: self.columns.lowering.planes,
            tasks: self.division.tasks(),
        }
    }
}
