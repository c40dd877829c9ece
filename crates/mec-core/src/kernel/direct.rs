//! The micro-kernel of few output channels, straight from the input where it lies: a register tile of `V` vectors of
//! columns by `R` outputs.
//!
//! What is packed for a panel is read once for each kernel element and tile of outputs. With one tile of three outputs
//! packing took longer than multiplying (cv7, input gradient).

use super::LINE;
use super::simd::{Isa, Vector};
use super::tile::prefetch;
use pulp::{Simd, WithSimd};
use std::mem::MaybeUninit;
use std::ops::Range;

/// Most outputs: as many channels as an image has colours, and two phases of columns.
pub(crate) const DIRECT_OUTPUTS: usize = 6;

/// Most registers of columns.
pub(crate) const DIRECT_VECTORS: usize = 4;

/// Most kernel columns.
pub(crate) const DIRECT_COLUMNS: usize = 16;

/// One kernel element.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct DirectTap {
    /// Elements from what kernel element (0, 0) meets to what this one does.
    pub input: isize,
    /// Which kernel column it is.
    pub column: usize,
    /// Elements from a channel's first weight to the first of this kernel element's: one for each output that meets it.
    pub weights: usize,
}

/// One call of the micro-kernel.
pub(crate) struct Direct<'a, T> {
    /// What kernel element (0, 0) meets at the first column, of the first channel. It may lie outside the input.
    pub from: *const T,
    /// Elements from a channel to the next.
    pub from_channel: isize,
    /// Channels to sum over.
    pub channels: usize,
    /// The kernel elements that all outputs meet, that the first half of them does, and that the second does.
    pub taps: [&'a [DirectTap]; 3],
    /// The input column that kernel column 0 meets at the first column of the tile.
    pub column: isize,
    /// Columns of the input: what lies outside counts as zero.
    pub columns: usize,
    /// Kernel columns, 1 to [`DIRECT_COLUMNS`].
    pub kernel_columns: usize,
    /// The first channel's weights, `[kernel element][output]`.
    pub weights: *const T,
    /// Elements from a channel's weights to the next's.
    pub weights_channel: usize,
    /// What to ask for ahead, of the first channel; it need not be there.
    pub ahead: *const T,
    /// Where the sums of each output go, `V` registers.
    pub to: [*mut T; DIRECT_OUTPUTS],
}

struct Run<'a, T, const V: usize, const R: usize>(&'a Direct<'a, T>);

impl<T: Vector, const V: usize, const R: usize> WithSimd for Run<'_, T, V, R> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let d = self.0;
        let lanes = T::lanes::<S>();
        // Loops for half the outputs would take registers, if there is nothing in them too.
        let halves = R.is_multiple_of(2) && d.taps[1..].iter().any(|taps| !taps.is_empty());
        let end = d.column + (d.kernel_columns - 1 + V * lanes) as isize;
        // SAFETY: `direct`'s contract.
        unsafe {
            if d.column >= 0 && end <= d.columns as isize {
                let load = |from: *const T, v, _| T::load::<S>(from.wrapping_add(v * lanes));
                return match halves {
                    false => self.sum::<S, false>(simd, load),
                    true => self.sum::<S, true>(simd, load),
                };
            }
            let mut masks = MaybeUninit::<[[T::Mask<S>; V]; DIRECT_COLUMNS]>::uninit();
            let masks = masks.as_mut_ptr().cast::<[T::Mask<S>; V]>();
            for column in 0..d.kernel_columns {
                let first = d.column + column as isize;
                for v in 0..V {
                    let before = first + (v * lanes) as isize;
                    let start = (-before).clamp(0, lanes as isize);
                    let end = (d.columns as isize - before).clamp(0, lanes as isize);
                    (*masks.add(column))[v] = T::mask(simd, start as usize, end as usize);
                }
            }
            let load = |from: *const T, v, column| {
                T::load_masked(simd, from.wrapping_add(v * lanes), (*masks.add(column))[v])
            };
            match halves {
                false => self.sum::<S, false>(simd, load),
                true => self.sum::<S, true>(simd, load),
            }
        }
    }
}

