//! tiktoken's vocabularies: a line for each token, its bytes in base64 and its rank.
//!
//! The file has neither the pattern that splits text nor special tokens: they come from the settings beside it, or are
//! recognised by the number of ranks, which no two published vocabularies share.
//!
//! The format merges the neighbours whose union has the lowest rank; other programs take a list of merges. That list is
//! every way to put a token together from two others, by the rank of the token, then of its parts.
//! Source: `tiktoken`'s `load_tiktoken_bpe` and its published encodings; RFC 4648 (base64).

use std::collections::HashMap;

use crate::vocab::MAX_TOKENS;
use crate::{Error, TokenType, Vocab, bytes};

const WHAT: &str = "tiktoken file";

/// Real tokens have up to 128 bytes; all ways to cut one are looked up.
const LONGEST: usize = 1024;

/// What the number of ranks says about a vocabulary.
struct Known {
    ranks: usize,
    pre: &'static str,
    /// The special tokens with fixed places: the first one's id, and their names.
    specials: &'static [(u32, &'static str)],
    /// Further ones that only have numbers: first id, how many, what stands before and after the number.
    numbered: Option<(u32, u32, &'static str, &'static str)>,
    bos: Option<&'static str>,
    eos: &'static str,
}

static KNOWN: &[Known] = &[
    // Llama 3
    Known {
        ranks: 128_000,
        pre: "llama-bpe",
        specials: &[
            (128_000, "<|begin_of_text|>"),
            (128_001, "<|end_of_text|>"),
            (128_002, "<|reserved_special_token_0|>"),
            (128_003, "<|reserved_special_token_1|>"),
            (128_004, "<|finetune_right_pad_id|>"),
            (128_005, "<|reserved_special_token_2|>"),
            (128_006, "<|start_header_id|>"),
            (128_007, "<|end_header_id|>"),
            (128_008, "<|eom_id|>"),
            (128_009, "<|eot_id|>"),
            (128_010, "<|python_tag|>"),
        ],
        numbered: Some((128_011, 245, "<|reserved_special_token_", "|>")),
        bos: Some("<|begin_of_text|>"),
        eos: "<|end_of_text|>",
    },
    // Qwen (the first one)
    Known {
        ranks: 151_643,
        pre: "qwen2",
        specials: &[(151_643, "<|endoftext|>"), (151_644, "<|im_start|>"), (151_645, "<|im_end|>")],
        numbered: Some((151_646, 205, "<|extra_", "|>")),
        bos: None,
        eos: "<|endoftext|>",
    },
    // cl100k_base
    Known {
        ranks: 100_256,
        pre: "dbrx",
        specials: &[
            (100_257, "<|endoftext|>"),
            (100_258, "<|fim_prefix|>"),
            (100_259, "<|fim_middle|>"),
            (100_260, "<|fim_suffix|>"),
            (100_276, "<|endofprompt|>"),
        ],
        numbered: None,
        bos: None,
        eos: "<|endoftext|>",
    },
    // o200k_base
    Known {
        ranks: 199_998,
        pre: "gpt-4o",
        specials: &[(199_999, "<|endoftext|>"), (200_018, "<|endofprompt|>")],
        numbered: None,
        bos: None,
        eos: "<|endoftext|>",
    },
    // Kimi K2: its special tokens are in tokenizer_config.json
    Known {
        ranks: 163_584,
        pre: "kimi-k2",
        specials: &[(163_584, "[BOS]"), (163_585, "[EOS]")],
        numbered: None,
        bos: Some("[BOS]"),
        eos: "[EOS]",
    },
    // GLM-4: likewise
    Known {
        ranks: 151_329,
        pre: "chatglm-bpe",
        specials: &[(151_329, "<|endoftext|>")],
        numbered: None,
        bos: None,
        eos: "<|endoftext|>",
    },
    // r50k_base, p50k_base (which has a rank for each of its tokens but one): GPT-2's and Codex'
    Known {
        ranks: 50_256,
        pre: "gpt-2",
        specials: &[(50_256, "<|endoftext|>")],
        numbered: None,
        bos: None,
        eos: "<|endoftext|>",
    },
    Known {
        ranks: 50_281,
        pre: "gpt-2",
        specials: &[(50_256, "<|endoftext|>")],
        numbered: None,
        bos: None,
        eos: "<|endoftext|>",
    },
];

