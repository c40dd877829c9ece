//! The convolution under autodiff, the same for every backend.
//!
//! Each gradient needs one of the other operands: the input's needs the weight, the weight's needs
//! the input, the bias's needs neither. So an operand is kept for the backward pass only if its
//! opposite is tracked, and the bias and the lowered matrix never are. With an activation the output is kept
//! too, as it is after it.

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, NodeGuard, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend};
use mec_core::{Geometry, Settings};

use super::{Bias, Conv2dBackend, Conv2dGradients};
use crate::Activation;

impl<B, C> Conv2dBackend for Autodiff<B, C>
where
    B: Conv2dBackend + Conv2dGradients,
    C: CheckpointStrategy,
{
    fn mec_conv2d(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Bias<Self>,
        activation: Option<Activation>,
        geometry: Geometry,
        settings: Settings,
    ) -> FloatTensor<Self> {
        differentiable(x, weight, bias, activation, geometry, settings, |x, weight, bias| {
            B::mec_conv2d(x, weight, bias, activation, geometry, settings)
        })
    }
}

/// The convolution that `forward` computes on the inner backend, with the gradients of
/// [`Conv2dGradients`]: for implementations of the forward pass other than
/// [`Conv2dBackend::mec_conv2d`].
///
/// `forward` is given `x`, `weight` and `bias`, and returns a tensor of the geometry's output shape, with the
/// activation applied.
pub fn differentiable<B, C>(
    x: FloatTensor<Autodiff<B, C>>,
    weight: FloatTensor<Autodiff<B, C>>,
    bias: Bias<Autodiff<B, C>>,
    activation: Option<Activation>,
    geometry: Geometry,
    settings: Settings,
    forward: impl FnOnce(FloatTensor<B>, FloatTensor<B>, Bias<B>) -> FloatTensor<B>,
) -> FloatTensor<Autodiff<B, C>>
where
    B: Conv2dGradients,
    C: CheckpointStrategy,
{
    // The guards keep the parents registered until the step that depends on them is.
    let (node_x, node_weight) = (x.node(), weight.node());
    match bias {
        Bias::Absent => {
            let parents = [node_x, node_weight];
            let forward = |x, weight| forward(x, weight, Bias::Absent);
            record::<B, C, 2>(parents, x, weight, activation, geometry, settings, forward)
        }
        Bias::PerChannel(bias) => {
            let (bias, node_bias) = bias.into_parts();
            let parents = [node_x, node_weight, node_bias];
            let forward = |x, weight| forward(x, weight, Bias::PerChannel(bias));
            record::<B, C, 3>(parents, x, weight, activation, geometry, settings, forward)
        }
    }
}

/// Computes the convolution and, if one of the parents is tracked, records its backward step.
fn record<B, C, const N: usize>(
    parents: [NodeGuard; N],
    x: FloatTensor<Autodiff<B, C>>,
    weight: FloatTensor<Autodiff<B, C>>,
    activation: Option<Activation>,
    geometry: Geometry,
    settings: Settings,
    forward: impl FnOnce(FloatTensor<B>, FloatTensor<B>) -> FloatTensor<B>,
) -> FloatTensor<Autodiff<B, C>>
where
    B: Conv2dGradients,
    C: CheckpointStrategy,
{
    let step = Backward::<B, N>::prepare::<C>(Conv2dBackward, parents);
    match step.compute_bound().stateful() {
        OpsKind::Tracked(mut step) => {
            let kept_x = weight.is_tracked().then(|| step.checkpoint(&x));
            let kept_weight = x.is_tracked().then(|| step.checkpoint(&weight));
            let y = forward(x.into_primitive(), weight.into_primitive());
            let kept = Kept {
                x: kept_x,
                weight: kept_weight,
                activated: activation.map(|activation| (activation, y.clone())),
                geometry,
                settings,
            };
            step.finish(kept, y)
        }
        OpsKind::UnTracked(step) => {
            let (x, weight) = (x.into_primitive(), weight.into_primitive());
            step.finish(forward(x, weight))
        }
    }
}

