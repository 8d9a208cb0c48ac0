//! The files of tokenizers that are older than `tokenizer.json`: GPT-2's `vocab.json` with `merges.txt`, and BERT's
//! `vocab.txt`. They don't say how text is split; the tokenizer's class does.
//!
//! Source: the slow tokenizers of `transformers`.

use serde_json::Value;

use crate::vocab::MAX_TOKENS;
use crate::{Error, TokenType, Vocab, json};

/// How the classes with these files split text. Those that also put tokens around it (RoBERTa's) are not among them.
const CLASSES: &[(&str, &str)] =
    &[("GPT2Tokenizer", "gpt-2"), ("CodeGenTokenizer", "gpt-2"), ("Qwen2Tokenizer", "qwen2")];

/// `GPT2TokenizerFast` and `GPT2Tokenizer` are one.
fn slow(class: Option<&str>) -> Option<&str> {
    class.map(|class| class.strip_suffix("Fast").unwrap_or(class))
}

/// Reads `vocab.json` and `merges.txt`.
pub(crate) fn byte_level(vocab: &[u8], merges: &[u8], class: Option<&str>) -> Result<Vocab, Error> {
    let class = slow(class);
    let pre = CLASSES.iter().find(|(name, _)| Some(*name) == class).map(|(_, pre)| *pre).ok_or_else(|| {
        let class = class.unwrap_or("none");
        let advice = "vocab.json and merges.txt do not say how text is split; save the tokenizer as tokenizer.json";
        Error::unsupported("tokenizer_class", format!("{class}: {advice}"))
    })?;
    let ids: serde_json::Map<String, Value> =
        serde_json::from_slice(vocab).map_err(|e| Error::corrupt("vocab.json", e.to_string()))?;
    let mut entries = Vec::with_capacity(ids.len());
    for (text, id) in ids {
        let id = id.as_u64().and_then(|id| usize::try_from(id).ok());
        entries.push((id.ok_or_else(|| Error::corrupt("vocab.json", format!("the id of {text:?}")))?, text));
    }
    let size = entries.iter().map(|e| e.0.saturating_add(1)).max().unwrap_or(0);
    if size > (entries.len() * 2 + 4096).min(MAX_TOKENS) {
        return Err(Error::corrupt(
            "vocab.json",
            format!("an id of {} among {} tokens", size - 1, entries.len()),
        ));
    }
    let mut tokens: Vec<String> = (0..size).map(|id| format!("[PAD{id}]")).collect();
    let mut types = vec![TokenType::Unused as i32; size];
    for (id, text) in entries {
        if let (Some(to), Some(of)) = (tokens.get_mut(id), types.get_mut(id)) {
            (*to, *of) = (text, TokenType::Normal as i32);
        }
    }
    Ok(Vocab {
        model: "gpt2".into(),
        pre: Some(pre.into()),
        tokens,
        token_types: Some(types),
        merges: Some(merge_lines(merges)?),
        normalizer: (class == Some("Qwen2Tokenizer")).then(|| r#"{"type":"NFC"}"#.to_owned()),
        add_bos: Some(false),
        ..Vocab::default()
    })
}

fn merge_lines(bytes: &[u8]) -> Result<Vec<String>, Error> {
    let corrupt = |why: String| Error::corrupt("merges.txt", why);
    let text = std::str::from_utf8(bytes).map_err(|_| corrupt("it is not UTF-8".into()))?;
    let mut merges = Vec::new();
    for (number, line) in text.split('\n').enumerate() {
        let line = line.strip_suffix('\r').unwrap_or(line);
        if line.is_empty() || (number == 0 && line.starts_with("#version")) {
            continue;
        }
        match line.split_once(' ') {
            Some((left, right)) if !left.is_empty() && !right.is_empty() && !right.contains(' ') => {
                merges.push(line.to_owned());
            }
            _ => return Err(corrupt(format!("line {} is not two tokens", number + 1))),
        }
    }
    Ok(merges)
}

/// Reads `vocab.txt`: a piece on each line.
pub(crate) fn wordpiece(bytes: &[u8], class: Option<&str>, config: &Value) -> Result<Vocab, Error> {
    const CLASSES: [&str; 6] = [
        "BertTokenizer",
        "DistilBertTokenizer",
        "ElectraTokenizer",
        "MobileBertTokenizer",
        "LayoutLMTokenizer",
        "MPNetTokenizer",
    ];
    let class = slow(class);
    if class.is_some_and(|class| !CLASSES.contains(&class)) {
        return Err(Error::unsupported("tokenizer_class with vocab.txt", class.unwrap_or("")));
    }
    let flag = |key: &str| config.get(key).and_then(Value::as_bool);
    if flag("tokenize_chinese_chars") == Some(false) || flag("do_basic_tokenize") == Some(false) {
        return Err(Error::unsupported(
            "option of BertTokenizer",
            "tokenize_chinese_chars or do_basic_tokenize: false",
        ));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| Error::corrupt("vocab.txt", "it is not UTF-8"))?;
    let tokens: Vec<String> =
        text.split_terminator('\n').map(|l| l.strip_suffix('\r').unwrap_or(l).to_owned()).collect();
    let special = |token: &String| match token.as_str() {
        "[UNK]" | "[CLS]" | "[SEP]" | "[PAD]" | "[MASK]" => TokenType::Control as i32,
        _ => TokenType::Normal as i32,
    };
    let types = tokens.iter().map(special).collect();
    let find = |name: &str| tokens.iter().position(|t| t == name).map(|id| id as u32);
    let [unk, cls, sep, pad, mask] = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"].map(find);
    let (Some(_), Some(_), Some(_)) = (unk, cls, sep) else {
        return Err(Error::corrupt("vocab.txt", "it lacks one of [UNK], [CLS], [SEP]"));
    };
    let lowercase = flag("do_lower_case").unwrap_or(true);
    let mut vocab =
        json::wordpiece::vocab(tokens, types, lowercase, flag("strip_accents").unwrap_or(lowercase));
    (vocab.unk, vocab.cls, vocab.sep, vocab.pad, vocab.mask) = (unk, cls, sep, pad, mask);
    (vocab.bos, vocab.eos) = (cls, sep);
    Ok(vocab)
}

/// T5's file lacks the tokens for blanks, which its class appends, the first one last.
pub(crate) fn add_t5_extra_ids(vocab: &mut Vocab, class: Option<&str>, count: Option<&Value>) {
    if slow(class) != Some("T5Tokenizer") || vocab.tokens.iter().any(|t| t == "<extra_id_0>") {
        return;
    }
    let count = count.and_then(Value::as_u64).unwrap_or(100).min(4096) as usize;
    let first = vocab.tokens.len();
    vocab.pad_to(first + count);
    for i in 0..count.min(vocab.tokens.len() - first) {
        if let Some(token) = vocab.tokens.get_mut(first + i) {
            *token = format!("<extra_id_{}>", count - 1 - i);
        }
        if let Some(kind) = vocab.token_types.as_mut().and_then(|types| types.get_mut(first + i)) {
            *kind = TokenType::Control as i32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_decide() {
        let read = |class| byte_level(br#"{"a":0,"b":1,"ab":2}"#, b"#version: 0.2\na b\n", class);
        let pre = |class| read(Some(class)).unwrap().pre.unwrap();
        assert_eq!(
            (&*pre("GPT2TokenizerFast"), &*pre("CodeGenTokenizer"), &*pre("Qwen2Tokenizer")),
            ("gpt-2", "gpt-2", "qwen2")
        );
        assert!(
            matches!(read(Some("Odd")), Err(Error::Unsupported { name, .. }) if name.contains("Odd") && name.contains("tokenizer.json"))
        );
        assert!(matches!(read(None), Err(Error::Unsupported { .. })));
        for (vocab, merges) in [
            ("[]", ""),
            (r#"{"a":-1}"#, ""),
            (r#"{"a":99999999}"#, ""),
            (r#"{"a":0}"#, "a"),
            (r#"{"a":0}"#, "a b c"),
        ] {
            let read = byte_level(vocab.as_bytes(), merges.as_bytes(), Some("GPT2Tokenizer"));
            assert!(matches!(read, Err(Error::Corrupt { .. })), "{vocab} {merges}");
        }
    }

    #[test]
    fn blanks_of_t5_count_backwards() {
        let tokens = vec!["<pad>".to_owned()];
        let mut vocab =
            Vocab { tokens, token_types: Some(vec![3]), scores: Some(vec![0.0]), ..Vocab::default() };
        add_t5_extra_ids(&mut vocab, Some("LlamaTokenizer"), None);
        assert_eq!(vocab.tokens.len(), 1);
        add_t5_extra_ids(&mut vocab, Some("T5TokenizerFast"), Some(&Value::from(2)));
        assert_eq!(vocab.tokens, ["<pad>", "<extra_id_1>", "<extra_id_0>"]);
        assert_eq!((vocab.token_types, vocab.scores.map(|s| s.len())), (Some(vec![3, 3, 3]), Some(3)));
    }

    #[test]
    fn bert_files_need_their_marks() {
        let vocab = wordpiece(b"[UNK]\n[CLS]\n[SEP]\na\n##b\n", Some("BertTokenizer"), &Value::Null).unwrap();
        assert_eq!(vocab.tokens, ["[UNK]", "[CLS]", "[SEP]", "\u{2581}a", "b"]);
        assert!(matches!(wordpiece(b"a\n", None, &Value::Null), Err(Error::Corrupt { .. })));
        assert!(matches!(
            wordpiece(b"", Some("CTRLTokenizer"), &Value::Null),
            Err(Error::Unsupported { .. })
        ));
    }
}
