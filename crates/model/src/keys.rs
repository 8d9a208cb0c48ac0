//! Typed access to configuration: GGUF metadata under an architecture's prefix, and Hugging Face's config.json.
//! Every error names the file and the key.

use crate::Error;
use fonio_checkpoint::{Array, Checkpoint, Metadata, Value};
use serde_json::Value as Json;
use std::cell::RefCell;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// GGUF metadata of one architecture.
pub struct Keys<'a> {
    checkpoint: &'a dyn Checkpoint,
    prefix: &'a str,
}

impl<'a> Keys<'a> {
    /// Keys that begin with `prefix` and a dot.
    pub fn new(checkpoint: &'a dyn Checkpoint, prefix: &'a str) -> Keys<'a> {
        Keys { checkpoint, prefix }
    }

    /// The checkpoint.
    pub fn checkpoint(&self) -> &'a dyn Checkpoint {
        self.checkpoint
    }

    /// The file that errors name.
    pub fn file(&self) -> PathBuf {
        self.checkpoint.files().first().cloned().unwrap_or_default()
    }

    fn value(&self, key: &str) -> Option<&'a Value> {
        self.checkpoint.metadata().get(&format!("{}.{key}", self.prefix))
    }

    /// An error about a key.
    pub fn wrong(&self, key: &str, reason: impl Into<String>) -> Error {
        Error::Config { file: self.file(), key: format!("{}.{key}", self.prefix), reason: reason.into() }
    }

    /// An error about a key with a meaning that fonio does not compute.
    pub fn unsupported(&self, key: &str, reason: impl Into<String>) -> Error {
        Error::Unsupported { file: self.file(), key: format!("{}.{key}", self.prefix), reason: reason.into() }
    }

    /// A count, if it is there.
    pub fn count_opt(&self, key: &str) -> Result<Option<usize>, Error> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let count = value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|&n| n <= MAX_COUNT);
        count.map(Some).ok_or_else(|| self.wrong(key, format!("{} is no sensible count", shown(value))))
    }

    /// A count from 1 on that has to be there.
    pub fn count(&self, key: &str) -> Result<usize, Error> {
        match self.count_opt(key)? {
            None => Err(self.wrong(key, "is missing")),
            Some(0) => Err(self.wrong(key, "must not be 0")),
            Some(n) => Ok(n),
        }
    }

    /// A count for each layer, given as one number or as an array.
    pub fn counts(&self, key: &str, layers: usize, default: Option<usize>) -> Result<Vec<usize>, Error> {
        let list: Vec<Option<usize>> = match self.value(key).and_then(Value::as_array) {
            None => {
                let n = match (self.count_opt(key)?, default) {
                    (Some(n), _) | (None, Some(n)) => n,
                    (None, None) => return Err(self.wrong(key, "is missing")),
                };
                return Ok(vec![n; layers]);
            }
            Some(Array::U32(list)) => list.iter().map(|&n| usize::try_from(n).ok()).collect(),
            Some(Array::I32(list)) => list.iter().map(|&n| usize::try_from(n).ok()).collect(),
            Some(_) => return Err(self.wrong(key, "is no array of 32-bit integers")),
        };
        if list.len() != layers {
            return Err(self.wrong(key, format!("has {} entries for {layers} layers", list.len())));
        }
        let counts: Option<Vec<usize>> = list.into_iter().map(|n| n.filter(|&n| n <= MAX_COUNT)).collect();
        counts.ok_or_else(|| self.wrong(key, "has an entry that is no sensible count"))
    }

    /// A finite number, if it is there.
    pub fn float_opt(&self, key: &str) -> Result<Option<f32>, Error> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let number = value.as_f64().map(|x| x as f32).filter(|x| x.is_finite());
        number.map(Some).ok_or_else(|| self.wrong(key, format!("{} is no finite number", shown(value))))
    }

    /// A finite number that has to be there.
    pub fn float(&self, key: &str) -> Result<f32, Error> {
        self.float_opt(key)?.ok_or_else(|| self.wrong(key, "is missing"))
    }

    /// A finite number above 0, or a default.
    pub fn positive_or(&self, key: &str, default: f32) -> Result<f32, Error> {
        let x = self.float_opt(key)?.unwrap_or(default);
        if x > 0.0 { Ok(x) } else { Err(self.wrong(key, format!("{x} is not above 0"))) }
    }

    /// Text, if it is there.
    pub fn text_opt(&self, key: &str) -> Result<Option<&'a str>, Error> {
        let Some(value) = self.value(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.wrong(key, "is no text"))
    }

    /// A truth value, if it is there.
    pub fn flag_opt(&self, key: &str) -> Result<Option<bool>, Error> {
        let Some(value) = self.value(key) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.wrong(key, "is no truth value"))
    }

    /// Whether a key holds an array.
    pub fn is_array(&self, key: &str) -> bool {
        self.value(key).is_some_and(|v| v.as_array().is_some())
    }

    /// Truth values, one for each layer, if they are there.
    pub fn flags_opt(&self, key: &str, layers: usize) -> Result<Option<&'a [bool]>, Error> {
        match self.value(key).and_then(Value::as_array) {
            Some(Array::Bool(list)) if list.len() == layers => Ok(Some(list)),
            Some(_) => Err(self.wrong(key, format!("is no array of {layers} truth values"))),
            None => Ok(None),
        }
    }

    /// Whether the checkpoint has a tensor.
    pub fn has_tensor(&self, name: &str) -> bool {
        self.checkpoint.find(name).is_some()
    }

    /// A small tensor of one dimension, as `f32`, if it is there.
    pub fn vector_opt(&self, name: &str, len: usize) -> Result<Option<Vec<f32>>, Error> {
        let Some(at) = self.checkpoint.find(name) else { return Ok(None) };
        crate::bind::vector(self.checkpoint, at, len).map(Some)
    }
}

