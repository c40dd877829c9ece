//! The walk forward through the layers, and back along the recorded steps.

use std::collections::HashMap;

use super::Setup;
use super::conv::ConvRules;
use super::rules::Rules;
use crate::model::{Layer, Model, Residual, Shape};
use crate::shadow::{Meter, Shadow};
use crate::{Optimizer, Pass, StepMemory};

/// A tensor of the forward pass.
#[derive(Clone)]
struct Variable {
    value: Shadow,
    /// The step that it came from, if a gradient is to reach it, and how deep that lies.
    node: Option<Node>,
}

#[derive(Clone, Copy)]
struct Node {
    id: usize,
    depth: usize,
}

/// What a step of the backward pass works on.
struct Gradients {
    rules: Rules,
    activations: HashMap<usize, Shadow>,
    /// One place for each parameter.
    parameters: Vec<Option<Shadow>>,
}

impl Gradients {
    fn take(&mut self, node: Node) -> Shadow {
        self.activations.remove(&node.id).expect("the steps after this one have made its gradient")
    }

    fn register(&mut self, node: Option<Node>, gradient: Shadow) {
        let Some(node) = node else { return };
        let sum = match self.activations.remove(&node.id) {
            Some(old) => self.rules.add(gradient, old),
            None => gradient,
        };
        self.activations.insert(node.id, sum);
    }
}

type Backward = Box<dyn FnOnce(&mut Gradients)>;

struct Walk<'a> {
    meter: Meter,
    rules: Rules,
    setup: &'a Setup,
    batch: usize,
    /// Parameters that layers have so far.
    parameters: usize,
    /// The recorded steps, each with how deep it lies.
    steps: Vec<(usize, Backward)>,
    nodes: usize,
}

pub(super) fn step(model: &Model, batch: usize, setup: &Setup) -> StepMemory {
    let meter = Meter::default();
    let mut memory = StepMemory::default();

    let (trained, running) = parameters(model);
    let parameters: Vec<_> = trained.iter().map(|&elements| meter.tensor(elements)).collect();
    let rules = Rules { backend: setup.backend, meter: meter.clone() };
    let _records = meter.block(rules.record_of_a_parameter() * trained.len() as u64);
    let _running: Vec<_> = running.iter().map(|&elements| meter.tensor(elements)).collect();
    memory.parameters = meter.now();
    let training = setup.pass == Pass::Training;
    let moments = match setup.optimizer {
        Optimizer::Adam if training => 2,
        _ => 0,
    };
    let _state: Vec<_> = (0..moments)
        .flat_map(|_| trained.iter().map(|&elements| meter.tensor(elements)).collect::<Vec<_>>())
        .collect();
    memory.optimizer_state = meter.now() - memory.parameters;

    let images = meter.tensor(batch * Shape::Image(model.input).elements());
    let labels = training.then(|| meter.block(rules.integer() * batch as u64));
    memory.input = meter.now() - memory.parameters - memory.optimizer_state;
    meter.reset_peak();

    let mut walk = Walk {
        meter: meter.clone(),
        rules: rules.clone(),
        setup,
        batch,
        parameters: 0,
        steps: vec![],
        nodes: 0,
    };
    let images = Variable { value: images, node: None };
    let scores = walk.layers(&model.layers, images, Shape::Image(model.input));
    memory.outputs = scores.value.bytes();
    if !training {
        return memory.with_peak(meter.peak());
    }

    let loss = walk.loss(scores.clone());
    memory.outputs += loss.value.bytes();
    let held = |memory: &StepMemory| {
        memory.parameters + memory.optimizer_state + memory.input + memory.outputs
    };
    memory.saved_activations = meter.now() - held(&memory);

    let mut gradients = Gradients {
        rules: rules.clone(),
        activations: HashMap::new(),
        parameters: parameters.iter().map(|_| None).collect(),
    };
    let mut steps = std::mem::take(&mut walk.steps);
    gradients.register(loss.node, meter.tensor(1));
    // Deepest first; of equally deep ones the first recorded.
    steps.sort_by_key(|(depth, _)| std::cmp::Reverse(*depth));
    for (_, backward) in steps {
        backward(&mut gradients);
    }
    drop((loss, scores, labels));
    let gradients = gradients.parameters;
    memory.gradients = gradients.iter().flatten().map(Shadow::held).sum();

    drop(walk);
    for (parameter, gradient) in parameters.iter().zip(gradients) {
        let Some(gradient) = gradient else { continue };
        match setup.optimizer {
            Optimizer::Adam => rules.adam(parameter, gradient),
            Optimizer::Sgd => rules.sgd(parameter, gradient),
        }
    }
    memory.with_peak(meter.peak())
}

