//! The convolution for every CubeCL runtime: wgpu (Vulkan, Metal, WebGPU), CUDA and ROCm.
//!
//! # Layers
//!
//! - this file: which kernel computes a pass, and how tensors get to it;
//! - `plan`: how a problem is cut into tiles, from the problem and the `device`;
//! - `correlation` (forward pass and input gradient), `weight_gradient`, `depthwise`: the kernels, with
//!   what they share in `staging`;
//! - `paper`: the algorithm as published, as a lowering kernel and Burn's matrix product.
//!
//! Tensors are read with the strides they have. Results of the convolution and of its input gradient
//! lie channels-last and are handed out as a permuted view, as Burn's own do, so that a chain of
//! convolutions never transposes. No kernel but the weight gradient's takes memory beside its results,
//! and that one at most [`plan::PARTIAL_BYTES`].

mod correlation;
mod depthwise;
mod device;
mod launch;
mod paper;
mod plan;
mod staging;
mod weight_gradient;

use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::conv::{conv_data_backward, conv_forward, conv_weight_backward};
use burn_cubecl::tensor::CubeTensor;
use mec_core::{Algorithm, Geometry, Settings};

use crate::Activation;
use crate::ops::{Bias, Conv2dBackend, Conv2dGradients};
use launch::elem;

impl Conv2dBackend for CubeBackend {
    fn mec_conv2d(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Bias<Self>,
        activation: Option<Activation>,
        geometry: Geometry,
        settings: Settings,
    ) -> FloatTensor<Self> {
        let bias = match bias {
            Bias::Absent => None,
            Bias::PerChannel(bias) => Some(bias),
        };
        let y = match choose(&x, &geometry, &settings) {
            Choice::Strip => done(launch::forward(x, weight, bias, &geometry)),
            Choice::Paper => done(paper::forward(x, weight, bias, &geometry, &settings)),
            Choice::Burn => {
                conv_forward::<2>(x, weight, bias, options(&geometry), Default::default())
                    .unwrap_or_else(|error| panic!("conv2d: {error:?}"))
            }
        };
        match activation {
            Some(activation) => activation.apply::<Self>(y),
            None => y,
        }
    }
}

impl Conv2dGradients for CubeBackend {
    fn mec_conv2d_input_gradient(
        dy: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        geometry: Geometry,
        settings: Settings,
    ) -> FloatTensor<Self> {
        if choose(&dy, &geometry, &settings) == Choice::Burn {
            let shape = Shape::from(geometry.input_shape());
            return conv_data_backward::<2>(
                dy,
                weight,
                shape,
                options(&geometry),
                Default::default(),
            )
            .unwrap_or_else(|error| panic!("conv2d: {error:?}"));
        }
        done(launch::input_gradient(dy, weight, &geometry))
    }

    fn mec_conv2d_weight_gradient(
        x: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        geometry: Geometry,
        settings: Settings,
    ) -> FloatTensor<Self> {
        if choose(&dy, &geometry, &settings) == Choice::Burn {
            let shape = Shape::from(geometry.weight_shape());
            return conv_weight_backward::<2>(x, dy, shape, options(&geometry), Default::default())
                .unwrap_or_else(|error| panic!("conv2d: {error:?}"));
        }
        done(launch::weight_gradient(x, dy, &geometry, &settings, false)).0
    }

    fn mec_conv2d_weight_bias_gradient(
        x: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        geometry: Geometry,
        settings: Settings,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        if choose(&dy, &geometry, &settings) == Choice::Burn {
            let dw = Self::mec_conv2d_weight_gradient(x, dy.clone(), geometry, settings);
            return (dw, Self::mec_conv2d_bias_gradient(dy, geometry));
        }
        let (dw, db) = done(launch::weight_gradient(x, dy, &geometry, &settings, true));
        (dw, db.expect("it was asked for"))
    }

    fn mec_conv2d_bias_gradient(dy: FloatTensor<Self>, geometry: Geometry) -> FloatTensor<Self> {
        let sum = |dy, axis| CubeBackend::float_sum_dim(dy, axis);
        let db = sum(sum(sum(dy, 3), 2), 0);
        CubeBackend::float_reshape(db, Shape::from([geometry.channels_out]))
    }
}

