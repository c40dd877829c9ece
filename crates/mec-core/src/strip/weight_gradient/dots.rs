//! The weight gradient with positions in SIMD lanes.
//!
//! ```text
//! for task in (part of the panels, group, block of input channels, block of output channels)
//!   for panel of the part
//!     pack the panel of x
//!     for tile of output channels, tile of kernel elements
//!       micro-kernel: sums[kernel element][output channel] += panel . dy
//!   add the sums, transposed, to the result
//! ```
//!
//! The bias gradient is the sum for one more kernel element, whose panel holds ones.

mod blocks;

use super::{Block, Operands, fill};
use crate::kernel::{Dots, ELEMENTS, Kernel, Pack, Span, Vector};
use crate::strip::buffer::Workspace;
use crate::strip::correlation::Correlation;
use crate::strip::positions::Place;
pub(crate) use blocks::Blocks;
use std::ops::Range;

/// Whether this form takes the weight gradient of forward correlation `c`: where copying the input once for
/// each kernel column is less work than transposing `dy`. With strides the copies are slow, and the panel
/// leaves the second-level cache: cv1, cv3 and r2 took 1.1 to 1.3 times as long (Zen 3).
pub(super) fn applies(c: &Correlation) -> bool {
    let unit = c.taps() == 1 || c.width.step == 1 && c.height.step == 1;
    unit && (c.width.taps - 1) * c.channels <= c.outputs
}

/// Runs the plan on at most `threads` threads.
///
/// # Safety
///
/// As [`Plain::run`](super::Plain::run).
pub(super) unsafe fn run<T: Vector + Send + Sync>(
    kernel: &Kernel<T>,
    c: &Correlation,
    plan: &Blocks,
    operands: &Operands<T>,
    threads: usize,
) {
    let memory = || {
        let places = Places {
            spans: Vec::with_capacity(plan.positions.images),
            elements: Vec::with_capacity(plan.elements()),
        };
        (Workspace::new(plan.workspace_len()), places)
    };
    let worker = |memory: &Workspace<T>, block: &Block| {
        Worker::new(kernel, c, plan, operands, memory, block)
    };
    plan.division.run(
        threads,
        memory,
        // SAFETY: the caller vouches for the tensors.
        |(memory, places), block, part| unsafe { worker(memory, block).sum(part, places) },
        // SAFETY: the division keeps parts apart.
        |(memory, _), block, part| unsafe { worker(memory, block).add(part > 0) },
    );
}

/// Where the micro-kernel finds its operands.
struct Places {
    /// The positions of each image.
    spans: Vec<Span>,
    /// The kernel elements, from the panel's start.
    elements: Vec<usize>,
}

/// One task: a block of the result and the memory to sum it in.
struct Worker<'a, T: Copy + 'static> {
    kernel: &'a Kernel<T>,
    c: &'a Correlation,
    plan: &'a Blocks,
    operands: &'a Operands<T>,
    panel: *mut T,
    ones: *mut T,
    stage: *mut T,
    sums: *mut T,
    block: Block,
    /// Whether this block sums the bias gradient too.
    bias: bool,
}

impl<'a, T: Vector> Worker<'a, T> {
    fn new(
        kernel: &'a Kernel<T>,
        c: &'a Correlation,
        plan: &'a Blocks,
        operands: &'a Operands<T>,
        memory: &Workspace<T>,
        block: &Block,
    ) -> Self {
        let panel = memory.as_ptr();
        let ones = panel.wrapping_add(plan.ones());
        let stage = ones.wrapping_add(plan.ones_len());
        Self {
            kernel,
            c,
            plan,
            operands,
            panel,
            ones,
            stage,
            sums: stage.wrapping_add(plan.stage_len()),
            block: block.clone(),
            bias: block.has_bias(operands),
        }
    }

    /// Sums one part of the panels.
    ///
    /// # Safety
    ///
    /// As [`run`].
    unsafe fn sum(&self, part: usize, Places { spans, elements }: &mut Places) {
        let (c, o, plan) = (self.c, self.operands, self.plan);
        self.find_elements(elements);
        let source = self.block.source(c, o);
        // SAFETY: the plan made room for each piece; the caller vouches for the tensors.
        unsafe {
            fill(self.sums, plan.sums_len(), T::ZERO);
            fill(self.ones, plan.ones_len(), T::ONE);
            for index in plan.division.part(plan.positions.panels(c), part) {
                let place = plan.positions.place(c, index);
                let skipped = self.skipped(&place);
                let panel = self.panel.wrapping_add(skipped);
                plan.positions.pack(self.kernel, c, &place, &source, panel);
                self.find_spans(&place, spans);
                self.multiply(&place, (panel, skipped), spans, elements);
            }
        }
    }

    /// Where the positions of each image lie in the panel and in `dy`.
    fn find_spans(&self, [images, rows, columns]: &Place, spans: &mut Vec<Span>) {
        let plan = self.plan;
        let positions = rows.len() * columns.len();
        spans.clear();
        if plan.staged && plan.positions.lowering.halo == 0 {
            // Images follow each other on both sides.
            return spans.push(Span { panel: 0, dy: 0, len: images.len() * positions });
        }
        for (i, image) in images.clone().enumerate() {
            let dy =
                if plan.staged { (i * positions) as isize } else { self.dy(image, rows, columns) };
            spans.push(Span { panel: i * plan.positions.image_len(), dy, len: positions });
        }
    }

