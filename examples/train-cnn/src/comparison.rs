//! A few training steps with each convolution, from the same seed and on the same images.

use std::time::{Duration, Instant};

use burn::data::dataloader::batcher::Batcher;
use burn::lr_scheduler::constant::ConstantLr;
use burn::optim::AdamConfig;
use burn::tensor::Device;
use burn::train::Learner;
use mec_profile::measure;

use crate::args::{Args, ConvKind};
use crate::data::{Batch, Data, ImageBatcher};
use crate::model::Model;
use crate::training::accuracy;

/// Training steps with each convolution.
pub const STEPS: usize = 20;

/// How far apart the two losses of one of the first [`EARLY`] steps may be, relative to their size.
///
/// Both compute the same sums in another order, so that they differ by a few rounding errors (1e-7).
/// The second loss already depends on every gradient of the first step: a wrong one shows here.
pub const EARLY_TOLERANCE: f64 = 1e-4;

/// Steps in which rounding has had no time to grow.
pub const EARLY: usize = 3;

/// How far apart the mean losses of all steps may be, relative to their size.
///
/// Rounding decides which of two equal values a max-pool takes and on which side of zero a ReLU
/// falls; where it decides otherwise for one of the two, the curves part for good. Over three seeds
/// and both backends single losses stayed within 5e-7 or parted by up to 4.5e-3; with 1500 images of seed 1, after
/// 3.0e-5 in the first steps, by 3.8e-2, and their means by 1.7e-5. A gradient that is wrong shows in the first
/// steps; the mean is for what does not train as fast.
pub const TOLERANCE: f64 = 2e-2;

/// What one convolution did.
pub struct Run {
    /// Loss of each step.
    pub losses: Vec<f64>,
    /// Median time of a step: forward, backward and the optimiser.
    pub step: Duration,
    /// Bytes that the steps take.
    pub memory: Memory,
    /// Accuracy of the trained network on the held-out images under this convolution.
    pub accuracy: f64,
}

/// Memory of training steps, as far as it can be measured where they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// On the CPU: the most that a step takes beyond the batch, the weights and the optimiser's state.
    StepPeak(usize),
    /// On a device with an allocator of its own: what that has reserved for all of training.
    DeviceReserved(usize),
}

impl Memory {
    pub fn bytes(self) -> usize {
        match self {
            Self::StepPeak(bytes) | Self::DeviceReserved(bytes) => bytes,
        }
    }
}

/// Both convolutions side by side.
pub struct Comparison {
    pub mec: Run,
    pub burn: Run,
}

impl Comparison {
    /// Trains a new network for [`STEPS`] steps with each convolution, and tests `trained` with each.
    pub fn run(args: &Args, data: &Data, trained: &Model) -> Self {
        let run = |kind| run(args, data, trained, kind);
        Self { mec: run(ConvKind::Mec), burn: run(ConvKind::Burn) }
    }

    /// The largest difference of two losses of the same step, among the first `steps`, relative to
    /// the larger one.
    pub fn difference(&self, steps: usize) -> f64 {
        let pairs = self.mec.losses.iter().zip(&self.burn.losses).take(steps);
        pairs.map(|(a, b)| (a - b).abs() / a.abs().max(b.abs())).fold(0.0, |most, difference| {
            // Not `f64::max`: a loss that is not a number must not pass for agreement.
            if most.is_nan() || difference <= most { most } else { difference }
        })
    }

    /// The difference of the mean losses of all steps, relative to the larger one.
    pub fn mean_difference(&self) -> f64 {
        let mean = |run: &Run| run.losses.iter().sum::<f64>() / run.losses.len() as f64;
        let (a, b) = (mean(&self.mec), mean(&self.burn));
        (a - b).abs() / a.abs().max(b.abs())
    }

