//! Narrow images on AVX-512: a register holds several rows of what tiles add up to.
//!
//! ```text
//! block     2 x 2 outputs, one in a lane: (rows + 1) x (columns + 1) of an image, for rows x columns tiles
//! register  of 16 blocks: the sum of 4 registers of tiles, in each of which those that a block does not meet are missing
//! ```
//!
//! By rows of a register each, of which 3 x 3 tiles fill a quarter, cv12's input gradient took 1.13 times as long.

use super::{OUTPUTS, Overlap, SIDE, addition, both_ways, overlap};
use crate::kernel::simd::{Avx512, Isa, Vector};
use pulp::{Simd, WithSimd};
use std::arch::x86_64::*;

/// Most columns of tiles of an image: of 5 and 6, a register for each row takes as long.
const MOST_COLUMNS: usize = 3;

/// Lanes of a register.
const LANES: usize = 16;

/// Most registers of an image's blocks.
const MOST_REGISTERS: usize = 18;

/// Rows of the output that are read before any of them is written: a register that is read across lanes of one that has
/// just been written in part waits for it, even if those are other lanes (it was two thirds of the time).
const ROWS_TOGETHER: usize = 8;

/// The tiles that a register of blocks meets on one side.
#[derive(Clone, Copy, Default)]
struct Side {
    /// The blocks that meet one.
    blocks: u16,
    /// The first of the tiles, which follow each other.
    tile: usize,
}

/// As [`overlap`].
///
/// # Safety
///
/// As [`overlap`]; the CPU has AVX-512.
pub(crate) unsafe fn overlap_narrow(o: &Overlap<f32>) -> bool {
    let [rows, columns] = o.tiles;
    let registers = ((rows + 1) * (columns + 1)).div_ceil(LANES);
    // SAFETY: the same contract.
    unsafe {
        if columns <= MOST_COLUMNS && registers <= MOST_REGISTERS && o.strides[3] == 1 {
            let finite = transform(o);
            images(o, registers);
            finite
        } else {
            overlap::<f32, Avx512>(o)
        }
    }
}

/// Transforms sums in place, and says whether all of them are finite.
///
/// # Safety
///
/// As [`overlap_narrow`].
unsafe fn transform(o: &Overlap<f32>) -> bool {
    // SAFETY: the caller vouches for the CPU.
    Simd::vectorize(unsafe { Avx512::token() }, Additions(o))
}

struct Additions<'a>(&'a Overlap<f32>);

impl WithSimd for Additions<'_> {
    type Output = bool;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> bool {
        let o = self.0;
        let zero = f32::splat(simd, 0.0);
        // Zero times what is not finite is not a number, and stays none.
        let mut finite = zero;
        for r in 0..o.channels {
            for n in (0..o.images * o.tiles[0] * o.tiles[1]).step_by(f32::lanes::<S>()) {
                // SAFETY: `overlap`'s contract covers every position.
                unsafe {
                    let first = o.from.add(r * o.from_channel + n);
                    let at = |i: usize, j: usize| first.add((i * SIDE + j) * o.position);
                    let sum = |i, j| f32::load::<S>(at(i, j));
                    let rows = both_ways::<f32, S, SIDE>(simd, sum, addition::<f32, S>);
                    for i in 0..SIDE {
                        for j in 0..SIDE {
                            finite = <f32 as Vector>::mul_add(simd, rows[i][j], zero, finite);
                            f32::store::<S>(at(i, j), rows[i][j]);
                        }
                    }
                }
            }
        }
        f32::sum_lanes(simd, finite) == 0.0
    }
}

