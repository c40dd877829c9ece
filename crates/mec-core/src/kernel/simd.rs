//! What the kernels ask of an instruction set: `pulp`'s vectors, seen by element type.

use super::gather::Gathers;
use super::lanes::{self, Pack};
use super::transpose::{self, Transpose};
use super::winograd::{self, Overlap, TransformWeights};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};
use pulp::{MemMask, Simd};
use std::any::TypeId;
use std::mem::transmute_copy;
use std::ops::Add;

/// An instruction set, named by the type that proves it can run.
pub(crate) trait Isa: 'static {
    /// `pulp`'s token for it.
    type Token: Simd;

    /// The same with shorter registers, where the CPU has them too; or itself.
    type Half: Isa;

    /// The token, without asking the CPU.
    ///
    /// # Safety
    ///
    /// The CPU must have the instruction set. A [`Kernel`](super::Kernel) exists only where that
    /// has been checked, and its entry points are the only callers.
    unsafe fn token() -> Self::Token;
}

/// Any CPU: the compiler's own vectors.
pub(crate) struct Portable;

impl Isa for Portable {
    type Token = pulp::Scalar128b;
    type Half = Self;

    unsafe fn token() -> Self::Token {
        pulp::Scalar128b
    }
}

/// AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
pub(crate) struct Avx2;

#[cfg(target_arch = "x86_64")]
impl Isa for Avx2 {
    type Token = pulp::x86::V3;
    type Half = Self;

    #[inline(always)]
    unsafe fn token() -> Self::Token {
        // SAFETY: the caller vouches for the CPU.
        unsafe { pulp::x86::V3::new_unchecked() }
    }
}

/// AVX-512 F, BW, CD, DQ and VL.
#[cfg(target_arch = "x86_64")]
pub(crate) struct Avx512;

#[cfg(target_arch = "x86_64")]
impl Isa for Avx512 {
    type Token = pulp::x86::V4;
    type Half = Avx2;

    #[inline(always)]
    unsafe fn token() -> Self::Token {
        // SAFETY: the caller vouches for the CPU.
        unsafe { pulp::x86::V4::new_unchecked() }
    }
}

/// NEON.
#[cfg(target_arch = "aarch64")]
pub(crate) struct Neon;

#[cfg(target_arch = "aarch64")]
impl Isa for Neon {
    type Token = pulp::aarch64::Neon;
    type Half = Self;

    #[inline(always)]
    unsafe fn token() -> Self::Token {
        // SAFETY: the caller vouches for the CPU.
        unsafe { pulp::aarch64::Neon::new_unchecked() }
    }
}

/// The first lanes of a register.
#[derive(Debug, Clone, Copy)]
pub struct First<M> {
    count: usize,
    mask: M,
}

/// Whether `S` is AVX2. Its masked stores take a dozen cycles and more on AMD's cores, whatever they
/// store: packing took twice as long with them (Zen 2), and a tile that is stored in pieces too.
#[inline(always)]
fn is_avx2<S: Simd>() -> bool {
    #[cfg(target_arch = "x86_64")]
    type Avx2 = pulp::x86::V3;
    #[cfg(not(target_arch = "x86_64"))]
    type Avx2 = ();
    TypeId::of::<S>() == TypeId::of::<Avx2>()
}

/// Whether a fused multiply-add of `S` would be a call that emulates one: sums took 20 times as long.
#[inline(always)]
fn emulates_fma<S: Simd>() -> bool {
    !cfg!(target_feature = "fma") && TypeId::of::<S>() == TypeId::of::<pulp::Scalar128b>()
}

/// Whether `S` is AVX-512.
#[inline(always)]
pub(super) fn is_avx512<S: Simd>() -> bool {
    #[cfg(target_arch = "x86_64")]
    type Avx512 = pulp::x86::V4;
    #[cfg(not(target_arch = "x86_64"))]
    type Avx512 = ();
    TypeId::of::<S>() == TypeId::of::<Avx512>()
}

