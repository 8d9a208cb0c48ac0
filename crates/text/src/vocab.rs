//! A vocabulary as plain data, in the form of GGUF's `tokenizer.*` keys.
//!
//! Source: the GGUF specification ("Tokenizer"). Callers map the keys to the fields one to one; an absent key is
//! `None` and means the default of the tokenizer model. What the format has no key for is under `fonio.tokenizer`:
//! other programs ignore these keys, and what they then do differently stands at the field.

use crate::Error;

/// What a token is for, as numbered in `tokenizer.ggml.token_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum TokenType {
    /// Text.
    Normal = 1,
    /// Stands for what the vocabulary cannot express.
    Unknown = 2,
    /// Structure (begin, end, role marks): never produced from plain text.
    Control = 3,
    /// Text that is matched before everything else.
    UserDefined = 4,
    /// A hole in the vocabulary.
    Unused = 5,
    /// One byte, written `<0xHH>`.
    Byte = 6,
}

impl TokenType {
    /// From the number in the file; `None` for a number without meaning.
    pub fn from_i32(n: i32) -> Option<TokenType> {
        Some(match n {
            1 => TokenType::Normal,
            2 => TokenType::Unknown,
            3 => TokenType::Control,
            4 => TokenType::UserDefined,
            5 => TokenType::Unused,
            6 => TokenType::Byte,
            _ => return None,
        })
    }
}

/// A vocabulary as plain data. The comment of a field is its GGUF key.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Vocab {
    /// `tokenizer.ggml.model`: `gpt2` (byte-level BPE), `llama` (SentencePiece BPE), `gemma4` (BPE over escaped
    /// text), `t5` (unigram), `bert` (WordPiece), `rwkv` (longest match).
    pub model: String,
    /// `tokenizer.ggml.pre`: how text is split before BPE.
    pub pre: Option<String>,
    /// `tokenizer.ggml.tokens`
    pub tokens: Vec<String>,
    /// `tokenizer.ggml.scores`
    pub scores: Option<Vec<f32>>,
    /// `tokenizer.ggml.token_type`: see [`TokenType`].
    pub token_types: Option<Vec<i32>>,
    /// `tokenizer.ggml.merges`: `left right`, best first.
    pub merges: Option<Vec<String>>,
    /// `tokenizer.ggml.bos_token_id`
    pub bos: Option<u32>,
    /// `tokenizer.ggml.eos_token_id`
    pub eos: Option<u32>,
    /// `tokenizer.ggml.eot_token_id`: end of turn.
    pub eot: Option<u32>,
    /// `tokenizer.ggml.eom_token_id`: end of message.
    pub eom: Option<u32>,
    /// `tokenizer.ggml.unknown_token_id`
    pub unk: Option<u32>,
    /// `tokenizer.ggml.seperator_token_id` (spelled so in the format)
    pub sep: Option<u32>,
    /// `tokenizer.ggml.padding_token_id`
    pub pad: Option<u32>,
    /// `tokenizer.ggml.cls_token_id`
    pub cls: Option<u32>,
    /// `tokenizer.ggml.mask_token_id`
    pub mask: Option<u32>,
    /// `tokenizer.ggml.add_bos_token`
    pub add_bos: Option<bool>,
    /// `tokenizer.ggml.add_eos_token`
    pub add_eos: Option<bool>,
    /// `tokenizer.ggml.add_space_prefix`
    pub add_space_prefix: Option<bool>,
    /// `tokenizer.ggml.remove_extra_whitespaces`
    pub remove_extra_whitespaces: Option<bool>,
    /// `tokenizer.ggml.precompiled_charsmap`: SentencePiece's normalization table.
    pub precompiled_charsmap: Option<Vec<u8>>,
    /// `tokenizer.ggml.normalizer.lowercase`: whether a WordPiece model takes text in lower case (it does unless this
    /// says no).
    pub lowercase: Option<bool>,
    /// `tokenizer.ggml.normalizer.strip_accents`: whether a WordPiece model takes text without accents; as `lowercase`
    /// unless it is stated.
    pub strip_accents: Option<bool>,
    /// `tokenizer.chat_template`
    pub chat_template: Option<String>,
    /// `tokenizer.chat_template.NAME`: further templates, such as `tool_use`.
    pub named_chat_templates: Vec<(String, String)>,
    /// `fonio.tokenizer.end_token_ids`: further ids that end a generation (a Hugging Face folder's
    /// `generation_config.json`). Other programs find them by name.
    pub extra_eos: Vec<u32>,
    /// `fonio.tokenizer.normalizer`: what happens to plain text before everything else, as a `normalizer` of
    /// `tokenizer.json` (a step or a list of steps in JSON). Other programs leave it out: Qwen's composes characters
    /// (NFC), which changes few texts.
    pub normalizer: Option<String>,
    /// `fonio.tokenizer.ignore_merges`: whether a piece that is a token is taken whole, where that is not what `pre`
    /// implies.
    pub ignore_merges: Option<bool>,
    /// `fonio.tokenizer.metaspace`: `always` or `first` where the space before a text is added as the `tokenizers`
    /// library's `Metaspace` does: not before another space, and with `first` only at the beginning, not after special
    /// tokens. Without it, as SentencePiece does.
    pub metaspace: Option<String>,
    /// `fonio.tokenizer.lstrip_ids`: special tokens that swallow white space before them.
    pub lstrip: Vec<u32>,
    /// `fonio.tokenizer.rstrip_ids`: special tokens that swallow white space after them.
    pub rstrip: Vec<u32>,
    /// `fonio.tokenizer.single_word_ids`: special tokens that are none inside of a word.
    pub single_word: Vec<u32>,
}

