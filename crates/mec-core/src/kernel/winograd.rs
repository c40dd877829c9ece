//! The transforms of Winograd's minimal filtering `F(2x2, 3x3)`: four neighbouring outputs of a 3 x 3
//! kernel from 16 products instead of 36 (Lavin & Gray, *Fast Algorithms for Convolutional Neural
//! Networks*, CVPR 2016, equations 6 to 8, after Winograd 1980).
//!
//! ```text
//! y = A' [(G g G') * (B' d B)] A      4 x 4 positions, one product for each and for each channel
//! ```
//!
//! Its constants are 0, 1, -1 and one half, so that small integers stay exact and rounding is much that
//! of the plain sum; larger tiles save more and round worse. The interpolation points are 0, 1, -1 and
//! infinity: a kernel of two elements is one of three whose last is zero, all of its products at infinity
//! vanish, and what is left is `F(2, 2)`.

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;

use super::outer::STEPS;
use super::simd::{Isa, Vector};
use super::tile::step;
use pulp::{Simd, WithSimd};
use std::ops::Range;

/// Positions along one axis: inputs that two outputs of three kernel elements meet.
pub(crate) const SIDE: usize = 4;

/// Positions of a tile.
pub(crate) const POSITIONS: usize = SIDE * SIDE;

/// A run of tiles, to be packed and transformed at once: for each of `channels`, the four columns of four
/// rows that each tile meets, `B' d B` of which goes to the tile's lane at each position.
///
/// Positions (`rows`, `columns`) can be read where they lie inside the input, and count as zero elsewhere;
/// tile `n` meets the columns from `2 * n` on. Lane `lane + n` of `width`, a whole number of registers, can
/// be read and written at each position and channel.
pub struct PackTiles<T> {
    /// Row 0, column 0 of the first tile and channel.
    pub from: *const T,
    /// Elements from a channel to the next, in the tensor.
    pub from_channel: isize,
    /// Elements from a row of positions to the next.
    pub from_row: isize,
    /// Elements from a column of positions to the next.
    pub from_column: isize,
    /// The rows inside the input, of [`SIDE`].
    pub rows: Range<usize>,
    /// The columns inside the input, of those that the tiles meet.
    pub columns: Range<usize>,
    /// Tiles, at least 1.
    pub tiles: usize,
    /// Channels.
    pub channels: usize,
    /// Lane 0 of position 0 of the first channel.
    pub to: *mut T,
    /// Lane of the first tile.
    pub lane: usize,
    /// Lanes of the strip.
    pub width: usize,
    /// Elements from a channel to the next, in the panel.
    pub to_channel: usize,
    /// Elements from a position to the next.
    pub position: usize,
}

/// Inputs of many tiles, transformed in place: `B' d B`.
pub(crate) struct TransformInputs<T> {
    /// Position 0 of the first tile and channel.
    pub at: *mut T,
    /// Elements from a position to the next.
    pub position: usize,
    /// Elements of each position, in whole registers.
    pub len: usize,
}

/// The weights of some outputs, to be transformed: `G g G'`.
pub struct TransformWeights<T> {
    /// Kernel element (0, 0) of the first output and channel.
    pub from: *const T,
    /// Elements from an output to the next.
    pub output: isize,
    /// Outputs.
    pub outputs: usize,
    /// Elements from a kernel row to the next, and from a kernel column to the next.
    pub steps: [isize; 2],
    /// Kernel rows and columns, 1 to 3 each; what is missing of 3 counts as zero.
    pub taps: [usize; 2],
    /// Elements from a channel to the next.
    pub channel: isize,
    /// Channels, at least 1.
    pub channels: usize,
    /// Position 0 of the first output and channel.
    pub to: *mut T,
    /// Elements from an output to the next, there.
    pub to_output: usize,
    /// Elements from a position to the next.
    pub position: usize,
}

