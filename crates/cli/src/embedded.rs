//! The model that fonio brings along: a tiny one of our own (`models/grain` has the script that trained it), so that
//! everything can be tried without fetching anything.
//!
//! It is unpacked into the store on first use, in a folder named after its contents, and opened like any other.

use crate::model_path;
use anyhow::Context as _;
use std::fs;
use std::path::{Path, PathBuf};

/// What it is called.
pub const NAME: &str = "grain";

/// Prose of its kind that it was not trained on.
pub const TEXT: &str = include_str!("../../../models/grain/eval.txt");

macro_rules! files {
    ($($name:literal),*) => {
        &[$(($name, include_bytes!(concat!("../../../models/grain/", $name)))),*]
    };
}

const FILES: &[(&str, &[u8])] = files![
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json"
];

/// The folder of the unpacked model, in the store, or in the folder for temporary files if there can be no store.
pub fn folder() -> anyhow::Result<PathBuf> {
    let contents = format!("{:016x}", fingerprint());
    let mut failed = None;
    for place in [model_path::store(), Some(std::env::temp_dir().join("fonio"))].into_iter().flatten() {
        match unpack(&place.join(".embedded").join(&contents)) {
            Ok(folder) => return Ok(folder),
            Err(e) => failed = failed.or(Some(e)),
        }
    }
    Err(failed.unwrap_or_else(|| anyhow::anyhow!("no folder to unpack it into")))
        .with_context(|| format!("model {NAME:?}"))
}

/// Puts the folder in place whole; another process may do the same at the same time.
fn unpack(place: &Path) -> anyhow::Result<PathBuf> {
    let folder = place.join(NAME);
    if is_whole(&folder) {
        return Ok(folder);
    }
    fs::create_dir_all(place).with_context(|| place.display().to_string())?;
    let temporary = place.join(format!(".{NAME}.{}.part", std::process::id()));
    let written = fs::create_dir(&temporary)
        .and_then(|()| FILES.iter().try_for_each(|(name, bytes)| fs::write(temporary.join(name), bytes)))
        .and_then(|()| fs::rename(&temporary, &folder));
    if let Err(e) = written {
        // It is removed in any case; if even that fails there is nobody to tell.
        let _ = fs::remove_dir_all(&temporary);
        if !is_whole(&folder) {
            return Err(e).with_context(|| folder.display().to_string());
        }
    }
    Ok(folder)
}

/// Whether the folder holds these files. In a folder that others may write to, a name says nothing.
fn is_whole(folder: &Path) -> bool {
    FILES.iter().all(|(name, bytes)| fs::read(folder.join(name)).is_ok_and(|found| found == *bytes))
}

/// FNV-1a (Fowler, Noll & Vo) of all files: another model gets another folder.
fn fingerprint() -> u64 {
    let bytes = FILES.iter().flat_map(|(name, bytes)| name.bytes().chain(bytes.iter().copied()));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, b| (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}
