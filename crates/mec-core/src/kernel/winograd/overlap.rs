//! The transposed filtering: tiles of 2 x 2 inputs, each of which adds to 4 x 4 outputs.
//!
//! Where the kernel reaches beyond the input on all sides, as the gradient of an unpadded layer does,
//! there are fewer tiles of inputs than of outputs. The matrices are those of the other form, transposed:
//!
//! ```text
//! y = B [(G g G') * (A d A')] B'      summed over channels; outputs that tiles share are added up
//! ```

#[cfg(target_arch = "x86_64")]
pub(in crate::kernel) mod narrow;

use super::forward::both_ways;
use super::gradient::gradient;
use super::{OUTPUTS, Places, SIDE, has_product};
use crate::kernel::simd::{Isa, MAX_LANES, Vector};
use crate::kernel::tile::Onto;
use pulp::{Simd, WithSimd};
use std::ops::Range;

/// What tiles add to the outputs, to be added up and stored.
pub(crate) struct Overlap<T> {
    /// Position 0 of the first channel's first tile: image by image, row by row.
    pub from: *const T,
    /// Elements from a position to the next.
    pub position: usize,
    /// Elements from a channel to the next.
    pub from_channel: usize,
    /// Rows and columns of the tiles of an image.
    pub tiles: [usize; 2],
    /// Images.
    pub images: usize,
    /// Channels.
    pub channels: usize,
    /// Output row and column to which position 0 of an image's first tile adds; it may lie outside.
    pub first: [isize; 2],
    /// Output rows and columns.
    pub size: [usize; 2],
    /// Output row 0 and column 0 of the first channel of the first image.
    pub out: *mut T,
    /// Elements from an image, channel, row and column of the output to the next.
    pub strides: [usize; 4],
    /// What is added.
    pub onto: Onto<T>,
}

/// Sums of products, to be transformed in place into what each tile adds to the outputs.
pub(crate) struct TransformAdditions<T> {
    /// Position 0 of the first tile.
    pub at: *mut T,
    /// Elements from a position to the next.
    pub position: usize,
    /// Elements of each position, in whole registers.
    pub len: usize,
}

/// Tiles of inputs, which lie at positions 0, 1, [`SIDE`] and `SIDE + 1`, to be transformed in place.
pub(crate) struct TransformTiles<T> {
    /// Kernel rows and columns, 2 or 3 each.
    pub taps: [usize; 2],
    /// From where `places` are counted.
    pub at: *mut T,
    /// Where the first tile and channel are.
    pub places: Places,
    /// Elements of each position, in whole registers.
    pub len: usize,
}

struct Inputs<'a, T>(&'a TransformTiles<T>);

impl<T: Vector> WithSimd for Inputs<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let t = self.0;
        for n in (0..t.len).step_by(T::lanes::<S>()) {
            // SAFETY: `transform_tiles`'s contract covers every position.
            unsafe {
                let at = |i: usize, j: usize| t.at.add(t.places[i * SIDE + j] + n);
                let input = |i, j| T::load::<S>(at(i, j));
                let left = gradient::<T, S>(simd, input(0, 0), input(1, 0));
                let right = gradient::<T, S>(simd, input(0, 1), input(1, 1));
                for i in 0..SIDE {
                    let row = gradient::<T, S>(simd, left[i], right[i]);
                    for j in 0..SIDE {
                        if has_product(t.taps, i, j) {
                            T::store::<S>(at(i, j), row[j]);
                        }
                    }
                }
            }
        }
    }
}

struct Additions<'a, T>(&'a TransformAdditions<T>);

impl<T: Vector> WithSimd for Additions<'_, T> {
    type Output = bool;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> bool {
        let t = self.0;
        let zero = T::splat(simd, T::ZERO);
        // Zero times what is not finite is not a number, and stays none.
        let mut finite = zero;
        for n in (0..t.len).step_by(T::lanes::<S>()) {
            // SAFETY: `transform_additions`'s contract covers every position.
            unsafe {
                let first = t.at.add(n);
                let at = |i: usize, j: usize| first.add((i * SIDE + j) * t.position);
                let sum = |i, j| T::load::<S>(at(i, j));
                let rows = both_ways::<T, S, SIDE>(simd, sum, addition::<T, S>);
                for i in 0..SIDE {
                    for j in 0..SIDE {
                        finite = T::mul_add(simd, rows[i][j], zero, finite);
                        T::store::<S>(at(i, j), rows[i][j]);
                    }
                }
            }
        }
        T::sum_lanes(simd, finite) == T::ZERO
    }
}

/// `B m`.
#[inline(always)]
fn addition<T: Vector, S: Simd>(simd: S, [a, b, c, d]: [T::Of<S>; SIDE]) -> [T::Of<S>; SIDE] {
    let zero = T::splat(simd, T::ZERO);
    let odd = T::difference(simd, b, c);
    let even = T::sum(simd, b, c);
    [a, T::sum(simd, odd, d), T::difference(simd, even, a), T::difference(simd, zero, d)]
}

