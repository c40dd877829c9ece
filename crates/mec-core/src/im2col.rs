//! im2col and one GEMM for each image and group: the way most frameworks convolve, and the baseline.
//!
//! Every kernel-sized patch of an image becomes a column of a matrix, `channels_in * kernel_h *
//! kernel_w` tall and `out_h * out_w` wide; the weight times that matrix is the output, already in
//! the order n-c-h-w. One thread, and one image's matrix at a time.

use crate::gemm::{self, Matrix};
use crate::{Element, Error, Geometry, View, expect_forward};

/// The output of a convolution, row-major `[batch, channels_out, out_h, out_w]`.
///
/// # Errors
///
/// [`Error::Shape`] if a tensor does not have the geometry's shape; [`Error::TooLarge`] if the
/// matrix of one image cannot be addressed.
pub fn forward<T: Element>(
    geometry: &Geometry,
    x: &View<T>,
    weight: &View<T>,
    bias: Option<&[T]>,
) -> Result<Vec<T>, Error> {
    expect_forward(geometry, x, weight, bias)?;
    let [batch, channels_out, out_h, out_w] = geometry.output_shape();
    let mut y = vec![T::ZERO; batch * channels_out * out_h * out_w];
    if y.is_empty() {
        return Ok(y);
    }
    if workspace_bytes(geometry, size_of::<T>()) > isize::MAX as usize {
        return Err(Error::TooLarge { what: "im2col matrix" });
    }
    let Sizes { group_out, inner, columns } = Sizes::of(geometry);
    let [_, _, kernel_h, kernel_w] = geometry.weight_shape();
    let mut matrix = vec![T::ZERO; inner * columns];
    let mut kernel = vec![T::ZERO; group_out * inner];
    for group in 0..geometry.groups {
        for (i, k) in kernel.iter_mut().enumerate() {
            let (o, c) = (group * group_out + i / inner, i % inner / (kernel_h * kernel_w));
            *k = weight.at([o, c, i / kernel_w % kernel_h, i % kernel_w]);
        }
        for n in 0..batch {
            fill(geometry, x, n, group, &mut matrix);
            let first = (n * channels_out + group * group_out) * columns;
            let y = &mut y[first..][..group_out * columns];
            gemm::multiply(
                Matrix { data: &kernel, rows: group_out, columns: inner, leading: inner },
                Matrix { data: &matrix, rows: inner, columns, leading: columns },
                y,
            );
            if let Some(bias) = bias {
                for (y, &bias) in y.chunks_exact_mut(columns).zip(&bias[group * group_out..]) {
                    y.iter_mut().for_each(|y| *y = *y + bias);
                }
            }
        }
    }
    Ok(y)
}

/// Most bytes that [`forward`] holds beside its arguments and its result, for elements of `size`
/// bytes: the matrix of one image and group, the group's weight, and what the GEMM packs.
///
/// `usize::MAX` if that cannot be addressed.
pub fn workspace_bytes(geometry: &Geometry, size: usize) -> usize {
    if geometry.output_shape().contains(&0) {
        return 0;
    }
    let Sizes { group_out, inner, columns } = Sizes::of(geometry);
    let packed = gemm::packed_elements(group_out, inner, columns);
    let matrix = inner as u128 * columns as u128;
    let elements = matrix + (group_out * inner) as u128 + packed as u128;
    usize::try_from(elements * size as u128).unwrap_or(usize::MAX)
}

/// Sizes of the product of one image and group: `group_out x inner` times `inner x columns`.
struct Sizes {
    /// Output channels of a group.
    group_out: usize,
    /// Taps of the kernel.
    inner: usize,
    /// Pixels of the output.
    columns: usize,
}

impl Sizes {
    fn of(geometry: &Geometry) -> Self {
        Self {
            group_out: geometry.channels_out / geometry.groups,
            inner: geometry.weight_shape()[1..].iter().product(),
            columns: geometry.height.output * geometry.width.output,
        }
    }
}

/// Writes the matrix of image `n` and `group`: for each tap the input under it, zero on padding.
fn fill<T: Element>(g: &Geometry, x: &View<T>, n: usize, group: usize, matrix: &mut [T]) {
    let [_, channels, kernel_h, kernel_w] = g.weight_shape();
    let (height, width) = (&g.height, &g.width);
    let mut rows = matrix.chunks_exact_mut(width.output);
    for tap in 0..channels * kernel_h * kernel_w {
        let c = group * channels + tap / (kernel_h * kernel_w);
        let (kh, kw) = (tap / kernel_w % kernel_h, tap % kernel_w);
        for (oh, row) in rows.by_ref().take(height.output).enumerate() {
            let h = (oh * height.stride + kh * height.dilation).wrapping_sub(height.pad_before);
            for (ow, value) in row.iter_mut().enumerate() {
                let w = (ow * width.stride + kw * width.dilation).wrapping_sub(width.pad_before);
                // Before the input the subtraction wraps to beyond it.
                let inside = h < height.input && w < width.input;
                *value = if inside { x.at([n, c, h, w]) } else { T::ZERO };
            }
        }
    }
}
