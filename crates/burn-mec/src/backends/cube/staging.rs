//! What all kernels share: how a cube brings the operands of its tile into shared memory.
//!
//! A *patch* holds the input positions that a tile's taps meet, `[image][row][column][channel]`. This
//! is the paper's strip without its copies: every position is read once, and each tap reads the same
//! patch at its own offset. Where a patch would be too large (a kernel spread wide by its dilation) or
//! pointless (a single tap), a copy of the positions is staged for each tap instead.
//!
//! Channels lie innermost, in vectors, and whatever is beyond an edge is staged as zero, so that the
//! loops that multiply test nothing.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;

/// One spatial axis as a kernel is told of it at launch: a [`mec_core::Reach`].
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct AxisArgs {
    /// Input positions.
    pub input: usize,
    /// Output positions.
    pub output: usize,
    /// Input positions from an output to the next.
    pub step: usize,
    /// Input position of the first tap of output 0; may be negative.
    pub base: i32,
    /// Kernel elements that take part.
    pub taps: usize,
    /// Input positions from a tap to the next.
    pub tap_step: usize,
    /// Kernel element of tap 0.
    pub weight_first: i32,
    /// Kernel elements from a tap to the next; may be negative.
    pub weight_step: i32,
    /// Positions in the output tensor from an output to the next.
    pub out_step: usize,
    /// Position in the output tensor of output 0.
    pub out_base: usize,
}

/// The sizes of a patch: fixed when a kernel is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Patch {
    /// Output images, rows and columns of a tile.
    pub tile: [usize; 3],
    /// Input positions from an output to the next, vertically and horizontally.
    pub step: [usize; 2],
    /// Input positions from a tap to the next.
    pub tap_step: [usize; 2],
    /// Rows and columns of taps that are staged together.
    pub taps: [usize; 2],
    /// Whether positions are staged once for all of those taps, or once for each.
    pub shared: bool,
    /// Channels staged together, in vectors.
    pub vectors: usize,
    /// Channels of a vector.
    pub lanes: usize,
    /// Whether neighbouring units read neighbouring channels, or neighbouring columns.
    pub channels_last: bool,
    /// Units of a cube.
    pub units: usize,
}

impl Patch {
    /// Output positions of a tile.
    pub fn positions(&self) -> usize {
        self.tile.iter().product()
    }

    /// Rows and columns that one image takes in a shared patch.
    pub fn extent(&self) -> [usize; 2] {
        [0, 1].map(|axis| {
            let (outputs, taps) = (self.tile[axis + 1], self.taps[axis]);
            (outputs - 1) * self.step[axis] + (taps - 1) * self.tap_step[axis] + 1
        })
    }

    /// Positions staged together.
    pub fn area(&self) -> usize {
        if self.shared {
            self.tile[0] * self.extent().iter().product::<usize>()
        } else {
            self.taps.iter().product::<usize>() * self.positions()
        }
    }

    /// Vectors of shared memory.
    pub fn len(&self) -> usize {
        self.area() * self.vectors
    }
}

/// Image, row and column of an output position of a tile.
#[cube]
pub(super) fn place_in_tile(position: usize, #[comptime] patch: Patch) -> (usize, usize, usize) {
    let rows = comptime!(patch.tile[1]);
    let columns = comptime!(patch.tile[2]);
    (position / comptime!(rows * columns), position / columns % rows, position % columns)
}

/// A vector of the channels of `tensor` from `channel` on, which lies at `at`; zeros from `end` on. They
/// are read in one piece, or one by one where the tensor is seen so.
#[cube]
pub(super) fn read_channels<E: Float, N: Size, NI: Size>(
    tensor: &Tensor<Vector<E, NI>>,
    at: usize,
    channel: usize,
    end: usize,
    #[comptime] lanes: usize,
) -> Vector<E, N> {
    let lanes_in = tensor.vector_size();
    let mut value = Vector::<E, N>::zeroed();
    #[unroll]
    for chunk in 0..comptime!(lanes / lanes_in) {
        if channel + chunk < end {
            let read = tensor[(at + chunk * tensor.stride(1)) / lanes_in];
            #[unroll]
            for lane in 0..lanes_in {
                value.insert(comptime!(chunk * lanes_in + lane), read.extract(lane));
            }
        }
    }
    value
}

