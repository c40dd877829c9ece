//! Gradients under each way a graph can ask for them.

mod common;

use burn::tensor::activation::relu;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{DType, Device, Tensor};
use burn_mec::module::conv2d_with_activation;
use burn_mec::{Activation, Settings};
use common::{BURN, Conv, MEC, all_devices, assert_close, random, tensor, values};

const X: [usize; 4] = [2, 3, 6, 5];
const WEIGHT: [usize; 4] = [4, 3, 3, 3];

fn leaf<const D: usize>(shape: [usize; D], seed: u64, device: &Device) -> Tensor<D> {
    tensor(&random(shape.iter().product(), seed), shape, device, DType::F32)
}

fn options() -> ConvOptions<2> {
    ConvOptions::new([1, 2], [1, 1], [1, 1], 1)
}

/// Every subset of {input, weight, bias}: what is tracked gets its gradient, what is not gets none.
#[test]
fn only_what_is_asked_for() {
    for device in all_devices() {
        let device = device.autodiff();
        for tracked in 1..8 {
            let run = |conv: Conv| {
                let track = |bit: usize| tracked & bit != 0;
                let x = leaf(X, 1, &device).set_require_grad(track(1));
                let weight = leaf(WEIGHT, 2, &device).set_require_grad(track(2));
                let bias = leaf([4], 3, &device).set_require_grad(track(4));
                let y = conv(x.clone(), weight.clone(), Some(bias.clone()), options());
                let gradients = y.powi_scalar(2).sum().backward();
                [
                    x.grad(&gradients).map(values),
                    weight.grad(&gradients).map(values),
                    bias.grad(&gradients).map(values),
                ]
            };
            for (i, (got, expected)) in run(MEC).into_iter().zip(run(BURN)).enumerate() {
                let what = format!("operand {i}, tracked {tracked:03b}, {device:?}");
                assert_eq!(got.is_some(), expected.is_some(), "{what}");
                assert_eq!(got.is_some(), tracked & (1 << i) != 0, "{what}");
                if let (Some(got), Some(expected)) = (got, expected) {
                    assert_close(&got, &expected, 1e-5, what);
                }
            }
        }
    }
}

#[test]
fn nothing_tracked() {
    for device in all_devices() {
        let device = device.autodiff();
        let y = MEC(leaf(X, 1, &device), leaf(WEIGHT, 2, &device), None, options());
        assert!(!y.is_require_grad());
        let expected = BURN(leaf(X, 1, &device), leaf(WEIGHT, 2, &device), None, options());
        assert_close(&values(y), &values(expected), 1e-5, format!("{device:?}"));
    }
}

/// Operands that the backward pass computes again instead of keeping, some of them shared.
#[test]
fn balanced_checkpointing() {
    for device in all_devices() {
        let run = |conv: Conv, device: &Device| {
            let x = leaf(X, 1, device).require_grad();
            let weight = leaf(WEIGHT, 2, device).require_grad();
            let second = leaf([5, 4, 2, 2], 3, device).require_grad();
            let bias = leaf([4], 4, device).require_grad();
            // ReLU and exp are memory-bound: recomputed under balanced checkpointing.
            let hidden = relu(x.clone().exp() - 1.2);
            let weights = weight.clone() * 0.5;
            let y = conv(hidden.clone(), weights.clone(), Some(bias.clone()), options());
            let again = conv(hidden, weights, None, options());
            let z = conv(relu(y + again), second.clone(), None, options());
            let gradients = z.clone().powi_scalar(2).sum().backward();
            [
                values(z),
                values(x.grad(&gradients).unwrap()),
                values(weight.grad(&gradients).unwrap()),
                values(second.grad(&gradients).unwrap()),
                values(bias.grad(&gradients).unwrap()),
            ]
        };
        let plain = device.clone().autodiff();
        let balanced = plain.clone().gradient_checkpointing();
        let expected = run(BURN, &plain);
        for device in [plain, balanced] {
            for (i, (got, expected)) in run(MEC, &device).iter().zip(&expected).enumerate() {
                assert_close(got, expected, 1e-4, format!("result {i} on {device:?}"));
            }
        }
    }
}

