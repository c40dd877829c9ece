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
use crate::kernel::simd::{Isa, MAX_LANES, Vector, is_avx512};
use crate::kernel::tile::Onto;
use pulp::{Simd, WithSimd};
use std::ops::Range;

/// Sums of products, to be transformed into what tiles add to the outputs, added up and stored.
pub(crate) struct Overlap<T> {
    /// Position 0 of the first channel's first tile: image by image, row by row. It may be overwritten.
    pub from: *mut T,
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
    /// Output row and column to which position 0 of an image's first tile adds; it may lie outside. Outputs to which no
    /// tile adds are left as they are.
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
    type Output = bool;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> bool {
        let o = self.0;
        let lanes = T::lanes::<S>();
        let zero = T::splat(simd, T::ZERO);
        let mut finite = zero;
        // The left half of a tile adds to two columns, the right half to those of the next tile, which are the first beside
        // the last tile. What the first tile of a register's neighbour adds is in the register before.
        let blocks = o.tiles[1] + 1;
        let mut done = 0;
        while done < blocks {
            let tile = done.saturating_sub(1);
            let end = (blocks - tile).min(lanes);
            let first = o.first[1] + (tile * OUTPUTS) as isize;
            let inside = |column: isize| (column - first).clamp(0, (end * OUTPUTS) as isize);
            let skipped = inside(0).max(((done - tile) * OUTPUTS) as isize) as usize;
            let kept = skipped..inside(o.size[1] as isize) as usize;
            // SAFETY: these are columns of the output.
            unsafe { o.segment::<S>(simd, &mut finite, tile, first, kept) };
            done = tile + end;
        }
        T::sum_lanes(simd, finite) == T::ZERO
    }
}

impl<T: Vector> Overlap<T> {
    /// Adds up the columns `kept` of those that begin with `first`, two for each lane, of the register of tile columns that
    /// begins with `tile`.
    ///
    /// # Safety
    ///
    /// As [`overlap`].
    #[inline(always)]
    unsafe fn segment<S: Simd>(
        &self,
        simd: S,
        finite: &mut T::Of<S>,
        tile: usize,
        first: isize,
        kept: Range<usize>,
    ) {
        let lanes = T::lanes::<S>();
        let [rows, columns] = self.tiles;
        let [image, channel, row, column] = self.strides;
        let tiles = T::mask(simd, 0, (columns - tile).min(lanes));
        let zero = T::splat(simd, T::ZERO);
        let mask = |half: usize| {
            let within = |at: usize| at.saturating_sub(half * lanes).min(lanes);
            T::mask(simd, within(kept.start), within(kept.end))
        };
        // Where a store of some lanes is as cheap as one of all, registers go straight to the output. What it holds is read a
        // row of tiles ahead: read behind a store of some lanes, a register would wait even for the others.
        let direct = column == 1 && is_avx512::<S>();
        let kept = Columns { masks: [mask(0), mask(1)], these: kept.clone() };
        let out = self.out.wrapping_offset(first * column as isize);
        for r in 0..self.channels {
            // SAFETY: the caller vouches for the bias.
            let (bias, onto) = unsafe { self.added(r) };
            let constant = T::splat(simd, bias);
            for n in 0..self.images {
                let from =
                    self.from.wrapping_add(r * self.from_channel + n * rows * columns + tile);
                let out = out.wrapping_add(n * image + r * channel);
                let mut lower = [[zero; OUTPUTS]; OUTPUTS];
                let held = |p: usize| {
                    let mut held = [[constant; OUTPUTS]; OUTPUTS];
                    for y in 0..OUTPUTS {
                        if let Some(q) = self.row(p, y).filter(|_| direct && onto) {
                            for half in 0..OUTPUTS {
                                let from = out.wrapping_add(q * row + half * lanes);
                                // SAFETY: the caller vouches for the outputs.
                                held[y][half] =
                                    unsafe { T::load_masked(simd, from, kept.masks[half]) };
                            }
                        }
                    }
                    held
                };
                let mut these = held(0);
                for p in 0..=rows {
                    let next = held(p + 1);
                    let mut upper = lower;
                    if p < rows {
                        let from = from.wrapping_add(p * columns);
                        let sum = |i: usize, j: usize| {
                            let from = from.wrapping_add((i * SIDE + j) * self.position);
                            // SAFETY: masked lanes are tiles of this row.
                            unsafe { T::load_masked(simd, from, tiles) }
                        };
                        let added = both_ways::<T, S, SIDE>(simd, sum, addition::<T, S>);
                        for y in 0..OUTPUTS {
                            for x in 0..OUTPUTS {
                                let both = |i: usize| {
                                    let before = T::behind_zero::<S>(added[i][x + OUTPUTS]);
                                    T::sum(simd, added[i][x], before)
                                };
                                upper[y][x] = T::sum(simd, lower[y][x], both(y));
                                lower[y][x] = both(y + OUTPUTS);
                            }
                        }
                    }
                    for y in 0..OUTPUTS {
                        // Zero times what is not finite is not a number, and stays none.
                        for x in 0..OUTPUTS {
                            *finite = T::mul_add(simd, upper[y][x], zero, *finite);
                        }
                        let Some(q) = self.row(p, y) else { continue };
                        let values = T::in_turns::<S>(upper[y][0], upper[y][1]);
                        let to = out.wrapping_add(q * row);
                        // SAFETY: the caller vouches for the outputs.
                        unsafe {
                            if direct {
                                for half in 0..OUTPUTS {
                                    // Beyond the output where no lane of it is kept.
                                    let to = to.wrapping_add(half * lanes);
                                    let value = T::sum(simd, values[half], these[y][half]);
                                    T::store_masked(simd, to, kept.masks[half], value);
                                }
                            } else {
                                self.store(simd, values, (bias, onto), kept.these.clone(), to);
                            }
                        }
                    }
                    these = next;
                }
            }
        }
    }

