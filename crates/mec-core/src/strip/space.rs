//! The weights of a correlation whose channels are dealt to space: all phases of an input gradient at once.

use super::correlation::{Correlation, joint_phases};
use super::workers::for_each_worker;
use crate::{Element, Geometry, View};
use std::sync::{Mutex, PoisonError};

/// Elements of the weights of `c`: none where the tensor's own serve.
pub(crate) fn weights_len(c: &Correlation) -> usize {
    c.space.map_or(0, |_| c.groups * c.outputs * c.channels * c.taps())
}

/// Strides of group, output channel, summed channel, row and column of the weights of `c`.
pub(crate) fn weight_strides(c: &Correlation) -> [isize; 5] {
    let output = c.channels * c.taps();
    [c.outputs * output, output, c.taps(), c.width.taps, 1].map(|stride| stride as isize)
}

/// The weights of correlation `c` ([`Correlation::input_gradient_to_space`] of `g`), in row-major order, written by at
/// most `threads` threads. A tap that the phase of a computed channel does not have is zero.
///
/// # Safety
///
/// `c` is that correlation of `g`, and `weight` has `g`'s shape.
pub(crate) unsafe fn weights<T: Element>(
    g: &Geometry,
    c: &Correlation,
    weight: &View<T>,
    threads: usize,
) -> Vec<T> {
    let mut weights = vec![T::ZERO; weights_len(c)];
    let Some(space) = c.space else { return weights };
    let [(_, row_phases, _), (_, column_phases, _)] = [&g.height, &g.width].map(joint_phases);
    let [from_output, from_channel, from_row, from_column] = weight.strides();
    let output_len = c.channels * c.taps();
    let write = |(number, output): (usize, &mut [T])| {
        let (group, number) = (number / c.outputs, number % c.outputs);
        let (row_phase, rest) = (number / space.row_outputs, number % space.row_outputs);
        let (channel, column_phase) = (rest / space.phases[1], rest % space.phases[1]);
        let (rows, columns) = (row_phases[row_phase], column_phases[column_phase]);
        for (summed, to) in output.chunks_exact_mut(c.taps()).enumerate() {
            let output = (group * c.channels + summed) as isize;
            let first = output * from_output + channel as isize * from_channel;
            for y in 0..rows.taps {
                let row = (rows.weight_first - y * space.phases[0]) as isize;
                for x in 0..columns.taps {
                    let column = (columns.weight_first - x * space.phases[1]) as isize;
                    let at = first + row * from_row + column * from_column;
                    let place = (rows.offset + y) * c.width.taps + columns.offset + x;
                    // SAFETY: output channel, channel, row and column lie within the view's shape.
                    to[place] = unsafe { *weight.as_ptr().wrapping_offset(at) };
                }
            }
        }
    };
    let outputs = Mutex::new(weights.chunks_mut(output_len).enumerate());
    let next = || outputs.lock().unwrap_or_else(PoisonError::into_inner).next();
    for_each_worker(threads, c.groups * c.outputs, |numbers| {
        numbers.map_while(|_| next()).for_each(write);
    });
    weights
}
