//! Kernels of 3 x 3 without vertical dilation: the weights, or their gradients, stay in registers.

use super::{Plane, Window};
use crate::kernel::simd::{First, MAX_LANES, Vector};
use pulp::Simd;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Output rows of a tile of a 3 x 3 kernel: with two, multiply-adds and loads take as long, and the nine weights
/// stay in registers. Each further row is a stream of memory of its own.
const PAIR: usize = 2;

/// Rows whose inner columns are computed before those at the edges: what the edges read is then in the
/// first-level cache, and their masks are found once for all of them.
const BAND: usize = 16;

/// Output rows of a tile at stride 2, where no row serves three of them: with four, sums and weights stay in registers.
const FOUR: usize = 4;

/// Where a tile of a 3 x 3 kernel meets the input.
#[derive(Clone, Copy)]
pub(super) struct Met<T> {
    /// What the first tap meets.
    first: *const T,
    /// Elements from what a tap meets to what the one below does.
    row: isize,
    /// Elements from what a tap meets to what the next of its row does.
    column: isize,
}

/// What is done with the tiles of a 3 x 3 kernel without vertical dilation.
pub(super) trait ThreeByThree<T: Vector, S: Simd> {
    /// Takes the tile of `R` rows and of one register's columns at the output's (`y`, `x`); a row meets those of the
    /// input `STEP` below what the one above it does.
    ///
    /// # Safety
    ///
    /// `columns` lie inside the output. Registers can be read in [`met_rows`]`(R, STEP)` rows of `met`, at each of three
    /// taps.
    unsafe fn tile<const R: usize, const STEP: usize>(
        &mut self,
        simd: S,
        at: [usize; 2],
        columns: First<T::Mask<S>>,
        met: Met<T>,
    );
}

/// Input rows that `rows` outputs meet.
const fn met_rows(rows: usize, step: usize) -> usize {
    (rows - 1) * step + 3
}

/// Which of `rows` outputs meets input row `i` at kernel row `t`.
#[inline(always)]
fn row_of<const STEP: usize>(i: usize, t: usize, rows: usize) -> Option<usize> {
    let below = i.checked_sub(t)?;
    (below.is_multiple_of(STEP) && below / STEP < rows).then_some(below / STEP)
}

/// The tiles of a 3 x 3 kernel.
pub(super) struct Tiles<T> {
    pub x: Plane<T>,
    pub window: Window,
    /// Rows and columns of the output.
    pub size: [usize; 2],
}

impl<T: Vector> Tiles<T> {
    /// Shows all tiles to `visitor`, those inside the input along the rows, so that memory is met in order.
    ///
    /// # Safety
    ///
    /// The plane can be read.
    #[inline(always)]
    pub unsafe fn visit<S: Simd>(&self, simd: S, visitor: &mut impl ThreeByThree<T, S>) {
        let lanes = T::lanes::<S>();
        if self.window.stride == 2 {
            // SAFETY: the same contract.
            return unsafe { self.visit_apart(simd, visitor) };
        }
        let ([height, width], Window { base, step, .. }) = (self.size, self.window);
        let whole = T::first(simd, lanes);
        let inner = self.inner(lanes);
        for band in (0..height).step_by(BAND) {
            let rows = band..(band + BAND).min(height);
            for y in rows.clone().step_by(PAIR) {
                let top = y as isize + base[0];
                let inside = y + PAIR <= rows.end
                    && top >= 0
                    && top + PAIR as isize + 2 <= self.x.height as isize;
                let from = self.x.first.wrapping_offset(top * self.x.row + base[1]);
                for x in inner.clone().step_by(lanes) {
                    self.x.prefetch(top + PAIR as isize + 2, x, PAIR);
                    // SAFETY: the registers lie inside the rows, and the rows inside the plane.
                    unsafe {
                        if inside {
                            let first = from.wrapping_add(x);
                            let met = Met { first, row: self.x.row, column: step };
                            visitor.tile::<PAIR, 1>(simd, [y, x], whole, met);
                        } else {
                            self.staged(simd, visitor, y..(y + PAIR).min(rows.end), x);
                        }
                    }
                }
            }
            for x in (0..width).step_by(lanes) {
                if !inner.contains(&x) {
                    // SAFETY: the caller vouches for the plane.
                    unsafe { self.staged(simd, visitor, rows.clone(), x) };
                }
            }
        }
    }

