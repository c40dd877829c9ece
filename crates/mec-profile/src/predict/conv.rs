//! What the convolutions take.

use mec_core::{Algorithm, Geometry, Pass as ConvPass, Plan, Settings, im2col, paper};

use super::Setup;
use crate::shadow::{Meter, Shadow};
use crate::{Backend, Convolution};

/// One convolution of a network, as one of the convolutions computes it.
#[derive(Debug, Clone)]
pub(super) struct ConvRules {
    geometry: Geometry,
    pub bias: bool,
    convolution: Convolution,
    backend: Backend,
}

/// Elements of a tensor.
fn elements(shape: &[usize]) -> usize {
    shape.iter().product()
}

impl ConvRules {
    pub fn new(geometry: Geometry, bias: bool, setup: &Setup) -> Self {
        let Setup { convolution, backend, .. } = *setup;
        Self { geometry, bias, convolution, backend }
    }

    pub fn forward(&self, meter: &Meter, x: &Shadow) -> Shadow {
        let g = &self.geometry;
        let y = meter.tensor(elements(&g.output_shape()));
        match self.convolution {
            Convolution::Burn => {
                let conv = BurnConv::forward(g);
                let copied = !x.dense && self.backend == Backend::Flex;
                let copy = if copied { x.bytes() } else { 0 };
                meter.grow_peak(copy + self.burn_workspace(&conv));
                y.with_dense(!self.is_channels_last(&conv))
            }
            _ => {
                meter.grow_peak(self.workspace(ConvPass::Forward));
                y
            }
        }
    }

    pub fn input_gradient(&self, meter: &Meter, _dy: &Shadow) -> Shadow {
        let g = &self.geometry;
        let dx = meter.tensor(elements(&g.input_shape()));
        meter.grow_peak(match (self.convolution, self.backend) {
            (Convolution::Burn, Backend::Flex) => self.flex_columns(),
            (Convolution::Burn, _) => 0,
            _ => self.workspace(ConvPass::InputGradient),
        });
        dx
    }

    pub fn weight_gradient(&self, meter: &Meter, _dy: &Shadow) -> Shadow {
        let g = &self.geometry;
        let weight = elements(&g.weight_shape());
        if self.convolution != Convolution::Burn {
            let dw = meter.tensor(weight);
            meter.grow_peak(self.workspace(ConvPass::WeightGradient));
            return dw;
        }
        // Burn convolves the input with the output's gradient, batch and channels exchanged; with
        // groups, one group after the other into a tensor of zeros.
        let conv = BurnConv::weight_gradient(g);
        let result =
            if g.groups > 1 { meter.tensor(weight) } else { meter.tensor(elements(&conv.output)) };
        let beside = if g.groups > 1 { elements(&conv.output) } else { 0 };
        let copies = match self.backend {
            // Exchanged axes of one image leave its elements in order.
            Backend::Flex if g.batch > 1 => {
                let copied = |shape: &[usize]| if shape[0] > 1 { elements(shape) } else { 0 };
                copied(&conv.input) + copied(&conv.weight)
            }
            _ => 0,
        };
        meter.grow_peak(4 * (beside + copies) as u64 + self.burn_workspace(&conv));
        if elements(&conv.output) != weight && g.groups == 1 {
            // Where the stride leaves rows unread, the kernel comes out too large and is cut: by
            // burn-flex to a part of the same memory.
            return match self.backend {
                Backend::Ndarray => meter.tensor(weight).with_dense(false),
                _ => result.part(weight),
            };
        }
        result.with_dense(g.groups > 1)
    }

    /// Burn sums over a copy with channels first.
    pub fn bias_gradient(&self, meter: &Meter, dy: &Shadow) -> Shadow {
        if self.convolution == Convolution::Burn && self.geometry.batch > 1 {
            let copies = if self.backend == Backend::Ndarray { 2 } else { 1 };
            meter.grow_peak(copies * dy.bytes());
        }
        meter.tensor(self.geometry.channels_out)
    }

    /// Workspace of this project's convolutions, as planned. On a graphics card only a
    /// weight gradient takes any, partial sums of at most 1 MiB, which is not counted.
    fn workspace(&self, pass: ConvPass) -> u64 {
        if !self.backend.is_cpu() {
            return 0;
        }
        let size = size_of::<f32>();
        let bytes = match (self.convolution, pass) {
            (Convolution::Im2col, ConvPass::Forward) => {
                im2col::workspace_bytes(&self.geometry, size)
            }
            (Convolution::Paper, ConvPass::Forward) => {
                paper::workspace_bytes(&self.geometry, None, size)
            }
            _ => {
                let algorithm = match self.convolution {
                    Convolution::Paper => Algorithm::Paper,
                    _ => Algorithm::Auto,
                };
                let settings = Settings { algorithm, workspace_limit: None };
                Plan::new::<f32>(&self.geometry, pass, &settings)
                    .expect("there is no limit to keep")
                    .workspace_bytes
            }
        };
        bytes as u64
    }

