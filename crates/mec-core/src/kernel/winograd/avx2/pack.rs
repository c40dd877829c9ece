//! Packing and transforming tiles, piece after piece of the kernel.

use super::LANES;
use super::together::{ElevenAtFour, FiveAtTwo, SevenAtTwo, ThreeAtTwo, shares, together};
use crate::kernel::avx2::{between, even, odd, quads};
use crate::kernel::lanes::AHEAD;
use crate::kernel::tile::prefetch;
use crate::kernel::winograd::{InputPiece, PackTiles, Places, SIDE, product_positions};
use std::arch::x86_64::*;
use std::hint::black_box;
use std::ops::Range;

/// Packs and transforms the tiles of one run, for all channels and pieces.
///
/// # Safety
///
/// As [`PackTiles`] says; the CPU has AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(crate) unsafe fn pack_tiles(p: &PackTiles<f32>) {
    // SAFETY: the same contract.
    unsafe {
        if p.from_column == 1 {
            match p.columns.unit {
                2 if shares::<ThreeAtTwo>(p) => return together::<ThreeAtTwo>(p),
                2 if shares::<FiveAtTwo>(p) => return together::<FiveAtTwo>(p),
                2 if shares::<SevenAtTwo>(p) => return together::<SevenAtTwo>(p),
                4 if shares::<ElevenAtFour>(p) => return together::<ElevenAtFour>(p),
                _ => {}
            }
        }
        for (r, &rows) in p.rows.pieces.iter().enumerate() {
            for (c, &columns) in p.columns.pieces.iter().enumerate() {
                let places = &p.places[r * p.columns.pieces.len() + c];
                let piece = Piece::new(p, rows, columns, places);
                match piece.from_column {
                    1 => by_registers::<Next>(p, &piece),
                    2 => by_registers::<Second>(p, &piece),
                    4 => by_registers::<Fourth>(p, &piece),
                    _ => by_registers::<Apart>(p, &piece),
                }
            }
        }
    }
}

/// How the columns of positions of 8 tiles are read.
trait Columns {
    /// Which of them are inside the input.
    type Inside: Copy;

    /// Those of `columns`, counted from the first tile's first one.
    fn inside(columns: Range<isize>) -> Self::Inside;

    /// The four columns of each tile, the first tile's from `from` on; what is not inside counts as zero.
    ///
    /// # Safety
    ///
    /// What is inside can be read, and what lies between; the CPU has AVX2 and FMA.
    unsafe fn read(from: *const f32, step: isize, inside: &Self::Inside) -> [__m256; SIDE];
}

/// Columns beside each other.
struct Next;

/// Every second column.
struct Second;

/// Every fourth column.
struct Fourth;

/// Columns at any distance.
struct Apart;

/// Columns that 8 tiles meet.
const COLUMNS: usize = 2 * (LANES - 1) + SIDE;

impl Columns for Next {
    type Inside = [__m256i; 4];

    #[inline(always)]
    fn inside(columns: Range<isize>) -> Self::Inside {
        masks([0, 8, 2, 10], &columns)
    }

    #[inline(always)]
    unsafe fn read(from: *const f32, _: isize, inside: &Self::Inside) -> [__m256; SIDE] {
        // SAFETY: the caller vouches for the columns inside and the CPU.
        unsafe {
            let a = _mm256_maskload_ps(from, inside[0]);
            let b = _mm256_maskload_ps(from.wrapping_add(8), inside[1]);
            let c = _mm256_maskload_ps(from.wrapping_add(2), inside[2]);
            let d = _mm256_maskload_ps(from.wrapping_add(10), inside[3]);
            [even(a, b), odd(a, b), even(c, d), odd(c, d)]
        }
    }
}

impl Columns for Second {
    type Inside = [__m256i; 8];

    #[inline(always)]
    fn inside(columns: Range<isize>) -> Self::Inside {
        // None is read behind the last one.
        masks([0, 8, 16, 24, 4, 12, 20, 28], &(2 * columns.start..2 * columns.end - 1))
    }

    #[inline(always)]
    unsafe fn read(from: *const f32, _: isize, inside: &Self::Inside) -> [__m256; SIDE] {
        // SAFETY: the caller vouches for the columns inside and the CPU.
        unsafe {
            let [a, b] = second(from, &[inside[0], inside[1], inside[2], inside[3]]);
            let [c, d] =
                second(from.wrapping_add(4), &[inside[4], inside[5], inside[6], inside[7]]);
            [a, b, c, d]
        }
    }
}

impl Columns for Fourth {
    type Inside = [__m256i; LANES + 1];

