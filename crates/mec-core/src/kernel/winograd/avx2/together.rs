//! Packing and transforming tiles for all pieces of a kernel at a stride at once.

use super::LANES;
use super::pack::{for_each_register, held, masks, store};
use crate::kernel::avx2::{quads, transposed};
use crate::kernel::lanes::AHEAD;
use crate::kernel::tile::prefetch;
use crate::kernel::winograd::{PackTiles, SIDE, product_positions};
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

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
pub(super) fn shares<K: Together>(p: &PackTiles<f32>) -> bool {
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
/// As [`pack_tiles`](super::pack_tiles), for columns that lie beside each other and are those of `K`.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn together<K: Together>(p: &PackTiles<f32>) {
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
                    places: p.places[r * K::PIECES.len()..].as_flattened()[i * SIDE..].as_ptr(),
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
/// As [`together`]; only what is `inside` is read. Without `FIRST` the lanes before the run's have been written and are
/// left as they are.
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
