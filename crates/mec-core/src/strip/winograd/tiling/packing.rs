//! Packing and transforming the input of a strip of tiles: row by row, or register by register where rows are short.

use super::{Axis, GAP, MAX_PIECES, Strip, Tiling};
use crate::kernel::{
    GatherTiles, Gathers, InputAxis, Kernel, MAX_LANES, MOST_DEALT, MOST_SPAN, OUTPUTS, POSITIONS,
    Pack, PackTiles, Places, RowOfTiles, RowTiles, SIDE, ToPanel, TransformTiles, Vector,
};
use crate::strip::panel::{Lane, List, Source, offsets, worth_gathering};
use std::ops::Range;

/// Channels of which all pieces are packed before the next: all but the first piece find their rows in the
/// first-level cache (r2 1.02 times as fast).
const BLOCK: usize = 16;

impl Tiling {
    /// Packs and transforms some channels of one strip.
    ///
    /// # Safety
    ///
    /// The correlation's whole input can be read from `source`; the panel has room for all pieces of its
    /// channels.
    pub unsafe fn pack<T: Vector>(
        &self,
        kernel: &Kernel<T>,
        strip: &Strip,
        source: &Source<T>,
        panel: *mut T,
    ) {
        let len = source.channels * strip.width;
        if self.additions.is_none() {
            // SAFETY: the same contract.
            if unsafe { self.gather_tiles(kernel, strip, source, panel) } {
                return;
            }
            if strip.runs().iter().map(|run| run.tiles).sum::<usize>() < strip.width {
                // SAFETY: the caller vouches for the room.
                unsafe { panel.write_bytes(0, self.inputs.len(len, GAP)) };
            }
            let (h, w) = (&self.height, &self.width);
            let mut places = [[0; POSITIONS]; MAX_PIECES];
            for (number, (rows, columns)) in self.pieces().enumerate() {
                let index = h.number(rows) * w.count + w.number(columns);
                places[index] = self.inputs.places(number, len, GAP);
            }
            let places = &places[..self.count()];
            let most = if self.count() > 1 { BLOCK } else { source.channels };
            for first in (0..source.channels).step_by(most) {
                let block = Source {
                    first: source.first.wrapping_offset(first as isize * source.strides[1]),
                    strides: source.strides,
                    channels: most.min(source.channels - first),
                };
                let panel = panel.wrapping_add(first * strip.width);
                // SAFETY: the same contract.
                unsafe { self.pack_tiles(kernel, strip, &block, panel, places) };
            }
            return;
        }
        let places = self.inputs.starts(len, GAP);
        let taps = [self.height.pieces[0].taps, self.width.pieces[0].taps];
        // SAFETY: the same contract; then every lane of every channel has been written.
        unsafe {
            self.pack_inputs(kernel, strip, source, panel, &places);
            kernel.winograd.transform_tiles(&TransformTiles { taps, at: panel, places, len });
        }
    }

    /// Packs and transforms tiles of outputs; `places` are those of the pieces, by rows and then by columns.
    ///
    /// # Safety
    ///
    /// As [`Tiling::pack`].
    unsafe fn pack_tiles<T: Vector>(
        &self,
        kernel: &Kernel<T>,
        strip: &Strip,
        source: &Source<T>,
        panel: *mut T,
        places: &[Places],
    ) {
        let (h, w) = (&self.height, &self.width);
        let [image, channel, row, column] = source.strides;
        let pieces = [h.input_pieces(), w.input_pieces()];
        for run in strip.runs() {
            let top = first_input(h, run.row);
            let left = first_input(w, run.column);
            let offset = run.image as isize * image + top * row + left * column;
            // SAFETY: only what is inside the input is named as such; the strip has the lanes.
            unsafe {
                kernel.winograd.pack_tiles(&PackTiles {
                    from: source.first.wrapping_offset(offset),
                    from_channel: channel,
                    from_row: row,
                    from_column: column,
                    rows: InputAxis {
                        inside: -top..h.reach.input as isize - top,
                        unit: h.unit,
                        pieces: &pieces[0][..h.count],
                    },
                    columns: InputAxis {
                        inside: -left..w.reach.input as isize - left,
                        unit: w.unit,
                        pieces: &pieces[1][..w.count],
                    },
                    tiles: run.tiles,
                    channels: source.channels,
                    to: panel,
                    places,
                    lane: run.lane,
                    width: strip.width,
                });
            }
        }
    }