struct Add<'a, T>(&'a Overlap<T>);

impl<T: Vector> WithSimd for Add<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let o = self.0;
        let lanes = T::lanes::<S>();
        let [_, columns] = o.tiles;
        // The left half of a tile adds to two columns, the right half to those of the next tile, which are
        // the first beside the last tile.
        for tile in (0..=columns).step_by(lanes) {
            let these = (columns + 1 - tile).min(lanes);
            let first = o.first[1] + (tile * OUTPUTS) as isize;
            let inside = |column: isize| (column - first).clamp(0, (these * OUTPUTS) as isize);
            let (skipped, end) = (inside(0) as usize, inside(o.size[1] as isize) as usize);
            if skipped < end {
                // SAFETY: these are columns of the output.
                unsafe { o.segment::<S>(simd, tile, these, skipped..end) };
            }
        }
    }
}

impl<T: Vector> Overlap<T> {
    /// Adds up the columns `kept` of the register of tile columns that begins with `tile` and has `tiles`.
    ///
    /// # Safety
    ///
    /// As [`overlap`].
    #[inline(always)]
    unsafe fn segment<S: Simd>(&self, simd: S, tile: usize, tiles: usize, kept: Range<usize>) {
        let lanes = T::lanes::<S>();
        let [rows, columns] = self.tiles;
        let [image, channel, row, column] = self.strides;
        let left = T::mask(simd, 0, (columns - tile).min(lanes));
        let right = T::mask(simd, usize::from(tile == 0), tiles);
        let zero = T::splat(simd, T::ZERO);
        let first = (self.first[1] + (tile * OUTPUTS + kept.start) as isize) as usize;
        let mut segment = [T::ZERO; OUTPUTS * MAX_LANES];
        for r in 0..self.channels {
            for n in 0..self.images {
                let from =
                    self.from.wrapping_add(r * self.from_channel + n * rows * columns + tile);
                let out = self.out.wrapping_add(n * image + r * channel + first * column);
                for p in 0..=rows {
                    for y in 0..OUTPUTS {
                        let q = self.first[0] + (p * OUTPUTS + y) as isize;
                        if !(0..self.size[0] as isize).contains(&q) {
                            continue;
                        }
                        let mut sums = [zero; OUTPUTS];
                        // SAFETY: masked lanes are tiles of these rows; the caller vouches for the
                        // outputs.
                        unsafe {
                            if p < rows {
                                self.add(
                                    simd,
                                    &mut sums,
                                    from.wrapping_add(p * columns),
                                    y,
                                    left,
                                    right,
                                );
                            }
                            if p > 0 {
                                let above = from.wrapping_add((p - 1) * columns);
                                self.add(simd, &mut sums, above, y + OUTPUTS, left, right);
                            }
                            T::store_in_turns::<S>(segment.as_mut_ptr(), sums[0], sums[1]);
                            let to = out.wrapping_add(q as usize * row);
                            self.store(simd, r, &segment[kept.clone()], to);
                        }
                    }
                }
            }
        }
    }

    /// Adds row `i` of what a row of tiles adds, the left half of each tile and the right half of the one
    /// before.
    ///
    /// # Safety
    ///
    /// The lanes of `left` can be read at `from`, and those of `right` from one before it.
    #[inline(always)]
    unsafe fn add<S: Simd>(
        &self,
        simd: S,
        sums: &mut [T::Of<S>; OUTPUTS],
        from: *const T,
        i: usize,
        left: T::Mask<S>,
        right: T::Mask<S>,
    ) {
        let at = |j: usize| from.wrapping_add((i * SIDE + j) * self.position);
        for x in 0..OUTPUTS {
            // SAFETY: the same contract.
            unsafe {
                let value = T::load_masked(simd, at(x), left);
                let before = T::load_masked(simd, at(x + OUTPUTS).wrapping_sub(1), right);
                sums[x] = T::sum(simd, sums[x], T::sum(simd, value, before));
            }
        }
    }

    /// Stores a part of a row.
    ///
    /// # Safety
    ///
    /// As [`overlap`], for the columns from `to` on.
    #[inline(always)]
    unsafe fn store<S: Simd>(&self, simd: S, channel: usize, values: &[T], to: *mut T) {
        let lanes = T::lanes::<S>();
        let onto = matches!(self.onto, Onto::Output);
        let bias = match self.onto {
            // SAFETY: there is one for each channel.
            Onto::Bias(bias) => unsafe { *bias.add(channel) },
            _ => T::ZERO,
        };
        let column = self.strides[3];
        if column != 1 {
            for (n, &value) in values.iter().enumerate() {
                // SAFETY: the caller vouches for the columns.
                unsafe {
                    let to = to.wrapping_add(n * column);
                    *to = if onto { value + *to } else { value + bias };
                }
            }
            return;
        }
        let bias = T::splat(simd, bias);
        for at in (0..values.len()).step_by(lanes) {
            let count = (values.len() - at).min(lanes);
            // SAFETY: the caller vouches for the columns.
            unsafe {
                let (from, to) = (values.as_ptr().add(at), to.wrapping_add(at));
                let mask = T::mask(simd, 0, count);
                let mut value = T::sum(simd, T::load_masked(simd, from, mask), bias);
                if onto {
                    value = T::sum(simd, value, T::load_masked(simd, to, mask));
                }
                if count == lanes {
                    T::store::<S>(to, value);
                } else {
                    T::store_first(simd, to, T::first(simd, count), value);
                }
            }
        }
    }
}

