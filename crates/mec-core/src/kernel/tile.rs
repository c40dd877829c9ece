//! The forward micro-kernel: a register tile of `V` vectors of columns by `R` output channels.
//!
//! Columns lie in SIMD lanes and are read from a packed panel; output channels are broadcast from
//! the weight, where it lies. Every step of the sum loads `V` vectors, `R` scalars and where the
//! columns lie for `V * R` fused multiply-adds: at 3 x 8 on AVX-512 that is 12 loads for the 12 cycles
//! in which two ports do 24 of them, so the loads hide and the accumulators (24 of 32 registers) cover
//! the latency of four cycles. At 2 x 6 on AVX2 it is 9 loads for 6 cycles, and 12 of 16 registers; at
//! 3 x 4, which reads the panel half as often again and leaves no register for the next weight, the
//! compiler moved accumulators about and the loop took 1.5 times as long (Zen 2).
//!
//! Packing the weights as well was tried and is slower in the forward pass: `R` streams that each
//! advance by one element stay in the first-level cache, while a copy must be made, stored and read
//! back (cv5, cv6, cv11, cv12 at batch 32: 76, 76, 67 and 65 % of FMA peak packed, 85, 84, 82 and 83
//! % in place). In the input gradient a step of the sum jumps by the weights of all the layer's input
//! channels, caches and their look-ahead are of no help, and [`PackWeights`] pays for itself.

use super::LINE;
use super::simd::{Isa, Vector};
use pulp::{Simd, WithSimd};

/// Most vectors of columns of a tile.
pub(crate) const MAX_VECTORS: usize = 3;

/// What a sum is added to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Onto<T> {
    /// Nothing: it is stored as it is.
    Nothing,
    /// One value for each output channel, read from here.
    Bias(*const T),
    /// What the output holds already.
    Output,
}

/// One kernel element of a sum.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tap {
    /// Elements from a channel's first column to the one this kernel element meets.
    pub panel: usize,
    /// Elements from a channel's first weight to this kernel element's.
    pub weight: isize,
}

impl Tap {
    /// Elements from each tap's weight to the next's, if that is one distance.
    pub fn weight_step(taps: &[Self]) -> Option<isize> {
        let distance = |pair: &[Self]| pair[1].weight - pair[0].weight;
        let first = taps.get(..2).map_or(0, distance);
        taps.windows(2).all(|pair| distance(pair) == first).then_some(first)
    }
}

/// One call of the micro-kernel.
pub(crate) struct Tile<'a, T> {
    /// The window's first column of the first channel; `V` vectors are read at each tap.
    pub panel: *const T,
    /// Elements from a channel's columns to the next's.
    pub panel_channel: usize,
    /// First weight of the first channel and output.
    pub weight: *const T,
    /// Elements from a channel's weights to the next's.
    pub weight_channel: isize,
    /// Elements from an output's weights to the next's.
    pub weight_output: isize,
    /// Elements from each tap's weight to the next's, where that is one distance: then no step of the
    /// sum looks it up. That load is one of ten, beside 12 multiply-adds on two ports, and took a tenth
    /// of the time (AVX2).
    pub weight_step: Option<isize>,
    /// Channels to sum over.
    pub channels: usize,
    /// Kernel elements to sum over.
    pub taps: &'a [Tap],
    /// Where each vector of columns of output 0 belongs; all `V` are stored for each output.
    pub out: [*mut T; MAX_VECTORS],
    /// Elements from an output's columns to the next's.
    pub out_channel: usize,
    /// Outputs to store, at least 1 and at most `R`.
    pub outputs: usize,
    /// What the sum is added to.
    pub onto: Onto<T>,
    /// Windows below each other, at least 1: with few channels a call of its own for each took longer than
    /// its sum.
    pub rows: usize,
    /// Elements from a window's panel to the next's.
    pub panel_row: usize,
    /// Elements from a window's columns to the next's.
    pub out_row: usize,
}

