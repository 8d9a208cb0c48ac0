//! Tokenization against llama.cpp's published vectors (`vocab/ggml-vocab-*.gguf` with `.inp` and `.out` beside them),
//! against llama.cpp itself and against the `tokenizers` library (`tokenizer/make_transformers.py`).

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fonio_checkpoint::{Metadata, WriteOptions};
use fonio_conformance::home;
use fonio_conformance::llamacpp::{Model, Oracle};
use fonio_text::{Tokenizer, Vocab};

/// The vocabulary of a GGUF file.
fn read_vocab(path: &Path) -> Vocab {
    let checkpoint = fonio_checkpoint::open(path).unwrap();
    fonio_model::vocab::from_metadata(checkpoint.metadata()).unwrap().unwrap()
}

/// The published vocabularies, by name.
fn vocabularies() -> Vec<(String, PathBuf)> {
    let Some(folder) = home::need("the folder of vocabularies", home::oracle("vocab")) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let name = name.strip_prefix("ggml-vocab-").and_then(|n| n.strip_suffix(".gguf"));
        if let Some(name) = name {
            found.push((name.to_owned(), path));
        }
    }
    found.sort();
    found
}

/// Those with vectors.
fn vectors() -> Vec<(String, PathBuf)> {
    let all = vocabularies();
    let found: Vec<_> =
        all.iter().filter(|(_, path)| path.with_extension("gguf.inp").exists()).cloned().collect();
    assert!(all.is_empty() || found.len() >= 15, "{found:?}");
    found
}

/// The texts of an `.inp` file.
fn inputs(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path.with_extension("gguf.inp")).unwrap();
    text.split_terminator("\n__ggml_vocab_test__\n").map(str::to_owned).collect()
}

/// The ids of an `.out` file, a line for each text.
fn outputs(path: &Path) -> Vec<Vec<u32>> {
    let text = std::fs::read_to_string(path.with_extension("gguf.out")).unwrap();
    text.lines().map(|line| line.split_whitespace().map(|id| id.parse().unwrap()).collect()).collect()
}

