//! MEC as published, on the device: one lowering kernel, then a batched matrix product of overlapping
//! windows of L.
//!
//! As in [`mec_core::paper`], L has a row for each image and output column, which holds the column's strip
//! of the input, and output row h is a window of it times the kernel. The windows are handed to Burn's
//! matrix product as a strided view `[out_h, images * out_w, kernel_h * kernel_w * channels]` of L in
//! which neighbours overlap. Its result, in the order h-n-w-c, is then stored in the output's order.
//!
//! Under dilation in height the kernel rows of a window are not neighbours. Output rows are therefore
//! taken in classes whose windows meet the same input rows, and L is made for one class at a time.

use burn::backend::ops::FloatTensorOps;
use burn::tensor::{Shape, Slice};
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::cubecl::zspace::metadata::Metadata;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::kernel::matmul::{MatmulStrategy, matmul};
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use mec_core::{Geometry, Pass, Settings};

use super::Error;
use super::device::Device;
use super::launch::{address_type, channels_last, cubes, elem};

/// Output rows whose windows meet input rows of the same residue modulo the dilation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Class {
    /// The first of them, and the distance to the next.
    first: usize,
    step: usize,
    /// How many there are.
    count: usize,
    /// Rows of L from a window to the next.
    window_step: usize,
    /// Rows of L for each image and output column.
    rows: usize,
}

impl Class {
    fn all(g: &Geometry) -> impl Iterator<Item = Self> {
        let h = g.height;
        // The nearest output row whose window begins a whole number of dilations further on.
        let step = (1..=h.dilation).find(|step| (step * h.stride).is_multiple_of(h.dilation));
        let step = step.unwrap_or(h.dilation);
        (0..step.min(h.output)).map(move |first| {
            let count = (h.output - first).div_ceil(step);
            let window_step = step * h.stride / h.dilation;
            Self { first, step, count, window_step, rows: (count - 1) * window_step + h.kernel }
        })
    }
}

/// The forward pass, a group and as many images at a time as the workspace limit and the device's
/// largest buffer allow.
pub(super) fn forward(
    x: CubeTensor,
    weight: CubeTensor,
    bias: Option<CubeTensor>,
    geometry: &Geometry,
    settings: &Settings,
) -> Result<CubeTensor, Error> {
    let g = geometry;
    let (channels, outputs) = (g.channels_in / g.groups, g.channels_out / g.groups);
    let strip = g.width.kernel * channels;
    let window = g.height.kernel * strip;
    let y = channels_last(&x, g.output_shape());
    if y.meta.num_elements() == 0 {
        return Ok(y);
    }
    if window == 0 {
        // No channels to sum: Burn's product has no empty axis.
        return super::launch::forward(x, weight, bias, geometry);
    }

    let size = x.elem_size();
    let largest = Class::all(g).max_by_key(|class| class.rows).expect("there is an output row");
    let lowered = g.width.output * largest.rows * strip * size;
    let product = largest.count * g.width.output * outputs * size;
    let kernel = g.weight_shape().iter().product::<usize>() * size;
    let minimum = lowered + product + kernel;
    let limit = settings.workspace_limit.unwrap_or(usize::MAX);
    if limit < minimum {
        let pass = Pass::Forward;
        return Err(mec_core::Error::WorkspaceLimit { pass, minimum, limit }.into());
    }
    let buffer = y.client.properties().memory.max_page_size as usize;
    if lowered.max(product) > buffer {
        return Err(Error::Device { what: "buffer size" });
    }
    let images = ((limit - kernel) / (lowered + product)).min(buffer / lowered.max(product));

    // [channels_out, channels, h, w] as [h, w, channels, channels_out]: a matrix for each group.
    let weight = CubeBackend::float_permute(weight, &[2, 3, 1, 0]);
    for group in 0..g.groups {
        let columns = Slice::from(group * outputs..(group + 1) * outputs);
        let matrix = match g.groups {
            1 => weight.clone(),
            _ => CubeBackend::float_slice(
                weight.clone(),
                &[Slice::full(), Slice::full(), Slice::full(), columns],
            ),
        };
        let matrix =
            CubeBackend::float_reshape(into_contiguous(matrix), Shape::from([1, window, outputs]));
        for class in Class::all(g) {
            for first in (0..g.batch).step_by(images) {
                let part = Part { group, first, count: images.min(g.batch - first), class };
                let windows = part.lower(&x, g)?;
                let product = matmul(windows, matrix.clone(), None, MatmulStrategy::Cube, x.dtype)
                    .map_err(|_| Error::Device { what: "matrix product" })?;
                part.store(product, bias.as_ref(), &y, g)?;
            }
        }
    }
    Ok(y)
}

/// What is computed at a time.
struct Part {
    group: usize,
    /// First image, and how many.
    first: usize,
    count: usize,
    class: Class,
}

