//! Kernels of 3 x 3 to 7 x 7 without dilation, over planes that are read where they lie: what a row of the input adds
//! to the outputs around it stays in registers, and so do a small kernel's weights, or their gradients.

use super::{Plane, Planes, RowSums, Rows, Window};
use crate::kernel::LINE;
use crate::kernel::simd::{First, Isa, Vector};
use crate::kernel::tile::prefetch;
use pulp::{Simd, WithSimd};
use std::ops::Range;

/// Output rows of a tile of a large plane at stride 1: with two, multiply-adds and loads take as long, and the nine
/// weights stay in registers. Each further row is a stream of memory of its own.
const PAIR: usize = 2;

/// Rows of a large plane whose inner columns are computed before those at the edges: what the edges read is then in
/// the first-level cache, and their masks are found once for all of them.
const BAND: usize = 16;

/// Bytes of an output plane that is taken by whole columns: masks are found once, and each row is read once for all
/// outputs that meet it. 28 x 28 took 0.6 of the time of tiles, 56 x 56 1.6 (Zen 3): memory is not met in order.
const SMALL: usize = 6 << 10;

/// The same at stride 1 where a register is a whole cache line: 40 x 40 took 0.7 of the time of tiles, 56 x 56 0.85,
/// 64 x 64 0.8 to 1.2 (Sapphire Rapids).
const SMALL_BY_LINES: usize = 14 << 10;

/// Bytes of an output plane from which lines of the next one are asked for, where planes come from far: 28 x 28 and 32 x 32
/// took 0.75 of the time in the forward pass, 14 x 14 0.9 but 1.1 in the weight gradient (Sapphire Rapids).
const ASKED_FOR: usize = 1 << 10;

/// Whether planes of an output of `size` are read in place for a kernel of `kernel` x `kernel`, by registers of so many
/// `lanes`. The weights of the larger ones are read from memory for each register: only for small planes is that sooner
/// than to copy them first (5 x 5 on 14 x 14 0.5 to 0.75 of the time, on 28 x 28 0.8 to 0.95, 7 x 7 on 56 x 56 1.8).
pub(crate) fn serves<T>(lanes: usize, kernel: usize, stride: usize, size: [usize; 2]) -> bool {
    match kernel {
        3 => true,
        5 | 7 => small::<T>(lanes, stride, size),
        _ => false,
    }
}

/// Whether a plane of the output is taken by whole columns of so many `lanes`.
fn small<T>(lanes: usize, stride: usize, [height, width]: [usize; 2]) -> bool {
    let by_lines = stride == 1 && lanes * size_of::<T>() == LINE;
    height * width * size_of::<T>() <= if by_lines { SMALL_BY_LINES } else { SMALL }
}

/// A pass over the outputs of a kernel of `K` x `K`.
pub(super) trait Pass<T: Vector, const K: usize> {
    /// Whether a register may cover columns that another one has taken.
    const REPEATS: bool;

    /// What stays in registers.
    type State<S: Simd>;

    /// What it goes over.
    fn tiles(&self) -> Tiles<T>;

    /// The state before the first plane.
    fn start<S: Simd>(&self, simd: S) -> Self::State<S>;

    /// Turns to a plane.
    ///
    /// # Safety
    ///
    /// There is such a plane.
    unsafe fn plane<S: Simd>(&self, simd: S, state: &mut Self::State<S>, plane: usize);

    /// Takes a register's columns of some rows of the plane's output, in order; a row meets those of the input `STEP`
    /// below what the one above it does.
    ///
    /// # Safety
    ///
    /// The column lies inside the output. What it meets can be read.
    unsafe fn column<S: Simd, const STEP: usize>(
        &self,
        simd: S,
        state: &mut Self::State<S>,
        column: Column<T::Mask<S>>,
        met: &impl Meets<T, S>,
    );

    /// Brings what is left in registers to its place.
    ///
    /// # Safety
    ///
    /// It can be written there.
    unsafe fn finish<S: Simd>(&self, simd: S, state: Self::State<S>);
}

