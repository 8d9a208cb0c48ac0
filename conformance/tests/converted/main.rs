//! GGUF files that fonio makes of the tiny checkpoints, in llama.cpp: it loads them, splits text the same, computes
//! the logits that transformers computes, and continues the text the same.
//!
//! What llama.cpp cannot load or computes otherwise stands in two tables, with the reason. A test fails where an entry
//! is no exception any more.

#[path = "../common/mod.rs"]
mod common;
mod recurrent;

use common::{Expected, difference, name, settings};
use fonio_conformance::compare;
use fonio_conformance::llamacpp::{Context, ContextOptions, Model, Oracle};
use fonio_conformance::metrics::top_and_margin;
use fonio_engine::{CacheTypes, Engine, Options};
use fonio_kernel::Activation;
use fonio_model::spec::{FfnSpec, ModelSpec};
use fonio_quantize::convert::Target;
use std::path::{Path, PathBuf};

/// What llama.cpp does not load, and why.
const NOT_THERE: &[(&str, &str)] = &[
    ("deepseek2-lite", "queries without a rank of their own are for models of 26 or 27 layers"),
    ("gptj", "no GPT-J"),
    ("phi-gqa", "Phi's head is never the embedding"),
    ("qwen2moe", "every layer has to have experts"),
    ("qwen3moe-dense", "every layer has to have experts"),
    ("rwkv4", "no RWKV of before the sixth version"),
];

/// What llama.cpp computes otherwise: why, and the keys that it does not read. Without them fonio computes what
/// llama.cpp does, so there is nothing else between the two. Where no key says it, that is not tried.
const OTHERWISE: &[(&str, &str, Option<&[&str]>)] = &[
    ("deepseek2-groups", "a group is as good as its two best experts; in V2 as its best", None),
    ("gemma2", "scores are scaled as the number of layers tells", Some(&["gemma2.attention.scale"])),
    ("gemma3-vision", "scores are scaled as the number of layers tells", Some(&["gemma3.attention.scale"])),
    ("gemma3-window", "scores are scaled as the number of layers tells", Some(&["gemma3.attention.scale"])),
    ("gpt-oss-bf16", "the ends of YaRN's ramp are whole", Some(&["gpt-oss.rope.scaling.yarn_truncate"])),
    ("gpt-oss-mxfp4", "the ends of YaRN's ramp are whole", Some(&["gpt-oss.rope.scaling.yarn_truncate"])),
    ("mistral-window", "no windows in this architecture", Some(&["llama.attention.sliding_window"])),
    ("phi3-longrope-short", "contexts have 256 places at least, more than were trained here", Some(&[])),
    ("phi3-window", "windows are switched off for Phi-3", Some(&["phi3.attention.sliding_window"])),
    (
        "qwen2-window",
        "no windows in this architecture",
        Some(&["qwen2.attention.sliding_window", "qwen2.attention.sliding_window_pattern"]),
    ),
    ("rwkv7", "heads of other than 64 values: the loops have no remainder", None),
    ("starcoder2", "no windows in this architecture", Some(&["starcoder2.attention.sliding_window"])),
];

/// Names that llama.cpp takes for those of other models: it looks for Phi-3's first tokens wherever a model's name has
/// `phi3` in it.
const MISLEADING: &[&str] = &["phi3-longrope-long"];

/// Largest difference of logits as a share of the largest one: both sides compute in `f32`, in other orders.
const RELATIVE: f32 = 1e-4;
/// The same where ggml looks GELU up in a table of half precision: 2⁻¹¹ on the way in and 2⁻¹¹ on the way out, in each
/// of up to four layers one after the other.
const TABLE: f32 = 4.0 / 1024.0;
/// Least difference of logits that shows that something else was computed.
const APART: f32 = 0.05;
const STEPS: usize = 32;
/// Places of a context; llama.cpp makes no smaller ones.
const CONTEXT: usize = 256;
const TEXTS: &[&str] = &[
    "Hello, world! It's 2026 — naïve café, 12345 ≠ 54321.\n\n\tTabs   and spaces. 日本語 🙂",
    "Once upon a time",
    " The little bird\n\n\n    sang:  ",
    "1 2 3",
    "",
];

