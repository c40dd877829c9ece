//! Moving columns between the tensors and the SIMD lanes of panels and tiles.

use super::simd::{Isa, Vector};
use super::tile::Onto;
use pulp::{Simd, WithSimd};

/// A run of columns to pack: the same lanes of every channel's vector in a panel.
pub(crate) struct Pack<T> {
    /// The first element that is read, of the first channel.
    pub from: *const T,
    /// Elements from a channel to the next, in the tensor.
    pub from_channel: isize,
    /// Elements from a column to the next, in the tensor.
    pub from_column: isize,
    /// The run's first lane, of the first channel.
    pub to: *mut T,
    /// Elements from a channel to the next, in the panel.
    pub to_channel: usize,
    /// Channels.
    pub channels: usize,
    /// Lanes of padding, written as zero, before the columns that are read.
    pub before: usize,
    /// Columns that are read.
    pub columns: usize,
    /// Lanes of padding behind them.
    pub after: usize,
}

struct RunPack<'a, T>(&'a Pack<T>);

impl<T: Vector> WithSimd for RunPack<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let p = self.0;
        // SAFETY: `pack`'s contract covers every address formed here.
        unsafe {
            for c in 0..p.channels {
                let from = p.from.wrapping_offset(c as isize * p.from_channel);
                let to = p.to.add(c * p.to_channel);
                zero(simd, to, p.before);
                if p.from_column == 1 {
                    copy(simd, from, to.add(p.before), p.columns);
                } else {
                    for i in 0..p.columns {
                        *to.add(p.before + i) = *from.offset(i as isize * p.from_column);
                    }
                }
                zero(simd, to.add(p.before + p.columns), p.after);
            }
        }
    }
}

#[inline(always)]
unsafe fn copy<T: Vector, S: Simd>(simd: S, from: *const T, to: *mut T, count: usize) {
    let lanes = T::lanes::<S>();
    let mut i = 0;
    // SAFETY: the caller vouches for `count` elements at both addresses.
    unsafe {
        while i + lanes <= count {
            T::store::<S>(to.add(i), T::load::<S>(from.add(i)));
            i += lanes;
        }
        if i < count {
            let value = T::load_first(simd, from.add(i), count - i);
            T::store_first(simd, to.add(i), count - i, value);
        }
    }
}

#[inline(always)]
unsafe fn zero<T: Vector, S: Simd>(simd: S, to: *mut T, count: usize) {
    let (lanes, zero) = (T::lanes::<S>(), T::splat(simd, T::ZERO));
    let mut i = 0;
    // SAFETY: the caller vouches for `count` elements.
    unsafe {
        while i < count {
            T::store_first(simd, to.add(i), (count - i).min(lanes), zero);
            i += lanes;
        }
    }
}

/// Packs one run of columns for all channels.
///
/// # Safety
///
/// The CPU has `I`. For each channel, `columns` elements can be read from `from` and
/// `before + columns + after` can be written at `to`.
pub(crate) unsafe fn pack<T: Vector, I: Isa>(pack: &Pack<T>) {
    // SAFETY: the caller vouches for the CPU.
    unsafe { I::token() }.vectorize(RunPack(pack));
}

/// A run of lanes that lies together in the output.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct OutRun {
    /// First lane.
    pub lane: usize,
    /// Lanes.
    pub columns: usize,
    /// Where lane `lane` of channel 0 belongs, in elements from the output's start.
    pub offset: usize,
}

/// A finished tile whose columns do not lie together in the output.
pub(crate) struct Scatter<'a, T> {
    /// Lane 0 of channel 0.
    pub tile: *const T,
    /// Elements from a channel of the tile to the next.
    pub tile_channel: usize,
    /// Channels.
    pub channels: usize,
    /// Where the lanes go.
    pub runs: &'a [OutRun],
    /// The output's start.
    pub out: *mut T,
    /// Elements from a channel of the output to the next.
    pub out_channel: usize,
    /// Elements from a column of the output to the next.
    pub out_column: usize,
    /// What the tile is added to.
    pub onto: Onto<T>,
}

struct RunScatter<'a, T>(&'a Scatter<'a, T>);

impl<T: Vector> WithSimd for RunScatter<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let s = self.0;
        let lanes = T::lanes::<S>();
        // SAFETY: `scatter`'s contract covers every address formed here.
        unsafe {
            for r in 0..s.channels {
                let tile = s.tile.add(r * s.tile_channel);
                let out = s.out.wrapping_add(r * s.out_channel);
                let bias = match s.onto {
                    Onto::Bias(bias) => *bias.add(r),
                    _ => T::ZERO,
                };
                let bias_vector = T::splat(simd, bias);
                for run in s.runs {
                    let (tile, out) = (tile.add(run.lane), out.wrapping_add(run.offset));
                    if s.out_column == 1 {
                        let mut i = 0;
                        while i < run.columns {
                            let count = (run.columns - i).min(lanes);
                            let mut v = T::load_first(simd, tile.add(i), count);
                            match s.onto {
                                Onto::Nothing => {}
                                Onto::Bias(_) => v = T::sum(simd, v, bias_vector),
                                Onto::Output => {
                                    v = T::sum(simd, v, T::load_first(simd, out.add(i), count))
                                }
                            }
                            T::store_first(simd, out.add(i), count, v);
                            i += lanes;
                        }
                    } else {
                        for i in 0..run.columns {
                            let to = out.add(i * s.out_column);
                            *to = match s.onto {
                                Onto::Nothing => *tile.add(i),
                                Onto::Bias(_) => *tile.add(i) + bias,
                                Onto::Output => *tile.add(i) + *to,
                            };
                        }
                    }
                }
            }
        }
    }
}

/// Writes a tile to its places in the output.
///
/// # Safety
///
/// The CPU has `I`. Every lane of `runs` can be read in each channel of `tile` and written (onto
/// the output: read too) at its place in `out`; a bias has `channels` elements.
pub(crate) unsafe fn scatter<T: Vector, I: Isa>(scatter: &Scatter<T>) {
    // SAFETY: the caller vouches for the CPU.
    unsafe { I::token() }.vectorize(RunScatter(scatter));
}