impl<T: Vector, const V: usize, const R: usize> Run<'_, T, V, R> {
    /// Sums over all channels what `load` gives for a place, a register and a kernel column.
    ///
    /// # Safety
    ///
    /// As [`direct`].
    #[inline(always)]
    unsafe fn sum<S: Simd, const HALVES: bool>(
        &self,
        simd: S,
        load: impl Fn(*const T, usize, usize) -> T::Of<S>,
    ) {
        let d = self.0;
        let lanes = T::lanes::<S>();
        let mut acc = [[T::splat(simd, T::ZERO); V]; R];
        let [all, first, second] = d.taps;
        let (mut from, mut weights, mut ahead) = (d.from, d.weights, d.ahead);
        // SAFETY: the caller vouches for input and weights.
        unsafe {
            for _ in 0..d.channels {
                for at in (0..V * lanes).step_by(LINE / size_of::<T>()) {
                    prefetch(ahead.wrapping_add(at));
                }
                for tap in all {
                    let (from, weights) =
                        (from.wrapping_offset(tap.input), weights.add(tap.weights));
                    step::<T, S, V, R>(simd, &mut acc, 0..R, weights, |v| {
                        load(from, v, tap.column)
                    });
                }
                if HALVES {
                    for tap in first {
                        let (from, weights) =
                            (from.wrapping_offset(tap.input), weights.add(tap.weights));
                        step::<T, S, V, R>(simd, &mut acc, 0..R / 2, weights, |v| {
                            load(from, v, tap.column)
                        });
                    }
                    for tap in second {
                        let (from, weights) =
                            (from.wrapping_offset(tap.input), weights.add(tap.weights));
                        step::<T, S, V, R>(simd, &mut acc, R / 2..R, weights, |v| {
                            load(from, v, tap.column)
                        });
                    }
                }
                from = from.wrapping_offset(d.from_channel);
                ahead = ahead.wrapping_offset(d.from_channel);
                weights = weights.add(d.weights_channel);
            }
            for r in 0..R {
                for v in 0..V {
                    T::store::<S>(d.to[r].add(v * lanes), acc[r][v]);
                }
            }
        }
    }
}

/// One step of the sums of some outputs.
///
/// # Safety
///
/// There is a weight for each of `outputs`.
#[inline(always)]
unsafe fn step<T: Vector, S: Simd, const V: usize, const R: usize>(
    simd: S,
    acc: &mut [[T::Of<S>; V]; R],
    outputs: Range<usize>,
    weights: *const T,
    load: impl Fn(usize) -> T::Of<S>,
) {
    // Whichever side is fewer stays in registers: 12 sums leave 4 for both.
    // SAFETY: the caller vouches for the weights.
    unsafe {
        if R < V {
            let zero = T::splat(simd, T::ZERO);
            let mut these = [zero; R];
            for r in 0..R {
                if outputs.contains(&r) {
                    these[r] = T::splat(simd, *weights.add(r - outputs.start));
                }
            }
            for v in 0..V {
                let x = load(v);
                for r in 0..R {
                    if outputs.contains(&r) {
                        acc[r][v] = T::mul_add(simd, x, these[r], acc[r][v]);
                    }
                }
            }
        } else {
            let x: [T::Of<S>; V] = std::array::from_fn(&load);
            for r in 0..R {
                if outputs.contains(&r) {
                    let weight = T::splat(simd, *weights.add(r - outputs.start));
                    for v in 0..V {
                        acc[r][v] = T::mul_add(simd, x[v], weight, acc[r][v]);
                    }
                }
            }
        }
    }
}

/// Computes one tile.
///
/// # Safety
///
/// The CPU has `I`. For each channel and kernel element, what it meets can be read at those columns of `V` vectors that
/// lie inside the input, and a weight for each output that meets it; `V` vectors can be written for each of `R` outputs.
/// Each kernel element's column is one of `kernel_columns`, and where some are met by half the outputs `R` is even.
pub(crate) unsafe fn direct<T: Vector, I: Isa, const V: usize, const R: usize>(d: &Direct<T>) {
    // SAFETY: the caller vouches for the CPU.
    unsafe { I::token() }.vectorize(Run::<T, V, R>(d));
}
