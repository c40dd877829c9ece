//! Transforming weights on x86, where they come into the lanes by transposing.

use super::forward::{transform_piece, weights};
use super::{KernelPiece, SIDE, TransformWeights, product_positions, taps_before};
use crate::kernel::simd::{Avx2, Avx512, Isa, MAX_LANES, Vector};
use crate::kernel::tile::prefetch_far;
use crate::kernel::{avx2, avx512};
use pulp::{Simd, WithSimd};
use std::arch::x86_64::*;
use std::iter;
use std::marker::PhantomData;
use std::mem::transmute;

/// A register of `I`.
type Of<I> = <f32 as Vector>::Of<<I as Isa>::Token>;

/// What brings rows of a kernel into the lanes.
pub(crate) trait Fours: Isa {
    /// Element `k` of each of `read`, as many as there are lanes, in register `k`.
    ///
    /// # Safety
    ///
    /// The CPU has the instruction set.
    unsafe fn fours(read: &[__m128; MAX_LANES]) -> [Of<Self>; 4];
}

impl Fours for Avx2 {
    #[inline(always)]
    unsafe fn fours(read: &[__m128; MAX_LANES]) -> [Of<Self>; 4] {
        // SAFETY: the same contract; registers are plain numbers.
        unsafe {
            transmute(avx2::quads([
                _mm256_set_m128(read[4], read[0]),
                _mm256_set_m128(read[5], read[1]),
                _mm256_set_m128(read[6], read[2]),
                _mm256_set_m128(read[7], read[3]),
            ]))
        }
    }
}

impl Fours for Avx512 {
    #[inline(always)]
    unsafe fn fours(read: &[__m128; MAX_LANES]) -> [Of<Self>; 4] {
        // SAFETY: the same contract; registers are plain numbers.
        unsafe {
            transmute(avx512::quads([
                avx512::joined([read[0], read[4], read[8], read[12]]),
                avx512::joined([read[1], read[5], read[9], read[13]]),
                avx512::joined([read[2], read[6], read[10], read[14]]),
                avx512::joined([read[3], read[7], read[11], read[15]]),
            ]))
        }
    }
}

/// As [`transform_piece`] of each piece, but that the elements of a kernel row are read together where they lie
/// close enough, and brought into the lanes by transposing: half the time.
///
/// # Safety
///
/// As [`super::forward::transform_weights`]; the CPU has `I`. At each position pieces follow each other, and a register
/// that is not whole reaches into the next piece's first one, which is written later.
pub(crate) unsafe fn transform_weights<I: Fours>(t: &TransformWeights<f32>) {
    // SAFETY: the same contract.
    unsafe {
        let taps = t.pieces.iter().map(|piece| piece.taps);
        let three = t.apart == [2, 2] && taps.eq([[2, 1], [2, 2], [1, 2], [1, 1]]);
        match t.steps {
            [rows, 1] if three && rows != 0 => at_stride_2::<I, 1>(t),
            [rows, -1] if three && rows != 0 => at_stride_2::<I, -1>(t),
            _ => t.pieces.iter().for_each(|piece| one_piece::<I>(t, piece)),
        }
    }
}