/// The pattern of a family whose vocabularies differ in size, by the class of its tokenizer.
const CLASSES: &[(&str, &str)] = &[
    ("QWenTokenizer", "qwen2"),
    ("ChatGLM4Tokenizer", "chatglm-bpe"),
    ("TikTokenTokenizer", "kimi-k2"),
    ("HYTokenizer", "hunyuan"),
    ("DbrxTokenizer", "dbrx"),
    ("TiktokenTokenizerWrapper", "dbrx"),
    ("XverseTokenizer", "gpt-4o"),
];

/// Whether a file is one of these and no protobuf: its first line is base64, a space and a number.
pub(crate) fn is_tiktoken(bytes: &[u8]) -> bool {
    let line = bytes.split(|&b| b == b'\n').next().unwrap_or(&[]);
    line.len() <= 4096 && std::str::from_utf8(line).is_ok_and(|line| entry(line.trim_end()).is_some())
}

fn entry(line: &str) -> Option<(Vec<u8>, usize)> {
    let (token, rank) = line.split_once(' ')?;
    Some((base64(token)?, rank.parse().ok()?))
}

/// Decodes base64 with its padding.
pub(crate) fn base64(text: &str) -> Option<Vec<u8>> {
    let (groups, rest) = text.as_bytes().as_chunks::<4>();
    if groups.is_empty() || !rest.is_empty() {
        return None;
    }
    let mut out = Vec::with_capacity(groups.len() * 3);
    for (i, group) in groups.iter().enumerate() {
        let padding = group.iter().rev().take_while(|&&b| b == b'=').count();
        if padding > 2 || (padding > 0 && i + 1 < groups.len()) {
            return None;
        }
        let mut bits = 0u32;
        for &b in group.iter().take(4 - padding) {
            bits = bits << 6 | digit(b)?;
        }
        bits <<= 6 * padding;
        let [_, a, b, c] = bits.to_be_bytes();
        out.extend([a, b, c].iter().take(3 - padding));
    }
    Some(out)
}

fn digit(b: u8) -> Option<u32> {
    Some(u32::from(match b {
        b'A'..=b'Z' => b - b'A',
        b'a'..=b'z' => b - b'a' + 26,
        b'0'..=b'9' => b - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    }))
}

/// The tokens in the order of their ranks, which are their ids.
fn ranks(file: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
    let text = std::str::from_utf8(file).map_err(|_| Error::corrupt(WHAT, "it is not UTF-8"))?;
    let mut tokens: Vec<Vec<u8>> = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let bad = |why: &str| Error::corrupt(WHAT, format!("line {}: {why}", number + 1));
        let (token, rank) = entry(line.trim()).ok_or_else(|| bad("it is not base64 and a number"))?;
        if token.is_empty() || token.len() > LONGEST {
            return Err(bad("the token is empty, or longer than any known"));
        }
        // p50k has a hole where its special token is.
        if rank < tokens.len() || rank > tokens.len() + 4096 || rank >= MAX_TOKENS {
            return Err(bad("its rank is out of order"));
        }
        tokens.resize(rank, Vec::new());
        tokens.push(token);
    }
    Ok(tokens)
}

/// Every pair of tokens that makes a token, in the order in which they merge.
fn merges(spelled: &[String]) -> Vec<String> {
    let ids: HashMap<&str, u32> = (0u32..).zip(spelled).map(|(id, t)| (t.as_str(), id)).collect();
    let mut merges = Vec::with_capacity(spelled.len() * 2);
    let mut pairs = Vec::new();
    for token in spelled {
        pairs.clear();
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(&l), Some(&r)) = (ids.get(left), ids.get(right)) {
                pairs.push((l, r, at));
            }
        }
        pairs.sort_unstable();
        merges.extend(pairs.iter().filter_map(|&(_, _, at)| {
            let (left, right) = token.split_at_checked(at)?;
            Some(format!("{left} {right}"))
        }));
    }
    merges
}

