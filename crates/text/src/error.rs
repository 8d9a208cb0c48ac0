//! What can go wrong, by kind: the file is wrong, we cannot do it, it is too big, or the system failed.

use std::path::PathBuf;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The source contradicts itself or its format.
    #[error("corrupt {what}: {why}")]
    Corrupt {
        /// The file or field.
        what: String,
        /// The contradiction.
        why: String,
    },
    /// The source asks for something that is not implemented; it is named, never approximated.
    #[error("unsupported {what}: {name}")]
    Unsupported {
        /// The kind of thing (a pre-tokenizer, a model, a template function).
        what: &'static str,
        /// Its name or structure in the source.
        name: String,
    },
    /// A size is beyond what this crate accepts.
    #[error("{what} is {value}, above the limit of {limit}")]
    Limit {
        /// What was measured.
        what: &'static str,
        /// Its size.
        value: u64,
        /// The largest accepted size.
        limit: u64,
    },
    /// A character that the vocabulary cannot express: it has no byte tokens and no unknown token.
    #[error("the vocabulary has no token for {0:?}, no byte tokens and no unknown token")]
    Unencodable(String),
    /// A chat template does not parse, or fails while it renders (also when it calls `raise_exception`).
    #[error("chat template: {0}")]
    Template(String),
    /// The file cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
}

impl Error {
    pub(crate) fn corrupt(what: impl Into<String>, why: impl Into<String>) -> Error {
        Error::Corrupt { what: what.into(), why: why.into() }
    }

    pub(crate) fn unsupported(what: &'static str, name: impl Into<String>) -> Error {
        Error::Unsupported { what, name: name.into() }
    }
}
