//! Tensors without values: what is live, and for how long.
//!
//! A [`Shadow`] is to a tensor what its size is to its values. It is shared and dropped as Burn
//! shares and drops the tensor, so that a pass over shadows leaves the trace of the memory that the
//! same pass over tensors takes.

use std::cell::Cell;
use std::rc::Rc;

/// Bytes live now, and the most there were.
#[derive(Debug, Clone, Default)]
pub(crate) struct Meter(Rc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    now: Cell<u64>,
    peak: Cell<u64>,
}

impl Meter {
    /// A tensor of `elements` of four bytes each.
    pub fn tensor(&self, elements: usize) -> Shadow {
        Shadow { block: self.block(4 * elements as u64), elements, dense: true }
    }

    /// A block of memory.
    pub fn block(&self, bytes: u64) -> Rc<Block> {
        self.grow_peak(bytes);
        self.0.now.set(self.now() + bytes);
        Rc::new(Block { bytes, counts: self.0.clone() })
    }

    /// Memory that is taken and given back.
    pub fn grow_peak(&self, bytes: u64) {
        self.0.peak.set(self.peak().max(self.now() + bytes));
    }

    pub fn now(&self) -> u64 {
        self.0.now.get()
    }

    pub fn peak(&self) -> u64 {
        self.0.peak.get()
    }

    /// Forgets the peak so far.
    pub fn reset_peak(&self) {
        self.0.peak.set(self.now());
    }
}

/// A block of memory, live until it is dropped.
#[derive(Debug)]
pub(crate) struct Block {
    bytes: u64,
    counts: Rc<Counts>,
}

impl Drop for Block {
    fn drop(&mut self) {
        self.counts.now.set(self.counts.now.get() - self.bytes);
    }
}

/// A tensor without its values.
#[derive(Debug, Clone)]
pub(crate) struct Shadow {
    block: Rc<Block>,
    elements: usize,
    /// Whether the elements lie in the order of the indices.
    pub dense: bool,
}

impl Shadow {
    pub fn elements(&self) -> usize {
        self.elements
    }

    pub fn bytes(&self) -> u64 {
        4 * self.elements as u64
    }

    /// Whether no other tensor shares the memory, so that an operation may write into it.
    pub fn is_unique(&self) -> bool {
        Rc::strong_count(&self.block) == 1
    }

    /// Bytes of the memory it shares, of which it may be a part.
    pub fn held(&self) -> u64 {
        self.block.bytes
    }

    /// The first of its elements, in the same memory.
    pub fn part(mut self, elements: usize) -> Self {
        self.elements = elements;
        self.with_dense(false)
    }

    pub fn with_dense(mut self, dense: bool) -> Self {
        self.dense = dense;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_live_as_long_as_a_tensor_shares_it() {
        let meter = Meter::default();
        let x = meter.tensor(10);
        let view = x.clone();
        assert!(!x.is_unique());
        drop(x);
        assert!(view.is_unique());
        meter.grow_peak(5);
        assert_eq!((meter.now(), meter.peak()), (40, 45));
        drop(view);
        assert_eq!(meter.now(), 0);
        meter.reset_peak();
        assert_eq!(meter.peak(), 0);
    }
}
