//! What AVX2 does by its own instructions for Winograd's filtering: inputs are packed and transformed in
//! one pass, and weights come into the lanes by transposing.

use super::{PackTiles, SIDE, TransformWeights, transform_weights as plain_weights};
use crate::kernel::avx2::quads;
use crate::kernel::lanes::AHEAD;
use crate::kernel::simd::{Avx2, copy_pieces};
use crate::kernel::tile::prefetch;
use std::arch::x86_64::*;

/// Lanes of a register.
const LANES: usize = 8;

/// Groups of four columns that 8 tiles read: their first columns, in the order of [`deal`].
const QUADS: [usize; 8] = [0, 8, 4, 12, 2, 10, 6, 14];

/// Packs and transforms the tiles of one run, for all channels.
///
/// # Safety
///
/// As [`PackTiles`] says; the CPU has AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(crate) unsafe fn pack_tiles(p: &PackTiles<f32>) {
    // SAFETY: the same contract.
    unsafe {
        match p.from_column {
            1 => by_registers::<Next>(p),
            2 => by_registers::<Second>(p),
            _ => by_registers::<Apart>(p),
        }
    }
}

/// How four neighbouring columns of positions are read.
trait Quad {
    /// Reads the columns at `from`, `from + step`, ...; without `whole` only those that `inside` names by
    /// its bits, and zeros in place of the others.
    ///
    /// # Safety
    ///
    /// Those columns can be read; the CPU has AVX2 and FMA.
    unsafe fn read(from: *const f32, step: isize, whole: bool, inside: u8) -> __m128;
}

/// Columns beside each other.
struct Next;

/// Every second column.
struct Second;

/// Columns at any distance.
struct Apart;

impl Quad for Next {
    #[inline(always)]
    unsafe fn read(from: *const f32, _: isize, whole: bool, inside: u8) -> __m128 {
        // SAFETY: the caller vouches for the columns.
        unsafe { if whole { _mm_loadu_ps(from) } else { _mm_maskload_ps(from, bits(inside)) } }
    }
}

impl Quad for Second {
    #[inline(always)]
    unsafe fn read(from: *const f32, _: isize, whole: bool, inside: u8) -> __m128 {
        // SAFETY: the caller vouches for the columns; elements 0 to 3 and 3 to 6 lie between them.
        unsafe {
            let (low, high) = if whole {
                (_mm_loadu_ps(from), _mm_loadu_ps(from.wrapping_add(3)))
            } else {
                let inside = [1, 2, 4, 8].map(|bit| inside & bit != 0);
                let [a, b, c, d] = inside.map(u8::from);
                (
                    _mm_maskload_ps(from, bits(a | b << 2)),
                    _mm_maskload_ps(from.wrapping_add(3), bits(c << 1 | d << 3)),
                )
            };
            _mm_shuffle_ps::<0xd8>(low, high)
        }
    }
}

impl Quad for Apart {
    #[inline(always)]
    unsafe fn read(from: *const f32, step: isize, whole: bool, inside: u8) -> __m128 {
        let one = |at: usize| {
            if whole || inside & 1 << at != 0 {
                // SAFETY: the caller vouches for the columns.
                unsafe { *from.wrapping_offset(at as isize * step) }
            } else {
                0.0
            }
        };
        // SAFETY: the caller vouches for the CPU.
        unsafe { _mm_setr_ps(one(0), one(1), one(2), one(3)) }
    }
}

/// The mask of the lanes that `inside` names by its bits.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn bits(inside: u8) -> __m128i {
    let bit = _mm_setr_epi32(1, 2, 4, 8);
    _mm_cmpeq_epi32(_mm_and_si128(_mm_set1_epi32(i32::from(inside)), bit), bit)
}

/// # Safety
///
/// As [`pack_tiles`], for columns that lie as `Q` reads them.
#[target_feature(enable = "avx2,fma")]
unsafe fn by_registers<Q: Quad>(p: &PackTiles<f32>) {
    let mut done = 0;
    while done < p.tiles {
        // Lanes behind the run's are written again by the next, those before it are left as they are. The
        // register lies within the strip, if need be with its first lanes before the run's.
        let lane = p.lane + done;
        let start = lane.min(p.width - LANES);
        let own = lane - start..(lane - start + p.tiles - done).min(LANES);
        let first = 2 * (start as isize - p.lane as isize);
        let inside = QUADS.map(|quad| {
            let within = |at: isize| p.columns.start as isize <= at && at < p.columns.end as isize;
            let bit = |k: usize| u8::from(within(first + (quad + k) as isize)) << k;
            bit(0) | bit(1) | bit(2) | bit(3)
        });
        let whole = inside.iter().all(|&bits| bits == 15) && p.rows == (0..SIDE);
        // SAFETY: the caller vouches for the run; the columns read are those inside.
        unsafe {
            match (whole, own.start == 0) {
                (true, true) => register::<Q, true, true>(p, start, first, inside, own),
                (true, false) => register::<Q, true, false>(p, start, first, inside, own),
                (false, true) => register::<Q, false, true>(p, start, first, inside, own),
                (false, false) => register::<Q, false, false>(p, start, first, inside, own),
            }
        }
        done = start + LANES - p.lane;
    }
}