/// One call of the micro-kernel: at each position, the products of `V` registers of tiles and the weights
/// of some outputs, summed over channels.
pub(crate) struct Multiply<'a, T> {
    /// The first tile's inputs at position 0 of the first channel.
    pub inputs: *const T,
    /// Elements from a channel's inputs to the next's.
    pub input_channel: usize,
    /// Elements from a position's inputs to the next's.
    pub input_position: usize,
    /// The first output's weights at position 0 of the first channel; channels follow each other.
    pub weights: *const T,
    /// Elements from an output's weights to the next's.
    pub weight_output: usize,
    /// Elements from a position's weights to the next's.
    pub weight_position: usize,
    /// The channels to sum over at each position.
    pub channels: &'a [Range<usize>; POSITIONS],
    /// Outputs, at least 1 and at most `R`.
    pub outputs: usize,
    /// Where the first output's sums at position 0 go; outputs are `V` registers apart.
    pub sums: *mut T,
    /// Elements from a position's sums to the next's.
    pub sum_position: usize,
}

/// Sums of products, to be transformed into outputs: `A' m A`.
pub(crate) struct TransformOutputs<T> {
    /// Position 0 of the first tile and output channel; channels are `width` apart.
    pub from: *const T,
    /// Elements from a position to the next.
    pub position: usize,
    /// Tiles, in whole registers.
    pub width: usize,
    /// Output channels.
    pub channels: usize,
    /// The upper outputs of all tiles of a channel, left and right in turns, for all channels; then the
    /// lower ones.
    pub to: *mut T,
}

/// Gradients of the outputs of many tiles, to be transformed: `A dy A'`.
pub(crate) struct TransformGradients<T> {
    /// The upper outputs' gradients, left and right in turns for each tile, `width` channels each.
    pub from: *const T,
    /// Elements to the lower outputs'.
    pub row: usize,
    /// Channels, in whole registers.
    pub width: usize,
    /// Tiles.
    pub tiles: usize,
    /// Position 0 of the first tile; tiles are `width` apart.
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
    /// Position 0 of the first channel; channels are `width` apart.
    pub from: *const T,
    /// Elements from a position to the next.
    pub position: usize,
    /// Channels.
    pub channels: usize,
    /// Output channels, in whole registers.
    pub width: usize,
    /// Kernel rows and columns, 1 to 3 each; positions of which nothing goes to those are not read.
    pub taps: [usize; 2],
    /// Kernel element (0, 0) of the first channel, `width` output channels.
    pub to: *mut T,
    /// Elements from a kernel row to the next, and from a kernel column to the next.
    pub steps: [usize; 2],
    /// Elements from a channel to the next.
    pub to_channel: usize,
}

struct Inputs<'a, T>(&'a TransformInputs<T>);

impl<T: Vector> WithSimd for Inputs<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let t = self.0;
        let mut d = [[T::splat(simd, T::ZERO); SIDE]; SIDE];
        for n in (0..t.len).step_by(T::lanes::<S>()) {
            // SAFETY: `transform_inputs`'s contract covers every position.
            unsafe {
                for j in 0..SIDE {
                    let mut column = [d[0][0]; SIDE];
                    for i in 0..SIDE {
                        column[i] = T::load::<S>(t.at.add((i * SIDE + j) * t.position + n));
                    }
                    let column = input::<T, S>(simd, column);
                    for i in 0..SIDE {
                        d[i][j] = column[i];
                    }
                }
                for i in 0..SIDE {
                    let row = input::<T, S>(simd, d[i]);
                    for j in 0..SIDE {
                        T::store::<S>(t.at.add((i * SIDE + j) * t.position + n), row[j]);
                    }
                }
            }
        }
    }
}

/// `B' d`.
#[inline(always)]
fn input<T: Vector, S: Simd>(simd: S, [a, b, c, d]: [T::Of<S>; SIDE]) -> [T::Of<S>; SIDE] {
    [
        T::difference(simd, a, c),
        T::sum(simd, b, c),
        T::difference(simd, c, b),
        T::difference(simd, b, d),
    ]
}

struct Weights<'a, T>(&'a TransformWeights<T>);

