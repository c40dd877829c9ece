//! What AVX2 does by its own instructions for Winograd's filtering: inputs are packed and transformed in
//! one pass, and weights come into the lanes by transposing.

mod pack;
mod together;
mod weights;

pub(in crate::kernel) use pack::pack_tiles;
pub(in crate::kernel) use weights::transform_weights;

/// Lanes of a register.
const LANES: usize = 8;
