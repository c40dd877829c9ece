//! Any kernel, over rows that were copied first: no stride is left in a row, and padding is there, so that every
//! kernel element meets whole registers.

use super::Plane;
use crate::kernel::simd::{First, Isa, Vector};
use pulp::{Simd, WithSimd};

/// One kernel element of a sum.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StagedTap<T> {
    /// Elements from the stage's start to what it meets of output (0, 0).
    pub at: usize,
    /// Its weight.
    pub weight: T,
}

/// Outputs of one channel.
pub(crate) struct Staged<'a, T> {
    /// The stage.
    pub stage: *const T,
    /// Elements of the stage from what an output row meets to what the next does.
    pub stage_row: usize,
    /// Kernel elements to sum over.
    pub taps: &'a [StagedTap<T>],
    /// What every sum starts from.
    pub bias: T,
    /// Output (0, 0); columns follow each other.
    pub out: *mut T,
    /// Elements from an output row to the next.
    pub out_row: usize,
    /// Rows and columns.
    pub size: [usize; 2],
}

/// The weight gradient of the same, added to what is there.
pub(crate) struct StagedSums<'a, T> {
    /// The stage.
    pub stage: *const T,
    /// Elements of the stage from what a row of `dy` meets to what the next does.
    pub stage_row: usize,
    /// Elements from the stage's start to what each kernel element meets at `dy` (0, 0).
    pub taps: &'a [usize],
    /// Gradient of the output: of its rows and columns those that the stage serves.
    pub dy: Plane<T>,
    /// One sum for each kernel element.
    pub sums: *mut T,
}

/// Output rows of a tile: with two registers of each, eight sums are on their way, and a multiply-add and its load
/// take as long.
const ROWS: usize = 4;

/// Kernel elements whose gradients are summed at a time: all of a 3 x 3 kernel.
const TOGETHER: usize = 9;

impl<T: Vector> WithSimd for &Staged<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let lanes = T::lanes::<S>();
        let columns = self.size[1];
        for x in (0..columns).step_by(2 * lanes) {
            let left = columns - x;
            // SAFETY: `staged`'s contract covers the columns from `x` on.
            unsafe {
                if left > lanes {
                    self.columns::<S, 2>(simd, x, T::first(simd, (left - lanes).min(lanes)));
                } else {
                    self.columns::<S, 1>(simd, x, T::first(simd, left));
                }
            }
        }
    }
}

impl<T: Vector> Staged<'_, T> {
    /// All rows of `V` registers of columns, of which the last has only those that `last` names.
    ///
    /// # Safety
    ///
    /// As [`staged`].
    #[inline(always)]
    unsafe fn columns<S: Simd, const V: usize>(&self, simd: S, x: usize, last: First<T::Mask<S>>) {
        let rows = self.size[0];
        // SAFETY: the caller vouches for all rows.
        unsafe {
            if rows < ROWS {
                return (0..rows).for_each(|y| self.tile::<S, V, 1>(simd, y, x, last));
            }
            for y in (0..rows).step_by(ROWS) {
                // The last tile covers some rows again, with the same values.
                self.tile::<S, V, ROWS>(simd, y.min(rows - ROWS), x, last);
            }
        }
    }

    /// # Safety
    ///
    /// As [`staged`], for `R` rows from `y` on.
    #[inline(always)]
    unsafe fn tile<S: Simd, const V: usize, const R: usize>(
        &self,
        simd: S,
        y: usize,
        x: usize,
        last: First<T::Mask<S>>,
    ) {
        let lanes = T::lanes::<S>();
        let mut acc = [[T::splat(simd, self.bias); V]; R];
        let from = self.stage.wrapping_add(y * self.stage_row + x);
        // SAFETY: the caller vouches for the stage and the output.
        unsafe {
            for tap in self.taps {
                let weight = T::splat(simd, tap.weight);
                let from = from.add(tap.at);
                for r in 0..R {
                    for v in 0..V {
                        let value = T::load::<S>(from.add(r * self.stage_row + v * lanes));
                        acc[r][v] = T::mul_add(simd, value, weight, acc[r][v]);
                    }
                }
            }
            for r in 0..R {
                let to = self.out.wrapping_add((y + r) * self.out_row + x);
                for v in 0..V - 1 {
                    T::store::<S>(to.add(v * lanes), acc[r][v]);
                }
                T::store_first(simd, to.wrapping_add((V - 1) * lanes), last, acc[r][V - 1]);
            }
        }
    }
}

impl<T: Vector> WithSimd for &StagedSums<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let lanes = T::lanes::<S>();
        let whole = self.dy.width / lanes * lanes;
        // Lanes without `dy` must not bring in what is not finite.
        let rest = T::mask(simd, 0, self.dy.width - whole);
        for (chunk, taps) in self.taps.chunks(TOGETHER).enumerate() {
            let mut acc = [T::splat(simd, T::ZERO); TOGETHER];
            // In the place of those missing the first once more.
            let mut from = [self.stage.wrapping_add(taps[0]); TOGETHER];
            for (from, tap) in from.iter_mut().zip(taps) {
                *from = self.stage.wrapping_add(*tap);
            }
            for y in 0..self.dy.height {
                let dy = self.dy.first.wrapping_offset(y as isize * self.dy.row);
                let row = y * self.stage_row;
                // SAFETY: `staged_sums`' contract covers the stage and `dy`.
                unsafe {
                    for x in (0..whole).step_by(lanes) {
                        let dy = T::load::<S>(dy.add(x));
                        for n in 0..TOGETHER {
                            let value = T::load::<S>(from[n].add(row + x));
                            acc[n] = T::mul_add(simd, dy, value, acc[n]);
                        }
                    }
                    if whole < self.dy.width {
                        let dy = T::load_masked(simd, dy.add(whole), rest);
                        for n in 0..TOGETHER {
                            let value = T::load_masked(simd, from[n].add(row + whole), rest);
                            acc[n] = T::mul_add(simd, dy, value, acc[n]);
                        }
                    }
                }
            }
            for n in 0..taps.len() {
                // SAFETY: there is a sum for each kernel element.
                unsafe {
                    let to = self.sums.add(chunk * TOGETHER + n);
                    *to = *to + T::sum_lanes(simd, acc[n]);
                }
            }
        }
    }
}

/// Computes some outputs.
///
/// # Safety
///
/// The CPU has `I`. Whole registers can be read from the stage for each kernel element and row, and the columns
/// can be written in each row of the output.
pub(crate) unsafe fn staged<T: Vector, I: Isa>(staged: &Staged<T>) {
    // SAFETY: the caller vouches for the CPU.
    unsafe { I::token() }.vectorize(staged);
}

/// Adds the weight gradient of some outputs.
///
/// # Safety
///
/// The CPU has `I`. For each kernel element, the stage can be read where `dy` can; sums can be read and written.
pub(crate) unsafe fn staged_sums<T: Vector, I: Isa>(sums: &StagedSums<T>) {
    // SAFETY: the caller vouches for the CPU.
    unsafe { I::token() }.vectorize(sums);
}
