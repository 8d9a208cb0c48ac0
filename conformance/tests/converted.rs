//! GGUF files that fonio makes of tiny checkpoints, in llama.cpp: it loads them, splits text the same and continues it
//! the same, and its own logits are those of transformers.

use fonio_checkpoint::WriteOptions;
use fonio_conformance::home;
use fonio_conformance::llamacpp::{Context, ContextOptions, Model, Oracle};
use fonio_engine::{CacheTypes, Engine, Options};
use fonio_model::source::Source;
use fonio_quantize::convert::{self, Plan, Settings, Target};
use fonio_simd::Isa;
use safetensors::{Dtype, tensor::TensorView};
use std::path::{Path, PathBuf};

/// What llama.cpp can run: it knows no window in Qwen2, only the usual pattern of them in Gemma 3, and no scale of
/// scores but the usual one.
const RUNS_THERE: &[&str] =
    &["llama-gqa", "llama-rope3", "llama-linear", "qwen2-tied", "mamba", "mamba2", "rwkv6"];
/// What llama.cpp loads.
const LOADS_THERE: &[&str] = &[
    "llama-gqa",
    "llama-rope3",
    "llama-linear",
    "qwen2-tied",
    "gemma3-linear",
    "gemma3-window",
    "gemma3-vision",
    "mamba",
    "mamba2",
    "rwkv6",
    "rwkv7",
];
const STEPS: usize = 32;
/// Logits of some units whose weights are the same: what llama.cpp's `f16` rounding of activations and cache can do to
/// the difference of two.
const TIE: f32 = 0.02;

fn convert(name: &str, scratch: &Path) -> PathBuf {
    convert_folder(&home::workspace().join("conformance/models").join(name), scratch)
}

fn convert_folder(folder: &Path, scratch: &Path) -> PathBuf {
    let out = scratch.join(folder.file_name().unwrap()).with_extension("gguf");
    let source = Source::open(folder).unwrap();
    let metadata = source.complete_metadata().unwrap();
    // Without rounding by the type: `F32` is what both sides compute most alike.
    let target = Target::named("F32").unwrap();
    let plan = Plan::new(source.checkpoint().as_ref(), source.spec(), metadata, &target, &[]).unwrap();
    let settings = Settings { write: WriteOptions::default(), ..settings() };
    let gguf = fonio_checkpoint::list::named("gguf").unwrap();
    convert::run(source.checkpoint().as_ref(), &plan, gguf, &out, &settings).unwrap();
    out
}

fn settings() -> Settings<'static> {
    Settings {
        threads: 2,
        isa: Isa::detect(),
        write: WriteOptions::default(),
        progress: &|_, _| {},
        cancel: None,
    }
}

/// Compares greedy continuations of a file in llama.cpp and here.
fn continues_the_same(oracle: &'static Oracle, file: &Path) {
    let name = file.file_stem().unwrap().to_str().unwrap();
    let reference = Model::load(oracle, file).unwrap_or_else(|e| panic!("{name}: {e}"));
    let exact = CacheTypes { keys: fonio_codec::list::F32, values: fonio_codec::list::F32 };
    let ours = Engine::open(file, Options { threads: 2, cache: exact, ..Options::default() }).unwrap();
    for prompt in ["Once upon a time", "The little bird", "1 2 3"] {
        let tokens = reference.tokenize(prompt, true, true).unwrap();
        assert_eq!(
            ours.tokenizer().unwrap().encode(prompt, true, true).unwrap(),
            tokens,
            "{name}: {prompt:?}"
        );
        let options = ContextOptions { n_ctx: 128, n_batch: 64, ..ContextOptions::default() };
        let theirs = Context::new(&reference, &options).unwrap().greedy(&tokens, STEPS).unwrap();
        let mut session = ours.session().unwrap();
        let mut next = tokens;
        let mut same = 0;
        for (token, margin) in theirs {
            let logits = session.extend(&next).unwrap();
            let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32;
            if best != token {
                assert!(
                    margin < TIE,
                    "{name}: {prompt:?}: token {same} is {best}, not {token} (margin {margin})"
                );
                break;
            }
            same += 1;
            next = vec![token];
        }
        assert!(same >= 1, "{name}: {prompt:?}");
    }
}

#[test]
fn llama_cpp_continues_converted_checkpoints_the_same() {
    let Some(oracle) = Oracle::need() else { return };
    let scratch = tempfile::tempdir().unwrap();
    for name in RUNS_THERE {
        continues_the_same(oracle, &convert(name, scratch.path()));
    }
}

