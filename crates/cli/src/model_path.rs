//! From what the user calls a model to a path: a path as it is, or a name of a local store. Stores are read in place;
//! nothing is copied and nothing is fetched.
//!
//! In this order:
//! 1. a file or folder of that path;
//! 2. fonio's store, `$FONIO_HOME/models` or `models` in fonio's data folder: `NAME`, `NAME.gguf`,
//!    `NAME.safetensors`;
//! 3. the embedded model;
//! 4. the Hugging Face cache, for `ORG/NAME` and `ORG/NAME@REVISION`: `$HF_HUB_CACHE`, `$HF_HOME/hub`, or
//!    `~/.cache/huggingface/hub`, with `models--ORG--NAME/refs/REVISION` naming a folder in `snapshots`;
//! 5. Ollama's store, for `NAME[:TAG]`: `$OLLAMA_MODELS`, `~/.ollama/models`, `/usr/share/ollama/.ollama/models`,
//!    with a manifest that names a blob.

use crate::error::failed;
use etcetera::BaseStrategy;
use std::path::{Component, Path, PathBuf};

/// Finds a model.
pub fn resolve(model: &Path) -> anyhow::Result<PathBuf> {
    if model.exists() {
        return Ok(model.into());
    }
    let name = model.to_str().filter(|name| is_name(name));
    let found = name.and_then(|name| in_store(name).or_else(|| in_hub(name)).or_else(|| in_ollama(name)));
    if let Some(path) = found {
        return Ok(path);
    }
    let store = store().map_or_else(String::new, |s| format!(" or of a model in {}", s.display()));
    let message =
        format!("{}: there is no such file or folder, and no local model of that name", model.display());
    Err(failed(message)
        .hint(format!("give the path of a .gguf or .safetensors file or of a Hugging Face folder{store}"))
        .into())
}

/// Names may have folders in them but never lead out of a store.
fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.contains('\\')
        && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)))
}

/// A folder of the environment, if it is set.
fn folder(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).filter(|v| !v.is_empty()).map(PathBuf::from)
}

fn home() -> Option<PathBuf> {
    etcetera::home_dir().ok()
}

/// The folder of fonio's own models.
pub fn store() -> Option<PathBuf> {
    let data = || Some(etcetera::choose_base_strategy().ok()?.data_dir().join("fonio"));
    folder("FONIO_HOME").or_else(data).map(|home| home.join("models"))
}

/// The folder for what fonio remembers between runs.
pub fn state() -> Option<PathBuf> {
    let strategy = || {
        let base = etcetera::choose_base_strategy().ok()?;
        Some(base.state_dir().unwrap_or_else(|| base.data_dir()).join("fonio"))
    };
    folder("FONIO_HOME").or_else(strategy)
}

fn in_store(name: &str) -> Option<PathBuf> {
    let store = store()?;
    ["", ".gguf", ".safetensors"]
        .iter()
        .map(|end| store.join(format!("{name}{end}")))
        .find(|path| path.exists())
}

fn in_hub(name: &str) -> Option<PathBuf> {
    let (name, revision) = name.split_once('@').unwrap_or((name, "main"));
    let (org, model) = name.split_once('/')?;
    let hub = folder("HF_HUB_CACHE")
        .or_else(|| Some(folder("HF_HOME")?.join("hub")))
        .or_else(|| Some(home()?.join(".cache/huggingface/hub")))?;
    let model = hub.join(format!("models--{org}--{}", model.replace('/', "--")));
    if !is_name(revision) {
        return None;
    }
    let named = std::fs::read_to_string(model.join("refs").join(revision)).ok();
    let commit = named.as_deref().map_or(revision, str::trim);
    let inside = is_name(commit) && !commit.contains('/');
    Some(model.join("snapshots").join(commit)).filter(|snapshot| inside && snapshot.is_dir())
}

fn in_ollama(name: &str) -> Option<PathBuf> {
    let (name, tag) = name.rsplit_once(':').unwrap_or((name, "latest"));
    let name = if name.contains('/') { name.to_owned() } else { format!("library/{name}") };
    let stores = [
        folder("OLLAMA_MODELS"),
        home().map(|home| home.join(".ollama/models")),
        Some("/usr/share/ollama/.ollama/models".into()),
    ];
    stores.into_iter().flatten().find_map(|store| {
        let manifest = store.join("manifests/registry.ollama.ai").join(&name).join(tag);
        let manifest: serde_json::Value = serde_json::from_slice(&std::fs::read(manifest).ok()?).ok()?;
        let layers = manifest.get("layers")?.as_array()?;
        let weights = layers.iter().find(|layer| {
            layer.get("mediaType").and_then(|m| m.as_str()) == Some("application/vnd.ollama.image.model")
        })?;
        let digest = weights.get("digest")?.as_str()?.strip_prefix("sha256:")?;
        let sound = digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit());
        Some(store.join("blobs").join(format!("sha256-{digest}"))).filter(|blob| sound && blob.is_file())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside_a_store() {
        assert!(is_name("smol") && is_name("org/name") && is_name("name:tag") && is_name("org/name@main"));
        for bad in ["", "../x", "a/../../b", "/etc/passwd", "a\\b"] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
