//! The device's own report. Runs where there is a graphics card or a software one.

use burn::tensor::{Device, DeviceKind, Distribution, Tensor};
use mec_profile::model::Model;
use mec_profile::predict::{Setup, step};
use mec_profile::{Backend, Convolution, PeakAlloc, measure_step, profile_step};

#[global_allocator]
static ALLOC: PeakAlloc = PeakAlloc;

/// One test: a report is on everything that the process has on the device.
#[test]
fn the_devices_report_is_taken() {
    let device = Device::wgpu(DeviceKind::DefaultDevice);
    any_step(&device.clone().autodiff());
    let text = "input = [2, 32, 32]\nlayers = [{ conv = { out = 16, kernel = 3, padding = 1 } }, \
                'relu', 'global-avg-pool', { linear = 4096 }]";
    let tiny = Model::parse("tiny", text).unwrap();
    for convolution in [Convolution::Mec, Convolution::Burn] {
        a_network(&tiny, convolution, &device);
    }
    // The example's: with ours, what its step holds is tensors that the training needs.
    a_network(&Model::built_in("cnn", None).unwrap(), Convolution::Mec, &device);
}

/// What is in use and what is reserved are kept apart.
fn any_step(device: &Device) {
    const FEATURES: usize = 1 << 16;
    let scale = Tensor::<1>::ones([FEATURES], device).require_grad();
    let steps = profile_step(&[1, 8], |batch| {
        let x = Tensor::<2>::random([batch, FEATURES], Distribution::Default, device);
        (x.clone() * scale.clone().unsqueeze() * x).mean()
    });
    for step in steps {
        println!("{step:?}");
        let batch_bytes = (step.batch * FEATURES * 4) as u64;
        let device = step.device.expect("the tensors are not the program's");
        assert_eq!(step.memory.peak, device.in_use);
        assert!(device.in_use <= device.reserved, "{device:?}");
        // The batch is kept for the gradient of the scale.
        assert!(step.memory.saved_activations >= batch_bytes, "{step:?}");
        assert!(step.memory.gradients >= (FEATURES * 4) as u64, "{step:?}");
    }
}

/// What lives after each pass is what was predicted, but for what the device rounds up.
fn a_network(model: &Model, convolution: Convolution, device: &Device) {
    let setup = Setup { convolution, backend: Backend::Wgpu, ..Setup::default() };
    let predicted = step(model, 8, &setup);
    let measured = measure_step(model, 8, &setup, device, 1);
    println!("predicted {predicted:?}\nmeasured {measured:?}");
    let memory = measured.memory;
    for (name, predicted, measured) in [
        ("parameters", predicted.parameters, memory.parameters),
        ("optimizer", predicted.optimizer_state, memory.optimizer_state),
        ("gradients", predicted.gradients, memory.gradients),
        ("input", predicted.input, memory.input),
        ("saved", predicted.saved_activations, memory.saved_activations),
        ("peak between the passes", predicted.peak - predicted.workspace, memory.peak),
    ] {
        // A few tensors, each rounded up to the device's alignment.
        let rounding = 16 << 10;
        assert!(measured.abs_diff(predicted) <= rounding, "{convolution}, {name}: {measured}");
    }
    let device = measured.device.expect("the tensors are not the program's");
    assert!(predicted.peak <= device.reserved, "{predicted:?}, {device:?}");
}
