//! Networks as data: a list of layers, built in or read from a file.
//!
//! One description serves both sides of a profile: [`crate::predict`] walks it with sizes alone,
//! and the measuring side makes Burn modules of it.

use mec_core::{ConvOptions, Geometry};
use serde::Deserialize;

use crate::Error;

/// A network for images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    /// Its name, for example `resnet18`.
    pub name: String,
    /// Channels, height and width of an image.
    pub input: [usize; 3],
    /// The layers, in order.
    pub layers: Vec<Layer>,
}

/// One layer of a network.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layer {
    /// A 2-D convolution.
    Conv(Conv),
    /// Batch normalization over the channels.
    BatchNorm,
    /// Rectified linear unit.
    Relu,
    /// Maximum over windows.
    MaxPool(Pool),
    /// Mean over each channel, whatever the image's size: `[channels, 1, 1]`.
    GlobalAvgPool,
    /// A fully connected layer with a bias, of this many outputs; flattens an image before it.
    Linear(usize),
    /// The sum of two branches.
    Residual(Residual),
}

/// A 2-D convolution.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conv {
    /// Output channels.
    pub out: usize,
    /// Height and width of the kernel.
    pub kernel: usize,
    /// Step along both axes.
    #[serde(default = "one")]
    pub stride: usize,
    /// Zeros on all four sides.
    #[serde(default)]
    pub padding: usize,
    /// Step between kernel elements.
    #[serde(default = "one")]
    pub dilation: usize,
    /// Independent blocks of channels.
    #[serde(default = "one")]
    pub groups: usize,
    /// Whether a bias is added.
    #[serde(default = "yes")]
    pub bias: bool,
}

/// Windows of a pooling layer.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    /// Height and width of a window.
    pub kernel: usize,
    /// Step along both axes.
    pub stride: usize,
    /// Positions added on all four sides.
    #[serde(default)]
    pub padding: usize,
}

/// Two branches over the same input, whose outputs are added.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Residual {
    /// The main branch.
    pub body: Vec<Layer>,
    /// The other branch; empty for the input itself.
    #[serde(default)]
    pub shortcut: Vec<Layer>,
}

fn one() -> usize {
    1
}

fn yes() -> bool {
    true
}

/// What a layer computes on: an image or features.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Channels, height and width.
    Image([usize; 3]),
    /// This many numbers.
    Features(usize),
}

impl Shape {
    /// Numbers for each image of the batch.
    pub fn elements(self) -> usize {
        match self {
            Shape::Image(sizes) => sizes.iter().product(),
            Shape::Features(features) => features,
        }
    }
}

impl Conv {
    /// The layer as a problem of `batch` images of `[channels, height, width]`.
    ///
    /// # Errors
    ///
    /// Whatever [`Geometry::new`] refuses.
    pub fn geometry(
        &self,
        batch: usize,
        [channels, height, width]: [usize; 3],
    ) -> Result<Geometry, mec_core::Error> {
        // Without a group, `Geometry` refuses with a sentence.
        let per_group = channels.checked_div(self.groups).unwrap_or(0);
        let options = ConvOptions {
            stride: [self.stride; 2],
            padding: [(self.padding, self.padding); 2],
            dilation: [self.dilation; 2],
            groups: self.groups,
        };
        let weight = [self.out, per_group, self.kernel, self.kernel];
        Geometry::new([batch, channels, height, width], weight, &options)
    }
}

impl Layer {
    /// The shape of the layer's output.
    ///
    /// # Errors
    ///
    /// A sentence about what the layer cannot do with `input`.
    pub fn output(&self, input: Shape) -> Result<Shape, String> {
        let image = |what: &str| match input {
            Shape::Image(image) => Ok(image),
            Shape::Features(_) => {
                Err(format!("{what} needs an image, and a linear layer is before it"))
            }
        };
        match self {
            Layer::Conv(conv) => {
                let image = image("a convolution")?;
                let geometry = conv.geometry(1, image).map_err(|error| error.to_string())?;
                let [_, channels, height, width] = geometry.output_shape();
                if channels == 0 {
                    return Err("a convolution needs at least 1 output channel".to_owned());
                }
                Ok(Shape::Image([channels, height, width]))
            }
            Layer::BatchNorm => image("batch normalization").map(Shape::Image),
            Layer::Relu => Ok(input),
            Layer::MaxPool(pool) => {
                let [channels, height, width] = image("pooling")?;
                pool.output([height, width]).map(|[h, w]| Shape::Image([channels, h, w]))
            }
            Layer::GlobalAvgPool => image("pooling").map(|[c, _, _]| Shape::Image([c, 1, 1])),
            Layer::Linear(0) => Err("a linear layer needs at least 1 output".to_owned()),
            Layer::Linear(outputs) => Ok(Shape::Features(*outputs)),
            Layer::Residual(residual) => residual.output(input),
        }
    }
}

impl Pool {
    fn output(&self, size: [usize; 2]) -> Result<[usize; 2], String> {
        if self.kernel == 0 || self.stride == 0 {
            return Err("a pooling window and its stride must be at least 1".to_owned());
        }
        if 2 * self.padding > self.kernel {
            return Err("a pooling window must not lie on padding alone".to_owned());
        }
        let padded = size.map(|size| size + 2 * self.padding);
        if padded.iter().any(|&size| size < self.kernel) {
            return Err(format!(
                "a pooling window of {0}x{0} does not fit {1}x{2}",
                self.kernel, padded[0], padded[1]
            ));
        }
        Ok(padded.map(|size| (size - self.kernel) / self.stride + 1))
    }
}

