//! Packing the columns of narrow images, whose registers hold many short runs: one load brings the elements of a
//! register from wherever they lie. AVX-512's is fast enough for that.

use super::simd::MAX_LANES;
use super::winograd::{Places, SIDE};

/// What an instruction set whose loads gather can do with them.
pub struct Gathers<T> {
    lanes: unsafe fn(&GatherLanes<T>),
    tiles: unsafe fn(&GatherTiles<T>),
    tiles_of_rows: unsafe fn(&RowTiles<T>),
}

/// One register of columns, of some channels, to be packed.
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "for AVX-512 alone"))]
pub struct GatherLanes<T> {
    /// From where `offsets` are counted, in the first channel.
    pub from: *const T,
    /// Elements from a channel to the next, in the tensor.
    pub from_channel: isize,
    /// Elements to each lane's column.
    pub offsets: [i32; MAX_LANES],
    /// The lanes whose column is inside the input: others count as zero.
    pub inside: u16,
    /// Channels.
    pub channels: usize,
    /// The register, in the panel.
    pub to: *mut T,
    /// Elements from a channel to the next, in the panel.
    pub to_channel: usize,
}

/// Where one register of tiles goes, of some channels, packed and transformed for one piece of the kernel, as
/// [`PackTiles`](super::PackTiles) are.
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "for AVX-512 alone"))]
pub struct ToPanel<'a, T> {
    /// Elements of the piece along each axis, 1 to 3.
    pub taps: [usize; 2],
    /// Channels.
    pub channels: usize,
    /// The register's first lane, in the panel.
    pub to: *mut T,
    /// Elements from a channel to the next, in the panel.
    pub width: usize,
    /// Where each position of the piece is, in the panel.
    pub places: &'a Places,
}

/// Tiles that are gathered.
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "for AVX-512 alone"))]
pub struct GatherTiles<'a, T> {
    /// From where `offsets` are counted, in the first channel.
    pub from: *const T,
    /// Elements from a channel to the next, from a row of positions to the next and from a column to the next.
    pub steps: [isize; 3],
    /// Elements to position 0 of the tile of each lane.
    pub offsets: [i32; MAX_LANES],
    /// The lanes of which each row of positions, and each column, is inside the input: others count as zero.
    pub inside: [[u16; SIDE]; 2],
    /// Where they go.
    pub panel: ToPanel<'a, T>,
}

/// Tiles in a few rows, each of which is read as it lies and dealt to the lanes: with loads that gather, a cycle for each
/// lane, weight gradients of 14 x 14 took 1.08 times as long, those of 7 x 7 1.02 times.
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "for AVX-512 alone"))]
pub struct RowTiles<'a, T> {
    /// The rows of tiles.
    pub rows: &'a [RowOfTiles<T>],
    /// Elements from a channel to the next, and from a row of positions to the next. Columns follow each other.
    pub steps: [isize; 2],
    /// Elements from a column of positions to the next.
    pub unit: usize,
    /// Elements from the first tile of a row to the lane's.
    pub index: [i32; MAX_LANES],
    /// Where they go.
    pub panel: ToPanel<'a, T>,
}

/// Tiles of a register that lie in one row of one image.
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "for AVX-512 alone"))]
#[derive(Debug, Clone, Copy)]
pub struct RowOfTiles<T> {
    /// Position (0, 0) of the first tile, in the first channel.
    pub from: *const T,
    /// Their lanes.
    pub lanes: u16,
    /// The rows of positions that are inside the input: others count as zero.
    pub inside: u8,
    /// The elements from `from` on that are inside the input: others count as zero.
    pub columns: u32,
}

/// Most elements that a row of tiles spans.
pub(crate) const MOST_SPAN: usize = 2 * MAX_LANES;

/// Registers of rows that are dealt to one of tiles: with more, a load that gathers is sooner.
pub(crate) const MOST_DEALT: usize = 12;

impl<T> Gathers<T> {
    /// Packs one register of columns.
    ///
    /// # Safety
    ///
    /// What is inside can be read, and the register be written, for each channel.
    pub unsafe fn lanes(&self, g: &GatherLanes<T>) {
        // SAFETY: the caller vouches for both sides, this value for the CPU.
        unsafe { (self.lanes)(g) }
    }

    /// Packs and transforms one register of tiles.
    ///
    /// # Safety
    ///
    /// What is inside can be read, and the register be written for each channel at each position with a product.
    pub unsafe fn tiles(&self, g: &GatherTiles<T>) {
        // SAFETY: the caller vouches for both sides, this value for the CPU.
        unsafe { (self.tiles)(g) }
    }

