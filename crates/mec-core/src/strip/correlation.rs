//! The one problem the strip engine solves: correlate rows of an input with a kernel.
//!
//! The forward pass is one correlation for each group. The input gradient is one for each group and
//! phase: output row `o` and tap `t` meet input position `o * stride + t * dilation - pad`, so
//! positions with the same remainder by the stride see the same taps, and see `dy` at stride 1.
//! Nothing is multiplied by an inserted zero and nothing is scattered.

use crate::{Axis, Geometry};

/// One spatial axis of a correlation: for output `q` and tap `t`, the input position is
/// `q * step + base + t * tap_step`, the weight's is `weight_first + t * weight_step`, and the
/// output's is `q * out_step + out_base`. Positions outside `0..input` read as zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reach {
    /// Input positions.
    pub input: usize,
    /// Output positions this correlation computes.
    pub output: usize,
    /// Input positions from an output to the next.
    pub step: usize,
    /// Input position of the first tap of output 0.
    pub base: isize,
    /// Kernel elements that take part.
    pub taps: usize,
    /// Input positions from a tap to the next.
    pub tap_step: usize,
    /// Kernel element of tap 0.
    pub weight_first: usize,
    /// Kernel elements from a tap to the next.
    pub weight_step: isize,
    /// Positions in the output tensor from an output to the next.
    pub out_step: usize,
    /// Position in the output tensor of output 0.
    pub out_base: usize,
}

impl Reach {
    fn forward(axis: &Axis) -> Self {
        Self {
            input: axis.input,
            output: axis.output,
            step: axis.stride,
            base: -(axis.pad_before as isize),
            taps: axis.kernel,
            tap_step: axis.dilation,
            weight_first: 0,
            weight_step: 1,
            out_step: 1,
            out_base: 0,
        }
    }

    /// The input positions that leave remainder `phase` when divided by the stride.
    fn phase(axis: &Axis, phase: usize) -> Self {
        let stride = axis.stride as isize;
        // Where tap `t` of such a position meets `dy`, if it does.
        let meets = |t: usize| {
            let reach = (phase + axis.pad_before) as isize - (t * axis.dilation) as isize;
            (reach % stride == 0).then_some(reach / stride)
        };
        // The taps that do follow each other at this distance, and `dy` falls as they rise.
        let distance = axis.stride / gcd(axis.stride, axis.dilation);
        let last = (0..axis.kernel).rev().take(distance).find(|&t| meets(t).is_some());
        Self {
            input: axis.output,
            output: axis.input.saturating_sub(phase).div_ceil(axis.stride),
            step: 1,
            base: last.and_then(meets).unwrap_or(0),
            taps: last.map_or(0, |t| t / distance + 1),
            tap_step: distance * axis.dilation / axis.stride,
            weight_first: last.unwrap_or(0),
            weight_step: -(distance as isize),
            out_step: axis.stride,
            out_base: phase,
        }
    }

    /// One tap at every position, in place: the axis can be joined with its neighbour.
    fn is_pointwise(&self) -> bool {
        self.taps == 1
            && self.step == 1
            && self.base == 0
            && self.out_step == 1
            && self.input == self.output
    }

    /// Input positions between neighbouring rows of a panel: those in between meet no tap.
    pub fn unit(&self) -> usize {
        if self.taps == 1 { self.step } else { gcd(self.step, self.tap_step) }
    }

