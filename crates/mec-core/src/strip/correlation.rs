//! The one problem the strip engine solves: correlate rows of an input with a kernel.
//!
//! The forward pass is one correlation for each group. The input gradient is one for each group and
//! phase: output row `o` and tap `t` meet input position `o * stride + t * dilation - pad`, so
//! positions with the same remainder by the stride see the same taps, and see `dy` at stride 1.
//! Nothing is multiplied by an inserted zero and nothing is scattered.

use crate::kernel::MAX_VECTORS;
use crate::{Axis, Geometry};

/// One spatial axis of a correlation, which is what the forward pass and each phase of the input
/// gradient come down to: for output `q` and tap `t`, the input position is
/// `q * step + base + t * tap_step`, the weight's is `weight_first + t * weight_step`, and the
/// output's is `q * out_step + out_base`. Positions outside `0..input` read as zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Reach {
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
    /// Of the forward pass.
    pub fn forward(axis: &Axis) -> Self {
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

    /// Of the input gradient: the positions that leave remainder `phase` when divided by the stride.
    /// Its input is the output's gradient.
    pub fn phase(axis: &Axis, phase: usize) -> Self {
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
    pub(crate) fn is_pointwise(&self) -> bool {
        self.taps == 1
            && self.step == 1
            && self.base == 0
            && self.out_step == 1
            && self.input == self.output
    }

    /// A plane for each tap, or as few as serve all taps.
    pub(crate) fn lowering(&self, folded: bool) -> Lowering {
        let common = gcd(self.step, self.tap_step);
        let (period, shift) =
            if folded { (self.taps, 0) } else { (self.step / common, self.tap_step / common) };
        let planes = period.min(self.taps);
        Lowering { planes, period, shift, halo: (self.taps - 1) / period * shift }
    }

    /// Input positions between neighbouring rows of a panel: those in between meet no tap.
    pub(crate) fn unit(&self) -> usize {
        if self.taps == 1 { self.step } else { gcd(self.step, self.tap_step) }
    }

    /// Rows of a panel that `outputs` neighbouring outputs read.
    pub(crate) fn panel_rows(&self, outputs: usize) -> usize {
        let unit = self.unit();
        (outputs - 1) * self.step / unit + (self.taps - 1) * self.tap_step / unit + 1
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The taps of one residue of the output columns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Phase {
    /// Input columns from the axis's base to the first tap's.
    pub offset: usize,
    /// Kernel columns that take part.
    pub taps: usize,
    /// Kernel column of tap 0.
    pub weight_first: usize,
}

/// Most neighbouring output columns that are computed from one panel, so that they are stored
/// together. A larger stride has a correlation for each column.
pub(crate) const MAX_PHASES: usize = crate::kernel::MAX_PHASES;

/// How the columns of a strip lie in a panel: the taps of a row are read from `planes` planes, tap
/// `m` from plane `m % period`, `m / period * shift` lanes further on.
///
/// With a plane for each tap this is the paper's lowering. With fewer, a plane serves every tap that
/// meets the same input columns at other lanes: nothing is copied twice, but rows end in a gap of
/// `halo` lanes which compute nothing, and vectors are read across cache lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lowering {
    /// Planes of a row.
    pub planes: usize,
    /// Taps after which the planes repeat.
    pub period: usize,
    /// Positions from such a tap to the next.
    pub shift: usize,
    /// Lanes that taps reach beyond a strip.
    pub halo: usize,
}

impl Lowering {
    /// Elements of one plane under a strip of `width` lanes: whole registers, so that planes start
    /// at cache lines.
    pub fn plane_len(&self, width: usize, lanes: usize) -> usize {
        (width + self.halo).next_multiple_of(lanes)
    }

    /// Elements from a row's start to where tap `tap` of `phase` begins.
    pub fn tap(&self, phase: &Phase, tap: usize, plane_len: usize) -> usize {
        phase.offset + tap % self.period * plane_len + tap / self.period * self.shift
    }
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
    /// Elements of a row where the tensors' own rows have been joined and divided anew.
    pub joined_row: Option<usize>,
    /// Whether the weight's output channels are the ones summed over, far apart in memory.
    pub transposed: bool,
    /// What the computed channels are, where they are more than the tensor's.
    pub space: Option<Space>,
    /// The vertical axis.
    pub height: Reach,
    /// The horizontal axis. Where several phases are computed together, its base is the first input
    /// column of any of them, and its taps are the most of any of them.
    pub width: Reach,
    phases: [Phase; MAX_PHASES],
    phase_count: usize,
    last_phases: usize,
}

/// Computed channels that are all phases of the output's rows and columns, `[row phase][channel][column phase]`: what
/// lies in the depth of a correlation at stride 1 is dealt to space (Shi et al., *Real-Time Single Image and Video
/// Super-Resolution Using an Efficient Sub-Pixel Convolutional Neural Network*, CVPR 2016).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Space {
    /// Phases of rows and of columns.
    pub phases: [usize; 2],
    /// Those of the last row and of the last column: their places in the output exist.
    pub last: [usize; 2],
    /// Computed channels of a row phase.
    pub row_outputs: usize,
}

/// Rows of a strip's width from which an image's positions, and those of all images, are worth dividing into rows and a
/// rest. The rest of few images leaves lanes empty: the input gradient of one image of 14 x 14 took 1.2 times as long (AVX2),
/// that of 32 images 0.8 of the time.
const ROWS_WORTH_A_REST: [usize; 2] = [4, 16];

/// Most computed channels of a row phase: their sums are held together.
const MAX_ROW_OUTPUTS: usize = 16;

impl Correlation {
    /// The forward pass. `rows_join` says that the input's rows follow each other without a gap.
    pub fn forward(g: &Geometry, rows_join: bool, lanes: usize) -> Self {
        let width = Reach::forward(&g.width);
        Self {
            batch: g.batch,
            groups: g.groups,
            channels: g.channels_in / g.groups,
            outputs: g.channels_out / g.groups,
            joined_row: None,
            transposed: false,
            space: None,
            height: Reach::forward(&g.height),
            width,
            phases: [Phase { offset: 0, taps: width.taps, weight_first: 0 }; MAX_PHASES],
            phase_count: 1,
            last_phases: 1,
        }
        .simplified(rows_join, lanes)
    }

    /// The input gradient: correlations of `dy` for each phase of the input's rows, and of its
    /// columns where they cannot be computed together, or are to be `apart`.
    pub fn input_gradient(g: &Geometry, rows_join: bool, lanes: usize, apart: bool) -> Vec<Self> {
        let joint = !apart && g.width.stride <= MAX_PHASES;
        // Phases beyond the input's size compute nothing.
        let rows = g.height.stride.min(g.height.input);
        let columns = if joint { g.width.input.min(1) } else { g.width.stride.min(g.width.input) };
        let mut correlations = Vec::with_capacity(rows * columns);
        for row in 0..rows {
            for column in 0..columns {
                let (width, phases, phase_count) = if joint {
                    joint_phases(&g.width)
                } else {
                    let r = Reach::phase(&g.width, column);
                    let phase = Phase { offset: 0, taps: r.taps, weight_first: r.weight_first };
                    (r, [phase; MAX_PHASES], 1)
                };
                let correlation = Self {
                    batch: g.batch,
                    groups: g.groups,
                    channels: g.channels_out / g.groups,
                    outputs: g.channels_in / g.groups,
                    joined_row: None,
                    transposed: true,
                    space: None,
                    height: Reach::phase(&g.height, row),
                    width,
                    phases,
                    phase_count,
                    last_phases: (g.width.input - 1) % phase_count + 1,
                };
                correlations.push(correlation.simplified(rows_join, lanes));
            }
        }
        correlations
    }

    /// The input gradient of few channels at a stride as one correlation, which computes all phases as channels:
    /// what `dy` is packed into serves them all. Its weights are [`space::weights`](super::space::weights).
    /// `None` where it cannot be, or where one phase has channels enough.
    pub fn input_gradient_to_space(g: &Geometry) -> Option<Self> {
        let axes = [&g.height, &g.width];
        let phases = axes.map(|axis| axis.stride);
        let row_outputs = (g.channels_in / g.groups).saturating_mul(phases[1]);
        if phases == [1, 1]
            || axes.iter().any(|axis| axis.stride > MAX_PHASES || axis.dilation > 1)
            || axes.iter().any(|axis| axis.input == 0)
            || row_outputs > MAX_ROW_OUTPUTS
        {
            return None;
        }
        let [height, width] = axes.map(|axis| {
            let (reach, phases, count) = joint_phases(axis);
            let taps = phases[..count].iter().filter(|p| p.taps > 0).map(|p| p.offset + p.taps);
            Reach { taps: taps.max().unwrap_or(0), weight_first: 0, weight_step: 1, ..reach }
        });
        (height.taps > 0 && width.taps > 0).then_some(Self {
            batch: g.batch,
            groups: g.groups,
            channels: g.channels_out / g.groups,
            outputs: phases[0] * row_outputs,
            joined_row: None,
            transposed: false,
            space: Some(Space {
                phases,
                last: axes.map(|axis| (axis.input - 1) % axis.stride + 1),
                row_outputs,
            }),
            height,
            width,
            phases: [Phase { offset: 0, taps: width.taps, weight_first: 0 }; MAX_PHASES],
            phase_count: 1,
            last_phases: 1,
        })
    }

    /// The strides of image, channel, row and column by which the correlation meets a tensor.
    pub fn strides<S: Copy + std::ops::Mul<Output = S> + TryFrom<usize>>(
        &self,
        [image, channel, row, column]: [S; 4],
    ) -> [S; 4] {
        let joined = self.joined_row.and_then(|len| S::try_from(len).ok());
        [image, channel, joined.map_or(row, |len| len * column), column]
    }

    /// The phases of the output columns, in order.
    pub fn phases(&self) -> &[Phase] {
        &self.phases[..self.phase_count]
    }

    /// Phases of the last column: those whose place in the output exists.
    pub fn last_phases(&self) -> usize {
        self.last_phases
    }

    /// Kernel elements that take part, of all phases together.
    pub fn all_taps(&self) -> usize {
        self.height.taps * self.phases().iter().map(|p| p.taps).sum::<usize>()
    }

    /// Elements from a channel's first weight to that of tap (`y`, `x`) of a phase, in a kernel whose rows and
    /// columns are `steps` apart.
    pub fn weight(&self, phase: &Phase, [y, x]: [usize; 2], steps: [isize; 2]) -> isize {
        let row = self.height.weight_first as isize + y as isize * self.height.weight_step;
        let column = phase.weight_first as isize + x as isize * self.width.weight_step;
        row * steps[0] + column * steps[1]
    }

    /// The paper's lowering, a plane for each tap, or the one that copies nothing twice.
    pub fn lowering(&self, folded: bool) -> Lowering {
        let w = &self.width;
        if self.phase_count > 1 {
            let reach = |p: &Phase| p.offset + p.taps.saturating_sub(1) * w.tap_step;
            let halo = self.phases().iter().map(reach).max().unwrap_or(0);
            return Lowering { planes: 1, period: 1, shift: w.tap_step, halo };
        }
        w.lowering(folded)
    }

    /// Which lowering takes less time: gaps cost fused multiply-adds, planes cost packing.
    pub fn best_lowering(&self, lanes: usize) -> Lowering {
        let [folded, shifted] = [true, false].map(|f| self.lowering(f));
        let rows = self.height.output.clamp(1, 4);
        let reuse = self.height.panel_rows(rows) as f64 / rows as f64;
        let steps = self.height.taps * self.phases().iter().map(|p| p.taps).sum::<usize>();
        let time = |l: &Lowering| {
            let gap = l.halo as f64 / self.width.output.max(1) as f64;
            // Half a cycle for the multiply-add of a register, about 2.5 for packing it.
            let sum = 0.5 * (steps * self.outputs.max(4)) as f64;
            (1.0 + gap) * (sum + 2.5 * l.planes as f64 * reuse) / lanes as f64
        };
        if time(&folded) < time(&shifted) { folded } else { shifted }
    }

    fn simplified(mut self, rows_join: bool, lanes: usize) -> Self {
        if self.height.taps == 0 || self.width.taps == 0 {
            // Nothing to sum: one tap over no channels writes the zeros.
            self.channels = 0;
            self.height.taps = 1;
            self.width.taps = 1;
            self.phases = [Phase { offset: 0, taps: 1, weight_first: 0 }; MAX_PHASES];
        }
        if rows_join && self.height.is_pointwise() && self.width.is_pointwise() {
            // Any division into rows will do. Rows of whole registers are stored without gaps, one
            // after the other, so that output is written as a stream.
            let positions = self.height.input * self.width.input;
            let whole = |registers: &usize| positions.is_multiple_of(registers * lanes);
            let row = (1..=MAX_VECTORS).rev().find(whole).map_or(positions, |r| r * lanes);
            return self.joined_in(positions / row.max(1), row);
        }
        self
    }

    /// The same with rows that have been joined left undivided.
    pub fn in_one_row(self) -> Self {
        match self.joined_row {
            Some(_) => self.joined_in(1, self.height.input * self.width.input),
            None => self,
        }
    }

    /// The same where rows that have been joined are better divided into rows of a strip's width, and what is left.
    ///
    /// A strip then meets each channel's rows one behind the other: 1 x 1 on 56 x 56 and 28 x 28 took 1.1 to 1.2 times as
    /// long with strips of registers of different rows, the input gradient of 256 channels to 64 on 56 x 56 1.35 times, that
    /// on 27 x 27, which was one row, 1.4 times (Sapphire Rapids). Of one row that is no whole number of registers, weights
    /// serve one row after the other from the first-level cache: 1 x 1 from 256 to 1024 channels on 8 images of 14 x 14 took
    /// 1.16 times as long without. The input gradient of few images, which would pack the weights anew, took 1.2 times as
    /// long with it on 7 x 7 (Zen 3).
    pub fn in_rows(self, strip: usize) -> Vec<Self> {
        let positions = self.height.output * self.width.output;
        let whole = positions / strip * strip;
        let one = self.height.output == 1 && !self.transposed;
        let [image, all] = ROWS_WORTH_A_REST.map(|rows| rows * strip);
        let worth = one || positions >= image && self.batch * positions >= all;
        if self.joined_row.is_none() || self.width.output == strip || whole == 0 || !worth {
            return vec![self];
        }
        let rows = self.joined_in(whole / strip, strip);
        let mut rest = self.joined_in(1, positions);
        rest.width.output = positions - whole;
        (rest.width.base, rest.width.out_base) = (whole as isize, whole);
        if whole == positions { vec![rows] } else { vec![rows, rest] }
    }

    /// The same with rows that have been joined divided into so many of `len` positions.
    fn joined_in(mut self, rows: usize, len: usize) -> Self {
        self.joined_row = Some(len);
        for (axis, len) in [(&mut self.height, rows), (&mut self.width, len)] {
            (axis.input, axis.output) = (len, len);
        }
        self
    }

    /// Most kernel elements that take part in one output, of one channel.
    pub fn taps(&self) -> usize {
        self.height.taps * self.width.taps
    }
}

/// All phases of an axis, computed together: what they have in common, and each one's taps.
pub(super) fn joint_phases(axis: &Axis) -> (Reach, [Phase; MAX_PHASES], usize) {
    let each: [Reach; MAX_PHASES] = std::array::from_fn(|p| Reach::phase(axis, p % axis.stride));
    let some = || each.iter().filter(|r| r.taps > 0);
    let base = some().map(|r| r.base).min().unwrap_or(0);
    let mut phases = [Phase::default(); MAX_PHASES];
    for (phase, r) in phases.iter_mut().zip(&each) {
        let offset = if r.taps > 0 { (r.base - base) as usize } else { 0 };
        *phase = Phase { offset, taps: r.taps, weight_first: r.weight_first };
    }
    let taps = some().map(|r| r.taps).max().unwrap_or(0);
    (Reach { base, taps, ..each[0] }, phases, axis.stride)
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
                                        let k =
                                            r.weight_first as isize + t as isize * r.weight_step;
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
