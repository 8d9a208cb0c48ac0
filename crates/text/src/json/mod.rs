//! `tokenizer.json` (the `tokenizers` library's file) as a [`Vocab`].
//!
//! The file describes a pipeline of normalizer, pre-tokenizer, model, post-processor and decoder. Each part is compared
//! with what the algorithms here do; a part that none of them does is an error that names it. BPE over the byte alphabet
//! becomes `gpt2` with the name of its splitter; BPE with byte fallback is SentencePiece's and becomes `llama`, with
//! scores in the order of the merges (a SentencePiece model's merges are sorted by the score of what they make);
//! `Unigram` becomes `t5`, `WordPiece` becomes `bert`.
//!
//! Token types and spellings are those that llama.cpp's converter writes.

mod bpe;
mod unigram;
pub(crate) mod wordpiece;

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use crate::normalize::Normalizer;
use crate::vocab::MAX_TOKENS;
use crate::{Error, TokenType, Vocab};

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    model: Model,
}

/// A token outside of the model's training, matched before everything else.
#[derive(Deserialize, Clone)]
pub(crate) struct Added {
    pub(crate) id: u32,
    pub(crate) content: String,
    #[serde(default)]
    pub(crate) single_word: bool,
    #[serde(default)]
    pub(crate) lstrip: bool,
    #[serde(default)]
    pub(crate) rstrip: bool,
    #[serde(default)]
    pub(crate) special: bool,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: Entries,
    #[serde(default)]
    merges: Vec<Merge>,
    unk_token: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    max_input_chars_per_word: Option<u64>,
    /// Of a unigram model, which names it by number.
    unk_id: Option<u32>,
}

/// The vocabulary of a model: text to id, or the list with scores of a unigram model.
enum Entries {
    Ids(Vec<(String, u32)>),
    Scores(Vec<(String, f64)>),
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Entries, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Entries;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a map from tokens to ids or a list of tokens with scores")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries::Ids(entries))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = list.next_element()? {
                    entries.push(entry);
                }
                Ok(Entries::Scores(entries))
            }
        }
        from.deserialize_any(Read)
    }
}

/// Two strings that merge, joined by a space, and where that space is.
struct Merge {
    text: String,
    left: usize,
}

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Merge, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Merge;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("two strings, or one with a space between them")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Merge, E> {
                let left = text.find(' ').ok_or_else(|| E::custom("a merge without a space"))?;
                Ok(Merge { text: text.to_owned(), left })
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Merge, A::Error> {
                let mut part =
                    || list.next_element::<String>()?.ok_or_else(|| A::Error::custom("a merge of one part"));
                let (left, right) = (part()?, part()?);
                if list.next_element::<String>()?.is_some() {
                    return Err(A::Error::custom("a merge of more than two parts"));
                }
                Ok(Merge { left: left.len(), text: format!("{left} {right}") })
            }
        }
        from.deserialize_any(Read)
    }
}

impl Merge {
    fn parts(&self) -> (&str, &str) {
        let left = self.text.get(..self.left).unwrap_or("");
        (left, self.text.get(self.left + 1..).unwrap_or(""))
    }
}

const WHAT: &str = "tokenizer.json";

fn corrupt(why: impl Into<String>) -> Error {
    Error::corrupt(WHAT, why)
}

/// What the post-processor puts around a text.
#[derive(Default)]
pub(crate) struct Frame {
    pub(crate) first: Option<String>,
    pub(crate) last: Option<String>,
    /// A template was there: that no token is named means that none is added.
    pub(crate) known: bool,
    /// Only a byte-level processor, which adds nothing.
    pub(crate) plain: bool,
}

/// The file's vocabulary, its added tokens, and what it puts around a text.
pub(crate) struct Parsed {
    pub(crate) vocab: Vocab,
    pub(crate) added: Vec<Added>,
    pub(crate) frame: Frame,
}