struct Run<'a, T, const V: usize, const R: usize>(&'a Tile<'a, T>);

impl<T: Vector, const V: usize, const R: usize> WithSimd for Run<'_, T, V, R> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for row in 0..self.0.rows {
            // SAFETY: `tile`'s contract covers every window.
            unsafe { self.window(simd, row) };
        }
    }
}

impl<T: Vector, const V: usize, const R: usize> Run<'_, T, V, R> {
    /// One of the windows.
    ///
    /// # Safety
    ///
    /// As [`tile`], for window `row`.
    #[inline(always)]
    unsafe fn window<S: Simd>(&self, simd: S, row: usize) {
        let t = self.0;
        // As values of their own: the compiler read them from `t` again after each store.
        let (outputs, out_channel) = (t.outputs, t.out_channel);
        let out: [*mut T; V] = std::array::from_fn(|v| t.out[v].wrapping_add(row * t.out_row));
        let first_panel = t.panel.wrapping_add(row * t.panel_row);
        let mut acc = [[T::splat(simd, T::ZERO); V]; R];
        if let Onto::Bias(bias) = t.onto {
            for r in 0..R {
                // SAFETY: each of the outputs has one, and the last stands for those beyond.
                let bias = T::splat(simd, unsafe { *bias.add(r.min(outputs - 1)) });
                for v in 0..V {
                    acc[r][v] = bias;
                }
            }
        }
        // Outputs beyond the last one repeat it, so that no read leaves the weight.
        let output: [isize; R] =
            std::array::from_fn(|r| r.min(outputs - 1) as isize * t.weight_output);
        // SAFETY: `tile`'s contract covers every address formed here.
        unsafe {
            let weight: [*const T; R] =
                std::array::from_fn(|r| t.weight.wrapping_offset(output[r]));
            match (t.weight_step, t.taps) {
                (Some(_), [tap]) => {
                    let (panel, mut at) = (first_panel.add(tap.panel), tap.weight);
                    for c in 0..t.channels {
                        step(simd, &mut acc, panel.add(c * t.panel_channel), &weight, at);
                        at += t.weight_channel;
                    }
                }
                (Some(weight_step), [first, ..]) => {
                    let gap = t.weight_channel - weight_step * t.taps.len() as isize;
                    let mut at = first.weight;
                    for c in 0..t.channels {
                        let panel = first_panel.add(c * t.panel_channel);
                        for tap in t.taps {
                            step(simd, &mut acc, panel.add(tap.panel), &weight, at);
                            at += weight_step;
                        }
                        at += gap;
                    }
                }
                (_, taps) => {
                    for c in 0..t.channels {
                        let panel = first_panel.add(c * t.panel_channel);
                        let channel = c as isize * t.weight_channel;
                        for tap in taps {
                            let at = channel + tap.weight;
                            step(simd, &mut acc, panel.add(tap.panel), &weight, at);
                        }
                    }
                }
            }
            // Accumulators must only be indexed by constants, or they leave the registers: hence
            // short loops, which the compiler unrolls.
            let out = |r: usize, v: usize| out[v].wrapping_add(r * out_channel);
            if matches!(t.onto, Onto::Output) {
                for r in 0..R {
                    if r < outputs {
                        for v in 0..V {
                            let held = T::load::<S>(out(r, v));
                            T::store::<S>(out(r, v), T::sum(simd, acc[r][v], held));
                        }
                    }
                }
            } else {
                for r in 0..R {
                    if r < outputs {
                        for v in 0..V {
                            T::store::<S>(out(r, v), acc[r][v]);
                        }
                    }
                }
            }
        }
    }
}

