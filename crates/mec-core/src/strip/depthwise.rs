//! Depthwise convolution: planes are independent. Those of the usual kernels at stride 1 or 2 are read where they lie
//! and need no workspace; `stage` takes the others.

pub(crate) mod stage;

use super::engine::Operands;
use super::weight_gradient::Operands as GradientOperands;
use super::workers::for_each_worker;
use crate::kernel::{
    Kernel, Plane, Planes, RowSums, Rows, Spread, Vector, Weights, Window, rows_serve,
    spread_serves,
};
use crate::{Geometry, Pass};
use std::ops::Range;

/// Whether `pass` of a depthwise convolution reads its planes where they lie.
pub(crate) fn in_place<T>(kernel: &Kernel<T>, g: &Geometry, pass: Pass) -> bool {
    let [h, w] = [&g.height, &g.width];
    let square = h.kernel == w.kernel && h.stride == w.stride;
    if !square || [h.dilation, w.dilation] != [1, 1] || !matches!(h.stride, 1 | 2) {
        return false;
    }
    let serves = |stride, size| rows_serve::<T>(kernel.lanes, h.kernel, stride, size);
    match pass {
        Pass::Forward => serves(h.stride, [h.output, w.output]),
        Pass::InputGradient if h.stride == 1 => serves(1, [h.input, w.input]),
        Pass::InputGradient => spread_serves(h.kernel, [h.pad_before, w.pad_before]),
        _ => h.kernel == 3,
    }
}

/// Whether the input gradient of a layer with one input channel for each group, and several output channels, adds up
/// planes of `dy` where they lie: a panel of them is read hardly more often than it is written (m1).
pub(crate) fn adds_in_place<T>(kernel: &Kernel<T>, g: &Geometry) -> bool {
    let several = g.channels_in == g.groups && g.channels_out > g.groups;
    several && g.height.stride == 1 && in_place(kernel, g, Pass::InputGradient)
}

/// The channels of a batch in sets, each one task's: planes of one image are one distance apart.
struct Sets {
    images: usize,
    channels: usize,
    /// Sets of an image.
    sets: usize,
}

/// Tasks of each thread that keep them busy evenly.
const TASKS_WANTED: usize = 8;

/// Rows of a plane that is parted: each part reads the rows around it once more.
const FEWEST_ROWS: usize = 16;

impl Sets {
    /// Sets of at most `together` channels, of fewer where that leaves threads without a task.
    fn new(images: usize, channels: usize, together: usize, threads: usize) -> Self {
        let together = together.min((channels * images).div_ceil(threads * TASKS_WANTED));
        Self { images, channels, sets: channels.div_ceil(together.max(1)) }
    }

    fn tasks(&self) -> usize {
        self.images * self.sets
    }

    /// Most channels of a set.
    fn most(&self) -> usize {
        self.channels.div_ceil(self.sets.max(1))
    }

    /// Image and channels of a task.
    fn planes(&self, task: usize) -> (usize, Range<usize>) {
        let (image, set) = (task / self.sets, task % self.sets);
        (image, set * self.channels / self.sets..(set + 1) * self.channels / self.sets)
    }
}

/// The window of the forward pass.
fn forward_window(g: &Geometry) -> Window {
    Window {
        kernel: g.width.kernel,
        stride: g.width.stride,
        base: [-(g.height.pad_before as isize), -(g.width.pad_before as isize)],
    }
}

