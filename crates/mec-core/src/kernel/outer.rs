//! The weight-gradient micro-kernel: a register tile of `V` vectors of output channels by
//! [`STEPS`] kernel elements, summed over the columns of some rows.
//!
//! Output channels lie in SIMD lanes and are read from a transposed piece of `dy`; the kernel
//! elements are rows of the same panel that the forward pass reads, broadcast column by column.
//! At 4 x 6 on AVX-512 a column takes 10 loads for the 12 cycles of its 24 fused multiply-adds.

use super::simd::{Isa, Vector};
use pulp::{Simd, WithSimd};

/// Kernel elements of a tile.
pub(crate) const STEPS: usize = 6;

/// Columns that follow each other in the panel and in the transposed `dy`.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Stretch {
    /// Elements from a kernel element's start in the panel to the first column.
    pub panel: usize,
    /// Columns.
    pub columns: usize,
}

/// One call of the micro-kernel.
pub(crate) struct Outer<'a, T> {
    /// Where each kernel element starts in the panel; the last one repeated where there are fewer.
    pub panel: [*const T; STEPS],
    /// The columns to sum over.
    pub stretches: &'a [Stretch],
    /// The first column of `dy`, `V` vectors of channels; all columns follow each other.
    pub dy: *const T,
    /// The first kernel element's sums, `V` vectors.
    pub out: *mut T,
    /// Elements from a kernel element's sums to the next's.
    pub out_step: usize,
    /// Kernel elements to store, at least 1.
    pub steps: usize,
    /// Whether `out` holds a sum already.
    pub onto: bool,
}

struct Run<'a, T, const V: usize>(&'a Outer<'a, T>);

impl<T: Vector, const V: usize> WithSimd for Run<'_, T, V> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let t = self.0;
        let lanes = T::lanes::<S>();
        let mut acc = [[T::splat(simd, T::ZERO); V]; STEPS];
        // SAFETY: `outer`'s contract covers every address formed here.
        unsafe {
            if t.onto {
                for k in 0..STEPS {
                    if k < t.steps {
                        for v in 0..V {
                            acc[k][v] = T::load::<S>(t.out.add(k * t.out_step + v * lanes));
                        }
                    }
                }
            }
            let mut dy = t.dy;
            for stretch in t.stretches {
                let panel: [*const T; STEPS] =
                    std::array::from_fn(|k| t.panel[k].add(stretch.panel));
                for column in 0..stretch.columns {
                    let channels: [T::Of<S>; V] =
                        std::array::from_fn(|v| T::load::<S>(dy.add(v * lanes)));
                    for k in 0..STEPS {
                        let x = T::splat(simd, *panel[k].add(column));
                        for v in 0..V {
                            acc[k][v] = T::mul_add(simd, channels[v], x, acc[k][v]);
                        }
                    }
                    dy = dy.add(V * lanes);
                }
            }
            for k in 0..STEPS {
                if k < t.steps {
                    for v in 0..V {
                        T::store::<S>(t.out.add(k * t.out_step + v * lanes), acc[k][v]);
                    }
                }
            }
        }
    }
}

/// Computes one tile.
///
/// # Safety
///
/// The CPU has `I`. Every column of the stretches can be read from every pointer of `panel`, and as
/// many times `V` vectors from `dy`; `V` vectors can be written (and, onto the
/// output, read) for each of `steps` steps of `out`.
pub(crate) unsafe fn outer<T: Vector, I: Isa, const V: usize>(outer: &Outer<T>) {
    // SAFETY: the caller vouches for the CPU.
    unsafe { I::token() }.vectorize(Run::<T, V>(outer));
}
