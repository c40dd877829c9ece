//! Depthwise micro-kernels: whole rows of one channel, straight from the tensor.
//!
//! A depthwise convolution has no sum over channels, so a panel would be read hardly more often than
//! it is written. Instead rows are read where they lie, each tap at its own offset, with padding as
//! zeros under a mask. Every multiply-add takes one load, as many as two ports can do.

mod three_by_three;

use super::simd::{Isa, Vector};
use super::tile::prefetch;
use pulp::{Simd, WithSimd};
use three_by_three::{Output, Sums, Tiles};

/// One plane of the input of a depthwise correlation at stride 1.
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

/// Taps of a depthwise kernel: row `t`, column `m` meets the input `t * step - pad` rows and
/// `m * step - pad` columns from the output's place, steps and padding being those of each axis.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    /// Rows and columns of the kernel.
    pub taps: [usize; 2],
    /// Input rows and columns from a tap to the next.
    pub step: [isize; 2],
    /// Input row and column that the first tap of output (0, 0) meets.
    pub base: [isize; 2],
}

/// The forward pass of one plane.
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

/// Output rows of a tile.
const ROWS: usize = 4;

/// Kernel columns of a tile of the weight gradient.
const COLUMNS: usize = 4;

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
        if self.window.taps == [3, 3] && self.window.step[0] == 1 {
            let Rows { x, window, size, .. } = *self;
            // SAFETY: `rows`' contract covers the weights, the plane and the output.
            unsafe {
                let row =
                    |t| [self.splat(simd, t, 0), self.splat(simd, t, 1), self.splat(simd, t, 2)];
                let mut output = Output {
                    bias: T::splat(simd, self.bias),
                    out: self.out,
                    width: size[1],
                    weights: [row(0), row(1), row(2)],
                };
                return Tiles { x, window, size }.visit(simd, &mut output);
            }
        }
        let lanes = T::lanes::<S>();
        let [height, width] = self.size;
        // Along the rows, so that memory is met in order.
        for y in (0..height).step_by(ROWS) {
            for x in (0..width).step_by(lanes) {
                // SAFETY: `rows`' contract covers every address formed there.
                let acc = unsafe { self.any_taps(simd, y, x) };
                let reach = (self.window.taps[0] as isize - 1) * self.window.step[0];
                self.x.prefetch((y + ROWS) as isize + self.window.base[0] + reach, x, ROWS);
                let store = T::first(simd, (width - x).min(lanes));
                let bias = T::splat(simd, self.bias);
                for (r, sum) in acc.into_iter().enumerate() {
                    if y + r < height {
                        let to = self.out.wrapping_add((y + r) * width + x);
                        // SAFETY: the mask covers columns of the output.
                        unsafe { T::store_first(simd, to, store, T::sum(simd, sum, bias)) };
                    }
                }
            }
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

    /// The sums of a register's columns in [`ROWS`] rows, for any kernel.
    ///
    /// # Safety
    ///
    /// As [`rows`].
    #[inline(always)]
    unsafe fn any_taps<S: Simd>(&self, simd: S, y: usize, x: usize) -> [T::Of<S>; ROWS] {
        let lanes = T::lanes::<S>();
        let Window { taps, step, base } = self.window;
        let reach = (taps[0] as isize - 1) * step[0];
        let top = y as isize + base[0];
        let inside = top >= 0 && top + reach + ROWS as isize <= self.x.height as isize;
        let mut acc = [T::splat(simd, T::ZERO); ROWS];
        for m in 0..taps[1] as isize {
            let x = x as isize + m * step[1] + base[1];
            let mask = self.x.mask(simd, x, lanes);
            for t in 0..taps[0] as isize {
                let y = top + t * step[0];
                // SAFETY: the caller vouches for weight and plane.
                unsafe {
                    let weight = self.splat(simd, t, m);
                    if inside {
                        let mut from = self.x.first.wrapping_offset(y * self.x.row + x);
                        for acc in &mut acc {
                            let value = T::load_masked(simd, from, mask);
                            *acc = T::mul_add(simd, value, weight, *acc);
                            from = from.wrapping_offset(self.x.row);
                        }
                    } else {
                        for (r, acc) in acc.iter_mut().enumerate() {
                            let value = self.x.at(simd, y + r as isize, x, mask);
                            *acc = T::mul_add(simd, value, weight, *acc);
                        }
                    }
                }
            }
        }
        acc
    }
}

impl<T: Vector> WithSimd for &RowSums<T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if self.window.taps == [3, 3] && self.window.step[0] == 1 {
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
            return;
        }
        let lanes = T::lanes::<S>();
        let Window { taps, step, base } = self.window;
        for t in 0..taps[0] {
            for first in (0..taps[1]).step_by(COLUMNS) {
                // Two rows at a time, so that eight sums hide the latency.
                let mut acc = [[T::splat(simd, T::ZERO); COLUMNS]; 2];
                for x in (0..self.dy.width).step_by(lanes) {
                    let count = (self.dy.width - x).min(lanes);
                    let dy_mask = T::mask(simd, 0, count);
                    let column = |m: usize| x as isize + (first + m) as isize * step[1] + base[1];
                    // Lanes without `dy` must not bring in what is not finite.
                    let masks: [T::Mask<S>; COLUMNS] =
                        std::array::from_fn(|m| self.x.mask(simd, column(m), count));
                    for y in (0..self.dy.height as isize).step_by(2) {
                        for (r, acc) in acc.iter_mut().enumerate() {
                            let y = y + r as isize;
                            let input = y + t as isize * step[0] + base[0];
                            // SAFETY: `row_sums`' contract covers both planes.
                            unsafe {
                                let dy = self.dy.at(simd, y, x as isize, dy_mask);
                                for m in 0..COLUMNS {
                                    // The row below the last has no `dy`, and no input either.
                                    let input =
                                        if y < self.dy.height as isize { input } else { -1 };
                                    let value = self.x.at(simd, input, column(m), masks[m]);
                                    acc[m] = T::mul_add(simd, dy, value, acc[m]);
                                }
                            }
                        }
                    }
                }
                for m in 0..COLUMNS {
                    if first + m < taps[1] {
                        let sum = T::sum_lanes(simd, T::sum(simd, acc[0][m], acc[1][m]));
                        // SAFETY: there is a sum for each tap.
                        unsafe {
                            let to = self.sums.add(t * taps[1] + first + m);
                            *to = *to + sum;
                        }
                    }
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