/// Writes the first `count` lanes by halves: at most three stores of fixed sizes. A copy of a size that
/// is not a constant is a call, which took a tenth of the time of layers with narrow images (Zen 2).
///
/// # Safety
///
/// `count` elements can be written, fewer than a register of `LANES` holds, which is at most 8.
#[inline(always)]
pub(super) unsafe fn store_pieces<T: Copy, const LANES: usize>(
    to: *mut T,
    count: usize,
    value: [T; LANES],
) {
    const { assert!(LANES <= 8) };
    let from = value.as_ptr();
    // SAFETY: the pieces copied are no more than `count`.
    unsafe {
        let mut at = 0;
        if LANES > 4 && count & 4 != 0 {
            store_piece::<T, 4>(to, from);
            at = 4;
        }
        if count & 2 != 0 {
            store_piece::<T, 2>(to.add(at), from.add(at));
            at += 2;
        }
        if count & 1 != 0 {
            *to.add(at) = *from.add(at);
        }
    }
}

/// # Safety
///
/// `N` elements can be read at `from` and written at `to`.
#[inline(always)]
unsafe fn store_piece<T: Copy, const N: usize>(to: *mut T, from: *const T) {
    // SAFETY: the caller vouches for both sides.
    unsafe { to.cast::<[T; N]>().write_unaligned(from.cast::<[T; N]>().read_unaligned()) }
}

/// How an instruction set moves elements, each with what is best there.
#[doc(hidden)]
#[cfg_attr(
    target_arch = "x86_64",
    expect(missing_debug_implementations, reason = "it holds functions and is never seen")
)]
pub struct Moves<T> {
    pub(super) transpose: unsafe fn(&Transpose<T>),
    pub(super) pack: unsafe fn(&Pack<T>),
    pub(super) transform_weights: unsafe fn(&TransformWeights<T>),
    pub(super) overlap: unsafe fn(&Overlap<T>) -> bool,
    pub(super) gathers: Option<Gathers<T>>,
}

impl<T: Vector> Moves<T> {
    /// What any instruction set can do.
    pub(super) const fn plain<I: Isa>() -> Self {
        Self {
            transpose: transpose::plain,
            pack: lanes::pack::<T, I>,
            transform_weights: winograd::transform_weights::<T, I>,
            overlap: winograd::overlap::overlap::<T, I>,
            gathers: None,
        }
    }
}

/// An element with its vector of each instruction set.
///
/// Public only so that it can be a supertrait of [`Element`](crate::Element), which it seals: this
/// module is private.
pub trait Vector: Copy + PartialEq + Add<Output = Self> {
    /// Zero.
    const ZERO: Self;

    /// One.
    const ONE: Self;

    /// Minus one.
    const MINUS_ONE: Self;

    /// One half.
    const HALF: Self;

    /// As many elements as a register holds.
    type Of<S: Simd>: Copy;

    /// What AVX-512 does with instructions that `pulp` does not name: transposing and packing.
    #[cfg(target_arch = "x86_64")]
    #[doc(hidden)]
    const AVX512: Moves<Self>;

    /// The same of AVX2.
    #[cfg(target_arch = "x86_64")]
    #[doc(hidden)]
    const AVX2: Moves<Self>;

    /// Elements in a register.
    fn lanes<S: Simd>() -> usize {
        size_of::<Self::Of<S>>() / size_of::<Self>()
    }

    /// `value` in every lane.
    fn splat<S: Simd>(simd: S, value: Self) -> Self::Of<S>;

    /// `a * b + c`, fused where the CPU does so without a call.
    fn mul_add<S: Simd>(simd: S, a: Self::Of<S>, b: Self::Of<S>, c: Self::Of<S>) -> Self::Of<S>;

    /// `a * b`.
    fn product<S: Simd>(simd: S, a: Self::Of<S>, b: Self::Of<S>) -> Self::Of<S>;

    /// `a - b`.
    fn difference<S: Simd>(simd: S, a: Self::Of<S>, b: Self::Of<S>) -> Self::Of<S>;

    /// `a + b`.
    fn sum<S: Simd>(simd: S, a: Self::Of<S>, b: Self::Of<S>) -> Self::Of<S>;