/// More tokens than any model has, and few enough that tables of ids are small.
pub(crate) const MAX_TOKENS: usize = 1 << 24;

impl Vocab {
    /// Checks what every algorithm relies on: lengths agree, ids exist, numbers are finite.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let n = self.tokens.len();
        if n == 0 {
            return Err(Error::corrupt("vocabulary", "it has no tokens"));
        }
        if n > MAX_TOKENS {
            return Err(Error::Limit { what: "the vocabulary", value: n as u64, limit: MAX_TOKENS as u64 });
        }
        if let Some(scores) = &self.scores {
            if scores.len() != n {
                return Err(Error::corrupt("vocabulary", format!("{n} tokens but {} scores", scores.len())));
            }
            if let Some(i) = scores.iter().position(|s| s.is_nan()) {
                return Err(Error::corrupt("vocabulary", format!("the score of token {i} is not a number")));
            }
        }
        if let Some(types) = &self.token_types
            && types.len() != n
        {
            let why = format!("{n} tokens but {} token types", types.len());
            return Err(Error::corrupt("vocabulary", why));
        }
        if self.merges.as_ref().is_some_and(|m| m.len() > MAX_TOKENS) {
            let value = self.merges.as_ref().map_or(0, Vec::len) as u64;
            return Err(Error::Limit { what: "the number of merges", value, limit: MAX_TOKENS as u64 });
        }
        let ids = [
            ("bos", self.bos),
            ("eos", self.eos),
            ("eot", self.eot),
            ("eom", self.eom),
            ("unknown", self.unk),
            ("separator", self.sep),
            ("padding", self.pad),
            ("cls", self.cls),
            ("mask", self.mask),
        ];
        for (name, id) in ids {
            if let Some(id) = id
                && id as usize >= n
            {
                return Err(Error::corrupt("vocabulary", format!("the {name} token is {id}, of {n} tokens")));
            }
        }
        Ok(())
    }

    /// Fills the vocabulary up to `n` tokens with unused ones named `[PADi]`, as converters do when the embedding has
    /// more rows than the tokenizer has tokens.
    pub fn pad_to(&mut self, n: usize) {
        let n = n.min(MAX_TOKENS);
        for i in self.tokens.len()..n {
            self.tokens.push(format!("[PAD{i}]"));
            if let Some(scores) = &mut self.scores {
                scores.push(-1000.0);
            }
            if let Some(types) = &mut self.token_types {
                types.push(TokenType::Unused as i32);
            }
        }
    }

    /// The type of a token; one without a type, or with a meaningless one, is normal.
    pub fn token_type(&self, id: u32) -> TokenType {
        let types = self.token_types.as_deref().unwrap_or(&[]);
        types.get(id as usize).and_then(|&t| TokenType::from_i32(t)).unwrap_or(TokenType::Normal)
    }
}