/// Makes a file for llama.cpp. In `F32`, which both sides compute most alike.
fn convert(folder: &Path, out: &Path, without: &[&str]) -> Result<(), String> {
    let target = Target::named("F32").unwrap();
    common::convert(folder, out, &target, |metadata| {
        without.iter().for_each(|key| assert!(metadata.remove(key).is_some(), "{key} is written"));
        if MISLEADING.contains(&name(folder)) {
            metadata.insert("general.name", "tiny");
        }
    })
}

/// The name that the tables have for a checkpoint: of those that spell the same weights, the first one's.
fn model(folder: &Path) -> String {
    name(&common::expected_in(folder).unwrap()).to_owned()
}

fn tolerance(spec: &ModelSpec) -> f32 {
    let table = |ffn: &FfnSpec| match ffn {
        FfnSpec::Dense(dense) => dense.activation == Activation::GeluTanh,
        _ => false,
    };
    if spec.layers.iter().filter_map(|layer| layer.ffn.as_ref()).any(table) { TABLE } else { RELATIVE }
}

fn open(file: &Path, places: usize) -> Result<Engine, String> {
    let exact = CacheTypes { keys: fonio_codec::list::F32, values: fonio_codec::list::F32 };
    let options = Options { threads: 2, cache: exact, context: Some(places), ..Options::default() };
    Engine::open(file, options).map_err(|e| e.to_string())
}

fn context(model: &Model) -> Context<'_> {
    let options =
        ContextOptions { n_ctx: CONTEXT, n_batch: 64, f32_cache: true, ..ContextOptions::default() };
    Context::new(model, &options).unwrap()
}

fn split(ours: &Engine, theirs: &Model) -> Result<(), String> {
    let tokenizer = ours.tokenizer().map_err(|e| e.to_string())?;
    for text in TEXTS {
        let got = tokenizer.encode(text, true, true).map_err(|e| e.to_string())?;
        let want = theirs.tokenize(text, true, true).unwrap();
        if got != want {
            return Err(format!("{text:?} is {got:?}, there {want:?}"));
        }
    }
    Ok(())
}

fn logits(context: &mut Context<'_>, tokens: &[u32]) -> Vec<f32> {
    let mut all = Vec::new();
    context.logits(tokens, |_, row| all.extend_from_slice(row)).unwrap();
    all
}

fn our_logits(ours: &Engine, tokens: &[u32]) -> Result<Vec<f32>, String> {
    let mut all = Vec::new();
    let mut session = ours.session().map_err(|e| e.to_string())?;
    session.score(tokens, |_, row| all.extend_from_slice(row)).map_err(|e| e.to_string())?;
    Ok(all)
}

/// Tokens and what fonio continues them with.
fn continuation(ours: &Engine, tokens: &[u32]) -> Result<Vec<u32>, String> {
    let mut all = tokens.to_vec();
    let mut session = ours.session().map_err(|e| e.to_string())?;
    for _ in 0..STEPS {
        let next = &all[session.tokens().len()..];
        let best = top_and_margin(session.extend(next).map_err(|e| e.to_string())?).0;
        all.push(best as u32);
    }
    Ok(all)
}

/// The same tokens, as long as the two best are further apart than both sides can be off.
fn continued(ours: &Engine, context: &mut Context<'_>, tokens: &[u32], tie: f32) -> Result<(), String> {
    let theirs = compare::greedy(context, tokens, STEPS).unwrap();
    let all = continuation(ours, tokens)?;
    for (at, (&got, (want, margin))) in all[tokens.len()..].iter().zip(theirs).enumerate() {
        match got == want {
            true => {}
            false if margin < 2.0 * tie => return Ok(()),
            false => return Err(format!("token {at} is {got}, there {want} by {margin}")),
        }
    }
    Ok(())
}

