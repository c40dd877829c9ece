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
#![cfg_attr(not(any(feature = "ndarray", feature = "flex")), allow(unused_variables))]

mod autodiff;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, ExtensionType, backend_extension};
use mec_core::{Geometry, Settings};

/// What is added to each output channel.
// An enum of our own, because Burn's dispatch passes no `Option` of a tensor to an extension.
#[derive(ExtensionType)]
pub enum Bias<B: Backend> {
    /// Nothing.
    Absent,
    /// One value for each output channel: a tensor of shape `[channels_out]`.
    PerChannel(FloatTensor<B>),
}

/// A backend whose tensors can be convolved.
#[backend_extension(NdArray: cfg(feature = "ndarray"), Flex: cfg(feature = "flex"), Autodiff)]
pub trait Conv2dBackend: Backend {
    /// The convolution of `x`, as a tensor of the geometry's output shape.
    ///
    /// # Panics
    ///
    /// If the geometry cannot be computed within the settings.
    fn mec_conv2d(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        #[extension_type] bias: Bias<Self>,
        geometry: Geometry,
        settings: Settings,
    ) -> FloatTensor<Self>;
}

/// The gradients of [`Conv2dBackend::mec_conv2d`], where `dy` is the gradient in its result.
///
/// A trait of its own because gradients are not differentiated again.
///
/// # Panics
///
/// Each of them, if the geometry cannot be computed within the settings.
pub trait Conv2dGradients: Backend {
    /// The gradient in the input.
    fn mec_conv2d_input_gradient(
        dy: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        geometry: Geometry,
        settings: Settings,
    ) -> FloatTensor<Self>;

    /// The gradient in the weight.
    fn mec_conv2d_weight_gradient(
        x: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        geometry: Geometry,
        settings: Settings,
    ) -> FloatTensor<Self>;

    /// The gradients in the weight and in the bias, from one reading of `dy`.
    fn mec_conv2d_weight_bias_gradient(
        x: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        geometry: Geometry,
        settings: Settings,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// The gradient in the bias.
    fn mec_conv2d_bias_gradient(dy: FloatTensor<Self>, geometry: Geometry) -> FloatTensor<Self>;
}