    /// The sum of all lanes.
    fn sum_lanes<S: Simd>(simd: S, a: Self::Of<S>) -> Self;

    /// Adds the sum of the lanes of each of `registers` to the elements from `to` on. Where a register is a cache line, halves
    /// are added, then their halves: the sum is the same to the bit from whichever lane on its terms are dealt.
    ///
    /// # Safety
    ///
    /// `R` elements can be read and written at `to`.
    #[inline(always)]
    unsafe fn add_sums<S: Simd, const R: usize>(
        simd: S,
        to: *mut Self,
        registers: [Self::Of<S>; R],
    ) {
        for (r, register) in registers.into_iter().enumerate() {
            // SAFETY: the caller vouches for the elements.
            unsafe { *to.add(r) = *to.add(r) + Self::sum_lanes(simd, register) };
        }
    }

    /// A mask of lanes.
    type Mask<S: Simd>: Copy;

    /// The lanes `start..end`.
    fn mask<S: Simd>(simd: S, start: usize, end: usize) -> Self::Mask<S>;

    /// The lanes whose element is one.
    fn mask_of_ones<S: Simd>(simd: S, lanes: &[Self; MAX_LANES]) -> Self::Mask<S>;

    /// The elements of `mask`'s lanes from `from` on, zeros in the other lanes.
    ///
    /// # Safety
    ///
    /// The elements of the mask's lanes can be read.
    unsafe fn load_masked<S: Simd>(simd: S, from: *const Self, mask: Self::Mask<S>) -> Self::Of<S>;

    /// The first `count` lanes, at most all of them.
    #[inline(always)]
    fn first<S: Simd>(simd: S, count: usize) -> First<Self::Mask<S>> {
        First { count, mask: Self::mask(simd, 0, count) }
    }

    /// The elements of `first`'s lanes from `from` on, zeros in the other lanes.
    ///
    /// # Safety
    ///
    /// The elements of those lanes can be read.
    #[inline(always)]
    unsafe fn load_first<S: Simd>(
        simd: S,
        from: *const Self,
        first: First<Self::Mask<S>>,
    ) -> Self::Of<S> {
        // SAFETY: the caller vouches for the lanes.
        unsafe {
            if first.count == Self::lanes::<S>() {
                Self::load::<S>(from)
            } else {
                Self::load_masked(simd, from, first.mask)
            }
        }
    }

    /// Writes the lanes of `mask` from `to` on.
    ///
    /// # Safety
    ///
    /// The elements of those lanes can be written.
    unsafe fn store_masked<S: Simd>(
        simd: S,
        to: *mut Self,
        mask: Self::Mask<S>,
        value: Self::Of<S>,
    );

    /// Writes the lanes of `first` from `to` on.
    ///
    /// # Safety
    ///
    /// The elements of those lanes can be written.
    #[inline(always)]
    unsafe fn store_first<S: Simd>(
        simd: S,
        to: *mut Self,
        first: First<Self::Mask<S>>,
        value: Self::Of<S>,
    ) {
        // SAFETY: the caller vouches for the lanes; a vector of AVX2 is plain numbers, as many as the match says.
        unsafe {
            if !is_avx2::<S>() {
                Self::store_masked(simd, to, first.mask, value);
            } else if first.count == Self::lanes::<S>() {
                Self::store::<S>(to, value);
            } else {
                match Self::lanes::<S>() {
                    8 => store_pieces::<Self, 8>(to, first.count, transmute_copy(&value)),
                    _ => store_pieces::<Self, 4>(to, first.count, transmute_copy(&value)),
                }
            }
        }
    }

    /// Writes the lanes of `mask` from `to` on, and may write what is there to the other lanes.
    ///
    /// # Safety
    ///
    /// A register's worth of elements can be read and written at `to`.
    #[inline(always)]
    unsafe fn store_blended<S: Simd>(
        simd: S,
        to: *mut Self,
        mask: Self::Mask<S>,
        value: Self::Of<S>,
    ) {
        // SAFETY: the caller vouches for the lanes; a vector of AVX2 is plain numbers, as its masks are.
        unsafe {
            #[cfg(target_arch = "x86_64")]
            if is_avx2::<S>() {
                let (mask, value) = (transmute_copy(&mask), transmute_copy(&value));
                return avx2::store_blended(to.cast(), mask, value);
            }
            Self::store_masked(simd, to, mask, value);
        }
    }

