//! Models in several files: which files belong together, and the index that says where each tensor is.
//!
//! `model.safetensors.index.json` and `pytorch_model.bin.index.json` are `{"metadata": {...}, "weight_map": {"TENSOR":
//! "FILE"}}`. Files and index must say the same: a tensor that only one of them has is an error.

use crate::cursor::Fault;
use crate::json::{self, Field, Object};
use crate::map::Source;
use crate::{Error, TensorInfo, shards};
use serde::de::{IgnoredAny, MapAccess};
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// Largest index: one of a model of a trillion parameters has some 10 MB.
const MAX_INDEX: u64 = 100_000_000;

/// The files that a path stands for.
pub(crate) struct FileSet {
    pub(crate) files: Vec<PathBuf>,
    index: Option<Index>,
}

impl FileSet {
    /// What belongs to `path`: an index, a file of a sharded model (with or without an index), or a single file.
    pub(crate) fn find(path: &Path) -> Result<FileSet, Error> {
        if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json")) {
            return FileSet::indexed(path);
        }
        let Some((name, _, count, extension)) =
            shards::split_name(path).filter(|(_, _, count, _)| *count > 1)
        else {
            return Ok(FileSet { files: vec![path.into()], index: None });
        };
        let index = path.with_file_name(format!("{name}.{extension}.index.json"));
        if index.is_file() {
            return FileSet::indexed(&index);
        }
        let files = shards::siblings(path, count).unwrap_or_default();
        for (no, file) in files.iter().enumerate() {
            shards::require(file, no, count)?;
        }
        Ok(FileSet { files, index: None })
    }

    fn indexed(path: &Path) -> Result<FileSet, Error> {
        let index = read_index(path)?;
        for (no, file) in index.files.iter().enumerate() {
            shards::require(file, no, index.files.len() as u64)?;
        }
        Ok(FileSet { files: index.files.clone(), index: Some(index) })
    }

    /// The index, if there is one, must name just the tensors that were found in the files.
    pub(crate) fn compare(&self, found: &[TensorInfo]) -> Result<(), Error> {
        let Some(index) = &self.index else { return Ok(()) };
        let mut there: HashSet<(&str, usize)> = found.iter().map(|t| (t.name.as_str(), t.file)).collect();
        let corrupt = |file: usize, name: &str, what: &str| {
            let file = self.files.get(file).map(|path| path.display().to_string()).unwrap_or_default();
            let reason = format!("{what} {file}");
            Error::Corrupt { file: index.path.clone(), tensor: Some(name.into()), offset: None, reason }
        };
        for (name, file) in &index.tensors {
            if !there.remove(&(name.as_str(), *file)) {
                return Err(corrupt(
                    *file,
                    name,
                    "the index says that it is in a file that does not have it:",
                ));
            }
        }
        match there.into_iter().min() {
            Some((name, file)) => Err(corrupt(file, name, "the index does not name it, but it is in")),
            None => Ok(()),
        }
    }
}

/// Which file has which tensor.
struct Index {
    path: PathBuf,
    /// The files, in the order of their names.
    files: Vec<PathBuf>,
    /// Tensor and index of its file.
    tensors: Vec<(String, usize)>,
}

enum IndexField {
    WeightMap(Object<String>),
    Other,
}

impl<'de> Field<'de> for IndexField {
    fn read<A: MapAccess<'de>>(key: &str, map: &mut A) -> Result<Self, A::Error> {
        Ok(match key {
            "weight_map" => IndexField::WeightMap(map.next_value()?),
            _ => map.next_value::<IgnoredAny>().map(|_| IndexField::Other)?,
        })
    }
}

/// Reads an index. The names of files in it are whatever somebody wrote: only names of files beside the index are
/// taken.
fn read_index(path: &Path) -> Result<Index, Error> {
    let source = Source::open(path)?;
    if source.len() > MAX_INDEX {
        let reason = format!("an index of {} bytes; {MAX_INDEX} are allowed", source.len());
        return Err(Error::Limit { file: path.into(), tensor: None, reason });
    }
    let text = source.read_vec(0, source.len())?;
    parse_index(&text, path).map_err(|fault| fault.in_file(path))
}