/// One register of tiles, for all channels: its first column of positions is `first`, counted from the
/// run's.
///
/// # Safety
///
/// As [`by_registers`]; without `WHOLE` only the positions `inside` are read, without `FIRST` only the
/// lanes `own` are written.
#[target_feature(enable = "avx2,fma")]
unsafe fn register<Q: Quad, const WHOLE: bool, const FIRST: bool>(
    p: &PackTiles<f32>,
    start: usize,
    first: isize,
    inside: [u8; 8],
    own: std::ops::Range<usize>,
) {
    let mut from = p.from.wrapping_offset(first * p.from_column);
    let mut to = p.to.wrapping_add(start);
    // What a step comes to next is too far away for the CPU to see a pattern.
    let ahead = AHEAD.div_ceil(SIDE) as isize * p.from_channel;
    let last = 17 * p.from_column;
    for _ in 0..p.channels {
        // SAFETY: the caller vouches for the positions and the lanes.
        unsafe {
            let mut d = [[_mm256_setzero_ps(); SIDE]; SIDE];
            for i in 0..SIDE {
                if !WHOLE && !p.rows.contains(&i) {
                    continue;
                }
                let row = from.wrapping_offset(i as isize * p.from_row);
                prefetch(row.wrapping_offset(ahead));
                prefetch(row.wrapping_offset(ahead + last));
                let mut quads = [_mm_setzero_ps(); 8];
                for q in 0..8 {
                    let at = row.wrapping_offset(QUADS[q] as isize * p.from_column);
                    quads[q] = Q::read(at, p.from_column, WHOLE, inside[q]);
                }
                // By rows first: their columns are at hand.
                d[i] = input(deal(quads));
            }
            for j in 0..SIDE {
                let column = input([d[0][j], d[1][j], d[2][j], d[3][j]]);
                for i in 0..SIDE {
                    let to = to.wrapping_add((i * SIDE + j) * p.position);
                    if FIRST {
                        _mm256_storeu_ps(to, column[i]);
                    } else {
                        // What is beside may not have been written yet, so that there is nothing to blend with.
                        let mut lanes = [0f32; LANES];
                        _mm256_storeu_ps(lanes.as_mut_ptr(), column[i]);
                        let from = lanes.as_ptr().add(own.start);
                        copy_pieces::<f32, LANES>(to.wrapping_add(own.start), own.len(), from);
                    }
                }
            }
        }
        from = from.wrapping_offset(p.from_channel);
        to = to.wrapping_add(p.to_channel);
    }
}

/// The four columns of 8 tiles, from the groups that [`QUADS`] names.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn deal(q: [__m128; 8]) -> [__m256; SIDE] {
    let [a, b, c, d] = [
        _mm256_set_m128(q[1], q[0]),
        _mm256_set_m128(q[3], q[2]),
        _mm256_set_m128(q[5], q[4]),
        _mm256_set_m128(q[7], q[6]),
    ];
    [
        _mm256_shuffle_ps::<0x88>(a, b),
        _mm256_shuffle_ps::<0xdd>(a, b),
        _mm256_shuffle_ps::<0x88>(c, d),
        _mm256_shuffle_ps::<0xdd>(c, d),
    ]
}

/// `B' d`.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn input([a, b, c, d]: [__m256; SIDE]) -> [__m256; SIDE] {
    [_mm256_sub_ps(a, c), _mm256_add_ps(b, c), _mm256_sub_ps(c, b), _mm256_sub_ps(b, d)]
}

