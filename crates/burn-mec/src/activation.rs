//! What a convolution may apply to its output.

use burn::backend::Backend;
use burn::backend::tensor::FloatTensor;
use serde::{Deserialize, Serialize};

/// An activation that a convolution applies to its output, as part of it.
///
/// The graph keeps the activated output, which the next layer keeps anyway, and not the one before the
/// activation. An activation as a layer of its own keeps both: in a plain CNN twice the memory between forward
/// and backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Activation {
    /// Rectified linear unit: `max(y, 0)`. NaN stays NaN, and the gradient at 0 is 0, as in Burn.
    Relu,
}

impl Activation {
    /// The activation of `y`, in its place where nobody else has it.
    pub fn apply<B: Backend>(self, y: FloatTensor<B>) -> FloatTensor<B> {
        match self {
            Self::Relu => B::relu(y),
        }
    }

    /// The gradient before the activation, where `y` is the activated output and `dy` the gradient in it.
    pub fn gradient<B: Backend>(self, y: FloatTensor<B>, dy: FloatTensor<B>) -> FloatTensor<B> {
        match self {
            Self::Relu => B::relu_backward(y, dy),
        }
    }
}