    /// A whole register, at any alignment.
    ///
    /// # Safety
    ///
    /// A register's worth of elements can be read at `from`.
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const Self) -> Self::Of<S> {
        // SAFETY: the caller vouches for the elements; a vector is plain numbers.
        unsafe { from.cast::<Self::Of<S>>().read_unaligned() }
    }

    /// A whole register, at any alignment.
    ///
    /// # Safety
    ///
    /// A register's worth of elements can be written at `to`.
    #[inline(always)]
    unsafe fn store<S: Simd>(to: *mut Self, value: Self::Of<S>) {
        // SAFETY: the caller vouches for the elements; a vector is plain numbers.
        unsafe { to.cast::<Self::Of<S>>().write_unaligned(value) }
    }

    /// `count` elements that lie `step` apart, at least one and at most a register's; the last one fills
    /// the lanes of those missing.
    ///
    /// # Safety
    ///
    /// The elements can be read.
    #[inline(always)]
    unsafe fn gather<S: Simd>(from: *const Self, step: isize, count: usize) -> Self::Of<S> {
        let mut lanes = [Self::ZERO; MAX_LANES];
        for lane in 0..Self::lanes::<S>() {
            // SAFETY: the caller vouches for the element.
            lanes[lane] = unsafe { *from.wrapping_offset(lane.min(count - 1) as isize * step) };
        }
        // SAFETY: no register has more lanes than the array.
        unsafe { Self::load::<S>(lanes.as_ptr()) }
    }

    /// Of `N` registers that follow each other, a power of two, every `N`th lane from the first on, then from the second
    /// on, and so on: of two, the even lanes and the odd ones.
    #[inline(always)]
    fn apart<S: Simd, const N: usize>(registers: [Self::Of<S>; N]) -> [Self::Of<S>; N] {
        apart_by_pairs::<Self, S, N>(registers)
    }

    /// All lanes but the first, and then `next`.
    #[inline(always)]
    fn shifted<S: Simd>(a: Self::Of<S>, next: Self) -> Self::Of<S> {
        // SAFETY: a vector is plain numbers, as many as the match says.
        unsafe {
            match Self::lanes::<S>() {
                16 => transmute_copy(&shifted::<Self, 16>(transmute_copy(&a), next)),
                8 => transmute_copy(&shifted::<Self, 8>(transmute_copy(&a), next)),
                4 => transmute_copy(&shifted::<Self, 4>(transmute_copy(&a), next)),
                2 => transmute_copy(&shifted::<Self, 2>(transmute_copy(&a), next)),
                _ => transmute_copy(&[next]),
            }
        }
    }

    /// Zero, and then all lanes but the last.
    #[inline(always)]
    fn behind_zero<S: Simd>(a: Self::Of<S>) -> Self::Of<S> {
        // SAFETY: a vector is plain numbers, as many as the match says.
        unsafe {
            match Self::lanes::<S>() {
                16 => transmute_copy(&behind_zero::<Self, 16>(transmute_copy(&a))),
                8 => transmute_copy(&behind_zero::<Self, 8>(transmute_copy(&a))),
                4 => transmute_copy(&behind_zero::<Self, 4>(transmute_copy(&a))),
                2 => transmute_copy(&behind_zero::<Self, 2>(transmute_copy(&a))),
                _ => transmute_copy(&[Self::ZERO]),
            }
        }
    }

    /// Two registers of `a`'s first lane, `b`'s first lane, `a`'s second lane and so on.
    #[inline(always)]
    fn in_turns<S: Simd>(a: Self::Of<S>, b: Self::Of<S>) -> [Self::Of<S>; 2] {
        // SAFETY: a vector is plain numbers, as many as the match says.
        unsafe {
            match Self::lanes::<S>() {
                16 => transmute_copy(&in_turns::<Self, 16>(transmute_copy(&a), transmute_copy(&b))),
                8 => transmute_copy(&in_turns::<Self, 8>(transmute_copy(&a), transmute_copy(&b))),
                4 => transmute_copy(&in_turns::<Self, 4>(transmute_copy(&a), transmute_copy(&b))),
                2 => transmute_copy(&in_turns::<Self, 2>(transmute_copy(&a), transmute_copy(&b))),
                _ => [a, b],
            }
        }
    }

    /// Writes `a`'s first lane, `b`'s first lane, `a`'s second lane and so on.
    ///
    /// # Safety
    ///
    /// Two registers' worth of elements can be written at `to`.
    #[inline(always)]
    unsafe fn store_in_turns<S: Simd>(to: *mut Self, a: Self::Of<S>, b: Self::Of<S>) {
        for (n, register) in Self::in_turns::<S>(a, b).into_iter().enumerate() {
            // SAFETY: the same contract.
            unsafe { Self::store::<S>(to.wrapping_add(n * Self::lanes::<S>()), register) };
        }
    }
}

