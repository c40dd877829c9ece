//! Packing and transforming tiles, piece after piece of the kernel: each row of the input is read once for
//! all positions, and the panel is written once.

mod together;

use super::{InputPiece, PackTiles, Places, SIDE, product_positions};
use crate::kernel::lanes::AHEAD;
use crate::kernel::simd::{Isa, MAX_LANES, Vector};
use crate::kernel::tile::prefetch;
use pulp::{Simd, WithSimd};
use std::hint::black_box;
use std::marker::PhantomData;
use std::ops::Range;
use together::{ElevenAtFour, FiveAtTwo, SevenAtTwo, ThreeAtTwo, shares, together};

/// Packs and transforms the tiles of one run, for all channels and pieces.
///
/// # Safety
///
/// As [`PackTiles`] says; the CPU has `I`.
pub(crate) unsafe fn pack_tiles<T: Vector, I: Isa>(p: &PackTiles<T>) {
    // SAFETY: the same contract; a CPU has the half of what it has.
    unsafe {
        // Half a register of tiles takes two thirds of a register's time (r2, d1 and c2 1.02 to 1.1 times as fast).
        if p.tiles <= T::lanes::<<I::Half as Isa>::Token>() {
            by_pieces::<T, I::Half>(p);
        } else {
            by_pieces::<T, I>(p);
        }
    }
}

/// # Safety
///
/// As [`pack_tiles`].
unsafe fn by_pieces<T: Vector, I: Isa>(p: &PackTiles<T>) {
    // SAFETY: the same contract.
    unsafe {
        if p.from_column == 1 {
            match p.columns.unit {
                2 if shares::<ThreeAtTwo, T>(p) => return together::<ThreeAtTwo, T, I>(p),
                2 if shares::<FiveAtTwo, T>(p) => return together::<FiveAtTwo, T, I>(p),
                2 if shares::<SevenAtTwo, T>(p) => return together::<SevenAtTwo, T, I>(p),
                4 if shares::<ElevenAtFour, T>(p) => return together::<ElevenAtFour, T, I>(p),
                _ => {}
            }
        }
        for (r, &rows) in p.rows.pieces.iter().enumerate() {
            for (c, &columns) in p.columns.pieces.iter().enumerate() {
                let places = &p.places[r * p.columns.pieces.len() + c];
                let piece = Piece::new(p, rows, columns, places);
                match piece.from_column {
                    1 => by_registers::<T, I, Every<2>>(p, &piece),
                    2 => by_registers::<T, I, Every<4>>(p, &piece),
                    4 => by_registers::<T, I, Every<8>>(p, &piece),
                    _ => by_registers::<T, I, Apart>(p, &piece),
                }
            }
        }
    }
}

/// How the columns of positions of a register of tiles are read.
trait Columns<T: Vector> {
    /// Which of them are inside the input.
    type Inside<S: Simd>: Copy;

    /// Those of `columns`, counted from the first tile's first one.
    fn inside<S: Simd>(simd: S, columns: Range<isize>) -> Self::Inside<S>;

    /// The four columns of each tile, the first tile's from `from` on; what is not inside counts as zero.
    ///
    /// # Safety
    ///
    /// What is inside can be read, and what lies between.
    unsafe fn read<S: Simd>(
        simd: S,
        from: *const T,
        step: isize,
        inside: &Self::Inside<S>,
    ) -> [T::Of<S>; SIDE];
}

/// Columns that lie `N / 2` apart: of those of `N` registers, the tiles' first and second ones.
struct Every<const N: usize>;

/// Columns at any distance.
struct Apart;

impl<T: Vector, const N: usize> Columns<T> for Every<N> {
    type Inside<S: Simd> = [[T::Mask<S>; N]; 2];

    #[inline(always)]
    fn inside<S: Simd>(simd: S, columns: Range<isize>) -> Self::Inside<S> {
        let step = const { N as isize / 2 };
        // None is read behind the last one.
        let inside = step * columns.start..step * (columns.end - 1) + 1;
        [masks::<T, S, N>(simd, 0, &inside), masks::<T, S, N>(simd, N as isize, &inside)]
    }

    #[inline(always)]
    unsafe fn read<S: Simd>(
        simd: S,
        from: *const T,
        _: isize,
        inside: &Self::Inside<S>,
    ) -> [T::Of<S>; SIDE] {
        // SAFETY: the caller vouches for the columns inside.
        let [first, next] = unsafe {
            [
                load::<T, S, N>(simd, from, &inside[0]),
                load::<T, S, N>(simd, from.wrapping_add(N), &inside[1]),
            ]
        };
        let (first, next) = (T::apart::<S, N>(first), T::apart::<S, N>(next));
        [first[0], first[N / 2], next[0], next[N / 2]]
    }
}