#[test]
fn published_vectors() {
    let mut wrong = Vec::new();
    for (name, path) in vectors() {
        let tokenizer = Tokenizer::from_vocab(read_vocab(&path)).unwrap();
        let (texts, expected) = (inputs(&path), outputs(&path));
        assert!(texts.len() >= 40 && expected.len() == texts.len(), "{name}: {} texts", texts.len());
        for (text, ids) in texts.iter().zip(&expected) {
            let ours = tokenizer.encode(text, false, false).unwrap();
            if ours != *ids {
                wrong.push(format!("{name}: {text:?}\n  ours {ours:?}\n  want {ids:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The tokenizers of real Hugging Face folders, by name.
fn folders() -> Vec<(&'static str, PathBuf)> {
    let names = ["gemma3", "gpt2", "llama3", "qwen2_5"];
    let found = names.map(|name| Some((name, home::oracle(&format!("tokenizers/{name}"))?)));
    found.into_iter().filter_map(|folder| home::need("a tokenizer's folder", folder)).collect()
}

/// The texts of `tokenizer/transformers.json`, and the ids by tokenizer.
fn corpus() -> (Vec<String>, serde_json::Value) {
    let file = home::workspace().join("conformance/tokenizer/transformers.json");
    let vectors: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let texts = vectors["texts"].as_array().unwrap().iter().map(|t| t.as_str().unwrap().to_owned());
    (texts.collect(), vectors["ids"].clone())
}

/// The same GGUF files and texts through llama.cpp: random Unicode, runs, special tokens as text and as tokens.
///
/// Left out, because there we follow the models' own tokenizers: `</s>`, which llama.cpp takes for a control token even
/// where it is markup; BERT beyond the published vectors, whose Hangul llama.cpp does not decompose; and the ideographic
/// space with DeepSeek's splitter, which llama.cpp matches after it has replaced that space by another character.
#[test]
fn files_as_llamacpp() {
    let Some(oracle) = Oracle::need() else { return };
    let (texts, _) = corpus();
    let models = [home::SMOLLM2, home::GEMMA3].map(|name| (name.to_owned(), home::models().join(name)));
    let mut wrong = Vec::new();
    for (name, path) in models.into_iter().filter(|(_, path)| path.exists()).chain(vocabularies()) {
        let theirs = Model::load_vocab(oracle, &path).unwrap();
        let ours = Tokenizer::from_vocab(read_vocab(&path)).unwrap();
        let left_out = |text: &str| {
            name == "bert-bge"
                || text.contains("</s>")
                || (name == "deepseek-llm" && text.contains('\u{3000}'))
        };
        for text in texts.iter().filter(|text| !left_out(text)) {
            for (special, parse) in [(false, false), (true, true)] {
                let want = theirs.tokenize(text, special, parse).unwrap();
                let got = ours.encode(text, special, parse);
                if got.as_ref().ok() != Some(&want) {
                    wrong
                        .push(format!("{name}: {text:?} {special} {parse}\n  ours {got:?}\n  want {want:?}"));
                }
            }
        }
        let ends = |id: &u32| {
            name != "bert-bge"
                && ours.token_text(*id) != Some("</s>")
                && ours.is_end_of_generation(*id) != theirs.is_end(*id)
        };
        let ends: Vec<_> =
            (0..theirs.vocab_size() as u32).filter(ends).map(|id| ours.token_text(id)).collect();
        if !ends.is_empty() {
            wrong.push(format!("{name}: ends {ends:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} differ\n{}", wrong.len(), wrong.join("\n"));
}

/// Writes a GGUF file with this vocabulary and without tensors; everything else is as in a published file.
fn write_vocab(vocab: &Vocab, published: &Path, path: &Path) {
    let base = fonio_checkpoint::open(published).unwrap();
    let mut metadata = Metadata::new();
    for (key, value) in base.metadata().iter().filter(|(key, _)| !key.starts_with("tokenizer.")) {
        metadata.insert(key, value.clone());
    }
    fonio_model::vocab::to_metadata(vocab, &mut metadata);
    let container = fonio_checkpoint::list::named("gguf").unwrap();
    let writer = (container.create.unwrap())(path, &metadata, &[], &WriteOptions::default()).unwrap();
    writer.finish().unwrap();
}

/// Every splitter that llama.cpp has a name for, with GPT-2's tokens.
///
/// Some of llama.cpp's expressions are not those of the models: its engine has no letter cases (`\p{Lu}` …) and reads
/// digits and words in its own way, and Kimi's is matched by hand. There we follow the models, and a text or two with
/// Arabic marks, or digits before letters, differ.
#[test]
fn splitters_as_llamacpp() {
    const EXACT: &[&str] = &[
        "default",
        "llama-bpe",
        "deepseek-llm",
        "deepseek-coder",
        "deepseek-v3",
        "spark2_5",
        "falcon",
        "mpt",
        "starcoder",
        "gpt-2",
        "jais-2",
        "roberta-bpe",
        "refact",
        "command-r",
        "qwen2",
        "qwen35",
        "stablelm2",
        "olmo",
        "dbrx",
        "smaug-bpe",
        "poro-chat",
        "glm4",
        "chatglm-bpe",
        "viking",
        "jais",
        "smollm",
        "codeshell",
        "bloom",
        "gpt3-finnish",
        "exaone",
        "exaone4",
        "exaone-moe",
        "chameleon",
        "minerva-7b",
        "megrez",
        "superbpe",
        "trillion",
        "granite-docling",
        "bailingmoe",
        "seed-coder",
        "hunyuan",
        "hunyuan-dense",
        "hy_v4",
        "joyai-llm",
        "ufakzeka",
        "grok-2",
        "afmoe",
        "laguna",
        "solar-open",
        "mellum2",
        "minicpm5",
        "gigachat",
        "lfm2",
        "modern-bert",
    ];
    const ALMOST: &[&str] = &[
        "tekken",
        "gpt-4o",
        "llama4",
        "minimax-m2",
        "granite-embed-multi-97m",
        "tiny_aya",
        "cohere2moe",
        "youtu",
        "kimi-k2",
    ];
    let Some(oracle) = Oracle::need() else { return };
    let Some((_, published)) = vectors().into_iter().find(|(name, _)| name == "gpt-2") else { return };
    let (texts, _) = corpus();
    let folder = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    for name in EXACT.iter().chain(ALMOST) {
        let mut differ = Vec::new();
        let vocab = Vocab { pre: Some((*name).into()), ..read_vocab(&published) };
        let path = folder.path().join(format!("{name}.gguf"));
        write_vocab(&vocab, &published, &path);
        let theirs = Model::load_vocab(oracle, &path).unwrap();
        let ours = Tokenizer::from_vocab(vocab).unwrap();
        for text in texts.iter().filter(|text| text.len() < 400) {
            let want = theirs.tokenize(text, false, false).unwrap();
            let got = ours.encode(text, false, false);
            if got.as_ref().ok() != Some(&want) {
                differ.push(format!("{name}: {text:?}\n  ours {got:?}\n  want {want:?}"));
            }
        }
        if differ.len() > if ALMOST.contains(name) { 2 } else { 0 } {
            wrong.append(&mut differ);
        }
    }
    assert!(wrong.is_empty(), "{} differ\n{}", wrong.len(), wrong.join("\n"));
}

/// What is written of the small tokenizers is read by llama.cpp, and gives the same ids but in some texts.
///
/// Those are ones that llama.cpp treats in another way than the model's library: ▁ in the text, texts of spaces alone
/// (`unigram`), spaces after special tokens (`unigram-t5-first`), Unicode's line ends with a table that lacks them
/// (`unigram-t5`), jamo, vowel signs, controls and words of more than 100 letters (`wordpiece`), and whole words
/// (`gpt2-files`). The other folders need what GGUF has no key for.
#[test]
fn small_vocabularies_in_llamacpp() {
    const DIFFER: [(&str, usize); 14] = [
        ("unigram", 1),
        ("unigram-spaces", 9),
        ("unigram-t5", 3),
        ("unigram-t5-first", 4),
        ("wordpiece", 4),
        ("wordpiece-accents", 3),
        ("wordpiece-cased", 2),
        ("wordpiece-txt", 4),
        ("gpt2-files", 1),
        ("tiktoken-qwen", 0),
        ("tiktoken-tokenizer", 0),
        ("tiktoken-kimi", 0),
        ("rwkv", 0),
        ("qwen2-files", 9),
    ];
    let Some(oracle) = Oracle::need() else { return };
    let Some((_, published)) = vectors().into_iter().find(|(name, _)| name == "gpt-2") else { return };
    let dir = home::workspace().join("conformance/tokenizer/small");
    let vectors: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.join("ids.json")).unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    for (name, allowed) in DIFFER {
        let mut differ = Vec::new();
        let ours = Tokenizer::from_dir(&dir.join(name)).unwrap();
        let path = folder.path().join(format!("{name}.gguf"));
        write_vocab(&ours.to_vocab().unwrap(), &published, &path);
        let theirs = Model::load_vocab(oracle, &path).unwrap();
        for text in vectors["texts"].as_array().unwrap() {
            let text = text.as_str().unwrap();
            let want = theirs.tokenize(text, true, true).unwrap();
            let got = ours.encode(text, true, true);
            if got.as_ref().ok() != Some(&want) {
                differ.push(format!("{name}: {text:?}\n  ours {got:?}\n  want {want:?}"));
            }
        }
        if differ.len() != allowed {
            wrong.append(&mut differ);
        }
    }
    assert!(wrong.is_empty(), "{} differ\n{}", wrong.len(), wrong.join("\n"));
}

/// `tokenizer.json` files against the `tokenizers` library: runs of characters, random Unicode, special tokens.
#[test]
fn folders_as_transformers() {
    let (texts, ids) = corpus();
    let mut wrong = Vec::new();
    for (name, dir) in folders() {
        let tokenizer = Tokenizer::from_dir(&dir).unwrap();
        let expected = ids[name].as_array().unwrap();
        assert_eq!(texts.len(), expected.len());
        for (text, ids) in texts.iter().zip(expected) {
            let ids: Vec<u32> = ids.as_array().unwrap().iter().map(|i| i.as_u64().unwrap() as u32).collect();
            let ours = tokenizer.encode(text, false, true).unwrap();
            if ours != ids {
                wrong.push(format!("{name}: {text:?}\n  ours {ours:?}\n  want {ids:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ\n{}", wrong.len(), wrong.join("\n"));
}

/// Small tokenizers of every kind, read from a folder and again from what a GGUF file holds of it, against the libraries
/// that they are for (`tokenizer/make_small.py`).
#[test]
fn small_folders_as_their_libraries() {
    let dir = home::workspace().join("conformance/tokenizer/small");
    let vectors: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.join("ids.json")).unwrap()).unwrap();
    let texts: Vec<&str> = vectors["texts"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
    let mut wrong = Vec::new();
    for (name, ids) in vectors["ids"].as_object().unwrap() {
        let from_folder = Tokenizer::from_dir(&dir.join(name)).unwrap();
        let mut metadata = Metadata::new();
        fonio_model::vocab::to_metadata(&from_folder.to_vocab().unwrap(), &mut metadata);
        let again = fonio_model::vocab::from_metadata(&metadata).unwrap().unwrap();
        let from_metadata = Tokenizer::from_vocab(again).unwrap();
        let parse = ids["special"].as_bool().unwrap();
        for (kind, special) in [("plain", false), ("framed", true)] {
            let Some(expected) = ids[kind].as_array() else { continue };
            assert_eq!(texts.len(), expected.len());
            for (text, ids) in texts.iter().zip(expected) {
                let Some(ids) = ids.as_array() else { continue };
                let ids: Vec<u32> = ids.iter().map(|i| i.as_u64().unwrap() as u32).collect();
                for tokenizer in [&from_folder, &from_metadata] {
                    let ours = tokenizer.encode(text, special, parse);
                    if ours.as_ref().ok() != Some(&ids) {
                        wrong.push(format!("{name} {kind}: {text:?}\n  ours {ours:?}\n  want {ids:?}"));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ\n{}", wrong.len(), wrong.join("\n"));
}

/// What a GGUF made from a folder would hold is what the published GGUF of the same tokenizer holds: names, merges, and
/// each token's spelling and type. (That of qwen2 is of an earlier tokenizer with fewer added tokens, and its converter
/// wrote unused rows as user-defined ones; that of gemma3 takes image marks for text: these rows are left out.)
#[test]
fn vocabularies_as_converted() {
    let published = |name: &str| home::oracles().join(format!("vocab/ggml-vocab-{name}.gguf"));
    let cases = [
        ("llama3", published("llama-bpe"), 128_256),
        ("qwen2_5", published("qwen2"), 151_646),
        ("gpt2", published("gpt-2"), 50_257),
        ("gemma3", home::models().join(home::GEMMA3), 255_999),
    ];
    for (folder, path, rows) in cases {
        let Some((_, dir)) = folders().into_iter().find(|(name, _)| *name == folder) else { continue };
        if !path.exists() {
            eprintln!("skipped: no {}", path.display());
            continue;
        }
        let theirs = read_vocab(&path);
        let ours = Tokenizer::from_dir(&dir).unwrap().to_vocab().unwrap();
        assert_eq!((&ours.model, &ours.pre), (&theirs.model, &theirs.pre));
        assert_eq!(ours.add_space_prefix, theirs.add_space_prefix);
        assert!(ours.merges == theirs.merges, "{folder}: merges");
        let row = |v: &Vocab, id: usize| (v.tokens[id].clone(), v.token_type(id as u32));
        let differ = (0..rows).filter(|&id| row(&ours, id) != row(&theirs, id));
        let differ: Vec<_> = differ.map(|id| (id, row(&ours, id), row(&theirs, id))).collect();
        assert!(
            differ.is_empty(),
            "{folder}: {} differ: {:?}",
            differ.len(),
            &differ[..differ.len().min(20)]
        );
    }
}

/// What the thread has spent on a CPU, where the system says so, or the time of day.
fn now(start: Instant) -> Duration {
    // The scheduler brings the number up to date when it is called; it is in nanoseconds (Linux,
    // Documentation/scheduler/sched-stats.rst).
    std::thread::yield_now();
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanoseconds = stat.and_then(|s| s.split_whitespace().next()?.parse().ok());
    nanoseconds.map_or_else(|| start.elapsed(), Duration::from_nanos)
}

/// Time at most 2.5 times as long for twice the text, up to a megabyte of one letter, space, punctuation mark or emoji.
/// Times are the thread's own, the smallest of several; quadratic work would be at 4.
#[test]
fn time_is_linear() {
    const KINDS: [&str; 5] = ["llama-bpe", "gpt-2", "llama-spm", "bert-bge", "nomic-bert-moe"];
    let real =
        Some(("gemma-3".to_owned(), home::models().join(home::GEMMA3))).filter(|(_, path)| path.exists());
    let measured = vocabularies().into_iter().filter(|(name, _)| KINDS.contains(&name.as_str()));
    for (name, path) in real.into_iter().chain(measured) {
        let vocab = read_vocab(&path);
        let start = Instant::now();
        let before = now(start);
        let tokenizer = Tokenizer::from_vocab(vocab).unwrap();
        let built = now(start) - before;
        tokenizer.encode("Hello", false, false).unwrap();
        eprintln!("{name}: built in {built:?}, first text after {:?}", now(start) - before);
        for unit in ["a", " ", ".", "🦀"] {
            let seconds = |bytes: usize| {
                let text = unit.repeat(bytes / unit.len());
                let before = now(start);
                tokenizer.encode(&text, false, false).unwrap();
                (now(start) - before).as_secs_f64()
            };
            let (mut once, mut twice) = (f64::INFINITY, f64::INFINITY);
            let linear = (0..10).any(|_| {
                (once, twice) = (once.min(seconds(1 << 19)), twice.min(seconds(1 << 20)));
                twice <= 2.5 * once
            });
            assert!(linear, "{name}: {unit:?} takes {once} s and {twice} s for twice the text");
        }
    }
}
