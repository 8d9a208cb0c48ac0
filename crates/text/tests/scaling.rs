//! Eight times the text takes about eight times as long, whatever it is made of, for every kind of model and every way to split.
//!
//! Quadratic work would take four times as long, and minutes in all. Times are those that the thread spent on a CPU, the
//! smallest of several: a busy machine only adds to them.

mod common;

use std::time::{Duration, Instant};

use common::{bpe, rwkv, spm, unigram, wordpiece};
use fonio_text::{Tokenizer, Vocab};

/// What the thread has spent on a CPU, where the system says so, or the time of day.
fn now(start: Instant) -> Duration {
    // The scheduler brings the number up to date when it is called.
    std::thread::yield_now();
    // The first number of the file is in nanoseconds (Linux, Documentation/scheduler/sched-stats.rst).
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanoseconds = stat.and_then(|s| s.split_whitespace().next()?.parse().ok());
    nanoseconds.map_or_else(|| start.elapsed(), Duration::from_nanos)
}

/// Tokenizes `bytes` bytes of a text that repeats `unit`.
fn time(tokenizer: &Tokenizer, unit: &str, bytes: usize) -> f64 {
    let text = unit.repeat(bytes / unit.len());
    let start = Instant::now();
    let before = now(start);
    tokenizer.encode(&text, false, true).unwrap();
    (now(start) - before).as_secs_f64()
}

/// At most 2.5 times as long for each of three doublings: caches and new pages make some steps longer than others, and
/// quadratic work would take four times as long for each.
fn check(name: &str, tokenizer: &Tokenizer, units: &[&str], bytes: usize) {
    for unit in units {
        let (mut first, mut last) = (f64::INFINITY, f64::INFINITY);
        let linear = (0..10).any(|_| {
            first = first.min(time(tokenizer, unit, bytes / 8));
            last = last.min(time(tokenizer, unit, bytes));
            last <= 2.5f64.powi(3) * first
        });
        assert!(linear, "{name}: {unit:?} takes {first} s and {last} s for eight times the text");
    }
}

const UNITS: [&str; 4] = ["a", " ", ".", "🦀"];
const MORE: [&str; 9] = ["\n", "é", "1", "A", "a ", " \n", "'s", "日", "<"];
const MEGABYTE: usize = 1 << 20;

/// One splitter for each kind of pattern and step.
const PRES: [&str; 24] = [
    "default",
    "gpt-2",
    "llama-bpe",
    "qwen2",
    "qwen35",
    "starcoder",
    "deepseek-llm",
    "deepseek-coder",
    "deepseek-v3",
    "falcon",
    "bloom",
    "viking",
    "tekken",
    "gpt-4o",
    "tiny_aya",
    "bailingmoe",
    "laguna",
    "jais-2",
    "exaone-moe",
    "kimi-k2",
    "youtu",
    "afmoe",
    "superbpe",
    "chameleon",
];

#[test]
fn every_splitter() {
    for pre in PRES {
        let tokenizer = bpe(pre);
        check(pre, &tokenizer, &UNITS, MEGABYTE / 2);
        check(pre, &tokenizer, &MORE, MEGABYTE / 8);
    }
}

#[test]
fn byte_level_megabytes() {
    for pre in ["gpt-2", "llama-bpe", "deepseek-v3"] {
        check(pre, &bpe(pre), &UNITS, MEGABYTE);
    }
}

#[test]
fn every_other_model() {
    let changed = |tokenizer: Tokenizer, change: &dyn Fn(&mut Vocab)| {
        let mut vocab = tokenizer.vocab().clone();
        change(&mut vocab);
        Tokenizer::from_vocab(vocab).unwrap()
    };
    let steps = r#"[{"type":"NFKC"},{"type":"Lowercase"},{"type":"StripAccents"},{"type":"Nmt"},{"type":"Strip"},
        {"type":"Replace","pattern":{"String":".."},"content":"!"},{"type":"Replace","pattern":{"Regex":" {2,}"},"content":" "},
        {"type":"Replace","pattern":{"Regex":"\\s+"},"content":" "}]"#;
    let tokenizers = [
        ("spm", spm(true)),
        ("unigram", unigram(true)),
        ("unigram without spaces", changed(unigram(true), &|v| v.remove_extra_whitespaces = Some(true))),
        ("unigram as Metaspace", changed(unigram(true), &|v| v.metaspace = Some("first".into()))),
        ("unigram with steps", changed(unigram(true), &|v| v.normalizer = Some(steps.into()))),
        (
            "user-defined pieces",
            changed(unigram(true), &|v| {
                v.token_types.as_mut().unwrap().iter_mut().filter(|t| **t == 1).for_each(|t| *t = 4);
            }),
        ),
        (
            "gemma4",
            changed(spm(true), &|v| {
                v.model = "gemma4".into();
                v.merges = Some(["a a", "aa aa", "▁ ▁", ". ."].map(String::from).to_vec());
            }),
        ),
        ("wordpiece", wordpiece()),
        ("rwkv", rwkv()),
        (
            "single words",
            changed(bpe("gpt-2"), &|v| {
                let id = v.tokens.iter().position(|t| t == "aa").unwrap();
                v.token_types = Some((0..v.tokens.len()).map(|i| if i == id { 3 } else { 1 }).collect());
                v.single_word = vec![id as u32];
                v.lstrip = vec![id as u32];
            }),
        ),
    ];
    for (name, tokenizer) in &tokenizers {
        check(name, tokenizer, &UNITS, MEGABYTE);
        check(name, tokenizer, &MORE, MEGABYTE / 8);
    }
}
