//! Where a tile finds its weights: in place, or packed beside the panel.

use super::{Panel, Task, Worker};
use crate::kernel::{PackWeights, Tap, Vector};
use crate::strip::correlation::Correlation;
use crate::strip::panel::Strip;
use std::ops::Range;

/// Bytes of the list of taps that a thread keeps for `c`: where they lie, and where they are packed.
pub(crate) fn taps_bytes(c: &Correlation) -> usize {
    2 * c.all_taps() * size_of::<Tap>()
}

/// Where the tiles of some output channels find their weights.
pub(super) struct Weights<'a, T> {
    /// The first output's, of the panel's first channel.
    pub first: *const T,
    /// Elements, for each tap of a phase, to the next phase's first weight.
    pub phase: usize,
    /// Elements from a summed channel's weights to the next's: for each tap, where packed.
    pub channel: isize,
    /// Elements from an output's weights to the next's.
    pub output: isize,
    /// Elements from each tap's weight to the next's, if that is one distance.
    pub step: Option<isize>,
    /// The taps of each phase, one phase after the other.
    pub taps: &'a [Tap],
}

/// Whose weights a thread has packed: one tile's, or those of the first tiles of a part. The next panel wants
/// the same, unless there are more tiles than are kept: packing them anew was a twelfth of cv1's input
/// gradient and a twentieth of r1's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Packed {
    pub job: usize,
    group: usize,
    /// First output of the tile, or of the part.
    output: usize,
    channel: usize,
    tiles: usize,
}

impl Packed {
    /// Whether the last tile of `wanted` is among them.
    fn holds(self, wanted: Self) -> bool {
        self.tiles >= wanted.tiles && Self { tiles: wanted.tiles, ..self } == wanted
    }
}

impl<T> Weights<'_, T> {
    /// Elements from a summed channel's weights to the next's, in a phase that has `taps`.
    pub fn channel_of(&self, taps: &[Tap]) -> isize {
        if self.phase == 0 { self.channel } else { self.channel * taps.len() as isize }
    }
}

impl<T: Vector> Worker<'_, T> {
    /// Where each tap lies in the panel and in the weight.
    pub(super) fn find_taps(&mut self, c: &Correlation, strip: &Strip) {
        let [.., row, column] = self.operands.weight_strides;
        self.taps.clear();
        for phase in c.phases() {
            for y in 0..c.height.taps {
                for x in 0..phase.taps {
                    self.taps.push(Tap {
                        panel: strip.tap(c, phase, y, x),
                        weight: c.weight(phase, [y, x], [row, column]),
                    });
                }
            }
        }
    }

    /// The same taps, where their weights lie when packed as `[phase][channel][tap][output]`.
    pub(super) fn find_packed_taps(&mut self, task: &Task) {
        for at in 0..task.c.all_taps() {
            self.taps.push(self.taps[at]);
        }
        let mut taps = &mut self.taps[task.c.all_taps()..];
        for phase in task.c.phases() {
            let (these, rest) = taps.split_at_mut(task.c.height.taps * phase.taps);
            for (place, tap) in these.iter_mut().enumerate() {
                tap.weight = (place * self.kernel.channels) as isize;
            }
            taps = rest;
        }
    }

    /// Where the tiles of some output channels find their weights; packs them if the plan says so.
    ///
    /// # Safety
    ///
    /// As [`super::run`].
    pub(super) unsafe fn weights(
        &self,
        task: &Task,
        panel: &Panel,
        tile: usize,
        outputs: &Range<usize>,
    ) -> Weights<'_, T> {
        let o = self.operands;
        let [group, output, channel, ..] = o.weight_strides;
        let offset = task.group as isize * group
            + outputs.start as isize * output
            + panel.channel as isize * channel;
        let (in_place, packed) = self.taps.split_at(task.c.all_taps());
        let first = o.weight.wrapping_offset(offset);
        if task.plan.kept_tiles == 0 {
            let step = task.weight_step;
            return Weights { first, phase: 0, channel, output, step, taps: in_place };
        }
        let (tile, output_of) = match task.plan.kept_tiles {
            1 => (0, outputs.start),
            _ => (tile, task.outputs.start),
        };
        let behind = task.plan.panel_len + tile * task.plan.tile_weights;
        let to = self.memory.as_ptr().wrapping_add(behind);
        let size = self.kernel.channels;
        let wanted = Packed {
            job: task.job,
            group: task.group,
            output: output_of,
            channel: panel.channel,
            tiles: tile + 1,
        };
        let known = self.packed.get().is_some_and(|packed| packed.holds(wanted));
        if !known {
            self.packed.set(Some(wanted));
        }
        let (mut taps, mut at) = (in_place, to);
        for phase in task.c.phases().iter().filter(|_| !known) {
            let these;
            (these, taps) = taps.split_at(task.c.height.taps * phase.taps);
            // SAFETY: the caller vouches for the weight; the plan made room for each phase.
            unsafe {
                self.kernel.pack_weights(&PackWeights {
                    from: first,
                    channel,
                    output,
                    channels: panel.channels,
                    outputs: outputs.len(),
                    taps: these,
                    to: at,
                });
            }
            at = at.wrapping_add(panel.channels * these.len() * size);
        }
        Weights {
            first: to,
            phase: panel.channels * size,
            channel: size as isize,
            output: 1,
            step: Some(size as isize),
            taps: packed,
        }
    }
}
