//! Drop-in for `burn::nn::conv`.

use std::fmt;

use burn::config::{Config, config_to_json};
use burn::module::{Content, DisplaySettings, Module, ModuleDisplay, Param};
use burn::nn::{Initializer, PaddingConfig2d, conv as burn_conv};
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::module::conv2d_with_activation;
use crate::{Activation, Algorithm, Settings};

/// Configuration of a [`Conv2d`]: that of Burn's, plus how the convolution is computed.
///
/// A saved configuration of Burn's loads into this one. While the added fields have their defaults
/// they are not written, so that the reverse holds too.
// By hand, not by Burn's derive: that has no way to say that a field may be missing from a file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Conv2dConfig {
    /// The number of channels: `[channels_in, channels_out]`.
    pub channels: [usize; 2],
    /// The size of the kernel: `[height, width]`.
    pub kernel_size: [usize; 2],
    /// The stride of the convolution.
    pub stride: [usize; 2],
    /// Spacing between kernel elements.
    pub dilation: [usize; 2],
    /// Number of independent blocks the channels are divided into.
    pub groups: usize,
    /// The padding: none, explicit on each of four sides, or `Same`, which keeps the size of the
    /// input at stride 1 and is asymmetric where the kernel is even.
    pub padding: PaddingConfig2d,
    /// If a bias is added to the output.
    pub bias: bool,
    /// How the parameters are initialised.
    pub initializer: Initializer,
    /// What is applied to the output.
    #[serde(default, skip_serializing_if = "is_default")]
    pub activation: Option<Activation>,
    /// Which implementation computes the convolution.
    #[serde(default, skip_serializing_if = "is_default")]
    pub algorithm: Algorithm,
    /// Most bytes one call may hold beside its inputs and results, over all threads together.
    #[serde(default, skip_serializing_if = "is_default")]
    pub workspace_limit: Option<usize>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Conv2dConfig {
    /// A convolution of `[channels_in, channels_out]` with a `[height, width]` kernel.
    ///
    /// Stride 1, no padding, dilation 1, one group, a bias, and Kaiming-uniform initial values.
    pub fn new(channels: [usize; 2], kernel_size: [usize; 2]) -> Self {
        burn_conv::Conv2dConfig::new(channels, kernel_size).into()
    }

    /// Sets the stride. Defaults to `[1, 1]`.
    pub fn with_stride(mut self, stride: [usize; 2]) -> Self {
        self.stride = stride;
        self
    }

    /// Sets the spacing between kernel elements. Defaults to `[1, 1]`.
    pub fn with_dilation(mut self, dilation: [usize; 2]) -> Self {
        self.dilation = dilation;
        self
    }

    /// Sets the number of groups. Defaults to 1.
    pub fn with_groups(mut self, groups: usize) -> Self {
        self.groups = groups;
        self
    }

    /// Sets the padding. Defaults to [`PaddingConfig2d::Valid`].
    pub fn with_padding(mut self, padding: PaddingConfig2d) -> Self {
        self.padding = padding;
        self
    }

    /// Sets whether a bias is added. Defaults to `true`.
    pub fn with_bias(mut self, bias: bool) -> Self {
        self.bias = bias;
        self
    }

    /// Sets the initializer. Defaults to Kaiming uniform with a gain of `1 / sqrt(3)`.
    pub fn with_initializer(mut self, initializer: Initializer) -> Self {
        self.initializer = initializer;
        self
    }

    /// Sets what is applied to the output, as part of the convolution. Defaults to `None`.
    ///
    /// It replaces the activation that would follow as a layer, and with it the memory for the output
    /// before the activation, which Burn keeps for the backward pass.
    pub fn with_activation(mut self, activation: Option<Activation>) -> Self {
        self.activation = activation;
        self
    }

    /// Sets the implementation. Defaults to [`Algorithm::Auto`].
    pub fn with_algorithm(mut self, algorithm: Algorithm) -> Self {
        self.algorithm = algorithm;
        self
    }

    /// Sets the limit on workspace, in bytes. Defaults to `None`, the implementation's own bound.
    ///
    /// A limit that a pass cannot work with makes that pass panic, before any work, with the
    /// smallest limit it would accept.
    pub fn with_workspace_limit(mut self, workspace_limit: Option<usize>) -> Self {
        self.workspace_limit = workspace_limit;
        self
    }

    /// Initialises a [`Conv2d`] with the values that Burn's `Conv2d` would get.
    ///
    /// # Panics
    ///
    /// If one of the channels is not divisible by the number of groups.
    pub fn init(&self, device: &Device) -> Conv2d {
        let conv = burn_conv::Conv2dConfig::from(self.clone().with_activation(None)).init(device);
        Conv2d {
            activation: self.activation,
            algorithm: self.algorithm,
            workspace_limit: self.workspace_limit,
            ..Conv2d::from(conv)
        }
    }
}

impl Config for Conv2dConfig {}

impl fmt::Display for Conv2dConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&config_to_json(self))
    }
}

impl From<burn_conv::Conv2dConfig> for Conv2dConfig {
    fn from(config: burn_conv::Conv2dConfig) -> Self {
        let burn_conv::Conv2dConfig {
            channels,
            kernel_size,
            stride,
            dilation,
            groups,
            padding,
            bias,
            initializer,
        } = config;
        Self {
            channels,
            kernel_size,
            stride,
            dilation,
            groups,
            padding,
            bias,
            initializer,
            activation: None,
            algorithm: Algorithm::default(),
            workspace_limit: None,
        }
    }
}

