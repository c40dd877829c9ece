//! The number types that can be convolved.

use crate::kernel::Vector;
use std::fmt::Debug;
use std::ops::{Mul, Sub};

/// A real number the kernels are compiled for: `f32` or `f64`.
///
/// The trait is sealed: its supertrait, which names the SIMD operations, cannot be reached from
/// outside.
pub trait Element:
    Vector + Debug + PartialEq + Send + Sync + Sub<Output = Self> + Mul<Output = Self> + 'static
{
}

impl Element for f32 {}
impl Element for f64 {}
