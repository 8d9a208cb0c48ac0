//! Bodies of the fuzz targets, which tests replay. No part of the public interface.

use crate::{Error, Tokenizer, Vocab, json, legacy, rwkv, sentencepiece, tiktoken};

const TEXTS: [&str; 5] = [
    "ab abc  \n é🦀",
    "<s>x</s> [CLS] <unk>",
    "\u{2581}\u{0}",
    "aaaaaaaaaaaaaaaaaaaaaaaa",
    "你好 12345 e\u{301}",
];

/// Reads a vocabulary, of the kind that the first byte says, and tokenizes texts with it, its own bytes among them.
pub fn tokenizer(bytes: &[u8]) -> Result<Tokenizer, Error> {
    let (&kind, file) = bytes.split_first().unwrap_or((&0, &[]));
    let vocab = match kind {
        b'j' => json::parse(file)?.vocab,
        b's' => sentencepiece::parse(file)?,
        b't' => tiktoken::parse(file, Some("QWenTokenizer"))?,
        b'r' => rwkv::parse(file)?,
        b'w' => legacy::wordpiece(file, None, &serde_json::Value::Null)?,
        b'c' => charsmap(file),
        b'g' => {
            let cut = file.iter().position(|&b| b == b'\n').unwrap_or(file.len());
            let (vocab, merges) = file.split_at_checked(cut).unwrap_or((file, &[]));
            legacy::byte_level(vocab, merges, Some("GPT2Tokenizer"))?
        }
        _ => return Err(Error::unsupported("kind of vocabulary", char::from(kind).to_string())),
    };
    let tokenizer = Tokenizer::from_vocab(vocab)?;
    let own = String::from_utf8_lossy(file.get(..file.len().min(4096)).unwrap_or(&[]));
    for text in TEXTS.into_iter().chain([&*own]) {
        exercise(&tokenizer, text);
    }
    Ok(tokenizer)
}

/// A unigram model that normalizes by this table.
fn charsmap(table: &[u8]) -> Vocab {
    Vocab {
        model: "t5".into(),
        tokens: ["<unk>", "a", "\u{2581}", "b", "ab"].map(str::to_owned).to_vec(),
        scores: Some(vec![0.0, -1.0, -2.0, -3.0, -1.5]),
        token_types: Some(vec![2, 1, 1, 1, 1]),
        unk: Some(0),
        eos: Some(0),
        precompiled_charsmap: Some(table.to_vec()),
        ..Vocab::default()
    }
}

/// Uses a tokenizer in every way; whatever it holds, this ends and does not panic.
fn exercise(tokenizer: &Tokenizer, text: &str) {
    for parse in [false, true] {
        let Ok(ids) = tokenizer.encode(text, true, parse) else { continue };
        assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
        tokenizer.decode(&ids, parse);
        let mut stream = tokenizer.decode_stream();
        for id in ids {
            stream.push(id);
        }
        stream.finish();
    }
}
