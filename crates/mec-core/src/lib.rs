//! Memory-efficient convolution (MEC) on the CPU, forward and all gradients, without a framework.
//!
//! MEC (Cho & Brand, ICML 2017, <https://arxiv.org/abs/1706.06873>) lowers column strips of the input
//! instead of whole patches, so that the GEMM of every output row reads a *window* of one matrix L
//! and neighbouring windows overlap. This crate goes further: L exists only as a packed panel that
//! stays in a core's second-level cache, so that the workspace is at most
//! [`WORKSPACE_PER_THREAD`] bytes for each thread, whatever the layer and the batch size, and it has
//! the gradients that the paper leaves out.
//!
//! | where | what |
//! |---|---|
//! | [`Geometry`], [`View`] | the problem, checked once |
//! | [`Plan`] | what a pass will do and take, as data |
//! | [`forward`], [`input_gradient`], [`weight_gradient`], [`bias_gradient`] | the passes |
//! | `strip/`, `kernel/` | the engine, and its innermost loops for each instruction set |
//! | [`paper`], [`im2col`] | the algorithm as published, and the classic one: the yardsticks |
//! | [`mod@reference`] | the definition, as nested loops |

#[cfg(feature = "catalogue")]
pub mod catalogue;
mod element;
mod error;
mod footprint;
mod gemm;
mod geometry;
pub mod im2col;
mod kernel;
pub mod paper;
mod plan;
pub mod reference;
mod settings;
mod strip;
#[cfg(feature = "testing")]
pub mod testing;
mod view;

pub use element::Element;
pub use error::Error;
pub use footprint::Footprint;
pub use geometry::{Axis, ConvOptions, Geometry};
pub use plan::{Piece, Plan};
pub use settings::{Algorithm, Pass, Settings};
pub use strip::Reach;
pub use view::View;

use kernel::Kernel;

/// Most workspace the strip engine takes for each thread, in bytes.
pub const WORKSPACE_PER_THREAD: usize = 1 << 20;

/// The instruction set the kernels run on, for the facts beside a measurement: `AVX-512`, `AVX2`,
/// `NEON` or `portable`.
pub fn instruction_set() -> &'static str {
    Kernel::<f32>::best().name
}

/// The output of a convolution, row-major `[batch, channels_out, out_h, out_w]`.
///
/// `x` is `[batch, channels_in, height, width]`, `weight` `[channels_out, channels_in / groups,
/// kernel_h, kernel_w]`, `bias` `[channels_out]`; the tensors are read where they lie. Called by a
/// worker of a rayon pool it runs on that pool; any other caller is helped by threads of this crate's own,
/// with which it makes as many as rayon's global pool has (`RAYON_NUM_THREADS`) and which stay awake
/// for a fifth of a millisecond after a call. The result is the same on any number of threads.
///
/// ```
/// use mec_core::{ConvOptions, Geometry, Settings, View, forward};
/// let geometry = Geometry::new([1, 1, 3, 3], [1, 1, 2, 2], &ConvOptions::default())?;
/// let x = View::contiguous(&[0f32, 1., 2., 3., 4., 5., 6., 7., 8.], [1, 1, 3, 3])?;
/// let weight = View::contiguous(&[1f32, 0., 0., 1.], [1, 1, 2, 2])?;
/// let y = forward(&geometry, &Settings::default(), &x, &weight, Some(&[10.]))?;
/// assert_eq!(y, [14., 16., 20., 22.]);
/// # Ok::<(), mec_core::Error>(())
/// ```
///
/// # Errors
///
/// [`Error::Shape`] where a tensor does not have the shape of the problem,
/// [`Error::WorkspaceLimit`] where the limit cannot be kept; both before any work is done.
pub fn forward<T: Element>(
    geometry: &Geometry,
    settings: &Settings,
    x: &View<T>,
    weight: &View<T>,
    bias: Option<&[T]>,
) -> Result<Vec<T>, Error> {
    expect_forward(geometry, x, weight, bias)?;
    if plan::uses_paper(Pass::Forward, settings) {
        plan::paper_workspace::<T>(geometry, settings)?;
        return paper::forward(geometry, None, x, weight, bias);
    }
    strip::forward(Kernel::best(), geometry, settings, x, weight, bias)
}

/// The gradient in the input, row-major `[batch, channels_in, height, width]`, of a loss whose
/// gradient in the output is `dy`, `[batch, channels_out, out_h, out_w]`.
///
/// # Errors
///
/// As [`forward`].
pub fn input_gradient<T: Element>(
    geometry: &Geometry,
    settings: &Settings,
    dy: &View<T>,
    weight: &View<T>,
) -> Result<Vec<T>, Error> {
    dy.expect_shape("output gradient", geometry.output_shape())?;
    weight.expect_shape("weight", geometry.weight_shape())?;
    strip::input_gradient(Kernel::best(), geometry, settings, dy, weight)
}

/// The gradient in the weight, row-major `[channels_out, channels_in / groups, kernel_h, kernel_w]`,
/// of a loss whose gradient in the output is `dy`.
///
/// # Errors
///
/// As [`forward`].
pub fn weight_gradient<T: Element>(
    geometry: &Geometry,
    settings: &Settings,
    x: &View<T>,
    dy: &View<T>,
) -> Result<Vec<T>, Error> {
    expect_weight_gradient(geometry, x, dy)?;
    let kernel = Kernel::best();
    Ok(strip::weight_gradient(kernel, geometry, settings, x, dy, false)?.0)
}

/// The gradients in the weight and in the bias, `[channels_out]`, from one reading of `dy`.
///
/// # Errors
///
/// As [`forward`].
pub fn weight_bias_gradient<T: Element>(
    geometry: &Geometry,
    settings: &Settings,
    x: &View<T>,
    dy: &View<T>,
) -> Result<(Vec<T>, Vec<T>), Error> {
    expect_weight_gradient(geometry, x, dy)?;
    let kernel = Kernel::best();
    let (dw, db) = strip::weight_gradient(kernel, geometry, settings, x, dy, true)?;
    Ok((dw, db.unwrap_or_default()))
}

/// The gradient in the bias, `[channels_out]`. It takes no workspace, and rounds otherwise than
/// [`weight_bias_gradient`]'s.
///
/// # Errors
///
/// [`Error::Shape`] where `dy` does not have the output's shape.
pub fn bias_gradient<T: Element>(geometry: &Geometry, dy: &View<T>) -> Result<Vec<T>, Error> {
    dy.expect_shape("output gradient", geometry.output_shape())?;
    Ok(strip::bias_gradient(Kernel::best(), geometry, dy))
}

fn expect_weight_gradient<T>(geometry: &Geometry, x: &View<T>, dy: &View<T>) -> Result<(), Error> {
    x.expect_shape("input", geometry.input_shape())?;
    dy.expect_shape("output gradient", geometry.output_shape())
}

/// Checks the tensors of a forward pass, whichever algorithm runs it.
fn expect_forward<T>(
    geometry: &Geometry,
    x: &View<T>,
    weight: &View<T>,
    bias: Option<&[T]>,
) -> Result<(), Error> {
    x.expect_shape("input", geometry.input_shape())?;
    weight.expect_shape("weight", geometry.weight_shape())?;
    match bias.map(<[T]>::len) {
        Some(got) if got != geometry.channels_out => Err(Error::Shape {
            what: "bias",
            got: vec![got],
            expected: vec![geometry.channels_out],
        }),
        _ => Ok(()),
    }
}
