//! What AVX2 does by its own instructions: packing at a stride, and transposing.

use super::lanes::{self, Pack};
use super::simd::{Avx2, store_pieces};
use super::tile::prefetch;
use super::transpose::{Transpose, for_each_block, plain};
use std::arch::x86_64::*;
use std::mem::transmute;

/// Lanes of a register.
const LANES: usize = 8;

/// As [`lanes::pack`]; at stride 2 and 4 whole registers are read and every second lane is kept.
///
/// # Safety
///
/// As [`lanes::pack`]; the CPU has AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(crate) unsafe fn pack(p: &Pack<f32>) {
    // SAFETY: the caller vouches for the CPU and the columns.
    unsafe {
        match p.from_column {
            2 => strided::<2>(p),
            4 => strided::<4>(p),
            _ => lanes::pack::<f32, Avx2>(p),
        }
    }
}

/// # Safety
///
/// As [`pack`], for columns `STEP` apart; `STEP` is 2 or 4.
#[target_feature(enable = "avx2,fma")]
unsafe fn strided<const STEP: usize>(p: &Pack<f32>) {
    let end = p.before + p.columns;
    let all = end + p.after;
    for first in (0..all).step_by(LANES) {
        let lane = |lane: usize| lane.saturating_sub(first).min(LANES);
        // The elements from the first column that is read to the last one.
        let (start, stop) = (lane(p.before), lane(end));
        let elements = if start < stop { start * STEP..(stop - 1) * STEP + 1 } else { 0..0 };
        let read: [__m256i; STEP] = std::array::from_fn(|k| {
            let within = |at: usize| at.saturating_sub(k * LANES).min(LANES);
            between(within(elements.start), within(elements.end))
        });
        let count = lane(all);
        p.for_each_row(first, LANES, |from, to| {
            // SAFETY: the masks cover the columns the caller vouches for, and what lies between.
            unsafe {
                let mut parts = [_mm256_setzero_ps(); STEP];
                for (k, part) in parts.iter_mut().enumerate() {
                    *part = _mm256_maskload_ps(from.wrapping_add(k * LANES), read[k]);
                }
                let kept = match STEP {
                    2 => even(parts[0], parts[1]),
                    _ => even(even(parts[0], parts[1]), even(parts[2 % STEP], parts[3 % STEP])),
                };
                store_first(to, count, kept);
            }
        });
    }
}

/// Lanes 0, 2, 4, ... of two registers.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn even(a: __m256, b: __m256) -> __m256 {
    in_order(_mm256_shuffle_ps::<0x88>(a, b))
}

/// Lanes 1, 3, 5, ... of two registers.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn odd(a: __m256, b: __m256) -> __m256 {
    in_order(_mm256_shuffle_ps::<0xdd>(a, b))
}

/// The even lanes of two registers, and their odd lanes.
#[target_feature(enable = "avx2,fma")]
#[inline]
pub(super) fn apart([a, b]: [__m256; 2]) -> [__m256; 2] {
    [even(a, b), odd(a, b)]
}

/// Of four registers that follow each other, lanes 0, 4, 8, ..., lanes 1, 5, 9, ... and so on.
#[target_feature(enable = "avx2,fma")]
#[inline]
pub(super) fn apart_by_four([a, b, c, d]: [__m256; 4]) -> [__m256; 4] {
    let even = [_mm256_shuffle_ps::<0x88>(a, b), _mm256_shuffle_ps::<0x88>(c, d)];
    let odd = [_mm256_shuffle_ps::<0xdd>(a, b), _mm256_shuffle_ps::<0xdd>(c, d)];
    // They come in the order 0, 2, 4, 6, 1, 3, 5, 7.
    let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    [
        _mm256_permutevar8x32_ps(_mm256_shuffle_ps::<0x88>(even[0], even[1]), order),
        _mm256_permutevar8x32_ps(_mm256_shuffle_ps::<0x88>(odd[0], odd[1]), order),
        _mm256_permutevar8x32_ps(_mm256_shuffle_ps::<0xdd>(even[0], even[1]), order),
        _mm256_permutevar8x32_ps(_mm256_shuffle_ps::<0xdd>(odd[0], odd[1]), order),
    ]
}

/// What a shuffle within halves took from two registers: the first one's lanes, then the second's.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn in_order(shuffled: __m256) -> __m256 {
    _mm256_castpd_ps(_mm256_permute4x64_pd::<0xd8>(_mm256_castps_pd(shuffled)))
}

/// The mask of the lanes `start..end`.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn between(start: usize, end: usize) -> __m256i {
    let lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    let before = |at: usize| _mm256_cmpgt_epi32(_mm256_set1_epi32(at as i32), lane);
    _mm256_andnot_si256(before(start), before(end))
}

/// Writes the lanes of `mask`, and to the others what is there. A masked store takes ten times as long.
///
/// # Safety
///
/// A register's worth of bytes can be read and written at `to`; the CPU has AVX2.
#[target_feature(enable = "avx2,fma")]
#[inline]
pub(super) unsafe fn store_blended(to: *mut __m256i, mask: __m256i, value: __m256i) {
    // SAFETY: the caller vouches for the bytes.
    unsafe {
        let beside = _mm256_andnot_si256(mask, _mm256_loadu_si256(to));
        _mm256_storeu_si256(to, _mm256_or_si256(beside, _mm256_and_si256(mask, value)));
    }
}

