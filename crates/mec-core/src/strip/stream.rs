//! The forward pass where few elements are summed for each output: a first layer, which does little but write.
//!
//! ```text
//! for task in (group, part of the output channels, panel)   in parallel
//!   pack the panel of consecutive positions
//!   for tile of output channels
//!     micro-kernel: window after window of the panel x the weights -> as many streams of output
//! ```
//!
//! Strips would write a few lines of each row and jump to the next row, and rows that are no multiple of a
//! register would be stored in pieces.

use super::buffer::Workspace;
use super::correlation::Correlation;
use super::engine::Operands;
use super::panel::Source;
use super::positions::Positions;
use super::workers::for_each_worker;
use crate::kernel::{Kernel, LINE, MAX_CHANNELS, Onto, Tap, Tile, Vector};
use crate::plan::Piece;

/// Most elements that are summed for an output: beyond, multiplying takes longer than writing.
const MOST_ELEMENTS: usize = 64;

/// Positions of a panel: streams of two pages, and a panel that stays in the second-level cache. With half as many 224 x 224
/// and 300 x 300 took 1.03 to 1.1 times as long.
const POSITIONS: usize = 2048;

/// Tasks of each thread, where there are several, that keep them busy evenly.
const TASKS_WANTED: usize = 4;

/// The plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stream {
    positions: Positions,
}

impl Stream {
    /// Plans forward correlation `c` for at most `limit` bytes in each thread; `None` where strips serve better
    /// or need less.
    pub fn new<T: Vector>(
        c: &Correlation,
        kernel: &Kernel<T>,
        threads: usize,
        limit: usize,
    ) -> Option<Self> {
        let unit = c.height.step == 1 && c.width.step == 1;
        let few = c.taps() > 1 && (1..=MOST_ELEMENTS).contains(&(c.channels * c.taps()));
        // What is copied must be little beside what is written.
        let all = c.height.output * c.width.output;
        if !unit || !few || c.outputs < c.width.taps * c.channels || c.batch * all == 0 {
            return None;
        }
        let wanted = if threads > 1 { threads * TASKS_WANTED } else { 1 };
        let enough = |most: &usize| *most * wanted <= all * c.batch;
        let sizes = || (0..8).map(|halvings| (POSITIONS >> halvings).min(all));
        let plan = |most| {
            let mut positions = Positions::new(c, most);
            positions.images = 1;
            Self { positions }
        };
        let fits = |plan: &Self| {
            plan.worker_bytes::<T>(c) <= limit && plan.smallest_panel(c) >= kernel.lanes
        };
        sizes().filter(enough).map(plan).find(fits).or_else(|| sizes().map(plan).find(fits))
    }

    /// Positions of the smallest panel: the last row's, or the last columns'.
    fn smallest_panel(&self, c: &Correlation) -> usize {
        let last = |all: usize, most: usize| (all - 1) % most + 1;
        last(c.height.output, self.positions.rows) * last(c.width.output, self.positions.columns)
    }

    fn panel_len(&self, c: &Correlation) -> usize {
        c.channels * self.positions.channel_len()
    }

    /// Bytes that [`Stream::run`] takes for each thread.
    pub fn worker_bytes<T>(&self, c: &Correlation) -> usize {
        self.panel_len(c) * size_of::<T>() + c.taps() * size_of::<Tap>()
    }

    /// Independent tasks.
    pub fn tasks(&self, c: &Correlation) -> usize {
        c.groups * self.positions.panels(c)
    }

    /// What a reader of the plan sees of it.
    pub fn piece(&self, c: &Correlation) -> Piece {
        self.positions.piece(c, c.channels, self.tasks(c))
    }

    /// Runs the plan on at most `threads` threads.
    ///
    /// # Safety
    ///
    /// As [`engine::run`](super::engine::run), for one correlation, that of a forward pass.
    pub unsafe fn run<T: Vector + Send + Sync>(
        &self,
        kernel: &Kernel<T>,
        c: &Correlation,
        operands: &Operands<T>,
        threads: usize,
    ) {
        let tasks = self.tasks(c);
        for_each_worker(threads, tasks, |numbers| {
            let memory = Workspace::new(self.panel_len(c));
            let [.., row, column] = operands.weight_strides;
            let mut taps = Vec::with_capacity(c.taps());
            for tap in 0..c.taps() {
                let (y, x) = (tap / c.width.taps, tap % c.width.taps);
                let weight = y as isize * row + x as isize * column;
                taps.push(Tap { panel: self.positions.tap(y, x), weight });
            }
            for number in numbers {
                // SAFETY: the caller vouches for the tensors; the memory holds a panel.
                unsafe { self.panel(kernel, c, operands, &taps, number, memory.as_ptr()) };
            }
        });
    }

