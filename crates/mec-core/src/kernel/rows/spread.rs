//! The input gradient of a kernel at stride 2: its rows and columns meet the kernel's even elements and its odd ones by
//! turns, and a register of `dy` serves two rows of two registers.

use super::{Plane, Planes, Weights};
use crate::kernel::simd::{First, Isa, MAX_LANES, Vector};
use pulp::{Simd, WithSimd};
use std::ops::Range;

/// The input gradient of some planes, for a square kernel at stride 2.
pub(crate) struct Spread<T> {
    /// Gradient of the output, of the first plane.
    pub dy: Plane<T>,
    /// All planes of it.
    pub planes: Planes,
    /// Rows and columns of the kernel.
    pub kernel: usize,
    /// The weights of all planes.
    pub weights: Weights<T>,
    /// Rows and columns of padding before the input, both even or both odd.
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

/// Where a register's pairs of columns lie.
struct Columns<T: Vector, S: Simd, const H: usize> {
    /// The first column of the output.
    first: usize,
    /// How many.
    count: usize,
    /// Those of each half of two registers.
    halves: [First<T::Mask<S>>; 2],
    /// The first column of `dy`.
    left: isize,
    /// What of a register there, and from each of the columns that follow it, lies inside `dy`.
    masks: [T::Mask<S>; H],
}

/// A kernel of `K` x `K`, of whose rows and columns `H` are even, behind an odd or an even padding.
///
/// Along one axis, position `i` of the input meets the even kernel elements or the odd ones, as `i + pad` is even or
/// odd: `2 j` or `2 j + 1` at `dy`'s `(i + pad) / 2 - j`. Positions `2 n` and `2 n + 1` together meet `H` that follow each
/// other. The even elements meet all of them; the odd ones the last `H - 1`, or behind an odd padding, where the odd
/// position comes first, the first `H - 1`.
struct Kernel<'a, T, const K: usize, const H: usize, const ODD: bool>(&'a Spread<T>);

