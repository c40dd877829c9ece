//! Micro-kernels: the innermost loops, written once over [`simd::Vector`] and compiled for each
//! instruction set.
//!
//! A [`Kernel`] value is the proof that the CPU can run it: [`Kernel::available`] is the only source
//! of them. How a panel is laid out is known to this folder and to `strip/panel.rs` alone.

#![expect(
    clippy::needless_range_loop,
    reason = "register tiles: the same constant indexes several arrays"
)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod direct;
mod dots;
mod gather;
mod lanes;
mod outer;
mod rows;
mod simd;
mod tile;
mod transpose;
mod winograd;

pub(crate) use direct::{DIRECT_COLUMNS, DIRECT_OUTPUTS, DIRECT_VECTORS, Direct, DirectTap};
pub(crate) use dots::{Dots, ELEMENTS, Span};
pub(crate) use gather::{
    GatherLanes, GatherTiles, Gathers, MOST_DEALT, MOST_SPAN, RowOfTiles, RowTiles, ToPanel,
};
pub(crate) use lanes::{MAX_PHASES, OutRun, Pack, Scatter, inside_columns};
pub(crate) use outer::{Outer, STEPS, Stretch};
pub(crate) use rows::{
    Plane, Planes, RowSums, Rows, Spread, Staged, StagedSums, StagedTap, Weights, Window,
    serves as rows_serve, spread_serves,
};
pub use simd::Vector;
pub(crate) use tile::{MAX_VECTORS, Onto, PackWeights, Tap, Tile, prefetch};
pub(crate) use transpose::Transpose;
pub(crate) use winograd::{
    Accumulate, InputAxis, InputPiece, KernelPiece, Multiply, OUTPUTS, Overlap, POSITIONS,
    PackTiles, Places, SIDE, TransformGradients, TransformOutputs, TransformSums, TransformTiles,
    TransformWeights, Winograd, has_product, product_positions, taps_before,
};

use simd::Isa;
pub(crate) use simd::MAX_LANES;
use std::ops::Range;

/// Bytes of a cache line.
pub(crate) const LINE: usize = 64;

/// Most columns a tile has on any instruction set: three AVX-512 registers of `f32`.
pub(crate) const MAX_COLUMNS: usize = 48;

/// Most channels a tile has on any instruction set.
pub(crate) const MAX_CHANNELS: usize = 8;

/// Sizes of tiles by channels.
const SIZES: usize = 5;

/// Channels of the smallest tile but one: as many as an image has colours. The input gradient of a first
/// layer has no more, and then a tile of 3 registers has 9 sums on their way, one of 2 has 6 (or 8, two of
/// them for nothing) in the latency of 10.
pub(crate) const FEW: usize = 3;

/// Most channels of the three largest tiles; then come [`FEW`] and one.
#[derive(Debug, Clone, Copy)]
struct TileSizes([usize; 3]);

impl TileSizes {
    /// The tile for `outputs` channels.
    fn of(self, outputs: usize) -> usize {
        let Self([most, fewer, fewest]) = self;
        debug_assert!(outputs >= 1 && outputs <= most);
        match outputs {
            1 => 4,
            n if n <= FEW => 3,
            n if n <= fewest => 2,
            n if n <= fewer => 1,
            _ => 0,
        }
    }
}

/// A forward micro-kernel of one size.
type TileFn<T> = unsafe fn(&Tile<T>);

/// A micro-kernel straight from the input, of one size.
type DirectFn<T> = unsafe fn(&Direct<T>);

/// What differs between instruction sets besides the width of a register.
struct Sizes {
    vectors: usize,
    outer_vectors: usize,
    panel_bytes: usize,
    transformed_bytes: usize,
    packed_rows: usize,
    even_tiles: bool,
}

/// For 32 registers: 24 accumulators, 3 columns, weights. With transformed panels of 512 KiB at most the forward pass took
/// 1.05, the input gradient 1.08 times as long (Sapphire Rapids, 2 MiB of second-level cache): their size is left to
/// the plan.
const SIZES_32: Sizes = Sizes {
    vectors: 3,
    outer_vectors: 4,
    panel_bytes: 512 << 10,
    transformed_bytes: usize::MAX,
    packed_rows: 4,
    even_tiles: false,
};

