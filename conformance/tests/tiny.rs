//! Tiny seeded checkpoints against transformers in `f32`: every layer's output and the logits, from the folder as it
//! is and from the GGUF file made of it.

use fonio_conformance::home;
use fonio_engine::{CacheTypes, Engine, Observer, Options};
use fonio_model::source::Source;
use fonio_quantize::convert::{self, Plan, Settings, Target};
use fonio_simd::Isa;
use safetensors::SafeTensors;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Largest difference as a share of the largest value: both sides compute in `f32`, in other orders.
const RELATIVE: f32 = 1e-4;

fn folders() -> Vec<PathBuf> {
    let all = std::fs::read_dir(home::workspace().join("conformance/models")).unwrap();
    let mut all: Vec<PathBuf> =
        all.map(|f| f.unwrap().path()).filter(|f| f.join("expected.safetensors").exists()).collect();
    all.sort();
    assert!(all.len() >= 8, "the tiny checkpoints are there");
    all
}

struct Expected {
    floats: HashMap<String, Vec<f32>>,
    tokens: HashMap<String, Vec<u32>>,
}

impl Expected {
    fn read(folder: &Path) -> Expected {
        let bytes = std::fs::read(folder.join("expected.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let mut expected = Expected { floats: HashMap::new(), tokens: HashMap::new() };
        for (name, tensor) in file.tensors() {
            let data = tensor.data();
            if tensor.dtype() == safetensors::Dtype::I64 {
                let ids = data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32);
                expected.tokens.insert(name.clone(), ids.collect());
            } else {
                let values = data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
                expected.floats.insert(name.clone(), values.collect());
            }
        }
        expected
    }
}

#[derive(Default)]
struct Seen(HashMap<String, Vec<f32>>);

impl Seen {
    fn add(&mut self, name: String, x: &[f32]) {
        self.0.entry(name).or_default().extend_from_slice(x);
    }
}

impl Observer for Seen {
    fn embedding(&mut self, x: &[f32]) {
        self.add("embedding".into(), x);
    }
    fn layer(&mut self, index: usize, x: &[f32]) {
        self.add(format!("layer.{index}"), x);
    }
    fn final_norm(&mut self, x: &[f32]) {
        self.add("final_norm".into(), x);
    }
}

fn difference(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    let largest = want.iter().fold(0f32, |m, x| m.max(x.abs()));
    let off = got.iter().zip(want).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(off.is_finite());
    off / largest
}

fn options(isa: Isa, batch: usize) -> Options {
    let exact = CacheTypes { keys: fonio_codec::list::F32, values: fonio_codec::list::F32 };
    Options { threads: 2, isa, batch, cache: exact, ..Options::default() }
}

/// Runs everything in `expected` on a model.
fn check(model: &Path, expected: &Expected, isa: Isa, batch: usize) {
    let what = format!("{} {isa} batch {batch}", model.display());
    let engine = Engine::open(model, options(isa, batch)).unwrap_or_else(|e| panic!("{what}: {e}"));
    let mut session = engine.session().unwrap();
    let mut seen = Seen::default();
    let mut logits = Vec::new();
    let tokens = &expected.tokens["tokens"];
    session.observe(tokens, |_, row| logits.extend_from_slice(row), &mut seen).unwrap();
    seen.0.insert("logits".into(), logits);
    for (name, want) in
        expected.floats.iter().filter(|(name, _)| !name.contains("single") && *name != "greedy_margin")
    {
        let off = difference(&seen.0[name], want);
        assert!(off < RELATIVE, "{what}: {name} is off by {off:e}");
    }
    session.truncate(0);
    let mut logits = Vec::new();
    session.score(&expected.tokens["single.tokens"], |_, row| logits.extend_from_slice(row)).unwrap();
    let off = difference(&logits, &expected.floats["single.logits"]);
    assert!(off < RELATIVE, "{what}: single logits are off by {off:e}");
    greedy(&mut engine.session().unwrap(), expected, &what);
}

/// The greedy continuation, token by token, through the cache. Margins are at least 0.002 and logits within 1e-4 of
/// some units.
fn greedy(session: &mut fonio_engine::Session<'_>, expected: &Expected, what: &str) {
    let mut next = expected.tokens["tokens"].clone();
    for (i, &want) in expected.tokens["greedy"].iter().enumerate() {
        let logits = session.extend(&next).unwrap();
        let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
        assert_eq!(best as u32, want, "{what}: token {i} of the continuation");
        next = vec![want];
    }
}

fn convert_to_gguf(folder: &Path, out: &Path) {
    let source = Source::open(folder).unwrap();
    let metadata = source.complete_metadata().unwrap();
    let plan = Plan::new(source.checkpoint().as_ref(), source.spec(), metadata, &Target::Keep, &[]).unwrap();
    let settings = Settings {
        threads: 2,
        isa: Isa::detect(),
        write: Default::default(),
        progress: &|_, _| {},
        cancel: None,
    };
    let gguf = fonio_checkpoint::list::named("gguf").unwrap();
    convert::run(source.checkpoint().as_ref(), &plan, gguf, out, &settings).unwrap();
}

#[test]
fn folders_compute_what_transformers_computes() {
    for folder in folders() {
        let expected = Expected::read(&folder);
        for isa in Isa::available() {
            check(&folder, &expected, isa, 512);
        }
        for batch in [1, 7] {
            check(&folder, &expected, Isa::detect(), batch);
        }
    }
}

#[test]
fn the_older_spelling_of_configurations_means_the_same() {
    let scratch = tempfile::tempdir().unwrap();
    let mut tried = 0;
    for folder in folders().iter().filter(|f| f.join("config.old.json").exists()) {
        let copy = scratch.path().join(folder.file_name().unwrap());
        std::fs::create_dir(&copy).unwrap();
        for file in std::fs::read_dir(folder).unwrap().map(|f| f.unwrap()) {
            std::fs::copy(file.path(), copy.join(file.file_name())).unwrap();
        }
        std::fs::copy(folder.join("config.old.json"), copy.join("config.json")).unwrap();
        check(&copy, &Expected::read(folder), Isa::detect(), 512);
        tried += 1;
    }
    assert!(tried >= 5);
}

#[test]
fn gguf_files_made_of_them_compute_the_same() {
    let scratch = tempfile::tempdir().unwrap();
    for folder in folders() {
        let out = scratch.path().join(folder.file_name().unwrap()).with_extension("gguf");
        convert_to_gguf(&folder, &out);
        check(&out, &Expected::read(&folder), Isa::detect(), 512);
    }
}
