//! Placeholder until the room is furnished.
/// x
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct Error;
