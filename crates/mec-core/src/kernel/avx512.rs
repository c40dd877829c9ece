//! What AVX-512 does by its own instructions: packing at a stride, and transposing.

use super::lanes::{self, Pack};
use super::simd::Avx512;
use super::transpose::{Transpose, for_each_block, plain};
use std::arch::x86_64::*;

/// As [`lanes::pack`]; at stride 2 and 4 whole registers are read and every second lane is kept.
///
/// Reading such columns one by one takes a load and a store for each; it was a quarter of the time of
/// a layer like ResNet's 3x3 at stride 2 (r2).
///
/// # Safety
///
/// As [`lanes::pack`]; the CPU has AVX-512.
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn pack(p: &Pack<f32>) {
    // SAFETY: the caller vouches for the CPU and the columns.
    unsafe {
        match p.from_column {
            2 => run::<2>(p),
            4 => run::<4>(p),
            _ => lanes::pack::<f32, Avx512>(p),
        }
    }
}

/// Lanes of a register.
const LANES: usize = 16;

/// # Safety
///
/// As [`pack`], for columns `STEP` apart; `STEP` is 2 or 4.
#[target_feature(enable = "avx512f")]
unsafe fn run<const STEP: usize>(p: &Pack<f32>) {
    let all = p.before + p.columns + p.after;
    let end = p.before + p.columns;
    let even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    for first in (0..all).step_by(LANES) {
        let lane = |lane: usize| lane.saturating_sub(first).min(LANES);
        // The elements from the first column that is read to the last one.
        let (start, stop) = (lane(p.before), lane(end));
        let elements = if start < stop { start * STEP..(stop - 1) * STEP + 1 } else { 0..0 };
        let read: [__mmask16; STEP] = std::array::from_fn(|k| {
            let within = |at: usize| at.saturating_sub(k * LANES).min(LANES);
            bits(within(elements.end)) & !bits(within(elements.start))
        });
        let write = bits(lane(all));
        p.for_each_row(first, LANES, |from, to| {
            // SAFETY: the masks cover the columns the caller vouches for, and what lies between.
            unsafe {
                let mut parts = [_mm512_setzero_ps(); STEP];
                for (k, part) in parts.iter_mut().enumerate() {
                    *part = _mm512_maskz_loadu_ps(read[k], from.wrapping_add(k * LANES));
                }
                let pair = |a: __m512, b: __m512| _mm512_permutex2var_ps(a, even, b);
                let kept = match STEP {
                    2 => pair(parts[0], parts[1]),
                    _ => pair(pair(parts[0], parts[1]), pair(parts[2 % STEP], parts[3 % STEP])),
                };
                _mm512_mask_storeu_ps(to, write, kept);
            }
        });
    }
}

/// The mask of the first `count` lanes.
fn bits(count: usize) -> __mmask16 {
    ((1u32 << count) - 1) as __mmask16
}

/// Adds the sum of the lanes of each of eight registers to the elements from `to` on: half of the shuffles that one after
/// the other takes.
///
/// # Safety
///
/// The CPU has AVX-512 F; eight elements can be read and written at `to`.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn add_sums(to: *mut f32, of: [__m512; 8]) {
    // Halves of two registers, then quarters of four; then `[a, e]` in a quarter, `[b, f]` in the next.
    let halves = |a, b| {
        _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b))
    };
    let quarters = |a, b| {
        _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b))
    };
    let [a, b, c, d, e, f, g, h] = of;
    let first = quarters(halves(a, b), halves(c, d));
    let second = quarters(halves(e, f), halves(g, h));
    let pairs = _mm512_add_ps(_mm512_unpacklo_ps(first, second), _mm512_unpackhi_ps(first, second));
    let sums = _mm512_add_ps(pairs, _mm512_permute_ps::<0x4e>(pairs));
    let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 0, 0, 0, 0, 0, 0, 0, 0);
    let sums = _mm512_castps512_ps256(_mm512_permutexvar_ps(order, sums));
    // SAFETY: the caller vouches for the elements.
    unsafe { _mm256_storeu_ps(to, _mm256_add_ps(_mm256_loadu_ps(to), sums)) };
}