impl<T: Vector> WithSimd for Weights<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let t = self.0;
        let lanes = T::lanes::<S>();
        let zero = T::splat(simd, T::ZERO);
        for c in (0..t.channels).step_by(lanes) {
            let count = (t.channels - c).min(lanes);
            for r in 0..t.outputs {
                let from = c as isize * t.channel + r as isize * t.output;
                let from = t.from.wrapping_offset(from);
                let mut half = [[zero; 3]; SIDE];
                // SAFETY: `transform_weights`'s contract covers every kernel element of every channel.
                unsafe {
                    for x in 0..3 {
                        let mut column = [zero; 3];
                        for y in 0..3 {
                            if y < t.taps[0] && x < t.taps[1] {
                                let at = y as isize * t.steps[0] + x as isize * t.steps[1];
                                let from = from.wrapping_offset(at);
                                column[y] = T::gather::<S>(from, t.channel, count);
                            }
                        }
                        let column = weights::<T, S>(simd, column);
                        for i in 0..SIDE {
                            half[i][x] = column[i];
                        }
                    }
                    for i in 0..SIDE {
                        let row = weights::<T, S>(simd, half[i]);
                        for j in 0..SIDE {
                            let to = (i * SIDE + j) * t.position + r * t.to_output + c;
                            T::store::<S>(t.to.add(to), row[j]);
                        }
                    }
                }
            }
        }
    }
}

/// `G g`.
#[inline(always)]
fn weights<T: Vector, S: Simd>(simd: S, [a, b, c]: [T::Of<S>; 3]) -> [T::Of<S>; SIDE] {
    let half = T::splat(simd, T::HALF);
    let outer = T::sum(simd, a, c);
    let even = T::product(simd, T::sum(simd, outer, b), half);
    let odd = T::product(simd, T::difference(simd, outer, b), half);
    [a, even, odd, c]
}

struct RunMultiply<'a, T, const V: usize, const R: usize>(&'a Multiply<'a, T>);

impl<T: Vector, const V: usize, const R: usize> WithSimd for RunMultiply<'_, T, V, R> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let m = self.0;
        let lanes = T::lanes::<S>();
        // SAFETY: `multiply`'s contract covers every address formed here.
        unsafe {
            // Outputs beyond the last one repeat it, so that no read leaves the weights.
            let mut first = [m.weights; R];
            for r in 0..R {
                first[r] = m.weights.add(r.min(m.outputs - 1) * m.weight_output);
            }
            for (position, channels) in m.channels.iter().enumerate() {
                let mut sums = [[T::splat(simd, T::ZERO); V]; R];
                let mut weights = first;
                for r in 0..R {
                    weights[r] = first[r].add(position * m.weight_position + channels.start);
                }
                let inputs =
                    m.inputs.add(position * m.input_position + channels.start * m.input_channel);
                for c in 0..channels.len() {
                    step(simd, &mut sums, inputs.add(c * m.input_channel), &weights, c as isize);
                }
                for r in 0..R {
                    if r < m.outputs {
                        for v in 0..V {
                            let to = position * m.sum_position + (r * V + v) * lanes;
                            T::store::<S>(m.sums.add(to), sums[r][v]);
                        }
                    }
                }
            }
        }
    }
}

struct Outputs<'a, T>(&'a TransformOutputs<T>);

impl<T: Vector> WithSimd for Outputs<'_, T> {
    type Output = bool;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> bool {
        let t = self.0;
        let zero = T::splat(simd, T::ZERO);
        // Zero times what is not finite is not a number, and stays none.
        let mut finite = zero;
        for r in 0..t.channels {
            for v in (0..t.width).step_by(T::lanes::<S>()) {
                // SAFETY: `transform_outputs`'s contract covers both sides.
                unsafe {
                    let from = t.from.add(r * t.width + v);
                    let mut half = [[zero; SIDE]; 2];
                    for j in 0..SIDE {
                        let mut column = [zero; SIDE];
                        for i in 0..SIDE {
                            column[i] = T::load::<S>(from.add((i * SIDE + j) * t.position));
                        }
                        [half[0][j], half[1][j]] = output::<T, S>(simd, column);
                    }
                    for y in 0..2 {
                        let [left, right] = output::<T, S>(simd, half[y]);
                        finite = T::mul_add(simd, left, zero, finite);
                        finite = T::mul_add(simd, right, zero, finite);
                        let to = t.to.add((y * t.channels + r) * 2 * t.width + 2 * v);
                        T::store_in_turns::<S>(to, left, right);
                    }
                }
            }
        }
        T::sum_lanes(simd, finite) == T::ZERO
    }
}

/// `A' m`.
#[inline(always)]
fn output<T: Vector, S: Simd>(simd: S, [a, b, c, d]: [T::Of<S>; SIDE]) -> [T::Of<S>; 2] {
    let first = T::sum(simd, T::sum(simd, a, b), c);
    let second = T::difference(simd, T::difference(simd, b, c), d);
    [first, second]
}