/// A register's columns of some rows of the output.
#[derive(Clone, Copy)]
pub(super) struct Column<M> {
    y: usize,
    x: usize,
    rows: usize,
    columns: First<M>,
    /// The input row that the first tap of the first row meets.
    top: isize,
    /// Rows from one that is read to one that is asked for.
    ahead: isize,
    /// Elements from the next plane's first to one of those that are asked for instead, a register for each row.
    next: Option<usize>,
}

/// Where memory is asked for when a row of a plane is read.
#[derive(Clone, Copy)]
struct Ask {
    /// Elements from the plane's first, for row 0.
    first: isize,
    /// Elements for each row.
    row: isize,
}

impl Ask {
    /// What is asked for with row `y`. It need not be there.
    #[inline(always)]
    fn at(self, y: isize) -> isize {
        self.first + y * self.row
    }
}

/// Pairs of taps of the widest kernel's row.
const PAIRS: usize = 4;

/// What a register's columns of the output meet at the taps of a kernel row.
pub(super) trait Meets<T: Vector, S: Simd> {
    /// A row of the input.
    type Row: Copy;

    /// Row `y` of the input, zeros if it lies outside.
    ///
    /// # Safety
    ///
    /// The plane can be read.
    unsafe fn row(&self, simd: S, y: isize) -> Self::Row;

    /// What tap `m` meets of a row.
    ///
    /// # Safety
    ///
    /// The plane can be read.
    unsafe fn at(&self, row: Self::Row, m: usize) -> T::Of<S>;
}

/// Registers that lie inside rows of the input.
struct Inside<T> {
    x: Plane<T>,
    /// The column that the first tap meets.
    left: isize,
}

impl<T: Vector, S: Simd> Meets<T, S> for Inside<T> {
    /// The row's start: registers are read when they are wanted, so that they need not be kept.
    type Row = *const T;

    #[inline(always)]
    unsafe fn row(&self, _: S, y: isize) -> *const T {
        self.x.first.wrapping_offset(y * self.x.row)
    }

    #[inline(always)]
    unsafe fn at(&self, row: *const T, m: usize) -> T::Of<S> {
        // SAFETY: the registers lie inside the row.
        unsafe { T::load::<S>(row.wrapping_offset(self.left + m as isize)) }
    }
}

/// Registers of which some lanes meet nothing.
struct Edge<T: Vector, S: Simd, const K: usize> {
    x: Plane<T>,
    /// The column that the first tap meets.
    left: isize,
    masks: [T::Mask<S>; K],
    ask: Ask,
}

impl<T: Vector, S: Simd, const K: usize> Meets<T, S> for Edge<T, S, K> {
    type Row = [T::Of<S>; K];

    #[inline(always)]
    unsafe fn row(&self, simd: S, y: isize) -> [T::Of<S>; K] {
        prefetch(self.x.first.wrapping_offset(self.ask.at(y)));
        let mut met = [T::splat(simd, T::ZERO); K];
        if let Some(row) = self.x.row(y) {
            for m in 0..K {
                let from = row.wrapping_offset(self.left + m as isize);
                // SAFETY: the masks cover what lies inside a row.
                met[m] = unsafe { T::load_masked(simd, from, self.masks[m]) };
            }
        }
        met
    }

    #[inline(always)]
    unsafe fn at(&self, row: Self::Row, m: usize) -> T::Of<S> {
        row[m]
    }
}

/// Registers of every second column.
struct Apart<T: Vector, S: Simd, const K: usize> {
    x: Plane<T>,
    /// The column that the first tap meets.
    left: isize,
    /// Of two registers of columns for each two taps.
    masks: [[T::Mask<S>; 2]; PAIRS],
    /// As in [`Column`].
    ahead: isize,
}

impl<T: Vector, S: Simd, const K: usize> Meets<T, S> for Apart<T, S, K> {
    type Row = [T::Of<S>; K];

    #[inline(always)]
    unsafe fn row(&self, simd: S, y: isize) -> [T::Of<S>; K] {
        self.x.prefetch(y + self.ahead, self.left);
        let mut met = [T::splat(simd, T::ZERO); K];
        if let Some(row) = self.x.row(y) {
            for m in (0..K).step_by(2) {
                let at = |half: usize| {
                    let place = self.left + (m + half * T::lanes::<S>()) as isize;
                    // SAFETY: the masks cover what lies inside a row.
                    unsafe {
                        T::load_masked(simd, row.wrapping_offset(place), self.masks[m / 2][half])
                    }
                };
                let [even, odd] = T::apart::<S, 2>([at(0), at(1)]);
                met[m] = even;
                if m + 1 < K {
                    met[m + 1] = odd;
                }
            }
        }
        met
    }

