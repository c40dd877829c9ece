//! MEC as published: Algorithm 2 of Cho & Brand, "MEC: Memory-efficient Convolution for Deep Neural
//! Network" (ICML 2017, <https://arxiv.org/abs/1706.06873>), forward.
//!
//! im2col copies every kernel-sized patch of the input, so that a convolution becomes one matrix
//! product. MEC copies every *column strip* once, `kernel_w` wide and as tall as the image:
//!
//! ```text
//! L[n, w, h, 0..kernel_w, 0..c] = I[n, h, stride_w*w .. stride_w*w + kernel_w, 0..c]
//! ```
//!
//! Read as a matrix, L has a row for each (image, output column) and `in_h * kernel_w * c` columns.
//! Output row h is the product of a *window* of L, `kernel_h * kernel_w * c` columns from column
//! `h * stride_h * kernel_w * c` on, and the kernel matrix. The windows of neighbouring output rows
//! overlap; that is where the memory is saved. The windows are handed to the GEMM where they lie, as
//! a pointer and a leading dimension.
//!
//! The paper's worked example, a 7x7 input and a 3x3 kernel at stride 1, has windows P, Q, R, S, T:
//!
//! ```
//! use mec_core::paper::Lowered;
//! use mec_core::{ConvOptions, Footprint, Geometry};
//!
//! let geometry = Geometry::new([1, 1, 7, 7], [1, 1, 3, 3], &ConvOptions::default())?;
//! let input: Vec<f32> = (0..49).map(|v| v as f32).collect();
//! let lowered = Lowered::new(&geometry, &input)?;
//!
//! // L is 5x21, where im2col is 25x9: 53 % smaller (the paper says 54 %).
//! assert_eq!(lowered.shape(), [5, 21]);
//! let footprint = Footprint::of(&geometry);
//! assert_eq!((footprint.im2col, footprint.lowered, footprint.saving()), (25 * 9, 5 * 21, 120));
//!
//! // Five windows of 5x9 begin at columns 0, 3, 6, 9 and 12.
//! let windows: Vec<_> = (0..5).map(|h| lowered.window(h)).collect();
//! assert_eq!(windows, [0..9, 3..12, 6..15, 9..18, 12..21]);
//!
//! // Row w of window h is the patch of the input that output (h, w) is computed from.
//! for (h, window) in windows.iter().enumerate() {
//!     for w in 0..5 {
//!         let patch: Vec<f32> = (0..9).map(|i| input[(h + i / 3) * 7 + w + i % 3]).collect();
//!         assert_eq!(lowered.row(w)[window.clone()], patch);
//!     }
//! }
//! # Ok::<(), mec_core::Error>(())
//! ```
//!
//! # Where this goes beyond the paper
//!
//! - The paper's tensors are n-h-w-c, ours n-c-h-w: [`forward`] copies input, weight and result at its
//!   boundary ([`workspace_bytes`] counts the copies); what lies between is as published.
//! - Padding is zeros written into L, dilation in width a step in the copy, and each group a problem
//!   of its own.
//! - Under dilation in height a window's kernel rows are not neighbours. L's rows are therefore
//!   ordered by their residue modulo the dilation, which makes them neighbours again.
//! - One thread. This is the yardstick for memory and for results; [`Algorithm::Strip`] is the fast
//!   one.
//!
//! [`Algorithm::Strip`]: crate::Algorithm::Strip

use std::ops::Range;

use crate::gemm::{self, Matrix};
use crate::{Element, Error, Footprint, Geometry, View, expect_forward};

/// The paper's T: the widest output for which [`Solution::A`] is taken.
pub const T: usize = 100;

/// How the windows are multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Solution {
    /// One GEMM for each output row over all images: few large products. The result is in the order
    /// h-n-w-c and is permuted with L as scratch, so that it must not be larger than L.
    A,
    /// One GEMM for each image and output row, straight into the order n-h-w-c.
    B,
}

impl Solution {
    /// The paper's choice: [`Solution::A`] where `out_w <= T` and the output is no larger than L.
    pub fn of(geometry: &Geometry) -> Self {
        let footprint = Footprint::of(geometry);
        if geometry.width.output <= T && footprint.output <= footprint.lowered {
            Solution::A
        } else {
            Solution::B
        }
    }
}

/// L: the column strips of an input.
#[derive(Debug, Clone)]
pub struct Lowered<T> {
    data: Vec<T>,
    geometry: Geometry,
}

