//! Bytes to token ids and back, and chat templates.
//!
//! Purpose: one [`Tokenizer`] for every source of a vocabulary (a GGUF file's metadata, `tokenizer.json`,
//! `tokenizer.model`), and a sandboxed [`ChatTemplate`]. Nothing here knows tensors or containers.
//!
//! Shape: every source becomes a [`Vocab`] (plain data, the form that GGUF holds), and a `Vocab` plus one of few
//! algorithms is a tokenizer:
//!
//! ```text
//! tokenizer.json ──────┐                       ┌─ gpt2, gemma4: split by patterns (pre), merge by rank (merge, bpe)
//! tokenizer.model ─────┤                       ├─ llama: merge by score, byte fallback (merge, spm)
//! *.tiktoken ──────────┼─> Vocab ─> Tokenizer ─┼─ t5: the best-scoring way to cut (unigram)
//! vocab.*, merges.txt ─┤                       ├─ bert: longest pieces of a word (wordpiece)
//! GGUF metadata ───────┘                       └─ rwkv: longest tokens (rwkv)
//! ```
//!
//! Why not the `tokenizers` crate: what a GGUF holds for Llama 2 and Gemma are scores without merges, which it cannot
//! take; it builds maps of owned strings when it loads (here tokens and merges are indexed where they lie, merges on
//! first use); and its regex back ends stop with an error on a long run of one character. The algorithms are small;
//! the Unicode data comes from `regex-syntax` and `unicode-normalization`.
#![forbid(unsafe_code)]

mod bpe;
mod bytes;
mod charsmap;
mod clock;
mod error;
mod export;
mod folder;
#[doc(hidden)]
pub mod fuzzing;
mod hash;
mod json;
mod legacy;
mod merge;
mod normalize;
mod pattern;
mod pre;
mod pyjson;
mod rwkv;
mod sandbox;
mod sentencepiece;
mod special;
mod spm;
mod stream;
mod template;
mod tiktoken;
mod tokenizer;
mod trie;
mod unigram;
mod vocab;
mod wordpiece;

pub use error::Error;
pub use export::tokenizer_json;
pub use stream::DecodeStream;
pub use template::{ChatTemplate, Message};
pub use tokenizer::Tokenizer;
pub use vocab::{TokenType, Vocab};
