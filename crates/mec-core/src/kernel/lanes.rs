//! Moving columns between the tensors and the SIMD lanes of panels and tiles.

use super::simd::{First, Isa, MAX_LANES, Vector};
use super::tile::{Onto, prefetch};
use pulp::{Simd, WithSimd};

/// Registers that are packed together: a strip's and its halo's on AVX-512.
const MAX_REGISTERS: usize = 4;

/// Rows ahead of the one being packed that memory is asked for.
pub(super) const AHEAD: usize = 16;

/// A run of columns to pack: the same lanes of some rows of every channel in a panel.
///
/// All rows of a channel before the next channel: both sides are then met almost in order. With the
/// channels innermost, each step came to another page and packing took twice as long (Zen 2, cv9).
pub struct Pack<T> {
    /// The first element that is read, of the first channel.
    pub from: *const T,
    /// Elements from a channel to the next, in the tensor.
    pub from_channel: isize,
    /// Elements from a row to the next, in the tensor.
    pub from_row: isize,
    /// Elements from a column to the next, in the tensor.
    pub from_column: isize,
    /// The run's first lane, of the first channel.
    pub to: *mut T,
    /// Elements from a channel to the next, in the panel.
    pub to_channel: usize,
    /// Elements from a row to the next, in the panel.
    pub to_row: usize,
    /// Channels.
    pub channels: usize,
    /// Rows.
    pub rows: usize,
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
        let (p, lanes) = (self.0, T::lanes::<S>());
        let all = p.before + p.columns + p.after;
        // Some registers at a time, so that their masks are found once for all channels.
        for first in (0..all).step_by(MAX_REGISTERS * lanes) {
            // SAFETY: `pack`'s contract covers all lanes.
            unsafe {
                match (all - first).div_ceil(lanes) {
                    1 => p.registers::<S, 1>(simd, first),
                    2 => p.registers::<S, 2>(simd, first),
                    3 => p.registers::<S, 3>(simd, first),
                    _ => p.registers::<S, MAX_REGISTERS>(simd, first),
                }
            }
        }
    }
}

impl<T: Vector> Pack<T> {
    /// Packs `N` registers from lane `first` on.
    ///
    /// # Safety
    ///
    /// As [`pack`].
    #[inline(always)]
    unsafe fn registers<S: Simd, const N: usize>(&self, simd: S, first: usize) {
        let lanes = T::lanes::<S>();
        let within =
            |lane: usize, register: usize| lane.saturating_sub(first + register * lanes).min(lanes);
        let end = self.before + self.columns;
        let all = end + self.after;
        let read: [T::Mask<S>; N] =
            std::array::from_fn(|v| T::mask(simd, within(self.before, v), within(end, v)));
        let write: [First<T::Mask<S>>; N] = std::array::from_fn(|v| T::first(simd, within(all, v)));
        // SAFETY: the caller vouches for the lanes of the masks.
        unsafe {
            if self.from_column == 1 {
                self.for_each_row(first, N * lanes, |from, to| {
                    for v in 0..N {
                        let value = T::load_masked(simd, from.wrapping_add(v * lanes), read[v]);
                        T::store_first(simd, to.wrapping_add(v * lanes), write[v], value);
                    }
                });
                return;
            }
            let inside =
                self.before.max(first) - first..end.clamp(first, first + N * lanes) - first;
            self.for_each_row(first, N * lanes, |from, to| {
                for v in 0..N {
                    let zero = T::splat(simd, T::ZERO);
                    T::store_first(simd, to.wrapping_add(v * lanes), write[v], zero);
                }
                for lane in inside.clone() {
                    *to.wrapping_add(lane) =
                        *from.wrapping_offset(lane as isize * self.from_column);
                }
            });
        }
    }

    /// Calls `row` with the tensor's and the panel's place of `lanes` lanes, from lane `first` on, of each
    /// row of each channel.
    #[inline(always)]
    pub fn for_each_row(&self, first: usize, lanes: usize, row: impl Fn(*const T, *mut T)) {
        // What a step comes to next is too far away for the CPU to see a pattern.
        let ahead = AHEAD.div_ceil(self.rows.max(1)) as isize * self.from_channel;
        let last = ahead + (lanes as isize - 1) * self.from_column;
        let skip = first as isize - self.before as isize;
        let mut channel_from = self.from.wrapping_offset(skip.wrapping_mul(self.from_column));
        let mut channel_to = self.to.wrapping_add(first);
        for _ in 0..self.channels {
            let (mut from, mut to) = (channel_from, channel_to);
            for _ in 0..self.rows {
                prefetch(from.wrapping_offset(ahead));
                prefetch(from.wrapping_offset(last));
                row(from, to);
                from = from.wrapping_offset(self.from_row);
                to = to.wrapping_add(self.to_row);
            }
            channel_from = channel_from.wrapping_offset(self.from_channel);
            channel_to = channel_to.wrapping_add(self.to_channel);
        }
    }
}

