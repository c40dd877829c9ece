//! The suite of problems that every implementation is held to, with the reference's answers.
//!
//! One table of named [`problems`], chosen to fall into every trap known to us, and a strategy for
//! random ones ([`any_problem`]). The data are small integers, so that any order of summation is
//! exact in `f32` and results can be compared with `==`.
//!
//! ```
//! use mec_core::testing::{assert_same, expected, problems};
//! use mec_core::{Settings, View, forward};
//!
//! for problem in problems().iter().take(3) {
//!     let (x, weight, bias) = (problem.x::<f32>(), problem.weights(), problem.bias_values());
//!     let y = forward(
//!         &problem.geometry(),
//!         &Settings::default(),
//!         &View::contiguous(&x, problem.input)?,
//!         &View::contiguous(&weight, problem.weight)?,
//!         bias.as_deref(),
//!     )?;
//!     assert_same(problem, "y", &y, &expected(problem).y);
//! }
//! # Ok::<(), mec_core::Error>(())
//! ```

mod problems;
mod strided;

use std::fmt;

use proptest::prelude::*;

use crate::{ConvOptions, Element, Geometry, View, reference};

pub use problems::problems;
pub use strided::{Layout, Strided};

/// One convolution to compute, forward and backward.
#[derive(Clone, PartialEq, Eq)]
pub struct Problem {
    /// What the problem is in the suite for.
    pub name: String,
    /// Shape of the input, `[batch, channels_in, height, width]`.
    pub input: [usize; 4],
    /// Shape of the weight, `[channels_out, channels_in / groups, kernel_height, kernel_width]`.
    pub weight: [usize; 4],
    /// Stride, padding, dilation and groups.
    pub options: ConvOptions,
    /// Whether there is a bias.
    pub bias: bool,
}

/// The name, then all that is needed to write the problem down as a case of its own.
impl fmt::Debug for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ConvOptions { stride, padding, dilation, groups } = &self.options;
        write!(
            f,
            "{}: x {:?}, weight {:?}, stride {stride:?}",
            self.name, self.input, self.weight
        )?;
        write!(f, ", padding {padding:?}, dilation {dilation:?}, groups {groups}")?;
        write!(f, ", {}", if self.bias { "bias" } else { "no bias" })
    }
}

/// What the reference computes for a [`Problem`]: row-major data.
#[derive(Debug, Clone, PartialEq)]
pub struct Expected<T> {
    /// The output.
    pub y: Vec<T>,
    /// The gradient in the input.
    pub dx: Vec<T>,
    /// The gradient in the weight.
    pub dw: Vec<T>,
    /// The gradient in the bias (also where the problem has none: it is the sum of `dy`).
    pub db: Vec<T>,
}

impl Problem {
    /// The resolved problem.
    ///
    /// # Panics
    ///
    /// If the problem is not a valid convolution; those of this module are.
    pub fn geometry(&self) -> Geometry {
        Geometry::new(self.input, self.weight, &self.options)
            .unwrap_or_else(|error| panic!("{self:?}: {error}"))
    }

    /// The input, row-major.
    pub fn x<T: Element + From<i8>>(&self) -> Vec<T> {
        small_integers(self.input, 1)
    }

    /// The weight, row-major.
    pub fn weights<T: Element + From<i8>>(&self) -> Vec<T> {
        small_integers(self.weight, 2)
    }

    /// The bias, if there is one.
    pub fn bias_values<T: Element + From<i8>>(&self) -> Option<Vec<T>> {
        self.bias.then(|| small_integers([1, 1, 1, self.weight[0]], 3))
    }

    /// The gradient in the output that the backward passes begin with, row-major.
    pub fn dy<T: Element + From<i8>>(&self) -> Vec<T> {
        small_integers(self.geometry().output_shape(), 4)
    }
}

/// What the reference computes for `problem`.
///
/// # Panics
///
/// If the problem is not a valid convolution.
pub fn expected<T: Element + From<i8>>(problem: &Problem) -> Expected<T> {
    let g = problem.geometry();
    let (x, weight, dy) = (problem.x::<T>(), problem.weights(), problem.dy());
    let x = View::contiguous(&x, g.input_shape()).expect("x has the shape of the problem");
    let weight = View::contiguous(&weight, g.weight_shape()).expect("so has the weight");
    let dy = View::contiguous(&dy, g.output_shape()).expect("and dy");
    Expected {
        y: reference::forward(&g, &x, &weight, problem.bias_values().as_deref()),
        dx: reference::input_gradient(&g, &dy, &weight),
        dw: reference::weight_gradient(&g, &x, &dy),
        db: reference::bias_gradient(&g, &dy),
    }
}

