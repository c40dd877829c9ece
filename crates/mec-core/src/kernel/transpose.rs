//! Transposing blocks: `dy` for the weight gradient, its result, and weights for the forward pass.

use super::simd::Vector;

/// A matrix to transpose: `to[j * to_row + i]` from `from[i * from_row + j * from_column]`.
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "for AVX2 alone"))]
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
    /// Elements from each that is read to one that will be read soon.
    pub ahead: isize,
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

/// Where the blocks of `size` x `size` elements of a matrix begin: along the side whose rows lie further
/// apart, so that each of them is met in order.
#[cfg(target_arch = "x86_64")]
pub(super) fn for_each_block<T>(
    t: &Transpose<T>,
    size: usize,
    mut block: impl FnMut(usize, usize),
) {
    if t.to_row > t.from_row.unsigned_abs() {
        for j in (0..t.columns).step_by(size) {
            (0..t.rows).step_by(size).for_each(|i| block(i, j));
        }
    } else {
        for i in (0..t.rows).step_by(size) {
            (0..t.columns).step_by(size).for_each(|j| block(i, j));
        }
    }
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
                                ahead: 0,
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
