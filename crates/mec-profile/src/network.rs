//! A [`Model`] as a Burn module, with the convolution of one's choice.

use burn::module::{Module, ModuleVisitor, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::pool::{AdaptiveAvgPool2d, AdaptiveAvgPool2dConfig, MaxPool2d, MaxPool2dConfig};
use burn::nn::{BatchNorm, BatchNormConfig, Linear, LinearConfig, PaddingConfig2d, Relu};
use burn::tensor::{Device, Tensor};
use burn_mec::Algorithm;
use burn_mec::nn::conv as mec;

use crate::Convolution;
use crate::im2col;
use crate::model::{self, Layer, Model, Shape};

/// A [`Model`] with weights.
#[derive(Module, Debug)]
pub struct Network {
    stages: Vec<Stage>,
}

/// Layers in a row, or two branches that are added.
#[derive(Module, Debug)]
struct Stage {
    body: Vec<Unit>,
    /// The other branch of a residual; without layers it is the input itself.
    shortcut: Option<Vec<Unit>>,
}

#[derive(Module, Debug)]
enum Unit {
    Mec(mec::Conv2d),
    Burn(Conv2d),
    Im2col(Im2col),
    BatchNorm(BatchNorm),
    Relu(Relu),
    MaxPool(MaxPool2d),
    AvgPool(AdaptiveAvgPool2d),
    Linear(Linear),
}

/// The parameters of a convolution that im2col computes.
#[derive(Module, Debug)]
struct Im2col {
    conv: Conv2d,
    padding: [usize; 2],
}

/// What flows from layer to layer.
enum Value {
    Image(Tensor<4>),
    Features(Tensor<2>),
}

impl Network {
    /// The network of `model` with new weights.
    ///
    /// # Panics
    ///
    /// With im2col on a device that is not a CPU's, when it runs.
    pub fn new(model: &Model, convolution: Convolution, device: &Device) -> Self {
        let make = Make { convolution, device };
        let mut shape = Shape::Image(model.input);
        let mut stages = vec![];
        for layer in &model.layers {
            stages.push(match layer {
                Layer::Residual(residual) => Stage {
                    body: make.units(&residual.body, shape),
                    shortcut: Some(make.units(&residual.shortcut, shape)),
                },
                layer => Stage { body: vec![make.unit(layer, shape)], shortcut: None },
            });
            shape = layer.output(shape).expect("a model is checked when it is made");
        }
        let network = Self { stages };
        // A parameter takes its memory when it is first read.
        network.visit(&mut Read);
        network
    }

    /// Scores of the classes, `[batch, classes]`, for images `[batch, channels, height, width]`.
    pub fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        let value = self.stages.iter().fold(Value::Image(images), |x, stage| stage.forward(x));
        value.into_features()
    }
}

struct Read;

impl ModuleVisitor for Read {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        drop(param.val());
    }
}

struct Make<'a> {
    convolution: Convolution,
    device: &'a Device,
}

