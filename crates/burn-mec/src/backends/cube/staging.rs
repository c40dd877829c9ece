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

/// Where the elements of a tensor `[batch, channels, height, width]` lie. A kernel asks for it once, before
/// its loops: the sizes are in memory too, and a compiler cannot know that they stay the same.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Layout {
    pub batch: usize,
    /// Elements from an image, a channel, a row, a column to the next.
    pub image: usize,
    pub channel: usize,
    pub row: usize,
    pub column: usize,
}

#[cube]
impl Layout {
    pub fn of<T: CubePrimitive>(tensor: &Tensor<T>) -> Layout {
        Layout {
            batch: tensor.shape(0),
            image: tensor.stride(0),
            channel: tensor.stride(1),
            row: tensor.stride(2),
            column: tensor.stride(3),
        }
    }

    pub fn at(&self, image: usize, channel: usize, row: usize, column: usize) -> usize {
        image * self.image + channel * self.channel + row * self.row + column * self.column
    }
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
    /// Most vectors that a unit reads from global memory before it stores the first of them.
    pub batch: usize,
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

    /// Vectors from an output position to the next of its row.
    pub fn column_step(&self) -> usize {
        self.vectors * if self.shared { self.step[1] } else { 1 }
    }

    /// What `run` neighbouring output positions and `taps` neighbouring taps of a row read.
    pub fn window(&self, run: usize, taps: usize) -> Window {
        Window { patch: *self, run, taps }
    }

    /// Vectors of shared memory.
    pub fn len(&self) -> usize {
        self.area() * self.vectors
    }

    /// How a cube's units share the staging of `len` vectors: how many each reads before it stores them,
    /// and how often.
    pub fn batches(&self, len: usize) -> (usize, usize) {
        let turns = len.div_ceil(self.units).max(1);
        let batch = turns.min(self.batch);
        (batch, turns.div_ceil(batch))
    }
}

/// The input columns that a run of neighbouring output positions meets with some taps of a row: the
/// paper's overlap of windows, in registers. Taps share most columns, each of which is read once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    patch: Patch,
    run: usize,
    taps: usize,
}

impl Window {
    /// The column that tap `tap` meets at position `position`, counted from the first of both.
    pub fn column_of(&self, position: usize, tap: usize) -> usize {
        if self.patch.shared {
            position * self.patch.step[1] + tap * self.patch.tap_step[1]
        } else {
            tap * self.run + position
        }
    }

    /// Columns from the first to the last.
    pub fn columns(&self) -> usize {
        self.column_of(self.run - 1, self.taps - 1) + 1
    }

    /// Whether any tap meets `column` at any position.
    pub fn meets(&self, column: usize) -> bool {
        (0..self.run).any(|i| (0..self.taps).any(|t| self.column_of(i, t) == column))
    }

    /// Columns that are met.
    pub fn reads(&self) -> usize {
        let mut met = vec![false; self.columns()];
        for position in 0..self.run {
            (0..self.taps).for_each(|tap| met[self.column_of(position, tap)] = true);
        }
        met.into_iter().filter(|&met| met).count()
    }

    /// How far `column` lies from the first in the patch.
    pub fn offset(&self, column: usize) -> usize {
        let patch = &self.patch;
        if patch.shared {
            column * patch.vectors
        } else {
            (column / self.run * patch.positions() + column % self.run) * patch.vectors
        }
    }
}

/// Image, row and column of an output position of a tile.
#[cube]
pub(super) fn place_in_tile(position: usize, #[comptime] patch: Patch) -> (usize, usize, usize) {
    let rows = comptime!(patch.tile[1]);
    let columns = comptime!(patch.tile[2]);
    (position / comptime!(rows * columns), position / columns % rows, position % columns)
}

