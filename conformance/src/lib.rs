//! fonio against its oracles.
//!
//! The tests in `tests/` compare fonio with other implementations on real models, on tiny seeded checkpoints and
//! on published vectors. The oracles are fetched, never committed: `cargo xtask fetch` puts them where [`home`]
//! looks. This library holds what the tests share: where things are ([`home`]), llama.cpp as a library
//! ([`llamacpp`]), the measures ([`metrics`]) and the runs that both sides go through ([`compare`]).
#![warn(missing_docs)]

pub mod compare;
pub mod home;
pub mod llamacpp;
pub mod metrics;