/// As [`Vector::apart`]: telling all pairs apart as many times as `N` is doubled brings each register to its place.
#[inline(always)]
fn apart_by_pairs<T: Vector, S: Simd, const N: usize>(
    mut registers: [T::Of<S>; N],
) -> [T::Of<S>; N] {
    const { assert!(N.is_power_of_two()) };
    for _ in 0..const { N.ilog2() } {
        let before = registers;
        for k in 0..N / 2 {
            let pair = [before[2 * k], before[2 * k + 1]];
            [registers[k], registers[N / 2 + k]] = pair_apart::<T, S>(pair);
        }
    }
    registers
}

/// The same of two, lane by lane.
#[inline(always)]
fn pair_apart<T: Vector, S: Simd>(pair: [T::Of<S>; 2]) -> [T::Of<S>; 2] {
    // SAFETY: a vector is plain numbers, as many as the match says.
    unsafe {
        match T::lanes::<S>() {
            16 => transmute_copy(&apart::<T, 16>(transmute_copy(&pair))),
            8 => transmute_copy(&apart::<T, 8>(transmute_copy(&pair))),
            4 => transmute_copy(&apart::<T, 4>(transmute_copy(&pair))),
            2 => transmute_copy(&apart::<T, 2>(transmute_copy(&pair))),
            lanes => {
                debug_assert_eq!(lanes, 1);
                pair
            }
        }
    }
}

/// The even elements of two arrays, and their odd elements.
#[inline(always)]
fn apart<T: Copy, const LANES: usize>([a, b]: [[T; LANES]; 2]) -> [[T; LANES]; 2] {
    let (mut even, mut odd) = (a, b);
    for lane in 0..LANES / 2 {
        even[lane] = a[2 * lane];
        odd[lane] = a[2 * lane + 1];
        even[LANES / 2 + lane] = b[2 * lane];
        odd[LANES / 2 + lane] = b[2 * lane + 1];
    }
    [even, odd]
}

/// All elements but the first, and then `next`.
#[inline(always)]
fn shifted<T: Copy, const LANES: usize>(a: [T; LANES], next: T) -> [T; LANES] {
    let mut shifted = [next; LANES];
    shifted[..LANES - 1].copy_from_slice(&a[1..]);
    shifted
}

/// Most elements in a register of any instruction set.
pub(crate) const MAX_LANES: usize = 16;

/// The elements of two arrays in turns.
#[inline(always)]
fn in_turns<T: Copy, const LANES: usize>(a: [T; LANES], b: [T; LANES]) -> [[T; 2]; LANES] {
    let mut turns = [[a[0]; 2]; LANES];
    for lane in 0..LANES {
        turns[lane] = [a[lane], b[lane]];
    }
    turns
}

/// Zero, and then all elements but the last.
#[inline(always)]
fn behind_zero<T: Vector, const LANES: usize>(a: [T; LANES]) -> [T; LANES] {
    let mut behind = [T::ZERO; LANES];
    behind[1..].copy_from_slice(&a[..LANES - 1]);
    behind
}