    #[inline(always)]
    unsafe fn at(&self, row: Self::Row, m: usize) -> T::Of<S> {
        row[m]
    }
}

impl<T: Vector> Plane<T> {
    /// Asks for what lies at (`y`, `x`): in this plane or, behind its last row, in the one that follows. Without this,
    /// half the time of 56 x 56 planes was waiting for memory (Zen 2, dw1).
    #[inline(always)]
    fn prefetch(&self, y: isize, x: isize) {
        prefetch(self.first.wrapping_offset(y * self.row + x));
    }
}

/// The outputs of a kernel.
#[derive(Clone, Copy)]
pub(super) struct Tiles<T> {
    /// The first plane of the input.
    pub x: Plane<T>,
    pub planes: Planes,
    pub window: Window,
    /// Rows and columns of a plane of the output.
    pub size: [usize; 2],
}

impl<T: Vector> Tiles<T> {
    /// Rows from one that is read to one that is asked for, in a register's columns. Of large planes, where tiles have
    /// met most lines, that only held the reads up (56 x 56 and 112 x 112 1.05 to 1.15 times as long, Zen 3).
    fn ahead<S: Simd>(&self) -> isize {
        if self.small::<S>() || self.window.stride == 2 { BAND as isize } else { 0 }
    }

    /// Whether all of a plane is computed before the next, which is asked for meanwhile: line by line, so that the CPU
    /// sees a pattern and the second-level cache has them before the first asks. Asking for rows of the same columns,
    /// each line waited in one of the first level's few buffers: 56 x 56 took 1.5 times as long (Sapphire Rapids).
    fn one_by_one<S: Simd>(&self) -> bool {
        let bytes = self.size[0] * self.size[1] * size_of::<T>();
        self.planes.far && self.small::<S>() && self.window.stride == 1 && bytes >= ASKED_FOR
    }

    /// Whether planes are taken by whole columns.
    fn small<S: Simd>(&self) -> bool {
        small::<T>(T::lanes::<S>(), self.window.stride, self.size)
    }

    /// The columns whose registers are whole and meet the input's rows inside.
    fn inner(&self, kernel: usize, lanes: usize) -> Range<usize> {
        let base = self.window.base[1];
        let first = base.min(0).unsigned_abs().next_multiple_of(lanes);
        let end = self.x.width as isize - (base + kernel as isize - 1).max(0);
        let registers = end.clamp(0, self.size[1] as isize) as usize / lanes;
        first..(registers * lanes).max(first)
    }
}

/// Runs a pass.
///
/// # Safety
///
/// The CPU has `I`. The pass's input can be read, and its weights or gradients, and what it makes can be written.
pub(super) unsafe fn run<T: Vector, I: Isa, const K: usize>(pass: &impl Pass<T, K>) {
    // SAFETY: the caller vouches for the CPU.
    let simd = unsafe { I::token() };
    let lanes = T::lanes::<I::Token>();
    let tiles = pass.tiles();
    let [height, width] = tiles.size;
    let small = tiles.small::<I::Token>();
    // The larger kernels are for small planes alone: `serves`.
    let columns = small || K > 3 || tiles.window.stride == 2;
    let inner = if columns { 0..0 } else { tiles.inner(K, lanes) };
    let band = if small { height.max(1) } else { BAND / tiles.window.stride };
    for first in (0..height).step_by(band) {
        let rows = first..(first + band).min(height);
        if !inner.is_empty() {
            simd.vectorize(Inner::<_, _, K> {
                pass,
                tiles,
                rows: rows.clone(),
                columns: inner.clone(),
            });
        }
        if inner.len() < width {
            simd.vectorize(Outer::<_, _, K> { pass, tiles, rows, inner: inner.clone() });
        }
    }
}

