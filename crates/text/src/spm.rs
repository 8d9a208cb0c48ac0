//! SentencePiece BPE: spaces become ▁, characters merge by the score of the token that they make, and what is no
//! token falls back to bytes.
//!
//! Only text tokens take part: control, unknown and byte tokens never come out of merging, so no plain text can spell
//! `<s>` (SentencePiece keeps them apart in the same way).
//! Source: Kudo and Richardson 2018; SentencePiece's `bpe_model`.

use crate::Error;
use crate::merge::{Merger, Ranks};
use crate::tokenizer::{Place, Tokens};
use crate::unigram::Prefix;

#[derive(Debug)]
pub(crate) struct Spm {
    pub(crate) prefix: Prefix,
}

struct Scores<'a>(&'a Tokens);

impl Ranks for Scores<'_> {
    fn rank(&self, both: &str, _split: usize) -> Option<u32> {
        if both.len() > self.0.longest {
            return None;
        }
        self.0.plain_id(both).map(|id| descending(self.0.score(id)))
    }
}

/// Orders numbers as unsigned integers, the highest first; +0 and −0 are equal.
fn descending(score: f32) -> u32 {
    let bits = (score + 0.0).to_bits();
    let ascending = if bits >> 31 == 0 { bits | 0x8000_0000 } else { !bits };
    !ascending
}

impl Spm {
    /// Appends the ids of plain text.
    pub(crate) fn encode(
        &self,
        tokens: &Tokens,
        text: &str,
        place: Place,
        out: &mut Vec<u32>,
    ) -> Result<(), Error> {
        let mut escaped = String::with_capacity(text.len() + 3);
        if self.prefix.applies(text, place) {
            escaped.push('\u{2581}');
        }
        escaped.extend(text.chars().map(|c| if c == ' ' { '\u{2581}' } else { c }));
        Merger::default().run(&escaped, &Scores(tokens), |symbol| match tokens.plain_id(symbol) {
            Some(id) => {
                out.push(id);
                Ok(())
            }
            None => tokens.push_bytes(symbol, out),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::descending;

    #[test]
    fn higher_scores_come_first() {
        let scores = [f32::INFINITY, 3.5, 0.0, -1e-30, -2.0, -1e9, f32::NEG_INFINITY];
        let ranks: Vec<u32> = scores.iter().map(|&s| descending(s)).collect();
        assert!(ranks.is_sorted(), "{ranks:?}");
        assert_eq!(descending(0.0), descending(-0.0));
    }
}
