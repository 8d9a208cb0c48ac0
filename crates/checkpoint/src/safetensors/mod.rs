//! safetensors, Hugging Face's container: a length, a JSON header, the data.
//!
//! ```text
//! u64 little-endian length of the header
//! header: {"NAME": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, …, "__metadata__": {"key": "text"}}
//!         and spaces
//! data, row-major, little-endian; offsets from its beginning
//! ```
//!
//! The rules (the format's README and its reference reader): the header begins with `{`, has at most 100 MB, no key
//! twice; the tensors cover the data from its first to its last byte without gaps or overlaps; a tensor's range is as
//! long as its type and shape say. Tensors without values are fine, files without tensors too.
//!
//! A sharded model is `NAME-00001-of-0000N.safetensors` and `NAME.safetensors.index.json`, which says where each
//! tensor is. Files and index must say the same: a tensor that only one of them has is an error. Where the index is
//! missing, the files' names say which belong together.
//!
//! Metadata are the `__metadata__` of the first file, and keys that only later ones have. Types that have no codec
//! (floats below 8 bits, unsigned integers above a byte, complex numbers) are *unsupported*.

mod read;
mod write;

use crate::Container;

/// The container.
pub(crate) const SAFETENSORS: Container = Container {
    name: "safetensors",
    extensions: &["safetensors"],
    sniff: read::sniff,
    open: read::open,
    folder_files: &["model.safetensors", INDEX],
    create: Some(write::create),
};

pub(crate) use read::open_memory;

/// What an index is called if the model has no name.
const INDEX: &str = "model.safetensors.index.json";
/// The reference reader's limit.
const MAX_HEADER: u64 = 100_000_000;
const METADATA_KEY: &str = "__metadata__";
/// Types by the format's names, which are the codecs' names too.
const DTYPES: &[&str] = &[
    "F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "I64", "I32", "I16", "I8", "U32", "U8",
    "BOOL",
];
