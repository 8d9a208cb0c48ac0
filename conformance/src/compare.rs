//! The runs that an oracle and fonio both go through: windows of text, greedy continuations.
//!
//! Both sides are a [`Runner`]. Texts are cut into windows as llama-perplexity does: each begins with an empty
//! sequence, and its first token is replaced by the one that begins a text, if the model wants one there. Rows of
//! logits pass in chunks of [`CHUNK`] positions, so for 262,144 tokens of vocabulary each side holds 128 MiB.

use crate::llamacpp;
use crate::metrics::{Comparison, top_and_margin};

/// Positions whose logits are held at a time.
pub const CHUNK: usize = 128;

/// A model with a sequence of tokens that it has seen.
pub trait Runner {
    /// What can fail.
    type Error: std::fmt::Display;
    /// Forgets the sequence.
    fn reset(&mut self) -> Result<(), Self::Error>;
    /// Adds tokens and gives the logits after each to `each`, with its place in `tokens`, in order.
    fn extend(&mut self, tokens: &[u32], each: &mut dyn FnMut(usize, &[f32])) -> Result<(), Self::Error>;
    /// Adds tokens and gives the logits after the last one. `tokens` is not empty.
    fn extend_to_last(&mut self, tokens: &[u32], last: &mut dyn FnMut(&[f32])) -> Result<(), Self::Error>;
}

impl Runner for llamacpp::Context<'_> {
    type Error = llamacpp::Error;

    fn reset(&mut self) -> Result<(), Self::Error> {
        self.clear();
        Ok(())
    }

    fn extend(&mut self, tokens: &[u32], each: &mut dyn FnMut(usize, &[f32])) -> Result<(), Self::Error> {
        llamacpp::Context::extend(self, tokens, each)
    }

    fn extend_to_last(&mut self, tokens: &[u32], last: &mut dyn FnMut(&[f32])) -> Result<(), Self::Error> {
        last(llamacpp::Context::extend_to_last(self, tokens)?);
        Ok(())
    }
}

/// Compares two models over the first `count` whole windows of `tokens`, or as many as there are.
///
/// # Panics
/// When a side fails: a test has nothing to go on with.
pub fn windows<A: Runner, B: Runner>(
    reference: &mut A,
    ours: &mut B,
    tokens: &[u32],
    (window, count): (usize, usize),
    leading: Option<u32>,
) -> Comparison {
    let mut result = Comparison::default();
    for text in tokens.chunks_exact(window).take(count) {
        let mut text = text.to_vec();
        if let Some(leading) = leading {
            text[0] = leading;
        }
        reference.reset().unwrap_or_else(|e| panic!("the reference: {e}"));
        ours.reset().unwrap_or_else(|e| panic!("ours: {e}"));
        let mut rows = Vec::new();
        for (i, chunk) in text.chunks(CHUNK).enumerate() {
            rows.clear();
            let keep = &mut |_: usize, row: &[f32]| rows.extend_from_slice(row);
            reference.extend(chunk, keep).unwrap_or_else(|e| panic!("the reference: {e}"));
            let n_vocab = rows.len() / chunk.len();
            let mut seen = 0;
            let compare = &mut |at: usize, row: &[f32]| {
                let next = text.get(i * CHUNK + at + 1).copied();
                result.add(&rows[at * n_vocab..][..n_vocab], row, next);
                seen += 1;
            };
            ours.extend(chunk, compare).unwrap_or_else(|e| panic!("ours: {e}"));
            assert_eq!(seen, chunk.len(), "our side gave another number of rows");
        }
    }
    result
}

/// The `n` likeliest tokens after a prompt, one after another, each with the margin in logits between the two best.
pub fn greedy<R: Runner>(runner: &mut R, prompt: &[u32], n: usize) -> Result<Vec<(u32, f32)>, R::Error> {
    runner.reset()?;
    let mut steps: Vec<(u32, f32)> = Vec::with_capacity(n);
    while steps.len() < n {
        let mut step = (0, 0.0);
        let pick = &mut |row: &[f32]| {
            let (token, margin) = top_and_margin(row);
            step = (token as u32, margin);
        };
        match steps.last() {
            None => runner.extend_to_last(prompt, pick)?,
            Some(&(token, _)) => runner.extend_to_last(&[token], pick)?,
        }
        steps.push(step);
    }
    Ok(steps)
}

