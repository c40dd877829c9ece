//! Read access to a tensor wherever it lies.

use crate::Error;

/// A four-dimensional strided view of a slice, checked once when it is made.
///
/// Strides are in elements and may be zero or negative; `offset` is where index `[0, 0, 0, 0]` lies. Along an axis of
/// one position, and of a view without elements, a stride is never taken and may have any value.
#[derive(Debug, Clone, Copy)]
pub struct View<'a, T> {
    data: &'a [T],
    offset: usize,
    shape: [usize; 4],
    strides: [isize; 4],
}

impl<'a, T> View<'a, T> {
    /// A view of `data` from `offset` on.
    ///
    /// # Errors
    ///
    /// [`Error::View`] if any index of `shape` would fall outside `data`.
    pub fn new(
        data: &'a [T],
        offset: usize,
        shape: [usize; 4],
        strides: [isize; 4],
    ) -> Result<Self, Error> {
        let outside = Error::View { shape, strides, len: data.len() };
        if !shape.contains(&0) {
            let (mut low, mut high) = (offset as i128, offset as i128);
            for (&size, &stride) in shape.iter().zip(&strides) {
                let reach = (size as i128 - 1) * stride as i128;
                low += reach.min(0);
                high += reach.max(0);
            }
            if low < 0 || high >= data.len() as i128 {
                return Err(outside);
            }
        }
        Ok(Self { data, offset, shape, strides: Self::taken(shape, strides) })
    }

    /// The strides, but those that are never taken as if their axis and the next were one: plans then see what is
    /// contiguous, and no sum of places beside the axis leaves the address space.
    fn taken(shape: [usize; 4], mut strides: [isize; 4]) -> [isize; 4] {
        let (mut next, empty) = (1, shape.contains(&0));
        for (stride, &size) in strides.iter_mut().zip(&shape).rev() {
            if empty || size == 1 {
                *stride = next;
            }
            next = stride.wrapping_mul(size as isize);
        }
        strides
    }

    /// A view of row-major data: the last index varies fastest.
    ///
    /// # Errors
    ///
    /// [`Error::View`] if `data` is shorter than the product of `shape`.
    pub fn contiguous(data: &'a [T], shape: [usize; 4]) -> Result<Self, Error> {
        let [_, c, h, w] = shape.map(|s| s as isize);
        let strides = [c.wrapping_mul(h).wrapping_mul(w), h.wrapping_mul(w), w, 1];
        Self::new(data, 0, shape, strides)
    }

    /// The four sizes.
    pub fn shape(&self) -> [usize; 4] {
        self.shape
    }

    /// The four strides, in elements; along an axis of one position, what they would be in row-major order.
    pub fn strides(&self) -> [isize; 4] {
        self.strides
    }

    /// Checks that this view, called `what` in the message, has the shape a problem asks for.
    pub(crate) fn expect_shape(
        &self,
        what: &'static str,
        expected: [usize; 4],
    ) -> Result<(), Error> {
        if self.shape == expected {
            return Ok(());
        }
        Err(Error::Shape { what, got: self.shape.to_vec(), expected: expected.to_vec() })
    }

    /// Address of index `[0, 0, 0, 0]`.
    ///
    /// Reads through it are sound at every offset `sum(index[i] * strides[i])` whose indices lie
    /// within the shape: [`View::new`] has checked the extremes.
    pub(crate) fn as_ptr(&self) -> *const T {
        self.data.as_ptr().wrapping_add(self.offset)
    }
}

impl<T: Copy> View<'_, T> {
    /// The element at `index`.
    ///
    /// # Panics
    ///
    /// If an index is not below its size.
    pub fn at(&self, index: [usize; 4]) -> T {
        assert!(
            index.iter().zip(&self.shape).all(|(i, s)| i < s),
            "index {index:?} outside shape {:?}",
            self.shape
        );
        let reach: isize = index.iter().zip(&self.strides).map(|(&i, &s)| i as isize * s).sum();
        self.data[self.offset.wrapping_add_signed(reach)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extremes_are_checked() {
        let data = [0.0f32; 12];
        assert!(View::contiguous(&data, [1, 2, 2, 3]).is_ok());
        assert!(View::contiguous(&data, [1, 2, 2, 4]).is_err());
        assert!(View::new(&data, 11, [1, 2, 2, 3], [0, -6, -3, -1]).is_ok());
        assert!(View::new(&data, 10, [1, 2, 2, 3], [0, -6, -3, -1]).is_err());
        assert!(View::new(&data, 99, [0, 2, 2, 3], [0, 6, 3, 1]).is_ok());
        assert!(View::new(&data, 0, [1 << 62, 1, 1, 1], [isize::MAX, 0, 0, 0]).is_err());
    }

    #[test]
    fn strides_that_are_never_taken_are_row_major() {
        let strides =
            |shape, strides| View::new(&[0.0f32; 12], 0, shape, strides).unwrap().strides();
        assert_eq!(strides([1, 2, 1, 3], [isize::MAX, 3, isize::MIN, 1]), [6, 3, 3, 1]);
        assert_eq!(strides([2, 1, 3, 1], [6, 0, 2, 7]), [6, 6, 2, 1]);
        assert_eq!(strides([1, 1, 1, 1], [isize::MIN; 4]), [1; 4]);
        assert_eq!(strides([2, 3, 0, 5], [isize::MAX; 4]), [0, 0, 5, 1]);
    }

    #[test]
    fn at_follows_the_strides() {
        let data: Vec<i32> = (0..12).collect();
        let view = View::new(&data, 11, [1, 2, 2, 3], [0, -6, -3, -1]).unwrap();
        assert_eq!(view.at([0, 0, 0, 0]), 11);
        assert_eq!(view.at([0, 1, 1, 2]), 0);
    }
}
