//! Measuring a step: by the counting allocator where the tensors are the program's, by the device's
//! own report where they are not.

use std::time::{Duration, Instant};

use burn::nn::loss::CrossEntropyLossConfig;
use burn::optim::{AdamConfig, GradientsParams, ModuleOptimizer, SgdConfig};
use burn::tensor::{Device, Distribution, Int, Tensor};

use crate::model::Model;
use crate::network::Network;
use crate::predict::Setup;
use crate::{DeviceMemory, Optimizer, Pass, PeakAlloc, StepMemory};

/// A step as it was measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// Images in the batch.
    pub batch: usize,
    /// Where the memory went. On a graphics card the peak is the largest of the device's reports, of
    /// which there is one after each pass.
    pub memory: StepMemory,
    /// The device's report, unless the tensors come from the program's allocator.
    pub device: Option<DeviceMemory>,
    /// Time of a step.
    pub time: Duration,
}

/// Where the bytes are counted.
pub(crate) enum Probe {
    Allocator,
    Device { device: Device, most: u64 },
}

impl Probe {
    /// # Panics
    ///
    /// If nobody counts: the device reports nothing, and [`PeakAlloc`] is not the program's global
    /// allocator.
    fn of(device: &Device) -> Self {
        if device.memory_pool_usage().is_some() {
            return Probe::Device { device: device.clone(), most: 0 };
        }
        assert!(
            PeakAlloc::is_installed(),
            "nothing is counted: make `mec_profile::PeakAlloc` the program's #[global_allocator]"
        );
        Probe::Allocator
    }

    /// Bytes live now, once everything that was asked for has been done.
    fn now(&mut self) -> u64 {
        match self {
            Probe::Allocator => PeakAlloc::current() as u64,
            Probe::Device { device, most } => {
                device.sync().expect("the device has done what was asked of it");
                let now = device.memory_pool_usage().unwrap_or_default().bytes_in_use;
                *most = (*most).max(now);
                now
            }
        }
    }

    /// Begins the peak anew.
    fn reset_peak(&mut self) {
        let now = self.now();
        match self {
            Probe::Allocator => PeakAlloc::reset_peak(),
            Probe::Device { most, .. } => *most = now,
        }
    }

    fn peak(&self) -> u64 {
        match self {
            Probe::Allocator => PeakAlloc::peak() as u64,
            Probe::Device { most, .. } => *most,
        }
    }

    /// The device's report on what was taken since `before`.
    fn report(&self, before: u64) -> Option<DeviceMemory> {
        let Probe::Device { device, most } = self else { return None };
        let usage = device.memory_pool_usage().unwrap_or_default();
        Some(DeviceMemory {
            in_use: most.saturating_sub(before),
            reserved: usage.bytes_reserved.saturating_sub(before),
        })
    }
}

/// Measures a training step of any Burn model, forward and backward, for each batch size.
///
/// `step` runs the model on a batch of the size it is given and returns the loss; the backward pass
/// follows by itself. It is called twice for each size, and the second time is measured. What is live
/// before, such as the model's parameters, is not counted; the batch is part of the saved activations.
///
/// ```
/// use burn::nn::conv::Conv2dConfig;
/// use burn::tensor::{Device, Tensor};
///
/// #[global_allocator]
/// static ALLOC: mec_profile::PeakAlloc = mec_profile::PeakAlloc;
///
/// let device = Device::flex().autodiff();
/// let conv = Conv2dConfig::new([3, 8], [3, 3]).init(&device);
/// let steps = mec_profile::profile_step(&[1, 8], |batch| {
///     conv.forward(Tensor::ones([batch, 3, 32, 32], &device)).mean()
/// });
/// assert_eq!(steps[1].batch, 8);
/// assert!(steps[1].memory.saved_activations >= 8 * 3 * 32 * 32 * 4);
/// assert!(steps[1].memory.peak > steps[0].memory.peak);
/// ```
///
/// # Panics
///
/// If the loss does not depend on a parameter that is trained. If the tensors come from the
/// program's allocator and [`PeakAlloc`] is not that: nothing would be counted.
pub fn profile_step(
    batch_sizes: &[usize],
    mut step: impl FnMut(usize) -> Tensor<1>,
) -> Vec<Measured> {
    let mut profile = |&batch| {
        // Threads start, kernels are chosen and parameters take their values at the first call.
        let loss = step(batch);
        let device = loss.device();
        drop(loss.backward());
        drop(loss);

        let mut probe = Probe::of(&device);
        probe.reset_peak();
        let before = probe.now();
        let start = Instant::now();
        let loss = step(batch);
        let outputs = bytes(&loss);
        let forward = probe.now();
        let gradients = loss.backward();
        drop(loss);
        let backward = probe.now();
        drop(gradients);
        let time = start.elapsed();
        let memory = StepMemory {
            saved_activations: forward.saturating_sub(before + outputs),
            gradients: backward.saturating_sub(before),
            outputs,
            ..StepMemory::default()
        };
        let peak = probe.peak() - before;
        let device = probe.report(before);
        Measured { batch, memory: memory.with_peak(peak), device, time }
    };
    batch_sizes.iter().map(&mut profile).collect()
}

