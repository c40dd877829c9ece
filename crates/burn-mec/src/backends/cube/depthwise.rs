//! Depthwise layers, which have no matrix product in them: one input channel meets one output channel.
//!
//! A unit computes a run of neighbouring columns for a vector of channels. It reads each input column of
//! a kernel row once and lets every tap of that row meet it, with the sums in registers.
// The outer of two conditions is one that is decided when the kernel is compiled.
#![allow(clippy::collapsible_if)]

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;
use mec_core::{Geometry, Reach};

use super::Error;
use super::device::Device;
use super::launch::{accumulator, address_type, axis, cubes, elem, is_channels_last, vector_size};
use super::plan::Problem;
use super::staging::{AxisArgs, Layout};

/// How a unit's work is cut: all that shapes the compiled kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Run {
    /// Output columns of a unit.
    columns: usize,
    /// Input columns from an output to the next.
    step: usize,
    /// Input columns from a tap to the next.
    tap_step: usize,
    /// Kernel columns that are computed together, of `kernel_w`.
    taps: usize,
    kernel_w: usize,
    /// Channels of a vector.
    lanes: usize,
    /// Whether neighbouring units compute neighbouring channels, or neighbouring columns.
    channels_last: bool,
}

impl Run {
    /// Most input columns a unit holds: they and the sums have to fit its registers.
    const MAX_SPAN: usize = 24;

    /// `None` of the taps may be missing: a kernel row wider than a span is cut into parts.
    fn of(width: &Reach, lanes: usize, channels_last: bool) -> Self {
        let mut run = Self {
            columns: 1,
            step: width.step,
            tap_step: width.tap_step,
            taps: width.taps.max(1),
            kernel_w: width.taps,
            lanes,
            channels_last,
        };
        while run.taps > 1 && run.span() > Self::MAX_SPAN {
            run.taps = run.taps.div_ceil(2);
        }
        for columns in [8, 4, 2] {
            let wider = Self { columns, ..run };
            if columns < 2 * width.output && wider.span() <= Self::MAX_SPAN {
                return wider;
            }
        }
        run
    }

    /// Input columns that the taps meet.
    fn span(&self) -> usize {
        (self.columns - 1) * self.step + (self.taps - 1) * self.tap_step + 1
    }
}

/// Where a unit is.
#[derive(CubeType, Clone, Copy)]
struct Place {
    vector: usize,
    run: usize,
    rest: usize,
}

/// Takes `position` apart into a vector of channels, a run of columns, and the rest.
#[cube]
fn place(position: usize, vectors: usize, runs: usize, #[comptime] channels_last: bool) -> Place {
    let rest = position / (vectors * runs);
    let inner = position % (vectors * runs);
    let mut vector = inner % vectors;
    let mut run = inner / vectors;
    if comptime!(!channels_last) {
        run = inner % runs;
        vector = inner / runs;
    }
    Place { vector, run, rest }
}

