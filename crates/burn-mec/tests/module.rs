//! The module is a drop-in for Burn's: configuration, initial values, display, records, panics.
//! Its initial values have a file of their own.

mod common;

use burn::config::Config;
use burn::module::Module;
use burn::nn::{Initializer, PaddingConfig2d, conv as burn_conv};
use burn::store::ModuleRecord;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{DType, Device, Tensor};
use burn_mec::nn::conv::{Conv2d, Conv2dConfig};
use burn_mec::{Activation, Algorithm, Settings};
use common::{
    MEC, assert_close, configs, devices, panic_message, random, tensor, values, weights_of,
};

fn input(channels: usize, device: &Device) -> Tensor<4> {
    tensor(&random(2 * channels * 63, 7), [2, channels, 9, 7], device, DType::F32)
}

#[test]
fn forward_equals_burns() {
    for device in devices() {
        for config in configs() {
            let theirs = config.init(&device);
            let ours = Conv2d::from(theirs.clone());
            let x = input(config.channels[0], &device);
            let (got, expected) = (ours.forward(x.clone()), theirs.forward(x));
            assert_eq!(got.dims(), expected.dims(), "{config}");
            assert_close(&values(got), &values(expected), 1e-5, &config);
        }
    }
}

#[test]
fn builder_and_defaults() {
    let ours = Conv2dConfig::new([4, 6], [3, 2])
        .with_stride([2, 1])
        .with_dilation([1, 2])
        .with_groups(2)
        .with_padding(PaddingConfig2d::Same)
        .with_bias(false)
        .with_initializer(Initializer::Ones);
    let theirs = burn_conv::Conv2dConfig::new([4, 6], [3, 2])
        .with_stride([2, 1])
        .with_dilation([1, 2])
        .with_groups(2)
        .with_padding(PaddingConfig2d::Same)
        .with_bias(false)
        .with_initializer(Initializer::Ones);
    assert_eq!(ours.to_string(), theirs.to_string());
    let (ours, theirs) =
        (Conv2dConfig::new([3, 8], [3, 3]), burn_conv::Conv2dConfig::new([3, 8], [3, 3]));
    assert_eq!(ours.to_string(), theirs.to_string());
    assert_eq!((ours.algorithm, ours.workspace_limit), (Algorithm::Auto, None));
}

#[test]
fn configurations_load_into_each_other() {
    for theirs in configs() {
        let json = theirs.to_string();
        let ours = Conv2dConfig::load_binary(json.as_bytes()).unwrap();
        assert_eq!((ours.algorithm, ours.workspace_limit), (Algorithm::Auto, None));
        assert_eq!(burn_conv::Conv2dConfig::from(ours.clone()).to_string(), json);
        let back = burn_conv::Conv2dConfig::load_binary(ours.to_string().as_bytes()).unwrap();
        assert_eq!(back.to_string(), json);
    }
}

#[test]
fn added_fields_survive_a_file() {
    let config = Conv2dConfig::new([3, 8], [3, 3])
        .with_algorithm(Algorithm::Paper)
        .with_workspace_limit(Some(1 << 16))
        .with_activation(Some(Activation::Relu));
    let loaded: Conv2dConfig = serde_json::from_str(&config.to_string()).unwrap();
    assert_eq!(loaded.algorithm, Algorithm::Paper);
    assert_eq!(loaded.workspace_limit, Some(1 << 16));
    assert_eq!(loaded.activation, Some(Activation::Relu));
    let conv = loaded.init(&devices()[0]);
    assert_eq!(conv.activation, Some(Activation::Relu));
    assert_eq!(conv.algorithm, Algorithm::Paper);
    assert_eq!(conv.workspace_limit, Some(1 << 16));
}

#[test]
fn display_equals_burns() {
    let device = &devices()[0];
    for config in configs() {
        let theirs = config.init(device);
        let ours = Conv2d::from(theirs.clone());
        assert_eq!(ours.to_string(), theirs.to_string());
    }
    let conv = Conv2dConfig::new([5, 1], [5, 5])
        .with_activation(Some(Activation::Relu))
        .with_algorithm(Algorithm::Strip)
        .with_workspace_limit(Some(4096))
        .init(device);
    assert_eq!(
        conv.to_string(),
        "Conv2d {ch_in: 5, ch_out: 1, stride: [1, 1], kernel_size: [5, 5], dilation: [1, 1], \
         groups: 1, padding: Valid, activation: Relu, algorithm: Strip, workspace_limit: 4096, params: 126}"
    );
}