/// One step of the sum: a column of weights times the registers at `panel`.
///
/// # Safety
///
/// `V` vectors can be read at `panel` and an element at `at` from each of `weight`.
#[inline(always)]
pub(super) unsafe fn step<T: Vector, S: Simd, const V: usize, const R: usize>(
    simd: S,
    acc: &mut [[T::Of<S>; V]; R],
    panel: *const T,
    weight: &[*const T; R],
    at: isize,
) {
    // SAFETY: the caller vouches for both sides.
    unsafe {
        let columns: [T::Of<S>; V] =
            std::array::from_fn(|v| T::load::<S>(panel.add(v * T::lanes::<S>())));
        for r in 0..R {
            let w = T::splat(simd, *weight[r].wrapping_offset(at));
            for v in 0..V {
                acc[r][v] = T::mul_add(simd, columns[v], w, acc[r][v]);
            }
        }
    }
}

/// Computes one tile.
///
/// # Safety
///
/// The CPU has `I`. For each window, channel and tap, `V` vectors can be read from `panel` and one element
/// from `weight` for each of `outputs`, of which there is at least one; a vector can be written (and,
/// onto the output, read) in each of `outputs` rows of the first `V` of `out`; a bias has `outputs`
/// elements.
pub(crate) unsafe fn tile<T: Vector, I: Isa, const V: usize, const R: usize>(tile: &Tile<T>) {
    // SAFETY: the caller vouches for the CPU.
    unsafe { I::token() }.vectorize(Run::<T, V, R>(tile));
}

/// The weights of one tile, to be copied for the micro-kernel: `[channel][tap][R]`.
pub(crate) struct PackWeights<'a, T> {
    /// First weight of the first channel and output.
    pub from: *const T,
    /// Elements from a channel's weights to the next's.
    pub channel: isize,
    /// Elements from an output's weights to the next's.
    pub output: isize,
    /// Channels.
    pub channels: usize,
    /// Outputs, at least 1 and at most `R`; the last one fills the places of those missing.
    pub outputs: usize,
    /// Kernel elements; only their places in the weight matter.
    pub taps: &'a [Tap],
    /// Where to write.
    pub to: *mut T,
}

/// How far ahead weights are fetched: a few hundred cycles of packing.
const PREFETCH_CHANNELS: isize = 8;

/// Most lines fetched for a channel.
const PREFETCH_LINES: isize = 8;

/// Asks for the line at `at`, which need not be readable.
#[inline(always)]
pub(crate) fn prefetch<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch(at.cast::<i8>(), _MM_HINT_T0);
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// The same for the second-level cache alone: what is wanted in some thousand cycles, beside what the first level holds
/// (cv7, r1 and c1 1.05 times as fast in the weight gradient as by [`prefetch`]).
#[inline(always)]
pub(crate) fn prefetch_far<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch(at.cast::<i8>(), _MM_HINT_T1);
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Copies the weights of one tile.
///
/// # Safety
///
/// All weights can be read, and `channels * taps * R` elements can be written.
pub(crate) unsafe fn pack_weights<T: Copy, const R: usize>(p: &PackWeights<T>) {
    let mut to = p.to;
    let line = (LINE / size_of::<T>()) as isize;
    for c in 0..p.channels as isize {
        // Each channel's weights are a few lines, far from the last one's: no pattern that a CPU
        // would follow by itself.
        let ahead = p.from.wrapping_offset((c + PREFETCH_CHANNELS) * p.channel);
        for at in 0..=(p.outputs as isize * p.output.abs() / line).min(PREFETCH_LINES) {
            prefetch(ahead.wrapping_offset(at * line));
        }
        let from: [*const T; R] = std::array::from_fn(|r| {
            let output = r.min(p.outputs - 1) as isize;
            p.from.wrapping_offset(c * p.channel + output * p.output)
        });
        for tap in p.taps {
            // SAFETY: the caller vouches for both sides.
            unsafe {
                for (r, from) in from.iter().enumerate() {
                    *to.add(r) = *from.wrapping_offset(tap.weight);
                }
                to = to.add(R);
            }
        }
    }
}
