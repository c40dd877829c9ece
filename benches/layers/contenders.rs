//! Who is measured: mec-core by itself, mec-core through Burn, and Burn's own backends.
#![allow(deprecated)] // burn-ndarray, which Burn means to drop.

use std::rc::Rc;

use benches::{Pass, Problem};
use burn::backend::ops::ConvOptions;
use burn::backend::tensor::{Device, FloatTensor};
use burn::backend::{Backend, Flex, NdArray, try_read_sync};
use burn::tensor::TensorData;
use burn_mec::Settings;
use burn_mec::ops::{Bias, Conv2dBackend, Conv2dGradients};
use mec_core::Geometry;

/// Their names. The first that is measured is what the others are compared with.
pub const NAMES: [&str; 5] = ["mec", "mec-flex", "mec-ndarray", "burn-flex", "burn-ndarray"];

/// One implementation of the three passes, with the operands of one problem in its own form.
pub trait Contender {
    /// Computes one pass.
    fn call(&self, pass: Pass) -> Outcome;
}

/// What a call has returned, in the contender's own form until the values are asked for.
pub struct Outcome(Box<dyn FnOnce() -> Vec<f32>>);

impl Outcome {
    /// The values, row-major.
    pub fn values(self) -> Vec<f32> {
        self.0()
    }
}

/// The contender called `name`, ready to compute `problem`; `None` if nobody is called that.
pub fn contender(name: &str, problem: &Rc<Problem>) -> Option<Box<dyn Contender>> {
    Some(match name {
        "mec" => Box::new(Rc::clone(problem)),
        "mec-flex" => Box::new(Mec(Operands::<Flex>::new(problem))),
        "mec-ndarray" => Box::new(Mec(Operands::<NdArray>::new(problem))),
        "burn-flex" => Box::new(Burn(Operands::<Flex>::new(problem))),
        "burn-ndarray" => Box::new(Burn(Operands::<NdArray>::new(problem))),
        _ => return None,
    })
}

impl Contender for Rc<Problem> {
    fn call(&self, pass: Pass) -> Outcome {
        let result = self.run(pass).expect("the default settings take every layer");
        Outcome(Box::new(|| result))
    }
}

/// The operands as tensors of a backend.
struct Operands<B: Backend> {
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    dy: FloatTensor<B>,
    geometry: Geometry,
}

impl<B: Backend> Operands<B> {
    fn new(problem: &Problem) -> Self {
        let device = Device::<B>::default();
        let tensor = |values: &[f32], shape: [usize; 4]| {
            let tensor = B::float_from_data(TensorData::new(values.to_vec(), shape), &device);
            // A tensor as a layer before would leave it: burn-ndarray takes one made from data for
            // borrowed, and copies it whenever it is used.
            B::float_mul_scalar(tensor, 1.0f32.into())
        };
        let geometry = problem.geometry;
        Self {
            x: tensor(&problem.x, geometry.input_shape()),
            weight: tensor(&problem.weight, geometry.weight_shape()),
            dy: tensor(&problem.dy, geometry.output_shape()),
            geometry,
        }
    }

    /// Burn's form of the options; those of the catalogue are symmetric.
    fn options(&self) -> ConvOptions<2> {
        let Geometry { height: h, width: w, groups, .. } = self.geometry;
        ConvOptions::new(
            [h.stride, w.stride],
            [h.pad_before, w.pad_before],
            [h.dilation, w.dilation],
            groups,
        )
    }
}

fn outcome<B: Backend>(tensor: FloatTensor<B>) -> Outcome {
    Outcome(Box::new(|| {
        let data = try_read_sync(B::float_into_data(tensor)).expect("these backends do not wait");
        data.expect("the values can be read").into_vec().expect("the values are f32")
    }))
}

/// What burn-mec computes on a backend, without the tensor API and autodiff on top.
struct Mec<B: Backend>(Operands<B>);

impl<B: Conv2dBackend + Conv2dGradients> Contender for Mec<B> {
    fn call(&self, pass: Pass) -> Outcome {
        let Operands { x, weight, dy, geometry } = &self.0;
        let (x, weight, dy) = (x.clone(), weight.clone(), dy.clone());
        let settings = Settings::default();
        outcome::<B>(match pass {
            Pass::Forward => B::mec_conv2d(x, weight, Bias::Absent, None, *geometry, settings),
            Pass::InputGradient => B::mec_conv2d_input_gradient(dy, weight, *geometry, settings),
            Pass::WeightGradient => B::mec_conv2d_weight_gradient(x, dy, *geometry, settings),
        })
    }
}

/// What Burn computes on a backend, without the tensor API and autodiff on top.
struct Burn<B: Backend>(Operands<B>);

impl<B: Backend> Contender for Burn<B> {
    fn call(&self, pass: Pass) -> Outcome {
        let Operands { x, weight, dy, .. } = &self.0;
        let (x, weight, dy) = (x.clone(), weight.clone(), dy.clone());
        let options = self.0.options();
        outcome::<B>(match pass {
            Pass::Forward => B::conv2d(x, weight, None, options),
            Pass::InputGradient => B::conv2d_x_backward(x, weight, dy, options),
            Pass::WeightGradient => B::conv2d_weight_backward(x, weight, dy, options),
        })
    }
}
