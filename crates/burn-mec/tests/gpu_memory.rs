//! What a convolution holds on a GPU, by the device's own device. A file of one test: the report is on all
//! that the process has there.
#![cfg(feature = "wgpu")]

use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::nn::PaddingConfig2d;
use burn::tensor::{Device, DeviceKind, FloatDType, Tensor};
use burn_cubecl::{CubeBackend, CubeDevice};
use burn_mec::Settings;
use burn_mec::nn::conv::Conv2dConfig;
use burn_mec::ops::{Bias, Conv2dBackend, Conv2dGradients};
use mec_core::ConvOptions;

fn device() -> Device {
    Device::wgpu(DeviceKind::default())
}

#[test]
fn results_and_nothing_else() {
    no_workspace_is_reserved();
    no_workspace_is_left();
}

/// Bytes in use on the device, by its own device.
fn in_use(device: &Device) -> u64 {
    device.sync().expect("the device works");
    device.memory_pool_usage().expect("wgpu reports its memory").bytes_in_use
}

/// What a pass over the paper's cv9 at batch 32 makes the device reserve, at whatever time, is its result.
fn no_workspace_is_reserved() {
    let cube = CubeDevice::wgpu(Default::default()).expect("the build has wgpu");
    let g = mec_core::Geometry::new([32, 64, 56, 56], [64, 64, 3, 3], &ConvOptions::default());
    let g = g.expect("it is a convolution");
    let ones = |shape: [usize; 4]| -> FloatTensor<CubeBackend> {
        CubeBackend::float_ones(shape.into(), &cube, FloatDType::F32)
    };
    let (x, dy, weight) = (ones(g.input_shape()), ones(g.output_shape()), ones(g.weight_shape()));
    let s = Settings::default();
    // A weight gradient may add up partial sums.
    let partial = 1 << 20;
    type Run<'a> = &'a dyn Fn() -> FloatTensor<CubeBackend>;
    let passes: [(Run, _, _); 3] = [
        (
            &|| CubeBackend::mec_conv2d(x.clone(), weight.clone(), Bias::Absent, None, g, s),
            g.output_shape(),
            0,
        ),
        (
            &|| CubeBackend::mec_conv2d_input_gradient(dy.clone(), weight.clone(), g, s),
            g.input_shape(),
            0,
        ),
        (
            &|| CubeBackend::mec_conv2d_weight_gradient(x.clone(), dy.clone(), g, s),
            g.weight_shape(),
            partial,
        ),
    ];
    let device = device();
    let reserved = || {
        device.sync().expect("the device works");
        device.memory_pool_usage().expect("wgpu reports its memory").bytes_reserved
    };
    for (run, shape, beside) in passes {
        device.memory_cleanup();
        let before = reserved();
        let result = run();
        let grown = reserved().saturating_sub(before);
        drop(result);
        // A pool reserves by pages, up to a quarter larger than what is asked for.
        let bytes = (shape.iter().product::<usize>() * size_of::<f32>()) as u64;
        let most = bytes + bytes / 4 + (64 << 10) + beside;
        assert!(grown <= most, "{grown} bytes are reserved for {bytes} of {shape:?}");
    }
}

/// Forward and backward of the paper's cv9 at batch 32 leave their results on the device, and nothing else.
fn no_workspace_is_left() {
    let device = device();
    let autodiff = device.clone().autodiff();
    let conv = Conv2dConfig::new([64, 64], [3, 3]).with_padding(PaddingConfig2d::Valid);
    let conv = conv.init(&autodiff);
    let step = |x: Tensor<4>| {
        let y = conv.forward(x.clone());
        let dy = Tensor::ones(y.dims(), &autodiff);
        let gradients = (y * dy).sum().backward();
        let dw = conv.weight.grad(&gradients).expect("the weight is tracked");
        (x.grad(&gradients).expect("x is tracked"), dw)
    };
    let batch = 32;
    let x_bytes = (batch * 64 * 56 * 56 * 4) as u64;
    let x = Tensor::<4>::ones([batch, 64, 56, 56], &autodiff).require_grad();
    drop(step(x.clone()));
    device.memory_cleanup();
    let before = in_use(&device);
    let (dx, dw) = step(x);
    let after = in_use(&device);
    // The gradients; what else is in use is small change of the graph (the sum, the bias's gradient).
    let results = x_bytes + 64 * 64 * 9 * 4;
    let held = after.saturating_sub(before);
    assert!(held <= results + (64 << 10), "{held} bytes are in use for {results} of results");
    drop((dx, dw));
}