impl<T: Vector> Columns<T> for Apart {
    /// A bit for each column that the tiles meet.
    type Inside<S: Simd> = u64;

    #[inline(always)]
    fn inside<S: Simd>(_: S, columns: Range<isize>) -> u64 {
        let mut inside = 0;
        for column in 0..2 * (T::lanes::<S>() - 1) + SIDE {
            inside |= u64::from(columns.contains(&(column as isize))) << column;
        }
        inside
    }

    #[inline(always)]
    unsafe fn read<S: Simd>(
        simd: S,
        from: *const T,
        step: isize,
        inside: &u64,
    ) -> [T::Of<S>; SIDE] {
        let mut columns = [T::splat(simd, T::ZERO); SIDE];
        for j in 0..SIDE {
            let mut tiles = [T::ZERO; MAX_LANES];
            for n in 0..T::lanes::<S>() {
                let column = 2 * n + j;
                if inside & 1 << column != 0 {
                    // SAFETY: the caller vouches for the columns inside.
                    tiles[n] = unsafe { *from.wrapping_offset(column as isize * step) };
                }
            }
            // SAFETY: no register has more lanes than the array.
            columns[j] = unsafe { T::load::<S>(tiles.as_ptr()) };
        }
        columns
    }
}

/// The masks of registers that follow each other from element `first` on: their lanes in `inside`.
#[inline(always)]
fn masks<T: Vector, S: Simd, const N: usize>(
    simd: S,
    first: isize,
    inside: &Range<isize>,
) -> [T::Mask<S>; N] {
    let lanes = T::lanes::<S>() as isize;
    let mut masks = [T::mask(simd, 0, 0); N];
    for k in 0..N {
        let first = first + k as isize * lanes;
        let start = (inside.start - first).clamp(0, lanes);
        let end = (inside.end - first).clamp(0, lanes);
        masks[k] = T::mask(simd, start as usize, end as usize);
    }
    masks
}

/// Registers that follow each other from `from` on, zero in the lanes that are not `inside`.
///
/// # Safety
///
/// What is inside can be read.
#[inline(always)]
unsafe fn load<T: Vector, S: Simd, const N: usize>(
    simd: S,
    from: *const T,
    inside: &[T::Mask<S>; N],
) -> [T::Of<S>; N] {
    let mut registers = [T::splat(simd, T::ZERO); N];
    for k in 0..N {
        let from = from.wrapping_add(k * T::lanes::<S>());
        // SAFETY: the same contract.
        registers[k] = unsafe { T::load_masked(simd, from, inside[k]) };
    }
    registers
}

/// What of a run of tiles one piece of the kernel meets.
struct Piece<'a, T> {
    /// Position 0 of the first tile and channel.
    from: *const T,
    /// Elements from a row of positions to the next.
    from_row: isize,
    /// Elements from a column of positions to the next.
    from_column: isize,
    /// The rows inside the input, of [`SIDE`].
    rows: Range<usize>,
    /// The columns inside the input, of those that the tiles meet.
    columns: Range<usize>,
    taps: [usize; 2],
    places: &'a Places,
}

impl<'a, T: Vector> Piece<'a, T> {
    fn new(p: &PackTiles<T>, rows: InputPiece, columns: InputPiece, places: &'a Places) -> Self {
        let offset = rows.offset * p.from_row + columns.offset * p.from_column;
        Self {
            from: p.from.wrapping_offset(offset),
            from_row: p.rows.unit as isize * p.from_row,
            from_column: p.columns.unit as isize * p.from_column,
            rows: p.rows.positions(rows, SIDE),
            columns: p.columns.positions(columns, 2 * (p.tiles - 1) + SIDE),
            taps: [rows.taps, columns.taps],
            places,
        }
    }
}

/// A register of a run.
#[derive(Clone, Copy)]
struct Place {
    /// Its first lane in the strip.
    start: usize,
    /// The first of its tiles, counted from the run's.
    tile: isize,
    /// Its lanes before the run's: those have been written, and are left as they are.
    before: usize,
}

/// Calls `register` for each register of a run of so many `lanes`. Lanes behind the run's are written again by the
/// next run. The register lies within the strip, if need be with its first lanes before the run's.
#[inline(always)]
fn for_each_register<T>(p: &PackTiles<T>, lanes: usize, mut register: impl FnMut(Place)) {
    let mut done = 0;
    while done < p.tiles {
        let lane = p.lane + done;
        let start = lane.min(p.width - lanes);
        let tile = start as isize - p.lane as isize;
        register(Place { start, tile, before: lane - start });
        done = start + lanes - p.lane;
    }
}

