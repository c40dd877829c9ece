//! The convolution for every backend whose tensors lie in the memory of this process.
//!
//! Such a backend implements [`CpuBackend`], one function; the rest is here. Tensors are read where
//! they lie, whatever their strides, and results become tensors without a copy. `f32` and `f64` are
//! computed as they are; any other float type the backend has is computed in `f32` and rounded back.

use std::borrow::Cow;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::{DType, TensorData};
use mec_core::{Error, Geometry, Settings, View};

use crate::Activation;
use crate::ops::{Bias, Conv2dBackend, Conv2dGradients};

/// A backend whose tensors lie in memory.
pub(crate) trait CpuBackend: Backend {
    /// The elements of `tensor`, where they lie.
    ///
    /// # Panics
    ///
    /// If `tensor` does not have elements of type `T` and `D` dimensions.
    fn elements<T: Element, const D: usize>(tensor: &FloatTensor<Self>) -> Strided<'_, T, D>;
}

/// The float types that are computed as they are.
#[cfg(feature = "flex")]
pub(crate) trait Element: mec_core::Element + burn::tensor::Element + bytemuck::Pod {}
/// The float types that are computed as they are.
#[cfg(not(feature = "flex"))]
pub(crate) trait Element: mec_core::Element + burn::tensor::Element {}

impl Element for f32 {}
impl Element for f64 {}

/// A tensor as it lies in memory.
pub(crate) struct Strided<'a, T, const D: usize> {
    /// A slice that holds every element, among others perhaps.
    pub(crate) data: &'a [T],
    /// Where in `data` the element lies whose indices are all zero.
    pub(crate) offset: usize,
    pub(crate) shape: [usize; D],
    /// In elements; may be zero or negative.
    pub(crate) strides: [isize; D],
}

impl<'a, T> Strided<'a, T, 4> {
    fn view(self) -> View<'a, T> {
        View::new(self.data, self.offset, self.shape, self.strides)
            .expect("a backend's tensor lies within its storage")
    }
}

impl<'a, T: Copy> Strided<'a, T, 1> {
    /// The elements side by side. Only a bias is read this way.
    fn values(self) -> Cow<'a, [T]> {
        let ([length], [stride]) = (self.shape, self.strides);
        if stride == 1 || length <= 1 {
            return Cow::Borrowed(&self.data[self.offset..][..length]);
        }
        let start = self.offset as isize;
        Cow::Owned((0..length as isize).map(|i| self.data[(start + i * stride) as usize]).collect())
    }
}

impl<B: CpuBackend> Conv2dBackend for B {
    fn mec_conv2d(
        x: FloatTensor<B>,
        weight: FloatTensor<B>,
        bias: Bias<B>,
        activation: Option<Activation>,
        geometry: Geometry,
        settings: Settings,
    ) -> FloatTensor<B> {
        let dtype = x.dtype();
        let (x, weight) = (computable::<B>(x), computable::<B>(weight));
        let bias = match bias {
            Bias::Absent => None,
            Bias::PerChannel(bias) => Some(computable::<B>(bias)),
        };
        let y = match x.dtype() {
            DType::F64 => forward::<B, f64>(&x, &weight, bias.as_ref(), &geometry, &settings),
            _ => forward::<B, f32>(&x, &weight, bias.as_ref(), &geometry, &settings),
        };
        let y = cast::<B>(y, dtype);
        match activation {
            Some(activation) => activation.apply::<B>(y),
            None => y,
        }
    }
}

impl<B: CpuBackend> Conv2dGradients for B {
    fn mec_conv2d_input_gradient(
        dy: FloatTensor<B>,
        weight: FloatTensor<B>,
        geometry: Geometry,
        settings: Settings,
    ) -> FloatTensor<B> {
        let dtype = dy.dtype();
        let (dy, weight) = (computable::<B>(dy), computable::<B>(weight));
        let dx = match dy.dtype() {
            DType::F64 => input_gradient::<B, f64>(&dy, &weight, &geometry, &settings),
            _ => input_gradient::<B, f32>(&dy, &weight, &geometry, &settings),
        };
        cast::<B>(dx, dtype)
    }

    fn mec_conv2d_weight_gradient(
        x: FloatTensor<B>,
        dy: FloatTensor<B>,
        geometry: Geometry,
        settings: Settings,
    ) -> FloatTensor<B> {
        let dtype = dy.dtype();
        let (x, dy) = (computable::<B>(x), computable::<B>(dy));
        let dw = match dy.dtype() {
            DType::F64 => weight_gradient::<B, f64>(&x, &dy, &geometry, &settings),
            _ => weight_gradient::<B, f32>(&x, &dy, &geometry, &settings),
        };
        cast::<B>(dw, dtype)
    }

    fn mec_conv2d_weight_bias_gradient(
        x: FloatTensor<B>,
        dy: FloatTensor<B>,
        geometry: Geometry,
        settings: Settings,
    ) -> (FloatTensor<B>, FloatTensor<B>) {
        let dtype = dy.dtype();
        let (x, dy) = (computable::<B>(x), computable::<B>(dy));
        let (dw, db) = match dy.dtype() {
            DType::F64 => weight_bias_gradient::<B, f64>(&x, &dy, &geometry, &settings),
            _ => weight_bias_gradient::<B, f32>(&x, &dy, &geometry, &settings),
        };
        (cast::<B>(dw, dtype), cast::<B>(db, dtype))
    }

