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
//! vanish, and what is left is `F(2, 2)`. A kernel of one element is the middle one of three: its products
//! at 0 vanish as well, and one for each output is left.

mod forward;
mod gradient;
pub(super) mod overlap;
mod pack;
#[cfg(target_arch = "x86_64")]
pub(super) mod transposed;

pub(super) use forward::transform_weights;
pub(crate) use forward::{
    InputAxis, InputPiece, KernelPiece, Multiply, PackTiles, TransformOutputs, TransformWeights,
};
pub(crate) use gradient::{Accumulate, TransformGradients, TransformSums};
pub(crate) use overlap::{Overlap, TransformTiles};

use super::simd::{Isa, Moves, Vector};
use super::{FEW, MAX_VECTORS, SIZES, TileSizes};
use std::ops::Range;

/// Positions along one axis: inputs that two outputs of three kernel elements meet.
pub(crate) const SIDE: usize = 4;

/// Outputs of a tile along one axis.
pub(crate) const OUTPUTS: usize = 2;

/// Positions of a tile.
pub(crate) const POSITIONS: usize = SIDE * SIDE;

/// Elements of three that come before those of a kernel of `taps`.
pub(crate) const fn taps_before(taps: usize) -> usize {
    (taps == 1) as usize
}

/// Which of a kernel's `taps` elements is element `place` of three.
#[inline(always)]
const fn tap_at(place: usize, taps: usize) -> Option<usize> {
    match place.checked_sub(taps_before(taps)) {
        Some(tap) if tap < taps => Some(tap),
        _ => None,
    }
}

/// The positions along an axis at which a kernel of `taps` elements has products.
pub(crate) const fn product_positions(taps: usize) -> Range<usize> {
    taps_before(taps)..if taps == 3 { SIDE } else { SIDE - 1 }
}

/// Whether a piece of some kernel rows and columns has a product at row `i` and column `j` of positions.
#[inline(always)]
pub(crate) fn has_product([rows, columns]: [usize; 2], i: usize, j: usize) -> bool {
    product_positions(rows).contains(&i) && product_positions(columns).contains(&j)
}

/// Where what belongs to each position begins, in elements. At positions at which a piece of the kernel has no
/// product there is nothing.
pub(crate) type Places = [usize; POSITIONS];

/// A micro-kernel of one size.
type MultiplyFn<T> = unsafe fn(&Multiply<T>);

/// The entry points for one instruction set.
pub(crate) struct Winograd<T: 'static> {
    sizes: TileSizes,
    pack_tiles: unsafe fn(&PackTiles<T>),
    transform_weights: unsafe fn(&TransformWeights<T>),
    /// By vectors of tiles (1, 2, 3) and by channels, as `sizes` says.
    multiplies: [[MultiplyFn<T>; SIZES]; MAX_VECTORS],
    transform_outputs: unsafe fn(&TransformOutputs<T>) -> bool,
    transform_gradients: unsafe fn(&TransformGradients<T>),
    /// By vectors of channels (1 to 4).
    accumulates: [unsafe fn(&Accumulate<T>); 4],
    transform_sums: unsafe fn(&TransformSums<T>) -> bool,
    transform_tiles: unsafe fn(&TransformTiles<T>),
    overlap: unsafe fn(&Overlap<T>) -> bool,
}

impl<T: Vector> Winograd<T> {
    pub(super) const fn new<I: Isa, const R: usize, const FEWER: usize, const FEWEST: usize>(
        moves: &Moves<T>,
    ) -> Self {
        Self {
            sizes: TileSizes([R, FEWER, FEWEST]),
            pack_tiles: pack::pack_tiles::<T, I>,
            transform_weights: moves.transform_weights,
            multiplies: [
                Self::multiplies_of::<I, 1, R, FEWER, FEWEST>(),
                Self::multiplies_of::<I, 2, R, FEWER, FEWEST>(),
                Self::multiplies_of::<I, 3, R, FEWER, FEWEST>(),
            ],
            transform_outputs: forward::transform_outputs::<T, I>,
            transform_gradients: gradient::transform_gradients::<T, I>,
            accumulates: [
                gradient::accumulate::<T, I, 1>,
                gradient::accumulate::<T, I, 2>,
                gradient::accumulate::<T, I, 3>,
                gradient::accumulate::<T, I, 4>,
            ],
            transform_sums: gradient::transform_sums::<T, I>,
            transform_tiles: overlap::transform_tiles::<T, I>,
            overlap: moves.overlap,
        }
    }