/// Packs one run of columns for all channels.
///
/// # Safety
///
/// The CPU has `I`. For each row of each channel, `columns` elements can be read from `from` and
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
            for run in s.runs {
                if s.phases == s.out_column && !matches!(s.onto, Onto::Output) {
                    match s.phases {
                        2 => {
                            s.turns::<S, 2>(simd, run);
                            continue;
                        }
                        4 => {
                            s.turns::<S, 4>(simd, run);
                            continue;
                        }
                        _ => {}
                    }
                }
                for phase in 0..s.phases {
                    let missing = usize::from(run.ends && phase >= s.last_phases);
                    let columns = run.columns - missing;
                    let tile = s.tile.add(phase * s.tile_phase + run.lane);
                    let out = s.out.wrapping_add(run.offset + phase);
                    if s.out_column == 1 {
                        s.rows(simd, tile, out, columns);
                    } else if s.out_column == 2
                        && T::lanes::<S>() * size_of::<T>() == MASKS_FROM
                        && !matches!(s.onto, Onto::Output)
                    {
                        s.every_second(simd, tile, out, columns);
                    } else {
                        s.columns(tile, out, columns);
                    }
                }
            }
        }
    }
}

impl<T: Vector> Scatter<'_, T> {
    fn bias(&self, channel: usize) -> T {
        match self.onto {
            // SAFETY: there is one for each channel.
            Onto::Bias(bias) => unsafe { *bias.add(channel) },
            _ => T::ZERO,
        }
    }

    /// Columns that follow each other in the output.
    ///
    /// # Safety
    ///
    /// As [`scatter`], for `columns` lanes of one run and phase.
    #[inline(always)]
    unsafe fn rows<S: Simd>(&self, simd: S, tile: *const T, out: *mut T, columns: usize) {
        let lanes = T::lanes::<S>();
        let onto = matches!(self.onto, Onto::Output);
        let whole = columns / lanes * lanes;
        let (mask, rest) = (T::mask(simd, 0, columns - whole), T::first(simd, columns - whole));
        for r in 0..self.channels {
            let bias = T::splat(simd, self.bias(r));
            // SAFETY: these are the columns the caller vouches for.
            unsafe {
                let from = tile.add(r * self.phases * self.tile_phase);
                let to = out.wrapping_add(r * self.out_channel);
                let register = |at: usize| {
                    let (from, to) = (from.add(at), to.wrapping_add(at));
                    let mut value = T::sum(simd, T::load::<S>(from), bias);
                    if onto {
                        value = T::sum(simd, value, T::load::<S>(to));
                    }
                    T::store::<S>(to, value);
                };
                for at in (0..whole).step_by(lanes) {
                    register(at);
                }
                if whole < columns && whole > 0 && !onto {
                    // Some once more, rather than the last ones in pieces.
                    register(columns - lanes);
                } else if whole < columns {
                    let (from, to) = (from.add(whole), to.wrapping_add(whole));
                    let mut value = T::sum(simd, T::load_masked(simd, from, mask), bias);
                    if onto {
                        value = T::sum(simd, value, T::load_masked(simd, to, mask));
                    }
                    T::store_first(simd, to, rest, value);
                }
            }
        }
    }

    /// Columns of `P` phases, which take turns. One by one, those of two took a seventh of the input gradient of r2.
    ///
    /// # Safety
    ///
    /// As [`scatter`], for one run that is not added to the output.
    #[inline(always)]
    unsafe fn turns<S: Simd, const P: usize>(&self, simd: S, run: &OutRun) {
        let lanes = T::lanes::<S>();
        let missing = usize::from(run.ends) * (P - self.last_phases);
        let all = P * run.columns - missing;
        let whole = all / (P * lanes) * lanes;
        let left = all - P * whole;
        let mask = T::mask(simd, 0, run.columns - whole);
        let rest: [_; P] =
            std::array::from_fn(|n| T::first(simd, left.saturating_sub(n * lanes).min(lanes)));
        let out = self.out.wrapping_add(run.offset);
        for r in 0..self.channels {
            let bias = T::splat(simd, self.bias(r));
            // SAFETY: the caller vouches for both sides.
            unsafe {
                let phase =
                    |p: usize| self.tile.add((r * self.phases + p) * self.tile_phase + run.lane);
                let to = out.wrapping_add(r * self.out_channel);
                let registers = |at: usize| {
                    let values: [_; P] =
                        std::array::from_fn(|p| T::sum(simd, T::load::<S>(phase(p).add(at)), bias));
                    store_all_in_turns::<T, S, P>(to.wrapping_add(P * at), values);
                };
                for at in (0..whole).step_by(lanes) {
                    registers(at);
                }
                if left == 0 {
                    continue;
                }
                if whole > 0 && missing == 0 {
                    // Some once more, rather than the last ones in pieces.
                    registers(run.columns - lanes);
                    continue;
                }
                let values: [_; P] = std::array::from_fn(|p| {
                    T::sum(simd, T::load_masked(simd, phase(p).add(whole), mask), bias)
                });
                let mut turns = [T::ZERO; MAX_PHASES * MAX_LANES];
                store_all_in_turns::<T, S, P>(turns.as_mut_ptr(), values);
                // In pieces: registers that are read across two that have just been written wait for both.
                for (n, &first) in rest.iter().enumerate() {
                    let value = T::load::<S>(turns.as_ptr().add(n * lanes));
                    T::store_first(simd, to.wrapping_add(P * whole + n * lanes), first, value);
                }
            }
        }
    }

    /// Every second column, by masks. One by one they were 0.13 of the time of r2's input gradient.
    ///
    /// # Safety
    ///
    /// As [`scatter`], for `columns` lanes of one run and phase that are not added to the output.
    #[inline(always)]
    unsafe fn every_second<S: Simd>(&self, simd: S, tile: *const T, out: *mut T, columns: usize) {
        let lanes = T::lanes::<S>();
        for at in (0..columns).step_by(lanes) {
            let count = (columns - at).min(lanes);
            let read = T::mask(simd, 0, count);
            let written: [T::Mask<S>; 2] = std::array::from_fn(|half| {
                let end = (2 * count).saturating_sub(half * lanes);
                let one = |lane: usize| lane.is_multiple_of(2) && lane < end;
                let ones = std::array::from_fn(|lane| if one(lane) { T::ONE } else { T::ZERO });
                T::mask_of_ones(simd, &ones)
            });
            for r in 0..self.channels {
                let bias = T::splat(simd, self.bias(r));
                let to = out.wrapping_add(r * self.out_channel + 2 * at);
                let mut twice = [T::ZERO; 2 * MAX_LANES];
                // SAFETY: the caller vouches for the columns, which are the lanes of the masks.
                unsafe {
                    let from = tile.add(r * self.phases * self.tile_phase + at);
                    let value = T::sum(simd, T::load_masked(simd, from, read), bias);
                    T::store_in_turns::<S>(twice.as_mut_ptr(), value, value);
                    for half in 0..2 {
                        let value = T::load::<S>(twice.as_ptr().add(half * lanes));
                        let to = to.wrapping_add(half * lanes);
                        T::store_masked(simd, to, written[half], value);
                    }
                }
            }
        }
    }

    /// Columns that lie apart.
    ///
    /// # Safety
    ///
    /// As [`scatter`], for `columns` lanes of one run and phase.
    #[inline(always)]
    unsafe fn columns(&self, tile: *const T, out: *mut T, columns: usize) {
        let onto = matches!(self.onto, Onto::Output);
        for r in 0..self.channels {
            let (bias, out) = (self.bias(r), out.wrapping_add(r * self.out_channel));
            // SAFETY: the caller vouches for both sides.
            unsafe {
                let tile = tile.add(r * self.phases * self.tile_phase);
                for i in 0..columns {
                    let to = out.wrapping_add(i * self.out_column);
                    let value = *tile.add(i) + bias;
                    *to = if onto { value + *to } else { value };
                }
            }
        }
    }
}