/// Random weights of RWKV-7 by the authors' names, with the tokenizer of the tiny one. llama.cpp computes heads of 64
/// values alone: its loops have no remainder.
fn rwkv7_with_usual_heads(folder: &Path) {
    const DIM: usize = 128;
    let tiny = home::workspace().join("conformance/models/rwkv7");
    for file in ["rwkv_vocab_v20230424.txt", "tokenizer_config.json"] {
        std::fs::copy(tiny.join(file), folder.join(file)).unwrap();
    }
    let vocab = Source::open(&tiny).unwrap().spec().vocab_size;
    let mut all: Vec<(String, Vec<usize>, f32, f32)> = Vec::new();
    let mut add = |name: String, shape: &[usize], mean: f32, spread: f32| {
        all.push((name, shape.to_vec(), mean, spread));
    };
    let square = 2.0 / (DIM as f32).sqrt();
    add("emb.weight".into(), &[vocab, DIM], 0.0, 1.0);
    add("head.weight".into(), &[vocab, DIM], 0.0, square);
    for norm in ["ln_out", "blocks.0.ln0", "blocks.0.ln1", "blocks.0.ln2", "blocks.1.ln1", "blocks.1.ln2"] {
        add(format!("{norm}.weight"), &[DIM], 1.0, 0.3);
        add(format!("{norm}.bias"), &[DIM], 0.0, 0.3);
    }
    for i in 0..2 {
        let att = |name: &str| format!("blocks.{i}.att.{name}");
        add(att("ln_x.weight"), &[DIM], 1.0, 0.3);
        add(att("ln_x.bias"), &[DIM], 0.0, 0.3);
        add(att("r_k"), &[2, 64], 0.0, 0.3);
        for (c, rank) in [("w", 16), ("a", 24), ("v", 8), ("g", 32)] {
            add(att(&format!("{c}1")), &[DIM, rank], 0.0, square);
            add(att(&format!("{c}2")), &[rank, DIM], 0.0, 2.0 / (rank as f32).sqrt());
            if c != "g" {
                add(att(&format!("{c}0")), &[1, 1, DIM], 0.0, 0.8);
            }
        }
        for name in ["x_r", "x_w", "x_k", "x_v", "x_a", "x_g", "k_k", "k_a"] {
            add(att(name), &[1, 1, DIM], 0.7, 0.3);
        }
        for name in ["receptance", "key", "value", "output"] {
            add(att(&format!("{name}.weight")), &[DIM, DIM], 0.0, square);
        }
        add(format!("blocks.{i}.ffn.x_k"), &[1, 1, DIM], 0.5, 0.3);
        add(format!("blocks.{i}.ffn.key.weight"), &[256, DIM], 0.0, square);
        add(format!("blocks.{i}.ffn.value.weight"), &[DIM, 256], 0.0, square);
    }
    let mut state = 7u32;
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1u32 << 23) as f32 - 1.0
    };
    let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = all
        .into_iter()
        .map(|(name, shape, mean, spread)| {
            let n = shape.iter().product();
            let values = (0..n).flat_map(|_| (mean + spread * random()).to_le_bytes()).collect();
            (name, shape, values)
        })
        .collect();
    let views = bytes
        .iter()
        .map(|(name, shape, bytes)| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
}

#[test]
fn llama_cpp_continues_rwkv_7_the_same() {
    let Some(oracle) = Oracle::need() else { return };
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("rwkv7-heads");
    std::fs::create_dir(&folder).unwrap();
    rwkv7_with_usual_heads(&folder);
    continues_the_same(oracle, &convert_folder(&folder, scratch.path()));
}

#[test]
fn llama_cpp_loads_every_architecture_and_splits_text_alike() {
    let Some(oracle) = Oracle::need() else { return };
    let scratch = tempfile::tempdir().unwrap();
    let text = "Hello, world! It's 2026 — naïve café, 12345 ≠ 54321.\n\n\tTabs   and spaces. 日本語 🙂";
    for name in LOADS_THERE {
        let file = convert(name, scratch.path());
        let reference = Model::load(oracle, &file).unwrap_or_else(|e| panic!("{name}: {e}"));
        let ours = Source::open(&file).unwrap().tokenizer().unwrap();
        assert_eq!(
            ours.encode(text, true, true).unwrap(),
            reference.tokenize(text, true, true).unwrap(),
            "{name}"
        );
    }
}