    /// The same at stride 2: every second column of some rows is staged for the taps that meet it.
    ///
    /// # Safety
    ///
    /// As [`Tiles::visit`].
    #[inline(always)]
    unsafe fn visit_apart<S: Simd>(&self, simd: S, visitor: &mut impl ThreeByThree<T, S>) {
        const STEP: usize = 2;
        debug_assert_eq!(self.window.step, 1);
        let lanes = T::lanes::<S>();
        let ([height, width], base) = (self.size, self.window.base);
        let mut stage = [[MaybeUninit::<T>::uninit(); 3 * MAX_LANES]; met_rows(FOUR, STEP)];
        let stage = stage.as_mut_ptr().cast::<T>();
        let met = |row: usize| Met {
            first: stage.wrapping_add(row * STEP * 3 * lanes).cast_const(),
            row: 3 * lanes as isize,
            column: lanes as isize,
        };
        for y in (0..height).step_by(FOUR) {
            let rows = (height - y).min(FOUR);
            let top = (y * STEP) as isize + base[0];
            for x in (0..width).step_by(lanes) {
                let count = (width - x).min(lanes);
                let columns = T::first(simd, count);
                let left = (x * STEP) as isize + base[1];
                // What only lanes without an output meet is not read.
                let halves = [(STEP * count).min(lanes), (STEP * count).saturating_sub(lanes)];
                let places = [left, left + lanes as isize, left + 2, left + 2 + lanes as isize];
                let masks = [
                    self.x.mask(simd, places[0], halves[0]),
                    self.x.mask(simd, places[1], halves[1]),
                    self.x.mask(simd, places[2], halves[0]),
                    self.x.mask(simd, places[3], halves[1]),
                ];
                let next = top + (FOUR * STEP) as isize + 1;
                self.x.prefetch(next, x * STEP, FOUR * STEP);
                // SAFETY: the masks cover what lies inside a row; a stage's row has room for three registers.
                unsafe {
                    for i in 0..met_rows(rows, STEP) {
                        let y = top + i as isize;
                        let a = self.x.at(simd, y, places[0], masks[0]);
                        let b = self.x.at(simd, y, places[1], masks[1]);
                        let c = self.x.at(simd, y, places[2], masks[2]);
                        let d = self.x.at(simd, y, places[3], masks[3]);
                        let [first, second] = T::apart::<S>([a, b]);
                        let [third, _] = T::apart::<S>([c, d]);
                        let to = stage.add(i * 3 * lanes);
                        T::store::<S>(to, first);
                        T::store::<S>(to.add(lanes), second);
                        T::store::<S>(to.add(2 * lanes), third);
                    }
                    if rows == FOUR {
                        visitor.tile::<FOUR, STEP>(simd, [y, x], columns, met(0));
                        continue;
                    }
                    if rows >= PAIR {
                        visitor.tile::<PAIR, STEP>(simd, [y, x], columns, met(0));
                    }
                    if !rows.is_multiple_of(PAIR) {
                        let row = rows - 1;
                        visitor.tile::<1, STEP>(simd, [y + row, x], columns, met(row));
                    }
                }
            }
        }
    }

    /// The columns whose registers are whole and meet the input's rows inside.
    fn inner(&self, lanes: usize) -> Range<usize> {
        let (base, step) = (self.window.base[1], self.window.step);
        let ends = [base, base + 2 * step];
        let first = ends[0].min(ends[1]).min(0).unsigned_abs().next_multiple_of(lanes);
        let end = self.x.width as isize - ends[0].max(ends[1]);
        let registers = end.clamp(0, self.size[1] as isize) as usize / lanes;
        first..(registers * lanes).max(first)
    }