    fn mec_conv2d_bias_gradient(dy: FloatTensor<B>, geometry: Geometry) -> FloatTensor<B> {
        let dtype = dy.dtype();
        let dy = computable::<B>(dy);
        let db = match dy.dtype() {
            DType::F64 => bias_gradient::<B, f64>(&dy, &geometry),
            _ => bias_gradient::<B, f32>(&dy, &geometry),
        };
        cast::<B>(db, dtype)
    }
}

fn forward<B: CpuBackend, T: Element>(
    x: &FloatTensor<B>,
    weight: &FloatTensor<B>,
    bias: Option<&FloatTensor<B>>,
    geometry: &Geometry,
    settings: &Settings,
) -> FloatTensor<B> {
    let bias = bias.map(|bias| B::elements::<T, 1>(bias).values());
    let y = mec_core::forward(
        geometry,
        settings,
        &view::<B, T>(x),
        &view::<B, T>(weight),
        bias.as_deref(),
    );
    tensor::<B, T, 4>(done(y), geometry.output_shape(), x)
}

fn input_gradient<B: CpuBackend, T: Element>(
    dy: &FloatTensor<B>,
    weight: &FloatTensor<B>,
    geometry: &Geometry,
    settings: &Settings,
) -> FloatTensor<B> {
    let (dy_view, weight) = (view::<B, T>(dy), view::<B, T>(weight));
    let dx = mec_core::input_gradient(geometry, settings, &dy_view, &weight);
    tensor::<B, T, 4>(done(dx), geometry.input_shape(), dy)
}

fn weight_gradient<B: CpuBackend, T: Element>(
    x: &FloatTensor<B>,
    dy: &FloatTensor<B>,
    geometry: &Geometry,
    settings: &Settings,
) -> FloatTensor<B> {
    let (x, dy_view) = (view::<B, T>(x), view::<B, T>(dy));
    let dw = mec_core::weight_gradient(geometry, settings, &x, &dy_view);
    tensor::<B, T, 4>(done(dw), geometry.weight_shape(), dy)
}

fn weight_bias_gradient<B: CpuBackend, T: Element>(
    x: &FloatTensor<B>,
    dy: &FloatTensor<B>,
    geometry: &Geometry,
    settings: &Settings,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let (x, dy_view) = (view::<B, T>(x), view::<B, T>(dy));
    let (dw, db) = done(mec_core::weight_bias_gradient(geometry, settings, &x, &dy_view));
    let db = tensor::<B, T, 1>(db, [geometry.channels_out], dy);
    (tensor::<B, T, 4>(dw, geometry.weight_shape(), dy), db)
}

fn bias_gradient<B: CpuBackend, T: Element>(
    dy: &FloatTensor<B>,
    geometry: &Geometry,
) -> FloatTensor<B> {
    let db = mec_core::bias_gradient(geometry, &view::<B, T>(dy));
    tensor::<B, T, 1>(done(db), [geometry.channels_out], dy)
}

fn view<B: CpuBackend, T: Element>(tensor: &FloatTensor<B>) -> View<'_, T> {
    B::elements::<T, 4>(tensor).view()
}

/// A tensor of `values`, which it takes over, beside `neighbour`.
fn tensor<B: CpuBackend, T: Element, const D: usize>(
    values: Vec<T>,
    shape: [usize; D],
    neighbour: &FloatTensor<B>,
) -> FloatTensor<B> {
    B::float_from_data(TensorData::new(values, shape), &neighbour.device())
}

/// Convolution is an infallible function in Burn, so an error has nowhere else to go.
fn done<T>(result: Result<T, Error>) -> T {
    result.unwrap_or_else(|error| panic!("conv2d: {error}"))
}

/// `tensor` in a type the kernels have: itself, unless it is of half precision.
fn computable<B: CpuBackend>(tensor: FloatTensor<B>) -> FloatTensor<B> {
    match tensor.dtype() {
        DType::F64 => tensor,
        _ => cast::<B>(tensor, DType::F32),
    }
}

fn cast<B: CpuBackend>(tensor: FloatTensor<B>, dtype: DType) -> FloatTensor<B> {
    if tensor.dtype() == dtype { tensor } else { B::float_cast(tensor, dtype.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results_are_taken_over_and_views_read_in_place<B: CpuBackend>() {
        let device = Default::default();
        let neighbour = B::float_from_data(TensorData::new(vec![0.0f32], [1]), &device);
        let values: Vec<f32> = (0..120).map(|i| i as f32).collect();
        let address = values.as_ptr();
        let tensor = tensor::<B, f32, 4>(values, [2, 3, 4, 5], &neighbour);
        assert_eq!(B::elements::<f32, 4>(&tensor).data.as_ptr(), address);

        let permuted = B::float_permute(tensor, &[0, 2, 3, 1]);
        let elements = B::elements::<f32, 4>(&permuted);
        assert_eq!(elements.data.as_ptr(), address);
        assert_eq!(elements.shape, [2, 4, 5, 3]);
        assert_eq!(elements.strides, [60, 5, 1, 20]);

        let flipped = B::float_flip(permuted, &[1, 3]);
        let view = B::elements::<f32, 4>(&flipped).view();
        assert_eq!(view.at([1, 0, 2, 1]), (60 + 20 + 3 * 5 + 2) as f32);
    }

    #[cfg(feature = "ndarray")]
    #[test]
    #[allow(deprecated)]
    fn ndarray() {
        results_are_taken_over_and_views_read_in_place::<burn::backend::NdArray>();
    }

    #[cfg(feature = "flex")]
    #[test]
    fn flex() {
        results_are_taken_over_and_views_read_in_place::<burn::backend::Flex>();
    }
}
