//! WordPiece, the tokenizer of BERT: words are normalized, then cut into the longest pieces from the left.
//!
//! In GGUF the pieces that begin a word carry ▁ and those that continue one are bare (BERT itself marks the latter with
//! `##`). A word with a part that no piece covers is one unknown token.
//! Source: Devlin et al. 2019 and its `BasicTokenizer`; Wu et al. 2016.

use unicode_normalization::UnicodeNormalization as _;

use crate::pattern::Pattern;
use crate::tokenizer::Tokens;
use crate::{Error, Vocab};

/// BERT's: a longer word is unknown as a whole, in characters.
const LONGEST_WORD: usize = 100;

#[derive(Debug)]
pub(crate) struct WordPiece {
    punctuation: Pattern,
    dropped: Pattern,
    accents: Pattern,
    lowercase: bool,
    strip_accents: bool,
}

impl WordPiece {
    pub(crate) fn new(vocab: &Vocab) -> Result<WordPiece, Error> {
        let lowercase = vocab.lowercase.unwrap_or(true);
        Ok(WordPiece {
            // Unicode's punctuation, and all ASCII that is neither letter, digit nor space.
            punctuation: Pattern::new(r"[\p{P}!-/:-@\[-`{-~]")?,
            // Controls, formats, private use, and the replacement character. (BERT's own code drops what is unassigned
            // too; the `tokenizers` library, which runs these models, does not.)
            dropped: Pattern::new(r"[\p{Cc}\p{Cf}\p{Co}\x{FFFD}]")?,
            accents: Pattern::new(r"\p{Mn}")?,
            lowercase,
            strip_accents: vocab.strip_accents.unwrap_or(lowercase),
        })
    }

    /// Appends the ids of plain text.
    pub(crate) fn encode(&self, tokens: &Tokens, text: &str, out: &mut Vec<u32>) -> Result<(), Error> {
        let mut word = String::new();
        if self.strip_accents {
            text.nfd()
                .filter(|&c| !self.accents.is_char(c))
                .try_for_each(|c| self.push(tokens, c, &mut word, out))?;
        } else {
            text.chars().try_for_each(|c| self.push(tokens, c, &mut word, out))?;
        }
        flush(tokens, &mut word, out)
    }

    /// Adds a character to the word, or ends the word there.
    fn push(&self, tokens: &Tokens, c: char, word: &mut String, out: &mut Vec<u32>) -> Result<(), Error> {
        // Of the controls, these three are white space.
        if !matches!(c, '\t' | '\n' | '\r') && self.dropped.is_char(c) {
            return Ok(());
        }
        if c.is_whitespace() {
            return flush(tokens, word, out);
        }
        let alone = self.punctuation.is_char(c) || is_ideograph(c);
        if alone {
            flush(tokens, word, out)?;
        }
        if self.lowercase {
            word.extend(c.to_lowercase());
        } else {
            word.push(c);
        }
        if alone { flush(tokens, word, out) } else { Ok(()) }
    }
}

/// Cuts one word into pieces and empties it.
fn flush(tokens: &Tokens, word: &mut String, out: &mut Vec<u32>) -> Result<(), Error> {
    if word.is_empty() {
        return Ok(());
    }
    let marked = format!("\u{2581}{word}");
    let start = out.len();
    let mut at = 0;
    if word.chars().nth(LONGEST_WORD).is_some() {
        out.push(tokens.unk.ok_or_else(|| Error::Unencodable(word.clone()))?);
        at = marked.len();
    }
    while at < marked.len() {
        let longest = (at + tokens.longest).min(marked.len());
        let piece =
            (at + 1..=longest).rev().find_map(|end| Some((end, tokens.plain_id(marked.get(at..end)?)?)));
        let Some((end, id)) = piece else {
            out.truncate(start);
            out.push(tokens.unk.ok_or_else(|| Error::Unencodable(word.clone()))?);
            break;
        };
        out.push(id);
        at = end;
    }
    word.clear();
    Ok(())
}

/// Chinese characters are words of their own; the ranges are BERT's.
fn is_ideograph(c: char) -> bool {
    matches!(u32::from(c), 0x4e00..=0x9fff | 0x3400..=0x4dbf | 0x20000..=0x2a6df | 0x2a700..=0x2b73f
        | 0x2b740..=0x2b81f | 0x2b920..=0x2ceaf | 0xf900..=0xfaff | 0x2f800..=0x2fa1f)
}
