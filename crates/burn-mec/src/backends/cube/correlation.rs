//! The forward pass and the phases of the input gradient: one kernel.
//!
//! A cube computes a tile of output positions for a block of output channels. It goes through the
//! input's channels a few at a time: the patch of those channels is staged once, then the weights of a
//! few taps after another, and each unit multiplies its own positions by its own channels, with the sums
//! in registers until the end. Nothing goes back to global memory but the output.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;

use super::staging::{
    AxisArgs, Layout, Origin, Patch, pack, place_in_tile, position_in_patch, stage_patch,
    tap_in_patch, unpack,
};

/// How the work is cut: all that shapes the compiled kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Tile {
    /// The input of a tile.
    pub patch: Patch,
    /// Units along the output positions and along the output channels.
    pub units: [usize; 2],
    /// Neighbouring output columns of a run. A tile has whole runs.
    pub run: usize,
    /// Runs of a unit.
    pub unit_runs: usize,
    /// Vectors of output channels of a unit.
    pub unit_vectors: usize,
    /// Channels in a vector of output channels.
    pub lanes_out: usize,
    /// Taps of the whole kernel, vertically and horizontally.
    pub kernel: [usize; 2],
    /// Taps whose weights are staged together.
    pub taps: usize,
    /// Neighbouring taps of a row that a run is multiplied by at once: one, or the whole row.
    pub window: usize,
    /// Whether the weight's first axis is the one summed over: in the input gradient.
    pub transposed: bool,
}

impl Tile {
    /// Vectors of output channels of a cube.
    pub fn block_vectors(&self) -> usize {
        self.units[1] * self.unit_vectors
    }

    /// Runs of a tile.
    pub fn runs(&self) -> usize {
        self.patch.positions() / self.run
    }

    /// Output positions of a unit.
    pub fn unit_positions(&self) -> usize {
        self.unit_runs * self.run
    }

    /// Channels staged together.
    pub fn channels(&self) -> usize {
        self.patch.vectors * self.patch.lanes
    }

    /// Vectors of shared memory from the weights of a channel and tap to the next: an odd number, so that
    /// neighbouring units, which store neighbouring ones, meet all banks.
    pub fn weights_step(&self) -> usize {
        self.block_vectors() | 1
    }

    /// Vectors of shared memory that weights take.
    pub fn weights_len(&self) -> usize {
        self.taps * self.channels() * self.weights_step()
    }
}

/// How many tiles there are along each direction.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct Grid {
    pub images: usize,
    pub rows: usize,
    pub columns: usize,
    pub blocks: usize,
    pub groups: usize,
}

/// `input` and `output` are `[batch, channels, height, width]` with any strides, `weight` is
/// `[channels_out, channels_in / groups, kernel_h, kernel_w]` of the forward pass.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn correlation_kernel<
    E: Float,
    A: Float,
    W: Numeric,
    WI: Numeric,
    WV: Numeric,
    WO: Numeric,
    N: Size,
    M: Size,
    MI: Size,
    V: Size,
    MV: Size,
    MO: Size,
