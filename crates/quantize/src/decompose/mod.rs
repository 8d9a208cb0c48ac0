//! Matrices as sums of parts that are small, each for a reason of its own (the NDSQ of CAWSF files).
//!
//! `W ≈ L + D + S + R`: what has low rank, diagonals, outliers, and the rest by product quantization, each taken from
//! what those before it leave. Everything is seeded, and the same at any number of threads.

mod product;
mod random;
mod svd;

pub use product::Machine;
pub use svd::{LowRank, low_rank};