    /// Packs and transforms the tiles of a strip of many short runs; whether it did.
    ///
    /// # Safety
    ///
    /// As [`Tiling::pack`].
    unsafe fn gather_tiles<T: Vector>(
        &self,
        kernel: &Kernel<T>,
        strip: &Strip,
        source: &Source<T>,
        panel: *mut T,
    ) -> bool {
        let (h, w, lanes) = (&self.height, &self.width, kernel.lanes);
        let Some(gathers) = &kernel.gathers else { return false };
        if !worth_gathering(strip.runs().len(), strip.width, lanes) {
            return false;
        }
        let [image, channel, row, column] = source.strides;
        for register in (0..strip.width).step_by(lanes) {
            // SAFETY: the same contract.
            if unsafe { self.deal_tiles(gathers, strip, register..register + lanes, source, panel) }
            {
                continue;
            }
            let mut tiles = [None; MAX_LANES];
            let tiles = &mut tiles[..lanes];
            for (run, these) in strip.runs_in(register..register + lanes) {
                let top = first_input(h, run.row);
                for lane in these {
                    let n = lane - run.lane;
                    let left = first_input(w, run.column + n * OUTPUTS * w.distance);
                    let offset = run.image as isize * image + top * row + left * column;
                    tiles[lane - register] = Some(Lane { offset, row: top, column: left });
                }
            }
            let Some((first, offsets)) = offsets(tiles) else { return false };
            for (place, (rows, columns)) in self.pieces().enumerate() {
                let mut inside = [[0; SIDE]; 2];
                for (number, lane) in tiles.iter().flatten().enumerate() {
                    let met =
                        [h.meets(lane.row + rows.offset), w.meets(lane.column + columns.offset)];
                    for (inside, &met) in
                        inside.as_flattened_mut().iter_mut().zip(met.as_flattened())
                    {
                        *inside |= u16::from(met) << number;
                    }
                }
                let offset = first + rows.offset * row + columns.offset * column;
                // SAFETY: only what is inside the input is named as such; the strip has the lanes.
                unsafe {
                    gathers.tiles(&GatherTiles {
                        from: source.first.wrapping_offset(offset),
                        steps: [channel, h.unit as isize * row, w.unit as isize * column],
                        offsets,
                        inside,
                        panel: ToPanel {
                            taps: [rows.taps, columns.taps],
                            channels: source.channels,
                            to: panel.wrapping_add(register),
                            width: strip.width,
                            places: &self.inputs.places(place, source.channels * strip.width, GAP),
                        },
                    });
                }
            }
        }
        true
    }

