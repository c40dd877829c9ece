//! Transforming weights, which come into the lanes by transposing.

use super::LANES;
use crate::kernel::avx2::quads;
use crate::kernel::simd::Avx2;
use crate::kernel::tile::prefetch;
use crate::kernel::winograd::{
    KernelPiece, SIDE, TransformWeights, product_positions, taps_before, transform_piece,
};
use std::arch::x86_64::*;
use std::iter;

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