>(
    input: &Tensor<Vector<WI, MI>>,
    weight: &Tensor<E>,
    bias: ComptimeOption<&Tensor<E>>,
    output: &mut Tensor<Vector<WO, MO>>,
    grid: Grid,
    height: AxisArgs,
    width: AxisArgs,
    channels: usize,
    outputs: usize,
    #[comptime] tile: Tile,
    #[define(N, M, MI, V, MV, MO)] _lanes: [usize; 6],
    #[define(E, A, W, WI, WV, WO)] _dtypes: [ElemType; 6],
) {
    let patch = comptime!(tile.patch);
    let window = comptime!(patch.window(tile.run, tile.window));
    let tiles = grid.images * grid.rows * grid.columns * grid.blocks * grid.groups;
    if CUBE_POS >= tiles {
        terminate!();
    }
    let block = CUBE_POS % grid.blocks;
    let rest = CUBE_POS / grid.blocks;
    let tile_column = rest % grid.columns;
    let rest = rest / grid.columns;
    let tile_row = rest % grid.rows;
    let rest = rest / grid.rows;
    let tile_image = rest % grid.images;
    let group = rest / grid.images;

    let lanes_out = comptime!(tile.lanes_out);
    let run = comptime!(tile.run);
    let unit_runs = comptime!(tile.unit_runs);
    let unit_positions = comptime!(tile.unit_positions());
    let unit_vectors = comptime!(tile.unit_vectors);
    let units_n = comptime!(tile.units[1]);
    let unit_m = UNIT_POS as usize / units_n;
    let unit_n = UNIT_POS as usize % units_n;
    let first_output = block * comptime!(tile.block_vectors() * lanes_out);

    let (from, kernel, to) = (Layout::of(input), Layout::of(weight), Layout::of(&*output));
    let mut stage = Shared::<[Vector<W, M>]>::new_slice(comptime!(patch.len()));
    let mut weights = Shared::<[Vector<WV, MV>]>::new_slice(comptime!(tile.weights_len()));
    let mut sums = Array::<Vector<A, V>>::new(comptime!(unit_positions * unit_vectors));
    #[unroll]
    for s in 0..comptime!(unit_positions * unit_vectors) {
        sums[s] = Vector::zeroed();
    }

    // Where in the patch the unit's runs begin; those past the tile's end repeat the last.
    let mut runs = Array::<usize>::new(unit_runs);
    #[unroll]
    for r in 0..unit_runs {
        let first =
            clamp_max(unit_m + comptime!(r * tile.units[0]), comptime!(tile.runs() - 1).runtime())
                * run;
        let place = place_in_tile(first, patch);
        runs[r] = position_in_patch(place.0, place.1, place.2, patch);
    }

    let kernel_w = comptime!(tile.kernel[1]);
    // Known when a kernel is compiled, but as a number of the launch it keeps compilers from unrolling
    // loops whose bodies are unrolled already.
    let taps = height.taps * width.taps;
    let mut origin = Origin {
        image: tile_image * comptime!(patch.tile[0]),
        row: tile_row * comptime!(patch.tile[1]),
        column: tile_column * comptime!(patch.tile[2]),
        tap_row: 0usize.runtime(),
        tap_column: 0usize.runtime(),
        channel: group * channels,
        channel_end: (group + 1) * channels,
    };

    for step in 0..channels.div_ceil(comptime!(tile.channels())) {
        origin.channel = group * channels + step * comptime!(tile.channels());
        let vectors_left = clamp_max(
            (origin.channel_end - origin.channel).div_ceil(comptime!(patch.lanes)),
            comptime!(patch.vectors).runtime(),
        );
        for tap_step in 0..taps.div_ceil(comptime!(tile.taps)) {
            let first_tap = tap_step * comptime!(tile.taps);
            // What was staged before has been read.
            sync_cube();
            if comptime!(patch.shared) {
                if tap_step == 0 {
                    stage_patch::<E, N, W, M, WI, MI>(
                        input, &from, &mut stage, &origin, &height, &width, patch,
                    );
                }
            } else {
                origin.tap_row = first_tap / kernel_w;
                origin.tap_column = first_tap % kernel_w;
                stage_patch::<E, N, W, M, WI, MI>(
                    input, &from, &mut stage, &origin, &height, &width, patch,
                );
            }
            stage_weights::<E, V, WV, MV>(
                weight,
                &kernel,
                &mut weights,
                origin.channel,
                origin.channel_end,
                group,
                channels,
                first_output,
                outputs,
                first_tap,
                &height,
                &width,
                tile,
            );
            sync_cube();

            let taps_left = clamp_max(taps - first_tap, comptime!(tile.taps).runtime());
            for t in 0..taps_left / comptime!(tile.window) {
                let mut offset = t * comptime!(patch.positions() * patch.vectors);
                if comptime!(patch.shared) {
                    let tap = first_tap + t * comptime!(tile.window);
                    offset = tap_in_patch(tap / kernel_w, tap % kernel_w, patch);
                }
                for vector in 0..vectors_left {
                    let columns = comptime!(window.columns());
                    let mut a = Array::<Vector<A, N>>::new(comptime!(unit_runs * columns));
                    #[unroll]
                    for r in 0..unit_runs {
                        let first = runs[r] + offset + vector;
                        #[unroll]
                        for column in 0..columns {
                            if comptime!(window.meets(column)) {
                                a[comptime!(r * columns + column)] = unpack::<A, N, W, M>(
                                    stage[first + comptime!(window.offset(column))],
                                );
                            }
                        }
                    }
                    let row = (vector * comptime!(patch.lanes * tile.taps)
                        + t * comptime!(tile.window))
                        * comptime!(tile.weights_step())
                        + unit_n;
                    #[unroll]
                    for tap in 0..comptime!(tile.window) {
                        #[unroll]
                        for k in 0..comptime!(patch.lanes) {
                            #[unroll]
                            for j in 0..unit_vectors {
                                let b = unpack::<A, V, WV, MV>(
                                    weights[row
                                        + comptime!(
                                            (k * tile.taps + tap) * tile.weights_step()
                                                + j * units_n
                                        )],
                                );
                                #[unroll]
                                for r in 0..unit_runs {
                                    #[unroll]
                                    for i in 0..run {
                                        let s = comptime!((r * run + i) * unit_vectors + j);
                                        let x =
                                            a[comptime!(r * columns + window.column_of(i, tap))];
                                        let x = Vector::<A, V>::broadcast(x.extract(k));
                                        sums[s] = fma(x, b, sums[s]);
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    // Whole vectors are stored, or numbers one by one.
    let (words, words_stored) = (MV::value(), MO::value());
    let lanes_store = comptime!(if words_stored == words { lanes_out } else { 1 });
    #[unroll]
    for i in 0..unit_positions {
        let p = (unit_m + comptime!(i / run * tile.units[0])) * run + comptime!(i % run);
        let place = place_in_tile(p, patch);
        let image = origin.image + place.0;
        let row = origin.row + place.1;
        let column = origin.column + place.2;
        if p < comptime!(patch.positions())
            && image < to.batch
            && row < height.output
            && column < width.output
        {
            let at = to.at(
                image,
                0usize.runtime(),
                row * height.out_step + height.out_base,
                column * width.out_step + width.out_base,
            );
            #[unroll]
            for j in 0..unit_vectors {
                let first = first_output + (unit_n + comptime!(j * units_n)) * lanes_out;
                let sum = sums[comptime!(i * unit_vectors + j)];
                #[unroll]
                for chunk in 0..comptime!(lanes_out / lanes_store) {
                    let o = first + comptime!(chunk * lanes_store);
                    if o < outputs {
                        let channel = group * outputs + o;
                        let mut value = Vector::<E, V>::zeroed();
                        #[unroll]
                        for lane in 0..lanes_store {
                            let mut y = sum.extract(comptime!(chunk * lanes_store + lane));
                            #[comptime]
                            if let ComptimeOption::Some(bias) = &bias {
                                y += A::cast_from(bias[(channel + lane) * bias.stride(0)]);
                            }
                            value.insert(lane, E::cast_from(y));
                        }
                        let at = (at + channel * to.channel) / lanes_store;
                        if comptime!(lanes_store == lanes_out) {
                            output[at] = pack::<E, V, WO, MO>(value);
                        } else {
                            output[at] = Vector::cast_from(value.extract(0usize));
                        }
                    }
                }
            }
        }
    }
}

/// Brings the weights of some taps into shared memory, `[channel][tap][output channel]`.
#[cube]
fn stage_weights<E: Float, V: Size, W: Numeric, M: Size>(
    weight: &Tensor<E>,
    kernel: &Layout,
    stage: &mut Shared<[Vector<W, M>]>,
    first_channel: usize,
    channel_end: usize,
    group: usize,
    channels: usize,
    first_output: usize,
    outputs: usize,
    first_tap: usize,
    height: &AxisArgs,
    width: &AxisArgs,
    #[comptime] tile: Tile,
) {
    let lanes_out = comptime!(tile.lanes_out);
    let kernel_w = comptime!(tile.kernel[1]);
    let taps = comptime!(tile.kernel[0] * tile.kernel[1]);
    let units = comptime!(tile.patch.units);
    let len = comptime!(tile.taps * tile.channels() * tile.block_vectors());
    let (batch, batches) = comptime!(tile.patch.batches(len));
    for turn in 0..batches {
        let first = turn * comptime!(batch * units) + UNIT_POS as usize;
        let mut values = Array::<Vector<E, V>>::new(batch);
        #[unroll]
        for i in 0..batch {
            values[i] = Vector::zeroed();
            let index = first + comptime!(i * units);
            if index < len {
                let (t, c, o) = place_in_weights(index, tile);
                let tap = first_tap + t;
                let channel = first_channel + c;
                let output = first_output + o * lanes_out;
                if tap < taps && channel < channel_end {
                    let row = height.weight_first + (tap / kernel_w) as i32 * height.weight_step;
                    let column = width.weight_first + (tap % kernel_w) as i32 * width.weight_step;
                    // The weight has a group's channels only along its second axis.
                    let mut along_output = kernel.image;
                    let mut at = kernel.at(
                        group * outputs + output,
                        channel - group * channels,
                        row as usize,
                        column as usize,
                    );
                    if comptime!(tile.transposed) {
                        along_output = kernel.channel;
                        at = kernel.at(channel, output, row as usize, column as usize);
                    }
                    let mut value = Vector::<E, V>::zeroed();
                    #[unroll]
                    for lane in 0..lanes_out {
                        if output + lane < outputs {
                            value.insert(lane, weight[at + lane * along_output]);
                        }
                    }
                    values[i] = value;
                }
            }
        }
        #[unroll]
        for i in 0..batch {
            let index = first + comptime!(i * units);
            if index < len {
                let (t, c, o) = place_in_weights(index, tile);
                let at = (c * comptime!(tile.taps) + t) * comptime!(tile.weights_step()) + o;
                stage[at] = pack::<E, V, W, M>(values[i]);
            }
        }
    }
}

/// The tap, the channel and the vector of output channels that are staged as number `index`:
/// neighbouring units read along the weight's own order, as far as the tile goes.
#[cube]
fn place_in_weights(index: usize, #[comptime] tile: Tile) -> (usize, usize, usize) {
    let rest = index / comptime!(tile.taps);
    let mut c = rest % comptime!(tile.channels());
    let mut o = rest / comptime!(tile.channels());
    if comptime!(tile.transposed) {
        o = rest % comptime!(tile.block_vectors());
        c = rest / comptime!(tile.block_vectors());
    }
    (index % comptime!(tile.taps), c, o)
}
