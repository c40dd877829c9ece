//! Our convolution gives what Burn's gives, forward and backward, on every backend.

mod common;

use burn::tensor::ops::ConvOptions;
use burn::tensor::{DType, Device, Tensor};
use common::{BURN, Case, MEC, assert_close, devices, problem, random, tensor, values};
use mec_core::ConvOptions as Options;
use mec_core::testing::Problem;

/// Every option on its own and some together, small.
fn geometries() -> Vec<Problem> {
    let plain = Options::default;
    let pad = |h, w| Options { padding: [h, w], ..plain() };
    let stride = |stride| Options { stride, ..plain() };
    let dilation = |dilation| Options { dilation, ..plain() };
    let groups = |groups| Options { groups, ..plain() };
    vec![
        problem("plain", [2, 3, 7, 6], [4, 3, 3, 3], plain(), true),
        problem("no bias", [2, 3, 7, 6], [4, 3, 3, 3], plain(), false),
        problem("pointwise", [2, 5, 4, 4], [7, 5, 1, 1], plain(), true),
        problem("non-square", [1, 2, 9, 5], [3, 2, 4, 2], plain(), true),
        problem("padded", [2, 3, 5, 5], [4, 3, 3, 3], pad((1, 1), (2, 2)), true),
        problem("asymmetric", [2, 2, 5, 6], [3, 2, 3, 3], pad((0, 2), (3, 1)), true),
        problem("even kernel, same size", [1, 2, 6, 6], [2, 2, 2, 4], pad((0, 1), (1, 2)), true),
        problem("strided", [2, 3, 9, 8], [4, 3, 3, 3], stride([2, 3]), true),
        problem("dropped tail", [1, 2, 8, 10], [2, 2, 3, 3], stride([2, 4]), true),
        problem("stride beyond kernel", [1, 2, 9, 9], [2, 2, 2, 2], stride([3, 4]), true),
        problem("dilated", [2, 2, 9, 8], [3, 2, 3, 2], dilation([2, 3]), true),
        problem("grouped", [2, 6, 6, 6], [4, 3, 3, 3], groups(2), true),
        problem("depthwise", [2, 5, 6, 7], [5, 1, 3, 3], groups(5), true),
        problem(
            "depthwise, padded",
            [2, 5, 6, 7],
            [5, 1, 3, 3],
            Options { padding: [(1, 1); 2], ..groups(5) },
            true,
        ),
        problem("one channel, padded", [2, 1, 6, 7], [2, 1, 3, 3], pad((1, 1), (1, 1)), true),
        problem("depthwise, two each", [1, 3, 6, 6], [6, 1, 3, 3], groups(3), false),
        problem("kernel as large as the image", [2, 3, 4, 5], [4, 3, 4, 5], plain(), true),
        problem("one row", [2, 3, 1, 12], [4, 3, 1, 3], pad((0, 0), (1, 1)), true),
        problem(
            "everything",
            [2, 4, 11, 10],
            [6, 2, 3, 2],
            Options { stride: [2, 3], padding: [(2, 1), (0, 3)], dilation: [2, 3], groups: 2 },
            true,
        ),
    ]
}

#[test]
fn random_floats() {
    for device in devices() {
        for problem in geometries() {
            let case = Case::random(&problem);
            for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::F64, 1e-12)] {
                let what = format!("{problem:?} on {device:?} in {dtype:?}");
                let expected = case.run(BURN, &device, dtype);
                case.run(MEC, &device, dtype).assert_close(&expected, tolerance, &what);
                let y = case.forward(MEC, &device, dtype);
                assert_close(&y, &expected.y, tolerance, format!("{what}, without autodiff"));
            }
        }
    }
}

#[test]
fn small_integers_exactly() {
    for device in devices() {
        for problem in geometries() {
            let case = Case::integers(&problem);
            let expected = case.run(BURN, &device, DType::F32);
            assert_eq!(case.run(MEC, &device, DType::F32), expected, "{problem:?} on {device:?}");
        }
    }
}

/// burn-ndarray has no half precision. Rounded once by us, and on the way by Burn.
#[cfg(feature = "flex")]
#[test]
fn half_precision() {
    for problem in geometries() {
        let case = Case::random(&problem);
        for (dtype, tolerance) in [(DType::F16, 4e-3), (DType::BF16, 3e-2)] {
            let expected = case.run(BURN, &Device::flex(), dtype);
            let got = case.run(MEC, &Device::flex(), dtype);
            got.assert_close(&expected, tolerance, format!("{problem:?} in {dtype:?}"));
        }
    }
}

#[test]
fn empty_batch() {
    for device in devices() {
        let problem = problem("", [0, 3, 7, 6], [4, 3, 3, 3], Options::default(), true);
        let results = Case::random(&problem).run(MEC, &device, DType::F32);
        assert!(results.y.is_empty() && results.dx.is_empty());
        assert_eq!(results.dw, [0.0; 108]);
        assert_eq!(results.db, Some(vec![0.0; 4]));
    }
}

