//! burn-flex: bytes with a layout of shape, strides and offset.

use burn::backend::Flex;
use burn::backend::tensor::FloatTensor;

use super::cpu::{CpuBackend, Element, Strided};

impl CpuBackend for Flex {
    fn elements<T: Element, const D: usize>(tensor: &FloatTensor<Self>) -> Strided<'_, T, D> {
        let layout = tensor.layout();
        Strided {
            data: tensor.storage(),
            offset: layout.start_offset(),
            shape: layout.shape().dims(),
            strides: layout.strides().try_into().expect("one stride for each dimension"),
        }
    }
}