/// A vector of the channels of `tensor` from `channel` on, which lies at `at`, as shared memory holds it;
/// zeros from `end` on. It is read as it lies, or number by number where the tensor is seen so.
#[cube]
pub(super) fn read_channels<E: Float, N: Size, W: Numeric, M: Size, WI: Numeric, MI: Size>(
    tensor: &Tensor<Vector<WI, MI>>,
    layout: &Layout,
    at: usize,
    channel: usize,
    end: usize,
) -> Vector<W, M> {
    let lanes = N::value();
    let words = M::value();
    let words_in = MI::value();
    let mut packed = Vector::<W, M>::zeroed();
    if comptime!(words_in == words) {
        if channel < end {
            packed = Vector::cast_from(tensor[at / lanes]);
        }
    } else {
        let mut value = Vector::<E, N>::zeroed();
        #[unroll]
        for lane in 0..lanes {
            if channel + lane < end {
                let read = tensor[at + lane * layout.channel];
                value.insert(lane, E::cast_from(read.extract(0usize)));
            }
        }
        packed = pack::<E, N, W, M>(value);
    }
    packed
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

/// A vector as kernels move it: as it is, or two 32-bit numbers in each 64-bit word. A software device
/// moves numbers one by one, so half as many take half the time.
#[cube]
pub(super) fn pack<E: Float, N: Size, W: Numeric, M: Size>(value: Vector<E, N>) -> Vector<W, M> {
    let lanes = N::value();
    let words = M::value();
    let mut packed = Vector::<W, M>::zeroed();
    if comptime!(lanes == words) {
        packed = Vector::cast_from(value);
    } else {
        #[unroll]
        for word in 0..words {
            let low = u32::reinterpret(value.extract(comptime!(2 * word)));
            let high = u32::reinterpret(value.extract(comptime!(2 * word + 1)));
            packed
                .insert(word, W::cast_from(u64::cast_from(low) | (u64::cast_from(high) << 32u64)));
        }
    }
    packed
}

/// The inverse of [`pack`].
#[cube]
pub(super) fn unpack<A: Float, N: Size, W: Numeric, M: Size>(packed: Vector<W, M>) -> Vector<A, N> {
    let lanes = N::value();
    let words = M::value();
    let mut value = Vector::<A, N>::zeroed();
    if comptime!(lanes == words) {
        value = Vector::cast_from(packed);
    } else {
        #[unroll]
        for word in 0..words {
            let bits = u64::cast_from(packed.extract(word));
            value.insert(comptime!(2 * word), A::cast_from(f32::reinterpret(u32::cast_from(bits))));
            value.insert(
                comptime!(2 * word + 1),
                A::cast_from(f32::reinterpret(u32::cast_from(bits >> 32u64))),
            );
        }
    }
    value
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

/// Brings the patch at `origin` into shared memory. A unit reads several vectors before it stores the
/// first, so that it waits for global memory once for all of them.
#[cube]
pub(super) fn stage_patch<E: Float, N: Size, W: Numeric, M: Size, WI: Numeric, MI: Size>(
    input: &Tensor<Vector<WI, MI>>,
    layout: &Layout,
    stage: &mut Shared<[Vector<W, M>]>,
    origin: &Origin,
    height: &AxisArgs,
    width: &AxisArgs,
    #[comptime] patch: Patch,
) {
    let vectors = comptime!(patch.vectors);
    let len = comptime!(patch.len());
    let units = comptime!(patch.units);

    let first_row = (origin.row * comptime!(patch.step[0])
        + origin.tap_row * comptime!(patch.tap_step[0])) as i32
        + height.base;
    let first_column = (origin.column * comptime!(patch.step[1])
        + origin.tap_column * comptime!(patch.tap_step[1])) as i32
        + width.base;

    let (batch, batches) = comptime!(patch.batches(len));
    for turn in 0..batches {
        let first = turn * comptime!(batch * units) + UNIT_POS as usize;
        let mut values = Array::<Vector<W, M>>::new(batch);
        #[unroll]
        for i in 0..batch {
            values[i] = Vector::zeroed();
            let index = first + comptime!(i * units);
            if index < len {
                let (position, vector) = place_in_patch(index, patch);
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

                let inside = image < layout.batch
                    && row >= 0
                    && (row as usize) < height.input
                    && column >= 0
                    && (column as usize) < width.input;
                let channel = origin.channel + vector * comptime!(patch.lanes);
                if inside {
                    let at = layout.at(image, channel, row as usize, column as usize);
                    values[i] = read_channels::<E, N, W, M, WI, MI>(
                        input,
                        layout,
                        at,
                        channel,
                        origin.channel_end,
                    );
                }
            }
        }
        #[unroll]
        for i in 0..batch {
            let index = first + comptime!(i * units);
            if index < len {
                let (position, vector) = place_in_patch(index, patch);
                stage[position * vectors + vector] = values[i];
            }
        }
    }
}

/// The position in a patch, and the vector of channels, that is staged as number `index`: neighbouring
/// units read what lies together in memory.
#[cube]
fn place_in_patch(index: usize, #[comptime] patch: Patch) -> (usize, usize) {
    let mut position = index / comptime!(patch.vectors);
    let mut vector = index % comptime!(patch.vectors);
    if comptime!(!patch.channels_last) {
        position = index % comptime!(patch.area());
        vector = index / comptime!(patch.area());
    }
    (position, vector)
}
