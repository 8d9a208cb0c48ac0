//! Speculative decoding: more than one token for each pass over the weights, and the same tokens.
//!
//! A [`Drafter`] guesses how the sequence goes on. The model computes the guesses together with the token before them,
//! which takes hardly longer than that token alone while reading weights is what takes time. The sampler is then asked
//! for one token after the other, from the logits that it would have had without guesses; as long as it picks what was
//! guessed, the next logits are there already. At the first other pick the cache goes back to where the guess was
//! right. The idea is that of Leviathan, Kalman and Matias (2023, "Fast Inference from Transformers via Speculative
//! Decoding"); theirs keeps the distribution of the text, ours the text itself, because a token has the same logits
//! alone and in a batch, and the sampler sees the same logits in the same order.

mod draft;
mod ngram;
mod pace;

pub use draft::DraftModel;
pub use ngram::NGrams;

use crate::{Error, Session};
use fonio_model::cache::Mark;
use pace::Pace;

/// Guesses how a sequence goes on. Wrong guesses cost time, never change the text.
pub trait Drafter {
    /// A sequence begins, which may share its beginning with the one before.
    fn begin(&mut self, tokens: &[u32]) -> Result<(), Error>;

    /// At most `most` tokens that may come after `tokens`: those of the last [`Drafter::begin`] and what came since.
    fn propose(&mut self, tokens: &[u32], most: usize) -> Result<Vec<u32>, Error>;
}

/// A drafter, and how much it is listened to.
pub struct Speculation<'d> {
    drafter: Box<dyn Drafter + 'd>,
    pace: Pace,
}

impl<'d> Speculation<'d> {
    /// Speculates with guesses of at most `most` tokens; how many are asked for follows how many came true lately.
    pub fn new(drafter: impl Drafter + 'd, most: usize) -> Speculation<'d> {
        Speculation { drafter: Box::new(drafter), pace: Pace::new(most) }
    }

    pub(crate) fn begin(&mut self, prompt: &[u32]) -> Result<(), Error> {
        self.drafter.begin(prompt)
    }

    fn propose(&mut self, tokens: &[u32], most: usize) -> Result<Vec<u32>, Error> {
        let most = most.min(self.pace.asks_for());
        if most == 0 {
            return Ok(Vec::new());
        }
        let mut proposed = self.drafter.propose(tokens, most)?;
        proposed.truncate(most);
        Ok(proposed)
    }
}

/// The steps of one generation: logits after each token of a sequence that grows by what is picked from them.
pub(crate) struct Steps<'s, 'a, 'd> {
    session: &'s mut Session<'a>,
    speculation: Option<&'s mut Speculation<'d>>,
    /// The prompt and what was picked and pushed. The session holds guesses behind it after a step that made some, and
    /// lacks its end after recurrent states went back.
    sequence: Vec<u32>,
    /// Logits of the last step if it had guesses: after the first `first` tokens, and after each guess.
    rows: Vec<f32>,
    first: usize,
    /// Where the session was before that step.
    mark: Mark,
    proposed: usize,
    accepted: usize,
}

impl<'s, 'a, 'd> Steps<'s, 'a, 'd> {
    /// Begins behind what the session holds, which has logits.
    pub fn new(session: &'s mut Session<'a>, speculation: Option<&'s mut Speculation<'d>>) -> Self {
        let sequence = session.tokens.clone();
        let (rows, mark) = (Vec::new(), Mark::default());
        Steps { session, speculation, sequence, rows, first: 0, mark, proposed: 0, accepted: 0 }
    }

    /// The tokens so far.
    pub fn sequence(&self) -> &[u32] {
        &self.sequence
    }

    /// The logits after them.
    pub fn logits(&self) -> &[f32] {
        if self.rows.is_empty() {
            return self.session.logits();
        }
        let vocab = self.vocab();
        &self.rows[(self.sequence.len() - self.first) * vocab..][..vocab]
    }

    /// Tokens that there is still place for.
    pub fn room(&self) -> usize {
        self.session.cache.capacity() - self.sequence.len()
    }

