//! The gradients in the weight and the bias.
//!
//! A cube computes a block of the weight's gradient: some taps and input channels by some output
//! channels. It goes through tiles of output positions, stages the patch of the input that the taps
//! meet and the output's gradient, and sums in registers. Where there are fewer blocks than the device
//! has room for, the positions of a tile are divided among shares of a cube's units, and tiles are dealt
//! out to several cubes for each block, whose partial sums a second kernel adds. Both add in a fixed order:
//! the result is the same bits in every run, and no atomics are used.
// The outer of two conditions is one that is decided when the kernel is compiled.
#![allow(clippy::collapsible_if)]

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;

use super::staging::{
    AxisArgs, Layout, Origin, Patch, place_in_tile, position_in_patch, read_channels, stage_patch,
    tap_in_patch, unpack,
};

/// How the work is cut: all that shapes the compiled kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Tile {
    /// The input of a tile. Its taps are those of a block.
    pub patch: Patch,
    /// Units along lines, and along output channels. A line is a row of taps of a vector of input
    /// channels.
    pub units: [usize; 2],
    /// Shares of units, all with the same lines and channels, that take turns at the runs of positions: a
    /// large cube for a small block. Their sums are added in the end.
    pub shares: usize,
    /// Lines of a unit.
    pub unit_lines: usize,
    /// Vectors of output channels of a unit.
    pub unit_vectors: usize,
    /// Channels in a vector of output channels.
    pub lanes_out: usize,
    /// Taps of the whole kernel, vertically and horizontally.
    pub kernel: [usize; 2],
    /// Neighbouring output positions that are multiplied at once: the taps of a line meet most of their
    /// input columns several times, each of which is then read once.
    pub run: usize,
    /// Whether a row may end with positions too few for a run, which are taken one by one.
    pub rest: bool,
    /// Whether the gradient in the bias is computed too.
    pub bias: bool,
}

impl Tile {
    /// Vectors of output channels of a block.
    pub fn block_vectors(&self) -> usize {
        self.units[1] * self.unit_vectors
    }

    /// Lines of a block.
    pub fn lines(&self) -> usize {
        self.patch.taps[0] * self.patch.vectors
    }

    /// Vectors of sums of a unit.
    pub fn sums(&self) -> usize {
        self.unit_lines * self.patch.taps[1] * self.patch.lanes * self.unit_vectors
    }

    /// Vectors of shared memory that the output's gradient takes.
    pub fn gradient_len(&self) -> usize {
        self.patch.positions() * self.block_vectors()
    }

    /// Vectors of shared memory that adding the shares' sums takes.
    pub fn exchange_len(&self) -> usize {
        if self.shares > 1 { self.patch.units } else { 0 }
    }

    /// Numbers in shared memory.
    pub fn shared_len(&self) -> usize {
        self.patch.len() * self.patch.lanes
            // Sums may take twice the bytes of elements.
            + (self.gradient_len() + 2 * self.exchange_len()) * self.lanes_out
    }
}

/// How many there are of what the cubes are numbered by.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct Grid {
    /// Blocks of output channels, of input channels, and of taps along both axes.
    pub output_blocks: usize,
    pub channel_blocks: usize,
    pub tap_rows: usize,
    pub tap_columns: usize,
    pub groups: usize,
    /// Cubes that share the tiles of a block.
    pub splits: usize,
    /// Tiles of output positions.
    pub images: usize,
    pub rows: usize,
    pub columns: usize,
}

/// `x` and `dy` are `[batch, channels, height, width]` with any strides; `result` is `splits` times the
/// weight's gradient, row-major, and `bias` `splits` times the bias's.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn weight_gradient_kernel<
    E: Float,
    A: Float,
    R: Float,
    W: Numeric,
    WX: Numeric,
    WV: Numeric,
    WY: Numeric,
    N: Size,
    M: Size,
    MX: Size,
    V: Size,
    MV: Size,
    MY: Size,
