//! Hugging Face folders seen with GGUF's names, metadata and layouts, and GGUF files seen with Hugging Face's. So one
//! path binds, converts and verifies both.

mod guess;
pub(crate) mod names;
pub(crate) mod older;
mod op;

pub use guess::{Guess, Shapes};
pub use op::Op;

use crate::Error;
use crate::arch::{self, Architecture};
use crate::keys::{Config, Draft, Keys};
use crate::spec::ModelSpec;
use crate::unpacked::Unpacked;
use crate::view::View;
use fonio_checkpoint::{Checkpoint, Metadata, TensorInfo};
use fonio_codec::DType;
use names::{capture, fill, matches, places, rename};
use op::Source;
use serde_json::{Map, Value as Json, json};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

/// Hugging Face's name, GGUF's name, and what happens in between. `{}` stands for the same number in both; a second
/// one that only Hugging Face's has counts the parts of a stack.
pub struct Rule(pub &'static str, pub &'static str, pub Op);

impl Rule {
    /// The key that counts query heads.
    pub const QUERIES: &'static str = "attention.head_count";
    /// The key that counts key heads.
    pub const KEYS: &'static str = "attention.head_count_kv";
}

/// A checkpoint with Hugging Face's names, seen with GGUF's.
pub struct Imported {
    /// The view.
    pub view: View,
    /// Its architecture.
    pub architecture: &'static Architecture,
    /// A sentence on what had to be assumed because there is no config.json.
    pub assumed: Option<String>,
}

/// Opens weights with the config.json of a folder, or without one if their names tell what they are.
pub fn import(weights: &Path, folder: &Path) -> Result<Imported, Error> {
    let file = folder.join("config.json");
    let inner: Arc<dyn Checkpoint> = fonio_checkpoint::open(weights)?.into();
    if inner.container() == "cawsf" {
        return Err(Error::Unsupported {
            file: weights.into(),
            key: "CAWSF version 1".into(),
            reason:
                "it has a model's matrices alone, without norms and vocabulary; `fonio convert` writes them \
                     as .safetensors"
                    .into(),
        });
    }
    let (architecture, config, assumed) = if file.is_file() {
        let config = Config::read(&file)?;
        (of_config(&config)?, config, None)
    } else {
        let (architecture, config, words) = guess::guess(inner.as_ref(), weights)?;
        (architecture, config, Some(words))
    };
    let inner = crate::prequant::wrap(inner, &config)?;
    let mut metadata = general(architecture);
    let path = weights.canonicalize().ok();
    let name = path.as_deref().and_then(|p| if p.is_dir() { p.file_name() } else { p.file_stem() });
    if let Some(name) = name.and_then(|name| name.to_str()) {
        metadata.insert("general.name", name);
    }
    let view = view(inner, architecture, &config, metadata)?;
    Ok(Imported { view, architecture, assumed })
}

/// A checkpoint with Hugging Face's names whose configuration is in no file of its own.
pub(crate) fn of_checkpoint(
    inner: Arc<dyn Checkpoint>,
    config: &Config,
    more: Metadata,
) -> Result<(View, &'static Architecture), Error> {
    let architecture = of_config(config)?;
    let mut metadata = general(architecture);
    metadata.add_new(more);
    Ok((view(inner, architecture, config, metadata)?, architecture))
}

/// The first keys of every model.
fn general(architecture: &Architecture) -> Metadata {
    let mut metadata = Metadata::new();
    metadata.insert("general.architecture", architecture.name);
    metadata.insert("general.type", "model");
    metadata
}

/// The architecture that a configuration names, or whose names for its keys it has.
fn of_config(config: &Config) -> Result<&'static Architecture, Error> {
    match config.text_opt("model_type")? {
        Some(model_type) => arch::of_model_type(model_type).ok_or_else(|| {
            let known: Vec<&str> = arch::ALL.iter().flat_map(|a| a.model_types).copied().collect();
            config.unsupported("model_type", format!("{model_type:?}; known are {}", known.join(", ")))
        }),
        None => {
            let of = arch::ALL.iter().copied().find(|a| (a.is_config)(config));
            of.ok_or_else(|| config.wrong("model_type", "is missing"))
        }
    }
}

