//! Depthwise micro-kernels: whole rows of one channel.
//!
//! A depthwise convolution has no sum over channels, so a panel would be read hardly more often than
//! it is written. Kernels of 3 x 3 read rows straight from the tensor, each tap at its own offset, with what lies at
//! the edges, or a stride apart, staged a register at a time; `staged` are the others, for which all rows are copied
//! first.

mod spread;
mod staged;
mod three_by_three;

use super::simd::{Isa, Vector};
use super::tile::prefetch;
use pulp::{Simd, WithSimd};
pub(crate) use spread::{Spread, spread};
pub(crate) use staged::{Staged, StagedSums, StagedTap, staged, staged_sums};
use three_by_three::{Output, Sums, Tiles};

/// One plane of the input of a depthwise correlation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plane<T> {
    /// Row 0, column 0.
    pub first: *const T,
    /// Elements from a row to the next; columns follow each other.
    pub row: isize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

/// Taps of a 3 x 3 kernel: row `t`, column `m` meets the input `t - pad` rows and `m * step - pad` columns from the
/// output's place, the padding being that of each axis.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    /// Input rows and columns from an output to the next: 1, or 2 where `step` is 1.
    pub stride: usize,
    /// Input columns from a tap to the next.
    pub step: isize,
    /// Input row and column that the first tap of output (0, 0) meets.
    pub base: [isize; 2],
}

/// The forward pass of one plane, for a kernel of 3 x 3.
pub(crate) struct Rows<T> {
    /// Input.
    pub x: Plane<T>,
    /// Which input each tap meets.
    pub window: Window,
    /// Weight of tap (0, 0).
    pub weight: *const T,
    /// Elements from a kernel row's weights to the next's, and from a column's.
    pub weight_step: [isize; 2],
    /// What every sum starts from.
    pub bias: T,
    /// Output, row-major.
    pub out: *mut T,
    /// Rows and columns of the output.
    pub size: [usize; 2],
}

/// The weight gradient of one plane, added to what is there.
pub(crate) struct RowSums<T> {
    /// Input.
    pub x: Plane<T>,
    /// Gradient of the output.
    pub dy: Plane<T>,
    /// Which input each tap meets.
    pub window: Window,
    /// One sum for each tap, row-major.
    pub sums: *mut T,
}

/// Rows whose sums are on their way at a time.
const ROWS: usize = 4;

impl<T: Vector> Plane<T> {
    /// The lanes of a register at column `x`, of which `lanes` are wanted, that lie inside a row.
    #[inline(always)]
    fn mask<S: Simd>(&self, simd: S, x: isize, lanes: usize) -> T::Mask<S> {
        let within = |end: isize| end.clamp(0, lanes as isize) as usize;
        T::mask(simd, within(-x), within(self.width as isize - x))
    }

    /// Asks for the next `rows` from (`y`, `x`) on: of this plane or, behind its last row, of the one that
    /// follows. Without this, half the time of 56 x 56 planes was waiting for memory (Zen 2, dw1).
    #[inline(always)]
    fn prefetch(&self, y: isize, x: usize, rows: usize) {
        for i in 0..rows as isize {
            prefetch(self.first.wrapping_offset((y + i) * self.row + x as isize));
        }
    }

    /// A register at (`y`, `x`): zeros outside the mask and outside the plane.
    ///
    /// # Safety
    ///
    /// The plane can be read, and the mask is [`Plane::mask`]'s for `x`.
    #[inline(always)]
    unsafe fn at<S: Simd>(&self, simd: S, y: isize, x: isize, mask: T::Mask<S>) -> T::Of<S> {
        if y < 0 || y >= self.height as isize {
            return T::splat(simd, T::ZERO);
        }
        // SAFETY: the mask covers lanes inside the row.
        unsafe { T::load_masked(simd, self.first.wrapping_offset(y * self.row + x), mask) }
    }
}

impl<T: Vector> WithSimd for &Rows<T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Rows { x, window, size, .. } = *self;
        // SAFETY: `rows`' contract covers the weights, the plane and the output.
        unsafe {
            let row = |t| [self.splat(simd, t, 0), self.splat(simd, t, 1), self.splat(simd, t, 2)];
            let mut output = Output {
                bias: T::splat(simd, self.bias),
                out: self.out,
                width: size[1],
                weights: [row(0), row(1), row(2)],
            };
            Tiles { x, window, size }.visit(simd, &mut output);
        }
    }
}

impl<T: Vector> Rows<T> {
    /// The weight of a tap, in every lane.
    ///
    /// # Safety
    ///
    /// As [`rows`].
    #[inline(always)]
    unsafe fn splat<S: Simd>(&self, simd: S, t: isize, m: isize) -> T::Of<S> {
        let weight = t * self.weight_step[0] + m * self.weight_step[1];
        // SAFETY: the caller vouches for the weights.
        T::splat(simd, unsafe { *self.weight.wrapping_offset(weight) })
    }
}

impl<T: Vector> WithSimd for &RowSums<T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (x, window, size) = (self.x, self.window, [self.dy.height, self.dy.width]);
        let mut sums = Sums { dy: self.dy, acc: [[T::splat(simd, T::ZERO); 3]; 3] };
        // SAFETY: `row_sums`' contract covers the planes and the sums.
        unsafe {
            Tiles { x, window, size }.visit(simd, &mut sums);
            for t in 0..3 {
                for m in 0..3 {
                    let to = self.sums.add(t * 3 + m);
                    *to = *to + T::sum_lanes(simd, sums.acc[t][m]);
                }
            }
        }
    }
}

struct PlaneSum<'a, T>(&'a Plane<T>);

impl<T: Vector> WithSimd for PlaneSum<'_, T> {
    type Output = T;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> T {
        let lanes = T::lanes::<S>();
        let mut acc = [T::splat(simd, T::ZERO); ROWS];
        for x in (0..self.0.width).step_by(lanes) {
            let mask = self.0.mask(simd, x as isize, lanes);
            for y in (0..self.0.height).step_by(ROWS) {
                for (r, acc) in acc.iter_mut().enumerate() {
                    // SAFETY: `plane_sum`'s contract covers the plane.
                    let value = unsafe { self.0.at(simd, (y + r) as isize, x as isize, mask) };
                    *acc = T::sum(simd, *acc, value);
                }
            }
        }
        acc.into_iter().map(|sum| T::sum_lanes(simd, sum)).fold(T::ZERO, |a, b| a + b)
    }
}

/// Computes one plane.
///
/// # Safety
///
/// The CPU has `I`. Input plane and weights can be read, the output can be written.
pub(crate) unsafe fn rows<T: Vector, I: Isa>(rows: &Rows<T>) {
    // SAFETY: the caller vouches for the CPU.
    unsafe { I::token() }.vectorize(rows);
}

/// Adds the weight gradient of one plane.
///
/// # Safety
///
/// The CPU has `I`. Both planes can be read, and the sums can be read and written.
pub(crate) unsafe fn row_sums<T: Vector, I: Isa>(sums: &RowSums<T>) {
    // SAFETY: the caller vouches for the CPU.
    unsafe { I::token() }.vectorize(sums);
}

/// The sum of one plane.
///
/// # Safety
///
/// The CPU has `I`. The plane can be read.
pub(crate) unsafe fn plane_sum<T: Vector, I: Isa>(plane: &Plane<T>) -> T {
    // SAFETY: the caller vouches for the CPU.
    unsafe { I::token() }.vectorize(PlaneSum(plane))
}
