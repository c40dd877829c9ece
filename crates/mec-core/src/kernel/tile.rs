//! The forward micro-kernel: a register tile of `V` vectors of columns by `R` channels.
//!
//! Columns lie in SIMD lanes and are read from a packed panel; channels are broadcast from the
//! weight. Every step of the sum loads `V` vectors and `R` scalars for `V * R` fused multiply-adds:
//! at 3 x 8 on AVX-512 that is 11 loads for the 12 cycles in which two ports do 24 of them, so the
//! loads hide and the accumulators (24 of 32 registers) cover the latency of four cycles.

use super::simd::{Isa, Vector};
use pulp::{Simd, WithSimd};

/// What the accumulators are added to before they are stored.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Onto<T> {
    /// Nothing: this is the whole sum.
    Nothing,
    /// One value for each channel, read from here.
    Bias(*const T),
    /// What the output holds already.
    Output,
}

/// The three nested loops of a sum: `count` steps, each moving the two operands by its strides.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Loop {
    /// Iterations.
    pub count: usize,
    /// Elements from one iteration's columns to the next's.
    pub panel: usize,
    /// Elements from one iteration's weight to the next's.
    pub weight: isize,
}

/// One call of the micro-kernel.
pub(crate) struct Tile<T> {
    /// First vector of columns. Each innermost step reads `V` whole vectors from it.
    pub panel: *const T,
    /// First weight of channel 0.
    pub weight: *const T,
    /// Elements from a channel's weight to the next's.
    pub weight_channel: isize,
    /// The sum, outermost loop first. The innermost `panel` step is always `V` vectors.
    pub sum: [Loop; 3],
    /// Column 0 of channel 0.
    pub out: *mut T,
    /// Elements from a channel's columns to the next's.
    pub out_channel: usize,
    /// Columns to store, at most `V` vectors.
    pub columns: usize,
    /// Channels to store, at least 1 and at most `R`.
    pub channels: usize,
    /// What the sum is added to.
    pub onto: Onto<T>,
}

struct Run<'a, T, const V: usize, const R: usize>(&'a Tile<T>);

impl<T: Vector, const V: usize, const R: usize> WithSimd for Run<'_, T, V, R> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let t = self.0;
        let lanes = T::lanes::<S>();
        let [outer, middle, inner] = t.sum;
        let mut acc = [[T::splat(simd, T::ZERO); V]; R];
        // Channels beyond the last one repeat it, so that no read leaves the weight.
        let channel: [isize; R] =
            std::array::from_fn(|r| r.min(t.channels - 1) as isize * t.weight_channel);
        // SAFETY: `tile`'s contract covers every address formed here.
        unsafe {
            for o in 0..outer.count {
                for m in 0..middle.count {
                    let mut panel = t.panel.add(o * outer.panel + m * middle.panel);
                    let first =
                        t.weight.offset(o as isize * outer.weight + m as isize * middle.weight);
                    let mut weight: [*const T; R] =
                        std::array::from_fn(|r| first.wrapping_offset(channel[r]));
                    for _ in 0..inner.count {
                        let columns: [T::Of<S>; V] =
                            std::array::from_fn(|v| T::load::<S>(panel.add(v * lanes)));
                        for r in 0..R {
                            let w = T::splat(simd, *weight[r]);
                            for v in 0..V {
                                acc[r][v] = T::mul_add(simd, columns[v], w, acc[r][v]);
                            }
                            weight[r] = weight[r].wrapping_offset(inner.weight);
                        }
                        panel = panel.add(V * lanes);
                    }
                }
            }
            let whole = t.columns == V * lanes;
            for r in 0..R {
                if r == t.channels {
                    break;
                }
                let out = t.out.add(r * t.out_channel);
                let bias = match t.onto {
                    Onto::Bias(bias) => *bias.add(r),
                    _ => T::ZERO,
                };
                for v in 0..V {
                    let to = out.wrapping_add(v * lanes);
                    let count = t.columns.saturating_sub(v * lanes).min(lanes);
                    let sum = match t.onto {
                        Onto::Nothing => acc[r][v],
                        Onto::Bias(_) => T::sum(simd, acc[r][v], T::splat(simd, bias)),
                        Onto::Output => T::sum(simd, acc[r][v], T::load_first(simd, to, count)),
                    };
                    if whole {
                        T::store::<S>(to, sum);
                    } else {
                        T::store_first(simd, to, count, sum);
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
/// The CPU has `I`. Over all steps of `tile.sum`, `V` vectors can be read from `panel` and one
/// element from `weight` for each of `channels`; `columns` elements can be written (and, onto the
/// output, read) in each of `channels` rows of `out`; a bias has `channels` elements.
pub(crate) unsafe fn tile<T: Vector, I: Isa, const V: usize, const R: usize>(tile: &Tile<T>) {
    // SAFETY: the caller vouches for the CPU.
    unsafe { I::token() }.vectorize(Run::<T, V, R>(tile));
}