/// A checkpoint with Hugging Face's names seen with GGUF's.
fn view(
    inner: Arc<dyn Checkpoint>,
    architecture: &'static Architecture,
    config: &Config,
    mut metadata: Metadata,
) -> Result<View, Error> {
    let text = config.text();
    let mut draft = Draft {
        metadata: &mut metadata,
        prefix: architecture.name,
        tensors: Vec::new(),
        files: inner.as_ref(),
    };
    (architecture.from_config)(&text, &mut draft)?;
    text.expect_nothing_ignored()?;
    let derived = draft.tensors;
    // The second is what Mamba's authors call it.
    let tied = match ["tie_word_embeddings", "tie_embeddings"].into_iter().find(|key| text.get(key).is_some())
    {
        Some(key) => text.flag_or(key, false)?,
        None => config.flag_or("tie_word_embeddings", architecture.tied)?,
    };
    let count = |key: &str| metadata.get(&format!("{}.{key}", architecture.name)).and_then(|v| v.as_u64());
    // Layers behind the last predict a second token; they take no part in the first.
    let layers = count("block_count").unwrap_or(0);
    let later = u64::from(text.count_opt("num_nextn_predict_layers")?.unwrap_or(0));
    let predictive = |name: &str| {
        names::layer(name).is_some_and(|i| (layers..layers.saturating_add(later)).contains(&u64::from(i)))
    };
    let mut view = View::new(inner.clone(), metadata.clone());
    let mut targets = Targets::default();
    for (at, info) in inner.tensors().iter().enumerate() {
        let name = rename(&info.name, architecture.prefixes);
        if architecture.ignored.iter().any(|pattern| matches(pattern, &name)) || predictive(&name) {
            continue;
        }
        let mut known = false;
        for Rule(from, to, op) in architecture.rules.iter().filter(|rule| rule.2 != Op::Back) {
            let Some(numbers) = capture(from, &name) else { continue };
            known = true;
            let index = numbers.get(places(to)).map_or(0, |&n| n as usize);
            // A tied head may be stored once more; it is the embedding.
            if !(tied && *to == "output.weight") {
                targets.add(fill(to, &numbers), Source { at, op: *op, index, name: info.name.clone() });
            }
        }
        if !known {
            return Err(unknown(inner.as_ref(), info, architecture));
        }
    }
    for (name, sources) in targets.all {
        op::import(&mut view, name, &sources, &count)?;
    }
    for (name, values) in derived {
        view.push_values(name, &values)?;
    }
    Ok(view)
}

/// Tensors of a view and what they are made of, in the order in which they were first seen.
#[derive(Default)]
struct Targets {
    all: Vec<(String, Vec<Source>)>,
    index: HashMap<String, usize>,
}

impl Targets {
    fn add(&mut self, name: String, source: Source) {
        let at = *self.index.entry(name.clone()).or_insert(self.all.len());
        if at == self.all.len() {
            self.all.push((name, Vec::new()));
        }
        self.all[at].1.push(source);
    }
}

/// A checkpoint with GGUF's names seen with Hugging Face's, and its config.json. Quantized tensors are seen as `F32`,
/// but for those of the type `kept`.
pub fn export(
    checkpoint: &Arc<dyn Checkpoint>,
    kept: Option<DType>,
    architecture: &'static Architecture,
    spec: &ModelSpec,
) -> Result<(View, Map<String, Json>), Error> {
    let checkpoint: Arc<dyn Checkpoint> = Arc::new(Unpacked::new(checkpoint.clone(), kept));
    let keys = Keys::new(checkpoint.as_ref(), architecture.name);
    let mut config = Map::new();
    (architecture.to_config)(spec, &keys, &mut config)?;
    for (from, to) in [("bos", "bos_token_id"), ("eos", "eos_token_id"), ("padding", "pad_token_id")] {
        let id =
            checkpoint.metadata().get(&format!("tokenizer.ggml.{from}_token_id")).and_then(|v| v.as_u64());
        if let Some(id) = id {
            config.insert(to.into(), json!(id));
        }
    }
    let mut view = View::new(checkpoint.clone(), Metadata::new());
    let mut targets = Targets::default();
    for (at, info) in checkpoint.tensors().iter().enumerate() {
        if architecture.derived.contains(&info.name.as_str()) {
            continue;
        }
        let mapped = architecture.rules.iter().find_map(|rule| Some((rule, capture(rule.1, &info.name)?)));
        let Some((Rule(to, from, op), mut numbers)) = mapped else {
            return Err(unknown(checkpoint.as_ref(), info, architecture));
        };
        if let Op::Row(_, n) = op {
            for i in 0..*n {
                let part = |rule: &&Rule| rule.1 == *from && rule.2 == Op::Row(i, *n);
                let Some(Rule(to, _, op)) = architecture.rules.iter().find(part) else { continue };
                let source = Source { at, op: *op, index: i, name: info.name.clone() };
                targets.add(fill(to, &numbers), source);
            }
            continue;
        }
        // An empty tensor may claim any number of parts.
        let n = if *op == Op::Stack { info.shape.first().map_or(0, |&n| n.min(info.len())) } else { 1 };
        let layer = numbers.len();
        for index in 0..u32::try_from(n).unwrap_or(u32::MAX) {
            numbers.truncate(layer);
            numbers.push(index);
            let source = Source { at, op: *op, index: index as usize, name: info.name.clone() };
            targets.add(fill(to, &numbers), source);
        }
    }
    let count = |key: &str| {
        checkpoint.metadata().get(&format!("{}.{key}", architecture.name)).and_then(|v| v.as_u64())
    };
    for (name, sources) in targets.all {
        op::export(&mut view, name, &sources, &count)?;
    }
    Ok((view, config))
}

fn unknown(checkpoint: &dyn Checkpoint, info: &TensorInfo, architecture: &Architecture) -> Error {
    Error::Unsupported {
        file: checkpoint.files().get(info.file).cloned().unwrap_or_default(),
        key: info.name.clone(),
        reason: format!("architecture {:?} has no such tensor", architecture.name),
    }
}
