//! One matrix product of the GEMM crate, with its bounds checked.

use std::any::TypeId;

use crate::Element;

/// A row-major matrix inside a slice: row `i` begins at `i * leading`.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a, T> {
    pub data: &'a [T],
    pub rows: usize,
    pub columns: usize,
    pub leading: usize,
}

impl<T> Matrix<'_, T> {
    fn fits(len: usize, rows: usize, columns: usize, leading: usize) -> bool {
        rows == 0
            || columns == 0
            || (rows - 1)
                .checked_mul(leading)
                .and_then(|start| start.checked_add(columns))
                .is_some_and(|end| end <= len)
    }
}

/// `c = a * b`, where `c` is dense and row-major.
///
/// # Panics
///
/// If the sizes do not match or a matrix reaches outside its slice.
pub(crate) fn multiply<T: Element>(a: Matrix<T>, b: Matrix<T>, c: &mut [T]) {
    let (m, k, n) = (a.rows, a.columns, b.columns);
    assert!(b.rows == k, "the inner sizes differ: {k} and {}", b.rows);
    assert!(Matrix::<T>::fits(a.data.len(), m, k, a.leading), "the left matrix is cut off");
    assert!(Matrix::<T>::fits(b.data.len(), k, n, b.leading), "the right matrix is cut off");
    assert!(Matrix::<T>::fits(c.len(), m, n, n), "the result is cut off");
    let (lda, ldb, ldc) = (a.leading as isize, b.leading as isize, n as isize);
    let (a, b, c) = (a.data.as_ptr(), b.data.as_ptr(), c.as_mut_ptr());
    if TypeId::of::<T>() == TypeId::of::<f32>() {
        let (a, b, c) = (a.cast(), b.cast(), c.cast());
        // SAFETY: `T` is f32; the assertions above keep every row of all three matrices inside its
        // slice; the rows of `c` do not overlap, and as a `&mut` it does not alias `a` or `b`.
        unsafe { matrixmultiply::sgemm(m, k, n, 1.0, a, lda, 1, b, ldb, 1, 0.0, c, ldc, 1) }
    } else {
        assert_eq!(TypeId::of::<T>(), TypeId::of::<f64>(), "`Element` is sealed");
        let (a, b, c) = (a.cast(), b.cast(), c.cast());
        // SAFETY: as above, with `T` being f64.
        unsafe { matrixmultiply::dgemm(m, k, n, 1.0, a, lda, 1, b, ldb, 1, 0.0, c, ldc, 1) }
    }
}

/// Most elements that [`multiply`] of `m x k` and `k x n` holds while it runs.
///
/// The GEMM crate packs one block of each operand: 64 x 256 of the left one (two of them where its
/// `threading` feature is on), 256 x 1024 of the right one, rounded up to a micro-kernel of at most
/// 16 x 16.
pub(crate) fn packed_elements(m: usize, k: usize, n: usize) -> usize {
    let left = m.min(64).next_multiple_of(16) * if m < 96 { 1 } else { 2 };
    let right = n.min(1024).next_multiple_of(16);
    if m == 0 || n == 0 { 0 } else { k.min(256) * (left + right) }
}