/// Sizes of the trained parameters and of the running statistics, in order.
fn parameters(model: &Model) -> (Vec<usize>, Vec<usize>) {
    let (mut trained, mut running) = (vec![], vec![]);
    model.for_each_layer(|layer, shape| match (layer, shape) {
        (Layer::Conv(conv), Shape::Image(image)) => {
            let geometry = conv.geometry(1, image).expect("a model is checked");
            trained.push(geometry.weight_shape().iter().product());
            if conv.bias {
                trained.push(conv.out);
            }
        }
        (Layer::BatchNorm, Shape::Image([channels, _, _])) => {
            trained.extend([channels; 2]);
            running.extend([channels; 2]);
        }
        (Layer::Linear(outputs), shape) => trained.extend([shape.elements() * outputs, *outputs]),
        _ => {}
    });
    (trained, running)
}

impl Walk<'_> {
    fn layers(&mut self, layers: &[Layer], mut x: Variable, mut shape: Shape) -> Variable {
        for layer in layers {
            x = self.layer(layer, x, shape);
            shape = layer.output(shape).expect("a model is checked when it is made");
        }
        x
    }

    fn layer(&mut self, layer: &Layer, x: Variable, shape: Shape) -> Variable {
        match (layer, shape) {
            (Layer::Conv(conv), Shape::Image(image)) => {
                let geometry = conv.geometry(self.batch, image).expect("a model is checked");
                self.conv(ConvRules::new(geometry, conv.bias, self.setup), x)
            }
            (Layer::BatchNorm, Shape::Image([channels, _, _])) => self.batch_norm(channels, x),
            (Layer::Relu, _) => self.relu(x),
            (Layer::MaxPool(pool), Shape::Image([channels, height, width])) => {
                let padded = (height + 2 * pool.padding) * (width + 2 * pool.padding);
                let output = layer.output(shape).expect("a model is checked").elements();
                self.max_pool(x, self.batch * output, self.batch * channels * padded)
            }
            (Layer::GlobalAvgPool, Shape::Image([channels, _, _])) => {
                self.avg_pool(x, self.batch * channels)
            }
            (Layer::Linear(outputs), shape) => {
                let x = match shape {
                    Shape::Image(_) => self.flatten(x),
                    Shape::Features(_) => x,
                };
                self.linear(x, *outputs)
            }
            (Layer::Residual(residual), shape) => self.residual(residual, x, shape),
            (layer, shape) => unreachable!("{layer:?} of {shape:?} in a model that was checked"),
        }
    }

    /// The number of the next parameter, in the order of the model.
    fn parameter(&mut self) -> usize {
        self.parameters += 1;
        self.parameters - 1
    }

    /// Records a step unless nothing is tracked: `backward` gets the node of the result, whose
    /// gradient it takes.
    fn record(
        &mut self,
        parents: &[Option<Node>],
        with_parameters: bool,
        backward: impl FnOnce(Node, &mut Gradients) + 'static,
    ) -> Option<Node> {
        let training = self.setup.pass == Pass::Training;
        let tracked = with_parameters || parents.iter().any(Option::is_some);
        if !(training && tracked) {
            return None;
        }
        let depth = 1 + parents.iter().flatten().map(|node| node.depth).max().unwrap_or(0);
        self.nodes += 1;
        let record = self.meter.block(self.rules.record_of_a_step());
        let node = Node { id: self.nodes, depth };
        self.steps.push((
            depth,
            Box::new(move |gradients| {
                backward(node, gradients);
                drop(record);
            }),
        ));
        Some(node)
    }

    /// What the backward pass keeps of `x`.
    fn save(&self, x: &Variable) -> Option<Shadow> {
        (self.setup.pass == Pass::Training).then(|| x.value.clone())
    }

    fn conv(&mut self, rules: ConvRules, x: Variable) -> Variable {
        let saved = self.save(&x);
        let weight = self.parameter();
        let bias = rules.bias.then(|| self.parameter());
        let Variable { value: x, node: parent } = x;
        let value = rules.forward(&self.meter, &x);
        drop(x);
        let node = self.record(&[parent], true, move |node, gradients| {
            let meter = gradients.rules.meter.clone();
            let dy = gradients.take(node);
            if parent.is_some() {
                let dx = rules.input_gradient(&meter, &dy);
                gradients.register(parent, dx);
            }
            gradients.parameters[weight] = Some(rules.weight_gradient(&meter, &dy));
            if let Some(bias) = bias {
                gradients.parameters[bias] = Some(rules.bias_gradient(&meter, &dy));
            }
            drop(saved);
        });
        Variable { value, node }
    }

    fn batch_norm(&mut self, channels: usize, x: Variable) -> Variable {
        let (gamma, beta) = (self.parameter(), self.parameter());
        let batch = self.batch;
        let Variable { value: x, node: parent } = x;
        if self.setup.pass == Pass::Forward {
            return Variable { value: self.rules.normalize(x), node: None };
        }
        let saved = x.clone();
        let value = self.rules.batch_norm(x, batch);
        // Mean and variance.
        let statistics = [self.meter.tensor(channels), self.meter.tensor(channels)];
        let node = self.record(&[parent], true, move |node, gradients| {
            let dy = gradients.take(node);
            let rules = gradients.rules.clone();
            let dx = rules.batch_norm_gradient(saved, dy, batch);
            gradients.register(parent, dx);
            for parameter in [gamma, beta] {
                gradients.parameters[parameter] = Some(rules.meter.tensor(channels));
            }
            drop(statistics);
        });
        Variable { value, node }
    }

    fn relu(&mut self, x: Variable) -> Variable {
        let saved = self.save(&x);
        let Variable { value: x, node: parent } = x;
        let value = self.rules.relu(x);
        let node = self.record(&[parent], false, move |node, gradients| {
            let dy = gradients.take(node);
            let x = saved.expect("recorded in training, where it is saved");
            let dx = gradients.rules.relu_gradient(x, dy);
            gradients.register(parent, dx);
        });
        Variable { value, node }
    }

    fn max_pool(&mut self, x: Variable, outputs: usize, padded: usize) -> Variable {
        let saved = self.save(&x);
        let Variable { value: x, node: parent } = x;
        let inputs = x.elements();
        let (value, indices) = self.rules.max_pool(x, outputs, padded);
        let node = self.record(&[parent], false, move |node, gradients| {
            let dy = gradients.take(node);
            let dx = gradients.rules.meter.tensor(inputs);
            drop((saved, indices, dy));
            gradients.register(parent, dx);
        });
        Variable { value, node }
    }

    fn avg_pool(&mut self, x: Variable, outputs: usize) -> Variable {
        let saved = self.save(&x);
        let Variable { value: x, node: parent } = x;
        let inputs = x.elements();
        let value = self.meter.tensor(outputs);
        drop(x);
        let node = self.record(&[parent], false, move |node, gradients| {
            let dy = gradients.take(node);
            let dx = gradients.rules.meter.tensor(inputs);
            drop((saved, dy));
            gradients.register(parent, dx);
        });
        Variable { value, node }
    }

    fn flatten(&mut self, x: Variable) -> Variable {
        let Variable { value: x, node: parent } = x;
        let value = self.rules.reshape(x);
        let node = self.record(&[parent], false, move |node, gradients| {
            let dy = gradients.take(node);
            gradients.register(parent, dy);
        });
        Variable { value, node }
    }

    fn linear(&mut self, x: Variable, outputs: usize) -> Variable {
        let saved = self.save(&x);
        let (weight, bias) = (self.parameter(), self.parameter());
        let Variable { value: x, node: parent } = x;
        let inputs = x.elements() / self.batch.max(1);
        let sizes = [self.batch, inputs, outputs];
        let value = self.rules.linear(&x, sizes);
        drop(x);
        let node = self.record(&[parent], true, move |node, gradients| {
            let dy = gradients.take(node);
            let rules = gradients.rules.clone();
            if parent.is_some() {
                let dx = rules.linear_input_gradient(sizes);
                gradients.register(parent, dx);
            }
            gradients.parameters[weight] = Some(rules.linear_weight_gradient(sizes));
            gradients.parameters[bias] = Some(rules.meter.tensor(outputs));
            drop((saved, dy));
        });
        Variable { value, node }
    }

    fn residual(&mut self, residual: &Residual, x: Variable, shape: Shape) -> Variable {
        let body = self.layers(&residual.body, x.clone(), shape);
        let shortcut = self.layers(&residual.shortcut, x, shape);
        let (Variable { value: a, node: left }, Variable { value: b, node: right }) =
            (body, shortcut);
        let value = self.rules.add(a, b);
        let node = self.record(&[left, right], false, move |node, gradients| {
            let dy = gradients.take(node);
            gradients.register(left, dy.clone());
            gradients.register(right, dy);
        });
        Variable { value, node }
    }

    /// The mean cross-entropy: the logarithm of the softmax is saved, and an index for each image.
    fn loss(&mut self, scores: Variable) -> Variable {
        let Variable { value: scores, node: parent } = scores;
        let logarithms = self.meter.tensor(scores.elements());
        let indices = self.meter.block(self.rules.integer() * self.batch as u64);
        self.meter.grow_peak(scores.bytes());
        let value = self.meter.tensor(1);
        let inputs = scores.elements();
        drop(scores);
        let node = self.record(&[parent], false, move |node, gradients| {
            let dy = gradients.take(node);
            let dx = gradients.rules.meter.tensor(inputs);
            // The gradient of the logarithms.
            gradients.rules.meter.grow_peak(dx.bytes());
            drop((logarithms, indices, dy));
            gradients.register(parent, dx);
        });
        Variable { value, node }
    }
}
