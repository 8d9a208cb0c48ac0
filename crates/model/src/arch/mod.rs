//! Architectures: one file each, one line each in [`ALL`].

mod common;
mod deepseek2;
mod gemma;
mod gemma2;
mod gemma3;
mod gpt2;
mod gptj;
mod gptoss;
mod granite;
mod llama;
mod mamba;
mod mamba2;
mod olmo2;
mod phi2;
mod phi3;
mod qwen2;
mod qwen2moe;
mod qwen3;
mod qwen3moe;
mod rwkv;
mod rwkv4;
mod rwkv6;
mod rwkv7;
mod stablelm;
mod starcoder2;

use crate::Error;
use crate::hf::{Guess, Rule, Shapes};
use crate::keys::{Config, Draft, Keys};
use crate::spec::ModelSpec;
use fonio_checkpoint::Checkpoint;
use serde_json::{Map, Value as Json, json};

/// Every architecture that fonio knows.
pub const ALL: &[&Architecture] = &[
    &llama::LLAMA,
    &qwen2::QWEN2,
    &qwen2moe::QWEN2MOE,
    &qwen3::QWEN3,
    &qwen3moe::QWEN3MOE,
    &gemma::GEMMA,
    &gemma2::GEMMA2,
    &gemma3::GEMMA3,
    &phi2::PHI2,
    &phi3::PHI3,
    &gpt2::GPT2,
    &gptj::GPTJ,
    &gptoss::GPT_OSS,
    &deepseek2::DEEPSEEK2,
    &granite::GRANITE,
    &olmo2::OLMO2,
    &stablelm::STABLELM,
    &starcoder2::STARCODER2,
    &mamba::MAMBA,
    &mamba2::MAMBA2,
    &rwkv4::RWKV4,
    &rwkv6::RWKV6,
    &rwkv7::RWKV7,
];

/// How one architecture is read, run and converted.
pub struct Architecture {
    /// GGUF's `general.architecture`.
    pub name: &'static str,
    /// Hugging Face's `model_type`s.
    pub model_types: &'static [&'static str],
    /// What people call the models.
    pub models: &'static str,
    /// From metadata to a spec.
    pub spec: fn(&Keys<'_>) -> Result<ModelSpec, Error>,
    /// From Hugging Face's configuration to metadata.
    pub from_config: fn(&Config, &mut Draft<'_>) -> Result<(), Error>,
    /// Whether a configuration without `model_type` is of this architecture.
    pub is_config: fn(&Config) -> bool,
    /// The configuration of a checkpoint that has none.
    pub guess: Option<fn(&Shapes<'_>) -> Option<Guess>>,
    /// From a spec and metadata back to Hugging Face's configuration.
    pub to_config: ToConfig,
    /// Whether llama.cpp knows the architecture under this name.
    pub llama_cpp: bool,
    /// How Hugging Face's tensors are called here.
    pub rules: &'static [Rule],
    /// How tensors of GGUF files were called before they were stacked, and what they are called now.
    pub older: &'static [Rule],
    /// Tensors of Hugging Face's files that have no part in generating text: patterns of names.
    pub ignored: &'static [&'static str],
    /// GGUF's tensors that follow from the configuration.
    pub derived: &'static [&'static str],
    /// Whether the head is the embedding where a configuration doesn't say.
    pub tied: bool,
    /// Beginnings of Hugging Face's tensor names and what they are replaced with before the rules apply.
    pub prefixes: &'static [(&'static str, &'static str)],
}

impl Architecture {
    /// What an architecture is that says nothing of itself.
    const BARE: Architecture = Architecture {
        name: "",
        model_types: &[],
        models: "",
        spec: |keys| Err(keys.wrong("architecture", "has no spec")),
        from_config: |_, _| Ok(()),
        is_config: |_| false,
        guess: None,
        llama_cpp: true,
        to_config: |_, _, _| Ok(()),
        rules: &[],
        older: &[],
        ignored: &[],
        derived: &[],
        tied: false,
        prefixes: &[],
    };
}

/// Sets the names that Hugging Face's configuration has for a model.
fn classes(json: &mut Map<String, Json>, class: &str, model_type: &str) {
    json.insert("architectures".into(), json!([class]));
    json.insert("model_type".into(), json!(model_type));
}

/// Writes Hugging Face's configuration.
pub type ToConfig = fn(&ModelSpec, &Keys<'_>, &mut Map<String, Json>) -> Result<(), Error>;

/// The architecture with this name in GGUF.
pub fn named(name: &str) -> Option<&'static Architecture> {
    ALL.iter().copied().find(|a| a.name == name)
}

/// The architecture with this `model_type` in Hugging Face's configuration.
pub fn of_model_type(model_type: &str) -> Option<&'static Architecture> {
    ALL.iter().copied().find(|a| a.model_types.contains(&model_type))
}

/// The architecture of a checkpoint with GGUF's metadata, and its spec.
pub fn resolve(checkpoint: &dyn Checkpoint) -> Result<(&'static Architecture, ModelSpec), Error> {
    let keys = Keys::new(checkpoint, "general");
    let name = keys.text_opt("architecture")?.ok_or_else(|| keys.wrong("architecture", "is missing"))?;
    let architecture = named(name).ok_or_else(|| {
        let known: Vec<&str> = ALL.iter().map(|a| a.name).collect();
        keys.unsupported("architecture", format!("{name:?}; known are {}", known.join(", ")))
    })?;
    let spec = (architecture.spec)(&Keys::new(checkpoint, architecture.name))?;
    Ok((architecture, spec))
}
