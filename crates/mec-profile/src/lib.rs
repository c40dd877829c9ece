//! Counts the memory that a piece of code takes, and says beforehand what a training step will take.
//!
//! [`PeakAlloc`] is a global allocator that counts; a *program* installs it (a test, a bench, an
//! example), never a library, since there is one global allocator for each program:
//!
//! ```
//! use mec_profile::{PeakAlloc, measure};
//!
//! #[global_allocator]
//! static ALLOC: PeakAlloc = PeakAlloc;
//!
//! let (sum, memory) = measure(|| {
//!     let scratch = vec![1u8; 1 << 20];
//!     scratch.iter().map(|&b| b as usize).sum::<usize>()
//! });
//! assert_eq!(sum, 1 << 20);
//! assert_eq!((memory.peak, memory.retained, memory.allocations), (1 << 20, 0, 1));
//! ```
//!
//! Counts are of the bytes asked for, over the whole process: what other threads do meanwhile counts
//! too, which is wanted for a thread pool and unwanted for a test that runs beside. Pages that the
//! operating system has not yet backed count from the moment they are asked for; memory that does
//! not come from the global allocator (stacks, maps of files, the device's) does not count.
//!
//! # Features
//!
//! All are on by default, for the command `mec`. A library that only counts turns them off, and then
//! depends on nothing at all.
//!
//! | feature | what it adds |
//! |---|---|
//! | `predict` | [`model`], [`predict`], [`paper`], [`report`]: networks as data, and the memory they should take |
//! | `burn` | [`profile_step`] and [`network`]: the memory a training step of a Burn model takes |
//! | `cli` | the command `mec` |
#![cfg_attr(not(feature = "cli"), allow(rustdoc::broken_intra_doc_links))]

mod alloc;
#[cfg(feature = "predict")]
mod error;
#[cfg(feature = "burn")]
mod im2col;
#[cfg(feature = "predict")]
mod memory;
#[cfg(feature = "predict")]
pub mod model;
#[cfg(feature = "burn")]
pub mod network;
#[cfg(feature = "predict")]
pub mod paper;
#[cfg(feature = "predict")]
pub mod predict;
#[cfg(feature = "predict")]
pub mod report;
#[cfg(feature = "predict")]
mod shadow;
#[cfg(feature = "burn")]
mod step;
#[cfg(feature = "predict")]
mod zoo;

pub use alloc::{MemoryUse, PeakAlloc, measure};
#[cfg(feature = "predict")]
pub use error::Error;
#[cfg(feature = "predict")]
pub(crate) use error::toml_file;
#[cfg(feature = "predict")]
pub use memory::{Backend, Convolution, DeviceMemory, Optimizer, Pass, StepMemory};
#[cfg(feature = "burn")]
pub use step::{Measured, measure_step, profile_step};
#[cfg(feature = "predict")]
pub use zoo::{BUILT_IN, BuiltIn};