impl Residual {
    fn output(&self, input: Shape) -> Result<Shape, String> {
        let nested = |layer: &Layer| matches!(layer, Layer::Residual(_) | Layer::Linear(_));
        if self.body.is_empty() {
            return Err("a residual needs a body".to_owned());
        }
        if self.body.iter().chain(&self.shortcut).any(nested) {
            return Err("a residual may hold neither another one nor a linear layer".to_owned());
        }
        let run = |layers: &[Layer]| layers.iter().try_fold(input, |shape, l| l.output(shape));
        let (body, shortcut) = (run(&self.body)?, run(&self.shortcut)?);
        if body != shortcut {
            return Err(format!("the branches of a residual differ: {body:?} and {shortcut:?}"));
        }
        Ok(body)
    }
}

/// A layer file: the same as a [`Model`], its fields as a person writes them.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: Option<String>,
    input: [usize; 3],
    layers: Vec<Layer>,
}

impl Model {
    /// Reads a network from the text of a TOML file; `origin` names it in errors and, unless the
    /// text has a `name`, the network.
    ///
    /// ```
    /// let model = mec_profile::model::Model::parse(
    ///     "small",
    ///     r#"
    ///     input = [3, 32, 32]            # channels, height, width
    ///     layers = [
    ///         { conv = { out = 16, kernel = 3, padding = 1 } },
    ///         "batch-norm",
    ///         "relu",
    ///         { max-pool = { kernel = 2, stride = 2 } },
    ///         { residual = { body = [{ conv = { out = 16, kernel = 1 } }], shortcut = [] } },
    ///         "global-avg-pool",
    ///         { linear = 10 },
    ///     ]
    ///     "#,
    /// )?;
    /// assert_eq!((model.name.as_str(), model.classes()), ("small", 10));
    /// # Ok::<(), mec_profile::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::File`] with the line and the field at fault, [`Error::Model`] for layers that do not
    /// fit together.
    pub fn parse(origin: &str, text: &str) -> Result<Self, Error> {
        let file: File = crate::toml_file(origin, text)?;
        Model {
            name: file.name.unwrap_or_else(|| origin.to_owned()),
            input: file.input,
            layers: file.layers,
        }
        .checked()
    }

    /// Checks that every layer fits the one before it and that the network ends in features.
    pub(crate) fn checked(self) -> Result<Self, Error> {
        let wrong = |number, reason| Error::Model { name: self.name.clone(), number, reason };
        let mut shape = Shape::Image(self.input);
        if shape.elements() == 0 {
            return Err(wrong(0, "an image needs at least 1 channel, row and column".to_owned()));
        }
        for (number, layer) in (1..).zip(&self.layers) {
            shape = layer.output(shape).map_err(|reason| wrong(number, reason))?;
        }
        match shape {
            Shape::Features(_) => Ok(self),
            Shape::Image(_) => Err(wrong(
                self.layers.len(),
                "the last layer must be linear: its outputs are the classes".to_owned(),
            )),
        }
    }

    /// Calls `f` with every layer, those of branches included, and the shape of its input.
    pub fn for_each_layer(&self, mut f: impl FnMut(&Layer, Shape)) {
        fn walk(layers: &[Layer], mut shape: Shape, f: &mut impl FnMut(&Layer, Shape)) {
            for layer in layers {
                f(layer, shape);
                if let Layer::Residual(residual) = layer {
                    walk(&residual.body, shape, f);
                    walk(&residual.shortcut, shape, f);
                }
                shape = layer.output(shape).expect("a model is checked when it is made");
            }
        }
        walk(&self.layers, Shape::Image(self.input), &mut f);
    }

    /// Outputs of the last layer.
    pub fn classes(&self) -> usize {
        match self.layers.last() {
            Some(Layer::Linear(outputs)) => *outputs,
            _ => unreachable!("a model is checked when it is made"),
        }
    }

    /// The convolutions as problems of `batch` images, in order.
    pub fn convolutions(&self, batch: usize) -> Vec<Geometry> {
        let mut convolutions = vec![];
        self.for_each_layer(|layer, shape| {
            if let (Layer::Conv(conv), Shape::Image(image)) = (layer, shape) {
                convolutions.push(conv.geometry(batch, image).expect("a model is checked"));
            }
        });
        convolutions
    }

    /// The number of trained parameters.
    pub fn parameters(&self) -> usize {
        let mut parameters = 0;
        self.for_each_layer(|layer, shape| {
            parameters += match (layer, shape) {
                (Layer::Conv(conv), Shape::Image([channels, _, _])) => {
                    conv.out * (channels / conv.groups * conv.kernel * conv.kernel)
                        + if conv.bias { conv.out } else { 0 }
                }
                (Layer::BatchNorm, Shape::Image([channels, _, _])) => 2 * channels,
                (Layer::Linear(outputs), shape) => (shape.elements() + 1) * outputs,
                _ => 0,
            };
        });
        parameters
    }
}
