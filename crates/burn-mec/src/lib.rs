//! Memory-efficient convolution (MEC) for [Burn](https://burn.dev): a `Conv2d` that a Burn model
//! swaps in by changing one import, that trains, and that needs next to no memory beside its inputs
//! and outputs.
//!
//! ```
//! use burn::nn::PaddingConfig2d;
//! use burn::tensor::{Device, Distribution, Tensor};
//! // was: use burn::nn::conv::Conv2dConfig;
//! use burn_mec::nn::conv::Conv2dConfig;
//!
//! let device = Device::default().autodiff();
//! let conv = Conv2dConfig::new([3, 8], [3, 3]).with_padding(PaddingConfig2d::Same).init(&device);
//! let images = Tensor::<4>::random([2, 3, 16, 16], Distribution::Default, &device);
//! let gradients = conv.forward(images).mean().backward();
//! assert_eq!(conv.weight.grad(&gradients).unwrap().dims(), [8, 3, 3, 3]);
//! ```
//!
//! Everything Burn's `Conv2d` accepts is accepted, with the same configuration, initial values,
//! records, display and panics.
//!
//! # Layers, from the outside in
//!
//! - [`nn::conv`]: the module and its configuration, for models.
//! - [`module`]: the function on tensors behind it, for models that bring their own weights.
//! - [`ops`]: what a backend has to offer, and the one autodiff implementation over all of them.
//! - `backends` (private): how each backend's tensors reach the kernels of [`mec_core`], read where
//!   they lie and handed back without a copy.
//!
//! # Features
//!
//! `ndarray` (default) and `flex` turn on the Burn backend of that name and the convolution for it.

mod activation;
mod backends;
pub mod module;
pub mod nn;
pub mod ops;

pub use activation::Activation;
pub use mec_core::{Algorithm, Settings};
