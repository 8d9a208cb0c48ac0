//! Where oracles and real models lie, and what a test does when one is missing.
//!
//! Layout of the oracle folder (`FONIO_ORACLES`, else `target/oracles` of this workspace):
//!
//! ```text
//! llama.cpp/            shared libraries of one llama.cpp build
//! vocab/                ggml-vocab-*.gguf with their .inp and .out vectors
//! templates/            *.jinja chat templates
//! tokenizers/NAME/      tokenizer.json and tokenizer_config.json of gemma3, gpt2, llama3, qwen2_5
//! ```
//!
//! The models folder (`FONIO_MODELS`, else `fonio-models` in the user's cache folder) holds the files of [`SMOLLM2`],
//! [`GEMMA3`] and [`MINILM`].

use std::path::{Path, PathBuf};

/// SmolLM2-135M-Instruct, mostly Q4_1: a llama-architecture model.
pub const SMOLLM2: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
/// Gemma 3 270M, Q4_K_M.
pub const GEMMA3: &str = "gemma-3-270m.Q4_K_M.gguf";
/// all-MiniLM-L6-v2, f32 weights for measuring codecs.
pub const MINILM: &str = "all-MiniLM-L6-v2/model.safetensors";

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from)
}

/// The root of this workspace.
pub fn workspace() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

/// The oracle folder; it may not exist yet.
pub fn oracles() -> PathBuf {
    variable("FONIO_ORACLES").unwrap_or_else(|| workspace().join("target/oracles"))
}

/// The models folder; it may not exist yet.
pub fn models() -> PathBuf {
    variable("FONIO_MODELS").unwrap_or_else(|| {
        let cache = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")));
        cache.unwrap_or_else(|| workspace().join("target")).join("fonio-models")
    })
}

/// The real model with this name, if it has been fetched.
pub fn model(name: &str) -> Option<PathBuf> {
    Some(models().join(name)).filter(|path| path.exists())
}

/// The file or folder with this name in the oracle folder, if it has been fetched.
pub fn oracle(name: &str) -> Option<PathBuf> {
    Some(oracles().join(name)).filter(|path| path.exists())
}

/// Whether this is a run of continuous integration, where nothing may be skipped.
pub fn in_ci() -> bool {
    std::env::var("CI").is_ok_and(|v| !matches!(v.as_str(), "" | "0" | "false"))
}

/// Passes `found` on. When it is `None`, says on standard error that the calling test is skipped and how to
/// fetch what it needs.
///
/// # Panics
/// In continuous integration (`CI` is set), where a missing oracle is a failure.
#[track_caller]
pub fn need<T>(what: &str, found: Option<T>) -> Option<T> {
    if found.is_none() {
        assert!(!in_ci(), "{what} is missing and CI is set: run `cargo xtask fetch`");
        eprintln!("skipped: {what} is missing; run `cargo xtask fetch`");
    }
    found
}