    #[inline(always)]
    fn inside(columns: Range<isize>) -> Self::Inside {
        let first = std::array::from_fn(|tile| 8 * tile as isize);
        masks(first, &(4 * columns.start..4 * columns.end - 3))
    }

    #[inline(always)]
    unsafe fn read(from: *const f32, _: isize, inside: &Self::Inside) -> [__m256; SIDE] {
        // SAFETY: the caller vouches for the columns inside and the CPU.
        unsafe {
            // Lanes 0 and 4: a tile's first two columns, which are the last two of the tile before.
            let mut tiles = [_mm256_setzero_ps(); LANES + 1];
            for n in 0..=LANES {
                tiles[n] = _mm256_maskload_ps(from.wrapping_add(8 * n), inside[n]);
            }
            let [t, u, v, w, x, y, z, a, b] = tiles;
            let [c, d] = halves([t, u, v, w], [x, y, z, a]);
            let [e, f] = halves([u, v, w, x], [y, z, a, b]);
            [c, d, e, f]
        }
    }
}

/// Lane 0 of each register, and lane 4.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn halves(low: [__m256; 4], high: [__m256; 4]) -> [__m256; 2] {
    let ([a, ..], [b, ..]) = (quads(low), quads(high));
    [_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b)]
}

impl Columns for Apart {
    /// A bit for each column.
    type Inside = u32;

    #[inline(always)]
    fn inside(columns: Range<isize>) -> u32 {
        let bit = |column: usize| u32::from(columns.contains(&(column as isize))) << column;
        (0..COLUMNS).map(bit).sum()
    }

    #[inline(always)]
    unsafe fn read(from: *const f32, step: isize, inside: &u32) -> [__m256; SIDE] {
        let one = |column: usize| match inside & 1 << column {
            0 => 0.0,
            // SAFETY: the caller vouches for the columns inside.
            _ => unsafe { *from.wrapping_offset(column as isize * step) },
        };
        let column = |j: usize| {
            let tile = |n: usize| one(2 * n + j);
            // SAFETY: the caller vouches for the CPU.
            unsafe {
                _mm256_setr_ps(
                    tile(0),
                    tile(1),
                    tile(2),
                    tile(3),
                    tile(4),
                    tile(5),
                    tile(6),
                    tile(7),
                )
            }
        };
        [column(0), column(1), column(2), column(3)]
    }
}

/// Of elements from `from` on, numbers 0, 4, 8, ... and numbers 2, 6, 10, ...
///
/// # Safety
///
/// What is `inside` can be read; the CPU has AVX2 and FMA.
#[inline(always)]
unsafe fn second(from: *const f32, inside: &[__m256i; 4]) -> [__m256; 2] {
    // SAFETY: the caller vouches for the elements and the CPU.
    unsafe {
        let a = _mm256_maskload_ps(from, inside[0]);
        let b = _mm256_maskload_ps(from.wrapping_add(8), inside[1]);
        let c = _mm256_maskload_ps(from.wrapping_add(16), inside[2]);
        let d = _mm256_maskload_ps(from.wrapping_add(24), inside[3]);
        let (low, high) = (_mm256_shuffle_ps::<0x88>(a, b), _mm256_shuffle_ps::<0x88>(c, d));
        // They come in the order 0, 2, 4, 6, 1, 3, 5, 7.
        let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        [
            _mm256_permutevar8x32_ps(_mm256_shuffle_ps::<0x88>(low, high), order),
            _mm256_permutevar8x32_ps(_mm256_shuffle_ps::<0xdd>(low, high), order),
        ]
    }
}

/// The masks of registers that begin at the elements `first`: their lanes in `inside`.
#[inline(always)]
pub(super) fn masks<const N: usize>(first: [isize; N], inside: &Range<isize>) -> [__m256i; N] {
    first.map(|first| {
        let lane = |at: isize| (at - first).clamp(0, LANES as isize) as usize;
        // SAFETY: registers are masked where the CPU has AVX2.
        unsafe { between(lane(inside.start), lane(inside.end)) }
    })
}

/// What of a run of tiles one piece of the kernel meets.
struct Piece<'a> {
    /// Position 0 of the first tile and channel.
    from: *const f32,
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