/// # Safety
///
/// As [`transform_weights`].
unsafe fn one_piece<I: Fours>(t: &TransformWeights<f32>, piece: &KernelPiece) {
    let row = t.apart[0] as isize * t.steps[0];
    let column = t.apart[1] as isize * t.steps[1];
    let whole = t.channels.is_multiple_of(f32::lanes::<I::Token>());
    let together = |side| whole && (t.channel, row) == (side * side, side);
    // SAFETY: the same contract.
    unsafe {
        match (piece.taps, column) {
            ([1, 1], _) => by_rows::<I, 1, 1, 1, ANY>(t, piece),
            ([1, 2], 1) => by_rows::<I, 1, 2, 1, ANY>(t, piece),
            ([1, 2], -1) => by_rows::<I, 1, 2, -1, ANY>(t, piece),
            ([1, 2], 2) => by_rows::<I, 1, 2, 2, ANY>(t, piece),
            ([1, 2], -2) => by_rows::<I, 1, 2, -2, ANY>(t, piece),
            // Four elements are read for three: the fourth is there if another row lies before or behind.
            _ if row == 0 => transform_piece::<f32, I>(t, piece),
            ([2, 1], _) => by_rows::<I, 2, 1, 1, ANY>(t, piece),
            ([3, 1], _) => by_rows::<I, 3, 1, 1, ANY>(t, piece),
            ([3, 3], 1) if together(3) => by_rows::<I, 3, 3, 1, 9>(t, piece),
            ([3, 3], 1) if together(5) => by_rows::<I, 3, 3, 1, 25>(t, piece),
            ([3, 3], 1) => by_rows::<I, 3, 3, 1, ANY>(t, piece),
            ([3, 3], -1) => by_rows::<I, 3, 3, -1, ANY>(t, piece),
            ([2, 3], 1) if together(5) => by_rows::<I, 2, 3, 1, 25>(t, piece),
            ([2, 3], 1) => by_rows::<I, 2, 3, 1, ANY>(t, piece),
            ([2, 3], -1) => by_rows::<I, 2, 3, -1, ANY>(t, piece),
            ([3, 2], 1) if together(5) => by_rows::<I, 3, 2, 1, 25>(t, piece),
            ([3, 2], 1) => by_rows::<I, 3, 2, 1, ANY>(t, piece),
            ([3, 2], -1) => by_rows::<I, 3, 2, -1, ANY>(t, piece),
            ([2, 2], 1) if together(5) => by_rows::<I, 2, 2, 1, 25>(t, piece),
            ([2, 2], 1) => by_rows::<I, 2, 2, 1, ANY>(t, piece),
            ([2, 2], -1) => by_rows::<I, 2, 2, -1, ANY>(t, piece),
            ([3, 3], 2) => by_rows::<I, 3, 3, 2, ANY>(t, piece),
            ([2, 3], 2) => by_rows::<I, 2, 3, 2, ANY>(t, piece),
            ([3, 2], 2) => by_rows::<I, 3, 2, 2, ANY>(t, piece),
            ([2, 2], 2) => by_rows::<I, 2, 2, 2, ANY>(t, piece),
            ([2, 2], -2) => by_rows::<I, 2, 2, -2, ANY>(t, piece),
            _ => transform_piece::<f32, I>(t, piece),
        }
    }
}

/// No one number of elements from a channel to the next.
const ANY: isize = 0;

/// Weights of `ROWS` rows of `COLUMNS` elements that lie `STEP` apart, and each channel's [`ANY`] number of elements from the
/// last's or `CHANNEL`, a square kernel's, in whole registers: then all addresses are constants and memory is met in order
/// (of the forward pass's time, 3 x 3 kernels of 512 channels took 0.96, 5 x 5 ones, whose rows are asked for apart, 0.9).
///
/// # Safety
///
/// As [`transform_weights`].
unsafe fn by_rows<
    I: Fours,
    const ROWS: usize,
    const COLUMNS: usize,
    const STEP: isize,
    const CHANNEL: isize,
>(
    t: &TransformWeights<f32>,
    piece: &KernelPiece,
) {
    let call = ByRows::<I, ROWS, COLUMNS, STEP, CHANNEL>(t, piece, PhantomData);
    // SAFETY: the caller vouches for the CPU.
    unsafe { I::token() }.vectorize(call);
}

struct ByRows<
    'a,
    I,
    const ROWS: usize,
    const COLUMNS: usize,
    const STEP: isize,
    const CHANNEL: isize,
>(&'a TransformWeights<'a, f32>, &'a KernelPiece, PhantomData<I>);

impl<I: Fours, const ROWS: usize, const COLUMNS: usize, const STEP: isize, const CHANNEL: isize>
    WithSimd for ByRows<'_, I, ROWS, COLUMNS, STEP, CHANNEL>
{
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self(t, piece, _) = self;
        // SAFETY: `by_rows`'s contract covers the CPU.
        let simd = unsafe { I::token() };
        let zero = f32::splat(simd, 0.0);
        let first = t.from.wrapping_offset(t.element(piece, [0, 0]));
        let row_step = if CHANNEL == ANY {
            t.apart[0] as isize * t.steps[0]
        } else {
            const { CHANNEL.isqrt() }
        };
        // Channels outermost: where outputs lie beside each other, each channel's are met together.
        for c in (0..t.channels).step_by(f32::lanes::<I::Token>()) {
            let offsets = if CHANNEL == ANY { offsets::<I>(t, c) } else { [0; MAX_LANES] };
            for r in 0..t.outputs {
                let from = first.wrapping_offset(r as isize * t.output + c as isize * CHANNEL);
                // SAFETY: the caller vouches for the weights of these channels, and for both sides.
                unsafe {
                    let kernel =
                        channels::<I, ROWS, COLUMNS, STEP, CHANNEL>(t, from, row_step, &offsets);
                    let to = t.to.add(r * t.to_output + c);
                    let mut half = [[zero; 3]; SIDE];
                    for x in 0..COLUMNS {
                        let mut column = [zero; 3];
                        for y in 0..ROWS {
                            column[y + taps_before(ROWS)] = kernel[x][y];
                        }
                        let column = weights::<f32, _>(simd, column);
                        for i in 0..SIDE {
                            half[i][x + taps_before(COLUMNS)] = column[i];
                        }
                    }
                    for i in product_positions(ROWS) {
                        let row = weights::<f32, _>(simd, half[i]);
                        for j in product_positions(COLUMNS) {
                            f32::store::<I::Token>(to.add(piece.places[i * SIDE + j]), row[j]);
                        }
                    }
                }
            }
        }
    }
}

