//! The tokenizer of a Hugging Face folder.
//!
//! `tokenizer.json` is what `transformers` uses and is preferred; a folder without it needs another vocabulary: see
//! [`vocabulary`]. The other files complete it: names of special tokens (`tokenizer_config.json`, `special_tokens_map.json`), ids
//! (`config.json`), what ends a generation (`generation_config.json`), chat templates (`chat_template.jinja`, or in
//! `tokenizer_config.json`).

use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::json::{Added, Frame, added_spelling};
use crate::{Error, TokenType, Vocab, json, legacy, rwkv, sentencepiece, tiktoken};

/// The largest tokenizer files known have 40 MB.
const MAX_FILE: u64 = 256 << 20;

/// The bytes of a file, or `None` if there is none.
fn read(path: PathBuf) -> Result<Option<Vec<u8>>, Error> {
    let io = |source| Error::Io { path: path.clone(), source };
    let file = match std::fs::File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io(e)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(Error::Limit { what: "a tokenizer file", value: bytes.len() as u64, limit: MAX_FILE });
    }
    Ok(Some(bytes))
}

/// A JSON file of settings; a missing one has none.
fn settings(dir: &Path, name: &str) -> Result<Value, Error> {
    match read(dir.join(name))? {
        Some(bytes) => serde_json::from_slice(&bytes).map_err(|e| Error::corrupt(name, e.to_string())),
        None => Ok(Value::Null),
    }
}

