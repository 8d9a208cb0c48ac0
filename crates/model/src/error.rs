//! What can be wrong with a model.

use std::path::PathBuf;

/// Why a model could not be opened, converted or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The container.
    #[error(transparent)]
    Checkpoint(#[from] fonio_checkpoint::Error),
    /// The tokenizer.
    #[error("{}: {source}", file.display())]
    Text {
        /// The file or folder.
        file: PathBuf,
        /// What is wrong.
        source: fonio_text::Error,
    },
    /// A configuration that cannot be: a missing key, a wrong type, numbers that don't fit each other.
    #[error("{}: {key}: {reason}", file.display())]
    Config {
        /// The file or folder.
        file: PathBuf,
        /// The key.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// Something that fonio does not compute; it is never approximated.
    #[error("{}: {key}: not supported: {reason}", file.display())]
    Unsupported {
        /// The file or folder.
        file: PathBuf,
        /// The key or tensor.
        key: String,
        /// What is not supported.
        reason: String,
    },
    /// A tensor that the architecture needs is not there.
    #[error("{}: tensor {tensor:?} is missing", file.display())]
    MissingTensor {
        /// The file or folder.
        file: PathBuf,
        /// Its name in GGUF's terms.
        tensor: String,
    },
    /// A tensor has another shape than the configuration says.
    #[error("{}: tensor {tensor:?} has shape {got:?}, the configuration says {want:?}", file.display())]
    Shape {
        /// The file or folder.
        file: PathBuf,
        /// Its name in GGUF's terms.
        tensor: String,
        /// Its shape in the file, outermost dimension first.
        got: Vec<u64>,
        /// The shape that it should have.
        want: Vec<u64>,
    },
    /// A draft model that means other tokens by the same numbers.
    #[error("the draft model has another vocabulary: token {token} is {draft} there and {target} here")]
    OtherVocabulary {
        /// The first token that differs.
        token: u32,
        /// Its text in the draft model's vocabulary, quoted, or that it is missing.
        draft: String,
        /// The same of the model that is drafted for.
        target: String,
    },
    /// Tokens that the model or its cache has no place for.
    #[error("{0}")]
    Input(String),
}
