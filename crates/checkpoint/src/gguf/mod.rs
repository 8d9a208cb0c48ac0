//! GGUF, the container of ggml and llama.cpp: one file with metadata, tensor descriptions and aligned data.
//!
//! Layout, all little-endian (the specification is `docs/gguf.md` of ggml; what it leaves open is decided as ggml's
//! own reader does):
//!
//! ```text
//! "GGUF"  u32 version  u64 n_tensors  u64 n_kv
//! n_kv ×      { string key, u32 type, value }        string = u64 length, bytes; array = u32 type, u64 count, values
//! n_tensors × { string name, u32 n_dims, u64 dims[n_dims], u32 type, u64 offset }
//! padding to `general.alignment` (32 unless that key says otherwise)
//! data: every tensor padded to the alignment, in the order of the descriptions, offsets from here
//! ```
//!
//! Dimensions are stored innermost first; [`crate::TensorInfo::shape`] has them reversed.
//!
//! Versions 2 and 3 are read (they differ only in that 3 allows big-endian files, which are not supported), version 3
//! is written. A split set is files `NAME-00001-of-0000N.gguf`, each with `split.no`, `split.count` and
//! `split.tensors.count`; any of them opens the set, whose metadata is the first file's without `split.*`.
//!
//! Strings must be UTF-8, as the specification says, also in values: replacing bytes would silently change a
//! vocabulary.

mod read;
mod write;

use crate::Container;

/// The container.
pub(crate) const GGUF: Container = Container {
    name: "gguf",
    extensions: &["gguf"],
    sniff: |first| first.starts_with(MAGIC),
    open: read::open,
    folder_files: &[],
    create: Some(write::create),
};

pub(crate) use read::{check_count, metadata, open_memory, string};
pub(crate) use write::{put_metadata, put_string};

const MAGIC: &[u8] = b"GGUF";
const DEFAULT_ALIGNMENT: u64 = 32;
/// ggml keeps names in 64 bytes with a zero at the end.
const MAX_NAME: usize = 63;
/// ggml's tensors have four dimensions.
const MAX_DIMS: usize = 4;
const ALIGNMENT_KEY: &str = "general.alignment";
const SPLIT_NO: &str = "split.no";
const SPLIT_COUNT: &str = "split.count";
const SPLIT_TENSORS: &str = "split.tensors.count";

/// Numbers of the metadata types.
mod kind {
    pub(super) const U8: u32 = 0;
    pub(super) const I8: u32 = 1;
    pub(super) const U16: u32 = 2;
    pub(super) const I16: u32 = 3;
    pub(super) const U32: u32 = 4;
    pub(super) const I32: u32 = 5;
    pub(super) const F32: u32 = 6;
    pub(super) const BOOL: u32 = 7;
    pub(super) const STRING: u32 = 8;
    pub(super) const ARRAY: u32 = 9;
    pub(super) const U64: u32 = 10;
    pub(super) const I64: u32 = 11;
    pub(super) const F64: u32 = 12;
}
