//! What the operations of Burn's backends take beside their results, and which of their operands
//! they write into.
//!
//! Read off burn-flex, burn-ndarray and burn-backend 0.22. An operation writes its result into an
//! operand that nothing else shares. A tensor whose elements do not lie in order is copied before it
//! is reshaped; burn-ndarray copies it twice.

use std::rc::Rc;

use crate::Backend;
use crate::shadow::{Block, Meter, Shadow};

/// Records of Burn 0.22 in bytes, as measured: of little weight but in the smallest networks. On a
/// graphics card the program holds them, not the device.
pub(super) const RECORD_OF_A_PARAMETER: u64 = 2500;
pub(super) const RECORD_OF_A_STEP: u64 = 800;

#[derive(Debug, Clone)]
pub(super) struct Rules {
    pub backend: Backend,
    pub meter: Meter,
}

impl Rules {
    fn is_ndarray(&self) -> bool {
        self.backend == Backend::Ndarray
    }

    /// `x` where it can be written into, or a tensor like it.
    fn in_place(&self, x: Shadow) -> Shadow {
        if x.is_unique() { x } else { self.like(&x) }
    }

    /// A new tensor of the size of `x`; burn-ndarray's keeps the order of the elements.
    fn like(&self, x: &Shadow) -> Shadow {
        self.meter.tensor(x.elements()).with_dense(x.dense || !self.is_ndarray())
    }

    /// What Burn keeps in maps and boxes beside the values of a parameter.
    pub fn record_of_a_parameter(&self) -> u64 {
        if self.backend.is_cpu() { RECORD_OF_A_PARAMETER } else { 0 }
    }

    /// The same for a step of the backward pass.
    pub fn record_of_a_step(&self) -> u64 {
        if self.backend.is_cpu() { RECORD_OF_A_STEP } else { 0 }
    }

    /// What is taken while a tensor of this size is brought into order.
    fn copies(&self, x: &Shadow) -> u64 {
        if self.is_ndarray() { 2 * x.bytes() } else { x.bytes() }
    }

    /// The result of a product, of `m x k` and `k x n`. burn-flex makes it as bytes first and then
    /// copies them to where numbers may lie; burn-ndarray's GEMM packs a block of each operand.
    fn product(&self, [m, k, n]: [usize; 3]) -> Shadow {
        let result = self.meter.tensor(m * n);
        self.meter.grow_peak(match self.backend {
            Backend::Flex => result.bytes(),
            // At most 64 x 256 of the left one for each thread and 256 x 1024 of the right one.
            Backend::Ndarray => 4 * (k.min(256) * (m.min(64) + n.min(1024))) as u64,
            Backend::Wgpu => 0,
        });
        result
    }

    pub fn add(&self, a: Shadow, b: Shadow) -> Shadow {
        match (a.is_unique(), b.is_unique()) {
            (true, _) => a,
            (false, true) => b,
            (false, false) => self.like(&a),
        }
    }

    pub fn reshape(&self, x: Shadow) -> Shadow {
        if x.dense {
            return x;
        }
        self.meter.grow_peak(self.copies(&x));
        self.meter.tensor(x.elements())
    }

    pub fn relu(&self, x: Shadow) -> Shadow {
        self.in_place(x)
    }

    /// `x` is the ReLU's input.
    pub fn relu_gradient(&self, x: Shadow, dy: Shadow) -> Shadow {
        if self.is_ndarray() {
            // A byte for each element says where the input was positive.
            let mask = self.meter.block(x.elements() as u64);
            drop(x);
            let dx = self.in_place(dy);
            drop(mask);
            return dx;
        }
        if x.is_unique() { x } else { self.in_place(dy) }
    }

    /// Bytes of an integer: an index or a label.
    pub fn integer(&self) -> u64 {
        if self.is_ndarray() { 8 } else { 4 }
    }

