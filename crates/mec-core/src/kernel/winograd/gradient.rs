//! The weight gradient: transforms of the outputs' gradients and of the sums, and the micro-kernel between
//! them.

use super::{Places, SIDE, has_product, tap_at};
use crate::kernel::outer::STEPS;
use crate::kernel::simd::{Isa, Vector};
use pulp::{Simd, WithSimd};

/// Gradients of the outputs of many tiles, to be transformed: one row of positions of `A dy A'`.
pub(crate) struct TransformGradients<T> {
    /// Which row.
    pub side: usize,
    /// The upper outputs' gradients, left and right in turns for each tile, `width` channels each.
    pub from: *const T,
    /// Elements to the lower outputs'.
    pub row: usize,
    /// Channels, in whole registers.
    pub width: usize,
    /// Tiles.
    pub tiles: usize,
    /// The row's first position of the first tile; tiles are `width` apart.
    pub to: *mut T,
    /// Elements from a position to the next.
    pub position: usize,
}

/// One call of the weight gradient's micro-kernel: at one position, the products of some channels' inputs
/// and `V` registers of output channels' gradients, summed over tiles.
pub(crate) struct Accumulate<T> {
    /// The first channel's inputs; tiles follow each other.
    pub inputs: *const T,
    /// Elements from a channel's inputs to the next's.
    pub input_channel: usize,
    /// Channels, at least 1.
    pub channels: usize,
    /// The first tile's gradients; tiles are `V` registers apart.
    pub gradients: *const T,
    /// Tiles to sum over.
    pub tiles: usize,
    /// The first channel's sums.
    pub sums: *mut T,
    /// Elements from a channel's sums to the next's.
    pub sum_channel: usize,
    /// Whether `sums` hold sums already.
    pub onto: bool,
}

/// Sums of transformed inputs times transformed gradients, to be transformed into a weight gradient:
/// `G' m G`.
pub(crate) struct TransformSums<T> {
    /// From where `places` are counted.
    pub from: *const T,
    /// Where the first channel is; channels are `width` apart.
    pub places: Places,
    /// Channels.
    pub channels: usize,
    /// Output channels, in whole registers.
    pub width: usize,
    /// Kernel rows and columns, 1 to 3 each.
    pub taps: [usize; 2],
    /// Kernel element (0, 0) of the first channel, `width` output channels.
    pub to: *mut T,
    /// Elements from a kernel row to the next, and from a kernel column to the next.
    pub steps: [usize; 2],
    /// Elements from a channel to the next.
    pub to_channel: usize,
}

struct Gradients<'a, T, const ROW: usize>(&'a TransformGradients<T>);

impl<T: Vector, const ROW: usize> WithSimd for Gradients<'_, T, ROW> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let t = self.0;
        for tile in 0..t.tiles {
            for v in (0..t.width).step_by(T::lanes::<S>()) {
                // SAFETY: `transform_gradients`'s contract covers both sides.
                unsafe {
                    let from = t.from.add(2 * tile * t.width + v);
                    let side = |from: *const T| {
                        let both = (T::load::<S>(from), T::load::<S>(from.add(t.row)));
                        gradient::<T, S>(simd, both.0, both.1)[ROW]
                    };
                    let row = gradient::<T, S>(simd, side(from), side(from.add(t.width)));
                    for j in 0..SIDE {
                        let to = j * t.position + tile * t.width + v;
                        T::store::<S>(t.to.add(to), row[j]);
                    }
                }
            }
        }
    }
}

/// `A dy`.
#[inline(always)]
pub(super) fn gradient<T: Vector, S: Simd>(simd: S, a: T::Of<S>, b: T::Of<S>) -> [T::Of<S>; SIDE] {
    let zero = T::splat(simd, T::ZERO);
    [a, T::sum(simd, a, b), T::difference(simd, a, b), T::difference(simd, zero, b)]
}

struct RunAccumulate<'a, T, const V: usize>(&'a Accumulate<T>);

