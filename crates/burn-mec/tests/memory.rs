//! Peak memory of a convolution through Burn, by a counting allocator: what the kernels hold and no
//! hidden copy of a tensor.
//!
//! One test in its own program: the counts are of the whole process. Run with `--release`; the
//! layers are of full size.

mod common;

use burn::tensor::ops::ConvOptions;
use burn::tensor::{Device, Gradients, Tensor};
use burn_mec::Activation;
use burn_mec::module::conv2d_with_activation;
use common::{MEC, devices};
use mec_core::catalogue::layer;
use mec_core::{Geometry, Pass, Plan, Settings, WORKSPACE_PER_THREAD};
use mec_profile::{MemoryUse, PeakAlloc, measure};
use rayon::ThreadPoolBuilder;

#[global_allocator]
static ALLOC: PeakAlloc = PeakAlloc;

/// What is not ours and is counted all the same, at most: Burn's node of the graph and its entries in
/// the maps of steps and gradients, shapes, boxes, and what rayon takes to hand out jobs.
const ALLOWANCE: usize = 4 << 10;

/// The paper's largest activations and its largest weight; padding, a stride, groups and depthwise.
/// At their largest batch size every input is larger than the promise for one thread, so that a copy
/// of it cannot hide in it.
const LAYERS: [&str; 6] = ["cv9", "cv12", "c2", "r2", "g1", "dw1"];

/// A convolution whose operands are all leaves.
struct Conv {
    geometry: Geometry,
    options: ConvOptions<2>,
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Tensor<1>,
}

impl Conv {
    fn new(geometry: Geometry, options: &mec_core::ConvOptions, device: &Device) -> Self {
        let mec_core::ConvOptions { stride, padding, dilation, groups } = *options;
        Self {
            geometry,
            options: ConvOptions::new_with_padding(stride, padding, dilation, groups),
            x: Tensor::ones(geometry.input_shape(), device),
            weight: Tensor::ones(geometry.weight_shape(), device),
            bias: Tensor::ones([geometry.channels_out], device),
        }
    }

    fn track(mut self) -> Self {
        self.x = self.x.require_grad();
        self.weight = self.weight.require_grad();
        self.bias = self.bias.require_grad();
        self
    }

    /// The same input, its channels last in memory.
    fn channels_last(mut self) -> Self {
        let [n, c, h, w] = self.geometry.input_shape();
        self.x = Tensor::ones([n, h, w, c], &self.x.device()).permute([0, 3, 1, 2]);
        self
    }

    fn forward(&self) -> (Tensor<4>, MemoryUse) {
        measure(|| {
            let bias = Some(self.bias.clone());
            MEC(self.x.clone(), self.weight.clone(), bias, self.options.clone())
        })
    }

    fn activated(&self) -> (Tensor<4>, MemoryUse) {
        measure(|| {
            conv2d_with_activation(
                self.x.clone(),
                self.weight.clone(),
                Some(self.bias.clone()),
                self.options.clone(),
                Some(Activation::Relu),
                Settings::default(),
            )
        })
    }

    fn y_bytes(&self) -> usize {
        bytes(&self.geometry.output_shape())
    }

    /// The gradients in input, weight and bias.
    fn gradient_bytes(&self) -> usize {
        bytes(&self.geometry.input_shape())
            + bytes(&self.geometry.weight_shape())
            + bytes(&[self.geometry.channels_out])
    }

    fn gradients(&self, gradients: &Gradients) -> Option<(Tensor<4>, Tensor<4>, Tensor<1>)> {
        Some((self.x.grad(gradients)?, self.weight.grad(gradients)?, self.bias.grad(gradients)?))
    }
}

fn bytes(shape: &[usize]) -> usize {
    shape.iter().product::<usize>() * size_of::<f32>()
}

/// Asserts that no more than `allowed` is `held`, and prints both.
fn check(what: &str, held: isize, allowed: usize) {
    println!("{what}: {held} bytes of {allowed}");
    assert!(held <= allowed as isize, "{what} holds {held} bytes, {allowed} allowed");
}

/// The plan, and with it the promise, for one layer on the threads of the current pool.
fn the_promise(name: &str, device: &Device) {
    let layer = layer(name);
    let batch = layer.batches.iter().copied().max().expect("a layer has a batch size");
    let geometry = layer.geometry(batch);
    let threads = rayon::current_num_threads();
    let at = format!("{name} at batch {batch}, {device:?}, {threads} threads");
    let promised = threads * WORKSPACE_PER_THREAD;
    let planned = |pass| {
        let plan = Plan::new::<f32>(&geometry, pass, &Settings::default()).unwrap();
        assert!(plan.workspace_bytes <= promised, "{at}: {pass}: {plan:?}");
        plan.workspace_bytes + ALLOWANCE
    };
    let forward = planned(Pass::Forward);
    let backward = planned(Pass::InputGradient).max(planned(Pass::WeightGradient));
    assert!(bytes(&geometry.input_shape()) > WORKSPACE_PER_THREAD + ALLOWANCE, "{at}: too small");

    // Inference.
    let conv = Conv::new(geometry, &layer.options(), device);
    let (y, memory) = conv.forward();
    assert_eq!(y.dims(), geometry.output_shape());
    check(&format!("{at}: forward"), (memory.peak - conv.y_bytes()) as isize, forward);
    // Plans are for contiguous tensors.
    let (_, memory) = conv.channels_last().forward();
    let beside = (memory.peak - bytes(&geometry.output_shape())) as isize;
    check(&format!("{at}: channels last"), beside, promised + ALLOWANCE);

    // Training: the graph refers to the operands and keeps nothing of its own.
    let conv = Conv::new(geometry, &layer.options(), &device.clone().autodiff()).track();
    let (y, memory) = conv.forward();
    check(&format!("{at}: tracked forward"), (memory.peak - conv.y_bytes()) as isize, forward);
    let kept = memory.retained - conv.y_bytes() as isize;
    check(&format!("{at}: kept for backward"), kept, ALLOWANCE);

    // The activated output is the graph's and the caller's, and there is no other.
    let (activated, memory) = conv.activated();
    assert_eq!(activated.dims(), geometry.output_shape());
    check(&format!("{at}: activated"), (memory.peak - conv.y_bytes()) as isize, forward);
    let kept = memory.retained - conv.y_bytes() as isize;
    check(&format!("{at}: activated, kept for backward"), kept, ALLOWANCE);
    drop(activated);

    // Burn makes the gradient in the output, ones of its shape.
    let (gradients, memory) = measure(|| y.backward());
    let made = conv.y_bytes() + conv.gradient_bytes();
    assert!(memory.peak >= made, "{at}: backward takes {memory:?}, less than it makes");
    check(&format!("{at}: backward"), (memory.peak - made) as isize, backward);
    let (dx, dw, db) = conv.gradients(&gradients).expect("all three are tracked");
    assert_eq!((dx.dims(), dw.dims()), (geometry.input_shape(), geometry.weight_shape()));
    assert_eq!(db.dims(), [geometry.channels_out]);
}

#[test]
fn burn_adds_no_copies() {
    for threads in [1, 2] {
        let pool = ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            for device in devices() {
                // What is made once for a process: threads, type maps, the graph's server.
                let small = layer("m1").geometry(1);
                let warm =
                    Conv::new(small, &layer("m1").options(), &device.clone().autodiff()).track();
                warm.forward().0.backward();
                for name in LAYERS {
                    the_promise(name, &device);
                }
            }
        });
    }
}
