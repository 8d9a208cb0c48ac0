//! Unigram: of all ways to cut the text into pieces, the one whose scores (logarithms of probabilities) add up to most.
//!
//! The text is normalized first: a precompiled table, runs of spaces made one, a space before the text, spaces as ▁.
//! The best way is found from left to right (Viterbi): for each place, the best way to reach it is that to an earlier
//! place and one piece. A character that is no piece costs 10 more than the worst piece. A place that no piece spans
//! is passed by every way, so what lies before it is settled and its memory free.
//!
//! Ids are those of SentencePiece: sums are in `f64` and ties go to the way that was found first.
//! Source: Kudo 2018 (subword regularization); SentencePiece's `unigram_model` and `normalizer`; Viterbi 1967.

use crate::charsmap::Charsmap;
use crate::tokenizer::{Place, Tokens};
use crate::trie::Trie;
use crate::{Error, TokenType, Vocab};

/// SentencePiece's, by how much an unknown character is worse than the worst piece.
const UNKNOWN_PENALTY: f64 = 10.0;

/// When a space is put before a text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Prefix {
    Never,
    /// As SentencePiece does: before every text between special tokens, also where it begins with a space.
    Always,
    /// As `Metaspace` does: unless one is there …
    Missing,
    /// … and not after special tokens.
    MissingAtStart,
}

impl Prefix {
    pub(crate) fn new(vocab: &Vocab, default: bool) -> Result<Prefix, Error> {
        match (vocab.add_space_prefix.unwrap_or(default), vocab.metaspace.as_deref()) {
            (false, _) => Ok(Prefix::Never),
            (true, None) => Ok(Prefix::Always),
            (true, Some("always")) => Ok(Prefix::Missing),
            (true, Some("first")) => Ok(Prefix::MissingAtStart),
            (true, Some(other)) => Err(Error::unsupported("fonio.tokenizer.metaspace", other)),
        }
    }

    /// Whether the text at this place gets one.
    pub(crate) fn applies(self, text: &str, place: Place) -> bool {
        let missing = || !text.starts_with([' ', '\u{2581}']);
        match self {
            Prefix::Never => false,
            Prefix::Always => true,
            Prefix::Missing => missing(),
            Prefix::MissingAtStart => place == Place::Start && missing(),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Unigram {
    pieces: Trie,
    /// Those that the normalization leaves as they are.
    user_defined: Trie,
    charsmap: Option<Charsmap>,
    pub(crate) prefix: Prefix,
    removes_extra_spaces: bool,
    /// Unknown characters become bytes.
    has_bytes: bool,
    unknown_score: f64,
    /// Of the best piece.
    top: f64,
}

/// How a place is best reached.
#[derive(Clone, Copy)]
struct Step {
    sum: f64,
    from: u32,
    /// [`UNKNOWN`] for a character that is no piece.
    id: u32,
}

const UNKNOWN: u32 = u32::MAX;
const UNREACHED: Step = Step { sum: f64::NEG_INFINITY, from: 0, id: UNKNOWN };

/// Ids on their way out: unknown characters in a row are one token.
struct Out<'a> {
    tokens: &'a Tokens,
    ids: &'a mut Vec<u32>,
    has_bytes: bool,
    after_unknown: bool,
}

impl Out<'_> {
    fn push(&mut self, id: u32, text: &str) -> Result<(), Error> {
        if id != UNKNOWN {
            self.ids.push(id);
        } else if self.has_bytes {
            self.tokens.push_bytes(text, self.ids)?;
        } else if !self.after_unknown {
            self.ids.push(self.tokens.unk.ok_or_else(|| Error::Unencodable(text.to_owned()))?);
        }
        self.after_unknown = id == UNKNOWN;
        Ok(())
    }
}

impl Unigram {
    /// `charsmap` only where the table is no step of the vocabulary's normalizer.
    pub(crate) fn new(vocab: &Vocab, charsmap: Option<Charsmap>) -> Result<Unigram, Error> {
        let Some(scores) = &vocab.scores else {
            return Err(Error::corrupt("vocabulary", "a unigram model without scores"));
        };
        let (mut pieces, mut user_defined) = (Trie::new(), Trie::new());
        let (mut worst, mut top) = (f64::INFINITY, f64::NEG_INFINITY);
        let mut has_bytes = false;
        for (id, (text, &score)) in (0u32..).zip(vocab.tokens.iter().zip(scores)) {
            if score.is_infinite() {
                return Err(Error::corrupt("vocabulary", format!("the score of token {id} is not finite")));
            }
            match vocab.token_type(id) {
                TokenType::Normal => {
                    (worst, top) = (worst.min(score.into()), top.max(score.into()));
                    pieces.insert(text.as_bytes(), id)?;
                }
                TokenType::UserDefined => {
                    // Its spelling has spaces; normalized text has ▁.
                    pieces.insert(text.replace(' ', "\u{2581}").as_bytes(), id)?;
                    user_defined.insert(text.as_bytes(), id)?;
                }
                TokenType::Byte => has_bytes = true,
                TokenType::Unknown | TokenType::Control | TokenType::Unused => {}
            }
        }
        Ok(Unigram {
            pieces,
            user_defined,
            charsmap,
            prefix: Prefix::new(vocab, false)?,
            removes_extra_spaces: vocab.remove_extra_whitespaces.unwrap_or(false),
            has_bytes,
            unknown_score: if worst.is_finite() { worst - UNKNOWN_PENALTY } else { -UNKNOWN_PENALTY },
            top: if top.is_finite() { top } else { 0.0 },
        })
    }

