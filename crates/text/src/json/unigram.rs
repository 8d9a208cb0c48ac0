//! Unigram models.
//!
//! What SentencePiece's own normalizer does is spread over several steps in these files. Where they add up to it (a
//! precompiled table, no extra spaces, a space before each text) the vocabulary says so with GGUF's keys, and other
//! programs give the same ids. Any other list of steps is kept as it is.

use serde_json::Value;

use super::{Entries, File, added_spelling, corrupt, is, is_byte_token, kind, metaspace, normalizer, steps};
use crate::charsmap::Charsmap;
use crate::normalize::removes_extra_spaces;
use crate::vocab::MAX_TOKENS;
use crate::{Error, TokenType, Vocab};

/// The table of a `Precompiled` step; some have none.
fn table(step: &Value) -> Option<&str> {
    step.get("precompiled_charsmap").and_then(Value::as_str).filter(|table| !table.is_empty())
}

pub(super) fn parse(file: &File, entries: &[(String, f64)]) -> Result<Vocab, Error> {
    debug_assert!(matches!(file.model.vocab, Entries::Scores(_)));
    let (tokens, scores, token_types) = pieces(file, entries)?;
    let mut vocab = Vocab {
        model: "t5".into(),
        pre: Some("default".into()),
        unk: file.model.unk_id.filter(|&id| (id as usize) < tokens.len()),
        tokens,
        scores: Some(scores),
        token_types: Some(token_types),
        remove_extra_whitespaces: Some(false),
        add_space_prefix: Some(false),
        ..Vocab::default()
    };
    let words = pre_tokenizer(file, &mut vocab)?;
    let mut before = steps(&file.normalizer, "normalizers");
    before.retain(|step| kind(step) != "Precompiled" || table(step).is_some());
    for table in before.iter().filter(|step| kind(step) == "Precompiled").filter_map(|step| table(step)) {
        let bytes =
            crate::tiktoken::base64(table).ok_or_else(|| corrupt("precompiled_charsmap is not base64"))?;
        if vocab.precompiled_charsmap.replace(bytes).is_some() {
            return Err(Error::unsupported("normalizer", "two precompiled tables"));
        }
    }
    // With words apart, or with these two steps at the end, all that is left is what SentencePiece does.
    let at_end =
        before.len().checked_sub(2).filter(|&at| removes_extra_spaces(before.get(at..).unwrap_or(&[])));
    if let Some(at) = at_end {
        before.truncate(at);
    }
    let spaces = Value::String("\\s+".into());
    let [collapse, strip] = [
        serde_json::json!({ "type": "Replace", "pattern": { "Regex": spaces }, "content": " " }),
        serde_json::json!({ "type": "Strip", "strip_left": false, "strip_right": true }),
    ];
    if words || at_end.is_some() {
        vocab.remove_extra_whitespaces = Some(true);
        let last = before.last().is_some_and(|step| kind(step) == "Precompiled");
        if last && maps_white_space(&vocab)? {
            before.pop();
        } else if words {
            before.extend([&collapse, &strip]);
        } else {
            before = steps(&file.normalizer, "normalizers");
        }
    }
    vocab.normalizer = normalizer(&before)?;
    Ok(vocab)
}

/// Takes over when a space is put before a text; says whether white space only separates words.
fn pre_tokenizer(file: &File, vocab: &mut Vocab) -> Result<bool, Error> {
    let mut words = false;
    let mut escapes = false;
    for step in steps(&file.pre_tokenizer, "pretokenizers") {
        match kind(step) {
            "WhitespaceSplit" if !escapes => words = true,
            "Metaspace" if !escapes && is(step, "replacement", "\u{2581}") => {
                escapes = true;
                let (prefix, scheme) = metaspace(step);
                vocab.add_space_prefix = Some(prefix);
                vocab.metaspace = scheme;
            }
            _ => {
                return Err(Error::unsupported(
                    "pre-tokenizer of a unigram model",
                    file.pre_tokenizer.to_string(),
                ));
            }
        }
    }
    match escapes && !(words && vocab.metaspace.as_deref() == Some("first")) {
        true => Ok(words),
        false => Err(Error::unsupported("pre-tokenizer of a unigram model", file.pre_tokenizer.to_string())),
    }
}

/// Whether the table turns all white space into spaces, so that only spaces are left to be dealt with.
fn maps_white_space(vocab: &Vocab) -> Result<bool, Error> {
    let Some(bytes) = &vocab.precompiled_charsmap else { return Ok(false) };
    let table = Charsmap::parse(bytes)?;
    for c in ('\0'..='\u{3000}').filter(|&c| c.is_whitespace() && c != ' ') {
        let found = table.longest(c.encode_utf8(&mut [0; 4]).as_bytes())?;
        if !found.is_some_and(|(_, to)| to.chars().all(|c| c == ' ')) {
            return Ok(false);
        }
    }
    Ok(true)
}

type Pieces = (Vec<String>, Vec<f32>, Vec<i32>);

fn pieces(file: &File, entries: &[(String, f64)]) -> Result<Pieces, Error> {
    let last = file.added_tokens.iter().map(|t| t.id as usize + 1).max().unwrap_or(0);
    let size = entries.len().max(last);
    if size > (entries.len() + file.added_tokens.len() + 4096).min(MAX_TOKENS) {
        return Err(corrupt(format!("an id of {} among {} tokens", size - 1, entries.len())));
    }
    let (mut tokens, mut scores, mut types) =
        (Vec::with_capacity(size), Vec::with_capacity(size), Vec::new());
    for (id, (text, score)) in (0u32..).zip(entries) {
        let kind = match () {
            () if file.model.unk_id == Some(id) => TokenType::Unknown,
            () if file.model.byte_fallback && is_byte_token(text) => TokenType::Byte,
            () => TokenType::Normal,
        };
        tokens.push(text.clone());
        scores.push(*score as f32);
        types.push(kind as i32);
    }
    for id in entries.len()..size {
        tokens.push(format!("[PAD{id}]"));
        scores.push(-1000.0);
        types.push(TokenType::Unused as i32);
    }
    for added in &file.added_tokens {
        let (text, kind) = added_spelling(added);
        let at = added.id as usize;
        if let (Some(to), Some(of)) = (tokens.get_mut(at), types.get_mut(at)) {
            *to = text;
            if *of != TokenType::Unknown as i32 {
                *of = kind as i32;
            }
        }
    }
    Ok((tokens, scores, types))
}
