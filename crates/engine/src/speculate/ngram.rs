//! Guesses from the sequence itself: what came after its last few tokens when they came before.
//!
//! For each run of [`SHORTEST`] to [`LONGEST`] tokens a table holds the place behind the newest one that something
//! follows; a token that comes adds one run of each length. A guess copies from behind the longest run that the
//! sequence ends with, over its own end if need be, so that a period shorter than the guess is continued. Known as
//! prompt look-up decoding (Saxena 2023).

use super::Drafter;
use crate::Error;
use std::collections::HashMap;

/// Tokens of the longest run that is looked for.
const LONGEST: usize = 4;
/// Tokens of the shortest: single ones recur too often to say much.
const SHORTEST: usize = 2;

/// A run of tokens; shorter ones begin with tokens that no vocabulary has.
type Run = [u32; LONGEST];

/// The table.
#[derive(Debug, Default)]
pub struct NGrams {
    tokens: Vec<u32>,
    followed: HashMap<Run, usize>,
}

impl NGrams {
    /// An empty table.
    pub fn new() -> NGrams {
        NGrams::default()
    }

    fn push(&mut self, token: u32) {
        for run in runs(&self.tokens) {
            self.followed.insert(run, self.tokens.len());
        }
        self.tokens.push(token);
    }
}

/// The runs that `tokens` end with, the longest first.
fn runs(tokens: &[u32]) -> impl Iterator<Item = Run> {
    (SHORTEST..=LONGEST).rev().filter(|&n| n <= tokens.len()).map(|n| {
        let mut run = [u32::MAX; LONGEST];
        run[LONGEST - n..].copy_from_slice(&tokens[tokens.len() - n..]);
        run
    })
}

impl Drafter for NGrams {
    fn begin(&mut self, tokens: &[u32]) -> Result<(), Error> {
        if !tokens.starts_with(&self.tokens) {
            self.tokens.clear();
            self.followed.clear();
        }
        for &token in &tokens[self.tokens.len()..] {
            self.push(token);
        }
        Ok(())
    }

    fn propose(&mut self, tokens: &[u32], most: usize) -> Result<Vec<u32>, Error> {
        for &token in tokens.get(self.tokens.len()..).unwrap_or_default() {
            self.push(token);
        }
        let Some(from) = runs(&self.tokens).find_map(|run| self.followed.get(&run)) else {
            return Ok(Vec::new());
        };
        Ok(self.tokens[*from..].iter().copied().cycle().take(most).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: [u32; 0] = [];

    fn guess(tokens: &[u32], most: usize) -> Vec<u32> {
        let mut grams = NGrams::new();
        grams.begin(&tokens[..tokens.len() / 2]).unwrap();
        grams.propose(tokens, most).unwrap()
    }

    #[test]
    fn the_newest_of_the_longest_runs_is_copied() {
        assert_eq!(guess(&[1, 2, 3, 4, 1, 2], 2), [3, 4]);
        assert_eq!(guess(&[1, 2, 3, 1, 2, 4, 1, 2], 1), [4], "the newest");
        assert_eq!(guess(&[9, 1, 2, 3, 8, 1, 2, 4, 9, 1, 2], 1), [3], "the longest");
        assert_eq!(guess(&[1, 2, 3, 4, 2], 3), NONE, "one token is no run");
        assert_eq!(guess(&[1], 3), NONE);
        assert_eq!(guess(&[], 3), NONE);
    }

    #[test]
    fn a_period_goes_on() {
        assert_eq!(guess(&[5, 6, 7, 5, 6, 7, 5, 6], 8), [7, 5, 6, 7, 5, 6, 7, 5]);
        assert_eq!(guess(&[3, 3, 3], 3), [3, 3, 3]);
    }

    #[test]
    fn another_sequence_makes_another_table() {
        let mut grams = NGrams::new();
        grams.begin(&[1, 2, 3, 1, 2]).unwrap();
        assert_eq!(grams.propose(&[1, 2, 3, 1, 2], 1).unwrap(), [3]);
        grams.begin(&[1, 2, 3, 1, 2, 7, 1, 2]).unwrap();
        assert_eq!(grams.propose(&[1, 2, 3, 1, 2, 7, 1, 2], 1).unwrap(), [7], "gone on with");
        grams.begin(&[4, 1, 2]).unwrap();
        assert_eq!(grams.propose(&[4, 1, 2], 1).unwrap(), NONE, "what is gone is not known");
    }
}