/// Bytes of a register from which a store by a mask takes no longer than one without (AVX-512).
const MASKS_FROM: usize = 64;

/// Most phases of columns that are stored together.
pub(crate) const MAX_PHASES: usize = 4;

/// Stores the lanes of two or four registers in turns.
///
/// # Safety
///
/// `P` registers can be written at `to`.
#[inline(always)]
unsafe fn store_all_in_turns<T: Vector, S: Simd, const P: usize>(
    to: *mut T,
    values: [T::Of<S>; P],
) {
    // SAFETY: the caller vouches for `to`; each half of four registers fills one half of what lies aside.
    unsafe {
        match values[..] {
            [a, b] => T::store_in_turns::<S>(to, a, b),
            [a, b, c, d] => {
                let lanes = T::lanes::<S>();
                let mut even = [T::ZERO; 2 * MAX_LANES];
                let mut odd = [T::ZERO; 2 * MAX_LANES];
                T::store_in_turns::<S>(even.as_mut_ptr(), a, c);
                T::store_in_turns::<S>(odd.as_mut_ptr(), b, d);
                for half in 0..2 {
                    let [even, odd] =
                        [&even, &odd].map(|part| T::load::<S>(part.as_ptr().add(half * lanes)));
                    T::store_in_turns::<S>(to.wrapping_add(half * 2 * lanes), even, odd);
                }
            }
            _ => unreachable!("two or four phases"),
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

/// Of `columns` (or rows) `first, first + step, ...`: how many come before `0..input`, and how many
/// of the rest lie inside it.
pub(crate) fn inside_columns(
    first: isize,
    step: usize,
    input: usize,
    columns: usize,
) -> (usize, usize) {
    let step = step as isize;
    let reach = |to: isize| ((to - first).max(0) + step - 1) / step;
    let before = (reach(0) as usize).min(columns);
    let end = (reach(input as isize) as usize).min(columns);
    (before, end - before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_outside_the_input_are_counted() {
        assert_eq!(inside_columns(-2, 1, 10, 5), (2, 3));
        assert_eq!(inside_columns(-3, 2, 10, 8), (2, 5));
        assert_eq!(inside_columns(8, 1, 10, 5), (0, 2));
        assert_eq!(inside_columns(12, 1, 10, 5), (0, 0));
        assert_eq!(inside_columns(-9, 1, 4, 5), (5, 0));
        assert_eq!(inside_columns(0, 1, 0, 3), (0, 0));
    }
}