    /// Adds the token that was picked. `left` is how many may be picked after it, one at least: what comes later needs
    /// no guess.
    pub fn push(&mut self, token: u32, left: usize) -> Result<(), Error> {
        let before = self.sequence.len();
        self.sequence.push(token);
        if self.session.tokens.get(before) == Some(&token) {
            self.accepted += 1;
            return Ok(());
        }
        self.settle(before)?;
        let guesses = self.guess(left)?;
        if !guesses.is_empty() && self.verify(&guesses) {
            self.proposed += guesses.len();
            return Ok(());
        }
        self.session.extend(&self.sequence[self.session.tokens.len()..])?;
        Ok(())
    }

    /// Leaves the session with the sequence and its logits, as if there had been no guesses. Tells how many tokens were
    /// proposed, and how many of them accepted.
    pub fn finish(mut self) -> Result<(usize, usize), Error> {
        if !self.rows.is_empty() {
            self.back_to(self.sequence.len())?;
            let held = self.session.tokens.len();
            if held < self.sequence.len() {
                self.session.extend(&self.sequence[held..])?;
            }
        }
        Ok((self.proposed, self.accepted))
    }

    fn vocab(&self) -> usize {
        self.session.engine().spec().vocab_size
    }

    /// Ends a step with guesses, of which those up to `len` tokens came true.
    fn settle(&mut self, len: usize) -> Result<(), Error> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let guessed = self.rows.len() / self.vocab() - 1;
        if let Some(speculation) = &mut self.speculation {
            speculation.pace.saw(guessed, len - self.first);
        }
        self.back_to(len)
    }

    /// Leaves `len` tokens of a step with guesses, and their logits. A recurrent state goes back to where the step
    /// began, if guesses have to go.
    fn back_to(&mut self, len: usize) -> Result<(), Error> {
        if self.session.tokens.len() > len {
            if self.session.cache.is_recurrent() {
                self.session.rewind(&self.mark)?;
            } else {
                self.session.truncate(len);
            }
        }
        if self.session.tokens.len() == len {
            let vocab = self.vocab();
            self.session.logits.clear();
            self.session.logits.extend_from_slice(&self.rows[(len - self.first) * vocab..][..vocab]);
        }
        self.rows.clear();
        Ok(())
    }

    /// What may follow the sequence, as far as the step has place for it.
    fn guess(&mut self, left: usize) -> Result<Vec<u32>, Error> {
        let vocab = self.vocab();
        let Some(speculation) = &mut self.speculation else { return Ok(Vec::new()) };
        // A recurrent state that went back takes the tokens that it lacks without guesses behind them: else it would
        // lack more with each wrong one.
        if self.sequence.len() != self.session.tokens.len() + 1 {
            return Ok(Vec::new());
        }
        // One batch either computes as a whole or leaves the session as it was.
        let batch = self.session.engine().options().batch;
        let most = [left, self.session.room(), batch].into_iter().min().unwrap_or(0).saturating_sub(1);
        let mut guesses = speculation.propose(&self.sequence, most)?;
        let unknown = guesses.iter().position(|&token| token as usize >= vocab);
        guesses.truncate(unknown.unwrap_or(guesses.len()));
        Ok(guesses)
    }

    /// Computes the last token of the sequence and the guesses; says whether that went well. If not, then perhaps for a
    /// guess that the model has no position for or whose values its cache cannot hold: the session is as it was, and
    /// what is wrong without guesses shows without them.
    fn verify(&mut self, guesses: &[u32]) -> bool {
        self.session.mark(&mut self.mark);
        let last = self.sequence.len() - 1;
        let tokens = [&self.sequence[last..], guesses].concat();
        self.first = self.sequence.len();
        let logits = std::mem::take(&mut self.session.logits);
        let rows = &mut self.rows;
        let computed = self.session.score(&tokens, |_, row| rows.extend_from_slice(row));
        if computed.is_err() {
            self.rows.clear();
            self.session.logits = logits;
        }
        computed.is_ok()
    }
}
