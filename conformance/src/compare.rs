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

/// What a side would pick at each step of a continuation that is given to it, so that one difference does not end the
/// comparison: after `prompt` and `steps[..i]` comes the `i`-th result.
pub fn follow<R: Runner>(runner: &mut R, prompt: &[u32], steps: &[u32]) -> Result<Vec<u32>, R::Error> {
    runner.reset()?;
    let mut picks = Vec::with_capacity(steps.len());
    let mut next = prompt;
    for step in steps {
        runner.extend_to_last(next, &mut |row| picks.push(top_and_margin(row).0 as u32))?;
        next = std::slice::from_ref(step);
    }
    Ok(picks)
}

/// How the picks along a continuation agree with the reference, which made it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Agreement {
    /// Steps at which the reference's margin is no tie.
    pub decided: usize,
    /// Ties at which ours picks another token.
    pub lost_ties: usize,
    /// The first decided step at which ours picks another token, with the reference's margin there.
    pub differs: Option<(usize, f32)>,
}

/// Compares picks with the reference's steps (token, margin between the two best); a margin below `tie` decides
/// nothing.
///
/// # Panics
/// When their numbers differ.
pub fn agreement(reference: &[(u32, f32)], picks: &[u32], tie: f32) -> Agreement {
    assert_eq!(reference.len(), picks.len(), "continuations of different lengths");
    let steps = || reference.iter().zip(picks).enumerate();
    Agreement {
        decided: steps().filter(|(_, (r, _))| r.1 >= tie).count(),
        lost_ties: steps().filter(|(_, (r, pick))| r.1 < tie && r.0 != **pick).count(),
        differs: steps().find(|(_, (r, pick))| r.1 >= tie && r.0 != **pick).map(|(i, (r, _))| (i, r.1)),
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
        let tokens: Vec<u32> = sure.iter().map(|s| s.0).collect();
        let same = follow(&mut bigram(3.0, 9999), &[4, 0], &tokens).unwrap();
        assert_eq!(agreement(&sure, &same, 0.1), Agreement { decided: 6, lost_ties: 0, differs: None });
        // From five tokens on it picks one too far, but goes on along what it is given.
        let odd = follow(&mut bigram(3.0, 5), &[4, 0], &tokens).unwrap();
        assert_eq!(odd, [1, 2, 3, 0, 1, 2]);
        assert_eq!(
            agreement(&sure, &odd, 0.1),
            Agreement { decided: 6, lost_ties: 0, differs: Some((3, 3.0)) }
        );
        assert_eq!(agreement(&sure, &odd, 3.5), Agreement { decided: 0, lost_ties: 3, differs: None });
    }
}
