//! WordPiece models: BERT's.

use serde_json::Value;

use super::{File, kind, steps, tokens};
use crate::{Error, TokenType, Vocab};

pub(super) fn parse(file: &File) -> Result<Vocab, Error> {
    let unsupported = |what, value: &Value| Error::unsupported(what, value.to_string());
    let prefix = file.model.continuing_subword_prefix.as_deref().unwrap_or("##");
    if prefix != "##" {
        return Err(Error::unsupported("prefix of WordPiece pieces", prefix));
    }
    if let Some(n) = file.model.max_input_chars_per_word.filter(|&n| n != 100) {
        return Err(Error::unsupported("max_input_chars_per_word", n.to_string()));
    }
    let (lowercase, strip_accents) = match steps(&file.normalizer, "normalizers").as_slice() {
        [step] if kind(step) == "BertNormalizer" => {
            let flag = |key: &str| step.get(key).and_then(Value::as_bool);
            if flag("clean_text") == Some(false) || flag("handle_chinese_chars") == Some(false) {
                return Err(unsupported("normalizer", &file.normalizer));
            }
            let lowercase = flag("lowercase").unwrap_or(true);
            (lowercase, flag("strip_accents").unwrap_or(lowercase))
        }
        _ => return Err(unsupported("normalizer", &file.normalizer)),
    };
    match steps(&file.pre_tokenizer, "pretokenizers").as_slice() {
        [step] if kind(step) == "BertPreTokenizer" => {}
        _ => return Err(unsupported("pre-tokenizer", &file.pre_tokenizer)),
    }
    let (tokens, token_types, _) = tokens(file)?;
    Ok(vocab(tokens, token_types, lowercase, strip_accents))
}

/// The vocabulary of these pieces, in the spelling that they have in GGUF.
pub(crate) fn vocab(
    mut tokens: Vec<String>,
    token_types: Vec<i32>,
    lowercase: bool,
    strip_accents: bool,
) -> Vocab {
    for (token, &kind) in tokens.iter_mut().zip(&token_types) {
        if kind == TokenType::Normal as i32 {
            *token = spelling(token);
        }
    }
    Vocab {
        model: "bert".into(),
        pre: Some("default".into()),
        tokens,
        token_types: Some(token_types),
        // Stated only where it differs from what a reader assumes.
        lowercase: (!lowercase).then_some(false),
        strip_accents: (strip_accents != lowercase).then_some(strip_accents),
        ..Vocab::default()
    }
}

/// BERT marks what continues a word, GGUF what begins one; names in brackets are left alone.
fn spelling(piece: &str) -> String {
    if piece.starts_with('[') && piece.ends_with(']') {
        return piece.to_owned();
    }
    match piece.strip_prefix("##") {
        Some(rest) if !rest.is_empty() => rest.to_owned(),
        _ => format!("\u{2581}{piece}"),
    }
}
