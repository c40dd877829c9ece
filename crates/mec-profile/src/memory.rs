//! What is profiled, and where the memory goes.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A convolution to profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Convolution {
    /// Memory-efficient convolution, this project's.
    Mec,
    /// Burn's own.
    Burn,
    /// im2col: a matrix of every patch of an image, and one product. Forward; the gradients are
    /// those of [`Convolution::Mec`].
    Im2col,
    /// MEC as published: the lowered matrix of the whole batch. Forward; the gradients are those of
    /// [`Convolution::Mec`].
    Paper,
}

/// A backend of Burn to profile on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// burn-flex, on the CPU.
    Flex,
    /// burn-ndarray, on the CPU.
    Ndarray,
    /// burn-wgpu, on a graphics card.
    Wgpu,
}

impl Backend {
    /// Whether the tensors come from the program's allocator.
    pub fn is_cpu(self) -> bool {
        self != Backend::Wgpu
    }
}

/// An optimizer to train with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Optimizer {
    /// Adam: two moments for each parameter.
    Adam,
    /// Gradient descent without momentum, which has no state.
    Sgd,
}

/// What is done with a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pass {
    /// Inference: the scores of a batch.
    Forward,
    /// A training step: loss, gradients and the optimizer's update.
    Training,
}

macro_rules! named {
    ($type:ident: $($variant:ident => $name:literal),+) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self { $($type::$variant => $name),+ })
            }
        }
    };
}
named!(Convolution: Mec => "mec", Burn => "burn", Im2col => "im2col", Paper => "paper");
named!(Backend: Flex => "flex", Ndarray => "ndarray", Wgpu => "wgpu");
named!(Optimizer: Adam => "adam", Sgd => "sgd");
named!(Pass: Forward => "forward", Training => "training");

/// Where the memory of a step goes, in bytes.
///
/// Each category is what is held at rest: parameters and optimizer state before the step, saved
/// activations and outputs after the forward pass, gradients after the backward pass. Saved
/// activations and gradients are not held at the same time, but one becomes the other, so
///
/// ```text
/// peak = parameters + optimizer state + input + outputs
///      + the larger of saved activations and gradients + workspace
/// ```
///
/// which says what workspace is: whatever else was live at the peak. That is the scratch memory of
/// kernels, tensors on their way from one layer to the next, and the gradients of activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StepMemory {
    /// Trained parameters and running statistics.
    pub parameters: u64,
    /// What the optimizer keeps between steps.
    pub optimizer_state: u64,
    /// The batch: images and labels.
    pub input: u64,
    /// What the forward pass leaves for the backward pass, beside the batch and the outputs.
    pub saved_activations: u64,
    /// Gradients of the parameters.
    pub gradients: u64,
    /// What the forward pass returns: scores and, in training, the loss.
    pub outputs: u64,
    /// The rest of the peak.
    pub workspace: u64,
    /// Most that was held at once.
    pub peak: u64,
}

impl StepMemory {
    /// Fills in `workspace` from the other categories and the peak.
    pub(crate) fn with_peak(mut self, peak: u64) -> Self {
        self.peak = peak;
        self.workspace = 0;
        self.workspace = peak.saturating_sub(self.stack().iter().map(|(_, bytes)| bytes).sum());
        self
    }

    /// The categories that make up the peak, in the order of a stack from the bottom up: of saved
    /// activations and gradients, the larger one.
    pub fn stack(&self) -> [(&'static str, u64); 7] {
        let saved = self.saved_activations >= self.gradients;
        let if_larger = |larger, bytes| if larger { bytes } else { 0 };
        [
            ("parameters", self.parameters),
            ("optimizer state", self.optimizer_state),
            ("gradients", if_larger(!saved, self.gradients)),
            ("input", self.input),
            ("saved activations", if_larger(saved, self.saved_activations)),
            ("outputs", self.outputs),
            ("workspace", self.workspace),
        ]
    }
}

/// What a graphics card reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceMemory {
    /// Most bytes that were in use when the forward pass, the backward pass or the step had ended.
    pub in_use: u64,
    /// Bytes that the device's allocator has taken from the driver by the end, for tensors, for what
    /// the kernels took in between, and for reuse.
    pub reserved: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stack_adds_up_to_the_peak() {
        let memory = StepMemory {
            parameters: 10,
            optimizer_state: 20,
            input: 1,
            saved_activations: 100,
            gradients: 10,
            outputs: 3,
            ..StepMemory::default()
        };
        let memory = memory.with_peak(150);
        assert_eq!(memory.workspace, 16);
        assert_eq!(memory.stack().iter().map(|(_, bytes)| bytes).sum::<u64>(), 150);
    }
}