/// llama.cpp computes something else of `file`, and of a file without the keys that it does not read the same.
fn otherwise(
    file: &Path,
    folder: &Path,
    context: &mut Context<'_>,
    keys: Option<&[&str]>,
) -> Result<(), String> {
    let tokens = &Expected::read(folder).tokens["tokens"];
    let ours = open(file, tokens.len() + STEPS)?;
    let tokens = continuation(&ours, tokens)?;
    let theirs = logits(context, &tokens);
    if difference(&theirs, &our_logits(&ours, &tokens)?) < APART {
        return Err("llama.cpp computes the same".into());
    }
    let Some(keys) = keys else { return Ok(()) };
    let plain = file.with_extension("plain.gguf");
    convert(folder, &plain, keys)?;
    let ours = open(&plain, CONTEXT)?;
    let off = difference(&our_logits(&ours, &tokens)?, &theirs);
    if off > tolerance(ours.spec()) { Err(format!("without {keys:?} off by {off:e}")) } else { Ok(()) }
}

fn check(oracle: &'static Oracle, folder: &Path, scratch: &Path) -> Result<(), String> {
    let file = scratch.join(name(folder)).with_extension("gguf");
    convert(folder, &file, &[])?;
    let not_there = NOT_THERE.iter().find(|t| t.0 == model(folder));
    let theirs = match (Model::load(oracle, &file), not_there) {
        (Err(_), Some(_)) => return Ok(()),
        (Ok(_), Some((_, reason))) => return Err(format!("loads, in spite of this: {reason}")),
        (Err(e), None) => return Err(e.to_string()),
        (Ok(model), None) => model,
    };
    let mut context = context(&theirs);
    let ours = open(&file, CONTEXT)?;
    split(&ours, &theirs)?;
    if let Some((_, reason, keys)) = OTHERWISE.iter().find(|t| t.0 == model(folder)) {
        return otherwise(&file, folder, &mut context, *keys).map_err(|e| format!("{e} ({reason})"));
    }
    let (expected, tolerance) = (Expected::read(folder), tolerance(ours.spec()));
    for what in ["", "single."] {
        let tokens = &expected.tokens[&format!("{what}tokens")];
        let off = difference(&logits(&mut context, tokens), &expected.floats[&format!("{what}logits")]);
        if off > tolerance {
            return Err(format!("{what}logits are off by {off:e}"));
        }
    }
    let largest = expected.floats["logits"].iter().fold(0f32, |m, x| m.max(x.abs()));
    continued(&ours, &mut context, &expected.tokens["tokens"], tolerance * largest)
}

/// llama.cpp splits text, continues it and computes logits as fonio does.
fn continues_the_same(oracle: &'static Oracle, file: &Path) {
    let (theirs, ours) = (Model::load(oracle, file).unwrap(), open(file, CONTEXT).unwrap());
    split(&ours, &theirs).unwrap();
    let mut context = context(&theirs);
    for text in &TEXTS[..2] {
        let tokens = theirs.tokenize(text, true, true).unwrap();
        let tokens = continuation(&ours, &tokens).unwrap();
        let off = difference(&logits(&mut context, &tokens), &our_logits(&ours, &tokens).unwrap());
        assert!(off < tolerance(ours.spec()), "{}: logits are off by {off:e}", file.display());
    }
}

/// Makes a file for llama.cpp.
fn convert_folder(folder: &Path, scratch: &Path) -> PathBuf {
    let out = scratch.join(name(folder)).with_extension("gguf");
    convert(folder, &out, &[]).unwrap();
    out
}

#[test]
fn llama_cpp_computes_converted_checkpoints_the_same() {
    let Some(oracle) = Oracle::need() else { return };
    let scratch = tempfile::tempdir().unwrap();
    common::each(|folder| check(oracle, folder, scratch.path()));
    let all: Vec<_> = common::folders();
    let there = |wanted: &str| all.iter().any(|folder| name(folder) == wanted);
    let listed = NOT_THERE.iter().map(|t| t.0).chain(OTHERWISE.iter().map(|t| t.0));
    if std::env::var_os("FONIO_TINY").is_none() {
        listed.for_each(|entry| assert!(there(entry), "{entry} is no checkpoint"));
    }
}
