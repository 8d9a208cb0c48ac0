//! Byte-level BPE: the text is split by patterns, each piece is spelled in the byte alphabet and merged by rank.
//!
//! The variant of Gemma 4 (`model = gemma4`) escapes spaces as ▁ in place of the byte alphabet, and falls back to
//! `<0xHH>` tokens.
//!
//! Merges are indexed by the text of the pair and the place of the split, in place, on first use.
//! Source: Radford et al. 2019 (GPT-2).

use std::sync::{Arc, OnceLock};

use crate::hash::{Hasher, Table};
use crate::merge::{Merger, Ranks};
use crate::pre::Pre;
use crate::tokenizer::Tokens;
use crate::{Error, Vocab, bytes};

#[derive(Debug)]
pub(crate) struct Bpe {
    vocab: Arc<Vocab>,
    index: OnceLock<Index>,
    pre: Pre,
    whole_words: bool,
}

#[derive(Debug)]
struct Index {
    table: Table,
    /// Bytes of the longest pair: longer ones are not looked up.
    longest: usize,
}

struct RankedMerges<'a> {
    merges: &'a [String],
    index: &'a Index,
}

/// Where `left right` is cut: a token may start with a space, none that merges holds another.
fn split_merge(merge: &str) -> Option<(&str, &str)> {
    let at = merge.as_bytes().iter().skip(1).position(|&b| b == b' ')? + 1;
    Some((merge.get(..at)?, merge.get(at + 1..)?))
}

impl Ranks for RankedMerges<'_> {
    fn rank(&self, both: &str, split: usize) -> Option<u32> {
        if both.len() > self.index.longest {
            return None;
        }
        let table = &self.index.table;
        table.get(table.hasher.hash_split(both.as_bytes(), split), |rank| {
            let merge = self.merges.get(rank as usize).map_or("", String::as_str);
            let parts = (merge.get(..split), merge.get(split..split + 1), merge.get(split + 1..));
            parts == (both.get(..split), Some(" "), both.get(split..))
        })
    }
}

impl Bpe {
    pub(crate) fn new(vocab: Arc<Vocab>, pre: Pre) -> Result<Bpe, Error> {
        if vocab.merges.is_none() {
            return Err(Error::corrupt("vocabulary", "a BPE model without merges"));
        }
        let whole_words = vocab.ignore_merges.unwrap_or(pre.whole_words);
        Ok(Bpe { vocab, index: OnceLock::new(), pre, whole_words })
    }

    fn merges(&self) -> &[String] {
        self.vocab.merges.as_deref().unwrap_or(&[])
    }

    fn index(&self) -> &Index {
        self.index.get_or_init(|| {
            let merges = self.merges();
            let hasher = Hasher::new();
            let mut entries = Vec::with_capacity(merges.len());
            let mut longest = 0;
            let mut both = Vec::new();
            for (rank, merge) in merges.iter().enumerate() {
                // A merge that is no pair can never apply.
                let Some((left, right)) = split_merge(merge) else { continue };
                both.clear();
                both.extend_from_slice(left.as_bytes());
                both.extend_from_slice(right.as_bytes());
                longest = longest.max(both.len());
                entries.push((hasher.hash_split(&both, left.len()), rank as u32));
            }
            // The first of equal merges has the better rank.
            let table = Table::build(hasher, &entries, false, |a, b| {
                merges.get(a as usize).is_some() && merges.get(a as usize) == merges.get(b as usize)
            });
            Index { table, longest }
        })
    }

    /// Appends the ids of plain text.
    pub(crate) fn encode(&self, tokens: &Tokens, text: &str, out: &mut Vec<u32>) -> Result<(), Error> {
        let ranks = RankedMerges { merges: self.merges(), index: self.index() };
        let mut merger = Merger::default();
        let mut word = String::new();
        let escaped;
        let text = if self.pre.escape_spaces {
            escaped = text.replace(' ', "\u{2581}");
            &escaped
        } else {
            text
        };
        self.pre.split(text, &mut |piece| {
            word.clear();
            if self.pre.byte_alphabet {
                bytes::push_encoded(&mut word, piece);
            } else {
                word.push_str(piece);
            }
            if (self.whole_words || (self.pre.whole_lines && piece.starts_with('\n')))
                && let Some(id) = tokens.plain_id(&word)
            {
                out.push(id);
                return Ok(());
            }
            merger.run(&word, &ranks, |symbol| match tokens.plain_id(symbol) {
                Some(id) => {
                    out.push(id);
                    Ok(())
                }
                None => self.fall_back(tokens, symbol, out),
            })
        })
    }

    /// A piece that is no token: its characters, its bytes, or the unknown token. A byte that the vocabulary lacks
    /// (Falcon's has no vertical tab) and cannot even call unknown is left out, as the model's own tokenizer does.
    fn fall_back(&self, tokens: &Tokens, symbol: &str, out: &mut Vec<u32>) -> Result<(), Error> {
        for c in symbol.chars() {
            let spelled = c.encode_utf8(&mut [0; 4]).to_owned();
            if let Some(id) = tokens.plain_id(&spelled) {
                out.push(id);
            } else if self.pre.byte_alphabet {
                out.extend(tokens.unk);
            } else {
                tokens.push_bytes(&spelled, out)?;
            }
        }
        Ok(())
    }

    /// Whether tokens are spelled in the byte alphabet.
    pub(crate) fn byte_alphabet(&self) -> bool {
        self.pre.byte_alphabet
    }
}
