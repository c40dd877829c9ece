//! What holds on a GPU alone: its limits, its types, its graphics interfaces, with Burn's fusion and
//! without. Where there is no card these run on software Vulkan. The suite that all backends share is in
//! the other tests.
#![cfg(feature = "wgpu")]

mod common;

use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::backend::try_read_sync;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{DType, Device, DeviceKind, Tensor, TensorData};
use burn_cubecl::cubecl::ir::{ElemType, FloatKind};
use burn_cubecl::{CubeBackend, CubeDevice};
use burn_mec::module::{conv2d, conv2d_with_settings};
use burn_mec::ops::{Bias, Conv2dBackend, Conv2dGradients};
use burn_mec::{Algorithm, Settings};
use common::{Case, assert_close, panic_message, problem, random, tensor, values};
use mec_core::{ConvOptions as CoreOptions, testing};

fn device() -> Device {
    Device::wgpu(DeviceKind::default())
}

fn valid(stride: usize) -> ConvOptions<2> {
    ConvOptions::new([stride; 2], [0, 0], [1, 1], 1)
}

fn settings(algorithm: Algorithm, workspace_limit: Option<usize>) -> Settings {
    Settings { algorithm, workspace_limit }
}

fn ones(shape: [usize; 4], device: &Device) -> Tensor<4> {
    Tensor::ones(shape, (device, DType::F32))
}

/// A convolution of ones counts the elements a window covers.
fn all_equal(y: Tensor<4>, shape: [usize; 4], expected: f32) {
    assert_eq!(y.dims(), shape);
    let (least, most) = (y.clone().min().into_scalar::<f32>(), y.max().into_scalar::<f32>());
    assert_eq!((least, most), (expected, expected), "{shape:?}");
}

/// Dimensions of a launch end at 65,535 cubes; each group has one here.
#[test]
fn more_cubes_than_along_one_dimension() {
    let groups = 66_000;
    let x = ones([1, groups, 1, 1], &device());
    let weight = ones([2 * groups, 1, 1, 1], &device());
    let y = conv2d(x, weight, None, ConvOptions::new([1, 1], [0, 0], [1, 1], groups));
    all_equal(y, [1, 2 * groups, 1, 1], 1.0);
}

/// As large as two tensors of it may be on a device that binds 128 MiB.
#[test]
fn large_image() {
    let x = ones([1, 1, 4096, 4096], &device());
    let y = conv2d(x, ones([1, 1, 3, 3], &device()), None, valid(1));
    assert_eq!(y.dims(), [1, 1, 4094, 4094]);
    for corner in [0..2, 4092..4094] {
        let corner = y.clone().slice([0..1, 0..1, corner.clone(), corner]);
        assert!(values(corner).into_iter().all(|value| value == 9.0));
    }
}

#[test]
fn many_output_channels() {
    let x = ones([1, 2, 3, 3], &device());
    let y = conv2d(x, ones([70_000, 2, 3, 3], &device()), None, valid(1));
    all_equal(y, [1, 70_000, 1, 1], 18.0);
}

#[test]
fn small_and_empty_images() {
    let y = conv2d(ones([2, 1, 1, 1], &device()), ones([1, 1, 1, 1], &device()), None, valid(1));
    all_equal(y, [2, 1, 1, 1], 1.0);
    let device = device().autodiff();
    let weight = ones([3, 2, 3, 3], &device).require_grad();
    let y = conv2d(ones([0, 2, 5, 5], &device), weight.clone(), None, valid(1));
    assert_eq!(y.dims(), [0, 3, 3, 3]);
    let gradients = y.sum().backward();
    let dw = weight.grad(&gradients).expect("the weight is tracked");
    assert!(values(dw).into_iter().all(|value| value == 0.0));
}

/// Kernels so wide that no patch of their input fits the shared memory.
#[test]
fn dilation_beyond_shared_memory() {
    let options = CoreOptions { dilation: [90, 70], ..CoreOptions::default() };
    let wide = problem("wide", [1, 5, 200, 160], [3, 5, 3, 3], options, true);
    let expected = testing::expected::<f64>(&wide);
    let got = Case::integers(&wide).run(common::MEC, &device(), DType::F32);
    testing::assert_same(&wide, "y", &got.y, &expected.y);
    testing::assert_same(&wide, "dx", &got.dx, &expected.dx);
    testing::assert_same(&wide, "dw", &got.dw, &expected.dw);
}

