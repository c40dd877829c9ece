//! The suite of problems every implementation is held to, through Burn's tensors: forward and all
//! gradients, exactly.

mod common;

use burn::tensor::DType;
use burn::tensor::Device;
use common::{Case, MEC, devices};
use mec_core::testing::{Problem, assert_same, expected, problems};

fn check(problem: &Problem, device: &Device) {
    let expected = expected::<f64>(problem);
    let got = Case::integers(problem).run(MEC, device, DType::F32);
    assert_same(problem, "y", &got.y, &expected.y);
    assert_same(problem, "dx", &got.dx, &expected.dx);
    assert_same(problem, "dw", &got.dw, &expected.dw);
    if let Some(db) = got.db {
        assert_same(problem, "db", &db, &expected.db);
    }
}

#[test]
fn suite() {
    for device in devices() {
        problems().iter().for_each(|problem| check(problem, &device));
    }
}

/// Every problem of which has kernels of its own to compile, which takes software Vulkan a second or
/// two: every fourth one, or with `MEC_SUITE_STEP=1` all of them.
#[cfg(feature = "wgpu")]
#[test]
fn suite_on_a_gpu() {
    let step = std::env::var("MEC_SUITE_STEP").ok().and_then(|step| step.parse().ok()).unwrap_or(4);
    let device = Device::wgpu(burn::tensor::DeviceKind::default());
    problems().iter().step_by(step).for_each(|problem| check(problem, &device));
}
