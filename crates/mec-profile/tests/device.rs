//! The device's own report. Runs where there is a graphics card or a software one.
//!
//! A network without a product of matrices: some software drivers cannot compile Burn's kernels for
//! those.

use burn::tensor::{Device, DeviceKind, Distribution, Tensor};
use mec_profile::{PeakAlloc, profile_step};

#[global_allocator]
static ALLOC: PeakAlloc = PeakAlloc;

#[test]
fn what_is_in_use_and_what_is_reserved_are_kept_apart() {
    const FEATURES: usize = 1 << 16;
    let device = Device::wgpu(DeviceKind::DefaultDevice);
    let there = std::panic::catch_unwind(|| device.memory_pool_usage().is_some());
    if !there.unwrap_or(false) {
        println!("there is no device here");
        return;
    }
    let device = device.autodiff();
    let scale = Tensor::<1>::ones([FEATURES], &device).require_grad();
    let steps = profile_step(&[1, 8], |batch| {
        let x = Tensor::<2>::random([batch, FEATURES], Distribution::Default, &device);
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
