//! GGUF files that fonio makes of tiny checkpoints, in llama.cpp: it loads them, splits text the same and continues it
//! the same, and its own logits are those of transformers.

mod recurrent;

use fonio_checkpoint::WriteOptions;
use fonio_conformance::home;
use fonio_conformance::llamacpp::{Context, ContextOptions, Model, Oracle};
use fonio_engine::{CacheTypes, Engine, Options};
use fonio_model::source::Source;
use fonio_quantize::convert::{self, Plan, Settings, Target};
use fonio_simd::Isa;
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