impl<T: Element> Lowered<T> {
    /// Lowers `input`, row-major `[batch, height, width, channels_in]`, over all its channels.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] if `input` has another length, [`Error::TooLarge`] if L would be larger than
    /// the address space.
    pub fn new(geometry: &Geometry, input: &[T]) -> Result<Self, Error> {
        let [batch, channels, in_h, in_w] = geometry.input_shape();
        if input.len() != batch * in_h * in_w * channels {
            return Err(Error::Shape {
                what: "input",
                got: vec![input.len()],
                expected: vec![batch, in_h, in_w, channels],
            });
        }
        let len = usize::try_from(Footprint::of(geometry).lowered)
            .ok()
            .filter(|&len| len <= isize::MAX as usize / size_of::<T>())
            .ok_or(Error::TooLarge { what: "lowered matrix" })?;
        let mut lowered = Self { data: vec![T::ZERO; len], geometry: *geometry };
        let [_, columns] = lowered.shape();
        let (height, width) = (&geometry.height, &geometry.width);
        let strip = width.kernel * channels;
        for n in 0..batch {
            for w in 0..width.output {
                for h in 0..in_h {
                    let row = (n * width.output + w) * columns;
                    let at = row + lowered.position(h + height.pad_before) * strip;
                    for k in 0..width.kernel {
                        let column = w * width.stride + k * width.dilation;
                        // What is not copied is padding: L is zero from the start.
                        if let Some(x) = column.checked_sub(width.pad_before)
                            && x < in_w
                        {
                            let from = ((n * in_h + h) * in_w + x) * channels;
                            lowered.data[at + k * channels..][..channels]
                                .copy_from_slice(&input[from..][..channels]);
                        }
                    }
                }
            }
        }
        Ok(lowered)
    }

    /// Rows, one for each image and output column, and columns, `kernel_w * channels_in` for each
    /// row of the padded input.
    pub fn shape(&self) -> [usize; 2] {
        let g = &self.geometry;
        [g.batch * g.width.output, g.height.padded() * g.width.kernel * g.channels_in]
    }

    /// Row `index` of L.
    ///
    /// # Panics
    ///
    /// If there is no such row.
    pub fn row(&self, index: usize) -> &[T] {
        let columns = self.shape()[1];
        &self.data[index * columns..][..columns]
    }

    /// The columns of L that output row `h` is computed from.
    pub fn window(&self, h: usize) -> Range<usize> {
        let (height, strip) =
            (&self.geometry.height, self.geometry.width.kernel * self.geometry.channels_in);
        let start = self.position(h * height.stride) * strip;
        start..start + height.kernel * strip
    }

    /// Where row `h` of the padded input lies among L's: in its place, unless there is dilation;
    /// then after all rows of smaller residues.
    fn position(&self, h: usize) -> usize {
        let height = &self.geometry.height;
        let (residue, rows) = (h % height.dilation, height.padded());
        let before = residue * (rows / height.dilation) + residue.min(rows % height.dilation);
        before + h / height.dilation
    }

    /// `rows` rows of L from `first` on, and of them the columns of output row `h`'s window.
    fn window_matrix(&self, first: usize, rows: usize, h: usize) -> Matrix<'_, T> {
        let window = self.window(h);
        let leading = self.shape()[1];
        Matrix {
            data: &self.data[first * leading + window.start..],
            rows,
            columns: window.len(),
            leading,
        }
    }
}

/// Algorithm 2: n-h-w-c input and h-w-c-k kernel to n-h-w-k output, all row-major, of one group.
fn published<T: Element>(
    g: &Geometry,
    solution: Solution,
    input: &[T],
    kernel: &[T],
    output: &mut [T],
) -> Result<(), Error> {
    let [batch, out_c, out_h, out_w] = g.output_shape();
    let kernel = Matrix {
        data: kernel,
        rows: g.height.kernel * g.width.kernel * g.channels_in,
        columns: out_c,
        leading: out_c,
    };
    let mut lowered = Lowered::new(g, input)?;
    match solution {
        Solution::A => {
            let rows = batch * out_w;
            for (h, output) in output.chunks_exact_mut(rows * out_c).enumerate() {
                gemm::multiply(lowered.window_matrix(0, rows, h), kernel, output);
            }
            // h-n-w-k to n-h-w-k, a line of w and k at a time.
            let scratch = &mut lowered.data[..output.len()];
            scratch.copy_from_slice(output);
            let line = out_w * out_c;
            for (i, output) in output.chunks_exact_mut(line).enumerate() {
                let (n, h) = (i / out_h, i % out_h);
                output.copy_from_slice(&scratch[(h * batch + n) * line..][..line]);
            }
        }
        Solution::B => {
            for (i, output) in output.chunks_exact_mut(out_w * out_c).enumerate() {
                let (n, h) = (i / out_h, i % out_h);
                gemm::multiply(lowered.window_matrix(n * out_w, out_w, h), kernel, output);
            }
        }
    }
    Ok(())
}