impl<T: Vector, const K: usize, const H: usize, const ODD: bool> WithSimd
    for Kernel<'_, T, K, H, ODD>
{
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let lanes = T::lanes::<S>();
        let [height, width] = self.0.size;
        let (all_rows, pairs) = (height.div_ceil(2), width.div_ceil(2));
        let planes = 0..self.0.planes.count;
        // SAFETY: `spread`'s contract covers the weights, the planes and the output.
        unsafe {
            if height * width * size_of::<T>() <= SMALL {
                for first in (0..pairs).step_by(lanes) {
                    let columns = self.columns(simd, first);
                    for plane in planes.clone() {
                        let weights = self.0.weights.splat(simd, plane);
                        self.pairs(simd, plane, &weights, 0..all_rows, &columns);
                    }
                }
                return;
            }
            for plane in planes {
                let weights = self.0.weights.splat(simd, plane);
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

impl<T: Vector, const K: usize, const H: usize, const ODD: bool> Kernel<'_, T, K, H, ODD> {
    /// The first position of `dy` that pair `n` meets.
    #[inline(always)]
    fn met(pad: usize, n: usize) -> isize {
        const { assert!(H == K.div_ceil(2) && K % 2 == 1) };
        (n + pad / 2 + usize::from(ODD)) as isize - (H as isize - 1)
    }

    /// Whether the even kernel elements (`odd` is 0), or the odd ones (1), meet the `i`-th of those positions.
    #[inline(always)]
    const fn meets(i: usize, odd: usize) -> bool {
        odd == 0 || if ODD { i + 1 < H } else { i > 0 }
    }

    /// The one that does.
    #[inline(always)]
    const fn element(i: usize, odd: usize) -> usize {
        2 * (H - 1 - i) + odd - if ODD { 2 * odd } else { 0 }
    }

    /// The register of pairs from `first` on. The last one covers some columns once more, if they are pairs.
    #[inline(always)]
    fn columns<S: Simd>(&self, simd: S, first: usize) -> Columns<T, S, H> {
        let (lanes, width) = (T::lanes::<S>(), self.0.size[1]);
        let pairs = width.div_ceil(2);
        let whole = pairs >= lanes && width.is_multiple_of(2);
        let first = if whole { first.min(pairs - lanes) } else { first };
        let left = Self::met(self.0.pad[1], first);
        let count = (width - 2 * first).min(2 * lanes);
        let mut masks = [self.0.dy.mask(simd, left, lanes); H];
        for i in 1..H {
            masks[i] = self.0.dy.mask(simd, left + i as isize, lanes);
        }
        Columns {
            first: 2 * first,
            count,
            halves: [T::first(simd, count.min(lanes)), T::first(simd, count.saturating_sub(lanes))],
            left,
            masks,
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
        weights: &[[T::Of<S>; K]; K],
        rows: Range<usize>,
        columns: &Columns<T, S, H>,
    ) {
        let Spread { dy, planes, pad, out, size: [height, width], .. } = *self.0;
        let lanes = T::lanes::<S>();
        let dy = planes.plane(&dy, plane);
        let out = out.wrapping_add(plane * height * width + columns.first);
        // What a narrow plane's register covers of the rows that follow is written after it.
        let room = if width <= 2 * lanes { (planes.count - plane) * height * width } else { 0 };
        for n in rows {
            let top = Self::met(pad[0], n);
            // At the even row and column of the kernel's elements first.
            let mut sums = [[T::splat(simd, T::ZERO); 2]; 2];
            for y in 0..H {
                for x in 0..H {
                    let place = columns.left + x as isize;
                    // SAFETY: the mask covers what lies inside `dy`.
                    let value = unsafe { dy.at(simd, top + y as isize, place, columns.masks[x]) };
                    for row in 0..2 {
                        for column in 0..2 {
                            if Self::meets(y, row) && Self::meets(x, column) {
                                let weight =
                                    weights[Self::element(y, row)][Self::element(x, column)];
                                sums[row][column] =
                                    T::mul_add(simd, value, weight, sums[row][column]);
                            }
                        }
                    }
                }
            }
            for r in 0..2 {
                let (y, row) = (2 * n + r, r ^ usize::from(ODD));
                if y >= height {
                    continue;
                }
                let (one, other) = (sums[row][usize::from(ODD)], sums[row][usize::from(!ODD)]);
                let to = out.wrapping_add(y * width);
                // SAFETY: what is written lies inside the output.
                unsafe {
                    if columns.count == 2 * lanes || y * width + 2 * lanes <= room {
                        T::store_in_turns::<S>(to, one, other);
                        continue;
                    }
                    let mut turns = [T::ZERO; 2 * MAX_LANES];
                    T::store_in_turns::<S>(turns.as_mut_ptr(), one, other);
                    for half in 0..2 {
                        let value = T::load::<S>(turns.as_ptr().add(half * lanes));
                        let to = to.wrapping_add(half * lanes);
                        T::store_first(simd, to, columns.halves[half], value);
                    }
                }
            }
        }
    }
}

/// Whether [`spread`] serves a kernel of `kernel` x `kernel` behind a padding.
pub(crate) fn serves(kernel: usize, pad: [usize; 2]) -> bool {
    matches!(kernel, 3 | 5) && pad[0] % 2 == pad[1] % 2
}

/// Computes some planes.
///
/// # Safety
///
/// The CPU has `I`, and it is a case that [`serves`] names. The planes of `dy` and the weights can be read, the output
/// can be written.
pub(crate) unsafe fn spread<T: Vector, I: Isa>(spread: &Spread<T>) {
    // SAFETY: the caller vouches for the CPU.
    let simd = unsafe { I::token() };
    match (spread.kernel, spread.pad[0] % 2 == 1) {
        (3, false) => simd.vectorize(Kernel::<T, 3, 2, false>(spread)),
        (3, true) => simd.vectorize(Kernel::<T, 3, 2, true>(spread)),
        (5, false) => simd.vectorize(Kernel::<T, 5, 3, false>(spread)),
        (5, true) => simd.vectorize(Kernel::<T, 5, 3, true>(spread)),
        (kernel, _) => unreachable!("no plane of a {kernel} x {kernel} kernel is spread"),
    }
}