impl Part {
    /// L, as its windows `[rows of the class, images * out_w, kernel_h * kernel_w * channels]`.
    fn lower(&self, x: &CubeTensor, g: &Geometry) -> Result<CubeTensor, Error> {
        let channels = g.channels_in / g.groups;
        let strip = g.width.kernel * channels;
        let columns = self.count * g.width.output;
        let len = columns * self.class.rows * strip;
        let (client, device) = (x.client.clone(), x.device.clone());
        let lowered = empty_device_contiguous_dtype(client, device, Shape::from([len]), x.dtype);
        let first_row = (self.class.first * g.height.stride) as i32 - g.height.pad_before as i32;
        let (count, dim) = elementwise(x, len)?;
        // SAFETY: each unit below `len` writes its own element, of a position of `x` it has tested.
        unsafe {
            lower_kernel::launch_unchecked(
                &x.client,
                count,
                dim,
                address_type([x, &lowered]),
                x.clone().into_tensor_arg(),
                lowered.clone().into_buffer_arg(),
                self.first,
                self.group * channels,
                channels,
                g.width.kernel,
                g.width.output,
                self.class.rows,
                first_row,
                g.height.dilation,
                g.width.stride,
                g.width.dilation,
                g.width.pad_before as i32,
                len,
                elem(x.dtype),
            );
        }
        let mut windows = lowered;
        let shape = Shape::from([self.class.count, columns, g.height.kernel * strip]);
        let strides = [self.class.window_step * strip, self.class.rows * strip, 1];
        *windows.meta = Metadata::new(shape, strides);
        Ok(windows)
    }

    /// Stores `product`, `[rows of the class, images * out_w, outputs]`, in `y`.
    fn store(
        &self,
        product: CubeTensor,
        bias: Option<&CubeTensor>,
        y: &CubeTensor,
        g: &Geometry,
    ) -> Result<(), Error> {
        let outputs = g.channels_out / g.groups;
        let product = into_contiguous(product);
        let len = product.meta.num_elements();
        let (count, dim) = elementwise(y, len)?;
        let address = address_type([&product, y]);
        // SAFETY: each unit below `len` reads its own element and writes one of `y`.
        unsafe {
            store_kernel::launch_unchecked(
                &y.client,
                count,
                dim,
                address,
                product.into_buffer_arg(),
                bias.map(|bias| bias.clone().into_tensor_arg()).into(),
                y.clone().into_tensor_arg(),
                self.first,
                self.count,
                self.group * outputs,
                outputs,
                g.width.output,
                self.class.first,
                self.class.step,
                len,
                elem(y.dtype),
            );
        }
        Ok(())
    }
}

/// A launch of a unit for each of `len` elements.
fn elementwise(tensor: &CubeTensor, len: usize) -> Result<(CubeCount, CubeDim), Error> {
    let device = Device::of(&tensor.client);
    let units = 128.min(device.max_units);
    Ok((cubes(&device, [len.div_ceil(units)])?, CubeDim::new_1d(units as u32)))
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn lower_kernel<E: Numeric>(
    x: &Tensor<E>,
    lowered: &mut [E],
    first_image: usize,
    first_channel: usize,
    channels: usize,
    kernel_w: usize,
    out_w: usize,
    rows: usize,
    first_row: i32,
    row_step: usize,
    stride_w: usize,
    dilation_w: usize,
    pad_w: i32,
    len: usize,
    #[define(E)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= len {
        terminate!();
    }
    let channel = ABSOLUTE_POS % channels;
    let rest = ABSOLUTE_POS / channels;
    let tap = rest % kernel_w;
    let rest = rest / kernel_w;
    let row = first_row + (rest % rows * row_step) as i32;
    let rest = rest / rows;
    let column = (rest % out_w * stride_w + tap * dilation_w) as i32 - pad_w;
    let image = first_image + rest / out_w;
    let mut value = E::from_int(0);
    if row >= 0 && (row as usize) < x.shape(2) && column >= 0 && (column as usize) < x.shape(3) {
        value = x[image * x.stride(0)
            + (first_channel + channel) * x.stride(1)
            + row as usize * x.stride(2)
            + column as usize * x.stride(3)];
    }
    lowered[ABSOLUTE_POS] = value;
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn store_kernel<E: Numeric>(
    product: &[E],
    bias: ComptimeOption<&Tensor<E>>,
    y: &mut Tensor<E>,
    first_image: usize,
    images: usize,
    first_output: usize,
    outputs: usize,
    out_w: usize,
    first_row: usize,
    row_step: usize,
    len: usize,
    #[define(E)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= len {
        terminate!();
    }
    let channel = first_output + ABSOLUTE_POS % outputs;
    let rest = ABSOLUTE_POS / outputs;
    let column = rest % out_w;
    let rest = rest / out_w;
    let image = first_image + rest % images;
    let row = first_row + rest / images * row_step;
    let mut value = product[ABSOLUTE_POS];
    #[comptime]
    if let ComptimeOption::Some(bias) = bias {
        value += bias[channel * bias.stride(0)];
    }
    let at = image * y.stride(0) + channel * y.stride(1) + row * y.stride(2) + column * y.stride(3);
    y[at] = value;
}

#[cfg(test)]
mod tests {
    use mec_core::ConvOptions;

    use super::*;

    /// Every output row is in one class, and its window meets the input rows that it should.
    #[test]
    fn classes_partition_the_output_rows() {
        for (stride, dilation) in [(1, 1), (2, 1), (1, 2), (2, 3), (4, 6), (3, 2)] {
            let options = ConvOptions {
                stride: [stride, 1],
                dilation: [dilation, 1],
                ..ConvOptions::default()
            };
            let g = Geometry::new([1, 1, 40, 1], [1, 1, 3, 1], &options).unwrap();
            let mut seen = vec![0; g.height.output];
            for class in Class::all(&g) {
                for window in 0..class.count {
                    let output = class.first + window * class.step;
                    seen[output] += 1;
                    for tap in 0..3 {
                        let row = window * class.window_step + tap;
                        assert!(row < class.rows);
                        let input = class.first * stride + row * dilation;
                        assert_eq!(input, output * stride + tap * dilation);
                    }
                }
            }
            assert!(seen.iter().all(|&times| times == 1), "{stride} {dilation}: {seen:?}");
        }
    }
}
