//! What fonio writes of the tiny checkpoints is what llama.cpp's own converter wrote of them: the same tensors with the
//! same shapes and types, the same keys with the same types and values. `gguf-layouts/` describes what it wrote.

mod common;

use common::name;
use fonio_checkpoint::{Array, Checkpoint, Value};
use fonio_conformance::home;
use fonio_quantize::convert::Target;
use serde_json::{Value as Json, json};
use std::cell::RefCell;
use std::collections::{BTreeSet, HashSet};
use std::path::Path;

/// Keys that fonio does not write, in folders whose names begin so, and why.
const LEFT_OUT: &[(&str, &str, &str)] = &[
    ("", "tokenizer.ggml.add_sep_token", "only encoders have such a token"),
    ("granite", "tokenizer.ggml.add_space_prefix", "byte-level vocabularies have no prefix"),
    ("", "llama.attention.key_length", "follows from the width and the number of heads"),
    ("", "llama.attention.value_length", "as the keys'"),
    ("deepseek2-lite", "deepseek2.expert_group_count", "one group is none"),
    ("deepseek2-lite", "deepseek2.expert_group_used_count", "one group is none"),
    ("phi3-longrope", "phi3.attention.sliding_window", "0 is none"),
    ("phi3-window", "phi3.rope.scaling.original_context_length", "nothing is scaled"),
    ("gpt-oss-mxfp4", "general.file_type", "fonio names none where types are kept"),
    ("rwkv", "tokenizer.ggml.eot_token_id", "an empty line ends a turn of a chat, but not a text"),
];
/// Keys that fonio writes beside them: their ends, and why.
const MORE: &[(&str, &str)] = &[
    ("vocab_size", "tokenizers may have fewer tokens"),
    ("rope.dimension_count", "said in all architectures, the default too"),
    ("rope.freq_base", "said in all architectures, the default too"),
    ("attention.head_count_kv", "said in all architectures, the default too"),
    ("attention.scale", "not computed there"),
    ("attention.sliding_window", "not computed there"),
    ("attention.sliding_window_pattern", "the usual one is taken for granted there"),
    ("rope.scaling.yarn_truncate", "not computed there"),
    ("expert_gating_func", "what the configuration leaves to the version"),
    ("expert_weights_norm", "what the configuration leaves to the version"),
];
/// Keys and tensors that differ in a folder, and why.
const DIFFERENT: &[(&str, &str, &str)] = &[
    ("gemma3-vision", "tokenizer.ggml.model", "`tokenizer.model` is asked for there"),
    ("mamba2", "tokenizer.ggml.model", "`tokenizer.model` is asked for there"),
    ("phi", "phi2.feed_forward_length", "four times the width there, whatever the tensors are"),
    ("phi-gqa", "phi2.feed_forward_length", "four times the width there, whatever the tensors are"),
    ("phi-gqa", "phi2.attention.head_count_kv", "as many as queries there, whatever the tensors are"),
    ("rwkv6", "rwkv6.rescale_every_n_layers", "fonio's weights are not halved"),
    ("rwkv6", "rwkv6.time_decay_extra_dim", "guessed from the width there"),
    ("rwkv6", "rwkv6.time_mix_extra_dim", "guessed from the width there"),
    ("rwkv7", "blk.*.time_mix_*", "matrices through few dimensions are kept in full"),
];

/// A table whose entries all have to be of use.
struct Table<'a, T>(&'a [T], RefCell<HashSet<usize>>);

impl<'a, T> Table<'a, T> {
    fn new(all: &'a [T]) -> Table<'a, T> {
        Table(all, RefCell::default())
    }

    fn has(&self, fits: impl Fn(&T) -> bool) -> bool {
        let at = self.0.iter().position(fits);
        at.map(|at| self.1.borrow_mut().insert(at)).is_some()
    }

    fn unused(&self) -> impl Iterator<Item = &T> {
        let used = self.1.borrow().clone();
        self.0.iter().enumerate().filter(move |(at, _)| !used.contains(at)).map(|(_, entry)| entry)
    }
}

struct Tables {
    left_out: Table<'static, (&'static str, &'static str, &'static str)>,
    more: Table<'static, (&'static str, &'static str)>,
    different: Table<'static, (&'static str, &'static str, &'static str)>,
}

/// A value's type and itself, as the descriptions have them.
fn described(value: &Value) -> Json {
    match value {
        Value::U8(x) => json!(["UINT8", x]),
        Value::I8(x) => json!(["INT8", x]),
        Value::U16(x) => json!(["UINT16", x]),
        Value::I16(x) => json!(["INT16", x]),
        Value::U32(x) => json!(["UINT32", x]),
        Value::I32(x) => json!(["INT32", x]),
        Value::U64(x) => json!(["UINT64", x]),
        Value::I64(x) => json!(["INT64", x]),
        Value::F32(x) => json!(["FLOAT32", f64::from(*x)]),
        Value::F64(x) => json!(["FLOAT64", x]),
        Value::Bool(x) => json!(["BOOL", x]),
        Value::String(x) => json!(["STRING", x]),
        Value::Array(Array::Bool(x)) => json!(["BOOL", x]),
        Value::Array(Array::U32(x)) => json!(["UINT32", x]),
        Value::Array(Array::I32(x)) => json!(["INT32", x]),
        Value::Array(_) => json!(["ARRAY"]),
    }
}