/// A 3 x 3 kernel at stride 2, whose four pieces have two rows or one, and two columns or one: all at once.
///
/// # Safety
///
/// As [`transform_weights`].
unsafe fn at_stride_2<I: Fours, const STEP: isize>(t: &TransformWeights<f32>) {
    // SAFETY: the caller vouches for the CPU.
    unsafe { I::token() }.vectorize(AtStride2::<I, STEP>(t, PhantomData));
}

struct AtStride2<'a, I, const STEP: isize>(&'a TransformWeights<'a, f32>, PhantomData<I>);

impl<I: Fours, const STEP: isize> WithSimd for AtStride2<'_, I, STEP> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self(t, _) = self;
        // SAFETY: `at_stride_2`'s contract covers the CPU.
        let simd = unsafe { I::token() };
        let zero = f32::splat(simd, 0.0);
        let [two_one, two_two, one_two, one_one] = t.pieces else { return };
        // The last register first: it may reach into the next piece, whose first one is written later.
        let last = (t.channels - 1) / f32::lanes::<I::Token>() * f32::lanes::<I::Token>();
        for c in iter::once(last).chain((0..last).step_by(f32::lanes::<I::Token>())) {
            let offsets = offsets::<I>(t, c);
            for r in 0..t.outputs {
                let from = t.from.wrapping_offset(r as isize * t.output);
                // SAFETY: the caller vouches for the weights of these channels, and for both sides.
                unsafe {
                    let kernel = channels::<I, 3, 3, STEP, ANY>(t, from, t.steps[0], &offsets);
                    let to = t.to.add(r * t.to_output + c);
                    let [mut outer, mut inner] = [[[zero; 3]; SIDE]; 2];
                    for x in 0..3 {
                        let [first, middle, last] = kernel[x];
                        let two = weights::<f32, _>(simd, [first, last, zero]);
                        let one = weights::<f32, _>(simd, [zero, middle, zero]);
                        for i in 0..SIDE {
                            (outer[i][x], inner[i][x]) = (two[i], one[i]);
                        }
                    }
                    for i in 0..3 {
                        store_columns::<I, false>(to, i, outer[i], two_two, two_one);
                    }
                    for i in 1..3 {
                        store_columns::<I, true>(to, i, inner[i], one_two, one_one);
                    }
                }
            }
        }
    }
}

/// Transforms a row of a 3 x 3 kernel at stride 2 and writes row `i` of positions: of its first and last element,
/// and of the one between. The piece whose place comes first is written first: see [`transform_weights`] on whole
/// registers.
///
/// # Safety
///
/// As [`transform_weights`], for the places of both pieces.
#[inline(always)]
unsafe fn store_columns<I: Fours, const OUTER_FIRST: bool>(
    to: *mut f32,
    i: usize,
    [first, middle, last]: [Of<I>; 3],
    outer: &KernelPiece,
    inner: &KernelPiece,
) {
    // SAFETY: the same contract.
    unsafe {
        let simd = I::token();
        let zero = f32::splat(simd, 0.0);
        let two = weights::<f32, _>(simd, [first, last, zero]);
        let one = weights::<f32, _>(simd, [zero, middle, zero]);
        let store = |piece: &KernelPiece, j: usize, value: Of<I>| {
            f32::store::<I::Token>(to.add(piece.places[i * SIDE + j]), value);
        };
        store(outer, 0, two[0]);
        for j in 1..3 {
            if OUTER_FIRST {
                store(outer, j, two[j]);
            }
            store(inner, j, one[j]);
            if !OUTER_FIRST {
                store(outer, j, two[j]);
            }
        }
    }
}