    /// Rows of a panel that `outputs` neighbouring outputs read.
    pub fn panel_rows(&self, outputs: usize) -> usize {
        (outputs - 1) * self.step / self.unit() + (self.taps - 1) * self.tap_step / self.unit() + 1
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Sizes of a correlation; all but `groups` and `batch` are those of one group and one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Correlation {
    /// Images.
    pub batch: usize,
    /// Independent blocks of channels.
    pub groups: usize,
    /// Channels that are summed over.
    pub channels: usize,
    /// Channels that are computed.
    pub outputs: usize,
    /// The vertical axis.
    pub height: Reach,
    /// The horizontal axis.
    pub width: Reach,
}

impl Correlation {
    /// The forward pass. `rows_join` says that the input's rows follow each other without a gap.
    pub fn forward(g: &Geometry, rows_join: bool) -> Self {
        Self {
            batch: g.batch,
            groups: g.groups,
            channels: g.channels_in / g.groups,
            outputs: g.channels_out / g.groups,
            height: Reach::forward(&g.height),
            width: Reach::forward(&g.width),
        }
        .simplified(rows_join)
    }

    /// The input gradient: one correlation of `dy` for each phase of the input's positions.
    pub fn input_gradient(g: &Geometry, rows_join: bool) -> impl Iterator<Item = Self> {
        let phases = (0..g.height.stride).flat_map(|p| (0..g.width.stride).map(move |q| (p, q)));
        let g = *g;
        phases
            .map(move |(p, q)| {
                Self {
                    batch: g.batch,
                    groups: g.groups,
                    channels: g.channels_out / g.groups,
                    outputs: g.channels_in / g.groups,
                    height: Reach::phase(&g.height, p),
                    width: Reach::phase(&g.width, q),
                }
                .simplified(rows_join)
            })
            .filter(|c| c.height.output > 0 && c.width.output > 0)
    }

    fn simplified(mut self, rows_join: bool) -> Self {
        if self.height.taps == 0 || self.width.taps == 0 {
            // Nothing to sum: one tap over no channels writes the zeros.
            self.channels = 0;
            self.height.taps = 1;
            self.width.taps = 1;
        }
        if rows_join && self.height.is_pointwise() && self.width.is_pointwise() {
            let positions = self.height.input * self.width.input;
            self.width.input = positions;
            self.width.output = positions;
            self.height.input = 1;
            self.height.output = 1;
        }
        self
    }

    /// Kernel elements that take part, of one channel.
    pub fn taps(&self) -> usize {
        self.height.taps * self.width.taps
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ConvOptions;

    fn axis(input: usize, kernel: usize, stride: usize, pad: usize, dilation: usize) -> Axis {
        let options = ConvOptions {
            stride: [stride, 1],
            padding: [(pad, pad), (0, 0)],
            dilation: [dilation, 1],
            groups: 1,
        };
        Geometry::new([1, 1, input, 1], [1, 1, kernel, 1], &options).unwrap().height
    }

    /// Every (output, tap) pair of the axis is met by exactly one phase, at the right place.
    #[test]
    fn phases_partition_the_taps() {
        for input in [1, 2, 5, 12] {
            for kernel in 1..=5 {
                for stride in 1..=6 {
                    for pad in 0..=3 {
                        for dilation in 1..=4 {
                            if dilation * (kernel - 1) + 1 > input + 2 * pad {
                                continue;
                            }
                            let axis = axis(input, kernel, stride, pad, dilation);
                            let mut met = Vec::new();
                            for phase in 0..stride {
                                let r = Reach::phase(&axis, phase);
                                for q in 0..r.output {
                                    for t in 0..r.taps {
                                        let o = q as isize + r.base + (t * r.tap_step) as isize;
                                        let k = r.weight_first as isize + t as isize * r.weight_step;
                                        if (0..axis.output as isize).contains(&o) {
                                            met.push((q * stride + phase, o as usize, k as usize));
                                        }
                                    }
                                }
                            }
                            let mut expected = Vec::new();
                            for o in 0..axis.output {
                                for k in 0..kernel {
                                    if let Some(i) = (o * stride + k * dilation).checked_sub(pad)
                                        && i < input
                                    {
                                        expected.push((i, o, k));
                                    }
                                }
                            }
                            met.sort_unstable();
                            expected.sort_unstable();
                            assert_eq!(met, expected, "{axis:?}");
                        }
                    }
                }
            }
        }
    }
}