/// Reads the text of a `tokenizer.json`.
pub(crate) fn parse(json: &[u8]) -> Result<Parsed, Error> {
    let file: File = serde_json::from_slice(json).map_err(|e| corrupt(e.to_string()))?;
    let mut vocab = match (file.model.kind.as_deref(), &file.model.vocab) {
        (Some("BPE") | None, _) if file.model.byte_fallback => bpe::sentencepiece(&file)?,
        (Some("BPE"), _) | (None, Entries::Ids(_)) => bpe::byte_level(&file)?,
        (Some("Unigram") | None, Entries::Scores(entries)) => unigram::parse(&file, entries)?,
        (Some("Unigram"), _) => return Err(corrupt("the vocabulary of a unigram model is no list")),
        (Some("WordPiece"), _) => wordpiece::parse(&file)?,
        (Some(other), _) => return Err(Error::unsupported("tokenizer.json model", other)),
    };
    vocab.matching(&file.added_tokens);
    if let Some(unk) = &file.model.unk_token {
        vocab.unk = vocab.tokens.iter().position(|t| t == unk).map(|i| i as u32);
    }
    let mut frame = frame(&file.post_processor)?;
    // A GGUF reader would add the end token.
    frame.plain |= vocab.model == "t5";
    Ok(Parsed { vocab, frame, added: file.added_tokens })
}

impl Vocab {
    /// Takes over how added tokens are matched.
    pub(crate) fn matching(&mut self, added: &[Added]) {
        let ids = |flag: &dyn Fn(&Added) -> bool| {
            added.iter().filter(|t| flag(t)).map(|t| t.id).collect::<Vec<_>>()
        };
        self.lstrip.extend(ids(&|t| t.lstrip));
        self.rstrip.extend(ids(&|t| t.rstrip));
        self.single_word.extend(ids(&|t| t.single_word));
    }
}

/// Steps of a normalizer as a vocabulary holds them; ones that are not known are errors.
fn normalizer(steps: &[&Value]) -> Result<Option<String>, Error> {
    if steps.is_empty() {
        return Ok(None);
    }
    // The table is in a field of its own.
    let bare = |step: &&Value| match kind(step) {
        "Precompiled" => serde_json::json!({ "type": "Precompiled" }),
        _ => (*step).clone(),
    };
    let json = Value::Array(steps.iter().map(bare).collect()).to_string();
    match Normalizer::parse(Some(&json), None) {
        Err(Error::Corrupt { .. }) | Ok(_) => Ok(Some(json)),
        Err(other) => Err(other),
    }
}

type Ids<'a> = std::collections::HashMap<&'a str, u32>;

/// Tokens by id, with their types; ids that are missing become unused tokens.
fn tokens(file: &File) -> Result<(Vec<String>, Vec<i32>, Ids<'_>), Error> {
    let Entries::Ids(entries) = &file.model.vocab else {
        return Err(corrupt("the vocabulary is not a map"));
    };
    let count = entries.len() + file.added_tokens.len();
    let ids = entries.iter().map(|e| e.1).chain(file.added_tokens.iter().map(|t| t.id));
    let size = ids.max().map_or(0, |id| id as usize + 1);
    // A few holes are normal; a huge id with few tokens is not a vocabulary.
    if size > count.saturating_mul(2).saturating_add(4096).min(MAX_TOKENS) {
        return Err(corrupt(format!("an id of {} among {count} tokens", size - 1)));
    }
    let mut texts: Vec<Option<String>> = vec![None; size];
    let mut types = vec![TokenType::Unused as i32; size];
    let mut by_text = Ids::with_capacity(entries.len());
    for (text, id) in entries {
        let byte = file.model.byte_fallback && is_byte_token(text);
        let kind = if byte { TokenType::Byte } else { TokenType::Normal };
        if file.model.unk_token.as_ref() == Some(text) && file.model.byte_fallback {
            put(&mut texts, &mut types, *id, text, TokenType::Unknown);
        } else {
            put(&mut texts, &mut types, *id, text, kind);
        }
        by_text.insert(text, *id);
    }
    for token in &file.added_tokens {
        put_added(&mut texts, &mut types, token);
    }
    let texts = texts.into_iter().enumerate().map(|(i, t)| t.unwrap_or_else(|| format!("[PAD{i}]")));
    Ok((texts.collect(), types, by_text))
}

