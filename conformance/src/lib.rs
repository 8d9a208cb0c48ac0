//! fonio against its oracles.