/// Elements from the first channel's weights to those of a register's channels, from `first` on; the last channel's
/// stand for those missing.
#[inline(always)]
fn offsets<I: Isa>(t: &TransformWeights<f32>, first: usize) -> [isize; MAX_LANES] {
    let mut offsets = [0; MAX_LANES];
    for lane in 0..f32::lanes::<I::Token>() {
        offsets[lane] = (first + lane).min(t.channels - 1) as isize * t.channel;
    }
    offsets
}

/// The kernel elements of the channels at `offsets`, or each `CHANNEL` from the last, by columns and rows, of an output
/// whose first one is at `first`; rows are `row_step` apart. Those of the next register's channels are asked for, unless
/// all are met in order.
///
/// # Safety
///
/// As [`by_rows`].
#[inline(always)]
unsafe fn channels<
    I: Fours,
    const ROWS: usize,
    const COLUMNS: usize,
    const STEP: isize,
    const CHANNEL: isize,
>(
    t: &TransformWeights<f32>,
    first: *const f32,
    row_step: isize,
    offsets: &[isize; MAX_LANES],
) -> [[Of<I>; 3]; 3] {
    // Whether four elements are read for the three that a row spans.
    let extra = const { ROWS > 1 && matches!((STEP, COLUMNS), (1 | -1, 3) | (2 | -2, 2)) };
    // The row at the highest address is read from the element before it: the fourth of any other row lies
    // before the next one's end.
    let highest = if row_step < 0 { 0 } else { ROWS - 1 };
    // The element of a row with the lowest address.
    let lowest = const { if STEP < 0 { STEP * (COLUMNS as isize - 1) } else { 0 } };
    let first = first.wrapping_offset(lowest);
    let mut channel = [first; MAX_LANES];
    for lane in 0..f32::lanes::<I::Token>() {
        if CHANNEL != ANY {
            channel[lane] = first.wrapping_offset(lane as isize * CHANNEL);
            continue;
        }
        channel[lane] = first.wrapping_offset(offsets[lane]);
        let ahead = channel[lane].wrapping_offset(f32::lanes::<I::Token>() as isize * t.channel);
        prefetch_far(ahead);
        // Rows of a larger kernel lie further apart than a line reaches.
        if row_step.abs() > 3 {
            prefetch_far(ahead.wrapping_offset((ROWS as isize - 1) * row_step));
        }
    }
    // SAFETY: the caller vouches for the CPU.
    let zero = f32::splat(unsafe { I::token() }, 0.0);
    let mut kernel = [[zero; 3]; 3];
    for y in 0..ROWS {
        let before = extra && y == highest;
        let at = y as isize * row_step - isize::from(before);
        // SAFETY: x86-64 has it.
        let mut read = [unsafe { _mm_setzero_ps() }; MAX_LANES];
        for lane in 0..f32::lanes::<I::Token>() {
            let from = channel[lane].wrapping_offset(at);
            // SAFETY: the caller vouches for the kernel's elements, between which these lie.
            read[lane] = unsafe {
                match (extra, COLUMNS) {
                    (true, _) => _mm_loadu_ps(from),
                    (_, 1) => _mm_load_ss(from),
                    (_, 2) if STEP.abs() == 1 => _mm_castpd_ps(_mm_load_sd(from.cast())),
                    (_, 2) => {
                        let (low, high) = (_mm_load_ss(from), _mm_load_ss(from.wrapping_add(2)));
                        _mm_unpacklo_ps(low, high)
                    }
                    _ => {
                        let (low, high) = (_mm_loadu_ps(from), _mm_loadu_ps(from.wrapping_add(1)));
                        _mm_shuffle_ps::<0xf8>(low, high)
                    }
                }
            };
        }
        // SAFETY: the caller vouches for the CPU.
        let [a, b, c, d] = unsafe { I::fours(&read) };
        let ascending = match (extra, COLUMNS, before) {
            (true, 3, true) => [b, c, d],
            (true, 2, false) => [a, c, c],
            (true, 2, true) => [b, d, d],
            _ => [a, b, c],
        };
        for x in 0..COLUMNS {
            kernel[x][y] = ascending[if STEP < 0 { COLUMNS - 1 - x } else { x }];
        }
    }
    kernel
}
