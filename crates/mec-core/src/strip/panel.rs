//! The strip's columns, and packing them: the paper's lowering, straight into the micro-kernel's
//! operand format.

use super::correlation::{Correlation, Lowering, Phase};
use super::strips::Columns;
use crate::kernel::{
    GatherLanes, Kernel, MAX_COLUMNS, MAX_LANES, OutRun, Pack, Vector, inside_columns,
};
use std::mem::MaybeUninit;
use std::ops::Range;

/// Lanes of a strip that lie in one row of one band of one image.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Run {
    /// First lane.
    pub lane: usize,
    /// Lanes.
    pub lanes: usize,
    /// How many of them, from the first, are output columns; the rest are gap or halo.
    pub columns: usize,
    /// Image.
    pub image: usize,
    /// First output row of the band.
    pub row: usize,
    /// Output column of lane `lane`.
    pub x: usize,
}

/// Most runs of a strip. A row with a halo `h` takes at least `1 + h` lanes, so that the lanes of a
/// strip meet at most as many rows as it has lanes, and its halo at most one more.
const MAX_RUNS: usize = MAX_COLUMNS + 1;

/// A short list on the stack: by default one run for each lane of strip and halo.
pub(crate) struct List<T, const MOST: usize = MAX_RUNS> {
    items: [MaybeUninit<T>; MOST],
    len: usize,
}

impl<T: Copy, const MOST: usize> List<T, MOST> {
    /// No items.
    pub fn new() -> Self {
        // A constant: as a value it would be copied to each place.
        Self { items: [const { MaybeUninit::uninit() }; MOST], len: 0 }
    }

    /// Adds an item, of at most `MOST`.
    pub fn push(&mut self, item: T) {
        self.items[self.len].write(item);
        self.len += 1;
    }

    fn last_mut(&mut self) -> Option<&mut T> {
        let last = self.items[..self.len].last_mut()?;
        // SAFETY: the first `len` items have been written.
        Some(unsafe { last.assume_init_mut() })
    }

    /// The items so far.
    pub fn as_slice(&self) -> &[T] {
        let items = &raw const self.items[..self.len];
        // SAFETY: the first `len` items have been written.
        unsafe { &*(items as *const [T]) }
    }
}

/// How the lines of a panel, each of one row of one channel, follow each other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Steps {
    /// Elements from a channel's line to the next channel's.
    pub channel: usize,
    /// Elements from a row's line to the next row's.
    pub row: usize,
}

/// One strip: which columns its lanes hold.
pub(crate) struct Strip {
    /// Bundles of lanes.
    pub bundles: usize,
    /// Lanes, used or not, without the halo.
    pub width: usize,
    /// Elements of a plane: the lanes and the halo, in whole registers.
    pub plane_len: usize,
    /// Elements of a panel's row.
    pub line_len: usize,
    lowering: Lowering,
    runs: List<Run>,
}

impl Strip {
    /// Strip number `index`, for registers of `lanes` elements.
    pub fn new(c: &Correlation, dealt: &Columns, lanes: usize, index: usize) -> Self {
        let lowering = dealt.lowering;
        let bundles = dealt.bundles_of(index);
        let (first, end) = (bundles.start * dealt.bundle, bundles.end * dealt.bundle);
        let pitch = c.width.output + lowering.halo;
        let last = (end + lowering.halo).min(c.batch * dealt.bands * pitch);
        let mut runs = List::new();
        let mut lane = first;
        while lane < last {
            let (row, x) = (lane / pitch, lane % pitch);
            let count = (pitch - x).min(last - lane);
            let columns = c.width.output.saturating_sub(x).min(end.saturating_sub(lane));
            runs.push(Run {
                lane: lane - first,
                lanes: count,
                columns: columns.min(count),
                image: row / dealt.bands,
                row: row % dealt.bands * dealt.band_rows,
                x,
            });
            lane += count;
        }
        let width = bundles.len() * dealt.bundle;
        let plane_len = lowering.plane_len(width, lanes);
        let line_len = lowering.planes * plane_len;
        Self { bundles: bundles.len(), width, plane_len, line_len, lowering, runs }
    }

    /// The runs, by lane.
    pub fn runs(&self) -> &[Run] {
        self.runs.as_slice()
    }

    /// How the lines of a panel follow each other: `[row][channel]` where a window has one row, so that it is met
    /// in order (1.1 times as soon for r1 as from a page for each channel), else `[channel][row]`, for rows that
    /// windows share.
    pub fn steps(&self, c: &Correlation, rows: usize, channels: usize) -> Steps {
        if c.height.taps == 1 {
            Steps { channel: self.line_len, row: channels * self.line_len }
        } else {
            self.shared_rows(c, rows)
        }
    }

