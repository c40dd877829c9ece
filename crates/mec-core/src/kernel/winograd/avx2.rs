//! What AVX2 does by its own instructions for Winograd's filtering: inputs are packed and transformed in
//! one pass, and weights come into the lanes by transposing.

use super::{
    InputPiece, KernelPiece, PackTiles, Places, SIDE, TransformWeights, product_positions,
    taps_before, transform_piece,
};
use crate::kernel::avx2::{between, even, odd, quads, transposed};
use crate::kernel::lanes::AHEAD;
use crate::kernel::simd::Avx2;
use crate::kernel::tile::prefetch;
use std::arch::x86_64::*;
use std::hint::black_box;
use std::iter;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Lanes of a register.
const LANES: usize = 8;

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
fn masks<const N: usize>(first: [isize; N], inside: &Range<isize>) -> [__m256i; N] {
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
fn for_each_register(p: &PackTiles<f32>, mut register: impl FnMut(usize, isize, usize)) {
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
fn held(before: usize) -> __m256 {
    // SAFETY: registers are written where the CPU has AVX2.
    black_box(unsafe { _mm256_castsi256_ps(between(0, before)) })
}

/// Writes a register; without `FIRST`, all lanes but those `held`.
///
/// # Safety
///
/// The lanes can be written, and those held be read; the CPU has AVX2.
#[inline(always)]
unsafe fn store<const FIRST: bool>(to: *mut f32, held: __m256, value: __m256) {
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

/// The columns of a kernel at a stride, known when compiled: each row of the input is read once for all pieces, and
/// rows are added up before their columns are told apart. Packing r2 takes half the instructions that piece after
/// piece takes, and two thirds of the time (Zen 3); with the columns known at run time it took as long as before.
trait Together {
    /// Columns of the input from a position of a tile to the next: 2 or 4.
    const STEP: usize;
    /// The pieces, as [`InputPiece`] has them: offset and taps.
    const PIECES: &'static [(isize, usize)];
}

/// 3 columns at stride 2.
struct ThreeAtTwo;

impl Together for ThreeAtTwo {
    const STEP: usize = 2;
    const PIECES: &'static [(isize, usize)] = &[(0, 2), (-1, 1)];
}

/// 5 columns at stride 2.
struct FiveAtTwo;

impl Together for FiveAtTwo {
    const STEP: usize = 2;
    const PIECES: &'static [(isize, usize)] = &[(0, 3), (1, 2)];
}

/// 7 columns at stride 2.
struct SevenAtTwo;

impl Together for SevenAtTwo {
    const STEP: usize = 2;
    const PIECES: &'static [(isize, usize)] = &[(1, 3), (0, 2), (4, 2)];
}

/// 11 columns at stride 4.
struct ElevenAtFour;

impl Together for ElevenAtFour {
    const STEP: usize = 4;
    const PIECES: &'static [(isize, usize)] = &[(0, 3), (1, 3), (2, 3), (3, 2)];
}

/// Whether the columns of the kernel are those of `K`.
fn shares<K: Together>(p: &PackTiles<f32>) -> bool {
    p.columns.pieces.iter().map(|piece| (piece.offset, piece.taps)).eq(K::PIECES.iter().copied())
}

/// Registers of a row that 8 tiles meet, and the two tiles behind them, at the largest step.
const MOST_READ: usize = 10;

/// Columns that a tile meets, at the largest step.
const MOST_COLUMNS: usize = 16;

/// Most rows of positions with products: four pieces', at stride 4.
const MOST_ROWS: usize = 16;

/// A row of positions: the sum or difference of two rows of the input.
#[derive(Clone, Copy)]
struct Row {
    /// The rows in the first channel.
    from: [*const f32; 2],
    /// Elements to the next channel.
    channel: [isize; 2],
    /// What the second row is multiplied by before it is added.
    sign: f32,
    /// Where the positions of this row go, in the places of the first piece of columns.
    places: *const usize,
}

/// Packs and transforms the tiles of one run for all channels and pieces of a kernel at a stride.
///
/// # Safety
///
/// As [`pack_tiles`], for columns that lie beside each other and are those of `K`.
#[target_feature(enable = "avx2,fma")]
unsafe fn together<K: Together>(p: &PackTiles<f32>) {
    // Rows outside the input.
    static ZEROS: [f32; MOST_READ * LANES] = [0.0; MOST_READ * LANES];
    for_each_register(p, |start, tile, before| {
        let first = (2 * K::STEP) as isize * tile;
        let inside = p.columns.inside.start - first..p.columns.inside.end - first;
        let inside = masks(std::array::from_fn(|k| (LANES * k) as isize), &inside);
        let mut rows = [const { MaybeUninit::uninit() }; MOST_ROWS];
        let mut count = 0;
        for (r, piece) in p.rows.pieces.iter().enumerate() {
            let row = |i: usize| {
                let y = piece.offset + (i * p.rows.unit) as isize;
                match p.rows.inside.contains(&y) {
                    true => (p.from.wrapping_offset(y * p.from_row + first), p.from_channel),
                    false => (ZEROS.as_ptr(), 0),
                }
            };
            for i in product_positions(piece.taps) {
                let [a, b] = [[0, 2], [1, 2], [2, 1], [1, 3]][i].map(row);
                rows[count].write(Row {
                    from: [a.0, b.0],
                    channel: [a.1, b.1],
                    sign: if i == 1 { 1.0 } else { -1.0 },
                    places: &raw const p.places[r * K::PIECES.len()][i * SIDE],
                });
                count += 1;
            }
        }
        // SAFETY: the caller vouches for the run; the columns read are those inside, the first rows are written.
        unsafe {
            let rows = &*(&raw const rows[..count] as *const [Row]);
            match before {
                0 => register_together::<K, true>(p, rows, (start, 0), &inside),
                _ => register_together::<K, false>(p, rows, (start, before), &inside),
            }
        }
    });
}

/// One register of tiles, for all channels: its first lane, and its lanes before the run's.
///
/// # Safety
///
/// As [`together`], and as [`register`] says.
#[target_feature(enable = "avx2,fma")]
unsafe fn register_together<K: Together, const FIRST: bool>(
    p: &PackTiles<f32>,
    rows: &[Row],
    (start, before): (usize, usize),
    inside: &[__m256i; MOST_READ],
) {
    let read = const { 2 * K::STEP + K::STEP / 2 };
    let mut to = p.to.wrapping_add(start);
    let held = held(before);
    let ahead = AHEAD.div_ceil(SIDE) as isize;
    for channel in 0..p.channels as isize {
        for row in rows {
            let from = [0, 1].map(|n| row.from[n].wrapping_offset(channel * row.channel[n]));
            // SAFETY: the caller vouches for the columns and the lanes.
            unsafe {
                let next = from[0].wrapping_offset(ahead * row.channel[0]);
                for line in (0..LANES * read).step_by(16) {
                    prefetch(next.wrapping_add(line));
                }
                let sign = _mm256_set1_ps(row.sign);
                let mut sums = [_mm256_setzero_ps(); MOST_READ];
                for k in 0..read {
                    let [a, b] =
                        from.map(|row| _mm256_maskload_ps(row.wrapping_add(LANES * k), inside[k]));
                    sums[k] = _mm256_fmadd_ps(b, sign, a);
                }
                let columns = columns_apart::<K>(&sums);
                for (n, &(offset, taps)) in K::PIECES.iter().enumerate() {
                    let d = |j: usize| columns[(offset + (j * K::STEP) as isize) as usize];
                    let store = |j: usize, value| {
                        let place = *row.places.add(n * SIDE * SIDE + j);
                        store::<FIRST>(to.wrapping_add(place), held, value);
                    };
                    let (b, c) = (d(1), d(2));
                    if taps > 1 {
                        store(0, _mm256_sub_ps(d(0), c));
                    }
                    store(1, _mm256_add_ps(b, c));
                    store(2, _mm256_sub_ps(c, b));
                    if taps > 2 {
                        store(3, _mm256_sub_ps(b, d(3)));
                    }
                }
            }
        }
        to = to.wrapping_add(p.width);
    }
}

/// Tells the columns of 8 tiles apart that lie `2 * STEP` columns from each other, of a row with two tiles more:
/// lane `n` of column `k` is column `k` of tile `n`.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn columns_apart<K: Together>(row: &[__m256; MOST_READ]) -> [__m256; MOST_COLUMNS] {
    let pitch = const { 2 * K::STEP };
    let mut columns = [_mm256_setzero_ps(); MOST_COLUMNS];
    if K::STEP == 2 {
        let [a, b, c, d] = [row[0], row[1], row[2], row[3]];
        let first = quads([
            _mm256_permute2f128_ps::<0x20>(a, c),
            _mm256_permute2f128_ps::<0x31>(a, c),
            _mm256_permute2f128_ps::<0x20>(b, d),
            _mm256_permute2f128_ps::<0x31>(b, d),
        ]);
        columns[..4].copy_from_slice(&first);
    } else {
        let first = transposed(std::array::from_fn(|k| row[k]));
        columns[..8].copy_from_slice(&first);
    }
    let mut behind = [0.0; MOST_COLUMNS];
    for k in 0..K::STEP / 2 {
        // SAFETY: the array has room for the registers of two tiles.
        unsafe { _mm256_storeu_ps(behind.as_mut_ptr().add(LANES * k), row[pitch + k]) };
    }
    // Column `k` of the next tile is the same tile's column further on.
    for k in pitch..MOST_COLUMNS {
        let (column, of) = (columns[k % pitch], k % pitch);
        let two = _mm_setr_ps(behind[of], behind[pitch + of], 0.0, 0.0);
        let high = _mm256_permute2f128_ps::<0x21>(column, _mm256_castps128_ps256(two));
        let [low, high] = [column, high].map(|half| _mm256_castps_si256(half));
        columns[k] = _mm256_castsi256_ps(match k / pitch {
            1 => _mm256_alignr_epi8::<4>(high, low),
            _ => _mm256_alignr_epi8::<8>(high, low),
        });
    }
    columns
}

/// `B' d`.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn input([a, b, c, d]: [__m256; SIDE]) -> [__m256; SIDE] {
    [_mm256_sub_ps(a, c), _mm256_add_ps(b, c), _mm256_sub_ps(c, b), _mm256_sub_ps(b, d)]
}

/// As [`transform_piece`] of each piece, but that the elements of a kernel row are read together where they lie
/// close enough, and brought into the lanes by transposing: half the time.
///
/// # Safety
///
/// As [`super::transform_weights`]; the CPU has AVX2 and FMA. At each position pieces follow each other, and a register
/// that is not whole reaches into the next piece's first one, which is written later.
#[target_feature(enable = "avx2,fma")]
pub(crate) unsafe fn transform_weights(t: &TransformWeights<f32>) {
    // SAFETY: the same contract.
    unsafe {
        let taps = t.pieces.iter().map(|piece| piece.taps);
        let three = t.apart == [2, 2] && taps.eq([[2, 1], [2, 2], [1, 2], [1, 1]]);
        match t.steps {
            [rows, 1] if three && rows != 0 => at_stride_2::<1>(t),
            [rows, -1] if three && rows != 0 => at_stride_2::<-1>(t),
            _ => t.pieces.iter().for_each(|piece| one_piece(t, piece)),
        }
    }
}

/// # Safety
///
/// As [`transform_weights`].
#[target_feature(enable = "avx2,fma")]
unsafe fn one_piece(t: &TransformWeights<f32>, piece: &KernelPiece) {
    let row = t.apart[0] as isize * t.steps[0];
    let column = t.apart[1] as isize * t.steps[1];
    // SAFETY: the same contract.
    unsafe {
        match (piece.taps, column) {
            ([1, 1], _) => by_rows::<1, 1, 1>(t, piece),
            ([1, 2], 1) => by_rows::<1, 2, 1>(t, piece),
            ([1, 2], -1) => by_rows::<1, 2, -1>(t, piece),
            ([1, 2], 2) => by_rows::<1, 2, 2>(t, piece),
            ([1, 2], -2) => by_rows::<1, 2, -2>(t, piece),
            // Four elements are read for three: the fourth is there if another row lies before or behind.
            _ if row == 0 => transform_piece::<f32, Avx2>(t, piece),
            ([2, 1], _) => by_rows::<2, 1, 1>(t, piece),
            ([3, 1], _) => by_rows::<3, 1, 1>(t, piece),
            ([3, 3], 1) => by_rows::<3, 3, 1>(t, piece),
            ([3, 3], -1) => by_rows::<3, 3, -1>(t, piece),
            ([2, 3], 1) => by_rows::<2, 3, 1>(t, piece),
            ([2, 3], -1) => by_rows::<2, 3, -1>(t, piece),
            ([3, 2], 1) => by_rows::<3, 2, 1>(t, piece),
            ([3, 2], -1) => by_rows::<3, 2, -1>(t, piece),
            ([2, 2], 1) => by_rows::<2, 2, 1>(t, piece),
            ([2, 2], -1) => by_rows::<2, 2, -1>(t, piece),
            ([3, 3], 2) => by_rows::<3, 3, 2>(t, piece),
            ([2, 3], 2) => by_rows::<2, 3, 2>(t, piece),
            ([3, 2], 2) => by_rows::<3, 2, 2>(t, piece),
            ([2, 2], 2) => by_rows::<2, 2, 2>(t, piece),
            ([2, 2], -2) => by_rows::<2, 2, -2>(t, piece),
            _ => transform_piece::<f32, Avx2>(t, piece),
        }
    }
}

/// Weights of `ROWS` rows of `COLUMNS` elements that lie `STEP` apart.
///
/// # Safety
///
/// As [`transform_weights`].
#[target_feature(enable = "avx2,fma")]
#[inline(never)]
unsafe fn by_rows<const ROWS: usize, const COLUMNS: usize, const STEP: isize>(
    t: &TransformWeights<f32>,
    piece: &KernelPiece,
) {
    let first = t.from.wrapping_offset(t.element(piece, [0, 0]));
    let row_step = t.apart[0] as isize * t.steps[0];
    // Channels outermost: where outputs lie beside each other, each channel's are met together.
    for c in (0..t.channels).step_by(LANES) {
        let lanes = lanes(t, c);
        for r in 0..t.outputs {
            let from = first.wrapping_offset(r as isize * t.output);
            // SAFETY: the caller vouches for the weights of these channels, and for both sides.
            unsafe {
                let kernel = channels::<ROWS, COLUMNS, STEP>(t, from, row_step, &lanes);
                let to = t.to.add(r * t.to_output + c);
                let mut half = [[_mm256_setzero_ps(); 3]; SIDE];
                for x in 0..COLUMNS {
                    let mut column = [_mm256_setzero_ps(); 3];
                    for y in 0..ROWS {
                        column[y + taps_before(ROWS)] = kernel[x][y];
                    }
                    let column = weights(column);
                    for i in 0..SIDE {
                        half[i][x + taps_before(COLUMNS)] = column[i];
                    }
                }
                for i in product_positions(ROWS) {
                    let row = weights(half[i]);
                    for j in product_positions(COLUMNS) {
                        _mm256_storeu_ps(to.add(piece.places[i * SIDE + j]), row[j]);
                    }
                }
            }
        }
    }
}

/// A 3 x 3 kernel at stride 2, whose four pieces have two rows or one, and two columns or one: all at once.
///
/// # Safety
///
/// As [`transform_weights`].
#[target_feature(enable = "avx2,fma")]
unsafe fn at_stride_2<const STEP: isize>(t: &TransformWeights<f32>) {
    let zero = _mm256_setzero_ps();
    let [two_one, two_two, one_two, one_one] = t.pieces else { return };
    // The last register first: it may reach into the next piece, whose first one is written later.
    let last = (t.channels - 1) / LANES * LANES;
    for c in iter::once(last).chain((0..last).step_by(LANES)) {
        let lanes = lanes(t, c);
        for r in 0..t.outputs {
            let from = t.from.wrapping_offset(r as isize * t.output);
            // SAFETY: the caller vouches for the weights of these channels, and for both sides.
            unsafe {
                let kernel = channels::<3, 3, STEP>(t, from, t.steps[0], &lanes);
                let to = t.to.add(r * t.to_output + c);
                let [mut outer, mut inner] = [[[zero; 3]; SIDE]; 2];
                for x in 0..3 {
                    let [first, middle, last] = kernel[x];
                    let (two, one) = (weights([first, last, zero]), weights([zero, middle, zero]));
                    for i in 0..SIDE {
                        (outer[i][x], inner[i][x]) = (two[i], one[i]);
                    }
                }
                for i in 0..3 {
                    store_columns::<false>(to, i, outer[i], two_two, two_one);
                }
                for i in 1..3 {
                    store_columns::<true>(to, i, inner[i], one_two, one_one);
                }
            }
        }
    }
}

/// Transforms a row of a 3 x 3 kernel at stride 2 and writes row `i` of positions: of its first and last element,
/// and of the one between. The piece whose place comes first is written first: see [`transform_weights`] on whole
/// registers.
///
/// # Safety
///
/// As [`transform_weights`], for the places of both pieces; the CPU has AVX2 and FMA.
#[inline(always)]
unsafe fn store_columns<const OUTER_FIRST: bool>(
    to: *mut f32,
    i: usize,
    [first, middle, last]: [__m256; 3],
    outer: &KernelPiece,
    inner: &KernelPiece,
) {
    // SAFETY: the same contract.
    unsafe {
        let zero = _mm256_setzero_ps();
        let (two, one) = (weights([first, last, zero]), weights([zero, middle, zero]));
        let store = |piece: &KernelPiece, j: usize, value: __m256| {
            _mm256_storeu_ps(to.add(piece.places[i * SIDE + j]), value);
        };
        store(outer, 0, two[0]);
        for j in 1..3 {
            if OUTER_FIRST {
                store(outer, j, two[j]);
            }
            store(inner, j, one[j]);
            if !OUTER_FIRST {
                store(outer, j, two[j]);
            }
        }
    }
}

/// Elements from the first channel's weights to those of 8 from `first` on; the last channel's stand for those missing.
#[inline(always)]
fn lanes(t: &TransformWeights<f32>, first: usize) -> [isize; LANES] {
    std::array::from_fn(|lane| (first + lane).min(t.channels - 1) as isize * t.channel)
}

/// The kernel elements of the 8 channels at `lanes`, by columns and rows, of an output whose first one is at
/// `first`; rows are `row_step` apart. Those of the next 8 channels are asked for.
///
/// # Safety
///
/// As [`by_rows`].
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn channels<const ROWS: usize, const COLUMNS: usize, const STEP: isize>(
    t: &TransformWeights<f32>,
    first: *const f32,
    row_step: isize,
    lanes: &[isize; LANES],
) -> [[__m256; 3]; 3] {
    // Whether four elements are read for the three that a row spans.
    let extra = const { ROWS > 1 && matches!((STEP, COLUMNS), (1 | -1, 3) | (2 | -2, 2)) };
    // The row at the highest address is read from the element before it: the fourth of any other row lies
    // before the next one's end.
    let highest = if row_step < 0 { 0 } else { ROWS - 1 };
    // The element of a row with the lowest address.
    let lowest = const { if STEP < 0 { STEP * (COLUMNS as isize - 1) } else { 0 } };
    let first = first.wrapping_offset(lowest);
    let mut channel = [first; LANES];
    for lane in 0..LANES {
        channel[lane] = first.wrapping_offset(lanes[lane]);
        let ahead = channel[lane].wrapping_offset(LANES as isize * t.channel);
        prefetch(ahead);
        // Rows of a larger kernel lie further apart than a line reaches.
        if row_step.abs() > 3 {
            prefetch(ahead.wrapping_offset((ROWS as isize - 1) * row_step));
        }
    }
    let mut kernel = [[_mm256_setzero_ps(); 3]; 3];
    for y in 0..ROWS {
        let before = extra && y == highest;
        let at = y as isize * row_step - isize::from(before);
        let mut read = [_mm_setzero_ps(); LANES];
        for lane in 0..LANES {
            let from = channel[lane].wrapping_offset(at);
            // SAFETY: the caller vouches for the kernel's elements, between which these lie.
            read[lane] = unsafe {
                match (extra, COLUMNS) {
                    (true, _) => _mm_loadu_ps(from),
                    (_, 1) => _mm_load_ss(from),
                    (_, 2) if STEP.abs() == 1 => _mm_castpd_ps(_mm_load_sd(from.cast())),
                    (_, 2) => {
                        let (low, high) = (_mm_load_ss(from), _mm_load_ss(from.wrapping_add(2)));
                        _mm_unpacklo_ps(low, high)
                    }
                    _ => {
                        let (low, high) = (_mm_loadu_ps(from), _mm_loadu_ps(from.wrapping_add(1)));
                        _mm_shuffle_ps::<0xf8>(low, high)
                    }
                }
            };
        }
        let [a, b, c, d] = quads([
            _mm256_set_m128(read[4], read[0]),
            _mm256_set_m128(read[5], read[1]),
            _mm256_set_m128(read[6], read[2]),
            _mm256_set_m128(read[7], read[3]),
        ]);
        let ascending = match (extra, COLUMNS, before) {
            (true, 3, true) => [b, c, d],
            (true, 2, false) => [a, c, c],
            (true, 2, true) => [b, d, d],
            _ => [a, b, c],
        };
        for x in 0..COLUMNS {
            kernel[x][y] = ascending[if STEP < 0 { COLUMNS - 1 - x } else { x }];
        }
    }
    kernel
}

/// `G g`.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn weights([a, b, c]: [__m256; 3]) -> [__m256; SIDE] {
    let half = _mm256_set1_ps(0.5);
    let outer = _mm256_add_ps(a, c);
    let even = _mm256_mul_ps(_mm256_add_ps(outer, b), half);
    let odd = _mm256_mul_ps(_mm256_sub_ps(outer, b), half);
    [a, even, odd, c]
}
