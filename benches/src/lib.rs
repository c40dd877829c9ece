//! What the measuring programs share: a layer with its data, clocks, and what the machine can do.
//!
//! - `peer` (program) answers a driver that measures several programs in turn.
//! - `gflops` (program) prints how near each layer comes to the FMA peak, by CPU time.
//! - `layers` (bench) measures us through Burn and without it, beside Burn's own backends.
//!
//! `README.md` says how to run each and how to read what it prints.

pub mod clock;
mod problem;
pub mod roofline;

pub use problem::{Pass, Problem, fill, select};

/// The middle value (the upper one of two); `None` of nothing.
pub fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// The geometric mean of positive values; `None` of nothing.
pub fn geometric_mean(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let logarithms: Vec<f64> = values.into_iter().map(f64::ln).collect();
    let count = logarithms.len();
    (count > 0).then(|| (logarithms.iter().sum::<f64>() / count as f64).exp())
}

/// Largest difference between two results that rounding explains, in units of the largest value: the
/// longest sums of the catalogue have 1.6 million terms, and 2e-5 is the worst seen of any program.
pub const ROUNDING: f64 = 1e-4;

/// Largest difference between two results, in units of the largest expected value; infinite if they
/// are not of one length.
pub fn difference(got: &[f32], expected: &[f32]) -> f64 {
    if got.len() != expected.len() {
        return f64::INFINITY;
    }
    // Not `f32::max`, which would lose a NaN.
    let largest = |a: f32, b: f32| if a.is_nan() || a > b { a } else { b };
    let largest_of = |values: &mut dyn Iterator<Item = f32>| values.fold(0.0, largest);
    let difference = largest_of(&mut got.iter().zip(expected).map(|(a, b)| (a - b).abs()));
    let scale = largest_of(&mut expected.iter().map(|value| value.abs()));
    if difference == 0.0 { 0.0 } else { f64::from(difference) / f64::from(scale) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn middle_and_mean() {
        assert_eq!(median([3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median([4.0, 1.0]), Some(4.0));
        assert_eq!(median([]), None);
        assert!((geometric_mean([1.0, 4.0]).unwrap() - 2.0).abs() < 1e-12);
        assert_eq!(geometric_mean([]), None);
    }
}