/// Transforms tiles of inputs in place.
///
/// # Safety
///
/// The CPU has `I`; `len` elements, in whole registers, can be read and written at each position with a product.
pub(crate) unsafe fn transform_tiles<T: Vector, I: Isa>(t: &TransformTiles<T>) {
    // SAFETY: the caller vouches for the CPU.
    unsafe { I::token() }.vectorize(Inputs(t));
}

/// Transforms sums in place, and says whether all of them are finite.
///
/// # Safety
///
/// The CPU has `I`; `len` elements, in whole registers, can be read and written at each position.
pub(crate) unsafe fn transform_additions<T: Vector, I: Isa>(t: &TransformAdditions<T>) -> bool {
    // SAFETY: the caller vouches for the CPU.
    unsafe { I::token() }.vectorize(Additions(t))
}

/// Adds up what tiles add, and stores all outputs they reach.
///
/// # Safety
///
/// The CPU has `I`; each channel has all tiles of `images` at each position, every output of which can be
/// written (onto the output: read too); a bias has `channels` elements.
pub(crate) unsafe fn overlap<T: Vector, I: Isa>(o: &Overlap<T>) {
    // SAFETY: the caller vouches for the CPU.
    unsafe { I::token() }.vectorize(Add(o));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Kernel;

    /// Each tile adds its 4 x 4 values where it should, whatever the register width, on every kernel of this CPU.
    #[test]
    fn what_tiles_add_is_added_up() {
        for kernel in Kernel::<f32>::available() {
            for [rows, columns] in [[1, 1], [3, 3], [2, 7], [6, 6], [9, 7], [3, 8], [2, 20]] {
                for cut in [0, 1] {
                    one_size(kernel, [rows, columns], cut);
                }
            }
        }
    }

    /// `cut`: rows and columns that are missing on each side of the output.
    fn one_size(kernel: &Kernel<f32>, [rows, columns]: [usize; 2], cut: usize) {
        const IMAGES: usize = 2;
        const CHANNELS: usize = 3;
        let from_channel = IMAGES * rows * columns + 1;
        let position = CHANNELS * from_channel + 5;
        // Integers, so that every order gives the same sum.
        let from: Vec<f32> =
            (0..position * SIDE * SIDE + MAX_LANES).map(|i| (i * 7 % 31) as f32).collect();
        let size = [rows, columns].map(|tiles| OUTPUTS * (tiles + 1) - 2 * cut);
        let row = size[1] + 1;
        let channel = size[0] * row + 2;
        let image = CHANNELS * channel + 3;
        let bias = [1.0, 2.0, 3.0];
        for onto in [Onto::Nothing, Onto::Bias(bias.as_ptr()), Onto::Output] {
            let before = vec![100.0f32; IMAGES * image];
            let mut expected = before.clone();
            for (n, r) in (0..IMAGES).flat_map(|n| (0..CHANNELS).map(move |r| (n, r))) {
                for (y, x) in (0..size[0]).flat_map(|y| (0..size[1]).map(move |x| (y, x))) {
                    let to = &mut expected[n * image + r * channel + y * row + x];
                    match onto {
                        Onto::Nothing => *to = 0.0,
                        Onto::Bias(_) => *to = bias[r],
                        Onto::Output => {}
                    }
                    for (p, q) in (0..rows).flat_map(|p| (0..columns).map(move |q| (p, q))) {
                        let inside = |at: usize, tile: usize| {
                            (at + cut).checked_sub(OUTPUTS * tile).filter(|&i| i < SIDE)
                        };
                        if let (Some(i), Some(j)) = (inside(y, p), inside(x, q)) {
                            let tile = (n * rows + p) * columns + q;
                            *to += from[(i * SIDE + j) * position + r * from_channel + tile];
                        }
                    }
                }
            }
            let mut out = before;
            // SAFETY: both sides have room for all images, channels and positions.
            unsafe {
                kernel.winograd.overlap(&Overlap {
                    from: from.as_ptr(),
                    position,
                    from_channel,
                    tiles: [rows, columns],
                    images: IMAGES,
                    channels: CHANNELS,
                    first: [-(cut as isize); 2],
                    size,
                    out: out.as_mut_ptr(),
                    strides: [image, channel, row, 1],
                    onto,
                });
            }
            assert_eq!(out, expected, "{}: {rows}x{columns} less {cut}", kernel.name);
        }
    }
}