/// The output of a convolution, row-major `[batch, channels_out, out_h, out_w]`, computed as
/// published; without a `solution` the paper's rule picks one ([`Solution::of`]).
///
/// # Errors
///
/// [`Error::Shape`] if a tensor does not have the geometry's shape; [`Error::Unsupported`] for
/// [`Solution::A`] with an output larger than L; [`Error::TooLarge`] if L cannot be addressed.
pub fn forward<T: Element>(
    geometry: &Geometry,
    solution: Option<Solution>,
    x: &View<T>,
    weight: &View<T>,
    bias: Option<&[T]>,
) -> Result<Vec<T>, Error> {
    expect_forward(geometry, x, weight, bias)?;
    let footprint = Footprint::of(geometry);
    let solution = solution.unwrap_or_else(|| Solution::of(geometry));
    if solution == Solution::A && footprint.output > footprint.lowered {
        return Err(Error::Unsupported {
            algorithm: "the paper's Solution A",
            what: "an output larger than the lowered matrix, which is its scratch",
        });
    }
    let [batch, channels_out, out_h, out_w] = geometry.output_shape();
    let mut y = vec![T::ZERO; batch * channels_out * out_h * out_w];
    if y.is_empty() {
        return Ok(y);
    }
    let group = one_group(geometry);
    let mut output = vec![T::ZERO; y.len() / geometry.groups];
    for index in 0..geometry.groups {
        let input = to_nhwc(&group, index, x);
        let kernel = to_hwio(&group, index, weight);
        published(&group, solution, &input, &kernel, &mut output)?;
        let line = out_w * group.channels_out;
        for (i, line) in output.chunks_exact(line).enumerate() {
            let (n, h) = (i / out_h, i % out_h);
            for c in 0..group.channels_out {
                let channel = index * group.channels_out + c;
                let bias = bias.map_or(T::ZERO, |bias| bias[channel]);
                let row = &mut y[((n * channels_out + channel) * out_h + h) * out_w..][..out_w];
                for (y, &value) in row.iter_mut().zip(line[c..].iter().step_by(group.channels_out))
                {
                    *y = value + bias;
                }
            }
        }
    }
    Ok(y)
}

/// Most bytes that [`forward`] holds beside its arguments and its result, for elements of `size`
/// bytes: L, the tensors of one group in the paper's layouts, and what the GEMM packs.
///
/// `usize::MAX` if that cannot be addressed.
pub fn workspace_bytes(geometry: &Geometry, solution: Option<Solution>, size: usize) -> usize {
    let group = one_group(geometry);
    let footprint = Footprint::of(&group);
    if footprint.output == 0 {
        return 0;
    }
    let rows = match solution.unwrap_or_else(|| Solution::of(geometry)) {
        Solution::A => group.batch * group.width.output,
        Solution::B => group.width.output,
    };
    let inner = group.height.kernel * group.width.kernel * group.channels_in;
    let packed = gemm::packed_elements(rows, inner, group.channels_out) as u128;
    let elements =
        footprint.input + footprint.weight + footprint.lowered + footprint.output + packed;
    usize::try_from(elements * size as u128).unwrap_or(usize::MAX)
}

/// The problem that every group is.
fn one_group(geometry: &Geometry) -> Geometry {
    Geometry {
        channels_in: geometry.channels_in / geometry.groups,
        channels_out: geometry.channels_out / geometry.groups,
        groups: 1,
        ..*geometry
    }
}

/// The input channels of group `index`, row-major `[batch, height, width, channels]`.
fn to_nhwc<T: Element>(group: &Geometry, index: usize, x: &View<T>) -> Vec<T> {
    let [batch, channels, height, width] = group.input_shape();
    let first = index * channels;
    let mut nhwc = Vec::with_capacity(batch * height * width * channels);
    for n in 0..batch {
        for h in 0..height {
            for w in 0..width {
                nhwc.extend((first..first + channels).map(|c| x.at([n, c, h, w])));
            }
        }
    }
    nhwc
}

/// The kernel matrix of group `index`, row-major `[kernel_h, kernel_w, channels_in, channels_out]`.
fn to_hwio<T: Element>(group: &Geometry, index: usize, weight: &View<T>) -> Vec<T> {
    let [channels_out, channels_in, height, width] = group.weight_shape();
    let first = index * channels_out;
    let mut hwio = Vec::with_capacity(height * width * channels_in * channels_out);
    for h in 0..height {
        for w in 0..width {
            for c in 0..channels_in {
                hwio.extend((first..first + channels_out).map(|o| weight.at([o, c, h, w])));
            }
        }
    }
    hwio
}
