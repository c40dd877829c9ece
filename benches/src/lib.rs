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
