//! Packing and transforming tiles of narrow images on AVX-512: one load for each column of positions, from wherever
//! the tiles of a register lie.

use super::{GatherTiles, SIDE, product_positions};
use std::arch::x86_64::*;

/// Packs and transforms one register of tiles for all channels of a piece.
///
/// # Safety
///
/// What is inside can be read, and the register be written for each channel at each position with a product; the
/// CPU has AVX-512.
pub(crate) unsafe fn gather_tiles(t: &GatherTiles<f32>) {
    // SAFETY: the same contract.
    unsafe {
        match t.taps {
            [1, 1] => of_taps::<1, 1>(t),
            [1, 2] => of_taps::<1, 2>(t),
            [1, _] => of_taps::<1, 3>(t),
            [2, 1] => of_taps::<2, 1>(t),
            [2, 2] => of_taps::<2, 2>(t),
            [2, _] => of_taps::<2, 3>(t),
            [_, 1] => of_taps::<3, 1>(t),
            [_, 2] => of_taps::<3, 2>(t),
            [_, _] => of_taps::<3, 3>(t),
        }
    }
}

/// # Safety
///
/// As [`gather_tiles`], for a piece of so many taps.
#[target_feature(enable = "avx512f")]
unsafe fn of_taps<const ROWS: usize, const COLUMNS: usize>(t: &GatherTiles<f32>) {
    let [from_channel, from_row, from_column] = t.steps;
    let [rows, columns] = t.inside;
    let (width, places) = (t.width, *t.places);
    let (mut from, mut to) = (t.from, t.to);
    // SAFETY: the array has a register's lanes.
    let offsets = unsafe { _mm512_loadu_si512(t.offsets.as_ptr().cast()) };
    for _ in 0..t.channels {
        let mut d = [[_mm512_setzero_ps(); SIDE]; SIDE];
        for i in product_positions(ROWS) {
            let mut read = [_mm512_setzero_ps(); SIDE];
            for j in product_positions(COLUMNS) {
                let from = from.wrapping_offset(i as isize * from_row + j as isize * from_column);
                let inside = rows[i] & columns[j];
                // SAFETY: the caller vouches for the lanes inside.
                read[j] = unsafe {
                    _mm512_mask_i32gather_ps::<4>(_mm512_setzero_ps(), inside, offsets, from)
                };
            }
            d[i] = input(read);
        }
        for j in product_positions(COLUMNS) {
            let column = input([d[0][j], d[1][j], d[2][j], d[3][j]]);
            for i in product_positions(ROWS) {
                // SAFETY: the caller vouches for the register.
                unsafe { _mm512_storeu_ps(to.wrapping_add(places[i * SIDE + j]), column[i]) };
            }
        }
        from = from.wrapping_offset(from_channel);
        to = to.wrapping_add(width);
    }
}

/// `B' d`.
#[target_feature(enable = "avx512f")]
#[inline]
fn input([a, b, c, d]: [__m512; SIDE]) -> [__m512; SIDE] {
    [_mm512_sub_ps(a, c), _mm512_add_ps(b, c), _mm512_sub_ps(c, b), _mm512_sub_ps(b, d)]
}