struct Gradients<'a, T>(&'a TransformGradients<T>);

impl<T: Vector> WithSimd for Gradients<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let t = self.0;
        for tile in 0..t.tiles {
            for v in (0..t.width).step_by(T::lanes::<S>()) {
                // SAFETY: `transform_gradients`'s contract covers both sides.
                unsafe {
                    let from = t.from.add(2 * tile * t.width + v);
                    let left = (T::load::<S>(from), T::load::<S>(from.add(t.row)));
                    let right = from.add(t.width);
                    let right = (T::load::<S>(right), T::load::<S>(right.add(t.row)));
                    let left = gradient::<T, S>(simd, left.0, left.1);
                    let right = gradient::<T, S>(simd, right.0, right.1);
                    for i in 0..SIDE {
                        let row = gradient::<T, S>(simd, left[i], right[i]);
                        for j in 0..SIDE {
                            let to = (i * SIDE + j) * t.position + tile * t.width + v;
                            T::store::<S>(t.to.add(to), row[j]);
                        }
                    }
                }
            }
        }
    }
}

/// `A dy`.
#[inline(always)]
fn gradient<T: Vector, S: Simd>(simd: S, a: T::Of<S>, b: T::Of<S>) -> [T::Of<S>; SIDE] {
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
                            if (i < 3 || t.taps[0] == 3) && (j < 3 || t.taps[1] == 3) {
                                column[i] = T::load::<S>(from.add((i * SIDE + j) * t.position));
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
                            if y < t.taps[0] && x < t.taps[1] {
                                finite = T::mul_add(simd, row[x], zero, finite);
                                let to = c * t.to_channel + y * t.steps[0] + x * t.steps[1] + v;
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
/// `width` elements can be written for each tile at each position.
pub(crate) unsafe fn transform_gradients<T: Vector, I: Isa>(t: &TransformGradients<T>) {
    // SAFETY: the caller vouches for the CPU.
    unsafe { I::token() }.vectorize(Gradients(t));
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
/// The CPU has `I`; `width` elements can be read of each channel at each position, but for the last row
/// or column of positions where there are fewer than three taps; as many can be written for each tap of
/// each channel.
pub(crate) unsafe fn transform_sums<T: Vector, I: Isa>(t: &TransformSums<T>) -> bool {
    // SAFETY: the caller vouches for the CPU.
    unsafe { I::token() }.vectorize(Sums(t))
}

/// Transforms inputs in place.
///
/// # Safety
///
/// The CPU has `I`; `len` elements of each position can be read and written, `len` being whole registers.
pub(crate) unsafe fn transform_inputs<T: Vector, I: Isa>(t: &TransformInputs<T>) {
    // SAFETY: the caller vouches for the CPU.
    unsafe { I::token() }.vectorize(Inputs(t));
}

/// Transforms the weights of some outputs.
///
/// # Safety
///
/// The CPU has `I`; every kernel element of every channel can be read, and as many elements as whole
/// registers of channels have can be written at each position.
pub(crate) unsafe fn transform_weights<T: Vector, I: Isa>(t: &TransformWeights<T>) {
    // SAFETY: the caller vouches for the CPU.
    unsafe { I::token() }.vectorize(Weights(t));
}

/// Multiplies and sums.
///
/// # Safety
///
/// The CPU has `I`. For each position, `V` registers of inputs can be read of each of its channels, and a
/// weight of each for each output; `V` registers of sums can be written for each output.
pub(crate) unsafe fn multiply<T: Vector, I: Isa, const V: usize, const R: usize>(m: &Multiply<T>) {
    // SAFETY: the caller vouches for the CPU.
    unsafe { I::token() }.vectorize(RunMultiply::<T, V, R>(m));
}

/// Transforms sums into outputs, and says whether all of them are finite.
///
/// # Safety
///
/// The CPU has `I`; `width` elements, in whole registers, can be read of each channel at each position,
/// and four times as many can be written at `to`.
pub(crate) unsafe fn transform_outputs<T: Vector, I: Isa>(t: &TransformOutputs<T>) -> bool {
    // SAFETY: the caller vouches for the CPU.
    unsafe { I::token() }.vectorize(Outputs(t))
}
