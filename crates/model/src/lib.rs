//! Architectures as data, blocks, caches and the one layer loop.
//!
//! From a checkpoint to logits: [`source::open`] gives a checkpoint with GGUF's names, whether the files are GGUF or
//! a Hugging Face folder; [`arch::resolve`] turns its metadata into a [`spec::ModelSpec`], which is pure data;
//! [`Model::load`] binds every tensor that the spec asks for to a typed field, once, and checks its shape; after that
//! [`Model::forward`] runs the layers over a [`cache::Cache`].
//!
//! An architecture is one file in `arch/` and one line in its list: how its configuration becomes metadata, how its
//! metadata becomes a spec, and how its Hugging Face tensors are called. Float and quantized weights take the same
//! path; nothing here knows a codec by name.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod arch;
mod bind;
mod block;
pub mod cache;
mod error;
mod forward;
pub mod hf;
pub mod keys;
mod parts;
pub mod prequant;
mod qsf;
pub mod source;
pub mod spec;
mod unpacked;
mod view;
pub mod vocab;

pub use bind::{Model, Routed};
pub use error::Error;
pub use forward::{Observer, Wanted};
pub use parts::{group, is_product_weight};
pub use view::View;
