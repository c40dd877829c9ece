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
    /// Whether the last lane is the last column of its row.
    pub ends: bool,
}

/// A finished tile whose columns do not lie together in the output, or tiles of several phases,
/// whose columns take turns there.
pub(crate) struct Scatter<'a, T> {
    /// Lane 0 of phase 0 of channel 0.
    pub tile: *const T,
    /// Elements from a phase of the tile to the next. Channels follow the last phase.
    pub tile_phase: usize,
    /// Phases.
    pub phases: usize,
    /// Phases that the last column of a row has.
    pub last_phases: usize,
    /// Channels.
    pub channels: usize,
    /// Where the lanes go.
    pub runs: &'a [OutRun],
    /// The output's start.
    pub out: *mut T,
    /// Elements from a channel of the output to the next.
    pub out_channel: usize,
    /// Elements from a column of a phase to the next, in the output.
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
        // SAFETY: `scatter`'s contract covers every address formed here.
        unsafe {
            for r in 0..s.channels {
                let bias = match s.onto {
                    Onto::Bias(bias) => *bias.add(r),
                    _ => T::ZERO,
                };
                let onto = matches!(s.onto, Onto::Output);
                for run in s.runs {
                    let out = s.out.wrapping_add(r * s.out_channel + run.offset);
                    for phase in 0..s.phases {
                        let tile = s.tile.add((r * s.phases + phase) * s.tile_phase + run.lane);
                        let missing = usize::from(run.ends && phase >= s.last_phases);
                        let columns = run.columns - missing;
                        if s.out_column == 1 {
                            add_run(simd, tile, out, columns, bias, onto);
                        } else {
                            for i in 0..columns {
                                let to = out.wrapping_add(phase + i * s.out_column);
                                let value = *tile.add(i) + bias;
                                *to = if onto { value + *to } else { value };
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Writes `from + bias`, or adds it to what is there.
#[inline(always)]
unsafe fn add_run<T: Vector, S: Simd>(
    simd: S,
    from: *const T,
    to: *mut T,
    count: usize,
    bias: T,
    onto: bool,
) {
    let (lanes, bias) = (T::lanes::<S>(), T::splat(simd, bias));
    let mut i = 0;
    // SAFETY: the caller vouches for `count` elements at both addresses.
    unsafe {
        while i < count {
            let n = (count - i).min(lanes);
            let mut value = T::sum(simd, T::load_first(simd, from.add(i), n), bias);
            if onto {
                value = T::sum(simd, value, T::load_first(simd, to.add(i), n));
            }
            T::store_first(simd, to.add(i), n, value);
            i += lanes;
        }
    }
}

/// Writes a tile to its places in the output.
///
/// # Safety
///
/// The CPU has `I`. Every lane of `runs` can be read in each phase and channel of `tile` and written
/// (onto the output: read too) at its place in `out`; a bias has `channels` elements.
pub(crate) unsafe fn scatter<T: Vector, I: Isa>(scatter: &Scatter<T>) {
    // SAFETY: the caller vouches for the CPU.
    unsafe { I::token() }.vectorize(RunScatter(scatter));
}
