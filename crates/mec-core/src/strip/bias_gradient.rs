//! The bias gradient by itself: the sum of each channel of `dy`.

use super::workers::for_each_worker;
use crate::View;
use crate::kernel::{Kernel, Plane, Vector};

/// Writes one sum for each channel.
///
/// # Safety
///
/// `db` has room for the channels of `dy`.
pub(crate) unsafe fn run<T: Vector + Send + Sync>(
    kernel: &Kernel<T>,
    dy: &View<T>,
    db: *mut T,
    threads: usize,
) {
    let [batch, channels, height, width] = dy.shape();
    let [image, channel, row, column] = dy.strides();
    let shared = Shared(dy.as_ptr(), db);
    for_each_worker(threads, channels, |numbers| {
        let shared = &shared;
        let (dy, db) = (shared.0, shared.1);
        for c in numbers {
            let mut sum = T::ZERO;
            for n in 0..batch {
                let offset = n as isize * image + c as isize * channel;
                let first = dy.wrapping_offset(offset);
                // SAFETY: the view has been checked; each channel is one task's.
                unsafe {
                    if column == 1 {
                        sum = sum + kernel.plane_sum(&Plane { first, row, height, width });
                        continue;
                    }
                    for y in 0..height as isize {
                        for x in 0..width as isize {
                            sum = sum + *first.wrapping_offset(y * row + x * column);
                        }
                    }
                }
            }
            // SAFETY: as above.
            unsafe { *db.add(c) = sum };
        }
    });
}

/// The gradient of the output and of the bias.
#[derive(Clone, Copy)]
struct Shared<T>(*const T, *mut T);

// SAFETY: the first is only read, and no two tasks write the same element of the second.
unsafe impl<T: Send + Sync> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for Shared<T> {}