/// Only one operand tracked and the other recomputed: each kept value is retrieved once.
#[test]
fn balanced_checkpointing_with_one_tracked() {
    for device in all_devices() {
        let device = device.autodiff().gradient_checkpointing();
        for x_tracked in [true, false] {
            let run = |conv: Conv| {
                let x = leaf(X, 1, &device).set_require_grad(x_tracked);
                let weight = leaf(WEIGHT, 2, &device).set_require_grad(!x_tracked);
                let y = conv(x.clone().exp(), weight.clone().exp(), None, options());
                let gradients = y.powi_scalar(2).sum().backward();
                let tracked = if x_tracked { &x } else { &weight };
                values(tracked.grad(&gradients).unwrap())
            };
            assert_close(&run(MEC), &run(BURN), 1e-5, format!("{device:?}, x: {x_tracked}"));
        }
    }
}

/// An activation within a convolution is the layer after it, and what is not a number stays so.
#[test]
fn activation() {
    let ours: Conv = |x, weight, bias, options| {
        let activation = Some(Activation::Relu);
        conv2d_with_activation(x, weight, bias, options, activation, Settings::default())
    };
    let theirs: Conv = |x, weight, bias, options| relu(BURN(x, weight, bias, options));
    for device in all_devices() {
        let run = |conv: Conv, device: &Device| {
            let x = leaf(X, 1, device).require_grad();
            let weight = leaf(WEIGHT, 2, device).require_grad();
            let second = leaf([5, 4, 2, 2], 3, device).require_grad();
            let bias = leaf([4], 4, device).require_grad();
            let y = conv(x.clone(), weight.clone(), Some(bias.clone()), options());
            let z = conv(y.clone(), second.clone(), None, options());
            let gradients = (z.clone().powi_scalar(2).sum() + y.clone().sum()).backward();
            [
                values(y),
                values(z),
                values(x.grad(&gradients).unwrap()),
                values(weight.grad(&gradients).unwrap()),
                values(second.grad(&gradients).unwrap()),
                values(bias.grad(&gradients).unwrap()),
            ]
        };
        let plain = device.clone().autodiff();
        let balanced = plain.clone().gradient_checkpointing();
        let expected = run(theirs, &plain);
        assert!(expected[0].contains(&0.0), "the activation does something");
        for device in [plain, balanced] {
            for (i, (got, expected)) in run(ours, &device).iter().zip(&expected).enumerate() {
                assert_close(got, expected, 1e-4, format!("result {i} on {device:?}"));
            }
        }

        let mut x = random(X.iter().product(), 1);
        x[17] = f64::NAN;
        let finite = |conv: Conv| {
            let x: Tensor<4> = tensor(&x, X, &device, DType::F32);
            values(conv(x, leaf(WEIGHT, 2, &device), None, options()))
                .into_iter()
                .map(f64::is_nan)
                .collect::<Vec<_>>()
        };
        assert_eq!(finite(ours), finite(MEC), "{device:?}");
    }
}

/// One weight in two convolutions, and one tensor as both operands.
#[test]
fn gradients_accumulate() {
    for device in all_devices() {
        let device = device.autodiff();
        let run = |conv: Conv| {
            let weight = leaf([3, 3, 3, 3], 2, &device).require_grad();
            let y = conv(leaf(X, 1, &device), weight.clone(), None, options());
            let z = conv(y.clone(), weight.clone(), None, options());
            let square = conv(weight.clone(), weight.clone(), None, options());
            let loss = y.powi_scalar(2).sum() + z.sum() + square.powi_scalar(2).sum();
            values(weight.grad(&loss.backward()).unwrap())
        };
        assert_close(&run(MEC), &run(BURN), 1e-5, format!("{device:?}"));
    }
}