    /// The same for windows that lie one below the other in each channel.
    pub fn shared_rows(&self, c: &Correlation, rows: usize) -> Steps {
        Steps { channel: c.height.panel_rows(rows) * self.line_len, row: self.line_len }
    }

    /// Elements from a channel's start in the panel to where tap (`y`, `x`) of `phase` begins.
    pub fn tap(&self, c: &Correlation, phase: &Phase, y: usize, x: usize) -> usize {
        y * c.height.tap_step / c.height.unit() * self.line_len
            + self.lowering.tap(phase, x, self.plane_len)
    }

    /// Rows that every band of the strip has; the last band of an image may have fewer than the rest.
    pub fn common_rows(&self, c: &Correlation) -> usize {
        self.runs().iter().map(|run| c.height.output - run.row).min().unwrap_or(0)
    }

    /// The kernel rows of output row `row` that meet a row of the input in any of the bands.
    pub fn tap_rows(&self, c: &Correlation, row: usize) -> Range<usize> {
        let h = &c.height;
        let (mut first, mut end) = (h.taps, 0);
        for run in self.runs() {
            let top = ((run.row + row) * h.step) as isize + h.base;
            let (before, inside) = inside_columns(top, h.tap_step.max(1), h.input, h.taps);
            if inside > 0 {
                first = first.min(before);
                end = end.max(before + inside);
            }
        }
        first.min(end)..end
    }

    /// Where the columns of output row `row` of each band lie in the output; those whose band has
    /// no such row are left out, and runs that follow each other are joined.
    pub fn out_runs(
        &self,
        c: &Correlation,
        row: usize,
        strides: &[usize; 4],
        out: &mut List<OutRun>,
    ) {
        let [image, _, line, column] = *strides;
        out.len = 0;
        for run in self.runs() {
            let q = run.row + row;
            if q >= c.height.output || run.columns == 0 {
                continue;
            }
            let offset = run.image * image
                + (q * c.height.out_step + c.height.out_base) * line
                + (run.x * c.width.out_step + c.width.out_base) * column;
            let ends = run.x + run.columns == c.width.output;
            match out.last_mut() {
                Some(last)
                    if c.phases().len() == 1
                        && last.lane + last.columns == run.lane
                        && last.offset + last.columns * c.width.out_step * column == offset =>
                {
                    last.columns += run.columns;
                }
                _ => out.push(OutRun { lane: run.lane, columns: run.columns, offset, ends }),
            }
        }
    }
}

/// Some channels of a correlation's input.
pub(crate) struct Source<T> {
    /// The first channel, in image 0.
    pub first: *const T,
    /// Strides of image, channel, row and column, in elements.
    pub strides: [isize; 4],
    /// Channels.
    pub channels: usize,
}

/// Runs of a register, on average, from which its lanes are gathered: at 2, m2, r2, d1 and cv5 take 0.8 to 0.95 of the
/// time in one pass or another, at 1 cv10 and cv9 no less (Sapphire Rapids).
const GATHERED_RUNS: usize = 2;

/// Whether so many runs in `width` lanes are worth gathering.
pub(crate) fn worth_gathering(runs: usize, width: usize, lanes: usize) -> bool {
    runs * lanes >= GATHERED_RUNS * width
}

/// What a lane that is gathered meets first.
#[derive(Clone, Copy)]
pub(crate) struct Lane {
    /// Where it lies, in elements.
    pub offset: isize,
    /// Its row of the input, which may lie outside.
    pub row: isize,
    /// Its column, likewise.
    pub column: isize,
}

/// Where the first of a register's lanes lies, and all of them counted from there; `None` where that is too far for an
/// instruction that gathers. Lanes that meet nothing count as the first.
pub(crate) fn offsets(lanes: &[Option<Lane>]) -> Option<(isize, [i32; MAX_LANES])> {
    let first = lanes.iter().flatten().next().map_or(0, |lane| lane.offset);
    let mut offsets = [0; MAX_LANES];
    for (to, lane) in offsets.iter_mut().zip(lanes) {
        *to = i32::try_from(lane.map_or(0, |lane| lane.offset - first)).ok()?;
    }
    Some((first, offsets))
}