/// Some rows of all planes, but for the inner columns.
///
/// It is a function of its own, as [`Inner`] is: in one with the others nine sums had no room in the registers (1.2
/// times as long).
struct Outer<'a, T, P, const K: usize> {
    pass: &'a P,
    tiles: Tiles<T>,
    rows: Range<usize>,
    inner: Range<usize>,
}

impl<T: Vector, P: Pass<T, K>, const K: usize> WithSimd for Outer<'_, T, P, K> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { pass, tiles, rows, inner } = self;
        let (lanes, width) = (T::lanes::<S>(), tiles.size[1]);
        let mut state = pass.start(simd);
        let last = if P::REPEATS && width >= lanes { width - lanes } else { width };
        let count = tiles.planes.count;
        let together = if tiles.one_by_one::<S>() { 1 } else { count.max(1) };
        for first in (0..count).step_by(together) {
            for x in (0..width).step_by(lanes) {
                if inner.contains(&x) {
                    continue;
                }
                let (x, planes) = (x.min(last), first..(first + together).min(count));
                // SAFETY: `run`'s contract covers all planes; rows and columns are those of the output.
                unsafe {
                    if tiles.window.stride == 2 {
                        apart(simd, pass, &mut state, &tiles, planes, rows.clone(), x);
                    } else {
                        edge(simd, pass, &mut state, &tiles, planes, rows.clone(), x);
                    }
                }
            }
        }
        // SAFETY: `run`'s contract covers what the pass makes.
        unsafe { pass.finish(simd, state) };
    }
}

/// The inner columns of some rows of all planes, along the rows, so that memory is met in order.
struct Inner<'a, T, P, const K: usize> {
    pass: &'a P,
    tiles: Tiles<T>,
    rows: Range<usize>,
    columns: Range<usize>,
}

impl<T: Vector, P: Pass<T, K>, const K: usize> WithSimd for Inner<'_, T, P, K> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { pass, tiles, rows, columns } = self;
        let (lanes, base) = (T::lanes::<S>(), tiles.window.base);
        let whole = T::first(simd, lanes);
        let mut state = pass.start(simd);
        for plane in 0..tiles.planes.count {
            let input = tiles.planes.plane(&tiles.x, plane);
            // SAFETY: `run`'s contract covers the planes.
            unsafe { pass.plane(simd, &mut state, plane) };
            for y in rows.clone().step_by(PAIR) {
                let top = y as isize + base[0];
                let below = top + (PAIR + K) as isize - 1;
                let inside = y + PAIR <= rows.end && top >= 0 && below <= input.height as isize;
                for x in columns.clone().step_by(lanes) {
                    let left = x as isize + base[1];
                    // SAFETY: the registers lie inside the rows, and the rows inside the plane or beside its edge.
                    unsafe {
                        if !inside {
                            let rows = y..(y + PAIR).min(rows.end);
                            edge(simd, pass, &mut state, &tiles, plane..plane + 1, rows, x);
                            continue;
                        }
                        for row in 0..PAIR as isize {
                            input.prefetch(below + row, left);
                        }
                        let met = Inside { x: input, left };
                        let ahead = PAIR as isize;
                        let column =
                            Column { y, x, rows: PAIR, columns: whole, top, ahead, next: None };
                        pass.column::<S, 1>(simd, &mut state, column, &met);
                    }
                }
            }
        }
        // SAFETY: `run`'s contract covers what the pass makes.
        unsafe { pass.finish(simd, state) };
    }
}

/// Some rows of any register's columns, of some planes.
///
/// # Safety
///
/// As [`run`].
#[inline(always)]
unsafe fn edge<T: Vector, S: Simd, P: Pass<T, K>, const K: usize>(
    simd: S,
    pass: &P,
    state: &mut P::State<S>,
    tiles: &Tiles<T>,
    planes: Range<usize>,
    rows: Range<usize>,
    x: usize,
) {
    let base = tiles.window.base;
    let count = (tiles.size[1] - x).min(T::lanes::<S>());
    let left = x as isize + base[1];
    // Lanes without an output must not bring in what is not finite.
    let mut masks = [tiles.x.mask(simd, left, count); K];
    for m in 1..K {
        masks[m] = tiles.x.mask(simd, left + m as isize, count);
    }
    let (y, top) = (rows.start, rows.start as isize + base[0]);
    let ahead = tiles.ahead::<S>();
    let lanes = T::lanes::<S>();
    let next = tiles.one_by_one::<S>().then(|| x.div_ceil(lanes) * lanes * rows.len());
    let ask = match next {
        Some(next) => Ask { first: tiles.planes.step + next as isize, row: lanes as isize },
        None => Ask { first: ahead * tiles.x.row + left, row: tiles.x.row },
    };
    let columns = T::first(simd, count);
    let column = Column { y, x, rows: rows.len(), columns, top, ahead, next };
    for plane in planes {
        let met = Edge::<T, S, K> { x: tiles.planes.plane(&tiles.x, plane), left, masks, ask };
        // SAFETY: the masks cover what lies inside a row; the caller vouches for the rest.
        unsafe {
            pass.plane(simd, state, plane);
            pass.column::<S, 1>(simd, state, column, &met);
        }
    }
}