>(
    x: &Tensor<Vector<WX, MX>>,
    dy: &Tensor<Vector<WY, MY>>,
    result: &mut [R],
    bias: ComptimeOption<&mut [R]>,
    grid: Grid,
    height: AxisArgs,
    width: AxisArgs,
    channels: usize,
    outputs: usize,
    #[comptime] tile: Tile,
    #[define(N, M, MX, V, MV, MY)] _lanes: [usize; 6],
    #[define(E, A, R, W, WX, WV, WY)] _dtypes: [ElemType; 7],
) {
    let patch = comptime!(tile.patch);
    let blocks = grid.output_blocks * grid.channel_blocks * grid.tap_rows * grid.tap_columns;
    if CUBE_POS >= blocks * grid.groups * grid.splits {
        terminate!();
    }
    let output_block = CUBE_POS % grid.output_blocks;
    let rest = CUBE_POS / grid.output_blocks;
    let channel_block = rest % grid.channel_blocks;
    let rest = rest / grid.channel_blocks;
    let tap_column = rest % grid.tap_columns * comptime!(patch.taps[1]);
    let rest = rest / grid.tap_columns;
    let tap_row = rest % grid.tap_rows * comptime!(patch.taps[0]);
    let rest = rest / grid.tap_rows;
    let group = rest % grid.groups;
    let split = rest / grid.groups;

    let lanes = comptime!(patch.lanes);
    let lanes_out = comptime!(tile.lanes_out);
    let unit_lines = comptime!(tile.unit_lines);
    let taps_w = comptime!(patch.taps[1]);
    let unit_vectors = comptime!(tile.unit_vectors);
    let units_n = comptime!(tile.units[1]);
    let unit = UNIT_POS as usize % comptime!(tile.units[0] * tile.units[1]);
    let share = UNIT_POS as usize / comptime!(tile.units[0] * tile.units[1]);
    let unit_m = unit / units_n;
    let unit_n = unit % units_n;
    let block_vectors = comptime!(tile.block_vectors());
    let first_output = output_block * comptime!(block_vectors * lanes_out);
    let first_channel = channel_block * comptime!(patch.vectors * lanes);

    let (from_x, from_dy) = (Layout::of(x), Layout::of(dy));
    let mut stage = Shared::<[Vector<W, M>]>::new_slice(comptime!(patch.len()));
    let mut gradient = Shared::<[Vector<WV, MV>]>::new_slice(comptime!(tile.gradient_len()));
    let mut sums = Array::<Vector<A, V>>::new(comptime!(tile.sums()));
    #[unroll]
    for s in 0..comptime!(tile.sums()) {
        sums[s] = Vector::zeroed();
    }
    let mut bias_sums = Array::<Vector<A, V>>::new(unit_vectors);
    #[unroll]
    for s in 0..unit_vectors {
        bias_sums[s] = Vector::zeroed();
    }

    // Where in the patch the unit's lines begin; those past the block's end repeat the last.
    let mut offsets = Array::<usize>::new(unit_lines);
    #[unroll]
    for i in 0..unit_lines {
        let line =
            clamp_max(unit_m + comptime!(i * tile.units[0]), comptime!(tile.lines() - 1).runtime());
        let vectors = comptime!(patch.vectors);
        offsets[i] = tap_in_patch(line / vectors, 0, patch) + line % vectors;
    }

    let tiles = grid.images * grid.rows * grid.columns;
    let mut origin = Origin {
        image: 0usize.runtime(),
        row: 0usize.runtime(),
        column: 0usize.runtime(),
        tap_row,
        tap_column,
        channel: group * channels + first_channel,
        channel_end: (group + 1) * channels,
    };

    // Neighbouring tiles for each split, so that they meet the caches.
    let each = tiles.div_ceil(grid.splits);
    let first_tile = split * each;
    for at in first_tile..clamp_max(first_tile + each, tiles) {
        origin.column = at % grid.columns * comptime!(patch.tile[2]);
        origin.row = at / grid.columns % grid.rows * comptime!(patch.tile[1]);
        origin.image = at / grid.columns / grid.rows * comptime!(patch.tile[0]);
        // What was staged before has been read.
        sync_cube();
        stage_patch::<E, N, W, M, WX, MX>(x, &from_x, &mut stage, &origin, &height, &width, patch);
        stage_gradient::<E, V, WV, MV, WY, MY>(
            dy,
            &from_dy,
            &mut gradient,
            &origin,
            group * outputs,
            first_output,
            outputs,
            &height,
            &width,
            tile,
        );
        sync_cube();

        // Positions beyond the output are left out: a zero there would not outweigh a NaN in the patch.
        let images = clamp_max(from_dy.batch - origin.image, comptime!(patch.tile[0]).runtime());
        let rows = clamp_max(height.output - origin.row, comptime!(patch.tile[1]).runtime());
        let columns = clamp_max(width.output - origin.column, comptime!(patch.tile[2]).runtime());
        let run = comptime!(tile.run);
        let mut runs = columns / run;
        if comptime!(tile.rest) {
            runs = columns.div_ceil(run);
        }
        let shares = comptime!(tile.shares);
        for turn in 0..(images * rows * runs + comptime!(shares - 1) - share) / shares {
            let at = turn * shares + share;
            let (line, first) = (at / runs, at % runs * run);
            let (image, row) = (line / rows, line % rows);
            let in_patch = position_in_patch(image, row, first, patch);
            let in_gradient = ((image * comptime!(patch.tile[1]) + row) * comptime!(patch.tile[2])
                + first)
                * block_vectors
                + unit_n;
            if first + run <= columns {
                accumulate::<A, W, WV, N, M, V, MV>(
                    &stage,
                    &gradient,
                    &mut sums,
                    &mut bias_sums,
                    &offsets,
                    in_patch,
                    in_gradient,
                    comptime!(tile.run),
                    tile,
                );
            } else {
                if comptime!(tile.rest) {
                    for column in 0..columns - first {
                        accumulate::<A, W, WV, N, M, V, MV>(
                            &stage,
                            &gradient,
                            &mut sums,
                            &mut bias_sums,
                            &offsets,
                            in_patch + column * comptime!(patch.column_step()),
                            in_gradient + column * block_vectors,
                            1usize,
                            tile,
                        );
                    }
                }
            }
        }
    }

    if comptime!(tile.shares > 1) {
        let mut exchange = Shared::<[Vector<A, V>]>::new_slice(comptime!(tile.exchange_len()));
        #[unroll]
        for s in 0..comptime!(tile.sums()) {
            sums[s] = add_shares::<A, V>(&mut exchange, sums[s], share, tile);
        }
        if comptime!(tile.bias) {
            #[unroll]
            for s in 0..unit_vectors {
                bias_sums[s] = add_shares::<A, V>(&mut exchange, bias_sums[s], share, tile);
            }
        }
    }

    let kernel_h = comptime!(tile.kernel[0]);
    let kernel_w = comptime!(tile.kernel[1]);
    let taps = comptime!(kernel_h * kernel_w);
    let copy = split * grid.groups;
    #[unroll]
    for i in 0..unit_lines {
        let line = unit_m + comptime!(i * tile.units[0]);
        let row = tap_row + line / comptime!(patch.vectors);
        let first = first_channel + line % comptime!(patch.vectors) * lanes;
        if share == 0 && line < comptime!(tile.lines()) && row < kernel_h {
            #[unroll]
            for t in 0..taps_w {
                let column = tap_column + t;
                #[unroll]
                for k in 0..lanes {
                    let channel = first + k;
                    if column < kernel_w && channel < channels {
                        #[unroll]
                        for j in 0..unit_vectors {
                            let sum =
                                sums[comptime!(((i * taps_w + t) * lanes + k) * unit_vectors + j)];
                            #[unroll]
                            for lane in 0..lanes_out {
                                let o = first_output
                                    + (unit_n + comptime!(j * units_n)) * lanes_out
                                    + lane;
                                if o < outputs {
                                    let at = (((copy + group) * outputs + o) * channels + channel)
                                        * taps
                                        + row * kernel_w
                                        + column;
                                    result[at] = R::cast_from(sum.extract(lane));
                                }
                            }
                        }
                    }
                }
            }
        }
    }
    #[comptime]
    if let ComptimeOption::Some(bias) = bias {
        if share == 0 && unit_m == 0 && channel_block == 0 && tap_row == 0 && tap_column == 0 {
            #[unroll]
            for j in 0..unit_vectors {
                let sum = bias_sums[j];
                #[unroll]
                for lane in 0..lanes_out {
                    let o = first_output + (unit_n + comptime!(j * units_n)) * lanes_out + lane;
                    if o < outputs {
                        bias[(copy + group) * outputs + o] = R::cast_from(sum.extract(lane));
                    }
                }
            }
        }
    }
}

