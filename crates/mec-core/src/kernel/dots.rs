//! The other weight-gradient micro-kernel: a register tile of `R` output channels by `K` kernel elements, each
//! the dot product of a row of `dy` with a window of the panel.
//!
//! Positions lie in SIMD lanes on both sides, so that `dy` is read where it lies: transposing it, as
//! [`outer`](super::outer) wants it, was half the time of a first layer. At 4 x 3 on AVX2 a vector of positions
//! takes 7 loads for the 6 cycles of its 12 fused multiply-adds, at 8 x 3 on AVX-512 11 loads for 12; where
//! they are not aligned, half of AVX2's loads and all of AVX-512's cross a cache line and count twice. Alone,
//! with a panel in the second-level cache, it reaches 98 % of the FMA peak at 512 positions a call and 86 % at
//! 1024 (Zen 3, AVX2).

use super::LINE;
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
    /// Lanes that the first register of each span leaves out, fewer than it has, so that registers begin where lines do.
    /// Positions are then dealt from another lane on, to the same sums: [`Vector::add_sums`].
    pub skipped: usize,
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

impl<T> Dots<'_, T> {
    /// Lanes to leave out so that registers of so many lanes begin where lines do, from `first` on and from any number of
    /// `steps` further. Memory 16 bytes behind a line's start, as allocators give it, took 1.05 to 1.15 times as long where
    /// a register is a line (Sapphire Rapids). Shorter ones cross lines only now and then, and leaving lanes out took 1.05
    /// to 1.1 times as long.
    pub fn lanes_to_skip(lanes: usize, first: *const T, steps: &[isize]) -> usize {
        let lines = |step: &isize| (step * size_of::<T>() as isize) % LINE as isize == 0;
        if lanes * size_of::<T>() == LINE && steps.iter().all(lines) {
            first.addr() % LINE / size_of::<T>()
        } else {
            0
        }
    }
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
                    panel[k] = t.panel[k].wrapping_add(span.panel);
                }
                let mut dy = t.dy.wrapping_offset(span.dy);
                let ahead = t.ahead.wrapping_offset(span.dy);
                let mut len = span.len;
                if t.skipped > 0 {
                    let first = len.min(lanes - t.skipped);
                    let mask = T::mask(simd, t.skipped, t.skipped + first);
                    let back = |at: *const T| at.wrapping_sub(t.skipped);
                    Self::masked(simd, &mut acc, &panel.map(back), back(dy), &output, mask);
                    for k in 0..K {
                        panel[k] = panel[k].add(first);
                    }
                    dy = dy.wrapping_add(first);
                    len -= first;
                }
                let whole = len / lanes * lanes;
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
                if whole < len {
                    for k in 0..K {
                        panel[k] = panel[k].add(whole);
                    }
                    let mask = T::mask(simd, 0, len - whole);
                    let dy = dy.wrapping_add(whole);
                    Self::masked(simd, &mut acc, &panel, dy, &output, mask);
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

impl<T: Vector, const R: usize, const K: usize> Run<'_, T, R, K> {
    /// Adds what some lanes of a register hold: neither side may bring in what lies beyond, which need not be finite.
    ///
    /// # Safety
    ///
    /// The lanes of `mask` can be read from each of `panel`, and from `dy` for each of `output`.
    #[inline(always)]
    unsafe fn masked<S: Simd>(
        simd: S,
        acc: &mut [[T::Of<S>; K]; R],
        panel: &[*const T; K],
        dy: *const T,
        output: &[isize; R],
        mask: T::Mask<S>,
    ) {
        // SAFETY: the caller vouches for both sides.
        unsafe {
            let mut x = [T::splat(simd, T::ZERO); K];
            for k in 0..K {
                x[k] = T::load_masked(simd, panel[k], mask);
            }
            for r in 0..R {
                let dy = T::load_masked(simd, dy.wrapping_offset(output[r]), mask);
                for k in 0..K {
                    acc[r][k] = T::mul_add(simd, dy, x[k], acc[r][k]);
                }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Kernel;
    use std::fmt::Debug;

    fn sums_stay<T: Vector + From<f32> + PartialEq + Debug>(kernel: &Kernel<T>) {
        let values = |seed: usize, len: usize| -> Vec<T> {
            let value = |i: usize| ((i * 37 + seed) as u32).wrapping_mul(2654435761) >> 8;
            (0..len).map(|i| T::from(value(i) as f32 / 1e7 - 0.8)).collect()
        };
        let (lanes, tile, row) = (kernel.lanes, kernel.dot_outputs, 200);
        let (panel, dy) = (values(1, lanes + ELEMENTS * row), values(2, lanes + tile * row));
        let sums = |skipped: usize, elements: usize, outputs: usize, lens: [usize; 2]| {
            let spans = [0, 1].map(|n| Span { panel: n * 100, dy: n as isize * 100, len: lens[n] });
            let mut sums = vec![T::ONE; ELEMENTS * tile];
            let dots = Dots {
                panel: [0, 1, 2].map(|k| panel[lanes + k * row..].as_ptr()),
                spans: &spans,
                skipped,
                dy: dy[lanes..].as_ptr(),
                dy_output: row as isize,
                outputs,
                ahead: std::ptr::null(),
                sums: sums.as_mut_ptr(),
                sums_element: tile,
            };
            // SAFETY: rows are longer than the spans.
            unsafe { kernel.dots(elements, &dots) };
            sums
        };
        for elements in 1..=ELEMENTS {
            for outputs in [1, tile] {
                for lens in [[1, 2], [lanes, lanes - 1], [40, 77]] {
                    let first = sums(0, elements, outputs, lens);
                    for skipped in 1..lanes {
                        let message = format!("{}: {skipped}, {lens:?}", kernel.name);
                        assert_eq!(sums(skipped, elements, outputs, lens), first, "{message}");
                    }
                }
            }
        }
    }

    /// Sums are the same to the bit whichever lanes are left out, where any are.
    #[test]
    fn lanes_that_are_left_out_do_not_change_sums() {
        let skips = |lanes: usize, bytes: usize| lanes * bytes == LINE;
        Kernel::<f32>::available().into_iter().filter(|k| skips(k.lanes, 4)).for_each(sums_stay);
        Kernel::<f64>::available().into_iter().filter(|k| skips(k.lanes, 8)).for_each(sums_stay);
    }
}