impl Vector for f32 {
    const ZERO: f32 = 0.0;
    const ONE: f32 = 1.0;
    const MINUS_ONE: f32 = -1.0;
    const HALF: f32 = 0.5;
    #[cfg(target_arch = "x86_64")]
    const AVX512: Moves<f32> = Moves {
        transpose: avx512::transpose,
        pack: avx512::pack,
        transform_weights: winograd::transposed::transform_weights::<Avx512>,
        overlap: winograd::overlap::narrow::overlap_narrow,
        gathers: Some(super::gather::GATHERS),
    };
    #[cfg(target_arch = "x86_64")]
    const AVX2: Moves<f32> = Moves {
        transpose: avx2::transpose,
        pack: avx2::pack,
        transform_weights: winograd::transposed::transform_weights::<Avx2>,
        overlap: winograd::overlap::overlap::<f32, Avx2>,
        gathers: None,
    };
    type Of<S: Simd> = S::f32s;

    #[inline(always)]
    fn apart<S: Simd, const N: usize>(registers: [S::f32s; N]) -> [S::f32s; N] {
        #[cfg(target_arch = "x86_64")]
        if is_avx2::<S>() {
            // SAFETY: where there is its token there is AVX2, and then these are its registers.
            unsafe {
                match N {
                    2 => return transmute_copy(&avx2::apart(transmute_copy(&registers))),
                    4 => return transmute_copy(&avx2::apart_by_four(transmute_copy(&registers))),
                    8 => return transmute_copy(&avx2::transposed(transmute_copy(&registers))),
                    _ => {}
                }
            }
        }
        apart_by_pairs::<Self, S, N>(registers)
    }

    #[inline(always)]
    fn splat<S: Simd>(simd: S, value: f32) -> S::f32s {
        simd.splat_f32s(value)
    }

    #[inline(always)]
    fn mul_add<S: Simd>(simd: S, a: S::f32s, b: S::f32s, c: S::f32s) -> S::f32s {
        if emulates_fma::<S>() {
            return simd.add_f32s(simd.mul_f32s(a, b), c);
        }
        simd.mul_add_e_f32s(a, b, c)
    }

    #[inline(always)]
    fn product<S: Simd>(simd: S, a: S::f32s, b: S::f32s) -> S::f32s {
        simd.mul_f32s(a, b)
    }

    #[inline(always)]
    fn difference<S: Simd>(simd: S, a: S::f32s, b: S::f32s) -> S::f32s {
        simd.sub_f32s(a, b)
    }

    #[inline(always)]
    fn sum<S: Simd>(simd: S, a: S::f32s, b: S::f32s) -> S::f32s {
        simd.add_f32s(a, b)
    }

    #[inline(always)]
    fn sum_lanes<S: Simd>(simd: S, a: S::f32s) -> f32 {
        simd.reduce_sum_f32s(a)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn add_sums<S: Simd, const R: usize>(simd: S, to: *mut f32, registers: [S::f32s; R]) {
        // SAFETY: the CPU has what is asked for; the caller vouches for the elements.
        unsafe {
            let (first, mut done) = (registers.as_ptr(), 0_usize);
            if is_avx512::<S>() {
                while done + 8 <= R {
                    avx512::add_sums(to.add(done), first.add(done).cast::<[_; 8]>().read());
                    done += 8;
                }
            }
            if is_avx2::<S>() {
                while done + 4 <= R {
                    avx2::add_sums(to.add(done), first.add(done).cast::<[_; 4]>().read());
                    done += 4;
                }
            }
            for r in done..R {
                *to.add(r) += Self::sum_lanes(simd, registers[r]);
            }
        }
    }

    type Mask<S: Simd> = S::m32s;

    #[inline(always)]
    fn mask<S: Simd>(simd: S, start: usize, end: usize) -> Self::Mask<S> {
        // Without what `pulp`'s own masks carry, jumps to code for each count: they would be met at each load.
        let (start, end) = if start < end { (start, end) } else { (0, 0) };
        simd.mask_between_m32s(start as u32, end as u32).mask()
    }

    #[inline(always)]
    fn mask_of_ones<S: Simd>(simd: S, lanes: &[f32; MAX_LANES]) -> Self::Mask<S> {
        // SAFETY: the array has as many elements as any register.
        let lanes = unsafe { Self::load::<S>(lanes.as_ptr()) };
        simd.equal_f32s(lanes, simd.splat_f32s(1.0))
    }

    #[inline(always)]
    unsafe fn load_masked<S: Simd>(simd: S, from: *const f32, mask: Self::Mask<S>) -> S::f32s {
        // SAFETY: the caller vouches for the mask's lanes.
        unsafe { simd.mask_load_ptr_f32s(MemMask::new(mask), from) }
    }

    #[inline(always)]
    unsafe fn store_masked<S: Simd>(simd: S, to: *mut f32, mask: Self::Mask<S>, value: S::f32s) {
        // SAFETY: the caller vouches for the mask's lanes.
        unsafe { simd.mask_store_ptr_f32s(MemMask::new(mask), to, value) }
    }
}

impl Vector for f64 {
    const ZERO: f64 = 0.0;
    const ONE: f64 = 1.0;
    const MINUS_ONE: f64 = -1.0;
    const HALF: f64 = 0.5;
    #[cfg(target_arch = "x86_64")]
    const AVX512: Moves<f64> = Moves::plain::<Avx512>();
    #[cfg(target_arch = "x86_64")]
    const AVX2: Moves<f64> = Moves::plain::<Avx2>();
    type Of<S: Simd> = S::f64s;

