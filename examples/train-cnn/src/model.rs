//! The network: three blocks of convolution, ReLU and max-pooling, then two linear layers.

// The swap: this import in place of `burn::nn::conv` is all it takes. The model below names both, for
// the comparison. The activation within the convolution is one line more, and saves the memory of an output.
use burn_mec::Activation;
use burn_mec::nn::conv as mec;

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::nn::pool::{MaxPool2d, MaxPool2dConfig};
use burn::nn::{Linear, LinearConfig, PaddingConfig2d};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor};
use burn::train::{ClassificationOutput, InferenceStep, TrainOutput, TrainStep};

use crate::args::ConvKind;
use crate::data::{Batch, CLASSES};

/// Output channels of the blocks. Each block halves height and width.
const CHANNELS: [usize; 3] = [16, 32, 64];
const HIDDEN: usize = 128;

/// A convolution of 3x3 that keeps height and width, and ReLU.
#[derive(Module, Debug)]
pub enum Conv {
    Mec(mec::Conv2d),
    Burn(Conv2d),
}

impl Conv {
    fn new(kind: ConvKind, channels: [usize; 2], device: &Device) -> Self {
        let (kernel, padding) = ([3, 3], PaddingConfig2d::Same);
        match kind {
            ConvKind::Mec => Self::Mec(
                mec::Conv2dConfig::new(channels, kernel)
                    .with_padding(padding)
                    .with_activation(Some(Activation::Relu))
                    .init(device),
            ),
            ConvKind::Burn => {
                Self::Burn(Conv2dConfig::new(channels, kernel).with_padding(padding).init(device))
            }
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        match self {
            Self::Mec(conv) => conv.forward(x),
            Self::Burn(conv) => relu(conv.forward(x)),
        }
    }

    fn with_kind(self, kind: ConvKind) -> Self {
        match (self, kind) {
            (Self::Mec(conv), ConvKind::Burn) => {
                Self::Burn(mec::Conv2d { activation: None, ..conv }.into())
            }
            (Self::Burn(conv), ConvKind::Mec) => {
                Self::Mec(mec::Conv2d { activation: Some(Activation::Relu), ..conv.into() })
            }
            (same, _) => same,
        }
    }
}

/// The network.
#[derive(Module, Debug)]
pub struct Model {
    convs: Vec<Conv>,
    pool: MaxPool2d,
    hidden: Linear,
    output: Linear,
}

impl Model {
    /// A network for images of `[channels, height, width]`, its weights drawn by `device`'s generator.
    pub fn new(kind: ConvKind, [channels, height, width]: [usize; 3], device: &Device) -> Self {
        let inputs = std::iter::once(channels).chain(CHANNELS);
        let shrunk = |size: usize| size >> CHANNELS.len();
        let features = CHANNELS[CHANNELS.len() - 1] * shrunk(height) * shrunk(width);
        Self {
            convs: inputs.zip(CHANNELS).map(|(i, o)| Conv::new(kind, [i, o], device)).collect(),
            pool: MaxPool2dConfig::new([2, 2]).with_strides([2, 2]).init(),
            hidden: LinearConfig::new(features, HIDDEN).init(device),
            output: LinearConfig::new(HIDDEN, CLASSES).init(device),
        }
    }

    /// The same weights under the other kind of convolution.
    pub fn with_kind(self, kind: ConvKind) -> Self {
        Self { convs: self.convs.into_iter().map(|conv| conv.with_kind(kind)).collect(), ..self }
    }

    /// Scores of the classes, `[batch, CLASSES]`, for images `[batch, channels, height, width]`.
    pub fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        let x = self.convs.iter().fold(images, |x, conv| self.pool.forward(conv.forward(x)));
        let x = relu(self.hidden.forward(x.flatten(1, 3)));
        self.output.forward(x)
    }

    fn classify(&self, batch: Batch) -> ClassificationOutput {
        let scores = self.forward(batch.images);
        let loss = CrossEntropyLossConfig::new()
            .init(&scores.device())
            .forward(scores.clone(), batch.labels.clone());
        ClassificationOutput::new(loss, scores, batch.labels)
    }
}

impl TrainStep for Model {
    type Input = Batch;
    type Output = ClassificationOutput;

    fn step(&self, batch: Batch) -> TrainOutput<ClassificationOutput> {
        let output = self.classify(batch);
        TrainOutput::new(self, output.loss.backward(), output)
    }
}

impl InferenceStep for Model {
    type Input = Batch;
    type Output = ClassificationOutput;

    fn step(&self, batch: Batch) -> ClassificationOutput {
        self.classify(batch)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Distribution, Tolerance};

    use super::*;
    use crate::args::BackendKind;

    fn random_images(shape: [usize; 4], device: &Device) -> Tensor<4> {
        Tensor::random(shape, Distribution::Uniform(-1.0, 1.0), device)
    }

    #[test]
    fn scores_every_class_for_grey_and_colour_images_on_all_backends() {
        for backend in [BackendKind::Flex, BackendKind::Ndarray, BackendKind::Wgpu] {
            let device = backend.device();
            for kind in [ConvKind::Mec, ConvKind::Burn] {
                for shape in [[1, 28, 28], [3, 32, 32]] {
                    let [channels, height, width] = shape;
                    let images = random_images([2, channels, height, width], &device);
                    let scores = Model::new(kind, shape, &device).forward(images);
                    assert_eq!(scores.dims(), [2, CLASSES], "{backend:?} {kind:?} {shape:?}");
                }
            }
        }
    }

    #[test]
    fn both_convolutions_give_the_same_scores_for_the_same_weights() {
        let device = Device::flex();
        let model = Model::new(ConvKind::Mec, [1, 28, 28], &device);
        let images = random_images([3, 1, 28, 28], &device);
        let ours = model.forward(images.clone()).into_data();
        let model = model.with_kind(ConvKind::Burn);
        assert!(model.convs.iter().all(|conv| matches!(conv, Conv::Burn(_))));
        let theirs = model.forward(images).into_data();
        ours.assert_approx_eq::<f32>(&theirs, Tolerance::absolute(1e-5));
    }

    #[test]
    fn a_training_step_gives_a_gradient_to_every_parameter() {
        let device = Device::flex().autodiff();
        let model = Model::new(ConvKind::Mec, [1, 28, 28], &device);
        let images = random_images([4, 1, 28, 28], &device);
        let labels = Tensor::from_data([0, 3, 9, 3], &device);
        let output = TrainStep::step(&model, Batch { images, labels });
        // Weight and bias of three convolutions and two linear layers.
        assert_eq!(output.grads.len(), 10);
    }
}