/// # Safety
///
/// As [`overlap_narrow`], for transformed sums and images of so many registers of blocks, whose output columns follow each other.
#[target_feature(enable = "avx512f")]
unsafe fn images(o: &Overlap<f32>, registers: usize) {
    let [rows, columns] = o.tiles;
    let [image, channel, row, _] = o.strides;
    let pitch = OUTPUTS * (columns + 1);
    // The columns of a row that belong to the output.
    let end = (o.size[1] as isize - o.first[1]).clamp(0, pitch as isize) as usize;
    let skipped = (-o.first[1]).clamp(0, end as isize) as usize;
    let kept = first_lanes(end - skipped);
    let first = [o.first[0].max(0) as usize * row, o.first[1].max(0) as usize];
    let out = o.out.wrapping_add(first[0] + first[1]);
    // The rows of the output, counted from where position 0 of the first tile adds.
    let last = (o.size[0] as isize - o.first[0]).min((OUTPUTS * (rows + 1)) as isize);
    let places = (-o.first[0]).max(0) as usize..last.max(0) as usize;
    let met = sides(o.tiles, registers);
    let zero = _mm512_setzero_ps();
    // The upper and the lower outputs of all blocks of an image.
    let mut sums = [[0.0f32; OUTPUTS * LANES * (MOST_REGISTERS + 1)]; OUTPUTS];
    for r in 0..o.channels {
        // SAFETY: there is a bias for each channel.
        let (bias, onto) = unsafe { o.added(r) };
        let bias = _mm512_set1_ps(bias);
        for n in 0..o.images {
            let from = o.from.wrapping_add(r * o.from_channel + n * rows * columns);
            for (register, [here, left, above, above_left]) in met[..registers].iter().enumerate() {
                for y in 0..OUTPUTS {
                    let mut both = [zero; OUTPUTS];
                    for x in 0..OUTPUTS {
                        let at = |i: usize, j: usize| {
                            from.wrapping_add(((y + i) * SIDE + x + j) * o.position)
                        };
                        // SAFETY: the tiles of a side are the image's.
                        unsafe {
                            let upper = _mm512_add_ps(here.of(at(0, 0)), left.of(at(0, OUTPUTS)));
                            let lower = _mm512_add_ps(
                                above.of(at(OUTPUTS, 0)),
                                above_left.of(at(OUTPUTS, OUTPUTS)),
                            );
                            both[x] = _mm512_add_ps(upper, lower);
                        }
                    }
                    let to = &mut sums[y][OUTPUTS * LANES * register..][..OUTPUTS * LANES];
                    // SAFETY: there is room for both registers.
                    unsafe { store_in_turns(to.as_mut_ptr(), both) };
                }
            }
            let out = out.wrapping_add(n * image + r * channel);
            for first in places.clone().step_by(ROWS_TOGETHER) {
                let there = |n: usize| (first + n < places.end).then_some(first + n);
                let to = |place: usize| out.wrapping_add((place - places.start) * row);
                let mut values = [bias; ROWS_TOGETHER];
                // SAFETY: the lanes kept are columns of the output.
                unsafe {
                    for n in 0..ROWS_TOGETHER {
                        if let Some(place) = there(n).filter(|_| onto) {
                            values[n] = _mm512_maskz_loadu_ps(kept, to(place));
                        }
                    }
                    for n in 0..ROWS_TOGETHER {
                        if let Some(place) = there(n) {
                            let at = place / OUTPUTS * pitch + skipped;
                            let from = &sums[place % OUTPUTS][at..][..LANES];
                            let value = _mm512_add_ps(_mm512_loadu_ps(from.as_ptr()), values[n]);
                            _mm512_mask_storeu_ps(to(place), kept, value);
                        }
                    }
                }
            }
        }
    }
}

/// For each register of blocks: the tiles here, to the left, above, and above to the left.
fn sides([rows, columns]: [usize; 2], registers: usize) -> [[Side; 4]; MOST_REGISTERS] {
    let mut met = [[Side::default(); 4]; MOST_REGISTERS];
    let mut tiles = [0; 4];
    let (mut p, mut q) = (0, 0);
    for met in &mut met[..registers] {
        for side in 0..4 {
            met[side].tile = tiles[side];
        }
        for lane in 0..LANES {
            for side in 0..4 {
                let (down, right) = (side / 2, side % 2);
                if (down..rows + down).contains(&p) && (right..columns + right).contains(&q) {
                    met[side].blocks |= 1 << lane;
                    tiles[side] += 1;
                }
            }
            (p, q) = if q == columns { (p + 1, 0) } else { (p, q + 1) };
        }
    }
    met
}

impl Side {
    /// The values of the tiles, each in the lane of the block that meets it; zero in the others.
    ///
    /// # Safety
    ///
    /// The values of all tiles of an image can be read at `from`.
    #[target_feature(enable = "avx512f")]
    #[inline]
    unsafe fn of(self, from: *const f32) -> __m512 {
        let tiles = first_lanes(self.blocks.count_ones() as usize);
        // SAFETY: the caller vouches for the tiles.
        unsafe {
            let values = _mm512_maskz_loadu_ps(tiles, from.wrapping_add(self.tile));
            _mm512_maskz_expand_ps(self.blocks, values)
        }
    }
}

/// The first `count` lanes of a register.
fn first_lanes(count: usize) -> u16 {
    ((1u32 << count) - 1) as u16
}

/// Stores the lanes of two registers in turns.
///
/// # Safety
///
/// Both can be written at `to`.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn store_in_turns(to: *mut f32, [even, odd]: [__m512; OUTPUTS]) {
    let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    let high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    // SAFETY: the caller vouches for the room.
    unsafe {
        _mm512_storeu_ps(to, _mm512_permutex2var_ps(even, low, odd));
        _mm512_storeu_ps(to.wrapping_add(LANES), _mm512_permutex2var_ps(even, high, odd));
    }
}
