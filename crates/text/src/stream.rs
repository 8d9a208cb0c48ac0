//! Decoding token by token: what comes out is always whole UTF-8.
//!
//! A character may span tokens; its first bytes wait until the rest arrives. Bytes that can never become a character
//! come out as U+FFFD, one for each maximal invalid run, as `String::from_utf8_lossy` does: all chunks together and
//! the decoded whole are the same string.

use crate::Tokenizer;

/// Turns ids into text as they come. Made by [`Tokenizer::decode_stream`].
#[derive(Debug, Clone)]
pub struct DecodeStream<'t> {
    tokenizer: &'t Tokenizer,
    skip_special: bool,
    /// The start of a character that is not complete yet: at most three bytes.
    pending: Vec<u8>,
    out: String,
}

impl<'t> DecodeStream<'t> {
    pub(crate) fn new(tokenizer: &'t Tokenizer) -> DecodeStream<'t> {
        DecodeStream { tokenizer, skip_special: true, pending: Vec::new(), out: String::new() }
    }

    /// Whether control tokens are left out (they are unless this says no).
    pub fn skip_special(mut self, skip: bool) -> Self {
        self.skip_special = skip;
        self
    }

    /// Adds a token; `Some` holds the text that became complete, never empty.
    pub fn push(&mut self, id: u32) -> Option<&str> {
        if self.skip_special && self.tokenizer.is_control(id) {
            return None;
        }
        self.out.clear();
        self.pending.extend_from_slice(&self.tokenizer.token_bytes(id));
        let mut kept = 0;
        for chunk in self.pending.utf8_chunks() {
            self.out.push_str(chunk.valid());
            kept += chunk.valid().len();
            let invalid = chunk.invalid();
            let is_last = kept + invalid.len() == self.pending.len();
            if is_last && can_continue(invalid) {
                break;
            }
            if !invalid.is_empty() {
                self.out.push('\u{fffd}');
                kept += invalid.len();
            }
        }
        self.pending.drain(..kept);
        (!self.out.is_empty()).then_some(self.out.as_str())
    }

    /// Ends the text: bytes still waiting for the rest of their character become U+FFFD.
    pub fn finish(&mut self) -> Option<&'static str> {
        let any = !self.pending.is_empty();
        self.pending.clear();
        any.then_some("\u{fffd}")
    }
}

/// Whether an invalid run at the end is the start of a character (the decoder ends such a run only at the end of the
/// input, or where the next byte does not fit).
fn can_continue(run: &[u8]) -> bool {
    let Some(&lead) = run.first() else { return false };
    let need = match lead {
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        _ => return false,
    };
    run.len() < need
}