    /// Shows the tiles of some rows, at most [`BAND`], and a register's columns to `visitor`, with zeros where
    /// they meet none of the input.
    ///
    /// # Safety
    ///
    /// The plane can be read.
    #[inline(always)]
    unsafe fn staged<S: Simd>(
        &self,
        simd: S,
        visitor: &mut impl ThreeByThree<T, S>,
        rows: Range<usize>,
        x: usize,
    ) {
        let lanes = T::lanes::<S>();
        let Window { base, step, .. } = self.window;
        let count = (self.size[1] - x).min(lanes);
        let columns = T::first(simd, count);
        let column = |m: isize| x as isize + base[1] + m * step;
        // Lanes without an output must not bring in what is not finite.
        let mask = |m| self.x.mask(simd, column(m), count);
        let masks = [mask(0), mask(1), mask(2)];
        let mut stage = [[MaybeUninit::<T>::uninit(); 3 * MAX_LANES]; BAND + 2];
        let stage = stage.as_mut_ptr().cast::<T>();
        // SAFETY: the masks cover what lies inside a row; a stage's row has room for three registers.
        unsafe {
            for i in 0..rows.len() + 2 {
                let y = (rows.start + i) as isize + base[0];
                for m in 0..3 {
                    let value = self.x.at(simd, y, column(m as isize), masks[m]);
                    T::store::<S>(stage.add((i * 3 + m) * lanes), value);
                }
            }
            for y in rows.clone().step_by(PAIR) {
                let first = stage.add((y - rows.start) * 3 * lanes);
                let met = Met { first, row: 3 * lanes as isize, column: lanes as isize };
                if y + PAIR <= rows.end {
                    visitor.tile::<PAIR, 1>(simd, [y, x], columns, met);
                } else {
                    visitor.tile::<1, 1>(simd, [y, x], columns, met);
                }
            }
        }
    }
}

/// The forward pass of a 3 x 3 kernel.
pub(super) struct Output<T: Vector, S: Simd> {
    pub bias: T::Of<S>,
    pub out: *mut T,
    pub width: usize,
    pub weights: [[T::Of<S>; 3]; 3],
}

impl<T: Vector, S: Simd> ThreeByThree<T, S> for Output<T, S> {
    #[inline(always)]
    unsafe fn tile<const R: usize, const STEP: usize>(
        &mut self,
        simd: S,
        [y, x]: [usize; 2],
        columns: First<T::Mask<S>>,
        met: Met<T>,
    ) {
        let mut acc = [self.bias; R];
        let to = self.out.wrapping_add(y * self.width + x);
        // SAFETY: the caller vouches for what is met, and for the columns.
        unsafe {
            for i in 0..met_rows(R, STEP) {
                for m in 0..3 {
                    let at = i as isize * met.row + m as isize * met.column;
                    let value = T::load::<S>(met.first.wrapping_offset(at));
                    for t in 0..3 {
                        if let Some(r) = row_of::<STEP>(i, t, R) {
                            acc[r] = T::mul_add(simd, value, self.weights[t][m], acc[r]);
                        }
                    }
                }
            }
            for (r, sum) in acc.into_iter().enumerate() {
                T::store_first(simd, to.wrapping_add(r * self.width), columns, sum);
            }
        }
    }
}

/// The weight gradient of a 3 x 3 kernel: all nine sums together.
pub(super) struct Sums<T: Vector, S: Simd> {
    pub dy: Plane<T>,
    pub acc: [[T::Of<S>; 3]; 3],
}

impl<T: Vector, S: Simd> ThreeByThree<T, S> for Sums<T, S> {
    #[inline(always)]
    unsafe fn tile<const R: usize, const STEP: usize>(
        &mut self,
        simd: S,
        [y, x]: [usize; 2],
        columns: First<T::Mask<S>>,
        met: Met<T>,
    ) {
        let (y, x) = (y as isize, x as isize);
        self.dy.prefetch(y + R as isize, x as usize, R);
        // SAFETY: the caller vouches for what is met, and for the columns.
        unsafe {
            let mut dy = [T::splat(simd, T::ZERO); R];
            for r in 0..R {
                let from = self.dy.first.wrapping_offset((y + r as isize) * self.dy.row + x);
                dy[r] = T::load_first(simd, from, columns);
            }
            for i in 0..met_rows(R, STEP) {
                for m in 0..3 {
                    let at = i as isize * met.row + m as isize * met.column;
                    let value = T::load::<S>(met.first.wrapping_offset(at));
                    for t in 0..3 {
                        if let Some(r) = row_of::<STEP>(i, t, R) {
                            self.acc[t][m] = T::mul_add(simd, dy[r], value, self.acc[t][m]);
                        }
                    }
                }
            }
        }
    }
}
