//! What the command `mec` writes with `--json` and `--csv`.
//!
//! Stable: fields may be added, none is renamed or taken away. All sizes are in bytes, all times in
//! seconds. JSON is one object of a type below; CSV has the rows, with the fields of the object that
//! they belong to in front and those of nested objects behind a dot (`predicted.peak`). What was not
//! measured is `null` in JSON and empty in CSV.

use serde::{Deserialize, Serialize};

use crate::paper::{LayerMemory, ResNet101};
use crate::{Backend, Convolution, DeviceMemory, Optimizer, Pass, StepMemory};

/// Where and how something was profiled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// The network.
    pub model: String,
    /// Channels, height and width of an image.
    pub image: [usize; 3],
    /// Burn's backend.
    pub backend: Backend,
    /// Inference or a training step.
    pub pass: Pass,
    /// What updates the parameters.
    pub optimizer: Optimizer,
    /// Threads of the CPU's kernels.
    pub threads: usize,
    /// The instruction set of this project's CPU kernels.
    pub instruction_set: String,
}

/// `mec profile`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    /// What was profiled.
    pub subject: Subject,
    /// One for each convolution and batch size.
    pub rows: Vec<ProfileRow>,
}

/// One convolution at one batch size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProfileRow {
    /// The convolution the network is made of.
    pub convolution: Convolution,
    /// Images in the batch.
    pub batch: usize,
    /// By formula.
    pub predicted: StepMemory,
    /// By the counting allocator or, on a graphics card, by the device's reports between the passes.
    pub measured: Option<StepMemory>,
    /// The device's report.
    pub device: Option<DeviceMemory>,
    /// Median time of a step.
    pub seconds: Option<f64>,
}

impl ProfileRow {
    /// How far the predicted peak is above the measured one, relative to that. A graphics card
    /// reports between the passes, when the workspace is given back, so there it is left out.
    pub fn error(&self) -> Option<f64> {
        let measured = self.measured?.peak as f64;
        let StepMemory { peak, workspace, .. } = self.predicted;
        let predicted = if self.device.is_some() { peak - workspace } else { peak };
        Some(predicted as f64 / measured - 1.0)
    }

    /// Images in a second.
    pub fn images_per_second(&self) -> Option<f64> {
        Some(self.batch as f64 / self.seconds?)
    }
}

/// `mec fit`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fit {
    /// What was profiled.
    pub subject: Subject,
    /// The memory a step may take.
    pub memory: u64,
    /// One for each convolution.
    pub rows: Vec<FitRow>,
}

/// The largest batch of one convolution.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FitRow {
    /// The convolution the network is made of.
    pub convolution: Convolution,
    /// The largest batch that fits by formula; 0 if none does.
    pub predicted_batch: usize,
    /// The peak of its step by formula.
    pub predicted_peak: u64,
    /// The largest batch that was measured to fit; 0 if none does.
    pub measured_batch: Option<usize>,
    /// The measured peak of its step; on a graphics card what the device has reserved.
    pub measured_peak: Option<u64>,
}

impl FitRow {
    /// The batch that was measured to fit or, if nothing was measured, the predicted one.
    pub fn batch(&self) -> usize {
        self.measured_batch.unwrap_or(self.predicted_batch)
    }
}

/// `mec layers`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Layers {
    /// Threads of the CPU's kernels.
    pub threads: usize,
    /// The instruction set of this project's CPU kernels.
    pub instruction_set: String,
    /// One for each layer.
    pub rows: Vec<LayerMemory>,
    /// The sums over ResNet-101, where the list is the paper's.
    pub resnet_101: Option<ResNet101>,
}