    /// Packs and transforms the tiles in the lanes of one register, if they lie in a few short rows; whether it did.
    ///
    /// # Safety
    ///
    /// As [`Tiling::pack`].
    unsafe fn deal_tiles<T: Vector>(
        &self,
        gathers: &Gathers<T>,
        strip: &Strip,
        register: Range<usize>,
        source: &Source<T>,
        panel: *mut T,
    ) -> bool {
        let (h, w) = (&self.height, &self.width);
        let [image, channel, row, column] = source.strides;
        let tile_step = OUTPUTS * w.distance * w.reach.step;
        let span = |tiles: usize| (tiles - 1) * tile_step + (SIDE - 1) * w.unit + 1;
        let here = || strip.runs_in(register.clone());
        let most = here().map(|(_, these)| span(these.len())).max().unwrap_or(0);
        let dealt = here().count() * most.div_ceil(register.len());
        if column != 1 || most > MOST_SPAN || dealt > MOST_DEALT {
            return false;
        }
        let len = source.channels * strip.width;
        for (place, (rows, columns)) in self.pieces().enumerate() {
            let mut index = [0; MAX_LANES];
            let mut found = List::<_, MOST_DEALT>::new();
            for (run, these) in here() {
                let (first, tiles) = (these.start - register.start, these.len());
                for n in 0..tiles {
                    index[first + n] = (n * tile_step) as i32;
                }
                let top = first_input(h, run.row) + rows.offset;
                let left = first_input(w, run.column) + columns.offset;
                let left = left + ((these.start - run.lane) * tile_step) as isize;
                let inside = |end: isize| (end - left).clamp(0, span(tiles) as isize) as u32;
                let before = |end: isize| (1u64 << inside(end)) as u32;
                let met = h.meets(top);
                found.push(RowOfTiles {
                    from: source
                        .first
                        .wrapping_offset(run.image as isize * image + top * row + left),
                    lanes: (((1u32 << tiles) - 1) << first) as u16,
                    inside: (0..SIDE).map(|i| u8::from(met[i]) << i).sum(),
                    columns: before(w.reach.input as isize).wrapping_sub(before(0)),
                });
            }
            // SAFETY: only what is inside the input is named as such; the strip has the lanes.
            unsafe {
                gathers.tiles_of_rows(&RowTiles {
                    rows: found.as_slice(),
                    steps: [channel, h.unit as isize * row],
                    unit: w.unit,
                    index,
                    panel: ToPanel {
                        taps: [rows.taps, columns.taps],
                        channels: source.channels,
                        to: panel.wrapping_add(register.start),
                        width: strip.width,
                        places: &self.inputs.places(place, len, GAP),
                    },
                });
            }
        }
        true
    }

    /// Packs tiles of inputs as they are.
    ///
    /// # Safety
    ///
    /// As [`Tiling::pack`].
    unsafe fn pack_inputs<T: Vector>(
        &self,
        kernel: &Kernel<T>,
        strip: &Strip,
        source: &Source<T>,
        panel: *mut T,
        places: &Places,
    ) {
        let (h, w) = (&self.height, &self.width);
        let [image, channel, row, column] = source.strides;
        let used = strip.runs().last().map_or(0, |run| run.lane + run.tiles);
        for run in strip.runs() {
            let idle = if run.lane + run.tiles == used { strip.width - used } else { 0 };
            let rows = OUTPUTS.min(h.reach.input - run.row);
            for j in 0..OUTPUTS {
                let left = run.column + j;
                let columns = (w.reach.input - left).div_ceil(OUTPUTS).min(run.tiles);
                let offset =
                    run.image as isize * image + run.row as isize * row + left as isize * column;
                for (first, rows, columns) in [(0, rows, columns), (rows, OUTPUTS - rows, 0)] {
                    let offset = offset + first as isize * row;
                    // SAFETY: only rows and columns inside the input are read; the lanes written are this run's, and
                    // the idle ones behind the last run.
                    unsafe {
                        kernel.pack(&Pack {
                            from: source.first.wrapping_offset(offset),
                            from_channel: channel,
                            from_row: row,
                            from_column: OUTPUTS as isize * column,
                            to: panel.wrapping_add(places[first * SIDE + j] + run.lane),
                            to_channel: strip.width,
                            to_row: places[SIDE] - places[0],
                            channels: source.channels,
                            rows,
                            before: 0,
                            columns,
                            after: run.tiles - columns + idle,
                        });
                    }
                }
            }
        }
    }
}

/// The input position that the first tap of the correlation meets for output `output`.
fn first_input(axis: &Axis, output: usize) -> isize {
    (output * axis.reach.step) as isize + axis.reach.base
}
