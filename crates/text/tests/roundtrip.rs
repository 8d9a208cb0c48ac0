//! Decoding gives back what was encoded, where a tokenizer can express every byte; and long texts take linear time.

use std::time::Instant;

use fonio_text::{Tokenizer, Vocab};
use proptest::prelude::*;

/// SentencePiece BPE with all bytes and a few merges.
fn spm(add_space_prefix: bool) -> Tokenizer {
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
fn bpe(pre: &str) -> Tokenizer {
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

const PRES: [&str; 8] =
    ["gpt-2", "llama-bpe", "qwen2", "deepseek-llm", "deepseek-v3", "falcon", "tekken", "tiny_aya"];

proptest! {
    #[test]
    fn spm_gives_back_any_text(text in "\\PC*|[ a▁éb<>s/\n.]*") {
        // ▁ is how a space is written: a text with it comes back with a space.
        let text = text.replace('▁', "_");
        for tokenizer in [spm(true), spm(false)] {
            for special in [false, true] {
                let ids = tokenizer.encode(&text, special, false).unwrap();
                prop_assert_eq!(tokenizer.decode(&ids, true), text.as_str());
            }
        }
    }

    #[test]
    fn bpe_gives_back_any_text(text in any::<String>(), pre in 0..PRES.len()) {
        let tokenizer = bpe(PRES[pre]);
        let ids = tokenizer.encode(&text, false, false).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids, false), text.as_str());
        let mut stream = tokenizer.decode_stream();
        let mut streamed = String::new();
        for id in ids {
            if let Some(chunk) = stream.push(id) {
                streamed.push_str(chunk);
            }
        }
        prop_assert_eq!(stream.finish(), None);
        prop_assert_eq!(streamed, text);
    }
}

/// Quadratic work would take four times as long for twice the text, and minutes in all. Times on a shared machine
/// scatter, so a ratio that looks bad is measured again.
#[test]
fn long_runs_take_linear_time() {
    let mut tokenizers: Vec<(&str, Tokenizer)> = PRES.iter().map(|&pre| (pre, bpe(pre))).collect();
    tokenizers.push(("spm", spm(true)));
    for (name, tokenizer) in tokenizers {
        for unit in ["a", " ", ".", "\n", "🦀", "é", "1", "A", "a ", " \n"] {
            let seconds = |bytes: usize| {
                let text = unit.repeat(bytes / unit.len());
                let start = Instant::now();
                assert!(!tokenizer.encode(&text, false, false).unwrap().is_empty());
                start.elapsed().as_secs_f64()
            };
            let ratio = || seconds(1 << 18) / seconds(1 << 17);
            let best = (0..8).map(|_| ratio()).find(|&r| r <= 2.5);
            assert!(best.is_some(), "{name}: {unit:?}");
        }
    }
}
