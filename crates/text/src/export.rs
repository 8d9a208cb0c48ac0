//! A [`Vocab`] as a `tokenizer.json`, the `tokenizers` library's file: what [`crate::json`] reads, the other way.
//!
//! Byte-level BPE takes over its merges and the patterns of its splitter. SentencePiece BPE has no merges, only
//! scores: every way to put a token together from two others becomes one, in the order of the scores of what they
//! make, so that the pair with the best result is merged first, as SentencePiece does.
//!
//! All tokens stand in the model's vocabulary, also those that are matched before it, because the library numbers
//! added tokens by it and not by the ids in the file.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use crate::pre::Pre;
use crate::{TokenType, Vocab};

/// The text of `tokenizer.json`, or `None` where the vocabulary is of a kind that is not exported (unigram,
/// WordPiece), or has two tokens with one spelling.
pub fn tokenizer_json(vocab: &Vocab) -> Option<Value> {
    let mut ids = Map::new();
    for (id, token) in vocab.tokens.iter().enumerate() {
        if ids.insert(token.clone(), json!(id)).is_some() {
            return None;
        }
    }
    let parts = match vocab.model.as_str() {
        "gpt2" => byte_level(vocab, ids)?,
        // Its own normalizer would have to be merged with these steps.
        "llama" if vocab.normalizer.is_none() => sentencepiece(vocab, ids),
        _ => return None,
    };
    Some(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added(vocab),
        "normalizer": parts.normalizer,
        "pre_tokenizer": parts.pre_tokenizer,
        "post_processor": frame(vocab, parts.add_bos),
        "decoder": parts.decoder,
        "model": parts.model,
    }))
}

/// What differs between the two kinds.
struct Parts {
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    model: Value,
    /// Whether texts begin with the begin token unless the vocabulary says otherwise.
    add_bos: bool,
}

fn byte_level(vocab: &Vocab, ids: Map<String, Value>) -> Option<Parts> {
    let pre = Pre::by_name(vocab.pre.as_deref().unwrap_or("default")).ok()?;
    let mut steps: Vec<Value> = pre
        .patterns()
        .iter()
        .map(|p| json!({ "type": "Split", "pattern": { "Regex": p }, "behavior": "Isolated", "invert": false }))
        .collect();
    steps.push(
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false }),
    );
    Some(Parts {
        normalizer: normalizer(vocab)?,
        pre_tokenizer: json!({ "type": "Sequence", "pretokenizers": steps }),
        decoder: json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false }),
        model: model(
            ids,
            json!(vocab.merges.as_ref()?),
            Value::Null,
            false,
            vocab.ignore_merges.unwrap_or(pre.whole_words),
        ),
        add_bos: pre.add_bos,
    })
}

/// The steps that stand before everything else.
fn normalizer(vocab: &Vocab) -> Option<Value> {
    let Some(json) = &vocab.normalizer else { return Some(Value::Null) };
    let steps: Value = serde_json::from_str(json).ok()?;
    match steps {
        Value::Array(list) => match list.as_slice() {
            [] => Some(Value::Null),
            [one] => Some(one.clone()),
            _ => Some(json!({ "type": "Sequence", "normalizers": list })),
        },
        one => Some(one),
    }
}

