//! The tiny checkpoints and what is expected of them, for the tests that go through all.
#![allow(dead_code, reason = "each test is a program of its own and uses a part of this")]

use fonio_checkpoint::Metadata;
use fonio_checkpoint::cawsf::Packing;
use fonio_conformance::home;
use fonio_model::prequant::mxfp4;
use fonio_model::source::Source;
use fonio_quantize::convert::{self, Plan, Settings, Target};
use fonio_quantize::decompose;
use fonio_simd::Isa;
use safetensors::SafeTensors;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Every checkpoint; `FONIO_TINY` picks those whose name contains it.
pub fn folders() -> Vec<PathBuf> {
    let all = std::fs::read_dir(home::workspace().join("conformance/models")).unwrap();
    let mut all: Vec<PathBuf> = all.map(|f| f.unwrap().path()).filter(|f| expected_in(f).is_some()).collect();
    all.sort();
    assert!(all.len() >= 8, "the tiny checkpoints are there");
    if let Ok(part) = std::env::var("FONIO_TINY") {
        all.retain(|f| name(f).contains(&part));
    }
    all
}

/// The folder with the expected values: another one where two spell the same model.
pub fn expected_in(folder: &Path) -> Option<PathBuf> {
    if folder.join("expected.safetensors").exists() {
        return Some(folder.into());
    }
    let other = std::fs::read_to_string(folder.join("expected.from")).ok()?;
    Some(folder.with_file_name(other.trim()))
}

/// Its name.
pub fn name(folder: &Path) -> &str {
    folder.file_name().unwrap().to_str().unwrap()
}

/// Tries every folder and tells all that failed.
pub fn each(mut f: impl FnMut(&Path) -> Result<(), String>) {
    let failed: Vec<String> = folders()
        .iter()
        .filter_map(|folder| Some(format!("{}: {}", name(folder), f(folder).err()?)))
        .collect();
    assert!(failed.is_empty(), "{} of the checkpoints:\n{}", failed.len(), failed.join("\n"));
}

/// What transformers computes.
pub struct Expected {
    pub floats: HashMap<String, Vec<f32>>,
    pub tokens: HashMap<String, Vec<u32>>,
}

impl Expected {
    pub fn read(folder: &Path) -> Expected {
        let bytes = std::fs::read(expected_in(folder).unwrap().join("expected.safetensors")).unwrap();
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

/// How tests convert.
pub fn settings() -> Settings<'static> {
    Settings { threads: 2, isa: Isa::detect(), write: Default::default(), progress: &|_, _| {}, cancel: None }
}

/// A copy beside `out` of a folder that spells another's weights, with the tokenizer that the other has; any other
/// folder as it is.
pub fn with_tokenizer(folder: &Path, out: &Path) -> PathBuf {
    let Some(other) = expected_in(folder).filter(|other| other != folder) else { return folder.into() };
    let copy = out.with_extension("source");
    std::fs::create_dir_all(&copy).unwrap();
    for from in [other.as_path(), folder] {
        for file in std::fs::read_dir(from).unwrap().map(|f| f.unwrap()) {
            let name = file.file_name();
            let of_tokenizer =
                ["tokenizer", "rwkv_vocab"].iter().any(|b| name.to_str().unwrap().starts_with(b));
            if from == folder || of_tokenizer {
                std::fs::copy(file.path(), copy.join(name)).unwrap();
            }
        }
    }
    copy
}

/// Makes a GGUF file of a model.
pub fn convert_to_gguf(model: &Path, out: &Path, target: &Target) -> Result<(), String> {
    convert(model, out, target, |_| {})
}

/// The same with metadata as `change` leaves it.
pub fn convert(
    model: &Path,
    out: &Path,
    target: &Target,
    change: impl FnOnce(&mut Metadata),
) -> Result<(), String> {
    let source = Source::open(&with_tokenizer(model, out)).map_err(|e| e.to_string())?;
    let mut metadata = source.complete_metadata().map_err(|e| e.to_string())?;
    change(&mut metadata);
    write_gguf(&source, metadata, out, target)
}

/// Makes a GGUF file of an opened model.
pub fn write_gguf(source: &Source, metadata: Metadata, out: &Path, target: &Target) -> Result<(), String> {
    let plan = Plan::new(source.checkpoint().as_ref(), source.spec(), metadata, target, &[])
        .map_err(|e| e.to_string())?;
    let gguf = fonio_checkpoint::list::named("gguf").unwrap();
    convert::run(source.checkpoint().as_ref(), &plan, gguf, out, &settings()).map_err(|e| e.to_string())?;
    Ok(())
}

/// Makes a CAWSF file of a model: its matrices, and those of stacks of experts, as sums of few parts.
pub fn convert_to_cawsf(model: &Path, out: &Path) -> Result<(), String> {
    let source = Source::open(&with_tokenizer(model, out)).map_err(|e| e.to_string())?;
    let metadata = source.complete_metadata().map_err(|e| e.to_string())?;
    let checkpoint = source.checkpoint().as_ref();
    let target = Target::named("Q8_0").map_err(|e| e.to_string())?;
    let plan = Plan::new(checkpoint, source.spec(), metadata, &target, &[]).map_err(|e| e.to_string())?;
    let sums = decompose::scopes(&plan, true, &[], 0, 0);
    let usual = decompose::Settings::default();
    let conversion = decompose::Conversion {
        settings: decompose::Settings { rank: 4, band: Some(1), pq_d: 16, pq_k: 16, ..usual },
        packing: Packing::Zstd,
        max_layers: 0,
        max_elems: 0,
        force: false,
        resume: None,
        threads: 2,
        isa: Isa::detect(),
        progress: &|_, _| {},
        cancel: None,
    };
    decompose::run(checkpoint, &plan, &sums, None, out, &conversion).map_err(|e| e.to_string())?;
    Ok(())
}

/// A Hugging Face folder without tokenizer.
pub fn convert_to_folder(model: &Path, out: &Path) -> Result<(), String> {
    let source = Source::open(model).map_err(|e| e.to_string())?;
    let (view, mut config) =
        fonio_model::hf::export(source.checkpoint(), None, source.architecture(), source.spec())
            .map_err(|e| e.to_string())?;
    let view = mxfp4::export(Arc::new(view), &mut config).map_err(|e| e.to_string())?;
    let plan = Plan::floats(view.as_ref(), Default::default(), Some(fonio_codec::list::F32));
    let safetensors = fonio_checkpoint::list::named("safetensors").unwrap();
    std::fs::create_dir(out).unwrap();
    convert::run(view.as_ref(), &plan, safetensors, &out.join("model.safetensors"), &settings())
        .map_err(|e| e.to_string())?;
    std::fs::write(out.join("config.json"), serde_json::to_vec(&config).unwrap()).unwrap();
    Ok(())
}

/// The largest difference as a share of the largest value.
pub fn difference(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    let largest = want.iter().fold(0f32, |m, x| m.max(x.abs()));
    let off = got.iter().zip(want).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    if off.is_finite() { off / largest } else { f32::INFINITY }
}
