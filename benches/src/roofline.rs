//! What the machine can do at this moment: multiply-adds and copies.
//!
//! Measured in short pieces, so that a measurement fits between two others and sees the same
//! frequency and the same neighbours.

use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use crate::clock::thread_cpu;

/// `f32` multiply-adds in GFLOP/s over all threads of the current pool, which do nothing else for a
/// quarter of a millisecond: by the wall.
pub fn fma_peak() -> f64 {
    let start = Instant::now();
    let work = multiply_adds_together(|| start.elapsed());
    let slowest = work.iter().map(|(_, time)| *time).max().unwrap_or_default();
    work.iter().map(|(flops, _)| flops).sum::<f64>() / slowest.as_nanos() as f64
}

/// The same of one thread, by processor time: the mean over the threads of the pool, all at work.
pub fn fma_peak_of_a_thread() -> f64 {
    let work = multiply_adds_together(thread_cpu);
    work.iter().map(|(flops, time)| flops / time.as_nanos() as f64).sum::<f64>() / work.len() as f64
}

/// The work each thread of the pool has done and the time it took it by the clock `now`. They begin
/// together, so that what they share (frequency, or a core) is shared.
fn multiply_adds_together(now: impl Fn() -> Duration + Sync) -> Vec<(f64, Duration)> {
    let arrived = AtomicUsize::new(0);
    rayon::broadcast(|context| {
        arrived.fetch_add(1, Ordering::Relaxed);
        while arrived.load(Ordering::Relaxed) < context.num_threads() {
            std::thread::yield_now();
        }
        let begin = now();
        let flops = Arch::new().dispatch(MultiplyAdds { rounds: 40_000 });
        (flops, now() - begin)
    })
}

/// Multiply-adds in registers.
struct MultiplyAdds {
    /// How many each accumulator takes.
    rounds: u32,
}

impl WithSimd for MultiplyAdds {
    /// Floating-point operations done.
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f64 {
        // Enough independent sums to hide the latency (4 cycles, at most 4 units), and few enough
        // to leave registers for the two factors.
        if S::REGISTER_COUNT >= 32 { self.run::<S, 24>(simd) } else { self.run::<S, 12>(simd) }
    }
}

impl MultiplyAdds {
    #[inline(always)]
    fn run<S: Simd, const SUMS: usize>(self, simd: S) -> f64 {
        let (a, b) = (simd.splat_f32s(black_box(1.0)), simd.splat_f32s(black_box(1e-9)));
        let mut sums = [simd.splat_f32s(0.0); SUMS];
        for _ in 0..self.rounds {
            for sum in &mut sums {
                *sum = simd.mul_add_e_f32s(a, b, *sum);
            }
        }
        black_box(sums);
        2.0 * self.rounds as f64 * (SUMS * S::F32_LANES) as f64
    }
}

/// Two buffers to copy between.
#[derive(Debug)]
pub struct Copies {
    from: Vec<u8>,
    to: Vec<u8>,
}

impl Copies {
    /// Buffers of `bytes` each, all pages touched. To see memory and not a cache, take several times
    /// the last cache's size; 256 MiB is a compromise with machines that have little memory.
    pub fn new(bytes: usize) -> Self {
        Self { from: vec![1; bytes], to: vec![2; bytes] }
    }

    /// Bytes read and written for each nanosecond, which is GB/s, by all threads of the current pool
    /// together: one copy of the whole buffer, by the wall.
    pub fn bandwidth(&mut self) -> f64 {
        let part = self.from.len().div_ceil(rayon::current_num_threads());
        let begin = Instant::now();
        self.to
            .par_chunks_mut(part)
            .zip(self.from.par_chunks(part))
            .for_each(|(to, from)| to.copy_from_slice(from));
        let nanoseconds = begin.elapsed().as_nanos() as f64;
        black_box(&self.to);
        2.0 * self.from.len() as f64 / nanoseconds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_plausible() {
        for rate in [fma_peak(), fma_peak_of_a_thread()] {
            assert!((0.1..100_000.0).contains(&rate), "{rate} GFLOP/s");
        }
        let mut copies = Copies::new(8 << 20);
        let rate = copies.bandwidth();
        assert!((0.01..10_000.0).contains(&rate), "{rate} GB/s");
        assert_eq!(copies.from, copies.to);
    }
}