/// The columns from `first` on of a row that begins at `row`, zeros outside.
#[cube]
fn read_span<E: Float, A: Float, N: Size>(
    input: &Tensor<Vector<E, N>>,
    layout: &Layout,
    row: usize,
    first: i32,
    size: usize,
    #[comptime] span: usize,
) -> Array<Vector<A, N>> {
    let lanes = input.vector_size();
    let mut columns = Array::<Vector<A, N>>::new(span);
    #[unroll]
    for i in 0..span {
        let column = first + comptime!(i as i32);
        columns[i] = Vector::zeroed();
        if column >= 0 && (column as usize) < size {
            let at = (row + column as usize * layout.column) / lanes;
            columns[i] = Vector::cast_from(input[at]);
        }
    }
    columns
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn correlation_kernel<E: Float, A: Float, N: Size>(
    input: &Tensor<Vector<E, N>>,
    weight: &Tensor<E>,
    bias: ComptimeOption<&Tensor<E>>,
    output: &mut Tensor<Vector<E, N>>,
    height: AxisArgs,
    width: AxisArgs,
    vectors: usize,
    runs: usize,
    units: usize,
    #[comptime] cut: Run,
    #[define(N)] _lanes: usize,
    #[define(E, A)] _dtypes: [ElemType; 2],
) {
    if ABSOLUTE_POS >= units {
        terminate!();
    }
    let place = place(ABSOLUTE_POS, vectors, runs, comptime!(cut.channels_last));
    let row = place.rest % height.output;
    let image = place.rest / height.output;
    let column = place.run * comptime!(cut.columns);
    let lanes = comptime!(cut.lanes);
    let channel = place.vector * lanes;

    let (from, kernel, to) = (Layout::of(input), Layout::of(weight), Layout::of(&*output));
    let mut sums = Array::<Vector<A, N>>::new(comptime!(cut.columns));
    #[unroll]
    for i in 0..comptime!(cut.columns) {
        sums[i] = Vector::zeroed();
    }
    let first_row = (row * height.step) as i32 + height.base;
    for tap_row in 0..height.taps {
        let y = first_row + (tap_row * height.tap_step) as i32;
        if y >= 0 && (y as usize) < height.input {
            let row = from.at(image, channel, y as usize, 0usize.runtime());
            let weight_row = height.weight_first + tap_row as i32 * height.weight_step;
            for part in 0..comptime!(cut.kernel_w.div_ceil(cut.taps)) {
                let first_tap = part * comptime!(cut.taps);
                let first = (column * comptime!(cut.step) + first_tap * comptime!(cut.tap_step))
                    as i32
                    + width.base;
                let span = read_span::<E, A, N>(
                    input,
                    &from,
                    row,
                    first,
                    width.input,
                    comptime!(cut.span()),
                );
                #[unroll]
                for t in 0..comptime!(cut.taps) {
                    let tap = first_tap + t;
                    if tap < comptime!(cut.kernel_w) {
                        let weight_column = width.weight_first + tap as i32 * width.weight_step;
                        let at = kernel.at(
                            channel,
                            0usize.runtime(),
                            weight_row as usize,
                            weight_column as usize,
                        );
                        let mut w = Vector::<A, N>::zeroed();
                        #[unroll]
                        for lane in 0..lanes {
                            w.insert(lane, A::cast_from(weight[at + lane * kernel.image]));
                        }
                        #[unroll]
                        for i in 0..comptime!(cut.columns) {
                            let x = span[comptime!(i * cut.step + t * cut.tap_step)];
                            sums[i] = fma(x, w, sums[i]);
                        }
                    }
                }
            }
        }
    }

    let at = to.at(image, channel, row * height.out_step + height.out_base, 0usize.runtime());
    #[unroll]
    for i in 0..comptime!(cut.columns) {
        let column = column + i;
        if column < width.output {
            let mut value = sums[i];
            #[comptime]
            if let ComptimeOption::Some(bias) = &bias {
                #[unroll]
                for lane in 0..lanes {
                    let b = A::cast_from(bias[(channel + lane) * bias.stride(0)]);
                    value.insert(lane, value.extract(lane) + b);
                }
            }
            let at = at + (column * width.out_step + width.out_base) * to.column;
            output[at / lanes] = Vector::cast_from(value);
        }
    }
}

/// The forward pass, or one phase of the input gradient.
pub(super) fn correlate(
    input: CubeTensor,
    weight: CubeTensor,
    bias: Option<CubeTensor>,
    output: &CubeTensor,
    problem: &Problem,
) -> Result<(), Error> {
    let device = Device::of(&output.client);
    let mut height = problem.height;
    if problem.channels == 0 {
        height.taps = 0;
    }
    let channels = problem.groups;
    let lanes = vector_size(&input, 4, channels).min(vector_size(output, 4, channels));
    let cut = Run::of(&problem.width, lanes, is_channels_last(&input));
    let vectors = channels / lanes;
    let runs = problem.width.output.div_ceil(cut.columns);
    let units = vectors * runs * problem.height.output * problem.batch;
    let cube = 64.min(device.max_units);
    let cubes = cubes(&device, [units.div_ceil(cube)])?;
    let dtype = output.dtype;
    let address = address_type([&input, &weight, output]);
    // SAFETY: the kernel reads positions of `input` that exist, which it tests, and channels below
    // `vectors * lanes`; it writes positions of `output` below the axes' output sizes.
    unsafe {
        correlation_kernel::launch_unchecked(
            &output.client,
            cubes,
            CubeDim::new_1d(cube as u32),
            address,
            input.into_tensor_arg(),
            weight.into_tensor_arg(),
            bias.map(|bias| bias.into_tensor_arg()).into(),
            output.clone().into_tensor_arg(),
            axis(&height),
            axis(&problem.width),
            vectors,
            runs,
            units,
            cut,
            lanes,
            [elem(dtype), accumulator(dtype)],
        );
    }
    Ok(())
}

/// A unit computes one kernel row's gradients (or a part of one) for a vector of channels, over a share
/// of the output rows; the unit of the first kernel row adds up the bias's.
#[cube(launch_unchecked, address_type = "dynamic")]
fn weight_gradient_kernel<E: Float, A: Float, R: Float, N: Size>(
    x: &Tensor<Vector<E, N>>,
    dy: &Tensor<Vector<E, N>>,
    result: &mut [R],
    bias: ComptimeOption<&mut [R]>,
    height: AxisArgs,
    width: AxisArgs,
    vectors: usize,
    rows: usize,
    splits: usize,
    #[comptime] cut: Run,
    #[define(N)] _lanes: usize,
    #[define(E, A, R)] _dtypes: [ElemType; 3],
) {
    let parts = comptime!(cut.kernel_w.div_ceil(cut.taps));
    let kinds = height.taps * parts;
    if ABSOLUTE_POS >= vectors * kinds * splits {
        terminate!();
    }
    let vector = ABSOLUTE_POS % vectors;
    let rest = ABSOLUTE_POS / vectors;
    let part = rest % parts;
    let rest = rest / parts;
    let tap_row = rest % height.taps;
    let split = rest / height.taps;
    let lanes = comptime!(cut.lanes);
    let channel = vector * lanes;
    let first_tap = part * comptime!(cut.taps);

    let (from, from_dy) = (Layout::of(x), Layout::of(dy));
    let mut sums = Array::<Vector<A, N>>::new(comptime!(cut.taps));
    #[unroll]
    for t in 0..comptime!(cut.taps) {
        sums[t] = Vector::zeroed();
    }
    let mut bias_sum = Vector::<A, N>::zeroed();

    let share = rows.div_ceil(splits);
    let first = split * share;
    for at in first..clamp_max(first + share, rows) {
        let row = at % height.output;
        let image = at / height.output;
        let y = (row * height.step + tap_row * height.tap_step) as i32 + height.base;
        let inside = y >= 0 && (y as usize) < height.input;
        let row_dy = from_dy.at(image, channel, row, 0usize.runtime());
        for run in 0..width.output.div_ceil(comptime!(cut.columns)) {
            let column = run * comptime!(cut.columns);
            let d = read_span::<E, A, N>(
                dy,
                &from_dy,
                row_dy,
                column as i32,
                width.output,
                comptime!(cut.columns),
            );
            #[unroll]
            for i in 0..comptime!(cut.columns) {
                bias_sum += d[i];
            }
            if inside {
                let row = from.at(image, channel, y as usize, 0usize.runtime());
                let first = (column * comptime!(cut.step) + first_tap * comptime!(cut.tap_step))
                    as i32
                    + width.base;
                let span =
                    read_span::<E, A, N>(x, &from, row, first, width.input, comptime!(cut.span()));
                #[unroll]
                for i in 0..comptime!(cut.columns) {
                    // A zero of `d` beyond the output would not outweigh a NaN of `x`.
                    if column + i < width.output {
                        #[unroll]
                        for t in 0..comptime!(cut.taps) {
                            let x = span[comptime!(i * cut.step + t * cut.tap_step)];
                            sums[t] = fma(x, d[i], sums[t]);
                        }
                    }
                }
            }
        }
    }

    let channels = vectors * lanes;
    #[unroll]
    for t in 0..comptime!(cut.taps) {
        let tap = first_tap + t;
        if tap < comptime!(cut.kernel_w) {
            #[unroll]
            for lane in 0..lanes {
                let at = ((split * channels + channel + lane) * height.taps + tap_row)
                    * comptime!(cut.kernel_w)
                    + tap;
                result[at] = R::cast_from(sums[t].extract(lane));
            }
        }
    }
    #[comptime]
    if let ComptimeOption::Some(bias) = bias {
        if tap_row == 0 && part == 0 {
            #[unroll]
            for lane in 0..lanes {
                bias[split * channels + channel + lane] = R::cast_from(bias_sum.extract(lane));
            }
        }
    }
}

/// The gradients in the weight and the bias, through `run`, which is told the number of splits and
/// provides the results.
pub(super) fn weight_gradient(
    x: CubeTensor,
    dy: CubeTensor,
    geometry: &Geometry,
    limit: usize,
    device: &Device,
    run: impl FnOnce(usize, &dyn Fn(&CubeTensor, Option<&CubeTensor>)),
) -> Result<(), Error> {
    let channels = geometry.channels_in;
    let lanes = vector_size(&x, 4, channels).min(vector_size(&dy, 4, channels));
    let (height, width) = (Reach::forward(&geometry.height), Reach::forward(&geometry.width));
    let cut = Run::of(&width, lanes, is_channels_last(&x));
    let vectors = channels / lanes;
    let kinds = height.taps * cut.kernel_w.div_ceil(cut.taps);
    let rows = geometry.batch * height.output;
    let cube = 32.min(device.max_units);
    let result = channels * (height.taps * width.taps + 1) * size_of::<f32>();
    // Enough cubes for the device, as far as the partial sums keep to the limit.
    let wanted = (4 * device.room() * cube).div_ceil(vectors * kinds);
    let splits = wanted.min(limit / result).min(rows).max(1);
    let cubes = cubes(device, [(vectors * kinds * splits).div_ceil(cube)])?;
    let dtype = dy.dtype;
    let address = address_type([&x, &dy]);
    run(splits, &|dw, db| {
        // SAFETY: the kernel reads positions of `x` and `dy` that exist, which it tests, and writes each
        // element of `splits` copies of the gradients.
        unsafe {
            weight_gradient_kernel::launch_unchecked(
                &dy.client,
                cubes.clone(),
                CubeDim::new_1d(cube as u32),
                address,
                x.clone().into_tensor_arg(),
                dy.clone().into_tensor_arg(),
                dw.clone().into_buffer_arg(),
                db.map(|db| db.clone().into_buffer_arg()).into(),
                axis(&height),
                axis(&width),
                vectors,
                rows,
                splits,
                cut,
                lanes,
                [elem(dtype), accumulator(dtype), elem(dw.dtype)],
            );
        }
    });
    Ok(())
}