    /// Bytes that one of Burn's convolutions holds beside operands and result.
    fn burn_workspace(&self, conv: &BurnConv) -> u64 {
        let floats = match self.backend {
            Backend::Flex => conv.flex_workspace(rayon::current_num_threads()),
            Backend::Ndarray if self.is_channels_last(conv) => elements(&conv.weight),
            // A padded copy of the input, and the result twice.
            Backend::Ndarray => conv.padded() + elements(&conv.output),
            Backend::Wgpu => 0,
        };
        4 * floats as u64
    }

    /// Whether burn-ndarray takes its SIMD kernel, whose results have the channels last.
    fn is_channels_last(&self, conv: &BurnConv) -> bool {
        let lanes = match mec_core::instruction_set() {
            "AVX-512" => 16,
            "AVX2" => 8,
            _ => 4,
        };
        self.backend == Backend::Ndarray && (conv.weight[0] / conv.groups).is_multiple_of(lanes)
    }

    /// burn-flex's transposed convolution: the columns of an image and group, at most 8 MiB, for
    /// each thread that works on one.
    fn flex_columns(&self) -> u64 {
        const MOST: usize = 8 << 20;
        const PARALLEL: usize = 256 * 1024;
        let g = &self.geometry;
        let [_, per_group, kernel_h, kernel_w] = g.weight_shape();
        let [_, _, out_h, out_w] = g.output_shape();
        let column = per_group * kernel_h * kernel_w;
        let pixels = out_h * out_w;
        let all = 4 * column * pixels;
        let columns = if all <= MOST { all } else { 4 * column * (MOST / 4 / column).max(1) };
        let tasks = g.batch * g.groups;
        let parallel = tasks > 1 && elements(&g.input_shape()) >= PARALLEL;
        (columns * if parallel { tasks.min(rayon::current_num_threads()) } else { 1 }) as u64
    }
}

/// A convolution that Burn runs: a layer's, or the one that its weight gradient is.
struct BurnConv {
    input: [usize; 4],
    weight: [usize; 4],
    output: [usize; 4],
    groups: usize,
    stride: [usize; 2],
    padding: [usize; 2],
}

impl BurnConv {
    fn forward(g: &Geometry) -> Self {
        Self {
            input: g.input_shape(),
            weight: g.weight_shape(),
            output: g.output_shape(),
            groups: g.groups,
            stride: [g.height.stride, g.width.stride],
            padding: [g.height.pad_before, g.width.pad_before],
        }
    }

    /// Of one group.
    fn weight_gradient(g: &Geometry) -> Self {
        let [batch, channels_in, height, width] = g.input_shape();
        let [_, channels_out, out_h, out_w] = g.output_shape();
        let (channels_in, channels_out) = (channels_in / g.groups, channels_out / g.groups);
        // Stride and dilation exchange their places.
        let kernel = |axis: &mec_core::Axis| {
            let extent = axis.stride * (axis.output - 1) + 1;
            (axis.padded() - extent) / axis.dilation + 1
        };
        Self {
            input: [channels_in, batch, height, width],
            weight: [channels_out, batch, out_h, out_w],
            output: [channels_in, channels_out, kernel(&g.height), kernel(&g.width)],
            groups: 1,
            stride: [g.height.dilation, g.width.dilation],
            padding: [g.height.pad_before, g.width.pad_before],
        }
    }

    /// Elements of the padded input.
    fn padded(&self) -> usize {
        let [batch, channels, height, width] = self.input;
        let [pad_h, pad_w] = self.padding;
        batch * channels * (height + 2 * pad_h) * (width + 2 * pad_w)
    }

    /// Elements that burn-flex takes: for most convolutions copies of input and weight with the
    /// channels last and, for each thread, the patches of up to 512 pixels and their products.
    fn flex_workspace(&self, threads: usize) -> usize {
        const TILE: usize = 512;
        let [batch, channels_in, _, _] = self.input;
        let [channels_out, per_group, kernel_h, kernel_w] = self.weight;
        let pointwise =
            [kernel_h, kernel_w] == [1, 1] && self.stride == [1, 1] && self.padding == [0, 0];
        let depthwise = per_group == 1 && self.groups == channels_in && channels_out == channels_in;
        let few_channels = self.groups == 1 && channels_in <= 4 && channels_out <= 16;
        if pointwise || depthwise || few_channels {
            return 0;
        }
        let pixels = self.output[2] * self.output[3];
        let tile = pixels.min(TILE);
        let patches = per_group * kernel_h * kernel_w * tile;
        let products = channels_out / self.groups * tile;
        let tiles = (batch * pixels.div_ceil(TILE)).min(threads);
        elements(&self.input) + elements(&self.weight) + tiles * (patches + products)
    }
}