/// Asserts that `got` equals `expected` element for element, a NaN equal to a NaN.
///
/// # Panics
///
/// If they differ, naming the problem, `what`, how many elements differ and the first of them.
#[track_caller]
pub fn assert_same<T: PartialEq + fmt::Debug>(
    problem: &Problem,
    what: &str,
    got: &[T],
    expected: &[T],
) {
    assert_eq!(got.len(), expected.len(), "{problem:?}: {what} has the wrong length");
    // Not a number is what does not equal itself.
    #[allow(clippy::eq_op)]
    let same = |a: &T, b: &T| a == b || (a != a && b != b);
    let wrong = |i: &usize| !same(&got[*i], &expected[*i]);
    if let Some(first) = (0..got.len()).find(wrong) {
        let count = (0..got.len()).filter(wrong).count();
        panic!(
            "{problem:?}: {count} of {} elements of {what} are wrong, the first at {first}: {:?}, expected {:?}",
            got.len(),
            got[first],
            expected[first],
        );
    }
}

/// Values from -4 to 4 that look random and are the same everywhere.
fn small_integers<T: From<i8>>(shape: [usize; 4], seed: u64) -> Vec<T> {
    (0..shape.iter().product::<usize>() as u64)
        .map(|i| {
            // The finaliser of SplitMix64: neighbouring indices give unrelated values.
            let mut z = (i + (seed << 40)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            T::from(((z ^ (z >> 31)) % 9) as i8 - 4)
        })
        .collect()
}

/// One axis of a random problem: (input, kernel, stride, padding, dilation).
type RandomAxis = (usize, usize, usize, (usize, usize), usize);

fn any_axis() -> impl Strategy<Value = RandomAxis> {
    let input = prop_oneof![4 => 1usize..=12, 2 => 13usize..=40, 1 => 41usize..=100];
    let kernel = prop_oneof![2 => Just(1usize), 3 => Just(3usize), 3 => 2usize..=7];
    let stride = prop_oneof![3 => Just(1usize), 2 => Just(2usize), 1 => 3usize..=5];
    let padding = prop_oneof![
        2 => Just((0usize, 0usize)),
        2 => (0usize..=3).prop_map(|p| (p, p)),
        2 => (0usize..=8, 0usize..=8),
    ];
    let dilation = prop_oneof![3 => Just(1usize), 1 => 2usize..=4];
    (input, kernel, stride, padding, dilation).prop_map(
        |(input, kernel, stride, padding, dilation)| {
            let extent = dilation * (kernel - 1) + 1;
            // Grown where the kernel would not fit: rejecting would starve the large kernels.
            let input = input.max(extent.saturating_sub(padding.0 + padding.1));
            (input, kernel, stride, padding, dilation)
        },
    )
}

/// Random valid problems, each small enough for the reference to take milliseconds.
pub fn any_problem() -> impl Strategy<Value = Problem> {
    let batch = prop_oneof![1 => Just(0usize), 6 => Just(1usize), 8 => 2usize..=5];
    // (groups, input channels of one, output channels of one)
    let channels = prop_oneof![
        6 => (Just(1usize), 1usize..=40, 1usize..=40),
        2 => (2usize..=5, 1usize..=18, 1usize..=18),
        2 => (2usize..=40, Just(1usize), 1usize..=3),
    ];
    (batch, channels, any_axis(), any_axis(), any::<bool>()).prop_map(
        |(batch, (groups, mut c, mut oc), h, w, bias)| {
            let problem = |batch: usize, c: usize, oc: usize| Problem {
                name: "random".into(),
                input: [batch, groups * c, h.0, w.0],
                weight: [groups * oc, c, h.1, w.1],
                options: ConvOptions {
                    stride: [h.2, w.2],
                    padding: [h.3, w.3],
                    dilation: [h.4, w.4],
                    groups,
                },
                bias,
            };
            // Two operations a product; the reference does about 50 million products a second
            // without optimisation.
            let too_slow = |p: &Problem| p.geometry().flops() > 300_000;
            let mut batch = batch;
            while too_slow(&problem(batch, c, oc)) && (batch, c, oc) != (1, 1, 1) {
                (batch, c, oc) = (batch.min(1), c.div_ceil(2), oc.div_ceil(2));
            }
            problem(batch, c, oc)
        },
    )
}