/// No dimension of a model is larger: sums and products of a few stay far from overflow.
const MAX_COUNT: usize = 1 << 31;

/// A value for an error message: arrays can be long.
fn shown(value: &Value) -> String {
    match value {
        Value::Array(_) => "an array".into(),
        Value::String(s) => format!("text {:?}", s.chars().take(40).collect::<String>()),
        other => format!("{other:?}"),
    }
}

/// Hugging Face's config.json.
pub struct Config {
    file: PathBuf,
    json: Json,
    /// Keys that somebody asked for.
    asked: RefCell<HashSet<String>>,
}

/// Keys of configurations that change what a model computes, with the values that don't. Where an architecture does
/// not ask for one of them, it does not know what it means.
const MEANINGFUL: &[(&str, &[&str])] = &[
    ("activation_function", &[]),
    ("add_cross_attention", &["false"]),
    ("alibi", &["false"]),
    ("attention_multiplier", &[]),
    ("attn_logit_softcapping", &[]),
    ("attn_temperature_tuning", &["false", "0"]),
    ("clip_qkv", &[]),
    ("embedding_multiplier", &["1", "1.0"]),
    ("final_logit_softcapping", &[]),
    ("hidden_act", &[]),
    ("hidden_activation", &[]),
    ("layer_types", &[]),
    ("logit_scale", &["1", "1.0"]),
    ("logits_scaling", &["1", "1.0"]),
    ("moe_layer_freq", &["1"]),
    ("n_routed_experts", &["0"]),
    ("no_rope_layers", &["[]"]),
    ("num_experts", &["0"]),
    ("num_local_experts", &["0"]),
    ("partial_rotary_factor", &["1", "1.0"]),
    ("qk_layernorm", &["false"]),
    ("query_pre_attn_scalar", &[]),
    ("residual_multiplier", &["1", "1.0"]),
    ("rope_parameters", &[]),
    ("rope_scaling", &[]),
    ("rotary_dim", &[]),
    ("rotary_pct", &["1", "1.0"]),
    ("scale_attn_by_inverse_layer_idx", &["false"]),
    ("scale_attn_weights", &["true"]),
    ("sliding_window", &["0"]),
    ("use_bidirectional_attention", &["false"]),
    ("use_mla", &["true"]),
    ("use_parallel_residual", &["false"]),
    ("use_qk_norm", &["false"]),
];

impl Config {
    /// Reads the file.
    pub fn read(file: &Path) -> Result<Config, Error> {
        let bytes = std::fs::read(file)
            .map_err(|source| fonio_checkpoint::Error::Io { file: file.into(), source })?;
        let json = serde_json::from_slice(&bytes).or_else(|e| {
            serde_json::from_slice(&without_infinities(&bytes)).map_err(|_| Error::Config {
                file: file.into(),
                key: "config".into(),
                reason: e.to_string(),
            })
        })?;
        Ok(Config::of(file, json))
    }

    /// A configuration that was not read from a file; errors name `file` all the same.
    pub fn of(file: &Path, json: Json) -> Config {
        Config { file: file.into(), json, asked: RefCell::default() }
    }

    /// The file that errors name.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The configuration of the text part, where a model has several.
    pub fn text(&self) -> Config {
        Config::of(&self.file, self.json.get("text_config").unwrap_or(&self.json).clone())
    }

    /// A part of the configuration; a key with value null is not there.
    pub fn get(&self, key: &str) -> Option<&Json> {
        self.asked.borrow_mut().insert(key.into());
        self.json.get(key).filter(|v| !v.is_null())
    }

    /// A part that is an object itself.
    pub fn object(&self, key: &str) -> Option<Config> {
        let json = self.get(key).filter(|v| v.is_object())?;
        Some(Config::of(&self.file, json.clone()))
    }

    /// An error if the configuration says something about what the model computes that nobody asked for.
    pub fn expect_nothing_ignored(&self) -> Result<(), Error> {
        for (key, neutral) in MEANINGFUL {
            let Some(value) = self.json.get(key).filter(|v| !v.is_null()) else { continue };
            if value.as_array().is_some_and(|all| all.iter().all(|x| x == "full_attention")) {
                continue;
            }
            let text = value.to_string();
            if !self.asked.borrow().contains(*key) && !neutral.contains(&text.as_str()) {
                let text: String = text.chars().take(60).collect();
                return Err(
                    self.unsupported(key, format!("{text} has no meaning for this architecture here"))
                );
            }
        }
        Ok(())
    }