/// The backend itself, without the fusion that this build puts around it.
#[test]
fn without_fusion() {
    let device = CubeDevice::wgpu(Default::default()).expect("the build has wgpu");
    let problem = problem("unfused", [2, 8, 7, 6], [5, 8, 3, 3], CoreOptions::default(), true);
    let expected = testing::expected::<f64>(&problem);
    let upload = |values: Vec<f64>, shape: &[usize]| -> FloatTensor<CubeBackend> {
        let values: Vec<f32> = values.into_iter().map(|value| value as f32).collect();
        CubeBackend::float_from_data(TensorData::new(values, shape.to_vec()), &device)
    };
    let read = |tensor| -> Vec<f64> {
        let data = try_read_sync(CubeBackend::float_into_data(tensor)).expect("a native device");
        data.expect("the device works").iter::<f64>().collect()
    };
    let g = problem.geometry();
    let x = upload(problem.x(), &g.input_shape());
    let weight = upload(problem.weights(), &g.weight_shape());
    let bias = upload(problem.bias_values().expect("it has one"), &[g.channels_out]);
    let dy = upload(problem.dy(), &g.output_shape());
    let s = Settings::default();
    let y = CubeBackend::mec_conv2d(x.clone(), weight.clone(), Bias::PerChannel(bias), None, g, s);
    testing::assert_same(&problem, "y", &read(y), &expected.y);
    let dx = CubeBackend::mec_conv2d_input_gradient(dy.clone(), weight, g, s);
    testing::assert_same(&problem, "dx", &read(dx), &expected.dx);
    let (dw, db) = CubeBackend::mec_conv2d_weight_bias_gradient(x, dy.clone(), g, s);
    testing::assert_same(&problem, "dw", &read(dw), &expected.dw);
    testing::assert_same(&problem, "db", &read(db), &expected.db);
    let db = CubeBackend::mec_conv2d_bias_gradient(dy, g);
    testing::assert_same(&problem, "db alone", &read(db), &expected.db);
}

/// Sums are kept in single precision: what differs from single precision is the operands' rounding, and
/// the result's.
#[test]
fn half_precision() {
    let device = device();
    let client = CubeDevice::wgpu(Default::default()).expect("the build has wgpu").client();
    let half = ElemType::Float(FloatKind::F16);
    if !client.properties().supports_type(half) {
        let tensor = || Tensor::<4>::ones([1, 1, 1, 1], (&device, DType::F16));
        let message = panic_message(|| values(conv2d(tensor(), tensor(), None, valid(1))));
        println!("the device has no f16: {message}");
        return;
    }
    let problem = problem("half", [2, 8, 9, 11], [12, 8, 3, 3], CoreOptions::default(), true);
    let case = Case::random(&problem);
    let expected = case.run(common::MEC, &device, DType::F32);
    let got = case.run(common::MEC, &device, DType::F16);
    got.assert_close(&expected, 4e-3, "f16");
}

#[test]
fn gradients_are_the_same_bits_in_every_run() {
    let problem = problem("repeat", [3, 16, 12, 12], [24, 16, 3, 3], CoreOptions::default(), true);
    let case = Case::random(&problem);
    let first = case.run(common::MEC, &device(), DType::F32);
    for _ in 0..2 {
        assert_eq!(case.run(common::MEC, &device(), DType::F32), first);
    }
}

#[test]
fn the_papers_algorithm_keeps_to_the_limit() {
    let device = device();
    let (input, kernel) = ([4, 6, 12, 11], [8, 3, 3, 2]);
    let options = ConvOptions::new([2, 1], [1, 1], [1, 2], 2);
    let x: Tensor<4> = tensor(&random(input.iter().product(), 1), input, &device, DType::F32);
    let weight: Tensor<4> =
        tensor(&random(kernel.iter().product(), 2), kernel, &device, DType::F32);
    let bias: Tensor<1> = tensor(&random(8, 3), [8], &device, DType::F32);
    let run = |settings| {
        let (x, weight, bias) = (x.clone(), weight.clone(), bias.clone());
        values(conv2d_with_settings(x, weight, Some(bias), options.clone(), settings))
    };
    let expected = run(settings(Algorithm::Strip, None));
    assert_close(&run(settings(Algorithm::Paper, None)), &expected, 1e-5, "the whole batch");

    // The refusal names the least that would do, which does.
    let message = panic_message(|| run(settings(Algorithm::Paper, Some(1))));
    let least = message
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|word| word.parse::<usize>().ok())
        .max()
        .unwrap_or_else(|| panic!("no number in: {message}"));
    let limited = settings(Algorithm::Paper, Some(least));
    assert_close(&run(limited), &expected, 1e-5, "an image at a time");
}
