//! What is convolved: user options resolved once into validated sizes.

use crate::Error;

/// Options of a 2-D convolution, as a user states them. Height comes first everywhere.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ConvOptions {
    /// Step between output positions.
    pub stride: [usize; 2],
    /// Zeros added (before, after) the input along each axis.
    pub padding: [(usize, usize); 2],
    /// Step between kernel elements.
    pub dilation: [usize; 2],
    /// Number of independent blocks the channels are divided into.
    pub groups: usize,
}

impl Default for ConvOptions {
    fn default() -> Self {
        Self { stride: [1, 1], padding: [(0, 0); 2], dilation: [1, 1], groups: 1 }
    }
}

/// One spatial axis of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Axis {
    /// Input positions.
    pub input: usize,
    /// Kernel elements.
    pub kernel: usize,
    /// Step between output positions.
    pub stride: usize,
    /// Zeros before the input.
    pub pad_before: usize,
    /// Zeros after the input.
    pub pad_after: usize,
    /// Step between kernel elements.
    pub dilation: usize,
    /// Output positions.
    pub output: usize,
}

impl Axis {
    fn new(
        name: &'static str,
        input: usize,
        kernel: usize,
        stride: usize,
        (pad_before, pad_after): (usize, usize),
        dilation: usize,
    ) -> Result<Self, Error> {
        let nonzero =
            |value: usize, what| if value == 0 { Err(Error::Zero { what }) } else { Ok(()) };
        let too_large = Error::TooLarge { what: "padded input" };
        let [kernel_name, stride_name, dilation_name] = match name {
            "height" => ["kernel height", "stride height", "dilation height"],
            _ => ["kernel width", "stride width", "dilation width"],
        };
        nonzero(kernel, kernel_name)?;
        nonzero(stride, stride_name)?;
        nonzero(dilation, dilation_name)?;
        let extent = dilation
            .checked_mul(kernel - 1)
            .and_then(|e| e.checked_add(1))
            .filter(|&e| e <= isize::MAX as usize)
            .ok_or(too_large.clone())?;
        let padded = input
            .checked_add(pad_before)
            .and_then(|p| p.checked_add(pad_after))
            .filter(|&p| p <= isize::MAX as usize)
            .ok_or(too_large)?;
        if extent > padded {
            return Err(Error::KernelTooLarge { axis: name, extent, padded });
        }
        Ok(Self {
            input,
            kernel,
            stride,
            pad_before,
            pad_after,
            dilation,
            output: (padded - extent) / stride + 1,
        })
    }

    /// Input positions a kernel covers: `dilation * (kernel - 1) + 1`.
    pub fn extent(&self) -> usize {
        self.dilation * (self.kernel - 1) + 1
    }

    /// Input positions with the padding counted.
    pub fn padded(&self) -> usize {
        self.pad_before + self.input + self.pad_after
    }
}

/// A validated convolution problem: every size known, consistent and addressable.
///
/// ```
/// use mec_core::{ConvOptions, Geometry};
/// let options = ConvOptions { padding: [(1, 1); 2], ..Default::default() };
/// let geometry = Geometry::new([8, 3, 32, 32], [64, 3, 3, 3], &options)?;
/// assert_eq!(geometry.output_shape(), [8, 64, 32, 32]);
/// # Ok::<(), mec_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Geometry {
    /// Images.
    pub batch: usize,
    /// Channels of the input, over all groups.
    pub channels_in: usize,
    /// Channels of the output, over all groups.
    pub channels_out: usize,
    /// Independent blocks of channels.
    pub groups: usize,
    /// The vertical axis.
    pub height: Axis,
    /// The horizontal axis.
    pub width: Axis,
}

impl Geometry {
    /// Resolves `options` for an input `[batch, channels_in, height, width]` and a weight
    /// `[channels_out, channels_in / groups, kernel_height, kernel_width]`.
    ///
    /// # Errors
    ///
    /// Zero kernel sizes, strides, dilations or groups; channels that do not match or do not
    /// divide; a kernel larger than the padded input; tensors beyond the address space.
    pub fn new(
        input: [usize; 4],
        weight: [usize; 4],
        options: &ConvOptions,
    ) -> Result<Self, Error> {
        let [batch, channels_in, in_h, in_w] = input;
        let [channels_out, per_group, kernel_h, kernel_w] = weight;
        let groups = options.groups;
        if groups == 0 {
            return Err(Error::Zero { what: "groups" });
        }
        if per_group.checked_mul(groups) != Some(channels_in) {
            return Err(Error::Channels { input: channels_in, per_group, groups });
        }
        if !channels_out.is_multiple_of(groups) {
            return Err(Error::Groups { channels_out, groups });
        }
        let [stride_h, stride_w] = options.stride;
        let [dilation_h, dilation_w] = options.dilation;
        let [pad_h, pad_w] = options.padding;
        let geometry = Self {
            batch,
            channels_in,
            channels_out,
            groups,
            height: Axis::new("height", in_h, kernel_h, stride_h, pad_h, dilation_h)?,
            width: Axis::new("width", in_w, kernel_w, stride_w, pad_w, dilation_w)?,
        };
        addressable(&input, "input")?;
        addressable(&weight, "weight")?;
        addressable(&geometry.output_shape(), "output")?;
        Ok(geometry)
    }

    /// `[batch, channels_in, height, width]`.
    pub fn input_shape(&self) -> [usize; 4] {
        [self.batch, self.channels_in, self.height.input, self.width.input]
    }

    /// `[channels_out, channels_in / groups, kernel_height, kernel_width]`.
    pub fn weight_shape(&self) -> [usize; 4] {
        [self.channels_out, self.channels_in / self.groups, self.height.kernel, self.width.kernel]
    }

    /// `[batch, channels_out, out_height, out_width]`.
    pub fn output_shape(&self) -> [usize; 4] {
        [self.batch, self.channels_out, self.height.output, self.width.output]
    }

    /// Floating-point operations of one pass: two for each multiply-add, padding counted.
    pub fn flops(&self) -> u128 {
        let [n, oc, oh, ow] = self.output_shape().map(|v| v as u128);
        let [_, c, kh, kw] = self.weight_shape().map(|v| v as u128);
        2 * n * oc * oh * ow * c * kh * kw
    }

    /// One input channel and one output channel for each group.
    pub fn is_depthwise(&self) -> bool {
        self.groups == self.channels_in && self.groups == self.channels_out
    }
}

/// Element counts stay below `isize::MAX / 8`, so that byte offsets of any supported type do too.
fn addressable(shape: &[usize; 4], what: &'static str) -> Result<usize, Error> {
    // A zero-sized axis does not excuse the others: products of any subset are computed later.
    shape
        .iter()
        .try_fold(1usize, |n, &d| n.checked_mul(d.max(1)))
        .filter(|&n| n <= isize::MAX as usize / 8)
        .ok_or(Error::TooLarge { what })
}
