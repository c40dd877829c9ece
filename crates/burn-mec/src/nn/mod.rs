//! Neural-network modules, at the paths they have in `burn::nn`.

pub mod conv;
