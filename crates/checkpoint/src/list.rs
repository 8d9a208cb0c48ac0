//! Every container that fonio knows, one line each.

use crate::{Checkpoint, Container, Error};
use std::io::Read;
use std::path::{Path, PathBuf};

/// All containers.
pub const ALL: &[&Container] = &[
    &crate::gguf::GGUF,
    &crate::safetensors::SAFETENSORS,
    &crate::pytorch::PYTORCH,
    &crate::qsf::QSF,
    &crate::cawsf::CAWSF,
];

/// The container with this name, in any case.
pub fn named(name: &str) -> Option<&'static Container> {
    ALL.iter().copied().find(|c| c.name.eq_ignore_ascii_case(name))
}

/// The container that this path's extension means.
pub fn by_extension(path: &Path) -> Option<&'static Container> {
    ALL.iter().copied().find(|c| has_extension(path, c))
}

fn has_extension(path: &Path, container: &Container) -> bool {
    let extension = path.extension().and_then(|e| e.to_str());
    extension.is_some_and(|e| container.extensions.iter().any(|known| known.eq_ignore_ascii_case(e)))
}

pub(crate) fn open(path: &Path) -> Result<Box<dyn Checkpoint>, Error> {
    if path.is_dir() {
        return open_folder(path);
    }
    let container = match sniff(path)? {
        Some(container) => container,
        // The extension's container can say what is wrong with the file.
        None => by_extension(path).ok_or_else(|| {
            let known: Vec<_> = ALL.iter().map(|c| c.name).collect();
            let reason = format!("its first bytes and its extension belong to none of {}", known.join(", "));
            Error::Unsupported { file: path.into(), tensor: None, reason }
        })?,
    };
    (container.open)(path)
}

fn sniff(path: &Path) -> Result<Option<&'static Container>, Error> {
    let io = |source| Error::Io { file: path.into(), source };
    if !std::fs::metadata(path).map_err(io)?.is_file() {
        return Err(Error::Refused { file: path.into(), reason: "not a regular file".into() });
    }
    let mut first = Vec::new();
    std::fs::File::open(path).map_err(io)?.take(4096).read_to_end(&mut first).map_err(io)?;
    Ok(ALL.iter().copied().find(|c| (c.sniff)(&first)))
}

/// Names that containers look for come first, in the list's order; else the folder must have exactly one model.
fn open_folder(folder: &Path) -> Result<Box<dyn Checkpoint>, Error> {
    for container in ALL {
        if let Some(file) = known_file(folder, container) {
            return (container.open)(&file);
        }
    }
    for container in ALL {
        if let Some(file) = only_file(folder, container)? {
            return (container.open)(&file);
        }
    }
    let known = ALL.iter().flat_map(|c| c.folder_files.iter().copied());
    Err(Error::Refused { file: folder.into(), reason: looked_for(known, ALL.iter().copied()) })
}

fn looked_for<'a>(
    files: impl Iterator<Item = &'a str>,
    containers: impl Iterator<Item = &'a Container>,
) -> String {
    let files = files.map(Into::into);
    let extensions = containers.flat_map(|c| c.extensions).map(|e| format!("a single *.{e}"));
    let all: Vec<String> = files.chain(extensions).collect();
    format!("no model in this folder; looked for {}", all.join(", "))
}

/// The first of the container's own file names that is in the folder.
fn known_file(folder: &Path, container: &Container) -> Option<PathBuf> {
    container.folder_files.iter().map(|name| folder.join(name)).find(|file| file.is_file())
}

/// The container's file in a folder.
pub(crate) fn file_in(folder: &Path, container: &Container) -> Result<PathBuf, Error> {
    if let Some(file) = known_file(folder, container) {
        return Ok(file);
    }
    only_file(folder, container)?.ok_or_else(|| Error::Refused {
        file: folder.into(),
        reason: looked_for(container.folder_files.iter().copied(), std::iter::once(container)),
    })
}

/// The only file with one of the container's extensions; a split set counts as one by its first part.
fn only_file(folder: &Path, container: &Container) -> Result<Option<PathBuf>, Error> {
    let io = |source| Error::Io { file: folder.into(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let later_part = crate::shards::split_name(&path).is_some_and(|(_, no, ..)| no > 0);
        if has_extension(&path, container) && !later_part && path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    if found.len() > 1 {
        let names: Vec<_> = found.iter().filter_map(|p| p.file_name()?.to_str()).take(10).collect();
        let reason = format!("several models in this folder; name one: {}", names.join(", "));
        return Err(Error::Refused { file: folder.into(), reason });
    }
    Ok(found.pop())
}
