//! Packing and transforming tiles for all pieces of a kernel at a stride at once.

use super::{Place, for_each_register, load, masks, run_mask, store};
use crate::kernel::LINE;
use crate::kernel::lanes::AHEAD;
use crate::kernel::simd::{Isa, MAX_LANES, Vector};
use crate::kernel::tile::prefetch;
use crate::kernel::winograd::{PackTiles, SIDE, product_positions};
use pulp::{Simd, WithSimd};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

/// The columns of a kernel at a stride, known when compiled: each row of the input is read once for all pieces, and
/// rows are added up before their columns are told apart. Packing r2 takes half the instructions that piece after
/// piece takes, and two thirds of the time (Zen 3); with the columns known at run time it took as long as before.
pub(super) trait Together {
    /// Columns of the input from a position of a tile to the next: 2 or 4.
    const STEP: usize;
    /// The pieces: offset and taps of each [`InputPiece`](crate::kernel::InputPiece).
    const PIECES: &'static [(isize, usize)];
}

/// 3 columns at stride 2.
pub(super) struct ThreeAtTwo;

impl Together for ThreeAtTwo {
    const STEP: usize = 2;
    const PIECES: &'static [(isize, usize)] = &[(0, 2), (-1, 1)];
}

/// 5 columns at stride 2.
pub(super) struct FiveAtTwo;

impl Together for FiveAtTwo {
    const STEP: usize = 2;
    const PIECES: &'static [(isize, usize)] = &[(0, 3), (1, 2)];
}

/// 7 columns at stride 2.
pub(super) struct SevenAtTwo;

impl Together for SevenAtTwo {
    const STEP: usize = 2;
    const PIECES: &'static [(isize, usize)] = &[(1, 3), (0, 2), (4, 2)];
}

/// 11 columns at stride 4.
pub(super) struct ElevenAtFour;

impl Together for ElevenAtFour {
    const STEP: usize = 4;
    const PIECES: &'static [(isize, usize)] = &[(0, 3), (1, 3), (2, 3), (3, 2)];
}

/// Whether the columns of the kernel are those of `K`.
pub(super) fn shares<K: Together, T>(p: &PackTiles<T>) -> bool {
    p.columns.pieces.iter().map(|piece| (piece.offset, piece.taps)).eq(K::PIECES.iter().copied())
}

/// Tiles behind a register's own that its last columns reach into.
const BEHIND: usize = 2;

/// Most registers of a row that a register of tiles and [`BEHIND`] more meet: of two lanes, at the largest step.
const MOST_READ: usize = 16;

/// Columns that a tile meets, at the largest step.
const MOST_COLUMNS: usize = 16;

/// Most rows of positions with products: four pieces', at stride 4.
const MOST_ROWS: usize = 16;

/// A row of positions: the sum or difference of two rows of the input.
#[derive(Clone, Copy)]
struct Row<T> {
    /// The rows in the first channel.
    from: [*const T; 2],
    /// Elements to the next channel.
    channel: [isize; 2],
    /// What the second row is multiplied by before it is added.
    sign: T,
    /// Where the positions of this row go, in the places of the first piece of columns.
    places: *const usize,
}

/// Packs and transforms the tiles of one run for all channels and pieces of a kernel at a stride.
///
/// # Safety
///
/// As [`pack_tiles`](super::pack_tiles), for columns that lie beside each other and are those of `K`.
pub(super) unsafe fn together<K: Together, T: Vector, I: Isa>(p: &PackTiles<T>) {
    // Rows outside the input, of as many elements as all registers that are read have.
    static ZEROS: [u64; MOST_READ * MAX_LANES] = [0; MOST_READ * MAX_LANES];
    // SAFETY: the caller vouches for the CPU.
    let simd = unsafe { I::token() };
    for_each_register(p, T::lanes::<I::Token>(), |place| {
        let first = (2 * K::STEP) as isize * place.tile;
        let mut rows = [const { MaybeUninit::uninit() }; MOST_ROWS];
        let mut count = 0;
        for (r, piece) in p.rows.pieces.iter().enumerate() {
            let row = |i: usize| {
                let y = piece.offset + (i * p.rows.unit) as isize;
                match p.rows.inside.contains(&y) {
                    true => (p.from.wrapping_offset(y * p.from_row + first), p.from_channel),
                    false => (ZEROS.as_ptr().cast(), 0),
                }
            };
            for i in product_positions(piece.taps) {
                let [a, b] = [[0, 2], [1, 2], [2, 1], [1, 3]][i].map(row);
                rows[count].write(Row {
                    from: [a.0, b.0],
                    channel: [a.1, b.1],
                    sign: if i == 1 { T::ONE } else { T::MINUS_ONE },
                    places: p.places[r * K::PIECES.len()..].as_flattened()[i * SIDE..].as_ptr(),
                });
                count += 1;
            }
        }
        // SAFETY: the first rows are written.
        let rows = unsafe { &*(&raw const rows[..count] as *const [Row<T>]) };
        let columns = p.columns.inside.start - first..p.columns.inside.end - first;
        let kernel = PhantomData::<K>;
        match place.before {
            0 => simd.vectorize(Register::<_, _, true> { p, rows, place, columns, kernel }),
            _ => simd.vectorize(Register::<_, _, false> { p, rows, place, columns, kernel }),
        }
    });
}