/// For 16 registers: 12 accumulators, 2 columns, weights. The panel is three quarters of a second-level
/// cache of 512 KiB (Zen 2); of 256 KiB and of 700 KiB the input gradient took 1.02 to 1.1 times as long.
/// With 4 rows for each packing of the weights it took 1.05 to 1.25 times as long as with 16. A step
/// of a tile takes 5 cycles at least, a multiply-add's latency: as long for 2 channels as for 5, so that
/// 128 channels are 18 tiles of 6 and 4 of 5, not 21 of 6 and one of 2.
const SIZES_16: Sizes = Sizes {
    vectors: 2,
    outer_vectors: 2,
    panel_bytes: 384 << 10,
    transformed_bytes: 384 << 10,
    packed_rows: 16,
    even_tiles: true,
};

/// For the compiler's own vectors, which may have 16 registers.
const PORTABLE: Sizes = Sizes { vectors: 3, even_tiles: false, ..SIZES_16 };

/// The entry points for one instruction set, and the sizes they are made for.
pub(crate) struct Kernel<T: 'static> {
    /// Name of the instruction set.
    pub name: &'static str,
    /// Elements in a register.
    pub lanes: usize,
    /// Most vectors of columns of a tile.
    pub vectors: usize,
    /// Most channels of a tile.
    pub channels: usize,
    /// Which tile has how many channels.
    sizes: TileSizes,
    /// Whether channels are dealt to tiles evenly, or to as many full tiles as they fill.
    pub even_tiles: bool,
    /// Bytes of a panel that stays in the second-level cache beside what else passes through it.
    pub panel_bytes: usize,
    /// The same, at most, of a panel of tiles that are transformed, or of one that serves all positions.
    pub transformed_bytes: usize,
    /// Rows a panel should serve where weights are packed for it.
    pub packed_rows: usize,
    /// Tiles by vectors of columns (1, 2, 3) and by channels, as `sizes` says.
    tiles: [[TileFn<T>; SIZES]; MAX_VECTORS],
    pack_weights: unsafe fn(&PackWeights<T>),
    /// Tiles straight from the input, by outputs (2, 3, 4, 6) and vectors of columns.
    directs: [[DirectFn<T>; DIRECT_VECTORS]; 4],
    /// Weight-gradient tiles by vectors of channels (1 to 4).
    outers: [unsafe fn(&Outer<T>); 4],
    /// Most vectors of channels of a weight-gradient tile.
    pub outer_vectors: usize,
    /// Weight-gradient tiles of dot products by kernel elements.
    dots: [unsafe fn(&Dots<T>); ELEMENTS],
    /// Output channels of such a tile.
    pub dot_outputs: usize,
    rows: unsafe fn(&Rows<T>),
    row_sums: unsafe fn(&RowSums<T>),
    spread: unsafe fn(&Spread<T>),
    staged: unsafe fn(&Staged<T>),
    staged_sums: unsafe fn(&StagedSums<T>),
    plane_sum: unsafe fn(&Plane<T>) -> T,
    transpose: unsafe fn(&Transpose<T>),
    pack: unsafe fn(&Pack<T>),
    scatter: unsafe fn(&Scatter<T>),
    /// Loads that gather, where they are worth it.
    pub gathers: Option<Gathers<T>>,
    /// Winograd's filtering.
    pub winograd: Winograd<T>,
}

