//! The same tensor in many places: data laid out so that a view of it has unusual strides.

use crate::View;

/// How the elements of a tensor lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Row-major.
    Contiguous,
    /// Axes in another order of nesting, outermost first: `[0, 2, 3, 1]` is NHWC.
    Permuted([usize; 4]),
    /// Row-major with every axis running backwards: negative strides.
    Reversed,
    /// A part of a larger tensor: gaps between elements, rows, channels and images.
    Sliced,
    /// Stride zero along one axis: all its positions are its first.
    Broadcast(usize),
    /// Row-major, but with strides as large as can be along axes of one position, where none is ever taken.
    Untaken,
}

impl Layout {
    /// One of each kind, and the permutations that frameworks produce.
    pub const ALL: [Layout; 11] = [
        Layout::Contiguous,
        Layout::Permuted([0, 2, 3, 1]),
        Layout::Permuted([0, 1, 3, 2]),
        Layout::Permuted([1, 0, 2, 3]),
        Layout::Reversed,
        Layout::Sliced,
        Layout::Broadcast(0),
        Layout::Broadcast(1),
        Layout::Broadcast(2),
        Layout::Broadcast(3),
        Layout::Untaken,
    ];
}

/// A tensor in a given [`Layout`], owning its memory.
#[derive(Debug, Clone)]
pub struct Strided<T> {
    data: Vec<T>,
    offset: usize,
    shape: [usize; 4],
    strides: [isize; 4],
}

impl<T: Copy> Strided<T> {
    /// Lays out the row-major `values` of `shape`; memory between elements is filled with `gap`
    /// (a NaN shows whoever reads it).
    pub fn new(values: &[T], shape: [usize; 4], layout: Layout, gap: T) -> Self {
        // Nesting of the axes, elements from one position of the innermost to the next, and
        // positions of gap after each axis.
        let (order, step, margin) = match layout {
            Layout::Permuted(order) => (order, 1, 0),
            Layout::Sliced => ([0, 1, 2, 3], 2, 3),
            _ => ([0, 1, 2, 3], 1, 0),
        };
        let mut strides = [0isize; 4];
        let mut len = step;
        for axis in order.into_iter().rev() {
            if layout != Layout::Broadcast(axis) {
                strides[axis] = len as isize;
                len *= shape[axis] + margin;
            }
        }
        let mut offset = 0;
        if layout == Layout::Reversed {
            for axis in 0..4 {
                offset += strides[axis] as usize * shape[axis].saturating_sub(1);
                strides[axis] = -strides[axis];
            }
        }
        if layout == Layout::Untaken {
            for axis in (0..4).filter(|&axis| shape[axis] == 1) {
                strides[axis] = isize::MAX;
            }
        }
        let mut data = vec![gap; len];
        let at = row_major(shape);
        for (index, &value) in at.zip(values) {
            let is_first = |axis: usize| index[axis] == 0;
            if !matches!(layout, Layout::Broadcast(axis) if !is_first(axis)) {
                data[place(offset, strides, index)] = value;
            }
        }
        Self { data, offset, shape, strides }
    }

    /// The tensor where it lies.
    pub fn view(&self) -> View<'_, T> {
        View::new(&self.data, self.offset, self.shape, self.strides).expect("it was made to fit")
    }

    /// The tensor's values in row-major order: those it was made of, unless broadcast.
    pub fn values(&self) -> Vec<T> {
        row_major(self.shape).map(|i| self.data[place(self.offset, self.strides, i)]).collect()
    }
}

fn place(offset: usize, strides: [isize; 4], index: [usize; 4]) -> usize {
    let reach: isize = index.iter().zip(strides).map(|(&i, s)| i as isize * s).sum();
    offset.strict_add_signed(reach)
}

/// All indices of `shape`, the last varying fastest.
fn row_major([a, b, c, d]: [usize; 4]) -> impl Iterator<Item = [usize; 4]> {
    (0..a * b * c * d).map(move |i| [i / (b * c * d), i / (c * d) % b, i / d % c, i % d])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layout_holds_the_values() {
        let shape = [2, 3, 4, 5];
        let values: Vec<f32> = (0..120).map(|v| v as f32).collect();
        for layout in Layout::ALL {
            let strided = Strided::new(&values, shape, layout, f32::NAN);
            match layout {
                Layout::Broadcast(axis) => {
                    assert_eq!(strided.view().strides()[axis], 0);
                    let view = strided.view();
                    for index in row_major(shape) {
                        let mut first = index;
                        first[axis] = 0;
                        let [n, c, h, w] = first;
                        assert_eq!(view.at(index), values[((n * 3 + c) * 4 + h) * 5 + w]);
                    }
                }
                _ => assert_eq!(strided.values(), values, "{layout:?}"),
            }
        }
    }
}
