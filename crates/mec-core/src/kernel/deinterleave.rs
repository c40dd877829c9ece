//! Packing at stride 2 and 4 on AVX-512: whole registers are read and every second lane is kept.
//!
//! Reading such columns one by one takes a load and a store for each; it was a quarter of the time of
//! a layer like ResNet's 3x3 at stride 2 (r2).

use super::lanes::{Pack, pack};
use super::simd::Avx512;
use std::arch::x86_64::*;

/// As [`pack`], for `f32`.
///
/// # Safety
///
/// As [`pack`]; the CPU has AVX-512.
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn avx512(p: &Pack<f32>) {
    // SAFETY: the caller vouches for the CPU and the columns.
    unsafe {
        match p.from_column {
            2 => run::<2>(p),
            4 => run::<4>(p),
            _ => pack::<f32, Avx512>(p),
        }
    }
}

/// Lanes of a register.
const LANES: usize = 16;

/// # Safety
///
/// As [`avx512`], for columns `STEP` apart; `STEP` is 2 or 4.
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
        let skip = (first as isize - p.before as isize) * STEP as isize;
        let mut from = p.from.wrapping_offset(skip);
        let mut to = p.to.wrapping_add(first);
        for _ in 0..p.channels {
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
            from = from.wrapping_offset(p.from_channel);
            to = to.wrapping_add(p.to_channel);
        }
    }
}

/// The mask of the first `count` lanes.
fn bits(count: usize) -> __mmask16 {
    ((1u32 << count) - 1) as __mmask16
}
