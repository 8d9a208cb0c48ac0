//! Readers and tokenizers under broken input: typed errors, no panic, no allocation or time beyond what the input
//! justifies. The bodies take bytes, so a fuzz target can call the same.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use fonio_text::{Tokenizer, Vocab};

/// A folder of its own with these files; gone afterwards.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("fonio-text-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn put(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.0.join(name), bytes).unwrap();
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const TEXTS: [&str; 4] = ["ab abc  \n é🦀", "<s>x</s>", "\u{2581}\u{0}", "aaaaaaaaaaaaaaaaaaaaaaaa"];

/// Uses a tokenizer in every way; whatever it holds, this ends and does not panic.
fn exercise(tokenizer: &Tokenizer) {
    for text in TEXTS {
        for parse in [false, true] {
            if let Ok(ids) = tokenizer.encode(text, true, parse) {
                assert!(ids.len() <= 8 * text.len() + 8);
                tokenizer.decode(&ids, parse);
                let mut stream = tokenizer.decode_stream();
                for id in ids {
                    stream.push(id);
                }
                stream.finish();
            }
        }
    }
    for id in [0, 1, 5, u32::MAX] {
        let _ = (tokenizer.token_bytes(id), tokenizer.is_control(id), tokenizer.is_end_of_generation(id));
    }
    let vocab = tokenizer.to_vocab().unwrap();
    assert_eq!(vocab.tokens.len(), tokenizer.vocab_size());
}

fn load(folder: &Folder) -> bool {
    let start = Instant::now();
    let made = Tokenizer::from_dir(&folder.0);
    if let Ok(tokenizer) = &made {
        exercise(tokenizer);
    }
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    made.is_ok()
}

fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// A few random edits: bytes changed, removed, doubled, or replaced by a number from the edge.
fn mutate(file: &[u8], state: &mut u64) -> Vec<u8> {
    let mut out = file.to_vec();
    for _ in 0..1 + random(state) % 4 {
        if out.is_empty() {
            break;
        }
        let at = (random(state) % out.len() as u64) as usize;
        let end = (at + 1 + (random(state) % 16) as usize).min(out.len());
        let edges: [&[u8]; 12] = [
            b"-1",
            b"4294967295",
            b"1e400",
            b"null",
            b"[]",
            b"{}",
            b"\"\"",
            b"true",
            b"99999999999999999999",
            b"\\ud800",
            &[0xff; 9],
            &[0x80; 11],
        ];
        match random(state) % 5 {
            0 => out[at] = random(state) as u8,
            1 => drop(out.drain(at..end)),
            2 => {
                let piece = out[at..end].to_vec();
                out.splice(at..at, piece);
            }
            3 => drop(out.splice(at..end, edges[(random(state) % 12) as usize].iter().copied())),
            _ => out.truncate(at),
        }
    }
    out
}

fn byte_level_json() -> String {
    let letters = ["a", "b", "c", "ab", "abc", "\u{120}", "\u{10a}", "\u{120}ab"];
    let vocab: Vec<String> = letters.iter().enumerate().map(|(i, t)| format!("{t:?}:{i}")).collect();
    format!(
        r#"{{"version":"1.0","added_tokens":[{{"id":8,"content":"<s>","special":true,"lstrip":true,"normalized":false}},{{"id":9,"content":"<x>"}}],
        "normalizer":{{"type":"Sequence","normalizers":[{{"type":"NFC"}}]}},
        "pre_tokenizer":{{"type":"Sequence","pretokenizers":[{{"type":"Digits","individual_digits":true}},{{"type":"ByteLevel","add_prefix_space":false,"use_regex":true}}]}},
        "post_processor":{{"type":"TemplateProcessing","single":[{{"SpecialToken":{{"id":"<s>","type_id":0}}}},{{"Sequence":{{"id":"A","type_id":0}}}}]}},
        "model":{{"type":"BPE","unk_token":"<x>","vocab":{{{}}},"merges":["a b",["ab","c"],"Ġ ab"]}}}}"#,
        vocab.join(",")
    )
}

