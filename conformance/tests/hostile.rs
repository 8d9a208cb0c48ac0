//! Configurations and metadata that say something else than the weights: a typed error or a model, never a panic, a
//! hang or an allocation that the file does not justify.

use fonio_checkpoint::{Array, Metadata, Value};
use fonio_conformance::home;
use fonio_engine::{Engine, Options};
use fonio_model::source::Source;
use fonio_quantize::convert::{self, Plan, Settings, Target};
use fonio_simd::Isa;
use serde_json::{Value as Json, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Checkpoints whose configurations are tried: one of each architecture is in here.
fn folders() -> Vec<PathBuf> {
    let all = std::fs::read_dir(home::workspace().join("conformance/models")).unwrap();
    let mut all: Vec<PathBuf> =
        all.map(|f| f.unwrap().path()).filter(|f| f.join("config.json").is_file()).collect();
    all.sort();
    all
}

/// Opens and runs a model; whatever it says, it has to say it soon.
fn survive(model: &Path, what: &str) -> bool {
    let start = Instant::now();
    let options = Options { threads: 1, context: Some(8), batch: 2, ..Options::default() };
    let ran = Engine::open(model, options)
        .and_then(|engine| engine.session()?.extend(&[1, 2, 3]).map(|logits| logits.len()))
        .is_ok();
    assert!(start.elapsed() < Duration::from_secs(20), "{what} took {:?}", start.elapsed());
    ran
}

fn junk() -> Vec<Json> {
    let long = vec![7; 10_000];
    vec![
        json!(null),
        json!(0),
        json!(1),
        json!(3),
        json!(-1),
        json!(65_537),
        json!(2_147_483_647u64),
        json!(4_294_967_296u64),
        json!(1e300),
        json!(0.5),
        json!(-0.0),
        json!("x"),
        json!(true),
        json!(false),
        json!([]),
        json!({}),
        json!(long),
        json!(["sliding_attention"]),
        json!({ "rope_type": "yarn", "factor": 0 }),
        json!({ "rope_type": "longrope", "short_factor": [1], "long_factor": [], "factor": 1e30 }),
    ]
}

#[test]
fn any_value_of_any_key_of_a_configuration() {
    let scratch = tempfile::tempdir().unwrap();
    let (mut tried, mut ran) = (0, 0);
    for folder in folders() {
        let copy = scratch.path().join(folder.file_name().unwrap());
        std::fs::create_dir(&copy).unwrap();
        for file in std::fs::read_dir(&folder).unwrap().map(|f| f.unwrap()) {
            std::os::unix::fs::symlink(file.path(), copy.join(file.file_name())).unwrap();
        }
        let config = copy.join("config.json");
        let text = std::fs::read(&config).unwrap();
        let Ok(Json::Object(whole)) = serde_json::from_slice::<Json>(&text) else { continue };
        std::fs::remove_file(&config).unwrap();
        for (i, key) in whole.keys().enumerate() {
            // All values for all keys of all models would take minutes; neighbours share most code.
            for value in junk().into_iter().skip(i % 2).step_by(2) {
                let mut other = whole.clone();
                other.insert(key.clone(), value.clone());
                std::fs::write(&config, serde_json::to_vec(&other).unwrap()).unwrap();
                let what = format!("{} {key} = {:.60}", copy.display(), value.to_string());
                ran += usize::from(survive(&copy, &what));
                tried += 1;
            }
        }
    }
    // Most keys mean nothing to a model that only generates text.
    assert!(tried > 2_000 && ran > tried / 10, "{ran} of {tried} ran");
}

fn wrong_values() -> Vec<Value> {
    vec![
        Value::U32(0),
        Value::U32(1),
        Value::U32(3),
        Value::U32(65_537),
        Value::U32(u32::MAX),
        Value::U64(u64::MAX),
        Value::I32(-1),
        Value::F32(0.0),
        Value::F32(-1.0),
        Value::F32(f32::NAN),
        Value::F32(1e30),
        Value::Bool(true),
        Value::String("x".into()),
        Value::String("yarn".into()),
        Value::Array(Array::U32(vec![1; 3])),
        Value::Array(Array::Bool(Vec::new())),
        Value::Array(Array::I32(vec![-1; 2])),
    ]
}

/// A GGUF file of a folder with one key changed.
fn write(source: &Source, metadata: Metadata, out: &Path) -> bool {
    let settings = Settings {
        threads: 1,
        isa: Isa::detect(),
        write: fonio_checkpoint::WriteOptions { force: true, ..Default::default() },
        progress: &|_, _| {},
        cancel: None,
    };
    let plan = Plan::new(source.checkpoint().as_ref(), source.spec(), metadata, &Target::Keep, &[]).unwrap();
    let gguf = fonio_checkpoint::list::named("gguf").unwrap();
    convert::run(source.checkpoint().as_ref(), &plan, gguf, out, &settings).is_ok()
}

#[test]
fn any_value_of_any_key_of_a_files_metadata() {
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("wrong.gguf");
    let mut tried = 0;
    for folder in folders() {
        let source = Source::open(&folder).unwrap();
        let metadata = source.checkpoint().metadata().clone();
        let keys: Vec<String> = metadata.iter().map(|(key, _)| key.to_owned()).collect();
        for (i, key) in keys.iter().filter(|key| key.contains('.')).enumerate() {
            for value in wrong_values().into_iter().skip(i % 3).step_by(3) {
                let mut other = metadata.clone();
                other.insert(key, value.clone());
                if write(&source, other, &out) {
                    survive(&out, &format!("{} {key} = {value:?}", folder.display()));
                    tried += 1;
                }
            }
        }
    }
    assert!(tried > 1_000, "{tried}");
}