impl<T: Vector> Kernel<T> {
    /// The kernels this CPU can run, the fastest first. Never empty.
    pub fn available() -> Vec<&'static Self> {
        let mut kernels: Vec<&'static Self> = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if pulp::x86::V4::try_new().is_some() {
                kernels.push(
                    const { &Self::new::<simd::Avx512, 8, 6, 4, 8>("AVX-512", SIZES_32, T::AVX512) },
                );
            }
            if pulp::x86::V3::try_new().is_some() {
                kernels.push(
                    const { &Self::new::<simd::Avx2, 6, 5, 4, 4>("AVX2", SIZES_16, T::AVX2) },
                );
            }
        }
        #[cfg(target_arch = "aarch64")]
        if pulp::aarch64::Neon::try_new().is_some() {
            kernels.push(
                const {
                    &Self::new::<simd::Neon, 8, 6, 4, 8>(
                        "NEON",
                        SIZES_32,
                        simd::Moves::plain::<simd::Neon>(),
                    )
                },
            );
        }
        kernels.push(
            const {
                let moves = simd::Moves::plain::<simd::Portable>();
                &Self::new::<simd::Portable, 4, 3, 2, 4>("portable", PORTABLE, moves)
            },
        );
        kernels
    }

    /// The fastest kernel this CPU can run.
    pub fn best() -> &'static Self {
        Self::available()[0]
    }

    const fn new<
        I: Isa,
        const R: usize,
        const FEWER: usize,
        const FEWEST: usize,
        const D: usize,
    >(
        name: &'static str,
        sizes: Sizes,
        moves: simd::Moves<T>,
    ) -> Self {
        let Sizes {
            vectors,
            outer_vectors,
            panel_bytes,
            transformed_bytes,
            packed_rows,
            even_tiles,
        } = sizes;
        Self {
            name,
            lanes: size_of::<T::Of<I::Token>>() / size_of::<T>(),
            vectors,
            channels: R,
            sizes: TileSizes([R, FEWER, FEWEST]),
            even_tiles,
            panel_bytes,
            transformed_bytes,
            packed_rows,
            tiles: [
                Self::tiles_of::<I, 1, R, FEWER, FEWEST>(),
                Self::tiles_of::<I, 2, R, FEWER, FEWEST>(),
                Self::tiles_of::<I, 3, R, FEWER, FEWEST>(),
            ],
            pack_weights: tile::pack_weights::<T, R>,
            directs: [
                Self::directs_of::<I, 2>(),
                Self::directs_of::<I, 3>(),
                Self::directs_of::<I, 4>(),
                Self::directs_of::<I, 6>(),
            ],
            outers: [
                outer::outer::<T, I, 1>,
                outer::outer::<T, I, 2>,
                outer::outer::<T, I, 3>,
                outer::outer::<T, I, 4>,
            ],
            outer_vectors,
            dots: [
                dots::dots::<T, I, D, 1>,
                dots::dots::<T, I, D, 2>,
                dots::dots::<T, I, D, ELEMENTS>,
            ],
            dot_outputs: D,
            rows: rows::rows::<T, I>,
            row_sums: rows::row_sums::<T, I>,
            spread: rows::spread::<T, I>,
            staged: rows::staged::<T, I>,
            staged_sums: rows::staged_sums::<T, I>,
            plane_sum: rows::plane_sum::<T, I>,
            transpose: moves.transpose,
            pack: moves.pack,
            scatter: lanes::scatter::<T, I>,
            winograd: Winograd::new::<I, R, FEWER, FEWEST>(&moves),
            gathers: moves.gathers,
        }
    }

    const fn tiles_of<
        I: Isa,
        const V: usize,
        const R: usize,
        const FEWER: usize,
        const FEWEST: usize,
    >() -> [TileFn<T>; SIZES] {
        [
            tile::tile::<T, I, V, R>,
            tile::tile::<T, I, V, FEWER>,
            tile::tile::<T, I, V, FEWEST>,
            tile::tile::<T, I, V, FEW>,
            tile::tile::<T, I, V, 1>,
        ]
    }

    const fn directs_of<I: Isa, const R: usize>() -> [DirectFn<T>; DIRECT_VECTORS] {
        [
            direct::direct::<T, I, 1, R>,
            direct::direct::<T, I, 2, R>,
            direct::direct::<T, I, 3, R>,
            direct::direct::<T, I, 4, R>,
        ]
    }

    /// Most vectors of columns of a tile of `outputs` straight from the input, which may reach beyond it and then needs
    /// a register for masks: a sum that has none waits for its memory, and so do all steps (c1 took twice the time).
    pub fn direct_vectors(&self, outputs: usize, masked: bool) -> usize {
        let registers = |v: usize| v * outputs + v.min(outputs) + 1 + usize::from(masked);
        (1..=DIRECT_VECTORS).rev().find(|&v| registers(v) <= 16).unwrap_or(1)
    }

    /// Computes one tile straight from the input.
    ///
    /// # Safety
    ///
    /// As [`direct::direct`], `vectors` being `V` and `outputs` `R`.
    pub unsafe fn direct(&self, vectors: usize, outputs: usize, direct: &Direct<T>) {
        let size = match outputs {
            2 => 0,
            3 => 1,
            4 => 2,
            6 => 3,
            _ => unreachable!("two or three channels, or one to three of two phases"),
        };
        // SAFETY: the caller vouches for the tile, this value for the CPU.
        unsafe { (self.directs[size][vectors - 1])(direct) }
    }

    /// Divides `outputs` channels into the ranges of tiles.
    pub fn tile_ranges(&self, outputs: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        self.ranges(outputs, self.channels)
    }

    /// Divides `outputs` channels into ranges of at most `most`.
    pub fn ranges(&self, outputs: Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> {
        let len = outputs.len();
        let tiles = len.div_ceil(most);
        let place =
            move |tile: usize| if self.even_tiles { tile * len / tiles } else { tile * most };
        (0..tiles)
            .map(move |tile| outputs.start + place(tile)..outputs.start + place(tile + 1).min(len))
    }

    /// Computes one tile of a panel that is `vectors` registers wide.
    ///
    /// # Safety
    ///
    /// As [`tile::tile`], `vectors` being `V` and [`Kernel::channels`] `R`.
    pub unsafe fn tile(&self, vectors: usize, tile: &Tile<T>) {
        // SAFETY: the caller vouches for the tile, this value for the CPU.
        unsafe { self.tiles[vectors - 1][self.sizes.of(tile.outputs)](tile) }
    }

    /// Copies the weights of one tile as `[channel][tap][Kernel::channels]`.
    ///
    /// # Safety
    ///
    /// As [`tile::pack_weights`].
    pub unsafe fn pack_weights(&self, weights: &PackWeights<T>) {
        // SAFETY: the caller vouches for both sides.
        unsafe { (self.pack_weights)(weights) }
    }

    /// Computes one weight-gradient tile of `vectors` registers of channels.
    ///
    /// # Safety
    ///
    /// As [`outer::outer`], `vectors` being `V`.
    pub unsafe fn outer(&self, vectors: usize, outer: &Outer<T>) {
        // SAFETY: the caller vouches for the tile, this value for the CPU.
        unsafe { self.outers[vectors - 1](outer) }
    }

    /// Computes one weight-gradient tile of dot products, of `elements` kernel elements.
    ///
    /// # Safety
    ///
    /// As [`dots::dots`], `elements` being `K` and [`Kernel::dot_outputs`] `R`.
    pub unsafe fn dots(&self, elements: usize, dots: &Dots<T>) {
        // SAFETY: the caller vouches for the tile, this value for the CPU.
        unsafe { (self.dots[elements - 1])(dots) }
    }

    /// Computes some planes of a depthwise convolution.
    ///
    /// # Safety
    ///
    /// As [`rows::rows`].
    pub unsafe fn rows(&self, rows: &Rows<T>) {
        // SAFETY: the caller vouches for the plane, this value for the CPU.
        unsafe { (self.rows)(rows) }
    }

    /// Adds the weight gradient of some planes of a depthwise convolution.
    ///
    /// # Safety
    ///
    /// As [`rows::row_sums`].
    pub unsafe fn row_sums(&self, sums: &RowSums<T>) {
        // SAFETY: the caller vouches for the planes, this value for the CPU.
        unsafe { (self.row_sums)(sums) }
    }

    /// Computes some planes of the input gradient of a depthwise convolution at stride 2.
    ///
    /// # Safety
    ///
    /// As [`rows::spread`].
    pub unsafe fn spread(&self, spread: &Spread<T>) {
        // SAFETY: the caller vouches for the planes, this value for the CPU.
        unsafe { (self.spread)(spread) }
    }

    /// Computes some outputs of a depthwise convolution from a stage.
    ///
    /// # Safety
    ///
    /// As [`rows::staged`].
    pub unsafe fn staged(&self, staged: &Staged<T>) {
        // SAFETY: the caller vouches for stage and outputs, this value for the CPU.
        unsafe { (self.staged)(staged) }
    }

    /// Adds the weight gradient of some outputs of a depthwise convolution.
    ///
    /// # Safety
    ///
    /// As [`rows::staged_sums`].
    pub unsafe fn staged_sums(&self, sums: &StagedSums<T>) {
        // SAFETY: the caller vouches for stage and planes, this value for the CPU.
        unsafe { (self.staged_sums)(sums) }
    }

    /// The sum of one plane.
    ///
    /// # Safety
    ///
    /// As [`rows::plane_sum`].
    pub unsafe fn plane_sum(&self, plane: &Plane<T>) -> T {
        // SAFETY: the caller vouches for the plane, this value for the CPU.
        unsafe { (self.plane_sum)(plane) }
    }

    /// Transposes a matrix.
    ///
    /// # Safety
    ///
    /// As [`transpose::plain`].
    pub unsafe fn transpose(&self, transpose: &Transpose<T>) {
        // SAFETY: the caller vouches for both sides, this value for the CPU.
        unsafe { (self.transpose)(transpose) }
    }

    /// Packs one run of columns for all channels.
    ///
    /// # Safety
    ///
    /// As [`lanes::pack`].
    pub unsafe fn pack(&self, pack: &Pack<T>) {
        // SAFETY: the caller vouches for the run, this value for the CPU.
        unsafe { (self.pack)(pack) }
    }

    /// Writes a tile to its places in the output.
    ///
    /// # Safety
    ///
    /// As [`lanes::scatter`].
    pub unsafe fn scatter(&self, scatter: &Scatter<T>) {
        // SAFETY: the caller vouches for the tile, this value for the CPU.
        unsafe { (self.scatter)(scatter) }
    }
}