/// Why a pass cannot run on a device. Found out before any work.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// The settings cannot be kept.
    #[error(transparent)]
    Settings(#[from] mec_core::Error),
    /// The device is too small.
    #[error("the device does not have the {what} that this convolution needs")]
    Device {
        /// What is missing.
        what: &'static str,
    },
}

/// What computes a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Choice {
    /// The kernels of this module.
    Strip,
    /// The paper's algorithm, in the forward pass.
    Paper,
    /// Burn's own convolution.
    Burn,
}

/// Resolves [`Algorithm::Auto`].
///
/// It is [`Choice::Burn`] for dense layers in a type for which the device has matrix units: those are
/// several times as fast as the multiply-adds that our kernels are made of, and Burn's implicit GEMM uses
/// them. All else is ours.
fn choose(x: &CubeTensor, geometry: &Geometry, settings: &Settings) -> Choice {
    match settings.algorithm {
        // There is no such kernel for the GPU.
        Algorithm::Strip | Algorithm::Winograd => Choice::Strip,
        Algorithm::Paper => Choice::Paper,
        Algorithm::Auto => {
            let elem = elem(x.dtype);
            let cmma = &x.client.properties().features.matmul.cmma;
            let dense = geometry.groups == 1 && geometry.channels_in >= 16;
            if dense && x.dtype != DType::F32 && cmma.iter().any(|config| config.a_type == elem) {
                Choice::Burn
            } else {
                Choice::Strip
            }
        }
    }
}

/// The problem in Burn's terms.
fn options(geometry: &Geometry) -> ConvOptions<2> {
    let (h, w) = (&geometry.height, &geometry.width);
    ConvOptions::new_with_padding(
        [h.stride, w.stride],
        [(h.pad_before, h.pad_after), (w.pad_before, w.pad_after)],
        [h.dilation, w.dilation],
        geometry.groups,
    )
}

/// Convolution is an infallible function in Burn, so an error has nowhere else to go.
fn done<T>(result: Result<T, Error>) -> T {
    result.unwrap_or_else(|error| panic!("conv2d: {error}"))
}

#[cfg(all(test, feature = "wgpu"))]
mod tests {
    use std::sync::atomic::Ordering;

    use burn::backend::try_read_sync;
    use burn::tensor::TensorData;
    use burn_cubecl::CubeDevice;
    use mec_core::testing::{Problem, assert_same, expected, problems};

    use super::*;

    fn values(tensor: CubeTensor) -> Vec<f32> {
        let data = try_read_sync(CubeBackend::float_into_data(tensor));
        data.expect("native devices answer")
            .expect("it can be read")
            .try_to_vec()
            .expect("it is f32")
    }

    fn check(problem: &Problem, device: &CubeDevice) {
        let (g, s) = (problem.geometry(), Settings::default());
        let tensor = |values: Vec<f32>, shape: &[usize]| {
            CubeBackend::float_from_data(TensorData::new(values, shape.to_vec()), device)
        };
        let x = tensor(problem.x(), &problem.input);
        let weight = tensor(problem.weights(), &problem.weight);
        let dy = tensor(problem.dy(), &g.output_shape());
        let bias = problem
            .bias_values()
            .map_or(Bias::Absent, |bias| Bias::PerChannel(tensor(bias, &[g.channels_out])));
        let expected = expected::<f32>(problem);
        let y = CubeBackend::mec_conv2d(x.clone(), weight.clone(), bias, None, g, s);
        assert_same(problem, "y", &values(y), &expected.y);
        let dx = CubeBackend::mec_conv2d_input_gradient(dy.clone(), weight, g, s);
        assert_same(problem, "dx", &values(dx), &expected.dx);
        let (dw, db) = CubeBackend::mec_conv2d_weight_bias_gradient(x, dy, g, s);
        assert_same(problem, "dw", &values(dw), &expected.dw);
        assert_same(problem, "db", &values(db), &expected.db);
    }

    /// Tests may run where there is no card, but the kernels that a card would be given run anywhere.
    #[test]
    fn tiles_of_a_card() {
        device::AS_CARD.store(true, Ordering::Relaxed);
        let device = CubeDevice::wgpu(Default::default()).expect("there is a device for the tests");
        problems().iter().skip(1).step_by(6).for_each(|problem| check(problem, &device));
    }
}