/// # Safety
///
/// As [`pack_tiles`], for a piece whose columns lie as `C` reads them.
unsafe fn by_registers<T: Vector, I: Isa, C: Columns<T>>(p: &PackTiles<T>, piece: &Piece<T>) {
    // SAFETY: the caller vouches for the CPU.
    let simd = unsafe { I::token() };
    for_each_register(p, T::lanes::<I::Token>(), |place| match place.before {
        0 => simd.vectorize(Register::<T, C, true> { p, piece, place, columns: PhantomData }),
        _ => simd.vectorize(Register::<T, C, false> { p, piece, place, columns: PhantomData }),
    });
}

/// One register of tiles of a piece, for all channels, made under [`by_registers`]'s contract. `FIRST`: it has no lanes
/// before the run's.
struct Register<'a, T, C, const FIRST: bool> {
    p: &'a PackTiles<'a, T>,
    piece: &'a Piece<'a, T>,
    place: Place,
    columns: PhantomData<C>,
}

impl<T: Vector, C: Columns<T>, const FIRST: bool> WithSimd for Register<'_, T, C, FIRST> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { p, piece, place, .. } = self;
        let column = |column: usize| column as isize - 2 * place.tile;
        let columns = column(piece.columns.start)..column(piece.columns.end);
        let inside = C::inside(simd, columns);
        let mut from = piece.from.wrapping_offset(2 * place.tile * piece.from_column);
        let mut to = p.to.wrapping_add(place.start);
        let (rows, columns) = (product_positions(piece.taps[0]), product_positions(piece.taps[1]));
        let run = run_mask::<T, S>(simd, place.before);
        // What a step comes to next is too far away for the CPU to see a pattern.
        let ahead = AHEAD.div_ceil(SIDE) as isize * p.from_channel;
        let last = (2 * (T::lanes::<S>() - 1) + SIDE - 1) as isize * piece.from_column;
        let (inside_rows, from_row, from_column) =
            (piece.rows.clone(), piece.from_row, piece.from_column);
        for _ in 0..p.channels {
            // SAFETY: `by_registers`'s contract covers the positions and the lanes.
            unsafe {
                let mut d = [[T::splat(simd, T::ZERO); SIDE]; SIDE];
                for i in 0..SIDE {
                    // Rows without a product take no part in the others.
                    if rows.contains(&i) && inside_rows.contains(&i) {
                        let row = from.wrapping_offset(i as isize * from_row);
                        prefetch(row.wrapping_offset(ahead));
                        prefetch(row.wrapping_offset(ahead + last));
                        // By rows first: their columns are at hand.
                        d[i] = input::<T, S>(simd, C::read(simd, row, from_column, &inside));
                    }
                }
                for j in 0..SIDE {
                    if !columns.contains(&j) {
                        continue;
                    }
                    let column = input::<T, S>(simd, [d[0][j], d[1][j], d[2][j], d[3][j]]);
                    for i in 0..SIDE {
                        if rows.contains(&i) {
                            let to = to.wrapping_add(piece.places[i * SIDE + j]);
                            store::<T, S, FIRST>(simd, to, run, column[i]);
                        }
                    }
                }
            }
            from = from.wrapping_offset(p.from_channel);
            to = to.wrapping_add(p.width);
        }
    }
}

/// The lanes of a run, which `before` others come before. Seen through, a blend in memory becomes a masked store on
/// AVX2, which takes ten times as long.
#[inline(always)]
fn run_mask<T: Vector, S: Simd>(simd: S, before: usize) -> T::Mask<S> {
    black_box(T::mask(simd, before, T::lanes::<S>()))
}

/// Writes a register; without `FIRST`, the lanes of `run`.
///
/// # Safety
///
/// Those lanes can be written, and the others be read and written.
#[inline(always)]
unsafe fn store<T: Vector, S: Simd, const FIRST: bool>(
    simd: S,
    to: *mut T,
    run: T::Mask<S>,
    value: T::Of<S>,
) {
    // SAFETY: the same contract.
    unsafe {
        if FIRST {
            T::store::<S>(to, value);
        } else {
            T::store_blended(simd, to, run, value);
        }
    }
}

/// `B' d`.
#[inline(always)]
fn input<T: Vector, S: Simd>(simd: S, [a, b, c, d]: [T::Of<S>; SIDE]) -> [T::Of<S>; SIDE] {
    [
        T::difference(simd, a, c),
        T::sum(simd, b, c),
        T::difference(simd, c, b),
        T::difference(simd, b, d),
    ]
}
