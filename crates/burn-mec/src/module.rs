//! Convolution as a function on tensors, in place of `burn::tensor::module::conv2d`.

use burn::backend::Dispatch;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{DType, Tensor};
use mec_core::Geometry;

use crate::ops::{Bias, Conv2dBackend};
use crate::{Activation, Settings};

/// Applies a 2-D convolution, differentiable in `x`, `weight` and `bias`.
///
/// # Shapes
///
/// - `x`: `[batch, channels_in, height, width]`
/// - `weight`: `[channels_out, channels_in / groups, kernel_height, kernel_width]`
/// - `bias`: `[channels_out]`
/// - result: `[batch, channels_out, out_height, out_width]`
///
/// # Types
///
/// `f32` and `f64` are computed as they are and read where they lie. Half precision, on the backends
/// that have it, is computed in `f32` and rounded once; quantized tensors are dequantized first.
///
/// # Panics
///
/// If the shapes and options do not describe a convolution: channels that do not match or do not
/// divide into the groups, a bias of another length, a kernel larger than the padded input, a zero
/// stride. If the tensors are not of one data type. Always before any work.
///
/// # Example
///
/// ```
/// use burn::tensor::ops::ConvOptions;
/// use burn::tensor::{Device, Tensor};
///
/// let device = Device::default();
/// let x = Tensor::<4>::ones([1, 2, 4, 4], &device);
/// let weight = Tensor::<4>::ones([3, 2, 3, 3], &device);
/// let options = ConvOptions::new([1, 1], [0, 0], [1, 1], 1);
/// let y = burn_mec::module::conv2d(x, weight, None, options);
/// assert_eq!(y.dims(), [1, 3, 2, 2]);
/// assert_eq!(y.max().into_scalar::<f32>(), 18.0);
/// ```
pub fn conv2d(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    options: impl Into<ConvOptions<2>>,
) -> Tensor<4> {
    conv2d_with_settings(x, weight, bias, options, Settings::default())
}

/// [`conv2d`], with a choice of algorithm and a limit on workspace.
///
/// # Panics
///
/// As [`conv2d`]; also if the algorithm does not offer the options, or cannot work within the
/// limit. The gradients are computed within the same settings.
pub fn conv2d_with_settings(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    options: impl Into<ConvOptions<2>>,
    settings: Settings,
) -> Tensor<4> {
    conv2d_with_activation(x, weight, bias, options, None, settings)
}

/// [`conv2d_with_settings`] and an activation of its result, as one step of the graph.
///
/// # Panics
///
/// As [`conv2d_with_settings`].
pub fn conv2d_with_activation(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    options: impl Into<ConvOptions<2>>,
    activation: Option<Activation>,
    settings: Settings,
) -> Tensor<4> {
    let geometry = geometry(&x, &weight, bias.as_ref(), options.into());
    let bias = match bias {
        Some(bias) => Bias::PerChannel(dequantized(bias).into_dispatch()),
        None => Bias::Absent,
    };
    Tensor::from_dispatch(Dispatch::mec_conv2d(
        dequantized(x).into_dispatch(),
        dequantized(weight).into_dispatch(),
        bias,
        activation,
        geometry,
        settings,
    ))
}

/// Everything that can be wrong with the arguments is found here.
fn geometry(
    x: &Tensor<4>,
    weight: &Tensor<4>,
    bias: Option<&Tensor<1>>,
    options: ConvOptions<2>,
) -> Geometry {
    let (channels, expected) = (x.dims()[1], weight.dims()[1] * options.groups);
    if channels != expected {
        // Burn's message to the letter, which no public function of Burn's hands out.
        panic!(
            "=== Tensor Operation Error ===\n  Operation: 'conv2d'\n  Reason:\n    1. Number of \
             channels in input tensor and input channels of convolution must be equal. got: \
             {channels}, expected: {expected} \n"
        );
    }
    let ConvOptions { stride, padding, dilation, groups } = options;
    let options = mec_core::ConvOptions { stride, padding, dilation, groups };
    let geometry = Geometry::new(x.dims(), weight.dims(), &options)
        .unwrap_or_else(|error| panic!("conv2d: {error}"));

    let same_type = |what, dtype| {
        let expected = float_type(x.dtype());
        assert!(
            float_type(dtype) == expected,
            "conv2d: the input is {expected:?}, but the {what} is {dtype:?}"
        );
    };
    same_type("weight", weight.dtype());
    if let Some(bias) = bias {
        same_type("bias", bias.dtype());
        let [length] = bias.dims();
        assert!(
            length == geometry.channels_out,
            "conv2d: the bias has {length} elements, but the weight has {} output channels",
            geometry.channels_out
        );
    }
    geometry
}

/// The type a tensor of `dtype` is computed in.
fn float_type(dtype: DType) -> DType {
    if is_quantized(dtype) { DType::F32 } else { dtype }
}

fn is_quantized(dtype: DType) -> bool {
    matches!(dtype, DType::QFloat(_))
}

/// Burn's own operations on floats take quantized tensors by dequantizing them.
fn dequantized<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    if is_quantized(tensor.dtype()) { tensor.dequantize() } else { tensor }
}
