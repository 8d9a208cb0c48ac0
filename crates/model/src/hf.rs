//! Hugging Face folders seen with GGUF's names, metadata and layouts, and GGUF files seen with Hugging Face's. So one
//! path binds, converts and verifies both.

use crate::Error;
use crate::arch::{self, Architecture};
use crate::keys::{Config, Draft, Keys};
use crate::spec::ModelSpec;
use crate::view::{RowOrder, View};
use fonio_checkpoint::{Checkpoint, Metadata, TensorInfo};
use fonio_codec::list;
use serde_json::{Map, Value as Json, json};
use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

/// Hugging Face's name, GGUF's name, and what happens in between. `{}` stands for the same number in both.
pub struct Rule(pub &'static str, pub &'static str, pub Op);

impl Rule {
    /// The key that counts query heads.
    pub const QUERIES: &'static str = "attention.head_count";
    /// The key that counts key heads.
    pub const KEYS: &'static str = "attention.head_count_kv";
}

/// What happens to a tensor's values from Hugging Face's layout to GGUF's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Nothing.
    Same,
    /// 1 is added; the result is `F32`.
    AddOne,
    /// Rows of each head go from halves to neighbouring pairs; the key counts the heads.
    PairRows(&'static str),
}

/// Opens a folder with config.json and weights as a checkpoint with GGUF's names.
pub fn import(folder: &Path) -> Result<(View, &'static Architecture), Error> {
    let config = Config::read(&folder.join("config.json"))?;
    let model_type =
        config.text_opt("model_type")?.ok_or_else(|| config.wrong("model_type", "is missing"))?;
    let architecture = arch::of_model_type(model_type)
        .ok_or_else(|| config.unsupported("model_type", format!("{model_type:?}")))?;
    let inner = crate::prequant::wrap(fonio_checkpoint::open(folder)?.into(), &config)?;
    let mut metadata = Metadata::new();
    metadata.insert("general.architecture", architecture.name);
    metadata.insert("general.type", "model");
    if let Some(name) = folder.canonicalize().ok().and_then(|p| p.file_name()?.to_str().map(str::to_owned)) {
        metadata.insert("general.name", name);
    }
    let text = config.text();
    let mut draft = Draft { metadata: &mut metadata, prefix: architecture.name, tensors: Vec::new() };
    (architecture.from_config)(&text, &mut draft)?;
    let derived = draft.tensors;
    let tied = match text.get("tie_word_embeddings") {
        Some(_) => text.flag_or("tie_word_embeddings", false)?,
        None => config.flag_or("tie_word_embeddings", architecture.tied)?,
    };
    let mut view = View::new(inner.clone(), metadata);
    for (at, info) in inner.tensors().iter().enumerate() {
        let name = rename(&info.name, architecture.prefixes);
        if architecture.ignored.iter().any(|pattern| matches(pattern, &name)) {
            continue;
        }
        let mapped =
            architecture.rules.iter().find_map(|rule| Some((substitute(rule.0, rule.1, &name)?, rule.2)));
        let Some((gguf, op)) = mapped else { return Err(unknown(inner.as_ref(), info, architecture)) };
        // A tied head may be stored once more; it is the embedding.
        if tied && gguf == "output.weight" {
            continue;
        }
        match op {
            Op::AddOne => view.push_widened(gguf, at, 1.0)?,
            Op::PairRows(key) => {
                let rows = head_rows(&view, architecture, key, info)?;
                view.push_rows(gguf, at, RowOrder::Interleaved(rows))?;
            }
            Op::Same if info.shape.len() <= 1 && info.dtype != list::F32 => {
                view.push_widened(gguf, at, 0.0)?
            }
            Op::Same => view.push_same(gguf, at)?,
        }
    }
    for (name, values) in derived {
        view.push_values(name, &values)?;
    }
    Ok((view, architecture))
}

/// A checkpoint with GGUF's names seen with Hugging Face's, and its config.json.
pub fn export(
    checkpoint: &Arc<dyn Checkpoint>,
    architecture: &'static Architecture,
    spec: &ModelSpec,
) -> Result<(View, Map<String, Json>), Error> {
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
    for (at, info) in checkpoint.tensors().iter().enumerate() {
        if architecture.derived.contains(&info.name.as_str()) {
            continue;
        }
        let mapped = architecture
            .rules
            .iter()
            .find_map(|rule| Some((substitute(rule.1, rule.0, &info.name)?, rule.2)));
        let Some((name, op)) = mapped else { return Err(unknown(checkpoint.as_ref(), info, architecture)) };
        match op {
            Op::AddOne => view.push_widened(name, at, -1.0)?,
            Op::PairRows(key) => {
                let heads = checkpoint.metadata().get(&format!("{}.{key}", architecture.name));
                let rows = rows_per_head(heads.and_then(|v| v.as_u64()), info, checkpoint.as_ref())?;
                view.push_rows(name, at, RowOrder::Split(rows))?;
            }
            Op::Same => view.push_same(name, at)?,
        }
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

/// Rows of one head of a projection.
fn head_rows(view: &View, architecture: &Architecture, key: &str, info: &TensorInfo) -> Result<usize, Error> {
    let heads = view.metadata().get(&format!("{}.{key}", architecture.name)).and_then(|v| v.as_u64());
    rows_per_head(heads, info, view.inner().as_ref())
}

fn rows_per_head(heads: Option<u64>, info: &TensorInfo, checkpoint: &dyn Checkpoint) -> Result<usize, Error> {
    let rows = info.shape.first().copied().unwrap_or(0);
    match heads {
        Some(heads) if heads > 0 && rows > 0 && rows % heads == 0 && (rows / heads).is_multiple_of(2) => {
            Ok((rows / heads) as usize)
        }
        _ => Err(Error::Config {
            file: checkpoint.files().get(info.file).cloned().unwrap_or_default(),
            key: info.name.clone(),
            reason: format!("{rows} rows are not {} whole heads of pairs", heads.unwrap_or(0)),
        }),
    }
}

fn rename<'a>(name: &'a str, prefixes: &[(&str, &str)]) -> Cow<'a, str> {
    for (from, to) in prefixes {
        if let Some(rest) = name.strip_prefix(from) {
            return Cow::Owned(format!("{to}{rest}"));
        }
    }
    Cow::Borrowed(name)
}

/// Whether a name fits a pattern: `{}` is a number, a final `*` is anything.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => substitute(pattern, "", name).is_some(),
    }
}

/// Puts the number that `from`'s `{}` has in `name` in the place of `to`'s.
pub(crate) fn substitute(from: &str, to: &str, name: &str) -> Option<String> {
    let Some((before, after)) = from.split_once("{}") else { return (from == name).then(|| to.to_owned()) };
    let number = name.strip_prefix(before)?.strip_suffix(after)?;
    let canonical = number.parse::<u32>().ok()?.to_string() == number;
    canonical.then(|| to.replacen("{}", number, 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_their_numbers() {
        let rule = ("model.layers.{}.a.weight", "blk.{}.b.weight");
        assert_eq!(
            substitute(rule.0, rule.1, "model.layers.12.a.weight").as_deref(),
            Some("blk.12.b.weight")
        );
        for bad in [
            "model.layers.012.a.weight",
            "model.layers..a.weight",
            "model.layers.99999999999.a.weight",
            "model.layers.1.a.weightx",
            "model.layers.-1.a.weight",
            "model.layers.+1.a.weight",
        ] {
            assert_eq!(substitute(rule.0, rule.1, bad), None, "{bad}");
        }
        assert!(matches("vision.*", "vision.x.y") && !matches("vision.*", "visio"));
    }
}