    /// Whether the losses of the first steps are within [`EARLY_TOLERANCE`] of each other, and the means
    /// of all steps within [`TOLERANCE`].
    pub fn losses_agree(&self) -> bool {
        self.difference(EARLY) <= EARLY_TOLERANCE && self.mean_difference() <= TOLERANCE
    }
}

fn run(args: &Args, data: &Data, trained: &Model, kind: ConvKind) -> Run {
    let device = args.backend.device();
    let autodiff = device.clone().autodiff();
    device.seed(args.seed);
    let reserved = || device_reserved(&device);
    device.memory_cleanup();
    let reserved_before = reserved();
    let model = Model::new(kind, data.shape, &autodiff);
    let mut learner =
        Learner::new(model, AdamConfig::new().init(), ConstantLr::new(args.learning_rate));
    learner.lr_step();

    let (mut losses, mut times, mut peak_memory) = (vec![], vec![], 0);
    for (step, batch) in first_batches(data, args.batch_size.get(), &autodiff).enumerate() {
        let start = Instant::now();
        let (loss, memory) = measure(|| {
            let output = learner.train_step(batch);
            learner.optimizer_step(output.grads);
            output.item.loss.into_scalar::<f64>()
        });
        losses.push(loss);
        // The first step also draws the weights, makes the optimiser's state and wakes the threads.
        if step > 0 {
            times.push(start.elapsed());
            peak_memory = peak_memory.max(memory.peak);
        }
    }
    times.sort();
    let memory = match (reserved_before, reserved()) {
        (Some(before), Some(after)) => Memory::DeviceReserved(after.saturating_sub(before)),
        _ => Memory::StepPeak(peak_memory),
    };
    Run {
        losses,
        step: times[times.len() / 2],
        memory,
        accuracy: accuracy(&trained.clone().with_kind(kind), data, &device),
    }
}

/// Bytes that the device's allocator has reserved, if it has one.
fn device_reserved(device: &Device) -> Option<usize> {
    device.memory_pool_usage().map(|usage| usage.bytes_reserved as usize)
}

/// The first [`STEPS`] batches of the training images, which begin again where there are too few.
fn first_batches(data: &Data, size: usize, device: &Device) -> impl Iterator<Item = Batch> {
    let batcher = ImageBatcher::new(data);
    let mut images = data.train.iter().cycle();
    let size = size.min(data.train.len());
    (0..STEPS).map(move |_| batcher.batch(images.by_ref().take(size).cloned().collect(), device))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_losses(mec: &[f64], burn: &[f64]) -> Comparison {
        let run = |losses: &[f64]| Run {
            losses: losses.to_vec(),
            step: Duration::ZERO,
            memory: Memory::StepPeak(0),
            accuracy: 0.0,
        };
        Comparison { mec: run(mec), burn: run(burn) }
    }

    #[test]
    fn the_largest_relative_difference_counts() {
        let comparison = with_losses(&[2.0, 1.0, 0.4], &[2.0, 1.25, 0.5]);
        assert!((comparison.difference(STEPS) - 0.2).abs() < 1e-12);
        assert!((comparison.mean_difference() - 0.35 / 3.75).abs() < 1e-12);
        assert!(!comparison.losses_agree());
        assert!(with_losses(&[2.0, 1.0], &[2.0, 1.00009]).losses_agree());
        assert!(!with_losses(&[2.0, 1.0], &[2.0, 1.0002]).losses_agree());
        let late = |loss| with_losses(&[2.0, 1.0, 0.9, 0.8], &[2.0, 1.0, 0.9, loss]).losses_agree();
        assert!(late(0.85) && !late(0.9));
    }

    #[test]
    fn a_loss_that_is_not_a_number_is_no_agreement() {
        assert!(!with_losses(&[2.0, f64::NAN, 1.0], &[2.0, 1.0, 1.0]).losses_agree());
        assert!(!with_losses(&[f64::NAN; 2], &[f64::NAN; 2]).losses_agree());
        assert!(!with_losses(&[f64::INFINITY], &[f64::INFINITY]).losses_agree());
    }
}