    /// The output row of row `y` of those to which row `p` of the tiles adds first; `None` if it lies outside.
    #[inline(always)]
    fn row(&self, p: usize, y: usize) -> Option<usize> {
        let q = self.first[0] + (p * OUTPUTS + y) as isize;
        (0..self.size[0] as isize).contains(&q).then_some(q as usize)
    }

    /// What is added to the outputs of a channel beside the sums: a constant, and whether what they hold.
    ///
    /// # Safety
    ///
    /// A bias has `channel`.
    unsafe fn added(&self, channel: usize) -> (T, bool) {
        match self.onto {
            Onto::Nothing => (T::ZERO, false),
            // SAFETY: the same contract.
            Onto::Bias(bias) => (unsafe { *bias.add(channel) }, false),
            Onto::Output => (T::ZERO, true),
        }
    }

    /// Stores the columns `kept` of two registers that follow each other.
    ///
    /// # Safety
    ///
    /// As [`overlap`], for those columns, counted from `to`.
    #[inline(always)]
    unsafe fn store<S: Simd>(
        &self,
        simd: S,
        values: [T::Of<S>; OUTPUTS],
        (bias, onto): (T, bool),
        kept: Range<usize>,
        to: *mut T,
    ) {
        let lanes = T::lanes::<S>();
        let column = self.strides[3];
        let constant = T::splat(simd, bias);
        // SAFETY: the caller vouches for the columns kept.
        unsafe {
            let mut segment = [T::ZERO; OUTPUTS * MAX_LANES];
            for half in 0..OUTPUTS {
                T::store::<S>(segment.as_mut_ptr().add(half * lanes), values[half]);
            }
            if column == 1 {
                for at in kept.clone().step_by(lanes) {
                    let first = T::first(simd, (kept.end - at).min(lanes));
                    let (from, to) = (segment.as_ptr().add(at), to.wrapping_add(at));
                    let mut value = T::sum(simd, T::load_first(simd, from, first), constant);
                    if onto {
                        value = T::sum(simd, value, T::load_first(simd, to, first));
                    }
                    T::store_first(simd, to, first, value);
                }
                return;
            }
            for n in kept {
                let to = to.wrapping_add(n * column);
                *to = if onto { segment[n] + *to } else { segment[n] + bias };
            }
        }
    }
}