/// The sum of what the units of all shares with the same lines and channels have, the first first, for the
/// unit of the first share.
#[cube]
fn add_shares<A: Float, V: Size>(
    exchange: &mut Shared<[Vector<A, V>]>,
    value: Vector<A, V>,
    share: usize,
    #[comptime] tile: Tile,
) -> Vector<A, V> {
    let unit = UNIT_POS as usize;
    let mut sum = value;
    // What was exchanged before has been read.
    sync_cube();
    exchange[unit] = value;
    sync_cube();
    if share == 0 {
        for other in 1..comptime!(tile.shares) {
            sum += exchange[unit + other * comptime!(tile.units[0] * tile.units[1])];
        }
    }
    sum
}

/// Adds what `run` neighbouring positions contribute: the first lies at `position` in the patch and at
/// `from` in the output's gradient.
#[cube]
fn accumulate<A: Float, W: Numeric, WV: Numeric, N: Size, M: Size, V: Size, MV: Size>(
    stage: &Shared<[Vector<W, M>]>,
    gradient: &Shared<[Vector<WV, MV>]>,
    sums: &mut Array<Vector<A, V>>,
    bias_sums: &mut Array<Vector<A, V>>,
    offsets: &Array<usize>,
    position: usize,
    from: usize,
    #[comptime] run: usize,
    #[comptime] tile: Tile,
) {
    let patch = comptime!(tile.patch);
    let taps = comptime!(patch.taps[1]);
    let window = comptime!(patch.window(run, taps));
    let lanes = comptime!(patch.lanes);
    let unit_vectors = comptime!(tile.unit_vectors);
    let mut b = Array::<Vector<A, V>>::new(comptime!(run * unit_vectors));
    #[unroll]
    for i in 0..run {
        #[unroll]
        for j in 0..unit_vectors {
            let at = from + comptime!(i * tile.block_vectors() + j * tile.units[1]);
            let value = unpack::<A, V, WV, MV>(gradient[at]);
            b[comptime!(i * unit_vectors + j)] = value;
            if comptime!(tile.bias) {
                bias_sums[j] += value;
            }
        }
    }
    #[unroll]
    for line in 0..comptime!(tile.unit_lines) {
        let first = position + offsets[line];
        let columns = comptime!(window.columns());
        let mut a = Array::<Vector<A, N>>::new(columns);
        #[unroll]
        for column in 0..columns {
            if comptime!(window.meets(column)) {
                a[column] = unpack::<A, N, W, M>(stage[first + comptime!(window.offset(column))]);
            }
        }
        #[unroll]
        for i in 0..run {
            #[unroll]
            for t in 0..taps {
                let x = a[comptime!(window.column_of(i, t))];
                #[unroll]
                for k in 0..lanes {
                    let x = Vector::<A, V>::broadcast(x.extract(k));
                    #[unroll]
                    for j in 0..unit_vectors {
                        let s = comptime!(((line * taps + t) * lanes + k) * unit_vectors + j);
                        sums[s] = fma(x, b[comptime!(i * unit_vectors + j)], sums[s]);
                    }
                }
            }
        }
    }
}

