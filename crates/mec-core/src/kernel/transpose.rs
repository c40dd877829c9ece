//! Transposing blocks: `dy` for the weight gradient, its result, and weights for the forward pass.

use super::simd::Vector;

/// A matrix to transpose: `to[j * to_row + i]` from `from[i * from_row + j * from_column]`.
pub struct Transpose<T> {
    /// The first element that is read.
    pub from: *const T,
    /// Elements from a row to the next.
    pub from_row: isize,
    /// Elements from a column to the next.
    pub from_column: isize,
    /// Rows that are read: columns that are written.
    pub rows: usize,
    /// Columns that are read: rows that are written.
    pub columns: usize,
    /// The first element that is written.
    pub to: *mut T,
    /// Elements from a row to the next.
    pub to_row: usize,
    /// Whether to add to what is there.
    pub onto: bool,
}

/// Transposes element by element.
///
/// # Safety
///
/// `rows * columns` elements can be read from `from` and written (onto something: read too) at `to`.
pub(crate) unsafe fn plain<T: Vector>(t: &Transpose<T>) {
    for j in 0..t.columns {
        for i in 0..t.rows {
            // SAFETY: the caller vouches for both sides.
            unsafe {
                let value = *t.from.offset(i as isize * t.from_row + j as isize * t.from_column);
                let to = t.to.add(j * t.to_row + i);
                *to = if t.onto { *to + value } else { value };
            }
        }
    }
}

/// Transposes `f32` in blocks of 16 x 16 registers.
///
/// A block takes 64 shuffles, a cycle each: a quarter of a cycle for each element, where loads and
/// stores of single elements take one.
///
/// # Safety
///
/// As [`plain`]; the CPU has AVX-512 F.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn avx512(t: &Transpose<f32>) {
    if t.from_column != 1 {
        // SAFETY: the same contract.
        return unsafe { plain(t) };
    }
    // Along the side whose rows lie further apart, so that each of them is met in order.
    // SAFETY: blocks lie inside the matrix.
    unsafe {
        if t.to_row > t.from_row.unsigned_abs() {
            for j in (0..t.columns).step_by(16) {
                for i in (0..t.rows).step_by(16) {
                    block(t, i, j);
                }
            }
        } else {
            for i in (0..t.rows).step_by(16) {
                for j in (0..t.columns).step_by(16) {
                    block(t, i, j);
                }
            }
        }
    }
}

/// One block, from row `i` and column `j` on.
///
/// # Safety
///
/// As [`avx512`]; row and column lie inside the matrix.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn block(t: &Transpose<f32>, i: usize, j: usize) {
    use std::arch::x86_64::*;
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

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
#[inline]
fn transposed(r: [std::arch::x86_64::__m512; 16]) -> [std::arch::x86_64::__m512; 16] {
    use std::arch::x86_64::*;
    let zero = _mm512_setzero_ps();
    // Lane `l` of `quads[g][k]`: column `4 * l + k` of rows `4 * g..4 * g + 4`.
    let mut quads = [[zero; 4]; 4];
    for g in 0..4 {
        let [a, b, c, d] = [r[4 * g], r[4 * g + 1], r[4 * g + 2], r[4 * g + 3]];
        let low = [_mm512_unpacklo_ps(a, b), _mm512_unpacklo_ps(c, d)].map(|v| _mm512_castps_pd(v));
        let high =
            [_mm512_unpackhi_ps(a, b), _mm512_unpackhi_ps(c, d)].map(|v| _mm512_castps_pd(v));
        quads[g] = [
            _mm512_castpd_ps(_mm512_unpacklo_pd(low[0], low[1])),
            _mm512_castpd_ps(_mm512_unpackhi_pd(low[0], low[1])),
            _mm512_castpd_ps(_mm512_unpacklo_pd(high[0], high[1])),
            _mm512_castpd_ps(_mm512_unpackhi_pd(high[0], high[1])),
        ];
    }
    let mut out = [zero; 16];
    for k in 0..4 {
        let [a, b, c, d] = [quads[0][k], quads[1][k], quads[2][k], quads[3][k]];
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Kernel;

    /// Every size around the block's, with gaps between rows, on every kernel of this CPU.
    #[test]
    fn every_size_is_transposed() {
        for kernel in Kernel::<f32>::available() {
            for rows in [1, 3, 8, 15, 16, 17, 33] {
                for columns in [1, 5, 15, 16, 17, 40] {
                    let (from_row, to_row) = (columns + 3, rows + 2);
                    let from: Vec<f32> = (0..rows * from_row).map(|i| i as f32).collect();
                    let mut to = vec![-1.0f32; columns * to_row];
                    for onto in [false, true] {
                        // SAFETY: both sides have room for all rows.
                        unsafe {
                            kernel.transpose(&Transpose {
                                from: from.as_ptr(),
                                from_row: from_row as isize,
                                from_column: 1,
                                rows,
                                columns,
                                to: to.as_mut_ptr(),
                                to_row,
                                onto,
                            });
                        }
                        let times = if onto { 2.0 } else { 1.0 };
                        for (at, &got) in to.iter().enumerate() {
                            let (j, i) = (at / to_row, at % to_row);
                            let expected = match i < rows {
                                true => times * from[i * from_row + j],
                                false => -1.0,
                            };
                            assert_eq!(got, expected, "{}: {rows}x{columns}", kernel.name);
                        }
                    }
                }
            }
        }
    }
}
