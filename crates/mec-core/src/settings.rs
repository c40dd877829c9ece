//! What a caller may choose about how a convolution is computed.

use std::fmt;

/// Which implementation computes the convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Algorithm {
    /// The fastest one for the problem. On the CPU that is [`Algorithm::Winograd`] or
    /// [`Algorithm::Strip`].
    #[default]
    Auto,
    /// MEC by strips: the lowered matrix exists one packed panel at a time.
    Strip,
    /// Winograd's minimal filtering F(2x2, 3x3) on panels like those of [`Algorithm::Strip`]: half the
    /// multiply-adds or fewer for kernels of 3 x 3 and more (at a stride: from 7 x 7 on). Forward pass
    /// and input gradient, where it applies; what it does not apply to, and a call whose result is not
    /// finite, is computed by [`Algorithm::Strip`].
    Winograd,
    /// MEC as published (Cho & Brand, ICML 2017, Algorithm 2): the whole lowered matrix, then one
    /// GEMM for each window. Forward only; the gradients are those of [`Algorithm::Strip`].
    Paper,
}

/// How to run a problem; results do not depend on any of it beyond rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Settings {
    /// Which implementation to use.
    pub algorithm: Algorithm,
    /// Most bytes the call may hold beside its inputs and results, over all threads together.
    ///
    /// `None` stands for the engine's own bound, [`WORKSPACE_PER_THREAD`](crate::WORKSPACE_PER_THREAD)
    /// for each thread of [`Algorithm::Strip`], and for no bound on [`Algorithm::Paper`].
    pub workspace_limit: Option<usize>,
}

/// The four computations a convolution layer needs for training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pass {
    /// Output from input, weight and bias.
    Forward,
    /// Gradient in the input.
    InputGradient,
    /// Gradient in the weight.
    WeightGradient,
    /// Gradient in the bias.
    BiasGradient,
}

impl fmt::Display for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Pass::Forward => "forward pass",
            Pass::InputGradient => "input gradient",
            Pass::WeightGradient => "weight gradient",
            Pass::BiasGradient => "bias gradient",
        })
    }
}
