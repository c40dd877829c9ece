//! The other weight-gradient micro-kernel: a register tile of `R` output channels by `K` kernel elements, each
//! the dot product of a row of `dy` with a window of the panel.
//!
//! Positions lie in SIMD lanes on both sides, so that `dy` is read where it lies: transposing it, as
//! [`outer`](super::outer) wants it, was half the time of a first layer. At 4 x 3 on AVX2 a vector of positions
//! takes 7 loads for the 6 cycles of its 12 fused multiply-adds, at 8 x 3 on AVX-512 11 loads for 12; where
//! they are not aligned, half of AVX2's loads and all of AVX-512's cross a cache line and count twice. Alone,
//! with a panel in the second-level cache, it reaches 98 % of the FMA peak at 512 positions a call and 86 % at
//! 1024 (Zen 3, AVX2).

use super::simd::{Isa, Vector};
use super::tile::prefetch_far;
use pulp::{Simd, WithSimd};

/// Most kernel elements of a tile: a row of a 3 x 3 kernel.
pub(crate) const ELEMENTS: usize = 3;

/// Positions that follow each other in the panel and in `dy`.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Span {
    /// Elements from a kernel element's start in the panel to the first position.
    pub panel: usize,
    /// Elements from an output channel's start to the first position.
    pub dy: isize,
    /// Positions.
    pub len: usize,
}

/// One call of the micro-kernel.
pub(crate) struct Dots<'a, T> {
    /// Where each kernel element starts in the panel; `K` are read.
    pub panel: [*const T; ELEMENTS],
    /// The positions to sum over.
    pub spans: &'a [Span],
    /// Where the first output channel starts.
    pub dy: *const T,
    /// Elements from an output channel to the next.
    pub dy_output: isize,
    /// Output channels, at least 1 and at most `R`.
    pub outputs: usize,
    /// Where an output channel starts that is wanted next, or null: it is asked for meanwhile.
    pub ahead: *const T,
    /// The first kernel element's sums, `R` output channels: what is found is added to them.
    pub sums: *mut T,
    /// Elements from a kernel element's sums to the next's.
    pub sums_element: usize,
}

struct Run<'a, T, const R: usize, const K: usize>(&'a Dots<'a, T>);

impl<T: Vector, const R: usize, const K: usize> WithSimd for Run<'_, T, R, K> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let t = self.0;
        let lanes = T::lanes::<S>();
        let mut acc = [[T::splat(simd, T::ZERO); K]; R];
        // An output that is missing is another's once more.
        let mut output = [0; R];
        for r in 0..R {
            output[r] = r.min(t.outputs - 1) as isize * t.dy_output;
        }
        // SAFETY: `dots`' contract covers every address formed here.
        unsafe {
            for span in t.spans {
                let mut panel = [t.panel[0]; K];
                for k in 0..K {
                    panel[k] = t.panel[k].add(span.panel);
                }
                let dy = t.dy.wrapping_offset(span.dy);
                let ahead = t.ahead.wrapping_offset(span.dy);
                let whole = span.len / lanes * lanes;
                for at in (0..whole).step_by(lanes) {
                    if !t.ahead.is_null() {
                        prefetch_far(ahead.wrapping_add(at));
                    }
                    let mut x = [T::splat(simd, T::ZERO); K];
                    for k in 0..K {
                        x[k] = T::load::<S>(panel[k].add(at));
                    }
                    for r in 0..R {
                        let dy = T::load::<S>(dy.wrapping_offset(output[r]).add(at));
                        for k in 0..K {
                            acc[r][k] = T::mul_add(simd, dy, x[k], acc[r][k]);
                        }
                    }
                }
                if whole < span.len {
                    // Neither side may bring in what is not finite.
                    let rest = T::mask(simd, 0, span.len - whole);
                    let mut x = [T::splat(simd, T::ZERO); K];
                    for k in 0..K {
                        x[k] = T::load_masked(simd, panel[k].add(whole), rest);
                    }
                    for r in 0..R {
                        let from = dy.wrapping_offset(output[r]).add(whole);
                        let dy = T::load_masked(simd, from, rest);
                        for k in 0..K {
                            acc[r][k] = T::mul_add(simd, dy, x[k], acc[r][k]);
                        }
                    }
                }
            }
            for k in 0..K {
                let mut lanes = [acc[0][k]; R];
                for r in 0..R {
                    lanes[r] = acc[r][k];
                }
                T::add_sums(simd, t.sums.add(k * t.sums_element), lanes);
            }
        }
    }
}

/// Computes one tile.
///
/// # Safety
///
/// The CPU has `I`. Every position of the spans can be read from the first `K` pointers of `panel` and
/// for each output of `dy`; `R` sums of `K` kernel elements can be read and written.
pub(crate) unsafe fn dots<T: Vector, I: Isa, const R: usize, const K: usize>(dots: &Dots<T>) {
    // SAFETY: the caller vouches for the CPU.
    unsafe { I::token() }.vectorize(Run::<T, R, K>(dots));
}