fn sentencepiece(vocab: &Vocab, ids: Map<String, Value>) -> Parts {
    let escape = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "\u{2581}" });
    let mut decoders = vec![
        json!({ "type": "Replace", "pattern": { "String": "\u{2581}" }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    let pre_tokenizer = match &vocab.metaspace {
        Some(scheme) => {
            json!({ "type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": scheme, "split": false })
        }
        None => Value::Null,
    };
    let normalizer = if vocab.metaspace.is_some() {
        Value::Null
    } else if vocab.add_space_prefix.unwrap_or(true) {
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
        json!({ "type": "Sequence", "normalizers": [{ "type": "Prepend", "prepend": "\u{2581}" }, escape] })
    } else {
        escape
    };
    let unknown = vocab.unk.and_then(|id| vocab.tokens.get(id as usize));
    Parts {
        normalizer,
        pre_tokenizer,
        decoder: json!({ "type": "Sequence", "decoders": decoders }),
        model: model(ids, json!(merges_of(vocab)), json!(unknown), true, false),
        add_bos: true,
    }
}

fn model(
    ids: Map<String, Value>,
    merges: Value,
    unknown: Value,
    byte_fallback: bool,
    ignore_merges: bool,
) -> Value {
    json!({
        "type": "BPE",
        "dropout": null,
        "unk_token": unknown,
        "continuing_subword_prefix": null,
        "end_of_word_suffix": null,
        "fuse_unk": byte_fallback,
        "byte_fallback": byte_fallback,
        "ignore_merges": ignore_merges,
        "vocab": ids,
        "merges": merges,
    })
}

/// Every pair of tokens that makes a token, the pair whose result has the highest score first.
fn merges_of(vocab: &Vocab) -> Vec<[&str; 2]> {
    let scores = vocab.scores.as_deref().unwrap_or(&[]);
    let normal = || (0u32..).zip(&vocab.tokens).filter(|&(id, _)| vocab.token_type(id) == TokenType::Normal);
    let known: HashMap<&str, u32> = normal().map(|(id, token)| (token.as_str(), id)).collect();
    let mut pairs: Vec<(f32, u32, u32, u32, [&str; 2])> = Vec::new();
    for (id, token) in normal() {
        let score = scores.get(id as usize).copied().unwrap_or(0.0);
        for (at, _) in token.char_indices().skip(1) {
            let Some((left, right)) = token.split_at_checked(at) else { continue };
            if let (Some(&l), Some(&r)) = (known.get(left), known.get(right)) {
                pairs.push((score, id, l, r, [left, right]));
            }
        }
    }
    pairs.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2, a.3).cmp(&(b.1, b.2, b.3))));
    pairs.into_iter().map(|pair| pair.4).collect()
}

/// Tokens that are matched before everything else.
fn added(vocab: &Vocab) -> Vec<Value> {
    let mut added = Vec::new();
    for (id, token) in (0u32..).zip(&vocab.tokens) {
        let special = match vocab.token_type(id) {
            TokenType::Control | TokenType::Unknown => true,
            TokenType::UserDefined => false,
            TokenType::Normal | TokenType::Unused | TokenType::Byte => continue,
        };
        added.push(json!({
            "id": id,
            "content": token,
            "single_word": vocab.single_word.contains(&id),
            "lstrip": vocab.lstrip.contains(&id),
            "rstrip": vocab.rstrip.contains(&id),
            "normalized": false,
            "special": special,
        }));
    }
    added
}

