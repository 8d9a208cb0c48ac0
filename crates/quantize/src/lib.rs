//! From one checkpoint to another: recipes, conversion, verification, evaluation.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod convert;
pub mod decompose;
mod error;
pub mod eval;
mod outliers;
pub mod recipe;
pub mod verify;

pub use error::Error;
