//! What can go wrong between two checkpoints.

/// Why a conversion, verification or evaluation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A container.
    #[error(transparent)]
    Checkpoint(#[from] fonio_checkpoint::Error),
    /// A model.
    #[error(transparent)]
    Model(#[from] fonio_model::Error),
    /// A tensor that cannot become what was asked for.
    #[error("tensor {tensor:?}: {reason}")]
    Tensor {
        /// Its name.
        tensor: String,
        /// Why not.
        reason: String,
    },
    /// A request that makes no sense.
    #[error("{0}")]
    Request(String),
    /// The caller called it off; nothing was written.
    #[error("cancelled")]
    Cancelled,
}