/// Where in a patch the first tap of the tile's output position (`image`, `row`, `column`) lies.
#[cube]
pub(super) fn position_in_patch(
    image: usize,
    row: usize,
    column: usize,
    #[comptime] patch: Patch,
) -> usize {
    if comptime!(patch.shared) {
        let height = comptime!(patch.extent()[0]);
        let width = comptime!(patch.extent()[1]);
        ((image * height + row * comptime!(patch.step[0])) * width
            + column * comptime!(patch.step[1]))
            * comptime!(patch.vectors)
    } else {
        ((image * comptime!(patch.tile[1]) + row) * comptime!(patch.tile[2]) + column)
            * comptime!(patch.vectors)
    }
}

/// How far tap (`row`, `column`) of the staged ones lies from the first.
#[cube]
pub(super) fn tap_in_patch(row: usize, column: usize, #[comptime] patch: Patch) -> usize {
    if comptime!(patch.shared) {
        let width = comptime!(patch.extent()[1]);
        (row * comptime!(patch.tap_step[0]) * width + column * comptime!(patch.tap_step[1]))
            * comptime!(patch.vectors)
    } else {
        (row * comptime!(patch.taps[1]) + column) * comptime!(patch.positions() * patch.vectors)
    }
}

/// Where a tile begins in the input tensor, and where its channels end.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Origin {
    /// First image.
    pub image: usize,
    /// First output row.
    pub row: usize,
    /// First output column.
    pub column: usize,
    /// First row of taps that is staged.
    pub tap_row: usize,
    /// First column of taps that is staged.
    pub tap_column: usize,
    /// First channel, of all groups.
    pub channel: usize,
    /// The channel after the last one of the group.
    pub channel_end: usize,
}

/// Brings the patch at `origin` into shared memory.
#[cube]
pub(super) fn stage_patch<E: Float, N: Size, NI: Size>(
    input: &Tensor<Vector<E, NI>>,
    stage: &mut Shared<[Vector<E, N>]>,
    origin: &Origin,
    height: &AxisArgs,
    width: &AxisArgs,
    #[comptime] patch: Patch,
) {
    let vectors = comptime!(patch.vectors);
    let area = comptime!(patch.area());
    let len = comptime!(patch.len());
    let units = comptime!(patch.units);

    let first_row = (origin.row * comptime!(patch.step[0])
        + origin.tap_row * comptime!(patch.tap_step[0])) as i32
        + height.base;
    let first_column = (origin.column * comptime!(patch.step[1])
        + origin.tap_column * comptime!(patch.tap_step[1])) as i32
        + width.base;

    for turn in 0..comptime!(len.div_ceil(units)) {
        let index = turn * units + UNIT_POS as usize;
        if index < len {
            let mut position = index / vectors;
            let mut vector = index % vectors;
            if comptime!(!patch.channels_last) {
                position = index % area;
                vector = index / area;
            }

            let mut image = origin.image;
            let mut row = first_row;
            let mut column = first_column;
            if comptime!(patch.shared) {
                let rows = comptime!(patch.extent()[0]);
                let columns = comptime!(patch.extent()[1]);
                image += position / comptime!(rows * columns);
                row += (position / columns % rows) as i32;
                column += (position % columns) as i32;
            } else {
                let tap = position / comptime!(patch.positions());
                let tap_columns = comptime!(patch.taps[1]);
                let place = place_in_tile(position % comptime!(patch.positions()), patch);
                image += place.0;
                row += (place.1 * comptime!(patch.step[0])
                    + tap / tap_columns * comptime!(patch.tap_step[0]))
                    as i32;
                column += (place.2 * comptime!(patch.step[1])
                    + tap % tap_columns * comptime!(patch.tap_step[1]))
                    as i32;
            }

            let inside = image < input.shape(0)
                && row >= 0
                && (row as usize) < height.input
                && column >= 0
                && (column as usize) < width.input;
            let channel = origin.channel + vector * comptime!(patch.lanes);
            let mut value = Vector::<E, N>::zeroed();
            if inside {
                let at = image * input.stride(0)
                    + channel * input.stride(1)
                    + row as usize * input.stride(2)
                    + column as usize * input.stride(3);
                value = read_channels::<E, N, NI>(
                    input,
                    at,
                    channel,
                    origin.channel_end,
                    comptime!(patch.lanes),
                );
            }
            stage[position * vectors + vector] = value;
        }
    }
}
