//! im2col as a convolution of Burn tensors, to measure: forward by [`mec_core::im2col`], gradients by
//! the strips of burn-mec.
// burn-ndarray, which Burn means to drop.
#![allow(deprecated)]

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::ndarray::NdArrayTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{
    Autodiff, Backend, Dispatch, Flex, NdArray, TensorMetadata, backend_extension,
};
use burn::tensor::{Tensor, TensorData};
use burn_mec::Settings;
use burn_mec::ops::{Bias, Conv2dGradients, differentiable};
use mec_core::{Geometry, View};

/// The convolution of `geometry`, in `f32`.
///
/// # Panics
///
/// If the tensors are not of the geometry's shapes, not `f32`, or not on a CPU backend.
pub(crate) fn conv2d(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    geometry: Geometry,
) -> Tensor<4> {
    let bias = match bias {
        Some(bias) => Bias::PerChannel(bias.into_dispatch()),
        None => Bias::Absent,
    };
    let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
    Tensor::from_dispatch(Dispatch::im2col_conv2d(x, weight, bias, geometry))
}

/// A backend that convolves by im2col.
#[backend_extension(NdArray, Flex, Autodiff)]
pub trait Im2colBackend: Backend {
    /// The convolution of `x`.
    fn im2col_conv2d(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        #[extension_type] bias: Bias<Self>,
        geometry: Geometry,
    ) -> FloatTensor<Self>;
}

impl Im2colBackend for Flex {
    fn im2col_conv2d(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Bias<Self>,
        geometry: Geometry,
    ) -> FloatTensor<Self> {
        fn elements(tensor: &FloatTensor<Flex>) -> (&[f32], usize, Vec<usize>, Vec<isize>) {
            let layout = tensor.layout();
            let shape = layout.shape().to_vec();
            (tensor.storage(), layout.start_offset(), shape, layout.strides().to_vec())
        }
        forward::<Self>(x, weight, bias, &geometry, elements)
    }
}

impl Im2colBackend for NdArray {
    fn im2col_conv2d(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Bias<Self>,
        geometry: Geometry,
    ) -> FloatTensor<Self> {
        forward::<Self>(x, weight, bias, &geometry, |tensor| {
            let NdArrayTensor::F32(storage) = tensor else { panic!("im2col is measured in f32") };
            let view = storage.view();
            (
                // The elements of an array that owns them lie together, in whatever order.
                view.to_slice_memory_order().expect("no gaps between the elements"),
                0,
                view.shape().to_vec(),
                view.strides().to_vec(),
            )
        })
    }
}

type Elements<'a> = (&'a [f32], usize, Vec<usize>, Vec<isize>);

fn forward<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    bias: Bias<B>,
    geometry: &Geometry,
    elements: impl Fn(&FloatTensor<B>) -> Elements<'_>,
) -> FloatTensor<B> {
    let view = |tensor| {
        let (data, offset, shape, strides) = elements(tensor);
        let (shape, strides) = (shape.try_into(), strides.try_into());
        View::new(data, offset, shape.expect("4 axes"), strides.expect("4 axes"))
            .expect("a backend's tensor lies within its storage")
    };
    let bias = match &bias {
        Bias::Absent => None,
        Bias::PerChannel(bias) => Some(elements(bias).0),
    };
    let y = mec_core::im2col::forward(geometry, &view(&x), &view(&weight), bias)
        .unwrap_or_else(|error| panic!("conv2d: {error}"));
    let device = x.device();
    B::float_from_data(TensorData::new(y, geometry.output_shape()), &device)
}

impl<B, C> Im2colBackend for Autodiff<B, C>
where
    B: Im2colBackend + Conv2dGradients,
    C: CheckpointStrategy,
{
    fn im2col_conv2d(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Bias<Self>,
        geometry: Geometry,
    ) -> FloatTensor<Self> {
        differentiable(x, weight, bias, None, geometry, Settings::default(), |x, weight, bias| {
            B::im2col_conv2d(x, weight, bias, geometry)
        })
    }
}