/// Burn's module has no place for it, and without it would compute something else.
#[test]
fn an_activation_does_not_get_lost() {
    let config = Conv2dConfig::new([3, 8], [3, 3]).with_activation(Some(Activation::Relu));
    let conv = config.init(&devices()[0]);
    let messages = [
        panic_message(|| burn_conv::Conv2dConfig::from(config.clone())),
        panic_message(|| burn_conv::Conv2d::from(conv.clone())),
    ];
    for message in messages {
        assert!(message.contains("no activation") && message.contains("Relu"), "{message}");
    }
    let without = Conv2d { activation: None, ..conv };
    assert_eq!(burn_conv::Conv2d::from(without).weight.dims(), [8, 3, 3, 3]);
}

/// Our module and Burn's inside a model, as users have them.
#[derive(Module, Debug)]
struct Ours {
    conv: Conv2d,
}

#[derive(Module, Debug)]
struct Theirs {
    conv: burn_conv::Conv2d,
}

#[test]
fn records_load_into_each_other() {
    for device in devices() {
        for config in configs() {
            let fresh = || Ours { conv: Conv2dConfig::from(config.clone()).init(&device) };
            let theirs = Theirs { conv: config.init(&device) };
            let expected = weights_of(&theirs.conv);
            let bytes = theirs.into_record().into_bytes().unwrap();
            let ours = fresh().load_record(ModuleRecord::from_bytes(bytes).unwrap());
            assert_eq!(weights_of(&ours.conv.into()), expected, "{config}: Burn's into ours");

            let ours = fresh();
            let expected = weights_of(&ours.conv.clone().into());
            let bytes = ours.into_record().into_bytes().unwrap();
            let theirs = Theirs { conv: config.init(&device) };
            let theirs = theirs.load_record(ModuleRecord::from_bytes(bytes).unwrap());
            assert_eq!(weights_of(&theirs.conv), expected, "{config}: ours into Burn's");
        }
    }
}

#[test]
fn loading_a_record_keeps_the_settings() {
    let device = &devices()[0];
    let config = Conv2dConfig::new([3, 8], [3, 3]).with_workspace_limit(Some(1 << 20));
    let record = config.init(device).into_record();
    assert_eq!(record.len(), 2);
    assert_eq!(config.init(device).load_record(record).workspace_limit, Some(1 << 20));
}

#[test]
fn conversion_keeps_the_parameters() {
    for device in devices() {
        let theirs = configs()[0].init(&device);
        let ids = |conv: &burn_conv::Conv2d| (conv.weight.id, conv.bias.as_ref().unwrap().id);
        let (expected, expected_ids) = (weights_of(&theirs), ids(&theirs));
        let ours = Conv2d::from(theirs);
        assert_eq!((ours.weight.id, ours.bias.as_ref().unwrap().id), expected_ids);
        let back = burn_conv::Conv2d::from(ours);
        assert_eq!(ids(&back), expected_ids);
        assert_eq!(weights_of(&back), expected);
    }
}

#[test]
fn gradients_reach_the_parameters() {
    for device in devices() {
        let device = device.autodiff();
        let theirs = configs()[2].init(&device);
        let ours = Conv2d::from(theirs.clone());
        let x = input(4, &device);
        let ours_grad = ours.forward(x.clone()).powi_scalar(2).sum().backward();
        let theirs_grad = theirs.forward(x).powi_scalar(2).sum().backward();
        let got = values(ours.weight.grad(&ours_grad).unwrap());
        let expected = values(theirs.weight.grad(&theirs_grad).unwrap());
        assert_close(&got, &expected, 1e-5, format!("{device:?}"));
    }
}