/// The same at stride 2.
///
/// # Safety
///
/// As [`run`].
#[inline(always)]
unsafe fn apart<T: Vector, S: Simd, P: Pass<T, K>, const K: usize>(
    simd: S,
    pass: &P,
    state: &mut P::State<S>,
    tiles: &Tiles<T>,
    planes: Range<usize>,
    rows: Range<usize>,
    x: usize,
) {
    let (lanes, base) = (T::lanes::<S>(), tiles.window.base);
    let count = (tiles.size[1] - x).min(lanes);
    let left = (2 * x) as isize + base[1];
    let halves = [(2 * count).min(lanes), (2 * count).saturating_sub(lanes)];
    let mut masks = [[tiles.x.mask(simd, left, 0); 2]; PAIRS];
    for pair in 0..K.div_ceil(2) {
        for half in 0..2 {
            let place = left + (2 * pair + half * lanes) as isize;
            masks[pair][half] = tiles.x.mask(simd, place, halves[half]);
        }
    }
    let (y, top) = (rows.start, (2 * rows.start) as isize + base[0]);
    let ahead = tiles.ahead::<S>();
    let columns = T::first(simd, count);
    let column = Column { y, x, rows: rows.len(), columns, top, ahead, next: None };
    for plane in planes {
        let met = Apart::<T, S, K> { x: tiles.planes.plane(&tiles.x, plane), left, masks, ahead };
        // SAFETY: the masks cover what lies inside a row; the caller vouches for the rest.
        unsafe {
            pass.plane(simd, state, plane);
            pass.column::<S, 2>(simd, state, column, &met);
        }
    }
}

/// Weights and bias of a plane, in every lane, and where its output lies.
pub(super) struct Output<T: Vector, S: Simd, const K: usize> {
    out: *mut T,
    /// Elements of the output from this plane on that are written after what is written now, or with it: none where
    /// what is there counts.
    room: usize,
    /// Whether what is there is added.
    onto: bool,
    bias: T::Of<S>,
    weights: [[T::Of<S>; K]; K],
}

impl<T: Vector, S: Simd, const K: usize> Output<T, S, K> {
    /// Adds what a row of the input, the one that kernel row `q` of the next output meets, makes of that output and of
    /// those that follow, `STEP` rows apart.
    ///
    /// # Safety
    ///
    /// What is met can be read.
    #[inline(always)]
    unsafe fn add<M: Meets<T, S>, const STEP: usize>(
        &self,
        simd: S,
        q: usize,
        (met, row): (&M, M::Row),
        acc: &mut [T::Of<S>; K],
    ) {
        for m in 0..K {
            // SAFETY: the caller vouches for what is met.
            let value = unsafe { met.at(row, m) };
            for d in 0..=(K - 1) / STEP {
                if d * STEP <= q {
                    acc[d] = T::mul_add(simd, value, self.weights[q - d * STEP][m], acc[d]);
                }
            }
        }
    }
}

/// The forward pass; with `ADD`, one output plane is the sum of what is made of all planes.
struct Forward<'a, T, const ADD: bool>(&'a Rows<T>);

/// Runs the forward pass.
///
/// # Safety
///
/// As [`run`].
pub(super) unsafe fn forward<T: Vector, I: Isa, const K: usize>(rows: &Rows<T>) {
    // SAFETY: the same contract.
    unsafe {
        match rows.add {
            false => run::<T, I, K>(&Forward::<T, false>(rows)),
            true => run::<T, I, K>(&Forward::<T, true>(rows)),
        }
    }
}

