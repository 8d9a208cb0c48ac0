//! One sequence of tokens and its cache.

use crate::{Engine, Error, Observer};
use fonio_model::Wanted;
use fonio_model::cache::{Cache, Mark};

/// A sequence. Callers may hand over the whole sequence each time: [`Session::sync`] keeps what it shares with the
/// one before.
pub struct Session<'a> {
    engine: &'a Engine,
    pub(crate) cache: Cache,
    pub(crate) tokens: Vec<u32>,
    pub(crate) logits: Vec<f32>,
}

impl<'a> Session<'a> {
    pub(crate) fn new(engine: &'a Engine) -> Result<Session<'a>, Error> {
        let cache = Cache::new(engine.spec(), engine.options().cache, engine.context_len())?;
        Ok(Session { engine, cache, tokens: Vec::new(), logits: Vec::new() })
    }

    /// The engine that it runs on.
    pub fn engine(&self) -> &'a Engine {
        self.engine
    }

    /// The tokens so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Tokens that there is still place for.
    pub fn room(&self) -> usize {
        self.cache.capacity() - self.cache.len()
    }

    /// Bytes that the cache takes.
    pub fn cache_bytes(&self) -> usize {
        self.cache.nbytes()
    }

    /// The logits of the last token of the last [`Session::extend`] or [`Session::sync`].
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// Forgets tokens from `len` on and says how many are left: `len`, or none if the model has recurrent states and
    /// there were more.
    pub fn truncate(&mut self, len: usize) -> usize {
        let left = self.cache.truncate(len);
        if left < self.tokens.len() {
            self.logits.clear();
        }
        self.tokens.truncate(left);
        left
    }

    /// Notes the place that the sequence is at, for [`Session::rewind`].
    pub fn mark(&self, mark: &mut Mark) {
        self.cache.mark(mark);
    }

    /// Goes back to a place of this sequence, since when tokens were only added. Unlike [`Session::truncate`] it keeps
    /// recurrent states.
    pub fn rewind(&mut self, mark: &Mark) -> Result<(), Error> {
        self.cache.rewind(mark)?;
        if mark.position() < self.tokens.len() {
            self.logits.clear();
        }
        self.tokens.truncate(mark.position());
        Ok(())
    }

    /// Adds tokens and gives the last one's logits (`vocab_size` of them).
    pub fn extend(&mut self, tokens: &[u32]) -> Result<&[f32], Error> {
        let mut logits = std::mem::take(&mut self.logits);
        let last = tokens.len().saturating_sub(1);
        let result = self.run(
            tokens,
            |at| if at == last { Wanted::Last } else { Wanted::None },
            &mut |_, row| {
                logits.clear();
                logits.extend_from_slice(row);
            },
            &mut (),
        );
        self.logits = logits;
        result.map(|()| &self.logits[..])
    }

    /// Adds tokens and gives each one's place in `tokens` and logits to `sink`.
    pub fn score(&mut self, tokens: &[u32], mut sink: impl FnMut(usize, &[f32])) -> Result<(), Error> {
        self.run(tokens, |_| Wanted::All, &mut sink, &mut ())
    }

    /// As [`Session::score`], with somebody who sees what the layers put out. Rows of observed parts follow the
    /// batches in which tokens are computed.
    pub fn observe(
        &mut self,
        tokens: &[u32],
        mut sink: impl FnMut(usize, &[f32]),
        observer: &mut dyn Observer,
    ) -> Result<(), Error> {
        self.run(tokens, |_| Wanted::All, &mut sink, observer)
    }

    /// Makes the sequence `tokens`: keeps the cache of the beginning that it shares with the present one and computes
    /// the rest. Gives the last token's logits.
    pub fn sync(&mut self, tokens: &[u32]) -> Result<&[f32], Error> {
        self.make(tokens)?;
        Ok(&self.logits)
    }

    /// As [`Session::sync`]; says how many tokens were computed.
    pub(crate) fn make(&mut self, tokens: &[u32]) -> Result<usize, Error> {
        if self.tokens == tokens && !self.logits.is_empty() {
            return Ok(0);
        }
        let shared = self.tokens.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        let shared = self.truncate(shared.min(tokens.len().saturating_sub(1)));
        self.extend(&tokens[shared..])?;
        Ok(tokens.len() - shared)
    }

    fn run(
        &mut self,
        tokens: &[u32],
        wanted: impl Fn(usize) -> Wanted,
        sink: &mut dyn FnMut(usize, &[f32]),
        observer: &mut dyn Observer,
    ) -> Result<(), Error> {
        // They are of another token as soon as there is one more.
        self.logits.clear();
        let room = self.room();
        if tokens.len() > room {
            let (n, all) = (tokens.len(), self.cache.capacity());
            return Err(Error::Input(format!(
                "{n} tokens do not fit: {room} of the context of {all} are free"
            )));
        }
        // Of about the same length: a short rest would be multiplied in another way than many tokens are.
        let parts = tokens.len().div_ceil(self.engine.options.batch.max(1));
        for i in 0..parts {
            let first = tokens.len() * i / parts;
            let part = &tokens[first..tokens.len() * (i + 1) / parts];
            let (model, kernels) = (&self.engine.model, &self.engine.kernels);
            let wanted = wanted(first + part.len() - 1);
            model.forward(
                kernels,
                &mut self.cache,
                part,
                wanted,
                &mut |at, row| sink(first + at, row),
                observer,
            )?;
            self.tokens.extend_from_slice(part);
        }
        Ok(())
    }
}