impl<'a> Piece<'a> {
    fn new(p: &PackTiles<f32>, rows: InputPiece, columns: InputPiece, places: &'a Places) -> Self {
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

/// Calls `register` with the first lane of each register of a run, the first of its tiles, counted from the run's,
/// and its lanes before the run's. Lanes behind the run's are written again by the next, those before it are left
/// as they are. The register lies within the strip, if need be with its first lanes before the run's.
#[inline(always)]
pub(super) fn for_each_register(p: &PackTiles<f32>, mut register: impl FnMut(usize, isize, usize)) {
    let mut done = 0;
    while done < p.tiles {
        let lane = p.lane + done;
        let start = lane.min(p.width - LANES);
        register(start, start as isize - p.lane as isize, lane - start);
        done = start + LANES - p.lane;
    }
}

/// # Safety
///
/// As [`pack_tiles`], for a piece whose columns lie as `C` reads them.
#[target_feature(enable = "avx2,fma")]
unsafe fn by_registers<C: Columns>(p: &PackTiles<f32>, piece: &Piece) {
    for_each_register(p, |start, tile, before| {
        let column = |column: usize| column as isize - 2 * tile;
        let inside = C::inside(column(piece.columns.start)..column(piece.columns.end));
        // SAFETY: the caller vouches for the run; the columns read are those inside.
        unsafe {
            match before {
                0 => register::<C, true>(p, piece, (start, tile, 0), inside),
                _ => register::<C, false>(p, piece, (start, tile, before), inside),
            }
        }
    });
}

/// One register of tiles, for all channels: its first lane, the first of its tiles, counted from the run's, and
/// its lanes before the run's.
///
/// # Safety
///
/// As [`by_registers`]; only columns `inside` are read. Without `FIRST` the lanes before the run's, which must have
/// been written, are left as they are.
#[target_feature(enable = "avx2,fma")]
unsafe fn register<C: Columns, const FIRST: bool>(
    p: &PackTiles<f32>,
    piece: &Piece,
    (start, tile, before): (usize, isize, usize),
    inside: C::Inside,
) {
    let mut from = piece.from.wrapping_offset(2 * tile * piece.from_column);
    let mut to = p.to.wrapping_add(start);
    let [rows, columns] = piece.taps.map(product_positions);
    let held = held(before);
    // What a step comes to next is too far away for the CPU to see a pattern.
    let ahead = AHEAD.div_ceil(SIDE) as isize * p.from_channel;
    let last = (COLUMNS - 1) as isize * piece.from_column;
    for _ in 0..p.channels {
        // SAFETY: the caller vouches for the positions and the lanes.
        unsafe {
            let mut d = [[_mm256_setzero_ps(); SIDE]; SIDE];
            for i in 0..SIDE {
                // Rows without a product take no part in the others.
                if rows.contains(&i) && piece.rows.contains(&i) {
                    let row = from.wrapping_offset(i as isize * piece.from_row);
                    prefetch(row.wrapping_offset(ahead));
                    prefetch(row.wrapping_offset(ahead + last));
                    // By rows first: their columns are at hand.
                    d[i] = input(C::read(row, piece.from_column, &inside));
                }
            }
            for j in 0..SIDE {
                if !columns.contains(&j) {
                    continue;
                }
                let column = input([d[0][j], d[1][j], d[2][j], d[3][j]]);
                for i in 0..SIDE {
                    if rows.contains(&i) {
                        store::<FIRST>(
                            to.wrapping_add(piece.places[i * SIDE + j]),
                            held,
                            column[i],
                        );
                    }
                }
            }
        }
        from = from.wrapping_offset(p.from_channel);
        to = to.wrapping_add(p.width);
    }
}

/// The first `before` lanes. Seen through, a blend in memory becomes a masked store, which takes ten times as long.
#[inline(always)]
pub(super) fn held(before: usize) -> __m256 {
    // SAFETY: registers are written where the CPU has AVX2.
    black_box(unsafe { _mm256_castsi256_ps(between(0, before)) })
}

/// Writes a register; without `FIRST`, all lanes but those `held`.
///
/// # Safety
///
/// The lanes can be written, and those held be read; the CPU has AVX2.
#[inline(always)]
pub(super) unsafe fn store<const FIRST: bool>(to: *mut f32, held: __m256, value: __m256) {
    // SAFETY: the caller vouches for the lanes and the CPU.
    unsafe {
        if FIRST {
            _mm256_storeu_ps(to, value);
        } else {
            let beside = _mm256_and_ps(held, _mm256_loadu_ps(to));
            _mm256_storeu_ps(to, _mm256_or_ps(beside, _mm256_andnot_ps(held, value)));
        }
    }
}

/// `B' d`.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn input([a, b, c, d]: [__m256; SIDE]) -> [__m256; SIDE] {
    [_mm256_sub_ps(a, c), _mm256_add_ps(b, c), _mm256_sub_ps(c, b), _mm256_sub_ps(b, d)]
}
