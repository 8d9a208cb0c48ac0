//! Bytes to token ids and back, and chat templates.
//!
//! Purpose: one [`Tokenizer`] for every source of a vocabulary (a GGUF file's metadata, `tokenizer.json`,
//! `tokenizer.model`), and a sandboxed [`ChatTemplate`]. Nothing here knows tensors or containers.
//!
//! Shape: every source becomes a [`Vocab`] (plain data, the form that GGUF holds), and a `Vocab` plus one of few
//! algorithms is a tokenizer:
//!
//! ```text
//! tokenizer.json ──┐                       ┌─ gpt2, gemma4: split by patterns (pre), ranked merges (merge, bpe)
//! tokenizer.model ─┼─> Vocab ─> Tokenizer ─┼─ llama: merges by score, byte fallback (merge, spm)
//! GGUF metadata ───┘                       ├─ t5: best path over a unigram model (unigram)
//!                                          └─ bert: longest pieces of a word (wordpiece)
//! ```
//!
//! Why not the `tokenizers` crate: it hashes every merge as owned strings when it loads (Gemma's 515 k merges take
//! seconds, the budget for a whole start is a fraction of one), it has no SentencePiece merging by score (what a GGUF
//! holds for Llama 2 and Gemma has no merges at all), and its regex back ends stop with an error, or go quadratic, on
//! a long run of one character. The algorithms are small; the Unicode data comes from `regex-syntax`.
#![forbid(unsafe_code)]

mod bpe;
mod bytes;
mod clock;
mod error;
mod export;
mod folder;
mod hash;
mod json;
mod merge;
mod pattern;
mod pre;
mod pyjson;
mod sandbox;
mod sentencepiece;
mod special;
mod spm;
mod stream;
mod template;
mod tokenizer;
mod vocab;

pub use error::Error;
pub use export::tokenizer_json;
pub use stream::DecodeStream;
pub use template::{ChatTemplate, Message};
pub use tokenizer::Tokenizer;
pub use vocab::{TokenType, Vocab};