/// One register of tiles, for all channels, made under [`together`]'s contract. `FIRST`: it has no lanes before the
/// run's.
struct Register<'a, T, K, const FIRST: bool> {
    p: &'a PackTiles<'a, T>,
    rows: &'a [Row<T>],
    place: Place,
    /// The columns inside the input, counted from the first one that the first tile meets.
    columns: Range<isize>,
    kernel: PhantomData<K>,
}

impl<T: Vector, K: Together, const FIRST: bool> WithSimd for Register<'_, T, K, FIRST> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { p, rows, place, ref columns, .. } = self;
        let lanes = T::lanes::<S>();
        let read = const { 2 * K::STEP } + (2 * K::STEP * BEHIND).div_ceil(lanes);
        let inside = masks::<T, S, MOST_READ>(simd, 0, columns);
        let run = run_mask::<T, S>(simd, place.before);
        let mut to = p.to.wrapping_add(place.start);
        let ahead = AHEAD.div_ceil(SIDE) as isize;
        for channel in 0..p.channels as isize {
            for row in rows {
                // SAFETY: `together`'s contract covers the columns and the lanes.
                unsafe {
                    let a = row.from[0].wrapping_offset(channel * row.channel[0]);
                    let b = row.from[1].wrapping_offset(channel * row.channel[1]);
                    let next = a.wrapping_offset(ahead * row.channel[0]);
                    for line in (0..lanes * read).step_by(LINE / size_of::<T>()) {
                        prefetch(next.wrapping_add(line));
                    }
                    let sign = T::splat(simd, row.sign);
                    let mut sums = [T::splat(simd, T::ZERO); MOST_READ];
                    for k in 0..read {
                        let [a] = load::<T, S, 1>(simd, a.wrapping_add(lanes * k), &[inside[k]]);
                        let [b] = load::<T, S, 1>(simd, b.wrapping_add(lanes * k), &[inside[k]]);
                        sums[k] = T::mul_add(simd, b, sign, a);
                    }
                    let columns = columns_apart::<K, T, S>(simd, &sums);
                    for (n, &(offset, taps)) in K::PIECES.iter().enumerate() {
                        let d = |j: usize| columns[(offset + (j * K::STEP) as isize) as usize];
                        let store = |j: usize, value| {
                            let place = *row.places.add(n * SIDE * SIDE + j);
                            store::<T, S, FIRST>(simd, to.wrapping_add(place), run, value);
                        };
                        let (b, c) = (d(1), d(2));
                        if taps > 1 {
                            store(0, T::difference(simd, d(0), c));
                        }
                        store(1, T::sum(simd, b, c));
                        store(2, T::difference(simd, c, b));
                        if taps > 2 {
                            store(3, T::difference(simd, b, d(3)));
                        }
                    }
                }
            }
            to = to.wrapping_add(p.width);
        }
    }
}

/// Tells the columns of a register of tiles apart that lie `2 * STEP` columns from each other, of a row with
/// [`BEHIND`] tiles more: lane `n` of column `k` is column `k` of tile `n`.
#[inline(always)]
fn columns_apart<K: Together, T: Vector, S: Simd>(
    simd: S,
    row: &[T::Of<S>; MOST_READ],
) -> [T::Of<S>; MOST_COLUMNS] {
    let pitch = const { 2 * K::STEP };
    let mut columns = [T::splat(simd, T::ZERO); MOST_COLUMNS];
    if K::STEP == 2 {
        let first = T::apart::<S, 4>([row[0], row[1], row[2], row[3]]);
        columns[..4].copy_from_slice(&first);
    } else {
        let first = [row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7]];
        columns[..8].copy_from_slice(&T::apart::<S, 8>(first));
    }
    // Column `k` of the next tile is the same tile's column further on.
    let mut behind = [T::ZERO; MOST_COLUMNS];
    let lanes = T::lanes::<S>();
    for k in 0..(pitch * BEHIND).div_ceil(lanes) {
        // SAFETY: the array has room for the registers of two tiles.
        unsafe { T::store::<S>(behind.as_mut_ptr().add(lanes * k), row[pitch + k]) };
    }
    for k in pitch..MOST_COLUMNS {
        columns[k] = T::shifted::<S>(columns[k - pitch], behind[k - pitch]);
    }
    columns
}