/// Brings the output's gradient of a tile into shared memory, `[position][output channel]`.
#[cube]
fn stage_gradient<E: Float, V: Size, W: Numeric, M: Size, WY: Numeric, MY: Size>(
    dy: &Tensor<Vector<WY, MY>>,
    layout: &Layout,
    stage: &mut Shared<[Vector<W, M>]>,
    origin: &Origin,
    group_output: usize,
    first_output: usize,
    outputs: usize,
    height: &AxisArgs,
    width: &AxisArgs,
    #[comptime] tile: Tile,
) {
    let patch = comptime!(tile.patch);
    let block_vectors = comptime!(tile.block_vectors());
    let lanes_out = comptime!(tile.lanes_out);
    let len = comptime!(tile.gradient_len());
    let units = comptime!(patch.units);
    let (words, words_dy) = (M::value(), MY::value());
    let whole = comptime!(words_dy == words);
    let (batch, batches) = comptime!(patch.batches(len));
    for turn in 0..batches {
        let first = turn * comptime!(batch * units) + UNIT_POS as usize;
        let mut values = Array::<Vector<W, M>>::new(batch);
        #[unroll]
        for i in 0..batch {
            values[i] = Vector::zeroed();
            let index = first + comptime!(i * units);
            if index < len {
                let (p, v) = place_in_gradient(index, whole, tile);
                let place = place_in_tile(p, patch);
                let image = origin.image + place.0;
                let row = origin.row + place.1;
                let column = origin.column + place.2;
                if image < layout.batch && row < height.output && column < width.output {
                    let channel = group_output + first_output + v * lanes_out;
                    let at = layout.at(image, channel, row, column);
                    let end = group_output + outputs;
                    values[i] = read_channels::<E, V, W, M, WY, MY>(dy, layout, at, channel, end);
                }
            }
        }
        #[unroll]
        for i in 0..batch {
            let index = first + comptime!(i * units);
            if index < len {
                let (p, v) = place_in_gradient(index, whole, tile);
                stage[p * block_vectors + v] = values[i];
            }
        }
    }
}

/// The position in a tile, and the vector of output channels, that is staged as number `index`.
#[cube]
fn place_in_gradient(
    index: usize,
    #[comptime] whole: bool,
    #[comptime] tile: Tile,
) -> (usize, usize) {
    let mut position = index / comptime!(tile.block_vectors());
    let mut vector = index % comptime!(tile.block_vectors());
    if comptime!(!whole) {
        // Neighbouring columns are more likely to be neighbours in memory.
        position = index % comptime!(tile.patch.positions());
        vector = index / comptime!(tile.patch.positions());
    }
    (position, vector)
}

/// Adds `splits` copies of `result`, the first first.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn sum_splits_kernel<E: Float, A: Float>(
    partial: &[A],
    result: &mut [E],
    len: usize,
    splits: usize,
    #[define(E, A)] _dtypes: [ElemType; 2],
) {
    if ABSOLUTE_POS >= len {
        terminate!();
    }
    let mut sum = partial[ABSOLUTE_POS];
    for split in 1..splits {
        sum += partial[split * len + ABSOLUTE_POS];
    }
    result[ABSOLUTE_POS] = E::cast_from(sum);
}