/// What stands around every text.
fn frame(vocab: &Vocab, add_bos: bool) -> Value {
    let token = |id: Option<u32>, wanted: bool| {
        let id = id.filter(|_| wanted)?;
        Some((id, vocab.tokens.get(id as usize)?.as_str()))
    };
    let first = token(vocab.bos, vocab.add_bos.unwrap_or(add_bos));
    let last = token(vocab.eos, vocab.add_eos.unwrap_or(false));
    if first.is_none() && last.is_none() {
        return Value::Null;
    }
    let side = |sequence: &str, number: u32| {
        let special = |(_, text): (u32, &str)| json!({ "SpecialToken": { "id": text, "type_id": number } });
        let text = json!({ "Sequence": { "id": sequence, "type_id": number } });
        first.map(special).into_iter().chain([text]).chain(last.map(special)).collect::<Vec<_>>()
    };
    let special: Map<String, Value> = [first, last]
        .into_iter()
        .flatten()
        .map(|(id, text)| (text.to_owned(), json!({ "id": text, "ids": [id], "tokens": [text] })))
        .collect();
    let pair: Vec<Value> = side("A", 0).into_iter().chain(side("B", 1)).collect();
    json!({ "type": "TemplateProcessing", "single": side("A", 0), "pair": pair, "special_tokens": special })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Tokenizer, json};

    const TEXTS: &[&str] = &["Hello, world!", "  two  spaces\n\n\tand I'm 12345 left", "ß日本🦀 naïve", ""];

    /// Reads what was written; the reader compares every part with what it knows.
    fn again(vocab: &Vocab) -> Tokenizer {
        let written = tokenizer_json(vocab).unwrap().to_string();
        let parsed = json::parse(written.as_bytes()).unwrap();
        let frame = parsed.frame.first.as_deref();
        assert_eq!(
            frame,
            vocab.bos.filter(|_| vocab.add_bos == Some(true)).map(|b| &*vocab.tokens[b as usize])
        );
        Tokenizer::from_vocab(parsed.vocab).unwrap()
    }

    #[test]
    fn byte_level_vocabularies_come_back() {
        let mut tokens: Vec<String> = (0..=255u8).map(|b| crate::bytes::to_char(b).to_string()).collect();
        tokens.extend(["he", "ll", "Ġw", "<|end|>", "or"].map(str::to_owned));
        let mut token_types = vec![TokenType::Normal as i32; tokens.len()];
        token_types[259] = TokenType::Control as i32;
        let vocab = Vocab {
            model: "gpt2".into(),
            pre: Some("llama-bpe".into()),
            merges: Some(["h e", "l l", "Ġ w", "o r"].map(str::to_owned).into()),
            bos: Some(259),
            add_bos: Some(true),
            token_types: Some(token_types),
            tokens,
            ..Vocab::default()
        };
        let (one, two) = (Tokenizer::from_vocab(vocab.clone()).unwrap(), again(&vocab));
        for text in TEXTS.iter().chain(&["a<|end|>b"]) {
            assert_eq!(
                one.encode(text, false, true).unwrap(),
                two.encode(text, false, true).unwrap(),
                "{text}"
            );
        }
    }

    #[test]
    fn sentencepiece_vocabularies_come_back() {
        let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).into();
        let mut token_types =
            vec![TokenType::Unknown as i32, TokenType::Control as i32, TokenType::Control as i32];
        let mut scores = vec![0.0f32; 3];
        for b in 0..=255u8 {
            tokens.push(format!("<0x{b:02X}>"));
            token_types.push(TokenType::Byte as i32);
            scores.push(0.0);
        }
        let words = [
            "▁H", "el", "lo", "ello", "▁Hello", "▁w", "or", "▁wor", "ld", "▁▁", "o", "l", "e", "H", "▁", "w",
            "r", "d",
        ];
        for (i, word) in words.iter().enumerate() {
            tokens.push((*word).to_owned());
            token_types.push(TokenType::Normal as i32);
            scores.push(-(i as f32));
        }
        for prefix in [true, false] {
            let vocab = Vocab {
                model: "llama".into(),
                tokens: tokens.clone(),
                scores: Some(scores.clone()),
                token_types: Some(token_types.clone()),
                unk: Some(0),
                bos: Some(1),
                eos: Some(2),
                add_bos: Some(true),
                add_space_prefix: Some(prefix),
                ..Vocab::default()
            };
            let (one, two) = (Tokenizer::from_vocab(vocab.clone()).unwrap(), again(&vocab));
            for text in TEXTS {
                assert_eq!(
                    one.encode(text, false, true).unwrap(),
                    two.encode(text, false, true).unwrap(),
                    "{text}"
                );
            }
        }
    }

    #[test]
    fn other_kinds_are_not_exported() {
        let vocab = Vocab { model: "bert".into(), tokens: vec!["a".into()], ..Vocab::default() };
        assert!(tokenizer_json(&vocab).is_none());
        let twice = Vocab { model: "llama".into(), tokens: vec!["a".into(), "a".into()], ..Vocab::default() };
        assert!(tokenizer_json(&twice).is_none());
    }
}
