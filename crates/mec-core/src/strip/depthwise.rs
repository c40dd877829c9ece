//! Depthwise convolution: planes are independent. Those of a 3 x 3 kernel at stride 1 or 2 are read where they lie and
//! need no workspace; `stage` takes the others.

pub(crate) mod stage;

use super::engine::Operands;
use super::weight_gradient::Operands as GradientOperands;
use super::workers::for_each_worker;
use crate::Geometry;
use crate::kernel::{Kernel, Plane, RowSums, Rows, Spread, Vector, Window};

/// Whether the planes of a depthwise convolution are read where they lie.
pub(crate) fn in_place(g: &Geometry) -> bool {
    let axes = [&g.height, &g.width];
    let all = |stride| axes.iter().all(|axis| axis.kernel == 3 && axis.stride == stride);
    g.height.dilation == 1 && (all(1) || all(2) && g.width.dilation == 1)
}

/// The window of the forward pass.
fn forward_window(g: &Geometry) -> Window {
    Window {
        stride: g.width.stride,
        step: g.width.dilation as isize,
        base: [-(g.height.pad_before as isize), -(g.width.pad_before as isize)],
    }
}

/// Computes the output, or with `gradient` the input gradient: `operands.x` is then `dy`, and the
/// taps run backwards from the last.
///
/// # Safety
///
/// As [`super::engine::run`]; columns of the input follow each other.
pub(crate) unsafe fn run<T: Vector + Send + Sync>(
    kernel: &Kernel<T>,
    g: &Geometry,
    gradient: bool,
    operands: &Operands<T>,
    threads: usize,
) {
    let o = operands;
    let mut window = forward_window(g);
    let [group, .., row, column] = o.weight_strides;
    let (mut first, mut weight_step) = (0, [row, column]);
    let (mut from, mut to) = (g.input_shape(), g.output_shape());
    if gradient {
        let last = [g.height.kernel as isize - 1, g.width.kernel as isize - 1];
        first = last[0] * row + last[1] * column;
        weight_step = [-row, -column];
        window.base = [-window.base[0] - last[0], -window.base[1] - last[1] * window.step];
        (from, to) = (to, from);
    }
    let [_, channels, height, width] = to;
    for_each_worker(threads, g.batch * channels, |planes| {
        for plane in planes {
            let (image, channel) = (plane / channels, plane % channels);
            // SAFETY: the caller vouches for the tensors; each plane is one task's.
            unsafe {
                if gradient && window.stride == 2 {
                    kernel.spread(&Spread {
                        dy: input_plane(o.x, &o.x_strides, from, image, channel),
                        weight: o.weight.wrapping_offset(channel as isize * group),
                        weight_step: [row, column],
                        pad: [g.height.pad_before, g.width.pad_before],
                        out: o.y.add(plane * height * width),
                        size: [height, width],
                    });
                    continue;
                }
                kernel.rows(&Rows {
                    x: input_plane(o.x, &o.x_strides, from, image, channel),
                    window,
                    weight: o.weight.wrapping_offset(channel as isize * group + first),
                    weight_step,
                    bias: if o.bias.is_null() { T::ZERO } else { *o.bias.add(channel) },
                    out: o.y.add(plane * height * width),
                    size: [height, width],
                });
            }
        }
    });
}

/// Computes the weight gradient, and the bias gradient where it is wanted. Planes are staged if `job` says how.
///
/// # Safety
///
/// As [`Plain::run`](super::weight_gradient::Plain::run); columns of both tensors follow each other.
pub(crate) unsafe fn weight_gradient<T: Vector + Send + Sync>(
    kernel: &Kernel<T>,
    g: &Geometry,
    job: Option<&stage::Job>,
    operands: &GradientOperands<T>,
    threads: usize,
) {
    let o = operands;
    let window = forward_window(g);
    let taps = g.height.kernel * g.width.kernel;
    for_each_worker(threads, g.channels_in, |channels| {
        let memory = job.map(|(c, stage)| stage.memory::<T>(c));
        for channel in channels {
            // SAFETY: the caller vouches for the tensors; each channel is one task's.
            unsafe {
                let sums = o.dw.add(channel * taps);
                for tap in 0..taps {
                    *sums.add(tap) = T::ZERO;
                }
                let mut bias = T::ZERO;
                if let (Some(job), Some((memory, at))) = (job, &memory) {
                    let memory = memory.as_ptr();
                    for first in (0..g.batch).step_by(job.1.images()) {
                        let images = first..(first + job.1.images()).min(g.batch);
                        stage::sums(kernel, job, o, (images, channel), at, memory, sums);
                    }
                }
                for image in 0..g.batch {
                    let dy = input_plane(o.dy, &o.dy_strides, g.output_shape(), image, channel);
                    if job.is_none() {
                        let x = input_plane(o.x, &o.x_strides, g.input_shape(), image, channel);
                        kernel.row_sums(&RowSums { x, dy, window, sums });
                    }
                    if !o.db.is_null() {
                        bias = bias + kernel.plane_sum(&dy);
                    }
                }
                if !o.db.is_null() {
                    *o.db.add(channel) = bias;
                }
            }
        }
    });
}

/// One plane of a tensor of `shape`.
fn input_plane<T>(
    first: *const T,
    strides: &[isize; 4],
    shape: [usize; 4],
    image: usize,
    channel: usize,
) -> Plane<T> {
    let offset = image as isize * strides[0] + channel as isize * strides[1];
    Plane {
        first: first.wrapping_offset(offset),
        row: strides[2],
        height: shape[2],
        width: shape[3],
    }
}
