//! The input gradient of a 3 x 3 kernel at stride 2: each of its rows and columns meets one kernel element or two,
//! by turns, and a register of `dy` serves two rows of two registers.

use super::{Plane, Planes};
use crate::kernel::simd::{First, Isa, MAX_LANES, Vector};
use pulp::{Simd, WithSimd};
use std::ops::Range;

/// The input gradient of some planes, for a kernel of 3 x 3 at stride 2.
pub(crate) struct Spread<T> {
    /// Gradient of the output, of the first plane.
    pub dy: Plane<T>,
    /// All planes of it.
    pub planes: Planes,
    /// Weight of kernel element (0, 0) of the first plane.
    pub weight: *const T,
    /// Elements from a kernel row's weights to the next's, and from a column's.
    pub weight_step: [isize; 2],
    /// Elements from a plane's weights to the next's.
    pub weight_plane: isize,
    /// Rows and columns of padding before the input.
    pub pad: [usize; 2],
    /// Gradient of the input, row-major, one plane behind the other.
    pub out: *mut T,
    /// Rows and columns of a plane of it.
    pub size: [usize; 2],
}

/// Pairs of rows of a large plane of which a register's columns are computed before the next register's, so that memory
/// is met almost in order: 112 x 112 took 1.3 times as long by whole columns.
const BAND: usize = 4;

/// Bytes of a plane that stays in the first-level cache: by whole columns masks are found once, and 14 x 14 to 56 x 56
/// took 0.8 of the time.
const SMALL: usize = 32 << 10;

/// Along one axis, position `i` of the input meets kernel element 1 at `dy`'s `(i + pad - 1) / 2` or, where that is
/// no number, 0 and 2 at `(i + pad) / 2` and the one before. Positions `2 n` and `2 n + 1` therefore meet two that
/// follow each other: the first of them, and whether the position with one kernel element comes first.
fn met(pad: usize, n: usize) -> (isize, bool) {
    let odd = pad % 2 == 1;
    ((n + pad / 2) as isize - isize::from(!odd), odd)
}

/// Where a register's pairs of columns lie.
struct Columns<T: Vector, S: Simd> {
    /// The first column of the output.
    first: usize,
    /// How many.
    count: usize,
    /// Those of each half of two registers.
    halves: [First<T::Mask<S>>; 2],
    /// The first column of `dy`.
    left: isize,
    /// What of a register there, and one column on, lies inside `dy`.
    masks: [T::Mask<S>; 2],
    /// Whether the first column of a pair is the one with one kernel column.
    single_first: bool,
}

impl<T: Vector> WithSimd for &Spread<T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let lanes = T::lanes::<S>();
        let [height, width] = self.size;
        let (all_rows, pairs) = (height.div_ceil(2), width.div_ceil(2));
        let planes = 0..self.planes.count;
        // SAFETY: `spread`'s contract covers the weights, the planes and the output.
        unsafe {
            if height * width * size_of::<T>() <= SMALL {
                for first in (0..pairs).step_by(lanes) {
                    let columns = self.columns(simd, first);
                    for plane in planes.clone() {
                        let weights = self.weights(simd, plane);
                        self.pairs(simd, plane, &weights, 0..all_rows, &columns);
                    }
                }
                return;
            }
            for plane in planes {
                let weights = self.weights(simd, plane);
                for y in (0..all_rows).step_by(BAND) {
                    for first in (0..pairs).step_by(lanes) {
                        let columns = self.columns(simd, first);
                        let rows = y..(y + BAND).min(all_rows);
                        self.pairs(simd, plane, &weights, rows, &columns);
                    }
                }
            }
        }
    }
}

impl<T: Vector> Spread<T> {
    /// The weights of a plane, in every lane.
    ///
    /// # Safety
    ///
    /// As [`spread`].
    #[inline(always)]
    unsafe fn weights<S: Simd>(&self, simd: S, plane: usize) -> [[T::Of<S>; 3]; 3] {
        let weight = self.weight.wrapping_offset(plane as isize * self.weight_plane);
        let mut weights = [[T::splat(simd, T::ZERO); 3]; 3];
        for y in 0..3 {
            for x in 0..3 {
                let at = y as isize * self.weight_step[0] + x as isize * self.weight_step[1];
                // SAFETY: the caller vouches for the weights.
                weights[y][x] = T::splat(simd, unsafe { *weight.wrapping_offset(at) });
            }
        }
        weights
    }