/// How a greedy continuation compares with the reference's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Continuation {
    /// All tokens are the same.
    Same,
    /// The first `same` tokens are the same; there the reference's two best tokens are within the tie margin, and
    /// what follows cannot be compared.
    Tie {
        /// Tokens before the tie.
        same: usize,
        /// The reference's margin there.
        margin: f32,
    },
    /// The first `same` tokens are the same, then ours differs where the reference is sure.
    Different {
        /// Tokens before the difference.
        same: usize,
        /// The reference's margin there.
        margin: f32,
    },
}

/// Compares our greedy tokens with the reference's; a margin below `tie` is no decision.
pub fn continuation(reference: &[(u32, f32)], ours: &[(u32, f32)], tie: f32) -> Continuation {
    assert_eq!(reference.len(), ours.len(), "continuations of different lengths");
    let differs = reference.iter().zip(ours).position(|(r, o)| r.0 != o.0);
    match differs.map(|same| (same, reference[same].1)) {
        None => Continuation::Same,
        Some((same, margin)) if margin < tie => Continuation::Tie { same, margin },
        Some((same, margin)) => Continuation::Different { same, margin },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    /// A bigram "model" of five tokens: after token t comes t + 1, by a margin of `sure`.
    struct Bigram {
        seen: Vec<u32>,
        sure: f32,
        from: usize,
    }

    impl Bigram {
        fn row(&self) -> Vec<f32> {
            let next = (*self.seen.last().unwrap() as usize + 1) % 5;
            let odd = if self.seen.len() >= self.from { 1 } else { 0 };
            (0..5).map(|i| if i == (next + odd) % 5 { self.sure } else { 0.0 }).collect()
        }
    }

    impl Runner for Bigram {
        type Error = Infallible;
        fn reset(&mut self) -> Result<(), Infallible> {
            self.seen.clear();
            Ok(())
        }
        fn extend(&mut self, tokens: &[u32], each: &mut dyn FnMut(usize, &[f32])) -> Result<(), Infallible> {
            for (i, &t) in tokens.iter().enumerate() {
                self.seen.push(t);
                each(i, &self.row());
            }
            Ok(())
        }
        fn extend_to_last(&mut self, tokens: &[u32], last: &mut dyn FnMut(&[f32])) -> Result<(), Infallible> {
            self.seen.extend(tokens);
            last(&self.row());
            Ok(())
        }
    }

    fn bigram(sure: f32, from: usize) -> Bigram {
        Bigram { seen: Vec::new(), sure, from }
    }

    #[test]
    fn windows_are_cut_and_led() {
        let tokens: Vec<u32> = (0..1000).map(|i| i % 5).collect();
        let same = windows(&mut bigram(3.0, 9999), &mut bigram(3.0, 9999), &tokens, (300, 8), Some(2));
        assert_eq!((same.len(), same.same_top(), same.mean_kl()), (900, 1.0, 0.0));
        // Each window has 299 tokens to predict. The leading 2 replaces a 0, so the first prediction fails: it
        // expects 3 where 1 comes. The chances of the others are e³ against four times e⁰.
        let good = (3f64.exp() / (3f64.exp() + 4.0)).ln();
        let bad = -(3f64.exp() + 4.0).ln();
        let want = (-(298.0 * good + bad) / 299.0).exp();
        assert!((same.reference_perplexity() - want).abs() < 1e-9, "{same}");
        let half = windows(&mut bigram(3.0, 9999), &mut bigram(3.0, 151), &tokens, (300, 2), Some(2));
        assert_eq!((half.len(), half.same_top()), (600, 0.5));
    }

    #[test]
    fn continuations() {
        let sure = greedy(&mut bigram(3.0, 9999), &[4, 0], 6).unwrap();
        assert_eq!(sure, [(1, 3.0), (2, 3.0), (3, 3.0), (4, 3.0), (0, 3.0), (1, 3.0)]);
        let odd = greedy(&mut bigram(3.0, 5), &[4, 0], 6).unwrap();
        assert_eq!(continuation(&sure, &sure, 0.1), Continuation::Same);
        assert_eq!(continuation(&sure, &odd, 0.1), Continuation::Different { same: 3, margin: 3.0 });
        assert_eq!(continuation(&sure, &odd, 3.5), Continuation::Tie { same: 3, margin: 3.0 });
    }
}
