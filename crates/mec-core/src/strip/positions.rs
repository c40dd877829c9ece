//! Panels of consecutive output positions: for first layers, whose few input channels are cheap to copy.
//!
//! ```text
//! panel     [channel][kernel column][row plane][image][row][column]: some images, some rows of one, or
//!           some columns of a row, once for each kernel column
//! ```
//!
//! The kernel's columns are lowered as the paper does, its rows meet the same rows of the panel. Unlike in a
//! strip's panel, nothing lies between the rows, neither here nor in a tensor of outputs: a kernel element
//! meets all the positions of an image in one piece.

use super::correlation::{Correlation, Lowering};
use super::panel::Source;
use crate::kernel::{Kernel, Pack, Vector, inside_columns};
use crate::plan::Piece;
use std::ops::Range;

/// How the positions of a correlation's output are dealt to panels, and how these are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Positions {
    /// Most images of a panel.
    pub images: usize,
    /// Most output rows of each image.
    pub rows: usize,
    /// Most output columns of each row.
    pub columns: usize,
    /// How kernel rows share the panel's rows.
    pub lowering: Lowering,
    kernel_columns: usize,
}

/// The place of a panel: images, output rows and columns.
pub(crate) type Place = [Range<usize>; 3];

impl Positions {
    /// Panels of at most `most` positions, at least one.
    pub fn new(c: &Correlation, most: usize) -> Self {
        let (height, width) = (c.height.output, c.width.output);
        // As even pieces of at most as many, at least one.
        let even = |all: usize, most: usize| all.div_ceil(all.div_ceil(most.max(1)));
        let rows = even(height, most / width);
        Self {
            images: even(c.batch, if rows == height { most / (height * width) } else { 1 }),
            rows,
            columns: even(width, most),
            lowering: c.height.lowering(false),
            kernel_columns: c.width.taps,
        }
    }

    /// The same with a plane for each kernel row, so that images follow each other too.
    pub fn folded(self, c: &Correlation) -> Self {
        Self { lowering: c.height.lowering(true), ..self }
    }

    /// Positions of the largest panel.
    pub fn len(&self) -> usize {
        self.images * self.rows * self.columns
    }

    /// Panels of all images.
    pub fn panels(&self, c: &Correlation) -> usize {
        let rows = c.height.output.div_ceil(self.rows);
        c.batch.div_ceil(self.images) * rows * c.width.output.div_ceil(self.columns)
    }

    /// Where panel `index` is.
    pub fn place(&self, c: &Correlation, index: usize) -> Place {
        let (height, width) = (c.height.output, c.width.output);
        let (down, across) = (height.div_ceil(self.rows), width.div_ceil(self.columns));
        let piece =
            |index: usize, size: usize, all: usize| index * size..((index + 1) * size).min(all);
        [
            piece(index / across / down, self.images, c.batch),
            piece(index / across % down, self.rows, height),
            piece(index % across, self.columns, width),
        ]
    }

    /// Copies of each input element, at most.
    pub fn planes(&self) -> usize {
        self.kernel_columns * self.lowering.planes
    }

    /// Elements from an image's rows in a plane of the panel to the next image's.
    pub fn image_len(&self) -> usize {
        (self.rows + self.lowering.halo) * self.columns
    }

    /// Elements from a plane of the panel to the next.
    pub fn plane_len(&self) -> usize {
        self.images * self.image_len()
    }

    /// Elements of a channel of the panel.
    pub fn channel_len(&self) -> usize {
        self.planes() * self.plane_len()
    }

    /// Elements from a channel's start to what kernel element (`row`, `column`) meets first.
    pub fn tap(&self, row: usize, column: usize) -> usize {
        let Lowering { planes, period, shift, .. } = self.lowering;
        (column * planes + row % period) * self.plane_len() + row / period * shift * self.columns
    }

    /// What a reader of the plan sees of correlation `c`, cut so.
    pub fn piece(&self, c: &Correlation, channels: usize, tasks: usize) -> Piece {
        Piece {
            row_phase: 0,
            column_phase: 0,
            row_phases: 1,
            column_phases: 1,
            output: [c.height.output, c.width.output],
            bands: c.height.output.div_ceil(self.rows),
            strips: self.panels(c),
            panel_rows: self.rows,
            panel_channels: channels,
            planes: self.planes(),
            tasks,
        }
    }

    /// Packs the panel at a place.
    ///
    /// # Safety
    ///
    /// The correlation's whole input can be read from `source`; `to` has room for `channel_len()` elements of
    /// each channel.
    pub unsafe fn pack<T: Vector>(
        &self,
        kernel: &Kernel<T>,
        c: &Correlation,
        [images, rows, columns]: &Place,
        source: &Source<T>,
        to: *mut T,
    ) {
        let (h, w) = (&c.height, &c.width);
        let [image, channel, line, column] = source.strides;
        let all = rows.len() + self.lowering.halo;
        for (i, at) in images.clone().enumerate() {
            for tap in 0..self.planes() {
                let (tap_row, tap_column) = (tap / w.taps, tap % w.taps);
                let top = (rows.start * h.step + tap_row * h.tap_step) as isize + h.base;
                let left = (columns.start * w.step + tap_column * w.tap_step) as isize + w.base;
                let (above, inside) = inside_columns(top, h.step, h.input, all);
                let (before, read) = inside_columns(left, w.step, w.input, columns.len());
                let to = to.wrapping_add(self.tap(tap_row, tap_column) + i * self.image_len());
                // Rows above the input, rows of it, and rows below.
                let below = above + inside;
                let parts = [(0, above, 0), (above, inside, read), (below, all - below, 0)];
                for (row, rows, read) in parts {
                    let offset = at as isize * image
                        + (top + (row * h.step) as isize) * line
                        + (left + (before * w.step) as isize) * column;
                    // SAFETY: only rows and columns inside the input are read; the caller made room.
                    unsafe {
                        kernel.pack(&Pack {
                            from: source.first.wrapping_offset(offset),
                            from_channel: channel,
                            from_row: h.step as isize * line,
                            from_column: w.step as isize * column,
                            to: to.wrapping_add(row * self.columns),
                            to_channel: self.channel_len(),
                            to_row: self.columns,
                            channels: source.channels,
                            rows,
                            before,
                            columns: read,
                            after: columns.len() - before - read,
                        });
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ConvOptions, Geometry};

    /// Every output position is in one panel, whatever the sizes.
    #[test]
    fn panels_partition_the_positions() {
        for (batch, height, width) in [(1, 1, 1), (3, 2, 5), (2, 7, 7), (5, 3, 40)] {
            let options = ConvOptions { padding: [(1, 1), (1, 1)], ..ConvOptions::default() };
            let g = Geometry::new([batch, 1, height, width], [1, 1, 3, 3], &options).unwrap();
            let c = Correlation::forward(&g, true, 8);
            for most in 1..300 {
                let positions = Positions::new(&c, most);
                assert!(positions.len() <= most, "{positions:?}");
                let mut met = vec![0; batch * height * width];
                for index in 0..positions.panels(&c) {
                    let [images, rows, columns] = positions.place(&c, index);
                    for image in images {
                        for row in rows.clone() {
                            for column in columns.clone() {
                                met[(image * height + row) * width + column] += 1;
                            }
                        }
                    }
                }
                assert!(met.iter().all(|&met| met == 1), "{positions:?}");
            }
        }
    }
}