    const fn multiplies_of<
        I: Isa,
        const V: usize,
        const R: usize,
        const FEWER: usize,
        const FEWEST: usize,
    >() -> [MultiplyFn<T>; SIZES] {
        [
            forward::multiply::<T, I, V, R>,
            forward::multiply::<T, I, V, FEWER>,
            forward::multiply::<T, I, V, FEWEST>,
            forward::multiply::<T, I, V, FEW>,
            forward::multiply::<T, I, V, 1>,
        ]
    }

    /// Packs and transforms one run of tiles for all channels and pieces.
    ///
    /// # Safety
    ///
    /// As [`PackTiles`] says.
    pub unsafe fn pack_tiles(&self, p: &PackTiles<T>) {
        // SAFETY: the caller vouches for the run, this value for the CPU.
        unsafe { (self.pack_tiles)(p) }
    }

    /// Transforms the weights of some outputs for Winograd's filtering.
    ///
    /// # Safety
    ///
    /// As [`forward::transform_weights`].
    pub unsafe fn transform_weights(&self, t: &TransformWeights<T>) {
        // SAFETY: the caller vouches for the weights, this value for the CPU.
        unsafe { (self.transform_weights)(t) }
    }

    /// Multiplies a strip of `vectors` registers of tiles with the weights of some outputs.
    ///
    /// # Safety
    ///
    /// As [`forward::multiply`], `vectors` being `V` and [`Kernel::channels`](super::Kernel::channels) `R`.
    pub unsafe fn multiply(&self, vectors: usize, m: &Multiply<T>) {
        // SAFETY: the caller vouches for the operands, this value for the CPU.
        unsafe { self.multiplies[vectors - 1][self.sizes.of(m.outputs)](m) }
    }

    /// Transforms sums of products into outputs, and says whether all are finite.
    ///
    /// # Safety
    ///
    /// As [`forward::transform_outputs`].
    pub unsafe fn transform_outputs(&self, t: &TransformOutputs<T>) -> bool {
        // SAFETY: the caller vouches for the sums, this value for the CPU.
        unsafe { (self.transform_outputs)(t) }
    }

    /// Multiplies some channels' inputs with `vectors` registers of gradients, and sums over tiles.
    ///
    /// # Safety
    ///
    /// As [`gradient::accumulate`], `vectors` being `V`.
    pub unsafe fn accumulate(&self, vectors: usize, a: &Accumulate<T>) {
        // SAFETY: the caller vouches for the operands, this value for the CPU.
        unsafe { (self.accumulates[vectors - 1])(a) }
    }

    /// Transforms the gradients of outputs.
    ///
    /// # Safety
    ///
    /// As [`gradient::transform_gradients`].
    pub unsafe fn transform_gradients(&self, t: &TransformGradients<T>) {
        // SAFETY: the caller vouches for the gradients, this value for the CPU.
        unsafe { (self.transform_gradients)(t) }
    }

    /// Transforms sums of products into a weight gradient, and says whether all of it is finite.
    ///
    /// # Safety
    ///
    /// As [`gradient::transform_sums`].
    pub unsafe fn transform_sums(&self, t: &TransformSums<T>) -> bool {
        // SAFETY: the caller vouches for the sums, this value for the CPU.
        unsafe { (self.transform_sums)(t) }
    }

    /// Transforms tiles of inputs for the transposed filtering, in place.
    ///
    /// # Safety
    ///
    /// As [`overlap::transform_tiles`].
    pub unsafe fn transform_tiles(&self, t: &TransformTiles<T>) {
        // SAFETY: the caller vouches for the inputs, this value for the CPU.
        unsafe { (self.transform_tiles)(t) }
    }

    /// Transforms sums of products into what tiles add to outputs, adds it up, stores the outputs, and says whether all are
    /// finite.
    ///
    /// # Safety
    ///
    /// As [`overlap::overlap`].
    pub unsafe fn overlap(&self, o: &Overlap<T>) -> bool {
        // SAFETY: the caller vouches for both sides, this value for the CPU.
        unsafe { (self.overlap)(o) }
    }
}