    /// Packs and transforms one register of tiles of a few rows.
    ///
    /// # Safety
    ///
    /// As [`Gathers::tiles`].
    pub unsafe fn tiles_of_rows(&self, g: &RowTiles<T>) {
        // SAFETY: the caller vouches for both sides, this value for the CPU.
        unsafe { (self.tiles_of_rows)(g) }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use avx512::GATHERS;

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::*;
    use crate::kernel::tile::prefetch;
    use crate::kernel::winograd::product_positions;
    use std::arch::x86_64::*;

    /// Channels ahead of the one being packed that rows are asked for: the next channel's lie too far away for the CPU to
    /// see a pattern (r2 took 1.03 times as long without).
    const AHEAD: isize = 6;

    /// Lanes of a register.
    const LANES: usize = 16;

    /// What AVX-512 does.
    pub(in crate::kernel) const GATHERS: Gathers<f32> = Gathers { lanes, tiles, tiles_of_rows };

    /// # Safety
    ///
    /// As [`Gathers::lanes`]; the CPU has AVX-512.
    #[target_feature(enable = "avx512f")]
    unsafe fn lanes(g: &GatherLanes<f32>) {
        let (from_channel, to_channel, inside) = (g.from_channel, g.to_channel, g.inside);
        let (mut from, mut to) = (g.from, g.to);
        // SAFETY: the array has a register's lanes.
        let offsets = unsafe { _mm512_loadu_si512(g.offsets.as_ptr().cast()) };
        for _ in 0..g.channels {
            // SAFETY: the caller vouches for the lanes inside and for the register.
            unsafe {
                let zero = _mm512_setzero_ps();
                let value = _mm512_mask_i32gather_ps::<4>(zero, inside, offsets, from);
                _mm512_storeu_ps(to, value);
            }
            from = from.wrapping_offset(from_channel);
            to = to.wrapping_add(to_channel);
        }
    }

    /// # Safety
    ///
    /// As [`Gathers::tiles`]; the CPU has AVX-512.
    unsafe fn tiles(g: &GatherTiles<f32>) {
        // SAFETY: the same contract.
        unsafe {
            match g.panel.taps {
                [1, 1] => of_taps::<1, 1>(g),
                [1, 2] => of_taps::<1, 2>(g),
                [1, _] => of_taps::<1, 3>(g),
                [2, 1] => of_taps::<2, 1>(g),
                [2, 2] => of_taps::<2, 2>(g),
                [2, _] => of_taps::<2, 3>(g),
                [_, 1] => of_taps::<3, 1>(g),
                [_, 2] => of_taps::<3, 2>(g),
                [_, _] => of_taps::<3, 3>(g),
            }
        }
    }

    /// # Safety
    ///
    /// As [`tiles`], for a piece of so many taps.
    #[target_feature(enable = "avx512f")]
    unsafe fn of_taps<const ROWS: usize, const COLUMNS: usize>(g: &GatherTiles<f32>) {
        let [from_channel, from_row, from_column] = g.steps;
        let [rows, columns] = g.inside;
        let (channels, width, places) = (g.panel.channels, g.panel.width, *g.panel.places);
        let (mut from, mut to) = (g.from, g.panel.to);
        // SAFETY: the array has a register's lanes.
        let offsets = unsafe { _mm512_loadu_si512(g.offsets.as_ptr().cast()) };
        for _ in 0..channels {
            let mut d = [[_mm512_setzero_ps(); SIDE]; SIDE];
            for i in product_positions(ROWS) {
                let mut read = [_mm512_setzero_ps(); SIDE];
                for j in product_positions(COLUMNS) {
                    let at = i as isize * from_row + j as isize * from_column;
                    let (zero, inside) = (_mm512_setzero_ps(), rows[i] & columns[j]);
                    let from = from.wrapping_offset(at);
                    // SAFETY: the caller vouches for the lanes inside.
                    read[j] = unsafe { _mm512_mask_i32gather_ps::<4>(zero, inside, offsets, from) };
                }
                d[i] = input(read);
            }
            // SAFETY: the caller vouches for the register.
            unsafe { store::<ROWS, COLUMNS>(&d, to, &places) };
            from = from.wrapping_offset(from_channel);
            to = to.wrapping_add(width);
        }
    }

    /// # Safety
    ///
    /// As [`Gathers::tiles_of_rows`]; the CPU has AVX-512.
    unsafe fn tiles_of_rows(g: &RowTiles<f32>) {
        // Of what a row spans, its end may lie outside the input.
        let last = g.index.iter().max().map_or(0, |&last| last as usize) + (SIDE - 1) * g.unit;
        // SAFETY: the same contract.
        unsafe {
            match last < LANES {
                true => dealt_of_taps::<false>(g),
                false => dealt_of_taps::<true>(g),
            }
        }
    }

    /// # Safety
    ///
    /// As [`tiles_of_rows`]; unless `WIDE`, rows span one register.
    unsafe fn dealt_of_taps<const WIDE: bool>(g: &RowTiles<f32>) {
        // SAFETY: the same contract.
        unsafe {
            match g.panel.taps {
                [1, 1] => dealt::<1, 1, WIDE>(g),
                [1, 2] => dealt::<1, 2, WIDE>(g),
                [1, _] => dealt::<1, 3, WIDE>(g),
                [2, 1] => dealt::<2, 1, WIDE>(g),
                [2, 2] => dealt::<2, 2, WIDE>(g),
                [2, _] => dealt::<2, 3, WIDE>(g),
                [_, 1] => dealt::<3, 1, WIDE>(g),
                [_, 2] => dealt::<3, 2, WIDE>(g),
                [_, _] => dealt::<3, 3, WIDE>(g),
            }
        }
    }

    /// # Safety
    ///
    /// As [`dealt_of_taps`], for a piece of so many taps.
    #[target_feature(enable = "avx512f")]
    unsafe fn dealt<const ROWS: usize, const COLUMNS: usize, const WIDE: bool>(g: &RowTiles<f32>) {
        let [from_channel, from_row] = g.steps;
        let (channels, width, places) = (g.panel.channels, g.panel.width, *g.panel.places);
        // SAFETY: the array has a register's lanes.
        let first = unsafe { _mm512_loadu_si512(g.index.as_ptr().cast()) };
        let mut index = [first; SIDE];
        for j in 0..SIDE {
            index[j] = _mm512_add_epi32(first, _mm512_set1_epi32((j * g.unit) as i32));
        }
        let (mut channel, mut to) = (0, g.panel.to);
        for _ in 0..channels {
            let mut d = [[_mm512_setzero_ps(); SIDE]; SIDE];
            for i in product_positions(ROWS) {
                let mut read = [_mm512_setzero_ps(); SIDE];
                let at = channel + i as isize * from_row;
                for row in g.rows {
                    if row.inside >> i & 1 == 0 {
                        continue;
                    }
                    let from = row.from.wrapping_offset(at);
                    let ahead = from.wrapping_offset(AHEAD * from_channel);
                    prefetch(ahead);
                    if WIDE {
                        prefetch(ahead.wrapping_add(LANES));
                    }
                    // SAFETY: the caller vouches for the elements inside.
                    let low = unsafe { _mm512_maskz_loadu_ps(row.columns as u16, from) };
                    if WIDE {
                        let from = from.wrapping_add(LANES);
                        let columns = (row.columns >> LANES) as u16;
                        // SAFETY: the same contract.
                        let high = unsafe { _mm512_maskz_loadu_ps(columns, from) };
                        for j in product_positions(COLUMNS) {
                            let dealt = _mm512_permutex2var_ps(low, index[j], high);
                            read[j] = _mm512_mask_mov_ps(read[j], row.lanes, dealt);
                        }
                    } else {
                        for j in product_positions(COLUMNS) {
                            read[j] = _mm512_mask_permutexvar_ps(read[j], row.lanes, index[j], low);
                        }
                    }
                }
                d[i] = input(read);
            }
            // SAFETY: the caller vouches for the register.
            unsafe { store::<ROWS, COLUMNS>(&d, to, &places) };
            channel += from_channel;
            to = to.wrapping_add(width);
        }
    }

    /// Transforms the columns of what is transformed along its rows, and stores what has a product.
    ///
    /// # Safety
    ///
    /// A register can be written at each such place, counted from `to`.
    #[target_feature(enable = "avx512f")]
    #[inline]
    unsafe fn store<const ROWS: usize, const COLUMNS: usize>(
        d: &[[__m512; SIDE]; SIDE],
        to: *mut f32,
        places: &Places,
    ) {
        for j in product_positions(COLUMNS) {
            let column = input([d[0][j], d[1][j], d[2][j], d[3][j]]);
            for i in product_positions(ROWS) {
                // SAFETY: the caller vouches for the register.
                unsafe { _mm512_storeu_ps(to.wrapping_add(places[i * SIDE + j]), column[i]) };
            }
        }
    }

    /// `B' d`.
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn input([a, b, c, d]: [__m512; SIDE]) -> [__m512; SIDE] {
        [_mm512_sub_ps(a, c), _mm512_add_ps(b, c), _mm512_sub_ps(c, b), _mm512_sub_ps(b, d)]
    }
}
