//! What the tests share: devices, data, and one convolution run forward and backward.
#![allow(dead_code)] // Each test binary uses a part.

use std::fmt;

use burn::nn::{Initializer, PaddingConfig2d, conv as burn_conv};
use burn::tensor::ops::ConvOptions;
use burn::tensor::{DType, Device, Tensor, TensorData};
use mec_core::testing::Problem;

/// Every backend this build has, without autodiff.
pub fn all_devices() -> Vec<Device> {
    let mut devices = devices();
    #[cfg(feature = "wgpu")]
    devices.push(Device::wgpu(burn::tensor::DeviceKind::default()));
    devices
}

/// Those that compute on the CPU, where a new geometry needs no compilation.
#[allow(deprecated)]
pub fn devices() -> Vec<Device> {
    vec![
        #[cfg(feature = "ndarray")]
        Device::ndarray(),
        #[cfg(feature = "flex")]
        Device::flex(),
    ]
}

/// A convolution function under test.
pub type Conv = fn(Tensor<4>, Tensor<4>, Option<Tensor<1>>, ConvOptions<2>) -> Tensor<4>;

/// Ours.
pub const MEC: Conv = |x, weight, bias, options| burn_mec::module::conv2d(x, weight, bias, options);
/// Burn's.
pub const BURN: Conv =
    |x, weight, bias, options| burn::tensor::module::conv2d(x, weight, bias, options);

/// The operands of one convolution and the gradient in its output, row-major.
#[derive(Clone)]
pub struct Case {
    pub problem: Problem,
    pub x: Vec<f64>,
    pub weight: Vec<f64>,
    pub bias: Option<Vec<f64>>,
    pub dy: Vec<f64>,
}

impl Case {
    /// Random values in -1 to 1, the same on every call.
    pub fn random(problem: &Problem) -> Self {
        let output = problem.geometry().output_shape();
        Self {
            problem: problem.clone(),
            x: random(problem.input.iter().product(), 1),
            weight: random(problem.weight.iter().product(), 2),
            bias: problem.bias.then(|| random(problem.weight[0], 3)),
            dy: random(output.iter().product(), 4),
        }
    }

    /// The suite's small integers, whose sums are exact in any order.
    pub fn integers(problem: &Problem) -> Self {
        Self {
            problem: problem.clone(),
            x: problem.x(),
            weight: problem.weights(),
            bias: problem.bias_values(),
            dy: problem.dy(),
        }
    }

    pub fn options(&self) -> ConvOptions<2> {
        let o = &self.problem.options;
        ConvOptions::new_with_padding(o.stride, o.padding, o.dilation, o.groups)
    }

    /// Forward, without autodiff.
    pub fn forward(&self, conv: Conv, device: &Device, dtype: DType) -> Vec<f64> {
        let x = tensor(&self.x, self.problem.input, device, dtype);
        let weight = tensor(&self.weight, self.problem.weight, device, dtype);
        values(conv(x, weight, self.bias_tensor(device, dtype), self.options()))
    }

    /// Forward and backward, with gradients in everything.
    pub fn run(&self, conv: Conv, device: &Device, dtype: DType) -> Results {
        let device = device.clone().autodiff();
        let x = tensor(&self.x, self.problem.input, &device, dtype).require_grad();
        let weight = tensor(&self.weight, self.problem.weight, &device, dtype).require_grad();
        let bias = self.bias_tensor(&device, dtype).map(Tensor::require_grad);
        let y = conv(x.clone(), weight.clone(), bias.clone(), self.options());
        assert_eq!(y.dims(), self.problem.geometry().output_shape(), "{:?}", self.problem);
        assert_eq!(y.dtype(), dtype, "{:?}", self.problem);
        let dy = tensor(&self.dy, y.dims(), &device, dtype);
        let gradients = (y.clone() * dy).sum().backward();
        Results {
            y: values(y),
            dx: values(x.grad(&gradients).expect("x is tracked")),
            dw: values(weight.grad(&gradients).expect("the weight is tracked")),
            db: bias.map(|bias| values(bias.grad(&gradients).expect("the bias is tracked"))),
        }
    }

    fn bias_tensor(&self, device: &Device, dtype: DType) -> Option<Tensor<1>> {
        self.bias.as_ref().map(|bias| tensor(bias, [bias.len()], device, dtype))
    }
}

/// The output and the gradients of one convolution, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Results {
    pub y: Vec<f64>,
    pub dx: Vec<f64>,
    pub dw: Vec<f64>,
    pub db: Option<Vec<f64>>,
}

impl Results {
    /// Asserts that every element is within `tolerance` of the largest element of its tensor.
    #[track_caller]
    pub fn assert_close(&self, expected: &Self, tolerance: f64, what: impl fmt::Display) {
        assert_close(&self.y, &expected.y, tolerance, format_args!("{what}: y"));
        assert_close(&self.dx, &expected.dx, tolerance, format_args!("{what}: dx"));
        assert_close(&self.dw, &expected.dw, tolerance, format_args!("{what}: dw"));
        assert_eq!(self.db.is_some(), expected.db.is_some(), "{what}: db");
        if let (Some(got), Some(expected)) = (&self.db, &expected.db) {
            assert_close(got, expected, tolerance, format_args!("{what}: db"));
        }
    }
}

/// Asserts that every element is within `tolerance` of the largest one expected.
#[track_caller]
pub fn assert_close(got: &[f64], expected: &[f64], tolerance: f64, what: impl fmt::Display) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let scale = expected.iter().fold(1e-30, |scale: f64, e| scale.max(e.abs()));
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        assert!((g - e).abs() <= tolerance * scale, "{what}[{i}] is {g}, expected {e}");
    }
}

pub fn tensor<const D: usize>(
    values: &[f64],
    shape: [usize; D],
    device: &Device,
    dtype: DType,
) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), (device, dtype))
}

pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

/// `count` values in -1 to 1, by a linear congruential generator.
pub fn random(count: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// The message that `run` panics with.
pub fn panic_message<T>(run: impl FnOnce() -> T) -> String {
    let Err(payload) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) else {
        panic!("expected a panic");
    };
    match payload.downcast::<String>() {
        Ok(message) => *message,
        Err(payload) => payload.downcast_ref::<&str>().expect("a message").to_string(),
    }
}

/// A named problem.
pub fn problem(
    name: &str,
    input: [usize; 4],
    weight: [usize; 4],
    options: mec_core::ConvOptions,
    bias: bool,
) -> Problem {
    Problem { name: name.to_string(), input, weight, options, bias }
}

/// Configurations that together set every field.
pub fn configs() -> Vec<burn_conv::Conv2dConfig> {
    let new = burn_conv::Conv2dConfig::new;
    vec![
        new([3, 8], [3, 3]),
        new([4, 6], [3, 2]).with_stride([2, 1]).with_dilation([1, 2]).with_bias(false),
        new([4, 6], [2, 4]).with_padding(PaddingConfig2d::Same).with_groups(2),
        new([2, 2], [3, 3]).with_padding(PaddingConfig2d::Explicit(1, 2, 3, 0)),
        new([2, 4], [1, 1]).with_initializer(Initializer::Normal { mean: 0.5, std: 0.1 }),
    ]
}

/// The parameters of a module, row-major.
pub fn weights_of(conv: &burn_conv::Conv2d) -> (Vec<f64>, Option<Vec<f64>>) {
    (values(conv.weight.val()), conv.bias.as_ref().map(|bias| values(bias.val())))
}