/// What the backward pass needs. Tensors are named by their node, whose value the checkpointer
/// holds or recomputes; every one that is named is retrieved exactly once.
#[derive(Debug, Clone)]
struct Kept<B: Backend> {
    x: Option<NodeId>,
    weight: Option<NodeId>,
    /// The activation and its output.
    activated: Option<(Activation, FloatTensor<B>)>,
    geometry: Geometry,
    settings: Settings,
}

/// Parents are the input, the weight and, if there is one, the bias.
#[derive(Debug)]
struct Conv2dBackward;

impl<B: Conv2dGradients, const N: usize> Backward<B, N> for Conv2dBackward {
    type State = Kept<B>;

    fn backward(
        self,
        ops: Ops<Kept<B>, N>,
        gradients: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let Kept { x, weight, activated, geometry, settings } = ops.state;
        let dy = gradients.consume::<B>(&ops.node);
        let dy = match activated {
            Some((activation, y)) => activation.gradient::<B>(y, dy),
            None => dy,
        };
        let tracked = |parent: usize| ops.parents.get(parent)?.as_ref().map(|node| node.id);
        let mut value = |node: Option<NodeId>| -> FloatTensor<B> {
            let node = node.expect("an operand is kept whenever its opposite is tracked");
            checkpointer.retrieve_node_output(node)
        };

        if let Some(node) = tracked(0) {
            let weight = value(weight);
            let dx = B::mec_conv2d_input_gradient(dy.clone(), weight, geometry, settings);
            gradients.register::<B>(node, dx);
        }
        match (tracked(1), tracked(2)) {
            (Some(node_weight), Some(node_bias)) => {
                let x = value(x);
                let (dw, db) = B::mec_conv2d_weight_bias_gradient(x, dy, geometry, settings);
                gradients.register::<B>(node_weight, dw);
                gradients.register::<B>(node_bias, db);
            }
            (Some(node_weight), None) => {
                let dw = B::mec_conv2d_weight_gradient(value(x), dy, geometry, settings);
                gradients.register::<B>(node_weight, dw);
            }
            (None, Some(node_bias)) => {
                gradients.register::<B>(node_bias, B::mec_conv2d_bias_gradient(dy, geometry));
            }
            (None, None) => {}
        }
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use burn::backend::ops::FloatTensorOps;
    use burn::backend::{AutodiffBackend, Flex, TensorMetadata};
    use burn::tensor::TensorData;
    use mec_core::ConvOptions;

    use super::*;

    type B = Autodiff<Flex>;

    fn leaf<const D: usize>(shape: [usize; D], tracked: bool) -> FloatTensor<B> {
        let data = TensorData::ones::<f32, _>(shape);
        let tensor = B::from_inner(Flex::float_from_data(data, &Default::default()));
        B::float_set_require_grad(tensor, tracked)
    }

    /// A buffer that the graph keeps is shared, so it could not be written in place.
    #[test]
    fn keeps_an_operand_only_if_its_opposite_is_tracked() {
        let (input, kernel) = ([1, 2, 5, 5], [3, 2, 3, 3]);
        let geometry = Geometry::new(input, kernel, &ConvOptions::default()).unwrap();
        for tracked in 0..8 {
            let (x_tracked, weight_tracked) = (tracked & 1 != 0, tracked & 2 != 0);
            let (x, weight) = (leaf(input, x_tracked), leaf(kernel, weight_tracked));
            let bias = leaf([3], tracked & 4 != 0);
            let y = B::mec_conv2d(
                x.clone(),
                weight.clone(),
                Bias::PerChannel(bias.clone()),
                None,
                geometry,
                Settings::default(),
            );
            assert_eq!(y.is_tracked(), tracked != 0);
            assert_eq!(!x.can_mut(), weight_tracked, "x is kept, tracked {tracked:03b}");
            assert_eq!(!weight.can_mut(), x_tracked, "weight is kept, tracked {tracked:03b}");
            assert!(bias.can_mut(), "the bias is kept, tracked {tracked:03b}");
            assert!(y.can_mut(), "the output is kept, tracked {tracked:03b}");
        }
    }
}
