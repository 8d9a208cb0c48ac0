//! Small tokenizers of every kind.

#![allow(dead_code, reason = "every test file takes what it needs")]

use fonio_text::{Tokenizer, Vocab};

/// SentencePiece BPE with all bytes and a few merges.
pub fn spm(add_space_prefix: bool) -> Tokenizer {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
    tokens.extend((0..=255u8).map(|b| format!("<0x{b:02X}>")));
    let mut types = vec![2, 3, 3];
    types.extend([6; 256]);
    for text in
        ["▁▁", "▁a", "ab", "▁ab", "aa", "aaaa", "aaaaaaaa", "éé", "..", "▁", "a", "b", "é", ".", "日", "🦀"]
    {
        tokens.push(text.into());
        types.push(1);
    }
    let scores = (0..tokens.len()).map(|i| -(i as f32)).collect();
    let vocab = Vocab {
        model: "llama".into(),
        tokens,
        scores: Some(scores),
        token_types: Some(types),
        add_space_prefix: Some(add_space_prefix),
        ..Vocab::default()
    };
    Tokenizer::from_vocab(vocab).unwrap()
}

/// Byte-level BPE: every byte and a few merges.
pub fn bpe(pre: &str) -> Tokenizer {
    let printable = |b: u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 0x100;
    let mut tokens: Vec<String> = Vec::new();
    for b in 0..=255u8 {
        let c = if printable(b) { u32::from(b) } else { next };
        next += u32::from(!printable(b));
        tokens.push(char::from_u32(c).unwrap().to_string());
    }
    let merges = ["a a", "aa aa", "aaaa aaaa", "Ġ a", "Ġ Ġ", "ĠĠ ĠĠ", "Ã ©", ". .", "Ċ Ċ", "ð Ł", "ðŁ ¦"];
    tokens.extend(merges.iter().map(|m| m.replace(' ', "")));
    let vocab = Vocab {
        model: "gpt2".into(),
        pre: Some(pre.into()),
        tokens,
        merges: Some(merges.map(String::from).to_vec()),
        ..Vocab::default()
    };
    Tokenizer::from_vocab(vocab).unwrap()
}

/// Unigram with all bytes and a few pieces.
pub fn unigram(add_space_prefix: bool) -> Tokenizer {
    let mut vocab = spm(add_space_prefix).vocab().clone();
    vocab.model = "t5".into();
    Tokenizer::from_vocab(vocab).unwrap()
}

/// WordPiece with words of one and two letters.
pub fn wordpiece() -> Tokenizer {
    let mut tokens: Vec<String> = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"].map(String::from).to_vec();
    let mut types = vec![3; 4];
    for piece in ["▁a", "a", "aa", "▁b", "b", "ab", "▁.", "▁é", "▁🦀", "🦀"] {
        tokens.push(piece.into());
        types.push(1);
    }
    let [unk, cls, sep] = [1, 2, 3].map(Some);
    let vocab =
        Vocab { model: "bert".into(), tokens, token_types: Some(types), unk, cls, sep, ..Vocab::default() };
    Tokenizer::from_vocab(vocab).unwrap()
}

/// RWKV with all bytes and a few longer tokens.
pub fn rwkv() -> Tokenizer {
    let mut tokens = vec!["<s>".to_owned()];
    let escape = |b: u8| match b {
        b'\\' => "\\\\".to_owned(),
        0x20..=0x7e => char::from(b).to_string(),
        _ => format!("\\x{b:02x}"),
    };
    tokens.extend((0..=255).map(escape));
    tokens.extend(["aa", "aaaa", "  ", "\\n\\n", "..", "\\xf0\\x9f", "\\xa9a", " a"].map(String::from));
    let mut types = vec![1; tokens.len()];
    types[0] = 3;
    let vocab = Vocab { model: "rwkv".into(), tokens, token_types: Some(types), ..Vocab::default() };
    Tokenizer::from_vocab(vocab).unwrap()
}
