//! The forward pass and the input gradient: transforms of inputs, weights and outputs, and the
//! micro-kernel between them.

use super::{POSITIONS, Places, SIDE, has_product, tap_at};
use crate::kernel::lanes::inside_columns;
use crate::kernel::simd::{Isa, Vector};
use crate::kernel::tile::step;
use pulp::{Simd, WithSimd};
use std::ops::Range;

/// A run of tiles, to be packed and transformed at once: for each of `channels` and each piece of the kernel, the
/// four columns of four rows that each tile meets, `B' d B` of which goes to the tile's lane at each position.
///
/// What lies inside the input can be read, the rest counts as zero. Lane `lane + n` of `width`, a whole number of
/// registers, can be written for each channel at each position with a product, and so can the lanes behind them.
/// Those before have been written: runs are packed in order.
pub struct PackTiles<'a, T> {
    /// What the kernel's first element meets for the first output of the first tile, of the first channel.
    pub from: *const T,
    /// Elements from a channel to the next, in the tensor.
    pub from_channel: isize,
    /// Elements from a row to the next.
    pub from_row: isize,
    /// Elements from a column to the next.
    pub from_column: isize,
    /// The rows of the input.
    pub rows: InputAxis<'a>,
    /// The columns of the input.
    pub columns: InputAxis<'a>,
    /// Tiles, at least 1.
    pub tiles: usize,
    /// Channels.
    pub channels: usize,
    /// The panel.
    pub to: *mut T,
    /// Where lane 0 of the first channel is, in the panel, of each piece: those of the first piece of rows come first.
    pub places: &'a [Places],
    /// Lane of the first tile.
    pub lane: usize,
    /// Lanes of the strip: elements from a channel to the next, in the panel.
    pub width: usize,
}

/// One axis of the input that a run of tiles meets, counted from [`PackTiles::from`].
#[derive(Debug, Clone)]
pub struct InputAxis<'a> {
    /// What lies inside the input.
    pub inside: Range<isize>,
    /// From a position of a tile to the next.
    pub unit: usize,
    /// The pieces of the kernel along this axis.
    pub pieces: &'a [InputPiece],
}

/// A piece of the kernel along one axis.
#[derive(Debug, Clone, Copy, Default)]
pub struct InputPiece {
    /// Where position 0 of the first tile is.
    pub offset: isize,
    /// Elements of the kernel, 1 to 3.
    pub taps: usize,
}

impl InputAxis<'_> {
    /// Of `count` positions of a piece, from the first tile's position 0 on: those inside the input.
    pub fn positions(&self, piece: InputPiece, count: usize) -> Range<usize> {
        let Range { start, end } = self.inside;
        let first = piece.offset - start;
        let (before, inside) = inside_columns(first, self.unit, (end - start) as usize, count);
        before..before + inside
    }
}

/// The weights of some outputs, to be transformed: `G g G'` of each piece of the kernel.
pub struct TransformWeights<'a, T> {
    /// Kernel element (0, 0) of the first output and channel.
    pub from: *const T,
    /// Elements from an output to the next.
    pub output: isize,
    /// Outputs.
    pub outputs: usize,
    /// Elements from a kernel row to the next, and from a kernel column to the next.
    pub steps: [isize; 2],
    /// Kernel rows from one of a piece to its next, and columns.
    pub apart: [usize; 2],
    /// The pieces, which have all elements of the kernel between them.
    pub pieces: &'a [KernelPiece],
    /// Elements from a channel to the next.
    pub channel: isize,
    /// Channels, at least 1.
    pub channels: usize,
    /// From where the places of each piece are counted.
    pub to: *mut T,
    /// Elements from an output to the next, there.
    pub to_output: usize,
}

/// A piece of a kernel.
#[derive(Clone, Copy)]
pub struct KernelPiece {
    /// First kernel row and column.
    pub first: [usize; 2],
    /// Kernel rows and columns, 1 to 3 each; what is missing of 3 counts as zero, see [`tap_at`].
    pub taps: [usize; 2],
    /// Where the first output's and channel's are.
    pub places: Places,
}

/// One call of the micro-kernel: at each position, the products of `V` registers of tiles and the weights
/// of some outputs, summed over channels.
pub(crate) struct Multiply<'a, T> {
    /// How many channels to sum over at each position.
    pub channels: &'a [usize; POSITIONS],
    /// The panel.
    pub inputs: *const T,
    /// Where the first tile's inputs of the first channel are, at each position.
    pub input_places: &'a Places,
    /// Elements from a channel's inputs to the next's.
    pub input_channel: usize,
    /// The first output's weights.
    pub weights: *const T,
    /// Where those of the first channel are, at each position; the others follow.
    pub weight_places: &'a Places,
    /// Elements from an output's weights to the next's.
    pub weight_output: usize,
    /// Outputs, at least 1 and at most `R`.
    pub outputs: usize,
    /// Where the first output's sums at position 0 go.
    pub sums: *mut T,
    /// Elements from an output's sums to the next's.
    pub sum_output: usize,
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