/// Leaves out how the convolution is computed.
///
/// # Panics
///
/// If there is an activation, which Burn's has not.
impl From<Conv2dConfig> for burn_conv::Conv2dConfig {
    fn from(config: Conv2dConfig) -> Self {
        assert_no_activation(config.activation);
        Self {
            channels: config.channels,
            kernel_size: config.kernel_size,
            stride: config.stride,
            dilation: config.dilation,
            groups: config.groups,
            padding: config.padding,
            bias: config.bias,
            initializer: config.initializer,
        }
    }
}

/// Convolution over images, in place of `burn::nn::conv::Conv2d`.
///
/// Created with [`Conv2dConfig`], or from Burn's with `From`, which keeps the parameters.
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct Conv2d {
    /// Tensor of shape `[channels_out, channels_in / groups, kernel_height, kernel_width]`.
    pub weight: Param<Tensor<4>>,
    /// Tensor of shape `[channels_out]`.
    pub bias: Option<Param<Tensor<1>>>,
    /// Stride of the convolution.
    pub stride: [usize; 2],
    /// Size of the kernel.
    pub kernel_size: [usize; 2],
    /// Spacing between kernel elements.
    pub dilation: [usize; 2],
    /// Number of independent blocks the channels are divided into.
    pub groups: usize,
    /// The padding configuration.
    #[module(skip)]
    pub padding: PaddingConfig2d,
    /// What is applied to the output.
    #[module(skip)]
    pub activation: Option<Activation>,
    /// Which implementation computes the convolution.
    #[module(skip)]
    pub algorithm: Algorithm,
    /// Most bytes one call may hold beside its inputs and results, over all threads together.
    #[module(skip)]
    pub workspace_limit: Option<usize>,
}

impl Conv2d {
    /// Convolves `input`, and applies the activation if there is one.
    ///
    /// See [`conv2d`](crate::module::conv2d).
    ///
    /// # Shapes
    ///
    /// - `input`: `[batch, channels_in, height, width]`
    /// - `output`: `[batch, channels_out, out_height, out_width]`
    ///
    /// # Panics
    ///
    /// If `input` does not have the channels of the weight, if the kernel is larger than the padded
    /// input, or if the workspace limit is below what the algorithm needs.
    pub fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        let [_, _, height, width] = input.dims();
        let padding = self.padding_of(height, width);
        let options =
            ConvOptions::new_with_padding(self.stride, padding, self.dilation, self.groups);
        let settings =
            Settings { algorithm: self.algorithm, workspace_limit: self.workspace_limit };
        // Parameters take their values when they are first read: in Burn's order, or the same seed
        // would give others.
        let weight = self.weight.val();
        let bias = self.bias.as_ref().map(|bias| bias.val());
        conv2d_with_activation(input, weight, bias, options, self.activation, settings)
    }

    /// Zeros (before, after) an input of this size, vertically and horizontally.
    fn padding_of(&self, height: usize, width: usize) -> [(usize, usize); 2] {
        let [kernel_h, kernel_w] = self.kernel_size;
        let [stride_h, stride_w] = self.stride;
        match self.padding {
            PaddingConfig2d::Valid => [(0, 0), (0, 0)],
            PaddingConfig2d::Explicit(top, left, bottom, right) => [(top, bottom), (left, right)],
            PaddingConfig2d::Same => {
                [same_padding(height, kernel_h, stride_h), same_padding(width, kernel_w, stride_w)]
            }
        }
    }
}

/// The padding that makes `ceil(input / stride)` outputs of an undilated kernel. What does not
/// divide by two goes to the end, as in Burn.
fn same_padding(input: usize, kernel: usize, stride: usize) -> (usize, usize) {
    let total = match input.div_ceil(stride) {
        0 => 0,
        output => ((output - 1) * stride + kernel).saturating_sub(input),
    };
    (total / 2, total - total / 2)
}

impl ModuleDisplay for Conv2d {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        DisplaySettings::new().with_new_line_after_attribute(false).optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        let [channels_out, group_channels_in, _, _] = self.weight.dims();
        let mut content = content
            .add_debug_attribute("ch_in", &(group_channels_in * self.groups))
            .add_debug_attribute("ch_out", &channels_out)
            .add_debug_attribute("stride", &self.stride)
            .add_debug_attribute("kernel_size", &self.kernel_size)
            .add_debug_attribute("dilation", &self.dilation)
            .add_debug_attribute("groups", &self.groups)
            .add_debug_attribute("padding", &self.padding);
        if let Some(activation) = self.activation {
            content = content.add_debug_attribute("activation", &activation);
        }
        if !is_default(&self.algorithm) {
            content = content.add_debug_attribute("algorithm", &self.algorithm);
        }
        if let Some(limit) = self.workspace_limit {
            content = content.add_debug_attribute("workspace_limit", &limit);
        }
        content.optional()
    }
}

impl From<burn_conv::Conv2d> for Conv2d {
    fn from(conv: burn_conv::Conv2d) -> Self {
        let burn_conv::Conv2d { weight, bias, stride, kernel_size, dilation, groups, padding } =
            conv;
        Self {
            weight,
            bias,
            stride,
            kernel_size,
            dilation,
            groups,
            padding,
            activation: None,
            algorithm: Algorithm::default(),
            workspace_limit: None,
        }
    }
}

/// Leaves out how the convolution is computed.
///
/// # Panics
///
/// If there is an activation, which Burn's has not.
impl From<Conv2d> for burn_conv::Conv2d {
    fn from(conv: Conv2d) -> Self {
        assert_no_activation(conv.activation);
        Self {
            weight: conv.weight,
            bias: conv.bias,
            stride: conv.stride,
            kernel_size: conv.kernel_size,
            dilation: conv.dilation,
            groups: conv.groups,
            padding: conv.padding,
        }
    }
}

fn assert_no_activation(activation: Option<Activation>) {
    assert!(
        activation.is_none(),
        "Burn's Conv2d has no activation: set it to None and apply {activation:?} after the layer"
    );
}
