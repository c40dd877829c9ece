//! The input gradient of a 3 x 3 kernel at stride 2: each of its rows and columns meets one kernel element or two,
//! by turns, and a register of `dy` serves two rows of two registers.

use super::Plane;
use crate::kernel::simd::{Isa, MAX_LANES, Vector};
use pulp::{Simd, WithSimd};

/// The input gradient of one plane, for a kernel of 3 x 3 at stride 2.
pub(crate) struct Spread<T> {
    /// Gradient of the output.
    pub dy: Plane<T>,
    /// Weight of kernel element (0, 0).
    pub weight: *const T,
    /// Elements from a kernel row's weights to the next's, and from a column's.
    pub weight_step: [isize; 2],
    /// Rows and columns of padding before the input.
    pub pad: [usize; 2],
    /// Gradient of the input, row-major.
    pub out: *mut T,
    /// Its rows and columns.
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

impl<T: Vector> WithSimd for &Spread<T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let lanes = T::lanes::<S>();
        let [height, width] = self.size;
        let pairs = width.div_ceil(2);
        // SAFETY: `spread`'s contract covers the weights, the plane and the output.
        unsafe {
            let mut w = [[T::splat(simd, T::ZERO); 3]; 3];
            for y in 0..3 {
                for x in 0..3 {
                    let at = y as isize * self.weight_step[0] + x as isize * self.weight_step[1];
                    w[y][x] = T::splat(simd, *self.weight.wrapping_offset(at));
                }
            }
            let all_rows = height.div_ceil(2);
            let small = height * width * size_of::<T>() <= SMALL;
            let band = if small { all_rows.max(1) } else { BAND };
            let blocks = (0..all_rows).step_by(band).flat_map(move |y| {
                let rows = y..(y + band).min(all_rows);
                (0..pairs).step_by(lanes).map(move |first| (rows.clone(), first))
            });
            for (rows, first) in blocks {
                // The last register covers some columns once more, if they are pairs.
                let whole = pairs >= lanes && width.is_multiple_of(2);
                let first = if whole { first.min(pairs - lanes) } else { first };
                let (left, single_first) = met(self.pad[1], first);
                let masks = [self.dy.mask(simd, left, lanes), self.dy.mask(simd, left + 1, lanes)];
                let all = (width - 2 * first).min(2 * lanes);
                let rest =
                    [T::first(simd, all.min(lanes)), T::first(simd, all.saturating_sub(lanes))];
                for n in rows {
                    let (top, single_row_first) = met(self.pad[0], n);
                    let a0 = self.dy.at(simd, top, left, masks[0]);
                    let a1 = self.dy.at(simd, top, left + 1, masks[1]);
                    let b0 = self.dy.at(simd, top + 1, left, masks[0]);
                    let b1 = self.dy.at(simd, top + 1, left + 1, masks[1]);
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
                        let to = self.out.wrapping_add(y * width + 2 * first);
                        if all == 2 * lanes {
                            T::store_in_turns::<S>(to, one, other);
                            continue;
                        }
                        let mut turns = [T::ZERO; 2 * MAX_LANES];
                        T::store_in_turns::<S>(turns.as_mut_ptr(), one, other);
                        for half in 0..2 {
                            let value = T::load::<S>(turns.as_ptr().add(half * lanes));
                            T::store_first(simd, to.wrapping_add(half * lanes), rest[half], value);
                        }
                    }
                }
            }
        }
    }
}

/// Computes one plane.
///
/// # Safety
///
/// The CPU has `I`. The plane of `dy` and the weights can be read, the output can be written.
pub(crate) unsafe fn spread<T: Vector, I: Isa>(spread: &Spread<T>) {
    // SAFETY: the caller vouches for the CPU.
    unsafe { I::token() }.vectorize(spread);
}