/// Some columns of two registers.
struct Columns<M> {
    these: Range<usize>,
    /// The same of each register.
    masks: [M; OUTPUTS],
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

/// Transforms sums, adds up what tiles add, and stores all outputs they reach; whether all are finite.
///
/// # Safety
///
/// The CPU has `I`; all tiles of `images`, in whole registers, can be read and written of each channel at each position; every
/// output of theirs can be written (onto the output: read too); a bias has `channels` elements.
pub(crate) unsafe fn overlap<T: Vector, I: Isa>(o: &Overlap<T>) -> bool {
    // SAFETY: the caller vouches for the CPU.
    unsafe { I::token() }.vectorize(Add(o))
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
                for cut in [-3, 0, 1] {
                    one_size(kernel, [rows, columns], cut);
                }
            }
        }
    }

    /// `B m B'`.
    fn transformed(sums: [[f32; SIDE]; SIDE]) -> [[f32; SIDE]; SIDE] {
        let along = |[a, b, c, d]: [f32; SIDE]| [a, b - c + d, b + c - a, -d];
        let turned = |m: [[f32; SIDE]; SIDE]| std::array::from_fn(|i| m.map(|row| row[i]));
        turned(turned(sums.map(along)).map(along))
    }

    /// `cut`: rows and columns that are missing on each side of the output; where it is negative, that no tile reaches.
    fn one_size(kernel: &Kernel<f32>, [rows, columns]: [usize; 2], cut: isize) {
        const IMAGES: usize = 2;
        const CHANNELS: usize = 3;
        let tiles = IMAGES * rows * columns;
        let from_channel = tiles.next_multiple_of(kernel.lanes) + 1;
        let position = CHANNELS * from_channel + 5;
        // Integers, so that every order gives the same sum; those of no tile may be anything but not infinite.
        let mut from: Vec<f32> = (0..position * SIDE * SIDE).map(|i| (i * 7 % 31) as f32).collect();
        let size = [rows, columns].map(|tiles| {
            (OUTPUTS * (tiles + 1)).checked_add_signed(-2 * cut).expect("more than is cut")
        });
        let row = size[1] + 1;
        let channel = size[0] * row + 2;
        let image = CHANNELS * channel + 3;
        let bias = [1.0, 2.0, 3.0];
        let run = |mut sums: Vec<f32>, out: &mut [f32], onto| {
            let o = Overlap {
                from: sums.as_mut_ptr(),
                position,
                from_channel,
                tiles: [rows, columns],
                images: IMAGES,
                channels: CHANNELS,
                first: [-cut; 2],
                size,
                out: out.as_mut_ptr(),
                strides: [image, channel, row, 1],
                onto,
            };
            // SAFETY: both sides have room for all images, channels and positions.
            unsafe { kernel.winograd.overlap(&o) }
        };
        for onto in [Onto::Nothing, Onto::Bias(bias.as_ptr()), Onto::Output] {
            let before = vec![100.0f32; IMAGES * image];
            let mut expected = before.clone();
            for (n, r) in (0..IMAGES).flat_map(|n| (0..CHANNELS).map(move |r| (n, r))) {
                let mut added = vec![vec![None; size[1]]; size[0]];
                for (p, q) in (0..rows).flat_map(|p| (0..columns).map(move |q| (p, q))) {
                    let tile = (n * rows + p) * columns + q;
                    let sum = |i, j| from[(i * SIDE + j) * position + r * from_channel + tile];
                    let all =
                        transformed(std::array::from_fn(|i| std::array::from_fn(|j| sum(i, j))));
                    for (i, j) in (0..SIDE).flat_map(|i| (0..SIDE).map(move |j| (i, j))) {
                        let at =
                            |tile: usize, i: usize| (OUTPUTS * tile + i).checked_add_signed(-cut);
                        let (Some(y), Some(x)) = (at(p, i), at(q, j)) else { continue };
                        if y < size[0] && x < size[1] {
                            *added[y][x].get_or_insert(0.0) += all[i][j];
                        }
                    }
                }
                for (y, x) in (0..size[0]).flat_map(|y| (0..size[1]).map(move |x| (y, x))) {
                    let Some(added) = added[y][x] else { continue };
                    let to = &mut expected[n * image + r * channel + y * row + x];
                    match onto {
                        Onto::Nothing => *to = added,
                        Onto::Bias(_) => *to = added + bias[r],
                        Onto::Output => *to += added,
                    }
                }
            }
            let mut out = before;
            assert!(run(from.clone(), &mut out, onto));
            assert_eq!(out, expected, "{}: {rows}x{columns} less {cut}", kernel.name);
        }
        // Of the first channel's last tile: it may be in any register.
        from[5 * position + tiles - 1] = f32::NAN;
        assert!(!run(from, &mut vec![0.0; IMAGES * image], Onto::Nothing));
    }
}