/// Parses the text of the index at `path`.
fn parse_index(text: &[u8], path: &Path) -> Result<Index, Fault> {
    let corrupt = |tensor: Option<&str>, reason: String| Fault::Corrupt {
        tensor: tensor.map(Into::into),
        offset: None,
        reason,
    };
    let Object(fields) =
        serde_json::from_slice::<Object<IndexField>>(text).map_err(|e| json::fault(&e, text, 0))?;
    let map = fields.into_iter().find_map(|(_, field)| match field {
        IndexField::WeightMap(Object(map)) => Some(map),
        IndexField::Other => None,
    });
    let map = map.ok_or_else(|| corrupt(None, "there is no \"weight_map\"".into()))?;
    let mut names: Vec<&str> = map.iter().map(|(_, file)| file.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    for name in &names {
        if !shards::is_plain_name(name) {
            let tensor = map.iter().find(|(_, file)| file == name).map(|(tensor, _)| tensor.as_str());
            return Err(corrupt(tensor, format!("{name:?} is not the name of a file beside the index")));
        }
    }
    let tensors = map.iter().map(|(t, file)| (t.clone(), names.binary_search(&file.as_str()).unwrap_or(0)));
    Ok(Index {
        path: path.into(),
        tensors: tensors.collect(),
        files: names.iter().map(|name| path.with_file_name(name)).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(text: &str) -> Result<Index, Fault> {
        parse_index(text.as_bytes(), Path::new("/d/index.json"))
    }

    #[test]
    fn reads_an_index() {
        let text =
            r#"{"metadata": {"total_size": 5, "x": [1]}, "weight_map": {"b": "2", "a": "1", "c": "2"}}"#;
        let index = index(text).unwrap();
        assert_eq!(index.files, [Path::new("/d/1"), Path::new("/d/2")]);
        assert_eq!(index.tensors, [("b".into(), 1), ("a".into(), 0), ("c".into(), 1)]);
    }

    #[test]
    fn hostile_indexes() {
        let deep = format!(r#"{{"x": {}"#, "[".repeat(100_000));
        for text in [
            "",
            "[]",
            "null",
            "{}",
            r#"{"weight_map": {"a": "1"}} x"#,
            r#"{"weight_map": {"a": "1", "a": "2"}}"#,
            r#"{"weight_map": {"a": "1"}, "weight_map": {"a": "1"}}"#,
            r#"{"weight_map": ["1"]}"#,
            r#"{"weight_map": {"a": 1}}"#,
            r#"{"weight_map": {"a": "../1"}}"#,
            r#"{"weight_map": {"a": "/etc/passwd"}}"#,
            r#"{"weight_map": {"a": "sub/1"}}"#,
            r#"{"weight_map": {"a": "sub\\1"}}"#,
            r#"{"weight_map": {"a": "c:1"}}"#,
            r#"{"weight_map": {"a": ".."}}"#,
            r#"{"weight_map": {"a": ""}}"#,
            r#"{"weight_map": {"a": "1\u0000"}}"#,
            r#"{"weight_map": {"a": "NUL.safetensors"}}"#,
            &deep,
        ] {
            assert!(matches!(index(text), Err(Fault::Corrupt { .. })), "{text:.60}");
        }
        let Err(Fault::Corrupt { tensor, reason, .. }) = index(r#"{"weight_map": {"b": "1", "a": "../1"}}"#)
        else {
            panic!()
        };
        assert_eq!(tensor.as_deref(), Some("a"));
        assert!(reason.contains("../1"));
        let Err(Fault::Corrupt { offset, .. }) = index("{\n\"weight_map\": 3}") else { panic!() };
        assert_eq!(offset, Some(16));
    }
}