/// Transposes `f32` in blocks of 16 x 16 registers.
///
/// A block takes 64 shuffles, a cycle each: a quarter of a cycle for each element, where loads and
/// stores of single elements take one.
///
/// # Safety
///
/// As [`transpose::plain`](plain); the CPU has AVX-512 F.
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn transpose(t: &Transpose<f32>) {
    if t.from_column != 1 {
        // SAFETY: the same contract.
        return unsafe { plain(t) };
    }
    // SAFETY: blocks lie inside the matrix.
    for_each_block(t, 16, |i, j| unsafe { block(t, i, j) });
}

/// One block, from row `i` and column `j` on.
///
/// # Safety
///
/// As [`transpose`]; row and column lie inside the matrix.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn block(t: &Transpose<f32>, i: usize, j: usize) {
    let mask = |count: usize| -> __mmask16 { ((1u32 << count) - 1) as __mmask16 };
    let (rows, columns) = ((t.rows - i).min(16), (t.columns - j).min(16));
    let mut block = [_mm512_setzero_ps(); 16];
    for (r, row) in block.iter_mut().enumerate() {
        if r < rows {
            let from = t.from.wrapping_offset((i + r) as isize * t.from_row + j as isize);
            // SAFETY: the mask covers the columns the caller vouches for.
            *row = unsafe { _mm512_maskz_loadu_ps(mask(columns), from) };
        }
    }
    let block = transposed(block);
    for (c, column) in block.into_iter().enumerate() {
        if c < columns {
            let to = t.to.wrapping_add((j + c) * t.to_row + i);
            // SAFETY: the mask covers the rows the caller vouches for.
            unsafe {
                let column = if t.onto {
                    _mm512_add_ps(column, _mm512_maskz_loadu_ps(mask(rows), to))
                } else {
                    column
                };
                _mm512_mask_storeu_ps(to, mask(rows), column);
            }
        }
    }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn transposed(r: [__m512; 16]) -> [__m512; 16] {
    // Lane `l` of `columns[g][k]`: column `4 * l + k` of rows `4 * g..4 * g + 4`.
    let mut columns = [[_mm512_setzero_ps(); 4]; 4];
    for g in 0..4 {
        columns[g] = quads([r[4 * g], r[4 * g + 1], r[4 * g + 2], r[4 * g + 3]]);
    }
    let mut out = [_mm512_setzero_ps(); 16];
    for k in 0..4 {
        let [a, b, c, d] = [columns[0][k], columns[1][k], columns[2][k], columns[3][k]];
        // Lanes 0 and 2, then 1 and 3, of two groups of rows.
        let even = [_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(c, d, 0x88)];
        let odd = [_mm512_shuffle_f32x4(a, b, 0xdd), _mm512_shuffle_f32x4(c, d, 0xdd)];
        out[k] = _mm512_shuffle_f32x4(even[0], even[1], 0x88);
        out[8 + k] = _mm512_shuffle_f32x4(even[0], even[1], 0xdd);
        out[4 + k] = _mm512_shuffle_f32x4(odd[0], odd[1], 0x88);
        out[12 + k] = _mm512_shuffle_f32x4(odd[0], odd[1], 0xdd);
    }
    out
}

/// Transposes 4 x 4 in each quarter of four rows.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn quads([a, b, c, d]: [__m512; 4]) -> [__m512; 4] {
    let low = [_mm512_unpacklo_ps(a, b), _mm512_unpacklo_ps(c, d)].map(|v| _mm512_castps_pd(v));
    let high = [_mm512_unpackhi_ps(a, b), _mm512_unpackhi_ps(c, d)].map(|v| _mm512_castps_pd(v));
    [
        _mm512_castpd_ps(_mm512_unpacklo_pd(low[0], low[1])),
        _mm512_castpd_ps(_mm512_unpackhi_pd(low[0], low[1])),
        _mm512_castpd_ps(_mm512_unpacklo_pd(high[0], high[1])),
        _mm512_castpd_ps(_mm512_unpackhi_pd(high[0], high[1])),
    ]
}

/// Four quarters.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn joined([a, b, c, d]: [__m128; 4]) -> __m512 {
    let low = _mm512_insertf32x4::<1>(_mm512_castps128_ps512(a), b);
    _mm512_insertf32x4::<3>(_mm512_insertf32x4::<2>(low, c), d)
}