impl<T: Vector, const ADD: bool, const K: usize> Pass<T, K> for Forward<'_, T, ADD> {
    const REPEATS: bool = true;

    type State<S: Simd> = Output<T, S, K>;

    fn tiles(&self) -> Tiles<T> {
        let Rows { x, planes, window, size, .. } = *self.0;
        Tiles { x, planes, window, size }
    }

    #[inline(always)]
    fn start<S: Simd>(&self, simd: S) -> Output<T, S, K> {
        let zero = T::splat(simd, T::ZERO);
        Output { out: self.0.out, room: 0, onto: false, bias: zero, weights: [[zero; K]; K] }
    }

    #[inline(always)]
    unsafe fn plane<S: Simd>(&self, simd: S, state: &mut Output<T, S, K>, plane: usize) {
        let Rows { planes, window, weights, bias, out, size, .. } = *self.0;
        let len = size[0] * size[1];
        // Of large planes all have a band before any has the next: a plane may not write into the one behind it.
        let small = small::<T>(T::lanes::<S>(), window.stride, size);
        let with = if small { planes.count - plane } else { 1 };
        (state.out, state.room) = match ADD {
            true => (out, 0),
            false => (out.wrapping_add(plane * len), with * len),
        };
        state.onto = ADD && plane > 0;
        // SAFETY: the caller vouches for the plane, `rows`' contract for its weights and bias.
        unsafe {
            state.bias = T::splat(simd, if bias.is_null() { T::ZERO } else { *bias.add(plane) });
            state.weights = weights.splat(simd, plane);
        }
    }

    #[inline(always)]
    unsafe fn column<S: Simd, const STEP: usize>(
        &self,
        simd: S,
        state: &mut Output<T, S, K>,
        Column { y, x, rows, columns, top, next, .. }: Column<T::Mask<S>>,
        met: &impl Meets<T, S>,
    ) {
        let len = self.0.size[0] * self.0.size[1];
        // Not read anew for each row, behind what may lie anywhere.
        let (width, &mut Output { out, room, onto, .. }) = (self.0.size[1], &mut *state);
        // SAFETY: the caller vouches for what is met, and for rows and columns.
        unsafe {
            // What is there of an output, and of those below it that meet the same rows.
            let mut acc = [state.bias; K];
            for q in 0..K - STEP {
                let row = met.row(simd, top + q as isize);
                // One after the other, so that the sums stay in registers where this loop is not unrolled.
                for d in 0..=(K - 1) / STEP {
                    if d * STEP <= q {
                        for m in 0..K {
                            let weight = state.weights[q - d * STEP][m];
                            acc[d] = T::mul_add(simd, met.at(row, m), weight, acc[d]);
                        }
                    }
                }
            }
            for i in 0..rows {
                for q in K - STEP..K {
                    let row = met.row(simd, top + (i * STEP + q) as isize);
                    state.add::<_, STEP>(simd, q, (met, row), &mut acc);
                }
                let mut sum = acc[0];
                for d in 1..K {
                    acc[d - 1] = acc[d];
                }
                acc[(K - 1) / STEP] = state.bias;
                let at = (y + i) * width + x;
                if let Some(next) = next.filter(|_| !ADD) {
                    prefetch(out.wrapping_add(len + next + i * T::lanes::<S>()));
                }
                if ADD && onto {
                    sum = T::sum(simd, sum, T::load_first(simd, out.add(at), columns));
                }
                // What a narrow plane's register covers of the rows that follow is written after it.
                if at + T::lanes::<S>() <= room {
                    T::store::<S>(out.add(at), sum);
                } else {
                    T::store_first(simd, out.add(at), columns, sum);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, _: S, _: Output<T, S, K>) {}
}

/// All nine sums, and the plane of `dy`.
pub(super) struct Sums<T: Vector, S: Simd> {
    dy: Plane<T>,
    acc: [[T::Of<S>; 3]; 3],
}

impl<T: Vector, S: Simd> Sums<T, S> {
    /// Adds what an input row and the row of `dy` that meets it at kernel row `t` make.
    ///
    /// # Safety
    ///
    /// What is met can be read.
    #[inline(always)]
    unsafe fn add<M: Meets<T, S>>(
        &mut self,
        simd: S,
        t: usize,
        (met, row): (&M, M::Row),
        dy: T::Of<S>,
    ) {
        for m in 0..3 {
            // SAFETY: the caller vouches for what is met.
            self.acc[t][m] = T::mul_add(simd, dy, unsafe { met.at(row, m) }, self.acc[t][m]);
        }
    }
}

impl<T: Vector> Pass<T, 3> for RowSums<T> {
    const REPEATS: bool = false;

    type State<S: Simd> = Sums<T, S>;

    fn tiles(&self) -> Tiles<T> {
        let RowSums { x, planes, window, dy, .. } = *self;
        Tiles { x, planes, window, size: [dy.height, dy.width] }
    }

    #[inline(always)]
    fn start<S: Simd>(&self, simd: S) -> Sums<T, S> {
        Sums { dy: self.dy, acc: [[T::splat(simd, T::ZERO); 3]; 3] }
    }

    #[inline(always)]
    unsafe fn plane<S: Simd>(&self, _: S, state: &mut Sums<T, S>, plane: usize) {
        state.dy.first = self.dy.first.wrapping_offset(plane as isize * self.dy_step);
    }

    #[inline(always)]
    unsafe fn column<S: Simd, const STEP: usize>(
        &self,
        simd: S,
        state: &mut Sums<T, S>,
        Column { y, x, rows, columns, top, ahead, next }: Column<T::Mask<S>>,
        met: &impl Meets<T, S>,
    ) {
        let step = self.dy.row;
        let from = state.dy.first.wrapping_offset(y as isize * step + x as isize);
        // From the plane, or from the register.
        let (start, ask) = match next {
            Some(next) => {
                let first = self.dy_step + next as isize;
                (state.dy.first, Ask { first, row: T::lanes::<S>() as isize })
            }
            None => (from, Ask { first: ahead * step, row: step }),
        };
        let dy = |i: usize| {
            let row = from.wrapping_offset(i as isize * step);
            prefetch(start.wrapping_offset(ask.at(i as isize)));
            // SAFETY: the caller vouches for rows and columns.
            unsafe { T::load_first(simd, row, columns) }
        };
        // SAFETY: the caller vouches for what is met.
        unsafe {
            if STEP == 2 {
                let mut above = met.row(simd, top);
                for i in 0..rows {
                    let (dy, first) = (dy(i), top + (2 * i) as isize);
                    state.add(simd, 0, (met, above), dy);
                    state.add(simd, 1, (met, met.row(simd, first + 1)), dy);
                    above = met.row(simd, first + 2);
                    state.add(simd, 2, (met, above), dy);
                }
                return;
            }
            // The rows of `dy` that meet an input row, at each kernel row. At the ends some are none, which must not
            // meet what is not finite.
            let mut meets = [T::splat(simd, T::ZERO); 3];
            for i in 0..2 {
                meets = [if i < rows { dy(i) } else { meets[0] }, meets[0], meets[1]];
                let row = met.row(simd, top + i as isize);
                for t in 0..=i {
                    if i - t < rows {
                        state.add(simd, t, (met, row), meets[t]);
                    }
                }
            }
            for i in 2..rows {
                meets = [dy(i), meets[0], meets[1]];
                let row = met.row(simd, top + i as isize);
                for m in 0..3 {
                    let value = met.at(row, m);
                    for t in 0..3 {
                        state.acc[t][m] = T::mul_add(simd, meets[t], value, state.acc[t][m]);
                    }
                }
            }
            for i in rows.max(2)..rows + 2 {
                meets = [meets[0], meets[0], meets[1]];
                let row = met.row(simd, top + i as isize);
                for t in 1..3 {
                    if i - t < rows {
                        state.add(simd, t, (met, row), meets[t]);
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, simd: S, state: Sums<T, S>) {
        let [[a, b, c], [d, e, f], [g, h, i]] = state.acc;
        // SAFETY: the caller vouches for the sums.
        unsafe { T::add_sums(simd, self.sums, [a, b, c, d, e, f, g, h, i]) };
    }
}
