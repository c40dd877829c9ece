//! The module starts from the values that Burn's starts from.
//!
//! One test in a binary of its own: all threads of a process share a device's seed.

mod common;

use burn_mec::nn::conv::Conv2dConfig;
use common::{configs, devices, weights_of};

#[test]
fn same_initial_values_from_the_same_seed() {
    for device in devices() {
        for config in configs() {
            device.seed(42);
            let theirs = weights_of(&config.init(&device));
            device.seed(42);
            let ours = weights_of(&Conv2dConfig::from(config.clone()).init(&device).into());
            assert_eq!(ours, theirs, "{config}");
        }
    }

    // Parameters are drawn when they are first read, which may be in the forward pass.
    for device in devices() {
        let config = burn::nn::conv::Conv2dConfig::new([3, 5], [3, 3]);
        let x = burn::tensor::Tensor::<4>::ones([2, 3, 6, 6], &device);
        device.seed(42);
        let theirs = config.init(&device).forward(x.clone()).into_data();
        device.seed(42);
        let ours = Conv2dConfig::from(config).init(&device).forward(x).into_data();
        ours.assert_approx_eq::<f32>(&theirs, burn::tensor::Tolerance::default());
    }
}
