//! The strip's columns, and packing them: the paper's lowering, straight into the micro-kernel's
//! operand format.

use super::correlation::Correlation;
use super::strips::Columns;
use crate::kernel::{Kernel, MAX_COLUMNS, OutRun, Pack, Vector};

/// Columns of a strip that lie in one row of one band of one image.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Run {
    /// First lane.
    pub lane: usize,
    /// Columns.
    pub columns: usize,
    /// Image.
    pub image: usize,
    /// First output row of the band.
    pub row: usize,
    /// Output column of lane `lane`.
    pub x: usize,
}

/// A short list on the stack: a strip has at most one run for each column.
#[derive(Clone, Copy)]
pub(crate) struct List<T> {
    items: [T; MAX_COLUMNS],
    len: usize,
}

impl<T: Copy + Default> List<T> {
    fn new() -> Self {
        Self { items: [T::default(); MAX_COLUMNS], len: 0 }
    }

    fn push(&mut self, item: T) {
        self.items[self.len] = item;
        self.len += 1;
    }

    fn last_mut(&mut self) -> Option<&mut T> {
        self.items[..self.len].last_mut()
    }

    /// The items so far.
    pub fn as_slice(&self) -> &[T] {
        &self.items[..self.len]
    }
}

/// One strip: which columns its lanes hold.
pub(crate) struct Strip {
    /// Bundles of columns.
    pub bundles: usize,
    /// Lanes, used or not.
    pub width: usize,
    runs: List<Run>,
}

impl Strip {
    /// Strip number `index`.
    pub fn new(c: &Correlation, dealt: &Columns, index: usize) -> Self {
        let bundles = dealt.bundles_of(index);
        let columns = c.batch * dealt.bands * c.width.output;
        let mut column = bundles.start * dealt.lanes;
        let first = column;
        let end = (bundles.end * dealt.lanes).min(columns);
        let mut runs = List::new();
        while column < end {
            let (row_of_columns, x) = (column / c.width.output, column % c.width.output);
            let count = (c.width.output - x).min(end - column);
            runs.push(Run {
                lane: column - first,
                columns: count,
                image: row_of_columns / dealt.bands,
                row: row_of_columns % dealt.bands * dealt.band_rows,
                x,
            });
            column += count;
        }
        Self { bundles: bundles.len(), width: bundles.len() * dealt.lanes, runs }
    }

    /// The runs, by lane.
    pub fn runs(&self) -> &[Run] {
        self.runs.as_slice()
    }

    /// Where the lanes of output row `row` of each band lie in the output; lanes whose band has no
    /// such row are left out, and runs that follow each other are joined.
    pub fn out_runs(&self, c: &Correlation, row: usize, strides: &[usize; 4]) -> List<OutRun> {
        let [image, _, line, column] = *strides;
        let mut out = List::<OutRun>::new();
        for run in self.runs.as_slice() {
            let q = run.row + row;
            if q >= c.height.output {
                continue;
            }
            let offset = run.image * image
                + (q * c.height.out_step + c.height.out_base) * line
                + (run.x * c.width.out_step + c.width.out_base) * column;
            match out.last_mut() {
                Some(last)
                    if last.lane + last.columns == run.lane
                        && last.offset + last.columns * c.width.out_step * column == offset =>
                {
                    last.columns += run.columns;
                }
                _ => out.push(OutRun { lane: run.lane, columns: run.columns, offset }),
            }
        }
        out
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

/// Packs the panel of `rows` output rows from `row` on (of every band).
///
/// # Safety
///
/// The correlation's whole input can be read from `source`; `to` has room for
/// `channels * panel_rows(rows) * taps * width` elements.
pub(crate) unsafe fn pack<T: Vector>(
    kernel: &Kernel<T>,
    c: &Correlation,
    strip: &Strip,
    (row, rows): (usize, usize),
    source: &Source<T>,
    to: *mut T,
) {
    let strides = &source.strides;
    let (h, w) = (&c.height, &c.width);
    let panel_rows = h.panel_rows(rows);
    let line_len = w.taps * strip.width;
    let runs = strip.runs.as_slice();
    let used = runs.last().map_or(0, |r| r.lane + r.columns);
    for i in 0..panel_rows {
        for (index, run) in runs.iter().enumerate() {
            let y = ((run.row + row) * h.step + i * h.unit()) as isize + h.base;
            let inside = (0..h.input as isize).contains(&y);
            // Lanes no column uses are cleared: stale bits could be denormals, which are slow.
            let idle = if index + 1 == runs.len() { strip.width - used } else { 0 };
            for m in 0..w.taps {
                let first = (run.x * w.step + m * w.tap_step) as isize + w.base;
                let (before, columns) = if inside {
                    inside_columns(first, w.step, w.input, run.columns)
                } else {
                    (run.columns, 0)
                };
                let start = first + (before * w.step) as isize;
                let offset = run.image as isize * strides[0] + y * strides[2] + start * strides[3];
                // SAFETY: only columns and rows inside the input are read; the lanes written are
                // this run's, and the idle ones behind the last run.
                unsafe {
                    kernel.pack(&Pack {
                        from: source.first.wrapping_offset(offset),
                        from_channel: strides[1],
                        from_column: w.step as isize * strides[3],
                        to: to.add(i * line_len + m * strip.width + run.lane),
                        to_channel: panel_rows * line_len,
                        channels: source.channels,
                        before,
                        columns,
                        after: run.columns - before - columns + idle,
                    });
                }
            }
        }
    }
}

/// Of `columns` positions `first, first + step, ...`: how many come before `0..input`, and how many
/// of the rest lie inside it.
fn inside_columns(first: isize, step: usize, input: usize, columns: usize) -> (usize, usize) {
    let step = step as isize;
    let reach = |to: isize| ((to - first).max(0) + step - 1) / step;
    let before = (reach(0) as usize).min(columns);
    let end = (reach(input as isize) as usize).min(columns);
    (before, end - before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_outside_the_input_are_counted() {
        assert_eq!(inside_columns(-2, 1, 10, 5), (2, 3));
        assert_eq!(inside_columns(-3, 2, 10, 8), (2, 5));
        assert_eq!(inside_columns(8, 1, 10, 5), (0, 2));
        assert_eq!(inside_columns(12, 1, 10, 5), (0, 0));
        assert_eq!(inside_columns(-9, 1, 4, 5), (5, 0));
        assert_eq!(inside_columns(0, 1, 0, 3), (0, 0));
    }
}
