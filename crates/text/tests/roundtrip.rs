//! Decoding gives back what was encoded, where a tokenizer can express every byte.

mod common;

use common::{bpe, rwkv, spm, unigram};
use proptest::prelude::*;

const PRES: [&str; 12] = [
    "gpt-2",
    "llama-bpe",
    "qwen2",
    "deepseek-llm",
    "deepseek-v3",
    "falcon",
    "tekken",
    "tiny_aya",
    "kimi-k2",
    "exaone-moe",
    "superbpe",
    "afmoe",
];

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
    fn unigram_gives_back_any_text(text in "\\PC*|[ a▁éb<>s/\n.]*") {
        // Spaces in a row come back only where they are not removed, which they are not here.
        let text = text.replace('▁', "_");
        for prefix in [true, false] {
            let tokenizer = unigram(prefix);
            let ids = tokenizer.encode(&text, false, false).unwrap();
            prop_assert_eq!(tokenizer.decode(&ids, true), text.as_str());
        }
    }

    #[test]
    fn rwkv_gives_back_any_text(text in any::<String>()) {
        let tokenizer = rwkv();
        let ids = tokenizer.encode(&text, true, false).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids, true), text.as_str());
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