impl Make<'_> {
    fn units(&self, layers: &[Layer], mut shape: Shape) -> Vec<Unit> {
        let mut units = vec![];
        for layer in layers {
            units.push(self.unit(layer, shape));
            shape = layer.output(shape).expect("a model is checked when it is made");
        }
        units
    }

    fn unit(&self, layer: &Layer, shape: Shape) -> Unit {
        match (layer, shape) {
            (Layer::Conv(conv), Shape::Image([channels, _, _])) => self.conv(conv, channels),
            (Layer::BatchNorm, Shape::Image([channels, _, _])) => {
                Unit::BatchNorm(BatchNormConfig::new(channels).init(self.device))
            }
            (Layer::Relu, _) => Unit::Relu(Relu::new()),
            (Layer::MaxPool(pool), _) => Unit::MaxPool(
                MaxPool2dConfig::new([pool.kernel; 2])
                    .with_strides([pool.stride; 2])
                    .with_padding(padding(pool.padding))
                    .init(),
            ),
            (Layer::GlobalAvgPool, _) => Unit::AvgPool(AdaptiveAvgPool2dConfig::new([1, 1]).init()),
            (Layer::Linear(outputs), shape) => {
                Unit::Linear(LinearConfig::new(shape.elements(), *outputs).init(self.device))
            }
            (layer, shape) => unreachable!("{layer:?} of {shape:?} in a model that was checked"),
        }
    }

    fn conv(&self, conv: &model::Conv, channels: usize) -> Unit {
        let config = Conv2dConfig::new([channels, conv.out], [conv.kernel; 2])
            .with_stride([conv.stride; 2])
            .with_padding(padding(conv.padding))
            .with_dilation([conv.dilation; 2])
            .with_groups(conv.groups)
            .with_bias(conv.bias);
        let mec = |algorithm| {
            let config = mec::Conv2dConfig::from(config.clone()).with_algorithm(algorithm);
            Unit::Mec(config.init(self.device))
        };
        match self.convolution {
            Convolution::Mec => mec(Algorithm::Auto),
            Convolution::Paper => mec(Algorithm::Paper),
            Convolution::Burn => Unit::Burn(config.init(self.device)),
            Convolution::Im2col => {
                Unit::Im2col(Im2col { conv: config.init(self.device), padding: [conv.padding; 2] })
            }
        }
    }
}

fn padding(zeros: usize) -> PaddingConfig2d {
    match zeros {
        0 => PaddingConfig2d::Valid,
        zeros => PaddingConfig2d::Explicit(zeros, zeros, zeros, zeros),
    }
}

impl Stage {
    fn forward(&self, x: Value) -> Value {
        let run = |units: &[Unit], x| units.iter().fold(x, |x, unit| unit.forward(x));
        let Some(shortcut) = &self.shortcut else { return run(&self.body, x) };
        let x = x.into_image();
        let body = run(&self.body, Value::Image(x.clone())).into_image();
        Value::Image(body + run(shortcut, Value::Image(x)).into_image())
    }
}

impl Unit {
    fn forward(&self, x: Value) -> Value {
        let image = |f: &dyn Fn(Tensor<4>) -> Tensor<4>, x: Value| Value::Image(f(x.into_image()));
        match self {
            Unit::Mec(conv) => image(&|x| conv.forward(x), x),
            Unit::Burn(conv) => image(&|x| conv.forward(x), x),
            Unit::Im2col(conv) => image(&|x| conv.forward(x), x),
            Unit::BatchNorm(norm) => image(&|x| norm.forward(x), x),
            Unit::MaxPool(pool) => image(&|x| pool.forward(x), x),
            Unit::AvgPool(pool) => image(&|x| pool.forward(x), x),
            Unit::Relu(relu) => match x {
                Value::Image(x) => Value::Image(relu.forward(x)),
                Value::Features(x) => Value::Features(relu.forward(x)),
            },
            Unit::Linear(linear) => Value::Features(linear.forward(x.into_features())),
        }
    }
}

impl Im2col {
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let Conv2d { stride, dilation, groups, .. } = self.conv;
        let options = mec_core::ConvOptions {
            stride,
            padding: self.padding.map(|zeros| (zeros, zeros)),
            dilation,
            groups,
        };
        let weight = self.conv.weight.val();
        let geometry = mec_core::Geometry::new(x.dims(), weight.dims(), &options)
            .unwrap_or_else(|error| panic!("conv2d: {error}"));
        im2col::conv2d(x, weight, self.conv.bias.as_ref().map(|bias| bias.val()), geometry)
    }
}

impl Value {
    fn into_image(self) -> Tensor<4> {
        match self {
            Value::Image(x) => x,
            Value::Features(_) => unreachable!("a model is checked when it is made"),
        }
    }

    fn into_features(self) -> Tensor<2> {
        match self {
            Value::Image(x) => x.flatten(1, 3),
            Value::Features(x) => x,
        }
    }
}