impl<T: Vector, const V: usize> WithSimd for RunAccumulate<'_, T, V> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let a = self.0;
        let lanes = T::lanes::<S>();
        for first in (0..a.channels).step_by(STEPS) {
            // SAFETY: `accumulate`'s contract covers every address formed here.
            unsafe {
                // Channels beyond the last one repeat it, so that no read leaves the panel.
                let mut inputs = [a.inputs; STEPS];
                for k in 0..STEPS {
                    inputs[k] = a.inputs.add((first + k).min(a.channels - 1) * a.input_channel);
                }
                let to = |k: usize, v: usize| {
                    a.sums.wrapping_add((first + k) * a.sum_channel + v * lanes)
                };
                let mut sums = [[T::splat(simd, T::ZERO); V]; STEPS];
                if a.onto {
                    for k in 0..STEPS {
                        if first + k < a.channels {
                            for v in 0..V {
                                sums[k][v] = T::load::<S>(to(k, v));
                            }
                        }
                    }
                }
                for tile in 0..a.tiles {
                    let from = a.gradients.add(tile * V * lanes);
                    let mut gradients = [T::splat(simd, T::ZERO); V];
                    for v in 0..V {
                        gradients[v] = T::load::<S>(from.add(v * lanes));
                    }
                    for k in 0..STEPS {
                        let x = T::splat(simd, *inputs[k].add(tile));
                        for v in 0..V {
                            sums[k][v] = T::mul_add(simd, gradients[v], x, sums[k][v]);
                        }
                    }
                }
                for k in 0..STEPS {
                    if first + k < a.channels {
                        for v in 0..V {
                            T::store::<S>(to(k, v), sums[k][v]);
                        }
                    }
                }
            }
        }
    }
}

struct Sums<'a, T>(&'a TransformSums<T>);

impl<T: Vector> WithSimd for Sums<'_, T> {
    type Output = bool;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> bool {
        let t = self.0;
        let zero = T::splat(simd, T::ZERO);
        // Zero times what is not finite is not a number, and stays none.
        let mut finite = zero;
        for c in 0..t.channels {
            for v in (0..t.width).step_by(T::lanes::<S>()) {
                // SAFETY: `transform_sums`'s contract covers both sides.
                unsafe {
                    let from = t.from.add(c * t.width + v);
                    let mut half = [[zero; SIDE]; 3];
                    for j in 0..SIDE {
                        let mut column = [zero; SIDE];
                        for i in 0..SIDE {
                            if has_product(t.taps, i, j) {
                                column[i] = T::load::<S>(from.add(t.places[i * SIDE + j]));
                            }
                        }
                        let column = sum_weights::<T, S>(simd, column);
                        for y in 0..3 {
                            half[y][j] = column[y];
                        }
                    }
                    for y in 0..3 {
                        let row = sum_weights::<T, S>(simd, half[y]);
                        for x in 0..3 {
                            let place = (tap_at(y, t.taps[0]), tap_at(x, t.taps[1]));
                            if let (Some(row_tap), Some(column_tap)) = place {
                                finite = T::mul_add(simd, row[x], zero, finite);
                                let to = row_tap * t.steps[0] + column_tap * t.steps[1];
                                let to = c * t.to_channel + to + v;
                                T::store::<S>(t.to.add(to), row[x]);
                            }
                        }
                    }
                }
            }
        }
        T::sum_lanes(simd, finite) == T::ZERO
    }
}

/// `G' m`.
#[inline(always)]
fn sum_weights<T: Vector, S: Simd>(simd: S, [a, b, c, d]: [T::Of<S>; SIDE]) -> [T::Of<S>; 3] {
    let half = T::splat(simd, T::HALF);
    let even = T::product(simd, T::sum(simd, b, c), half);
    let odd = T::product(simd, T::difference(simd, b, c), half);
    [T::sum(simd, a, even), odd, T::sum(simd, even, d)]
}

/// Transforms the gradients of outputs.
///
/// # Safety
///
/// The CPU has `I`; two times two registers' worth of `width` elements can be read for each tile, and
/// `width` elements can be written for each tile at each position of the row.
pub(crate) unsafe fn transform_gradients<T: Vector, I: Isa>(t: &TransformGradients<T>) {
    // SAFETY: the caller vouches for the CPU.
    let simd = unsafe { I::token() };
    match t.side {
        0 => simd.vectorize(Gradients::<T, 0>(t)),
        1 => simd.vectorize(Gradients::<T, 1>(t)),
        2 => simd.vectorize(Gradients::<T, 2>(t)),
        _ => simd.vectorize(Gradients::<T, 3>(t)),
    }
}

/// Multiplies and sums over tiles.
///
/// # Safety
///
/// The CPU has `I`; `tiles` inputs can be read of each channel and `V` registers of gradients for each
/// tile; `V` registers of sums can be written (and, onto something, read) for each channel.
pub(crate) unsafe fn accumulate<T: Vector, I: Isa, const V: usize>(a: &Accumulate<T>) {
    // SAFETY: the caller vouches for the CPU.
    unsafe { I::token() }.vectorize(RunAccumulate::<T, V>(a));
}

/// Transforms sums into a weight gradient, and says whether all of it is finite.
///
/// # Safety
///
/// The CPU has `I`; `width` elements can be read of each channel at each position with products of the taps,
/// and as many can be written for each tap of each channel.
pub(crate) unsafe fn transform_sums<T: Vector, I: Isa>(t: &TransformSums<T>) -> bool {
    // SAFETY: the caller vouches for the CPU.
    unsafe { I::token() }.vectorize(Sums(t))
}