    /// An error about a key.
    pub fn wrong(&self, key: &str, reason: impl Into<String>) -> Error {
        Error::Config { file: self.file.clone(), key: key.into(), reason: reason.into() }
    }

    /// An error about a key with a meaning that fonio does not compute.
    pub fn unsupported(&self, key: &str, reason: impl Into<String>) -> Error {
        Error::Unsupported { file: self.file.clone(), key: key.into(), reason: reason.into() }
    }

    /// A count, if it is there.
    pub fn count_opt(&self, key: &str) -> Result<Option<u32>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let count = value.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|&n| n as usize <= MAX_COUNT);
        count.map(Some).ok_or_else(|| self.wrong(key, format!("{value} is no sensible count")))
    }

    /// A count that has to be there.
    pub fn count(&self, key: &str) -> Result<u32, Error> {
        self.count_opt(key)?.ok_or_else(|| self.wrong(key, "is missing"))
    }

    /// A finite number, if it is there.
    pub fn float_opt(&self, key: &str) -> Result<Option<f32>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.as_f64().map(|x| x as f32).filter(|x| x.is_finite());
        number.map(Some).ok_or_else(|| self.wrong(key, format!("{value} is no finite number")))
    }

    /// A truth value, or a default.
    pub fn flag_or(&self, key: &str, default: bool) -> Result<bool, Error> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.wrong(key, format!("{value} is no truth value")))
    }

    /// Text, if it is there.
    pub fn text_opt(&self, key: &str) -> Result<Option<&str>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.wrong(key, format!("{value} is no text")))
    }

    /// Finite numbers, which have to be there.
    pub fn floats(&self, key: &str) -> Result<Vec<f32>, Error> {
        let list = self.get(key).and_then(Json::as_array).ok_or_else(|| self.wrong(key, "is no list"))?;
        let number = |x: &Json| x.as_f64().map(|x| x as f32).filter(|x| x.is_finite());
        let list: Option<Vec<f32>> = list.iter().map(number).collect();
        list.ok_or_else(|| self.wrong(key, "has an entry that is no finite number"))
    }

    /// Texts, if they are there.
    pub fn texts_opt(&self, key: &str) -> Result<Option<Vec<&str>>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let list: Option<Vec<&str>> = value.as_array().and_then(|a| a.iter().map(Json::as_str).collect());
        list.map(Some).ok_or_else(|| self.wrong(key, "is no list of texts"))
    }

    /// The keys of this object.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.json.as_object().into_iter().flat_map(|o| o.keys()).map(String::as_str)
    }
}

/// JSON with null in place of the numbers that Python writes and JSON does not have.
fn without_infinities(json: &[u8]) -> Vec<u8> {
    const NUMBERS: [&[u8]; 3] = [b"-Infinity", b"Infinity", b"NaN"];
    let (mut out, mut rest, mut quoted) = (Vec::with_capacity(json.len()), json, false);
    while let [byte, after @ ..] = rest {
        if let Some(after) = NUMBERS.iter().filter(|_| !quoted).find_map(|n| rest.strip_prefix(*n)) {
            out.extend_from_slice(b"null");
            rest = after;
            continue;
        }
        out.push(*byte);
        rest = after;
        match (byte, after) {
            (b'"', _) => quoted = !quoted,
            (b'\\', [escaped, after @ ..]) if quoted => {
                out.push(*escaped);
                rest = after;
            }
            _ => {}
        }
    }
    out
}

/// Metadata that is being written for one architecture.
pub struct Draft<'a> {
    /// All of it.
    pub metadata: &'a mut Metadata,
    /// The architecture's name.
    pub prefix: &'a str,
    /// Tensors of one dimension that follow from the configuration.
    pub tensors: Vec<(String, Vec<f32>)>,
    /// The files, with their own names: sizes that a configuration leaves out are their tensors'.
    pub files: &'a dyn Checkpoint,
}

impl Draft<'_> {
    /// The shape of the first of these tensors that the files have.
    pub fn shape(&self, names: &[&str]) -> Result<&[u64], Error> {
        let at = names.iter().find_map(|name| self.files.find(name));
        let info = at.and_then(|at| self.files.tensors().get(at));
        info.map(|info| &info.shape[..]).ok_or_else(|| Error::MissingTensor {
            file: self.files.files().first().cloned().unwrap_or_default(),
            tensor: names.first().copied().unwrap_or_default().into(),
        })
    }

    /// Sets a key under the prefix.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.metadata.insert(format!("{}.{key}", self.prefix), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_python_alone_are_null() {
        let text = br#"{"a": [0.0, Infinity, -Infinity, NaN, -1], "b\"": "Infinity \" NaN", "N": "\\"}"#;
        let json: Json = serde_json::from_slice(&without_infinities(text)).unwrap();
        let want = serde_json::json!({"a": [0.0, null, null, null, -1], "b\"": "Infinity \" NaN", "N": "\\"});
        assert_eq!(json, want);
    }
}