    #[inline(always)]
    fn splat<S: Simd>(simd: S, value: f64) -> S::f64s {
        simd.splat_f64s(value)
    }

    #[inline(always)]
    fn mul_add<S: Simd>(simd: S, a: S::f64s, b: S::f64s, c: S::f64s) -> S::f64s {
        if emulates_fma::<S>() {
            return simd.add_f64s(simd.mul_f64s(a, b), c);
        }
        simd.mul_add_e_f64s(a, b, c)
    }

    #[inline(always)]
    fn product<S: Simd>(simd: S, a: S::f64s, b: S::f64s) -> S::f64s {
        simd.mul_f64s(a, b)
    }

    #[inline(always)]
    fn difference<S: Simd>(simd: S, a: S::f64s, b: S::f64s) -> S::f64s {
        simd.sub_f64s(a, b)
    }

    #[inline(always)]
    fn sum<S: Simd>(simd: S, a: S::f64s, b: S::f64s) -> S::f64s {
        simd.add_f64s(a, b)
    }

    #[inline(always)]
    fn sum_lanes<S: Simd>(simd: S, a: S::f64s) -> f64 {
        simd.reduce_sum_f64s(a)
    }

    type Mask<S: Simd> = S::m64s;

    #[inline(always)]
    fn mask<S: Simd>(simd: S, start: usize, end: usize) -> Self::Mask<S> {
        // Without what `pulp`'s own masks carry, jumps to code for each count: they would be met at each load.
        let (start, end) = if start < end { (start, end) } else { (0, 0) };
        simd.mask_between_m64s(start as u64, end as u64).mask()
    }

    #[inline(always)]
    fn mask_of_ones<S: Simd>(simd: S, lanes: &[f64; MAX_LANES]) -> Self::Mask<S> {
        // SAFETY: the array has as many elements as any register.
        let lanes = unsafe { Self::load::<S>(lanes.as_ptr()) };
        simd.equal_f64s(lanes, simd.splat_f64s(1.0))
    }

    #[inline(always)]
    unsafe fn load_masked<S: Simd>(simd: S, from: *const f64, mask: Self::Mask<S>) -> S::f64s {
        // SAFETY: the caller vouches for the mask's lanes.
        unsafe { simd.mask_load_ptr_f64s(MemMask::new(mask), from) }
    }

    #[inline(always)]
    unsafe fn store_masked<S: Simd>(simd: S, to: *mut f64, mask: Self::Mask<S>, value: S::f64s) {
        // SAFETY: the caller vouches for the mask's lanes.
        unsafe { simd.mask_store_ptr_f64s(MemMask::new(mask), to, value) }
    }
}