    /// Packs a panel and multiplies it with the weights of all outputs.
    ///
    /// # Safety
    ///
    /// As [`Stream::run`]; `panel` has room for one.
    unsafe fn panel<T: Vector>(
        &self,
        kernel: &Kernel<T>,
        c: &Correlation,
        o: &Operands<T>,
        taps: &[Tap],
        number: usize,
        panel: *mut T,
    ) {
        let (group, index) = (number / self.positions.panels(c), number % self.positions.panels(c));
        let place = self.positions.place(c, index);
        let source = Source {
            first: o.x.wrapping_offset((group * c.channels) as isize * o.x_strides[1]),
            strides: o.x_strides,
            channels: c.channels,
        };
        let [image, output, row, _] = o.y_strides;
        let [images, rows, columns] = &place;
        let first = images.start * image + rows.start * row + columns.start;
        let positions = rows.len() * columns.len();
        let registers = kernel.vectors.min(positions / kernel.lanes);
        let window = registers * kernel.lanes;
        let weight_step = Tap::weight_step(taps);
        let apart = alike(kernel, c, output);
        // SAFETY: the caller vouches for the tensors; a window ends where the panel does at the latest.
        unsafe {
            self.positions.pack(kernel, c, &place, &source, panel);
            for class in 0..apart {
                let from = group * c.outputs + class;
                // A store across two lines takes twice the time: windows begin where lines do.
                let begin = o.y.wrapping_add(from * output + first).addr();
                let to_line = (begin.next_multiple_of(LINE) - begin) / size_of::<T>();
                let lines_join = (apart * output * size_of::<T>()).is_multiple_of(LINE);
                let head = if lines_join { to_line % window } else { 0 };
                let tail = (positions - head) % window;
                for outputs in kernel.tile_ranges(0..(c.outputs - class).div_ceil(apart)) {
                    let in_group = class + outputs.start * apart;
                    let channel = group * c.outputs + in_group;
                    let weight = group as isize * o.weight_strides[0]
                        + in_group as isize * o.weight_strides[1];
                    let out = o.y.add(channel * output + first);
                    let mut bias = [T::ZERO; MAX_CHANNELS];
                    if !o.bias.is_null() {
                        for (r, value) in bias[..outputs.len()].iter_mut().enumerate() {
                            *value = *o.bias.add(channel + r * apart);
                        }
                    }
                    let windows = |at: usize, rows: usize| Tile {
                        panel: panel.wrapping_add(at).cast_const(),
                        panel_channel: self.positions.channel_len(),
                        weight: o.weight.wrapping_offset(weight),
                        weight_channel: o.weight_strides[2],
                        weight_output: apart as isize * o.weight_strides[1],
                        weight_step,
                        channels: c.channels,
                        taps,
                        out: [0, 1, 2].map(|v| out.wrapping_add(at + v * kernel.lanes)),
                        out_channel: apart * output,
                        outputs: outputs.len(),
                        onto: match o.bias.is_null() {
                            true => Onto::Nothing,
                            false => Onto::Bias(bias.as_ptr()),
                        },
                        rows,
                        panel_row: window,
                        out_row: window,
                    };
                    // What is left before and behind is covered by windows of fewer registers, which reach into others and
                    // store the same values there.
                    if head > 0 {
                        kernel.tile(head.div_ceil(kernel.lanes), &windows(0, 1));
                    }
                    if positions - head >= window {
                        kernel.tile(registers, &windows(head, (positions - head) / window));
                    }
                    if tail > 0 {
                        let registers = tail.div_ceil(kernel.lanes);
                        kernel.tile(registers, &windows(positions - registers * kernel.lanes, 1));
                    }
                }
            }
        }
    }
}

/// How many output channels, `output` elements each, it is from one to the next that begins alike in a line: tiles are of
/// such, if there are enough to fill one. One otherwise.
fn alike<T: Vector>(kernel: &Kernel<T>, c: &Correlation, output: usize) -> usize {
    let apart = (1..=LINE / size_of::<T>())
        .find(|apart| (apart * output * size_of::<T>()).is_multiple_of(LINE));
    apart.filter(|apart| c.outputs >= apart * kernel.channels).unwrap_or(1)
}