/// Computes the output, or with `gradient` the input gradient: `operands.x` is then `dy`, the taps run backwards from the
/// last, and where a channel has several output channels their planes are added up.
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
    let [group, _, added, row, column] = o.weight_strides;
    let (mut first, mut weight_step) = (0, [row, column]);
    let (mut from, mut to) = (g.input_shape(), g.output_shape());
    // Of the input gradient at stride 2 no inserted zeros are met, and the taps run forwards.
    let spread = gradient && window.stride == 2;
    if gradient {
        (from, to) = (to, from);
    }
    if gradient && !spread {
        let last = [g.height.kernel as isize - 1, g.width.kernel as isize - 1];
        first = last[0] * row + last[1] * column;
        weight_step = [-row, -column];
        window.base = [-window.base[0] - last[0], -window.base[1] - last[1]];
    }
    let [_, channels, height, width] = to;
    let len = height * width;
    let multiplier = g.channels_out / g.groups;
    let add = gradient && multiplier > 1;
    let together = if add { 1 } else { together::<T>(len) };
    let sets = Sets::new(g.batch, channels, together, threads);
    // Few planes are parted. Each output is the same sum in every band.
    let bands = match sets.most() {
        1 if !spread => TASKS_WANTED * threads / sets.tasks().max(1),
        _ => 1,
    };
    let bands = bands.clamp(1, (height / FEWEST_ROWS).max(1));
    let far = far::<T>(g.batch * channels * len);
    for_each_worker(threads, sets.tasks() * bands, |numbers| {
        for number in numbers {
            let (image, these) = sets.planes(number / bands);
            let band = number % bands;
            let rows = band * height / bands..(band + 1) * height / bands;
            let count = if add { multiplier } else { these.len() };
            let planes = Planes { count, step: o.x_strides[1], far };
            let first_plane = if add { these.start * multiplier } else { these.start };
            let x = input_plane(o.x, &o.x_strides, from, image, first_plane);
            let weights = Weights {
                first: o.weight.wrapping_offset(these.start as isize * group + first),
                step: weight_step,
                plane: if add { added } else { group },
            };
            let out = o.y.wrapping_add((image * channels + these.start) * len);
            // SAFETY: the caller vouches for the tensors; each band of a plane is one task's.
            unsafe {
                if spread {
                    kernel.spread(&Spread {
                        dy: x,
                        planes,
                        kernel: g.width.kernel,
                        weights,
                        pad: [g.height.pad_before, g.width.pad_before],
                        out,
                        size: [height, width],
                    });
                    continue;
                }
                let below = (rows.start * window.stride) as isize;
                kernel.rows(&Rows {
                    x,
                    planes,
                    window: Window { base: [window.base[0] + below, window.base[1]], ..window },
                    weights,
                    bias: if o.bias.is_null() { o.bias } else { o.bias.add(these.start) },
                    add,
                    out: out.add(rows.start * width),
                    size: [rows.len(), width],
                });
            }
        }
    });
}

/// Bytes of the planes that are taken together, so that they stay in the first-level cache with what is made of them.
const TOGETHER: usize = 12 << 10;

/// Planes of `len` elements that are taken together.
fn together<T>(len: usize) -> usize {
    (TOGETHER / (len * size_of::<T>()).max(1)).max(1)
}

/// Bytes of an output from which its planes, and the input's, are taken to come from memory: planes that lie in the
/// second-level cache took 1.05 to 1.1 times as long when they were asked for.
const FAR: usize = 1 << 20;

/// Whether an output of `len` elements is so large.
fn far<T>(len: usize) -> bool {
    len * size_of::<T>() >= FAR
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
    let len = g.height.output * g.width.output;
    let (together, far) = (together::<T>(len), far::<T>(g.batch * g.channels_out * len));
    for_each_worker(threads, g.channels_in, |channels| {
        let memory = job.map(|(c, stage)| stage.memory::<T>(c));
        for channel in channels {
            // SAFETY: the caller vouches for the tensors; each channel is one task's.
            unsafe {
                let sums = o.dw.add(channel * taps);
                for tap in 0..taps {
                    *sums.add(tap) = T::ZERO;
                }
                let dy_of =
                    |image| input_plane(o.dy, &o.dy_strides, g.output_shape(), image, channel);
                if let (Some(job), Some((memory, at))) = (job, &memory) {
                    let memory = memory.as_ptr();
                    for first in (0..g.batch).step_by(job.1.images()) {
                        let images = first..(first + job.1.images()).min(g.batch);
                        stage::sums(kernel, job, o, (images, channel), at, memory, sums);
                    }
                } else {
                    for image in (0..g.batch).step_by(together) {
                        let count = together.min(g.batch - image);
                        kernel.row_sums(&RowSums {
                            x: input_plane(o.x, &o.x_strides, g.input_shape(), image, channel),
                            planes: Planes { count, step: o.x_strides[0], far },
                            dy: dy_of(image),
                            dy_step: o.dy_strides[0],
                            window,
                            sums,
                        });
                    }
                }
                if !o.db.is_null() {
                    let planes = (0..g.batch).map(|image| kernel.plane_sum(&dy_of(image)));
                    *o.db.add(channel) = planes.fold(T::ZERO, |sum, plane| sum + plane);
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
