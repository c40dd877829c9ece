//! Memory-efficient convolution on the CPU.

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
pub use settings::{Algorithm, Pass, Settings};
pub use view::View;

use kernel::Kernel;

/// Most workspace the strip engine takes for each thread, in bytes.
pub const WORKSPACE_PER_THREAD: usize = 1 << 20;

/// y
pub fn forward<T: Element>(
    geometry: &Geometry,
    settings: &Settings,
    x: &View<T>,
    weight: &View<T>,
    bias: Option<&[T]>,
) -> Result<Vec<T>, Error> {
    x.expect_shape("input", geometry.input_shape())?;
    weight.expect_shape("weight", geometry.weight_shape())?;
    if let Some(bias) = bias {
        expect_bias(geometry, bias)?;
    }
    strip::forward(Kernel::best(), geometry, settings, x, weight, bias)
}

/// dx
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

/// dw
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

/// dw and db from one reading of `dy`
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

/// db
pub fn bias_gradient<T: Element>(geometry: &Geometry, dy: &View<T>) -> Result<Vec<T>, Error> {
    dy.expect_shape("output gradient", geometry.output_shape())?;
    Ok(strip::bias_gradient(geometry, dy))
}

fn expect_weight_gradient<T>(geometry: &Geometry, x: &View<T>, dy: &View<T>) -> Result<(), Error> {
    x.expect_shape("input", geometry.input_shape())?;
    dy.expect_shape("output gradient", geometry.output_shape())
}

fn expect_bias<T>(geometry: &Geometry, bias: &[T]) -> Result<(), Error> {
    if bias.len() == geometry.channels_out {
        return Ok(());
    }
    Err(Error::Shape {
        what: "bias",
        got: vec![bias.len()],
        expected: vec![geometry.channels_out],
    })
}