/// As [`plain_weights`], but that the elements of a kernel row are read together where they lie close
/// enough, and brought into the lanes by transposing: half the time.
///
/// # Safety
///
/// As [`plain_weights`]; the CPU has AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(crate) unsafe fn transform_weights(t: &TransformWeights<f32>) {
    // SAFETY: the same contract.
    unsafe {
        match (t.taps, t.steps[1]) {
            // Four elements are read for three: the fourth is there if another row lies before or behind.
            _ if t.steps[0] == 0 => plain_weights::<f32, Avx2>(t),
            ([3, 3], 1) => by_rows::<3, 3, 1>(t),
            ([3, 3], -1) => by_rows::<3, 3, -1>(t),
            ([2, 3], 1) => by_rows::<2, 3, 1>(t),
            ([2, 3], -1) => by_rows::<2, 3, -1>(t),
            ([3, 2], 1) => by_rows::<3, 2, 1>(t),
            ([3, 2], -1) => by_rows::<3, 2, -1>(t),
            ([2, 2], 1) => by_rows::<2, 2, 1>(t),
            ([2, 2], -1) => by_rows::<2, 2, -1>(t),
            ([3, 3], 2) => by_rows::<3, 3, 2>(t),
            ([2, 3], 2) => by_rows::<2, 3, 2>(t),
            ([3, 2], 2) => by_rows::<3, 2, 2>(t),
            ([2, 2], 2) => by_rows::<2, 2, 2>(t),
            _ => plain_weights::<f32, Avx2>(t),
        }
    }
}

/// Weights of `ROWS` rows of `COLUMNS` elements that lie `STEP` apart.
///
/// # Safety
///
/// As [`plain_weights`].
#[target_feature(enable = "avx2,fma")]
unsafe fn by_rows<const ROWS: usize, const COLUMNS: usize, const STEP: isize>(
    t: &TransformWeights<f32>,
) {
    // Whether four elements are read for the three that a row spans.
    let extra = const { matches!((STEP, COLUMNS), (1 | -1, 3) | (2, 2)) };
    // The element of a row with the lowest address.
    let lowest = const { if STEP < 0 { STEP * (COLUMNS as isize - 1) } else { 0 } };
    // The row at the highest address is read from the element before it: the fourth of any other row lies
    // before the next one's end.
    let highest = if t.steps[0] < 0 { 0 } else { ROWS - 1 };
    // Channels outermost: where outputs lie beside each other, each channel's are met together.
    for c in (0..t.channels).step_by(LANES) {
        for r in 0..t.outputs {
            let from = c as isize * t.channel + r as isize * t.output + lowest;
            // SAFETY: the caller vouches for the weights of these channels, and for both sides.
            unsafe {
                let count = t.channels - c;
                let from = t.from.wrapping_offset(from);
                let kernel = channels::<ROWS, COLUMNS, STEP>(t, from, count, extra, highest);
                let to = t.to.add(r * t.to_output + c);
                let mut half = [[_mm256_setzero_ps(); 3]; SIDE];
                for x in 0..COLUMNS {
                    let column = weights(kernel[x]);
                    for i in 0..SIDE {
                        half[i][x] = column[i];
                    }
                }
                for i in 0..SIDE {
                    let row = weights(half[i]);
                    for j in 0..SIDE {
                        _mm256_storeu_ps(to.add((i * SIDE + j) * t.position), row[j]);
                    }
                }
            }
        }
    }
}

/// The kernel elements of 8 channels, by columns and rows: of the first `count` from `first` on, their
/// lowest column. Those of the next 8 are asked for.
///
/// # Safety
///
/// As [`by_rows`].
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn channels<const ROWS: usize, const COLUMNS: usize, const STEP: isize>(
    t: &TransformWeights<f32>,
    first: *const f32,
    count: usize,
    extra: bool,
    highest: usize,
) -> [[__m256; 3]; 3] {
    let mut channel = [first; LANES];
    for lane in 0..LANES {
        channel[lane] = first.wrapping_offset(lane.min(count - 1) as isize * t.channel);
        let ahead = channel[lane].wrapping_offset(LANES as isize * t.channel);
        prefetch(ahead);
        // Rows of a larger kernel lie further apart than a line reaches.
        if t.steps[0].abs() > 3 {
            prefetch(ahead.wrapping_offset((ROWS as isize - 1) * t.steps[0]));
        }
    }
    let mut kernel = [[_mm256_setzero_ps(); 3]; 3];
    for y in 0..ROWS {
        let before = extra && y == highest;
        let at = y as isize * t.steps[0] - isize::from(before);
        let mut read = [_mm_setzero_ps(); LANES];
        for lane in 0..LANES {
            let from = channel[lane].wrapping_offset(at);
            // SAFETY: the caller vouches for the kernel's elements, between which these lie.
            read[lane] = unsafe {
                match (extra, COLUMNS) {
                    (true, _) => _mm_loadu_ps(from),
                    (_, 2) => _mm_castpd_ps(_mm_load_sd(from.cast())),
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
