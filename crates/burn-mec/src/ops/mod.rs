//! What a backend offers to be convolved on, and how its convolutions are differentiated.
//!
//! A backend implements [`Conv2dBackend`] and [`Conv2dGradients`]; [`Autodiff`](burn::backend::Autodiff)
//! over it then gets its [`Conv2dBackend`] from one implementation for all.
//!
//! Shapes and options arrive as a [`Geometry`], validated once by [`crate::module`]. The tensors of
//! a call have its shapes and share one float type.
// burn-ndarray, which Burn means to drop.
#![allow(deprecated)]
// Without a backend, the generated dispatch has nothing to hand its arguments to.
#![cfg_attr(
    not(any(feature = "ndarray", feature = "flex", feature = "cube")),
    allow(unused_variables)
)]

mod autodiff;

pub use autodiff::differentiable;

#[cfg(all(feature = "fusion", feature = "cube"))]
use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, ExtensionType, backend_extension};
#[cfg(all(feature = "fusion", feature = "cube"))]
use burn::tensor::Shape;
use mec_core::{Geometry, Settings};

use crate::Activation;

/// What is added to each output channel.
// An enum of our own, because Burn's dispatch passes no `Option` of a tensor to an extension.
#[derive(ExtensionType)]
#[extension_type(fusion: cfg(all(feature = "fusion", feature = "cube")))]
pub enum Bias<B: Backend> {
    /// Nothing.
    Absent,
    /// One value for each output channel: a tensor of shape `[channels_out]`.
    PerChannel(FloatTensor<B>),
}

/// A backend whose tensors can be convolved.
#[backend_extension(
    NdArray: cfg(feature = "ndarray"),
    Flex: cfg(feature = "flex"),
    Cube: cfg(feature = "cube"),
    Fusion: cfg(all(feature = "fusion", feature = "cube")),
    Autodiff
)]
pub trait Conv2dBackend: Backend {
    /// The convolution of `x` and its activation, as a tensor of the geometry's output shape.
    ///
    /// # Panics
    ///
    /// If the geometry cannot be computed within the settings.
    #[fusion(dtype = x, shape = Shape::from(geometry.output_shape()))]
    fn mec_conv2d(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        #[extension_type] bias: Bias<Self>,
        activation: Option<Activation>,
        geometry: Geometry,
        settings: Settings,
    ) -> FloatTensor<Self>;
}

/// The gradients of [`Conv2dBackend::mec_conv2d`], where `dy` is the gradient in its result before
/// the activation.
///
/// A trait of its own because gradients are not differentiated again.
///
/// # Panics
///
/// Each of them, if the geometry cannot be computed within the settings.
#[backend_extension(
    NdArray: cfg(feature = "ndarray"),
    Flex: cfg(feature = "flex"),
    Cube: cfg(feature = "cube"),
    Fusion: cfg(all(feature = "fusion", feature = "cube"))
)]
pub trait Conv2dGradients: Backend {
    /// The gradient in the input.
    #[fusion(dtype = dy, shape = Shape::from(geometry.input_shape()))]
    fn mec_conv2d_input_gradient(
        dy: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        geometry: Geometry,
        settings: Settings,
    ) -> FloatTensor<Self>;

    /// The gradient in the weight.
    #[fusion(dtype = dy, shape = Shape::from(geometry.weight_shape()))]
    fn mec_conv2d_weight_gradient(
        x: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        geometry: Geometry,
        settings: Settings,
    ) -> FloatTensor<Self>;

    /// The gradients in the weight and in the bias, from one reading of `dy`.
    #[fusion(meta = weight_bias_specs)]
    fn mec_conv2d_weight_bias_gradient(
        x: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        geometry: Geometry,
        settings: Settings,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// The gradient in the bias.
    #[fusion(dtype = dy, shape = Shape::from([geometry.channels_out]))]
    fn mec_conv2d_bias_gradient(dy: FloatTensor<Self>, geometry: Geometry) -> FloatTensor<Self>;
}

/// What [`Conv2dGradients::mec_conv2d_weight_bias_gradient`] will return.
#[cfg(all(feature = "fusion", feature = "cube"))]
fn weight_bias_specs(
    _x: &TensorSpec,
    dy: &TensorSpec,
    geometry: &Geometry,
    _settings: &Settings,
) -> (TensorSpec, TensorSpec) {
    let spec = |shape| TensorSpec::new(shape, dy.dtype);
    (spec(Shape::from(geometry.weight_shape())), spec(Shape::from([geometry.channels_out])))
}