/// The only file with this extension, if there is one.
fn with_extension(dir: &Path, extension: &str) -> Result<Option<PathBuf>, Error> {
    let io = |source| Error::Io { path: dir.to_owned(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    match found.len() {
        0 | 1 => Ok(found.pop()),
        n => Err(Error::corrupt(format!("{}", dir.display()), format!("{n} files with .{extension}"))),
    }
}

/// Everything that a folder says besides the vocabulary.
struct Folder {
    tokenizer_config: Value,
    special_tokens_map: Value,
    config: Value,
    generation_config: Value,
}

pub(crate) fn load(dir: &Path) -> Result<Vocab, Error> {
    let folder = Folder {
        tokenizer_config: settings(dir, "tokenizer_config.json")?,
        special_tokens_map: settings(dir, "special_tokens_map.json")?,
        config: settings(dir, "config.json")?,
        generation_config: settings(dir, "generation_config.json")?,
    };
    let (mut vocab, frame) = if let Some(bytes) = read(dir.join("tokenizer.json"))? {
        let json::Parsed { mut vocab, added, frame } = json::parse(&bytes)?;
        folder.drop_rows_beyond(&mut vocab, &added)?;
        (vocab, frame)
    } else {
        let mut vocab = folder.vocabulary(dir)?;
        let added = folder.added_tokens(&settings(dir, "added_tokens.json")?)?;
        folder.add_tokens(&mut vocab, &added)?;
        (vocab, Frame::default())
    };
    folder.specials(&mut vocab, &frame);
    folder.ends(&mut vocab);
    folder.templates(dir, &mut vocab)?;
    if let Some(size) = folder.vocab_size() {
        vocab.pad_to(size);
    }
    vocab.check()?;
    Ok(vocab)
}

impl Folder {
    fn class(&self) -> Option<&str> {
        self.tokenizer_config.get("tokenizer_class").and_then(Value::as_str)
    }

    /// The vocabulary of a folder without `tokenizer.json`: SentencePiece's file or tiktoken's, whose names overlap;
    /// the files of GPT-2's and BERT's first tokenizers; RWKV's.
    fn vocabulary(&self, dir: &Path) -> Result<Vocab, Error> {
        if let Some(bytes) = read(dir.join("tokenizer.model"))? {
            if tiktoken::is_tiktoken(&bytes) {
                return tiktoken::parse(&bytes, self.class());
            }
            return sentencepiece::parse(&bytes);
        }
        if let Some(bytes) = read(dir.join("spiece.model"))? {
            let mut vocab = sentencepiece::parse(&bytes)?;
            legacy::add_t5_extra_ids(&mut vocab, self.class(), self.tokenizer_config.get("extra_ids"));
            return Ok(vocab);
        }
        if let Some(path) = with_extension(dir, "tiktoken")? {
            return tiktoken::parse(&read(path)?.unwrap_or_default(), self.class());
        }
        if let (Some(vocab), Some(merges)) = (read(dir.join("vocab.json"))?, read(dir.join("merges.txt"))?) {
            return legacy::byte_level(&vocab, &merges, self.class());
        }
        if let Some(bytes) = read(dir.join("vocab.txt"))? {
            return legacy::wordpiece(&bytes, self.class(), &self.tokenizer_config);
        }
        if let Some(bytes) = read(dir.join("rwkv_vocab_v20230424.txt"))? {
            return rwkv::parse(&bytes);
        }
        let source = std::io::Error::new(
            std::io::ErrorKind::NotFound,
            "no tokenizer.json, and none of tokenizer.model, spiece.model, *.tiktoken, vocab.json with merges.txt, \
             vocab.txt, rwkv_vocab_v20230424.txt beside it",
        );
        Err(Error::Io { path: dir.join("tokenizer.json"), source })
    }

    /// A number of the model's configuration; multimodal models keep it under `text_config`.
    fn config(&self, key: &str) -> Option<&Value> {
        let at_root = self.config.get(key).filter(|v| !v.is_null());
        at_root.or_else(|| self.config.get("text_config")?.get(key))
    }

    fn vocab_size(&self) -> Option<usize> {
        self.config("vocab_size")?.as_u64().and_then(|n| usize::try_from(n).ok())
    }

    /// Added tokens beyond the model's embedding (a text model shipped with a multimodal tokenizer) do not exist for it.
    fn drop_rows_beyond(&self, vocab: &mut Vocab, added: &[Added]) -> Result<(), Error> {
        let Some(size) = self.vocab_size() else { return Ok(()) };
        let beyond = vocab.tokens.len().saturating_sub(size);
        let dropped = added.iter().filter(|t| t.id as usize >= size).count();
        if dropped < beyond {
            let why = format!("{} tokens, but config.json has a vocabulary of {size}", vocab.tokens.len());
            return Err(Error::corrupt("tokenizer.json", why));
        }
        vocab.tokens.truncate(size);
        if let Some(types) = &mut vocab.token_types {
            types.truncate(size);
        }
        if let Some(scores) = &mut vocab.scores {
            scores.truncate(size);
        }
        for ids in [&mut vocab.lstrip, &mut vocab.rstrip, &mut vocab.single_word] {
            ids.retain(|&id| (id as usize) < size);
        }
        vocab.unk = vocab.unk.filter(|&id| (id as usize) < size);
        Ok(())
    }

    /// The tokens that a folder adds to its `tokenizer.model`.
    fn added_tokens(&self, added_json: &Value) -> Result<Vec<Added>, Error> {
        let mut added = Vec::new();
        for (content, id) in added_json.as_object().into_iter().flatten() {
            let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
            let id =
                id.ok_or_else(|| Error::corrupt("added_tokens.json", format!("the id of {content:?}")))?;
            added.push(Added {
                id,
                content: content.clone(),
                single_word: false,
                lstrip: false,
                rstrip: false,
                special: false,
            });
        }
        let decoder = self.tokenizer_config.get("added_tokens_decoder").and_then(Value::as_object);
        for (id, token) in decoder.into_iter().flatten() {
            let bad = |why: String| Error::corrupt("tokenizer_config.json", why);
            let id: u32 = id.parse().map_err(|_| bad(format!("the id {id:?}")))?;
            let mut with_id = token.clone();
            if let Some(fields) = with_id.as_object_mut() {
                fields.insert("id".into(), id.into());
            }
            added.push(serde_json::from_value(with_id).map_err(|e| bad(e.to_string()))?);
        }
        Ok(added)
    }

    fn add_tokens(&self, vocab: &mut Vocab, added: &[Added]) -> Result<(), Error> {
        let limit = self.vocab_size().unwrap_or(usize::MAX).min(vocab.tokens.len() + added.len() + 4096);
        let kept = added.iter().filter(|t| (t.id as usize) < limit);
        vocab.matching(&kept.clone().cloned().collect::<Vec<_>>());
        vocab.pad_to(kept.clone().map(|t| t.id as usize + 1).max().unwrap_or(0));
        for token in kept {
            let (text, kind) = added_spelling(token);
            let at = token.id as usize;
            // A piece that only repeats what the model has keeps its type, unless it is structure.
            if let Some(to) = vocab.tokens.get_mut(at) {
                *to = text;
            }
            if let Some(of) = vocab.token_types.as_mut().and_then(|t| t.get_mut(at)) {
                *of = kind as i32;
            }
            if let Some(score) = vocab.scores.as_mut().and_then(|s| s.get_mut(at)) {
                *score = -1000.0;
            }
        }
        Ok(())
    }

    /// The text of a special token as the settings name it.
    fn special_text(&self, key: &str) -> Option<&str> {
        let sources = [&self.tokenizer_config, &self.special_tokens_map];
        sources.into_iter().find_map(|source| {
            let entry = source.get(key)?;
            entry.as_str().or_else(|| entry.get("content")?.as_str())
        })
    }

    fn specials(&self, vocab: &mut Vocab, frame: &Frame) {
        let find = |text: &str| {
            let mut at = vocab.tokens.iter().position(|t| t == text);
            if at.is_some_and(|i| vocab.token_type(i as u32) == TokenType::Unused) {
                at = None;
            }
            at.map(|i| i as u32)
        };
        let lookup = |name: &str| {
            let by_text = self.special_text(&format!("{name}_token")).and_then(find);
            let by_id = || u32::try_from(self.config(&format!("{name}_token_id"))?.as_u64()?).ok();
            by_text.or_else(by_id).filter(|&id| (id as usize) < vocab.tokens.len())
        };
        let [bos, eos, unk, sep, pad, cls, mask] =
            ["bos", "eos", "unk", "sep", "pad", "cls", "mask"].map(lookup);
        let first = frame.first.as_deref().and_then(find);
        let last = frame.last.as_deref().and_then(find);
        let flag = |key: &str| self.tokenizer_config.get(key).and_then(Value::as_bool);
        // What the pipeline does counts; the settings are older and often contradict it.
        let framed = |by_frame: Option<u32>, key: &str| {
            if frame.known { Some(by_frame.is_some()) } else { flag(key).or(frame.plain.then_some(false)) }
        };
        let (add_bos, add_eos) = (framed(first, "add_bos_token"), framed(last, "add_eos_token"));
        vocab.add_bos = add_bos;
        vocab.add_eos = add_eos;
        vocab.bos = if frame.known && first.is_some() { first } else { bos.or(vocab.bos) };
        vocab.eos = eos.or(vocab.eos).or(last);
        if frame.known && last.is_some() && last != vocab.eos {
            // The end of a text and the end of an answer are two tokens.
            vocab.eot = vocab.eos;
            vocab.eos = last;
        }
        vocab.unk = vocab.unk.or(unk);
        (vocab.sep, vocab.cls, vocab.mask) = (sep.or(vocab.sep), cls.or(vocab.cls), mask.or(vocab.mask));
        if vocab.model == "bert" {
            (vocab.cls, vocab.sep) = (vocab.cls.or(first), vocab.sep.or(last));
        }
        vocab.pad = pad.or(vocab.pad);
    }

    /// The ids that end a generation, beyond the one end token. A GGUF file has places for two of them.
    fn ends(&self, vocab: &mut Vocab) {
        let listed = self.generation_config.get("eos_token_id").or_else(|| self.config("eos_token_id"));
        let ids: Vec<u32> = match listed {
            Some(Value::Array(ids)) => {
                ids.iter().filter_map(Value::as_u64).filter_map(|i| i.try_into().ok()).collect()
            }
            Some(id) => id.as_u64().and_then(|i| i.try_into().ok()).into_iter().collect(),
            None => Vec::new(),
        };
        vocab.extra_eos = ids.into_iter().filter(|&id| (id as usize) < vocab.tokens.len()).collect();
        let other = vocab.extra_eos.iter().copied().find(|&id| Some(id) != vocab.eos);
        vocab.eot = vocab.eot.or(other);
    }

    fn templates(&self, dir: &Path, vocab: &mut Vocab) -> Result<(), Error> {
        if let Some(bytes) = read(dir.join("chat_template.jinja"))? {
            let text = String::from_utf8(bytes);
            vocab.chat_template =
                Some(text.map_err(|_| Error::corrupt("chat_template.jinja", "it is not UTF-8"))?);
            return Ok(());
        }
        let in_json = settings(dir, "chat_template.json")?;
        let found = self.tokenizer_config.get("chat_template").or_else(|| in_json.get("chat_template"));
        match found {
            Some(Value::String(text)) => vocab.chat_template = Some(text.clone()),
            Some(Value::Array(list)) => {
                for entry in list {
                    let text = |key: &str| entry.get(key).and_then(Value::as_str).map(str::to_owned);
                    match (text("name"), text("template")) {
                        (Some(name), Some(template)) if name == "default" => {
                            vocab.chat_template = Some(template)
                        }
                        (Some(name), Some(template)) => vocab.named_chat_templates.push((name, template)),
                        _ => {
                            return Err(Error::corrupt(
                                "chat_template",
                                "an entry without name and template",
                            ));
                        }
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}