fn sentencepiece_json() -> String {
    let mut vocab: Vec<String> =
        ["<unk>", "\u{2581}", "a", "b", "ab", "\u{2581}ab"].map(|t| format!("{t:?}")).to_vec();
    vocab.extend((0..=255u8).map(|b| format!("\"<0x{b:02X}>\"")));
    let vocab: Vec<String> = vocab.iter().enumerate().map(|(i, t)| format!("{t}:{i}")).collect();
    format!(
        r#"{{"added_tokens":[{{"id":0,"content":"<unk>","special":true}},{{"id":262,"content":"<s>","special":true}}],
        "normalizer":{{"type":"Sequence","normalizers":[{{"type":"Prepend","prepend":"▁"}},{{"type":"Replace","pattern":{{"String":" "}},"content":"▁"}}]}},
        "pre_tokenizer":null,"post_processor":null,"decoder":null,
        "model":{{"type":"BPE","unk_token":"<unk>","byte_fallback":true,"vocab":{{{}}},"merges":["a b","▁ ab"]}}}}"#,
        vocab.join(",")
    )
}

/// A SentencePiece model file with BPE pieces.
fn sentencepiece_model() -> Vec<u8> {
    let field = |out: &mut Vec<u8>, number: u8, bytes: &[u8]| {
        out.extend([number << 3 | 2, bytes.len() as u8]);
        out.extend_from_slice(bytes);
    };
    let mut file = Vec::new();
    for (text, score, kind) in [
        ("<unk>", 0f32, 2u8),
        ("<s>", 0., 3),
        ("</s>", 0., 3),
        ("ab", -0.5, 1),
        ("a", -1., 1),
        ("b", -2., 1),
        ("▁", -3., 1),
    ] {
        let mut piece = Vec::new();
        field(&mut piece, 1, text.as_bytes());
        piece.push(2 << 3 | 5);
        piece.extend(score.to_le_bytes());
        piece.extend([3 << 3, kind]);
        field(&mut file, 1, &piece);
    }
    field(&mut file, 2, &[3 << 3, 2]);
    field(&mut file, 3, &[3 << 3, 1, 4 << 3, 0]);
    file
}

const CONFIG: &str = r#"{"bos_token":"<s>","eos_token":{"content":"</s>"},"add_bos_token":true,"chat_template":"{{ x }}",
    "added_tokens_decoder":{"7":{"content":"<extra>","special":true},"8":{"content":"▁▁"}}}"#;

/// Real files load; thousands of edits of them load or are refused.
#[test]
fn mutated_files() {
    let cases = [
        ("tokenizer.json", byte_level_json().into_bytes()),
        ("tokenizer.json", sentencepiece_json().into_bytes()),
        ("tokenizer.model", sentencepiece_model()),
    ];
    let mut state = 0x9e37_79b9_7f4a_7c15;
    for (i, (name, file)) in cases.iter().enumerate() {
        let folder = Folder::new(&format!("mutated{i}"));
        folder.put(name, file);
        folder.put("tokenizer_config.json", CONFIG.as_bytes());
        Tokenizer::from_dir(&folder.0).unwrap();
        assert!(load(&folder));
        let mut loaded = 0;
        for _ in 0..1500 {
            folder.put(name, &mutate(file, &mut state));
            loaded += u32::from(load(&folder));
        }
        assert!(loaded > 0);
        folder.put(name, file);
        for _ in 0..500 {
            folder.put("tokenizer_config.json", &mutate(CONFIG.as_bytes(), &mut state));
            load(&folder);
        }
    }
}