/// Python computes some values in double precision: they may be off by two roundings to `f32`, 2⁻²³ each.
fn same(a: &Json, b: &Json) -> bool {
    match (a[0] == "FLOAT32", a[1].as_f64(), b[1].as_f64()) {
        (true, Some(x), Some(y)) => a[0] == b[0] && (x - y).abs() <= y.abs() * 2f64.powi(-22),
        _ => a == b,
    }
}

fn compare(folder: &str, theirs: &Json, ours: &dyn Checkpoint, tables: &Tables) -> Vec<String> {
    let mut wrong = Vec::new();
    let fits = |pattern: &str, name: &str| match pattern.split_once(".*.") {
        Some((from, within)) => name.starts_with(from) && name.contains(within.trim_end_matches('*')),
        None => pattern == name,
    };
    let differs = |key: &str| tables.different.has(|t| t.0 == folder && fits(t.1, key));
    let (metadata, tensors) =
        (theirs["metadata"].as_object().unwrap(), theirs["tensors"].as_object().unwrap());
    for (key, want) in metadata {
        match ours.metadata().get(key).map(described) {
            Some(got) if same(&got, want) || differs(key) => {}
            Some(got) => wrong.push(format!("{key} is {got}, there {want}")),
            None if tables.left_out.has(|t| folder.starts_with(t.0) && t.1 == key) => {}
            None => wrong.push(format!("{key} is left out, there {want}")),
        }
    }
    let prefix = format!("{}.", metadata["general.architecture"][1].as_str().unwrap());
    for (key, value) in ours.metadata().iter().filter(|(key, _)| key.starts_with(&prefix)) {
        let end = key.strip_prefix(&prefix).unwrap();
        if !metadata.contains_key(key) && !tables.more.has(|t| t.0 == end) {
            wrong.push(format!("{key} = {} is not there", described(value)));
        }
    }
    let shapes = |info: &fonio_checkpoint::TensorInfo| {
        let half = ["F16", "BF16"].contains(&info.dtype.name());
        let mut all = vec![json!(if half { "F16" } else { info.dtype.name() })];
        all.extend(info.shape.iter().map(|n| json!(n)));
        Json::Array(all)
    };
    let names: BTreeSet<&str> = ours.tensors().iter().map(|t| t.name.as_str()).collect();
    for missing in tensors.keys().filter(|name| !names.contains(name.as_str())) {
        wrong.push(format!("there is a tensor {missing}"));
    }
    for info in ours.tensors() {
        match tensors.get(&info.name) {
            None => wrong.push(format!("tensor {} is not there", info.name)),
            Some(want) if shapes(info) == *want || differs(&info.name) => {}
            Some(want) => wrong.push(format!("tensor {} is {}, there {want}", info.name, shapes(info))),
        }
    }
    wrong
}

#[test]
fn files_have_the_layout_of_llama_cpps_converter() {
    let layouts = home::workspace().join("conformance/gguf-layouts");
    let read = |path: &Path| -> Option<Json> { serde_json::from_slice(&std::fs::read(path).ok()?).ok() };
    let tables =
        Tables { left_out: Table::new(LEFT_OUT), more: Table::new(MORE), different: Table::new(DIFFERENT) };
    let scratch = tempfile::tempdir().unwrap();
    // The type that shows which tensors have to be in full.
    let half = Target::named("F16").unwrap();
    let mut compared = 0;
    common::each(|folder| {
        let Some(theirs) = read(&layouts.join(name(folder)).with_extension("json")) else { return Ok(()) };
        let file = scratch.path().join(name(folder)).with_extension("gguf");
        let packed = theirs["tensors"].as_object().unwrap().values().any(|t| t[0] == "MXFP4");
        common::convert(folder, &file, if packed { &Target::Keep } else { &half }, |_| {})?;
        let ours = fonio_checkpoint::open(&file).unwrap();
        compared += 1;
        let wrong = compare(name(folder), &theirs, ours.as_ref(), &tables);
        if wrong.is_empty() { Ok(()) } else { Err(format!("\n  {}", wrong.join("\n  "))) }
    });
    if std::env::var_os("FONIO_TINY").is_none() {
        let unused: Vec<String> = tables
            .left_out
            .unused()
            .chain(tables.different.unused())
            .map(|t| format!("{} {}", t.0, t.1))
            .chain(tables.more.unused().map(|t| t.0.into()))
            .collect();
        assert!(compared >= 35, "{compared} descriptions are compared");
        assert!(unused.is_empty(), "these are no differences any more: {}", unused.join(", "));
    }
}
