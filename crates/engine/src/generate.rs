//! Generation: pick, decode, stop.

use crate::speculate::Steps;
use crate::{Error, Sampler, Session, Speculation};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// Where a generation ends at the latest.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// Texts that end it; they are not part of the result.
    pub stop: Vec<String>,
    /// Whether tokens that mean the end are like any other.
    pub ignore_eos: bool,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model said that it is done.
    EndOfText,
    /// A stop text came.
    Stop,
    /// As many tokens as asked for.
    Length,
    /// The context is full.
    Context,
    /// The caller broke off.
    Cancelled,
}

/// What a generation was.
#[derive(Clone, Debug)]
pub struct Generated {
    /// Tokens that were computed before the first pick; those that the cache had are not counted.
    pub prompt_tokens: usize,
    /// How long that took.
    pub prompt_time: Duration,
    /// Tokens that were picked.
    pub tokens: usize,
    /// How long those took, picking included.
    pub time: Duration,
    /// Why it ended.
    pub finish: Finish,
    /// Tokens that a drafter proposed.
    pub proposed: usize,
    /// Those of them that were picked.
    pub accepted: usize,
}

impl Session<'_> {
    /// Makes the sequence `prompt` and continues it. `piece` gets the text as it comes, always whole characters, and
    /// may break off. The session afterwards holds the prompt and the picked tokens, except the last one.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        sampler: &mut Sampler,
        limits: &Limits,
        piece: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Generated, Error> {
        self.generate_with(prompt, sampler, limits, None, piece)
    }

    /// As [`Session::generate`], to the same text, with a drafter that may make it come faster.
    pub fn generate_with(
        &mut self,
        prompt: &[u32],
        sampler: &mut Sampler,
        limits: &Limits,
        mut speculation: Option<&mut Speculation<'_>>,
        mut piece: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Generated, Error> {
        if prompt.is_empty() {
            return Err(Error::Input("the prompt has no tokens".into()));
        }
        let tokenizer = self.engine().tokenizer()?;
        let start = Instant::now();
        let prompt_tokens = self.make(prompt)?;
        if let Some(speculation) = speculation.as_deref_mut() {
            speculation.begin(prompt)?;
        }
        let mut done = Generated {
            prompt_tokens,
            prompt_time: start.elapsed(),
            tokens: 0,
            time: Duration::ZERO,
            finish: Finish::Length,
            proposed: 0,
            accepted: 0,
        };
        let start = Instant::now();
        let mut stream = tokenizer.decode_stream();
        let mut held = Held::new(&limits.stop);
        let mut steps = Steps::new(self, speculation);
        while done.tokens < limits.max_tokens {
            let token = sampler.pick(steps.logits(), steps.sequence());
            if !limits.ignore_eos && tokenizer.is_end_of_generation(token) {
                done.finish = Finish::EndOfText;
                break;
            }
            done.tokens += 1;
            let (out, stopped) = held.push(stream.push(token).unwrap_or_default());
            let go_on = out.is_empty() || piece(out).is_continue();
            held.emitted();
            if stopped {
                done.finish = Finish::Stop;
                break;
            }
            if !go_on {
                done.finish = Finish::Cancelled;
                break;
            }
            if done.tokens == limits.max_tokens {
                break;
            }
            if steps.room() == 0 {
                done.finish = Finish::Context;
                break;
            }
            steps.push(token, limits.max_tokens - done.tokens)?;
        }
        (done.proposed, done.accepted) = steps.finish()?;
        if matches!(done.finish, Finish::EndOfText | Finish::Length | Finish::Context) {
            let rest = held.finish(stream.finish().unwrap_or_default());
            if !rest.is_empty() {
                // The end is reached anyway.
                let _ = piece(&rest);
            }
        }
        done.time = start.elapsed();
        Ok(done)
    }
}

/// Text that may be the beginning of a stop text, and so is not given out yet.
struct Held<'a> {
    stop: &'a [String],
    text: String,
    out: usize,
}

impl<'a> Held<'a> {
    fn new(stop: &'a [String]) -> Self {
        Held { stop, text: String::new(), out: 0 }
    }

    /// What can be given out now, and whether a stop text came.
    fn push(&mut self, more: &str) -> (&str, bool) {
        self.text.push_str(more);
        let stops = self.stop.iter().filter(|s| !s.is_empty());
        if let Some(at) = stops.clone().filter_map(|s| self.text.find(s.as_str())).min() {
            self.text.truncate(at);
            self.out = at;
            return (&self.text, true);
        }
        let ends = self.text.char_indices().map(|(at, _)| at);
        let begun = ends.into_iter().find(|&at| stops.clone().any(|s| s.starts_with(&self.text[at..])));
        self.out = begun.unwrap_or(self.text.len());
        (&self.text[..self.out], false)
    }

    /// Forgets what was given out.
    fn emitted(&mut self) {
        self.text.drain(..self.out);
        self.out = 0;
    }

    /// What is left when nothing more comes.
    fn finish(mut self, more: &str) -> String {
        let (out, stopped) = self.push(more);
        let out = out.to_owned();
        if stopped { out } else { self.text }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stop: &[&str], pieces: &[&str]) -> (String, bool) {
        let stop: Vec<String> = stop.iter().map(|&s| s.to_owned()).collect();
        let mut held = Held::new(&stop);
        let mut all = String::new();
        for piece in pieces {
            let (out, stopped) = held.push(piece);
            all.push_str(out);
            if stopped {
                return (all, true);
            }
            held.emitted();
        }
        all.push_str(&held.finish(""));
        (all, false)
    }

    #[test]
    fn stop_texts_are_found_across_pieces_and_never_shown() {
        assert_eq!(run(&["END"], &["a E", "N", "D b"]), ("a ".into(), true));
        assert_eq!(run(&["END"], &["a E", "N", "x"]), ("a ENx".into(), false));
        assert_eq!(run(&["END"], &["a EN"]), ("a EN".into(), false));
        assert_eq!(run(&["\n\n", "b"], &["a\n", "é\nb"]), ("a\né\n".into(), true));
        assert_eq!(run(&["", "aab"], &["aa", "aab"]), ("aa".into(), true));
        assert_eq!(run(&[], &["x", "y"]), ("xy".into(), false));
    }
}