#[test]
fn files_that_ask_for_too_much() {
    let folder = Folder::new("much");
    let deep = "[".repeat(100_000);
    let model = |vocab: &str, merges: &str| {
        format!(
            r#"{{"pre_tokenizer":{{"type":"ByteLevel","add_prefix_space":false}},"model":{{"type":"BPE","vocab":{vocab},"merges":{merges}}}}}"#
        )
    };
    for file in [
        String::new(),
        "{}".to_owned(),
        "[]".to_owned(),
        deep.clone(),
        format!(r#"{{"model":{deep}"#),
        format!(r#"{{"normalizer":{}"#, r#"{"type":"Sequence","normalizers":["#.repeat(50_000)),
        model(r#"{"a":4294967295}"#, "[]"),
        model(r#"{"a":4294967296}"#, "[]"),
        model(r#"{"a":-1}"#, "[]"),
        model(r#"{"a":16777216}"#, "[]"),
        model("{}", "[]"),
        model(r#"{"a":0}"#, r#"["a"]"#),
        model(r#"{"a":0}"#, r#"[["a","b","c"]]"#),
        model(r#"{"a":0}"#, r#"[["a b","c"]]"#),
        model(r#"[["a",1.0]]"#, "[]"),
        r#"{"model":{"type":"Unigram","vocab":[["a",0]]}}"#.to_owned(),
        r#"{"model":{"type":"BPE","vocab":{"a":0}},"pre_tokenizer":{"type":"Magic"}}"#.to_owned(),
        r#"{"model":{"type":"BPE","vocab":{"a":0}},"normalizer":{"type":"Magic"},"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false}}"#
            .to_owned(),
    ] {
        folder.put("tokenizer.json", file.as_bytes());
        assert!(!load(&folder), "{:.80}", file);
    }
}

/// Vocabularies from anywhere: random texts, types, merges and ids.
#[test]
fn random_vocabularies() {
    let mut state = 42;
    let pieces = [
        "a",
        "b",
        "ab",
        "",
        " ",
        "▁",
        "<0x41>",
        "<0xZZ>",
        "<s>",
        "é",
        "\u{10ffff}",
        "a b",
        "Ġ",
        "aaaaaaaaaaaa",
    ];
    let models = ["llama", "gpt2", "gemma4", "bert", "t5", "rwkv", "x"];
    for _ in 0..4000 {
        let mut pick = |n: usize| (random(&mut state) % n as u64) as usize;
        let n = pick(20);
        let vocab = Vocab {
            model: models[pick(7)].into(),
            pre: [None, Some("gpt-2".into()), Some("llama-bpe".into()), Some("?".into())][pick(4)].clone(),
            tokens: (0..n).map(|_| pieces[pick(14)].to_owned()).collect(),
            scores: (pick(2) == 0)
                .then(|| (0..n).map(|_| [0.0, -1.0, f32::INFINITY, -0.0][pick(4)]).collect()),
            token_types: (pick(2) == 0).then(|| (0..n).map(|_| pick(9) as i32 - 1).collect()),
            merges: (pick(3) > 0).then(|| {
                (0..pick(9)).map(|_| format!("{} {}", pieces[pick(14)], pieces[pick(14)])).collect()
            }),
            bos: (pick(2) == 0).then(|| pick(21) as u32),
            unk: (pick(2) == 0).then(|| pick(21) as u32),
            extra_eos: vec![pick(30) as u32],
            add_bos: [None, Some(true), Some(false)][pick(3)],
            lstrip: vec![pick(20) as u32],
            rstrip: vec![pick(20) as u32],
            single_word: vec![pick(20) as u32],
            normalizer: [None, Some(r#"{"type":"NFC"}"#.into()), Some("[".into())][pick(3)].clone(),
            metaspace: [None, Some("first".into()), Some("always".into())][pick(3)].clone(),
            add_space_prefix: [None, Some(true), Some(false)][pick(3)],
            remove_extra_whitespaces: [None, Some(true)][pick(2)],
            ..Vocab::default()
        };
        if let Ok(tokenizer) = Tokenizer::from_vocab(vocab) {
            exercise(&tokenizer);
        }
    }
}