/// Packs the panel of `rows` output rows from `row` on (of every band).
///
/// # Safety
///
/// The correlation's whole input can be read from `source`; `to` has room for
/// `channels * panel_rows(rows) * line_len` elements.
pub(crate) unsafe fn pack<T: Vector>(
    kernel: &Kernel<T>,
    c: &Correlation,
    strip: &Strip,
    (row, rows): (usize, usize),
    source: &Source<T>,
    steps: Steps,
    to: *mut T,
) {
    let strides = &source.strides;
    let (h, w) = (&c.height, &c.width);
    let panel_rows = h.panel_rows(rows);
    let runs = strip.runs();
    // SAFETY: the same contract.
    if unsafe { gather(kernel, c, strip, (row, rows), source, steps, to) } {
        return;
    }
    let used = runs.last().map_or(0, |r| r.lane + r.lanes);
    for (index, run) in runs.iter().enumerate() {
        let top = ((run.row + row) * h.step) as isize + h.base;
        let (above, inside) = inside_columns(top, h.unit(), h.input, panel_rows);
        // Lanes no run uses are cleared: stale bits could be denormals, which are slow.
        let idle = if index + 1 == runs.len() { strip.plane_len - used } else { 0 };
        for plane in 0..strip.lowering.planes {
            let first = (run.x * w.step + plane * w.tap_step) as isize + w.base;
            let (before, columns) = inside_columns(first, w.step, w.input, run.lanes);
            let start = first + (before * w.step) as isize;
            // Rows above the input, rows of it, and rows below.
            let parts = [(0, above, 0), (above, inside, columns), (above + inside, panel_rows, 0)];
            for (from_row, rows, columns) in parts {
                let rows = rows.min(panel_rows - from_row);
                let y = top + (from_row * h.unit()) as isize;
                let offset = run.image as isize * strides[0] + y * strides[2] + start * strides[3];
                let at = from_row * steps.row + plane * strip.plane_len + run.lane;
                // SAFETY: only columns and rows inside the input are read; the lanes written are
                // this run's, and the idle ones behind the last run.
                unsafe {
                    kernel.pack(&Pack {
                        from: source.first.wrapping_offset(offset),
                        from_channel: strides[1],
                        from_row: h.unit() as isize * strides[2],
                        from_column: w.step as isize * strides[3],
                        to: to.add(at),
                        to_channel: steps.channel,
                        to_row: steps.row,
                        channels: source.channels,
                        rows,
                        before,
                        columns,
                        after: run.lanes - before - columns + idle,
                    });
                }
            }
        }
    }
}

/// Packs the panel of a strip of many short runs; whether it did.
///
/// # Safety
///
/// As [`pack`].
unsafe fn gather<T: Vector>(
    kernel: &Kernel<T>,
    c: &Correlation,
    strip: &Strip,
    (row, rows): (usize, usize),
    source: &Source<T>,
    steps: Steps,
    to: *mut T,
) -> bool {
    let (h, w, lanes) = (&c.height, &c.width, kernel.lanes);
    let Some(gathers) = &kernel.gathers else { return false };
    // The weight gradient's planes may end within a register.
    let whole = strip.plane_len.is_multiple_of(lanes);
    if !whole || !worth_gathering(strip.runs().len(), strip.plane_len, lanes) {
        return false;
    }
    let [image, channel, line, column] = source.strides;
    for first_lane in (0..strip.plane_len).step_by(lanes) {
        // In the first row and plane.
        let mut columns = [None; MAX_LANES];
        let columns = &mut columns[..lanes];
        for run in strip.runs() {
            let y = ((run.row + row) * h.step) as isize + h.base;
            let end = (run.lane + run.lanes).min(first_lane + lanes);
            for lane in run.lane.max(first_lane)..end {
                let x = ((run.x + lane - run.lane) * w.step) as isize + w.base;
                let offset = run.image as isize * image + y * line + x * column;
                columns[lane - first_lane] = Some(Lane { offset, row: y, column: x });
            }
        }
        let Some((first, offsets)) = offsets(columns) else { return false };
        for plane in 0..strip.lowering.planes {
            let right = (plane * w.tap_step) as isize;
            for y in 0..h.panel_rows(rows) {
                let down = (y * h.unit()) as isize;
                let mut inside = 0;
                for (lane, column) in columns.iter().enumerate() {
                    let Some(Lane { row, column, .. }) = column else { continue };
                    let (y, x) = (row + down, column + right);
                    let within =
                        (0..h.input as isize).contains(&y) && (0..w.input as isize).contains(&x);
                    inside |= u16::from(within) << lane;
                }
                let from = first + down * line + right * column;
                let at = y * steps.row + plane * strip.plane_len + first_lane;
                // SAFETY: only what is inside the input is named as such; the lanes are the strip's.
                unsafe {
                    gathers.lanes(&GatherLanes {
                        from: source.first.wrapping_offset(from),
                        from_channel: channel,
                        offsets,
                        inside,
                        channels: source.channels,
                        to: to.add(at),
                        to_channel: steps.channel,
                    });
                }
            }
        }
    }
    true
}
