//! The predicted peak of a training step is within 5 % of the measured one.
//!
//! One test in its own program: the counts are of the whole process. Run with `--release`. Networks
//! for large images are given small ones, so that the test takes a minute or two: the sizes change,
//! the rules do not.

use burn::tensor::Device;
use mec_profile::model::Model;
use mec_profile::predict::{Setup, step};
use mec_profile::{Backend, Convolution, Optimizer, PeakAlloc, measure_step};

#[global_allocator]
static ALLOC: PeakAlloc = PeakAlloc;

/// How far the prediction may be off, relative to the measurement.
const TOLERANCE: f64 = 0.05;

/// Steps of which the one that took most is taken, where a single one takes less than was predicted.
const MOST_STEPS: usize = 16;

/// Networks, the size of their images, and batch sizes.
const CASES: [(&str, Option<usize>, &[usize]); 7] = [
    ("cnn", None, &[1, 8, 64]),
    ("lenet5", None, &[1, 2, 8, 64]),
    ("cifar", None, &[1, 4, 64]),
    ("vgg11", Some(32), &[1, 64]),
    ("resnet18", Some(64), &[1, 16, 64]),
    ("resnet101", Some(32), &[1, 64]),
    ("mobilenet", Some(64), &[1, 16, 64]),
];

#[test]
fn the_peak_of_a_training_step_is_predicted() {
    let mut wrong = vec![];
    let mut check = |model: &Model, batch, setup: Setup| {
        // Burn means to drop ndarray after 0.22; until then it is one of its two CPU backends.
        #[allow(deprecated)]
        let device = match setup.backend {
            Backend::Ndarray => Device::ndarray(),
            _ => Device::flex(),
        };
        let predicted = step(model, batch, &setup);
        // One thread may be done before another has started and taken memory, on a loaded machine more
        // often: what was predicted is the most that a step takes.
        let measure = |steps| measure_step(model, batch, &setup, &device, steps).memory;
        let error_of = |peak: u64| predicted.peak as f64 / peak as f64 - 1.0;
        let mut measured = measure(1);
        if error_of(measured.peak) > TOLERANCE {
            measured = measure(MOST_STEPS);
        }
        let error = error_of(measured.peak);
        let Setup { convolution, backend, pass, .. } = setup;
        let line = format!(
            "{:<10} {backend:<7} {convolution:<6} {pass} batch {batch:>2}: {:+.1} %",
            model.name,
            100.0 * error
        );
        println!("{line}\n    predicted {predicted:?}\n    measured  {measured:?}");
        if error.abs() > TOLERANCE {
            wrong.push(line);
        }
    };
    for (name, size, batches) in CASES {
        let model = Model::built_in(name, size).unwrap();
        for backend in [Backend::Flex, Backend::Ndarray] {
            for convolution in [Convolution::Mec, Convolution::Burn] {
                // burn-ndarray's gradient in the input takes minutes where others take seconds.
                let slow = (backend, convolution) == (Backend::Ndarray, Convolution::Burn);
                let most = if slow && model.input[0] == 3 { 4 } else { 64 };
                for &batch in batches.iter().filter(|&&batch| batch <= most) {
                    check(&model, batch, Setup { convolution, backend, ..Setup::default() });
                }
            }
        }
    }
    // The yardsticks, the other optimizer and inference.
    for (name, size) in [("cifar", None), ("resnet18", Some(64))] {
        let model = Model::built_in(name, size).unwrap();
        for convolution in [Convolution::Im2col, Convolution::Paper] {
            check(&model, 8, Setup { convolution, ..Setup::default() });
        }
        check(&model, 8, Setup { optimizer: Optimizer::Sgd, ..Setup::default() });
    }
    assert!(wrong.is_empty(), "off by more than 5 %:\n{}", wrong.join("\n"));
}