fn put(texts: &mut [Option<String>], types: &mut [i32], id: u32, text: &str, kind: TokenType) {
    if let (Some(to), Some(of)) = (texts.get_mut(id as usize), types.get_mut(id as usize)) {
        *to = Some(text.to_owned());
        *of = kind as i32;
    }
}

fn put_added(texts: &mut [Option<String>], types: &mut [i32], token: &Added) {
    let (text, kind) = added_spelling(token);
    put(texts, types, token.id, &text, kind);
}

/// How an added token is written: one that is or looks like structure is a control token, the others are text in which
/// ▁ is a space already.
pub(crate) fn added_spelling(token: &Added) -> (String, TokenType) {
    if token.special || looks_special(&token.content) {
        (token.content.clone(), TokenType::Control)
    } else {
        (token.content.replace('\u{2581}', " "), TokenType::UserDefined)
    }
}

/// Structure that some models forgot to mark as such.
fn looks_special(text: &str) -> bool {
    let within = |start: &str, end: &str| text.starts_with(start) && text.ends_with(end);
    matches!(text, "<pad>" | "<mask>" | "<2mass>" | "[@BOS@]")
        || within("<|", "|>")
        || within("<｜", "｜>")
        || within("<unused", ">")
}

pub(crate) fn is_byte_token(text: &str) -> bool {
    let hex = text.strip_prefix("<0x").and_then(|t| t.strip_suffix('>'));
    hex.is_some_and(|h| h.len() == 2 && h.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// The steps of a part: those of a sequence (also nested), the part itself, or none.
fn steps<'v>(part: &'v Value, list: &str) -> Vec<&'v Value> {
    match part {
        Value::Null => Vec::new(),
        _ if kind(part) == "Sequence" => {
            let inner = part.get(list).and_then(Value::as_array);
            inner.map_or_else(|| vec![part], |steps_| steps_.iter().flat_map(|s| steps(s, list)).collect())
        }
        _ => vec![part],
    }
}

fn kind(step: &Value) -> &str {
    step.get("type").and_then(Value::as_str).unwrap_or("")
}

fn is(step: &Value, key: &str, value: &str) -> bool {
    step.get(key).and_then(Value::as_str) == Some(value)
}

fn pattern_is(step: &Value, value: &str) -> bool {
    step.get("pattern").and_then(|p| p.get("String")).and_then(Value::as_str) == Some(value)
}

/// Whether a `Metaspace` puts a space before the text, and when.
fn metaspace(step: &Value) -> (bool, Option<String>) {
    let scheme = step.get("prepend_scheme").and_then(Value::as_str);
    // Older files have a flag.
    let flag = step.get("add_prefix_space").and_then(Value::as_bool).unwrap_or(true);
    match scheme {
        Some("never") => (false, None),
        Some(scheme) => (true, Some(scheme.to_owned())),
        None => (flag, flag.then(|| "always".to_owned())),
    }
}

fn frame(post: &Value) -> Result<Frame, Error> {
    let mut frame = Frame::default();
    for step in steps(post, "processors") {
        match kind(step) {
            "ByteLevel" => frame.plain = true,
            "TemplateProcessing" => {
                frame.known = true;
                let single = step.get("single").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
                let special =
                    |part: Option<&Value>| Some(part?.get("SpecialToken")?.get("id")?.as_str()?.to_owned());
                if single.len() > 1 {
                    frame.first = special(single.first());
                    frame.last = special(single.last());
                }
            }
            "BertProcessing" | "RobertaProcessing" => {
                frame.known = true;
                let token = |key: &str| Some(step.get(key)?.get(0)?.as_str()?.to_owned());
                frame.first = token("cls");
                frame.last = token("sep");
            }
            _ => return Err(Error::unsupported("post-processor", step.to_string())),
        }
    }
    Ok(frame)
}