#[test]
fn algorithms_agree() {
    for device in devices() {
        let theirs = configs()[0].init(&device);
        let x = input(3, &device);
        let expected = values(theirs.forward(x.clone()));
        for algorithm in [Algorithm::Auto, Algorithm::Strip, Algorithm::Paper] {
            let ours = Conv2d { algorithm, ..theirs.clone().into() };
            assert_close(&values(ours.forward(x.clone())), &expected, 1e-5, ours);
        }
    }
}

#[test]
fn panics_equal_burns() {
    let device = &devices()[0];
    // Channels that do not divide into groups.
    for (channels, groups) in [([1, 4], 4), ([4, 6], 4)] {
        let theirs = burn_conv::Conv2dConfig::new(channels, [1, 1]).with_groups(groups);
        let ours = Conv2dConfig::from(theirs.clone());
        assert_eq!(panic_message(|| ours.init(device)), panic_message(|| theirs.init(device)));
    }
    // An input with other channels than the weight.
    let theirs = burn_conv::Conv2dConfig::new([5, 3], [3, 3]).init(device);
    let ours = Conv2d::from(theirs.clone());
    let message = panic_message(|| ours.forward(input(4, device)));
    assert!(message.contains("got: 4, expected: 5"), "{message}");
    assert_eq!(message, panic_message(|| theirs.forward(input(4, device))));
    // A stride of zero.
    let theirs = burn_conv::Conv2dConfig::new([4, 3], [3, 3]).with_stride([0, 1]).init(device);
    let ours = Conv2d::from(theirs.clone());
    assert_eq!(
        panic_message(|| ours.forward(input(4, device))),
        panic_message(|| theirs.forward(input(4, device)))
    );
}

/// What Burn fails at somewhere inside a backend, told in a sentence.
#[test]
fn panics_say_what_is_wrong() {
    let device = &devices()[0];
    let zeros = |shape| Tensor::<4>::zeros(shape, device);
    let options = |groups| ConvOptions::new([1, 1], [0, 0], [1, 1], groups);
    let conv2d = MEC;
    let message = |run: &dyn Fn() -> Tensor<4>| panic_message(run);

    let too_large = message(&|| conv2d(zeros([1, 2, 3, 3]), zeros([3, 2, 4, 3]), None, options(1)));
    assert_eq!(
        too_large,
        "conv2d: along the height, the dilated kernel spans 4 but the padded input only 3"
    );
    let groups = message(&|| conv2d(zeros([1, 4, 3, 3]), zeros([3, 2, 3, 3]), None, options(2)));
    assert_eq!(groups, "conv2d: 3 output channels cannot be divided into 2 groups");
    let bias = Tensor::<1>::zeros([2], device);
    let bias = message(&|| {
        conv2d(zeros([1, 2, 3, 3]), zeros([3, 2, 3, 3]), Some(bias.clone()), options(1))
    });
    assert_eq!(bias, "conv2d: the bias has 2 elements, but the weight has 3 output channels");
    let dtype = message(&|| {
        let weight = zeros([3, 2, 3, 3]).cast(DType::F64);
        conv2d(zeros([1, 2, 3, 3]), weight, None, options(1))
    });
    assert_eq!(dtype, "conv2d: the input is F32, but the weight is F64");
}

/// The settings reach the kernels, whose refusal becomes a panic.
#[test]
fn a_limit_that_cannot_be_met_panics() {
    let device = &devices()[0];
    let settings = Settings { workspace_limit: Some(1), ..Settings::default() };
    let geometry = mec_core::Geometry::new([2, 4, 9, 7], [3, 4, 3, 3], &Default::default());
    let (x, weight) = ([0.0f32; 504], [0.0f32; 108]);
    let refusal = mec_core::forward(
        &geometry.unwrap(),
        &settings,
        &mec_core::View::contiguous(&x, [2, 4, 9, 7]).unwrap(),
        &mec_core::View::contiguous(&weight, [3, 4, 3, 3]).unwrap(),
        None,
    )
    .unwrap_err();
    let conv = Conv2dConfig::new([4, 3], [3, 3]).with_workspace_limit(Some(1)).init(device);
    let message = panic_message(|| conv.forward(input(4, device)));
    assert_eq!(message, format!("conv2d: {refusal}"));
}
