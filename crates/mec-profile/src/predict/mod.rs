//! What a step of a network should take, before it is run.
//!
//! A prediction goes through the step as Burn does, layer by layer and back, with sizes in place of
//! values: every tensor is made where Burn makes it, shared as Burn shares it and dropped where Burn
//! drops it, and every kernel holds the scratch memory that it is known to hold. What is most at once
//! is the predicted peak. Workspace of this project's convolutions is what their
//! [`Plan`](mec_core::Plan) says; that of Burn's own is read off Burn 0.22's sources.
//!
//! On the CPU backends a test holds the predicted peak of a training step within 5 % of the measured
//! one. On a graphics card the same tensors are live, but an allocator of pages and kernels that are
//! chosen at run time lie between, so that there the prediction is a lower bound of what is reserved.
//!
//! ```
//! use mec_profile::model::Model;
//! use mec_profile::predict::{Setup, step};
//! use mec_profile::{Convolution, Pass};
//!
//! let model = Model::built_in("cnn", None)?;
//! let peak = |convolution, batch| {
//!     let setup = Setup { convolution, pass: Pass::Training, ..Setup::default() };
//!     step(&model, batch, &setup).peak
//! };
//! assert!(peak(Convolution::Mec, 64) < peak(Convolution::Burn, 64));
//! # Ok::<(), mec_profile::Error>(())
//! ```

mod conv;
mod rules;
mod tape;

use crate::model::Model;
use crate::{Backend, Convolution, Optimizer, Pass, StepMemory};

/// How a step is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setup {
    /// The convolution the network is made of.
    pub convolution: Convolution,
    /// Where it runs.
    pub backend: Backend,
    /// What is done with a batch.
    pub pass: Pass,
    /// What updates the parameters in training.
    pub optimizer: Optimizer,
}

/// A training step with this project's convolution and Adam, on flex.
impl Default for Setup {
    fn default() -> Self {
        Self {
            convolution: Convolution::Mec,
            backend: Backend::Flex,
            pass: Pass::Training,
            optimizer: Optimizer::Adam,
        }
    }
}

/// The memory that a step of `model` over `batch` images should take.
///
/// The step is one of a longer training: the optimizer has its state already. Kernels of the CPU run
/// on as many threads as the current rayon pool has.
pub fn step(model: &Model, batch: usize, setup: &Setup) -> StepMemory {
    tape::step(model, batch, setup)
}

/// The largest batch up to `most` whose step should take at most `limit` bytes, or 0.
pub fn largest_batch(model: &Model, setup: &Setup, limit: u64, most: usize) -> usize {
    largest(most, |batch| step(model, batch, setup).peak <= limit)
}

/// The largest number up to `most` that `fits`, or 0: by doubling, then by halving what is left.
/// Whatever is smaller than a number that fits must fit too.
pub fn largest(most: usize, mut fits: impl FnMut(usize) -> bool) -> usize {
    let (mut good, mut step) = (0, 1);
    while good + step <= most && fits(good + step) {
        good += step;
        step *= 2;
    }
    let mut bad = (good + step).min(most + 1);
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        if fits(middle) { good = middle } else { bad = middle }
    }
    good
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_that_fits_is_found_in_few_questions() {
        for answer in [0, 1, 2, 3, 4, 5, 63, 64, 65, 99, 100] {
            let mut asked = 0;
            let found = largest(100, |n| {
                asked += 1;
                n <= answer
            });
            assert_eq!(found, answer);
            assert!(asked <= 16, "{asked} questions for {answer}");
        }
        assert_eq!(largest(0, |_| true), 0);
    }

    #[test]
    fn a_network_takes_its_parameters_three_times_under_adam() {
        let model = Model::built_in("lenet5", None).unwrap();
        let memory = step(&model, 4, &Setup::default());
        let parameters = 4 * model.parameters() as u64;
        // Weight and bias of two convolutions and three linear layers.
        let records = 10 * rules::RECORD_OF_A_PARAMETER;
        assert_eq!(memory.parameters, parameters + records);
        assert_eq!(memory.optimizer_state, 2 * parameters);
        assert_eq!(memory.gradients, parameters);
        assert_eq!(memory.input, 4 * (32 * 32 * 4 + 4));
        assert_eq!(memory.outputs, 4 * 10 * 4 + 4);
    }

    /// A plain block of convolution, ReLU and max-pool: the convolution's output, the ReLU's, the
    /// pooled one and a 32-bit index for each of its elements.
    #[test]
    fn a_block_saves_what_burn_saves() {
        let text = "input = [1, 8, 8]\nlayers = [{ conv = { out = 2, kernel = 3, padding = 1 } }, \
                    'relu', { max-pool = { kernel = 2, stride = 2 } }, { linear = 3 }]";
        let model = Model::parse("block", text).unwrap();
        let memory = step(&model, 5, &Setup { optimizer: Optimizer::Sgd, ..Setup::default() });
        let activation = 5 * 2 * 8 * 8;
        let rest = memory.saved_activations - 4 * (2 * activation + activation / 4 * 2);
        // The loss, and a record for each step: four layers, flattening and the loss.
        assert!(rest <= 4 * 5 * 3 * 4 + 6 * rules::RECORD_OF_A_STEP, "{memory:?}");
    }

    #[test]
    fn inference_saves_nothing() {
        let model = Model::built_in("resnet18", Some(32)).unwrap();
        let memory = step(&model, 2, &Setup { pass: Pass::Forward, ..Setup::default() });
        let StepMemory { optimizer_state, saved_activations, gradients, .. } = memory;
        assert_eq!((optimizer_state, saved_activations, gradients), (0, 0, 0));
        assert!(memory.workspace > 0);
    }
}