/// Measures a step of `model` over `batch` images: the memory of the step that took most of
/// `repeats`, after one that is not measured, and their median time. What is still live when the
/// network and the optimizer are gone, such as the buffers of threads, is no part of it.
///
/// # Panics
///
/// If the tensors come from the program's allocator and [`PeakAlloc`] is not that.
pub fn measure_step(
    model: &Model,
    batch: usize,
    setup: &Setup,
    device: &Device,
    repeats: usize,
) -> Measured {
    match setup.pass {
        Pass::Forward => forward(model, batch, setup, device, repeats),
        Pass::Training => training(model, batch, setup, device, repeats),
    }
}

fn forward(
    model: &Model,
    batch: usize,
    setup: &Setup,
    device: &Device,
    repeats: usize,
) -> Measured {
    let mut probe = Probe::of(device);
    let base = probe.now();
    let network = Network::new(model, setup.convolution, device);
    let mut memory = StepMemory { parameters: probe.now() - base, ..StepMemory::default() };
    drop(network.forward(images(model, batch, device)));

    let mut repeated = Repeated::default();
    for _ in 0..repeats.max(1) {
        let before = probe.now();
        let images = images(model, batch, device);
        memory.input = probe.now() - before;
        probe.reset_peak();
        let start = Instant::now();
        let scores = network.forward(images);
        probe.now();
        repeated.add(start, &probe);
        memory.outputs = bytes(&scores);
    }
    drop(network);
    repeated.into_measured(batch, memory, probe, base)
}

fn training(
    model: &Model,
    batch: usize,
    setup: &Setup,
    device: &Device,
    repeats: usize,
) -> Measured {
    let device = device.clone().autodiff();
    let mut probe = Probe::of(&device);
    let base = probe.now();
    let mut network = Network::new(model, setup.convolution, &device);
    let mut memory = StepMemory { parameters: probe.now() - base, ..StepMemory::default() };
    let mut optimizer = match setup.optimizer {
        Optimizer::Adam => AdamConfig::new().init(),
        Optimizer::Sgd => SgdConfig::new().init(),
    };

    let mut repeated = Repeated::default();
    let mut at_rest = 0;
    for number in 0..=repeats.max(1) {
        at_rest = probe.now();
        let batch = (images(model, batch, &device), labels(model, batch, &device));
        memory.input = probe.now() - at_rest;
        probe.reset_peak();
        let start = Instant::now();
        let passes;
        (network, passes) = train(network, batch, &mut optimizer, &mut probe);
        // The first step makes the optimizer's state.
        if number > 0 {
            repeated.add(start, &probe);
            memory.outputs = passes.outputs;
            memory.saved_activations =
                passes.forward.saturating_sub(at_rest + memory.input + memory.outputs);
            memory.gradients = passes.backward.saturating_sub(at_rest + memory.outputs);
        }
    }
    drop(network);
    // Unlike the network, a step leaves the optimizer's state.
    let state = at_rest - memory.parameters;
    drop(optimizer);
    memory.optimizer_state = state.saturating_sub(probe.now());
    repeated.into_measured(batch, memory, probe, base)
}

/// What was live after each pass.
struct Passes {
    forward: u64,
    backward: u64,
    outputs: u64,
}

fn train(
    network: Network,
    (images, labels): (Tensor<4>, Tensor<1, Int>),
    optimizer: &mut ModuleOptimizer,
    probe: &mut Probe,
) -> (Network, Passes) {
    const LEARNING_RATE: f64 = 1e-4;
    let scores = network.forward(images);
    let loss = CrossEntropyLossConfig::new().init(&scores.device()).forward(scores.clone(), labels);
    let outputs = bytes(&scores) + bytes(&loss);
    let forward = probe.now();
    let gradients = GradientsParams::from_grads(loss.backward(), &network);
    let backward = probe.now();
    drop((scores, loss));
    let network = optimizer.step(LEARNING_RATE, network, gradients);
    probe.now();
    (network, Passes { forward, backward, outputs })
}

/// Peaks and times of the same step.
#[derive(Default)]
struct Repeated {
    peak: u64,
    times: Vec<Duration>,
}

impl Repeated {
    fn add(&mut self, start: Instant, probe: &Probe) {
        self.times.push(start.elapsed());
        self.peak = self.peak.max(probe.peak());
    }

    fn into_measured(
        mut self,
        batch: usize,
        memory: StepMemory,
        mut probe: Probe,
        base: u64,
    ) -> Measured {
        let device = probe.report(base);
        // Threads keep buffers from their first use on, which are no part of a step.
        let base = base.max(probe.now());
        self.times.sort();
        Measured {
            batch,
            memory: memory.with_peak(self.peak - base),
            device,
            time: self.times[self.times.len() / 2],
        }
    }
}

fn images(model: &Model, batch: usize, device: &Device) -> Tensor<4> {
    let [channels, height, width] = model.input;
    Tensor::random([batch, channels, height, width], Distribution::Default, device)
}

fn labels(model: &Model, batch: usize, device: &Device) -> Tensor<1, Int> {
    Tensor::arange(0..batch as i64, device).remainder_scalar(model.classes() as i64)
}

fn bytes<const D: usize>(tensor: &Tensor<D>) -> u64 {
    4 * tensor.dims().iter().product::<usize>() as u64
}