    /// The register of pairs from `first` on. The last one covers some columns once more, if they are pairs.
    #[inline(always)]
    fn columns<S: Simd>(&self, simd: S, first: usize) -> Columns<T, S> {
        let (lanes, width) = (T::lanes::<S>(), self.size[1]);
        let pairs = width.div_ceil(2);
        let whole = pairs >= lanes && width.is_multiple_of(2);
        let first = if whole { first.min(pairs - lanes) } else { first };
        let (left, single_first) = met(self.pad[1], first);
        let count = (width - 2 * first).min(2 * lanes);
        Columns {
            first: 2 * first,
            count,
            halves: [T::first(simd, count.min(lanes)), T::first(simd, count.saturating_sub(lanes))],
            left,
            masks: [self.dy.mask(simd, left, lanes), self.dy.mask(simd, left + 1, lanes)],
            single_first,
        }
    }

    /// Some pairs of rows of a register's columns.
    ///
    /// # Safety
    ///
    /// As [`spread`].
    #[inline(always)]
    unsafe fn pairs<S: Simd>(
        &self,
        simd: S,
        plane: usize,
        w: &[[T::Of<S>; 3]; 3],
        rows: Range<usize>,
        columns: &Columns<T, S>,
    ) {
        let (lanes, [height, width]) = (T::lanes::<S>(), self.size);
        let &Columns { first, count, halves, left, masks, single_first } = columns;
        let dy = self.planes.plane(&self.dy, plane);
        let out = self.out.wrapping_add(plane * height * width + first);
        // What a narrow plane's register covers of the rows that follow is written after it.
        let room =
            if width <= 2 * lanes { (self.planes.count - plane) * height * width } else { 0 };
        // SAFETY: the masks cover what lies inside `dy`, and what is written lies inside the output.
        unsafe {
            for n in rows {
                let (top, single_row_first) = met(self.pad[0], n);
                let a0 = dy.at(simd, top, left, masks[0]);
                let a1 = dy.at(simd, top, left + 1, masks[1]);
                let b0 = dy.at(simd, top + 1, left, masks[0]);
                let b1 = dy.at(simd, top + 1, left + 1, masks[1]);
                // Where one kernel column, or row, is met, it is at the one of both that lies at the position.
                let (a, b) = if single_first { (a0, b0) } else { (a1, b1) };
                let (s, s0, s1) = if single_row_first { (a, a0, a1) } else { (b, b0, b1) };
                let single_row = [
                    T::product(simd, s, w[1][1]),
                    T::mul_add(simd, s0, w[1][2], T::product(simd, s1, w[1][0])),
                ];
                let below = T::mul_add(simd, b0, w[0][2], T::product(simd, b1, w[0][0]));
                let above = T::mul_add(simd, a0, w[2][2], T::product(simd, a1, w[2][0]));
                let double_row = [
                    T::mul_add(simd, a, w[2][1], T::product(simd, b, w[0][1])),
                    T::sum(simd, below, above),
                ];
                let rows = if single_row_first {
                    [single_row, double_row]
                } else {
                    [double_row, single_row]
                };
                for (r, [single, double]) in rows.into_iter().enumerate() {
                    let y = 2 * n + r;
                    if y >= height {
                        continue;
                    }
                    let (one, other) =
                        if single_first { (single, double) } else { (double, single) };
                    let to = out.wrapping_add(y * width);
                    if count == 2 * lanes || y * width + 2 * lanes <= room {
                        T::store_in_turns::<S>(to, one, other);
                        continue;
                    }
                    let mut turns = [T::ZERO; 2 * MAX_LANES];
                    T::store_in_turns::<S>(turns.as_mut_ptr(), one, other);
                    for half in 0..2 {
                        let value = T::load::<S>(turns.as_ptr().add(half * lanes));
                        T::store_first(simd, to.wrapping_add(half * lanes), halves[half], value);
                    }
                }
            }
        }
    }
}

/// Computes some planes.
///
/// # Safety
///
/// The CPU has `I`. The planes of `dy` and the weights can be read, the output can be written.
pub(crate) unsafe fn spread<T: Vector, I: Isa>(spread: &Spread<T>) {
    // SAFETY: the caller vouches for the CPU.
    unsafe { I::token() }.vectorize(spread);
}