/// The operands as views: transposed, reversed, cut out and repeated.
#[test]
fn non_contiguous() {
    type Change = fn(Tensor<4>) -> Tensor<4>;
    let changes: [(&str, [usize; 4], Change); 5] = [
        ("channels last", [3, 5, 6, 4], |t| t.permute([0, 3, 1, 2])),
        ("transposed", [4, 3, 5, 6], |t| t.swap_dims(0, 1).swap_dims(2, 3)),
        ("flipped", [3, 4, 6, 5], |t| t.flip([1, 2, 3])),
        ("cut out", [5, 6, 9, 9], |t| t.slice([1..4, 2..6, 2..8, 3..8])),
        ("repeated", [1, 4, 1, 5], |t| t.expand([3, 4, 6, 5])),
    ];
    for device in devices() {
        let tracked = device.clone().autodiff();
        for (name, shape, change) in changes {
            let leaf = |seed, device: &Device| {
                let count = shape.iter().product();
                tensor(&random(count, seed), shape, device, DType::F32)
            };
            let what = format!("{name} on {device:?}");
            // The same shape serves as input and as weight: a correlation of one with the other.
            let run = |conv: common::Conv| {
                let x = leaf(1, &tracked).require_grad();
                let weight = leaf(2, &tracked).require_grad();
                let options = ConvOptions::new([1, 1], [2, 2], [1, 1], 1);
                let y = conv(change(x.clone()), change(weight.clone()), None, options);
                let (y, dy) = (y.clone(), leaf_like(&y));
                // A gradient that arrives permuted.
                let gradients = (y.clone().permute([3, 2, 1, 0]) * dy).sum().backward();
                let (dx, dw) = (x.grad(&gradients).unwrap(), weight.grad(&gradients).unwrap());
                [values(y), values(dx), values(dw)]
            };
            for (got, expected) in run(MEC).iter().zip(run(BURN)) {
                assert_close(got, &expected, 1e-5, &what);
            }
        }
    }
}

/// Random values for the permuted form of `y`.
fn leaf_like(y: &Tensor<4>) -> Tensor<4> {
    let [a, b, c, d] = y.dims();
    tensor(&random(a * b * c * d, 3), [d, c, b, a], &y.device(), DType::F32)
}

/// A bias that is not contiguous.
#[test]
fn strided_bias() {
    for device in devices() {
        let case = Case::random(&geometries()[0]);
        let bias = || {
            let wide = tensor(&random(12, 5), [4, 3], &device, DType::F32);
            wide.swap_dims(0, 1).slice([1..2, 0..4]).squeeze::<1>().flip([0])
        };
        let run = |conv: common::Conv| {
            let x = tensor(&case.x, case.problem.input, &device, DType::F32);
            let weight = tensor(&case.weight, case.problem.weight, &device, DType::F32);
            values(conv(x, weight, Some(bias()), case.options()))
        };
        assert_close(&run(MEC), &run(BURN), 1e-5, format!("{device:?}"));
    }
}

/// Burn's own convolution dequantizes what it is given; so does ours.
#[test]
fn quantized() {
    for device in devices() {
        let case = Case::random(&geometries()[0]);
        let run = |conv: common::Conv| {
            let scheme = device.settings().quantization.scheme;
            let x = tensor(&case.x, case.problem.input, &device, DType::F32);
            let weight = tensor(&case.weight, case.problem.weight, &device, DType::F32);
            let (x, weight) = (x.quantize_dynamic(&scheme), weight.quantize_dynamic(&scheme));
            assert!(matches!(weight.dtype(), DType::QFloat(_)));
            values(conv(x, weight, None, case.options()))
        };
        assert_close(&run(MEC), &run(BURN), 1e-5, format!("{device:?}"));
    }
}

/// Not-a-number and infinity reach exactly the outputs they reach in Burn.
#[test]
fn specials_propagate() {
    let same =
        |a: f64, b: f64| if a.is_finite() { (a - b).abs() < 1e-4 } else { same_special(a, b) };
    for device in devices() {
        for problem in geometries() {
            for special in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                let mut in_x = Case::random(&problem);
                let (middle, last) = (in_x.x.len() / 2, in_x.x.len() - 1);
                in_x.x[middle] = special;
                in_x.x[last] = special;
                let mut in_weight = Case::random(&problem);
                let middle = in_weight.weight.len() / 2;
                in_weight.weight[middle] = special;
                in_weight.weight[0] = special;
                for (place, case) in [("x", in_x), ("weight", in_weight)] {
                    let expected = case.forward(BURN, &device, DType::F32);
                    let got = case.forward(MEC, &device, DType::F32);
                    for (i, (&got, &expected)) in got.iter().zip(&expected).enumerate() {
                        assert!(
                            same(got, expected),
                            "{problem:?} on {device:?}, {special} in {place}: \
                             y[{i}] is {got}, expected {expected}"
                        );
                    }
                }
            }
        }
    }
}

fn same_special(a: f64, b: f64) -> bool {
    a == b || (a.is_nan() && b.is_nan())
}
