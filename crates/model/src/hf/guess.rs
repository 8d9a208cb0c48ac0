//! What a checkpoint without config.json is, told by the names and shapes of its tensors.
//!
//! Sizes follow from shapes. What no shape tells (sizes of heads, rotary bases, epsilons) is assumed to be what the
//! published models of the kind have, and every assumption is put into words for the user.

use crate::Error;
use crate::arch::{self, Architecture};
use crate::hf::names::{capture, matches, rename};
use crate::keys::Config;
use fonio_checkpoint::Checkpoint;
use serde_json::{Map, Value as Json, json};
use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

/// Names and shapes of a checkpoint's tensors, as an architecture's rules see them.
pub struct Shapes<'a>(HashMap<Cow<'a, str>, &'a [u64]>);

impl<'a> Shapes<'a> {
    fn new(checkpoint: &'a dyn Checkpoint, prefixes: &[(&str, &str)]) -> Shapes<'a> {
        let tensors = checkpoint.tensors().iter();
        Shapes(tensors.map(|t| (rename(&t.name, prefixes), &t.shape[..])).collect())
    }

    /// The shape of a tensor, outermost dimension first.
    pub fn shape(&self, name: &str) -> Option<&'a [u64]> {
        self.0.get(name).copied()
    }

    /// Whether there is a tensor.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// The first dimension of a tensor.
    pub fn rows(&self, name: &str) -> Option<u64> {
        self.shape(name)?.first().copied()
    }

    /// The last dimension of a tensor.
    pub fn cols(&self, name: &str) -> Option<u64> {
        self.shape(name)?.last().copied()
    }

    /// One more than the largest number that stands for the last `{}` of a pattern; 0 if no name fits.
    pub fn count(&self, pattern: &str) -> u64 {
        let numbers = self.0.keys().filter_map(|name| capture(pattern, name)?.last().copied());
        numbers.max().map_or(0, |n| u64::from(n) + 1)
    }

    fn fit(&self, architecture: &Architecture) -> bool {
        let known = |name: &str| {
            architecture.rules.iter().any(|rule| capture(rule.0, name).is_some())
                || architecture.ignored.iter().any(|pattern| matches(pattern, name))
        };
        !self.0.is_empty() && self.0.keys().all(|name| known(name))
    }
}

/// A configuration as Hugging Face would spell it, and what of it no tensor tells.
pub struct Guess {
    /// The configuration.
    pub config: Map<String, Json>,
    /// Parts of sentences, such as `heads of 128 values`.
    pub assumed: Vec<String>,
}

impl Guess {
    /// The configuration of a `model_type`.
    pub fn new(model_type: &str) -> Guess {
        let mut config = Map::new();
        config.insert("model_type".into(), json!(model_type));
        Guess { config, assumed: Vec::new() }
    }

    /// A key that follows from shapes.
    pub fn set(&mut self, key: &str, value: impl Into<Json>) {
        self.config.insert(key.into(), value.into());
    }

    /// A key that is only likely; `words` say it to the user.
    pub fn assume(&mut self, key: &str, value: impl Into<Json>, words: impl Into<String>) {
        self.set(key, value);
        self.assumed.push(words.into());
    }
}

/// The architecture and configuration of a checkpoint, and a sentence on what was assumed.
pub(crate) fn guess(
    checkpoint: &dyn Checkpoint,
    path: &Path,
) -> Result<(&'static Architecture, Config, String), Error> {
    let mut fit = Vec::new();
    for &architecture in arch::ALL {
        let shapes = Shapes::new(checkpoint, architecture.prefixes);
        if !shapes.fit(architecture) {
            continue;
        }
        fit.push(architecture.models);
        let Some(guess) = architecture.guess.and_then(|guess| guess(&shapes)) else { continue };
        let mut words =
            format!("there is no config.json: the tensors' names are those of {}", architecture.models);
        if !guess.assumed.is_empty() {
            words += &format!("; assumed: {}", guess.assumed.join(", "));
        }
        let config = Config::of(&path.join("config.json"), Json::Object(guess.config));
        return Ok((architecture, config, words));
    }
    let reason = if fit.is_empty() {
        "is missing beside the weights, and the tensors' names are those of no architecture that fonio knows"
            .into()
    } else {
        format!(
            "is missing beside the weights; their names fit {}, whose sizes no shape tells",
            fit.join(" or ")
        )
    };
    Err(Error::Config { file: path.into(), key: "config.json".into(), reason })
}