    /// Appends the ids of plain text.
    pub(crate) fn encode(
        &self,
        tokens: &Tokens,
        text: &str,
        place: Place,
        ids: &mut Vec<u32>,
    ) -> Result<(), Error> {
        let text = self.normalize(text, place)?;
        let mut out = Out { tokens, ids, has_bytes: self.has_bytes, after_unknown: false };
        let mut window = vec![Step { sum: 0.0, ..UNREACHED }];
        let (mut settled, mut furthest, mut at) = (0, 0, 0);
        while let Some(c) = text.get(at..).and_then(|rest| rest.chars().next()) {
            if at == furthest && at > settled {
                let sum = window.last().map_or(0.0, |step| step.sum);
                settle(&window, text.get(settled..at).unwrap_or(""), &mut out)?;
                window.clear();
                window.push(Step { sum, ..UNREACHED });
                settled = at;
            }
            furthest = furthest.max(at + self.step(tokens, &text, at, c, settled, &mut window));
            at += c.len_utf8();
        }
        settle(&window, text.get(settled..).unwrap_or(""), &mut out)
    }

    /// Offers every piece at `at` to the place where it ends; the length of the longest.
    fn step(
        &self,
        tokens: &Tokens,
        text: &str,
        at: usize,
        c: char,
        settled: usize,
        window: &mut Vec<Step>,
    ) -> usize {
        let from = (at - settled) as u32;
        let sum = window.get(from as usize).map_or(f64::NEG_INFINITY, |step| step.sum);
        let mut longest = c.len_utf8();
        let mut is_piece = false;
        let mut offer = |len: usize, id: u32, score: f64| {
            let to = at + len - settled;
            if window.len() <= to {
                window.resize(to + 1, UNREACHED);
            }
            if let Some(step) = window.get_mut(to)
                && sum + score > step.sum
            {
                *step = Step { sum: sum + score, from, id };
            }
        };
        for (len, id) in self.pieces.prefixes(text.as_bytes().get(at..).unwrap_or(&[])) {
            let score = match tokens.kind(id) {
                // SentencePiece's bonus for symbols that the user defined.
                TokenType::UserDefined => len as f64 * self.top - 0.1,
                _ => tokens.score(id).into(),
            };
            offer(len, id, score);
            is_piece |= len == c.len_utf8();
            longest = longest.max(len);
        }
        if !is_piece {
            offer(c.len_utf8(), UNKNOWN, self.unknown_score);
        }
        longest
    }

    /// The text as the pieces spell it.
    fn normalize(&self, text: &str, place: Place) -> Result<String, Error> {
        let mut out = String::with_capacity(text.len() + 3);
        // SentencePiece drops spaces at the beginning; `Metaspace` takes them for the one it puts there.
        let own = matches!(self.prefix, Prefix::Never | Prefix::Always);
        let mut after_space = self.removes_extra_spaces && own;
        let mut begun = false;
        let (mut at, mut end) = (0, 0);
        while let Some(c) = text.get(at..).and_then(|rest| rest.chars().next()) {
            let (len, mut piece) = self.replace(text.get(at..).unwrap_or(""), c)?;
            at += len;
            if after_space {
                piece = piece.trim_start_matches(' ');
            }
            if piece.is_empty() && (!begun && after_space || !own) {
                continue;
            }
            if !begun && self.prefix.applies(piece, place) {
                out.push('\u{2581}');
            }
            begun = true;
            for c in piece.chars() {
                out.push(if c == ' ' { '\u{2581}' } else { c });
                if c != ' ' && (c != '\u{2581}' || !own) {
                    end = out.len();
                }
            }
            if !piece.is_empty() {
                after_space = self.removes_extra_spaces && piece.ends_with(' ');
            }
        }
        if self.removes_extra_spaces {
            out.truncate(end);
        }
        Ok(out)
    }

    /// What the start of the text becomes, and how long that start is.
    fn replace<'a>(&'a self, rest: &'a str, c: char) -> Result<(usize, &'a str), Error> {
        if !self.user_defined.is_empty()
            && let Some((len, _)) = self.user_defined.longest(rest.as_bytes())
        {
            return Ok((len, rest.get(..len).unwrap_or("")));
        }
        let found = match &self.charsmap {
            Some(map) => map.longest(rest.as_bytes())?,
            None => None,
        };
        // A match that ends inside of a character is none.
        Ok(match found.filter(|&(len, _)| rest.is_char_boundary(len)) {
            Some(found) => found,
            None => (c.len_utf8(), rest.get(..c.len_utf8()).unwrap_or("")),
        })
    }
}

/// Emits the best way to the end of the window, whose text this is.
fn settle(window: &[Step], text: &str, out: &mut Out) -> Result<(), Error> {
    let mut way = Vec::new();
    let mut at = text.len();
    while at > 0 {
        let Some(step) = window.get(at) else { break };
        way.push((step.id, step.from as usize, at));
        at = step.from as usize;
    }
    way.iter().rev().try_for_each(|&(id, from, to)| out.push(id, text.get(from..to).unwrap_or("")))
}
