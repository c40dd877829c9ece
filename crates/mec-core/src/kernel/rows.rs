//! Depthwise micro-kernels: whole rows of one channel.
//!
//! A depthwise convolution has no sum over channels, so a panel would be read hardly more often than
//! it is written. Planes of the usual kernels are read `in_place`, each tap at its own offset, behind masks at the edges;
//! `spread` is their input gradient at stride 2; `staged` are the others, for which all rows are copied first.

mod in_place;
mod spread;
mod staged;

use super::simd::{Isa, Vector};
pub(crate) use in_place::serves;
use pulp::{Simd, WithSimd};
pub(crate) use spread::{Spread, serves as spread_serves, spread};
pub(crate) use staged::{Staged, StagedSums, StagedTap, staged, staged_sums};

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

/// Which input the taps of a square kernel meet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    /// Its rows and columns.
    pub kernel: usize,
    /// Input rows and columns from an output to the next: 1 or 2.
    pub stride: usize,
    /// Input row and column that the first tap of output (0, 0) meets.
    pub base: [isize; 2],
}

/// Planes that are taken together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Planes {
    /// How many.
    pub count: usize,
    /// Elements from one to the next.
    pub step: isize,
    /// Whether they come from further away than the second-level cache.
    pub far: bool,
}

impl Planes {
    /// The plane with number `number`, where `first` is the first of them.
    #[inline(always)]
    fn plane<T: Copy>(self, first: &Plane<T>, number: usize) -> Plane<T> {
        Plane { first: first.first.wrapping_offset(number as isize * self.step), ..*first }
    }
}

/// The weights of some planes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weights<T> {
    /// That of kernel element (0, 0) of the first plane.
    pub first: *const T,
    /// Elements from a kernel row's weights to the next's, and from a column's.
    pub step: [isize; 2],
    /// Elements from a plane's weights to the next's.
    pub plane: isize,
}

impl<T: Vector> Weights<T> {
    /// Those of a plane, for a kernel of `K` x `K`, each in every lane.
    ///
    /// # Safety
    ///
    /// They can be read.
    #[inline(always)]
    unsafe fn splat<S: Simd, const K: usize>(&self, simd: S, plane: usize) -> [[T::Of<S>; K]; K] {
        let first = self.first.wrapping_offset(plane as isize * self.plane);
        let mut weights = [[T::splat(simd, T::ZERO); K]; K];
        for y in 0..K {
            for x in 0..K {
                let at = y as isize * self.step[0] + x as isize * self.step[1];
                // SAFETY: the caller vouches for the weights.
                weights[y][x] = T::splat(simd, unsafe { *first.wrapping_offset(at) });
            }
        }
        weights
    }
}

/// The forward pass of some planes, for a kernel of 3 x 3, 5 x 5 or 7 x 7.
pub(crate) struct Rows<T> {
    /// The first plane of the input.
    pub x: Plane<T>,
    /// All planes.
    pub planes: Planes,
    /// Which input each tap meets.
    pub window: Window,
    /// The weights of all planes.
    pub weights: Weights<T>,
    /// What the sums of each plane start from; null stands for zeros.
    pub bias: *const T,
    /// Whether one output plane is the sum of what is made of all planes.
    pub add: bool,
    /// Output, row-major, one plane behind the other.
    pub out: *mut T,
    /// Rows and columns of a plane of the output.
    pub size: [usize; 2],
}

/// The weight gradient of some planes of one channel, for a kernel of 3 x 3, added to what is there.
pub(crate) struct RowSums<T> {
    /// The first plane of the input.
    pub x: Plane<T>,
    /// All planes.
    pub planes: Planes,
    /// Gradient of the output, of the first plane.
    pub dy: Plane<T>,
    /// Elements from a plane of it to the next.
    pub dy_step: isize,
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

    /// Row `y`, if it lies inside the plane.
    #[inline(always)]
    fn row(&self, y: isize) -> Option<*const T> {
        let inside = (0..self.height as isize).contains(&y);
        inside.then(|| self.first.wrapping_offset(y * self.row))
    }

    /// A register at (`y`, `x`): zeros outside the mask and outside the plane.
    ///
    /// # Safety
    ///
    /// The plane can be read, and the mask is [`Plane::mask`]'s for `x`.
    #[inline(always)]
    unsafe fn at<S: Simd>(&self, simd: S, y: isize, x: isize, mask: T::Mask<S>) -> T::Of<S> {
        let Some(row) = self.row(y) else { return T::splat(simd, T::ZERO) };
        // SAFETY: the mask covers lanes inside the row.
        unsafe { T::load_masked(simd, row.wrapping_offset(x), mask) }
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

/// Computes some planes.
///
/// # Safety
///
/// The CPU has `I`. Planes of the input, weights and biases can be read, the output can be written.
pub(crate) unsafe fn rows<T: Vector, I: Isa>(rows: &Rows<T>) {
    // SAFETY: the same contract.
    unsafe {
        match rows.window.kernel {
            3 => in_place::forward::<T, I, 3>(rows),
            5 => in_place::forward::<T, I, 5>(rows),
            7 => in_place::forward::<T, I, 7>(rows),
            kernel => unreachable!("no plane of a {kernel} x {kernel} kernel is read in place"),
        }
    }
}

/// Adds the weight gradient of some planes.
///
/// # Safety
///
/// The CPU has `I`. The planes can be read, and the sums can be read and written.
pub(crate) unsafe fn row_sums<T: Vector, I: Isa>(sums: &RowSums<T>) {
    // SAFETY: the same contract.
    unsafe { in_place::run::<T, I, 3>(sums) };
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
