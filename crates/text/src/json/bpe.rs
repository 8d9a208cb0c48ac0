//! BPE models: over the byte alphabet, and SentencePiece's.

use serde_json::Value;

use super::{File, corrupt, is, kind, normalizer, pattern_is, steps, tokens};
use crate::pre::{self, Shape};
use crate::{Error, TokenType, Vocab};

/// Affixes of pieces are of CLIP's and GPT-1's kinds of BPE.
fn check_affixes(file: &File) -> Result<(), Error> {
    let affixes = [&file.model.continuing_subword_prefix, &file.model.end_of_word_suffix];
    match affixes.into_iter().flatten().find(|a| !a.is_empty()) {
        Some(affix) => Err(Error::unsupported("affix of BPE pieces", affix)),
        None => Ok(()),
    }
}

/// How a pre-tokenizer splits, and what to do if no name stands for that.
fn unknown_splitter(file: &File) -> Error {
    let advice =
        "none of the splitters known to GGUF (tokenizer.ggml.pre) does this; please report the model";
    Error::unsupported("pre-tokenizer", format!("{}: {advice}", file.pre_tokenizer))
}

pub(super) fn byte_level(file: &File) -> Result<Vocab, Error> {
    check_affixes(file)?;
    let unknown = || unknown_splitter(file);
    let mut shapes = Vec::new();
    let mut to_bytes = false;
    for step in steps(&file.pre_tokenizer, "pretokenizers") {
        let flag = |name: &str, default: bool| step.get(name).and_then(Value::as_bool).unwrap_or(default);
        match kind(step) {
            "ByteLevel" if !flag("add_prefix_space", true) => {
                to_bytes = true;
                if flag("use_regex", true) {
                    shapes.push(Shape::Gpt2);
                }
            }
            "Digits" if flag("individual_digits", false) => shapes.push(Shape::Pattern(r"\p{N}")),
            "Digits" => shapes.push(Shape::Pattern(r"\p{N}+")),
            "Punctuation" if is(step, "behavior", "Contiguous") => shapes.push(Shape::Punctuation),
            "Split" if is(step, "behavior", "Isolated") && !flag("invert", false) => {
                let pattern = step.get("pattern").and_then(|p| p.get("Regex")).and_then(Value::as_str);
                shapes.push(Shape::Pattern(pattern.ok_or_else(unknown)?));
            }
            // Splitting by patterns and removing the gaps is the same where the pattern leaves no gaps.
            "Split" if is(step, "behavior", "Removed") && flag("invert", false) => {
                let pattern = step.get("pattern").and_then(|p| p.get("Regex")).and_then(Value::as_str);
                shapes.push(Shape::Pattern(pattern.ok_or_else(unknown)?));
            }
            _ => return Err(unknown()),
        }
    }
    if !to_bytes {
        return Err(unknown());
    }
    let (name, whole_words) = pre::recognise(&shapes, file.model.ignore_merges).ok_or_else(unknown)?;
    let (tokens, token_types, _) = tokens(file)?;
    let merges = file.model.merges.iter().map(|m| {
        let (left, right) = m.parts();
        // The byte alphabet has no space: one inside a part would move the cut.
        if left.is_empty() || right.contains(' ') || left.contains(' ') {
            return Err(corrupt(format!("the merge {:?} is not two tokens", m.text)));
        }
        Ok(m.text.clone())
    });
    Ok(Vocab {
        model: "gpt2".into(),
        pre: Some(name.into()),
        merges: Some(merges.collect::<Result<_, _>>()?),
        tokens,
        token_types: Some(token_types),
        normalizer: normalizer(&steps(&file.normalizer, "normalizers"))?,
        ignore_merges: (whole_words != file.model.ignore_merges).then_some(file.model.ignore_merges),
        ..Vocab::default()
    })
}

pub(super) fn sentencepiece(file: &File) -> Result<Vocab, Error> {
    check_affixes(file)?;
    let unknown = || Error::unsupported("normalizer", file.normalizer.to_string());
    let mut metaspace = None;
    let (mut prefix, mut escapes) = (false, false);
    for step in steps(&file.normalizer, "normalizers") {
        match kind(step) {
            "Prepend" if is(step, "prepend", "\u{2581}") => prefix = true,
            "Replace" if is(step, "content", "\u{2581}") && pattern_is(step, " ") => escapes = true,
            _ => return Err(unknown()),
        }
    }
    for step in steps(&file.pre_tokenizer, "pretokenizers") {
        let splits = step.get("split").and_then(Value::as_bool).unwrap_or(true);
        match kind(step) {
            // After the normalizer there are no spaces to split at.
            "Split" if escapes && pattern_is(step, " ") => {}
            "Metaspace" if !splits && !escapes && is(step, "replacement", "\u{2581}") => {
                escapes = true;
                (prefix, metaspace) = super::metaspace(step);
            }
            _ => return Err(Error::unsupported("pre-tokenizer", file.pre_tokenizer.to_string())),
        }
    }
    if !escapes {
        return Err(unknown());
    }
    let (tokens, token_types, ids) = tokens(file)?;
    let scores = scores(file, &token_types, &ids)?;
    Ok(Vocab {
        model: "llama".into(),
        pre: Some("default".into()),
        tokens,
        token_types: Some(token_types),
        scores: Some(scores),
        add_space_prefix: Some(prefix),
        metaspace,
        ..Vocab::default()
    })
}

/// Scores in the order in which merges make their tokens; what no merge makes comes last, added tokens have the
/// converter's −1000, byte tokens 0.
fn scores(file: &File, types: &[i32], ids: &super::Ids<'_>) -> Result<Vec<f32>, Error> {
    let mut scores: Vec<Option<f32>> = vec![None; types.len()];
    let mut both = String::new();
    let mut next = 0u32;
    for merge in &file.model.merges {
        let (left, right) = merge.parts();
        both.clear();
        both.push_str(left);
        both.push_str(right);
        let made = ids.get(both.as_str()).and_then(|&id| Some((id, scores.get_mut(id as usize)?)));
        let (id, score) =
            made.ok_or_else(|| corrupt(format!("the merge {:?} makes no token", merge.text)))?;
        let normal = types.get(id as usize) == Some(&(TokenType::Normal as i32));
        if score.is_none() && normal {
            *score = Some(-(next as f32));
            next += 1;
        }
    }
    let last = -(next as f32);
    let fill = |(score, &kind): (Option<f32>, &i32)| match (score, TokenType::from_i32(kind)) {
        (Some(score), _) => score,
        (None, Some(TokenType::Byte)) => 0.0,
        (None, Some(TokenType::Normal)) => last,
        (None, _) => -1000.0,
    };
    Ok(scores.into_iter().zip(types).map(fill).collect())
}