/// The registers that `load` gives for each row and column of positions, transformed along the columns and then
/// along the rows.
#[inline(always)]
pub(super) fn both_ways<T: Vector, S: Simd, const N: usize>(
    simd: S,
    load: impl Fn(usize, usize) -> T::Of<S>,
    by: impl Fn(S, [T::Of<S>; SIDE]) -> [T::Of<S>; N],
) -> [[T::Of<S>; N]; N] {
    let zero = T::splat(simd, T::ZERO);
    let mut half = [[zero; SIDE]; N];
    for j in 0..SIDE {
        let mut column = [zero; SIDE];
        for i in 0..SIDE {
            column[i] = load(i, j);
        }
        let column = by(simd, column);
        for i in 0..N {
            half[i][j] = column[i];
        }
    }
    let mut rows = [[zero; N]; N];
    for i in 0..N {
        rows[i] = by(simd, half[i]);
    }
    rows
}

struct Weights<'a, T>(&'a TransformWeights<'a, T>, &'a KernelPiece);

impl<T: Vector> WithSimd for Weights<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self(t, piece) = self;
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
                            let taps = (tap_at(y, piece.taps[0]), tap_at(x, piece.taps[1]));
                            if let (Some(row), Some(tap)) = taps {
                                let from = from.wrapping_offset(t.element(piece, [row, tap]));
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
                            if has_product(piece.taps, i, j) {
                                let to = piece.places[i * SIDE + j] + r * t.to_output + c;
                                T::store::<S>(t.to.add(to), row[j]);
                            }
                        }
                    }
                }
            }
        }
    }
}

impl<T> TransformWeights<'_, T> {
    /// Elements from the kernel's first to that of `taps` of a piece.
    #[inline(always)]
    pub(super) fn element(&self, piece: &KernelPiece, taps: [usize; 2]) -> isize {
        let along = |axis: usize| {
            (piece.first[axis] + taps[axis] * self.apart[axis]) as isize * self.steps[axis]
        };
        along(0) + along(1)
    }
}

/// `G g`.
#[inline(always)]
pub(super) fn weights<T: Vector, S: Simd>(simd: S, [a, b, c]: [T::Of<S>; 3]) -> [T::Of<S>; SIDE] {
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
            let mut weights = [m.weights; R];
            for r in 0..R {
                weights[r] = m.weights.add(r.min(m.outputs - 1) * m.weight_output);
            }
            for (position, &channels) in m.channels.iter().enumerate() {
                let mut inputs = m.inputs.wrapping_add(m.input_places[position]);
                let first = m.weight_places[position] as isize;
                let mut sums = [[T::splat(simd, T::ZERO); V]; R];
                for at in first..first + channels as isize {
                    step(simd, &mut sums, inputs, &weights, at);
                    inputs = inputs.wrapping_add(m.input_channel);
                }
                for r in 0..R {
                    if r < m.outputs {
                        for v in 0..V {
                            let to = position * m.sum_position + r * m.sum_output + v * lanes;
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
                    let sum = |i, j| T::load::<S>(from.add((i * SIDE + j) * t.position));
                    let rows = both_ways::<T, S, 2>(simd, sum, output::<T, S>);
                    for (y, [left, right]) in rows.into_iter().enumerate() {
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

/// Transforms the weights of some outputs.
///
/// # Safety
///
/// The CPU has `I`; every kernel element of every channel can be read, and as many elements as whole
/// registers of channels have can be written at each place: they reach into what is written next.
pub(crate) unsafe fn transform_weights<T: Vector, I: Isa>(t: &TransformWeights<T>) {
    for piece in t.pieces {
        // SAFETY: the same contract.
        unsafe { transform_piece::<T, I>(t, piece) };
    }
}

/// The same of one piece.
///
/// # Safety
///
/// As [`transform_weights`].
pub(super) unsafe fn transform_piece<T: Vector, I: Isa>(
    t: &TransformWeights<T>,
    piece: &KernelPiece,
) {
    // SAFETY: the caller vouches for the CPU.
    unsafe { I::token() }.vectorize(Weights(t, piece));
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
