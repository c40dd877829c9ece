//! burn-ndarray: reference-counted arrays, or bytes borrowed from a file.
#![allow(deprecated)] // The backend, which Burn means to drop.

use std::slice;

use burn::backend::NdArray;
use burn::backend::TensorMetadata;
use burn::backend::ndarray::NdArrayTensor;
use burn::backend::tensor::FloatTensor;

use super::cpu::{CpuBackend, Element, Strided};

impl CpuBackend for NdArray {
    fn elements<T: Element, const D: usize>(tensor: &FloatTensor<Self>) -> Strided<'_, T, D> {
        assert_eq!(tensor.dtype(), T::dtype(), "the tensor has elements of another type");
        let (first, shape, strides) = match tensor {
            NdArrayTensor::F32(storage) => {
                let view = storage.view();
                (view.as_ptr().cast::<T>(), dims(view.shape()), dims(view.strides()))
            }
            NdArrayTensor::F64(storage) => {
                let view = storage.view();
                (view.as_ptr().cast::<T>(), dims(view.shape()), dims(view.strides()))
            }
            other => panic!("not a float tensor of this backend: {:?}", other.dtype()),
        };
        if shape.contains(&0) {
            return Strided { data: &[], offset: 0, shape, strides };
        }
        let reach = |limit: fn(isize, isize) -> isize| -> isize {
            let ends = shape.iter().zip(&strides).map(|(&size, &s)| (size as isize - 1) * s);
            ends.map(|end| limit(end, 0)).sum()
        };
        let (lowest, highest) = (reach(isize::min), reach(isize::max));
        // SAFETY: `first` is the address of index zero of an array view of these sizes and strides
        // and, as asserted, of this element type. The elements at its two extremes are part of the
        // view, so one allocation holds both and all that lies between, which it initialised when
        // it was made. The storage is borrowed from `tensor`, whose array is only written to by its
        // sole owner through a mutable reference, for as long as the slice lives.
        let data =
            unsafe { slice::from_raw_parts(first.offset(lowest), (highest - lowest + 1) as usize) };
        Strided { data, offset: lowest.unsigned_abs(), shape, strides }
    }
}

fn dims<T: Copy, const D: usize>(sizes: &[T]) -> [T; D]
where
    [T; D]: for<'a> TryFrom<&'a [T]>,
{
    sizes.try_into().unwrap_or_else(|_| panic!("not a tensor of {D} dimensions"))
}