/// Reads a file. `class` is the tokenizer's, if the settings name one; `pattern` its own regular expression, already
/// recognised.
pub(crate) fn parse(file: &[u8], class: Option<&str>) -> Result<Vocab, Error> {
    let ranks = ranks(file)?;
    let count = ranks.len();
    let known = KNOWN.iter().find(|known| known.ranks == count);
    let by_class = CLASSES.iter().find(|(name, _)| Some(*name) == class).map(|(_, pre)| *pre);
    let pre = known.map(|known| known.pre).or(by_class).ok_or_else(|| {
        let class = class.unwrap_or("without a class");
        let name = format!(
            "{class} of {count} ranks: the file does not say how text is split; put the model's tokenizer.json beside it"
        );
        Error::unsupported("tiktoken vocabulary", name)
    })?;
    let hole = |(id, token): (usize, &Vec<u8>)| match token.is_empty() {
        true => format!("[PAD{id}]"),
        false => token.iter().map(|&b| bytes::to_char(b)).collect(),
    };
    let tokens: Vec<String> = ranks.iter().enumerate().map(hole).collect();
    let kinds = ranks.iter().map(|t| if t.is_empty() { TokenType::Unused } else { TokenType::Normal } as i32);
    let mut vocab = Vocab {
        model: "gpt2".into(),
        pre: Some(pre.into()),
        merges: Some(merges(&tokens)),
        token_types: Some(kinds.collect()),
        tokens,
        add_bos: Some(known.is_some_and(|known| known.bos.is_some() && known.pre == "llama-bpe")),
        ..Vocab::default()
    };
    if let Some(known) = known {
        add_specials(&mut vocab, known);
    }
    Ok(vocab)
}

fn add_specials(vocab: &mut Vocab, known: &Known) {
    let numbered = known.numbered.into_iter().flat_map(|(first, count, before, after)| {
        // Llama's numbers go on where its first, named tokens left off.
        let offset = if before.contains("reserved") { 3 } else { 0 };
        (0..count).map(move |i| (first + i, format!("{before}{}{after}", i + offset)))
    });
    let named = known.specials.iter().map(|&(id, name)| (id, name.to_owned()));
    for (id, name) in named.chain(numbered) {
        vocab.pad_to(id as usize + 1);
        if let Some(token) = vocab.tokens.get_mut(id as usize) {
            *token = name;
        }
        if let Some(kind) = vocab.token_types.as_mut().and_then(|t| t.get_mut(id as usize)) {
            *kind = TokenType::Control as i32;
        }
    }
    let find = |name: &str| known.specials.iter().find(|s| s.1 == name).map(|s| s.0);
    vocab.bos = known.bos.and_then(find);
    vocab.eos = find(known.eos);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_as_the_standard_says() {
        for (text, bytes) in
            [("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYg==", "foob"), ("+/+/", "\u{0}")]
        {
            let decoded = base64(text).unwrap();
            assert!(decoded == bytes.as_bytes() || text == "+/+/" && decoded == [0xfb, 0xff, 0xbf], "{text}");
        }
        for bad in ["", "Zg", "Zg=", "Z===", "Zg==Zg==", "Z!==", "===="] {
            assert_eq!(base64(bad), None, "{bad}");
        }
    }

    #[test]
    fn detected_and_refused() {
        assert!(is_tiktoken(b"IQ== 0\nIg== 1\n") && is_tiktoken(b"IQ== 0\r\n"));
        assert!(
            !is_tiktoken(&crate::sentencepiece::tests::sample())
                && !is_tiktoken(b"")
                && !is_tiktoken(b"IQ==\n")
        );
        for bad in ["IQ== 1\nIg== 0\n", "IQ== 99999999\n", "IQ== x\n", "IQ== 0\nIQ\n"] {
            assert!(matches!(parse(bad.as_bytes(), None), Err(Error::Corrupt { .. })), "{bad}");
        }
        let unknown = parse(b"IQ== 0\n", Some("MyTokenizer"));
        assert!(matches!(unknown, Err(Error::Unsupported { name, .. }) if name.contains("MyTokenizer")));
    }

    #[test]
    fn merges_are_all_ways_by_rank() {
        let spelled = ["a", "b", "ab", "ba", "aba"].map(str::to_owned);
        assert_eq!(merges(&spelled), ["a b", "b a", "a ba", "ab a"]);
    }
}