    /// The maxima and their positions, which begin as 64-bit integers on the CPU. burn-ndarray pads,
    /// even with nothing.
    pub fn max_pool(&self, x: Shadow, outputs: usize, padded: usize) -> (Shadow, Rc<Block>) {
        let copy = self.is_ndarray().then(|| self.meter.tensor(padded));
        let y = self.meter.tensor(outputs);
        let begins = if self.backend.is_cpu() { 8 } else { self.integer() };
        let mut indices = self.meter.block(begins * outputs as u64);
        drop((x, copy));
        if self.integer() < begins {
            indices = self.meter.block(self.integer() * outputs as u64);
        }
        (y, indices)
    }

    /// Batch normalization with statistics that are given.
    pub fn normalize(&self, x: Shadow) -> Shadow {
        let y = self.in_place(x);
        if self.is_ndarray() {
            // Where an operand is broadcast, its addition makes a new tensor.
            self.meter.grow_peak(y.bytes());
        }
        y
    }

    /// Batch normalization with the statistics of the batch: `x` is saved by the caller.
    pub fn batch_norm(&self, x: Shadow, batch: usize) -> Shadow {
        // The mean is over a copy with channels first.
        let copied = batch > 1 || !x.dense;
        let copies = if copied { self.copies(&x) } else { 0 };
        self.meter.grow_peak(copies);
        let centered = self.like(&x);
        let squares = self.like(&centered);
        drop(centered);
        self.meter.grow_peak(copies);
        drop(squares);
        let centered = self.like(&x);
        self.normalize(centered)
    }

    pub fn batch_norm_gradient(&self, x: Shadow, dy: Shadow, batch: usize) -> Shadow {
        let normalized = self.in_place(x);
        let copied = batch > 1 || !dy.dense;
        let copies = if copied { self.copies(&dy) } else { 0 };
        self.meter.grow_peak(copies);
        let flat = copied.then(|| self.meter.tensor(dy.elements()));
        let product = self.like(&dy);
        self.meter.grow_peak(copies);
        drop((product, flat));
        let dx = self.in_place(dy);
        drop(normalized);
        if self.is_ndarray() {
            self.meter.grow_peak(dx.bytes());
        }
        dx
    }

    /// `x` of `[batch, inputs]` to `[batch, outputs]`.
    pub fn linear(&self, x: &Shadow, [batch, inputs, outputs]: [usize; 3]) -> Shadow {
        let y = self.product([batch, inputs, outputs]);
        if self.is_ndarray() {
            // Where an operand is broadcast, its addition makes a new tensor.
            self.meter.grow_peak(y.bytes() + if x.dense { 0 } else { x.bytes() });
        }
        y
    }

    /// burn-ndarray's product copies a transposed operand, the weight here.
    pub fn linear_input_gradient(&self, [batch, inputs, outputs]: [usize; 3]) -> Shadow {
        let copy = if self.is_ndarray() { 4 * inputs * outputs } else { 0 };
        let kept = self.meter.block(copy as u64);
        let dx = self.product([batch, outputs, inputs]);
        drop(kept);
        dx
    }

    /// The transposed operand is the input here.
    pub fn linear_weight_gradient(&self, [batch, inputs, outputs]: [usize; 3]) -> Shadow {
        let copy = if self.is_ndarray() { 4 * inputs * batch } else { 0 };
        let kept = self.meter.block(copy as u64);
        let dw = self.product([inputs, batch, outputs]);
        drop(kept);
        dw
    }

    /// Adam updates its two moments in place, then makes the parameter's change of them.
    pub fn adam(&self, parameter: &Shadow, gradient: Shadow) {
        let scaled = self.meter.tensor(gradient.elements());
        drop(scaled);
        drop(gradient);
        self.meter.grow_peak(2 * parameter.bytes());
    }

    pub fn sgd(&self, _parameter: &Shadow, gradient: Shadow) {
        drop(gradient);
    }
}
