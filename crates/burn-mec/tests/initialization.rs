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
}
