//! Guesses of a smaller model with the same vocabulary: its likeliest tokens, one after the other.

use super::Drafter;
use crate::{Engine, Error, Sampler, SamplerOptions, Session};
use fonio_model::cache::Mark;
use fonio_text::{TokenType, Tokenizer};

/// A draft model with a session of its own, which follows the sequence.
pub struct DraftModel<'a> {
    session: Session<'a>,
    tokenizer: &'a Tokenizer,
    greedy: Sampler,
    /// So many tokens of the session were given, those behind them guessed.
    given: usize,
    /// Where given tokens ended: what brings a recurrent state back. The session never is before it.
    mark: Mark,
}

impl<'a> DraftModel<'a> {
    /// Lets `draft` guess for `target`; both must mean the same by each token. A draft model with a shorter context
    /// guesses as long as the sequence fits.
    pub fn new(draft: &'a Engine, target: &Engine) -> Result<DraftModel<'a>, Error> {
        let tokenizer = draft.tokenizer()?;
        same_vocabulary(tokenizer, target.tokenizer()?)?;
        let (session, mut mark) = (draft.session()?, Mark::default());
        session.mark(&mut mark);
        let greedy = Sampler::new(SamplerOptions::greedy());
        Ok(DraftModel { session, tokenizer, greedy, given: 0, mark })
    }

    /// Makes the session hold `tokens`, with logits; says whether it has place for them and knows them all.
    fn follow(&mut self, tokens: &[u32]) -> Result<bool, Error> {
        let held = self.session.tokens();
        let new = tokens.get(self.given..).unwrap_or_default();
        let known = held[self.given..].iter().zip(new).take_while(|(a, b)| a == b).count();
        // The last token is computed in any case: its logits may be those of a guess by now.
        let shared = (self.given + known).min(tokens.len().saturating_sub(1));
        let vocab = self.session.engine().spec().vocab_size;
        let fits = tokens.len() <= self.session.cache.capacity();
        if !fits || tokens[shared..].iter().any(|&token| token as usize >= vocab) {
            return Ok(false);
        }
        if shared < held.len() {
            if self.session.cache.is_recurrent() && self.mark.position() <= shared {
                self.session.rewind(&self.mark)?;
            } else {
                self.session.truncate(shared);
                self.session.mark(&mut self.mark);
            }
        }
        self.given = self.given.min(self.session.tokens().len());
        self.session.extend(&tokens[self.session.tokens().len()..])?;
        self.session.mark(&mut self.mark);
        self.given = tokens.len();
        Ok(true)
    }
}

impl Drafter for DraftModel<'_> {
    fn begin(&mut self, tokens: &[u32]) -> Result<(), Error> {
        self.given = 0;
        self.follow(tokens).map(|_| ())
    }

    fn propose(&mut self, tokens: &[u32], most: usize) -> Result<Vec<u32>, Error> {
        let mut guesses = Vec::new();
        if !self.follow(tokens)? {
            return Ok(guesses);
        }
        while guesses.len() < most {
            let token = self.greedy.pick(self.session.logits(), &[]);
            guesses.push(token);
            // Behind the end nothing is picked.
            if self.session.room() == 0 || self.tokenizer.is_end_of_generation(token) {
                break;
            }
            if guesses.len() < most {
                self.session.extend(&[token])?;
            }
        }
        Ok(guesses)
    }
}

/// Whether two tokenizers mean the same by each token. One may have more of them at the end if these mean nothing, as
/// where the number of embeddings was rounded up.
fn same_vocabulary(draft: &Tokenizer, target: &Tokenizer) -> Result<(), Error> {
    let text = |tokenizer: &Tokenizer, token: u32| -> Option<String> {
        let unused = tokenizer.vocab().token_type(token) == TokenType::Unused;
        tokenizer.token_text(token).filter(|_| !unused).map(str::to_owned)
    };
    for token in 0..draft.vocab_size().max(target.vocab_size()) as u32 {
        let (draft, target) = (text(draft, token), text(target, token));
        if draft != target {
            let quoted = |text: Option<String>| text.map_or("missing".into(), |text| format!("{text:?}"));
            return Err(Error::OtherVocabulary { token, draft: quoted(draft), target: quoted(target) });
        }
    }
    Ok(())
}