/// Writes the first `count` lanes.
///
/// # Safety
///
/// `count` elements can be written, at most a register.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn store_first(to: *mut f32, count: usize, value: __m256) {
    // SAFETY: the caller vouches for the elements; registers are plain numbers.
    unsafe {
        if count == LANES {
            _mm256_storeu_ps(to, value);
        } else {
            store_pieces::<f32, LANES>(to, count, transmute::<__m256, [f32; LANES]>(value));
        }
    }
}

/// Adds the sum of the lanes of each of four registers to the elements from `to` on: a third of the
/// instructions that one after the other takes.
///
/// # Safety
///
/// The CPU has AVX2; four elements can be read and written at `to`.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn add_sums(to: *mut f32, [a, b, c, d]: [__m256; 4]) {
    let halves = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    let sums = _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps::<1>(halves));
    // SAFETY: the caller vouches for the elements.
    unsafe { _mm_storeu_ps(to, _mm_add_ps(_mm_loadu_ps(to), sums)) };
}

/// Transposes `f32` in blocks of 8 x 8: 24 shuffles, a fifth of a cycle for each element.
///
/// # Safety
///
/// As [`plain`]; the CPU has AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(crate) unsafe fn transpose(t: &Transpose<f32>) {
    if t.from_column != 1 {
        // SAFETY: the same contract.
        return unsafe { plain(t) };
    }
    // What is written twice need not be added: the last block of a side then covers some of the one before again.
    let last = |len: usize| if t.onto || len < LANES { len } else { len - LANES };
    let (last_row, last_column) = (last(t.rows), last(t.columns));
    // SAFETY: blocks lie inside the matrix.
    for_each_block(t, LANES, |i, j| unsafe {
        let (i, j) = (i.min(last_row), j.min(last_column));
        if t.rows - i >= LANES && t.columns - j >= LANES {
            whole_block(t, i, j);
        } else {
            block(t, (i, (t.rows - i).min(LANES)), (j, (t.columns - j).min(LANES)));
        }
    });
}

/// One whole block, from row `i` and column `j` on.
///
/// # Safety
///
/// As [`transpose`]; the block lies inside the matrix.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn whole_block(t: &Transpose<f32>, i: usize, j: usize) {
    let from = t.from.wrapping_offset(i as isize * t.from_row + j as isize);
    let to = t.to.wrapping_add(j * t.to_row + i);
    // SAFETY: the caller vouches for 8 elements in each of 8 rows on both sides.
    unsafe {
        let mut rows = [_mm256_setzero_ps(); LANES];
        for (r, row) in rows.iter_mut().enumerate() {
            let from = from.wrapping_offset(r as isize * t.from_row);
            prefetch(from.wrapping_offset(t.ahead));
            *row = _mm256_loadu_ps(from);
        }
        for (c, mut column) in transposed(rows).into_iter().enumerate() {
            let to = to.wrapping_add(c * t.to_row);
            if t.onto {
                column = _mm256_add_ps(column, _mm256_loadu_ps(to));
            }
            _mm256_storeu_ps(to, column);
        }
    }
}

/// A block at the edge: first row and rows, first column and columns.
///
/// # Safety
///
/// As [`transpose`]; rows and columns lie inside the matrix, and there are at most 8 of each.
#[target_feature(enable = "avx2,fma")]
unsafe fn block(t: &Transpose<f32>, (i, rows): (usize, usize), (j, columns): (usize, usize)) {
    let (read, write) = (between(0, columns), between(0, rows));
    let mut block = [_mm256_setzero_ps(); LANES];
    for (r, row) in block.iter_mut().enumerate().take(rows) {
        let from = t.from.wrapping_offset((i + r) as isize * t.from_row + j as isize);
        // SAFETY: the mask covers the columns the caller vouches for.
        *row = unsafe { _mm256_maskload_ps(from, read) };
    }
    for (c, mut column) in transposed(block).into_iter().enumerate().take(columns) {
        let to = t.to.wrapping_add((j + c) * t.to_row + i);
        // SAFETY: the mask covers the rows the caller vouches for.
        unsafe {
            if t.onto {
                column = _mm256_add_ps(column, _mm256_maskload_ps(to, write));
            }
            store_first(to, rows, column);
        }
    }
}

#[target_feature(enable = "avx2,fma")]
#[inline]
pub(super) fn transposed(r: [__m256; 8]) -> [__m256; 8] {
    let [a, b, c, d] = quads([r[0], r[1], r[2], r[3]]);
    let [e, f, g, h] = quads([r[4], r[5], r[6], r[7]]);
    [
        _mm256_permute2f128_ps::<0x20>(a, e),
        _mm256_permute2f128_ps::<0x20>(b, f),
        _mm256_permute2f128_ps::<0x20>(c, g),
        _mm256_permute2f128_ps::<0x20>(d, h),
        _mm256_permute2f128_ps::<0x31>(a, e),
        _mm256_permute2f128_ps::<0x31>(b, f),
        _mm256_permute2f128_ps::<0x31>(c, g),
        _mm256_permute2f128_ps::<0x31>(d, h),
    ]
}

/// Transposes 4 x 4 in each half of four rows.
#[target_feature(enable = "avx2,fma")]
#[inline]
pub(super) fn quads([a, b, c, d]: [__m256; 4]) -> [__m256; 4] {
    let low = [_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d)];
    let high = [_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d)];
    [
        _mm256_shuffle_ps::<0x44>(low[0], low[1]),
        _mm256_shuffle_ps::<0xee>(low[0], low[1]),
        _mm256_shuffle_ps::<0x44>(high[0], high[1]),
        _mm256_shuffle_ps::<0xee>(high[0], high[1]),
    ]
}
