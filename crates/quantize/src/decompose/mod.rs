//! Matrices as sums of parts that are small, each for a reason of its own (the NDSQ of CAWSF files).
//!
//! `W ≈ L + D + S + R`: what has low rank, diagonals, outliers, and the rest by product quantization, each taken from
//! what those before it leave. Everything is seeded, and the same bytes at any number of threads and at every
//! instruction set; on another machine last bits may differ (see `svd.rs`).

mod calibrate;
mod file;
mod keys;
mod outcome;
mod parts;
mod product;
mod random;
mod scope;
mod svd;
mod vectors;

pub use calibrate::{Activations, DEFAULT_TEXT, feature};
pub use file::{Conversion, Report, run};
pub use parts::{Band, Factors, Matrix, Outliers, Parts, Settings, fitting_rank, parts, rest};
pub use product::Machine;
pub use scope::{count, scopes};
pub use svd::{LowRank, low_rank};
pub use vectors::{Codebook, Samples};