    /// Lanes of `dy` that registers leave out at a place.
    fn skipped(&self, [images, rows, columns]: &Place) -> usize {
        if self.plan.staged {
            return 0;
        }
        let o = self.operands;
        let first = o.dy.wrapping_offset(self.dy(images.start, rows, columns));
        Dots::lanes_to_skip(self.kernel.lanes, first, &o.dy_strides[..2])
    }

    /// Elements from an output channel of `dy` to its first position in `image` that a panel meets.
    fn dy(&self, image: usize, rows: &Range<usize>, columns: &Range<usize>) -> isize {
        let strides = self.c.strides(self.operands.dy_strides);
        let [image, row, column] = [image, rows.start, columns.start].map(|n| n as isize);
        image * strides[0] + row * strides[2] + column * strides[3]
    }

    /// Copies `dy` of some output channels.
    ///
    /// # Safety
    ///
    /// As [`run`].
    unsafe fn stage(&self, [images, rows, columns]: &Place, dy: *const T, outputs: usize) {
        let [_, channel, line, column] = self.c.strides(self.operands.dy_strides);
        for (i, image) in images.clone().enumerate() {
            // SAFETY: the plan made room; the caller vouches for `dy`.
            unsafe {
                self.kernel.pack(&Pack {
                    from: dy.wrapping_offset(self.dy(image, rows, columns)),
                    from_channel: channel,
                    from_row: line,
                    from_column: column,
                    to: self.stage.add(i * rows.len() * columns.len()),
                    to_channel: self.plan.positions.len(),
                    to_row: columns.len(),
                    channels: outputs,
                    rows: rows.len(),
                    before: 0,
                    columns: columns.len(),
                    after: 0,
                });
            }
        }
    }

    /// Where each kernel element (channel, row, column) begins in the panel; the bias meets the ones behind it.
    fn find_elements(&self, elements: &mut Vec<usize>) {
        let (plan, taps) = (self.plan, [self.c.height.taps, self.c.width.taps]);
        elements.clear();
        for channel in 0..self.block.channels.len() {
            for row in 0..taps[0] {
                let at = |column| {
                    channel * plan.positions.channel_len() + plan.positions.tap(row, column)
                };
                elements.extend((0..taps[1]).map(at));
            }
        }
        if self.bias {
            elements.push(plan.ones());
        }
    }

    /// Adds the packed panel times `dy` to the sums.
    ///
    /// # Safety
    ///
    /// As [`run`], with the panel packed, so many lanes behind where a line begins, and the places found.
    unsafe fn multiply(
        &self,
        place: &Place,
        (packed, skipped): (*const T, usize),
        spans: &[Span],
        elements: &[usize],
    ) {
        let (o, plan, tile) = (self.operands, self.plan, self.kernel.dot_outputs);
        for output in (0..self.block.outputs.len()).step_by(tile) {
            let outputs = tile.min(self.block.outputs.len() - output);
            let channel = (self.block.output(self.c) + output) as isize;
            let mut dy = o.dy.wrapping_offset(channel * o.dy_strides[1]);
            let mut dy_output = o.dy_strides[1];
            if plan.staged {
                // SAFETY: the caller vouches for `dy`.
                unsafe { self.stage(place, dy, outputs) };
                (dy, dy_output) = (self.stage, plan.positions.len() as isize);
            }
            // While this tile is multiplied, the outputs of the next one are on their way, one with each call: `dy` is met
            // once, and where a tile had to wait for it r1 took 1.06 and cv7 1.12 times as long (Sapphire Rapids).
            let next = self.block.outputs.len().saturating_sub(output + tile).min(tile);
            for (k, elements) in elements.chunks(ELEMENTS).enumerate() {
                let ahead = match k < next && !plan.staged {
                    true => dy.wrapping_offset((tile + k) as isize * dy_output),
                    false => std::ptr::null(),
                };
                let mut panel = [packed; ELEMENTS];
                for (panel, element) in panel.iter_mut().zip(elements) {
                    *panel = panel.wrapping_add(*element);
                }
                let sums = k * ELEMENTS * plan.sums_element() + output;
                let dots = Dots {
                    panel,
                    spans,
                    skipped,
                    dy,
                    dy_output,
                    outputs,
                    ahead,
                    sums: self.sums.wrapping_add(sums),
                    sums_element: plan.sums_element(),
                };
                // SAFETY: panel, ones and sums have room for what the plan says; the caller vouches for `dy`.
                unsafe { self.kernel.dots(elements.len(), &dots) };
            }
        }
    }

    /// Writes the sums to the result, or adds them.
    ///
    /// # Safety
    ///
    /// As [`run`], after [`Worker::sum`]; no other task is adding to this block.
    unsafe fn add(&self, onto: bool) {
        let width = self.plan.sums_element();
        let elements = self.block.channels.len() * self.c.taps();
        let bias = self.bias.then(|| self.sums.wrapping_add(elements * width).cast_const());
        let sums = (self.sums.cast_const(), width);
        // SAFETY: the caller vouches for the result.
        unsafe { self.block.add(self.kernel, self.c, self.operands, sums, bias, onto) };
    }
}
